"""The hub that most pages start from, trained once a session, and a shell for each page."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from docs_blocks import ROOT
from docs_shell import Shell

# What the pages call it → the demo's data that stand for it.
TASKS = {"news": "tickets", "reviews": "reviews", "slang": "commands", "tickets": "tickets", "commands": "commands"}


def make_hub(place: Path, tasks: tuple[str, ...]) -> None:
    """A hub `my-hub` with an adapter for each task, and the data as `TASK.jsonl` and `TASK.test.jsonl` beside it."""
    from adapterhub_cl import AdapterHub

    hub = AdapterHub.init(place / "my-hub", "tiny")
    for task in tasks:
        for kind, name in (("train", f"{task}.jsonl"), ("test", f"{task}.test.jsonl")):
            shutil.copy(ROOT / f"adapterhub_cl/demo/{TASKS[task]}.{kind}.jsonl", place / name)
        hub.add_task(task, place / f"{task}.jsonl", eval=place / f"{task}.test.jsonl", epochs=4)


@pytest.fixture(scope="session")
def prepared(_torch: object, tmp_path_factory: pytest.TempPathFactory) -> Callable[[tuple[str, ...]], Path]:
    """The folder with the hub of these tasks. Copy it; never write into it."""
    made: dict[tuple[str, ...], Path] = {}

    def folder(tasks: tuple[str, ...]) -> Path:
        if tasks not in made:
            made[tasks] = tmp_path_factory.mktemp("prepared")
            make_hub(made[tasks], tasks)
        return made[tasks]

    return folder


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    with Shell(tmp_path) as running:
        yield running
