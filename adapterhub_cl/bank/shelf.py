"""The shelf: adapters in host memory, read from disk when asked for, the least recently used given up first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from adapterhub_cl.adapters.head_files import StoredHead
from adapterhub_cl.adapters.lora_files import LoraFile
from adapterhub_cl.bases.compute_threads import let_go_of_threads

READERS = 2  # threads that read ahead
SMALLEST = 4  # rank of the smallest group


@dataclass(frozen=True)
class Shelved:
    """An adapter in host memory.

    Attributes:
        factors: layer → A `[r, in]` and scaled B `[out, r]`: ΔW = B·A.
        head: of an encoder's adapter.
    """

    factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    head: StoredHead | None = None

    @cached_property
    def rank(self) -> int:
        """The group's rank: the least power of two that holds every layer's."""
        most = max((a.shape[0] for a, _ in self.factors.values()), default=1)
        return max(SMALLEST, 1 << (most - 1).bit_length())

    @cached_property
    def bytes(self) -> int:
        own = list(self.head.tensors.values()) if self.head is not None else []
        own += [part for pair in self.factors.values() for part in pair]
        return sum(part.numel() * part.element_size() for part in own)


def read_adapter(folder: Path, dtype: torch.dtype) -> Shelved:
    """A stored plain LoRA, packed or not, in the type that it is multiplied in.

    Raises:
        AdapterError: DoRA, whole modules, or anything else that is no plain LoRA.
        IntegrityError: its files cannot be read, or hold NaN or infinity.
    """
    with LoraFile(folder) as file:
        found = {}
        for module in file.modules:
            b, a = file.factors(module)
            found[module] = (a.to(dtype).contiguous(), b.to(dtype).contiguous())
        head = file.head()
    return Shelved(found, head)


class Shelf:
    """Adapters in host memory, up to a number of bytes; safe to be used from several threads.

    Args:
        read: reference → adapter, from disk; what it raises reaches whoever asks.
        limit: bytes; one adapter that is larger than that alone is still served.
    """

    def __init__(self, read: Callable[[str], Shelved], limit: int) -> None:
        self._read, self.limit = read, limit
        self._there: OrderedDict[str, Shelved] = OrderedDict()
        self._coming: dict[str, Future[Shelved]] = {}
        self._lock = threading.Lock()
        self._readers: ThreadPoolExecutor | None = None
        self.bytes, self.hits, self.misses = 0, 0, 0

    def __contains__(self, ref: str) -> bool:
        with self._lock:
            return ref in self._there

    def get(self, ref: str) -> Shelved:
        """The adapter: from memory, else from disk; one that is being read is waited for."""
        with self._lock:
            if ref in self._there:
                self._there.move_to_end(ref)
                self.hits += 1
                return self._there[ref]
            self.misses += 1
            coming, mine = self._claim(ref)
        if mine:
            self._fetch(ref, coming)
        return coming.result()

    def prefetch(self, refs: Iterable[str]) -> None:
        """Begin to read adapters that will be asked for; errors wait for whoever asks."""
        with self._lock:
            for ref in refs:
                if ref in self._there or ref in self._coming:
                    continue
                if self._readers is None:
                    self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="adapter-reader")
                coming, _ = self._claim(ref)
                self._readers.submit(self._fetch_ahead, ref, coming)

    def forget(self, refs: Iterable[str]) -> None:
        """Give up adapters that exist no more."""
        with self._lock:
            for ref in refs:
                gone = self._there.pop(ref, None)
                self.bytes -= gone.bytes if gone else 0

    def close(self) -> None:
        with self._lock:
            readers, self._readers = self._readers, None
            self._there.clear()
            self.bytes = 0
        if readers is not None:
            readers.shutdown(wait=True, cancel_futures=False)

    @property
    def refs(self) -> list[str]:
        with self._lock:
            return list(self._there)

    def _claim(self, ref: str) -> tuple[Future[Shelved], bool]:
        """The reading of an adapter, and whether the caller is the one to do it. The lock is held."""
        if ref in self._coming:
            return self._coming[ref], False
        coming: Future[Shelved] = Future()
        self._coming[ref] = coming
        return coming, True

    def _fetch_ahead(self, ref: str, coming: Future[Any]) -> None:
        self._fetch(ref, coming)
        let_go_of_threads()

    def _fetch(self, ref: str, coming: Future[Any]) -> None:
        try:
            found = self._read(ref)
        except BaseException as error:
            with self._lock:
                self._coming.pop(ref, None)
            coming.set_exception(error)
            return
        with self._lock:
            self._coming.pop(ref, None)
            self._there[ref] = found
            self.bytes += found.bytes
            while self.bytes > self.limit and len(self._there) > 1:
                _, oldest = self._there.popitem(last=False)
                self.bytes -= oldest.bytes
        coming.set_result(found)
