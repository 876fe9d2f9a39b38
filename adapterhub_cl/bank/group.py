"""Adapters of one rank group, stacked: for each layer A `[slots, rank, in]` and B `[slots, out, rank]`."""

from __future__ import annotations

from collections.abc import Mapping

import torch

SPARE = 4  # a group shrinks when fewer than a fourth of its slots are taken


class Group:
    """Slots for adapters of up to a rank; layers that an adapter leaves alone are 0 in its slot.

    Attributes:
        layers: layer → A and B.
        slots: reference → slot.
    """

    def __init__(self, rank: int, dtype: torch.dtype, device: torch.device) -> None:
        self.rank, self.dtype, self.device = rank, dtype, device
        self.layers: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self.slots: dict[str, int] = {}
        self.size = 0

    @property
    def bytes(self) -> int:
        return sum(part.numel() * part.element_size() for pair in self.layers.values() for part in pair)

    def put(self, ref: str, factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Stack an adapter, in a free slot or in a new one."""
        taken = set(self.slots.values())
        slot = next((k for k in range(self.size) if k not in taken), None)
        if slot is None:
            slot = self.size
            self._resize(max(1, self.size * 2))
        for name, (a, b) in factors.items():
            if name not in self.layers:
                shapes = ((self.size, self.rank, a.shape[1]), (self.size, b.shape[0], self.rank))
                self.layers[name] = tuple(torch.zeros(s, dtype=self.dtype, device=self.device) for s in shapes)  # type: ignore[assignment]
            store_a, store_b = self.layers[name]
            rank = a.shape[0]
            store_a[slot, :rank], store_b[slot, :, :rank] = a.to(self.device), b.to(self.device)
        self.slots[ref] = slot

    def take(self, ref: str) -> None:
        """Free an adapter's slot."""
        slot = self.slots.pop(ref)
        for a, b in self.layers.values():
            a[slot], b[slot] = 0, 0
        if not self.slots:
            self.layers.clear()
            self.size = 0
        elif self.size >= SPARE * len(self.slots):
            self._resize(2 * len(self.slots))

    def _resize(self, size: int) -> None:
        """Other storage with the taken slots first."""
        order = sorted(self.slots, key=self.slots.__getitem__)
        old = torch.tensor([self.slots[ref] for ref in order], dtype=torch.long, device=self.device)
        for name, pair in self.layers.items():
            moved = []
            for part in pair:
                new = torch.zeros(size, *part.shape[1:], dtype=self.dtype, device=self.device)
                if order:
                    new[: len(order)] = part[old]
                moved.append(new)
            self.layers[name] = (moved[0], moved[1])
        self.slots = {ref: k for k, ref in enumerate(order)}
        self.size = size
