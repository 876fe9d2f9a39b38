"""The content of a report, as plain frozen records: collected in one module, drawn in another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from adapterhub_cl.evaluation.base_effect import BaseEffect
from adapterhub_cl.evaluation.gate import Effect
from adapterhub_cl.evaluation.matrix import AccuracyMatrix
from adapterhub_cl.registry import Event, Usage
from adapterhub_cl.reporting.searches import TunedFacts
from adapterhub_cl.samples.budget import Budget
from adapterhub_cl.samples.store import Kept
from adapterhub_cl.types import BaseInfo, Edge


@dataclass(frozen=True)
class Score:
    """A recorded score of a version on a task.

    Attributes:
        value: a share from 0 to 1; perplexity is converted to the likelihood of a token, 1 ÷ perplexity.
        metric: the metric.
        n: number of examples.
        interval: 95 %, if it was recorded.
    """

    value: float
    metric: str
    n: int
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class TaskFacts:
    """One task as it is served now.

    Attributes:
        served_by: the version that serves it; empty if there is none.
        now: that version's recorded score; None if it was not measured.
        best: the highest score of an accepted version that was trained for it or took it over, and that version.
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
        """The current score minus the best one; negative if something was forgotten. None if a score is unknown."""
        return None if self.now is None or self.best is None else self.now.value - self.best[1]


@dataclass(frozen=True)
class VersionFacts:
    """One version.

    Attributes:
        step: its number in the order in which the hub's versions were made, from 1.
        serves: the tasks that it serves now.
        scores: task → score, for its own tasks.
        retention: task → share of its parent's score, for a merged, distilled or pruned version.
        answers: whether it was made to serve its tasks (a derived one serves once it is promoted).
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
    """The gate's decision on a version when it was made, or when its promotion was refused.

    Attributes:
        limit: the largest accepted drop, or the lowest accepted retention; None accepts everything.
        of_retention: whether it is the gate of a merge, a distillation or a pruning; otherwise that of forgetting.
        status: the version's current status; a refused one may have been accepted later. For a refused promotion:
            `rejected` until the version is promoted after all.
        promotion: whether it is about a promotion.
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
    """The losses of a merged, distilled or pruned version.

    Attributes:
        how: the method and its settings, in words.
        error: truncation error of the whole adapter, ‖ΔW−ΔW_r‖/‖ΔW‖; None if nothing was truncated.
        layers: layer → its truncation error, in the order of the recipe.
        retention: task → retention; empty if it was not measured.
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
class StartFacts:
    """What a version started from, of the versions of other tasks that were tried.

    Attributes:
        parents: what it started from, in words; empty: a fresh adapter.
        best: the best start that was tried, in words.
        fresh, kin: losses from a fresh adapter and from the best start, on `rows` rows after `steps` steps.
        tried: how many starts were tried.
    """

    ref: str
    parents: str
    best: str
    fresh: float
    kin: float
    rows: int
    steps: int
    tried: int


@dataclass(frozen=True)
class RouterFacts:
    """A fitted router's decisions for its held-out samples.

    Attributes:
        rows: task → chosen task → how many samples.
        fitted_at: UTC, ISO 8601; empty if unknown.
        unknown: tasks of the hub that it does not know.
    """

    name: str
    fitted_at: str
    rows: Mapping[str, Mapping[str, int]]
    unknown: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """The number of held-out samples."""
        return sum(sum(row.values()) for row in self.rows.values())

    @property
    def right(self) -> int:
        return sum(row.get(task, 0) for task, row in self.rows.items())

    def mistakes(self) -> list[tuple[str, str, int]]:
        """(task, chosen task, how many), the most frequent first."""
        found = [(task, taken, n) for task, row in self.rows.items() for taken, n in row.items() if taken != task and n]
        return sorted(found, key=lambda row: (-row[2], row[0], row[1]))


@dataclass(frozen=True)
class Facts:
    """The whole content of a report.

    Attributes:
        name: the hub's folder name.
        bytes: of all versions' files.
        stages: for each row of the matrix the version that was learned.
        streams: matrices of the comparison hubs in `streams/`, each with the stream's name.
        moves: promotions, rollbacks and removals; newest first.
        notes: what could not be read and was skipped.
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
    base_effects: tuple[tuple[str, BaseEffect], ...] = ()
    derived: tuple[DerivedFacts, ...] = ()
    edges: tuple[Edge, ...] = ()
    starts: tuple[StartFacts, ...] = ()
    tuned: tuple[TunedFacts, ...] = ()
    router: RouterFacts | None = None
    usage: tuple[Usage, ...] = ()
    kept: tuple[Kept, ...] = ()
    budget: Budget | None = None
    streams: tuple[tuple[str, AccuracyMatrix], ...] = ()
    moves: tuple[Event, ...] = ()
    max_forgetting: float | None = None
    notes: tuple[str, ...] = ()
