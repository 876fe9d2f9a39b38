"""Pico models: what they are made of. Importing this imports no torch."""

from __future__ import annotations

from typing import Any

# Words with few tokens each, labels that begin alike, and text outside ASCII.
CORPUS = ["Answer: positive", "Answer: negative", "the red apple is good", "the blue stone is bad"] * 8


ENCODERS = ("bert", "bert_body", "roberta", "distilbert")


def make_tokenizer(*, bos: bool = True, encoder: bool = False) -> Any:
    """A byte-level BPE tokenizer of 300 ids; any text can be written with it. An encoder's frames a text with <s> and
    </s>, and has no end-of-text id but a mask."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<s>", "</s>", *(["<mask>"] if encoder else [])],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(CORPUS, trainer)
    if encoder:
        inner.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
        return PreTrainedTokenizerFast(
            tokenizer_object=inner,
            pad_token="<pad>",
            cls_token="<s>",
            sep_token="</s>",
            mask_token="<mask>",
            model_max_length=64,
        )
    if bos:
        inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="</s>",
        model_max_length=256,
        **({"bos_token": "<s>"} if bos else {}),
    )
    tokenizer.chat_template = (
        "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    return tokenizer


def write_encoder(folder: str) -> None:
    """An untrained BERT with the head of a masked language model: for the blocks of docs/encoders.md."""
    import torch
    import transformers

    torch.manual_seed(7)
    transformers.AutoModelForMaskedLM.from_config(pico_config("bert")).save_pretrained(folder)
    make_tokenizer(encoder=True).save_pretrained(folder)


def pico_config(kind: str) -> Any:
    import transformers

    ids = {"vocab_size": 300, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    # Wider than usual, so that an untrained model is far from indifferent between tokens.
    wide = {"initializer_range": 0.15}
    rope = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
    }
    if kind == "llama":
        return transformers.LlamaConfig(**ids, **wide, **rope, num_key_value_heads=2, head_dim=16)
    if kind == "qwen2":  # biases on q, k and v; grouped keys; tied embeddings
        return transformers.Qwen2Config(**ids, **wide, **{**rope, "tie_word_embeddings": True}, num_key_value_heads=1)
    if kind == "mistral":
        return transformers.MistralConfig(**ids, **wide, **rope, num_key_value_heads=1, head_dim=16, sliding_window=24)
    if kind == "gpt2":  # Conv1D layers, learned positions
        return transformers.GPT2Config(**ids, **wide, n_embd=32, n_layer=2, n_head=2, n_positions=256)
    if kind == "bloom":  # ALiBi
        return transformers.BloomConfig(**ids, **wide, hidden_size=32, n_layer=2, n_head=2)
    small = {"vocab_size": 300, "pad_token_id": 0, "initializer_range": 0.15}
    body = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    if kind in ("bert", "bert_body"):  # the second without the head of a masked language model, but with a pooler
        return transformers.BertConfig(**small, **body, max_position_embeddings=64)
    if kind == "roberta":  # two layers in its head, tied embeddings, positions from the padding id on
        return transformers.RobertaConfig(**small, **body, max_position_embeddings=61, type_vocab_size=1)
    if kind == "distilbert":  # other names for everything
        return transformers.DistilBertConfig(
            **small, dim=32, n_layers=2, n_heads=2, hidden_dim=64, max_position_embeddings=64
        )
    raise ValueError(kind)
