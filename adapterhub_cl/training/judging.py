"""Measures a trained adapter against what came before it, asks the gate, and records the version."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from adapterhub_cl import objectives, replay
from adapterhub_cl.bases.loading import LoadedBase
from adapterhub_cl.errors import GateRefused
from adapterhub_cl.evaluation.gate import Decision, Effect, decide
from adapterhub_cl.evaluation.scoring import evaluate
from adapterhub_cl.registry import Registry
from adapterhub_cl.strategies._combined import Combined
from adapterhub_cl.training import speed
from adapterhub_cl.training.fused import fused
from adapterhub_cl.training.knowledge import Questions
from adapterhub_cl.training.learn import Learned
from adapterhub_cl.training.material import Material
from adapterhub_cl.training.probes import Probe, effect, probe_of, score, score_version, with_source
from adapterhub_cl.training.progress import Reporter
from adapterhub_cl.training.recording import keep_samples, record_version
from adapterhub_cl.training.request import Request, limit_of
from adapterhub_cl.types import AdapterRecord, Evaluation


class Judge:
    """What is measured before a training and again after it.

    Attributes:
        probes: for each task that the new version takes over, and its own one if it goes on from an older version of
            it: what it is measured on, what the version that serves it scores there, and which that is.
    """

    def __init__(
        self,
        registry: Registry,
        base: LoadedBase,
        objective: objectives.BaseObjective,
        request: Request,
        material: Material,
        length: int,
        reporter: Reporter,
    ) -> None:
        self.registry, self.base, self.objective, self.request = registry, base, objective, request
        self.material, self.length, self.reporter = material, length, reporter
        self.probes = self._probes()
        self.questions: Questions | None = None
        parent = material.parent
        if request.verb == "update" and parent is not None:
            self.questions = Questions(registry, material, length, request.training().seed)
            with speed.as_served(base, parent.path) as old:
                self.before = self.questions.ask(old, base)

    def _probes(self) -> list[tuple[Probe, Evaluation, str]]:
        material, registry = self.material, self.registry
        serving = registry.serving()
        parent, own = material.parent, material.task.name
        names = [own] if parent is not None and parent.task == own else []
        found = []
        for name in (*names, *material.takes_over):
            probe = probe_of(registry, name) if name in serving else None
            if probe is not None:
                record = registry.get(serving[name])
                found.append((probe, score_version(registry, self.base, record, probe, self.reporter), record.ref))
        return found

    def after(self, model: Any) -> tuple[list[Evaluation], Decision]:
        """All scores of the trained model, and what the gate says to them."""
        scores = self._own(model)
        effects = []
        for probe, was, answers in self.probes:
            same = (probe.task.name, probe.data, probe.task.metric)
            now = next((s for s in scores if (s.task, s.data, s.metric) == same), None)
            if now is None:
                now = with_source(score(model, self.base, probe, self.reporter), probe)
                scores.append(now)
            effects.append(effect(probe, was, now, answers))
        if self.questions is not None:
            scores += self.questions.compare(self.before, self.questions.ask(model, self.base))
        limit = limit_of(self.registry, self.request.max_forgetting)
        for found in effects:
            if found.drop > limit and not found.over(limit):
                self.reporter.note(found.within_chance(limit))
        return scores, decide(effects, limit)

    def _own(self, model: Any) -> list[Evaluation]:
        """All metrics on the held-out data of this run."""
        held = self.material.held_out
        if held is None:
            return []
        task = self.material.task
        if held.layout == "raw text":
            task = task.as_text()
        self.reporter.start("evaluating", len(held))
        try:
            found = evaluate(
                model,
                self.base.tokenizer,
                self.objective,
                task,
                held.examples,
                data=held.source,
                max_length=self.length,
                dtype=self.base.dtype,
                progress=self.reporter.advance,
            )
        finally:
            self.reporter.finish()
        return [replace(s, details={**s.details, "sha256": held.sha256}) for s in found]


def conclude(
    judge: Judge,
    model: Any,
    keep: replay.Keep,
    strategy: Combined,
    learned: Learned,
    training: dict[str, Any],
    told: Mapping[str, Any] | None = None,
) -> tuple[AdapterRecord, GateRefused | None]:
    """From the trained model to the recorded version.

    Args:
        training: what stands in `training.json`.
        told: what else stands in the manifest.

    Returns:
        the version, and the error to be raised once everything is put away, where the gate refused it.
    """
    base, material, request = judge.base, judge.material, judge.request
    model.eval()
    with fused(model, base.dtype, speed.spare_bytes(base)):
        scores, decision = judge.after(model)
        seed = request.training().seed
        kept, memory = keep_samples(
            model, base, judge.objective, material, keep, strategy, learned, seed, judge.reporter
        )
    record = record_version(
        judge.registry,
        base,
        model,
        request,
        material,
        keep,
        scores,
        training,
        kept,
        memory,
        strategy,
        decision,
        told or {},
    )
    return record, None if decision.passed else refusal(record, request.strategy)


def refusal(record: AdapterRecord, strategy: str) -> GateRefused:
    """The error that says why a rejected version was refused, and what to try."""
    gate = record.manifest["gate"]
    decision = Decision(gate["limit"], tuple(Effect.from_json(row) for row in gate["effects"]))
    refused = GateRefused(decision.message(record.ref), _what_to_try(strategy, record))
    refused.record = record
    return refused


def _what_to_try(strategy: str, record: AdapterRecord) -> str:
    other = "--strategy replay" if "replay" not in strategy else "a larger --set replay.ratio"
    return (
        f"{record.ref} is kept as rejected and nothing was moved; try {other}, a lower --learning-rate, or let it "
        f"pass: cl-adapter promote {record.ref} --max-forgetting 1"
    )
