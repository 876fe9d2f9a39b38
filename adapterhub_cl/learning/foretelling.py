"""The forecast of a training: which tasks it is about, when it is made, and the training that it stops.

It is made during the training itself, so that nothing is computed twice, and kept in the run's folder, so that a run
that is resumed has the same one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator

from adapterhub_cl.context import Hub
from adapterhub_cl.evaluation.gate import as_share
from adapterhub_cl.evaluation.probes import Probe
from adapterhub_cl.forecasting.early_signs import MEASURED, ROWS, EarlierTask, EarlySigns, NewRows
from adapterhub_cl.forecasting.expectation import Signs, fitted
from adapterhub_cl.forecasting.forecast import Forecast, TaskForecast, metric_of_share
from adapterhub_cl.learning.material import Material
from adapterhub_cl.learning.order import TrainOrder, what_keeps_more
from adapterhub_cl.learning.some_rows import some_preferences, some_rows
from adapterhub_cl.registry import seals, storage_errors
from adapterhub_cl.registry.files import atomic_write_text
from adapterhub_cl.samples.of_task import samples_of
from adapterhub_cl.strategies import Stage
from adapterhub_cl.training.processes import everyones
from adapterhub_cl.types import REWARD, Evaluation, Task

FILE = "forecast.json"


class Foreteller:
    """Makes the forecast of one run.

    Args:
        probes: what each task is measured on, and the score of the version that answers for it now.
        run: the run's folder.

    Attributes:
        made: the forecast, as soon as there is one.
    """

    def __init__(
        self,
        hub: Hub,
        order: TrainOrder,
        material: Material,
        probes: Sequence[tuple[Probe, Evaluation, str]],
        run: Path,
        accelerator: Accelerator,
    ) -> None:
        self.hub, self.order, self.material, self.accelerator = hub, order, material, accelerator
        self.probes = {probe.task.name: probe for probe, _, _ in probes}
        self.scores = {
            probe.task.name: (metric_of_share(was.metric), as_share(was.metric, was.value)) for probe, was, _ in probes
        }
        self.file = run / FILE
        self.untold: list[TaskForecast] = []
        self.made = everyones(_stored(self.file), accelerator)
        if self.made is None and (why := self._nothing_to_lose()):
            self._keep(Forecast(order.limit, reason=why))

    def watch(self) -> EarlySigns | None:
        """What looks on while the run trains; None where the forecast is made.

        Raises:
            GateRefused: the run was stopped by its forecast before.
        """
        if self.made is not None:
            self._tell()
            return None
        earlier = [found for name in self.material.takes_over if (found := self._earlier(name)) is not None]
        if not earlier:
            self._keep(Forecast(self.order.limit, tuple(self.untold), reason=self._why_untold()))
            self._tell()
            return None
        material, settings = self.material, self.order.settings
        task = material.task.as_text() if material.raw else material.task
        seed = f"forecast {settings.seed}"
        new = some_rows(self.hub.base, task, material.data.examples, settings, ROWS, seed)
        reviewed = self.order.strategy.what_is_read == "samples"
        return EarlySigns(self.hub.base, earlier, NewRows(task, *new), reviewed, self._foretell, self.hub.reporter)

    def _foretell(self, stage: Stage, signs: Mapping[str, Signs]) -> None:
        model = fitted()
        told = [TaskForecast(name, *self.scores[name], model.of(found), found) for name, found in signs.items()]
        order = {name: k for k, name in enumerate(self.material.takes_over)}
        tasks = sorted([*told, *self.untold], key=lambda one: order[one.task])
        forecast = Forecast(self.order.limit, tuple(tasks), stage.step, stage.steps, model.error)
        self._keep(everyones(forecast, self.accelerator))
        self._tell()

    def _tell(self) -> None:
        assert self.made is not None
        for line in self.made.lines():
            self.hub.reporter.note(line)
        name = self.material.task.name
        if name in self.hub.registry.serving():
            self.hub.reporter.note(
                f"note: the forecast is about other tasks; what {name} itself loses by the new rows, the gate measures "
                "at the end"
            )
        if self.made.refused:
            request = self.order.request
            again = f"cl-adapter {request.verb} {request.name} DATA"
            raise self.made.refusal(again, what_keeps_more(request.strategy))

    def _keep(self, forecast: Forecast) -> None:
        self.made = forecast
        if self.accelerator.is_main_process:
            row = forecast.to_json()
            with storage_errors(self.file):
                atomic_write_text(self.file, json.dumps({**row, seals.KEY: seals.of_json(row)}) + "\n")

    def _nothing_to_lose(self) -> str:
        """Why no earlier task can lose anything, or nothing can be told of any; empty where there is something."""
        strategy, material = self.order.strategy, self.material
        if strategy.what_is_read == "data":
            return (
                f"none is made, because {strategy.name} learns the data of every task again; forecasts are made for "
                "what continues from an older version"
            )
        if material.takes_over:
            return ""
        others = [name for name in self.hub.registry.serving() if name != material.task.name]
        if not others:
            return "there is no other task that could be forgotten"
        return (
            f"no other task can be forgotten, the expected drop is 0: the new version answers for {material.task.name} "
            "alone, and what answers for the others stays as it is"
        )

    def _earlier(self, name: str) -> EarlierTask | None:
        """One task with its samples; where there is something missing, it is kept as untold."""
        if name not in self.scores:
            self.untold.append(TaskForecast(name, reason="nothing is left to measure it on"))
            return None
        metric, before = self.scores[name]
        samples = samples_of(self.hub.registry, name)
        rows, settings = samples.examples if samples is not None else (), self.order.settings
        task = self.hub.registry.task(name)
        kept = some_rows(self.hub.base, task, rows, settings, ROWS, f"forecast {settings.seed}")
        if not kept[1]:
            self.untold.append(TaskForecast(name, metric, before, reason="it keeps no replay samples"))
            return None
        probe, draw = self.probes[name], f"forecast {settings.seed}"
        if task.metric == REWARD:  # compared with rows of which no loss is taken: the disliked ones
            rows = some_preferences(probe.examples, MEASURED, draw)
            _, held = some_rows(self.hub.base, task, rows, settings, MEASURED, draw)
        else:
            rows, held = some_rows(self.hub.base, task, probe.examples, settings, MEASURED, draw)
        if not held:
            self.untold.append(TaskForecast(name, metric, before, reason="no row that it is measured on can be used"))
            return None
        whole = len(rows) == len(probe.examples)
        probe = probe if whole else replace(probe, examples=rows)
        return EarlierTask(task, *kept, before, _chance(task), probe, held, whole)

    def _why_untold(self) -> str:
        return "none can be made: " + "; ".join(f"{one.task}: {one.reason}" for one in self.untold)


def _chance(task: Task) -> float:
    return 1.0 / max(1, len(task.labels)) if task.kind == "choice" else 0.0


def _stored(file: Path) -> Forecast | None:
    """The forecast that the run made before; None where there is none, or it is damaged: then it is made again, if the
    run has not passed the place."""
    try:
        row = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(row, dict) or seals.KEY not in row or seals.is_broken_json(row):
            return None
        return Forecast.from_json(row)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
