"""One tiny model with random weights of each family of transformers that the table of architectures tries.

`CAUSAL` and `ENCODERS` map a family (transformers' model type, with a variant behind a colon) to what its config needs
beside the common sizes; `COMPOSED` are checkpoints with a vision tower; `REFUSED` are kinds that `init` or `add-task`
must refuse, with a word of the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

SIZES = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = {"num_key_value_heads": 2}
HEADS = {**SIZES, **GROUPED, "head_dim": 12}
GPT = {"n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 256}
SSM = {"mamba_n_heads": 8, "mamba_d_head": 12, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 16}
DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 12,
    "linear_value_head_dim": 12,
    "layer_types": ["linear_attention", "full_attention"],
}
LATENT = {"q_lora_rank": 24, "kv_lora_rank": 12, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "first_k_dense_replace": 1}
MIXTURE = {"moe_intermediate_size": 24, "shared_expert_intermediate_size": 24}
ONE_GROUP = {"n_group": 1, "topk_group": 1, "n_shared_experts": 1}

CAUSAL: Mapping[str, Mapping[str, Any]] = {
    "llama": {**SIZES, **GROUPED},
    "mistral": {**SIZES, **GROUPED, "sliding_window": None},
    "mistral:window": {**SIZES, **GROUPED, "sliding_window": 12},
    "ministral": HEADS,
    "ministral3": HEADS,
    "qwen2": {**SIZES, **GROUPED},
    "qwen3": HEADS,
    "gemma": HEADS,
    "gemma2": {**HEADS, "sliding_window": 64},
    "gemma3_text": {**HEADS, "sliding_window": 64},
    "gemma4_text": HEADS,
    "phi": SIZES,
    "phi3": {**SIZES, **GROUPED},
    "gpt2": GPT,
    "gptj": {**GPT, "rotary_dim": 8},
    "gpt_bigcode": GPT,
    "codegen": {**GPT, "rotary_dim": 8},
    "gpt_neo": {
        "hidden_size": 48,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "intermediate_size": 96,
        "window_size": 8,
        "max_position_embeddings": 256,
    },
    "gpt_neox": SIZES,
    "opt": {
        "hidden_size": 48,
        "ffn_dim": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "word_embed_proj_dim": 48,
    },
    "falcon": {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": False},
    "falcon:alibi": {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": True},
    "bloom": {"hidden_size": 48, "n_layer": 2, "n_head": 4},
    "mpt": {"d_model": 48, "n_heads": 4, "n_layers": 2, "expansion_ratio": 2},
    "stablelm": {**SIZES, "num_attention_heads": 2, "num_key_value_heads": 2},
    "starcoder2": {**SIZES, **GROUPED},
    "olmo": {**SIZES, **GROUPED},
    "olmo2": {**SIZES, **GROUPED},
    "olmo3": {**SIZES, **GROUPED, "sliding_window": 64},
    "cohere": {**SIZES, **GROUPED},
    "cohere2": {**SIZES, **GROUPED, "sliding_window": 64},
    "granite": {**SIZES, **GROUPED},
    "glm": HEADS,
    "glm4": HEADS,
    "smollm3": {**SIZES, **GROUPED},
    "helium": HEADS,
    "nemotron": HEADS,
    "exaone4": {**SIZES, **GROUPED, "sliding_window": 64},
    "ernie4_5": HEADS,
    "seed_oss": HEADS,
    "apertus": {**SIZES, **GROUPED},
    "arcee": {**SIZES, **GROUPED},
    "hunyuan_v1_dense": HEADS,
    "diffllama": {**SIZES, **GROUPED},
    "biogpt": SIZES,
    "xglm": {"d_model": 48, "ffn_dim": 96, "num_layers": 2, "attention_heads": 4},
    # mixtures of experts
    "mixtral": {**SIZES, **GROUPED, **LOCAL_EXPERTS},
    "qwen2_moe": {**SIZES, **GROUPED, **EXPERTS, **MIXTURE},
    "qwen3_moe": {**HEADS, **EXPERTS, "moe_intermediate_size": 24, "decoder_sparse_step": 1},
    "olmoe": {**SIZES, **GROUPED, **EXPERTS},
    "deepseek_v2": {**SIZES, "num_key_value_heads": 4, **LATENT, **ROUTED, "n_group": 1, "topk_group": 1},
    "deepseek_v3": {**SIZES, "num_key_value_heads": 4, **LATENT, **ROUTED, **ONE_GROUP},
    "glm4_moe": {**HEADS, **ROUTED},
    "granitemoe": {**SIZES, **GROUPED, **LOCAL_EXPERTS},
    "phimoe": {**SIZES, **GROUPED, **LOCAL_EXPERTS},
    "gpt_oss": {**HEADS, **LOCAL_EXPERTS, "sliding_window": 64},
    "ernie4_5_moe": {**SIZES, **GROUPED, "moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 24},
    "dbrx": {
        "d_model": 48,
        "n_heads": 4,
        "n_layers": 2,
        "max_seq_len": 256,
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0},
    },
    "llama4_text": {
        **HEADS,
        "intermediate_size_mlp": 96,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "interleave_moe_layer_step": 1,
        "attention_chunk_size": 64,
    },
    # recurrent and convolutional layers
    "mamba": {"hidden_size": 48, "num_hidden_layers": 2, "state_size": 8, "time_step_rank": 4},
    "mamba2": {
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "state_size": 8,
        "num_heads": 8,
        "head_dim": 12,
        "n_groups": 1,
        "chunk_size": 16,
    },
    "falcon_mamba": {"hidden_size": 48, "num_hidden_layers": 2, "state_size": 8, "time_step_rank": 4},
    "rwkv": {"hidden_size": 48, "attention_hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2},
    "recurrent_gemma": {
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "lru_width": 48,
        "attention_window_size": 64,
    },
    "lfm2": {**SIZES, **GROUPED, "layer_types": ["conv", "full_attention"]},
    "jamba": {
        **SIZES,
        **GROUPED,
        "attn_layer_offset": 1,
        "attn_layer_period": 2,
        "expert_layer_offset": 1,
        "expert_layer_period": 2,
        "num_experts": 2,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
    "bamba": {**SIZES, **GROUPED, **SSM, "attn_layer_indices": [1]},
    "zamba2": {
        **SIZES,
        "num_key_value_heads": 4,
        "mamba_d_state": 8,
        "mamba_ngroups": 1,
        "n_mamba_heads": 8,
        "mamba_headdim": 12,
        "chunk_size": 16,
        "num_mem_blocks": 1,
        "adapter_rank": 4,
        "layers_block_type": ["mamba", "hybrid"],
    },
    "falcon_h1": {**HEADS, **SSM, "mamba_d_ssm": 96},
    "nemotron_h": {
        **{key: value for key, value in HEADS.items() if key != "num_hidden_layers"},
        "layers_block_type": ["mamba", "attention", "mlp"],
        "mamba_num_heads": 8,
        "mamba_head_dim": 12,
        "ssm_state_size": 8,
        "n_groups": 1,
        "chunk_size": 16,
    },
    "granitemoehybrid": {
        **SIZES,
        **GROUPED,
        **SSM,
        **LOCAL_EXPERTS,
        "layer_types": ["mamba", "attention"],
        "shared_intermediate_size": 48,
    },
    "qwen3_next": {**HEADS, **DELTA, **EXPERTS, **MIXTURE},
    "qwen3_5_text": {**HEADS, **DELTA},
}
ENCODERS: Mapping[str, Mapping[str, Any]] = {
    "bert": SIZES,
    "roberta": SIZES,
    "xlm-roberta": SIZES,
    "electra": {**SIZES, "embedding_size": 48},
    "albert": {**SIZES, "embedding_size": 24},
    "distilbert": {"dim": 48, "hidden_dim": 96, "n_layers": 2, "n_heads": 4},
    "deberta-v2": {**SIZES, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False},
    "modernbert": {**SIZES, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2},
    "mpnet": SIZES,
    "camembert": SIZES,
    "esm": {**SIZES, "position_embedding_type": "rotary", "mask_token_id": 3},
    "longformer": {**SIZES, "attention_window": [8, 8]},
}
VISION = {"hidden_size": 24, "num_hidden_layers": 1}
COMPOSED: Mapping[str, Mapping[str, Any]] = {
    "gemma3": {
        "text_config": HEADS,
        "vision_config": {
            **VISION,
            "intermediate_size": 48,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        "mm_tokens_per_image": 4,
        "image_token_index": 10,
        "boi_token_index": 11,
        "eoi_token_index": 12,
    },
    "mistral3": {
        "text_config": {**HEADS, "model_type": "mistral"},
        "vision_config": {
            **VISION,
            "model_type": "pixtral",
            "intermediate_size": 48,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        "image_token_index": 10,
    },
    "qwen3_5": {
        "text_config": {
            **HEADS,
            **DELTA,
            "rope_parameters": {
                "rope_type": "default",
                "mrope_section": [1, 0, 0],
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.25,
            },
        },
        "vision_config": {
            "depth": 1,
            "hidden_size": 24,
            "num_heads": 2,
            "intermediate_size": 48,
            "out_hidden_size": 48,
        },
    },
    "gemma4": {
        "text_config": HEADS,
        "vision_config": {
            **VISION,
            "intermediate_size": 48,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 12,
        },
        "audio_config": None,
    },
}
REFUSED: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "t5": ("neither", {"d_model": 48, "d_kv": 12, "d_ff": 96, "num_layers": 2, "num_heads": 4}),
    "bart": (
        "neither",
        {
            "d_model": 48,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 96,
            "decoder_ffn_dim": 96,
        },
    ),
    "xlnet": ("from left to right", {"d_model": 48, "n_layer": 2, "n_head": 4, "d_inner": 96}),
}


def build(family: str, folder: Path) -> Path:
    """Write a family's model and tokenizer; the weights follow from a fixed seed.

    The weights are wider than usual, so that a model without training is far from indifferent between tokens.
    """
    import torch
    import transformers as hf
    from pico import make_tokenizer

    kind = family.partition(":")[0]
    words = 300 if family in ENCODERS else 4096
    ids = {"vocab_size": words, "pad_token_id": 0 if words == 300 else 2}
    wide = {"initializer_range": 0.15}
    if words == 4096:
        ids |= {"bos_token_id": 0, "eos_token_id": 1}
    torch.manual_seed(11)
    if family in COMPOSED:
        given = {key: dict(value) if isinstance(value, Mapping) else value for key, value in COMPOSED[family].items()}
        given["text_config"] = {**given["text_config"], **ids, **wide, "max_position_embeddings": 256}
        config = hf.AutoConfig.for_model(kind, **given)
        model = hf.AutoModelForImageTextToText.from_config(config)
    elif family in REFUSED:
        config = hf.AutoConfig.for_model(kind, **REFUSED[family][1], **ids, decoder_start_token_id=2)
        auto = hf.AutoModelForCausalLM if kind == "xlnet" else hf.AutoModelForSeq2SeqLM
        model = auto.from_config(config)
    else:
        sizes = dict(ENCODERS[family] if family in ENCODERS else CAUSAL[family])
        sizes.setdefault("max_position_embeddings", 256)
        config = hf.AutoConfig.for_model(kind, **{**ids, **wide, **sizes})
        model = (hf.AutoModelForMaskedLM if family in ENCODERS else hf.AutoModelForCausalLM).from_config(config)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.dim() == 1 and name.endswith("bias"):
                value.add_(torch.randn_like(value) * 0.05)
            if value.dim() == 3:  # experts, which some classes leave at zero
                value.copy_(torch.randn_like(value) * 0.15)
    model.float().save_pretrained(folder)
    if family in ENCODERS:
        make_tokenizer(encoder=True).save_pretrained(folder)
    else:
        from adapterhub_cl.bases import resolve

        hf.AutoTokenizer.from_pretrained(resolve("tiny")).save_pretrained(folder)
    return folder
