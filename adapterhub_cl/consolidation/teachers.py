"""What teachers are asked, and what they answer: replay samples, unlabelled text, samples that they write
themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from adapterhub_cl import objectives
from adapterhub_cl.adapters.as_served import as_served
from adapterhub_cl.answering.classifying import NONE
from adapterhub_cl.bases.loading import LoadedBase
from adapterhub_cl.consolidation.parents import Parents
from adapterhub_cl.data.batches import by_length, collate
from adapterhub_cl.data.columns import read_inputs
from adapterhub_cl.data.tokenise import Tokens
from adapterhub_cl.distillation.distill_settings import DistillationSettings
from adapterhub_cl.distillation.features import watched
from adapterhub_cl.distillation.lessons import TeachersAnswers, key_of
from adapterhub_cl.distillation.logits import soften
from adapterhub_cl.errors import AdapterError, UsageError
from adapterhub_cl.evaluation.evidence import ModelEvidence
from adapterhub_cl.progress import Reporter
from adapterhub_cl.registry import Registry
from adapterhub_cl.samples.of_task import samples_of
from adapterhub_cl.types import AdapterRecord, Example, Task

ROWS = 32


@dataclass(frozen=True)
class AskedOfTeacher:
    """What one teacher is asked of one task.

    Attributes:
        examples: with the answers that the student learns beside the teacher's distributions.
        kinds: where they come from (`samples`, `text`, `written`) → how many, each counted once.
    """

    teacher: AdapterRecord
    task: Task
    examples: Sequence[Example]
    kinds: Mapping[str, int] = field(default_factory=dict)

    def told(self, rows: int) -> str:
        """`135 (120 samples, 15 written)`."""
        parts = [f"{count} {kind}" for kind, count in self.kinds.items() if count]
        return f"{rows} ({', '.join(parts)})" if len(parts) > 1 else str(rows)


@dataclass(frozen=True)
class Sources:
    """Where the questions come from.

    Attributes:
        samples: the parents' replay samples.
        files: unlabelled text, `FILE` for every task or `TASK=FILE`.
        written: samples that each teacher writes for each of its tasks.
    """

    samples: bool = True
    files: Sequence[str] = ()
    written: int = 0

    def read(self, tasks: Sequence[str]) -> dict[str, list[Example]]:
        """Task → inputs from the files.

        Raises:
            UsageError: a file for a task that no teacher has.
            DataError: one cannot be read.
        """
        found: dict[str, list[Example]] = {task: [] for task in tasks}
        for text in self.files:
            name, sign, path = text.partition("=")
            if not sign or (name not in found and Path(text).exists()):
                name, path = "", text
            if name and name not in found:
                raise UsageError(f"--data {text}: no teacher answers for {name!r}", f"its tasks: {', '.join(tasks)}")
            rows = [row.question() for row in read_inputs(path)]
            for task in [name] if name else tasks:
                found[task] += rows
        return found


def gather(
    registry: Registry, base: LoadedBase, parents: Parents, sources: Sources, length: int, seed: int, reporter: Reporter
) -> list[AskedOfTeacher]:
    """Every row that the teachers are asked, with an answer: the known one, or what the teacher says.

    Raises:
        AdapterError: there is nothing to ask of a task.
    """
    tasks = parents.tasks()
    unlabelled = sources.read(list(tasks))
    found = []
    for name, teacher in tasks.items():
        kept = samples_of(registry, name, teacher)
        task = registry.task(name)
        rows = dict.fromkeys(kept.examples) if kept is not None and sources.samples else {}
        kinds = {"samples": len(rows)}
        new = [row for row in unlabelled[name] if row.input or row.instruction]
        if new or sources.written:
            registry.check_files(teacher)
            with as_served(base, teacher.path) as model:
                style = list(kept.examples) if kept is not None else new
                evidence = ModelEvidence(model, base, objectives.of(base.info), task, style, length, reporter=reporter)
                if sources.written:
                    rows |= dict.fromkeys(example for example, _ in evidence.write(sources.written, seed))
                    kinds["written"] = len(rows) - sum(kinds.values())
                if new:
                    rows |= dict.fromkeys(_answered(model, base, task, new, length, reporter))
                    kinds["of text"] = len(rows) - sum(kinds.values())
        if not rows:
            raise AdapterError(
                f"nothing to ask {teacher.ref} of {name}: "
                + ("it keeps no replay samples" if sources.samples else "no text, and its samples were left out"),
                f"give text with --data {name}=FILE, or let it write some: --pseudo 200",
            )
        found.append(AskedOfTeacher(teacher, task, list(rows), kinds))
    return found


def _answered(
    model: Any, base: LoadedBase, task: Task, rows: Sequence[Example], length: int, reporter: Reporter
) -> list[Example]:
    """Unlabelled rows with the teacher's own answers; raw text is its own answer. An answer that did not come to its
    end is left out: a student would learn to stop there."""
    if task.kind == "text":
        return [Example("", row.input) for row in rows]
    with reporter.piece(f"answers of {task.name}'s teacher", len(rows)) as advance, base.autocast():
        said = objectives.of(base.info).predict(
            model,
            base.tokenizer,
            task,
            rows,
            max_length=length,
            # where nothing says how long its answers are, a few words may not be enough
            max_new_tokens=None if task.answer_tokens or task.kind == "choice" else length // 2,
            progress=advance,
        )
    if cut := sum(not one.finished for one in said):
        reporter.note(f"note: {cut} answers of {task.name}'s teacher did not end by themselves, and are left out")
    return [replace(row, answer=one.text) for row, one in zip(rows, said, strict=True) if one.text and one.finished]


def tokens_of(asked: Sequence[AskedOfTeacher], base: LoadedBase, length: int) -> list[list[Tokens]]:
    """The rows of each as the training loop will see them."""
    objective = objectives.of(base.info)
    encoders = [objective.tokeniser(base.tokenizer, one.task, length) for one in asked]
    return [
        [replace(tokens, earlier=()) for example in one.examples for tokens in encode.windows(example) if tokens.answer]
        for one, encode in zip(asked, encoders, strict=True)
    ]


def ask(
    base: LoadedBase,
    asked: Sequence[AskedOfTeacher],
    tokens: Sequence[Sequence[Tokens]],
    settings: DistillationSettings,
    cache: Path,
    reporter: Reporter,
) -> TeachersAnswers:
    """What each row's own teacher says to it; read from the cache where it was asked before.

    Args:
        cache: the file that it is kept in.
    """
    everything = [row for rows in tokens for row in rows]
    stored = TeachersAnswers.load(cache, everything)
    if stored is not None:
        return stored
    answers = TeachersAnswers()
    by_teacher: dict[str, list[Tokens]] = {}
    records = {one.teacher.ref: one.teacher for one in asked}
    for one, rows in zip(asked, tokens, strict=True):
        by_teacher.setdefault(one.teacher.ref, []).extend(rows)
    most = max(len(one.task.labels) for one in asked)
    with reporter.piece("asking the teachers", len(everything)):
        for ref, rows in by_teacher.items():
            with as_served(base, records[ref].path) as model:
                _listen(model, base, rows, settings, answers, reporter, most)
    answers.close()
    answers.save(cache)
    return answers


@torch.no_grad()
def _listen(
    model: Any,
    base: LoadedBase,
    rows: Sequence[Tokens],
    settings: DistillationSettings,
    answers: TeachersAnswers,
    reporter: Reporter,
    most: int,
) -> None:
    """Take down what a teacher says to its rows.

    Args:
        most: labels of the largest task; on an encoder all teachers' answers are made as wide.
    """
    objective = objectives.of(base.info)
    model.eval()
    with watched(model, settings.layers()) as seen:
        for part in by_length([len(row) for row in rows], ROWS):
            batch = collate(rows, part, base.tokenizer.pad_token_id).to(model.device)
            with base.autocast():
                logits = objective.logits(model, batch)
            if batch.tasks and logits.shape[1] < most:
                logits = functional.pad(logits, (0, most - logits.shape[1]), value=NONE)
            places = batch.places
            features: Mapping[int, torch.Tensor] = {layer: value[places] for layer, value in seen.items()}
            answers.add([key_of(rows[i]) for i in part], soften(logits, settings.temperature, settings.top), features)
            reporter.advance(len(part))
