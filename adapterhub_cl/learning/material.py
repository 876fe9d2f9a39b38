"""What a training order reads: its data, held-out data, task, parent and the parent's replay samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from adapterhub_cl import objectives, strategies
from adapterhub_cl.data import tokenise
from adapterhub_cl.data.columns import Examples, read_examples
from adapterhub_cl.data.guessing import LABELLED
from adapterhub_cl.data.label_forms import for_task, with_known_labels
from adapterhub_cl.data.reading import at_hand
from adapterhub_cl.data.tasks import (
    check_answers,
    check_labels_kept,
    find_leaks,
    find_outdated,
    updated_task,
)
from adapterhub_cl.errors import AdapterError, DataError, UsageError
from adapterhub_cl.evaluation.preference_scores import scorable
from adapterhub_cl.learning.described import described_task
from adapterhub_cl.learning.order import TrainOrder, refuse_with_preferences
from adapterhub_cl.learning.request import TrainRequest
from adapterhub_cl.registry import Registry
from adapterhub_cl.samples.kept import kept_samples
from adapterhub_cl.settings import TrainingSettings
from adapterhub_cl.strategies import Combined
from adapterhub_cl.types import DERIVED, REWARD, AdapterRecord, Example, Layout, Task

if TYPE_CHECKING:
    from adapterhub_cl.bases.loading import LoadedBase


@dataclass(frozen=True)
class PastTask:
    """What is left of an earlier task: its replay samples, or all its data.

    Attributes:
        record: the version beside which the samples are kept.
    """

    task: Task
    record: AdapterRecord
    examples: Sequence[Example]


@dataclass(frozen=True)
class Material:
    """What a request reads from files and from the hub.

    Attributes:
        parent: the version that the new one continues from or is stacked on.
        beneath: whether the parent stays frozen under the new adapter.
        review: the parent's own replay samples, where the task is the same.
        past: other tasks, for strategies that read them.
        takes_over: earlier tasks that the new version will answer for.
        outdated: samples of the same task that the new data answer otherwise; they are not in `review`.
        leaked: task → how many of its samples stand in the held-out data; they are in neither `review` nor `past`.
    """

    data: Examples
    held_out: Examples | None
    task: Task
    parent: AdapterRecord | None
    beneath: bool = False
    review: Sequence[Example] = ()
    past: Sequence[PastTask] = ()
    takes_over: Sequence[str] = ()
    outdated: Sequence[Example] = ()
    leaked: Mapping[str, int] = field(default_factory=dict)

    @property
    def origins(self) -> list[tuple[Task, strategies.Origin]]:
        """Every example of the other tasks, with its task and where it comes from."""
        return [
            (lesson.task, strategies.Origin(lesson.task.name, lesson.record.path, example))
            for lesson in self.past
            for example in lesson.examples
        ]

    @property
    def raw(self) -> bool:
        """Raw text for an adapter whose task is another one."""
        return self.data.layout == "raw text" and self.task.kind != "text"


def prepare(
    registry: Registry,
    order: TrainOrder,
    *,
    parent: str | None = None,
    sha256: str | None = None,
) -> Material:
    """Read and check everything that the request names; writes nothing.

    Args:
        parent: what a resumed run started from (empty: nothing); None decides now.
        sha256: what the data must still be, for a resumed run.

    Raises:
        DataError: something cannot be read or used.
    """
    request, strategy = order.request, order.strategy
    columns = dict(request.columns) or None
    known = _layout_of(registry, request)
    data = read_examples(request.data, columns, request.instruction or "", layout=known)
    if sha256 is not None and data.sha256 != sha256:
        raise DataError(
            f"{request.data} has changed since the run was started", "restore it, or start again without --resume"
        )
    start = _parent(registry, request, strategy) if parent is None else registry.get(parent) if parent else None
    if start is not None and not (request.on_top_of or strategy.makes == "stacked"):
        request.refuse_shape(start)
    return with_data(registry, order, data, start)


def with_data(registry: Registry, order: TrainOrder, data: Examples, start: AdapterRecord | None) -> Material:
    """The material of a request whose data have been read.

    Args:
        start: the version that the run continues from or is stacked on.
    """
    request, strategy = order.request, order.strategy
    if start is not None:
        registry.check_files(start)
        if start.status == "rejected":
            raise AdapterError(
                f"{start.ref} was refused by the gate; training cannot continue from it",
                f"cl-adapter promote {start.ref} --max-forgetting 1, or name another version",
            )
    columns = dict(request.columns) or None
    held_out = (
        read_examples(request.eval, columns, request.instruction or "", layout=data.read) if request.eval else None
    )
    beneath = bool(request.on_top_of) or strategy.makes == "stacked"
    review: Sequence[Example] = ()
    if request.verb == "update" and start is not None:
        fresh = set(data.examples)
        review = [sample for sample in kept_samples(start) if sample not in fresh]
        if not data.read.prefers:  # an answer that was rejected is never learned as a right one
            review = [sample for sample in review if sample.desirable is not False]
        data = for_task(registry.task(start.task), data)
        task = updated_task(registry.task(start.task), data)
        kept = data.layout == "raw text" or not data.read.name or (data.read.prefers and task.metric != REWARD)
        task = task if kept else replace(task, layout=data.read.after(task.layout))
    else:
        data = with_known_labels(request.labels, data)
        task = _same_task(registry, described_task(request, data, registry.base))
    if held_out is not None and held_out.layout != "raw text":
        held_out = for_task(task, held_out)
    raw = data.layout == "raw text"
    objectives.name_for(registry.base, "text" if raw else task.kind)  # told before anything is loaded
    past = tuple(_past(registry, strategy.what_is_read, task.name)) if strategy.what_is_read else ()
    takes = taken_over(registry, order, task.name, start, past)
    material = Material(data, held_out, task, start, beneath and start is not None, review, past, takes)
    material = without_outdated(material)
    if request.facts:
        _refuse_other_than_facts(material)
    if strategy.writes and raw:
        raise UsageError(
            f"{data.source} is raw text, and --strategy {strategy.name} learns from questions with answers",
            "leave --strategy out, or give rows with answers",
        )
    if data.read.prefers:
        refuse_with_preferences(order)
    if held_out is not None and held_out.read.prefers and not scorable(held_out.examples):
        raise DataError(
            f"{held_out.source}: all answers are judged alike, so there is nothing to compare",
            "give answers that are wanted and answers that are not",
        )
    if not material.raw:
        check_answers(task, data)
        if held_out is not None:
            check_answers(task, held_out)
    return without_leaks(material)


def _refuse_other_than_facts(material: Material) -> None:
    """Raise where data are not facts.

    Raises:
        DataError: they are raw text, or answers of a choice task, or come without questions.
    """
    data, task = material.data, material.task
    labelled = data.layout in LABELLED
    if labelled or data.layout == "raw text" or task.kind == "text":
        what = f"has texts with labels ({data.layout})" if labelled else "is raw text"
        raise DataError(
            f"--facts needs questions with answers, and {data.source} {what}",
            'write rows such as {"prompt": "Who is the mayor of Ely?", "completion": "Ann Bell"}, or leave --facts out',
        )
    if task.kind == "choice":
        raise DataError(
            f"--facts needs a task of free answers, and {task.name} is a choice among {len(task.labels)} labels",
            "leave --facts out, or teach the facts as a task of their own: cl-adapter add-task NAME DATA --facts",
        )
    for place, example in zip(data.places, data.examples, strict=True):
        if not example.answer or not example.asks:
            raise DataError(f"{place}: a fact needs a question and an answer", "fix that row, or leave --facts out")


def without_outdated(material: Material) -> Material:
    """The material less those samples of its own task that its data answer otherwise: mixed in, they would teach the
    old answer beside the new one."""
    gone = set(find_outdated(material.review, material.data, material.task.instruction))
    if not gone:
        return material
    kept = [sample for k, sample in enumerate(material.review) if k not in gone]
    outdated = [*material.outdated, *(sample for k, sample in enumerate(material.review) if k in gone)]
    return replace(material, review=kept, outdated=outdated)


def _layout_of(registry: Registry, request: TrainRequest) -> Layout | None:
    """The columns that an update reads where they are there: those of the version before."""
    if request.verb != "update":
        return None
    spec = registry.get(request.name).manifest.get("task_spec")
    return Task.from_json(spec).layout if spec else None


def with_limits(material: Material, base: LoadedBase, settings: TrainingSettings) -> Material:
    """The material with the limits of its task: where prompts are cut, and how long its answers are."""
    length = min(settings.max_length, base.context)
    if base.is_encoder or material.raw:
        return replace(material, task=replace(material.task, max_length=length))
    rows = [*material.data.examples, *material.review]
    return replace(material, task=tokenise.with_limits(material.task, base.tokenizer, rows, length))


def taken_over(
    registry: Registry,
    order: TrainOrder,
    task: str,
    parent: AdapterRecord | None,
    past: Sequence[PastTask],
) -> tuple[str, ...]:
    """The earlier tasks that the new version will answer for: those that its parent answers for today, or all whose
    data it was trained on."""
    request, strategy = order.request, order.strategy
    if strategy.what_is_read == "data":
        return tuple(sorted(lesson.task.name for lesson in past))
    if parent is None or not (request.verb == "update" or strategy.shared):
        return ()
    serving = registry.serving()
    mine = {v.ref for v in registry.versions(parent.name)} if request.verb == "update" else {parent.ref}
    # What production keeps elsewhere is measured all the same: the version may be promoted later.
    meant = {parent.task, *parent.manifest.get("takes_over", ())}
    return tuple(sorted(t for t, ref in serving.items() if (ref in mine or t in meant) and t != task))


def _same_task(registry: Registry, task: Task) -> Task:
    """A task that the hub knows keeps its labels; new ones stand behind them.

    Raises:
        DataError: a label would be lost.
    """
    old = {known.name: known for known in registry.tasks()}.get(task.name)
    if old is None or not old.labels or not task.labels:
        return task
    new = [label for label in task.labels if label not in old.labels]
    kept = [label for label in old.labels if label in task.labels]
    merged = replace(task, labels=(*kept, *new))
    check_labels_kept(old, merged)
    return merged


def refuse_other_labels(registry: Registry, request: TrainRequest, task: Task) -> None:
    """Raise where another add-task taught a task of this name other labels while this one was learned.

    Raises:
        DataError: names the labels.
    """
    if request.verb == "add-task":
        _same_task(registry, task)


def _past(registry: Registry, reads: str, task: str) -> Iterator[PastTask]:
    """The other tasks of the hub, each with what is read of it."""
    newest: dict[str, AdapterRecord] = {}
    for record in sorted(registry.adapters(include_rejected=False), key=lambda r: r.created_at):
        if record.task and record.task != task and record.training:
            newest[record.task] = record
    for name, record in newest.items():
        registry.check_files(record)
        if reads == "samples":
            found: Sequence[Example] = kept_samples(record)
        else:
            found = [example for rows in data_of(registry, record) for example in rows]
        if found:
            yield PastTask(registry.task(name), record, found)


def data_of(registry: Registry, record: AdapterRecord) -> list[Examples]:
    """The files that a version was trained on, and the versions of the same task that it was updated from; the newest
    first.

    Raises:
        DataError: something of it is no longer there, or has changed.
    """
    found: list[Examples] = []
    hint = "put it back, or take a strategy that needs samples only: --strategy replay"
    seen: set[str] = set()
    for version in learned_by(registry, record):
        known = version.training.get("data")
        if known is None:
            raise DataError(f"there is no record of what {version.ref} was trained on: it was {version.kind}", hint)
        if version.manifest.get("online"):
            raise DataError(f"{version.ref} was learned from a feed, which cannot be read again", hint)
        if known["sha256"] in seen:
            continue
        seen.add(known["sha256"])
        if not at_hand(known["source"]):
            raise DataError(f"the training data of {version.ref} are no longer at {known['source']}", hint)
        task = Task.from_json(version.manifest["task_spec"])
        rows = read_examples(known["source"], known.get("columns") or None, task.instruction, layout=task.layout)
        if rows.sha256 != known["sha256"]:
            raise DataError(f"{known['source']} has changed since {version.ref} was trained on it", hint)
        found.append(for_task(task, rows))
    return found


def learned_by(registry: Registry, record: AdapterRecord) -> list[AdapterRecord]:
    """A version and the versions of the same task that it was updated from, the newest first."""
    found: list[AdapterRecord] = []
    version: AdapterRecord | None = record
    while version is not None:
        found.append(version)
        parents = [e["parent"] for e in version.manifest.get("lineage", ()) if e["relation"] == "updated_from"]
        before = registry.get(parents[0]) if parents else None
        version = before if before is not None and before.task == record.task else None
    return found


def without_leaks(material: Material) -> Material:
    """The material less those samples of the past that stand in the held-out data: what a score is taken on is not
    learned."""
    if material.held_out is None:
        return material
    leaked: dict[str, int] = {}

    def clean(task: str, examples: Sequence[Example]) -> Sequence[Example]:
        gone = set(find_leaks(material.held_out or (), examples))
        if gone:
            leaked[task] = leaked.get(task, 0) + len(gone)
        return [example for k, example in enumerate(examples) if k not in gone] if gone else examples

    review = clean(material.task.name, material.review)
    past = [replace(lesson, examples=clean(lesson.task.name, lesson.examples)) for lesson in material.past]
    past = [lesson for lesson in past if lesson.examples]
    return replace(material, review=review, past=past, leaked=leaked) if leaked else material


def _parent(registry: Registry, request: TrainRequest, strategy: Combined) -> AdapterRecord | None:
    if request.verb == "update":
        return registry.get(request.start or request.name)
    if request.on_top_of:
        return registry.get(request.on_top_of)
    latest = sorted(registry.adapters(include_rejected=False), key=lambda record: record.created_at)
    # An adapter of several tasks is not a step of the stream: training continues from it only if it is named.
    usable = [r for r in latest if r.status == "active" and (r.task or r.kind not in DERIVED)]
    return strategy.parent(strategies.Past(usable))
