"""The notes that a training verb prints about what it has read, and what may be wrong with it."""

from __future__ import annotations

from collections.abc import Sequence

from adapterhub_cl import objectives
from adapterhub_cl.data.formats import is_template
from adapterhub_cl.data.json_answers import not_asked_for
from adapterhub_cl.data.label_forms import tell_alike
from adapterhub_cl.data.layouts import TEXTS
from adapterhub_cl.data.remarks import tell_repeats
from adapterhub_cl.data.tasks import find_leaks, why_kind
from adapterhub_cl.examples import Example, is_learned
from adapterhub_cl.learning.fact_lessons import own_rows
from adapterhub_cl.learning.material import Material
from adapterhub_cl.learning.request import TrainRequest
from adapterhub_cl.progress import Reporter
from adapterhub_cl.registry import Registry
from adapterhub_cl.samples.kept import facts_learned
from adapterhub_cl.strategies import DEFAULT
from adapterhub_cl.types import REWARD, AdapterRecord

MOST_LABELS, LONGEST_LABEL = 8, 30  # that are named, and their characters


def outdated_note(material: Material) -> str:
    """The note about old samples that were dropped; empty if none was."""
    count = len(material.outdated)
    what = "1 old sample that contradicts" if count == 1 else f"{count} old samples that contradict"
    return f"note: dropping {what} the new data" if count else ""


def tell_leaked(material: Material, reporter: Reporter) -> None:
    """Add a warning if samples of the past stand in the evaluation data."""
    for name, count in material.leaked.items():
        what, them = ("1 replay sample", "it") if count == 1 else (f"{count} replay samples", "them")
        reporter.note(
            f"warning: the evaluation data have {what} of {name}; this training leaves {them} out, but an earlier one "
            f"has learned {them}, so the score may be too high"
        )


def tell_parent(registry: Registry, parent: AdapterRecord, reporter: Reporter) -> None:
    """Add a note if an update continues from a version that does not serve, such as a pruned one."""
    served = registry.serving().get(parent.task, parent.ref)
    if served != parent.ref and registry.get(served).name == parent.name:
        reporter.note(f"note: continues from {parent.ref}, the newest version; {served} is the one that serves")


def tell_scale(parent: AdapterRecord, material: Material, reporter: Reporter) -> None:
    """Add a note if an update brings held-out data of its own: from then on the task is measured on those."""
    held, was = material.held_out, parent.training.get("eval")
    if held is None or not was or was["sha256"] == held.sha256:
        return
    same = held.read.prefers == (material.task.metric == REWARD)
    if same and (held.layout != "raw text" or material.task.kind == "text"):
        reporter.note(
            f"note: from now on {material.task.name} is measured on {held.source}, no longer on {was['source']}; "
            "use a file with the rows of both to go on measuring what was learned before"
        )


def tell_alike_tasks(registry: Registry, material: Material, request: TrainRequest, reporter: Reporter) -> None:
    """Add a note if an adapter of its own is trained for a task with the labels of others: such tasks often help each
    other (docs/benchmarks/cl15.md: amazon, begun from yelp)."""
    task = material.task
    if request.verb != "add-task" or request.strategy != DEFAULT or request.on_top_of or task.kind != "choice":
        return
    labels, served = {label.casefold() for label in task.labels}, registry.serving()
    alike = [
        one.name
        for one in registry.tasks()
        if one.name != task.name and one.name in served and {label.casefold() for label in one.labels} == labels
    ]
    if alike:
        names, have = _some(alike), "has" if len(alike) == 1 else "have"
        reporter.note(
            f"note: {names} {have} the same labels; with --strategy kin, {task.name} begins from what is known of "
            f"{'it' if len(alike) == 1 else 'them'}, if that does better than a fresh adapter"
        )


def tell(material: Material, request: TrainRequest, objective: objectives.BaseObjective, reporter: Reporter) -> None:
    """Report what was read, in a line or two, and what may be wrong with it."""
    task, data = material.task, material.data
    labels = f", {len(task.labels)} labels ({_some(task.labels)})" if task.labels else ""
    guessed = request.verb == "add-task" and request.kind == "auto" and not request.facts
    other = " (use --kind to choose another kind)" if guessed else ""
    reads = f"prompt {task.prompt_format!r}" if objective.writes else "read by an encoder"
    read = f"{len(data)} example{'s' if len(data) > 1 else ''} ({data.layout})"
    reporter.note(f"{read} → a {task.kind} task{other}{labels}, {reads}")
    if data.layout in ("text/label", "input/output") and data.read.input[0].strip().lower() not in TEXTS:
        columns = f"input={data.read.input[0]},output={data.read.output}"
        reporter.note(f"  the columns are read as {columns}; --columns chooses others")
    if request.facts:
        reporter.note("  facts have free answers; they are taught in other wordings too, see docs/knowledge-updates.md")
    elif request.verb == "add-task" and (why := why_kind(task, data, request.kind)):
        reporter.note(f"  {why}")
    if _asks_of_itself(material, request):
        reporter.note(
            f"  no row has an instruction, and every answer is a JSON object, so each input is asked with "
            f'{task.instruction!r} (--instruction says it in other words, --instruction "" leaves it out)'
        )
    elif _asks_nothing(material, request, objective):
        reporter.note(
            "  no row has an instruction: if the inputs alone do not say what is wanted, "
            '--instruction "WHAT IS WANTED" often helps, most where rows are few'
        )
    if request.verb == "add-task" and _earlier_answers(material, request):
        reporter.note("  every answer of the assistant is learned; the score is of the last one of each conversation")
    if objective.prefers:
        against = "the base" if material.parent is None else material.parent.ref
        what = "pairs are learned by dpo" if data.read.rejected else "judged answers are learned by kto"
        reporter.note(f"  {what}; the reference is {against}")
        alone = {example.desirable for example in data.examples}
        if len(alone) == 1 and None not in alone:
            liked = "liked" if alone.pop() else "disliked"
            reporter.note(f"warning: every answer is {liked}, so nothing tells good answers from bad ones")
        if count := _contradictions(data.examples):
            what = "row prefers what another row rejects" if count == 1 else "rows prefer what another row rejects"
            reporter.note(f"warning: {count} {what}, for the same question")
    if data.unused:
        many = len(data.unused) > 1
        names = ", ".join(map(repr, data.unused))
        reporter.note(f"note: the column{'s' if many else ''} {names} {'are' if many else 'is'} not used")
    for remark in (*data.remarks, *(material.held_out.remarks if material.held_out else ())):
        reporter.note(remark)
    repeats = tell_repeats(data.examples, data.places, task.kind, facts=request.facts)
    for remark in (*tell_alike(task.labels, data), *repeats):
        reporter.note(remark)
    parent = material.parent
    if request.verb == "update" and not request.facts and parent is not None and facts_learned(parent):
        reporter.note(
            f"note: {parent.ref} was taught facts in many wordings, and these rows are learned in their own wording "
            "only; --facts teaches them as the others were taught"
        )
    if request.verb == "update" and (keys := not_asked_for(task.instruction, data.examples)):
        reporter.note(
            f"note: {task.name} does not ask for {_some(keys)}, which the new answers have; to ask for all keys, teach "
            "the old and the new rows together as a new task"
        )
    if material.review:
        reporter.note(f"{len(material.review)} replay samples of {material.parent.ref} are mixed in")  # type: ignore[union-attr]
    if told := outdated_note(material):
        reporter.note(told)
    tell_leaked(material, reporter)
    if material.past:
        each = ", ".join(f"{lesson.task.name} {len(lesson.examples)}" for lesson in material.past)
        reporter.note(
            f"from earlier tasks: {each} {'examples' if request.strategy == 'multitask' else 'replay samples'}"
        )
    if material.parent is not None and request.verb == "add-task":
        how = "is trained on top of" if material.beneath else "continues from"
        reporter.note(f"the new adapter {how} {material.parent.ref}")
    if material.held_out is not None and not own_rows(request, material):
        leaks = find_leaks(data, material.held_out)
        if leaks:
            reporter.note(
                f"warning: {len(leaks)} of {len(material.held_out)} evaluation rows are also in the training data "
                f"(first: {material.held_out.places[leaks[0]]}); the score will be too high"
            )


def _some(labels: Sequence[str]) -> str:
    lines = [" ".join(label.split()) for label in labels[:MOST_LABELS]]
    shown = [label if len(label) <= LONGEST_LABEL else f"{label[:LONGEST_LABEL]}…" for label in lines]
    return ", ".join([*shown, *(["…"] if len(labels) > MOST_LABELS else [])])


def _asks_nothing(material: Material, request: TrainRequest, objective: objectives.BaseObjective) -> bool:
    """Whether a new task has inputs that a base turns into free answers, and nothing says how; for choices an
    instruction gains no right answers (docs/benchmarks/settings_instruction.md)."""
    task, data = material.task, material.data
    if request.verb != "add-task" or request.facts or not objective.writes or task.kind != "generation":
        return False
    plain = not task.instruction and not is_template(task.prompt_format)
    return plain and not any(e.instruction or e.turns or "?" in e.input for e in data.examples)


def _asks_of_itself(material: Material, request: TrainRequest) -> bool:
    """Whether a new task got an instruction that neither the user nor its rows gave."""
    given = request.instruction is not None or any(example.instruction for example in material.data.examples)
    return request.verb == "add-task" and bool(material.task.instruction) and not given


def _earlier_answers(material: Material, request: TrainRequest) -> bool:
    """Whether answers are learned that no score is of."""
    if request.settings.get("learn", "all") != "all" or material.task.prompt_format != "chat":
        return False
    return any(is_learned(turn.message()) for example in material.data.examples for turn in example.turns)


def _contradictions(rows: Sequence[Example]) -> int:
    """Preferences whose opposite is another row: the pair the other way round, or the same answer judged otherwise."""
    said = {(row.instruction, row.input, row.turns, row.answer, row.rejected or row.desirable) for row in rows}
    return sum(
        (row.instruction, row.input, row.turns, row.rejected, row.answer) in said
        if row.rejected
        else (row.instruction, row.input, row.turns, row.answer, not row.desirable) in said
        for row in rows
        if row.prefers and (row.rejected or row.desirable)
    )
