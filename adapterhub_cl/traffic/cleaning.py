"""Which of the gathered rows may be learned: each question once, with one right answer, and none that scores are
measured on."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from adapterhub_cl.data.plain_text import plain
from adapterhub_cl.traffic.journal import Judged
from adapterhub_cl.types import Example

AGREE = 2 / 3  # share of the answers to one question that must agree
NEAR = 95.0  # similarity in percent from which a question counts as a copy of an evaluation row
SHORT = 25  # characters; shorter questions are compared exactly: "what is 2+3" is no copy of "what is 2+4"


REPEATED, CONTRADICTING, HELD_OUT, UNANSWERED = (
    "repeated",
    "contradicting",
    "evaluation rows",
    "without a right answer",
)


@dataclass(frozen=True)
class Clean:
    """What is left.

    Attributes:
        rows: each with its right answer as `answer`, oldest first.
        left_out: id → why an answer is not learned: another one says the same; others give the same question a
            different right answer, and no clear majority agrees with it; it is an evaluation row, or nearly; only that
            the given answer was wrong is known.
    """

    rows: Sequence[Example]
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def dropped(self) -> dict[str, int]:
        """Reason → rows, of those that are not learned."""
        found = Counter(self.left_out.values())
        return {why: found[why] for why in (REPEATED, CONTRADICTING, HELD_OUT, UNANSWERED) if found[why]}


def cleaned(judged: Sequence[Judged], evaluation: Sequence[Example]) -> Clean:
    """The rows that may be learned.

    Args:
        judged: oldest first.
        evaluation: the rows on which the task is scored, which must not be learned.
    """
    answers: dict[str, list[tuple[str, str]]] = defaultdict(list)  # question → (id, right answer with single spaces)
    written: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)  # (question, right answer) → as users wrote it
    first: dict[str, Example] = {}
    left_out: dict[str, str] = {}
    for one in judged:
        if one.right is None or not one.right.strip():
            left_out[one.kept.id] = UNANSWERED
            continue
        key = question_of(one.kept.example)
        first.setdefault(key, one.kept.example)
        right = " ".join(one.right.split())
        answers[key].append((one.kept.id, right))
        written[key, right][one.right.strip()] += 1
    known = _Known(evaluation)
    rows = list[Example]()
    for key, given in answers.items():
        if known.has(key):
            left_out |= dict.fromkeys((one for one, _ in given), HELD_OUT)
            continue
        answer, votes = Counter(right for _, right in given).most_common(1)[0]
        agree = votes >= AGREE * len(given)
        learned = False
        for answer_id, right in given:
            if not agree or right != answer:
                left_out[answer_id] = CONTRADICTING
            elif learned:
                left_out[answer_id] = REPEATED
            learned = learned or (agree and right == answer)
        if agree:
            rows.append(replace(first[key], answer=written[key, answer].most_common(1)[0][0]))
    return Clean(rows, left_out)


def question_of(example: Example) -> str:
    """The question, ignoring case and spacing."""
    return plain(f"{example.instruction}\n{example.text}")


class _Known:
    """Questions, and whether another one is nearly one of them."""

    def __init__(self, examples: Sequence[Example]) -> None:
        # With and without the instruction: a task's own is not part of what production asks.
        self.exact = {question_of(e) for e in examples} | {plain(e.text) for e in examples}
        self.long = [text for text in self.exact if len(text) >= SHORT]

    def has(self, question: str) -> bool:
        if question in self.exact:
            return True
        if len(question) < SHORT:
            return False
        from rapidfuzz import fuzz, process

        return process.extractOne(question, self.long, scorer=fuzz.ratio, score_cutoff=NEAR) is not None
