"""Examples → task: a choice among labels, a free answer, or raw text; and what an update may change."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from adapterhub_cl.data.columns import Examples
from adapterhub_cl.data.formats import check_format, is_template
from adapterhub_cl.data.guessing import MAX_LABELS, could_be_label, kind_of, single_label
from adapterhub_cl.data.json_answers import asks_for_keys
from adapterhub_cl.data.plain_text import plain
from adapterhub_cl.errors import DataError, UnknownNameError, UsageError
from adapterhub_cl.options import read_texts
from adapterhub_cl.types import METRICS as METRICS
from adapterhub_cl.types import TASK_KINDS, Example, Task

ALONE = 10  # if more new answers than this occur only once each, they are free answers


def read_labels(value: Any) -> list[str]:
    """The labels of a choice task: `spam, ham`, or `["spam", "ham"]` where a label may have commas, or a list.

    Raises:
        UsageError: it begins like a JSON list and is not a list of texts.
    """
    return read_texts(value, "--labels", '["yes, please", "no"]')


def infer_task(
    name: str,
    examples: Sequence[Example] | Examples,
    *,
    kind: str = "auto",
    labels: Sequence[str] | None = None,
    prompt_format: str | None = None,
    metric: str | None = None,
    instruction: str | None = None,
) -> Task:
    """The task that examples describe; what the caller gives is used, the rest is inferred.

    Inferred labels are in the order in which the instruction lists them (including those that it lists and no example
    has), otherwise sorted.

    Args:
        name: the task's name; not checked here.
        examples: the training examples.
        kind: `choice`, `generation`, `text`, or `auto`.
        labels: the answers of a choice task.
        prompt_format: a name or a template, see `formats.check_format`; `instruction` by default.
        metric: one of `METRICS[kind]`; the first by default.
        instruction: for inputs without one; by default the one that all examples share, or what `asks_for_keys` makes
            of their answers, which a template does not need.

    Raises:
        UnknownNameError: no such kind, metric or prompt format.
        UsageError: settings contradict each other.
        DataError: no examples, a single label, or answers that are not in `labels`.
    """
    if kind not in ("auto", *TASK_KINDS):
        raise UnknownNameError("kind of task", kind, ("auto", *TASK_KINDS))
    rows = list(examples)
    if not rows:
        raise DataError(f"task {name}: no examples", "give a file with at least one row")
    shared = {example.instruction for example in rows}
    common = shared.pop() if len(shared) == 1 else ""
    counts = Counter(example.answer for example in rows if example.answer is not None)
    if kind == "auto":
        layout = examples.layout if isinstance(examples, Examples) else ""
        kind = "choice" if labels is not None else kind_of(name, rows, counts, layout, common)[0]
    if kind != "choice" and labels is not None:
        raise UsageError(f"--labels needs a task of kind choice, not {kind}", "omit --labels, or add --kind choice")
    chosen: tuple[str, ...] = ()
    if kind == "choice":
        chosen = _given_labels(labels) if labels is not None else listed_labels(common, counts)
        if len(chosen) < 2:
            raise single_label(name, chosen)
    if metric is not None and metric not in METRICS[kind]:
        raise UnknownNameError(f"metric of a {kind} task", metric, METRICS[kind])
    prompt_format = check_format(prompt_format or "instruction")
    if instruction is None and kind == "generation" and not is_template(prompt_format):
        common = common or asks_for_keys(rows)
    task = Task(
        name=name,
        kind=kind,
        prompt_format=prompt_format,
        instruction=common if instruction is None else instruction,
        labels=chosen,
        metric=metric or METRICS[kind][0],
        layout=examples.read if isinstance(examples, Examples) and examples.layout != "raw text" else None,
    )
    check_answers(task, examples)
    return task


def check_answers(task: Task, examples: Sequence[Example] | Examples) -> None:
    """Raise for answers that are not labels of a choice task, and for questions of a task of raw text, which has none;
    examples without an answer are fine.

    Raises:
        DataError: names the labels and the place of the first one, or the columns.
    """
    if task.kind == "text" and isinstance(examples, Examples) and examples.layout != "raw text":
        raise DataError(
            f"{examples.source}: the rows have a question and an answer ({examples.layout}), and task {task.name} is "
            "raw text",
            "to read one column as raw text: --columns output=COLUMN",
        )
    if task.kind != "choice":
        return
    strange = [(i, e.answer) for i, e in enumerate(examples) if e.answer is not None and e.answer not in task.labels]
    if strange:
        names = list(dict.fromkeys(answer for _, answer in strange))
        first = strange[0][0]
        place = examples.places[first] if isinstance(examples, Examples) else f"example {first + 1}"
        raise DataError(
            f"{place}: {_listed(names)} not among the labels of task {task.name} ({_listed(task.labels)})",
            "fix these rows; update adds new labels to a task, and add-task --labels lists all labels of a new one",
        )


def listed_labels(instruction: str, answers: Mapping[str, int]) -> tuple[str, ...]:
    """The answers in the order in which the instruction lists them, otherwise sorted.

    If a list after `Option:` or `Options:` contains all answers, all of it is used, including labels without examples.
    """
    tail = re.split(r"\b[Oo]ptions?\s*:", instruction)[-1]
    if tail != instruction:
        items = [item.strip(" \t\n.;'\"") for item in re.split(r",|\n|\bor\b(?=[^,]*$)", tail)]
        whole = [item.strip(" \t\n.;'\"") for item in tail.split(",")]
        for listed in (whole, items):
            if all(listed) and len(set(listed)) == len(listed) and set(answers) <= set(listed):
                return tuple(listed)
    places: dict[str, int] = {}
    text = tail
    for label in sorted(answers, key=len, reverse=True):  # the longest first: "very negative" before "negative"
        match = re.search(rf"(?<!\w){re.escape(label)}(?!\w)", text)
        if match is None:
            return tuple(sorted(answers))
        places[label] = match.start()
        text = re.sub(rf"(?<!\w){re.escape(label)}(?!\w)", lambda m: "\0" * len(m[0]), text)
    return tuple(sorted(answers, key=places.__getitem__))


def merge_tasks(old: Task, new: Task) -> Task:
    """The task after an update: the old one, with the new task's additional labels appended.

    Raises:
        DataError: the two have different kinds. Raw text adds knowledge to any task and does not change the task.
    """
    if new.kind == "text" or old.kind == "text":
        if new.kind != "text":
            raise DataError(
                f"task {old.name} is raw text, but the new data is of kind {new.kind}",
                f"train it as a separate task: cl-adapter add-task {new.name}-2 DATA",
            )
        return old
    if old.kind != new.kind:
        raise DataError(
            f"task {old.name} is of kind {old.kind}, but the new data is of kind {new.kind}",
            f"if it is the same task, add --kind {old.kind}; otherwise add it under another name",
        )
    return replace(old, labels=(*old.labels, *(label for label in new.labels if label not in old.labels)))


def check_labels_kept(old: Task, new: Task) -> None:
    """Raise if a label of the old task is missing or at another position.

    Raises:
        DataError: names the labels.
    """
    missing = [label for label in old.labels if label not in new.labels]
    if missing:
        raise DataError(
            f"task {old.name} would lose {_listed(missing)}", "an update keeps every label; append the new ones"
        )
    if new.labels[: len(old.labels)] != old.labels:
        raise DataError(
            f"task {old.name}: the order of its labels would change",
            f"keep them as {_listed(old.labels)}, and append new ones",
        )


def updated_task(old: Task, examples: Sequence[Example] | Examples) -> Task:
    """The task after an update with examples: a choice task gets new answers as labels, sorted, after its own.

    Raises:
        DataError: no examples; questions for a raw-text task; or answers that cannot be labels.
    """
    rows = list(examples)
    if not rows:
        raise DataError(f"task {old.name}: no examples", "give a file with at least one row")
    if all(not example.input and not example.instruction for example in rows):
        return old
    if old.kind != "generation" and any(example.prefers for example in rows):
        raise DataError(
            f"task {old.name} is of kind {old.kind}, and preferences are between free answers",
            "train them as a separate task: cl-adapter add-task",
        )
    if old.kind != "choice":
        return merge_tasks(old, replace(old, kind="generation", labels=()))
    answers = Counter(example.answer for example in rows if example.answer is not None)
    fresh = sorted(set(answers) - set(old.labels))
    if not fresh:
        return old
    unlike_labels = len(fresh) > ALONE and all(answers[answer] == 1 for answer in fresh)
    unlike_labels |= not all(could_be_label(answer) for answer in fresh)
    if len(fresh) > MAX_LABELS or unlike_labels:
        raise DataError(
            f"the new data has {len(fresh)} answers that are not labels of task {old.name}, such as {fresh[0][:60]!r}",
            "train free answers as a separate task: cl-adapter add-task",
        )
    return replace(old, labels=(*old.labels, *fresh))


def described_otherwise(mine: Task, theirs: Task) -> bool:
    """Whether two tasks of one name are not asked alike."""
    keys = ("kind", "labels", "prompt_format", "instruction")
    return any(getattr(mine, key) != getattr(theirs, key) for key in keys)


def find_leaks(train: Sequence[Example] | Examples, held_out: Sequence[Example] | Examples) -> list[int]:
    """Indices of held-out examples that also occur in the training data, ignoring case and spacing.

    Instruction and input are compared; for raw text the text.
    """
    known = {_key(example) for example in train}
    return [index for index, example in enumerate(held_out) if _key(example) in known]


def find_outdated(
    old: Sequence[Example] | Examples, new: Sequence[Example] | Examples, instruction: str = ""
) -> list[int]:
    """Indices of old examples whose question occurs in the new data with a different answer.

    Instruction and input are compared, ignoring case and spacing. If the new data has several answers to a question,
    any of them counts. Raw text has no questions, and a preference does not say that another answer is wrong. An old
    answer that was judged wrong is outdated where the new data have it as a right one.

    Args:
        instruction: for examples that have none of their own.
    """
    answers: dict[str, set[str]] = {}
    for example in new:
        if example.input and example.answer and not example.prefers:
            answers.setdefault(_question(example, instruction), set()).add(" ".join(example.answer.split()))

    def outdated(example: Example) -> bool:
        known = answers.get(_question(example, instruction)) if example.input and example.answer else None
        if known is None:
            return False
        again = " ".join((example.answer or "").split()) in known
        return again if example.desirable is False else not again

    return [index for index, example in enumerate(old) if outdated(example)] if answers else []


def mark_of(example: Example, instruction: str = "") -> str:
    """A hash of a question and its answer, ignoring case and spacing, that does not reveal them.

    Args:
        instruction: for an example that has none of its own.
    """
    answer = " ".join((example.answer or "").casefold().split())
    return hashlib.sha256(f"{_question(example, instruction)}\0{answer}".encode()).hexdigest()[:24]


def _question(example: Example, instruction: str) -> str:
    return _key(replace(example, instruction=example.instruction or instruction))


def _key(example: Example) -> str:
    return plain(f"{example.instruction}\n{example.text}" if example.input else example.answer or "")


def why_kind(task: Task, examples: Examples, asked: str = "auto") -> str:
    """Why data were recognised as this kind of task; empty if the user named the kind.

    Args:
        asked: the kind that the user named.
    """
    if asked != "auto" or not len(examples) or task.kind == "text":
        return ""
    if examples.read.prefers:
        return "because the rows say which answers are wanted"
    rows = list(examples)
    shared = {example.instruction for example in rows}
    counts = Counter(example.answer for example in rows if example.answer is not None)
    try:
        kind, why = kind_of(task.name, rows, counts, examples.layout, shared.pop() if len(shared) == 1 else "")
    except DataError:
        return ""
    return f"because {why}" if kind == task.kind else ""


def _given_labels(labels: Sequence[str]) -> tuple[str, ...]:
    clean = tuple(label.strip() for label in labels)
    if "" in clean or len(set(clean)) < len(clean):
        raise UsageError(f"--labels has an empty or repeated label: {_listed(clean)}", "list every label once")
    return clean


def _listed(labels: Sequence[str]) -> str:
    return ", ".join(repr(label) for label in labels[:8]) + (f", … ({len(labels)})" if len(labels) > 8 else "")
