"""A row that is being written: its tokens so far, its text, when it ends; and how its next token is chosen.

Tokens are drawn by the Gumbel trick: the largest of logits ÷ T plus Gumbel noise is a draw from the softmax. Each row
draws from a generator of its own, so its neighbours do not change its answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import LogitsProcessorList

from adapterhub_cl.answering import Answer
from adapterhub_cl.data.formats import Frame
from adapterhub_cl.data.tokenise import DEFAULT_ANSWER
from adapterhub_cl.errors import UnknownNameError, UsageError
from adapterhub_cl.options import flag

COLD = 1e-4  # temperatures up to this take the likeliest token, as a draw would if it did not overflow
HALF = "�"  # a token that is only part of a character decodes to this


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


@dataclass(eq=False)
class WrittenRow:
    """The state of a row that is being written.

    Attributes:
        tokenizer: of the base.
        ends: ids that end an answer.
        prompt: token ids.
        wanted: how it is written.
        frame: what its prompt format writes around the answer; see `write_rows`.
        emit: None, or a function that receives the text piece by piece and returns whether to go on.
        mixture: reference → weight of the adapters that answer it.
        rules: what the base's generation_config.json asks for (a repetition penalty, forbidden words); None: nothing.
        ids, logs: each token so far, and its log-probability.
        done: nothing more is written.
        ended: it ended by itself or at a stop string.
    """

    tokenizer: Any
    ends: Collection[int]
    prompt: Sequence[int]
    wanted: Writing
    frame: Frame | None = None
    emit: Callable[[str], bool] | None = None
    mixture: Mapping[str, float] = field(default_factory=dict)
    rules: LogitsProcessorList | None = None
    ids: list[int] = field(default_factory=list)
    logs: list[float] = field(default_factory=list)
    done: bool = False
    ended: bool = False

    def __post_init__(self) -> None:
        self.limit = self.wanted.max_new_tokens or DEFAULT_ANSWER
        self.draws = torch.Generator().manual_seed(self.wanted.seed)
        self._given = ""
        self._settled, self._from, self._read = "", 0, 0

    def take(self, token: int, log: float) -> None:
        """Take down the next token."""
        if self.done:
            return
        self.logs.append(log)
        self.ids.append(token)
        self.ended = token in self.ends
        if self.wanted.stop and not self.ended:
            self.ended = any(text in self.text() for text in self.wanted.stop)
        self.done = self.ended or len(self.ids) >= self.limit
        if self.emit is not None:
            self._give(self.emit)

    def text(self) -> str:
        """The answer as far as it is written, up to the first stop string."""
        whole, at, _ = self._whole()
        whole = whole[:at] if self.ended else whole
        return whole if self.frame is None else whole.rstrip()

    def _whole(self) -> tuple[str, int, str]:
        """All that was written, where its first stop string begins (its length, if it has none), and that string."""
        whole = self._decoded(0) if self.done else self._so_far()
        if self.frame is not None:
            whole = self.frame.inside(whole)
        found = [(at, stop) for stop in self.wanted.stop if (at := whole.find(stop)) >= 0]
        return whole, *min(found, default=(len(whole), ""))

    def _decoded(self, begin: int, end: int | None = None) -> str:
        return str(self.tokenizer.decode(self.ids[begin:end], skip_special_tokens=True))

    def _so_far(self) -> str:
        """What was written until now, without decoding all of it once more for every token: new text is what tokens add
        to the decoding of those just before them."""
        before, now = self._decoded(self._from, self._read), self._decoded(self._from)
        text = self._settled + now[len(before) :]
        if len(now) > len(before) and not now.endswith(HALF):
            self._settled, self._from, self._read = text, self._read, len(self.ids)
        return text

    def _give(self, emit: Callable[[str], bool]) -> None:
        """Emit the new end of the answer, but hold back what may be the beginning of a stop string, of what is behind
        the answer, or of a character."""
        whole = self.text()
        if not self.done:
            ends = (*self.wanted.stop, self.frame.behind if self.frame else "")
            held = max((k for end in ends for k in range(len(end)) if whole.endswith(end[:k])), default=0)
            whole = whole[: len(whole) - held] if self.frame is None else whole[: len(whole) - held].rstrip()
            if whole.endswith(HALF):
                return
        if whole.startswith(self._given) and len(whole) > len(self._given):
            new, self._given = whole[len(self._given) :], whole
            if not emit(new):
                self.done = True

    def finish(self) -> Answer:
        """The answer. Text that a halted row still held back is emitted first."""
        if self.emit is not None and not self.done:
            self.done = True
            self._give(self.emit)
        sure = math.exp(math.fsum(self.logs) / max(1, len(self.ids)))
        tokens = tuple(zip(self.ids, self.logs, strict=True))
        return Answer(self.text(), sure, {}, finished=self.ended, tokens=tokens, stopped_at=self._whole()[2])


def take_tokens(scores: torch.Tensor, rows: Sequence[WrittenRow]) -> torch.Tensor:
    """Choose the next token of each row and take it down.

    Args:
        scores: `[rows, vocabulary]`, logits.

    Returns:
        `[rows]`, the tokens.
    """
    logs = scores.float().log_softmax(-1)
    tokens = logs.argmax(-1)
    drawing = [k for k, row in enumerate(rows) if row.wanted.temperature > COLD and not row.done]
    if drawing:
        tokens[drawing] = _drawn(logs[drawing], [rows[k] for k in drawing])
    chosen = logs.gather(-1, tokens[:, None])[:, 0].tolist()
    for row, token, log in zip(rows, tokens.tolist(), chosen, strict=True):
        row.take(token, log)
    return tokens


def _drawn(logs: torch.Tensor, rows: Sequence[WrittenRow]) -> torch.Tensor:
    """Draw a token for each of these rows from its log-probabilities `[n, vocabulary]`."""
    wanted = [row.wanted for row in rows]
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
    uniform = torch.stack([torch.rand(logs.shape[1], generator=row.draws) for row in rows])
    uniform = uniform.clamp_(1e-20, 1.0).to(logs.device)
    return (logs - (-uniform.log()).clamp_(min=1e-20).log()).argmax(-1)
