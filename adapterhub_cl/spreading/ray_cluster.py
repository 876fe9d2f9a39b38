"""The driver's side of Ray: a cluster is found, pieces of work are submitted, and what workers say is passed on."""

from __future__ import annotations

import io
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any

from adapterhub_cl import errors
from adapterhub_cl.context import Hub
from adapterhub_cl.errors import (
    AdapterHubError,
    ServerError,
    TrainingError,
    TrainingInterrupted,
    UsageError,
    first_line,
)
from adapterhub_cl.spreading.spread_options import RAY, check_place
from adapterhub_cl.spreading.worker_side import Board, Failure, Opening, carry_out, own_version

VARIABLE = "RAY_ADDRESS"
RETRIES = 8  # deaths of its worker that one piece of work survives
PATIENCE = 5.0  # seconds for a cluster's port to answer
STOPPING = 60.0  # seconds for workers to write their checkpoints when the user stops the command
TICK = 0.2  # seconds between two looks at what workers said


@dataclass(frozen=True)
class News:
    """What has happened to a piece of work.

    Attributes:
        job: its number, as `submit` gave it.
        what: `done`, `failed` (value: the error), or a question of the work itself, which waits for `answer`.
    """

    job: int
    what: str
    value: Any


class RayCluster:
    """A cluster that pieces of work are submitted to. Made by `connected`.

    Attributes:
        slots: pieces of work that fit side by side.
    """

    def __init__(self, hub: Hub, opening: Opening) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self.hub, self.opening = hub, opening
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self.needs = needs_of(opening, nodes)
        self.slots = sum(_fit(node, self.needs) for node in nodes)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.board = ray.remote(Board).options(num_cpus=0, scheduling_strategy=here).remote()
        self.task = ray.remote(carry_out).options(max_retries=RETRIES, **self.needs)
        self.jobs: list[tuple[str, Callable[..., Any], tuple[Any, ...]]] = []
        self.running: dict[Any, int] = {}
        self.stops: dict[int, int] = {}

    def submit(self, name: str, work: Callable[..., Any], *arguments: Any) -> int:
        """Have `work(hub, ask, *arguments)` carried out by a worker.

        Args:
            name: for messages.
            work: a function that can be imported on every node. `ask(what, value)` tells the driver something and
                waits for its `answer`.

        Returns:
            the number of this piece of work.
        """
        self.jobs.append((name, work, arguments))
        self._start(len(self.jobs) - 1)
        return len(self.jobs) - 1

    def _start(self, job: int) -> None:
        _, work, arguments = self.jobs[job]
        self.running[self.task.remote(work, self.opening, self.board, job, arguments)] = job

    def answer(self, job: int, value: Any) -> None:
        """Answer what a piece of work asked; not None."""
        self.board.answer.remote(job, value)

    def news(self) -> Iterator[News]:
        """What has happened since the last call; waits a moment for it. Notes go to the reporter."""
        import ray

        ready, _ = ray.wait(list(self.running), timeout=TICK) if self.running else ([], [])
        for job, what, value in ray.get(self.board.take.remote()):
            if what == "note":
                self.hub.reporter.note(f"[{self.jobs[job][0]}] {value}")
            else:
                yield News(job, what, value)
        for reference in ready:
            job = self.running.pop(reference)
            found = self._result(job, reference)
            if isinstance(found, TrainingInterrupted) and self.stops.get(job, 0) < RETRIES:
                # A node that is drained asks its workers to stop: the run goes on elsewhere.
                self.stops[job] = self.stops.get(job, 0) + 1
                self._start(job)
            elif isinstance(found, AdapterHubError):
                yield News(job, "failed", found)
            else:
                yield News(job, "done", found)

    def _result(self, job: int, reference: Any) -> Any:
        """What a piece of work gave, or the error that it ended with."""
        import ray

        name = self.jobs[job][0]
        try:
            found = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            cause = error.cause if isinstance(getattr(error, "cause", None), Exception) else error
            missing = isinstance(cause, ImportError)
            hint = "install adapterhub-cl on every node" if missing else "--debug shows all of it"
            found = TrainingError(f"{name}: {type(cause).__name__}: {first_line(cause)}", hint)
            found.__cause__ = error
        except ray.exceptions.RayError as error:
            found = TrainingError(
                f"{name} was lost with its worker {RETRIES + 1} times: {first_line(error)}",
                "the same command goes on where it stopped, if its node has enough memory",
            )
        return rebuilt(found) if isinstance(found, Failure) else found

    def stop(self) -> None:
        """Ask every worker to write its checkpoint and stop, and wait for that."""
        import ray

        if self.running:
            for reference in self.running:
                ray.cancel(reference, force=False)
            ray.wait(list(self.running), num_returns=len(self.running), timeout=STOPPING)


@contextmanager
def connected(hub: Hub) -> Iterator[RayCluster]:
    """The cluster that RAY_ADDRESS names, the one that runs on this machine, or a new one of this machine's cores.

    If the block is left by an error or by Ctrl-C, workers are asked to stop, and what they have learned is kept.

    Raises:
        UsageError: Ray is not installed, or no node is large enough.
        ServerError: the cluster cannot be reached.
    """
    check_place(RAY)
    import ray
    import torch

    if ray.is_initialized():
        raise UsageError("this process is connected to Ray already", "call ray.shutdown() before")
    registry = hub.registry
    opening = Opening(
        registry.path.resolve(), registry.base_path, hub.device, hub.dtype, torch.get_num_threads(), own_version()
    )
    check_address(os.environ.get(VARIABLE, ""))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray prints what happens to its workers to standard output, which belongs to the verb's answer.
    with redirect_stdout(_WithoutRay(sys.stdout)):
        try:
            context = ray.init(logging_level=logging.ERROR, log_to_driver=False, include_dashboard=False)
        except (Exception, SystemExit) as error:
            raise ServerError(f"Ray cannot be used: {first_line(error)}", "ray status shows the cluster") from error
        try:
            cluster = RayCluster(hub, opening)
            where = context.address_info["gcs_address"]
            hub.reporter.note(f"Ray at {where}: {cluster.slots} runs side by side, threads of each: {opening.threads}")
            try:
                yield cluster
            except BaseException:
                cluster.stop()
                raise
        finally:
            with redirect_stdout(io.StringIO()):  # what its threads had kept back
                ray.shutdown()


class _WithoutRay:
    """Standard output without what Ray's own threads print."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def write(self, text: str) -> int:
        own = threading.current_thread().name.startswith("ray_")
        return len(text) if own else int(self.inner.write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def check_address(address: str) -> None:
    """Raise where no cluster can be at an address; Ray itself would try for two minutes and then end the process.

    Raises:
        UsageError: it is not of the form HOST:PORT.
        ServerError: nothing answers there.
    """
    if not address or address in ("auto", "local"):
        return
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdecimal() or int(port) > 65535:
        raise UsageError(
            f"{VARIABLE}={address} is not HOST:PORT", "run the command on a node of the cluster, HOST:6379 is usual"
        )
    try:
        with socket.create_connection((host.strip("[]"), int(port)), PATIENCE):
            pass
    except OSError as error:
        raise ServerError(
            f"no Ray cluster answers at {VARIABLE}={address}: {error.strerror or error}",
            "ray start --head starts one; ray status says whether it runs",
        ) from error


def needs_of(opening: Opening, nodes: list[dict[str, float]]) -> dict[str, float]:
    """What one piece of work takes of a node, as Ray's options.

    Raises:
        UsageError: no node has that much.
    """
    if opening.device.startswith("cuda:"):
        raise UsageError(f"--device {opening.device}: Ray gives each run a GPU of its own", "use --device cuda")
    gpu = opening.device == "cuda" or (opening.device == "auto" and any(node.get("GPU", 0) >= 1 for node in nodes))
    needs: dict[str, float] = {"num_cpus": opening.threads, "num_gpus": int(gpu)}
    if not any(_fit(node, needs) for node in nodes):
        most = max((node.get("CPU", 0) for node in nodes), default=0)
        what = f"{opening.threads} cores" + (" and a GPU" if gpu else "")
        raise UsageError(
            f"a run takes {what}, and no node of the cluster has them (the most cores of one: {most:g})",
            f"OMP_NUM_THREADS={max(1, int(most))} before the command, or a larger node",
        )
    return needs


def _fit(node: dict[str, float], needs: dict[str, float]) -> int:
    """How many pieces of work a node holds at a time."""
    fit = int(node.get("CPU", 0) // needs["num_cpus"])
    return min(fit, int(node.get("GPU", 0) // needs["num_gpus"])) if needs["num_gpus"] else fit


def rebuilt(failure: Failure) -> AdapterHubError:
    """The error that a worker ended with; of a kind that cannot be rebuilt, the nearest above it."""
    kind = getattr(errors, failure.kind, TrainingError)
    if kind is errors.UnknownNameError:
        kind = UsageError
    found: AdapterHubError = kind(failure.message, failure.hint)
    return found
