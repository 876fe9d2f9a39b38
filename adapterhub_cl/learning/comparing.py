"""One stream under several strategies and seeds: each in a hub of its own, all on one loaded base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from adapterhub_cl.context import Hub
from adapterhub_cl.errors import HubError, UsageError
from adapterhub_cl.evaluation.gate import limit_of
from adapterhub_cl.evaluation.matrix import AccuracyMatrix
from adapterhub_cl.learning.stream_file import read_stream
from adapterhub_cl.learning.streams import StreamPlan, run
from adapterhub_cl.registry import Registry
from adapterhub_cl.training.runs import acquire, held

FOLDER = "streams"


def run_all(
    hub: Hub,
    file: str | Path,
    strategies: Sequence[str],
    seeds: Sequence[int],
    options: Mapping[str, Any],
    max_forgetting: float,
    settings: Mapping[str, Any],
    asked: Mapping[str, Any],
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
    if len(plans) == 1:
        with held(_alone(main.path, plans[0])):
            return [run(hub, plans[0])]
    found: list[AccuracyMatrix] = []
    for plan in plans:
        place = main.path / FOLDER / stream.name / plan.label
        with held(_alone(place, plan)):
            found.append(run(replace(hub, registry=_own_hub(place, main)), plan))
    alone = {
        plan.seed: tuple(one.rows[k][k] for k in range(len(one.rows)))
        for plan, one in zip(plans, found, strict=True)
        if plan.strategy == "isolated"
    }
    several = len({plan.seed for plan in plans}) > 1
    return [
        replace(one, alone=alone.get(plan.seed, ()), seed=plan.seed if several else None)
        for plan, one in zip(plans, found, strict=True)
    ]


def _own_hub(place: Path, of: Registry) -> Registry:
    """The hub of one plan, made on first use."""
    try:
        registry = Registry.open(place)
    except HubError:
        registry = Registry.create(place, of.base)
    if registry.base.fingerprint != of.base.fingerprint:
        raise HubError(f"the hub at {place} is of another base", "remove it, or name the stream differently")
    return registry


def _alone(place: Path, plan: StreamPlan) -> FileLock:
    """One process at a time teaches a stream to a hub.

    Raises:
        TrainingError: another one is at it.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    taken = f"the stream {plan.stream.name} is being taught to {place} by another process"
    return acquire(place.parent / f".{place.name}.stream.lock", taken, "wait for it")
