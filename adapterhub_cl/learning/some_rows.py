"""A few rows of a task as token ids, for what is measured before or during a training."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from adapterhub_cl import objectives
from adapterhub_cl.bases.loading import LoadedBase
from adapterhub_cl.data.tokenise import Tokens
from adapterhub_cl.errors import DataError
from adapterhub_cl.settings import TrainingSettings
from adapterhub_cl.training.training_rows import as_learned
from adapterhub_cl.types import Example, Task


def some_rows(
    base: LoadedBase, task: Task, examples: Sequence[Example], settings: TrainingSettings, most: int, draw: str
) -> tuple[list[Example], list[Tokens]]:
    """At most `most` rows, of a choice task as many of each label as there are; rows that cannot be used are left out,
    of raw text there is one window each.

    Args:
        draw: seed of the draw.
    """
    encode = objectives.of(base.info).tokeniser(base.tokenizer, task, min(settings.max_length, base.context))
    drawn = _drawn(examples, (lambda example: example.answer) if task.kind == "choice" else None, draw)
    kept: list[Example] = []
    found: list[Tokens] = []
    for example in drawn:
        if len(found) >= most:
            break
        try:
            own = [tokens for tokens in encode.windows(example)[:1] if tokens.answer]
        except DataError:
            continue  # the training that follows says which rows cannot be used
        kept += [example] * len(own)
        found += own
    return kept, as_learned(found, settings)


def some_preferences(examples: Sequence[Example], most: int, draw: str) -> list[Example]:
    """At most `most` rows whose rewards can be compared: as many liked answers as disliked ones as there are."""
    return _drawn(examples, lambda example: example.desirable, draw)[:most]


def _drawn(examples: Sequence[Example], kind: Callable[[Example], object] | None, draw: str) -> list[Example]:
    """The rows in a drawn order, with a `kind` one of each kind in turn."""
    drawn = list(examples)
    random.Random(draw).shuffle(drawn)
    if kind is None:
        return drawn
    turn: dict[object, int] = {}
    places = []
    for k, example in enumerate(drawn):
        own = kind(example)
        turn[own] = turn.get(own, 0) + 1
        places.append((turn[own], k))
    return [drawn[k] for _, k in sorted(places)]
