"""GGUF files, llama.cpp's format, as bases: dequantised once into the user's cache."""

from __future__ import annotations

import json
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from adapterhub_cl.bases.fingerprint import GGUF, file_sha256
from adapterhub_cl.bases.finite_weights import spoilt_weights
from adapterhub_cl.bases.kept_weights import KeptWeights
from adapterhub_cl.bases.this_machine import UserCache
from adapterhub_cl.errors import BaseModelError, first_line


def unpacked(file: Path) -> Path:
    """The folder of a GGUF file's model, tokenizer and chat template, with bf16 weights; it is made at the first call.

    Raises:
        BaseModelError: transformers cannot read this file, it is damaged, or there is no room for the folder.
    """
    file = file.resolve()
    digest = file_sha256(file, UserCache("fingerprints.json"))
    kept = KeptWeights(f"gguf|{digest}|{version('transformers')}")
    found = kept.load(lambda folder: folder)
    if found is None:
        kept.note = ""
        _unpack(file, digest, kept)
        if not kept.folder.is_dir():
            raise BaseModelError(
                f"{file.name} cannot be unpacked: {kept.note}", "free some space, or set XDG_CACHE_HOME to another disk"
            )
    return kept.folder


def _unpack(file: Path, digest: str, kept: KeptWeights) -> None:
    if find_spec("gguf") is None:
        raise BaseModelError(f"reading {file.name} needs the package gguf", "pip install gguf")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, modeling_gguf_pytorch_utils

    from adapterhub_cl.quiet import no_loading_bars, quiet_third_parties

    quiet_third_parties()
    bar = modeling_gguf_pytorch_utils.tqdm
    try:
        modeling_gguf_pytorch_utils.tqdm = partial(bar, disable=None)  # shown on terminals alone
        with no_loading_bars():
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
            model, told = AutoModelForCausalLM.from_pretrained(
                file.parent,
                gguf_file=file.name,
                quantization_config=GgufConfig(dequantize=True),
                dtype=torch.bfloat16,
                output_loading_info=True,
            )
    except Exception as error:  # a damaged file, or an architecture that transformers does not read from GGUF
        reason = first_line(error)
        raise BaseModelError(
            f"transformers cannot read {file.name}: {reason}",
            "make sure that the file is complete, or use the checkpoint that it was made from",
        ) from error
    finally:
        modeling_gguf_pytorch_utils.tqdm = bar
    lacking = sorted(dict(model.named_parameters()).keys() & told["missing_keys"])
    spoilt = spoilt_weights(model)
    if lacking or spoilt:
        why = (
            f"{len(lacking)} weights that its metadata requires are missing, such as {lacking[0]}"
            if lacking
            else f"{len(spoilt)} of its tensors have values that are not numbers, such as {spoilt[0]}"
        )
        raise BaseModelError(
            f"{file.name} is damaged: {why}", "download it again, or use the checkpoint that it was made from"
        )

    def save(folder: Path) -> None:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / GGUF).write_text(json.dumps({"file": file.name, "sha256": digest}), encoding="utf-8")

    kept.store(save, sum(p.numel() * p.element_size() for p in model.parameters()))
