"""Objectives: the loss, the prediction and the metric of each kind of base. One file each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from adapterhub_cl.answering import Answer
from adapterhub_cl.bases.kinds import CAUSAL, CLASSIFICATION, MASKED, objectives_of
from adapterhub_cl.errors import UsageError
from adapterhub_cl.plugins import Room
from adapterhub_cl.types import BaseInfo, Example, HeadRows, Task

if TYPE_CHECKING:
    import torch

    from adapterhub_cl.data.batches import Batch
    from adapterhub_cl.data.tokenise import Tokeniser, Tokens
    from adapterhub_cl.settings import TrainingSettings

ROOM = Room("adapterhub_cl.objectives", "objective", "Objective")
DPO, KTO = "dpo", "kto"


def of(base: BaseInfo) -> BaseObjective:
    """The objective that all of a base's tasks run through; the one place where it is chosen.

    Of an encoder with the head of a masked language model that is `masked_lm`, which classifies as well.
    """
    found: BaseObjective = ROOM.get(objectives_of(base.architecture)[-1])()
    return found


def taught_by(base: BaseInfo, rows: Iterable[Example], settings: TrainingSettings) -> BaseObjective:
    """The objective that a base is trained with on these rows: `dpo` where there are pairs, `kto` where single answers
    were judged, otherwise that of `of`.

    Raises:
        UsageError: the base is an encoder, and the rows say which answers are wanted.
    """
    wanted = _preference_of(rows)
    if not wanted:
        return of(base)
    refuse_writing(base, "learning from preferences")
    found: BaseObjective = ROOM.get(wanted)(settings)
    return found


def name_taught(base: BaseInfo, rows: Iterable[Example], kind: str) -> str:
    """The name of the objective that a base is trained with on the rows of a kind of task."""
    return _preference_of(rows) or name_for(base, kind)


def _preference_of(rows: Iterable[Example]) -> str:
    return min((DPO if row.rejected else KTO for row in rows if row.prefers), default="")


def name_for(base: BaseInfo, kind: str) -> str:
    """The objective by which a base serves a kind of task.

    Raises:
        UsageError: it serves none of that kind.
    """
    offered = objectives_of(base.architecture)
    if CAUSAL in offered:
        return CAUSAL
    wanted = {"choice": CLASSIFICATION, "text": MASKED}.get(kind, "")
    if wanted in offered:
        return wanted
    if kind == "text":
        raise UsageError(
            f"raw text is learned by masked_lm, and {base.source!r} is a {base.architecture} without its head",
            "make a hub on a checkpoint whose architecture ends in ForMaskedLM, or on a causal language model",
        )
    raise UsageError(
        f"{base.source!r} is an encoder ({base.architecture}): it writes no free answers",
        "give examples whose answers are labels (--kind choice), or make a hub on a causal language model",
    )


def refuse_writing(base: BaseInfo, what: str) -> None:
    """Raise where a base would have to write.

    Raises:
        UsageError: it is an encoder.
    """
    if CAUSAL not in objectives_of(base.architecture):
        raise UsageError(
            f"{what} needs a base that writes, and {base.source!r} is an encoder ({base.architecture})",
            "cl-adapter predict answers with a label; to write, make a hub on a causal language model",
        )


class BaseObjective(ABC):
    """What a kind of base is trained on, and how it answers.

    Attributes:
        task_type: PEFT's name for it.
        answers_with: task kinds that it can serve.
        writes: whether it can write text.
        prefers: whether it learns which of two answers is wanted, against a reference.
        rate_share: the default learning rate, as a share of the usual one.
    """

    task_type: ClassVar[str]
    answers_with: ClassVar[tuple[str, ...]]
    writes: ClassVar[bool] = True
    prefers: ClassVar[bool] = False
    rate_share: ClassVar[float] = 1.0

    @abstractmethod
    def tokeniser(self, tokenizer: Any, task: Task, max_length: int) -> Tokeniser:
        """How a task's examples become token ids of at most `max_length`."""

    def knows(self, model: Any, task: Task) -> bool:
        """Whether the model as it is can answer for a task at all."""
        return True

    def recalled(self, model: Any, layout: HeadRows) -> list[torch.Tensor] | None:
        """What the last pass of `logits` said in heads, `[rows, labels]` each, with the gradient; None where bases have
        none.

        Args:
            layout: of which tasks, and of which of their labels.
        """
        return None

    @abstractmethod
    def logits(self, model: Any, batch: Batch) -> torch.Tensor:
        """Logits where a label is to be predicted, `[n_labels, vocabulary]`, fp32, in row order; with the gradient."""

    @abstractmethod
    def losses_of(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Loss of each label under `logits`, times its weight, `[n_labels]`."""

    def losses_given(self, logits: torch.Tensor, batch: Batch, model: Any) -> torch.Tensor:
        """What `losses` gives, where the logits are known already."""
        return self.losses_of(logits, batch)

    def losses(self, model: Any, batch: Batch) -> torch.Tensor:
        """Loss of each answer token, `[n_answer_tokens]`, fp32, in row order; of preferences that of each row. With the
        gradient."""
        return self.losses_of(self.logits(model, batch), batch)

    def counted(self, examples: Sequence[Tokens], indices: Sequence[int]) -> int:
        """What the summed loss of some rows is divided by: the number of their answer tokens."""
        from adapterhub_cl.data.batches import answers_in

        return answers_in(examples, indices)

    def referred(
        self,
        model: Any,
        tokens: Sequence[Tokens],
        pad_id: int,
        batch_size: int,
        progress: Callable[[int], None] | None = None,
    ) -> list[Tokens]:
        """The rows with what the loss has to know of the model before it is trained: for most objectives nothing, for
        preferences the reference's log-probabilities.

        Args:
            model: the reference.
            progress: called with the number of rows done after each batch.
        """
        return list(tokens)

    def judged(
        self,
        model: Any,
        tokens: Sequence[Tokens],
        pad_id: int,
        batch_size: int = 32,
        progress: Callable[[int], None] | None = None,
    ) -> dict[str, float]:
        """The figures of rows held out by which the best epoch is chosen: the loss of an answer token."""
        losses = self.perplexities(model, tokens, pad_id, batch_size, progress)
        return {"loss": sum(total for total, _ in losses) / max(1, sum(count for _, count in losses))}

    @abstractmethod
    def perplexities(
        self,
        model: Any,
        tokens: Sequence[Tokens],
        pad_id: int,
        batch_size: int = 32,
        progress: Callable[[int], None] | None = None,
    ) -> list[tuple[float, int]]:
        """For each example the sum of its answer's negative log-likelihood (nats) and the number of its tokens.

        Args:
            progress: called with the number of examples done after each batch.
        """

    def predict(
        self,
        model: Any,
        tokenizer: Any,
        task: Task,
        examples: Sequence[Example],
        *,
        max_length: int = 512,
        batch_size: int = 32,
        max_new_tokens: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[Answer]:
        """Answers, in the examples' order; a hub gives these inputs the same answers.

        Args:
            model: the base with the adapter active.
            task: a choice task is answered with one of its labels, any other by writing.
            max_length: the base's context in tokens; the task's own limit says where inputs are cut.
            max_new_tokens: longest free answer, in tokens; None: what the task's answers need. Three quarters of
                `max_length` at most.
            progress: called with the number of examples done after each batch.

        Raises:
            AdapterError: an encoder's adapter has no head for the task.
        """
        from adapterhub_cl.answering.answerer import Answerer, AskedRow, OneModel
        from adapterhub_cl.answering.writing import Writing

        answerer = Answerer(tokenizer, OneModel(model), max_length=max_length, strict=False)
        rows = [AskedRow(task, example, writing=Writing(max_new_tokens)) for example in examples]
        return answerer.all(rows, batch_size=batch_size, progress=progress)
