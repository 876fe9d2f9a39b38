"""A few rows of a task as token ids, for what is measured before or during a training."""

from __future__ import annotations

import random
from collections.abc import Sequence

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
    drawn = list(examples)
    random.Random(draw).shuffle(drawn)
    if task.kind == "choice":
        turn: dict[str | None, int] = {}
        places = []
        for k, example in enumerate(drawn):
            turn[example.answer] = turn.get(example.answer, 0) + 1
            places.append((turn[example.answer], k))
        drawn = [drawn[k] for _, k in sorted(places)]
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
