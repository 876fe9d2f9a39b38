"""What is measured of a training at its start and again after 30 % of its steps: the signs that it will make earlier
tasks forget.

- How far the answers on the new rows have moved from those of the version before: mean KL(before ‖ now), which
  forgetting follows ("RL's Razor", Shenfeld et al. 2025, arXiv:2509.04259). On an encoder it is taken on the output of
  the earlier task's own head.
- How much the earlier task's score has fallen already, on some of the rows that the gate will measure, and how much
  less likely their right answers are.
- How much the loss on the earlier task's replay samples has risen, and how much less likely their right answers are.
- How alike the new inputs and the samples are in the base's eyes: the cosine of the nearest, and the overlap of the
  subspaces that they span.
- How far the training still goes: peak learning rate × steps; how much of the new task is not learned yet; and how
  much the earlier task has to lose: its score above chance.

Nothing is learned from the held-out rows, and no random number is drawn, so the training goes on as if it had not been
looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy
import torch
from torch.nn.functional import kl_div, log_softmax

from adapterhub_cl import objectives
from adapterhub_cl.adapters.head_files import read_layout
from adapterhub_cl.adapters.lora import training_mode
from adapterhub_cl.bases.loading import LoadedBase
from adapterhub_cl.data.batches import collate
from adapterhub_cl.data.tokenise import Tokens
from adapterhub_cl.evaluation.evidence import ModelEvidence
from adapterhub_cl.evaluation.gate import as_share
from adapterhub_cl.evaluation.probes import Probe, score
from adapterhub_cl.forecasting.expectation import Signs
from adapterhub_cl.progress import Reporter
from adapterhub_cl.strategies import Stage
from adapterhub_cl.types import Example, Task

SHARE = 0.3  # of the steps, after which the signs are read
ROWS = 32  # of the new task, and of the samples of each earlier one
MEASURED = 200  # of the rows that the gate measures an earlier task on
COMPARED = 16  # new rows whose answers are compared, and the most tokens of each
AT_ONCE = 4  # of those in a pass: their logits are kept in full
DIRECTIONS = 8  # of the subspace that inputs span
HALVED = math.log(2)


@dataclass(frozen=True)
class EarlierTask:
    """A task that the new version will answer for.

    Attributes:
        samples: its replay samples, at most `ROWS`; `tokens` are the same ones as token ids.
        before: the score of what answers for it now, 0 to 1.
        chance: what a guess would score.
        probe: rows that the gate measures it on, at most `MEASURED`; `held` are the same ones as token ids.
        whole: whether these are all of the gate's rows, so that `before` is their score.
    """

    task: Task
    samples: Sequence[Example]
    tokens: Sequence[Tokens]
    before: float
    chance: float
    probe: Probe
    held: Sequence[Tokens]
    whole: bool


@dataclass(frozen=True)
class NewRows:
    """Rows of the new task, at most `ROWS`, as they are and as token ids."""

    task: Task
    examples: Sequence[Example]
    tokens: Sequence[Tokens]


class EarlySigns:
    """Watches a training loop until the signs can be read.

    Args:
        reviewed: whether the strategy trains on the earlier tasks' samples too, which are then no fair sample of what
            becomes of the others.
        told: called once with task → its signs, right after they were read.
    """

    def __init__(
        self,
        base: LoadedBase,
        earlier: Sequence[EarlierTask],
        new: NewRows,
        reviewed: bool,
        told: Callable[[Stage, Mapping[str, Signs]], None],
        reporter: Reporter,
    ) -> None:
        self.base, self.earlier, self.new, self.reviewed = base, earlier, new, reviewed
        self.told, self.reporter = told, reporter
        self.objective = objectives.of(base.info)

    def begin(self, stage: Stage) -> None:
        """Measure the model as the training found it; a checkpoint is restored only afterwards."""
        self.at = step_of(SHARE, stage.steps)
        layout = read_layout(stage.parent) if stage.parent is not None else {}
        self.layout = {one.task.name: layout[one.task.name] for one in self.earlier if one.task.name in layout}
        self.alike = self._alike(stage.model)
        self.losses = {one.task.name: self._losses(stage.model, one.tokens) for one in self.earlier}
        self.held = {one.task.name: self._losses(stage.model, one.held) for one in self.earlier}
        self.scores = {
            one.task.name: one.before if one.whole else self._score(stage.model, one.probe) for one in self.earlier
        }
        self.said = self._said(stage.model)
        training_mode(stage.model)

    def after_step(self, stage: Stage) -> None:
        """Measure again once that share of the steps is done, and tell."""
        if stage.step == self.at:
            self.told(stage, self.read(stage))

    def read(self, stage: Stage) -> dict[str, Signs]:
        """The signs of each earlier task, as the model is now."""
        now = self._said(stage.model)
        unlearned = _mean(self._losses(stage.model, self.new.tokens))
        found = {}
        for one in self.earlier:
            name = one.task.name
            was, losses = self.losses[name], self._losses(stage.model, one.tokens)
            held = self._losses(stage.model, one.held)
            near, overlap = self.alike[name]
            key = name if name in now else ""
            found[name] = Signs(
                before=one.before,
                chance=one.chance,
                loss_rise=_mean(losses) - _mean(was),
                likelihood_drop=_likelihood(was) - _likelihood(losses),
                halved=_mean([float(b - a > HALVED) for a, b in zip(was, losses, strict=True)]),
                divergence=_divergence(self.said[key], now[key]) if key in now else 0.0,
                nearness=near,
                overlap=overlap,
                unlearned=unlearned,
                path=stage.rate * stage.steps,
                reviewed=float(self.reviewed),
                lost=self.scores[name] - self._score(stage.model, one.probe),
                held_drop=_likelihood(self.held[name]) - _likelihood(held),
            )
        training_mode(stage.model)
        return found

    def _losses(self, model: Any, tokens: Sequence[Tokens]) -> list[float]:
        """Mean loss (nats) of an answer token of each row."""
        with self.base.autocast():
            found = self.objective.perplexities(model, tokens, self.base.tokenizer.pad_token_id, ROWS)
        return [total / max(1, count) for total, count in found]

    def _score(self, model: Any, probe: Probe) -> float:
        found = score(model, self.base, probe, self.reporter, f"forecast: measuring {probe.task.name}")
        return as_share(found.metric, found.value)

    @torch.no_grad()
    def _said(self, model: Any) -> dict[str, torch.Tensor]:
        """Log-probabilities on some new rows, `[positions, classes]`: by task of each earlier head, or of the whole
        vocabulary under an empty name."""
        found: dict[str, list[torch.Tensor]] = {}
        rows = [_short(row) for row in self.new.tokens[:COMPARED]]
        model.eval()
        for k in range(0, len(rows), AT_ONCE):
            part = rows[k : k + AT_ONCE]
            batch = collate(part, range(len(part)), self.base.tokenizer.pad_token_id).to(model.device)
            with self.base.autocast():
                logits = self.objective.logits(model, batch)
                heads = self.objective.recalled(model, self.layout)
            if heads is None or not any(batch.tasks):
                named = {"": logits}
            else:
                named = dict(zip(self.layout, heads, strict=False))
            for name, one in named.items():
                found.setdefault(name, []).append(log_softmax(one.float(), -1).half().cpu())
        return {name: torch.cat(parts) for name, parts in found.items()}

    def _alike(self, model: Any) -> dict[str, tuple[float, float]]:
        """Task → mean cosine of each new input with the nearest of its samples; overlap of their subspaces, 0 to 1."""
        new = self._embedded(model, self.new.task, self.new.examples)
        found = {}
        for one in self.earlier:
            known = self._embedded(model, one.task, one.samples)
            near = float((new @ known.T).max(axis=1).mean())
            k = min(DIRECTIONS, len(new), len(known))
            ours, theirs = (numpy.linalg.svd(x, full_matrices=False)[2][:k] for x in (new, known))
            found[one.task.name] = (near, float(numpy.square(ours @ theirs.T).sum() / k))
        return found

    def _embedded(self, model: Any, task: Task, rows: Sequence[Example]) -> Any:
        """`[rows, width]`, each of length 1."""
        length = task.max_length or self.base.context
        evidence = ModelEvidence(model, self.base, self.objective, task, rows, length, reporter=self.reporter)
        found = evidence.embeddings()
        return found / numpy.maximum(numpy.linalg.norm(found, axis=1, keepdims=True), 1e-12)


def step_of(share: float, steps: int) -> int:
    """After which step a share of all is done; never the last one."""
    return max(1, min(steps - 1, round(share * steps)))


def _short(row: Tokens) -> Tokens:
    return row if row.task or row.hidden else replace(row, answer=row.answer[:COMPARED])


def _divergence(before: torch.Tensor, now: torch.Tensor) -> float:
    """Mean KL(before ‖ now) of positions, nats, from log-probabilities `[positions, classes]`."""
    return max(0.0, float(kl_div(now.float(), before.float(), reduction="batchmean", log_target=True)))


def _likelihood(losses: Sequence[float]) -> float:
    """Mean likelihood of an answer token, 0 to 1."""
    return _mean([math.exp(-loss) for loss in losses])


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / max(1, len(values))
