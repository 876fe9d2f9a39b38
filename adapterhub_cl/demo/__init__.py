"""The demo: two tasks learned on the embedded base, kept apart and trained over each other, with what was forgotten."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from adapterhub_cl.errors import UsageError
from adapterhub_cl.hub import AdapterHub
from adapterhub_cl.registry import HubFile, Registry
from adapterhub_cl.types import BaseInfo

DATA = Path(__file__).parent
TASKS = ("tickets", "commands")
EPOCHS = 8
EXAMPLES = {
    "tickets": ("the app crashes whenever I open the settings", "I forgot my password"),
    "commands": ("wake me in ten minutes", "will I need an umbrella tomorrow"),
}


def run(folder: Path | None, *, seed: int = 0, tell: Callable[[str], None]) -> dict[str, Any]:
    """Learn the demo's tasks and show what naive training forgets beside what the hub keeps.

    Args:
        folder: where the demo's hub is made; an older demo hub there is replaced. Default: `./demo-hub`.
        seed: of every random choice.
        tell: receives each line for the user.

    Returns:
        every figure that was told, and the hub's folder.

    Raises:
        UsageError: the folder holds something else than a demo hub.
    """
    started = time.monotonic()
    hub = _fresh(folder or Path("demo-hub"))
    tell(f"A language model of {hub.base.parameters / 1e6:.1f} million parameters, frozen, in 4 bits (NF4).")
    tell("It learns to route support tickets, then to understand voice commands.\n")
    tell("1. One adapter per task: what the hub does by default")
    kept: dict[str, float] = {}

    def learn(task: str) -> None:
        before = _score(hub, task, "base")
        record = hub.add_task(task, _data(task), eval=_data(task, "test"), epochs=EPOCHS, seed=seed)
        kept[task] = record.metrics["accuracy"]
        tell(
            f"   {record.ref:<12} accuracy {kept[task]:.1%} on unseen texts (base alone {before:.1%}), "
            f"{record.bytes / 1e6:.1f} MB"
        )

    first, second = TASKS
    learn(first)
    # Trained here, told below: at this point the newest adapter, which it goes on from, is the first task's.
    hub.add_task("naive", _data(second), strategy="sequential", epochs=EPOCHS, seed=seed)
    learn(second)
    tell("\n2. The naive way: one adapter, trained on task after task")
    naive = {task: _score(hub, task, "naive") for task in TASKS}
    for task in TASKS:
        lost = kept[task] - naive[task]
        tell(f"   {task:<12} accuracy {naive[task]:.1%}" + (f": {lost:.1%} forgotten" if lost > 0.02 else ""))
    tell("\n3. Answers")
    answers = []
    for task, texts in EXAMPLES.items():
        for found in hub.predict(texts, task=task):
            answers.append(found.to_json())
            tell(f"   {found.text!r:<48} {found.prediction} ({found.confidence:.0%}, {found.adapter})")
    problems = hub.verify()
    tell(f"\n4. The hub on disk: {len(hub.list())} adapters, {len(problems)} problems found by verify")
    seconds = time.monotonic() - started
    tell(f"\nDone in {seconds:.0f} s. Look around:\n   cl-adapter --hub {hub.folder} list")
    tell(f"   cl-adapter --hub {hub.folder} predict --task tickets 'my parcel never arrived'")
    return {
        "hub": str(hub.folder),
        "isolated": kept,
        "naive": naive,
        "forgotten": {task: round(kept[task] - naive[task], 6) for task in TASKS},
        "answers": answers,
        "problems": [problem.to_json() for problem in problems],
        "seconds": round(seconds, 1),
    }


def _fresh(folder: Path) -> AdapterHub:
    if (folder / "hub.toml").is_file():
        if not HubFile.read(folder).defaults.get("demo"):
            raise UsageError(f"{folder} is a hub of your own", "say where: cl-adapter demo FOLDER")
        shutil.rmtree(folder)
    from adapterhub_cl.bases.loading import inspect_base

    base: BaseInfo = inspect_base("tiny", "nf4")
    return AdapterHub(Registry.create(folder, base, {"demo": True}))


def _data(task: str, split: str = "train") -> Path:
    return DATA / f"{task}.{split}.jsonl"


def _score(hub: AdapterHub, task: str, adapter: str) -> float:
    """Accuracy of any adapter on a task's unseen texts, in the task's own prompt and labels."""
    rows = [json.loads(line) for line in _data(task, "test").read_text(encoding="utf-8").splitlines()]
    if task not in {known.name for known in hub.registry.tasks()}:
        from adapterhub_cl.data.columns import read_examples
        from adapterhub_cl.data.tasks import infer_task

        hub.registry.put_task(infer_task(task, read_examples(_data(task))))
    found = hub.predict([row["text"] for row in rows], task=task, adapter=adapter)
    right = sum(f.prediction == str(row["label"]) for f, row in zip(found, rows, strict=True))
    return right / len(rows)
