"""The stored replay samples of a hub: shown, exported, removed, limited by a budget."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adapterhub_cl.data.plain_text import plain
from adapterhub_cl.errors import IntegrityError, UsageError
from adapterhub_cl.registry import HubFile, Registry, check_local, files, parse_ref, samples
from adapterhub_cl.registry.names import refuse_inside
from adapterhub_cl.samples.budget import Budget, fitting, parse_budget, shares
from adapterhub_cl.types import AdapterRecord, Example

BUDGET_KEY = "replay_budget"


@dataclass(frozen=True)
class Kept:
    """The samples of one version.

    Attributes:
        policy: the selection policy that chose the samples.
        bytes: size of `replay.jsonl`.
    """

    ref: str
    task: str
    policy: str
    samples: int
    bytes: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Cut:
    """A version that was cut to its share: its number of samples before and after."""

    ref: str
    before: int
    after: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Samples:
    """The replay samples of a hub's adapters. Does not load torch.

    Args:
        registry: the opened hub.
    """

    def __init__(self, registry: Registry) -> None:
        self.registry = registry

    # -- looking ---------------------------------------------------------------------------------

    def rows(self) -> list[Kept]:
        """The samples of each adapter's newest active version, sorted by name; does not read the samples themselves."""
        return [_kept(record) for record in self._newest()]

    def show(self, ref: str, limit: int | None = None) -> list[Example]:
        """A version's samples in order of priority, the first `limit` of them.

        Raises:
            UnknownNameError: no such adapter or version.
            IntegrityError: the file is damaged.
        """
        record = self.record(ref)
        return [_example(record, k, line) for k, line in enumerate(samples.read(record)[:limit], 1)]

    def record(self, ref: str) -> AdapterRecord:
        """The version that `show` uses: for a bare name the newest active one, otherwise the newest."""
        if not self._is_adapter(ref):
            return self.registry.get(ref)
        versions = self.registry.versions(ref)
        return next((v for v in reversed(versions) if v.status == "active"), versions[-1])

    def _is_adapter(self, ref: str) -> bool:
        """Whether a reference is an adapter's bare name, which means all its versions."""
        asked = parse_ref(ref)
        bare = asked.version is None and asked.alias is None
        return bare and any(record.name == asked.name for record in self.registry.adapters())

    def export(self, ref: str | None, path: str | Path, *, overwrite: bool = False) -> int:
        """Write samples as JSONL that `add-task` can read; returns how many.

        Args:
            ref: None for the newest active version of every adapter; each row then has its `task`.

        Raises:
            UsageError: the file exists and `overwrite` is False; or it is a directory.
            StorageError: the disk cannot be written.
        """
        path = check_local(path, "a file")
        if path.is_dir():
            raise UsageError(f"{path} is a directory", "name a file, such as samples.jsonl")
        if path.exists() and not overwrite:
            raise UsageError(f"{path} already exists", "name another file, or add --overwrite")
        if not path.parent.is_dir():
            raise UsageError(f"the directory {path.parent} does not exist", "create it first")
        refuse_inside(path, self.registry.path, "name a file outside of it")
        if ref is not None:
            rows = [example.to_json() for example in self.show(ref)]
        else:
            rows = [
                {"task": record.task, **example.to_json()}
                for record in self._newest()
                for example in self.show(record.ref)
            ]
        files.atomic_write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        return len(rows)

    # -- removing --------------------------------------------------------------------------------

    def find(self, ref: str, *, rows: Sequence[int] | None = None, matching: str | None = None) -> dict[str, list[int]]:
        """Which samples `drop` would remove: version → row numbers from 1, without versions that have none.

        A bare name means all versions of the adapter: samples with the same input as a chosen row are removed from
        each of them. `name@vN` means that version only.

        Raises:
            UnknownNameError: no such adapter or version.
            UsageError: a row that does not exist, an empty text, or both rows and a text.
            IntegrityError: a file is damaged.
        """
        if rows is not None and matching is not None:
            raise UsageError("rows and a text to match cannot be combined", "give one of them")
        if matching is not None and not matching.strip():
            raise UsageError("the text to match is empty", "give a part of the sample's text")
        named = self.record(ref)
        versions = self.registry.versions(named.name) if self._is_adapter(ref) else [named]
        wanted: set[tuple[str, str]] = set()
        if rows is not None:
            shown = self.show(named.ref)
            for number in rows:
                if not 1 <= number <= len(shown):
                    raise UsageError(
                        f"{named.ref} has no sample {number}; it has {len(shown)}",
                        f"list them with their numbers: cl-adapter replay show {ref}",
                    )
                wanted.add(sample_key(shown[number - 1]))
        found = {}
        for record in versions:
            if rows is None and matching is None:  # all of them, even if the file is damaged
                if count := _kept(record).samples:
                    found[record.ref] = list(range(1, count + 1))
                continue
            numbers = [
                k
                for k, example in enumerate(self.show(record.ref), 1)
                if (rows is None or sample_key(example) in wanted) and (matching is None or _has(example, matching))
            ]
            if numbers:
                found[record.ref] = numbers
        return found

    def drop(self, ref: str, *, rows: Sequence[int] | None = None, matching: str | None = None) -> int:
        """Permanently remove samples, see `find`; with neither rows nor a text, all of them.

        Returns:
            how many were removed, over all versions. The log records how many of which version, not their content.
        """
        with self.registry.exclusively():  # so that the row numbers stay valid until they are used
            found = self.find(ref, rows=rows, matching=matching)
            wanted = []
            for version, numbers in found.items():
                record, gone = self.registry.get(version), set(numbers)
                held = [] if rows is None and matching is None else samples.read(record)
                kept = [line for k, line in enumerate(held, 1) if k not in gone]
                wanted.append(samples.Replacement(version, _text(kept), {"samples": len(gone)}))
            self.registry.replace_all_samples(wanted, verb="replay-drop")
            if self._is_adapter(ref):
                self.registry.discard_deleted_samples(ref)
        return sum(map(len, found.values()))

    # -- the budget ------------------------------------------------------------------------------

    def budget(self) -> Budget | None:
        """The limit for all samples together; None for no limit.

        Raises:
            UsageError: the value in hub.toml is invalid.
        """
        said = HubFile.read(self.registry.path).defaults.get(BUDGET_KEY)
        try:
            return parse_budget(said)
        except UsageError as error:
            raise UsageError(
                f"hub.toml: {BUDGET_KEY}: {error.message}", f"set it: cl-adapter replay budget SIZE ({error.hint})"
            ) from error

    def set_budget(self, value: int | str | None) -> list[Cut]:
        """Set the budget (`2000`, `"2MB"`, None for no limit) and cut to it, both or neither; returns what was cut.

        Raises:
            UsageError: not a budget; nothing was changed.
        """
        budget = parse_budget(value)
        stored = None if budget is None else budget.amount if budget.unit == "samples" else str(budget)
        with self.registry.exclusively():
            return self._cut_to(budget, {BUDGET_KEY: stored})

    def rebalance(self) -> list[Cut]:
        """Cut samples from the end, the lowest priority first, until the budget is met; returns what was cut.

        Every task gets an equal share of the budget, and what it does not use goes to the others; adapters of one task
        share equally. Only each adapter's newest active version counts; its other versions are cut to the same share.
        """
        budget = self.budget()
        if budget is None:
            return []
        with self.registry.exclusively():
            return self._cut_to(budget)

    def _cut_to(self, budget: Budget | None, defaults: Mapping[str, Any] | None = None) -> list[Cut]:
        """Cut to a budget, and set defaults with it."""
        done, wanted = [], []
        for record, kept, after in self._over(budget) if budget is not None else ():
            cut = Cut(record.ref, len(kept), after)
            wanted.append(samples.Replacement(record.ref, _text(kept[:after]), {"from": cut.before, "to": cut.after}))
            done.append(cut)
        self.registry.replace_all_samples(wanted, verb="replay-budget", defaults=defaults)
        return done

    def _over(self, budget: Budget) -> Iterator[tuple[AdapterRecord, list[str], int]]:
        """Each version that has more than its share: its samples, and how many of them it may keep."""
        newest = self._newest()
        kept_now = {record.name: _kept(record) for record in newest}
        sizes = {name: k.bytes if budget.unit == "bytes" else k.samples for name, k in kept_now.items()}
        by_task: dict[str, dict[str, int]] = {}
        for record in newest:
            by_task.setdefault(record.task or record.name, {})[record.name] = sizes[record.name]
        of_task = shares({task: sum(held.values()) for task, held in by_task.items()}, budget.amount)
        share = {name: n for task, held in by_task.items() for name, n in shares(held, of_task[task]).items()}
        for name in sorted(share):
            full = share[name] >= sizes[name]  # the newest is not cut; older versions do not count and are not either
            for record in () if full else self.registry.versions(name):
                kept = samples.read(record)
                after = fitting([len(line.encode()) + 1 for line in kept], share[name], budget.unit)
                if after < len(kept):
                    yield record, kept, after

    def _newest(self) -> list[AdapterRecord]:
        found: dict[str, AdapterRecord] = {}
        for record in self.registry.adapters(all_versions=True, include_rejected=False):
            found[record.name] = record  # sorted by name and version
        return [record for record in found.values() if record.status == "active"]


def _kept(record: AdapterRecord) -> Kept:
    about = record.manifest.get("replay") or {}
    size = int(record.manifest["files"].get(samples.FILE_NAME, {}).get("bytes", 0))
    count = int(about.get("samples", 0)) if samples.FILE_NAME in record.manifest["files"] else 0
    return Kept(record.ref, record.task, str(about.get("policy", "")) if count else "", count, size)


def _example(record: AdapterRecord, number: int, line: str) -> Example:
    try:
        found = Example.from_json(json.loads(line))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise IntegrityError(
            f"{record.path / samples.FILE_NAME} line {number} is not a sample ({type(error).__name__}: {error})",
            f"remove all: cl-adapter replay drop {record.ref} --all, or restore the file",
        ) from error
    return found


def sample_key(example: Example) -> tuple[str, str]:
    """What identifies the same person's data in two samples: the input, ignoring case, spacing and how an accent is
    encoded; without an input, the instruction and the answer."""
    if example.text.strip():
        return (plain(example.text), "")
    return (plain(example.instruction), plain(example.answer or ""))


def _has(example: Example, text: str) -> bool:
    """Whether any text of a sample contains this one; case, spacing and how an accent is encoded do not matter."""
    return any(plain(text) in plain(part) for part in _texts(example.to_json()))


def _texts(value: Any) -> Iterator[str]:
    """Every text within plain JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from (text for inner in value.values() for text in _texts(inner))
    elif isinstance(value, list | tuple):
        yield from (text for inner in value for text in _texts(inner))


def _text(lines: Sequence[str]) -> str:
    return "".join(line + "\n" for line in lines)
