"""What an adapter keeps where it answers elsewhere, in an export or on a server: its answers to rows, and the share of
the score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adapterhub_cl.bases.sources import public_name
from adapterhub_cl.evaluation import metrics
from adapterhub_cl.evaluation.probes import Probe


@dataclass(frozen=True)
class Answers:
    """What one model says to the rows of one task.

    Attributes:
        texts: the answers in the rows' order; empty for raw text.
        share: the task's main score as a share between 0 and 1.
    """

    texts: tuple[str, ...]
    share: float


@dataclass(frozen=True)
class TaskProof:
    """How an export or a server did on the rows of one task.

    Attributes:
        metric: the task's main score; `base`, `adapter` and `export` are that score as a share, of the base alone, of
            the adapter in the hub, and of the export.
        n: number of rows; `data` says where they came from.
        retention: export ÷ adapter.
        same_answers: share of the rows to which the export and the adapter give the same answer; None where
            the answers are not known.
    """

    metric: str
    n: int
    data: str
    base: float
    adapter: float
    export: float
    retention: float
    same_answers: float | None

    def told(self, task: str) -> str:
        """One line for the user."""
        same = "" if self.same_answers is None else f", same answer on {self.same_answers:.0%}"
        return (
            f"{task}: {self.metric} {self.export:.3f} on {self.n} held-out rows (adapter {self.adapter:.3f}, base "
            f"{self.base:.3f}), retention {self.retention:.3f}{same}"
        )

    def drop(self, task: str) -> str:
        """What was lost, for a refusal: `news 0.500 (0.800 → 0.400)`."""
        return f"{task} {self.retention:.3f} ({self.adapter:.3f} → {self.export:.3f})"


def scored(probe: Probe, gold: Sequence[str], said: Sequence[str]) -> Answers:
    """Answers with their score.

    Args:
        gold: the right answers.
        said: those that were given.
    """
    rows = [example.references for example in probe.examples]
    scores = metrics.score(probe.task, list(gold), list(said), references=rows)
    return Answers(tuple(said), scores[probe.task.metric])


def compare(probe: Probe, base: Answers, adapter: Answers, other: Answers) -> TaskProof:
    """The figures of one task; see `TaskProof`.

    Args:
        other: what the export or the server says to the rows.
    """
    n = len(probe.examples)
    kept = other.share / adapter.share if adapter.share > 0 else 1.0
    known = bool(other.texts) and len(other.texts) == len(adapter.texts)
    same = sum(one == right for one, right in zip(other.texts, adapter.texts, strict=True)) / n if known else None
    return TaskProof(
        probe.task.metric,
        n,
        public_name(probe.data),
        round(base.share, 6),
        round(adapter.share, 6),
        round(other.share, 6),
        round(kept, 6),
        None if same is None else round(same, 6),
    )


def lost_too_much(proof: TaskProof, least: float) -> bool:
    """Whether an export keeps less than it must. The loss of a single row is never too much: rounding can tip a row
    either way, and one row says nothing. But where nothing at all is right any more, that is a loss."""
    nothing = proof.adapter > 0 and proof.export <= 0
    return proof.retention < least and (nothing or (proof.adapter - proof.export) * proof.n > 1 + 1e-3)
