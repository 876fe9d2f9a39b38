"""Compares a trained adapter with the version before it, asks the gate, and records the new version."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from adapterhub_cl import objectives
from adapterhub_cl.adapters.as_served import as_served, spare_bytes
from adapterhub_cl.adapters.fused import fused
from adapterhub_cl.context import Hub
from adapterhub_cl.data.tasks import find_outdated, mark_of
from adapterhub_cl.errors import GateRefused
from adapterhub_cl.evaluation.fact_scores import FactQuestions
from adapterhub_cl.evaluation.gate import Decision, Effect, decide
from adapterhub_cl.evaluation.knowledge import Questions
from adapterhub_cl.evaluation.probes import (
    Probe,
    asked_as,
    effect,
    outdated_of,
    probe_of,
    score,
    score_version,
    with_source,
    without,
)
from adapterhub_cl.evaluation.scoring import evaluate
from adapterhub_cl.learning import fact_lessons
from adapterhub_cl.learning.material import Material
from adapterhub_cl.learning.order import TrainOrder, refusal
from adapterhub_cl.learning.recording import Trained, keep_samples, record_version
from adapterhub_cl.learning.request import versions_of
from adapterhub_cl.training.learn import Learned
from adapterhub_cl.types import LATEST, PRODUCTION, REWARD, AdapterRecord, Evaluation, Example, Task


class Judge:
    """What is measured before a training and again after it.

    Attributes:
        probes: for each task that the new version would take over, its own included: the examples it is measured on,
            the score of the version that serves it now, and the name of that version.
        outdated: marks of the task's old answers that this training, or one before it, replaced.
    """

    def __init__(
        self,
        hub: Hub,
        order: TrainOrder,
        material: Material,
        length: int,
    ) -> None:
        self.hub, self.order, self.request, self.material, self.length = hub, order, order.request, material, length
        self.registry, self.base, self.reporter = hub.registry, hub.base, hub.reporter
        self.objective = objectives.of(self.registry.base)
        self.outdated = self._outdated()
        self.probes = self._probes()
        if order.general is not None:
            order.general.begin(hub)
        self._tell_unmeasured()
        self.compare = self._ask_before()

    def _ask_before(self) -> Callable[[Any], list[Evaluation]] | None:
        """Ask the version before an update, and whatever answered before facts are taught; gives the function that asks
        the trained model the same questions and compares."""
        material, base, reporter, seed = self.material, self.base, self.reporter, self.order.settings.seed
        parent, task, rows = material.parent, material.task, material.data.examples
        kept = (parent, material.review) if parent is not None and material.review else None
        if self.request.facts:
            self.objective.tokeniser(base.tokenizer, task, self.length).many(rows)  # too long a fact fails at once
            questions = fact_lessons.beside(material, seed)
            elsewhere = {"near questions": questions.near, "general questions": questions.general}
            asked = FactQuestions(self.registry, task, rows, seed, elsewhere=elsewhere, parent=kept)
            with fact_lessons.before_training(base, parent) as old:
                were = asked.ask(old, base, reporter, "before")
            return lambda model: asked.compare(were, asked.ask(model, base, reporter, "after"))
        if self.request.verb != "update" or parent is None or material.data.read.prefers:
            return None  # whether preferences were learned is told by their rewards, not by what is written
        updated = Questions(self.registry, task, rows, self.length, seed, raw=material.raw, parent=kept)
        with as_served(base, parent.path) as old:
            before = updated.ask(old, base, reporter, "before")
        return lambda model: updated.compare(before, updated.ask(model, base, reporter, "after"))

    def _probes(self) -> list[tuple[Probe, Evaluation, str]]:
        registry, own = self.registry, self.material.task.name
        serving = registry.serving()
        found = []
        for name in (name for name in (own, *self.material.takes_over) if name in serving):
            record = registry.get(serving[name])
            probe = self._own_probe(record) if name == own else probe_of(registry, name)
            if probe is not None and name == own:
                probe = self._up_to_date(probe)
            if probe is not None:
                found.append((probe, score_version(self.hub, record, probe), record.ref))
        return found

    def _outdated(self) -> set[str]:
        material = self.material
        inherited = outdated_of(material.parent, material.task.name)
        return {*inherited, *(mark_of(e, material.task.instruction) for e in material.outdated)}

    def _up_to_date(self, probe: Probe) -> Probe | None:
        """The probe without the rows that the new data contradict: there the old version would always win."""
        if self.request.verb != "update":  # a version trained from scratch is compared on everything
            return probe
        stated = probe.task.instruction
        gone = [probe.examples[k] for k in find_outdated(probe.examples, self.material.data, stated)]
        self.outdated |= {mark_of(e, stated) for e in gone}
        if gone and probe.sha256:
            rows = "1 held-out row that contradicts" if len(gone) == 1 else f"{len(gone)} held-out rows that contradict"
            self.reporter.note(f"note: the gate leaves out {rows} the new data")
        return without(probe, self.outdated)

    def _tell_unmeasured(self) -> None:
        """Name the labels that no held-out row has: the score says nothing about them."""
        material, task = self.material, self.material.task
        held: Sequence[Example] = material.held_out.examples if material.held_out else ()
        what = "held-out row has"
        if material.held_out is None and self.request.verb == "update":  # then the gate's own score is the headline
            probe = next((p for p, *_ in self.probes if p.task.name == task.name), None)
            if probe is not None:
                held = probe.examples
                what = what if probe.sha256 else "sample that it is measured on has"
        if not held or task.kind != "choice" or material.raw:
            return
        known = {t.name: t.labels for t in self.registry.tasks()} if self.request.verb == "update" else {}
        taught = {e.answer for e in material.data} - set(known.get(task.name, ())) - {e.answer for e in held}
        labels = [label for label in task.labels if label in taught]
        if labels:
            shown = ", ".join(labels[:8]) + (f", … ({len(labels)})" if len(labels) > 8 else "")
            self.reporter.note(f"note: no {what} the label{'s' if len(labels) > 1 else ''} {shown}")

    def _own_probe(self, served: AdapterRecord) -> Probe | None:
        """The rows on which the new version is compared with the one that serves the task, in that one's prompts.

        None if the kind or the metric has changed, because the two scores could not be compared.
        """
        material, new = self.material, self.material.task
        told = served.manifest.get("task_spec") if served.task == new.name else None
        old = Task.from_json(told).limited(served) if told else self.registry.task(new.name)
        if (old.kind, old.metric) != (new.kind, new.metric):
            return None
        probe, held = probe_of(self.registry, new.name), material.held_out
        goes_on = material.parent is not None and material.parent.task == new.name
        usable = held is not None and (held.layout != "raw text" or new.kind == "text")
        usable = usable and held is not None and held.read.prefers == (new.metric == REWARD)
        if held is not None and usable and not goes_on and (probe is None or not probe.sha256):
            # Replay samples are what the older version was trained on, and this one may never have seen them.
            probe = Probe(new, held.examples, held.source, self.length, held.sha256)
        return None if probe is None else asked_as(probe, old)

    def after(self, model: Any) -> tuple[list[Evaluation], Decision]:
        """All scores of the trained model, and the gate's decision."""
        scores = self._own(model)
        effects = []
        for probe, was, answers in self.probes:
            same = (probe.task.name, probe.data, probe.task.metric)
            now = next((s for s in scores if (s.task, s.data, s.metric) == same), None)
            if now is None:
                task = self.material.task
                asked = asked_as(probe, task) if probe.task.name == task.name else probe
                now = with_source(score(model, self.base, asked, self.reporter), probe.sha256)
                if not (probe.left_out and scores):  # a second score on a part of the file would confuse
                    scores.append(now)
            effects.append(effect(probe, was, now, answers))
        if self.compare is not None:
            scores += self.compare(model)
        if (rebased := self._rebased(scores)) is not None:
            effects.append(rebased)
        general = None if self.order.general is None else self.order.general.effect(self.hub, model)
        decision = decide(effects, self.order.limit, general)
        for text in decision.within_chance:
            self.reporter.note(text)
        if warning := not_learned(scores):
            name = self.request.name
            pinned = PRODUCTION in self.registry.aliases().get(name, {})
            serves = decision.passed and self.request.serve and not pinned and versions_of(self.registry, name)
            back = f"; it serves now, and cl-adapter rollback {name}@{LATEST} brings back the version before"
            self.reporter.note(warning + (back if serves else ""))
        return scores, decision

    def _rebased(self, scores: Sequence[Evaluation]) -> Effect | None:
        """The effect on the task itself of learning it again on another base: from the old hub's score to this one.

        None for raw text: perplexities of two bases, whose tokens differ, cannot be compared.
        """
        old, held, task = self.request.rebased_from, self.material.held_out, self.material.task
        if not old or held is None or task.kind == "text":
            return None
        now = next(s for s in scores if (s.data, s.metric) == (held.source, task.metric))
        rows = {"row_scores": old.get("old_row_scores")}
        before = Evaluation(task.name, task.metric, float(old["old_score"]), now.n, now.data, rows)
        probe = Probe(task, held.examples, held.source, self.length)
        return effect(probe, before, now, f"{old['ref']} on the old base")

    def _own(self, model: Any) -> list[Evaluation]:
        """All metrics on the held-out data of this run."""
        held = self.material.held_out
        if held is None:
            return []
        task = self.material.task
        if held.layout == "raw text":
            task = task.as_text()
        with self.reporter.piece("evaluating", len(held)) as advance:
            found = evaluate(
                model,
                self.base.tokenizer,
                self.objective,
                task,
                held.examples,
                data=held.source,
                max_length=self.length,
                dtype=self.base.dtype,
                progress=advance,
            )
        return [with_source(one, held.sha256) for one in found]


def not_learned(measured: Sequence[Evaluation]) -> str:
    """A warning if the model answers the new rows no better than before the update; else an empty text.

    Args:
        measured: among them `recall`, or `efficacy` of facts, with the scores before and after.
    """
    recall = next((one for one in measured if one.metric in ("recall", "efficacy")), None)
    if recall is None or recall.value >= 0.5 or recall.details.get("of") == "perplexity":
        return ""
    before, after = float(recall.details["before"]), float(recall.details["after"])
    if after > before:
        return ""
    return (
        f"warning: the new rows were not learned ({recall.details['of']} {before:.2f} before, {after:.2f} after); try "
        "more --epochs or another --learning-rate"
    )


def conclude(
    judge: Judge,
    model: Any,
    learned: Learned,
    training: Mapping[str, Any],
    more: Mapping[str, Any] | None = None,
) -> tuple[AdapterRecord, GateRefused | None]:
    """From the trained model to the recorded version.

    Args:
        training: the facts for `training.json`.
        more: further keys of the manifest.

    Returns:
        the version, and the error to raise once everything is put away, where the gate refused it.
    """
    base = judge.hub.base
    model.eval()
    with fused(model, base.dtype, spare_bytes(base)):
        scores, decision = judge.after(model)
        kept, memory = keep_samples(judge.hub, judge.order, model, judge.objective, judge.material, learned)
    extra = {**(more or {}), **({"outdated": sorted(judge.outdated)} if judge.outdated else {})}
    if rebased := judge.order.request.rebased_from:
        told = {key: value for key, value in rebased.items() if key != "old_row_scores"}  # thousands of numbers
        extra["rebased_from"] = {**told, "new_score": next((s.value for s in scores), None)}
    trained = Trained(model, judge.material, scores, decision, training, kept, memory, extra)
    record = record_version(judge.hub, judge.order, trained)
    return record, None if decision.passed else refusal(record, judge.order.request.strategy)
