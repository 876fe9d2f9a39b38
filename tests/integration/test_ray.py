"""`--on ray` with a local cluster of two nodes whose workers and nodes are killed: the very adapters that one process
makes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from adapterhub_cl import AdapterHub

cluster_utils = pytest.importorskip("ray.cluster_utils", reason="the package ray is not installed")

DEMO = Path(__file__).parents[2] / "adapterhub_cl/demo"
TASKS = ("tickets", "reviews")
QUICK = ["--epochs", "4", "--rank", "4", "--max-length", "48", "--checkpoint-every", "1"]
RUNS = ["--strategy", "replay", "--strategy", "sequential", "--seeds", "0,1"]
KEPT = ("adapter_model.safetensors", "adapter_config.json", "replay.jsonl")

pytestmark = [pytest.mark.slow, pytest.mark.integration]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # so that a run fits into a node of one core
    made = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.add_node(num_cpus=1)
    try:
        yield made
    finally:
        made.shutdown()


@pytest.fixture
def stream(tmp_path: Path) -> Path:
    for task in TASKS:
        rows = (DEMO / f"{task}.train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        (tmp_path / f"{task}.jsonl").write_text("".join(rows[:60]), encoding="utf-8")
        (tmp_path / f"{task}.test.jsonl").write_text("".join(rows[60:80]), encoding="utf-8")
    file = tmp_path / "tasks.json"
    rows = [{"name": task, "data": f"{task}.jsonl", "eval": f"{task}.test.jsonl"} for task in TASKS]
    file.write_text(json.dumps({"tasks": rows}), encoding="utf-8")
    return file


def begun(hub: AdapterHub, verb: str, *words: str, address: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "cl_adapter", "--hub", str(hub.folder), "--json", "--dtype", "fp32", verb, *words]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_ADDRESS": address}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def ended(process: subprocess.Popen[str]) -> Any:
    out, said = process.communicate(timeout=900)
    assert process.returncode == 0, said
    return json.loads(out)  # nothing that Ray says stands in between


def until(found: Callable[[], Any], process: subprocess.Popen[str]) -> Any:
    """What `found` gives once it gives something, while the command runs."""
    while process.poll() is None:
        if (value := found()) is not None:
            return value
        time.sleep(0.02)
    raise AssertionError(f"the command ended before: {process.communicate()}")


def training(folder: Path, besides: set[int]) -> int | None:
    """A worker that trains in a hub under this folder and has kept a checkpoint, but none of these."""
    for file in folder.rglob("checkpoint.safetensors"):
        try:
            pid = int(json.loads((file.parent / "run.json").read_text(encoding="utf-8"))["pid"])
        except (OSError, ValueError):  # it has ended in between
            continue
        if pid not in besides:
            return pid
    return None


def adapters(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.name in KEPT and "adapters" in file.parts
    }


def test_a_stream_whose_workers_and_nodes_die_gives_the_same_adapters(
    tmp_path: Path, stream: Path, cluster: Any
) -> None:
    here = AdapterHub.init(tmp_path / "here", "tiny", quantization="none")
    there = AdapterHub.init(tmp_path / "there", "tiny", quantization="none")
    words = (str(stream), *RUNS, *QUICK)
    running = begun(there, "stream", *words, "--on", "ray", address=cluster.address)
    killed: set[int] = set()
    for _ in range(3):
        pid = until(lambda: training(there.folder / "streams", killed), running)
        os.kill(pid, signal.SIGKILL)
        killed.add(pid)
    node = next(iter(cluster.worker_nodes))
    until(lambda: training(there.folder / "streams", killed), running)
    cluster.remove_node(node, allow_graceful=False)  # with whatever runs on it
    cluster.add_node(num_cpus=1)
    spread = ended(running)
    alone = ended(begun(here, "stream", *words))
    assert len(killed) == 3
    assert [run["matrix"] for run in spread["runs"]] == [run["matrix"] for run in alone["runs"]]
    mine, theirs = adapters(here.folder / "streams"), adapters(there.folder / "streams")
    assert len(mine) == 4 * len(TASKS) * len(KEPT)
    assert mine == theirs
    for folder in (there.folder / "streams" / "tasks").iterdir():
        if folder.is_dir():
            hub = AdapterHub.open(folder)
            assert hub.verify() == []
            assert [record.version for record in hub.list(all_versions=True)] == [1, 1], "nothing was made twice"


def test_a_search_whose_workers_die_finds_the_same(tmp_path: Path, cluster: Any) -> None:
    """Six trials are drawn before Optuna looks at any, so those of a cluster are those of one process."""
    pytest.importorskip("optuna")
    here = AdapterHub.init(tmp_path / "here", "tiny", quantization="none")
    there = AdapterHub.init(tmp_path / "there", "tiny", quantization="none")
    rows = (DEMO / "tickets.train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "rows.jsonl").write_text("".join(rows[:130]), encoding="utf-8")
    words = ("tickets", str(tmp_path / "rows.jsonl"), "--trials", "3", "--confirm", "1", "--rank", "4", "--epochs", "3")
    words += ("--max-length", "48", "--target-modules", "q_proj,v_proj")
    running = begun(there, "tune", *words, "--on", "ray", address=cluster.address)
    until(lambda: next(there.folder.glob("runs/*/trial-*/checkpoint.safetensors"), None), running)
    killed = workers()
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    spread = ended(running)
    alone = ended(begun(here, "tune", *words))
    for found in (spread, alone):
        del found["created_at"]
        found["trials"].sort(key=lambda trial: trial["number"])
        for trial in found["trials"]:
            del trial["seconds"]
    assert spread == alone
    assert killed
    assert len(spread["trials"]) == 3
    assert not list((there.folder / "runs").iterdir())


def workers() -> list[int]:
    """The processes that carry out tasks; nodes are children of this process, and workers of nodes."""
    there = psutil.Process().children(recursive=True)
    return [one.pid for one in there if one.cmdline()[:1] == ["ray::carry_out"]]
