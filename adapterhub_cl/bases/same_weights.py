"""Whether two bases are one model that was moved or saved again: the same tensors, tokens and configuration in other
files, or the same values in a wider type."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from adapterhub_cl.bases.sources import TOKENIZER_FILES, read_config, resolve
from adapterhub_cl.errors import BaseModelError
from adapterhub_cl.types import BaseInfo

# What `save_pretrained` writes anew each time, and what changes neither weights nor tokens.
UNIMPORTANT = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype", "use_cache")


def is_same_model(old: BaseInfo, new: BaseInfo) -> bool:
    """Whether an adapter of one base does on the other exactly what it does on its own.

    The tensors are compared bit by bit; those of two float types in the type that holds both, so that a base in bf16
    that was saved in fp32 is the same. False where one of the bases is not here, or where anything is in doubt.
    """
    if (old.quantization, old.architecture) != (new.quantization, new.architecture):
        return False
    if old.fingerprint == new.fingerprint:
        return True
    if old.parameters != new.parameters:
        return False
    try:
        one, other = resolve(old.source, old.revision), resolve(new.source, new.revision)
        return _same_config(one, other) and _same_tokens(one, other) and _same_tensors(one, other)
    except (BaseModelError, OSError, ValueError, KeyError):
        return False


def _same_config(one: Path, other: Path) -> bool:
    from transformers import AutoConfig

    def told(path: Path) -> dict[str, Any]:
        read_config(path)
        row = AutoConfig.from_pretrained(path).to_dict()
        return {key: value for key, value in row.items() if key not in UNIMPORTANT}

    return told(one) == told(other)


def _same_tokens(one: Path, other: Path) -> bool:
    def files(path: Path) -> dict[str, bytes]:
        return {name: (path / name).read_bytes() for name in TOKENIZER_FILES if (path / name).is_file()}

    if files(one) == files(other):
        return True
    from transformers import AutoTokenizer

    first, second = AutoTokenizer.from_pretrained(one), AutoTokenizer.from_pretrained(other)
    if not (first.is_fast and second.is_fast):
        return False

    def works(tokenizer: Any) -> Any:
        row = json.loads(tokenizer.backend_tokenizer.to_str())
        row.pop("truncation", None)
        row.pop("padding", None)
        kept = ("chat_template", "special_tokens_map", "model_max_length", "padding_side", "truncation_side")
        return row, [getattr(tokenizer, key) for key in kept], type(tokenizer)

    return bool(works(first) == works(second))


def _same_tensors(one: Path, other: Path) -> bool:
    import torch

    floats = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
    first, second = tensor_places(one), tensor_places(other)
    if first.keys() != second.keys():
        return False
    for name in sorted(first):
        a, b = read_tensor(first[name], name), read_tensor(second[name], name)
        if a.shape != b.shape or (a.dtype != b.dtype and not {a.dtype, b.dtype} <= floats):
            return False
        wide = torch.promote_types(a.dtype, b.dtype)
        bits, others = (one.to(wide).flatten().view(torch.uint8) for one in (a, b))
        if not torch.equal(bits, others):
            return False
    return True


def tensor_places(path: Path) -> dict[str, Path]:
    """Name of a tensor → the file of a base's folder that has it."""
    from safetensors import safe_open

    found: dict[str, Path] = {}
    whole, index = path / "model.safetensors", path / "model.safetensors.index.json"
    if whole.is_file():
        files = [whole]
    elif index.is_file():
        named = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        files = [path / Path(name).name for name in sorted(set(named))]
    else:
        files = sorted(path.glob("*.safetensors"))
    for file in files:
        with safe_open(file, "pt") as tensors:
            found.update(dict.fromkeys(tensors.keys(), file))
    return found


def read_tensor(file: Path, name: str) -> Any:
    """One tensor of a file, as it is stored."""
    from safetensors import safe_open

    with safe_open(file, "pt") as tensors:
        return tensors.get_tensor(name)
