"""Online updates: examples are learned as they come, in small steps with replay, and published every so often.

Every batch is written to `<run>/received.jsonl`, synced, before it is learned; each version says how many rows it
holds. So a run that was killed goes on from its last version, learns the rows behind it again, in the same batches,
and loses at most the batch that was in hand.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from accelerate import Accelerator

from adapterhub_cl import objectives, replay
from adapterhub_cl.bases.loading import LoadedBase
from adapterhub_cl.data.columns import Examples, examples
from adapterhub_cl.data.reading import Rows
from adapterhub_cl.data.tasks import check_answers, updated_task
from adapterhub_cl.data.tokenise import Tokeniser, Tokens
from adapterhub_cl.errors import AdapterHubError, DataError, UsageError
from adapterhub_cl.registry import Registry, storage_errors
from adapterhub_cl.replay._store import Samples
from adapterhub_cl.strategies import Origin
from adapterhub_cl.strategies._combined import build
from adapterhub_cl.training import speed
from adapterhub_cl.training.fused import fused
from adapterhub_cl.training.judging import Judge, conclude
from adapterhub_cl.training.learn import Learned
from adapterhub_cl.training.loop import Loop, Outcome
from adapterhub_cl.training.lora import new_adapter
from adapterhub_cl.training.material import Material, with_data
from adapterhub_cl.training.probes import OBJECTIVE
from adapterhub_cl.training.progress import Reporter
from adapterhub_cl.training.recording import training_facts
from adapterhub_cl.training.request import Request
from adapterhub_cl.training.runs import Run
from adapterhub_cl.training.stopping import StopSignal
from adapterhub_cl.types import AdapterRecord, Example, Task

VERB = "update-online"
RECEIVED = "received.jsonl"
PAUSE = 2.0  # seconds without a row after which a batch that is not full is learned
GENTLER = 1 / 3  # of an update's learning rate: each batch is seen a few times only, and nothing is shuffled


def begin(registry: Registry, request: Request, every: int, resume: bool) -> tuple[Run, Request]:
    """The run of an online update, new or taken up again.

    Raises:
        UsageError: a bad number, or nothing to resume.
    """
    if every < 1:
        raise UsageError(f"--every must be at least 1, not {every}", "--every 100")
    if resume:
        run = Run.newest(registry.runs_dir, VERB, request.name)
        return run, Request.from_json({**run.request, "verb": "update"})
    row = {**request.to_json(), "verb": VERB, "every": every, "created_at": datetime.now(UTC).isoformat()}
    return Run.start(registry.runs_dir, row), request


def learn_online(
    registry: Registry, load: Callable[[], LoadedBase], request: Request, run: Run, lines: TextIO, reporter: Reporter
) -> list[AdapterRecord]:
    """Learn rows as they come, until the input ends or Ctrl-C; see `AdapterHub.update_online`."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("--online runs in one process", "start it without accelerate launch")
    every = int(run.request["every"])
    lock = run.lock()
    made: list[AdapterRecord] = []
    try:
        run.claim()
        journal = Journal(run.path / RECEIVED)
        for line in registry.repair():
            reporter.note(f"note: {line}")
        learned = _published(registry, request.name, run.id)
        waiting = journal.after(learned)
        if waiting:
            reporter.note(f"going on after {learned} published rows: {sum(map(len, waiting))} more were received")
        with StopSignal() as stop:
            source = Source(lines, request, registry, reporter, lambda: stop.asked)
            batches = _batches(waiting, source, journal, request.training().batch_size)
            ended = False
            while not ended:
                segment = Segment(registry, load(), request, run, every, learned, reporter)
                record, count, ended = segment.learn(batches, lambda: stop.asked)
                learned += count
                if record is not None:
                    made.append(record)
    finally:
        lock.release()
    run.remove()
    if not made:
        raise DataError("no row came in that could be learned from", "send one JSON object a line to standard input")
    return made


class Journal:
    """The batches that came in, in order; a batch that a crash cut short is left out.

    Args:
        path: one JSON list of rows a line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, batch: Sequence[Example]) -> None:
        """Write a batch down before it is learned.

        Raises:
            StorageError: the disk refused.
        """
        text = json.dumps([example.to_json() for example in batch], ensure_ascii=False) + "\n"
        with storage_errors(self.path), open(self.path, "a", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())

    def after(self, count: int) -> list[list[Example]]:
        """The batches behind the first `count` rows; a torn last line is cut off."""
        if not self.path.exists():
            return []
        whole: list[list[Example]] = []
        good = 0
        data = self.path.read_bytes()
        for line in data.splitlines(keepends=True):
            try:
                rows = json.loads(line)
                batch = [Example(r["input"], r.get("output"), r.get("instruction", "")) for r in rows]
            except (ValueError, KeyError, TypeError):
                break
            if not line.endswith(b"\n"):
                break
            good += len(line)
            whole.append(batch)
        if good < len(data):
            os.truncate(self.path, good)
        found, seen = [], 0
        for batch in whole:
            if seen >= count:
                found.append(batch)
            seen += len(batch)
        return found


class Source:
    """Examples from lines that come in; a line that cannot be used is told and passed over."""

    def __init__(
        self, lines: TextIO, request: Request, registry: Registry, reporter: Reporter, stopped: Callable[[], bool]
    ) -> None:
        self.request, self.registry, self.reporter, self.stopped = request, registry, reporter, stopped
        self.lines: queue.Queue[str | None] = queue.Queue(maxsize=10_000)
        self.number = 0
        self.raw: bool | None = None  # whether rows are raw text; the first one decides
        threading.Thread(target=self._pump, args=(lines,), daemon=True).start()

    def _pump(self, lines: TextIO) -> None:
        try:
            for line in lines:
                self.lines.put(line)
        except (OSError, ValueError) as error:
            self.reporter.note(f"warning: reading stopped: {error}")
        self.lines.put(None)

    def batch(self, size: int) -> tuple[list[Example], bool]:
        """Up to `size` examples, fewer after a pause; and whether that was all."""
        found: list[Example] = []
        while len(found) < size:
            try:
                line = self.lines.get(timeout=0.2 if not found else PAUSE)
            except queue.Empty:
                if self.stopped():
                    return found, True
                if found:
                    return found, False
                continue
            if line is None:
                return found, True
            example = self._example(line)
            if example is not None:
                found.append(example)
            if self.stopped():
                return found, True
        return found, False

    def _example(self, line: str) -> Example | None:
        self.number += 1
        if not line.strip():
            return None
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise DataError("not a JSON object")
            rows = Rows([row], "standard input", "", [self.number])
            found = examples(rows, dict(self.request.columns) or None, self.request.instruction or "")
            task = self.registry.task(self.registry.get(self.request.name).task)
            raw = found.layout == "raw text"
            if self.raw is None:
                self.raw = raw
            if raw != self.raw:
                raise DataError("raw text among examples with answers" if raw else "an answer among raw texts")
            if not raw:
                check_answers(updated_task(task, found), found)
            return found.examples[0]
        except (AdapterHubError, ValueError, RecursionError) as error:
            told = error.message if isinstance(error, AdapterHubError) else f"not JSON ({error})"
            self.reporter.note(f"warning: line {self.number} is passed over: {told}")
            return None


def _batches(
    waiting: Sequence[list[Example]], source: Source, journal: Journal, size: int
) -> Iterator[tuple[list[Example], bool]]:
    """Batches that were received before, then those that come in; each with whether it is the last."""
    for batch in waiting:
        yield batch, False
    while True:
        batch, ended = source.batch(size)
        if batch:
            journal.add(batch)
        yield batch, ended
        if ended:
            return


def _published(registry: Registry, name: str, run: str) -> int:
    """How many rows of a run its versions hold already."""
    counts = [
        int(online["rows"])
        for record in registry.versions(name)
        if (online := record.manifest.get("online") or {}).get("run") == run
    ]
    return max(counts, default=0)


class Segment:
    """From one version to the next."""

    def __init__(
        self,
        registry: Registry,
        base: LoadedBase,
        request: Request,
        run: Run,
        every: int,
        before: int,
        reporter: Reporter,
    ) -> None:
        self.registry, self.base, self.request, self.run = registry, base, request, run
        self.every, self.before, self.reporter = every, before, reporter
        self.settings = replace(request.training(), schedule="constant", warmup=0.0, dev_share=0.0)
        self.strategy = build(request.strategy, request.options)
        self.objective: objectives.BaseObjective = objectives.ROOM.get(OBJECTIVE)()

    def learn(
        self, batches: Iterator[tuple[list[Example], bool]], stopped: Callable[[], bool]
    ) -> tuple[AdapterRecord | None, int, bool]:
        """Learn until the version is full or the input ends.

        Returns:
            the version that was published (None where nothing came), its number of rows, whether the input ended.

        Raises:
            GateRefused: the version forgot too much; the rows stay in the run's folder.
        """
        first: list[Example] = []
        ended = False
        while not first and not ended:
            first, ended = next(batches)
        if not first:
            return None, 0, True
        settings, base = self.settings, self.base
        length = min(settings.max_length, base.context)
        parent = self.registry.get(self.request.name)
        self.registry.check_files(parent)
        material = with_data(self.registry, self.request, self.strategy, self._data(first), parent)
        rate = settings.peak_rate(base.model.config.get_text_config().hidden_size)
        rate = rate if settings.learning_rate is not None else float(f"{rate * GENTLER:.2g}")
        old = self.registry.task(parent.task)
        rows: list[Example] = []
        past = [(material.task, Origin(material.task.name, parent.path, e)) for e in material.review if e.answer]
        for lesson in material.past:
            past += [(lesson.task, Origin(lesson.task.name, lesson.record.path, e)) for e in lesson.examples]
        with (
            new_adapter(base, settings, self.objective.task_type, parent.path) as model,
            fused(model, base.dtype, speed.spare_bytes(base)) as layers,
        ):
            loop = Loop(
                model,
                self.objective,
                self.strategy,
                [Tokens((base.tokenizer.eos_token_id,), ())] * (self.every + settings.batch_size),
                settings,
                rate=rate,
                pad_id=base.tokenizer.pad_token_id,
                dtype=base.dtype,
                reporter=self.reporter,
                accelerator=Accelerator(cpu=base.device.type == "cpu"),
                past=[Tokeniser(base.tokenizer, task, length)(origin.example) for task, origin in past],
                origins=[origin for _, origin in past],
                parent=parent.path,
            )
            loop.start()
            batch = first
            while True:
                if batch:
                    self._step(loop, batch, len(rows), material, length)
                    rows += batch
                if ended or len(rows) >= self.every or stopped():
                    break
                batch, ended = next(batches)
            outcome = loop.finish()
        data = self._data(rows)
        material = replace(material, data=data, task=material.task if material.raw else updated_task(old, data))
        record = self._publish(material, parent, outcome, loop, length, rate, layers)
        return record, len(rows), ended or stopped()

    def _step(self, loop: Loop, batch: Sequence[Example], at: int, material: Material, length: int) -> None:
        """As many steps on a batch as the settings say epochs."""
        task = Task(material.task.name, kind="text") if material.raw else material.task
        tokens = Tokeniser(self.base.tokenizer, task, length).many(batch)
        indices = list(range(at, at + len(batch)))
        for index, one in zip(indices, tokens, strict=True):
            loop.examples[index], loop.lengths[index] = one, len(one)
        usable = [i for i in indices if loop.examples[i].answer]
        for _ in range(self.settings.epochs if usable else 0):
            loss = loop.one_step(usable)
        if usable:
            self.reporter.note(f"{self.before + at + len(batch)} rows  loss {loss:.4f}")

    def _publish(
        self,
        material: Material,
        parent: AdapterRecord,
        outcome: Outcome,
        loop: Loop,
        length: int,
        rate: float,
        layers: int,
    ) -> AdapterRecord:
        rows = material.data.examples
        keep = replay.parse(self.request.replay)
        judge = Judge(self.registry, self.base, self.objective, self.request, material, length, self.reporter)
        facts: Mapping[str, Any] = {
            "examples": len(rows),
            "max_length": length,
            "learning_rate": rate,
            "seconds": round(loop.at.seconds, 2),
            "steps": loop.at.steps,
            "best_epoch": 1,
            "fused_layers": layers,
            "strategy_summary": self.strategy.summary(),
        }
        with new_adapter(self.base, self.settings, self.objective.task_type, parent.path) as model:
            named = dict(model.named_parameters())
            for name, value in outcome.weights.items():
                named[name].data.copy_(value)
            encode = Tokeniser(self.base.tokenizer, material.task, length)
            loop.model, loop.parameters = model, {name: named[name] for name in outcome.weights}
            learned = Learned(outcome, dict(facts), loop.stage, encode)
            training = training_facts(self.request, self.run, material, dict(facts))
            online = {"run": self.run.id, "rows": self.before + len(rows)}
            record, refused = conclude(judge, model, keep, self.strategy, learned, training, {"online": online})
        Samples(self.registry).rebalance()
        if refused is not None:
            refused.hint += f"; the rows that came in are in {self.run.path / RECEIVED}"
            raise refused
        self.reporter.note(f"published {record.ref}: {len(rows)} rows")
        return record

    def _data(self, rows: Sequence[Example]) -> Examples:
        raw = all(not example.input and not example.instruction for example in rows)
        text = "\n".join(json.dumps(example.to_json()) for example in rows)
        return Examples(
            list(rows),
            "raw text" if raw else "online",
            "standard input",
            hashlib.sha256(text.encode()).hexdigest(),
            0,
            [f"standard input row {self.before + k + 1}" for k in range(len(rows))],
        )


def standard_input() -> TextIO:
    """Lines of standard input.

    Raises:
        DataError: it is closed.
    """
    if sys.stdin is None:
        raise DataError(
            "standard input is closed", "send JSON lines: tail -f feed.jsonl | cl-adapter update NAME - --online"
        )
    return sys.stdin
