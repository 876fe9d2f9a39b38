"""The hub in registry/ was written by a released format: it must go on to load, to verify and to answer."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from adapterhub_cl import AdapterHub
from adapterhub_cl.demo import steps

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "registry"
MADE = {"tickets@v1", "reviews@v1", "commands@v1", "facts@v1", "sum@v1", "all@v1", "all@v2"}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the hub as it is committed: without an index."""
    folder = tmp_path_factory.mktemp("checkout")
    files = subprocess.run(["git", "ls-files", "registry"], cwd=ROOT, capture_output=True, text=True, check=False)
    if not files.stdout.split():
        pytest.skip("not a git checkout: which files of registry/ are committed cannot be told")
    for name in files.stdout.split():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    return folder


def command(checkout: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "cl_adapter", *words], cwd=checkout, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_is_listed_in_a_fresh_checkout(checkout: Path) -> None:
    assert not (checkout / "registry" / "index.db").exists()
    rows = json.loads(command(checkout, "--json", "list", "--all"))
    assert {row["ref"] for row in rows} == MADE
    assert {row["ref"]: row["status"] for row in rows}["sum@v1"] == "rejected"
    assert command(checkout, "verify").strip() == "ok"
    hub = AdapterHub.open(checkout / "registry")
    assert hub.registry.serving() == {task: f"{task}@v1" for task in steps.TASKS}
    assert {edge.parent for edge in hub.lineage("all@v1") if edge.child == "all@v1"} == {
        f"{task}@v1" for task in steps.TASKS
    }
    assert len(hub.samples.show("facts")) == 80


def test_each_adapter_scores_as_it_did_when_it_was_made(checkout: Path) -> None:
    hub = AdapterHub.open(checkout / "registry")
    for task in ("commands", "facts"):
        record = hub.get(task)
        recorded = record.metrics[hub.registry.task(task).metric]
        # Another processor rounds otherwise; one answer of 72 is 0.014.
        assert steps.task_score(hub, task, record.ref) == pytest.approx(recorded, abs=0.05)


def test_it_answers_texts_that_name_no_task(checkout: Path) -> None:
    hub = AdapterHub.open(checkout / "registry")
    timer, strange = hub.predict(["wake me in ten minutes", steps.STRANGE])
    assert (timer.prediction, timer.adapter) == ("set timer", "commands@v1")
    assert strange.adapter == "base"
    pruned = hub.predict(["wake me in ten minutes"], task="commands", adapter="all@v2")[0]
    assert (pruned.prediction, pruned.adapter) == ("set timer", "all@v2")
