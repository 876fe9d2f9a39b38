"""Generated: pseudo-samples that the adapter writes itself (LAMOL, Sun et al. 2020), so that no user data is stored.

The adapter generates inputs and answers them, three times as many as requested. The policy drops answers with a
confidence below 0.5 (for free answers the less confident half, because their confidence, the geometric mean of token
probabilities, has no fixed scale), duplicates and near-duplicates (rapidfuzz ratio of at least 90 of 100), near-copies
of the data's inputs, and whatever repeats a run of eight words of the data. From the rest it takes the answers in
turn, most confident first. This can give fewer samples than requested, or none.

Choose it if the data must not be stored. The samples are only as good as the adapter: look at them with
`cl-adapter replay show NAME`.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator, Sequence
from typing import ClassVar

from adapterhub_cl.data.plain_text import pieces, plain
from adapterhub_cl.replay import BasePolicy, Evidence
from adapterhub_cl.replay._groups import by_answer, few_answers, in_turn
from adapterhub_cl.types import Example

OVERSAMPLE = 3
LEAST_CONFIDENCE = 0.5
NEAR = 90.0
RUN = 8


def bare(example: Example) -> str:
    """The text used to compare two examples: the input, or for raw text the text itself."""
    return plain(example.input or example.answer or "")


def runs(text: str) -> Iterator[tuple[str, ...]]:
    """All runs of eight words of a plain text; see `pieces`."""
    words = pieces(text)
    return (tuple(words[k : k + RUN]) for k in range(len(words) - RUN + 1))


def novel(
    written: Sequence[tuple[Example, float]], examples: Sequence[Example], least: float
) -> list[tuple[Example, float]]:
    """Examples of at least this confidence, most confident first, without near-duplicates or copies of the data."""
    from rapidfuzz import fuzz, process

    taken = [bare(example) for example in examples]
    known = {run for e in examples for text in (e.input, e.answer or "") for run in runs(plain(text))}
    kept = []
    for example, confidence in sorted(written, key=lambda pair: -pair[1]):
        text = bare(example)
        copied = any(run in known for own in (text, plain(example.answer or "")) for run in runs(own))
        if not text or copied or not confidence >= least:
            continue
        if process.extractOne(text, taken, scorer=fuzz.ratio, score_cutoff=NEAR) is None:
            kept.append((example, confidence))
            taken.append(text)
    return kept


def best(
    written: Sequence[tuple[Example, float]], examples: Sequence[Example], size: int, labels: bool
) -> list[Example]:
    """At most `size` of the written examples, chosen as described above.

    Args:
        written: with the confidence of each answer; at least one.
        examples: the data.
        labels: whether answers are labels.
    """
    least = LEAST_CONFIDENCE if labels else statistics.median(confidence for _, confidence in written)
    kept = [example for example, _ in novel(written, examples, least)]
    groups = by_answer(kept) if labels else [list(range(len(kept)))]
    return [kept[i] for i in in_turn(groups, size)]


class Policy(BasePolicy):
    """Samples that the adapter generated; none of the data is stored."""

    needs: ClassVar[frozenset[str]] = frozenset({"writing"})
    keeps_data: ClassVar[bool] = False

    def select(self, examples: Sequence[Example], size: int, generator: random.Random, evidence: Evidence) -> list[int]:
        return []

    def samples(
        self, examples: Sequence[Example], size: int, generator: random.Random, evidence: Evidence
    ) -> list[Example]:
        if size == 0 or not examples:
            return []
        written = evidence.write(OVERSAMPLE * size, generator.randrange(2**31))
        if not written:
            return []
        return best(written, examples, size, few_answers(examples))
