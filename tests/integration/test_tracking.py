"""`--log-with`: each tracker, offline, gets the settings, each step's loss and the scores. What is not installed is
passed over: `pip install tensorboard mlflow wandb trackio` into an environment of your own to run them all."""

from __future__ import annotations

import importlib.util
import json
import os
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.slow]

STEPS = 8
WORDS = ["--epochs", "1", "--rank", "2", "--max-length", "48", "--batch-size", "8", "--dev-share", "0.2", "--attention",
         "sdpa"]  # fmt: skip


@pytest.fixture
def taught(tmp_path: Path) -> Any:
    """`taught("wandb")`: what `add-task --json --log-with wandb` printed, in a process and a folder of its own."""
    rows = [{"text": f"{'good' if k % 2 else 'bad'} thing {k}", "label": "yes" if k % 2 else "no"} for k in range(100)]
    for name, some in (("train", rows[:80]), ("test", rows[80:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))

    def run(tracker: str, **environment: str) -> dict[str, Any]:
        if importlib.util.find_spec(tracker) is None:
            pytest.skip(f"{tracker} is not installed")

        def cl(*words: str) -> str:
            done = subprocess.run(
                [sys.executable, "-m", "cl_adapter", "--hub", "hub", *words],
                cwd=tmp_path,
                env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
                capture_output=True,
                text=True,
                timeout=600,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            return done.stdout

        cl("init", "--base", "tiny", "--quiet")
        told = cl("add-task", "mood", "train.jsonl", "--eval", "test.jsonl", *WORDS, "--log-with", tracker, "--json")
        found: dict[str, Any] = json.loads(told)  # nothing that a tracker prints stands beside it
        return found

    return run


def test_tensorboard(taught: Any, tmp_path: Path) -> None:
    found = taught("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    seen = EventAccumulator(str(tmp_path / "hub" / "logs" / "mood"))
    seen.Reload()
    loss = seen.Scalars("loss")
    assert [event.step for event in loss] == list(range(1, STEPS + 1))
    assert {"learning_rate", "dev_loss", "dev_accuracy"} <= set(seen.Tags()["scalars"])
    (score,) = seen.Scalars("eval_accuracy")
    assert (score.step, score.value) == (STEPS, pytest.approx(found["metrics"]["accuracy"], abs=1e-6))


@pytest.mark.filterwarnings("ignore")  # of SQLAlchemy, about what MLflow asks it
def test_mlflow(taught: Any, tmp_path: Path) -> None:
    place = f"sqlite:///{tmp_path / 'runs.db'}"
    found = taught("mlflow", MLFLOW_TRACKING_URI=place)
    from mlflow.tracking import MlflowClient

    client = MlflowClient(place)
    experiment = client.get_experiment_by_name("mood")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert (run.data.params["rank"], run.data.params["strategy"]) == ("2", "isolated")
    assert [m.step for m in client.get_metric_history(run.info.run_id, "loss")] == list(range(1, STEPS + 1))
    assert run.data.metrics["eval_accuracy"] == pytest.approx(found["metrics"]["accuracy"])


def leveldb(data: bytes) -> Iterator[bytes]:
    """The records of a file that W&B writes offline: after 7 bytes of its own LevelDB's log format, in blocks of 32 kB;
    each piece has 4 bytes of checksum, 2 of length and 1 that says whether it is whole, or which part."""
    at, whole = 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""


def test_wandb(taught: Any, tmp_path: Path) -> None:
    found = taught("wandb", WANDB_MODE="offline", WANDB_DIR=str(tmp_path))
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    rows: list[dict[str, Any]] = []
    config: dict[str, Any] = {}
    for data in leveldb(file.read_bytes()):
        record = Record.FromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "history":
            rows.append({i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item})
        elif kind in ("run", "config"):
            updates = record.run.config.update if kind == "run" else record.config.update
            config |= {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in updates}
    assert sum("loss" in row for row in rows) == STEPS
    assert (config["rank"], config["strategy"]) == (2, "isolated")
    assert [row["eval_accuracy"] for row in rows if "eval_accuracy" in row] == [found["metrics"]["accuracy"]]


def test_trackio(taught: Any, tmp_path: Path) -> None:
    found = taught("trackio", TRACKIO_DIR=str(tmp_path / "trackio"))
    files = sorted((tmp_path / "trackio").glob("*.db"))
    assert files
    with sqlite3.connect(files[-1]) as connection:
        rows = [json.loads(text) for (text,) in connection.execute("SELECT metrics FROM metrics ORDER BY id")]
    assert sum("loss" in row for row in rows) == STEPS
    assert [row["eval_accuracy"] for row in rows if "eval_accuracy" in row] == [found["metrics"]["accuracy"]]
