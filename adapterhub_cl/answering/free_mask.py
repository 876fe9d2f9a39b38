"""Whether a base can read several continuations of a prompt in one pass, each of which sees the prompt and itself only.

That takes a mask of free form and positions of free choice, and gives the right answer only where every layer looks
at other tokens through the mask alone. It is decided by architecture first: layers that are recurrent, convolve, attend
to a distance in the sequence (ALiBi) or to a neighbourhood of their own (GPT-Neo) do not. What is left is compared on a
long prompt made for that, so that the answer never depends on what was asked first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch

LENGTH = 160  # tokens of the prompt on which both ways are compared
# Share of a log-likelihood by which the two ways may differ, that of 10 nats at least: rounding alone.
TOLERANCE = {torch.float32: 2e-4, torch.float16: 5e-3, torch.bfloat16: 2e-2}
MASKED_ONLY = {"full_attention", "sliding_attention", "chunked_attention", "attention"}
_OTHER = re.compile(
    r"mamba|ssm|rwkv|recurrent|delta(net|attention|rule)|shortconv|rglru|linearattention|lightning|local|lstm|retention"
    r"|indexer",
    re.I,
)
LABELS = ((7, 8, 9, 11), (7, 8, 9, 12), (7, 13, 14), (15, 16, 17))

# How a class says that it takes no mask, or no rows, of this form.
REFUSED = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, KeyError, NotImplementedError)

Scores = Callable[[Any, Sequence[Any], Sequence[Sequence[int]], int], list[torch.Tensor]]


def by_architecture(model: Any) -> bool:
    """Whether all layers of a base look at other tokens through the attention mask alone, as far as its config and its
    modules tell."""
    config = model.config.get_text_config()
    if getattr(config, "alibi", False) or _alibi(config):
        return False
    kinds = {*_list(config, "layer_types"), *_list(config, "layers_block_type"), *_list(config, "block_types")}
    if kinds - MASKED_ONLY or "local" in _list(config, "attention_layers"):
        return False
    for module in model.modules():
        if isinstance(module, torch.nn.Conv1d) or _OTHER.search(type(module).__name__):
            return False
    return True


def window(model: Any) -> int | None:
    """The tokens that a layer with a window sees, which a free mask overrides: longer prompts are read otherwise."""
    config = model.config.get_text_config()
    sizes = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return min((size for size in sizes if isinstance(size, int) and size > 0), default=None)


def agree(model: Any, plain: Scores, quick: Scores, tree: Any, pad_id: int, kind: torch.dtype) -> bool | None:
    """Whether both ways give the same log-likelihoods on a long prompt; None where they are no finite numbers.

    Args:
        tree: of `LABELS`.
        kind: the type that products run in.
    """
    rows = probe(model)
    try:
        exact, other = (torch.stack(way(model, [tree] * len(rows), rows, pad_id)) for way in (plain, quick))
    except REFUSED:
        return False
    if not torch.isfinite(exact).all():
        return None
    apart = (exact - other).abs() / exact.abs().clamp_min(10.0)
    return bool(apart.max() <= TOLERANCE.get(kind, TOLERANCE[torch.bfloat16]))


def probe(model: Any) -> list[list[int]]:
    """Two prompts, a long one and a shorter one, whose padding must not shift what comes after it."""
    config = model.config.get_text_config()
    limits = [LENGTH, window(model), (getattr(config, "max_position_embeddings", None) or LENGTH * 2) // 2]
    room = max(4, min(size for size in limits if isinstance(size, int) and size > 0) - 8)
    count = int(model.get_input_embeddings().num_embeddings)
    drawn = torch.randint(18 % count, count, (room,), generator=torch.Generator().manual_seed(0)).tolist()
    return [drawn, drawn[: (room + 1) // 2]]


def _alibi(config: Any) -> bool:
    own = getattr(config, "attn_config", None)
    return config.model_type == "bloom" or bool(getattr(own, "alibi", False))


def _list(config: Any, name: str) -> list[str]:
    found = getattr(config, name, None)
    return [str(one) for one in found] if isinstance(found, list | tuple) else []
