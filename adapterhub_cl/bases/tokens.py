"""Whether a tokenizer is the model's own: every id that it gives must have an embedding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer

from adapterhub_cl.errors import BaseModelError, DataError


def check_tokenizer_of(path: Path, source: str) -> None:
    """`check_special_ids` before any weight is loaded. What cannot be read here is told when the base is loaded.

    Raises:
        BaseModelError: a token that is needed has no embedding.
    """
    try:
        rows = getattr(AutoConfig.from_pretrained(path).get_text_config(), "vocab_size", None)
        tokenizer = AutoTokenizer.from_pretrained(path)
    except Exception:
        return
    if isinstance(rows, int) and rows > 0:
        check_special_ids(tokenizer, rows, source)


def check_special_ids(tokenizer: Any, rows: int, source: str) -> None:
    """Raise where a token that begins, ends or pads texts has no embedding.

    Args:
        rows: embeddings of the base.

    Raises:
        BaseModelError: one of them is beyond the last.
    """
    around = set(tokenizer("a").input_ids)  # what it puts around every text
    for name in ("eos_token", "pad_token", "bos_token", "cls_token", "sep_token", "mask_token"):
        number = getattr(tokenizer, f"{name}_id", None)
        used = name in ("eos_token", "pad_token", "mask_token") or number in around
        if isinstance(number, int) and number >= rows and used:
            raise BaseModelError(
                f"the tokenizer of base {source!r} is not its model's: the {name.replace('_', ' ')} "
                f"{getattr(tokenizer, name)} is id {number}, the base has {rows} embeddings",
                f"set {name} in tokenizer_config.json to a token that the model knows, or enlarge its embeddings: "
                "model.resize_token_embeddings(len(tokenizer))",
            )


def refuse_unknown_ids(model: Any, tokenizer: Any) -> None:
    """Where the tokenizer has more tokens than the base has embeddings, refuse in words a text that holds such a one.

    The lookup alone would fail with an index error, on a GPU with an assertion that ends the process.
    """
    words = model.get_input_embeddings()
    if len(tokenizer) <= words.num_embeddings:
        return

    def check(_: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs and isinstance(inputs[0], torch.Tensor) and inputs[0].numel():
            largest = int(inputs[0].max())
            if largest >= words.num_embeddings:
                raise DataError(
                    f"a text holds the token {tokenizer.convert_ids_to_tokens(largest)!r} (id {largest}), and the base "
                    f"has {words.num_embeddings} embeddings",
                    "take it out of the text: it was added to the tokenizer and not to the model",
                )

    words.register_forward_pre_hook(check)
