"""Which versions a vLLM has loaded: up to a number of them, each drained before it is unloaded."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass


@dataclass(eq=False)
class _Resident:
    """A version that is loaded, or being loaded.

    Attributes:
        users: rows that are being answered with it, or wait for it to be loaded.
        leaving: nobody new may use it: it is unloaded as soon as its last row is answered.
    """

    ref: str
    loading: asyncio.Task[str]
    users: int = 0
    leaving: bool = False

    @property
    def failed(self) -> bool:
        """Whether it could not be loaded."""
        return self.loading.done() and (self.loading.cancelled() or self.loading.exception() is not None)


class Residents:
    """The versions that are loaded. Use it in one event loop.

    Args:
        most: versions loaded at the same time.
        load: reference → the name that the vLLM has for it, once it is loaded.
        unload: takes a reference out of the vLLM; it must not raise.
    """

    def __init__(
        self, most: int, load: Callable[[str], Awaitable[str]], unload: Callable[[str], Awaitable[None]]
    ) -> None:
        self._most, self._load, self._unload = most, load, unload
        self._there: OrderedDict[str, _Resident] = OrderedDict()  # the least recently asked for first
        self._changed = asyncio.Condition()
        self._leaving: set[asyncio.Task[None]] = set()

    @property
    def refs(self) -> list[str]:
        """Those that are loaded, the least recently asked for first."""
        return [ref for ref, one in list(self._there.items()) if one.loading.done() and not one.leaving]

    @asynccontextmanager
    async def using(self, ref: str) -> AsyncIterator[str]:
        """The vLLM's name of a version, which stays loaded inside the block.

        Raises:
            Whatever `load` raises.
        """
        one = await self._admitted(ref)
        try:
            try:
                name = await asyncio.shield(one.loading)
            except BaseException:
                if one.loading.done():  # it could not be loaded: the next request tries again
                    self._drop(one)
                raise
            yield name
        finally:
            one.users -= 1
            if one.leaving and not one.users:
                self._leave(one)
            async with self._changed:
                self._changed.notify_all()

    def lost(self, ref: str) -> None:
        """The vLLM does not have it any more: the next request loads it again."""
        if ref in self._there:
            self._drop(self._there[ref])

    def keep(self, refs: Collection[str]) -> None:
        """Unload the versions that are not among these, each when its last row is answered."""
        for ref in [ref for ref in self._there if ref not in refs]:
            self._dismiss(self._there[ref])

    async def close(self) -> None:
        """Unload everything."""
        self.keep(())
        while self._leaving:
            await asyncio.wait(self._leaving)

    # -- inside ----------------------------------------------------------------------------------

    async def _admitted(self, ref: str) -> _Resident:
        """The version with one more user, as soon as there is room for it."""
        async with self._changed:
            while True:
                one = self._there.get(ref)
                if one is not None and one.failed:  # it could not be loaded, and whoever asked for it had gone
                    self._drop(one)
                    continue
                if one is not None and not one.leaving:
                    self._there.move_to_end(ref)
                    break
                if one is None and len(self._there) < self._most:
                    one = self._there[ref] = _Resident(ref, asyncio.ensure_future(self._load(ref)))
                    break
                if one is None and not any(other.leaving for other in self._there.values()):
                    self._dismiss(min(self._there.values(), key=lambda other: other.users > 0))
                await self._changed.wait()
            one.users += 1
            return one

    def _dismiss(self, one: _Resident) -> None:
        if one.leaving:
            return
        one.leaving = True
        if not one.users:
            self._leave(one)

    def _leave(self, one: _Resident) -> None:
        task = asyncio.ensure_future(self._left(one))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _left(self, one: _Resident) -> None:
        try:
            await asyncio.wait({one.loading})
            if not one.failed:
                await self._unload(one.ref)
        finally:
            self._drop(one)
            async with self._changed:
                self._changed.notify_all()

    def _drop(self, one: _Resident) -> None:
        if self._there.get(one.ref) is one:
            del self._there[one.ref]
