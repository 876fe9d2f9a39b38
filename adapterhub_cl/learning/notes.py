"""The notes that a training verb prints about what it has read, and what may be wrong with it."""

from __future__ import annotations

from adapterhub_cl import objectives
from adapterhub_cl.data.tasks import find_leaks, why_kind
from adapterhub_cl.learning.material import Material
from adapterhub_cl.learning.request import TrainRequest
from adapterhub_cl.progress import Reporter
from adapterhub_cl.registry import Registry
from adapterhub_cl.types import AdapterRecord


def outdated_note(material: Material) -> str:
    """What is said of the samples that were left out; nothing where none was."""
    count = len(material.outdated)
    verb = "sample answers" if count == 1 else "samples answer"
    return f"note: {count} old {verb} otherwise than the new data; left out" if count else ""


def tell_parent(registry: Registry, parent: AdapterRecord, reporter: Reporter) -> None:
    """Say so where an update goes on from a version that does not serve, such as a pruned one."""
    served = registry.serving().get(parent.task, parent.ref)
    if served != parent.ref and registry.get(served).name == parent.name:
        reporter.note(f"note: goes on from {parent.ref}, the newest version; {served} is the one that serves")


def tell_scale(parent: AdapterRecord, material: Material, reporter: Reporter) -> None:
    """Say so where an update brings other held-out data than its parent had: those are what the task is measured on."""
    held, was = material.held_out, parent.training.get("eval")
    if held is None or not was or was["sha256"] == held.sha256:
        return
    if held.layout != "raw text" or material.task.kind == "text":
        reporter.note(
            f"note: from now on {material.task.name} is measured on {held.source}, no longer on {was['source']}; "
            "a file with the rows of both keeps what was learned before in view"
        )


def tell(material: Material, request: TrainRequest, objective: objectives.BaseObjective, reporter: Reporter) -> None:
    """What was read, in a line or two, and what may be wrong with it."""
    task, data = material.task, material.data
    labels = f", {len(task.labels)} labels" if task.labels else ""
    overrule = " (another kind? say it with --kind)" if request.verb == "add-task" and request.kind == "auto" else ""
    reads = f"prompt {task.prompt_format!r}" if objective.writes else "read by an encoder"
    reporter.note(
        f"{len(data)} example{'s' if len(data) > 1 else ''} ({data.layout}) → a {task.kind} task{labels}, "
        f"{reads}{overrule}"
    )
    if request.verb == "add-task" and (why := why_kind(task, data, request.kind)):
        reporter.note(f"  {why}")
    if data.unused:
        many = len(data.unused) > 1
        names = ", ".join(map(repr, data.unused))
        reporter.note(f"note: the column{'s' if many else ''} {names} {'are' if many else 'is'} not used")
    if data.skipped:
        reporter.note(f"note: {data.skipped} empty rows were passed over")
    if material.review:
        reporter.note(f"{len(material.review)} replay samples of {material.parent.ref} are mixed in")  # type: ignore[union-attr]
    if told := outdated_note(material):
        reporter.note(told)
    if material.past:
        each = ", ".join(f"{lesson.task.name} {len(lesson.examples)}" for lesson in material.past)
        reporter.note(f"of earlier tasks: {each} {'examples' if request.strategy == 'multitask' else 'replay samples'}")
    if material.parent is not None and request.verb == "add-task":
        how = "trained on top of" if material.beneath else "goes on from"
        reporter.note(f"the new adapter {how} {material.parent.ref}")
    if material.held_out is not None:
        leaks = find_leaks(data, material.held_out)
        if leaks:
            reporter.note(
                f"warning: {len(leaks)} of {len(material.held_out)} evaluation rows are in the training data as well "
                f"(first: {material.held_out.places[leaks[0]]}); the score will flatter"
            )
