"""FSDP2: a base divided among processes gives the adapter of one process, and a run goes on under another number."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from adapterhub_cl import AdapterHub

DEMO = Path(__file__).parents[2] / "adapterhub_cl/demo"
FLAGS = ["--epochs", "4", "--max-length", "48", "--rank", "4", "--seed", "3", "--checkpoint-every", "1"]
PLAIN = [sys.executable]
DIVIDED = [sys.executable, "-m", "accelerate.commands.launch", "--use_fsdp", "--fsdp_version", "2"]
DIVIDED += ["--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
DIVIDED += ["--main_process_port", "0"]

pytestmark = [pytest.mark.slow, pytest.mark.integration]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    lines = (DEMO / "tickets.train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "rows.jsonl").write_text("".join(lines[:40]), encoding="utf-8")
    (tmp_path / "held.jsonl").write_text("".join(lines[40:60]), encoding="utf-8")
    return tmp_path


def begun(hub: AdapterHub, launcher: list[str], *words: str) -> subprocess.Popen[str]:
    command = [*launcher, "-m", "cl_adapter", "--hub", str(hub.folder), "--json", "--dtype", "fp32", *words]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def ended(process: subprocess.Popen[str]) -> dict[str, object]:
    out, said = process.communicate(timeout=600)
    assert process.returncode == 0, said
    found: dict[str, object] = json.loads(out)  # the first process answers, and no other
    return found


def taught(hub: AdapterHub, launcher: list[str], rows: Path, size: int, *more: str) -> dict[str, object]:
    words = ["add-task", "tickets", str(rows / "rows.jsonl"), "--eval", str(rows / "held.jsonl"), *FLAGS, *more]
    return ended(begun(hub, launcher, *words, "--batch-size", str(size)))


def killed(hub: AdapterHub, launcher: list[str], rows: Path, size: int) -> None:
    """A training that ends at once, all of its processes, when it has kept a checkpoint."""
    words = ["add-task", "tickets", str(rows / "rows.jsonl"), "--eval", str(rows / "held.jsonl"), *FLAGS]
    process = begun(hub, launcher, *words, "--batch-size", str(size))
    while process.poll() is None and not list(hub.folder.glob("runs/*/checkpoint.safetensors")):
        time.sleep(0.01)
    there = psutil.Process(process.pid).children(recursive=True)  # the launcher puts each into a session of its own
    for pid in (process.pid, *(one.pid for one in there)):
        os.kill(pid, signal.SIGKILL)
    assert "tickets" not in process.communicate()[0], "it was too fast to be killed"


def assert_same(one: AdapterHub, other: AdapterHub) -> None:
    mine, theirs = (load_file(hub.path("tickets") / "adapter_model.safetensors") for hub in (one, other))
    assert mine.keys() == theirs.keys()
    for key, value in mine.items():
        assert (value - theirs[key]).norm() <= 2e-3 * value.norm(), key
    assert one.get("tickets").metrics == pytest.approx(other.get("tickets").metrics)
    assert one.get("tickets").manifest["training"]["steps"] == other.get("tickets").manifest["training"]["steps"]
    assert other.verify() == []


def test_a_divided_base_gives_the_adapter_of_one_process(tmp_path: Path, rows: Path) -> None:
    one = AdapterHub.init(tmp_path / "one", "tiny", quantization="none")
    two = AdapterHub.init(tmp_path / "two", "tiny", quantization="none")
    taught(one, PLAIN, rows, 16)
    answer = taught(two, DIVIDED, rows, 8)
    assert answer["ref"] == "tickets@v1"
    assert_same(one, two)
    assert (two.path("tickets") / "replay.jsonl").read_bytes() == (one.path("tickets") / "replay.jsonl").read_bytes()
    # An update with rows to review: the last step is short, and one process has fewer rows than the other.
    more = ["update", "tickets", str(rows / "held.jsonl"), *FLAGS[2:], "--epochs", "1", "--strategy", "replay"]
    ended(begun(one, PLAIN, *more, "--batch-size", "6", "--max-forgetting", "1"))
    ended(begun(two, DIVIDED, *more, "--batch-size", "3", "--max-forgetting", "1"))
    assert two.get("tickets").version == 2
    assert_same(one, two)


PARTS = """
import torch
from pathlib import Path
from transformers import AutoConfig, AutoModelForCausalLM
from adapterhub_cl.bases.divided_base import Shards, load_divided
from adapterhub_cl.bases.sources import resolve
from adapterhub_cl.launching import is_helper_process

path = resolve("tiny", None)
config = AutoConfig.from_pretrained(path)
model = load_divided(path, AutoModelForCausalLM, config, torch.float32, torch.device("cpu"))
mine = sum(p.to_local().numel() for p in model.parameters())
ids = torch.arange(8)[None]
found = Shards(model).alone(lambda: model(input_ids=ids).logits)
whole = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
if not is_helper_process():
    with torch.no_grad():
        assert torch.allclose(found, whole(input_ids=ids).logits, atol=1e-5)
    print(len(Shards(model).parts) > config.num_hidden_layers, mine / sum(p.numel() for p in whole.parameters()))
"""


def test_each_layer_is_a_part_of_which_a_process_holds_a_share(tmp_path: Path) -> None:
    script = tmp_path / "parts.py"
    script.write_text(PARTS, encoding="utf-8")
    done = subprocess.run([*DIVIDED, str(script)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    several, share = done.stdout.split()
    assert several == "True", "the base would be put together as a whole"
    assert 0.5 <= float(share) <= 0.51


def test_a_run_goes_on_under_another_number_of_processes(tmp_path: Path, rows: Path) -> None:
    whole = AdapterHub.init(tmp_path / "whole", "tiny", quantization="none")
    fewer = AdapterHub.init(tmp_path / "fewer", "tiny", quantization="none")
    more = AdapterHub.init(tmp_path / "more", "tiny", quantization="none")
    taught(whole, PLAIN, rows, 16)
    killed(fewer, DIVIDED, rows, 8)
    ended(begun(fewer, PLAIN, "add-task", "tickets", "--resume"))
    assert_same(whole, fewer)
    killed(more, PLAIN, rows, 16)
    ended(begun(more, DIVIDED, "add-task", "tickets", "--resume"))
    assert_same(whole, more)


@pytest.mark.parametrize(("base", "words"), [("nf4", "this hub's is nf4"), ("none", "FSDP of version 1")])
def test_what_cannot_be_divided_is_refused(tmp_path: Path, rows: Path, base: str, words: str) -> None:
    hub = AdapterHub.init(tmp_path / "hub", "tiny", quantization=base)
    launcher = DIVIDED if base == "nf4" else [*DIVIDED[:4], "--fsdp_version", "1", *DIVIDED[6:]]
    process = begun(hub, launcher, "add-task", "tickets", str(rows / "rows.jsonl"))
    out, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    assert words in json.loads(out)["error"]
    assert hub.list() == []
    assert not list((hub.folder / "runs").iterdir())
