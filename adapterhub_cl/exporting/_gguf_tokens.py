"""A tokenizer as GGUF stores it: its tokens and their types, its merges, and how llama.cpp splits a text first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub_cl.errors import AdapterError

if TYPE_CHECKING:
    import gguf

BY_CONVERTER = "let llama.cpp's own converter write it: --converter PATH/convert_hf_to_gguf.py"
# How a text is split before the merges: the expression in tokenizer.json → llama.cpp's name of it.
_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS = {_LLAMA_3: "llama-bpe", _LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}"): "qwen2"}


def check_tokenizer(folder: Path) -> dict[str, Any]:
    """The content of a model's tokenizer.json.

    Raises:
        AdapterError: there is none, or it is a kind of tokenizer that is not known here.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise AdapterError(f"{folder} has no tokenizer.json, so its tokens cannot be written as GGUF", BY_CONVERTER)
    told: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    kind = (told.get("model") or {}).get("type")
    if kind != "BPE":
        raise AdapterError(f"the base's tokenizer is {kind}, not BPE", BY_CONVERTER)
    if not told["model"].get("byte_fallback"):
        _split(told)
    return told


def add_tokenizer(writer: gguf.GGUFWriter, folder: Path, rows: int) -> None:
    """Add the tokenizer of a model's folder, with its special ids and its chat template.

    Args:
        rows: of the model's embeddings; there may be more than tokens.

    Raises:
        AdapterError: see `check_tokenizer`.
    """
    from transformers import AutoTokenizer

    told, tokenizer = check_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    model = told["model"]
    if model.get("byte_fallback"):
        _add_sentencepiece(writer, folder, rows)
    else:
        _add_byte_level(writer, told, tokenizer, rows)
    for name, token in (("bos", "bos"), ("eos", "eos"), ("unknown", "unk"), ("padding", "pad")):
        number = getattr(tokenizer, f"{token}_token_id")
        if number is not None:
            writer.add_uint32(f"tokenizer.ggml.{name}_token_id", number)
    framed = tokenizer("a").input_ids
    writer.add_add_bos_token(bool(framed) and framed[0] == tokenizer.bos_token_id)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _add_byte_level(writer: gguf.GGUFWriter, told: dict[str, Any], tokenizer: Any, rows: int) -> None:
    import gguf

    known = {number: token for token, number in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    tokens, types = [], []
    for number in range(rows):
        token, kind = known.get(number, f"[PAD{number}]"), gguf.TokenType.NORMAL
        if number not in known:
            kind = gguf.TokenType.UNUSED
        elif number in added:
            kind = gguf.TokenType.CONTROL if added[number].special else gguf.TokenType.USER_DEFINED
        tokens.append(token)
        types.append(kind)
    merges = told["model"].get("merges") or []
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_split(told))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([one if isinstance(one, str) else " ".join(one) for one in merges])


def _split(told: dict[str, Any]) -> str:
    """llama.cpp's name for how the tokenizer splits a text before it merges.

    Raises:
        AdapterError: it is not known here.
    """
    outer = told.get("pre_tokenizer") or {}
    steps = outer.get("pretokenizers") or [outer]
    kinds = [step.get("type") for step in steps]
    if steps and steps[-1].get("type") == "ByteLevel" and not steps[-1].get("add_prefix_space"):
        if kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
            return "gpt-2"
        if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits") and steps[1].get("use_regex", True):
            return "smollm"
        if kinds == ["Split", "ByteLevel"] and not steps[1].get("use_regex", True):
            found = _SPLITS.get(str((steps[0].get("pattern") or {}).get("Regex")))
            if found:
                return found
    raise AdapterError("the base's tokenizer splits texts in a way that is not known here", BY_CONVERTER)


def _add_sentencepiece(writer: gguf.GGUFWriter, folder: Path, rows: int) -> None:
    """BPE that falls back to bytes, as SentencePiece has it."""
    import gguf

    tokens: list[bytes] = []
    scores: list[float] = []
    types: list[int] = []
    for token, score, kind in gguf.LlamaHfVocab(folder).all_tokens():
        tokens.append(token)
        scores.append(score)
        types.append(kind)
    for number in range(len(tokens), rows):
        tokens.append(f"[PAD{number}]".encode())
        scores.append(-1000.0)
        types.append(gguf.TokenType.UNUSED)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
