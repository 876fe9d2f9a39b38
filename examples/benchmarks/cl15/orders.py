"""What is compared: the orders of the stream, the methods, their settings, and what the papers report."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from adapterhub_cl.registry.files import atomic_write_text

DATA = Path(__file__).parents[3].parent / "shared" / "data"
FOUR = ("dbpedia", "amazon", "yahoo", "agnews")
ORDERS: dict[str, tuple[str, ...]] = {
    "1": FOUR,
    "2": ("dbpedia", "amazon", "agnews", "yahoo"),
    "3": ("yahoo", "amazon", "agnews", "dbpedia"),
    "4": (
        "mnli",
        "cb",
        "wic",
        "copa",
        "qqp",
        "boolq",
        "rte",
        "imdb",
        "yelp",
        "amazon",
        "sst2",
        "dbpedia",
        "agnews",
        "multirc",
        "yahoo",
    ),
    "5": (
        "multirc",
        "boolq",
        "wic",
        "mnli",
        "cb",
        "copa",
        "qqp",
        "rte",
        "imdb",
        "sst2",
        "dbpedia",
        "agnews",
        "yelp",
        "amazon",
        "yahoo",
    ),
    "6": (
        "yelp",
        "amazon",
        "mnli",
        "cb",
        "copa",
        "qqp",
        "rte",
        "imdb",
        "sst2",
        "dbpedia",
        "agnews",
        "yahoo",
        "multirc",
        "boolq",
        "wic",
    ),
}
SHORT, LONG = ("1", "2", "3"), ("4", "5", "6")
ORDERS["tune"] = ("yahoo", "amazon")  # where settings are tried: two tasks of order 1 that are hard to learn
FAMILY = {"yelp": "amazon", "imdb": "sst2"}  # the same question and labels: either adapter can be right
COLUMNS = {"instruction": "instruction", "input": "input", "output": "output"}
KEPT = 200  # samples of a task that ours keeps, for its router and its consolidated forms

# Other models and budgets: T5-large has 35 times MiniLM's parameters, LLaMA-2-7B three hundred times.
PUBLISHED = (
    ("O-LoRA, T5-large (arXiv 2310.14152)", "75.8", "69.6"),
    ("N-LoRA, T5-large (arXiv 2410.10179)", "78.8", "–"),
    ("SAPT-LoRA, LLaMA-2-7B (arXiv 2401.08295)", "–", "81.9"),
    ("multi-task, T5-large (arXiv 2310.14152)", "80.0", "76.5"),
)


@dataclass(frozen=True)
class Budget:
    """What every method of a group of orders gets.

    Attributes:
        passes: rows that each task is trained on, counted each time: small tasks get more epochs for it.
        rows: training rows of a task at most; 0: all.
        large: take cl4's training files.
        test_rows: of a task at most, a fixed draw; 0: all.
    """

    passes: int
    max_length: int
    rows: int = 0
    large: bool = False
    test_rows: int = 0
    rank: int = 16
    learning_rate: float = 8e-4

    def settings(self) -> dict[str, Any]:
        """The fields of `TrainingSettings`. No rows are held out: the last epoch is kept."""
        names = ("max_length", "rank", "learning_rate")
        return {**{name: getattr(self, name) for name in names}, "dev_share": 0.0}

    def epochs(self, rows: int) -> int:
        """How often a task of so many rows is gone through."""
        return max(1, round(self.passes / rows))


BUDGETS = {
    "short": Budget(passes=5000, max_length=128, large=True, test_rows=1000),
    "long": Budget(passes=2000, max_length=128, test_rows=200),
    "tune": Budget(passes=2000, max_length=64, rows=1000, test_rows=200),
    "smoke": Budget(passes=48, max_length=128, rows=48, test_rows=24),
}


@dataclass(frozen=True)
class Method:
    """A row of the tables.

    Attributes:
        strategy: of the stream; none for what is made of the hub that `ours` leaves.
        replay: what is kept, as `add_task` takes it.
        options: of the strategy or of the verb, chosen on the dev rows (`tune`).
        rate: times the budget's learning rate, chosen likewise.
        trials: what was tried, each a change of `options`, or of `rate`; none where another method's choice is taken.
    """

    name: str
    strategy: str = ""
    replay: str = "none"
    options: Mapping[str, Any] = field(default_factory=dict)
    rate: float = 1.0
    trials: tuple[Mapping[str, Any], ...] = ()

    @property
    def slug(self) -> str:
        return "".join(c if c.isalnum() else "-" for c in self.name).strip("-")

    @property
    def routed(self) -> bool:
        """Whether each task has an adapter of its own, and a router finds the task."""
        return self.strategy in ("isolated", "kin")

    @property
    def from_ours(self) -> bool:
        """Whether it is made in a copy of the hub that `ours` leaves."""
        return not self.strategy and self.name != "zero-shot"

    def tried(self, trial: int | None) -> Method:
        """The method with one of its trials' settings; None: the chosen ones."""
        change = dict(self.trials[trial]) if trial is not None else {}
        rate = change.pop("rate", self.rate)
        return replace(self, options={**self.options, **change}, rate=rate)


def _tried(option: str, *values: Any) -> tuple[Mapping[str, Any], ...]:
    return tuple({option: value} for value in values)


_RATES = _tried("rate", 0.5, 1.0, 2.0)
OURS = Method("ours", "isolated", f"balanced:{KEPT}", trials=_RATES)
METHODS = (
    OURS,
    Method("kin", "kin", f"balanced:{KEPT}", trials=_tried("kin.share", 0.05, 0.1, 0.3)),
    Method("sequential", "sequential", rate=0.5, trials=_RATES),
    Method("replay 5%", "replay", "5%", {"replay.ratio": 0.25}, trials=_tried("replay.ratio", 0.25, 0.5, 1.0)),
    Method("merged", options={"method": "tsv"}, trials=_tried("method", "linear", "regmean", "tsv")),
    Method("merged ctm", options={"method": "ctm"}),
    Method("distilled", options={"epochs": 8, "task_loss": 1.0}, trials=_tried("task_loss", 0.2, 0.5, 1.0)),
    Method("multitask", options={"multitask.balance": True}, rate=2.0, trials=_RATES),
    # At the rate chosen on two tasks, fifteen at once are not learned.
    Method("multitask slow", options={"multitask.balance": True}, rate=0.5),
    Method("zero-shot"),
    Method("replay 2%", "replay", "2%", {"replay.ratio": 0.25}),
    Method("der", "der", "5%", {"der.ratio": 0.5, "der.alpha": 0.2}, trials=_tried("der.alpha", 0.2, 0.5, 1.0)),
    Method("ewc", "ewc", options={"ewc.strength": 1.0}, trials=_tried("ewc.strength", 0.01, 0.1, 1.0)),
    Method("lwf", "lwf", options={"lwf.alpha": 1.0}, trials=_tried("lwf.alpha", 0.3, 1.0, 3.0)),
    Method("olora", "olora", options={"olora.weight": 0.1}, trials=_tried("olora.weight", 0.1, 0.5, 2.0)),
    Method("inflora", "inflora", options={"inflora.energy": 0.9}, trials=_tried("inflora.energy", 0.9, 0.97, 0.99)),
    Method("osf", "osf", options={"osf.preserve": 0.75}, trials=_tried("osf.preserve", 0.25, 0.5, 0.75)),
    Method("forever", "forever", "5%", {"forever.ratio": 0.25}, trials=_tried("forever.ratio", 0.25, 0.5, 1.0)),
    Method("slao", "slao", trials=_RATES),
    Method("incremental", "incremental", trials=_RATES),
)
BY_NAME = {method.name: method for method in METHODS}


def kept(method: Method, rows: int) -> str:
    """A method's `--replay` for a task of so many training rows: a share becomes a number of samples."""
    if not method.replay.endswith("%"):
        return method.replay
    return f"balanced:{max(1, round(rows * int(method.replay[:-1]) / 100))}"


def count_of(folder: Path, task: str) -> int:
    """Training rows of a task."""
    return len(lines_of(folder / f"{task}.train.jsonl"))


def rows_of(task: str, split: str, budget: Budget) -> list[str]:
    """Lines of JSON: a fixed draw of a split. Tasks without dev rows give a fifth of their training rows for it."""
    large = budget.large and split == "train" and (DATA / "cl4" / task).is_dir()
    folder = DATA / ("cl4" if large else "cl15") / task
    path = folder / f"{split}.jsonl"
    lines = lines_of(path if path.exists() else folder / "train.jsonl")
    random.Random(f"{task} {split if path.exists() else 'train'}").shuffle(lines)
    if split == "dev" and not path.exists():
        lines = lines[-len(lines) // 5 :]
    limit = budget.rows if split == "train" else budget.test_rows
    return lines[:limit] if limit else lines


def write_data(folder: Path, tasks: tuple[str, ...], budget: Budget, test: str = "test") -> None:
    """The rows of a budget, as `<task>.train.jsonl` and `<task>.test.jsonl`.

    Args:
        test: the split that is tested on: `dev` for tuning.
    """
    folder.mkdir(parents=True, exist_ok=True)
    held = {task: rows_of(task, test, budget) for task in tasks}
    seen = {json.loads(line)["input"] for lines in held.values() for line in lines}
    for task in tasks:
        # What is tested on is never learned, under any task.
        train = [line for line in rows_of(task, "train", budget) if json.loads(line)["input"] not in seen]
        for name, lines in (("train", train), ("test", held[task])):
            path, text = folder / f"{task}.{name}.jsonl", "".join(f"{line}\n" for line in lines)
            if not path.exists():
                atomic_write_text(path, text)
            elif path.read_text(encoding="utf-8") != text:
                raise SystemExit(f"{path} is not what this budget draws; move it away, with the results made of it")


def tested(folder: Path, task: str) -> list[dict[str, str]]:
    """The test rows of a task."""
    return [json.loads(line) for line in lines_of(folder / f"{task}.test.jsonl")]


def read_json(path: Path, hint: str = "delete it, and start again") -> Any:
    """What a file holds; SystemExit names one that is not there, or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except OSError as error:
        raise SystemExit(f"{path} cannot be read ({error.strerror}): {hint}") from error
    except ValueError as error:
        raise SystemExit(f"{path} is broken ({error}): {hint}") from error


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def lines_of(path: Path) -> list[str]:
    """Lines as JSON has them: a text may hold other line breaks."""
    return [line for line in path.read_text(encoding="utf-8").split("\n") if line]
