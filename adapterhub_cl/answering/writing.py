"""Writes text token by token, each row with its own settings. Nothing else calls transformers' `generate`.

`generate` runs the passes and keeps the KV cache. What differs from row to row (temperature, seed, limit, stop strings,
streaming) is done in its two hooks. Tokens are drawn by the Gumbel trick: the largest of logits ÷ T plus Gumbel noise
is a draw from the softmax, so greedy search serves rows that draw and rows that do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TopKLogitsWarper,
)

from adapterhub_cl.answering import Answer, evaluating
from adapterhub_cl.bases.loading import LoadedBase
from adapterhub_cl.data.batches import to_left_padded
from adapterhub_cl.data.chat import end_ids
from adapterhub_cl.data.tokenise import DEFAULT_ANSWER, Tokeniser
from adapterhub_cl.data.values import tidy
from adapterhub_cl.errors import UnknownNameError, UsageError
from adapterhub_cl.options import flag
from adapterhub_cl.progress import Reporter
from adapterhub_cl.types import Task

COLD = 1e-4  # temperatures up to this take the likeliest token, as a draw would if it did not overflow
HALF = "�"  # a token that is only part of a character decodes to this
ROWS, LONGEST, TOP_K = 16, 64, 50  # of `base_writer`: rows at once, tokens a text, likeliest tokens to draw from


@dataclass(frozen=True)
class Writing:
    """How a row is written.

    Attributes:
        max_new_tokens: longest answer, in tokens; None: what the task's answers need.
        temperature: 0 takes the likeliest token each time.
        top_p: sample from the most likely tokens that add up to this probability.
        seed: of the draws.
        stop: strings; the answer ends before the first one.
    """

    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()

    @classmethod
    def of(cls, asked: Mapping[str, Any]) -> Writing:
        """Settings from keyword arguments.

        Raises:
            UnknownNameError, UsageError: a keyword or a value that cannot be used.
        """
        for name in asked:
            if name not in cls.__dataclass_fields__:
                raise UnknownNameError("setting of an answer", str(name), cls.__dataclass_fields__)
        stop = asked.get("stop", ())
        return cls(**{**asked, "stop": (stop,) if isinstance(stop, str) else tuple(stop)})

    def __post_init__(self) -> None:
        for name, kind in (
            ("max_new_tokens", int),
            ("seed", int),
            ("temperature", (int, float)),
            ("top_p", (int, float)),
        ):
            value = getattr(self, name)
            if name == "max_new_tokens" and value is None:
                continue
            if not isinstance(value, kind) or isinstance(value, bool):
                raise UsageError(f"{flag(name)} is {value!r}, not a number of its kind", "see --help")
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"--seed must be from 0 to 2^63 - 1, not {self.seed}", "--seed 0")
        if not isinstance(self.stop, tuple) or any(not isinstance(text, str) for text in self.stop):
            raise UsageError("a stop string is no text", 'stop=("\\n",)')
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise UsageError(f"--max-new-tokens must be 1 or more, not {self.max_new_tokens}", "--max-new-tokens 64")
        if not 0 <= self.temperature < math.inf:
            raise UsageError(f"--temperature must be 0 or more, not {self.temperature}", "0 takes the likeliest token")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"--top-p must be above 0 and at most 1, not {self.top_p}", "1 draws from all tokens")
        if any(not text for text in self.stop):
            raise UsageError("an empty stop string would end every answer", "give --stop a text")


@torch.no_grad()
def write_rows(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    rows: Sequence[Writing],
    *,
    prefixes: Sequence[str | None] | None = None,
    emit: Sequence[Callable[[str], bool] | None] | None = None,
    halt: Callable[[], bool] = lambda: False,
    top_k: int = 0,
) -> list[Answer]:
    """Written answers to prompts, in order; `finished`: it ended by itself or at a stop string.

    Args:
        model: the base's model, with adapters active or a bank's rows set.
        prefixes: for each row the text that its prompt format puts before the answer: it is removed, as are blank lines
            and spaces around the answer. None: the text stays as it was written.
        emit: for each row None, or a function that receives the text piece by piece and returns whether to go on.
        halt: called before each token; True ends all answers where they are.
        top_k: draw from this many of the likeliest tokens; 0: from all.
    """
    inputs = to_left_padded(prompts, tokenizer.pad_token_id)
    ends = end_ids(tokenizer, model)
    rows = [replace(row, max_new_tokens=row.max_new_tokens or DEFAULT_ANSWER) for row in rows]
    desk = _Desk(tokenizer, ends, rows, prefixes or [None] * len(rows), emit or [None] * len(rows))
    cut = [TopKLogitsWarper(top_k)] if top_k else []
    model.generate(
        **{key: value.to(model.device) for key, value in inputs.items()},
        max_new_tokens=max(row.max_new_tokens or 1 for row in rows),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=ends,
        do_sample=False,
        logits_processor=LogitsProcessorList([*cut, _Draw(desk)]),
        stopping_criteria=StoppingCriteriaList([_Stop(desk, halt)]),
    )
    return desk.finish()


class _Desk:
    """The state of the rows that are being written."""

    def __init__(
        self,
        tokenizer: Any,
        ends: Sequence[int],
        rows: Sequence[Writing],
        prefixes: Sequence[str | None],
        emit: Sequence[Callable[[str], bool] | None],
    ) -> None:
        self.tokenizer, self.ends, self.rows, self.prefixes, self.emit = tokenizer, set(ends), rows, prefixes, emit
        self.ids: list[list[int]] = [[] for _ in rows]
        self.logs: list[list[float]] = [[] for _ in rows]
        self.done = [False] * len(rows)
        self.ended = [False] * len(rows)
        self.given = [""] * len(rows)
        self.draws = [torch.Generator().manual_seed(row.seed) for row in rows]

    def take(self, row: int, token: int, log: float) -> None:
        """Take down the next token of a row."""
        if self.done[row]:
            return
        self.logs[row].append(log)
        self.ids[row].append(token)
        wanted, emit = self.rows[row], self.emit[row]
        self.ended[row] = token in self.ends
        if wanted.stop and not self.ended[row]:
            self.ended[row] = any(text in self.text(row) for text in wanted.stop)
        self.done[row] = self.ended[row] or len(self.ids[row]) >= (wanted.max_new_tokens or 1)
        if emit is not None:
            self._give(row, emit)

    def text(self, row: int) -> str:
        """The answer as far as it is written, up to the first stop string."""
        whole = str(self.tokenizer.decode(self.ids[row], skip_special_tokens=True))
        prefix = self.prefixes[row]
        if prefix is not None:
            whole = tidy(whole.removeprefix(prefix))
        ends = [at for stop in self.rows[row].stop if (at := whole.find(stop)) >= 0]
        whole = whole[: min(ends)] if ends and self.ended[row] else whole
        return whole if prefix is None else whole.rstrip()

    def _give(self, row: int, emit: Callable[[str], bool]) -> None:
        """Emit the new end of the answer, but hold back what may be the beginning of a stop string or a character."""
        whole = self.text(row)
        if not self.done[row]:
            held = max(
                (k for stop in self.rows[row].stop for k in range(len(stop)) if whole.endswith(stop[:k])), default=0
            )
            whole = whole[: len(whole) - held]
            if whole.endswith(HALF):
                return
        given = self.given[row]
        if whole.startswith(given) and len(whole) > len(given):
            self.given[row] = whole
            if not emit(whole[len(given) :]):
                self.done[row] = True

    def finish(self) -> list[Answer]:
        """The answers. Text that a halted row still held back is emitted first."""
        for row, emit in enumerate(self.emit):
            if emit is not None and not self.done[row]:
                self.done[row] = True
                self._give(row, emit)
        return [
            Answer(
                self.text(row),
                math.exp(math.fsum(logs) / max(1, len(ids))),
                {},
                finished=ended,
                tokens=tuple(zip(ids, logs, strict=True)),
            )
            for row, (logs, ids, ended) in enumerate(zip(self.logs, self.ids, self.ended, strict=True))
        ]


class _Draw(LogitsProcessor):  # type: ignore[misc]
    """Chooses each row's next token and makes it the only possible one."""

    def __init__(self, desk: _Desk) -> None:
        self.desk = desk

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        logs = scores.float().log_softmax(-1)
        tokens = logs.argmax(-1)
        rows = [k for k, row in enumerate(self.desk.rows) if row.temperature > COLD and not self.desk.done[k]]
        if rows:
            tokens[rows] = self._drawn(logs[rows], rows)
        chosen = logs.gather(-1, tokens[:, None])[:, 0].tolist()
        for row, (token, log) in enumerate(zip(tokens.tolist(), chosen, strict=True)):
            self.desk.take(row, token, log)
        return torch.full_like(scores, -torch.inf).scatter_(-1, tokens[:, None], 0.0)

    def _drawn(self, logs: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        """Draw a token for each of these rows from its log-probabilities `[n, vocabulary]`."""
        wanted = [self.desk.rows[row] for row in rows]
        heat, share = (
            torch.tensor([values], device=logs.device).T
            # Rounded probabilities may sum to more than 1, so a row that draws from all tokens gets no limit.
            for values in ([w.temperature for w in wanted], [w.top_p if w.top_p < 1 else 2.0 for w in wanted])
        )
        logs = (logs / heat).log_softmax(-1)
        if any(w.top_p < 1 for w in wanted):
            ordered, order = logs.sort(descending=True)
            before = ordered.exp().cumsum(-1) - ordered.exp()
            ordered = ordered.masked_fill((before >= share) & (before > 0), -torch.inf)
            logs = torch.full_like(logs, -torch.inf).scatter_(-1, order, ordered)
        uniform = torch.stack([torch.rand(logs.shape[1], generator=self.desk.draws[row]) for row in rows])
        uniform = uniform.clamp_(1e-20, 1.0).to(logs.device)
        return (logs - (-uniform.log()).clamp_(min=1e-20).log()).argmax(-1)


class _Stop(StoppingCriteria):  # type: ignore[misc]
    """Tells `generate` which rows are done."""

    def __init__(self, desk: _Desk, halt: Callable[[], bool]) -> None:
        self.desk, self.halt = desk, halt

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        halted = self.halt()
        return torch.tensor([done or halted for done in self.desk.done], device=input_ids.device)


def seeds_of(seed: int, count: int) -> list[int]:
    """`count` different seeds that follow from one."""
    return torch.randint(2**62, (count,), generator=torch.Generator().manual_seed(seed)).tolist()  # type: ignore[no-any-return]


def base_writer(
    model: Any, base: LoadedBase, reporter: Reporter | None = None
) -> Callable[[Sequence[str], int], list[str]]:
    """A function (prompts, seed) → what the base writes after each, adapters switched off; same seed, same texts."""

    def write(prompts: Sequence[str], seed: int) -> list[str]:
        found: list[str] = []
        encode = Tokeniser(base.tokenizer, Task(""), base.context)
        rows = [Writing(LONGEST, 1.0, 0.9, own) for own in seeds_of(seed, len(prompts))]
        bar = (reporter or Reporter()).piece("writing examples", len(prompts))
        with evaluating(model), model.disable_adapter(), bar as advance:
            for k in range(0, len(prompts), ROWS):
                ids = [encode.start(text)[LONGEST - base.context :] for text in prompts[k : k + ROWS]]
                found += [one.text for one in write_rows(model, base.tokenizer, ids, rows[k : k + ROWS], top_k=TOP_K)]
                advance(len(ids))
        return found

    return write
