"""The pages, run from their first block to their last, each in a shell of its own. See docs_shell.py for the rules.

A page starts from the hub and the data that `USUAL` describes, or as `STARTS` says. The default tier runs the pages
that have a block marked `slow from here`, up to that block; the slow tier runs all pages to their end.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from docs_blocks import ROOT, Block, blocks, pages
from docs_shell import Failed, Shell

GENERATED = ("docs/reference/cli.md", "docs/reference/api.md")  # checked against the code, and their commands parsed


@dataclass(frozen=True)
class Start:
    """What is there when a page begins.

    Attributes:
        tasks: of the hub `my-hub`, which `$CL_ADAPTER_HUB` names; their data stand beside it as `TASK.jsonl`.
        commands: run before the first block.
    """

    tasks: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()


TEXTS = (  # what the pages' other files stand for
    "head -40 slang.test.jsonl > last-week.jsonl",
    "sed 's/, \"label.*/}/' news.test.jsonl > unlabelled.jsonl",
    "cl-adapter init ../small-hub --base tiny",
)
USUAL = Start(("news", "reviews", "slang"), TEXTS)
STARTS = {
    "docs/continual-learning.md": Start(
        ("tickets", "commands"), ("cp commands.jsonl contracts.jsonl", "head -24 tickets.jsonl > feed.jsonl")
    ),
    "README.md": Start(),
    "docs/measured.md": Start(),
    "docs/knowledge-updates.md": Start(),
    "docs/routing.md": Start(
        USUAL.tasks, (*TEXTS, "cl-adapter update news news.jsonl --epochs 1 --max-length 64 --max-forgetting 1")
    ),
    "docs/encoders.md": Start(),
    "docs/first-hub.md": Start(),
    "docs/notebooks.md": Start(),
    "docs/extending.md": Start(),
    "docs/several-gpus.md": Start(),
}


def runnable(page: str) -> list[Block]:
    return [block for block in blocks(page) if block.runs] if page not in GENERATED else []


def slow_from(found: Sequence[Block]) -> int:
    """How many blocks come before those that take long; all where the page does not say."""
    return next((k for k, block in enumerate(found) if "slow from here" in block.marks), len(found))


PAGES = [page for page in pages() if runnable(page)]
BEGUN = [page for page in PAGES if slow_from(runnable(page)) < len(runnable(page))]


def run_page(page: str, found: Sequence[Block], shell: Shell, prepared: Callable[[tuple[str, ...]], Path]) -> None:
    start = STARTS.get(page, USUAL)
    if start.tasks:
        shutil.copytree(prepared(start.tasks), shell.folder, dirs_exist_ok=True)
        shell.run("export CL_ADAPTER_HUB=my-hub")
    for command in start.commands:
        code, printed = shell.run(command)
        assert code == 0, f"{command}\n{printed}"
    failures = []
    for block in found:
        needed = block.marks.get("needs")
        if needed is None or (shell.folder / needed).exists():
            try:
                shell.do(block)
            except Failed as error:
                failures.append(str(error))
    assert not failures, "\n\n".join(failures)


@pytest.mark.integration
@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=() if page == "README.md" else pytest.mark.slow) for page in BEGUN]
)
def test_a_page_runs_up_to_what_takes_long(
    page: str, shell: Shell, prepared: Callable[[tuple[str, ...]], Path]
) -> None:
    found = runnable(page)
    run_page(page, found[: slow_from(found)], shell, prepared)


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_a_page_runs_from_beginning_to_end(
    page: str, shell: Shell, prepared: Callable[[tuple[str, ...]], Path]
) -> None:
    run_page(page, runnable(page), shell, prepared)


def test_the_tables_name_pages_that_are_there() -> None:
    for page in (*STARTS, *GENERATED):
        assert (ROOT / page).is_file(), page
