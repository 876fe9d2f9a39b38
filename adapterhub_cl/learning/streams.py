"""Streams: a sequence of tasks taught one after another, each stage measured on every task met so far.

Nothing is kept beside the hub: a stage's version says in its manifest which stage of which stream it is, and what was
measured before it; so a stream that was stopped goes on at the task where it stopped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from adapterhub_cl import objectives
from adapterhub_cl.context import Hub
from adapterhub_cl.data.columns import Examples, read_examples
from adapterhub_cl.data.label_forms import for_task, with_known_labels
from adapterhub_cl.data.reading import absolute
from adapterhub_cl.data.tasks import check_answers
from adapterhub_cl.errors import DataError, UsageError
from adapterhub_cl.evaluation.gate import as_share
from adapterhub_cl.evaluation.matrix import AccuracyMatrix
from adapterhub_cl.evaluation.probes import Probe, score, score_version
from adapterhub_cl.evaluation.stages import matrix_of
from adapterhub_cl.learning.described import described_task
from adapterhub_cl.learning.order import finished, order_of, refusal
from adapterhub_cl.learning.request import TrainRequest
from adapterhub_cl.learning.stream_file import StreamFile, StreamTask, check_leaks, digest
from adapterhub_cl.learning.teaching import teach
from adapterhub_cl.registry import Registry
from adapterhub_cl.strategies import Combined, build
from adapterhub_cl.training.runs import Run
from adapterhub_cl.types import AdapterRecord


@dataclass(frozen=True)
class StreamPlan:
    """How a stream is taught.

    Attributes:
        options: of the strategy, `NAME.OPTION` → value.
        settings: of every task, under what the file says of it.
        asked: further fields of `Request` for every task, such as `replay`; the file's win.
        max_forgetting: 1 lets everything pass.
    """

    stream: StreamFile
    strategy: str = "isolated"
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    asked: Mapping[str, Any] = field(default_factory=dict)
    max_forgetting: float = 1.0

    @property
    def id(self) -> str:
        """Stands for everything that decides the outcome: two plans of one id give the same versions."""
        parts = [digest(self.stream), self.strategy, self.seed, self.max_forgetting]
        rows = [sorted(d.items()) for d in (self.options, self.settings, self.asked)]
        return hashlib.sha256(json.dumps([parts, rows], default=str).encode()).hexdigest()

    @property
    def label(self) -> str:
        """A folder's name for the hub of one of several plans."""
        return f"{self.strategy.replace('+', '-')}-seed{self.seed}-{self.id[:6]}"

    def request(self, task: StreamTask, told: Mapping[str, Any]) -> TrainRequest:
        """The request of one stage."""
        given: dict[str, Any] = {**self.asked, **task.options}
        if "labels" in given:
            given["labels"] = tuple(given["labels"])
        settings = {**self.settings, **task.settings, "seed": self.seed}
        return TrainRequest(
            "add-task",
            task.name,
            absolute(task.data),
            eval=absolute(task.eval) if task.eval else "",
            strategy=self.strategy,
            options=dict(self.options),
            settings=settings,
            max_forgetting=self.max_forgetting,
            stream=dict(told),
            **given,
        )


def read(stream: StreamFile) -> dict[str, tuple[Examples, Examples | None]]:
    """All data of a stream.

    Raises:
        DataError: something cannot be read, or a training row stands in an evaluation set.
    """
    found = {}
    for task in stream.tasks:
        columns, instruction = task.options.get("columns"), str(task.options.get("instruction") or "")
        train = read_examples(task.data, columns, instruction)
        held = read_examples(task.eval, columns, instruction, layout=train.read) if task.eval else None
        found[task.name] = (train, held)
    check_leaks(stream, found)
    return found


def run(hub: Hub, plan: StreamPlan) -> AccuracyMatrix:
    """Teach the stream to a hub, from where it stopped if it was begun.

    Raises:
        GateRefused: a stage forgot too much; the stages before it stay.
        AdapterHubError: any of its kinds; finished stages stay and the same call goes on after them.
    """
    data = read(plan.stream)
    strategy = build(plan.strategy, plan.options)
    for task in plan.stream.tasks:  # whatever is wrong with any task is told before the first is trained
        request = plan.request(task, {})
        order_of(hub.registry, request)
        train, held = data[task.name]
        described = described_task(request, with_known_labels(request.labels, train), hub.registry.base)
        if held is not None and held.layout != "raw text":
            check_answers(described, for_task(described, held))
    _refuse_known(hub.registry, plan)
    done: list[AdapterRecord] = []
    seen = ""
    for number, task in enumerate(plan.stream.tasks, 1):
        where = f"stage {number} of {len(plan.stream.tasks)}, {task.name} ({plan.strategy}, seed {plan.seed})"
        parts = [part.sha256 for part in data[task.name] if part is not None]
        seen = hashlib.sha256("\n".join([seen, *parts]).encode()).hexdigest()
        record = find_stage(hub.registry, plan.id, number, task.name)
        if record is not None and record.manifest["stream"].get("data", seen) != seen:
            raise DataError(
                f"the data of {task.name}, or of a task before it, have changed since {record.ref} was taught",
                "put them back, or give the stream another `name:` to teach it again from the start",
            )
        if record is None:
            unfinished = [
                r
                for r in Run.unfinished(hub.registry.runs_dir, "add-task", task.name)
                if (r.request.get("stream") or {}).get("id") == plan.id
            ]
            hub.reporter.note(f"{where}{': continuing' if unfinished else ''}")
            if unfinished:
                request, begun = TrainRequest.from_json(unfinished[0].request), unfinished[0]
            else:
                _check_place(hub.registry, plan, strategy, done)
                told = _told(hub, plan, number, done, *data[task.name], strategy.shared)
                told["data"] = seen
                request, begun = plan.request(task, told), None
            record = None if begun is None else finished(hub.registry, request, begun, hub.reporter)
            record = record or teach(hub, order_of(hub.registry, request), run=begun)
        else:
            hub.reporter.note(f"{where}: done already as {record.ref}")
        if record.status == "rejected":
            refused = refusal(record, plan.strategy)
            refused.hint = f"the stream ends here; {refused.hint}"
            raise refused
        done.append(record)
    return matrix_of(done, plan.strategy)


def _refuse_known(registry: Registry, plan: StreamPlan) -> None:
    """Raise where the hub has learned a task of the stream otherwise: the matrix would be of something else."""
    names = {task.name for task in plan.stream.tasks}
    for record in registry.adapters(all_versions=True, include_rejected=False):
        other = (record.manifest.get("stream") or {}).get("id") != plan.id
        if record.name in names and record.status == "active" and other:
            raise UsageError(
                f"this hub has learned {record.name} already ({record.ref}), and not as a stage of this very stream",
                "teach the stream to a fresh hub, or name several --strategy or --seeds: each then gets its own",
            )


def _check_place(registry: Registry, plan: StreamPlan, strategy: Combined, done: Sequence[AdapterRecord]) -> None:
    """Raise where something was learned between two stages that the next one would go on from."""
    if not done or strategy.makes == "fresh":
        return
    active = [r for r in registry.adapters(include_rejected=False) if r.status == "active"]
    newest = max(active, key=lambda r: r.created_at)
    if newest.ref != done[-1].ref:
        raise UsageError(
            f"{newest.ref} was made after {done[-1].ref}, the last stage: the stream would go on from it",
            "teach the stream to a fresh hub",
        )


def find_stage(registry: Registry, stream: str, number: int, name: str) -> AdapterRecord | None:
    """The version that a stage of a stream has published already."""
    for record in registry.adapters(all_versions=True):
        told = record.manifest.get("stream") or {}
        if record.name == name and (told.get("id"), told.get("stage")) == (stream, number):
            return record
    return None


def _told(
    hub: Hub,
    plan: StreamPlan,
    number: int,
    done: Sequence[AdapterRecord],
    data: Examples,
    held: Examples | None,
    shared: bool,
) -> dict[str, Any]:
    """What stands in the manifest of a stage: which it is, and what the base and the version before it score on its
    task without having learned it (for forward transfer)."""
    told: dict[str, Any] = {"id": plan.id, "name": plan.stream.name, "stage": number, "strategy": plan.strategy}
    if held is None or not objectives.of(hub.registry.base).writes:  # an encoder has no head for what it never learned
        return told
    request = plan.request(plan.stream.tasks[number - 1], {})
    length = request.training().max_length
    task = replace(described_task(request, data, hub.registry.base), max_length=length)
    probe = Probe(task, held.examples, held.source, length, held.sha256)
    told["base"] = as_share(
        task.metric, score(hub.base.model, hub.base, probe, hub.reporter, "measuring the base").value
    )
    if shared and done:
        ahead = score_version(hub, done[-1], probe)
        told["ahead"] = as_share(task.metric, ahead.value)
    else:
        told["ahead"] = told["base"]
    return told
