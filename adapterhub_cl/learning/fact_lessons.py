"""What is taught and measured beside new facts: questions that they must not change, answered before the training."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Any

from adapterhub_cl import objectives
from adapterhub_cl.adapters.as_served import as_served
from adapterhub_cl.bases.loading import LoadedBase
from adapterhub_cl.context import Hub
from adapterhub_cl.data.near_questions import near_questions
from adapterhub_cl.data.tokenise import Tokeniser
from adapterhub_cl.errors import IntegrityError
from adapterhub_cl.learning import general_questions
from adapterhub_cl.learning.material import Material
from adapterhub_cl.learning.request import TrainRequest
from adapterhub_cl.registry import seals, storage_errors
from adapterhub_cl.registry.files import atomic_write_text
from adapterhub_cl.types import AdapterRecord, Example

FILE = "unchanged.json"
NEAR, GENERAL = 40, len(general_questions.TRAINED)  # questions that are trained with their old answers
NEAR_HELD_OUT = 20  # those that are only measured
FEW = 8  # that a plan asks
LONGEST = 24  # tokens of an old answer, where the facts' answers are not longer


@dataclass(frozen=True)
class Beside:
    """Questions beside the facts.

    Attributes:
        trained: those that are learned with their old answers.
        near, general: those that are only measured.
    """

    trained: list[Example]
    near: list[Example]
    general: list[Example]


def beside(material: Material, seed: int) -> Beside:
    """The questions that these facts must not change; the same data and seed give the same ones."""
    texts = [e.input for e in (*material.data.examples, *material.review) if e.input and not e.turns[1:]]
    near = near_questions(texts, NEAR + NEAR_HELD_OUT, seed)
    random.Random(f"beside {seed}").shuffle(near)
    # a data set with few of them has some for each use
    measured = min(NEAR_HELD_OUT, len(near) // 3)
    known = {text.casefold() for text in texts}
    trained, held = (
        [text for text in asked if text.casefold() not in known]
        for asked in (general_questions.TRAINED, general_questions.HELD_OUT)
    )
    return Beside(_asked(near[measured:] + trained), _asked(near[:measured]), _asked(held))


def own_rows(request: TrainRequest, material: Material) -> bool:
    """Whether facts are measured on themselves, as `rebase` does it: one that is not taught cannot be known. Rows that
    are learned and measured are no leak there."""
    held = material.held_out
    return request.facts and held is not None and set(held.examples) == set(material.data.examples)


def old_answers(
    hub: Hub, material: Material, questions: Sequence[Example], run: Path | None
) -> list[tuple[Example, bool]]:
    """The questions with the answers from before the training, each with whether the answer had ended.

    Args:
        run: the run's folder, which keeps them, so that a resumed run learns the same rows; None keeps nothing.

    Raises:
        IntegrityError: the file in that folder has changed.
    """
    if run is not None and (run / FILE).exists():
        return _read(run / FILE)
    base, task = hub.base, material.task
    objective = objectives.of(base.info)
    most = max(LONGEST, Tokeniser(base.tokenizer, task, base.context).budget())
    with (
        before_training(base, material.parent) as model,
        hub.reporter.piece("answers that must not change", len(questions)) as advance,
        base.autocast(),
    ):
        found = objective.predict(
            model, base.tokenizer, task, questions, max_length=base.context, max_new_tokens=most, progress=advance
        )
    rows = [
        (Example(e.input, answer.text), answer.finished)
        for e, answer in zip(questions, found, strict=True)
        if answer.text.strip()
    ]
    if run is not None:
        row: dict[str, Any] = {"rows": [[e.input, e.answer, ended] for e, ended in rows]}
        with storage_errors(run):
            atomic_write_text(run / FILE, json.dumps({**row, seals.KEY: seals.of_json(row)}, ensure_ascii=False))
    return rows


def expected_answers(hub: Hub, material: Material, questions: Sequence[Example]) -> list[tuple[Example, bool]]:
    """Stands in for `old_answers` in a plan: a few of the questions are asked, and the others get these answers too."""
    some = old_answers(hub, material, questions[:: -(-len(questions) // FEW)], None) if questions else []
    return [(replace(asked, answer=row.answer), ended) for asked, (row, ended) in zip(questions, cycle(some))]


@contextmanager
def before_training(base: LoadedBase, parent: AdapterRecord | None) -> Iterator[Any]:
    """The model that answers before the training: the version that it starts from, or the base."""
    if parent is None:
        yield base.model
    else:
        with as_served(base, parent.path) as model:
            yield model


def _asked(texts: Sequence[str]) -> list[Example]:
    return [Example(text) for text in texts]


def _read(path: Path) -> list[tuple[Example, bool]]:
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
        if seals.KEY not in row or seals.is_broken_json(row):
            raise ValueError("its SHA-256 is another")
        return [(Example(str(question), str(answer)), bool(ended)) for question, answer, ended in row["rows"]]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise IntegrityError(
            f"{path} is not what was written: {error}", f"delete {path.parent} and start again without --resume"
        ) from error
