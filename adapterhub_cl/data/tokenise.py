"""Examples → token ids: the one place where prompts are built, for training, evaluation and prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from adapterhub_cl.data import chat
from adapterhub_cl.data.formats import Frame, answer_prefix, messages, render
from adapterhub_cl.errors import DataError
from adapterhub_cl.examples import SYSTEM
from adapterhub_cl.types import Example, Task

DEFAULT_ANSWER = 64  # tokens to generate if the length of answers is unknown
LEAST_ANSWER = 8


class TooLongError(DataError):
    """A row does not fit, and no part of it may be cut.

    Attributes:
        needed: tokens that it takes.
    """

    def __init__(self, message: str, hint: str, needed: int) -> None:
        super().__init__(message, hint)
        self.needed = needed


@dataclass(frozen=True)
class Tokens:
    """One example as token ids.

    Attributes:
        prompt: the question; at least one id, because the first id of a text has nothing to be predicted from.
        answer: ids that count in the loss, ending with the end-of-text id; empty if only a prediction is wanted.
        truncated: whether the input was cut to fit.
        task: if the answer is not text but a label of this task: `answer` is then that label's number among the
            task's labels, and is not read.
        hidden: for raw text and a masked language model: positions in `prompt` of the ids to predict; `answer` has
            their values.
        earlier: for a conversation: (start, end) positions in `prompt` of the assistant's earlier answers, which
            count in the loss too.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    truncated: bool = False
    task: str = ""
    hidden: tuple[int, ...] = ()
    earlier: tuple[tuple[int, int], ...] = ()

    @property
    def ids(self) -> tuple[int, ...]:
        return self.prompt if self.task or self.hidden else (*self.prompt, *self.answer)

    def __len__(self) -> int:
        return len(self.prompt) + (0 if self.task or self.hidden else len(self.answer))


class Tokeniser:
    """Applies a task's prompt format and a base's tokenizer.

    A prompt depends only on the question, never on its answer, so prediction sees the same prompts as training. It
    may have `max_length` tokens minus the task's longest answer (but at least half of it); a longer prompt loses the
    end of its passage, the oldest turns of its conversation, or the end of its input.

    Args:
        tokenizer: a transformers tokenizer.
        task: gives the prompt format, the labels, the instruction for inputs without one, and its own limit.
        max_length: longest example in tokens, prompt and answer together; the task's own limit if that is lower.
        reserve: tokens to leave free after the prompt if the task does not say how long its answers are.
    """

    def __init__(self, tokenizer: Any, task: Task, max_length: int, *, reserve: int = 0) -> None:
        self.tokenizer, self.task = tokenizer, task
        self.max_length = min(task.max_length or max_length, max_length)
        self.reserve = reserve
        self._longest: int | None = None

    def __call__(self, example: Example) -> Tokens:
        # Raw text under another kind of task: from a knowledge update, or one of its replay samples.
        if self._raw_text(example):
            return self._raw(example)
        # An answer that was rejected is never learned as an ordinary row.
        told = example.answer is not None and example.desirable is not False
        answer = self._answer_of(example) if told else ()
        example, ids, cut = self._fitted(example, self.max_length - len(answer))
        return Tokens(ids, answer, cut, earlier=self._earlier(example, ids))

    def prompt(self, example: Example, room: int | None = None) -> Tokens:
        """The tokens of the question, without the answer.

        Args:
            room: maximum tokens of the prompt, if fewer than the task allows.

        Raises:
            DataError: the part that cannot be cut is longer than that.
        """
        _, ids, cut = self._fitted(example, room)
        return Tokens(ids, (), cut)

    @property
    def longest_answer(self) -> int:
        """Tokens that a prompt leaves free for the answer: for a choice its longest label, otherwise the longest answer
        of the training data, but at most half of the limit. A row with a longer answer has a shorter prompt."""
        if self._longest is None:
            if self.task.kind == "choice":
                self._longest = max((len(self.answer(label)) for label in self.task.labels), default=0)
            else:
                self._longest = min(self.task.answer_tokens, self.max_length // 2) or self.reserve
        return self._longest

    def budget(self, answers: Sequence[str] = ()) -> int:
        """How many tokens a free answer may have: 1.5 times the longest known one, at least 8; 64 if none is known.

        Args:
            answers: known right answers in addition to the task's own.
        """
        known = [len(self.bare(answer)) + 1 for answer in answers]
        longest = max([self.task.answer_tokens, *known])
        return max(LEAST_ANSWER, longest + longest // 2) if longest else DEFAULT_ANSWER

    def windows(self, example: Example) -> list[Tokens]:
        """Raw text as one or more windows that together contain every id, each predicted once; others as one."""
        if not self._raw_text(example):
            return [self(example)]
        ids = self._framed(example.answer or example.input)
        step = max(1, self.max_length - 1)
        starts = range(0, max(1, len(ids) - 1), step)
        return [Tokens(ids[k : k + 1], ids[k + 1 : k + self.max_length]) for k in starts]

    def many(self, examples: Sequence[Example]) -> list[Tokens]:
        return [self(example) for example in examples]

    def answer(self, text: str) -> tuple[int, ...]:
        """Ids of an answer as it follows the prompt, with the id that ends it."""
        if not self.bare(text):
            raise DataError(f"the answer {text!r} has no tokens", "remove rows whose answer is empty")
        chats = self.task.prompt_format == "chat"
        return (*self.bare(chat.reply(self.tokenizer, text) if chats else self.frame.before + text), self.end)

    @property
    def frame(self) -> Frame:
        """What the prompt format writes around an answer."""
        chats = self.task.prompt_format == "chat"
        return chat.reply_frame(self.tokenizer) if chats else Frame(answer_prefix(self.task.prompt_format))

    def gold(self, example: Example) -> str:
        """The right answer as text. An answer that calls tools is written with the base's chat template."""
        if not example.calls or self.task.prompt_format != "chat":
            return example.answer or ""
        asked = messages(example, talks=self.task.talks)
        return chat.called(self.tokenizer, asked, example.tools, example.said, example.calls) or example.answer or ""

    def written(self, text: str) -> str:
        """A generated answer without what the format writes around it."""
        return self.frame.inside(text)

    @property
    def end(self) -> int:
        """The id that ends an answer: for the chat format the one that ends the assistant's turn."""
        found = chat.turn_end(self.tokenizer) if self.task.prompt_format == "chat" else None
        return int(self.tokenizer.eos_token_id if found is None else found)

    # -- inside ----------------------------------------------------------------------------------

    def _raw_text(self, example: Example) -> bool:
        return self.task.kind == "text" or example.is_raw

    def _whole(self, example: Example) -> Example:
        if not example.instruction and self.task.instruction:
            return replace(example, instruction=self.task.instruction)
        return example

    def _answer_of(self, example: Example) -> tuple[int, ...]:
        return self.answer(self.gold(example) if example.calls else str(example.answer))

    def bare(self, text: str) -> tuple[int, ...]:
        """Ids of a text, without special tokens around it."""
        return tuple(self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)

    def _begun(self, text: str) -> tuple[int, ...]:
        """Ids of a text with the special tokens before it, but without those after it, because the text continues."""
        ids = tuple(self.tokenizer(text, verbose=False).input_ids)
        return ids[: len(ids) - self._behind]

    @cached_property
    def _behind(self) -> int:
        """How many special tokens the tokenizer adds after a text."""
        framed, bare = tuple(self.tokenizer("x", verbose=False).input_ids), self.bare("x")
        starts = range(len(framed) - len(bare) + 1)
        at = next((k for k in starts if framed[k : k + len(bare)] == bare), len(framed) - len(bare))
        return len(framed) - len(bare) - at

    def _framed(self, text: str) -> tuple[int, ...]:
        """A whole document: with the tokenizer's start token, if it has one, and one end-of-text id."""
        return (*self._begun(text), self.tokenizer.eos_token_id)

    def start(self, text: str) -> tuple[int, ...]:
        """Ids of raw text that is to be continued; at least one."""
        begin = self.tokenizer.bos_token_id
        return self._begun(text) or (self.tokenizer.eos_token_id if begin is None else begin,)

    def _fitted(self, example: Example, room: int | None) -> tuple[Example, tuple[int, ...], bool]:
        """The example cut to fit, the ids of its prompt, and whether it was cut."""
        example = self._whole(example)
        allowed = max(1, self.max_length - self.longest_answer)
        limit = allowed if room is None else min(allowed, room)
        ids = self._prompt(example)
        if len(ids) <= limit:
            return example, ids, False
        return (*self._shortened(example, ids, limit), True)

    def _prompt(self, example: Example) -> tuple[int, ...]:
        prompt = render(
            self.task.prompt_format,
            example,
            lambda said: chat.prompt_of(self.tokenizer, said, example.tools),
            talks=self.task.talks,
        )
        if not prompt.add_special_tokens:
            return self.bare(prompt.text) or self.start("")
        return self.start(prompt.text)

    def _earlier(self, example: Example, ids: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """Where in a prompt the assistant's earlier answers are."""
        if self.task.prompt_format != "chat" or not any(turn.role == "assistant" for turn in example.turns):
            return ()
        said = messages(example, talks=self.task.talks)
        text = chat.prompt_of(self.tokenizer, said, example.tools)
        spans = chat.answered_spans(self.tokenizer, said, example.tools, text)
        if not spans or not self.tokenizer.is_fast:
            return ()
        read = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        if tuple(read.input_ids) != tuple(ids):
            return ()
        found = []
        for span in spans:
            # its first token may begin with the space that ends the prompt
            inside = [
                k
                for k, (a, b) in enumerate(read.offset_mapping)
                if max(a, span.start) < b <= span.stop and not text[a : span.start].strip()
            ]
            if inside:
                found.append((inside[0], inside[-1] + 1))
        return tuple(found)

    def _shortened(self, example: Example, ids: tuple[int, ...], room: int) -> tuple[Example, tuple[int, ...]]:
        """The example with as much of its input as fits into `room` ids, and these ids."""
        if example.turns:
            example, ids = self._fewer_turns(example, ids, room)
        else:
            example, ids = self._shorter(example, ids, room)
        if len(ids) > room:
            needed = len(ids) + self.max_length - room
            answer = max(0, self.max_length - room)
            raise TooLongError(
                f"the instruction and the answer alone are longer than {self.max_length} tokens: the answer has "
                f"{answer}, and {len(ids)} of the prompt cannot be cut",
                f"raise --max-length to {needed} or more, or shorten the instruction or the answer",
                needed,
            )
        return example, ids

    def _fewer_turns(self, example: Example, ids: tuple[int, ...], room: int) -> tuple[Example, tuple[int, ...]]:
        """Drops the oldest turns up to the last question; of what is left, the longest question or result of a tool is
        cut, again and again, until everything fits."""
        turns = list(example.turns)
        first = 1 if turns[0].role in SYSTEM else 0
        asked = max((k for k, turn in enumerate(turns) if turn.role == "user"), default=len(turns) - 1)
        kept = len(turns) - asked
        while len(ids) > room and len(turns) - first > kept:
            del turns[first]
            while len(turns) - first > kept and turns[first].role != "user":
                del turns[first]
            example = replace(example, turns=tuple(turns))
            ids = self._prompt(example)
        last = len(turns) - kept
        whole = {k: turns[k] for k in range(last, len(turns)) if k == last or turns[k].role == "tool"}
        offsets = {k: self._offsets(turn.content) for k, turn in whole.items()}
        keep = {k: len(found) for k, found in offsets.items()}
        while len(ids) > room and any(keep.values()):
            longest, *others = sorted(keep, key=lambda k: keep[k], reverse=True)
            over = len(ids) - room
            spare = keep[longest] - (keep[others[0]] if others else 0)
            keep[longest] = max(0, keep[longest] - min(over, max(spare, (over + 1) // 2)))
            cut = whole[longest].content[: offsets[longest][keep[longest]][0]].rstrip()
            if kept > 1 and longest == last and not cut:
                break  # results without their question
            turns[longest] = replace(whole[longest], content=cut)
            example = replace(example, turns=tuple(turns), input=cut if longest == last else example.input)
            ids = self._prompt(example)
        return example, ids

    def _shorter(self, example: Example, ids: tuple[int, ...], room: int) -> tuple[Example, tuple[int, ...]]:
        """Cuts the passage; if there is none, or that is not enough, also the end of the input."""
        text = example.input
        head, tail = (text[: example.passage], text[example.passage :]) if example.passage else (text, "")
        for cut_all in (False, True):
            if cut_all:
                head, tail = (tail.lstrip("\n"), "") if tail else ("", "")
            offsets = self._offsets(head)
            keep = len(offsets)
            while len(ids) > room and keep > 0:
                keep = max(0, keep - (len(ids) - room))
                shorter = head[: offsets[keep][0]].rstrip()
                whole = shorter + tail if shorter else tail.lstrip("\n")
                if not whole and not example.instruction:
                    break  # it would become raw text, without its "Answer:"
                example = replace(example, input=whole)
                ids = self._prompt(example)
            if len(ids) <= room:
                break
        return example, ids

    def _offsets(self, text: str) -> list[tuple[int, int]]:
        read = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return list(read.offset_mapping)

    def _raw(self, example: Example) -> Tokens:
        ids = self._framed(example.answer or example.input)
        # The first id has nothing before it to be predicted from.
        return Tokens(ids[:1], ids[1 : self.max_length], truncated=len(ids) > self.max_length)


def with_limits(task: Task, tokenizer: Any, examples: Sequence[Example], max_length: int) -> Task:
    """The task with its length limit, and the tokens of the longest answer in the examples or known before."""
    encode = Tokeniser(tokenizer, replace(task, max_length=0), max_length)
    known = [len(encode._answer_of(e)) for e in examples if e.answer is not None and not encode._raw_text(e)]
    longest = max([task.answer_tokens, *known]) if task.kind == "generation" else 0
    return replace(task, max_length=max_length, answer_tokens=longest)
