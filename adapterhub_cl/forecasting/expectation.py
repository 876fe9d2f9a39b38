"""The small model that makes a forecast of signs. It is a linear one (ridge regression without an intercept, because a
task that nothing has moved loses nothing) with an interval by normalised conformal prediction (Lei et al. 2018,
arXiv:1604.04173). examples/benchmarks/forecast.py fitted it to trainings whose outcome was measured, and it lies beside
this file with its error. No torch."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Any

from adapterhub_cl.errors import IntegrityError

FILE = "fitted.json"
USED = ("lost", "room x unlikely", "room x halved")  # features that the model sees
LEVEL = 0.9  # of the interval


@dataclass(frozen=True)
class Signs:
    """What was measured for one earlier task; see `early_signs`.

    Attributes:
        before: score of what answers for the task now; `chance`: of a guess; both 0 to 1.
        loss_rise: of the loss on its replay samples, nats per answer token.
        likelihood_drop: of the mean likelihood of an answer token of these samples, −1 to 1.
        halved: share of the samples whose answers are less than half as likely as before.
        divergence: mean KL(before ‖ now) of answers on new rows, nats.
        nearness: mean cosine of a new input with the nearest sample; `overlap` of the subspaces of both, 0 to 1.
        unlearned: loss on new rows, nats per answer token.
        path: peak learning rate × steps of the whole training.
        reviewed: 1 where the strategy trains on the samples too, otherwise 0.
        lost: how much its score has fallen already, on some of the rows that the gate measures; below 0 if it rose.
        held_drop: of the mean likelihood of an answer token of these rows, −1 to 1.
    """

    before: float
    chance: float
    loss_rise: float
    likelihood_drop: float
    halved: float
    divergence: float
    nearness: float
    overlap: float
    unlearned: float
    path: float
    reviewed: float
    lost: float
    held_drop: float

    @property
    def room(self) -> float:
        """What the task has to lose: its score above chance."""
        return max(0.0, self.before - self.chance)

    def to_json(self) -> dict[str, float]:
        return {name: round(value, 6) for name, value in asdict(self).items()}


def features(signs: Signs) -> dict[str, float]:
    """How much was lost already, what the task has to lose, and that times each sign. The model sees those that are
    `USED`, because there are few measured trainings to fit it to; the benchmark compares with others."""
    return {
        "room": signs.room,
        "room x halved": signs.room * signs.halved,
        "room x rise": signs.room * math.tanh(max(-1.0, signs.loss_rise)),
        "room x moved": signs.room * min(math.sqrt(max(0.0, signs.divergence)), 3.0),
        "room x nearness": signs.room * signs.nearness,
        "room x overlap": signs.room * signs.overlap,
        "room x path": signs.room * math.log10(max(signs.path, 1e-6)),
        "room x reviewed": signs.room * signs.reviewed,
        "lost": signs.lost,
        "room x unlikely": signs.room * signs.held_drop,
    }


@dataclass(frozen=True)
class Expected:
    """The expected drop of a score, absolute, with its interval (`LEVEL`)."""

    drop: float
    low: float
    high: float


@dataclass(frozen=True)
class Expectation:
    """The fitted model.

    Attributes:
        weights: feature → weight.
        floor, growth: the error that is usual at a prediction p is floor + growth · |p|.
        reach: how many usual errors the interval reaches to each side.
        error: how well it foretold streams that it was not fitted to, as the benchmark measured it.
    """

    weights: Mapping[str, float]
    floor: float
    growth: float
    reach: float
    error: Mapping[str, Any]

    def raw(self, seen: Mapping[str, float]) -> float:
        """The prediction of features."""
        return math.fsum(weight * seen[name] for name, weight in self.weights.items())

    def usual_error(self, prediction: float) -> float:
        return self.floor + self.growth * abs(prediction)

    def of(self, signs: Signs) -> Expected:
        """The forecast. A score cannot fall by more than there is of it."""
        most = max(0.0, signs.before)
        drop = min(self.raw(features(signs)), most)
        half = self.reach * self.usual_error(drop)
        return Expected(round(drop, 4), round(drop - half, 4), round(min(most, drop + half), 4))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@functools.cache
def fitted() -> Expectation:
    """The model that comes with the package.

    Raises:
        IntegrityError: its file is not what was shipped.
    """
    place = files("adapterhub_cl.forecasting").joinpath(FILE)
    try:
        row = json.loads(place.read_text(encoding="utf-8"))
        return Expectation(**{name: row[name] for name in Expectation.__dataclass_fields__})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{place} cannot be read: {error}", "install adapterhub-cl again") from error
