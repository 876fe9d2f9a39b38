"""Which of the gathered rows may be learned: each question once, with one right answer, and none that scores are
measured on."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from adapterhub_cl.traffic.journal import Judged
from adapterhub_cl.types import Example

AGREE = 2 / 3  # share of the answers to one question that must agree
NEAR = 95.0  # similarity in percent from which a question counts as a copy of an evaluation row
SHORT = 25  # characters; shorter questions are compared exactly: "what is 2+3" is no copy of "what is 2+4"


@dataclass(frozen=True)
class Clean:
    """What is left.

    Attributes:
        rows: each with its right answer as `answer`, oldest first, and the ids that each stands for.
        repeated: how many rows said the same again.
        contradicting: how many gave different right answers to the same question, without a clear majority, or against
            one.
        held_out: how many were evaluation rows, or nearly.
        unanswered: how many have no right answer: only that the given one was wrong is known.
    """

    rows: Sequence[Example]
    repeated: int = 0
    contradicting: int = 0
    held_out: int = 0
    unanswered: int = 0

    @property
    def dropped(self) -> dict[str, int]:
        """Reason → rows, of those that are not learned."""
        found = {
            "repeated": self.repeated,
            "contradicting": self.contradicting,
            "evaluation rows": self.held_out,
            "without a right answer": self.unanswered,
        }
        return {why: count for why, count in found.items() if count}


def cleaned(judged: Sequence[Judged], evaluation: Sequence[Example]) -> Clean:
    """The rows that may be learned.

    Args:
        judged: oldest first.
        evaluation: the rows on which the task is scored, which must not be learned.
    """
    answers: dict[str, list[str]] = defaultdict(list)
    first: dict[str, Example] = {}
    unanswered = 0
    for one in judged:
        if one.right is None or not one.right.strip():
            unanswered += 1
            continue
        key = question_of(one.kept.example)
        first.setdefault(key, one.kept.example)
        answers[key].append(" ".join(one.right.split()) if "\n" not in one.right else one.right.strip())
    known = _Known(evaluation)
    rows, repeated, contradicting, held_out = list[Example](), 0, 0, 0
    for key, given in answers.items():
        if known.has(key):
            held_out += len(given)
            continue
        answer, votes = Counter(given).most_common(1)[0]
        if votes < AGREE * len(given):
            contradicting += len(given)
            continue
        contradicting += len(given) - votes
        repeated += votes - 1
        rows.append(replace(first[key], answer=answer))
    return Clean(rows, repeated, contradicting, held_out, unanswered)


def question_of(example: Example) -> str:
    """The question, ignoring case and spacing."""
    return " ".join(f"{example.instruction}\n{example.text}".casefold().split())


class _Known:
    """Questions, and whether another one is nearly one of them."""

    def __init__(self, examples: Sequence[Example]) -> None:
        # With and without the instruction: a task's own is not part of what production asks.
        self.exact = {question_of(e) for e in examples} | {" ".join(e.text.casefold().split()) for e in examples}
        self.long = [text for text in self.exact if len(text) >= SHORT]

    def has(self, question: str) -> bool:
        if question in self.exact:
            return True
        if len(question) < SHORT:
            return False
        from rapidfuzz import fuzz, process

        return process.extractOne(question, self.long, scorer=fuzz.ratio, score_cutoff=NEAR) is not None
