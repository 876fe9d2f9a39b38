"""Preference rows as token ids: a question with two answers, or with one that was judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from adapterhub_cl.data.tokenise import Tokeniser, Tokens
from adapterhub_cl.types import Example


@dataclass(frozen=True)
class PreferenceTokens(Tokens):
    """A preference row as token ids.

    Attributes:
        other: of a pair the rejected answer. Of a single answer the answer to another question, from which KTO
            estimates how far the model is from its reference.
        desirable: whether the single answer is wanted; None for a pair.
        reference: log-probabilities (nats) of `answer` and of `other` under the reference model.
    """

    other: tuple[int, ...] = ()
    desirable: bool | None = None
    reference: tuple[float, float] = (0.0, 0.0)

    def __len__(self) -> int:
        return len(self.prompt) + max(len(self.answer), len(self.other))

    @property
    def with_answer(self) -> Tokens:
        """An ordinary row with the chosen, or the judged, answer."""
        return Tokens(self.prompt, self.answer, self.truncated)

    @property
    def with_other(self) -> Tokens:
        """An ordinary row with the other answer."""
        return Tokens(self.prompt, self.other, self.truncated)


def ordinary(tokens: Tokens) -> Tokens:
    """A row as it is learned where preferences are not: a pair's chosen answer, and nothing of a rejected one."""
    if not isinstance(tokens, PreferenceTokens):
        return tokens
    return tokens.with_answer if tokens.desirable is not False else Tokens(tokens.prompt, (), tokens.truncated)


def joined(rows: Sequence[Tokens]) -> tuple[list[Tokens], list[Tokens]]:
    """What is computed of some rows: the rows with their answers and, behind them, the pairs' rejected answers; and the
    answers that belong to other questions."""
    judged = [row for row in rows if isinstance(row, PreferenceTokens)]
    answered = [row.with_answer if isinstance(row, PreferenceTokens) else row for row in rows]
    rejected = [row.with_other for row in judged if row.desirable is None]
    return [*answered, *rejected], [row.with_other for row in judged if row.desirable is not None]


class PairTokeniser(Tokeniser):
    """Tokenises pairs, and ordinary rows as they are. A single answer that was liked is an ordinary row, any other is
    left out. The prompt leaves room for the longer one of the two answers."""

    def __call__(self, example: Example) -> Tokens:
        return self._pair(example) if example.rejected else super().__call__(example)

    def _pair(self, example: Example) -> PreferenceTokens:
        answer, other = self._answer_of(example), self.answer(example.rejected)
        _, ids, cut = self._fitted(example, self.max_length - max(len(answer), len(other)))
        return PreferenceTokens(ids, answer, cut, other=other)


class JudgedTokeniser(PairTokeniser):
    """Tokenises single answers that were judged, and ordinary rows as they are. A pair becomes two: its chosen answer
    is wanted, its rejected one is not."""

    def __call__(self, example: Example) -> Tokens:
        if example.rejected:
            return self.windows(example)[0]
        if example.desirable is None:
            return super().__call__(example)
        answer = self._answer_of(example)
        _, ids, cut = self._fitted(example, self.max_length - len(answer))
        return PreferenceTokens(ids, answer, cut, other=answer, desirable=example.desirable)

    def windows(self, example: Example) -> list[Tokens]:
        if not example.rejected:
            return super().windows(example)
        pair = self._pair(example)
        liked = replace(pair, other=pair.answer, desirable=True)
        return [liked, replace(pair, answer=pair.other, desirable=False)]
