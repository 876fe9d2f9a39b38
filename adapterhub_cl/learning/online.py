"""Online updates: examples are learned as they come, in small steps with replay, and published every so often.

Everything that comes in is written down first (see `feed`), and each version says how far it reaches. So a run that was
killed continues from its last version, and learns the later rows again in the same batches.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, TextIO

from accelerate import Accelerator

from adapterhub_cl import objectives
from adapterhub_cl.adapters.as_served import spare_bytes
from adapterhub_cl.adapters.fused import fused
from adapterhub_cl.adapters.lora import new_adapter
from adapterhub_cl.context import Hub
from adapterhub_cl.data.columns import Examples
from adapterhub_cl.data.tasks import find_outdated, updated_task
from adapterhub_cl.data.tokenise import Tokens
from adapterhub_cl.errors import DataError, UsageError
from adapterhub_cl.learning.feed import Feed
from adapterhub_cl.learning.judging import Judge, conclude
from adapterhub_cl.learning.material import (
    Material,
    with_data,
    with_limits,
    without_outdated,
)
from adapterhub_cl.learning.notes import outdated_note, tell_leaked, tell_parent
from adapterhub_cl.learning.order import TrainOrder, order_of
from adapterhub_cl.learning.recording import training_facts
from adapterhub_cl.learning.request import TrainRequest
from adapterhub_cl.registry import Registry
from adapterhub_cl.samples.store import Samples
from adapterhub_cl.strategies import Origin, build
from adapterhub_cl.training.learn import Learned
from adapterhub_cl.training.loop import Loop
from adapterhub_cl.training.loop_state import LoopOrder, Outcome
from adapterhub_cl.training.runs import Run, acquire, held
from adapterhub_cl.training.stopping import StopSignal
from adapterhub_cl.training.training_rows import as_learned
from adapterhub_cl.types import AdapterRecord, Example

VERB = "update-online"
GENTLER = 1 / 3  # of an update's learning rate: each batch is seen a few times only, and nothing is shuffled


def begin(hub: Hub, request: TrainRequest, every: int, resume: bool) -> tuple[Run, TrainOrder]:
    """The run of an online update, new or taken up again.

    Raises:
        UsageError: a bad number, or nothing to resume.
    """
    if not isinstance(every, int) or every < 1:
        raise UsageError(f"--every must be at least 1, not {every}", "--every 100")
    if resume:
        run = Run.newest(hub.registry.runs_dir, VERB, request.name)
        stored = TrainRequest.from_json({**run.request, "verb": "update"})
        limit = stored.max_forgetting if request.max_forgetting is None else request.max_forgetting
        return run, order_of(hub.registry, replace(stored, max_forgetting=limit))
    order = order_of(hub.registry, request)
    if waiting := Run.unfinished(hub.registry.runs_dir, VERB, request.name):
        hub.reporter.note(
            f"note: rows of an unfinished online update of {request.name} wait in {waiting[0].path}; "
            f"cl-adapter update {request.name} - --online --resume learns them. Starting a new run."
        )
    row = {**request.to_json(), "verb": VERB, "every": every, "created_at": datetime.now(UTC).isoformat()}
    return Run.start(hub.registry.runs_dir, row), order


def learn_online(
    hub: Hub,
    order: TrainOrder,
    run: Run,
    lines: TextIO,
) -> list[AdapterRecord]:
    """Learn rows as they come, until the input ends or Ctrl-C; see `AdapterHub.update_online`."""
    every, request = int(run.request["every"]), order.request
    made: list[AdapterRecord] = []
    name = request.name
    taken = f"another process is teaching {name} online"
    alone = acquire(hub.registry.runs_dir / f".online-{name}.lock", taken, "wait for it, or send it the rows")
    with held(alone), held(run.lock()):
        run.claim()
        for line in hub.registry.repair(hashes=False):
            hub.reporter.note(f"note: {line}")
        at, rows = _published(hub.registry, request.name, run.id)
        with StopSignal() as stop:
            feed = Feed(run.path, at, lines, request, hub.registry, hub.reporter, lambda: stop.asked)
            if feed.waiting:
                hub.reporter.note(
                    f"continuing after {rows} published rows: {len(feed.waiting)} more lines were received"
                )
            ended = False
            while not ended:
                segment = Segment(hub, order, run, every, rows)
                record, count, ended = segment.learn(feed)
                rows += count
                if record is not None:
                    made.append(record)
        left = feed.left
    if left:
        hub.reporter.note(
            f"{left} lines that came in are not learned yet: cl-adapter update {request.name} - --online --resume"
        )
    else:
        run.remove()
    if not made and not left:
        raise DataError("no row came in that could be learned from", "send one JSON object a line to standard input")
    return made


def _published(registry: Registry, name: str, run: str) -> tuple[int, int]:
    """How many lines and rows of a run its accepted versions hold already."""
    held = [record.manifest.get("online") or {} for record in registry.versions(name) if record.status == "active"]
    mine = [(int(online["lines"]), int(online["rows"])) for online in held if online.get("run") == run]
    return max(mine, default=(0, 0))


class Segment:
    """From one version to the next."""

    def __init__(
        self,
        hub: Hub,
        order: TrainOrder,
        run: Run,
        every: int,
        before: int,
    ) -> None:
        # a strategy keeps what it learned of a run; each version has a run of its own
        self.order = replace(order, strategy=build(order.request.strategy, order.request.options))
        self.hub, self.request, self.run, self.strategy = hub, order.request, run, self.order.strategy
        self.registry, self.base, self.reporter = hub.registry, hub.base, hub.reporter
        self.every, self.before = every, before
        self.settings = replace(order.settings, schedule="constant", warmup=0.0, dev_share=0.0)
        self.objective = objectives.of(self.registry.base)

    def learn(self, feed: Feed) -> tuple[AdapterRecord | None, int, bool]:
        """Learn until the version is full or the input ends.

        Returns:
            the version that was published (None where nothing came), its number of rows, whether the input ended.

        Raises:
            GateRefused: the version forgot too much; the rows stay in the run's folder.
        """
        size = self.settings.batch
        first: list[Example] = []
        ended = False
        while not first and not ended:
            first, ended = feed.batch(size)
        if not first:
            return None, 0, True
        settings, base = self.settings, self.base
        length = min(settings.max_length, base.context)
        parent = self.registry.get(self.request.name)
        tell_parent(self.registry, parent, self.reporter)
        material = with_data(self.registry, self.order, self._data(first), parent)
        tell_leaked(material, self.reporter)
        material = with_limits(material, base, settings)
        rate = settings.peak_rate(base.width, encoder=base.is_encoder)
        rate = rate if settings.learning_rate is not None else float(f"{rate * GENTLER:.2g}")
        old = self.registry.task(parent.task)
        rows: list[Example] = []
        past = [(material.task, Origin(material.task.name, parent.path, e)) for e in material.review if e.answer]
        past += material.origins
        with (
            new_adapter(base, settings, self.objective.task_type, parent.path) as model,
            fused(model, base.dtype, spare_bytes(base)) as layers,
        ):
            order = LoopOrder(
                self.objective,
                self.strategy,
                settings,
                [Tokens((base.tokenizer.pad_token_id,), ())] * (self.every + settings.batch),
                rate,
                base.tokenizer.pad_token_id,
                base.dtype,
                as_learned(
                    [self.objective.tokeniser(base.tokenizer, task, length)(origin.example) for task, origin in past],
                    settings,
                ),
                [origin for _, origin in past],
                parent.path,
            )
            loop = Loop(model, order, reporter=self.reporter, accelerator=Accelerator(cpu=base.device.type == "cpu"))
            loop.start()
            batch = first
            while True:
                if batch:
                    self._step(loop, batch, len(rows), material, length)
                    rows += batch
                if ended or len(rows) >= self.every:
                    break
                batch, ended = feed.batch(size)
            outcome = loop.finish()
        data = self._data(rows)
        task = material.task if material.raw else updated_task(old, data)
        material = without_outdated(replace(material, data=data, task=task))
        material = with_limits(material, base, settings)
        if told := outdated_note(material):
            self.reporter.note(told)
        now = self.registry.get(self.request.name)
        if now.ref != parent.ref:
            self.reporter.note(f"warning: {now.ref} was made in the meantime; what follows continues from {parent.ref}")
        record = self._publish(material, parent, outcome, loop, length, rate, layers, feed.at)
        return record, len(rows), ended

    def _step(self, loop: Loop, batch: Sequence[Example], at: int, material: Material, length: int) -> None:
        """As many steps on a batch as the settings say epochs."""
        task = material.task.as_text() if material.raw else material.task
        own = [k for k, origin in enumerate(loop.origins) if origin.task == material.task.name]
        samples = [loop.origins[k].example for k in own]
        loop.leave_out([loop.fresh + own[k] for k in find_outdated(samples, batch, task.instruction)])
        encode = self.objective.tokeniser(self.base.tokenizer, task, length)
        tokens = as_learned(encode.many(batch), loop.settings)
        indices = list(range(at, at + len(batch)))
        for index, one in zip(indices, tokens, strict=True):
            loop.examples[index], loop.lengths[index] = one, len(one)
        usable = [i for i in indices if loop.examples[i].answer]
        for _ in range(self.settings.passes if usable else 0):
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
        lines: int,
    ) -> AdapterRecord:
        rows = material.data.examples
        judge = Judge(self.hub, self.order, material, length)
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
            encode = self.objective.tokeniser(self.base.tokenizer, material.task, length)
            loop.model, loop.parameters = model, {name: named[name] for name in outcome.weights}
            learned = Learned(dict(facts), loop.stage, encode)
            training = training_facts(self.base.info, self.order, self.run, material, facts, model)
            online = {"run": self.run.id, "rows": self.before + len(rows), "lines": lines}
            record, refused = conclude(judge, model, learned, training, {"online": online})
        Samples(self.registry).rebalance()
        if refused is not None:
            refused.hint += (
                f"; or learn the rows again (they are kept): cl-adapter update {self.request.name} - --online --resume "
                "--max-forgetting 1"
            )
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
