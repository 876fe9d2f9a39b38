"""Several processes: one run through `accelerate launch`, and two runs of one name at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from adapterhub_cl import AdapterHub

DATA = Path(__file__).parents[2] / "adapterhub_cl/demo/tickets.train.jsonl"
FLAGS = ["--epochs", "1", "--max-length", "48", "--rank", "4", "--seed", "3"]

ROWS = 32  # what matters is that the processes agree, not what they learn

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "tickets.jsonl"
    path.write_text("".join(DATA.read_text(encoding="utf-8").splitlines(keepends=True)[:ROWS]), encoding="utf-8")
    return path


def launched(hub: Path, data: Path, batch_size: int, *launcher: str) -> dict[str, object]:
    command = [*launcher, "-m", "cl_adapter", "--hub", str(hub), "--json", "--quiet", "--dtype", "fp32"]
    command += ["add-task", "tickets", str(data), *FLAGS, "--batch-size", str(batch_size)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)  # one process of several answers
    return found


def test_two_processes_train_the_same_adapter_as_one(tmp_path: Path, data: Path) -> None:
    one = AdapterHub.init(tmp_path / "one", "tiny", quantization="none")
    two = AdapterHub.init(tmp_path / "two", "tiny", quantization="none")
    settings = {"epochs": 1, "max_length": 48, "rank": 4, "seed": 3}
    AdapterHub.open(one.folder, dtype="fp32").add_task("tickets", data, batch_size=16, **settings)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    answer = launched(two.folder, data, 8, *launch)
    assert answer["ref"] == "tickets@v1"
    assert two.get("tickets").manifest["training"]["steps"] == one.get("tickets").manifest["training"]["steps"]
    mine, theirs = (load_file(hub.path("tickets") / "adapter_model.safetensors") for hub in (one, two))
    for key, value in mine.items():
        assert (value - theirs[key]).norm() <= 2e-3 * value.norm(), key
    assert two.verify() == []


@pytest.mark.slow
def test_one_of_two_processes_streams_merges_and_distils(tmp_path: Path, data: Path) -> None:
    hub = AdapterHub.init(tmp_path / "hub", "tiny", quantization="none")
    lines = data.read_text(encoding="utf-8").splitlines(keepends=True)
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        lines.reverse()
    held = tmp_path / "held.jsonl"
    held.write_text("".join(DATA.read_text(encoding="utf-8").splitlines(keepends=True)[ROWS : 2 * ROWS]), "utf-8")
    (tmp_path / "tasks.json").write_text(
        json.dumps({"tasks": [{"name": n, "data": f"{n}.jsonl", "eval": "held.jsonl"} for n in ("a", "b")]}), "utf-8"
    )
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    answers = []
    for words in (
        ["stream", str(tmp_path / "tasks.json"), *FLAGS[:-2]],
        ["merge", "a", "b", "--as", "both", "--min-retention", "0"],
        ["distill", "a", "b", "--as", "one", "--epochs", "1", "--rank", "4", "--min-retention", "0"],
    ):
        command = [*launch, "-m", "cl_adapter", "--hub", str(hub.folder), "--json", "--dtype", "fp32", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stderr
        answers.append(json.loads(done.stdout))  # one process of two answers
    assert answers[0]["tasks"] == ["a", "b"]
    assert [answer["ref"] for answer in answers[1:]] == ["both@v1", "one@v1"]
    assert [record.ref for record in hub.list(all_versions=True)] == ["a@v1", "b@v1", "both@v1", "one@v1"]
    assert hub.verify() == []


@pytest.mark.slow
def test_two_trainings_of_one_name_both_succeed(tmp_path: Path, data: Path) -> None:
    hub = AdapterHub.init(tmp_path / "hub", "tiny")
    command = [sys.executable, "-m", "cl_adapter", "--hub", str(hub.folder), "--json", "--quiet"]
    command += ["add-task", "tickets", str(data), *FLAGS]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
        for _ in range(2)
    ]
    answers = [json.loads(process.communicate(timeout=300)[0]) for process in running]
    assert sorted(answer["ref"] for answer in answers) == ["tickets@v1", "tickets@v2"]
    assert [record.version for record in hub.list(all_versions=True)] == [1, 2]
    assert hub.verify() == []
