"""The accuracy matrix, R[i][j]: the score on task j after the i-th task was learned; and the measures derived from it.

Tasks and stages count from 0, and T is their number; a cell that was not measured is None. A measure that needs a
missing cell is None too. A matrix with fewer rows than tasks is a stream that is not finished: measures then cover the
tasks learned so far.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adapterhub_cl import plotting, showing
from adapterhub_cl.errors import DataError

Cell = float | None
Matrix = Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class AccuracyMatrix:
    """Scores of a stream of tasks.

    Attributes:
        tasks: names, in the order in which they were learned.
        rows: R; shares between 0 and 1, except for perplexities.
        metrics: for each task the metric of its column; may be empty.
        base: for each task the score of the base without any adapter; may be empty.
        alone: for each task the score of an adapter trained on it alone; may be empty.
        name: a title, for example the strategy.
        seconds: wall time of the stream.
        seed: of the run, if several are compared.
    """

    tasks: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    metrics: tuple[str, ...] = ()
    base: tuple[Cell, ...] = ()
    alone: tuple[Cell, ...] = ()
    name: str = ""
    seconds: float | None = None
    seed: int | None = None

    @property
    def title(self) -> str:
        """The name, with the seed if there is one."""
        return self.name if self.seed is None else f"{self.name}, seed {self.seed}"

    def __post_init__(self) -> None:
        check(self.rows)
        if len(self.rows[0]) != len(self.tasks):
            raise DataError(f"a matrix of {len(self.rows[0])} columns for {len(self.tasks)} tasks", "name each task")
        if self.metrics and len(self.metrics) != len(self.tasks):
            raise DataError(f"{len(self.metrics)} metrics for {len(self.tasks)} tasks", "name one for each task")
        for what, scores in (("base", self.base), ("alone", self.alone)):
            if scores:
                _check_scores(what, scores, len(self.tasks))

    @property
    def average_accuracy(self) -> float | None:
        return average_accuracy(self.rows)

    @property
    def bwt(self) -> float | None:
        return bwt(self.rows)

    @property
    def forgetting(self) -> float | None:
        return forgetting(self.rows)

    @property
    def fwt_gem(self) -> float | None:
        return fwt_gem(self.rows, self.base) if self.base else None

    @property
    def fwt_sapt(self) -> float | None:
        return fwt_sapt(self.rows, self.alone) if self.alone else None

    @property
    def any_time_average(self) -> float | None:
        return any_time_average(self.rows)

    def to_json(self) -> dict[str, Any]:
        """The output of `stream --json` and `eval --matrix --json`; `fwt` is GEM's."""
        return {
            "tasks": list(self.tasks),
            "matrix": [list(row) for row in self.rows],
            "average_accuracy": self.average_accuracy,
            "bwt": self.bwt,
            "forgetting": self.forgetting,
            "fwt": self.fwt_gem,
            "fwt_gem": self.fwt_gem,
            "fwt_sapt": self.fwt_sapt,
            "any_time_average": self.any_time_average,
            "base": list(self.base),
            "alone": list(self.alone),
            "name": self.name,
            "seconds": self.seconds,
            "seed": self.seed,
            "metrics": list(self.metrics),
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> AccuracyMatrix:
        """The reverse of `to_json`; measures are recomputed and other keys ignored.

        Raises:
            DataError: the tasks or the matrix are missing, or the shape is wrong.
        """
        try:
            lists = {key: tuple(row.get(key) or ()) for key in ("metrics", "base", "alone")}
            rows = tuple(tuple(cells) for cells in row["matrix"])
            name, seconds, seed = row.get("name") or "", row.get("seconds"), row.get("seed")
            return cls(tuple(row["tasks"]), rows, **lists, name=name, seconds=seconds, seed=seed)  # type: ignore[arg-type]
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"not an accuracy matrix ({error!r})", "give what `stream --json` wrote") from error

    @property
    def headline(self) -> str:
        """The title, with average accuracy and backward transfer below it."""
        shown = [plotting.cut(self.title, 30)] if self.name else []
        figures = [] if self.average_accuracy is None else [f"AP {plotting.number(self.average_accuracy)}"]
        figures += [] if self.bwt is None else [f"BWT {self.bwt:+.3f}"]
        return "\n".join([*shown, "  ".join(figures)])

    @property
    def scale(self) -> tuple[float, float]:
        """The ends of a colour scale: 0 and 1 for shares, otherwise the lowest and the highest score."""
        cells = [cell for row in self.rows for cell in row if cell is not None]
        return (0.0, 1.0) if all(0 <= cell <= 1 for cell in cells) else (min(cells), max(cells))

    def plot(self, ax: Any = None) -> Any:
        """Draw a heat map; returns matplotlib's axes, whose `figure.savefig` writes a file.

        Args:
            ax: axes to draw on; by default those of a new figure.
        """
        side = max(3.4, 1.6 + 0.52 * len(self.tasks))
        panel = plotting.axes(ax, (side, side))
        plotting.heat_map(panel, self.rows, self.tasks, self.headline, *self.scale)
        return panel

    def _cells(self) -> dict[str, Any]:
        figures = {"AP": self.average_accuracy, "BWT": self.bwt, "forgetting": self.forgetting, "FWT": self.fwt_gem}
        return {"name": self.name or "adapters", "seed": self.seed, "tasks": len(self.tasks), **figures}

    def _repr_html_(self) -> str:
        rows = [f"after {task}" for task in self.tasks[: len(self.rows)]]
        return showing.heat(self.rows, self.tasks, rows, self.headline.replace("\n", ": "))

    def to_csv(self) -> str:
        """A header `after,TASK,…` and one line for each stage; cells that were not measured are empty."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["after", *self.tasks])
        for task, row in zip(self.tasks, self.rows, strict=False):
            writer.writerow([task, *("" if cell is None else repr(cell) for cell in row)])
        return text.getvalue()


def check(matrix: Matrix) -> None:
    """Raise if it is not an accuracy matrix.

    Raises:
        DataError: no rows, rows of different lengths, more rows than columns, or a cell that is not a finite number.
    """
    if not matrix or not matrix[0]:
        raise DataError("an accuracy matrix without rows", "measure at least one task")
    columns = len(matrix[0])
    for i, row in enumerate(matrix):
        _check_scores(f"row {i + 1} of the matrix", row, columns)
    if len(matrix) > columns:
        raise DataError(f"a matrix of {len(matrix)} rows and {columns} columns", "give one row for each task learned")


def average_accuracy(matrix: Matrix) -> float | None:
    """Mean score of the tasks learned so far, after the last one, with equal weights."""
    check(matrix)
    return _mean(matrix[-1][: len(matrix)])


def bwt(matrix: Matrix) -> float | None:
    """Backward transfer, 1/(T-1) Σ_{j<T-1} (R[T-1][j] − R[j][j]): the effect of later tasks on earlier ones; below 0 is
    forgetting (GEM, Lopez-Paz & Ranzato 2017). None for a single task."""
    check(matrix)
    return _mean([_minus(matrix[-1][j], matrix[j][j]) for j in range(len(matrix) - 1)])


def forgetting(matrix: Matrix) -> float | None:
    """Mean, over all tasks but the last, of their best score since they were learned minus the last one (Chaudhry et
    al. 2018); only measured cells count. None for a single task."""
    check(matrix)
    last = len(matrix) - 1
    drops: list[Cell] = []
    for j in range(last):
        measured = [cell for l in range(j, last) if (cell := matrix[l][j]) is not None]  # noqa: E741
        drops.append(_minus(max(measured), matrix[last][j]) if measured else None)
    return _mean(drops)


def fwt_gem(matrix: Matrix, base: Sequence[Cell]) -> float | None:
    """Forward transfer, 1/(T-1) Σ_{i>=1} (R[i-1][i] − base[i]): what a task gains from the tasks before it, before it
    is trained itself (GEM, Lopez-Paz & Ranzato 2017). None for a single task."""
    check(matrix)
    _check_scores("base", base, len(matrix[0]))
    return _mean([_minus(matrix[i - 1][i], base[i]) for i in range(1, len(matrix))])


def fwt_sapt(matrix: Matrix, alone: Sequence[Cell]) -> float | None:
    """Forward transfer as defined by SAPT (Zhao et al. 2024): mean over the tasks of R[i][i] − alone[i], the gain over
    training each task alone."""
    check(matrix)
    _check_scores("alone", alone, len(matrix[0]))
    return _mean([_minus(row[i], alone[i]) for i, row in enumerate(matrix)])


def any_time_average(matrix: Matrix) -> float | None:
    """Mean over the stages of the mean score of the tasks learned so far."""
    check(matrix)
    return _mean([_mean(row[: i + 1]) for i, row in enumerate(matrix)])


def mean_and_spread(values: Sequence[float]) -> tuple[float, float, int]:
    """Mean, standard deviation (with n − 1; 0 for a single value) and number of values.

    Raises:
        DataError: no values, or one that is not finite.
    """
    _check_values(values)
    mean = math.fsum(values) / len(values)
    spread = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)) if len(values) > 1 else 0.0
    return mean, spread, len(values)


@dataclass(frozen=True)
class Comparison:
    """Mean of a − b over `n` pairs and its 95 % t-interval; `low` and `high` are None for a single pair."""

    difference: float
    low: float | None
    high: float | None
    n: int


def compare(values_a: Sequence[float], values_b: Sequence[float]) -> Comparison:
    """How much better a is than b, paired: the k-th values of both have the same seed.

    Raises:
        DataError: different numbers of values, none at all, or a value that is not finite.
    """
    if len(values_a) != len(values_b):
        raise DataError(f"{len(values_a)} values against {len(values_b)}", "run both with the same seeds")
    _check_values([*values_a, *values_b])
    mean, spread, n = mean_and_spread([a - b for a, b in zip(values_a, values_b, strict=True)])
    if n == 1:
        return Comparison(mean, None, None, n)
    from scipy import stats

    half = float(stats.t.ppf(0.975, n - 1)) * spread / math.sqrt(n)
    return Comparison(mean, mean - half, mean + half, n)


def _minus(a: Cell, b: Cell) -> Cell:
    return None if a is None or b is None else a - b


def _mean(cells: Sequence[Cell]) -> Cell:
    known = [cell for cell in cells if cell is not None]
    return math.fsum(known) / len(known) if known and len(known) == len(cells) else None


def _check_scores(what: str, scores: Sequence[Cell], size: int) -> None:
    if len(scores) != size:
        raise DataError(f"{what} has {len(scores)} scores for {size} tasks", "give one for each task, None if unknown")
    for j, cell in enumerate(scores):
        if cell is not None and (isinstance(cell, bool) or not isinstance(cell, (int, float)) or not _finite(cell)):
            raise DataError(f"{what}, task {j + 1}: {cell!r} is not a score", "give a finite number, or None")


def _check_values(values: Sequence[float]) -> None:
    if not values or not all(_finite(value) for value in values):
        raise DataError("no values, or values that are not finite, to average", "give one number for each seed")


def _finite(value: float) -> bool:
    return math.isfinite(value)
