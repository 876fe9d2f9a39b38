"""What a Ray worker does: it opens the hub, carries out one piece of work and tells the driver how it went."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from adapterhub_cl.context import Hub
from adapterhub_cl.errors import AdapterHubError, HubError
from adapterhub_cl.progress import Reporter
from adapterhub_cl.registry import Registry
from adapterhub_cl.types import BaseInfo

Tell = Callable[[str, Any], Any]


@dataclass(frozen=True)
class Opening:
    """All that another process needs to open a hub.

    Attributes:
        base_path: see `AdapterHub.open`.
        threads: that the worker computes with. The driver's own number, because sums that are divided among more
            threads round differently, and the adapters would not be the same bytes.
        version: of this package in the driver.
    """

    path: Path
    base_path: str
    device: str
    dtype: str
    threads: int
    version: str

    def hub(self, reporter: Reporter) -> Hub:
        """The hub as this process sees it.

        Raises:
            HubError: it is not there, or this machine has another version of the package.
        """
        here = socket.gethostname()
        if own_version() != self.version:
            raise HubError(
                f"{here} has version {own_version()} of adapterhub-cl, and the command has {self.version}",
                "install the same version on every node",
            )
        try:
            registry = Registry.open(self.path, self.base_path)
        except HubError as error:
            raise HubError(
                f"on {here}: {error.message}", "every node must see the hub's folder under the same path"
            ) from error
        return Hub(
            registry, partial(_loaded, registry.base, self.device, dtype=self.dtype), reporter, self.device, self.dtype
        )


def own_version() -> str:
    """The version of this package here; empty in a checkout that is not installed."""
    try:
        return version("adapterhub-cl")
    except PackageNotFoundError:
        return ""


@lru_cache(maxsize=1)
def _loaded(info: BaseInfo, device: str, dtype: str) -> Any:
    """The base; a worker that carries out several pieces of work loads it once."""
    from adapterhub_cl.bases.loading import load_base

    return load_base(info, device=device, dtype=dtype)


@dataclass(frozen=True)
class Failure:
    """An error that a worker ended with, as plain values: Ray could not rebuild every kind."""

    kind: str
    message: str
    hint: str


class FarReporter(Reporter):
    """Tells the driver the notes of a piece of work; bars stay away."""

    def __init__(self, tell: Tell) -> None:
        self.tell = tell

    def note(self, text: str) -> None:
        self.tell("note", text)


class Board:
    """The actor through which workers and driver talk: what was said, and what the driver answered."""

    def __init__(self) -> None:
        self.said: list[tuple[int, str, Any]] = []
        self.answers: dict[int, Any] = {}

    def say(self, job: int, what: str, value: Any) -> None:
        """Called by a worker."""
        self.said.append((job, what, value))

    def take(self) -> list[tuple[int, str, Any]]:
        """Called by the driver: what was said since the last time."""
        said, self.said = self.said, []
        return said

    def answer(self, job: int, value: Any) -> None:
        """Called by the driver."""
        self.answers[job] = value

    def answered(self, job: int) -> Any:
        """Called by a worker: the driver's answer to its last question; None while there is none."""
        return self.answers.pop(job, None)


def carry_out(work: Callable[..., Any], opening: Opening, board: Any, job: int, arguments: tuple[Any, ...]) -> Any:
    """The task that Ray runs: `work(hub, tell, *arguments)`.

    Returns:
        what the work gives, or the `Failure` that it ended with.
    """

    def tell(what: str, value: Any) -> None:
        import ray

        ray.get(board.say.remote(job, what, value))

    try:
        return work(opening.hub(FarReporter(tell)), partial(ask, board, job), *arguments)
    except AdapterHubError as error:
        return Failure(type(error).__name__, error.message, error.hint)


def ask(board: Any, job: int, what: str, value: Any) -> Any:
    """Tell the driver something and wait for its answer."""
    import ray

    ray.get(board.answered.remote(job))  # an answer to a worker that died in between
    ray.get(board.say.remote(job, what, value))
    while (answer := ray.get(board.answered.remote(job))) is None:
        time.sleep(0.05)
    return answer
