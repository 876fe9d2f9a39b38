"""What the rows of one batch add to a layer's output: gathered batched products, no loop over adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from adapterhub_cl.errors import AdapterError
from adapterhub_cl.inference._group import Group

Mixture = Mapping[str, float]  # reference → weight; empty is the base alone


@dataclass(frozen=True)
class Entries:
    """What a batch wants of one group: row k of the batch gets weights[k] times the adapter in slots[k].

    Attributes:
        rows: `[n]`; None where entry k is row k, for all rows.
        slots: `[n]`.
        weights: `[n, 1, 1]`; None where all are 1.
        same: the slot, where all rows want one adapter and nothing else.
    """

    group: Group
    rows: torch.Tensor | None
    slots: torch.Tensor
    weights: torch.Tensor | None
    same: int | None


def entries_of(groups: Mapping[int, Group], mixtures: Sequence[Mixture]) -> list[Entries]:
    """The entries of a batch, by group."""
    found = []
    for group in groups.values():
        wanted = [
            (row, group.slots[ref], weight)
            for row, mixture in enumerate(mixtures)
            for ref, weight in mixture.items()
            if ref in group.slots and weight
        ]
        if not wanted:
            continue
        rows, slots, weights = zip(*wanted, strict=True)
        device = group.device
        plain, whole = all(w == 1 for w in weights), list(rows) == list(range(len(mixtures)))
        scale = torch.tensor(weights, dtype=group.dtype, device=device)[:, None, None]
        found.append(
            Entries(
                group,
                None if whole else torch.tensor(rows, device=device),
                torch.tensor(slots, device=device),
                None if plain else scale,
                slots[0] if plain and whole and len(set(slots)) == 1 else None,
            )
        )
    return found


class Rows:
    """A batch's choice of adapters, applied to every layer of one or more forward passes.

    Args:
        count: rows of the batch.
        keep_bytes: memory for gathered factors that are kept from pass to pass (when tokens are written one by one,
            gathering costs more than multiplying); 0 keeps none.
    """

    def __init__(self, entries: Sequence[Entries], count: int, keep_bytes: int = 0) -> None:
        self.entries, self.count, self.keep_bytes = entries, count, keep_bytes
        self._kept: dict[tuple[int, str], tuple[torch.Tensor, torch.Tensor]] = {}

    def add(self, layer: str, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """y + Σ wᵢ·x·Aᵢᵀ·Bᵢᵀ for each row; x `[rows, length, in]`, y `[rows, length, out]`, which may be overwritten.

        Raises:
            AdapterError: the layer is not called with the batch's rows (a mixture of experts).
        """
        if x.dim() != 3 or x.shape[0] != self.count:
            raise AdapterError(
                f"the layer {layer} gets {tuple(x.shape)}, not the {self.count} rows of the batch: it cannot be served "
                "in a mixed batch",
                "name one --adapter for the whole batch",
            )
        for entries in self.entries:
            if layer in entries.group.layers:
                y = self._one(entries, layer, x, y)
        return y

    def _one(self, entries: Entries, layer: str, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        dtype = entries.group.dtype
        x = x.to(dtype)
        target = y if y.dtype == dtype else y.to(dtype)
        if entries.same is not None:
            a, b = (part[entries.same] for part in entries.group.layers[layer])
            target = target.contiguous()
            target.view(-1, target.shape[-1]).addmm_(x.reshape(-1, x.shape[-1]) @ a.T, b.T)
            return target.to(y.dtype)
        a, b = self._gathered(entries, layer)
        mine = x if entries.rows is None else x[entries.rows]
        hidden = torch.bmm(mine, a)
        if entries.weights is not None:
            hidden = hidden * entries.weights
        if entries.rows is None:
            target = target.baddbmm_(hidden, b)
        else:
            target = target.index_add_(0, entries.rows, torch.bmm(hidden, b))
        return target.to(y.dtype)

    def _gathered(self, entries: Entries, layer: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Each entry's A `[n, in, rank]` and B `[n, rank, out]`."""
        key = (entries.group.rank, layer)
        if key in self._kept:
            return self._kept[key]
        a, b = (part[entries.slots].transpose(1, 2) for part in entries.group.layers[layer])
        size = (a.numel() + b.numel()) * a.element_size()
        if size <= self.keep_bytes:
            self.keep_bytes -= size
            self._kept[key] = (a, b)
        return a, b
