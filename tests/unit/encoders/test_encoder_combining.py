"""Versions made of encoders' versions: LoRA factors are merged, heads are kept for each task."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from encoder_hubs import ANIMALS, COLOURS, QUICK, data, new_hub, teach
from safetensors.torch import load_file

from adapterhub_cl import AdapterHub
from adapterhub_cl.adapters.head_files import StoredHead, joined, read_layout
from adapterhub_cl.adapters.lora_files import LoraFile
from adapterhub_cl.merging import ROOM
from adapterhub_cl.progress import Reporter

TEXTS = ["red stone house 7", "dog river cloud 8", "green table stone 3"]


@pytest.fixture(scope="session")
def taught(
    pico_path: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory, trained_hub: Callable[..., Path]
) -> Callable[[str], Path]:
    """Gives the folder of a new copy of a hub with two tasks on such a base; a process of tests trains it once."""

    def copy(kind: str) -> Path:
        def train(place: Path) -> None:
            folder = tmp_path_factory.mktemp("combining")
            hub = new_hub(place, pico_path(kind))
            teach(hub, folder, "colours", COLOURS, replay="balanced:24")
            teach(hub, folder, "animals", ANIMALS, rank=2, replay="balanced:24")

        return trained_hub(f"combining-{kind}-{os.getpid()}", train)  # each process has pico bases of its own

    return copy


@pytest.fixture(params=["bert_body", "roberta"])
def original(request: Any, taught: Callable[[str], Path]) -> Path:
    return taught(request.param)


@pytest.fixture
def hub(original: Path) -> AdapterHub:
    """A copy that a test may change."""
    return AdapterHub.open(original, dtype="fp32")


def head(record: Any, task: str) -> torch.Tensor:
    with LoraFile(record.path) as file:
        found = file.head()
    assert found is not None
    weight, bias, _ = found.part(task)
    return torch.cat([weight, bias[:, None]], 1)


METHODS = sorted(set(ROOM.names()) - {"slao"})


@pytest.mark.parametrize(
    ("original", "method"),
    [
        *(("bert_body", method) for method in METHODS),
        # Which base it is makes no difference to a method: one of them is enough in the default run.
        *(pytest.param("roberta", m, marks=[pytest.mark.slow] if m != "linear" else []) for m in METHODS),
    ],
    indirect=["original"],
)
def test_a_merge_keeps_the_heads_to_the_bit(hub: AdapterHub, method: str) -> None:
    record = hub.merge(["colours", "animals"], name="both", method=method)
    for task in ("colours", "animals"):
        assert torch.equal(head(record, task), head(hub.get(task), task))
    assert set(record.retention) == {"colours", "animals"}
    assert hub.predict(TEXTS, adapter="both", task="animals")[1].prediction in ANIMALS
    assert hub.verify() == []


def test_one_adapter_at_weight_one_stays_what_it_is(hub: AdapterHub) -> None:
    hub.merge(expression="1*colours + 0.000001*animals", name="same")
    for one, other in zip(
        hub.predict(TEXTS, adapter="same", task="colours"), hub.predict(TEXTS, adapter="colours"), strict=True
    ):
        torch.testing.assert_close(
            torch.tensor(list(one.scores.values())), torch.tensor(list(other.scores.values())), atol=1e-4, rtol=0
        )


def test_a_merged_version_serves_both_tasks_in_a_mixed_batch(hub: AdapterHub) -> None:
    record = hub.merge(["colours", "animals"], name="both")
    hub.promote("both", max_forgetting=1.0)
    found = hub.predict(TEXTS, fallback=False)
    assert {p.adapter for p in found} == {record.ref}
    assert all(p.prediction in (COLOURS if p.task == "colours" else ANIMALS) for p in found)


def test_a_student_answers_as_its_teachers(hub: AdapterHub) -> None:
    record = hub.distill(["colours", "animals"], name="both", rank=6, epochs=12, learning_rate=0.01, batch_size=8)
    assert min(record.retention.values()) > 0.8
    rows = json.loads((record.path / "heads.json").read_text())["rows"]
    assert {task: set(labels) for task, labels in rows.items()} == {"colours": set(COLOURS), "animals": set(ANIMALS)}


def test_unlabelled_text_is_asked_of_every_teacher(hub: AdapterHub, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("red stone house 99\ncat river house 98\n")
    record = hub.distill(
        ["colours", "animals"], name="both", data=[str(tmp_path / "text.txt")], epochs=1, features="1", evaluate=False
    )
    told = json.loads((record.path / "recipe.json").read_text())["report"]
    assert told["rows"] == {"colours": 26, "animals": 26}


@pytest.mark.parametrize("kind", ["int8", "int4", "bf16"])
def test_pruning_leaves_the_head_whole(hub: AdapterHub, kind: str, tmp_path: Path) -> None:
    record = hub.prune("colours", rank=2, store=kind)
    exact = kind != "bf16"
    torch.testing.assert_close(
        head(record, "colours"),
        head(hub.get("colours@v1"), "colours"),
        atol=0 if exact else 1e-2,
        rtol=0,
        check_dtype=False,
    )
    assert record.rank == 2
    ours = hub.predict(TEXTS, adapter=record.ref)
    hub.export(record.ref, tmp_path / "out")
    assert "base_model.model.classifier" in " ".join(load_file(tmp_path / "out" / "adapter_model.safetensors"))
    back = hub.import_adapter(tmp_path / "out", "back", task="colours")
    for one, other in zip(hub.predict(TEXTS, adapter=back.ref), ours, strict=True):
        assert one.scores == pytest.approx(other.scores, abs=1e-5)


def test_redundant_and_unused_adapters_are_looked_for(hub: AdapterHub) -> None:
    found = hub.redundant(threshold=0.01)
    assert {tuple(sorted(pair["adapters"])) for pair in found["pairs"]} == {("animals@v1", "colours@v1")}
    assert found["pairs"][0]["agreement"] is None


def test_a_task_is_forgotten_with_its_rows(hub: AdapterHub, tmp_path: Path) -> None:
    hub.merge(["colours", "animals"], name="both")
    shared = hub.add_task(
        "sizes",
        data(tmp_path, ("tiny", "huge")),
        **{**QUICK, "rank": 2},
        strategy="replay",
        replay="balanced:8",
        max_forgetting=1.0,
    )
    assert "animals" in json.loads((shared.path / "heads.json").read_text())["rows"]
    hub.forget_task("animals")
    for path in hub.folder.rglob("heads.json"):
        assert "animals" not in json.loads(path.read_text())["rows"]
    assert hub.verify() == []
    assert hub.predict(TEXTS[:1], task="colours")[0].prediction in COLOURS


@pytest.mark.parametrize("refs", [["colours@v1", "colours@v2"], ["colours@v2", "colours@v1"]])
def test_a_merge_of_two_versions_keeps_every_label(hub: AdapterHub, refs: list[str], tmp_path: Path) -> None:
    more = data(tmp_path, (*COLOURS, "grey"))
    hub.update("colours", more, max_forgetting=1, **QUICK)
    record = hub.merge(refs, name="both")
    for label in COLOURS:
        rows = [head(hub.get(ref), "colours")[place(hub.get(ref), label)] for ref in ("colours@v2", "both")]
        assert torch.equal(*rows), "the newest version's row"
    assert set(read_layout(record.path)["colours"]) == {*COLOURS, "grey"}
    notes: list[str] = []
    hub.promote("colours@v1", max_forgetting=1, reporter=Notes(notes))
    hub.update("colours", more, max_forgetting=1, reporter=Notes(notes), **QUICK)
    assert "note: continues from colours@v2, the newest version; colours@v1 is the one that serves" in notes
    assert "note: colours@v1 does not know the labels that colours has gained: grey" in notes


def test_labels_that_only_another_adapter_has_are_added(hub: AdapterHub, tmp_path: Path) -> None:
    with LoraFile(hub.path("colours")) as one, LoraFile(hub.path("animals")) as other:
        first, second = one.head(), other.head()
    assert first is not None
    assert second is not None
    renamed = StoredHead({"colours": {"red": 1, "pink": 0}}, second.tensors, second.final)
    both = joined([(first, "colours"), (renamed, "colours"), (second, "animals")])
    assert list(both.layout["colours"]) == [*first.layout["colours"], "pink"]
    assert torch.equal(both.weight[both.layout["colours"]["pink"]], second.weight[0].float())
    assert torch.equal(both.weight[both.layout["colours"]["red"]], first.weight[first.layout["colours"]["red"]].float())
    assert len(both.weight) == len(COLOURS) + 1 + len(ANIMALS)


def place(record: Any, label: str) -> int:
    return list(read_layout(record.path)["colours"]).index(label)


class Notes(Reporter):
    def __init__(self, found: list[str]) -> None:
        self.found = found

    def note(self, text: str) -> None:
        self.found.append(text)
