"""An adapter with the difference of two bases in it: ΔW + (W_old − W_new), layer by layer, as far as a rank holds the
difference; what the adapter adds is kept whole.

On the new base it does what the old version does on the old one: exactly where the difference of the bases is of low
rank, as after fine-tuning with LoRA, and nearly where it is not. What the new base learned is undone in these layers
for this task, so a version that keeps its score as it is, is better used as it is.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from transformers.pytorch_utils import Conv1D

from adapterhub_cl.adapters.lora_config import PACKED
from adapterhub_cl.adapters.lora_files import LoraFile, write_lora
from adapterhub_cl.adapters.targets import all_linear
from adapterhub_cl.bases.encoders import bare
from adapterhub_cl.bases.loading import inspect_base
from adapterhub_cl.bases.same_weights import read_tensor, tensor_places
from adapterhub_cl.bases.sources import resolve
from adapterhub_cl.context import Hub
from adapterhub_cl.errors import AdapterError, BaseModelError
from adapterhub_cl.merging.factors import Factors, norm, rank_for_energy, truncate_dense
from adapterhub_cl.strategies import MEMORY
from adapterhub_cl.types import AdapterRecord, BaseInfo

MOST_RANK = 64  # of the adapter's own layers and the difference together
LOST = 1e-8  # share of a layer's difference (of its squares) that is dropped as the noise of the stored type


def write_residual(hub: Hub, old: BaseInfo, record: AdapterRecord, folder: Path) -> float:
    """Write a version's files with its residual in place of its weights.

    Args:
        hub: the new one.
        old: the base that the version stands on.
        folder: empty.

    Returns:
        the share of the difference between the bases' layers (of its squares) that the ranks hold, 0 to 1.

    Raises:
        AdapterError: the bases have other layers, or the adapter is DoRA.
        BaseModelError: a base is not here, or the old one has changed.
    """
    new = hub.registry.base
    if inspect_base(old.source, old.quantization, old.revision).fingerprint != old.fingerprint:
        raise BaseModelError(f"the files of {old.source} have changed since the old hub was made on it")
    places = [tensor_places(resolve(base.source, base.revision)) for base in (old, new)]
    layers, generator = all_linear(hub.base), torch.Generator().manual_seed(0)
    modules = dict(bare(hub.base.model).named_modules())
    factors: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    whole = lost = 0.0
    with LoraFile(record.path) as adapter, hub.reporter.piece("comparing the bases", len(layers)) as advance:
        for name in [*layers, *(name for name in adapter.modules if name not in layers)]:
            difference = _difference(name, modules.get(name), places)
            parts = [adapter.factors(name)] if adapter.rank(name) else []
            if any((b.shape[0], a.shape[1]) != difference.shape for b, a in parts):
                raise AdapterError(f"the layer {name} has another shape than the adapter's")
            room = min(max(1, MOST_RANK - adapter.rank(name)), *difference.shape)
            if bool(difference.any()):
                found = truncate_dense(difference, room, generator)
                parts.append(_trimmed(found.factors))
                held = norm(Factors(*parts[-1]))
                whole, lost = whole + found.norm**2, lost + max(0.0, found.norm**2 - held**2)
            if parts:
                factors[name] = torch.cat([b for b, _ in parts], 1), torch.cat([a for _, a in parts])
            advance(1)
        _copy_rest(record, folder)
        write_lora(folder, factors, [adapter], new.source, head=adapter.head())
    return 1 - lost / whole if whole else 1.0


def _difference(name: str, module: torch.nn.Module | None, places: Sequence[Mapping[str, Path]]) -> torch.Tensor:
    """A layer's weight in the old base less that in the new one, `[out, in]`, fp32."""
    if module is None:
        raise AdapterError(f"the new base has no layer {name}")
    old, new = (_weight(name, files) for files in places)
    if old.shape != new.shape:
        raise AdapterError(f"the layer {name} has another shape in the new base")
    return (old - new).T if isinstance(module, Conv1D) else old - new


def _trimmed(factors: Factors) -> tuple[torch.Tensor, torch.Tensor]:
    """Without the directions that carry next to nothing. Both factors have the roots of the singular values, so B's
    columns say how much each direction carries."""
    kept = max(1, rank_for_energy(factors.b.double().square().sum(0), 1 - LOST))
    return factors.b[:, :kept].contiguous(), factors.a[:kept].contiguous()


def _weight(name: str, places: Mapping[str, Path]) -> torch.Tensor:
    """A layer's weight in the files of a base, fp32; those of a body and of a whole model begin differently."""
    wanted = f"{name}.weight"
    found = [key for key in places if key == wanted or wanted.endswith(f".{key}") or key.endswith(f".{wanted}")]
    if len(found) != 1:
        raise AdapterError(f"the files of a base do not have the layer {name} as it is computed with")
    value: torch.Tensor = read_tensor(places[found[0]], found[0]).float()
    if value.ndim != 2 or not bool(value.isfinite().all()):
        raise AdapterError(f"the weight of {name} is no matrix of numbers")
    return value


def _copy_rest(record: AdapterRecord, folder: Path) -> None:
    """The version's other files. What its strategies remember belongs to the weights that are replaced."""
    for name in record.manifest["files"]:
        if name not in (PACKED, MEMORY):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(record.path / name, folder / name)
