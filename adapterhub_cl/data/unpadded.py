"""Rows of a batch in one row without padding; what several of them begin with is there once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

LEAST_SAVED = 32  # tokens that a further group must save: each group costs a few operations in every layer
ROUND = 32  # with few different lengths a CPU makes its kernels once, not for each batch


@dataclass(frozen=True)
class SharedBeginning:
    """Rows that begin alike: the shared beginning, then each row's own tokens.

    Attributes:
        start: where the shared beginning is in the one row.
        shared: tokens of the shared beginning; may be 0.
        end: where the last row's own tokens end.
        own: `[rows, longest]`, the place of each row's own tokens in the one row; filled up with the row's last one.
        back: `[end - start - shared]`, for each own token its index in the flattened `own`.
    """

    start: int
    shared: int
    end: int
    own: torch.Tensor
    back: torch.Tensor

    def to(self, device: torch.device) -> SharedBeginning:
        return SharedBeginning(self.start, self.shared, self.end, self.own.to(device), self.back.to(device))


@dataclass(frozen=True)
class Unpadded:
    """All rows of a batch in one.

    Attributes:
        input_ids: `[1, n]`; ends with padding that belongs to no group.
        positions: `[1, n]`, each token's position in its own row.
        places: `[rows, length]`, where each token of the padded batch is in the one row.
    """

    input_ids: torch.Tensor
    positions: torch.Tensor
    places: torch.Tensor
    groups: tuple[SharedBeginning, ...]

    def to(self, device: torch.device) -> Unpadded:
        ids, positions, places = (x.to(device) for x in (self.input_ids, self.positions, self.places))
        return Unpadded(ids, positions, places, tuple(group.to(device) for group in self.groups))


def unpadded(rows: Sequence[Sequence[int]], pad_id: int) -> Unpadded:
    """Rows of token ids, none of them empty → one row.

    A causal model gives a token the same hidden state whatever comes after it, so the tokens that rows begin with are
    computed once for all of them, and their gradients add up.
    """
    places = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    ids: list[int] = []
    positions: list[int] = []
    groups = []
    for members, shared in grouped(rows):
        start = len(ids)
        ids += rows[members[0]][:shared]
        positions += range(shared)
        first = len(ids)
        own = []
        for row in members:
            tail = rows[row][shared:]
            here = torch.arange(len(ids), len(ids) + len(tail))
            places[row, : len(rows[row])] = torch.cat([torch.arange(start, first), here])
            own.append(here)
            ids += tail
            positions += range(shared, shared + len(tail))
        longest = -(-max(map(len, own)) // 8) * 8
        filled = torch.stack([torch.cat([one, one[-1:].expand(longest - len(one))]) for one in own])
        back = torch.cat([torch.arange(k * longest, k * longest + len(one)) for k, one in enumerate(own)])
        groups.append(SharedBeginning(start, shared, len(ids), filled, back))
    padding = -len(ids) % ROUND
    ids += [pad_id] * padding
    positions += [0] * padding
    return Unpadded(torch.tensor([ids]), torch.tensor([positions]), places, tuple(groups))


def grouped(rows: Sequence[Sequence[int]]) -> list[tuple[list[int], int]]:
    """Which rows share a beginning, and how many tokens of it: the division that saves most tokens.

    Every row keeps at least one token of its own.
    """
    order = sorted(range(len(rows)), key=lambda row: tuple(rows[row]))
    return _divide(rows, order, 0)[1]


def _divide(rows: Sequence[Sequence[int]], order: list[int], known: int) -> tuple[int, list[tuple[list[int], int]]]:
    """Tokens saved, and the groups, of rows in sorted order that begin with the same `known` tokens."""
    if len(order) == 1:
        return 0, [(order, 0)]
    first, last = rows[order[0]], rows[order[-1]]  # of sorted rows, what these two share all share
    most = min(len(rows[row]) for row in order) - 1
    shared = known
    while shared < most and first[shared] == last[shared]:
        shared += 1
    saved = shared * (len(order) - 1)
    parts: dict[int, list[int]] = {}
    for row in order:
        parts.setdefault(rows[row][shared], []).append(row)
    if len(parts) == 1:  # a row ends here
        return saved, [(order, shared)]
    found = [_divide(rows, part, shared) for part in parts.values()]
    alone = [part for _, groups in found for part, length in groups if not length]
    gain = sum(value for value, _ in found)
    together = [group for _, groups in found for group in groups if group[1]]
    if alone:  # rows that share nothing with others need no group each
        together.append(([row for part in alone for row in part], 0))
    if gain > saved + LEAST_SAVED * (len(together) - 1):
        return gain, together
    return saved, [(order, shared)]
