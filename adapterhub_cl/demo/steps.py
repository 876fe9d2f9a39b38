"""What the demo does, step by step; each step gives its figures and prints nothing."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapterhub_cl.data.columns import read_examples
from adapterhub_cl.errors import GateRefused
from adapterhub_cl.evaluation.metrics import score
from adapterhub_cl.evaluation.stages import learned, matrix_of
from adapterhub_cl.hub import AdapterHub
from adapterhub_cl.progress import Reporter
from adapterhub_cl.registry import Registry
from adapterhub_cl.types import AdapterRecord, Example, Prediction

RANK = 16
SHARED: dict[str, Any] = {"rank": RANK, "epochs": 5}
# Facts are learned by heart: more passes, and a higher rate, which their student needs too.
HIGH_RATE = 5e-3
TASKS: dict[str, dict[str, Any]] = {
    "tickets": SHARED,
    "reviews": SHARED,
    "commands": SHARED,
    "facts": {"rank": RANK, "epochs": 20, "learning_rate": HIGH_RATE},
}
STRANGE = "int main(void) { return 0; }"


def data(task: str, split: str) -> str:
    """A data source of the demo's."""
    return f"demo:{task}.{split}"


def held_out(task: str) -> list[Example]:
    """A task's unseen texts with their answers."""
    return list(read_examples(data(task, "test")).examples)


def fresh_hub(folder: Path) -> AdapterHub:
    """A new hub on the embedded base."""
    from adapterhub_cl.bases.loading import inspect_base

    return AdapterHub(Registry.create(folder, inspect_base("tiny", "nf4"), {"demo": True}))


@contextmanager
def naive_hub(hub: AdapterHub, first: str) -> Iterator[AdapterHub]:
    """A hub beside it on the same base, for the naive way, with the first task's adapter: that one is the same both
    ways. Gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="cl-adapter-demo-") as folder:
        beside = AdapterHub(Registry.create(Path(folder) / "naive", hub.base))
        shutil.copytree(hub.path(first).parent, beside.registry.adapters_dir / first)
        beside.registry.rebuild()
        beside._loaded = hub.load_base()
        yield beside


def learn(hub: AdapterHub, task: str, strategy: str, seed: int, reporter: Reporter) -> AdapterRecord:
    """One task more, measured on its unseen texts; nothing is refused."""
    source, test = data(task, "train"), data(task, "test")
    made: AdapterRecord = hub.add_task(
        task, source, eval=test, strategy=strategy, max_forgetting=1.0, seed=seed, reporter=reporter, **TASKS[task]
    )
    return made


def main_score(hub: AdapterHub, task: str, found: Sequence[Prediction]) -> float:
    """The score that stands for a task, of answers to all its unseen texts."""
    spec = hub.registry.task(task)
    gold = [example.answer or "" for example in held_out(task)]
    return score(spec, gold, [one.prediction for one in found])[spec.metric]


def task_score(hub: AdapterHub, task: str, adapter: str) -> float:
    """The score of any adapter on a task's unseen texts, in the task's own prompt and labels."""
    return main_score(hub, task, hub.predict(held_out(task), task=task, adapter=adapter))


def forgotten(hub: AdapterHub) -> float:
    """What the hub's earlier tasks lost on average since their best, by the scores that were recorded."""
    lost = matrix_of(learned(hub.list(all_versions=True))).forgetting
    assert lost is not None  # each task was measured when it was learned
    return lost


@dataclass(frozen=True)
class DemoFigures:
    """What routing unlabelled texts gave.

    Attributes:
        right: share of all unseen texts whose task was found; `scores`: task → score of the answers.
        shown: a text of each task that went well, and one that no task knows.
    """

    right: float
    scores: dict[str, float]
    shown: list[Prediction]


def routed(hub: AdapterHub) -> DemoFigures:
    """All unseen texts at once, in one engine, none of them with its task."""
    texts = {task: held_out(task) for task in TASKS}
    rows = [(task, example) for task, examples in texts.items() for example in examples]
    with hub.engine() as engine:
        found = engine.predict([Example(example.input, instruction=example.instruction) for _, example in rows])
        strange = engine.predict([STRANGE], max_new_tokens=12)
    answers = {task: [one for one, (own, _) in zip(found, rows, strict=True) if own == task] for task in texts}
    gold = {(task, example.input): example.answer for task, example in rows}
    shown = [next(p for p in answers[task] if p.prediction == gold[task, p.text] and p.task == task) for task in texts]
    right = sum(one.task == task for one, (task, _) in zip(found, rows, strict=True)) / len(rows)
    return DemoFigures(right, {task: main_score(hub, task, answers[task]) for task in texts}, [*shown, *strange])


def merge_is_refused(hub: AdapterHub, least: float, seed: int) -> GateRefused:
    """Add the adapters up in the size of one: they disturb each other, and the gate says so."""
    try:
        hub.merge(list(TASKS), name="sum", rank=RANK, min_retention=least, seed=seed)
    except GateRefused as refused:
        return refused
    raise AssertionError("the demo's merge passed its gate")


def distil(hub: AdapterHub, seed: int, reporter: Reporter) -> AdapterRecord:
    """One student of the four teachers, half as large as they together."""
    rank = RANK * len(TASKS) // 2
    return hub.distill(
        list(TASKS), name="all", rank=rank, epochs=4, learning_rate=HIGH_RATE, seed=seed, reporter=reporter
    )


def retention(record: AdapterRecord) -> dict[str, float]:
    """Task → retention, as it was measured when the version was made: against what it was made from."""
    return {task: float(share) for task, share in record.manifest["retention"].items()}
