"""The forecast's model: fitted to measured steps, and judged on streams that it was not fitted to."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy
from forecast_streams import STREAMS

LEVEL, LEAST_RHO, LEAST_COVERAGE = 0.9, 0.8, 0.85
ROOM = 0.1  # a task whose score is less above chance has next to nothing to lose
RIDGE = 3.0  # on features of spread 1


def fitted_to(rows: Sequence[Mapping[str, Any]], names: Sequence[str] = ()) -> Any:
    """The model of these steps: ridge regression, and the reach of its interval from streams left out one by one.

    Args:
        names: the features that it may use; none: those that the package uses.
    """
    from adapterhub_cl.forecasting.expectation import Expectation

    guesses, drops = [], []
    for group in sorted({group_of(row) for row in rows}):
        weights = ridge([row for row in rows if group_of(row) != group], names)
        model = Expectation(weights, 0.0, 0.0, 0.0, {})
        for row in (row for row in rows if group_of(row) == group):
            guesses.append(model.of(signs_of(row)).drop)
            drops.append(row["drop"])
    sizes, errors = numpy.abs(guesses), numpy.abs(numpy.subtract(guesses, drops))
    growth = max(0.0, float(numpy.polyfit(sizes, errors, 1)[0]))
    floor = max(0.02, float(numpy.mean(errors) - growth * numpy.mean(sizes)))
    ratios = numpy.sort(errors / (floor + growth * sizes))
    reach = float(ratios[min(len(ratios), math.ceil(LEVEL * (len(ratios) + 1))) - 1])
    return Expectation(ridge(rows, names), round(floor, 6), round(growth, 6), round(reach, 6), {})


def group_of(row: Mapping[str, Any]) -> str:
    """The streams that begin with the same hub are one group."""
    return STREAMS[row["stream"]].begin or str(row["stream"])


def room_of(row: Mapping[str, Any]) -> float:
    """What the task had to lose."""
    return float(signs_of(row).room)


def ridge(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, float]:
    """Feature → weight; the penalty holds for features of the same spread."""
    from sklearn.linear_model import Ridge

    from adapterhub_cl.forecasting.expectation import USED, features

    names = list(names or USED)
    seen = [features(signs_of(row)) for row in rows]
    values = numpy.array([[one[name] for name in names] for one in seen])
    spread = values.std(0) + 1e-9
    found = Ridge(alpha=RIDGE, fit_intercept=False).fit(values / spread, [row["drop"] for row in rows])
    return {name: round(float(w), 6) for name, w in zip(names, found.coef_ / spread, strict=True)}


def signs_of(row: Mapping[str, Any]) -> Any:
    from adapterhub_cl.forecasting.expectation import Signs

    return Signs(**row["signs"])


def judged(rows: Sequence[Mapping[str, Any]], names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Each step with the forecast of a model that was fitted to the other streams; those that begin with the same hub
    are left out together."""
    found = []
    for group in dict.fromkeys(map(group_of, rows)):
        model = fitted_to([row for row in rows if group_of(row) != group], names)
        for row in (row for row in rows if group_of(row) == group):
            told = model.of(signs_of(row))
            found.append({**row, "foretold": told.drop, "low": told.low, "high": told.high})
    return found


def figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How good forecasts were."""
    from scipy import stats

    guesses, drops = [row["foretold"] for row in rows], [row["drop"] for row in rows]
    rho = float(stats.spearmanr(guesses, drops).statistic) if len(set(guesses)) > 1 else 0.0
    inside = [row["low"] <= row["drop"] <= row["high"] for row in rows]
    return {
        "spearman": round(rho, 3),
        "coverage": round(statistics.fmean(inside), 3),
        "mean_error": round(statistics.fmean(abs(g - d) for g, d in zip(guesses, drops, strict=True)), 4),
        "width": round(statistics.fmean(row["high"] - row["low"] for row in rows), 4),
        "steps": len(rows),
        "streams": len({row["stream"] for row in rows}),
    }


def reached(found: Mapping[str, Any]) -> bool:
    """Whether the aim is reached."""
    return bool(found["spearman"] >= LEAST_RHO and found["coverage"] >= LEAST_COVERAGE)
