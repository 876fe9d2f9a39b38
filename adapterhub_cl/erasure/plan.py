"""What belongs to a task, and what would happen to it. Only reads; does not load torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapterhub_cl.erasure.places import is_nobodys, is_of, knows, others, run_folders, run_request, stream_hubs
from adapterhub_cl.erasure.sharing import SharedRows, shared_with
from adapterhub_cl.erasure.versions import KnownVersion, all_known, holders
from adapterhub_cl.rebasing.new_hub import FOLDER as REBASE
from adapterhub_cl.registry import Registry, samples, tombstones
from adapterhub_cl.samples.store import sample_key
from adapterhub_cl.traffic.journal import Journal
from adapterhub_cl.types import DERIVED, LATEST, REPEATED_FROM, Example

REMOVED, REPEATED, RETIRED = "removed", "re-derived", "retired"
RECEIVED = "received.jsonl"  # written by feeds; their module would import the data package, which a plan does not need


@dataclass(frozen=True)
class Doomed:
    """A version to remove.

    Attributes:
        why: its relation to the task, in words.
        does: `removed` (it was made for the task), `re-derived` (made again without it) or `retired`.
        replacement: the version that replaces it.
    """

    ref: str
    why: str
    does: str
    task: str = ""
    replacement: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {"ref": self.ref, "why": self.why, "does": self.does, "replacement": self.replacement}


@dataclass(frozen=True)
class ErasurePlan:
    """Everything that is removed when a task is forgotten.

    Attributes:
        versions: parents before children.
        samples: number of different replay samples of the task.
        elsewhere: version of another task → how many of its samples have the same input.
        evaluations: scores on the task, and those of the versions.
        runs: unfinished runs, `streams` comparison hubs and `others` further files, as paths relative to the hub.
        kept: answers of the task that `serve --log` kept.
        serve: other tasks that one of the versions serves → the version that serves them from now on.
        tasks_without_adapter: other tasks that no version will serve.
        aliases: `name@alias` of the versions → what it will name, or None.
        tombstone: the file's name; None before anything was removed.
        reasons: version → why it could not be made again.
        shared: versions, runs and hubs of other tasks that saw rows of this one, and stay → how that is known.
        keys: what identifies samples of the task in other tasks; not part of the JSON.
        rows: hashes of the rows that the task was trained on, and `sources` of the files; not part of the JSON either.
    """

    task: str
    versions: tuple[Doomed, ...] = ()
    samples: int = 0
    elsewhere: Mapping[str, int] = field(default_factory=dict)
    evaluations: int = 0
    runs: tuple[str, ...] = ()
    streams: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    kept: int = 0
    serve: Mapping[str, str] = field(default_factory=dict)
    tasks_without_adapter: tuple[str, ...] = ()
    aliases: Mapping[str, str | None] = field(default_factory=dict)
    tombstone: str | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)
    shared: Mapping[str, str] = field(default_factory=dict)
    keys: frozenset[tuple[str, str]] = field(default=frozenset(), repr=False)
    rows: frozenset[bytes] = field(default=frozenset(), repr=False)
    sources: frozenset[str] = field(default=frozenset(), repr=False)

    @property
    def empty(self) -> bool:
        """Whether the hub has nothing of the task; a rebase that was stopped may have written its rows down already."""
        written_down = f"{REBASE}/{self.task}" in self.others
        return not any(
            (written_down, self.versions, self.elsewhere, self.evaluations, self.runs, self.streams, self.kept)
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "versions": [version.to_json() for version in self.versions],
            "samples": self.samples,
            "samples_elsewhere": dict(self.elsewhere),
            "evaluations": self.evaluations,
            "runs": list(self.runs),
            "streams": list(self.streams),
            "others": list(self.others),
            "kept_answers": self.kept,
            "serving": dict(self.serve),
            "tasks_without_adapter": list(self.tasks_without_adapter),
            "aliases": dict(self.aliases),
            "shared": dict(self.shared),
            "tombstone": self.tombstone,
        }


def make_plan(
    registry: Registry,
    task: str,
    *,
    already: Iterable[str] = (),
    since: str | None = None,
    replacements: Mapping[str, str] | None = None,
    may_repeat: bool = True,
    everywhere: bool = False,
) -> ErasurePlan:
    """What would be removed if a task were forgotten now.

    Args:
        already: versions that an interrupted removal has chosen.
        since: when the hub first recorded the task, if that is known from elsewhere.
        replacements: version → its replacement, if it already exists.
        may_repeat: whether derived adapters may be made again.
        everywhere: whether versions of other tasks that saw rows of the task are removed too.

    Raises:
        IntegrityError: the replay samples of another task's version cannot be read.
    """
    known = all_known(registry)
    ended = [str(row.get("finished_at") or "") for _, row in tombstones.read_all(registry.path) if row["task"] == task]
    times = [time for time in (since, registry.known_since(task), *_made(known, task)) if time]
    since = min((time for time in times if time > max(ended, default="")), default=None)
    done, chosen = dict(replacements or {}), list(already)
    found = holders(known, task, since, chosen)
    keys, count = _own_samples(registry, task, known, found)
    own = SharedRows.of_task(known, found, keys)
    shared = shared_with(registry, task, known, found, own)
    if everywhere and shared:
        found = holders(known, task, since, chosen, shared)
    elsewhere: dict[str, int] = {}
    for ref, one in known.items() if keys else ():
        if ref in found or one.path is None:
            continue
        if not one.live:
            if _matches(one.path, keys):
                found[ref] = (f"deleted, but still has samples with the same input as {task}", False)
        elif number := sum(sample_key(e) in keys for e in kept_in(registry, ref)):
            elsewhere[ref] = number
    versions = _ordered(known, found, done, may_repeat)
    gone = {version.ref for version in versions}
    hub = registry.path
    runs = [p for p in run_folders(registry.runs_dir) if is_of(p, task, known, found, since)]
    streams = [p.relative_to(hub).as_posix() for p in stream_hubs(hub) if knows(p, task)]
    names = {task, *(v.ref.partition("@")[0] for v in versions if v.does == REMOVED)}
    serve, without, aliases = _moves(registry, task, versions)
    scores = [s for s in registry.evaluations() if s.evaluation.task == task or s.ref in gone]
    if everywhere:
        runs += [p for p in run_folders(registry.runs_dir) if p.relative_to(hub).as_posix() in shared and p not in runs]
        streams += [name for name in shared if (hub / name / "hub.toml").is_file() and name not in streams]
    going = {*gone, *streams, *(p.relative_to(hub).as_posix() for p in runs)}
    if versions or runs or streams:
        runs += [p for p in run_folders(registry.runs_dir) if is_nobodys(p)]
    return ErasurePlan(
        task,
        versions,
        count,
        elsewhere,
        len(scores),
        tuple(sorted(p.relative_to(hub).as_posix() for p in runs)),
        tuple(streams),
        tuple(others(registry, names, gone)),
        Journal(hub).count(task, gone),
        serve,
        without,
        aliases,
        shared={name: why for name, why in shared.items() if name not in going},
        keys=keys,
        rows=own.rows,
        sources=own.sources,
    )


# -- versions ------------------------------------------------------------------------------------------------


def _made(known: Mapping[str, KnownVersion], task: str) -> list[str]:
    return [one.created_at for one in known.values() if one.task == task]


def _ordered(
    known: Mapping[str, KnownVersion], found: Mapping[str, tuple[str, bool]], done: Mapping[str, str], may_repeat: bool
) -> tuple[Doomed, ...]:
    """Parents before children, and what happens to each."""
    versions: dict[str, Doomed] = {}
    waiting = sorted(found, key=lambda ref: (known[ref].created_at if ref in known else "", ref))
    while waiting:
        ready = [r for r in waiting if r not in known or not {p for p, _ in known[r].parents} & set(waiting) - {r}]
        for ref in ready or waiting[:1]:
            why, own = found[ref]
            one = known.get(ref, KnownVersion(ref))
            does = REMOVED if own else RETIRED
            if not own and (ref in done or (may_repeat and _repeatable(one, known, versions, found))):
                does = REPEATED
            elif not own and one.recipe is not None:
                again = str(one.recipe["verb"]) in REPEATED_FROM
                why += "; too little of it would be left" if again else "; making it again would need training"
            versions[ref] = Doomed(ref, why, does, one.task, done.get(ref))
            waiting.remove(ref)
    return tuple(versions.values())


def _repeatable(
    one: KnownVersion,
    known: Mapping[str, KnownVersion],
    versions: Mapping[str, Doomed],
    found: Mapping[str, tuple[str, bool]],
) -> bool:
    """Whether it was derived by a recipe that can be repeated, and enough of its parents is left."""
    if one.recipe is None or one.kind not in DERIVED or one.status != "active":
        return False
    left = [
        p
        for p in one.recipe["parents"]
        if (p in known and known[p].live and p not in found) or (p in versions and versions[p].does == REPEATED)
    ]
    least = REPEATED_FROM.get(str(one.recipe["verb"]))
    return least is not None and len(left) >= least


def _moves(
    registry: Registry, task: str, versions: tuple[Doomed, ...]
) -> tuple[dict[str, str], tuple[str, ...], dict[str, str | None]]:
    """Which version serves which task from now on, which tasks lose theirs, and where aliases move."""
    gone = {version.ref: version for version in versions}
    left = [r for r in registry.adapters(all_versions=True) if r.ref not in gone and r.status == "active"]
    left.sort(key=lambda record: (record.created_at, record.version))
    serve: dict[str, str] = {}
    without = []
    for other, ref in registry.serving().items():
        if ref not in gone or other == task:
            continue
        after = next((r for r in left if r.ref == gone[ref].replacement), None)
        own = [r for r in left if r.task == other]
        also = [r for r in left if other in r.manifest.get("takes_over", ())]
        if after is not None and other in (after.task, *after.manifest.get("takes_over", ())):
            serve[other] = after.ref
        elif gone[ref].does == REPEATED and gone[ref].replacement is None and (own or also):
            continue  # its replacement, otherwise one of those
        elif own:
            serve[other] = next((r.ref for r in reversed(own) if r.kind not in DERIVED), own[-1].ref)
        elif also:
            serve[other] = also[-1].ref
        else:
            without.append(other)
    aliases: dict[str, str | None] = {}
    for name, held in registry.aliases().items():
        for alias, version in held.items():
            if f"{name}@v{version}" in gone and alias != LATEST:
                aliases[f"{name}@{alias}"] = gone[f"{name}@v{version}"].replacement
    return serve, tuple(without), aliases


# -- samples -------------------------------------------------------------------------------------------------


def kept_in(registry: Registry, ref: str) -> Iterator[Example]:
    """The replay samples of a version that stays; its file must be unchanged."""
    for line in samples.read(registry.get(ref)):
        example = example_of(line)
        if example is not None:
            yield example


def example_of(line: str, task: str | None = None) -> Example | None:
    """The example in a line of JSON; None if there is none, or the row belongs to another task."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    if not isinstance(row, dict) or (task is not None and row.get("task", task) != task):
        return None
    if "messages" in row:
        try:
            return Example.from_json(row)
        except (KeyError, TypeError, ValueError):
            return None
    texts = {key: row[key] for key in ("input", "text", "output", "label", "answer", "instruction") if key in row}
    if not all(isinstance(value, str) for value in texts.values()) or not texts:
        return None
    inner = texts.get("input", texts.get("text", ""))
    return Example(inner, texts.get("output", texts.get("label", texts.get("answer"))), texts.get("instruction", ""))


def lines_of(path: Path) -> list[str]:
    """The lines of a file that will be removed, even if it is damaged."""
    if path.is_symlink() or not path.is_file():
        return []
    return path.read_bytes().decode("utf-8", "replace").split("\n")


def examples_of_task(task: str, versions: Iterable[tuple[Path, str]], folders: Iterable[Path]) -> list[Example]:
    """The task's own rows: replay samples, and what its feeds received, each once.

    Args:
        versions: directory and task of each version to remove.
        folders: of runs to remove.
    """
    found: dict[Example, None] = {}
    for path, of in versions:
        for line in lines_of(path / samples.FILE_NAME):
            # a derived version may have rows of several tasks, which then name their task
            example = example_of(line, task) if of == task or f'"{task}"' in line else None
            if example is not None and (of == task or json.loads(line).get("task") == task):
                found[example] = None
    for folder in folders:
        for line in lines_of(folder / RECEIVED):
            example = example_of(line)
            if example is not None:
                found[example] = None
    return list(found)


def _own_samples(
    registry: Registry, task: str, known: Mapping[str, KnownVersion], found: Mapping[str, tuple[str, bool]]
) -> tuple[frozenset[tuple[str, str]], int]:
    places = [(one.path, one.task) for ref in found if (one := known.get(ref)) is not None and one.path is not None]
    feeds = [p for p in run_folders(registry.runs_dir) if run_request(p).get("name") in _adapters_of(known, task)]
    own = examples_of_task(task, places, feeds)
    return frozenset(sample_key(example) for example in own), len(own)


def _adapters_of(known: Mapping[str, KnownVersion], task: str) -> set[str]:
    return {task, *(one.name for one in known.values() if one.task == task)}


def _matches(path: Path, keys: frozenset[tuple[str, str]]) -> bool:
    rows = (example_of(line) for line in lines_of(path / samples.FILE_NAME))
    return any(row is not None and sample_key(row) in keys for row in rows)
