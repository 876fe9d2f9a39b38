"""From examples to a trained adapter's files: tokens, dev split, loop, best epoch, PEFT format."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from adapterhub_cl.adapters.fused import fused
from adapterhub_cl.bases.loading import LoadedBase
from adapterhub_cl.bases.precision import NAMES
from adapterhub_cl.data.tokenise import Tokeniser
from adapterhub_cl.errors import UsageError, count
from adapterhub_cl.evaluation.scoring import dev_figures
from adapterhub_cl.objectives import BaseObjective
from adapterhub_cl.progress import Reporter
from adapterhub_cl.settings import TrainingSettings
from adapterhub_cl.strategies import BaseStrategy, Stage
from adapterhub_cl.training import memory, speed
from adapterhub_cl.training.layer_stack import recomputed
from adapterhub_cl.training.loop import Loop
from adapterhub_cl.training.loop_state import LoopOrder, LoopWatch
from adapterhub_cl.training.processes import everyones
from adapterhub_cl.training.training_rows import TrainingSet, held_out, rows_of, way_of


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
    on_epoch: Callable[[Mapping[str, float]], None] | None = None,
    watch: LoopWatch | None = None,
) -> Learned:
    """Train the LoRA on `model`; its best weights are in the model afterwards.

    Args:
        chosen: how to compute, where a resumed run has chosen already.
        on_epoch: called with the figures on the rows held out after each epoch; what it raises ends the training.
        watch: looks on while the loop trains.
        on_speed: called with the choice before the first step, to be kept for a resume.

    Raises:
        DataError: nothing is left to train on.
        UsageError: a resumed run would go on in another type.
    """
    rows = rows_of(model, base, objective, strategy, lesson, settings, reporter)
    asked = settings
    settings = settings.for_rows(len(rows.training), fresh=lesson.fresh, encoder=base.is_encoder)
    if chosen is None:
        chosen = everyones(way_of(model, base, objective, strategy, rows, settings, reporter), accelerator)
        on_speed(chosen)
    if chosen.dtype not in ("", NAMES[base.dtype]):
        raise UsageError(
            f"this run computed in {chosen.dtype} when it was stopped, and would now go on in {NAMES[base.dtype]}",
            f"cl-adapter --dtype {chosen.dtype} add-task … --resume",
        )

    with speed.use(model, chosen), fused(model, base.dtype, chosen.keep_bytes):
        rows = rows.referred(model, base, objective, chosen.rows or settings.batch, lesson.parent is None, reporter)
    training, dev_examples, dev_tokens = rows.training, rows.dev_examples, rows.dev_tokens

    def dev(current: Any) -> Mapping[str, float]:
        with reporter.piece("rows held out", len(dev_tokens)) as advance:
            figures = dev_figures(
                current,
                base.tokenizer,
                objective,
                lesson.task,
                dev_examples,
                dev_tokens,
                max_length=rows.length,
                dtype=base.dtype,
                progress=advance,
            )
        if on_epoch is not None:
            on_epoch(figures)
        return figures

    rate = settings.peak_rate(base.width, encoder=base.is_encoder, share=objective.rate_share)
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
            rows.past,
            rows.origins,
            lesson.parent,
            lesson.prompt_loss,
            alike=not lesson.review,
            run=run,
            padding=chosen.padding,
            rows=chosen.rows,
            kin=lesson.kin,
            watch=watch,
        )
        evaluate, log = dev if dev_tokens else None, _tracker(accelerator)
        loop = Loop(model, order, evaluate=evaluate, reporter=reporter, accelerator=accelerator, log=log)
        more = " because the rows are few (--epochs says how many)" if settings.passes > asked.passes else ""
        few = settings.batch < asked.batch
        small = f" in batches of {settings.batch} because the rows are few (--batch-size changes that)" if few else ""
        reporter.note(
            f"training on {len(training)} examples ({held_out(len(dev_tokens), settings)}), "
            f"{count(settings.passes, 'epoch')}{more}, {count(loop.total, 'step')}{small}, "
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
        "settings": settings.to_json(),
        "examples": len(training),
        "dev_examples": len(dev_tokens),
        "truncated": rows.cut,
        "max_length": rows.length,
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
        "tokens": outcome.tokens,
        "strategy_summary": strategy.summary(),
    }
    return Learned(facts, loop.stage, rows.encode)


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


def _tracker(accelerator: Accelerator) -> Callable[[Mapping[str, float], int], None] | None:
    if not accelerator.log_with:
        return None

    def log(values: Mapping[str, float], step: int) -> None:
        accelerator.log(dict(values), step=step)

    return log
