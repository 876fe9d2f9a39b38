"""LoRA on a frozen base, through PEFT: attach, check, read, save, load."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers.pytorch_utils import Conv1D

from adapterhub_cl.bases.loading import LoadedBase
from adapterhub_cl.errors import AdapterError, IntegrityError, TrainingError, UsageError
from adapterhub_cl.training.settings import TrainingSettings

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
# The settings of plain LoRA, rsLoRA and DoRA; any other one must be at its default.
SERVED = {
    *("r", "lora_alpha", "lora_dropout", "target_modules", "layers_to_transform", "rank_pattern", "alpha_pattern"),
    *("use_rslora", "use_dora", "fan_in_fan_out", "init_lora_weights", "task_type", "peft_type", "peft_version"),
    *("base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "runtime_config"),
}
# Inits that change the base's own weights: the saved adapter would be wrong on the base as it is.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@contextmanager
def new_adapter(
    base: LoadedBase,
    settings: TrainingSettings,
    task_type: str,
    start: Path | None = None,
    beneath: Path | None = None,
) -> Iterator[Any]:
    """The base with one trainable LoRA; taken off again at the end of the block.

    Args:
        start: a stored adapter to start from: its shape and its weights. None makes a fresh one.
        beneath: a stored adapter that stays active and frozen under the new one.

    Raises:
        UsageError: the target modules or layers are not in this base.
        AdapterError: the adapter to start from does not fit this base.
    """
    torch.manual_seed(settings.seed)
    if start is None:
        model = _attach(base, settings, task_type)
    else:
        model = open_adapter(base.model, start, trainable=True)
        for layer in model.modules():
            if isinstance(layer, LoraLayer) and "default" in layer.lora_dropout:
                chance = settings.dropout
                layer.lora_dropout["default"] = torch.nn.Dropout(chance) if chance else torch.nn.Identity()
        model.peft_config["default"].lora_dropout = settings.dropout
    try:
        if beneath is not None:
            from adapterhub_cl.training.stacking import put_beneath

            put_beneath(model, beneath)
        yield model
    finally:
        model.unload()
        base.model.eval()  # as it was loaded; training switched it


def _attach(base: LoadedBase, settings: TrainingSettings, task_type: str) -> Any:
    names, layers = settings.target_modules, settings.layer_numbers()
    count = base.model.config.get_text_config().num_hidden_layers
    if layers and layers[-1] >= count:
        raise UsageError(f"--layers {settings.layers}: this base has {count} layers", f"count them 0 to {count - 1}")
    width = base.model.config.get_text_config().hidden_size
    if settings.rank > width:
        raise UsageError(f"--rank {settings.rank} is above the width of this base, {width}", "8 to 64 is usual")
    targets: Any = [n.strip() for n in names.split(",") if n.strip()]
    if names == "all-linear":
        # PEFT takes its own word for all of them only where no layers are chosen.
        targets = names if layers is None else linear_names(base.model)
    elif unknown := [t for t in targets if not _named(base.model, t)]:
        raise UsageError(
            f"--target-modules {','.join(unknown)!r} names no layer of this base",
            f"its linear layers: {', '.join(linear_names(base.model))}",
        )
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.effective_alpha,
        lora_dropout=settings.dropout,
        target_modules=targets,
        layers_to_transform=layers,
        fan_in_fan_out=_transposed(base.model),
        use_rslora=settings.rslora,
        use_dora=settings.dora,
        task_type=task_type,
        bias="none",
    )
    try:
        return get_peft_model(base.model, config)
    except ValueError as error:
        _strip(base.model)
        raise UsageError(
            f"--target-modules {names!r}"
            + (f" with --layers {settings.layers}" if settings.layers else "")
            + " names no layer of this base",
            f"its linear layers: {', '.join(linear_names(base.model))}",
        ) from error


@contextmanager
def stored_adapter(base: LoadedBase, folder: Path) -> Iterator[Any]:
    """The base with a stored adapter, frozen; taken off again at the end of the block."""
    model = open_adapter(base.model, folder)
    try:
        yield model
    finally:
        model.unload()


def open_adapter(model: Any, folder: Path, *, trainable: bool = False) -> Any:
    """A stored adapter on a model, as plain PEFT opens it; every key must be used and none be missing.

    Raises:
        AdapterError: it is no LoRA that can be served, or does not fit this base.
        IntegrityError: its files cannot be read.
    """
    config = check_config(folder)
    weights = read_weights(folder)
    check_ranks(folder, config, weights)
    keys = set(weights)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Found missing adapter keys")  # refused below
            opened = PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        _strip(model)
        model_error = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise AdapterError(
            f"the adapter in {folder} does not fit this base: {model_error}",
            "it must have been trained on this very base",
        ) from error
    have = set(get_peft_model_state_dict(opened, save_embedding_layers=False))
    if have != keys:
        opened.unload()
        missing, extra = sorted(have - keys), sorted(keys - have)
        what = f"{len(missing)} missing" + (f" (first: {missing[0]})" if missing else "")
        what += f", {len(extra)} unexpected" + (f" (first: {extra[0]})" if extra else "")
        raise AdapterError(f"the adapter in {folder} does not fit this base: {what} tensors", "check its base")
    return opened


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a stored adapter.

    Raises:
        IntegrityError: missing or unreadable, or holding NaN or infinity.
    """
    try:
        weights: dict[str, torch.Tensor] = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise IntegrityError(f"{folder / WEIGHTS} cannot be read: {error}", "cl-adapter verify") from error
    for key, value in weights.items():
        if value.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            kind = str(value.dtype).removeprefix("torch.")
            raise AdapterError(f"{folder / WEIGHTS}: tensor {key} is {kind}", "save it as float32, bfloat16 or float16")
        if not torch.isfinite(value).all():
            raise IntegrityError(f"{folder / WEIGHTS}: tensor {key} holds NaN or infinity", "train or import it again")
    return weights


def check_config(folder: Path) -> dict[str, Any]:
    """The PEFT config of an adapter that this project can serve.

    Raises:
        AdapterError: not LoRA, or an init that changed the base's own weights.
        IntegrityError: it cannot be read.
    """
    path = folder / CONFIG
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise IntegrityError(f"{path} cannot be read: {error}", "export the adapter again with PEFT") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else type(config).__name__
        raise AdapterError(f"the adapter in {folder} is {kind}, not LoRA", "only LoRA adapters can be served")
    init = str(config.get("init_lora_weights", True)).lower()
    if init.startswith(CHANGES_BASE):
        raise AdapterError(
            f"the adapter in {folder} was initialised by {init}, which changes the base's own weights",
            "convert it when saving: PEFT save_pretrained(path_initial_model_for_weight_conversion=…)",
        )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not _number(rank) or not isinstance(rank, int) or not _number(alpha):
        raise AdapterError(
            f"the adapter in {folder} has rank {rank!r} and alpha {alpha!r}",
            "both must be numbers above 0 in adapter_config.json",
        )
    if whole := config.get("modules_to_save"):
        named = ", ".join(map(str, whole)) if isinstance(whole, list) else whole
        raise AdapterError(
            f"the adapter in {folder} stores whole modules ({named})",
            "train it with modules_to_save=None",
        )
    _check_plain(folder, config)
    return config


def _check_plain(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise for anything that is not plain LoRA on named modules: such settings change the base, or never end."""
    usual = LoraConfig().to_dict()
    for key, value in config.items():
        if key not in SERVED and value not in (None, False, "", [], {}) and value != usual.get(key):
            raise AdapterError(
                f"the adapter in {folder} uses {key} ({str(value)[:60]}), which is not served",
                "train it as plain LoRA, rsLoRA or DoRA",
            )
    if config.get("task_type") not in (None, "CAUSAL_LM"):
        raise AdapterError(f"the adapter in {folder} is for {config['task_type']}", "only CAUSAL_LM can be served")
    names = config.get("target_modules")
    if names != "all-linear" and not (isinstance(names, list) and all(isinstance(n, str) for n in names)):
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


def check_ranks(folder: Path, config: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> None:
    """Raise where the config's ranks are not those of the tensors: PEFT would allocate by the config first."""
    found = {value.shape[0] for key, value in weights.items() if "lora_A" in key}
    told = {config["r"], *(config.get("rank_pattern") or {}).values()}
    if not found <= told or (len(told) == 1 and found != told) or max(told) > 64 * max(found, default=1):
        raise AdapterError(
            f"the adapter in {folder} does not fit this base: its config says rank {sorted(told)}, "
            f"its tensors have {sorted(found)}",
            "export it again with PEFT's save_pretrained()",
        )


def trainable(model: Any) -> dict[str, torch.nn.Parameter]:
    """The parameters that will be trained, checked to be LoRA's and nothing else's.

    Raises:
        TrainingError: none, or one of the base's.
    """
    found = {name: p for name, p in model.named_parameters() if p.requires_grad}
    meant = {name for name, _ in model.named_parameters() if ".lora_" in name and ".default" in name}
    if not found or found.keys() != meant:
        wrong = sorted(found.keys() ^ meant)[:3]
        raise TrainingError(f"the trainable parameters are not exactly LoRA's (differing: {', '.join(wrong)})")
    return found


def training_mode(model: Any) -> None:
    """LoRA's dropout on; the frozen base stays as it answers, without dropout of its own."""
    model.eval()
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.lora_dropout.train()


def save_adapter(model: Any, folder: Path, source: str) -> None:
    """Write the adapter in PEFT's own format; one that stands on a frozen one is written as the sum of both.

    Args:
        source: the base's name, as plain PEFT shall find it in the config.
    """
    from adapterhub_cl.training.stacking import BENEATH, stacked

    if BENEATH in model.peft_config:
        weights, config = stacked(model)
        config.base_model_name_or_path = source
        config.save_pretrained(folder)
        save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    else:
        model.peft_config["default"].base_model_name_or_path = source
        model.save_pretrained(folder, save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty card; ours is written at publication
    # PEFT writes its sets in the order of this process's hash seed; sorted, the same run writes the same file.
    written = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    for key, value in written.items():
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            written[key] = sorted(value)
    (folder / CONFIG).write_text(json.dumps(written, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def linear_names(model: torch.nn.Module) -> list[str]:
    """The distinct last names of the linear layers inside the decoder."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    linear = (m for m in model.named_modules() if isinstance(m[1], torch.nn.Linear | Conv1D) and m[1] is not head)
    return sorted({name.rsplit(".", 1)[-1] for name, _ in linear})


def _strip(model: torch.nn.Module) -> None:
    """Takes off what PEFT attached before it failed."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, LoraLayer):
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, layer.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config


def _named(model: torch.nn.Module, name: str) -> bool:
    return any(module == name or module.endswith("." + name) for module, _ in model.named_modules())


def _transposed(model: torch.nn.Module) -> bool:
    """Whether the base writes its linear layers as GPT-2 does, `[in, out]`."""
    return any(isinstance(module, Conv1D) for module in model.modules())
