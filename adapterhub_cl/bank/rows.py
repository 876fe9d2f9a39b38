"""What the rows of one batch add to a layer's output: gathered batched products, no loop over adapters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from adapterhub_cl.answering.answerer import Mixture
from adapterhub_cl.bank.group import Group
from adapterhub_cl.errors import AdapterError

FEW = 8  # tokens of a row up to which rows that want the same are put side by side
WASTE = 3  # all rows are padded to the widest one where that costs no more than this many times their own ranks


@dataclass(frozen=True)
class Piece:
    """Adapters of one group that stand at one place of their rows' ranks: `at` to `at + group.rank`.

    Attributes:
        rows: `[n]`, within the bucket; None for all of them, in order.
        slots: `[n]`.
        weights: `[n, 1, 1]`; None where all are 1.
    """

    group: Group
    at: int
    rows: torch.Tensor | None
    slots: torch.Tensor
    weights: torch.Tensor | None


@dataclass(frozen=True)
class Bucket:
    """Rows of a batch that are multiplied together, padded to the same number of ranks.

    Attributes:
        rows: `[n]`; None for all rows of the batch.
        count: n.
        width: ranks of each row; a mixture has those of its adapters one after the other.
        same: the slot, where all rows want one adapter and nothing else.
    """

    rows: torch.Tensor | None
    count: int
    width: int
    pieces: tuple[Piece, ...]
    same: int | None


def buckets_of(groups: Mapping[int, Group], mixtures: Sequence[Mixture]) -> list[Bucket]:
    """The rows of a batch by the ranks that they need; rows without an adapter are in none, or padded with zeros."""
    where = {ref: group for group in groups.values() for ref in group.slots}
    wanted = [[(where[ref], ref, weight) for ref, weight in m.items() if weight and ref in where] for m in mixtures]
    widths = [sum(group.rank for group, _, _ in row) for row in wanted]
    if not any(widths):
        return []
    if max(widths) * len(widths) <= WASTE * sum(widths):
        return [_bucket(wanted, widths, range(len(widths)), True)]
    by_width: dict[int, list[int]] = defaultdict(list)
    for row, width in enumerate(widths):
        if width:
            by_width[1 << (width - 1).bit_length()].append(row)
    return [_bucket(wanted, widths, rows, False) for rows in by_width.values()]


def _bucket(
    wanted: Sequence[Sequence[tuple[Group, str, float]]], widths: Sequence[int], rows: Sequence[int], whole: bool
) -> Bucket:
    places: dict[tuple[int, int], list[tuple[int, int, float]]] = defaultdict(list)
    groups: dict[int, Group] = {}
    for number, row in enumerate(rows):
        at = 0
        for group, ref, weight in wanted[row]:
            groups[group.rank] = group
            places[group.rank, at].append((number, group.slots[ref], weight))
            at += group.rank
    pieces = []
    for (rank, at), entries in places.items():
        numbers, slots, weights = zip(*entries, strict=True)
        group, plain = groups[rank], all(weight == 1 for weight in weights)
        device = group.device
        scale = torch.tensor(weights, dtype=group.dtype, device=device)[:, None, None]
        pieces.append(
            Piece(
                group,
                at,
                None if list(numbers) == list(range(len(rows))) else torch.tensor(numbers, device=device),
                torch.tensor(slots, device=device),
                None if plain else scale,
            )
        )
    only = pieces[0] if len(pieces) == 1 and pieces[0].rows is None and pieces[0].weights is None else None
    same = int(only.slots[0]) if only is not None and whole and len(set(only.slots.tolist())) == 1 else None
    index = None if whole else torch.tensor(list(rows), device=pieces[0].group.device)
    return Bucket(index, len(rows), max(widths[row] for row in rows), tuple(pieces), same)


@dataclass(frozen=True)
class Shared:
    """Rows that want the same, side by side: for single tokens, where reading factors costs more than moving inputs.

    Attributes:
        bucket: of the distinct mixtures.
        table: `[distinct · most]`, the row that stands at each place; places beyond a mixture's own rows hold row 0.
        places, rows: `[n]`, the places that count, and whose they are.
        most: rows of the commonest mixture.
    """

    bucket: Bucket
    table: torch.Tensor
    places: torch.Tensor
    rows: torch.Tensor
    most: int


def shared_of(groups: Mapping[int, Group], mixtures: Sequence[Mixture]) -> Shared | None:
    """The rows by what they want; None where that saves nothing, or the mixtures need several buckets."""
    alike: dict[tuple[tuple[str, float], ...], list[int]] = defaultdict(list)
    for row, mixture in enumerate(mixtures):
        alike[tuple(mixture.items())].append(row)
    most = max(map(len, alike.values()), default=0)
    if not 1 < len(alike) <= len(mixtures) // 2 or len(alike) * most > WASTE * len(mixtures):
        return None
    buckets = buckets_of(groups, [dict(mixture) for mixture in alike])
    if len(buckets) != 1 or buckets[0].rows is not None:
        return None
    table = [row for rows in alike.values() for row in (*rows, *[0] * (most - len(rows)))]
    places = [k * most + j for k, rows in enumerate(alike.values()) for j in range(len(rows))]
    device = buckets[0].pieces[0].group.device
    index, at = torch.tensor(table, device=device), torch.tensor(places, device=device)
    return Shared(buckets[0], index, at, index[at], most)


class BatchRows:
    """A batch's choice of adapters, applied to every layer of one or more forward passes.

    Args:
        mixtures: one for each row.
        keep_bytes: memory for gathered factors that are kept from pass to pass (when tokens are written one by one,
            gathering costs more than multiplying); 0 keeps none.

    Attributes:
        length: positions of each row in the pass that is going on.
    """

    def __init__(self, groups: Mapping[int, Group], mixtures: Sequence[Mixture], keep_bytes: int = 0) -> None:
        self.count, self.keep_bytes, self.length = len(mixtures), keep_bytes, 0
        self.buckets = buckets_of(groups, mixtures)
        self.shared = shared_of(groups, mixtures) if keep_bytes else None
        self._kept: dict[tuple[int, str], tuple[torch.Tensor, torch.Tensor]] = {}

    def add(self, layer: str, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """y + Σ wᵢ·x·Aᵢᵀ·Bᵢᵀ for each row; x `[rows, length, in]`, y `[rows, length, out]`, which may be overwritten.

        Some architectures put rows and length into one dimension, or have one vector for each row (`[n, in]`).

        Raises:
            AdapterError: the layer is not called with the batch's rows.
        """
        if x.dim() == 2 and self.count and x.shape[0] in (self.count, self.count * self.length):
            whole = self.add(layer, x.reshape(self.count, -1, x.shape[1]), y.reshape(self.count, -1, y.shape[1]))
            return whole.reshape(y.shape)
        if x.dim() != 3 or x.shape[0] != self.count:
            raise AdapterError(
                f"the layer {layer} gets {tuple(x.shape)}, not the {self.count} rows of the batch: it cannot be served "
                "in a mixed batch",
                "name one --adapter for the whole batch",
            )
        if self.shared is not None and x.shape[1] <= FEW:
            return self._side_by_side(self.shared, layer, x, y)
        for number, bucket in enumerate(self.buckets):
            if any(layer in piece.group.layers for piece in bucket.pieces):
                y = self._one(number, bucket, layer, x, y)
        return y

    def _one(self, number: int, bucket: Bucket, layer: str, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        dtype = bucket.pieces[0].group.dtype
        x = x.to(dtype)
        target = y if y.dtype == dtype else y.to(dtype)
        if bucket.same is not None:
            a, b = (part[bucket.same] for part in bucket.pieces[0].group.layers[layer])
            target = target.contiguous()
            target.view(-1, target.shape[-1]).addmm_(x.reshape(-1, x.shape[-1]) @ a.T, b.T)
            return target.to(y.dtype)
        a, b = self._gathered(number, bucket, layer)
        if bucket.rows is None:
            target = target.baddbmm_(torch.bmm(x, a), b)
        else:
            target = target.index_add_(0, bucket.rows, torch.bmm(torch.bmm(x[bucket.rows], a), b))
        return target.to(y.dtype)

    def _side_by_side(self, shared: Shared, layer: str, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        bucket, length = shared.bucket, x.shape[1]
        if not any(layer in piece.group.layers for piece in bucket.pieces):
            return y
        dtype = bucket.pieces[0].group.dtype
        a, b = self._gathered(-1, bucket, layer)
        inputs = x.to(dtype)[shared.table].view(bucket.count, shared.most * length, -1)
        added = torch.bmm(torch.bmm(inputs, a), b).view(len(shared.table), length, -1)
        target = y if y.dtype == dtype else y.to(dtype)
        return target.index_add_(0, shared.rows, added[shared.places]).to(y.dtype)

    def _gathered(self, number: int, bucket: Bucket, layer: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Each row's A `[n, in, width]` and B `[n, width, out]`, weights included."""
        if (number, layer) in self._kept:
            return self._kept[number, layer]
        pieces = [piece for piece in bucket.pieces if layer in piece.group.layers]
        first = pieces[0]
        store_a, store_b = first.group.layers[layer]
        if len(pieces) == 1 and first.rows is None and first.group.rank == bucket.width:
            a, b = store_a[first.slots], store_b[first.slots]
            b = b if first.weights is None else b * first.weights
        else:
            a = store_a.new_zeros(bucket.count, bucket.width, store_a.shape[2])
            b = store_b.new_zeros(bucket.count, store_b.shape[1], bucket.width)
            for piece in pieces:
                part_a, part_b = (part[piece.slots] for part in piece.group.layers[layer])
                rows = slice(None) if piece.rows is None else piece.rows
                ranks = slice(piece.at, piece.at + piece.group.rank)
                a[rows, ranks] = part_a
                b[rows, :, ranks] = part_b if piece.weights is None else part_b * piece.weights
        found = a.transpose(1, 2), b.transpose(1, 2)
        size = (a.numel() + b.numel()) * a.element_size()
        if size <= self.keep_bytes:
            self.keep_bytes -= size
            self._kept[number, layer] = found
        return found
