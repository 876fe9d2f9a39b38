"""adapter_config.json, and the names of the tensors beside it: checked without importing torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from adapterhub_cl.errors import AdapterError, IntegrityError
from adapterhub_cl.types import AdapterRecord, BaseInfo, Problem

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PACKED = "adapter_model.packed.safetensors"  # instead of WEIGHTS where a version is stored packed
PREFIX = "base_model.model."
CLASSIFIES = "SEQ_CLS"  # PEFT's name for an adapter with a head, on an encoder
# Settings that define how the adapter is computed, for plain LoRA, rsLoRA and DoRA.
SERVED = {
    *("r", "lora_alpha", "lora_dropout", "target_modules", "layers_to_transform", "rank_pattern", "alpha_pattern"),
    *("use_rslora", "use_dora", "fan_in_fan_out", "init_lora_weights", "task_type", "peft_type", "peft_version"),
    *("base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "runtime_config", "modules_to_save"),
}
# Settings that only say how its layers were selected, or how training began: the tensors show which layers they were.
ASKED = {"exclude_modules", "layers_pattern", "eva_config", "ensure_weight_tying", "loftq_config", "lora_ga_config"}
ASKED |= {"megatron_core", "megatron_config", "qalora_group_size", "corda_config"}
# Initialisations that change the base's own weights: the saved adapter would be wrong on the original base.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_PARTS = ("lora_A.weight", "lora_B.weight")
_DORA = "lora_magnitude_vector"


MOST_SCALING = 1e4  # alpha ÷ rank; larger values overflow


def check_config(folder: Path) -> dict[str, Any]:
    """The PEFT config of an adapter that this project supports.

    Raises:
        AdapterError: not LoRA, or an initialisation that changed the base's own weights.
        IntegrityError: it cannot be read.
    """
    path = folder / CONFIG
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise IntegrityError(f"{path} cannot be read: {error}", "export the adapter again with PEFT") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else type(config).__name__
        raise AdapterError(f"the adapter in {folder} is {kind}, not LoRA", "only LoRA adapters are supported")
    init = str(config.get("init_lora_weights", True)).lower()
    if init.startswith(CHANGES_BASE):
        raise AdapterError(
            f"the adapter in {folder} was initialised by {init}, which changes the base's own weights",
            "convert it when saving: PEFT save_pretrained(path_initial_model_for_weight_conversion=…)",
        )
    rank, alpha = config.setdefault("r", 8), config.setdefault("lora_alpha", 8)  # PEFT's defaults
    if not _number(rank) or not isinstance(rank, int) or not _number(alpha) or alpha / rank > MOST_SCALING:
        raise AdapterError(
            f"the adapter in {folder} has rank {rank!r} and alpha {alpha!r}",
            f"both must be numbers above 0 in adapter_config.json, and alpha at most {MOST_SCALING:g} times the rank",
        )
    whole = config.get("modules_to_save")
    if config.get("task_type") == CLASSIFIES:
        if not isinstance(whole, list) or not whole or not all(isinstance(name, str) for name in whole):
            raise AdapterError(
                f"the adapter in {folder} is for {CLASSIFIES} but has no head", "modules_to_save must name it"
            )
    elif whole:
        named = ", ".join(map(str, whole)) if isinstance(whole, list) else whole
        raise AdapterError(
            f"the adapter in {folder} stores whole modules ({named})",
            "train it with modules_to_save=None",
        )
    _check_plain(folder, config)
    return config


def weights_sha256(record: AdapterRecord) -> str:
    """SHA-256 of the file of a version's weights, packed or not, which never changes."""
    files = record.manifest.get("files") or {}
    return str((files.get(WEIGHTS) or files.get(PACKED) or {}).get("sha256", ""))


def facts_of(folder: Path, base: BaseInfo) -> dict[str, Any]:
    """What every manifest says of the adapter in a folder: its highest rank, alpha, target modules and base."""
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    return {
        "rank": max([config["r"], *(config.get("rank_pattern") or {}).values()]),
        "alpha": config["lora_alpha"],
        "target_modules": sorted(config["target_modules"]),
        "base": {"source": base.source, "fingerprint": base.fingerprint},
    }


def told_for(pattern: Mapping[str, Any], module: str, usual: Any) -> Any:
    """What PEFT's rank_pattern or alpha_pattern says of a layer: the first key wins that is the end of its name (the
    keys are regular expressions, as in PEFT's `get_pattern_key`); `usual` if none is."""
    return next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", module)), usual)


def asked_plainly(config: Mapping[str, Any]) -> bool:
    """Whether the config selects its layers with a plain list of names."""
    usual = {"megatron_core": "megatron.core", "qalora_group_size": 16}
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower() not in ("true", "false", "gaussian"):
        return False
    return isinstance(config.get("target_modules"), list) and not any(
        config.get(key) not in (None, False, "", [], {}, usual.get(key)) for key in ASKED
    )


def is_dora(folder: Path) -> bool:
    """Whether the adapter in a folder is DoRA; False if its config cannot be read."""
    try:
        return bool(json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("use_dora"))
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def has_head(folder: Path) -> bool:
    """Whether the adapter in a folder is an encoder's, with a head; False if its config cannot be read."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        return config.get("task_type") == CLASSIFIES and bool(config.get("modules_to_save"))
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def why_not_served(folder: Path) -> AdapterError | None:
    """Why a stored adapter cannot be opened, judged by its config and the names of its tensors; None if it can."""
    try:
        config = check_config(folder)
        if (folder / WEIGHTS).is_file():
            check_names(folder, config, empty=True)
    except AdapterError as error:
        return error
    except IntegrityError:  # a changed file is detected by its hash
        return None
    return None


def check_stored(records: Iterable[AdapterRecord]) -> list[Problem]:
    """The versions that cannot be opened here, although their files are unchanged."""
    found = []
    for record in records:
        if error := why_not_served(record.path):
            fix = f"{error.hint}; cl-adapter rollback restores the version before it"
            found.append(Problem(f"adapters/{record.name}/v{record.version}", error.message, fix))
    return found


def check_names(folder: Path, config: Mapping[str, Any], *, empty: bool = False) -> None:
    """Raise if tensors are not those of a plain LoRA on linear layers (or of a DoRA, with its magnitudes).

    Args:
        empty: whether a file without any LoRA is accepted: it changes nothing.

    Raises:
        AdapterError: a tensor is unexpected, or one of a pair is missing.
        IntegrityError: the file cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / WEIGHTS
    try:
        with safe_open(path, "np") as file:
            names = list(file.keys())
    except (OSError, SafetensorError) as error:
        raise IntegrityError(f"{path} cannot be read: {error}", "run cl-adapter verify") from error
    if empty and not any(".lora_" in name for name in names):
        return
    parts = (*_PARTS, _DORA) if config.get("use_dora") else _PARTS
    layers: dict[str, set[str]] = {}
    for name in names:
        layer, found, which = name.rpartition(".lora_")
        which = f"lora_{which}"
        if not found and config.get("task_type") == CLASSIFIES:
            continue  # the head
        if which not in parts or not name.startswith(PREFIX):
            raise AdapterError(f"{path}: unexpected tensor {name}: not a plain LoRA adapter", reason_of(name))
        if "base_layer" in layer:
            raise AdapterError(f"{path}: unexpected tensor {name}: not a plain LoRA adapter", reason_of(name))
        layers.setdefault(layer, set()).add(which)
    for layer, there in layers.items():
        if there != set(parts):
            lacks = ", ".join(sorted(set(parts) - there))
            raise AdapterError(f"{path}: {layer.removeprefix(PREFIX)} lacks {lacks}", "export it again with PEFT")


def reason_of(name: str) -> str:
    """A hint for an unsupported tensor."""
    if "lora_embedding" in name:
        return "it changes the embeddings, which is not supported: leave embed_tokens out of target_modules"
    if ".experts." in name or "base_layer" in name:
        return "it changes experts that are stacked in one tensor, which is not supported: omit target_parameters"
    if name.endswith(".bias"):
        return "train it with bias='none' and lora_bias=False"
    return "export it with PEFT's save_pretrained()"


def _check_plain(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise for anything but plain LoRA on named modules: other settings can change the base, or hang."""
    for key, value in config.items():
        if key in SERVED or key in ASKED or value in (None, False, "", "none", [], {}):
            continue
        raise AdapterError(
            f"the adapter in {folder} uses {key} ({str(value)[:60]}), which is not supported",
            "train it as plain LoRA, rsLoRA or DoRA"
            + (" on attention and shared layers: without target_parameters" if key == "target_parameters" else ""),
        )
    if config.get("task_type") not in (None, "CAUSAL_LM", CLASSIFIES):
        raise AdapterError(
            f"the adapter in {folder} is for {config['task_type']}",
            f"only CAUSAL_LM is supported, and on encoders {CLASSIFIES}",
        )
    names = config.get("target_modules")
    if (
        names is not None
        and not isinstance(names, str)
        and not (isinstance(names, list) and all(isinstance(n, str) for n in names))
    ):
        raise AdapterError(
            f"the adapter in {folder} has target_modules {str(names)[:60]!r}", "they must be a list of names"
        )
    for key in ("rank_pattern", "alpha_pattern"):
        pattern = config.get(key) or {}
        if not isinstance(pattern, dict) or not all(_number(v) for v in pattern.values()):
            raise AdapterError(
                f"the adapter in {folder} has {key} {str(pattern)[:60]!r}", "it must map names to numbers"
            )


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")
