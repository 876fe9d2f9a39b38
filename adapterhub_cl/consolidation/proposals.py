"""What could go: adapters that do the same, and versions that nobody uses. Proposes; removes only what it proposed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from adapterhub_cl.context import Hub
from adapterhub_cl.errors import AdapterError, AdapterHubError, UsageError
from adapterhub_cl.pruning.unused import Verdict, VersionUse, decide
from adapterhub_cl.registry import Registry
from adapterhub_cl.registry.samples import FILE_NAME as SAMPLES
from adapterhub_cl.types import AdapterRecord

if TYPE_CHECKING:
    pass

THRESHOLD = 0.9
_LONG_AGO = datetime.min.replace(tzinfo=UTC)
EXAMPLES = 100  # replay samples of a task that two adapters are compared on


# -- unused ----------------------------------------------------------------------------------------------------


def unused(registry: Registry, days: float, now: datetime | None = None) -> list[Verdict]:
    """A verdict for every version; see `adapterhub_cl.pruning.unused`.

    Raises:
        UsageError: a negative number of days.
    """
    if not 0 <= days < 1e6:
        raise UsageError(f"--days must be between 0 and 1,000,000, not {days:g}", "--days 30")
    records = registry.adapters(all_versions=True)
    requests: dict[str, int] = {}
    answered: dict[str, datetime] = {}
    for row in registry.usage():
        requests[row.ref] = requests.get(row.ref, 0) + row.requests
        answered[row.ref] = max(answered.get(row.ref, _LONG_AGO), _moment(row.last_at))
    known = VersionUse(
        records,
        registry.lineage(),
        registry.serving(),
        last_used(registry, records),
        {r.ref for r in records if (r.path / SAMPLES).is_file() and (r.path / SAMPLES).stat().st_size},
        _needed_by_runs(registry),
        requests,
        answered,
    )
    return decide(known, now or datetime.now(UTC), days)


def _needed_by_runs(registry: Registry) -> dict[str, str]:
    found = {}
    for ref, run in registry.needed_by_runs().items():
        with suppress(AdapterHubError):  # it is gone, or never was
            found[registry.get(ref).ref] = run
    return found


def last_used(registry: Registry, records: Sequence[AdapterRecord]) -> dict[str, datetime]:
    """Version → the newest of: it was made, the log mentions it, it was measured, it answered a request."""
    found = {record.ref: _moment(record.created_at) for record in records}
    times = [(event.ref, event.at) for event in registry.events()]
    times += [(stored.ref, stored.created_at) for stored in registry.evaluations()]
    times += [(row.ref, row.last_at) for row in registry.usage()]
    for ref, at in times:
        if ref in found:
            found[ref] = max(found[ref], _moment(at))
    return found


def _moment(at: str) -> datetime:
    then = datetime.fromisoformat(at)
    return then if then.tzinfo else then.replace(tzinfo=UTC)


def remove(registry: Registry, refs: Sequence[str], days: float) -> list[AdapterRecord]:
    """Mark versions deleted; their files stay until `gc`.

    Raises:
        AdapterError: one is not (or no longer) among those that are proposed; none is removed.
    """
    wanted = [registry.get(ref) for ref in refs]
    verdicts = {verdict.record.ref: verdict for verdict in unused(registry, days)}
    for record in wanted:
        verdict = verdicts[record.ref]
        if not verdict.proposed:
            raise AdapterError(
                f"{record.ref} is not unused: {verdict.reason}; nothing was removed", "cl-adapter prune --unused"
            )
    return [registry.delete(record.ref, reason="prune") for record in wanted]


# -- redundant -------------------------------------------------------------------------------------------------


def redundant(hub: Hub, threshold: float, *, evaluate: bool = True) -> dict[str, Any]:
    """Pairs of adapters that may do the same.

    Args:
        evaluate: compare predictions; needs the base.

    Raises:
        UsageError: the threshold is not between 0 and 1.
    """
    from adapterhub_cl.adapters.lora_files import LoraFile
    from adapterhub_cl.pruning.redundancy import redundant as is_redundant
    from adapterhub_cl.pruning.redundancy import similarities

    if not 0 < threshold <= 1:
        raise UsageError(f"--threshold must be above 0 and at most 1, not {threshold:g}", "--threshold 0.9")
    with ExitStack() as stack:
        records, files = [], []
        for record in hub.registry.adapters(include_rejected=False):
            try:
                hub.registry.check_files(record)
                files.append(stack.enter_context(LoraFile(record.path)))
                records.append(record)
            except AdapterHubError as error:
                hub.reporter.note(f"note: {record.ref} is skipped: {error.message}")
        found = similarities(files)
    rows: list[dict[str, Any]] = []
    compare = _Comparison(hub, evaluate)
    for (i, j), similarity in sorted(found.items(), key=lambda pair: -pair[1].spaces):
        one, other = records[i], records[j]
        near = similarity.spaces >= threshold
        agreement, count = compare.agreement(one, other) if near else (None, 0)
        name = f"{one.name}-{other.name}"
        rows.append(
            {
                "adapters": [one.ref, other.ref],
                "similarity": similarity.spaces,
                "columns": similarity.columns,
                "rows": similarity.rows,
                "cosine": similarity.cosine,
                "agreement": agreement,
                "n": count,
                "redundant": is_redundant(similarity, agreement, threshold),
                "command": f"merge {one.ref} {other.ref} --as {name} --min-retention 0.95",
            }
        )
    near_rows = [row for row in rows if row["similarity"] >= threshold]
    return {
        "threshold": threshold,
        "compared": [record.ref for record in records],
        "pairs": near_rows,
        "nearest": None if near_rows or not rows else rows[0],
    }


class _Comparison:
    """Predictions of adapters on each other's replay samples, each computed once."""

    def __init__(self, hub: Hub, evaluate: bool) -> None:
        self.hub, self.registry, self.reporter, self.evaluate = hub, hub.registry, hub.reporter, evaluate
        self._known: dict[tuple[str, str], list[str]] = {}

    def agreement(self, one: AdapterRecord, other: AdapterRecord) -> tuple[float | None, int]:
        """Share of equal predictions on the samples of both's tasks, and how many there are; None where either has
        none of its own."""
        from adapterhub_cl.evaluation.probes import can_answer
        from adapterhub_cl.samples.of_task import samples_of

        if not self.evaluate:
            return None, 0
        kept = {}
        for record in (one, other):
            for task in record.tasks:
                found = samples_of(self.registry, task, record)
                asked = found is not None and all(
                    can_answer(self.registry.base, either, found.task) for either in (one, other)
                )
                if found is not None and found.task.kind != "text" and asked:
                    kept[task] = found
            if not any(task in kept for task in record.tasks):
                return None, 0
        same = total = 0
        for samples in kept.values():
            both = [self._answers(record, samples) for record in (one, other)]
            same += sum(a == b for a, b in zip(*both, strict=True))
            total += len(both[0])
        return same / total, total

    def _answers(self, record: AdapterRecord, samples: Any) -> list[str]:
        key = (record.ref, samples.task.name)
        if key not in self._known:
            self._known[key] = self._predicted(record, samples)
        return self._known[key]

    def _predicted(self, record: AdapterRecord, samples: Any) -> list[str]:
        from adapterhub_cl import objectives
        from adapterhub_cl.adapters.as_served import as_served

        base, examples = self.hub.base, samples.examples[:EXAMPLES]
        piece = self.reporter.piece(f"{record.ref} answers {samples.task.name}", len(examples))
        with piece as advance, as_served(base, record.path) as model, base.autocast():
            answers = objectives.of(base.info).predict(
                model, base.tokenizer, samples.task, examples, max_length=base.context, progress=advance
            )
        return [answer.text for answer in answers]
