"""The rows of a search, divided three ways: to train on, to judge trials, and to confirm the best."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from adapterhub_cl.context import Hub
from adapterhub_cl.errors import DataError, UsageError
from adapterhub_cl.learning.material import Material, prepare, with_limits
from adapterhub_cl.learning.order import TrainOrder
from adapterhub_cl.types import Example

FEWEST = 100  # rows to tune on; fewer say nothing
SHARE, MOST = 0.2, 200  # of the rows, for judging trials and for the confirmation each


@dataclass(frozen=True)
class Parts:
    """The rows of a search.

    Attributes:
        material: what trials train on, and are judged on: the latter share of it is held out as `share` says.
        confirmed: rows for the end.
    """

    material: Material
    share: float
    confirmed: Sequence[Example]


def parts_of(hub: Hub, order: TrainOrder) -> Parts:
    """Read the data and divide them.

    Raises:
        DataError: the data cannot be used, or the rows are too few.
    """
    if order.request.facts:
        raise UsageError("facts cannot be held out: one that is not taught cannot be known", "leave --facts out")
    material = prepare(hub.registry, order, parent="")
    if material.data.read.prefers:
        raise UsageError(
            "tune searches settings for answers, and these rows are preferences",
            "train with add-task, which has a learning rate of its own for preferences",
        )
    count = len(material.data)
    if count < FEWEST:
        raise DataError(f"{count} rows are too few to tune on", f"give at least {FEWEST} rows")
    held = min(MOST, int(SHARE * count))
    chosen = set(random.Random(f"tune {order.settings.seed}").sample(range(count), held))
    confirmed = [example for k, example in enumerate(material.data) if k in chosen]
    known = {_question(e) for e in confirmed}
    kept = [k for k, e in enumerate(material.data) if k not in chosen and _question(e) not in known]
    if len(kept) < FEWEST // 2:
        raise DataError(f"{len(kept)} different rows are too few to tune on", f"give at least {FEWEST} different rows")
    rows = replace(
        material.data,
        examples=[material.data.examples[k] for k in kept],
        places=[material.data.places[k] for k in kept],
    )
    material = with_limits(replace(material, data=rows), hub.base, order.settings)
    judged = min(held, int(SHARE / (1 - SHARE) * len(kept)))  # the same number, unless many rows repeat each other
    return Parts(material, judged / len(kept), confirmed)


def _question(example: Example) -> tuple[str, str]:
    """What two rows must not share if one of them is to judge what was learned from the other."""
    return ("", example.answer or "") if example.is_raw else (example.instruction, example.text)
