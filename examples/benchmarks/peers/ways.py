"""The ways of training one adapter that are compared: what the documentation of others shows, and ours.

Rank, alpha, layers, epochs, batch size, learning rate, schedule, seed and token ids are the same for all, and the
same code scores them. Seconds are those of the training: for ours from the text on, with its tokenising and its choice
of attention inside, for the others from the tokens on.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import psutil
import torch
from machine import peak_bytes
from peft import LoraConfig, get_peft_model
from task_files import files_of
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)
from utilisation import best_product, multiplied

from adapterhub_cl import TrainingSettings
from adapterhub_cl.adapters.as_served import spare_bytes
from adapterhub_cl.bases.kinds import is_encoder
from adapterhub_cl.bases.loading import inspect_base, load_base
from adapterhub_cl.bases.sources import resolve
from adapterhub_cl.data.batches import by_length, collate
from adapterhub_cl.data.columns import read_examples
from adapterhub_cl.data.tasks import check_answers, infer_task
from adapterhub_cl.errors import DataError
from adapterhub_cl.evaluation.metrics import accuracy
from adapterhub_cl.evaluation.scoring import evaluate
from adapterhub_cl.objectives import BaseObjective, causal_lm, sequence_classification
from adapterhub_cl.training import speed
from adapterhub_cl.types import BaseInfo, Example, Task

# What transformers' classifiers call their heads, and the layers before them.
HEADS = ["classifier", "pre_classifier", "score", "pooler", "head"]


@dataclass(frozen=True)
class Lesson:
    """What every way is given.

    Attributes:
        info: the base, its quantisation that of the way.
        settings: with the learning rate in it.
    """

    info: BaseInfo
    objective: BaseObjective
    task: Task
    train: Sequence[Example]
    test: Sequence[Example]
    settings: TrainingSettings

    @property
    def encoder(self) -> bool:
        return is_encoder(self.info.architecture)


@dataclass(frozen=True)
class Trained:
    """What a way leaves.

    Attributes:
        dtype: type of the products, to score in.
        seconds: of training, and of this process's CPU time in it: on a shared machine the steadier one.
        before: the process's memory before it trained, in bytes.
        extra: more that is told of the way.
    """

    model: Any
    tokenizer: Any
    dtype: torch.dtype
    seconds: tuple[float, float]
    before: int
    extra: dict[str, Any]


@dataclass(frozen=True)
class Way:
    """A row of the table.

    Attributes:
        told: the row's title.
        train: trains within the stack and leaves the adapter on the base until it is scored.
        quantization: of the base.
        others: whose package it needs besides this project's own.
    """

    told: str
    train: Callable[[Lesson, ExitStack], Trained]
    quantization: str = "none"
    others: str = ""


def lesson_of(asked: Any, quantization: str) -> Lesson:
    """The task, its rows and the settings, read anew in each process."""
    train, test = (read_examples(path) for path in files_of(asked.task))
    info = inspect_base(asked.base, quantization)
    encoder = is_encoder(info.architecture)
    settings = TrainingSettings(
        epochs=asked.epochs,
        batch_size=asked.batch_size,
        max_length=asked.max_length,
        dev_share=0.0,
        seed=asked.seed,
        learning_rate=asked.learning_rate,
    )
    width = load_config(info).hidden_size
    settings = replace(settings, learning_rate=settings.peak_rate(width, encoder=encoder))
    objective = sequence_classification.Objective() if encoder else causal_lm.Objective()
    examples, held = list(train)[: asked.train_rows or None], list(test)[: asked.test_rows]
    task = infer_task("task", train)
    if task.kind != "choice":
        raise DataError(f"{asked.task}: no label column was found in the training rows", "accuracy needs labels")
    check_answers(task, test)
    return Lesson(info, objective, task, examples, held, settings)


def load_config(info: BaseInfo) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(resolve(info.source)).get_text_config()


def measured(way: Way, lesson: Lesson) -> dict[str, Any]:
    """Train once and score on the test rows."""
    with ExitStack() as opened:
        trained = way.train(lesson, opened)
        peak = peak_bytes()
        score = score_of(trained, lesson)
    seconds, cpu_seconds = trained.seconds
    tokens = sum(map(len, tokens_of(lesson, trained.tokenizer, lesson.train))) * lesson.settings.epochs
    return {
        "examples_per_second": len(lesson.train) * lesson.settings.epochs / seconds,
        "tokens_per_second": tokens / seconds,
        # A frozen base: the forward pass and the gradient of the activations, two operations a weight each.
        "operations_per_second": 4 * multiplied(trained.model) * tokens / seconds,
        "best_operations_per_second": best_product(),
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "accuracy": score,
        "peak_mb": peak / 1e6,
        "training_mb": (peak - trained.before) / 1e6,
        "learning_rate": lesson.settings.learning_rate,
        "labels": len(lesson.task.labels),
        "train_rows": len(lesson.train),
        "test_rows": len(lesson.test),
        "threads": torch.get_num_threads(),
        **trained.extra,
    }


@torch.no_grad()
def score_of(trained: Trained, lesson: Lesson) -> float:
    """The share of test rows answered right, in the type that the model was trained in."""
    if not lesson.encoder:
        found = evaluate(
            trained.model,
            trained.tokenizer,
            lesson.objective,
            lesson.task,
            lesson.test,
            data="test",
            max_length=lesson.settings.max_length,
            dtype=trained.dtype,
        )
        return found[0].value
    # A stock classifier has no head that the library knows: its rows are the task's labels in their order, as ours are.
    trained.model.eval()
    tokens = tokens_of(lesson, trained.tokenizer, lesson.test)
    answers = [""] * len(tokens)
    with torch.autocast("cpu", trained.dtype, enabled=trained.dtype != torch.float32):
        for rows in by_length([len(t) for t in tokens], 32):
            batch = collate(tokens, rows, trained.tokenizer.pad_token_id)
            logits = trained.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
            for row, number in zip(rows, logits.argmax(-1).tolist(), strict=True):
                answers[row] = lesson.task.labels[number]
    return accuracy([str(example.answer) for example in lesson.test], answers)


def tokens_of(lesson: Lesson, tokenizer: Any, examples: Sequence[Example]) -> list[Any]:
    return lesson.objective.tokeniser(tokenizer, lesson.task, lesson.settings.max_length).many(examples)


def stock_base(lesson: Lesson) -> tuple[Any, Any]:
    """Base and tokenizer as the documentation of transformers loads them; a new head, and LoRA after it, are drawn from
    the seed."""
    torch.manual_seed(lesson.settings.seed)
    path = resolve(lesson.info.source)
    options: dict[str, Any] = {"dtype": torch.float32}
    if lesson.info.quantization != "none":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=lesson.info.quantization,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
            llm_int8_skip_modules=HEADS if lesson.encoder else None,  # a head to be trained must not be in 4 bits
        )
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    if not lesson.encoder:
        return AutoModelForCausalLM.from_pretrained(path, **options), tokenizer
    count = len(lesson.task.labels)
    return AutoModelForSequenceClassification.from_pretrained(path, num_labels=count, **options), tokenizer


def lora_config(lesson: Lesson) -> LoraConfig:
    """For a classifier PEFT trains the head besides, and leaves it out of the linear layers."""
    return LoraConfig(
        r=lesson.settings.rank,
        lora_alpha=lesson.settings.effective_alpha,
        target_modules="all-linear",
        task_type=lesson.objective.task_type,
    )


def arguments(settings: TrainingSettings, folder: str, *, bf16: bool) -> dict[str, Any]:
    """`TrainingArguments` that say what our settings say; nothing is evaluated, written or logged."""
    return {
        "output_dir": folder,
        "per_device_train_batch_size": settings.batch_size,
        "num_train_epochs": settings.epochs,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.schedule,
        "warmup_steps": settings.warmup,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.clip,
        "seed": settings.seed,
        "bf16": bf16,
        "use_cpu": True,
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def with_trainer(*, bf16: bool) -> Callable[[Lesson, ExitStack], Trained]:
    """What the documentation of PEFT and transformers shows.

    Args:
        bf16: mixed precision, by autocast over fp32 weights.
    """

    def train(lesson: Lesson, opened: ExitStack) -> Trained:
        base, tokenizer = stock_base(lesson)
        before = psutil.Process().memory_info().rss
        tokens = tokens_of(lesson, tokenizer, lesson.train)
        if lesson.encoder:
            rows = [{"input_ids": list(t.ids), "labels": t.answer[0]} for t in tokens]
        else:
            rows = [{"input_ids": list(t.ids), "labels": [-100] * len(t.prompt) + list(t.answer)} for t in tokens]
        folder = opened.enter_context(tempfile.TemporaryDirectory())
        trainer = Trainer(
            get_peft_model(base, lora_config(lesson)),
            TrainingArguments(**arguments(lesson.settings, folder, bf16=bf16)),
            train_dataset=rows,
            data_collator=(DataCollatorWithPadding if lesson.encoder else DataCollatorForSeq2Seq)(tokenizer),
        )
        return timed(trainer, tokenizer, bf16, before)

    return train


def with_trl(lesson: Lesson, opened: ExitStack) -> Trained:
    """TRL's SFTTrainer, mixed precision as is its default, the loss on the completion only, no packing.

    It is given the ids of prompt and completion, as its own tokenising of the two texts would be: then they are those
    that all ways train on and are scored with. Its default of recomputing activations in the backward pass is off.
    """
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    base, tokenizer = stock_base(lesson)
    before = psutil.Process().memory_info().rss
    tokens = tokens_of(lesson, tokenizer, lesson.train)
    rows = [{"input_ids": list(t.ids), "completion_mask": [0] * len(t.prompt) + [1] * len(t.answer)} for t in tokens]
    folder = opened.enter_context(tempfile.TemporaryDirectory())
    config = SFTConfig(
        **arguments(lesson.settings, folder, bf16=True),
        max_length=lesson.settings.max_length,
        completion_only_loss=True,
        gradient_checkpointing=False,
    )
    trainer = SFTTrainer(
        base,
        config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=lora_config(lesson),
    )
    return timed(trainer, tokenizer, True, before)


def timed(trainer: Trainer, tokenizer: Any, bf16: bool, before: int) -> Trained:
    started = now()
    trainer.train()
    return Trained(trainer.model, tokenizer, torch.bfloat16 if bf16 else torch.float32, since(started), before, {})


def now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def since(started: tuple[float, float], less: tuple[float, float] = (0.0, 0.0)) -> tuple[float, float]:
    """Seconds and CPU seconds from then to now, less those that do not count."""
    wall, cpu = (end - start - out for end, start, out in zip(now(), started, less, strict=True))
    return wall, cpu


def with_ours(
    *,
    dtype: str = "auto",
    chosen: speed.Speed | None = None,
    settled: bool = False,
    changed: Callable[[], Any] = nullcontext,
) -> Callable[[Lesson, ExitStack], Trained]:
    """The library's own path, from text to the best weights.

    Args:
        chosen: how to compute; None: its own choice.
        settled: the choice is made before the time begins, as on a machine that has trained with this base before.
        changed: a context in which something of the library is another, for as long as it trains. What it gives, if
            anything, is a list that it puts seconds and CPU seconds into which are not the training's: of compiling.
    """

    def train(lesson: Lesson, opened: ExitStack) -> Trained:
        from accelerate import Accelerator

        from adapterhub_cl.adapters.lora import new_adapter
        from adapterhub_cl.progress import Reporter
        from adapterhub_cl.strategies.isolated import Strategy
        from adapterhub_cl.training import learn, training_rows

        # The choice of attention is kept in the user's cache; here every process makes its own.
        os.environ["XDG_CACHE_HOME"] = opened.enter_context(tempfile.TemporaryDirectory())
        base = load_base(lesson.info, device="cpu", dtype=dtype)
        before = psutil.Process().memory_info().rss
        tasks = [lesson.task] if lesson.encoder else []
        model = opened.enter_context(new_adapter(base, lesson.settings, lesson.objective.task_type, tasks=tasks))
        with changed() as compiling:
            if settled and chosen is None:
                tokens = tokens_of(lesson, base.tokenizer, lesson.train)
                speed.choose(model, base, lesson.objective, tokens, lesson.settings.batch_size)
            started = now()
            learned = learn.learn(
                model,
                base,
                lesson.objective,
                Strategy(),
                training_rows.TrainingSet(lesson.task, lesson.train),
                lesson.settings,
                run=None,
                chosen=chosen and replace(chosen, keep_bytes=spare_bytes(base)),
                on_speed=lambda choice: None,
                accelerator=Accelerator(cpu=True),
                reporter=Reporter(),
            )
            seconds = since(started, *(compiling or ()))
        extra = {name: learned.facts["speed"][name] for name in ("attention", "padding")}
        if compiling:
            extra["compile_seconds"] = compiling[0][0]
        return Trained(model, base.tokenizer, base.dtype, seconds, before, extra)

    return train


WAYS = {
    "trainer-fp32": Way("PEFT + Trainer, fp32", with_trainer(bf16=False)),
    "trainer-bf16": Way("PEFT + Trainer, bf16=True", with_trainer(bf16=True)),
    "trainer-nf4": Way("PEFT + Trainer, NF4 base, bf16=True", with_trainer(bf16=True), "nf4"),
    "trl": Way("TRL's SFTTrainer, bf16=True", with_trl, others="trl"),
    "ours-16bit": Way("AdapterHub-CL, 16-bit base", with_ours()),
    "ours-nf4": Way("AdapterHub-CL, NF4 base", with_ours(), "nf4"),
}
