"""Which versions are no longer used, and why each of the others is needed. Only decides; reads and removes nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from adapterhub_cl.types import LATEST, AdapterRecord, Edge

COPY = "pruned_from"  # a child with only this edge is a copy, not something that was built on its parent


@dataclass(frozen=True)
class VersionUse:
    """What a hub records about its versions.

    Attributes:
        records: all versions that are not deleted.
        edges: the whole lineage.
        serving: task → version.
        used: version → when it was last used (UTC): made, measured, mentioned in the log, or asked for an answer.
        samples: version → whether it has replay samples of its task.
        runs: version → the unfinished run that needs it.
        requests: version → how many requests it answered; versions that answered none may be missing.
        answered: version → when it answered the last one (UTC).
    """

    records: Sequence[AdapterRecord]
    edges: Sequence[Edge]
    serving: Mapping[str, str]
    used: Mapping[str, datetime]
    samples: Collection[str] = ()
    runs: Mapping[str, str] = field(default_factory=dict)
    requests: Mapping[str, int] = field(default_factory=dict)
    answered: Mapping[str, datetime] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """Whether a version should be removed, and why (not). `requests` is how many it answered."""

    record: AdapterRecord
    proposed: bool
    reason: str
    used: datetime
    requests: int = 0

    def to_json(self) -> dict[str, Any]:
        return {
            "ref": self.record.ref,
            "proposed": self.proposed,
            "reason": self.reason,
            "last_used": self.used.isoformat(timespec="seconds"),
            "requests": self.requests,
            "bytes": self.record.bytes,
            "status": self.record.status,
        }


def decide(known: VersionUse, now: datetime, days: float) -> list[Verdict]:
    """A verdict for every version, the longest unused first.

    Everything proposed may be removed together: of several versions with the last samples of a task, or several
    adapters that could answer one, the most recently used one is not proposed.
    """
    left = {record.ref: record for record in known.records}
    verdicts = []
    for record in sorted(known.records, key=lambda r: (known.used[r.ref], r.ref)):
        stays = _stays(record, known, left, now, days)
        if stays is None:
            del left[record.ref]
        reason, requests = stays or _unused(record, known, now, days), known.requests.get(record.ref, 0)
        verdicts.append(Verdict(record, stays is None, reason, known.used[record.ref], requests))
    return verdicts


def _stays(
    record: AdapterRecord, known: VersionUse, left: Mapping[str, AdapterRecord], now: datetime, days: float
) -> str | None:
    """Why a version is needed; None if it is not.

    Args:
        left: the versions not proposed for removal so far.
    """
    served = [task for task, ref in known.serving.items() if ref == record.ref]
    if served:
        return f"serves {', '.join(served)}"
    names = [alias for alias in record.aliases if alias != LATEST]
    if names:
        return f"has the alias {', '.join(names)}"
    if record.ref in known.runs:
        return f"the unfinished run {known.runs[record.ref]} needs it"
    if (child := _built_on(record.ref, known)) is not None:
        return f"{child} descends from it"
    others = [other for other in left.values() if other.status == "active" and other.ref != record.ref]
    if record.ref in known.samples and not any(o.task == record.task and o.ref in known.samples for o in others):
        return f"has the only replay samples of {record.task}"
    if LATEST in record.aliases:
        alone = [t for t in record.tasks if not any(t in o.tasks and o.name != record.name for o in others)]
        if alone or not record.tasks:
            return f"the only adapter for {', '.join(alone)}" if alone else "has no known task: decide yourself"
    if now - known.used[record.ref] < timedelta(days=days):
        answered = known.answered.get(record.ref)
        if answered is not None and now - answered < timedelta(days=days):
            return _answered(record.ref, known, now)
        return f"used {max(0, (now - known.used[record.ref]).days)} days ago"
    return None


def _unused(record: AdapterRecord, known: VersionUse, now: datetime, days: float) -> str:
    what = "refused by the gate, and" if record.status == "rejected" else "no alias, nothing built on it,"
    return f"{what} not used in {days:g} days; {_answered(record.ref, known, now)}"


def _answered(ref: str, known: VersionUse, now: datetime) -> str:
    count = known.requests.get(ref, 0)
    if not count or ref not in known.answered:
        return "no requests were counted"
    ago = max(0, (now - known.answered[ref]).days)
    return f"answered {count} request{'s' if count > 1 else ''}, the last {ago} days ago"


def _built_on(ref: str, known: VersionUse) -> str | None:
    """An active version that descends from this one, directly or indirectly, and is not a pruned copy."""
    active = {record.ref for record in known.records if record.status == "active"}
    seen, frontier = {(ref, True)}, [(ref, True)]
    while frontier:
        parent, copies_only = frontier.pop()
        for edge in known.edges:
            if edge.parent != parent:
                continue
            step = (edge.child, copies_only and edge.relation == COPY)
            if not step[1] and edge.child in active:
                return edge.child
            if step not in seen:
                seen.add(step)
                frontier.append(step)
    return None
