"""A request, and which rows of a batch it becomes: task, adapters, prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

from adapterhub_cl.adapters.serving import task_of
from adapterhub_cl.bases.loading import LoadedBase
from adapterhub_cl.data.values import messages_of, whole_characters
from adapterhub_cl.deciding.view import View
from adapterhub_cl.errors import DataError, UsageError
from adapterhub_cl.inference.generating import Writing
from adapterhub_cl.inference.mixed import AskedRow
from adapterhub_cl.routing import Routed
from adapterhub_cl.types import BASE, Example, Layout, Prediction, Task

Messages = Sequence[Mapping[str, str]]


@dataclass
class AnswerRequest:
    """Something to be answered.

    Attributes:
        example: the input; of a conversation its last message.
        task, adapter: what the request names; a router finds what it leaves open.
        top_k: of how many tasks' adapters the answer is mixed at most.
        fallback: let the base answer what is out of distribution.
        free: write an answer, whatever the task's kind.
        raw: go on from the text as it is.
        emit: gets a free answer piece by piece, and says whether to go on.
        begun: something of the answer was given out.
    """

    example: Example
    task: str | None = None
    adapter: str | None = None
    top_k: int = 1
    fallback: bool = True
    writing: Writing = field(default_factory=Writing)
    free: bool = False
    raw: bool = False
    emit: Callable[[str], bool] | None = None
    future: Future[Prediction] = field(default_factory=Future)
    begun: bool = False

    def give(self, piece: str) -> bool:
        """Give out a piece of the answer; whether to go on."""
        self.begun = True
        return self.emit is None or self.emit(piece)

    def check(self) -> None:
        """Raise for what cannot be answered, whoever is asked.

        Raises:
            DataError: an empty text, or a conversation without a question.
        """
        for value, what in ((self.task, "task"), (self.adapter, "adapter")):
            if value is not None and not isinstance(value, str):
                raise UsageError(f"{what} is {value!r}, not a name", f"give one {what}")
        if not self.example.asks:
            raise DataError("the text is empty", "give a text")
        if not isinstance(self.top_k, int) or self.top_k < 1:
            raise UsageError(f"--top-k must be 1 or more, not {self.top_k}", "1 takes the likeliest task alone")


def free_request(
    asked: str | Messages,
    task: str | None,
    adapter: str | None,
    top_k: int,
    raw: bool,
    writing: Mapping[str, Any],
) -> AnswerRequest:
    """A request to write an answer, checked.

    Args:
        asked: a text, or messages with `role` and `content`.

    Raises:
        DataError, UsageError: it cannot be answered.
    """
    messages: Messages = () if isinstance(asked, str) else list(asked)
    if not isinstance(asked, str):
        if not messages:
            raise UsageError("an empty conversation", 'give [{"role": "user", "content": "…"}]')
        if any(not isinstance(m, Mapping) or not {"role", "content"} <= m.keys() for m in messages):
            raise DataError("a message lacks its role or its content", 'write {"role": "user", "content": "…"}')
        if any(not isinstance(m["content"], str) for m in messages):
            raise DataError("a message's content is no text", 'write {"role": "user", "content": "…"}')
        if str(messages[-1]["role"]) != "user":
            raise DataError("the conversation does not end with a message of the user", "add one with role user")
        if raw:
            raise UsageError("a conversation cannot be raw", "give one text")
    example = (
        Example(whole_characters(asked))
        if isinstance(asked, str)
        else Example.conversation(messages_of(messages, "the conversation", "messages"))
    )
    request = AnswerRequest(
        example,
        task,
        adapter,
        top_k,
        writing=Writing.of(writing),
        free=True,
        raw=raw,
    )
    request.check()
    return request


@dataclass(frozen=True)
class Resolved:
    """Who answers a request.

    Attributes:
        mixture: version → weight; empty is the base.
        task: None where the base answers a text without a task.
        routed: what the router said, where it was asked.
    """

    mixture: Mapping[str, float]
    task: Task | None
    routed: Routed | None = None

    @property
    def fallback(self) -> bool:
        return self.routed is not None and self.routed.out_of_distribution and not self.mixture

    @property
    def ref(self) -> str:
        """The version that answers, the weightiest of several."""
        return max(self.mixture, key=self.mixture.__getitem__) if self.mixture else BASE

    def prediction(self, request: AnswerRequest, text: str, confidence: float, **more: Any) -> Prediction:
        return Prediction(
            request.example.input or request.example.instruction,
            self.ref,
            text,
            confidence,
            task=self.task.name if self.task else "",
            adapters=dict(self.mixture),
            routing=self.routed.confidence if self.routed else None,
            out_of_distribution=bool(self.routed and self.routed.out_of_distribution),
            **more,
        )


def choices_of(view: View, request: AnswerRequest) -> list[str] | None:
    """The tasks among which a router has to choose; None where the request says enough.

    Raises:
        UnknownNameError: it names what is not there.
        UsageError: nothing is there to choose from.
    """
    if request.task is not None:
        view.task(request.task)
        return None
    if request.adapter is not None and request.adapter != BASE:
        record = view.record(request.adapter)  # one that learned a task of its own answers in that one's form
        return record.tasks if not record.task and len(record.tasks) > 1 else None
    if request.adapter == BASE and (request.free or request.raw):
        return None
    if not view.serving:
        raise UsageError("this hub has no adapter yet", "cl-adapter add-task NAME DATA makes one")
    return list(view.serving)


def narrowed(routed: Routed, top_k: int, forced: bool) -> Routed:
    """A decision with the first k tasks only; `forced`: the base does not step in."""
    kept = routed.weights[:top_k]
    total = sum(weight for _, weight in kept) or 1.0
    weights = tuple((task, weight / total) for task, weight in kept)
    return replace(routed, weights=weights, out_of_distribution=routed.out_of_distribution and not forced)


def resolve(view: View, request: AnswerRequest, routed: Routed | None) -> Resolved:
    """Who answers, given what the router said.

    Raises:
        UnknownNameError, AdapterError: what the request names is not there or serves nobody.
    """
    if request.adapter == BASE:
        name = request.task or (routed.weights[0][0] if routed else None)
        return Resolved({}, view.task(name) if name else None, routed)
    if request.adapter is not None:
        record = view.record(request.adapter)
        name = request.task or (routed.weights[0][0] if routed else None)
        return Resolved({record.ref: 1.0}, view.task(name) if name else task_of(view.registry, record), routed)
    if request.task is not None:
        ref = view.server(request.task)
        return Resolved({ref: 1.0}, view.task(request.task))
    assert routed is not None
    if routed.out_of_distribution:
        return Resolved({}, None, routed)
    mixture: dict[str, float] = {}
    for name, weight in routed.weights:
        ref = view.server(name)
        mixture[ref] = mixture.get(ref, 0.0) + weight
    return Resolved(mixture, view.task(routed.weights[0][0]), routed)


def row_of(base: LoadedBase, request: AnswerRequest, resolved: Resolved, max_length: int) -> AskedRow:
    """The row of the batch.

    Raises:
        DataError: a raw text that is longer than the context.
    """
    task = resolved.task or plain_task(base)
    give = request.give if request.emit else None
    writes = request.free or request.raw or bool(request.example.turns)
    row = AskedRow(
        task, request.example, resolved.mixture, request.writing, writes=writes, emit=give if writes else None
    )
    if not request.raw and not (writes and task.kind == "text" and not request.example.turns):
        return row
    encode = row.tokeniser(base, max_length)
    prompt = encode.start(request.example.input)
    new = request.writing.max_new_tokens or encode.budget()
    if len(prompt) + new > max_length:
        raise DataError(
            f"the text has {len(prompt)} tokens; with {new} new ones that is over the base's {max_length}",
            "shorten the text or lower --max-new-tokens",
        )
    return replace(row, prompt=prompt)


def plain_task(base: LoadedBase) -> Task:
    """How the base is asked where no task is known."""
    if not base.tokenizer.chat_template:
        return Task("", "generation", "instruction")
    return Task("", "generation", "chat", layout=Layout("messages", chat="messages"))
