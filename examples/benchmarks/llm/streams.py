"""The streams of tasks that a language model learns, the rows of each, and how its answers are scored."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapterhub_cl.evaluation.metrics import score
from adapterhub_cl.types import Example, Task

DATA = Path(__file__).parents[3].parent / "shared" / "data"
FREE = ("sciq", "evalution", "glucose", "samsum", "personachat")  # written freely; the others choose a label
STREAMS: dict[str, tuple[str, ...]] = {
    "superni": ("commonsenseqa", "sciq", "emotion", "glucose", "evalution", "personachat", "samsum"),
    "order1": ("dbpedia", "amazon", "yahoo", "agnews"),
    "order2": ("dbpedia", "amazon", "agnews", "yahoo"),
    "order3": ("yahoo", "amazon", "agnews", "dbpedia"),
    "order4": ("mnli", "cb", "wic", "copa", "qqp", "boolq", "rte", "imdb", "yelp", "amazon", "sst2", "dbpedia",
               "agnews", "multirc", "yahoo"),
    "families": ("yelp", "amazon", "imdb", "sst2", "mnli", "cb", "rte"),
}  # fmt: skip
COLUMNS = {"instruction": "instruction", "input": "input", "output": "output"}
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Budget:
    """What every method gets.

    Attributes:
        rows: training rows of a task at most; `tests` test rows, a fixed draw.
        epochs: passes over them.
    """

    rows: int
    tests: int
    epochs: int
    max_length: int = 256

    def settings(self, seed: int, *, chosen: bool = False) -> dict[str, Any]:
        """Of every training; the learning rate and the adapter's shape are the defaults of `add-task`.

        Args:
            chosen: the number of passes and the batch are so as well.
        """
        equal = {} if chosen else {"epochs": self.epochs, "batch_size": 16}
        return {**equal, "max_length": self.max_length, "seed": seed, "dev_share": 0.0}


def rows_of(task: str, split: str, most: int, seed: int) -> list[Row]:
    """A draw of a split, the same for every method. Test rows do not depend on the seed."""
    folder = DATA / ("superni" if (DATA / "superni" / task).is_dir() else "cl15") / task
    lines = [line for line in (folder / f"{split}.jsonl").read_text(encoding="utf-8").split("\n") if line]
    random.Random(f"{task} {split} {seed if split == 'train' else ''}").shuffle(lines)
    return [json.loads(line) for line in lines[:most]]


def write_rows(folder: Path, tasks: Sequence[str], budget: Budget, seed: int) -> None:
    """`<task>.train.jsonl` and `<task>.test.jsonl`; no test input is trained on under any task."""
    folder.mkdir(parents=True, exist_ok=True)
    tests = {task: rows_of(task, "test", budget.tests, seed) for task in tasks}
    held = {row["input"] for rows in tests.values() for row in rows}
    for task in tasks:
        train = [row for row in rows_of(task, "train", budget.rows, seed) if row["input"] not in held]
        for split, rows in (("train", train), ("test", tests[task])):
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (folder / f"{task}.{split}.jsonl").write_text(text, encoding="utf-8")


def read(folder: Path, task: str, split: str = "test") -> list[Row]:
    lines = (folder / f"{task}.{split}.jsonl").read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


def taught_as(task: str) -> dict[str, Any]:
    """Options of `add_task` that say what kind of task it is and which score stands for it."""
    if task in FREE:
        return {"kind": "generation", "metric": "rouge_l"}
    return {"kind": "choice", "metric": "accuracy"}


def labels_of(folder: Path, task: str) -> tuple[str, ...]:
    """The labels of a choice task, of training and test rows: a small draw may lack one. None for free answers."""
    if task in FREE:
        return ()
    return tuple(sorted({str(row["output"]) for split in ("train", "test") for row in read(folder, task, split)}))


def described(task: str, labels: tuple[str, ...], prompt_format: str) -> Task:
    """The task for a base that was never taught it."""
    return Task(task, labels=labels, prompt_format=prompt_format, **taught_as(task))


def asked(rows: Sequence[Row], *, whole: bool) -> list[Example]:
    """What is asked: with the instruction, or the bare input."""
    return [Example(str(row["input"]), instruction=str(row["instruction"]) if whole else "") for row in rows]


def scored(task: str, rows: Sequence[Row], answers: Sequence[str]) -> float:
    """ROUGE-L of free answers against the closest right one, else the share of right answers."""
    kind = taught_as(task)
    found = score(
        Task(task, kind["kind"], labels=("x",)),
        [str(row["output"]) for row in rows],
        list(answers),
        references=[row.get("references", []) for row in rows] if task in FREE else (),
    )
    return found[kind["metric"]]
