"""A plug-in for a stock vLLM: it answers for `model="tickets@production"` with the hub named in `$CL_ADAPTER_HUB`.

    CL_ADAPTER_HUB=my-hub VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve BASE --enable-lora --max-lora-rank 16

vLLM asks a resolver once for each name and keeps what it got. An alias moves, so the plug-in looks at the hub twice a
second and changes what vLLM keeps, in vLLM's own event loop: id, name and folder at once, so that no request meets a
mixture of two versions. Requests that are being answered keep their version, because vLLM copied it when they began.

This module runs in vLLM's environment: neither PEFT nor SQLAlchemy is imported.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapterhub_cl.adapters.vllm_folder import Outline, outline
from adapterhub_cl.bases.fingerprint import is_base
from adapterhub_cl.errors import AdapterError, AdapterHubError, UsageError
from adapterhub_cl.registry import Registry
from adapterhub_cl.registry.watching import Watch
from adapterhub_cl.remote.vllm_exports import VllmExports

LOG = logging.getLogger("vllm.adapterhub_cl")  # below vLLM's logger, so that its handlers show it
HUB = "CL_ADAPTER_HUB"
EVERY_S = 0.5
FIRST_ID = 2**30  # vLLM counts its own ids from 1


@dataclass(frozen=True)
class NamedVersion:
    """What a model's name stands for.

    Attributes:
        ref: the version.
        folder: where vLLM loads it from.
        rank: in that folder.
        like: config and shapes of that folder.
    """

    ref: str
    folder: Path
    rank: int
    like: Outline = field(compare=False, repr=False)


class HubNames:
    """Model names → versions of a hub, in the folders that vLLM loads. For one thread at a time."""

    def __init__(self, hub: str) -> None:
        self.registry = Registry.open(hub)
        self._exports = VllmExports(self.registry)
        self._bases: dict[str, bool] = {}

    def find(self, name: str) -> NamedVersion | None:
        """The version that a task, `name`, `name@v2` or `name@production` stands for now; None: it stands for none.

        Raises:
            AdapterHubError: the hub cannot be read, or vLLM cannot serve the version.
        """
        serving = self.registry.serving()
        try:
            record = self.registry.get(serving.get(name, name))
        except (UsageError, AdapterError):  # unknown, no name at all, or nothing that may answer
            return None
        _, folder = self._exports.folder(record)
        return NamedVersion(record.ref, folder, self._exports.rank(folder), outline(folder))

    def has_base(self, name: str) -> bool:
        """Whether vLLM's base is the hub's: a folder by the fingerprint of its files, an id by its name."""
        if name not in self._bases:
            self._bases[name] = is_base(name, self.registry.base)
        return self._bases[name]

    def nothing(self, version: NamedVersion) -> Path:
        """A folder like a version's, with factors of zero: what a name stands for whose version was forgotten."""
        return self._exports.zeros(version.like)


class Followed:
    """The names that vLLM asked for, and the requests that it keeps for them.

    Args:
        request: makes vLLM's own object: (name, id, folder).
        allowed: vLLM's --max-lora-rank; 0: unknown.
    """

    def __init__(self, names: HubNames, request: Any, allowed: int = 0) -> None:
        self.names, self._request, self._allowed = names, request, allowed
        self.kept: dict[str, tuple[Any, NamedVersion | None]] = {}
        self._ids = itertools.count(FIRST_ID)

    def first(self, name: str, version: NamedVersion) -> Any:
        """What vLLM keeps for a name. It loads it at once, and so refuses a rank that is too large."""
        request = self._request(self.called(name, version), next(self._ids), str(version.folder))
        self.kept[name] = (request, version)
        return request

    def moves(self) -> dict[str, tuple[Path, str, NamedVersion | None]]:
        """What changed: name → its folder, what it is called, and its version; None: it is gone."""
        found: dict[str, tuple[Path, str, NamedVersion | None]] = {}
        for name, (_, before) in list(self.kept.items()):
            try:
                now = self.names.find(name)
            except AdapterHubError as error:
                LOG.warning("%s stays as it was: %s; %s", name, error.message, error.hint)
                continue
            if now == before or (now is None and before is None):
                continue
            if now is None and before is not None:
                found[name] = (self.names.nothing(before), f"{name} (gone)", None)
            elif now is not None and now.rank > (most := max(self._allowed, before.rank if before else 0)):
                # vLLM loads it in the middle of a batch then, and ends if it cannot.
                LOG.error(
                    "%s stays as it was: %s has rank %d for vLLM, and it is only known to take %d; start it again with "
                    "a larger --max-lora-rank", name, now.ref, now.rank, most,
                )  # fmt: skip
            elif now is not None:
                found[name] = (now.folder, self.called(name, now), now)
        return found

    def apply(self, moves: dict[str, tuple[Path, str, NamedVersion | None]]) -> None:
        """Change what vLLM keeps. Nothing is awaited here, so vLLM sees all of it or nothing."""
        for name, (folder, called, version) in moves.items():
            request, _ = self.kept[name]
            request.lora_int_id, request.lora_name, request.lora_path = next(self._ids), called, str(folder)
            self.kept[name] = (request, version)
            LOG.info("%s", f"{name} is now {version.ref}" if version else f"{name} is gone: the base answers for it")

    @staticmethod
    def called(name: str, version: NamedVersion) -> str:
        """The name inside of vLLM, which its answers give as `model`. Different for each name and version, because
        vLLM takes two requests of one name for the same adapter."""
        return name if name == version.ref else f"{name} ({version.ref})"


def allowed_rank(arguments: Sequence[str]) -> int:
    """The --max-lora-rank of a command line; 0 if it does not say."""
    for flag, value in zip(arguments, [*arguments[1:], ""], strict=True):
        name, _, own = flag.partition("=")
        if name.replace("_", "-") == "--max-lora-rank" and (own or value).isdigit():
            return int(own or value)
    return 0


def register() -> None:
    """Called by vLLM in each of its processes (entry point `vllm.general_plugins`)."""
    hub = os.environ.get(HUB)
    if not hub:
        return
    from vllm.lora.request import LoRARequest  # type: ignore[import-not-found,unused-ignore]
    from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry  # type: ignore[import-not-found,unused-ignore]

    class HubResolver(LoRAResolver):  # type: ignore[misc,unused-ignore]
        """Gives vLLM a hub's versions, and lets their aliases move."""

        def __init__(self, folder: str) -> None:
            self.followed = Followed(HubNames(folder), _request, allowed_rank(sys.argv))
            self._watching: asyncio.Task[None] | None = None
            self._turn = asyncio.Lock()
            self._reader = ThreadPoolExecutor(1, "adapterhub-cl")  # a connection to the index is for one thread

        async def resolve_lora(self, base_model_name: str, lora_name: str) -> Any:
            async with self._turn:
                try:
                    found = await self._read(self._look, base_model_name, lora_name)
                except AdapterHubError as error:
                    LOG.error("%s: %s; %s", lora_name, error.message, error.hint)
                    return None
            if found is None:
                return None
            if self._watching is None:
                self._watching = asyncio.get_running_loop().create_task(self._watch())
            return self.followed.first(lora_name, found)

        async def _read(self, work: Callable[..., Any], *given: Any) -> Any:
            return await asyncio.get_running_loop().run_in_executor(self._reader, work, *given)

        def _look(self, base: str, name: str) -> NamedVersion | None:
            names = self.followed.names
            found = names.find(name)
            if found is not None and not names.has_base(base):
                raise AdapterError(
                    f"vLLM serves {base}, and the hub's base is {names.registry.base.source}",
                    f"start vLLM with the hub's base, or name another hub in ${HUB}",
                )
            return found

        async def _watch(self) -> None:
            watch = Watch(self.followed.names.registry)
            while True:
                await asyncio.sleep(EVERY_S)
                try:
                    if not await self._read(watch.changed):
                        continue
                    async with self._turn:
                        moves = await self._read(self.followed.moves)
                        self.followed.apply(moves)
                except AdapterHubError as error:
                    LOG.error("the hub cannot be read: %s; %s", error.message, error.hint)

    def _request(name: str, number: int, folder: str) -> Any:
        return LoRARequest(lora_name=name, lora_int_id=number, lora_path=folder)

    try:
        LoRAResolverRegistry.register_resolver("AdapterHub-CL", HubResolver(hub))
    except AdapterHubError as error:
        LOG.error("$%s=%s: %s; %s", HUB, hub, error.message, error.hint)
