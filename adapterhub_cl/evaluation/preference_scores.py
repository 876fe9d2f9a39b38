"""Reward accuracy: how often the wanted answer has the higher reward, on rows that say which answers are wanted.

The reward of an answer is log π(answer) − log π_base(answer), in nats. It is taken against the base without an adapter,
not against the version that a training started from, so that the figures of two versions can be compared. (β scales all
rewards alike and changes no comparison.) Where two rewards are the same, the wanted answer has not the higher one; so
the base itself scores 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from adapterhub_cl.adapters.fused import base_alone
from adapterhub_cl.data.preference_tokens import JudgedTokeniser, PairTokeniser, PreferenceTokens
from adapterhub_cl.data.tokenise import Tokens
from adapterhub_cl.errors import DataError
from adapterhub_cl.evaluation.metrics import MOST_ROW_SCORES, in_a_line, wilson_interval
from adapterhub_cl.objectives import BaseObjective
from adapterhub_cl.progress import by_share
from adapterhub_cl.types import REWARD, Evaluation, Example, Task


def scorable(examples: Sequence[Example]) -> bool:
    """Whether there is anything to compare: a pair, or answers of both kinds, or ordinary rows."""
    judged = {example.desirable for example in examples}
    return any(example.rejected for example in examples) or None in judged or len(judged) == 2


def preference_score(
    model: Any,
    tokenizer: Any,
    objective: BaseObjective,
    task: Task,
    examples: Sequence[Example],
    *,
    data: str,
    max_length: int,
    dtype: torch.dtype,
    batch_size: int = 32,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """The reward accuracy of a model; arguments as in `scoring.evaluate`.

    Of pairs it is the share in which the chosen answer has the higher reward. Of answers that were judged one by one it
    is the share, among all pairs of a wanted and an unwanted one, in which the wanted one has.

    Raises:
        DataError: all answers are judged alike, or the base writes no answers.
    """
    if not objective.writes:
        raise DataError(f"{data} has preferences between free answers, which an encoder does not write", "give labels")
    rows = [example for example in examples if example.prefers]
    if not scorable(rows):
        raise DataError(f"{data}: all answers are judged alike, so there is nothing to compare", "give both kinds")
    encode = PairTokeniser if all(row.rejected for row in rows) else JudgedTokeniser
    tokens = [part for row in rows for part in encode(tokenizer, task, max_length).windows(row)]
    pairs = [part for part in tokens if isinstance(part, PreferenceTokens)]
    paired = encode is PairTokeniser
    asked: list[Tokens] = [part.with_answer for part in pairs]
    asked += [part.with_other for part in pairs] if paired else []
    told = by_share(2 * len(asked), len(rows), progress)  # each is computed with the adapter and without
    rewards = _rewards(model, objective, asked, tokenizer.pad_token_id, dtype, batch_size, told)
    if paired:
        margins = rewards[: len(pairs)] - rewards[len(pairs) :]
    else:
        liked = torch.tensor([bool(part.desirable) for part in pairs])
        margins = (rewards[liked][:, None] - rewards[~liked][None, :]).flatten()
    share = float((margins > 0).double().mean())
    low, high = wilson_interval(round(share * len(rows)), len(rows))
    details: dict[str, Any] = {"interval": [round(low, 4), round(high, 4)], "margin": round(float(margins.mean()), 4)}
    if paired and len(rows) <= MOST_ROW_SCORES:
        details["row_scores"] = in_a_line((margins > 0).double().tolist())
    return Evaluation(task.name, REWARD, share, len(rows), data, details)


def _rewards(
    model: Any,
    objective: BaseObjective,
    tokens: Sequence[Tokens],
    pad_id: int,
    dtype: torch.dtype,
    batch_size: int,
    progress: Callable[[int], None] | None,
) -> torch.Tensor:
    """log π − log π_base of each row's answer, `[rows]`, in nats."""
    if not hasattr(model, "disable_adapter"):
        return torch.zeros(len(tokens))  # the base itself
    with torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32):
        own = objective.perplexities(model, tokens, pad_id, batch_size, progress)
        with base_alone(model):
            base = objective.perplexities(model, tokens, pad_id, batch_size, progress)
    return torch.tensor([float(was - now) for (now, _), (was, _) in zip(own, base, strict=True)], dtype=torch.float64)
