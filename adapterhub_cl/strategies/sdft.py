"""SDFT, self-distillation fine-tuning (Shenfeld et al. 2026, arXiv:2601.19897): the model learns from answers that it
writes itself.

For each row the model in training (the student) writes an answer to the question alone. The teacher is the same model,
which has also read the row's right answer as an example. At each token of the student's answer the divergence
KL(teacher ‖ student) over the whole vocabulary is lowered; it takes the place of the usual loss on the right answers.
Because the student stays close to what it writes anyway, it forgets less. The teacher's weights follow the student's
as a moving average (`follow`).

Two things are ours. The example is shown as an earlier turn (question, right answer, question again), and no sentence
introduces it, so it works with every prompt format. And `answers` adds the usual loss with that weight; the paper has
none (0).

Choose it for a large instruct model that does better with an example before it. The paper's authors found no gain over
plain training with small models, whose teacher learns too little from the example, and a training takes several times
as long, because answers are written in every step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adapterhub_cl.errors import DataError, UsageError
from adapterhub_cl.options import option
from adapterhub_cl.strategies import BaseStrategy, Stage
from adapterhub_cl.strategies.lwf import distillation, swapped

if TYPE_CHECKING:
    import torch

    from adapterhub_cl.data.batches import Batch
    from adapterhub_cl.data.tokenise import Tokens


@dataclass(frozen=True)
class Config:
    longest: int = option(64, "tokens that the model writes at most for a row")
    follow: float = option(0.05, "share of the way to the model in training that the teacher goes in each step")
    answers: float = option(0.0, "weight of the usual loss on the right answers; 0 learns from written answers alone")

    def __post_init__(self) -> None:
        if self.longest < 1:
            raise UsageError(f"sdft.longest must be at least 1, not {self.longest}", "64 is usual")
        if not 0 <= self.follow <= 1:
            raise UsageError(f"sdft.follow must be between 0 and 1, not {self.follow:g}", "0.05 is usual")
        if not 0 <= self.answers <= 100:
            raise UsageError(f"sdft.answers must be between 0 and 100, not {self.answers:g}", "0 as published")


def with_example(row: Tokens) -> tuple[int, ...]:
    """The teacher's prompt: the question, its right answer, and the question again."""
    return (*row.prompt, *row.answer, *row.prompt)


class Strategy(BaseStrategy):
    """Learns from the model's own answers, as it would give them after an example."""

    shares = "all weights, taught by the model's own answers instead of the given ones"
    reads_logits = False
    writes = True
    Config = Config

    @property
    def own_loss(self) -> float:
        return float(self.config.answers)

    def begin(self, stage: Stage) -> None:
        self.teacher = {name: p.detach().clone() for name, p in stage.parameters.items()}
        self.taught = self.left_out = self.written = 0
        self._tell_what_fits(stage)

    def _fits(self, stage: Stage, row: Tokens) -> bool:
        """Whether the base can read a row with its example, and what is written behind them."""
        return bool(len(with_example(row)) + self.config.longest <= stage.context)

    def _tell_what_fits(self, stage: Stage) -> None:
        """Tell how many of the new rows are left out.

        Raises:
            DataError: all are, so that nothing would be learned.
        """
        count = sum(not self._fits(stage, stage.tokens(row)) for row in range(stage.fresh))
        if not count:
            return
        room = (stage.context - self.config.longest) // 2  # what fits into it fits with its example
        what = (
            f"{count} of {stage.fresh} rows are too long for sdft: the base reads {stage.context} tokens, which must "
            f"hold the question twice, its answer, and the {self.config.longest} tokens of sdft.longest"
        )
        steps = [f"--max-length {room} cuts them"] if room > 0 else []
        steps.append("a lower --set sdft.longest=N leaves more room")
        if count == stage.fresh and not self.own_loss:
            raise DataError(what, f"{'; '.join(steps)}; or choose another --strategy")
        rest = "are learned from their given answers alone" if self.own_loss else "are not learned"
        stage.note(f"warning: {what}; they {rest} ({'; '.join(steps)})")

    def penalty(self, stage: Stage, batch: Batch, logits: torch.Tensor) -> torch.Tensor | None:
        import torch

        rows = [stage.tokens(row) for row in batch.indices]
        fit = [row for row in rows if self._fits(stage, row)]
        self.left_out += len(rows) - len(fit)
        if not fit:
            return None
        written = stage.write([row.prompt for row in fit], [row.answer[-1] for row in fit], self.config.longest)
        asked = [_as_row(row.prompt, answer) for row, answer in zip(fit, written, strict=True)]
        shown = [_as_row(with_example(row), answer) for row, answer in zip(fit, written, strict=True)]
        with torch.no_grad(), swapped(stage.parameters, self.teacher):
            teacher = stage.logits(stage.collate(shown))
        self.taught += len(fit)
        self.written += sum(map(len, written))
        return distillation(stage.logits(stage.collate(asked)), teacher, 1.0)

    def after_step(self, stage: Stage) -> None:
        import torch

        with torch.no_grad():
            for name, p in stage.parameters.items():
                self.teacher[name].lerp_(p.detach(), self.config.follow)

    def summary(self) -> dict[str, Any]:
        return {"rows": self.taught, "left_out": self.left_out, "written_tokens": self.written}

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        return self.teacher, self.summary()

    def restore(self, tensors: Mapping[str, torch.Tensor], values: Mapping[str, Any]) -> None:
        begun = getattr(self, "teacher", {})  # whose tensors lie where those in training do
        self.teacher = {n: t.to(begun[n].device) if n in begun else t for n, t in tensors.items()}
        self.taught, self.left_out, self.written = values["rows"], values["left_out"], values["written_tokens"]


def _as_row(prompt: Sequence[int], answer: Sequence[int]) -> Tokens:
    from adapterhub_cl.data.tokenise import Tokens

    return Tokens(tuple(prompt), tuple(answer))
