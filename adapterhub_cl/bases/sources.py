"""Where a base comes from: the embedded one, a local folder, or a Hub id."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adapterhub_cl.bases.kinds import is_encoder
from adapterhub_cl.errors import BaseModelError, BaseNotFoundError
from adapterhub_cl.types import BaseInfo

TINY = "tiny"
QUANTIZATIONS = ("nf4", "fp4", "int8", "none")

# The files that define a model: weights without pickles, configuration, tokenizer, chat template.
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
SETTINGS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)


TOKENIZER_FILES = tuple(name for name in SETTINGS if name not in ("config.json", "generation_config.json"))
# Each of these is a vocabulary.
TOKENIZERS = ("tokenizer.json", "*vocab*", "*.model", "*.tiktoken", "tokenization_*.py")


def resolve(source: str, revision: str | None = None) -> Path:
    """The folder that holds a base.

    Args:
        source: `tiny`, a folder, a GGUF file, or a Hub id such as `Qwen/Qwen2.5-0.5B` (downloaded once, then cached).
        revision: branch, tag or commit of a Hub id.

    Raises:
        BaseModelError: there is no such folder, it contains no model, or the Hub id cannot be downloaded.
    """
    if source == TINY:
        return Path(__file__).parent / TINY
    try:
        path = Path(source).expanduser()
    except RuntimeError:  # ~ of a user that does not exist
        path = Path(source)
    if path.is_dir():
        return _checked(path, source)
    if is_gguf(source):
        from adapterhub_cl.bases.gguf_files import unpacked

        return unpacked(path)
    looks_local = path.is_absolute() or source.startswith((".", "~")) or source.count("/") != 1 or path.exists()
    if looks_local:
        why = "there is nothing" if not path.exists() else "it is a file, and its name does not end with .gguf"
        raise BaseNotFoundError(
            f"no base at {source!r}: {why}",
            "give a folder with config.json and *.safetensors, a GGUF file, a Hub id such as Qwen/Qwen2.5-0.5B, or "
            "tiny",
        )
    return _checked(_download(source, revision), source)


def is_gguf(source: str) -> bool:
    """Whether a base is a GGUF file, which is unpacked into the user's cache at first."""
    return source.lower().endswith(".gguf") and is_local(source)


def is_local(source: str) -> bool:
    """Whether a base is a folder or a file of this machine."""
    try:
        return Path(source).expanduser().exists()
    except (RuntimeError, OSError):  # ~ of a user that does not exist; a name that is too long
        return False


def public_name(source: str) -> str:
    """The name of a base or file that is safe to publish: the last part of a local path, anything else unchanged."""
    local = Path(source).is_absolute() or source.startswith((".", "~"))
    return (Path(source).name or source) if local else source


def check_tokenizer(path: Path, source: str) -> None:
    """Raise if a base has no tokenizer: transformers would create one with an empty vocabulary.

    Raises:
        BaseModelError: there is no tokenizer file.
    """
    if not any(file.is_file() for pattern in TOKENIZERS for file in path.glob(pattern)):
        raise BaseModelError(
            f"base {source!r} has no tokenizer: tokenizer.json, vocab.txt, vocab.json and tokenizer.model are missing",
            "put the checkpoint's tokenizer files beside its weights",
        )


def has_chat_template(base: BaseInfo) -> bool:
    """Whether the tokenizer of a causal base has a chat template; checks its files without loading them."""
    if is_encoder(base.architecture):
        return False
    path = resolve(base.source, base.revision)
    try:
        if (path / "chat_template.jinja").is_file():  # an empty file says that there is none
            return bool((path / "chat_template.jinja").read_text(encoding="utf-8").strip())
        settings = json.loads((path / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(settings, dict) and bool(settings.get("chat_template"))


def _checked(path: Path, source: str) -> Path:
    if not any(path.glob("*.safetensors")) and (files := sorted(path.glob("*.gguf"))):
        raise BaseModelError(
            f"no usable weights in {source!r}: they are in GGUF, llama.cpp's format",
            f"name the file: --base {files[0]}",
        )
    if not (path / "config.json").is_file():
        raise BaseModelError(
            f"no base in {source!r}: config.json is missing", "give the folder that save_pretrained() wrote"
        )
    if not any(path.glob("*.safetensors")):
        pickles = any(path.glob("*.bin")) or any(path.glob("*.pt"))
        reason = "its weights are pickles, which are never loaded" if pickles else "it has no *.safetensors"
        raise BaseModelError(f"no usable weights in {source!r}: {reason}", "save the model as safetensors first")
    return path


def _download(source: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=[*WEIGHTS, *SETTINGS]))
    except LocalEntryNotFoundError as error:
        raise BaseModelError(
            f"base {source!r} is not cached here and the Hub cannot be reached",
            "check the network, download the model elsewhere and give its folder, or use --base tiny",
        ) from error
    except (HFValidationError, HfHubHTTPError, OSError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BaseModelError(
            f"unknown base {source!r}: {first}", "check the id and revision, or give a folder, or use --base tiny"
        ) from error


def read_config(path: Path) -> Mapping[str, Any]:
    """The base's config.json.

    Raises:
        BaseModelError: it cannot be read.
    """
    try:
        config: Mapping[str, Any] = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BaseModelError(f"{path / 'config.json'} cannot be read: {error}", "download the base again") from error
    if not isinstance(config, dict):
        raise BaseModelError(f"{path / 'config.json'} is not a model's configuration", "download the base again")
    return config


def model_files(path: Path) -> list[Path]:
    """The files that define the model, sorted by name."""
    names = {file for pattern in (*WEIGHTS, *SETTINGS) for file in path.glob(pattern) if file.is_file()}
    return sorted(names, key=lambda file: file.name)


def refuse_lacking(path: Path, names: Sequence[str]) -> None:
    """Raise if weights that the config requires are missing in the checkpoint: they would be random.

    Raises:
        BaseModelError: there are such weights.
    """
    if names:
        raise BaseModelError(
            f"base {str(path)!r}: {len(names)} weights that its config.json requires are missing or have "
            f"another shape, such as {names[0]}",
            "download the base again: config.json and the weights belong to different models",
        )
