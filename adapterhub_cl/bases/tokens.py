"""Checks that a tokenizer belongs to the model: every id that it produces must have an embedding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer

from adapterhub_cl.errors import BaseModelError, DataError


def check_tokenizer_of(path: Path, source: str) -> None:
    """`check_special_ids` before the weights are loaded. Files that cannot be read here are reported by loading.

    Raises:
        BaseModelError: a required token has no embedding.
    """
    try:
        rows = getattr(AutoConfig.from_pretrained(path).get_text_config(), "vocab_size", None)
        tokenizer = AutoTokenizer.from_pretrained(path)
    except Exception:
        return
    if isinstance(rows, int) and rows > 0:
        check_special_ids(tokenizer, rows, source)


def check_special_ids(tokenizer: Any, rows: int, source: str) -> None:
    """Raise if a token that begins, ends or pads texts has no embedding.

    Args:
        rows: number of embeddings of the base.

    Raises:
        BaseModelError: the id of such a token is too large.
    """
    around = set(tokenizer("a").input_ids)  # includes what it adds around every text
    for name in ("eos_token", "pad_token", "bos_token", "cls_token", "sep_token", "mask_token"):
        number = getattr(tokenizer, f"{name}_id", None)
        used = name in ("eos_token", "pad_token", "mask_token") or number in around
        if isinstance(number, int) and number >= rows and used:
            raise BaseModelError(
                f"the tokenizer of base {source!r} belongs to another model: the {name.replace('_', ' ')} "
                f"{getattr(tokenizer, name)} is id {number}, but the base has {rows} embeddings",
                f"set {name} in tokenizer_config.json to a token that the model has, or enlarge its embeddings: "
                "model.resize_token_embeddings(len(tokenizer))",
            )


def refuse_unknown_ids(model: Any, tokenizer: Any) -> None:
    """If the tokenizer has more tokens than the base has embeddings, raise a clear error for a text with such a token.

    Otherwise the lookup fails with an index error, or on a GPU with an assertion that ends the process.
    """
    words = model.get_input_embeddings()
    if len(tokenizer) <= words.num_embeddings:
        return

    def check(_: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs and isinstance(inputs[0], torch.Tensor) and inputs[0].numel():
            largest = int(inputs[0].max())
            if largest >= words.num_embeddings:
                token = str(tokenizer.convert_ids_to_tokens(largest))
                who, hint, count = "a text contains", "remove it from the text", words.num_embeddings
                if token in str(getattr(tokenizer, "chat_template", "") or ""):
                    who, hint = "the chat template writes", "choose another prompt format: --prompt-format instruction"
                raise DataError(
                    f"{who} the token {token!r} (id {largest}), but the base has only {count} embeddings",
                    f"{hint}; it was added to the tokenizer but not to the model",
                )

    words.register_forward_pre_hook(check)
