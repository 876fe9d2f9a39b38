"""What a report tells of a hub, as plain frozen records: gathered in one place, drawn in another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from adapterhub_cl.evaluation.gate import Effect
from adapterhub_cl.evaluation.matrix import AccuracyMatrix
from adapterhub_cl.registry import Event, Usage
from adapterhub_cl.samples.budget import Budget
from adapterhub_cl.samples.store import Kept
from adapterhub_cl.types import BaseInfo, Edge


@dataclass(frozen=True)
class Score:
    """A recorded score that stands for a task.

    Attributes:
        value: a share from 0 to 1; perplexity is turned into the likelihood of a token, 1 ÷ perplexity.
        metric: what was measured.
        n: number of examples.
        interval: 95 %, where it was recorded.
    """

    value: float
    metric: str
    n: int
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class TaskFacts:
    """One task as it is served now.

    Attributes:
        served_by: the version that answers for it; empty where none does.
        now: that version's recorded score; None where it was not measured.
        best: the highest score of an accepted version that was trained for it or took it over, and which one that is.
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    metric: str
    served_by: str = ""
    now: Score | None = None
    best: tuple[str, float] | None = None

    @property
    def change(self) -> float | None:
        """The score now against the best one; below 0 it is forgotten. None where a score is not known."""
        return None if self.now is None or self.best is None else self.now.value - self.best[1]


@dataclass(frozen=True)
class VersionFacts:
    """One version.

    Attributes:
        step: its number in the order in which the hub's versions were made, from 1.
        serves: the tasks that it answers for now.
        scores: task → score, of its own tasks.
        retention: task → share of its parent's score, of a merged, distilled or pruned version.
        answers: whether it was made to answer for its tasks (a derived one serves once it is promoted).
    """

    ref: str
    kind: str
    tasks: tuple[str, ...]
    rank: int
    bytes: int
    created_at: str
    status: str
    step: int
    aliases: tuple[str, ...] = ()
    strategy: str = ""
    serves: tuple[str, ...] = ()
    scores: Mapping[str, Score] = field(default_factory=dict)
    retention: Mapping[str, float] = field(default_factory=dict)
    answers: bool = True
    requests: int = 0


@dataclass(frozen=True)
class GateFacts:
    """What the gate said of a version when it was made, or when it refused to promote it.

    Attributes:
        limit: the largest drop that passes, or the least retention; None lets everything pass.
        of_retention: the gate of a merge, a distillation or a pruning; else the one of forgetting.
        status: of the version by now; a refused one may have been let pass. Of a refused promotion: `rejected` until
            the version is promoted all the same.
        promotion: whether it is one.
    """

    ref: str
    at: str
    limit: float | None
    of_retention: bool
    passed: bool
    status: str
    effects: tuple[Effect, ...]
    promotion: bool = False


@dataclass(frozen=True)
class DerivedFacts:
    """What a merged, distilled or pruned version lost.

    Attributes:
        how: the method and what was asked of it, in words.
        error: truncation error as a whole, ‖ΔW−ΔW_r‖/‖ΔW‖; None where nothing was truncated.
        layers: layer → its truncation error, in the order of the recipe.
        retention: task → retention; empty where it was not measured.
    """

    ref: str
    kind: str
    how: str
    parents: tuple[str, ...]
    rank: int
    bytes: int
    status: str
    error: float | None
    layers: Mapping[str, float]
    retention: Mapping[str, float]


@dataclass(frozen=True)
class RouterFacts:
    """What a fitted router took its held-out samples for.

    Attributes:
        rows: task → chosen task → how many samples.
        fitted_at: UTC, ISO 8601; empty where it is not known.
        unknown: tasks of the hub that it does not know.
    """

    name: str
    fitted_at: str
    rows: Mapping[str, Mapping[str, int]]
    unknown: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """Held-out samples."""
        return sum(sum(row.values()) for row in self.rows.values())

    @property
    def right(self) -> int:
        """Those that were taken for what they are."""
        return sum(row.get(task, 0) for task, row in self.rows.items())

    def mistakes(self) -> list[tuple[str, str, int]]:
        """(task, taken for, how many), the most first."""
        found = [(task, taken, n) for task, row in self.rows.items() for taken, n in row.items() if taken != task and n]
        return sorted(found, key=lambda row: (-row[2], row[0], row[1]))


@dataclass(frozen=True)
class Facts:
    """Everything that a report tells.

    Attributes:
        name: the hub's, which is its folder's.
        bytes: of all versions' files.
        stages: for each row of the matrix the version that was learned.
        streams: matrices of the comparison hubs in `streams/`, each with the stream's name.
        moves: what was let serve, taken back, removed; newest first.
        notes: what could not be read, and was passed over.
    """

    name: str
    base: BaseInfo
    hub_made_at: str
    made_at: str
    tool: str
    bytes: int
    tasks: tuple[TaskFacts, ...] = ()
    versions: tuple[VersionFacts, ...] = ()
    matrix: AccuracyMatrix | None = None
    stages: tuple[str, ...] = ()
    gates: tuple[GateFacts, ...] = ()
    derived: tuple[DerivedFacts, ...] = ()
    edges: tuple[Edge, ...] = ()
    router: RouterFacts | None = None
    usage: tuple[Usage, ...] = ()
    kept: tuple[Kept, ...] = ()
    budget: Budget | None = None
    streams: tuple[tuple[str, AccuracyMatrix], ...] = ()
    moves: tuple[Event, ...] = ()
    max_forgetting: float | None = None
    notes: tuple[str, ...] = ()
