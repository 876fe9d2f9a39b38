"""One training of a trial, and how its adapter does row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import Accelerator

from adapterhub_cl import objectives
from adapterhub_cl.adapters.lora import new_adapter
from adapterhub_cl.context import Hub
from adapterhub_cl.learning.chosen_settings import FORMAT
from adapterhub_cl.learning.material import Material, with_limits
from adapterhub_cl.learning.order import TrainOrder, order_of
from adapterhub_cl.learning.teaching import lesson_of
from adapterhub_cl.progress import Passing
from adapterhub_cl.training import speed
from adapterhub_cl.training.learn import Learned, learn
from adapterhub_cl.types import Example


class TrialReporter(Passing):
    """Shows the progress of a trial, and none of its notes."""

    def note(self, text: str) -> None:
        pass


class TrialAdapter(NamedTuple):
    """The base with the adapter of a trial, and what it was taught.

    Attributes:
        material: the rows, with the task in the trial's prompt format.
    """

    model: Any
    learned: Learned
    material: Material


@contextmanager
def trained(
    hub: Hub,
    order: TrainOrder,
    material: Material,
    settings: Mapping[str, Any],
    on_epoch: Callable[[Mapping[str, float]], None] | None = None,
    run: Path | None = None,
) -> Iterator[TrialAdapter]:
    """The base with an adapter that was trained with these settings; no version is stored.

    Args:
        settings: beside those of the order; with the prompt format where that is searched.
        run: a folder for checkpoints, to go on from if it has one; None keeps none.
        on_epoch: called with the figures on the rows held out after each epoch; what it raises ends the training.
    """
    form = settings.get(FORMAT, material.task.prompt_format)
    further = {key: value for key, value in settings.items() if key != FORMAT}
    own = order_of(hub.registry, replace(order.request, settings={**order.request.settings, **further}))
    base, objective = hub.base, objectives.of(hub.registry.base)
    material = in_format(hub, material, own, form)
    with new_adapter(base, own.settings, objective.task_type, tasks=[material.task]) as model:
        learned = learn(
            model,
            base,
            objective,
            own.strategy,
            lesson_of(own, material),
            own.settings,
            run=run,
            chosen=None if run is None else speed.stored(run),
            on_speed=lambda choice: None if run is None else speed.store(run, choice),
            accelerator=Accelerator(cpu=base.device.type == "cpu"),
            reporter=TrialReporter(hub.reporter),
            on_epoch=on_epoch,
        )
        yield TrialAdapter(model, learned, material)


def in_format(hub: Hub, material: Material, order: TrainOrder, prompt_format: str) -> Material:
    """The material with its task in another prompt format, whose prompts may be longer or shorter."""
    task = material.task
    if prompt_format == task.prompt_format:
        return material
    return with_limits(replace(material, task=replace(task, prompt_format=prompt_format)), hub.base, order.settings)


def row_scores(hub: Hub, found: TrialAdapter, rows: Sequence[Example]) -> list[float]:
    """How a trial's adapter does on each row: of a choice task 1 where it is right, else 0; of others minus the loss
    of an answer token (nats)."""
    base, task, model, length = hub.base, found.material.task, found.model, int(found.learned.facts["max_length"])
    objective = objectives.of(hub.registry.base)
    with base.autocast(), hub.reporter.piece("rows held out", len(rows)) as advance:
        if task.kind == "choice":
            answers = objective.predict(model, base.tokenizer, task, rows, max_length=length, progress=advance)
            return [float(a.text == row.answer) for a, row in zip(answers, rows, strict=True)]
        encode = objective.tokeniser(base.tokenizer, task, length)
        tokens = [encode(row) for row in rows]
        sums = objective.perplexities(model, tokens, base.tokenizer.pad_token_id, progress=advance)
        return [-total / max(1, count) for total, count in sums]
