"""The effects of an update: recall of the new, retention of the old, locality (unrelated answers unchanged).

The three measures of knowledge editing (Meng et al. 2022, "ROME", section 3; Yao et al. 2023), applied to an update.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from adapterhub_cl import objectives
from adapterhub_cl.bases.loading import LoadedBase
from adapterhub_cl.evaluation.gate import as_share
from adapterhub_cl.evaluation.probes import Probe, score
from adapterhub_cl.progress import Reporter
from adapterhub_cl.registry import Registry
from adapterhub_cl.samples.kept import kept_samples
from adapterhub_cl.types import AdapterRecord, Evaluation, Example, Task

ROWS = 100  # examples of each kind
# Examples of other tasks, which an update must not touch.
Unrelated = list[tuple[Task, list[Example]]]


@dataclass(frozen=True)
class Snapshot:
    """A model's results: scores on the new and the old examples, and its answers to unrelated ones."""

    new: Evaluation
    old: Evaluation | None
    unrelated: tuple[str, ...]


class Questions:
    """The questions to ask before and after an update.

    Args:
        task: the task that is updated.
        rows: the new data.
        raw: whether the new data are raw text.
        parent: the version that is updated, whose replay samples are mixed in.
    """

    def __init__(
        self,
        registry: Registry,
        task: Task,
        rows: Sequence[Example],
        max_length: int,
        seed: int,
        *,
        raw: bool = False,
        parent: tuple[AdapterRecord, Sequence[Example]] | None = None,
    ) -> None:
        draw = random.Random(f"knowledge {seed}")
        new = task.as_text() if raw else task
        self.new = Probe(new, some(rows, draw), "the new data", max_length)
        self.old: Probe | None = None
        if parent is not None:
            version, mixed = parent
            asked = [e for e in mixed if e.input or task.kind == "text"]
            self.old = Probe(task, some(asked, draw), f"replay samples of {version.ref}", max_length) if asked else None
        self.unrelated = samples_of_others(registry, new.name, draw)

    def ask(self, model: Any, base: LoadedBase, reporter: Reporter, when: str) -> Snapshot:
        """The model's current answers.

        Args:
            when: `before` or `after` the update, for the progress bars.
        """
        name = self.new.task.name
        old = None
        if self.old is not None:
            old = score(model, base, self.old, reporter, f"what {name} knew, {when}")
        new = score(model, base, self.new, reporter, f"what {name} is to learn, {when}")
        if not self.unrelated:
            return Snapshot(new, old, ())
        with reporter.piece(f"other tasks, {when}", sum(len(examples) for _, examples in self.unrelated)) as advance:
            return Snapshot(new, old, tuple(answers_to(self.unrelated, model, base, advance)))

    def compare(self, before: Snapshot, after: Snapshot) -> list[Evaluation]:
        """`recall` (score on the new data), `retention` (old samples: score after ÷ score before) and `locality`
        (share of unrelated answers unchanged); without those that could not be measured."""
        found: list[Evaluation] = []
        name = self.new.task.name
        told = {"of": after.new.metric, "before": before.new.value, "after": after.new.value}
        value = as_share(after.new.metric, after.new.value)
        found.append(Evaluation(name, "recall", value, after.new.n, self.new.data, told))
        if before.old is not None and after.old is not None and self.old is not None:
            told = {"of": after.old.metric, "before": before.old.value, "after": after.old.value}
            was, now = (as_share(e.metric, e.value) for e in (before.old, after.old))
            if was > 0:
                found.append(Evaluation(name, "retention", now / was, after.old.n, self.old.data, told))
        if before.unrelated:
            pairs = list(zip(before.unrelated, after.unrelated, strict=True))
            share = sum(a == b for a, b in pairs) / len(pairs)
            tasks = ", ".join(task.name for task, _ in self.unrelated)
            found.append(Evaluation(name, "locality", share, len(pairs), f"replay samples of {tasks}"))
        return found


def samples_of_others(registry: Registry, name: str, draw: random.Random) -> Unrelated:
    """Replay samples of the hub's other tasks, without raw text: about `ROWS` of them.

    Args:
        name: the task that is taught.
    """
    others = [r for r in registry.adapters(include_rejected=False) if r.task != name and r.status == "active"]
    known = {found.name: found for found in registry.tasks()}
    unrelated: Unrelated = []
    for record in sorted(others, key=lambda r: r.ref):
        spec = known.get(record.task)
        samples = kept_samples(record) if spec is not None and spec.kind != "text" else []
        samples = [sample for sample in samples if sample.input]
        if spec is not None and samples:
            unrelated.append((spec, some(samples, draw, max(4, ROWS // len(others)))))
    return unrelated


def answers_to(unrelated: Unrelated, model: Any, base: LoadedBase, advance: Callable[..., None]) -> list[str]:
    """What a model answers to examples of several tasks, without tasks that it has no head for."""
    objective = objectives.of(base.info)
    found: list[str] = []
    for task, examples in unrelated:
        if not objective.knows(model, task):  # an encoder's adapter without a head for the task
            advance(len(examples))
            continue
        with base.autocast():
            rows = objective.predict(model, base.tokenizer, task, examples, max_length=base.context, progress=advance)
        found += [answer.text for answer in rows]
    return found


def some(examples: Sequence[Example], draw: random.Random, most: int = ROWS) -> list[Example]:
    """At most so many of the examples that have an answer, drawn at random."""
    rows = [e for e in examples if e.answer]
    return rows if len(rows) <= most else draw.sample(rows, most)
