"""An adapter with the difference of two bases in it: ΔW + (W_old − W_new), layer by layer, as far as a rank holds the
difference; what the adapter adds is kept whole.

On the new base it does what the old version does on the old one: exactly where the difference of the bases is of low
rank, as after fine-tuning with LoRA, and nearly where it is not. What the new base learned is undone in these layers
for this task, so a version that keeps its score as it is, is better used as it is.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import cached_property
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
from adapterhub_cl.merging.factors import Truncated, rank_for_energy, truncate_dense, zero
from adapterhub_cl.strategies import MEMORY
from adapterhub_cl.types import AdapterRecord, BaseInfo

MOST_RANK = 64  # of what the adapter adds to a layer and the difference together
LOST = 1e-8  # share of a layer's difference (of its squares) that is dropped as the noise of the stored type


class BaseDifference:
    """The difference of two bases, W_old − W_new, truncated to `MOST_RANK`; each layer is computed once.

    Args:
        hub: the one on the new base.
        old: the other base.
    """

    def __init__(self, hub: Hub, old: BaseInfo) -> None:
        self.hub, self.old = hub, old
        self._layers: dict[str, Truncated] = {}

    @cached_property
    def _places(self) -> list[dict[str, Path]]:
        """Of both bases: name of a tensor → its file."""
        old = self.old
        if inspect_base(old.source, old.quantization, old.revision).fingerprint != old.fingerprint:
            raise BaseModelError(f"the files of {old.source} have changed since the old hub was made on it")
        return [tensor_places(resolve(base.source, base.revision)) for base in (old, self.hub.registry.base)]

    def layer(self, name: str) -> Truncated:
        """One layer's difference, `[out, in]`.

        Raises:
            AdapterError: the bases do not both have the layer in this shape.
            BaseModelError: a base is not here, or the old one has changed.
        """
        if name not in self._layers:
            self._layers[name] = self._truncated(name)
        return self._layers[name]

    def _truncated(self, name: str) -> Truncated:
        try:
            module = bare(self.hub.base.model).get_submodule(name)
        except AttributeError:
            raise AdapterError(f"the new base has no layer {name}") from None
        old, new = (_weight(name, files) for files in self._places)
        if old.shape != new.shape:
            raise AdapterError(f"the layer {name} has another shape in the new base")
        found = (old - new).T if isinstance(module, Conv1D) else old - new
        if not bool(found.any()):
            return Truncated(zero(*found.shape), 0.0, 0.0)
        return truncate_dense(found, min(MOST_RANK, *found.shape), torch.Generator().manual_seed(0))


def write_residual(difference: BaseDifference, record: AdapterRecord, folder: Path) -> float:
    """Write a version's files with its residual in place of its weights.

    Args:
        folder: empty.

    Returns:
        the share of the difference between the bases' layers (of its squares) that the ranks hold, 0 to 1.

    Raises:
        AdapterError: the bases have other layers, or the adapter is DoRA.
        BaseModelError: a base is not here, or the old one has changed.
    """
    hub, factors = difference.hub, {}
    whole = held = 0.0
    layers = all_linear(hub.base)
    with LoraFile(record.path) as adapter, hub.reporter.piece("comparing the bases", len(layers)) as advance:
        for name in [*layers, *(name for name in adapter.modules if name not in layers)]:
            found = difference.layer(name)
            b, a = found.factors.b, found.factors.a
            parts = [adapter.factors(name)] if adapter.rank(name) else []
            if any((own.shape[0], other.shape[1]) != (b.shape[0], a.shape[1]) for own, other in parts):
                raise AdapterError(f"the layer {name} has another shape than the adapter's")
            values = b.double().square().sum(0)  # singular values: their roots are on either side
            kept = min(max(1, MOST_RANK - adapter.rank(name)), rank_for_energy(values, 1 - LOST))
            parts += [(b[:, :kept], a[:kept])] if kept else []
            whole, held = whole + found.norm**2, held + float(values[:kept].square().sum())
            if parts:
                factors[name] = torch.cat([left for left, _ in parts], 1), torch.cat([right for _, right in parts])
            advance(1)
        _copy_rest(record, folder)
        write_lora(folder, factors, [adapter], hub.registry.base.source, head=adapter.head())
    return min(1.0, held / whole) if whole else 1.0


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
