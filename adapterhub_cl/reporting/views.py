"""From facts to the input of the page's template: cells, rows and drawings of each section. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from adapterhub_cl.evaluation.gate import Effect
from adapterhub_cl.evaluation.matrix import AccuracyMatrix, mean_and_spread
from adapterhub_cl.evaluation.retention import retention
from adapterhub_cl.reporting import drawing, lineage, wording
from adapterhub_cl.reporting.facts import DerivedFacts, Facts, GateFacts, RouterFacts, TaskFacts, VersionFacts
from adapterhub_cl.types import DERIVED, Edge

MOST_COLUMNS = 30  # of a heat map; more tasks are shown as a list
MOST_CURVES = 24
MOST_BOXES = 60  # of the lineage graph; more versions are shown as a table


@dataclass(frozen=True)
class Cell:
    """A cell of a heat map.

    Attributes:
        level: 0 to 10, its colour; None for none.
        look: further classes: `own`, `ahead`, `lost`.
    """

    text: str
    level: int | None = None
    look: str = ""
    title: str = ""


@dataclass(frozen=True)
class KeptView:
    """The scores of one task of the matrix: when it was learned, the best since, and the last."""

    task: str
    learned: float | None
    best: float | None
    last: float | None

    @property
    def change(self) -> float | None:
        return None if self.last is None or self.learned is None else self.last - self.learned

    @property
    def order(self) -> float:
        """Sort key: the largest loss first; unknown ones last."""
        return math.inf if self.change is None else self.change


def level(value: float, scale: tuple[float, float] = (0.0, 1.0)) -> int:
    """Which of the eleven colours a value has on a scale."""
    low, high = scale
    return round(10 * min(1.0, max(0.0, (value - low) / (high - low))))


def scale_of(matrix: AccuracyMatrix) -> tuple[float, float]:
    """The ends of a matrix' colour scale: tenths around its scores, at least 0.4 apart."""
    return drawing.limits([cell for row in matrix.rows for cell in row if cell is not None], least=0.4)


def matrix_cells(matrix: AccuracyMatrix, limit: float | None) -> list[list[Cell]]:
    """The heat map of an accuracy matrix, coloured on the scale that `scale_of` gives.

    Args:
        limit: a cell that is further than this below the task's score when it was learned is marked as lost.
    """
    rows, scale = [], scale_of(matrix)
    for i, row in enumerate(matrix.rows):
        cells = []
        for j, value in enumerate(row):
            if value is None:
                title = "not measured" if j <= i else "not yet learned"
                cells.append(Cell("", None, "blank", f"{matrix.tasks[j]} after {matrix.tasks[i]}: {title}"))
                continue
            first = matrix.rows[j][j] if j < len(matrix.rows) else None
            lost = j < i and first is not None and first - value > (limit or 0.0)
            look = "own" if i == j else "ahead" if j > i else "lost" if lost else ""
            title = f"{matrix.tasks[j]} after {matrix.tasks[i]}: {value:.4f}"
            if j < i and first is not None:
                title += f", {wording.change(value - first)} since it was learned"
            cells.append(Cell(f"{value:.2f}", level(value, scale), look, title))
        rows.append(cells)
    return rows


def kept(matrix: AccuracyMatrix) -> list[KeptView]:
    """The scores of each task, in the order in which they were learned."""
    last = len(matrix.rows) - 1
    found = []
    for j in range(len(matrix.rows)):
        since = [cell for row in matrix.rows[j:] if (cell := row[j]) is not None]
        found.append(KeptView(matrix.tasks[j], matrix.rows[j][j], max(since, default=None), matrix.rows[last][j]))
    return found


@dataclass(frozen=True)
class Summary:
    """The key figures at the top of the page.

    Attributes:
        average: mean of the known scores of the serving versions; None if none is known.
        scored: how many tasks that includes, out of `tasks` that have a serving version.
        worst: the task that lost most since its best score; None if none lost anything.
        weakest: the task with the lowest score.
        rejected: versions that the gate refused when they were made and that are still rejected.
        refused: these, and the versions whose promotion it refused and that were not promoted since.
    """

    average: float | None
    scored: int
    served: int
    worst: TaskFacts | None
    weakest: TaskFacts | None
    rejected: tuple[str, ...]
    refused: tuple[str, ...]


def summary(facts: Facts) -> Summary:
    served = [task for task in facts.tasks if task.served_by]
    values = [task.now.value for task in served if task.now is not None]
    lost = [task for task in served if task.change is not None and task.change < 0]
    scored = [task for task in served if task.now is not None]
    rejected = [v.ref for v in facts.versions if v.status == "rejected"]
    there = {v.ref for v in facts.versions}
    kept_back = [g.ref for g in facts.gates if g.promotion and g.status == "rejected" and g.ref in there]
    return Summary(
        average=mean_and_spread(values)[0] if values else None,
        scored=len(values),
        served=len(served),
        worst=min(lost, key=lambda t: t.change or 0.0, default=None),
        weakest=min(scored, key=lambda t: t.now.value if t.now else 0.0, default=None),
        rejected=tuple(rejected),
        refused=tuple(dict.fromkeys([*rejected, *kept_back])),
    )


@dataclass(frozen=True)
class Curve:
    """One task's scores over time, drawn.

    Attributes:
        rows: (version, when, score, kind) of each dot.
    """

    task: str
    drawing: Markup
    rows: Sequence[tuple[str, str, float, str]]


def curves(facts: Facts) -> tuple[list[Curve], list[str]]:
    """A curve for each task with at least two scored versions, those that lost most first; and the tasks with only one
    score."""
    found: dict[str, list[tuple[VersionFacts, float]]] = {}
    for version in facts.versions:
        for task, score in version.scores.items():
            found.setdefault(task, []).append((version, score.value))
    several = {task: rows for task, rows in found.items() if len(rows) > 1}
    alone = [task for task, rows in found.items() if len(rows) == 1]
    change = {task.name: task.change or 0.0 for task in facts.tasks}
    order = sorted(several, key=lambda task: (change.get(task, 0.0), task))
    axis = drawing.limits([value for rows in several.values() for _, value in rows])
    base = dict(zip(facts.matrix.tasks, facts.matrix.base, strict=False)) if facts.matrix else {}
    steps = max((version.step for version in facts.versions), default=1)
    made = []
    for number, task in enumerate(order):
        dots = [_dot(version, value, task) for version, value in several[task]]
        first, last = several[task][0], several[task][-1]
        label = f"{task}: from {first[1]:.3f} ({first[0].ref}) to {last[1]:.3f} ({last[0].ref})"
        drawn = drawing.curve(dots, steps, axis, label, base.get(task)) if number < MOST_CURVES else Markup("")
        rows = [(v.ref, wording.moment(v.created_at), value, _what(v, task)) for v, value in several[task]]
        made.append(Curve(task, drawn, rows))
    return made, sorted(alone)


def _dot(version: VersionFacts, value: float, task: str) -> drawing.Dot:
    look = "rejected" if version.status == "rejected" else "derived" if version.kind in DERIVED else "served"
    title = f"{version.ref}: {value:.4f} ({_what(version, task)})"
    return drawing.Dot(version.step, value, look, task in version.serves, version.answers, title)


def _what(version: VersionFacts, task: str) -> str:
    parts = [version.kind]
    if version.status == "rejected":
        parts.append("rejected")
    if task in version.serves:
        parts.append("serves now")
    return ", ".join(parts)


@dataclass(frozen=True)
class GateVerdict:
    """The gate's decision on one version and one task.

    Attributes:
        allowed: the limit, in words.
        said: `passed`, `within chance` (over the limit, but it may be chance) or `refused`.
    """

    gate: GateFacts
    effect: Effect
    bar: Markup
    allowed: str
    retention: float | None
    said: str


def verdicts(facts: Facts) -> list[GateVerdict]:
    """All decisions of the gate, refused versions first, then the newest."""
    gates = sorted(facts.gates, key=lambda gate: gate.passed)
    widest = max((abs(effect.drop) for gate in gates for effect in gate.effects), default=0.0)
    return [_verdict(gate, effect, widest) for gate in gates for effect in gate.effects]


def _verdict(gate: GateFacts, effect: Effect, widest: float) -> GateVerdict:
    bound = None if gate.of_retention else gate.limit
    bar = drawing.change_bar(-effect.drop, bound, widest) if widest else Markup("")
    share = retention(effect) if gate.of_retention else None
    if gate.limit is None:
        allowed, said = "no limit", "measured only"
    elif gate.of_retention:
        allowed = f"retention ≥ {gate.limit:g}"
        said = "refused" if retention(effect) < gate.limit else "passed"
    else:
        allowed = "no limit" if gate.limit >= 1 else f"drop ≤ {gate.limit:g}"
        alone = "within chance" if gate.passed or any(e.over(gate.limit) for e in gate.effects) else "refused together"
        said = "refused" if effect.over(gate.limit) else alone if effect.drop > gate.limit else "passed"
    return GateVerdict(gate, effect, bar, allowed, share, said)


@dataclass(frozen=True)
class Lineage:
    """The lineage, drawn or listed.

    Attributes:
        drawing: empty if there are no edges, or too many versions to read.
        relations: those that occur, for the legend.
        single: how many versions have no edge.
    """

    drawing: Markup
    edges: Sequence[Edge]
    relations: Sequence[str]
    single: int


def lineage_of(facts: Facts) -> Lineage:
    """The versions that descend from others, and their parents."""
    edges = list(dict.fromkeys(facts.edges))
    ends = {end for edge in edges for end in (edge.child, edge.parent)}
    known = {version.ref: version for version in facts.versions}
    boxes = [_box(known[ref]) for ref in known if ref in ends]
    for end in sorted(ends - known.keys()):
        place = wording.place(end)
        boxes.append(lineage.Box(end, "from outside", "outside", title=place, first=place))
    relations = list(dict.fromkeys(edge.relation for edge in edges))
    single = sum(ref not in ends for ref in known)
    if not edges or len(boxes) > MOST_BOXES:
        return Lineage(Markup(""), edges, relations, single)
    label = f"lineage of {wording.count(len(boxes), 'version')}: {wording.count(len(edges), 'edge')}"
    return Lineage(lineage.graph(boxes, edges, label), edges, relations, single)


def _box(version: VersionFacts) -> lineage.Box:
    derived = version.kind in DERIVED
    look = "rejected" if version.status == "rejected" else "derived" if derived else "trained"
    second = f"{version.kind} · rank {version.rank}"
    told = [version.ref, version.kind, *version.tasks, f"rank {version.rank}", wording.size(version.bytes)]
    if version.serves:
        told.append(f"serves {', '.join(version.serves)}")
    if version.status == "rejected":
        second = f"rejected · {version.kind}"
        told.append("rejected by the gate")
    return lineage.Box(version.ref, second, look, bool(version.serves), ", ".join(told))


def confusion_cells(router: RouterFacts) -> tuple[list[str], list[tuple[str, list[Cell], int]]]:
    """The chosen tasks, and for each true task its cells and the number of its held-out samples."""
    chosen = list(dict.fromkeys([*router.rows, *(taken for row in router.rows.values() for taken in row)]))
    rows = []
    for task, row in router.rows.items():
        total = sum(row.values())
        cells = []
        for taken in chosen:
            n = row.get(taken, 0)
            title = f"{n} of {total} held-out samples of {task} routed to {taken}"
            look = "own" if taken == task else "lost" if n else ""
            cells.append(Cell(f"{n}" if n else "·", level(n / total) if n else None, look, title))
        rows.append((task, cells, total))
    return chosen, rows


@dataclass(frozen=True)
class Compared:
    """One strategy of a stream: number of seeds, and for each measure mean and standard deviation (None: unknown)."""

    stream: str
    strategy: str
    seeds: int
    figures: Sequence[tuple[float, float] | None]


def compared(facts: Facts) -> list[Compared]:
    """The strategies that `stream` compared, the best of each stream first: AP, BWT, forgetting, FWT."""
    groups: dict[tuple[str, str], list[AccuracyMatrix]] = {}
    for stream, one in facts.streams:
        groups.setdefault((stream, one.name), []).append(one)
    found = []
    for (stream, strategy), runs in groups.items():
        figures: list[tuple[float, float] | None] = []
        for pick in ("average_accuracy", "bwt", "forgetting", "fwt_gem"):
            values = [value for one in runs if (value := getattr(one, pick)) is not None]
            figures.append(mean_and_spread(values)[:2] if values else None)
        found.append(Compared(stream, strategy, len(runs), figures))
    return sorted(found, key=lambda c: (c.stream, -(c.figures[0] or (-1.0, 0.0))[0], c.strategy))


def layer_spark(derived: DerivedFacts, top: float) -> Markup:
    """The truncation error of each layer, one column each."""
    if not derived.layers or not any(derived.layers.values()):
        return Markup("")
    worst = max(derived.layers, key=lambda name: derived.layers[name])
    title = f"{len(derived.layers)} layers; the largest in {worst}: {wording.error(derived.layers[worst])}"
    return drawing.spark(list(derived.layers.values()), top, title)
