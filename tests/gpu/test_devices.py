"""The whole of the work on a GPU: `make test-gpu`. What can be tried on a CPU runs there too, in `make test`.

Each test takes the device from a fixture. The ones on a GPU carry the mark `gpu`, and skip with a reason where there is
none.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from adapterhub_cl import AdapterHub
from adapterhub_cl.errors import TrainingInterrupted
from adapterhub_cl.progress import Reporter

KINDS = ("nf4", "int8", "none")
WORDS = {"good": "positive", "bad": "negative", "great": "positive", "awful": "negative"}
QUICK: dict[str, Any] = {"epochs": 2, "rank": 4, "max_length": 48, "batch_size": 8, "seed": 3, "checkpoint_every": 1}
WEIGHTS = "adapter_model.safetensors"
NEEDED = "needs a CUDA device"

on_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason=NEEDED)]


def with_marks(test: Callable[..., Any]) -> Callable[..., Any]:
    for mark in on_gpu:
        test = mark(test)
    return test


PLACES = [("cpu", "nf4"), ("cpu", "none"), *(pytest.param(("cuda", kind), marks=on_gpu) for kind in KINDS)]


@pytest.fixture(params=PLACES, ids=lambda place: "-".join(place))
def place(request: pytest.FixtureRequest) -> tuple[str, str]:
    """A device and a quantisation."""
    device, quantization = request.param
    return device, quantization


@pytest.fixture
def device(place: tuple[str, str]) -> str:
    return place[0]


@pytest.fixture
def quantization(place: tuple[str, str]) -> str:
    return place[1]


@pytest.fixture
def make(device: str, quantization: str, pico_path: Callable[[str], Path], tmp_path: Path) -> Callable[..., AdapterHub]:
    """A hub on the device, in 16 bits."""

    def hub(name: str = "hub") -> AdapterHub:
        base = str(pico_path("llama"))
        return AdapterHub.init(tmp_path / name, base, quantization=quantization, device=device, dtype="bf16")

    return hub


@pytest.fixture
def rows(tmp_path: Path) -> Callable[..., Path]:
    def write(name: str, count: int = 32, answers: tuple[str, str] = ("positive", "negative")) -> Path:
        path = tmp_path / f"{name}.jsonl"
        words = list(WORDS)
        lines = [
            {"text": f"{words[k % 4]} {name} {k}", "label": answers[WORDS[words[k % 4]] == "negative"]}
            for k in range(count)
        ]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        return path

    return write


class StopAt(Reporter):
    def __init__(self, text: str) -> None:
        self.text = text
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)
        if self.text in text:
            raise KeyboardInterrupt


def weights(hub: AdapterHub, ref: str) -> bytes:
    return (hub.path(ref) / WEIGHTS).read_bytes()


def test_train_score_and_resume_to_the_same_bits(make: Callable[..., AdapterHub], rows: Callable[..., Path]) -> None:
    whole, broken = make("whole"), make("broken")
    data, test = rows("mood"), rows("test", 12)
    record = whole.add_task("mood", data, eval=test, **QUICK)
    assert json.loads((whole.path("mood") / "training.json").read_text())["peak_memory_bytes"] > 0
    with pytest.raises(TrainingInterrupted):
        broken.add_task("mood", data, eval=test, reporter=StopAt("epoch 1 of 2"), **QUICK)
    broken.add_task("mood", resume=True)
    assert weights(broken, "mood") == weights(whole, "mood")
    assert broken.get("mood").metrics == record.metrics
    _, scored = whole.evaluate("mood", data=test)[0]
    assert scored.value == pytest.approx(record.metrics["accuracy"]), "an evaluation is what predict gives"
    assert whole.verify(serving=True) == []


def test_merge_route_mix_and_distil(make: Callable[..., AdapterHub], rows: Callable[..., Path]) -> None:
    hub = make()
    for name, answers in (("mood", ("positive", "negative")), ("colour", ("red", "blue"))):
        hub.add_task(name, rows(name, answers=answers), **QUICK)
    merged = hub.merge(["mood", "colour"], name="both", method="ties", rank=4, evaluate=False)
    assert merged.rank == 4
    student = hub.distill(["mood", "colour"], name="student", epochs=1, seed=1)
    assert set(student.tasks) == {"mood", "colour"}
    texts = ["good mood 3", "bad colour 5", "great mood 9", "awful colour 2"]
    tasks = ["mood", "colour"] * 2
    alone = [hub.predict([text], task=task, adapter=task)[0] for text, task in zip(texts, tasks, strict=True)]
    with hub.engine() as engine:
        asked = [engine.ask(request) for request in _requests(texts, tasks)]
        mixed = [future.result(timeout=120) for future in asked]
        routed = engine.predict(texts)
    assert [one.prediction for one in mixed] == [one.prediction for one in alone]
    for one, other in zip(mixed, alone, strict=True):
        assert one.confidence == pytest.approx(other.confidence, abs=0.03)
    assert {one.task for one in routed} <= {"mood", "colour", ""}, "nothing for what no task owns"
    assert hub.verify() == []


def _requests(texts: list[str], tasks: list[str]) -> list[Any]:
    from adapterhub_cl.inference.requests import AnswerRequest
    from adapterhub_cl.types import Example

    return [AnswerRequest(Example(text, ""), task, task) for text, task in zip(texts, tasks, strict=True)]


def test_what_is_exported_answers_the_same_in_plain_peft(
    make: Callable[..., AdapterHub], rows: Callable[..., Path], device: str, quantization: str, tmp_path: Path
) -> None:
    if quantization == "int8":
        pytest.skip("plain PEFT rounds the inputs of int8 layers row by row in another batch")
    if (quantization, device) == ("nf4", "cpu"):
        pytest.skip(
            "bitsandbytes 0.50 itself repacks 4-bit weights on a CPU, which fails for layers as narrow as these"
        )
    hub = make()
    hub.add_task("mood", rows("mood"), **QUICK)
    model, tokenizer = hub.load("mood")
    inputs = tokenizer(["good mood 3", "bad mood 4"], return_tensors="pt", padding=True).to(device)
    with torch.no_grad():
        wanted = model(**inputs).logits.float()
    folder = hub.export("mood", tmp_path / "out")
    kept = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    plain = AutoModelForCausalLM.from_pretrained(
        hub.base.source,
        dtype=torch.bfloat16,
        device_map={"": device},
        quantization_config=kept if quantization == "nf4" else None,
    )
    opened = PeftModel.from_pretrained(plain, folder).eval()
    assert AutoTokenizer.from_pretrained(folder).vocab_size == tokenizer.vocab_size
    with torch.no_grad():
        found = opened(**inputs).logits.float()
    assert (found - wanted).norm() < 0.03 * wanted.norm()


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@with_marks
def test_gradients_of_a_gpu_are_those_of_a_cpu(load_pico: Callable[..., Any], kind: str) -> None:
    from toys import stir, toy_settings

    from adapterhub_cl.adapters.fused import fused
    from adapterhub_cl.adapters.lora import new_adapter, trainable
    from adapterhub_cl.bases.loading import inspect_base, load_base
    from adapterhub_cl.data.batches import collate
    from adapterhub_cl.data.tokenise import Tokens
    from adapterhub_cl.objectives.causal_lm import Objective
    from adapterhub_cl.training import speed

    path = str(load_pico(kind).path)
    tokens = [Tokens((1, 50, 51, *range(60, 60 + n)), (70 + n, 2)) for n in (0, 1, 5, 9)]
    found = {}
    for where in ("cpu", "cuda"):
        base = load_base(inspect_base(path, "none"), device=where, dtype="fp32")
        with new_adapter(base, toy_settings(rank=4), "CAUSAL_LM") as model:
            stir(model)
            for way in speed.WAYS.values():
                batch = collate(tokens, [0, 1, 2, 3], 0, padding=way.padding).to(base.device)
                with speed.use(model, way), fused(model, base.dtype):
                    loss = Objective().losses(model, batch).mean()
                    parts = torch.autograd.grad(loss, list(trainable(model).values()))
                found[where, way.describe()] = torch.cat([part.flatten().cpu() for part in parts])
    wanted = next(iter(found.values()))
    for name, gradient in found.items():
        assert (gradient - wanted).norm() <= 1e-4 * wanted.norm(), name


@with_marks
def test_scores_of_a_gpu_are_those_of_a_cpu(
    make: Callable[..., AdapterHub], rows: Callable[..., Path], device: str, tmp_path: Path
) -> None:
    if device != "cuda":
        pytest.skip("compares a GPU with a CPU")
    hub, data = make(), rows("mood", 64)
    hub.add_task("mood", data, **{**QUICK, "epochs": 4})
    other = AdapterHub.open(hub.folder, device="cpu", dtype="bf16")
    texts = [json.loads(line)["text"] for line in data.read_text(encoding="utf-8").splitlines()]
    there, here = hub.predict(texts, task="mood"), other.predict(texts, task="mood")
    sure = [(a, b) for a, b in zip(there, here, strict=True) if abs((b.confidence or 0) - 0.5) > 0.05]
    assert all(a.prediction == b.prediction for a, b in sure)
    assert max(abs((a.confidence or 0) - (b.confidence or 0)) for a, b in zip(there, here, strict=True)) < 0.05


@with_marks
def test_two_processes_on_one_card(pico_path: Callable[[str], Path], rows: Callable[..., Path], tmp_path: Path) -> None:
    running = []
    for name in ("one", "two"):
        hub = AdapterHub.init(tmp_path / name, str(pico_path("llama")), device="cuda")
        words = ["-m", "cl_adapter", "--hub", str(hub.folder), "--json", "--device", "cuda", "add-task", "mood"]
        command = [sys.executable, *words, str(rows("mood")), "--epochs", "2", "--rank", "4", "--max-length", "48"]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(os.environ)))
    for process in running:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err.decode()
        assert json.loads(out)["ref"] == "mood@v1"
    made = [weights(AdapterHub.open(tmp_path / name), "mood") for name in ("one", "two")]
    assert made[0] == made[1]


@pytest.fixture
def crowded() -> Iterator[Callable[[int], None]]:
    """Fills the card up to some bytes, as another process would."""
    held: list[torch.Tensor] = []

    def fill(left: int) -> None:
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info()
        if free > left:
            held.append(torch.empty(free - left, dtype=torch.uint8, device="cuda"))

    yield fill
    held.clear()
    torch.cuda.empty_cache()


@with_marks
def test_a_card_that_is_nearly_full_is_trained_on_in_pieces(
    pico_path: Callable[[str], Path],
    rows: Callable[..., Path],
    tmp_path: Path,
    crowded: Callable[[int], None],
) -> None:
    """The run begins with room, and another process takes it meanwhile: it goes on with fewer rows at a time."""
    data, settings = rows("mood", 512), {**QUICK, "batch_size": 256, "epochs": 1}
    wanted = AdapterHub.init(tmp_path / "free", str(pico_path("llama")), device="cuda", dtype="fp32")
    wanted.add_task("mood", data, **settings)

    class Fill(Reporter):
        notes: list[str] = []  # noqa: RUF012 (one test)

        def note(self, text: str) -> None:
            self.notes.append(text)
            if text.startswith("training on"):
                crowded(24 << 20)

    hub = AdapterHub.init(tmp_path / "full", str(pico_path("llama")), device="cuda", dtype="fp32")
    hub.add_task("mood", data, reporter=Fill(), **settings)
    assert any("out of memory" in note for note in Fill.notes)
    ours, theirs = (hub.get("mood").manifest["training"]["steps"] for hub in (hub, wanted))
    assert ours == theirs
    assert hub.verify() == []
