"""From examples to the rows of a run as token ids, and how the run will compute them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adapterhub_cl import augmentation
from adapterhub_cl.adapters.fused import base_alone, fused
from adapterhub_cl.answering.writing import base_writer
from adapterhub_cl.augmentation import Augment
from adapterhub_cl.bases.loading import LoadedBase
from adapterhub_cl.bases.precision import NAMES
from adapterhub_cl.data.chat import BrokenTemplateError
from adapterhub_cl.data.remarks import places_of, short_places
from adapterhub_cl.data.tokenise import Tokeniser, Tokens, TooLongError
from adapterhub_cl.errors import DataError
from adapterhub_cl.examples import is_learned
from adapterhub_cl.objectives import BaseObjective
from adapterhub_cl.progress import Reporter
from adapterhub_cl.settings import TrainingSettings
from adapterhub_cl.strategies import BaseStrategy, Kin, Origin
from adapterhub_cl.training import memory, speed
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
        rehearse: the same for `review`; None: as `augment` says.
        unchanged: questions whose answers must stay as they are, each with whether the answer had ended where it ends.
        avoid: examples that augmentation must not produce: the held-out ones.
        places: where each example comes from, for messages.
        prompt_loss: see `TrainingSettings.prompt_loss`.
        fresh: the kind of task that a new adapter learns, see `TrainingSettings.for_rows`.
        kin: versions of other tasks that were tried on the examples, the best first.
    """

    task: Task
    examples: Sequence[Example]
    review: Sequence[Example] = ()
    raw: bool = False
    past: Sequence[tuple[Task, Origin]] = ()
    together: bool = False
    parent: Path | None = None
    augment: Sequence[Augment] = ()
    rehearse: Sequence[Augment] | None = None
    unchanged: Sequence[tuple[Example, bool]] = ()
    avoid: Sequence[Example] = ()
    places: Sequence[str] = ()
    prompt_loss: float = 0.0
    fresh: str = ""
    kin: Sequence[Kin] = ()


@dataclass(frozen=True)
class TrainingRows:
    """The rows of a run as token ids.

    Attributes:
        training: those that are trained on, repeated as the strategy says.
        dev_examples: those held out to choose the best epoch that are answered; `dev_tokens` are all that are held out.
        past: rows of earlier tasks that the strategy may review; `origins` says where each comes from.
        cut: how many rows were too long.
        length: the limit in tokens.
        encode: how the task's examples become token ids.
    """

    training: list[Tokens]
    dev_examples: list[Example]
    dev_tokens: list[Tokens]
    past: list[Tokens]
    origins: list[Origin]
    cut: int
    length: int
    encode: Tokeniser

    def referred(
        self,
        model: Any,
        base: LoadedBase,
        objective: BaseObjective,
        batch_size: int,
        fresh: bool,
        reporter: Reporter,
    ) -> TrainingRows:
        """The rows with what an objective has to know of the model before it is trained.

        Args:
            model: as it is before the first step, computing as in the run.
            fresh: whether the adapter is new; then the base alone is the reference.
        """
        if not objective.prefers:
            return self
        parts = [self.training, self.dev_tokens, self.past]
        found = []
        with (
            reporter.piece("answers of the reference", sum(map(len, parts))) as advance,
            base.autocast(),
            base_alone(model) if fresh else nullcontext(),
        ):
            for part in parts:
                found.append(objective.referred(model, part, base.tokenizer.pad_token_id, batch_size, advance))
        return replace(self, training=found[0], dev_tokens=found[1], past=found[2])


def dev_split(count: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Which examples train and which are held out to choose the best epoch (none of a small set)."""
    size = min(DEV_ROWS, int(count * share))
    if size < LEAST_DEV_ROWS:
        return list(range(count)), []
    held = set(random.Random(f"dev {seed}").sample(range(count), size))
    return [i for i in range(count) if i not in held], sorted(held)


def rows_of(
    model: Any,
    base: LoadedBase,
    objective: BaseObjective,
    strategy: BaseStrategy,
    lesson: TrainingSet,
    settings: TrainingSettings,
    reporter: Reporter,
) -> TrainingRows:
    """Tokenise, hold out, repeat and augment.

    Raises:
        DataError: nothing is left to train on.
    """
    length = min(settings.max_length, base.context)
    if settings.max_length not in (length, TrainingSettings.max_length):
        reporter.note(f"note: --max-length {settings.max_length} is lowered to {length}, the most that the base reads")
    encode = objective.tokeniser(base.tokenizer, lesson.task, length)
    fresh = objective.tokeniser(base.tokenizer, lesson.task.as_text(), length) if lesson.raw else encode
    pairs, shortened = _windows(fresh, lesson, reporter, base.context)
    if len(pairs) > len(lesson.examples):
        reporter.note(f"long texts were split into {len(pairs)} pieces of at most {length} tokens")
    pairs += [(e, t) for e in lesson.review for t in encode.windows(e)]
    if settings.learn == "all" and (note := _unlearned_answers(pairs, encode)):
        reporter.note(note)
    if settings.learn == "last" and not any(t.earlier for _, t in pairs):
        reporter.note("note: --learn last changes nothing here, because no example has more than one answer to learn")
    examples, tokens = [e for e, _ in pairs], as_learned([t for _, t in pairs], settings)
    past, origins = _past(base, objective, lesson, length)
    past = as_learned(past, settings)
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
        reporter.note(_what_was_cut(shortened, len(lesson.examples), encode, base.context))
    train, held = dev_split(len(tokens), settings.dev_share, settings.seed)

    times = strategy.repeats([tasks[i] for i in train])
    training: list[Tokens] = [tokens[i] for i, often in zip(train, times, strict=True) for _ in range(often)]
    dev_examples, dev_tokens = [examples[i] for i in held], [tokens[i] for i in held]
    taught = [examples[i] for i in train]
    for wanted, own in _to_augment(lesson, taught):
        training += _augmented(lesson, wanted, own, dev_examples, fresh, model, base, settings, reporter)
    training += _unchanged(lesson, fresh, reporter)
    if lesson.together:  # one task's accuracy must not choose for all: the loss over all of them does
        dev_examples = []
    return TrainingRows(training, dev_examples, dev_tokens, past, origins, cut, length, encode)


def as_learned(tokens: Sequence[Tokens], settings: TrainingSettings) -> list[Tokens]:
    """The rows with the answers that count in the loss: all of a conversation, or the last one."""
    return list(tokens) if settings.learn == "all" else [replace(row, earlier=()) for row in tokens]


def _unlearned_answers(pairs: Sequence[tuple[Example, Tokens]], encode: Tokeniser) -> str:
    """A note about answers inside conversations that are not learned although all were to be; empty for none."""
    told = [(example, row) for example, row in pairs if example.turns and row.answer]
    meant = [(sum(is_learned(turn.message()) for turn in example.turns), row) for example, row in told]
    if encode.task.prompt_format == "chat":
        lost = sum(count - len(row.earlier) for count, row in meant if row.truncated)
        why = "the oldest turns were left out"
    else:
        lost = sum(count for count, _ in meant)
        why = f"the prompt format {encode.task.prompt_format!r} has one answer, the last one"
    what = "1 earlier answer of the assistant is" if lost == 1 else f"{lost} earlier answers of the assistant are"
    return f"note: {what} not learned, because {why}" if lost else ""


def way_of(
    model: Any,
    base: LoadedBase,
    objective: BaseObjective,
    strategy: BaseStrategy,
    rows: TrainingRows,
    settings: TrainingSettings,
    reporter: Reporter,
) -> speed.Speed:
    """How the run computes: the fastest way here, as far as it fits into memory.

    Raises:
        UsageError: see `memory.fitted`.
    """
    if base.shards is not None:  # to measure, every process would have to take the same steps
        asked = settings.attention
        return speed.Speed(speed.usual_attention(base) if asked == "auto" else asked, dtype=NAMES[base.dtype])
    found = speed.choose(
        model,
        base,
        objective,
        rows.training,
        settings.batch,
        total=settings.passes * len(rows.training),
        attention=settings.attention,
        padding=strategy.watches_layers,
        tell=reporter.note,
    )
    with fused(model, base.dtype, found.keep_bytes):
        found, expected = memory.fitted(model, base, objective, [*rows.training, *rows.past], settings, found)
    return replace(found, dtype=NAMES[base.dtype], expected=expected)


def _windows(
    encode: Tokeniser, lesson: TrainingSet, reporter: Reporter, context: int = 0
) -> tuple[list[tuple[Example, Tokens]], list[str]]:
    """The training examples as token ids, and the places of those that were cut.

    Args:
        context: the most tokens that the base reads; 0 if that is not known.

    Raises:
        DataError: some cannot be cut to fit, or cannot be asked at all; names their places.
    """
    pairs: list[tuple[Example, Tokens]] = []
    cut: list[str] = []
    refused: list[tuple[str, DataError]] = []
    with reporter.piece("reading", len(lesson.examples)) as advance:
        for k, example in enumerate(lesson.examples):
            where = lesson.places[k] if k < len(lesson.places) else f"example {k + 1}"
            try:
                found = encode.windows(example)
            except BrokenTemplateError:
                raise  # it is not this row's fault
            except DataError as error:
                refused.append((where, error))
                found = []
            pairs += [(example, tokens) for tokens in found]
            cut += [where] if any(tokens.truncated for tokens in found) else []
            if k % READ_AT_ONCE == READ_AT_ONCE - 1:
                advance(READ_AT_ONCE)
    if refused:
        raise _refusal(refused, encode.max_length, context)
    return pairs, cut


def _refusal(refused: Sequence[tuple[str, DataError]], length: int, context: int) -> DataError:
    """One error for all rows that cannot be learned: the first one's reason, and the places of all."""
    where, error = refused[0]
    hint = error.hint
    needed = max((e.needed for _, e in refused if isinstance(e, TooLongError)), default=0)
    if needed and isinstance(error, TooLongError):
        hint = "shorten the instruction or the answer, or remove the rows"
        if not context or needed <= context:
            hint = f"raise --max-length to {needed} or more; or {hint}"
        elif length < context:
            hint += f"; this base reads {context} tokens at most (--max-length {context})"
        else:
            hint += f"; this base reads {context} tokens at most"
    places = [place for place, _ in refused]
    more = f" ({len(refused)} rows cannot be used: {short_places(places)})" if len(refused) > 1 else ""
    return DataError(f"{where}: {error.message}{more}", hint)


def _what_was_cut(places: Sequence[str], count: int, encode: Tokeniser, context: int) -> str:
    """A note about the rows that were cut.

    Args:
        context: the most tokens that the base reads.
    """
    room = encode.max_length - encode.longest_answer
    beside = f", which leaves {room} for the prompt beside the longest answer" if encode.longest_answer else ""
    how = "the end of the input (or of its passage) was cut"
    if encode.task.talks:
        how = "the oldest turns were left out, or the end of the last question or of a result was cut"
    more = f"The base reads {context} tokens at most: shorten them"
    if encode.max_length < context:
        more = "--max-length N keeps more"
    return (
        f"note: {len(places)} of {count} examples are longer than {encode.max_length} tokens{beside}; {how} "
        f"({places_of(places)}). {more}"
    )


def _past(
    base: LoadedBase, objective: BaseObjective, lesson: TrainingSet, length: int
) -> tuple[list[Tokens], list[Origin]]:
    """The rows of other tasks, each in its own task's prompt format."""
    encoders = {task.name: objective.tokeniser(base.tokenizer, task, length) for task, _ in lesson.past}
    rows = [(encoders[task.name](origin.example), origin) for task, origin in lesson.past]
    usable = [(tokens, origin) for tokens, origin in rows if tokens.answer]
    return [tokens for tokens, _ in usable], [origin for _, origin in usable]


def _to_augment(lesson: TrainingSet, taught: Sequence[Example]) -> list[tuple[Sequence[Augment], Sequence[Example]]]:
    """The augmentations with the rows that they are made of: new rows and rehearsed ones may differ in them."""
    if lesson.rehearse is None:
        return [(lesson.augment, taught)] if lesson.augment else []
    old = set(lesson.review)
    parts = [
        (lesson.augment, [e for e in taught if e not in old]),
        (lesson.rehearse, [e for e in taught if e in old]),
    ]
    return [(wanted, own) for wanted, own in parts if wanted and own]


def _unchanged(lesson: TrainingSet, encode: Tokeniser, reporter: Reporter) -> list[Tokens]:
    """The rows whose answers must stay as they are. An answer that had not ended is learned without an end, and one
    that does not fit into the limit is left out: the user did not give it, and could not shorten it."""
    rows = []
    for example, ended in lesson.unchanged:
        with suppress(TooLongError):
            tokens = encode(example)
            rows.append(tokens if ended else replace(tokens, answer=tokens.answer[:-1]))
    if count := len(lesson.unchanged) - len(rows):
        reporter.note(
            f"note: {count} of {len(lesson.unchanged)} answers that must not change are longer than "
            f"{encode.max_length} tokens with their question, and are not rehearsed; a higher --max-length keeps them"
        )
    return [tokens for tokens in rows if tokens.answer]


def _augmented(
    lesson: TrainingSet,
    wanted: Sequence[Augment],
    examples: Sequence[Example],
    dev: Sequence[Example],
    encode: Tokeniser,
    model: Any,
    base: LoadedBase,
    settings: TrainingSettings,
    reporter: Reporter,
) -> list[Tokens]:
    """Rows made of the training rows; never of those held out, nor copies of any that a score is taken on. What became
    too long is left out."""
    own = [e for e in examples if e.input or e.answer]
    made, counts = augmentation.augment(
        own, wanted, settings.seed, avoid=[*lesson.avoid, *dev], writer=base_writer(model, base, reporter)
    )
    rows = []
    for example in made:
        with suppress(TooLongError):
            rows.append(encode(example))
    long = len(made) - len(rows)
    told = f", and {long} that are too long left out" if long else ""
    reporter.note(
        f"augmentation made {counts.made} examples ({counts.duplicates} duplicates and {counts.leaks} copies of "
        f"evaluation rows dropped{told})"
    )
    return [tokens for tokens in rows if tokens.answer]


def held_out(count: int, settings: TrainingSettings) -> str:
    """What is said of the rows held out."""
    if count or not settings.dev_share:
        return f"{count} held out to choose the epoch"
    return f"too few to hold out {settings.dev_share:.0%} of them: the last epoch is kept"
