"""Attention of one query a row by matrix products: what torch's own kernel gives, for every kind of base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from families import CAUSAL, build
from transformers.cache_utils import DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from adapterhub_cl.answering import one_token_attention as module
from adapterhub_cl.answering.decoding import can_decode

FEW = ("llama", "mistral", "qwen3", "gemma2", "phi3", "gpt2", "gpt_neox", "bloom")


@pytest.mark.parametrize("masked", ["none", "bool", "added"])
@pytest.mark.parametrize("groups", [1, 3])
def test_it_is_attention(masked: str, groups: int) -> None:
    draw = torch.Generator().manual_seed(1)
    query = torch.randn(3, 2 * groups, 1, 8, generator=draw)
    key, value = (torch.randn(3, 2, 11, 8, generator=draw) for _ in range(2))
    seen = torch.rand(3, 1, 1, 11, generator=draw) < 0.6
    seen[..., -1] = True
    mask = {"none": None, "bool": seen, "added": torch.where(seen, 0.0, -torch.inf)}[masked]
    layer = torch.nn.Module()
    layer.num_key_value_groups = groups  # type: ignore[assignment]
    for scaling in (None, 0.7):
        found, _ = module._attend(layer, query, key, value, mask, scaling=scaling)
        wanted, _ = sdpa_attention_forward(layer, query, key, value, mask, scaling=scaling)
        assert torch.allclose(found, wanted, atol=1e-6)


def test_more_queries_or_other_scores_are_left_to_torch() -> None:
    layer = torch.nn.Module()
    query, key = torch.randn(1, 2, 4, 8), torch.randn(1, 2, 4, 8)
    found, _ = module._attend(layer, query, key, key, None)
    assert torch.equal(found, sdpa_attention_forward(layer, query, key, key, None)[0])
    with pytest.raises(ValueError, match="softcap"):
        module._attend(layer, query[:, :, :1], key, key, None, softcap=5.0)


@pytest.mark.parametrize(
    "family", [one if one in FEW else pytest.param(one, marks=pytest.mark.slow) for one in sorted(CAUSAL)]
)
def test_a_base_writes_the_same_with_it(family: str, tmp_path: Path) -> None:
    """The logits of three steps after prompts of two lengths."""
    model = transformers.AutoModelForCausalLM.from_pretrained(build(family, tmp_path / "base")).eval()
    if not can_decode(model):
        return  # the decoder is not used for it
    kind = model.config._attn_implementation
    ids = torch.tensor([[0, 0, 0, 1, 40, 41, 42], [1, 90, 17, 63, 204, 11, 12]])
    mask, steps = (ids > 0).long(), torch.tensor([[50, 51, 52], [60, 61, 62]])

    def logits(quick: bool) -> torch.Tensor:
        cache, found, seen = DynamicCache(config=model.config.get_text_config(decoder=True)), [], mask
        with torch.no_grad():
            model(input_ids=ids, attention_mask=seen, past_key_values=cache, use_cache=True)
            for step in steps.T:
                seen = torch.cat([seen, seen.new_ones(2, 1)], 1)
                given = {"input_ids": step[:, None], "attention_mask": seen, "past_key_values": cache}
                if quick:
                    with module.one_token_attention(model):
                        found.append(model(**given, use_cache=True).logits)
                else:
                    found.append(model(**given, use_cache=True).logits)
        return torch.cat(found, 1)

    assert torch.allclose(logits(True), logits(False), atol=2e-5, rtol=1e-4)
    assert model.config._attn_implementation == kind


def test_the_choice_is_taken_back_after_an_error(pico_base: Any) -> None:
    model = pico_base.model
    assert model.config._attn_implementation == "sdpa"
    seen = []
    hook = model.register_forward_pre_hook(lambda inner, _: seen.append(inner.config._attn_implementation))
    with pytest.raises(IndexError), module.one_token_attention(model):
        model(input_ids=torch.tensor([[99_999]]))  # no such token
    hook.remove()
    assert seen == [module.NAME]
    assert model.config._attn_implementation == "sdpa"
