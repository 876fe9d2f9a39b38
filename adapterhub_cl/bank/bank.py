"""The LoRA bank: many adapters on one frozen base, chosen and mixed row by row in one pass.

Factors are stacked for each layer in groups of equal (padded) rank; the rows of a batch gather what they need and
multiply it in batched products (as S-LoRA, Sheng et al. 2023, arXiv:2311.03285, and Punica, Chen et al. 2023,
arXiv:2310.18547, do with kernels of their own). Rows without an adapter are the base. Behind the bank stands a shelf
in host memory, and behind that the disk.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from adapterhub_cl.adapters.as_served import spare_bytes
from adapterhub_cl.adapters.fused import dense_weight
from adapterhub_cl.adapters.head_files import StoredHead, same_neck
from adapterhub_cl.adapters.targets import is_expert, length_first
from adapterhub_cl.answering.answerer import Mixture
from adapterhub_cl.answering.classifying import NO_HEAD, HeadPart
from adapterhub_cl.bank.group import Group
from adapterhub_cl.bank.rows import BatchRows
from adapterhub_cl.bank.shelf import Shelf, Shelved
from adapterhub_cl.bases.encoders import head_of
from adapterhub_cl.bases.loading import LoadedBase
from adapterhub_cl.errors import AdapterError, UsageError

CAPACITY = 64
HOST_BYTES = 2 * 10**9
KEEP_BYTES = 512 * 10**6


class LoraBank:
    """Adapters stacked on one base. While it is open the base's linear layers ask it what to add; `close` takes it off.

    Not more than one at a time on a base. All methods may be called from several threads: they take the base's lock.

    Args:
        read: reference → adapter, from disk.
        capacity: adapters stacked at once; the least recently used gives way.
        host_bytes: memory for adapters on the shelf.
    """

    def __init__(
        self,
        base: LoadedBase,
        read: Callable[[str], Shelved],
        *,
        capacity: int = CAPACITY,
        host_bytes: int = HOST_BYTES,
    ) -> None:
        if capacity < 1:
            raise UsageError(f"a bank needs room for one adapter at least, not {capacity}", "capacity=64")
        self.base, self.capacity, self.shelf = base, capacity, Shelf(read, host_bytes)
        self._groups: dict[int, Group] = {}
        self._used: OrderedDict[str, int] = OrderedDict()  # reference → rank group, the oldest first
        self._active: BatchRows | None = None
        self._held: dict[str, tuple[Shelved, int]] = {}  # and how many times
        self._removed: set[str] = set()  # those of them that are to be removed afterwards
        self._changes = 0  # counts what moves slots
        self._spare = spare_bytes(base)
        self._hooked: dict[str, torch.nn.Module] = {}
        self._heads: dict[str, StoredHead] = {}
        self.loads = 0

    # -- what is in it ---------------------------------------------------------------------------

    @property
    def refs(self) -> list[str]:
        """The stacked adapters, the least recently used first."""
        return list(self._used)

    @property
    def bytes(self) -> int:
        """Memory of the stacked factors, free slots included."""
        return sum(group.bytes for group in self._groups.values())

    @property
    def model(self) -> Any:
        """The base's model."""
        return self.base.model

    def head_part(self, task: str, mixture: Mixture) -> HeadPart:
        """A task's rows of an encoder's head: those of the weightiest adapter of the mixture that knows the task.

        Raises:
            AdapterError: none knows it.
        """
        for ref in sorted(mixture, key=mixture.__getitem__, reverse=True):
            head = self._heads.get(ref)
            if head is not None and task in head.layout:
                return HeadPart(*head.part(task))
        raise AdapterError(
            f"no head for the task {task}: {' + '.join(mixture) or 'the base'} never learned it", NO_HEAD
        )

    def require(self, refs: Iterable[str]) -> None:
        """Have these adapters stacked, all at once.

        Raises:
            UsageError: more than the bank has room for.
            AdapterError, IntegrityError: one cannot be read or does not fit the base; the others are stacked.
        """
        wanted = list(dict.fromkeys(refs))
        if len(wanted) > self.capacity:
            raise UsageError(f"{len(wanted)} adapters at once, and the bank holds {self.capacity}", "raise capacity")
        with self.base.lock:
            for ref in wanted:
                if ref in self._used:
                    self._used.move_to_end(ref)
            for ref in wanted:
                if ref not in self._used:
                    self._put(ref, self._at_hand(ref), wanted)

    def hold(self, refs: Iterable[str]) -> None:
        """Load adapters and keep them in host memory until `release`: what is written with them can be finished, even
        if they are evicted or removed meanwhile.

        Raises:
            as `require`; nothing is held then.
        """
        wanted = list(dict.fromkeys(refs))
        with self.base.lock:
            self.require(wanted)
            found = {ref: self._at_hand(ref) for ref in wanted}
            for ref, adapter in found.items():
                self._held[ref] = adapter, self._held.get(ref, (adapter, 0))[1] + 1

    def release(self, refs: Iterable[str]) -> None:
        """Undo `hold`, once for each call of it."""
        with self.base.lock:
            for ref in dict.fromkeys(refs):
                adapter, times = self._held.pop(ref)
                if times > 1:
                    self._held[ref] = adapter, times - 1
                elif ref in self._removed:
                    self._removed.remove(ref)
                    self.remove([ref])

    def add(self, ref: str, adapter: Shelved) -> None:
        """Stack an adapter that is in memory already, in the place of one of that name.

        Raises:
            AdapterError: it does not fit the base.
        """
        with self.base.lock:
            self.remove([ref])
            self._put(ref, adapter, [ref])

    def remove(self, refs: Iterable[str]) -> None:
        """Take adapters off the bank and the shelf, those that are held once they are released; names that are not
        there do no harm."""
        with self.base.lock:
            gone = list(refs)
            self.shelf.forget(gone)
            for ref in gone:
                if ref in self._held:
                    self._removed.add(ref)
                elif ref in self._used:
                    self._take(ref)

    def close(self) -> None:
        """Take the bank off the base and give its memory back."""
        with self.base.lock:
            for module in self._hooked.values():
                del module.forward
            self._hooked.clear()
            self._groups.clear()
            self._used.clear()
            self._heads.clear()
            self._held.clear()
        self.shelf.close()

    # -- passes ----------------------------------------------------------------------------------

    def rows(self, mixtures: Sequence[Mixture], *, keep: bool = False) -> AbstractContextManager[Any]:
        """Within the block the base's model answers row k with mixtures[k]: ΔW = Σ weight · ΔW(reference).

        Args:
            mixtures: reference → weight for each row; empty is the base alone.
            keep: keep gathered factors from pass to pass: for writing token by token.

        Yields:
            the base's model. The context can be entered again and again, which is cheap while the bank stays as it is.

        Raises:
            UsageError: more adapters than the bank has room for.
        """
        return _Passes(self, mixtures, KEEP_BYTES if keep else 0)

    # -- inside ----------------------------------------------------------------------------------

    def _at_hand(self, ref: str) -> Shelved:
        return self._held[ref][0] if ref in self._held else self.shelf.get(ref)

    def _put(self, ref: str, adapter: Shelved, needed: Collection[str]) -> None:
        own = head_of(self.base.model)
        if adapter.head is not None and own is not None and not same_neck(adapter.head.neck, own.neck):
            raise AdapterError(
                f"the head of {ref} stands on layers of its own, and a mixed batch shares them",
                f"it can answer alone: --adapter {ref}, or --task",
            )
        if expert := next((name for name in adapter.factors if is_expert(name)), None):
            raise AdapterError(
                f"{ref} changes single experts ({expert}), which get no whole rows, so no mixed batch can use it",
                f"it can answer alone: --adapter {ref}, or --task",
            )
        for name, (a, b) in adapter.factors.items():
            self._hook(ref, name, (b.shape[0], a.shape[1]))
        while len(self._used) >= self.capacity:
            self._take(next(old for old in self._used if old not in needed))
        group = self._groups.setdefault(adapter.rank, Group(adapter.rank, self.base.dtype, self.base.device))
        group.put(ref, adapter.factors)
        self._used[ref] = adapter.rank
        self._changes += 1
        if adapter.head is not None:
            self._heads[ref] = adapter.head
        self.loads += 1

    def _take(self, ref: str) -> None:
        self._changes += 1
        rank = self._used.pop(ref)
        self._heads.pop(ref, None)
        self._groups[rank].take(ref)
        if not self._groups[rank].slots:
            del self._groups[rank]

    def _hook(self, ref: str, name: str, shape: tuple[int, int]) -> None:
        """Let a layer of the base ask the bank; its first adapter does that."""
        if name in self._hooked:
            have = _shape(self._hooked[name])
        else:
            try:
                module = self.base.model.get_submodule(name)
            except AttributeError:
                module = torch.nn.Identity()
            have = _shape(module)
        if have != shape:
            raise AdapterError(
                f"{ref} does not fit this base: its layer {name} is {shape[0]} × {shape[1]}, the base's is "
                + (f"{have[0]} × {have[1]}" if have else "not there"),
                "it must have been trained on this very base",
            )
        if name not in self._hooked:
            plain = self._plain(module)

            turned = name in length_first(self.base)

            def forward(x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
                y: torch.Tensor = plain(x)
                if turned and self._active is not None and x.dim() == 3:
                    return self._active.add(name, x.transpose(0, 1), y.transpose(0, 1).contiguous()).transpose(0, 1)
                return y if self._active is None else self._active.add(name, x, y)

            module.forward = forward  # type: ignore[method-assign]
            self._hooked[name] = module

    def _plain(self, module: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        """The layer's own product; of a 4-bit one with its weight kept dequantised where there is memory to spare."""
        plain: Callable[[torch.Tensor], torch.Tensor] = module.forward
        if not hasattr(getattr(module, "weight", None), "quant_state"):
            return plain
        weight = dense_weight(module, self.base.dtype)
        size = module.in_features * module.out_features * self.base.dtype.itemsize
        if weight is None or size > self._spare:
            return plain
        self._spare -= size
        dense, bias = weight(), module.bias
        return lambda x: functional.linear(x.to(dense.dtype), dense, None if bias is None else bias.to(dense.dtype))


class _Passes:
    """The context of passes over the same rows; what was prepared for one serves the next until the bank changes."""

    def __init__(self, bank: LoraBank, mixtures: Sequence[Mixture], keep_bytes: int) -> None:
        self._bank, self._mixtures, self._keep_bytes = bank, mixtures, keep_bytes
        self._refs = list(dict.fromkeys(ref for mixture in mixtures for ref in mixture))
        self._ready: tuple[int, BatchRows] | None = None
        self._within = ExitStack()

    def __enter__(self) -> Any:
        bank = self._bank
        with ExitStack() as entered:
            entered.enter_context(bank.base.lock)
            entered.enter_context(bank.base.autocast())
            bank.require(self._refs)
            if self._ready is None or self._ready[0] != bank._changes:
                self._ready = None  # its memory is free before the next is gathered
                self._ready = bank._changes, BatchRows(bank._groups, self._mixtures, self._keep_bytes)
            active = bank._active = self._ready[1]
            entered.callback(setattr, bank, "_active", None)

            def measure(_: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
                ids = named.get("input_ids", inputs[0] if inputs else None)
                active.length = (named["inputs_embeds"] if ids is None else ids).shape[1]

            hook = bank.base.model.register_forward_pre_hook(measure, with_kwargs=True)
            entered.callback(hook.remove)
            self._within = entered.pop_all()
        return bank.base.model

    def __exit__(self, *_: object) -> None:
        self._within.close()


def _shape(module: Any) -> tuple[int, int] | None:
    """(out, in) of a linear layer; None for what is none."""
    if isinstance(module, Conv1D):
        return int(module.weight.shape[1]), int(module.weight.shape[0])
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return int(module.out_features), int(module.in_features)
    return None
