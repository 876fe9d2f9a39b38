"""Which version of an adapter broke each of some rows, found as `git bisect` finds a commit.

The rows are searched together: a version between two others is asked all rows that may have broken on either side of
it, and then those that it still has right are searched on after it, the others before it. Where one version broke all
rows, about log2 of the versions are asked; where many did, at most all of them, and no version is asked a row twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapterhub_cl import objectives
from adapterhub_cl.adapters.serving import ServingTable, answering, who_answers
from adapterhub_cl.context import Hub
from adapterhub_cl.data.columns import read_examples
from adapterhub_cl.data.label_forms import for_task
from adapterhub_cl.data.tasks import check_answers
from adapterhub_cl.errors import DataError, IntegrityError, UsageError
from adapterhub_cl.evaluation.metrics import score
from adapterhub_cl.evaluation.scoring import answered
from adapterhub_cl.types import AdapterRecord, Example, Task


@dataclass(frozen=True)
class BrokenRow:
    """A row that the good version answers rightly and the bad one does not.

    Attributes:
        place: where it stands in the data.
        wanted: its right answer; `said` is the bad version's.
        first: the version that broke it: it has the row wrong, and `before`, the version before it, has it right. (A
            row that was mended in between and broke again has several such versions; this is one of them.)
    """

    place: str
    text: str
    wanted: str
    said: str
    first: str
    before: str


@dataclass(frozen=True)
class Asked:
    """A version that was asked between the two ends: how many of the broken rows, and how many of them it has right."""

    ref: str
    rows: int
    right: int


@dataclass(frozen=True)
class Bisected:
    """What a bisection found.

    Attributes:
        rows: how many rows were asked.
        good, bad: the versions between which it was searched.
        broken: the rows that the good one has right and the bad one wrong.
        tried: the versions that were asked in between, the oldest first.
        breakers: each version that broke rows, the oldest first → how many.
        first: the version that broke most of them, the older one of two; empty if no row broke.
        before: the version before that one.
    """

    rows: int
    good: str
    bad: str
    broken: tuple[BrokenRow, ...]
    tried: tuple[Asked, ...] = ()
    breakers: Mapping[str, int] = field(default_factory=dict)
    first: str = ""
    before: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "good": self.good,
            "bad": self.bad,
            "first": self.first,
            "before": self.before,
            "breakers": dict(self.breakers),
            "tried": [vars(one) for one in self.tried],
            "broken": [vars(row) for row in self.broken],
        }


def bisect(
    hub: Hub,
    name: str,
    data: str | Path,
    *,
    good: str | None = None,
    bad: str | None = None,
    columns: Mapping[str, str] | None = None,
    task: str | None = None,
) -> Bisected:
    """Search the versions of an adapter; see `AdapterHub.bisect`."""
    between = _readable(hub, _versions(hub, name, good, bad))
    asked, _ = who_answers(ServingTable(hub.registry), task, between[-1].ref)
    assert asked is not None  # a version has a task, or `who_answers` says so
    found = read_examples(data, columns, asked.instruction, layout=asked.layout)
    if asked.kind == "text" or found.layout == "raw text":
        raise DataError(f"{data} is raw text, which has no right answers", "give rows with an answer each")
    if found.read.prefers:
        raise DataError(f"{data} has preferences, which are not right or wrong", "give rows with one right answer each")
    found = for_task(asked, found)
    check_answers(asked, found)
    if missing := next((found.places[k] for k, e in enumerate(found.examples) if e.answer is None), ""):
        raise DataError(f"{missing} has no answer", "every row needs its right answer")
    rows: Sequence[Example] = found.examples
    right_then, _ = _right(hub, between[0], task, rows)
    right_now, said = _right(hub, between[-1], task, rows)
    gone = [k for k in range(len(rows)) if right_then[k] and not right_now[k]]
    places, tried = _searched(hub, between, task, rows, gone)
    broken = tuple(
        BrokenRow(
            found.places[k], rows[k].input, rows[k].answer or "", said[k],
            between[places[k]].ref, between[places[k] - 1].ref,
        )
        for k in gone
    )  # fmt: skip
    counts = Counter(places.values())
    breakers = {between[place].ref: counts[place] for place in sorted(counts)}
    most = min(counts, key=lambda place: (-counts[place], place), default=0)
    first, before = (between[most].ref, between[most - 1].ref) if counts else ("", "")
    return Bisected(len(rows), between[0].ref, between[-1].ref, broken, tried, breakers, first, before)


def _searched(
    hub: Hub, between: Sequence[AdapterRecord], task: str | None, rows: Sequence[Example], gone: Sequence[int]
) -> tuple[dict[int, int], tuple[Asked, ...]]:
    """For each row that broke the place in `between` of the version that broke it; and which versions were asked."""
    places: dict[int, int] = {}
    tried: dict[int, Asked] = {}
    groups = [(0, len(between) - 1, list(gone))] if gone else []
    while groups:
        low, high, mine = groups.pop()
        if high - low == 1:
            places |= dict.fromkeys(mine, high)
            continue
        middle = (low + high) // 2
        right, _ = _right(hub, between[middle], task, [rows[k] for k in mine])
        tried[middle] = Asked(between[middle].ref, len(mine), sum(right))
        still = [k for k, good in zip(mine, right, strict=True) if good]
        lost = [k for k, good in zip(mine, right, strict=True) if not good]
        groups += [part for part in ((middle, high, still), (low, middle, lost)) if part[2]]
    return places, tuple(tried[place] for place in sorted(tried))


def _versions(hub: Hub, name: str, good: str | None, bad: str | None) -> list[AdapterRecord]:
    """The versions to be searched, oldest first.

    Raises:
        UsageError: a version was named in place of its adapter, there are fewer than two, or the good one is not the
            older one.
    """
    record = hub.registry.get(name)
    if "@" in name:
        raise UsageError(
            f"bisect searches the versions of {record.name}, and {name} is one of them",
            f"cl-adapter bisect {record.name} --bad {name.partition('@')[2]} ends the search there",
        )
    name = record.name
    every = [one for one in hub.registry.versions(name) if one.status != "rejected"]
    if len(every) < 2:
        raise UsageError(f"{name} has one version only: there is nothing to search", "cl-adapter list --all")
    first = hub.registry.get(_full(name, good)) if good else every[0]
    last = hub.registry.get(_full(name, bad)) if bad else every[-1]
    for option, record in (("--good", first), ("--bad", last)):
        if record.name != name:
            raise UsageError(f"{option} {record.ref} is no version of {name}", f"cl-adapter list --all shows {name}'s")
    if first.version >= last.version:
        raise UsageError(
            f"{first.ref} is not older than {last.ref}: there is nothing between them to search",
            "--good names an older version than --bad",
        )
    inner = [one for one in every if first.version < one.version < last.version]
    return [first, *inner, last]


def _readable(hub: Hub, between: Sequence[AdapterRecord]) -> list[AdapterRecord]:
    """Without versions in between whose files are damaged; a note names them.

    Raises:
        IntegrityError: the first or the last one is.
    """
    kept = []
    for record in between:
        try:
            hub.registry.check_files(record)
        except IntegrityError as error:
            if record is between[0] or record is between[-1]:
                option = "--good" if record is between[0] else "--bad"
                raise IntegrityError(error.message, f"search from another version: {option} VERSION") from error
            hub.reporter.note(f"warning: {record.ref} is passed over: {error.message}")
        else:
            kept.append(record)
    return kept


def _full(name: str, ref: str) -> str:
    """`v3` → `news@v3`, `latest` → `news@latest`."""
    return ref if "@" in ref or ref == name else f"{name}@{ref}"


def _right(
    hub: Hub, record: AdapterRecord, task_name: str | None, rows: Sequence[Example]
) -> tuple[list[bool], list[str]]:
    """Whether a version answers each row rightly, and its answers. A label that it did not know yet is wrong."""
    task, _ = who_answers(ServingTable(hub.registry), task_name, record.ref)
    assert task is not None
    right, said = [False] * len(rows), [""] * len(rows)
    known = [k for k, row in enumerate(rows) if task.kind != "choice" or row.answer in task.labels]
    if not known:
        return right, said
    with (
        answering(hub.registry, hub.base, record.ref) as model,
        hub.reporter.piece(f"asking {record.ref}", len(known)) as advance,
    ):
        wanted, found, _ = answered(
            model,
            hub.base.tokenizer,
            objectives.of(hub.base.info),
            task,
            [rows[k] for k in known],
            max_length=hub.base.context,
            dtype=hub.base.dtype,
            progress=advance,
        )
    for k, gold, answer in zip(known, wanted, found, strict=True):
        right[k], said[k] = _matches(task, rows[k], gold, answer), answer
    return right, said


def _matches(task: Task, row: Example, gold: str, answer: str) -> bool:
    metric = "accuracy" if task.kind == "choice" else "exact_match"
    return score(task, [gold], [answer], references=[row.references])[metric] == 1.0
