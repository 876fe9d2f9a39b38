"""The effects of teaching facts: efficacy, paraphrase, locality and retention.

The measures of knowledge editing (Meng et al. 2022, "ROME", section 3; Yao et al. 2023, "Editing Large Language
Models", section 3), with free answers instead of probabilities: what a user would read.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adapterhub_cl.augmentation.paraphrase import held_out
from adapterhub_cl.bases.loading import LoadedBase
from adapterhub_cl.evaluation.knowledge import Unrelated, answers_to, samples_of_others, some
from adapterhub_cl.evaluation.metrics import exact_match, token_f1, wilson_interval
from adapterhub_cl.progress import Reporter
from adapterhub_cl.registry import Registry
from adapterhub_cl.types import AdapterRecord, Evaluation, Example, Task

WORDINGS = 2  # of each fact that `paraphrase` is measured on


@dataclass(frozen=True)
class FactAnswers:
    """What a model answers to the new facts, to their rewordings, to earlier facts and to unrelated questions."""

    new: tuple[str, ...]
    reworded: tuple[str, ...]
    old: tuple[str, ...]
    unrelated: tuple[str, ...]


class FactQuestions:
    """The questions to ask before and after facts are taught.

    Args:
        task: whose facts they are.
        rows: the new facts.
        elsewhere: questions beside the facts, by what they are, whose answers must not change.
        parent: the version that is continued, with its replay samples that are still true.
    """

    def __init__(
        self,
        registry: Registry,
        task: Task,
        rows: Sequence[Example],
        seed: int,
        *,
        elsewhere: Mapping[str, Sequence[Example]],
        parent: tuple[AdapterRecord, Sequence[Example]] | None = None,
    ) -> None:
        draw = random.Random(f"facts {seed}")
        self.task = task
        self.new = some(rows, draw)
        wordings = [draw.sample(found, min(WORDINGS, len(found))) for e in self.new if (found := held_out(e))]
        self.reworded = some([example for found in wordings for example in found], draw)
        self.old = some([e for e in parent[1] if e.input], draw) if parent else []
        self.old_from = f"replay samples of {parent[0].ref}" if parent else ""
        others = samples_of_others(registry, task.name, draw)
        self.unrelated: Unrelated = [(task, list(asked)) for asked in elsewhere.values() if asked] + others
        sizes = {what: len(asked) for what, asked in elsewhere.items() if asked}
        sizes |= {"other tasks": sum(len(asked) for _, asked in others)} if others else {}
        self.kinds = [what for what, size in sizes.items() for _ in range(size)]

    def ask(self, model: Any, base: LoadedBase, reporter: Reporter, when: str) -> FactAnswers:
        """The model's current answers.

        Args:
            when: `before` or `after` the training, for the progress bar.
        """
        parts: list[Unrelated] = [[(self.task, part)] if part else [] for part in (self.new, self.reworded, self.old)]
        parts.append(self.unrelated)
        count = sum(len(examples) for part in parts for _, examples in part)
        with reporter.piece(f"what {self.task.name} says, {when}", count) as advance:
            return FactAnswers(*(tuple(answers_to(part, model, base, advance)) for part in parts))

    def compare(self, before: FactAnswers, after: FactAnswers) -> list[Evaluation]:
        """`efficacy` and `paraphrase` (shares of the new facts answered right: as given, and in wordings that were not
        trained on), `locality` (share of unrelated answers unchanged) and `retention` (share of the earlier facts
        answered right before that still are); without those that could not be measured."""
        found = [self._right("efficacy", self.new, before.new, after.new, "the new facts")]
        if self.reworded:
            found.append(
                self._right("paraphrase", self.reworded, before.reworded, after.reworded, "other wordings of them")
            )
        if before.unrelated:
            found.append(self._locality(before.unrelated, after.unrelated))
        was = [right(e, answer) for e, answer in zip(self.old, before.old, strict=True)]
        now = [right(e, answer) for e, answer in zip(self.old, after.old, strict=True)]
        if any(was):
            still = sum(a and b for a, b in zip(was, now, strict=True))
            told = {"of": "exact_match", "before": sum(was) / len(was), "after": sum(now) / len(now)}
            found.append(self._share("retention", still, sum(was), self.old_from, told))
        return found

    def _right(
        self, metric: str, asked: Sequence[Example], before: Sequence[str], after: Sequence[str], data: str
    ) -> Evaluation:
        was = sum(right(e, answer) for e, answer in zip(asked, before, strict=True))
        now = sum(right(e, answer) for e, answer in zip(asked, after, strict=True))
        told = {"of": "exact_match", "before": was / len(asked), "after": now / len(asked)}
        return self._share(metric, now, len(asked), data, told)

    def _locality(self, before: Sequence[str], after: Sequence[str]) -> Evaluation:
        same = [bool(exact_match([a], [b])) for a, b in zip(before, after, strict=True)]
        kinds = self.kinds if len(self.kinds) == len(same) else ["all"] * len(same)
        told: dict[str, Any] = {"words": round(token_f1(before, after), 4)}
        for kind in dict.fromkeys(kinds):
            mine = [one for one, what in zip(same, kinds, strict=True) if what == kind]
            told[kind] = round(sum(mine) / len(mine), 4)
        return self._share("locality", sum(same), len(same), ", ".join(dict.fromkeys(kinds)), told)

    def _share(self, metric: str, good: int, count: int, data: str, told: Mapping[str, Any]) -> Evaluation:
        low, high = wilson_interval(good, count)
        details = {"interval": [round(low, 4), round(high, 4)], **told}
        return Evaluation(self.task.name, metric, good / count, count, data, details)


def right(example: Example, answer: str) -> bool:
    """Whether a free answer is one of the right ones."""
    return any(exact_match([known], [answer]) for known in (example.answer or "", *example.references))
