"""The trials of a search on the workers of a Ray cluster.

The driver keeps the study, draws settings and decides after each epoch whether a trial goes on. A worker trains one
trial with checkpoints in a folder of its settings; if it dies, another one goes on from there. As many trials run as
fit, so a later one is drawn knowing less than in one process; running trials count as bad ones (Optuna's constant
liar), so that neighbours are not drawn twice. The figures of given settings are those of one process.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub_cl.context import Hub
from adapterhub_cl.errors import DataError, TrainingError, TrainingInterrupted
from adapterhub_cl.learning.order import TrainOrder, order_of
from adapterhub_cl.learning.request import TrainRequest
from adapterhub_cl.registry import storage_errors
from adapterhub_cl.spreading.ray_cluster import RayCluster, connected
from adapterhub_cl.training import checkpoints
from adapterhub_cl.tuning.tune_parts import Parts, parts_of
from adapterhub_cl.tuning.tune_search import Confirmation, Search
from adapterhub_cl.tuning.tune_trials import row_scores, trained

if TYPE_CHECKING:
    import optuna

Figures = Mapping[str, float]


class _Hopeless(Exception):
    """The driver ends this trial early."""


@dataclass
class _Running:
    """A trial that a worker trains."""

    trial: optuna.Trial
    settings: dict[str, Any]
    started: float
    figures: dict[int, Figures] = field(default_factory=dict)  # by epoch, from 1: a replaced worker tells some again
    pruned: bool = False

    @property
    def told(self) -> list[Figures]:
        return [self.figures[epoch] for epoch in sorted(self.figures)]


def search_on_ray(search: Search, folder: Path) -> dict[str, Any]:
    """The search with its trials and confirmations on a cluster; see `Search.__call__`.

    Args:
        folder: of the run, which every node must see.
    """
    import optuna

    try:
        with connected(search.hub) as cluster:
            seed = (search.settings.seed + 7919 * len(search.study.trials)) % 2**32
            search.study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=6, constant_liar=True)
            search.begin()
            _trials(search, cluster, folder)
            return search.outcome(lambda wanted: _confirm(search, cluster, folder, wanted))
    except KeyboardInterrupt as error:  # the study still says which trials were running: they are tried again
        raise TrainingInterrupted("stopped; what was tried so far was kept") from error


def _trials(search: Search, cluster: RayCluster, folder: Path) -> None:
    running: dict[int, _Running] = {}
    with search.hub.reporter.piece("trials", search.options.trials) as advance:
        advance(search.done())
        more = True
        while more or running:
            while more and len(running) < cluster.slots and (more := search.more(search.done() + len(running))):
                trial = search.study.ask()
                settings = search.space.draw(trial)
                job = cluster.submit(f"trial {trial.number}", try_settings, *_told(search, folder, settings))
                running[job] = _Running(trial, settings, time.monotonic())
            for said in cluster.news():
                one = running[said.job]
                if said.what == "epoch":
                    epoch, figures = said.value
                    if epoch not in one.figures:
                        one.figures[epoch] = figures
                        one.pruned = search.hopeless(one.trial, one.settings, one.told)
                    cluster.answer(said.job, "stop" if one.pruned else "go on")
                    continue
                if said.what == "failed" and (type(said.value) is not TrainingError or search.is_default(one.settings)):
                    raise said.value  # not the settings' fault, or the defaults themselves fail
                state = "fail" if said.what == "failed" else "pruned" if one.pruned else "complete"
                reason = said.value.message if state == "fail" else ""
                search.ended(one.trial, one.settings, one.told, state, reason, time.monotonic() - one.started)
                shutil.rmtree(_place(folder, one.settings), ignore_errors=True)
                del running[said.job]
                advance(1)
                more = True


def _confirm(search: Search, cluster: RayCluster, folder: Path, wanted: Sequence[Confirmation]) -> None:
    jobs, problems = {}, []
    for one in wanted:
        name = f"{one.which}, seed {one.settings['seed']}"
        jobs[cluster.submit(name, confirm_settings, *_told(search, folder, one.settings))] = one
    with search.hub.reporter.piece("confirming", len(jobs)) as advance:
        while cluster.running:
            for said in cluster.news():
                if said.what == "failed":
                    problems.append(said.value)
                else:
                    search.confirmed(jobs[said.job], said.value)
                    advance(1)
    if problems:
        raise problems[0]


def _told(search: Search, folder: Path, settings: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a worker is told of a training: request, hash of the data, settings, folder for checkpoints."""
    sha256 = search.parts.material.data.sha256
    return search.order.request.to_json(), sha256, dict(settings), _place(folder, settings)


def _place(folder: Path, settings: Mapping[str, Any]) -> Path:
    told = json.dumps(sorted(settings.items()), default=str)
    return folder.resolve() / f"trial-{hashlib.sha256(told.encode()).hexdigest()[:16]}"


def _opened(hub: Hub, request: Mapping[str, Any], sha256: str, place: Path) -> tuple[TrainOrder, Parts]:
    """The order and its rows, read here; the folder for checkpoints is made.

    Raises:
        DataError: the data that this node sees are others than the driver's.
    """
    order = order_of(hub.registry, TrainRequest.from_json(request))
    parts = parts_of(hub, order)
    if parts.material.data.sha256 != sha256:
        raise DataError(f"a node sees other data in {request['data']}", "every node must see the same file")
    with storage_errors(place):
        place.mkdir(exist_ok=True)
    return order, parts


def try_settings(
    hub: Hub, ask: Any, request: Mapping[str, Any], sha256: str, settings: Mapping[str, Any], place: Path
) -> None:
    """Train one trial in a worker, from its checkpoint if it has one; the driver may end it after an epoch."""
    order, parts = _opened(hub, request, sha256, place)
    stored = checkpoints.load(place)
    epochs = 0

    def on_epoch(found: Figures) -> None:
        nonlocal epochs
        epochs += 1
        if ask("epoch", (epochs, dict(found))) == "stop":
            raise _Hopeless

    held = {**settings, "dev_share": parts.share}
    with suppress(_Hopeless):
        for row in stored.state["at"]["history"] if stored else ():
            on_epoch({key.removeprefix("dev_"): row[key] for key in row if key.startswith("dev_")})
        with trained(hub, order, parts.material, held, on_epoch, place):
            pass


def confirm_settings(
    hub: Hub, ask: Any, request: Mapping[str, Any], sha256: str, settings: Mapping[str, Any], place: Path
) -> list[float]:
    """Train settings in a worker and score each row for the end; see `row_scores`."""
    order, parts = _opened(hub, request, sha256, place)
    with trained(hub, order, parts.material, settings, run=place) as found:
        return row_scores(hub, found, parts.confirmed)
