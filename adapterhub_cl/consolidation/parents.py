"""The versions that a new one is made of: found, checked, weighted. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterhub_cl.consolidation.expression import parse_expression
from adapterhub_cl.errors import AdapterError, HubError, UsageError
from adapterhub_cl.registry import Registry, check_new
from adapterhub_cl.types import DERIVED, AdapterRecord

if TYPE_CHECKING:
    from adapterhub_cl.adapters.head_files import StoredHead
    from adapterhub_cl.adapters.lora_files import LoraFile


@dataclass(frozen=True)
class Parents:
    """The versions that go in.

    Attributes:
        records: in the order in which they were named.
        weights: what each counts; None: as the method has it.
    """

    records: Sequence[AdapterRecord]
    weights: Sequence[float] | None = None

    @property
    def refs(self) -> list[str]:
        return [record.ref for record in self.records]

    def tasks(self) -> dict[str, AdapterRecord]:
        """Each task that any of them answers for → the newest that was trained for it, else the first that answers for
        it."""
        found = {task: record for record in reversed(self.records) for task in record.tasks}
        found |= {r.task: r for r in sorted(self.records, key=lambda r: (r.created_at, r.version)) if r.task}
        order = dict.fromkeys(task for record in self.records for task in record.tasks)
        return {task: found[task] for task in order}

    def open(self, stack: ExitStack) -> list[LoraFile]:
        """The parents' files, open until the stack closes."""
        from adapterhub_cl.adapters.lora_files import LoraFile

        return [stack.enter_context(LoraFile(record.path)) for record in self.records]


def head_of_all(parents: Parents, adapters: Sequence[LoraFile]) -> StoredHead | None:
    """The head of an encoder's adapter made of these: each task's rows as its own parent has them, and those of labels
    that only others have. None where they have none.

    Args:
        adapters: the parents' files, open.

    Raises:
        AdapterError: the heads stand on different layers.
    """
    from adapterhub_cl.adapters.head_files import joined

    heads = {record.ref: adapter.head() for record, adapter in zip(parents.records, adapters, strict=True)}
    parts = [
        (head, task)
        for task, own in parents.tasks().items()
        for record in (own, *(other for other in parents.records if other is not own))
        if (head := heads[record.ref]) is not None and task in head.layout
    ]
    return joined(parts) if parts else None


def find_parents(
    registry: Registry,
    refs: Sequence[str],
    *,
    weights: Sequence[float] | None = None,
    expression: str | None = None,
    least: int = 1,
) -> Parents:
    """The versions that are named, their files checked.

    Args:
        refs: references; or none of them, and an expression.
        weights: one for each reference.
        least: how many must be named.

    Raises:
        UsageError: too few, one twice, weights that do not match, an expression that cannot be read.
        AdapterError: one was refused by the gate, or is of another base.
        IntegrityError: a file is missing or changed.
    """
    if expression is not None:
        if refs or weights is not None:
            raise UsageError("--expression names the adapters and their weights", "leave the others out")
        known = {record.name for record in registry.adapters()}
        numbers = parse_expression(expression, known)
        refs, weights = list(numbers), list(numbers.values())
    if len(refs) < least:
        raise UsageError(
            f"{len(refs)} adapter{'s' if len(refs) != 1 else ''} named, at least {least} are needed",
            "cl-adapter list shows what is there",
        )
    records = [registry.get(ref) for ref in refs]
    twice = {r.ref for k, r in enumerate(records) if r.ref in [other.ref for other in records[:k]]}
    if twice:
        raise UsageError(f"{', '.join(sorted(twice))} is named twice", "name each version once and give it a weight")
    if weights is not None:
        _check_weights(weights, refs)
    for record in records:
        if record.status == "rejected":
            raise AdapterError(
                f"{record.ref} was refused by the gate; nothing is made of it",
                f"cl-adapter promote {record.ref} --max-forgetting 1, or name another version",
            )
        registry.check_files(record)
    return Parents(records, weights)


def _check_weights(weights: Sequence[float], refs: Sequence[str]) -> None:
    if len(weights) != len(refs):
        raise UsageError(
            f"{len(weights)} weight{'s' * (len(weights) != 1)} for {len(refs)} adapters ({', '.join(refs)})",
            "--weights 0.7,0.3: one for each",
        )
    if not all(math.isfinite(weight) for weight in weights):
        raise UsageError("a weight is not a finite number", "--weights 0.7,0.3")
    sizes = [abs(weight) for weight in weights if weight]
    if sizes and not (min(sizes) >= 1e-6 and max(sizes) <= 1e6):
        raise UsageError("a weight's size must be between 0.000001 and 1,000,000, or 0", "--weights 0.7,0.3")
    if not any(weights):
        raise UsageError("all weights are 0: nothing would be left", "change the weights or the expression")


def check_new_name(registry: Registry, name: str, new_version: bool) -> None:
    """Raise where the new version's name cannot be used: it is taken, or that of a task's own adapter."""
    check_new(name)
    there = next((record for record in registry.adapters() if record.name == name), None)
    if there is None:
        return
    if not new_version:
        raise UsageError(f"{name} already exists ({there.ref})", "choose another --as, or add --new-version")
    if there.kind not in DERIVED:
        raise UsageError(f"{there.ref} was {there.kind}, not made of other versions", "choose another --as")


def least_retention(registry: Registry, wanted: float | None) -> float | None:
    """The bound of the gate: as asked, else `min_retention` in hub.toml's [defaults], else None.

    Raises:
        UsageError: what was asked is not between 0 and 1.
        HubError: the default is no number between 0 and 1.
    """
    found = registry.hub_file.defaults.get("min_retention") if wanted is None else wanted
    if found is None:
        return None
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 <= found <= 1:
        if wanted is not None:
            raise UsageError(f"--min-retention must be between 0 and 1, not {wanted:g}", "0.95 allows a loss of 5 %")
        raise HubError(
            f"{registry.path / 'hub.toml'}: min_retention is {found!r}, not between 0 and 1", "fix that line"
        )
    return float(found)


def one_task(tasks: Mapping[str, object]) -> tuple[str, list[str]]:
    """The task of the new version, and those that it would take over: its own only where it has just one."""
    names = list(tasks)
    return (names[0], []) if len(names) == 1 else ("", names)
