"""Proves that a vLLM answers as we would: its base is the hub's, and an adapter that it loaded does there what it does
here. Both are asked for the log-probabilities of the same tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence

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
TOKENS = 64
# Mean difference of a token's log-probability, in nats, up to which two bases count as the same. Measured on
# SmolLM2-135M: 0.00002 in fp32, 0.04 in bf16; 0.20 between int8 and fp32 and 0.6 between nf4 and fp32, as much as an
# adapter makes. So a 4- or 8-bit hub needs the same name or the same files too: docs/decisions/046.
SAME, SAME_QUANTISED = 0.1, 1.0
SHARE = 0.1  # how much of an adapter's effect may be missing or other in the vLLM, besides what rounding does
NOTHING = 1e-5  # nats; an effect up to this is none


def probe_ids(base: LoadedBase) -> list[int]:
    """The tokens that are compared."""
    return list(base.tokenizer(PROBE, add_special_tokens=False).input_ids)[:TOKENS]


@torch.no_grad()
def own_logs(base: LoadedBase, bank: LoraBank, ids: Sequence[int], mixture: Mixture) -> list[float]:
    """The log-probability of each token after those before it, from the second on, as computed in this process.

    Raises:
        AdapterError, IntegrityError: the adapter cannot be read.
    """
    bank.require(mixture)
    with bank.rows([mixture]) as model, base.autocast():
        logits = model(input_ids=torch.tensor([list(ids)], device=base.device), **base.reading).logits[0]
    logs = logits[:-1].float().log_softmax(-1)
    found: list[float] = logs[torch.arange(len(ids) - 1), torch.tensor(list(ids[1:]))].tolist()
    return found


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
