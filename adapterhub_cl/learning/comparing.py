"""One stream under several strategies and seeds: each in a hub of its own, all on one loaded base, or spread over the
workers of a Ray cluster.

On a cluster the workers teach, and then the same code as without one reads what they published: so the result, and what
is refused, cannot differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from adapterhub_cl.context import Hub
from adapterhub_cl.errors import AdapterHubError, GateRefused, HubError, TrainingInterrupted, UsageError
from adapterhub_cl.evaluation.gate import limit_of
from adapterhub_cl.evaluation.matrix import AccuracyMatrix
from adapterhub_cl.learning.order import order_of
from adapterhub_cl.learning.stream_file import read_stream
from adapterhub_cl.learning.streams import StreamPlan, run
from adapterhub_cl.progress import Reporter
from adapterhub_cl.registry import Registry
from adapterhub_cl.spreading.spread_options import LOCAL
from adapterhub_cl.training.runs import acquire, held

FOLDER = "streams"
GIVEN_UP = 120.0  # seconds for a worker that Ray has given up to let go of its hub


def run_all(
    hub: Hub,
    file: str | Path,
    strategies: Sequence[str],
    seeds: Sequence[int],
    options: Mapping[str, Any],
    max_forgetting: float,
    settings: Mapping[str, Any],
    asked: Mapping[str, Any],
    on: str = LOCAL,
) -> list[AccuracyMatrix]:
    """See `AdapterHub.stream`."""
    main, stream = hub.registry, read_stream(file)
    if not strategies or not seeds:
        raise UsageError("a stream needs at least one strategy and one seed", "--strategy replay --seeds 0,1,2")
    limit_of(main, max_forgetting)
    plans = []
    for strategy in dict.fromkeys(strategies):
        mine = {key: value for key, value in options.items() if key.partition(".")[0] in strategy.split("+")}
        for seed in dict.fromkeys(seeds):
            plans.append(StreamPlan(stream, strategy, mine, seed, settings, asked, max_forgetting))
    unused = [k for k in options if not any(k in plan.options for plan in plans)]
    if unused:
        raise UsageError(
            f"--set {unused[0]} does not belong to any of the strategies", f"they are: {', '.join(strategies)}"
        )
    for plan in plans:  # a bad name or setting is told before anything is trained, or a folder is called after it
        for task in stream.tasks:
            order_of(main, plan.request(task, {}))
    several = len(plans) > 1
    if on != LOCAL:
        _spread(hub, plans)
        hub = replace(hub, reporter=Reporter())  # all is done already
    if not several:
        with held(_alone(main.path, plans[0])):
            return [run(hub, plans[0])]
    found: list[AccuracyMatrix] = []
    for plan in plans:
        place = _place(main, plan)
        with held(_alone(place, plan)):
            found.append(run(replace(hub, registry=_own_hub(place, main)), plan))
    alone = {
        plan.seed: tuple(one.rows[k][k] for k in range(len(one.rows)))
        for plan, one in zip(plans, found, strict=True)
        if plan.strategy == "isolated"
    }
    seeded = len({plan.seed for plan in plans}) > 1
    return [
        replace(one, alone=alone.get(plan.seed, ()), seed=plan.seed if seeded else None)
        for plan, one in zip(plans, found, strict=True)
    ]


def _spread(hub: Hub, plans: Sequence[StreamPlan]) -> None:
    """Have the workers of a Ray cluster teach the streams, each in a task of its own.

    Raises:
        AdapterHubError: the first error of a run, once all others have come to their end. What the gate refuses is in
            the hub, and is told by whoever reads it.
    """
    from adapterhub_cl.spreading.ray_cluster import connected

    problems: dict[int, AdapterHubError] = {}
    try:
        with connected(hub) as cluster, hub.reporter.piece("streams", len(plans)) as advance:
            for plan in plans:
                cluster.submit(f"{plan.strategy}, seed {plan.seed}", teach_far, plan, len(plans) > 1)
            while cluster.running:
                for said in cluster.news():
                    advance(1)
                    if said.what == "failed" and not isinstance(said.value, GateRefused):
                        problems[said.job] = said.value
                        plan = plans[said.job]
                        hub.reporter.note(f"[{plan.strategy}, seed {plan.seed}] failed: {said.value.message}")
    except KeyboardInterrupt as error:
        raise TrainingInterrupted(
            "stopped; what each run has learned was kept", "the same command goes on where they stopped"
        ) from error
    if problems:
        raise problems[min(problems)]


def teach_far(hub: Hub, ask: Any, plan: StreamPlan, several: bool) -> None:
    """Teach one stream in a worker; called again, it goes on where it was stopped."""
    main = hub.registry
    place = _place(main, plan) if several else main.path
    with held(_alone(place, plan, GIVEN_UP)):
        run(replace(hub, registry=_own_hub(place, main)) if several else hub, plan)


def _place(main: Registry, plan: StreamPlan) -> Path:
    return main.path / FOLDER / plan.stream.name / plan.label


def _own_hub(place: Path, of: Registry) -> Registry:
    """The hub of one plan, made on first use."""
    try:
        registry = Registry.open(place)
    except HubError:
        registry = Registry.create(place, of.base)
    if registry.base.fingerprint != of.base.fingerprint:
        raise HubError(f"the hub at {place} is of another base", "remove it, or name the stream differently")
    return registry


def _alone(place: Path, plan: StreamPlan, seconds: float = 0.0) -> FileLock:
    """One process at a time teaches a stream to a hub.

    Args:
        seconds: to wait for another one.

    Raises:
        TrainingError: another one is at it.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    taken = f"the stream {plan.stream.name} is being taught to {place} by another process"
    return acquire(place.parent / f".{place.name}.stream.lock", taken, "wait for it", seconds)
