"""The whole of consolidation on the embedded base in NF4: learn, merge, distil, promote, prune, forget, prove."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from adapterhub_cl import AdapterHub
from adapterhub_cl.bases import TINY, resolve
from adapterhub_cl.errors import UnknownNameError

DEMO = Path(__file__).parents[2] / "adapterhub_cl/demo"
TASKS = ("commands", "tickets")

pytestmark = pytest.mark.integration


@pytest.fixture
def hub(trained_hub: Callable[..., Path], tmp_path: Path) -> AdapterHub:
    """A hub with two trained tasks, a new copy for each test."""

    def train(folder: Path) -> None:
        hub = AdapterHub.init(folder, "tiny")
        for name in TASKS:
            train, test = tmp_path / f"{name}.jsonl", tmp_path / f"{name}.test.jsonl"
            for path, split, rows in ((train, "train", 80), (test, "test", 30)):
                lines = (DEMO / f"{name}.{split}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
                path.write_text("".join(lines[:rows]), encoding="utf-8")
            hub.add_task(name, train, eval=test, epochs=5, rank=8, max_length=48, seed=1, replay="balanced:80")

    return AdapterHub.open(trained_hub("two-tasks", train))


def opened(folder: Path, dtype: torch.dtype, name: str = "default") -> Any:
    base = AutoModelForCausalLM.from_pretrained(resolve(TINY), dtype=dtype)
    return PeftModel.from_pretrained(base, folder, adapter_name=name).eval()


@torch.no_grad()
def test_a_merge_is_the_same_in_plain_peft_and_in_the_16_bit_base(hub: AdapterHub) -> None:
    hub.merge(TASKS, name="sum", weights=[1, 1], evaluate=False)
    ids = torch.arange(20, 60)[None]
    wanted = opened(hub.path("sum"), torch.float32)(ids).logits
    both = opened(hub.path(TASKS[0]), torch.float32, TASKS[0])
    both.load_adapter(str(hub.path(TASKS[1])), TASKS[1])
    both.base_model.set_adapter(list(TASKS))
    assert torch.allclose(both(ids).logits, wanted, atol=1e-3)  # both active at once: the sum, by definition
    merged = opened(hub.path("sum"), torch.bfloat16).merge_and_unload()
    assert merged.dtype == torch.bfloat16
    assert (merged(ids).logits.float() - wanted).norm() < 0.02 * wanted.norm()  # what bf16 rounds away


def test_a_student_keeps_what_a_merge_loses_and_everything_can_be_forgotten(hub: AdapterHub) -> None:
    merged = hub.merge(TASKS, name="merged", method="learned", rank=8, options={"learned.epochs": 1})
    student = hub.distill(TASKS, name="student", epochs=3, seed=1)
    lowest = {made.name: min(made.manifest["retention"].values()) for made in (merged, student)}
    assert lowest["student"] > lowest["merged"]
    assert lowest["student"] > 0.7
    hub.promote("student", max_forgetting=1)
    assert hub.registry.serving() == dict.fromkeys(TASKS, "student@v1")
    small = hub.prune("student", rank=4)
    assert small.ref == "student@v2"
    samples = [line for line in (hub.get("commands").path / "replay.jsonl").read_text().splitlines() if len(line) > 80]
    assert samples
    plan = hub.forget_task("commands")
    gone = {version.ref: version.does for version in plan.versions}
    assert gone["commands@v1"] == "removed"
    assert {"merged@v1", "student@v1", "student@v2"} <= gone.keys()
    assert hub.registry.serving() == {"tickets": "tickets@v1"}
    assert hub.prove_forgotten("commands").found == ()
    kept = b"".join(p.read_bytes() for p in hub.folder.rglob("*") if p.is_file())
    inputs = [line.split('"input": "')[1].split('"')[0] for line in samples]
    assert not [text for text in inputs if len(text) > 20 and text.encode() in kept]
    with pytest.raises(UnknownNameError):
        hub.get("commands")
    assert hub.verify() == []
