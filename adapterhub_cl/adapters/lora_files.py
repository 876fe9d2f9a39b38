"""An adapter's files: the checked config, and the tensors, read one by one on demand; in PEFT's format, or packed in 8
or 4 bits (docs/decisions/008)."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from adapterhub_cl.adapters.head_files import PREFIX, StoredHead, head_of_tensors, is_head, read_apart, write_layout
from adapterhub_cl.adapters.lora_config import (
    ASKED,
    CLASSIFIES,
    CONFIG,
    PACKED,
    WEIGHTS,
    asked_plainly,
    check_config,
    has_head,
    reason_of,
    told_for,
)
from adapterhub_cl.adapters.packed import PackedFile, PlainFile
from adapterhub_cl.errors import AdapterError, IntegrityError

if TYPE_CHECKING:
    from peft import LoraConfig  # not imported at run time: an adapter is also read where PEFT is not installed

LARGEST = 1e6  # scaling of a layer
KINDS = (torch.float32, torch.bfloat16, torch.float16)


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a stored adapter; a packed one is unpacked.

    Raises:
        IntegrityError: they are missing or unreadable, or contain NaN or infinity.
    """
    if is_packed(folder):
        file = PackedFile(folder / PACKED)
        unpacked = {key: file.tensor(key) for key in file.keys()} | read_apart(folder)  # noqa: SIM118 (no dict)
        for key, value in unpacked.items():
            _check_tensor(file.path, key, value)
        return unpacked
    try:
        weights: dict[str, torch.Tensor] = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise IntegrityError(f"{folder / WEIGHTS} cannot be read: {error}", "run cl-adapter verify") from error
    for key, value in weights.items():
        _check_tensor(folder / WEIGHTS, key, value)
    return weights


def is_packed(folder: Path) -> bool:
    """Whether the adapter in a folder is stored in 8 or 4 bits, so that plain PEFT cannot open it directly."""
    return (folder / PACKED).is_file() and not (folder / WEIGHTS).exists()


@contextmanager
def plain_folder(folder: Path, *, headless: bool = False) -> Iterator[Path]:
    """A folder with this adapter in PEFT's format, inside the block: its own, or for a packed one an unpacked copy.

    Args:
        headless: whether to leave out the head of an encoder's adapter.

    Raises:
        IntegrityError: its files cannot be read.
    """
    headless = headless and has_head(folder)
    if not is_packed(folder) and not headless and asked_plainly(check_config(folder)):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="cl-adapter-") as made:
        unpack(folder, Path(made))
        ask_plainly(Path(made))
        if headless:
            _behead(Path(made))
        yield Path(made)


def ask_plainly(folder: Path) -> None:
    """Rewrite a config that selects its layers with anything but a list of names: the tensors show which they are.
    Regular expressions from the file are never evaluated."""
    config = check_config(folder)
    if asked_plainly(config):
        return
    keys = PlainFile(folder / WEIGHTS).keys()
    layers = {key.removeprefix(PREFIX).rpartition(".lora_")[0] for key in keys if not is_head(key)}
    kept = {key: value for key, value in config.items() if key not in ASKED}
    kept |= {"target_modules": sorted(layers), "layers_to_transform": None, "init_lora_weights": True}
    (folder / CONFIG).write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _behead(folder: Path) -> None:
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    (folder / CONFIG).write_text(json.dumps({**config, "task_type": None, "modules_to_save": None}), encoding="utf-8")
    weights = {key: value for key, value in read_weights(folder).items() if not is_head(key)}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def unpack(folder: Path, target: Path) -> None:
    """Write a packed adapter in PEFT's format, fp32, into a directory."""
    shutil.copyfile(folder / CONFIG, target / CONFIG)
    save_file(read_weights(folder), target / WEIGHTS, metadata={"format": "pt"})


def _check_tensor(file: Path, key: str, value: torch.Tensor) -> None:
    if value.dtype not in KINDS:
        kind = str(value.dtype).removeprefix("torch.")
        raise AdapterError(f"{file}: tensor {key} is {kind}", "save it as float32, bfloat16 or float16")
    if value.numel() and not all(torch.isfinite(end) for end in torch.aminmax(value)):
        raise IntegrityError(f"{file}: tensor {key} contains NaN or infinity", "train or import it again")


def check_ranks(folder: Path, config: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> None:
    """Raise if the config's ranks differ from those of the tensors: PEFT would allocate memory by the config first."""
    found = {value.shape[0] for key, value in weights.items() if "lora_A" in key}
    told = {config["r"], *(config.get("rank_pattern") or {}).values()}
    if not found <= told or (len(told) == 1 and found != told) or max(told) > 64 * max(found, default=1):
        raise AdapterError(
            f"the adapter in {folder} does not fit this base: its config says rank {sorted(told)}, but "
            f"its tensors have {sorted(found)}",
            "export it again with PEFT's save_pretrained()",
        )


class LoraFile:
    """A stored plain LoRA, opened: its layers by name, each layer's factors read when asked for. A context manager.

    Attributes:
        config: the checked content of adapter_config.json.
        modules: names of the layers as in the base (`model.layers.0.mlp.up_proj`), in the file's order.
        weights_path: the file with its tensors.

    Raises:
        AdapterError: not a plain LoRA (DoRA's ΔW depends on the base), or unexpected tensors.
        IntegrityError: its files cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.config = folder, check_config(folder)
        if self.config.get("use_dora"):
            raise AdapterError(
                f"the adapter in {folder} is DoRA, whose ΔW depends on the base's weights",
                "merge and prune work with plain LoRA and rsLoRA",
            )
        packed = is_packed(folder)
        self._file: PackedFile | PlainFile = PackedFile(folder / PACKED) if packed else PlainFile(folder / WEIGHTS)
        self.weights_path = self._file.path
        self.has_head = self.config.get("task_type") == CLASSIFIES
        keys = [key for key in self._file.keys() if not (self.has_head and is_head(key))]  # noqa: SIM118 (no dict)
        shapes = {key: self._file.shape(key) for key in keys}
        self._layers: dict[str, str] = {}
        for key in keys:
            layer, _, which = key.rpartition(".lora_")
            if which not in ("A.weight", "B.weight") or not key.startswith(PREFIX):
                raise AdapterError(
                    f"{self.weights_path}: unexpected tensor {key}: not a plain LoRA adapter", reason_of(key)
                )
            self._layers[layer.removeprefix(PREFIX)] = layer
        self._ranks: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, int]] = {}
        for name, layer in self._layers.items():
            a, b = (shapes.get(f"{layer}.lora_{which}.weight") for which in "AB")
            if a is None or b is None or len(a) != 2 or len(b) != 2 or a[0] != b[1]:
                raise AdapterError(
                    f"{self.weights_path}: the factors of {name} are missing or do not fit ({a}, {b})",
                    "restore the file; see cl-adapter verify",
                )
            self._ranks[name], self.shapes[name] = a[0], (b[0], a[1])
        self.modules = list(self._layers)

    def __enter__(self) -> LoraFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        del self._file

    def head(self) -> StoredHead | None:
        """The head of an encoder's adapter; None if it has none.

        Raises:
            AdapterError, IntegrityError: it cannot be read, or belongs to another encoder.
        """
        if not self.has_head:
            return None
        keys = [key for key in self._file.keys() if is_head(key)]  # noqa: SIM118 (no dict)
        found = {key: self._file.tensor(key) for key in keys} | read_apart(self.folder)
        for key, value in found.items():
            _check_tensor(self.weights_path, key, value)
        return head_of_tensors(self.folder, found)

    def rank(self, module: str) -> int:
        """The layer's rank; 0 if the adapter does not change it."""
        return self._ranks.get(module, 0)

    def scaling(self, module: str) -> float:
        """α/r of a layer, or α/√r (rsLoRA), with PEFT's rank and alpha patterns."""
        alpha = float(told_for(self.config.get("alpha_pattern") or {}, module, self.config["lora_alpha"]))
        rank = self._ranks[module]
        found = alpha / math.sqrt(rank) if self.config.get("use_rslora") else alpha / rank
        if found > LARGEST:
            raise AdapterError(
                f"the adapter in {self.folder} scales {module} by {found:.3g}, which is implausibly large",
                "correct lora_alpha and r in adapter_config.json, or export it again with PEFT",
            )
        return found

    def factors(self, module: str) -> tuple[torch.Tensor, torch.Tensor]:
        """B `[out, r]`, scaled, and A `[r, in]` of a layer, fp32: ΔW = B·A.

        Raises:
            IntegrityError: they cannot be read, or contain NaN or infinity.
        """
        found = []
        for which in "BA":
            key = f"{self._layers[module]}.lora_{which}.weight"
            value = self._file.tensor(key)
            _check_tensor(self.weights_path, key, value)
            found.append(value.float())
        return found[0] * self.scaling(module), found[1]


def config_for(
    ranks: Mapping[str, int], targets: Sequence[str], *, transposed: bool, task_type: str | None
) -> LoraConfig:
    """The config of a LoRA whose factors include their scaling: in each layer alpha equals the rank.

    Args:
        ranks: layer → rank.
        targets: the layer names for PEFT: last names, or full ones.
        transposed: whether the base stores its linear layers as GPT-2 does.
    """
    from peft import LoraConfig

    most = max(ranks.values())
    other = {name: rank for name, rank in ranks.items() if rank != most}
    return LoraConfig(
        r=most,
        lora_alpha=most,
        target_modules=list(targets),
        rank_pattern=other,
        alpha_pattern=dict(other),
        fan_in_fan_out=transposed,
        task_type=task_type,
        bias="none",
        inference_mode=True,
    )


def common_targets(names: Collection[str], parents: Sequence[LoraFile]) -> list[str]:
    """The target modules of an adapter made of these layers of its parents: last names if those mean exactly these
    layers (the base is not loaded, so some parent must have all layers with the name), otherwise full names."""
    last = sorted({name.rpartition(".")[2] for name in names})
    for short in last:
        mine = {name for name in names if name.rpartition(".")[2] == short}
        whole = [
            {name for name in parent.modules if name.rpartition(".")[2] == short}
            for parent in parents
            if short in _listed(parent.config.get("target_modules")) and not parent.config.get("layers_to_transform")
        ]
        if mine not in whole:
            return sorted(names)
    return last


def _listed(names: Any) -> Sequence[str]:
    return names if isinstance(names, list) else ()


def write_lora(
    folder: Path,
    factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
    parents: Sequence[LoraFile],
    source: str,
    head: StoredHead | None = None,
    task_type: str | None = "CAUSAL_LM",
) -> LoraConfig:
    """Write an adapter in PEFT's format.

    Args:
        factors: layer → B `[out, r]` with its scaling, and A `[r, in]`.
        parents: the adapters that it was made from; they determine the kind of base it is for.
        source: the base's name that plain PEFT will find in the config.
        head: for an encoder's adapter.
        task_type: PEFT's task type, if no parent has one.
    """
    kinds = [parent.config.get("task_type") for parent in parents]
    told = next((kind for kind in kinds if kind and kind != CLASSIFIES), task_type)
    config = config_for(
        {name: a.shape[0] for name, (_, a) in factors.items()},
        common_targets(factors, parents),
        transposed=bool(parents[0].config.get("fan_in_fan_out")),
        task_type=told if head is None else CLASSIFIES,
    )
    weights = {}
    for name, (b, a) in factors.items():
        weights[f"{PREFIX}{name}.lora_A.weight"], weights[f"{PREFIX}{name}.lora_B.weight"] = a, b
    if head is not None:
        config.modules_to_save = next(parent.config["modules_to_save"] for parent in parents if parent.has_head)
        weights |= {f"{PREFIX}{key}": value.float() for key, value in head.tensors.items()}
        write_layout(folder, head.layout, head.final)
    write_config(config, folder, source)
    save_file({key: value.contiguous() for key, value in weights.items()}, folder / WEIGHTS, metadata={"format": "pt"})
    return config


def write_config(config: LoraConfig, folder: Path, source: str) -> None:
    """Write adapter_config.json with sorted lists: PEFT writes its sets in the order of the process's hash seed."""
    config.base_model_name_or_path = source
    config.save_pretrained(folder)
    sort_config(folder)


def sort_config(folder: Path) -> None:
    """Sort the lists of names in a config that PEFT wrote, so that the same run writes the same file."""
    written = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    for key, value in written.items():
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            written[key] = sorted(value)
    (folder / CONFIG).write_text(json.dumps(written, indent=2, sort_keys=True) + "\n", encoding="utf-8")
