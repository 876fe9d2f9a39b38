"""A request, and which rows of a batch it becomes: task, adapters, prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

from adapterhub_cl.adapters.lora_config import weights_sha256
from adapterhub_cl.adapters.serving import ServingTable, answering, task_of, who_answers
from adapterhub_cl.answering import Answer
from adapterhub_cl.answering.answerer import Answerer, AskedRow, OneModel
from adapterhub_cl.answering.writing import Writing
from adapterhub_cl.bases.loading import LoadedBase
from adapterhub_cl.data.turns import messages_of
from adapterhub_cl.data.values import whole_characters
from adapterhub_cl.errors import DataError, UsageError
from adapterhub_cl.registry import Registry
from adapterhub_cl.routing import Routed
from adapterhub_cl.traffic.conversations import canary_answers
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
        id: what its answer is called; `asked_by`: who asks. Neither changes the answer.
        conversation: what it belongs to, so that all of it goes to the same canary or to none; empty: to none.
        wanted: whether anybody still waits for the answer; asked before each token.
        begun: something of the answer was given out.
        answered_by: who answers it, once that is known; set again where it is tried again.
        tries, seen: how often it was tried, and the `View.generation` of the last time.
    """

    example: Example
    task: str | None = None
    adapter: str | None = None
    top_k: int = 1
    fallback: bool = True
    writing: Writing = field(default_factory=Writing)
    free: bool = False
    raw: bool = False
    id: str = ""
    asked_by: str = ""
    conversation: str = ""
    emit: Callable[[str], bool] | None = None
    wanted: Callable[[], bool] = field(default=lambda: True)
    future: Future[Prediction] = field(default_factory=Future)
    begun: bool = False
    answered_by: Resolved | None = None
    tries: int = 0
    seen: int = -1

    @property
    def writes(self) -> bool:
        """Whether the answer is written, whatever the task's kind."""
        return self.free or self.raw

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
        sha256: of the weights of `ref`; empty for the base. It is known here, because the version may be deleted while
            the answer is on its way.
    """

    mixture: Mapping[str, float]
    task: Task | None
    routed: Routed | None = None
    sha256: str = ""

    @property
    def fallback(self) -> bool:
        return self.routed is not None and self.routed.out_of_distribution and not self.mixture

    @property
    def ref(self) -> str:
        """The version that answers, the weightiest of several."""
        return max(self.mixture, key=self.mixture.__getitem__) if self.mixture else BASE

    def prediction(self, request: AnswerRequest, answer: Answer) -> Prediction:
        return Prediction(
            request.example.input or request.example.instruction,
            self.ref,
            answer.text,
            answer.confidence,
            answer.scores,
            self.task.name if self.task else "",
            dict(self.mixture),
            self.routed.confidence if self.routed else None,
            bool(self.routed and self.routed.out_of_distribution),
            answer.truncated or not answer.finished,
            answer.finished,
            answer.prompt_tokens,
            answer.tokens,
            answer.stopped_at,
        )


def narrowed(routed: Routed, top_k: int, forced: bool) -> Routed:
    """A decision with the first k tasks only; `forced`: the base does not step in."""
    kept = routed.weights[:top_k]
    total = sum(weight for _, weight in kept) or 1.0
    weights = tuple((task, weight / total) for task, weight in kept)
    return replace(routed, weights=weights, out_of_distribution=routed.out_of_distribution and not forced)


def resolve(table: ServingTable, request: AnswerRequest, routed: Routed | None = None) -> Resolved:
    """Who answers, given what the router said.

    Raises:
        UsageError, UnknownNameError, AdapterError: see `who_answers`.
    """
    if routed is not None and routed.out_of_distribution:
        return Resolved({}, None, routed)
    weights = routed.weights if routed is not None else ()
    task, mixture = who_answers(table, request.task, request.adapter, weights, free=request.writes)
    canary = table.canaries.get(task.name) if task and request.adapter is None else None
    if canary and [*mixture] == [canary.beside] and canary_answers(canary.ref, canary.share, request.conversation):
        task, mixture = task_of(table.registry, table.record(canary.ref)), {canary.ref: 1.0}
    found = Resolved(mixture, task, routed)
    return found if found.ref == BASE else replace(found, sha256=weights_sha256(table.record(found.ref)))


def row_of(base: LoadedBase, request: AnswerRequest, resolved: Resolved, max_length: int) -> AskedRow:
    """The row of the batch.

    Raises:
        DataError: a raw text that is longer than the context.
    """
    task, example = resolved.task or plain_task(base), request.example
    row = AskedRow(task, example, resolved.mixture, request.writing, writes=request.writes)
    if request.emit and not row.chooses:
        row = replace(row, emit=request.give)
    row = replace(row, wanted=request.wanted)
    if not request.raw and not (request.writes and task.kind == "text" and not example.turns):
        return row
    encode = row.tokeniser(base.tokenizer, max_length)
    prompt = encode.start(example.input)
    new = request.writing.max_new_tokens or encode.budget()
    if len(prompt) + new > max_length:
        raise DataError(
            f"the text has {len(prompt)} tokens; with {new} new ones that is over the base's {max_length}",
            "shorten the text or lower --max-new-tokens",
        )
    return replace(row, prompt=prompt)


def answer_alone(
    registry: Registry, base: LoadedBase, requests: Sequence[AnswerRequest], resolved: Resolved, **options: Any
) -> list[Prediction]:
    """Answers, in order, to requests that all go to one version or to the base. No bank is needed.

    Args:
        options: see `Answerer.answer`.

    Raises:
        DataError: an input is too long.
        AdapterError: the version does not fit the base, or has diverged.
    """
    with answering(registry, base, resolved.ref) as model, base.autocast():
        answerer = Answerer(base.tokenizer, OneModel(model), max_length=base.context)
        rows = [row_of(base, request, resolved, base.context) for request in requests]
        answers = answerer.all(rows, **options)
    return [resolved.prediction(request, answer) for request, answer in zip(requests, answers, strict=True)]


def examples_of(inputs: Sequence[str | Example]) -> list[Example]:
    """Inputs as examples, checked.

    Raises:
        DataError: one is empty, or no text.
        UsageError: a text where a list of texts is wanted.
    """
    if isinstance(inputs, str):
        raise UsageError("a single text was given, but a list of texts is needed", "write [text]")
    found = [example_of(one) for one in inputs]
    for number, example in enumerate(found, 1):
        if not example.asks:
            raise DataError(f"input {number} is empty", "give a text")
    return found


def example_of(given: str | Example) -> Example:
    """An input as an example."""
    if isinstance(given, str):
        return Example(whole_characters(given))
    if not isinstance(given, Example):
        how = "give a str or an Example"
        if isinstance(given, list | tuple | Mapping):
            how += "; conversations go to generate or chat, or into Example.conversation(messages)"
        raise DataError(f"an input is a {type(given).__name__}, not a text", how)
    return replace(given, input=whole_characters(given.input), instruction=whole_characters(given.instruction))


def plain_task(base: LoadedBase) -> Task:
    """How the base is asked where no task is known."""
    if not base.tokenizer.chat_template:
        return Task("", "generation", "instruction")
    return Task("", "generation", "chat", layout=Layout("messages", chat="messages"))
