"""From examples to a trained adapter's files: tokens, dev split, loop, best epoch, PEFT format."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from adapterhub_cl import augmentation
from adapterhub_cl.adapters.fused import fused
from adapterhub_cl.answering.writing import base_writer
from adapterhub_cl.augmentation import Augment
from adapterhub_cl.bases.loading import LoadedBase
from adapterhub_cl.bases.precision import NAMES
from adapterhub_cl.data.tokenise import Tokeniser, Tokens
from adapterhub_cl.errors import DataError, UsageError
from adapterhub_cl.evaluation.scoring import dev_figures
from adapterhub_cl.objectives import BaseObjective
from adapterhub_cl.progress import Reporter
from adapterhub_cl.settings import TrainingSettings
from adapterhub_cl.strategies import BaseStrategy, Origin, Stage
from adapterhub_cl.training import memory, speed
from adapterhub_cl.training.layer_stack import recomputed
from adapterhub_cl.training.loop import Loop
from adapterhub_cl.training.loop_state import LoopOrder
from adapterhub_cl.training.processes import everyones
from adapterhub_cl.types import Example, Task

DEV_ROWS = 200
READ_AT_ONCE = 256  # rows between two moves of the bar
LEAST_DEV_ROWS = 10  # fewer say nothing about which epoch was best


@dataclass(frozen=True)
class TrainingSet:
    """The rows to train on.

    Attributes:
        task: how the examples are asked and scored.
        examples: the training data.
        review: replay samples of an older version, mixed in.
        raw: raw text to be learned under another task's adapter (a knowledge update): no prompt, loss everywhere.
        past: other tasks, each row with its own.
        together: the other tasks' rows are learned like new ones, not where the strategy reviews them.
        parent: directory of the version that the run continues from or is stacked on.
        augment: the augmentations and how many copies each makes.
        avoid: examples that augmentation must not produce: the held-out ones.
        places: where each example comes from, for messages.
        prompt_loss: see `TrainingSettings.prompt_loss`.
    """

    task: Task
    examples: Sequence[Example]
    review: Sequence[Example] = ()
    raw: bool = False
    past: Sequence[tuple[Task, Origin]] = ()
    together: bool = False
    parent: Path | None = None
    augment: Sequence[Augment] = ()
    avoid: Sequence[Example] = ()
    places: Sequence[str] = ()
    prompt_loss: float = 0.0


@dataclass(frozen=True)
class Learned:
    """The result of `learn`.

    Attributes:
        facts: for `training.json`.
        stage: the strategy's view of the finished run.
        encode: how the task's examples become token ids.
    """

    facts: dict[str, Any]
    stage: Stage
    encode: Tokeniser


def dev_split(count: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Which examples train and which are held out to choose the best epoch (none of a small set)."""
    size = min(DEV_ROWS, int(count * share))
    if size < LEAST_DEV_ROWS:
        return list(range(count)), []
    held = set(random.Random(f"dev {seed}").sample(range(count), size))
    return [i for i in range(count) if i not in held], sorted(held)


def learn(
    model: Any,
    base: LoadedBase,
    objective: BaseObjective,
    strategy: BaseStrategy,
    lesson: TrainingSet,
    settings: TrainingSettings,
    *,
    run: Path | None,
    chosen: speed.Speed | None,
    on_speed: Callable[[speed.Speed], None],
    accelerator: Accelerator,
    reporter: Reporter,
) -> Learned:
    """Train the LoRA on `model`; its best weights are in the model afterwards.

    Args:
        chosen: how to compute, where a resumed run has chosen already.
        on_speed: called with the choice before the first step, to be kept for a resume.

    Raises:
        DataError: nothing is left to train on.
        UsageError: a resumed run would go on in another type.
    """
    length = min(settings.max_length, base.context)
    encode = objective.tokeniser(base.tokenizer, lesson.task, length)
    fresh = objective.tokeniser(base.tokenizer, lesson.task.as_text(), length) if lesson.raw else encode
    pairs, shortened = _windows(fresh, lesson, reporter)
    if len(pairs) > len(lesson.examples):
        reporter.note(f"long texts were split into {len(pairs)} pieces of at most {length} tokens")
    pairs += [(e, t) for e in lesson.review for t in encode.windows(e)]
    examples, tokens = [e for e, _ in pairs], [t for _, t in pairs]
    past, origins = _past(base, objective, lesson, length)
    tasks = [lesson.task.name] * len(tokens)
    if lesson.together:  # rows like any other, but for their prompts
        examples, tokens = [*examples, *(Example("") for _ in past)], [*tokens, *past]
        tasks += [origin.task for origin in origins]
        past, origins = [], []
    usable = [i for i, t in enumerate(tokens) if t.answer]
    examples, tokens, tasks = [examples[i] for i in usable], [tokens[i] for i in usable], [tasks[i] for i in usable]
    if not tokens:
        raise DataError("no example has a token to learn from", "check the data")
    cut = sum(t.truncated for t in tokens)
    if shortened:
        reporter.note(_what_was_cut(shortened, len(lesson.examples), encode))
    train, held = dev_split(len(tokens), settings.dev_share, settings.seed)

    times = strategy.repeats([tasks[i] for i in train])
    training: list[Tokens] = [tokens[i] for i, often in zip(train, times, strict=True) for _ in range(often)]
    dev_examples, dev_tokens = [examples[i] for i in held], [tokens[i] for i in held]
    if lesson.augment:
        training += _augmented(
            lesson, [examples[i] for i in train], dev_examples, fresh, model, base, settings, reporter
        )
    if lesson.together:  # one task's accuracy must not choose for all: the loss over all of them does
        dev_examples = []
    if chosen is None:
        found = speed.choose(
            model,
            base,
            objective,
            training,
            settings.batch_size,
            steps=settings.epochs * len(training) // settings.batch_size,
            attention=settings.attention,
            padding=strategy.watches_layers,
            tell=reporter.note,
        )
        with fused(model, base.dtype, found.keep_bytes):
            found, expected = memory.fitted(model, base, objective, [*training, *past], settings, found)
        chosen = everyones(replace(found, dtype=NAMES[base.dtype], expected=expected), accelerator)
        on_speed(chosen)
    if chosen.dtype not in ("", NAMES[base.dtype]):
        raise UsageError(
            f"this run computed in {chosen.dtype} when it was stopped, and would now go on in {NAMES[base.dtype]}",
            f"cl-adapter --dtype {chosen.dtype} add-task … --resume",
        )

    def dev(current: Any) -> Mapping[str, float]:
        with reporter.piece("rows held out", len(dev_tokens)) as advance:
            return dev_figures(
                current,
                base.tokenizer,
                objective,
                lesson.task,
                dev_examples,
                dev_tokens,
                max_length=length,
                dtype=base.dtype,
                progress=advance,
            )

    rate = settings.peak_rate(base.model.config.get_text_config().hidden_size, encoder=base.is_encoder)
    # The scores that follow are measured as the stored version will answer.
    peak = memory.Peak(base.device)
    with (
        speed.use(model, chosen),
        fused(model, base.dtype, chosen.keep_bytes) as layers,
        recomputed(model.get_base_model(), chosen.every),
    ):
        order = LoopOrder(
            objective,
            strategy,
            settings,
            training,
            rate,
            base.tokenizer.pad_token_id,
            base.dtype,
            past,
            origins,
            lesson.parent,
            lesson.prompt_loss,
            alike=not lesson.review,
            run=run,
            padding=chosen.padding,
            rows=chosen.rows,
        )
        evaluate, log = dev if held else None, _tracker(accelerator)
        loop = Loop(model, order, evaluate=evaluate, reporter=reporter, accelerator=accelerator, log=log)
        reporter.note(
            f"training on {len(training)} examples ({_held_out(len(held), settings)}), {loop.total} steps, "
            f"learning rate {rate:g}, {base.why or NAMES[base.dtype]}, {chosen.describe()}"
        )
        started = time.perf_counter()
        outcome = loop()
        seconds = time.perf_counter() - started
        peak_bytes = peak.bytes()
    right = outcome.history[outcome.epoch - 1].get("dev_accuracy")
    if right is not None:  # of a choice: its share of the rows that have a label
        labelled = [str(e.answer) for e in dev_examples if e.answer in lesson.task.labels]
        if warning := guessing(labelled, right):
            reporter.note(warning)
    facts = {
        "examples": len(training),
        "dev_examples": len(held),
        "truncated": cut,
        "max_length": length,
        "learning_rate": rate,
        "dtype": str(base.dtype).removeprefix("torch."),
        "speed": speed.to_json(chosen),
        "memory_bytes": chosen.expected,
        "peak_memory_bytes": peak_bytes,
        "fused_layers": layers,
        "processes": accelerator.num_processes,
        "seconds": round(seconds, 2),
        "steps": outcome.steps,
        "best_epoch": outcome.epoch,
        "history": list(outcome.history),
        "examples_per_second": round(outcome.examples_per_second, 2),
        "tokens_per_second": round(outcome.tokens_per_second, 1),
        "strategy_summary": strategy.summary(),
    }
    return Learned(facts, loop.stage, encode)


def _windows(
    encode: Tokeniser, lesson: TrainingSet, reporter: Reporter
) -> tuple[list[tuple[Example, Tokens]], list[str]]:
    """The training examples as token ids, and the places of those that were cut.

    Raises:
        DataError: one cannot be cut to fit; names its place.
    """
    pairs: list[tuple[Example, Tokens]] = []
    cut: list[str] = []
    with reporter.piece("reading", len(lesson.examples)) as advance:
        for k, example in enumerate(lesson.examples):
            where = lesson.places[k] if k < len(lesson.places) else f"example {k + 1}"
            try:
                found = encode.windows(example)
            except DataError as error:
                raise DataError(f"{where}: {error.message}", error.hint) from error
            pairs += [(example, tokens) for tokens in found]
            cut += [where] if any(tokens.truncated for tokens in found) else []
            if k % READ_AT_ONCE == READ_AT_ONCE - 1:
                advance(READ_AT_ONCE)
    return pairs, cut


def _what_was_cut(places: Sequence[str], count: int, encode: Tokeniser) -> str:
    """A note about the rows that were cut."""
    room = encode.max_length - encode.longest_answer
    beside = f", which leaves {room} for the prompt beside the longest answer" if encode.longest_answer else ""
    how = "the oldest turns were left out" if encode.task.talks else "the end of the input (or of its passage) was cut"
    named = ", ".join([places[0], *(place.rpartition(" ")[2] for place in places[1:5])])
    named += ", …" if len(places) > 5 else ""
    return (
        f"note: {len(places)} of {count} examples are longer than {encode.max_length} tokens{beside}; {how} ({named}). "
        "--max-length N keeps more"
    )


def guessing(answers: Sequence[str], right: float) -> str:
    """A warning if a choice task is right no more often than its most frequent answer; else an empty text.

    Args:
        answers: those of the rows held out.
        right: share of them that the adapter gets right, 0 to 1.
    """
    often = Counter(answers).most_common(2)
    if len(often) < 2 or right > (share := often[0][1] / len(answers)):
        return ""
    return (
        f"warning: right in {right:.0%} of the {len(answers)} rows held out, and always answering {often[0][0]!r} in "
        f"{share:.0%}: little was learned; try more --epochs, more data or another --learning-rate"
    )


def _past(
    base: LoadedBase, objective: BaseObjective, lesson: TrainingSet, length: int
) -> tuple[list[Tokens], list[Origin]]:
    """The rows of other tasks, each in its own task's prompt format."""
    encoders = {task.name: objective.tokeniser(base.tokenizer, task, length) for task, _ in lesson.past}
    rows = [(encoders[task.name](origin.example), origin) for task, origin in lesson.past]
    usable = [(tokens, origin) for tokens, origin in rows if tokens.answer]
    return [tokens for tokens, _ in usable], [origin for _, origin in usable]


def _augmented(
    lesson: TrainingSet,
    examples: Sequence[Example],
    dev: Sequence[Example],
    encode: Tokeniser,
    model: Any,
    base: LoadedBase,
    settings: TrainingSettings,
    reporter: Reporter,
) -> list[Tokens]:
    """Rows made of the training rows; never of those held out, nor copies of any that a score is taken on."""
    own = [e for e in examples if e.input or e.answer]
    made, counts = augmentation.augment(
        own, lesson.augment, settings.seed, avoid=[*lesson.avoid, *dev], writer=base_writer(model, base, reporter)
    )
    reporter.note(
        f"augmentation made {counts.made} examples ({counts.duplicates} duplicates and {counts.leaks} copies of "
        "evaluation rows dropped)"
    )
    return [tokens for tokens in encode.many(made) if tokens.answer]


def _held_out(count: int, settings: TrainingSettings) -> str:
    if count or not settings.dev_share:
        return f"{count} held out to choose the epoch"
    return f"too few to hold out {settings.dev_share:.0%} of them: the last epoch is kept"


def _tracker(accelerator: Accelerator) -> Callable[[Mapping[str, float], int], None] | None:
    if not accelerator.log_with:
        return None

    def log(values: Mapping[str, float], step: int) -> None:
        accelerator.log(dict(values), step=step)

    return log
