"""Teachers' distributions, stored as their most likely tokens, and a student's divergence from them (Hinton et al.
2015, arXiv:1503.02531)."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Soft:
    """A teacher's distributions at n positions, at a temperature.

    Attributes:
        logs: `[n, k]`, log-probabilities of the k most likely tokens, fp32.
        tokens: `[n, k]`, the ids of these tokens.
        rest: `[n]`, log-probability of all other tokens together; −inf if there are none.
    """

    logs: torch.Tensor
    tokens: torch.Tensor
    rest: torch.Tensor

    def to(self, device: torch.device) -> Soft:
        return Soft(self.logs.to(device), self.tokens.to(device), self.rest.to(device))


def soften(logits: torch.Tensor, temperature: float, top: int) -> Soft:
    """Logits `[n, vocabulary]` → the `top` most likely tokens of each position."""
    logs = (logits.float() / temperature).log_softmax(-1)
    kept = logs.topk(min(top, logs.shape[-1]), -1)
    return Soft(kept.values, kept.indices.int(), _rest(logs, kept.indices))


def divergence(student: torch.Tensor, teacher: Soft, temperature: float) -> torch.Tensor:
    """Mean KL(teacher ‖ student) over positions, times the square of the temperature, so that gradients keep their
    scale.

    The tokens that are not in the teacher's stored distribution count as one: with `top` = vocabulary it is the exact
    divergence, otherwise a lower bound.

    Args:
        student: logits `[n, vocabulary]`, with the gradient.
    """
    logs = (student.float() / temperature).log_softmax(-1)
    tokens = teacher.tokens.long()
    found = (teacher.logs.exp() * (teacher.logs - logs.gather(-1, tokens))).sum(-1)
    if tokens.shape[-1] < logs.shape[-1]:
        found = found + teacher.rest.exp() * (teacher.rest - _rest(logs, tokens))
    return found.mean() * temperature**2


def _rest(logs: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Log-probability of all tokens but these, `[n]`."""
    return logs.scatter(-1, tokens, -torch.inf).logsumexp(-1)
