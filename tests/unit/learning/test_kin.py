"""The strategy kin: other tasks' versions are tried, the best start must beat a fresh adapter, and it is told."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from encoder_hubs import ANIMALS, COLOURS, QUICK, Notes, data, new_hub

from adapterhub_cl import AdapterHub
from adapterhub_cl.adapters.lora import new_adapter
from adapterhub_cl.adapters.starting import put_factors, put_rows
from adapterhub_cl.bank.shelf import Shelved
from adapterhub_cl.errors import UsageError
from adapterhub_cl.learning import kin_trial
from adapterhub_cl.learning.kin_trial import with_weights
from adapterhub_cl.learning.linear_probe import own_head_loss, probe_loss
from adapterhub_cl.settings import TrainingSettings
from adapterhub_cl.strategies import Kin
from adapterhub_cl.strategies._race import lead, lists, parted
from adapterhub_cl.types import Task

OWN: dict[str, Any] = {**QUICK, "replay": "balanced:12", "max_forgetting": 1.0}
KIN: dict[str, Any] = {**OWN, "strategy": "kin", "epochs": 2}


def files_of(record: Any) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in record.path.iterdir() if p.is_file()}


@pytest.fixture(scope="module")
def first(pico_path: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A hub with two tasks: colours, which the new task resembles, and animals, which it does not."""
    folders: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in folders:
            place = tmp_path_factory.mktemp("kin")
            made = new_hub(place / "hub", pico_path(kind))
            made.add_task("colours", data(place, COLOURS), **OWN)
            made.add_task("animals", data(place, ANIMALS), **OWN)
            folders[kind] = place / "hub"
        return folders[kind]

    return folder


def copied(folder: Path, place: Path) -> AdapterHub:
    return AdapterHub.open(shutil.copytree(folder, place), dtype="fp32")


@pytest.mark.parametrize(
    ("kind", "rows", "decided_on"),
    [("llama", 80, 20), ("bert", 80, 20), ("llama", 24, 24)],
    ids=["llama", "bert", "few rows, each third held out in turn"],
)
def test_a_task_that_resembles_another_starts_from_it_and_says_so(
    first: Callable[[str], Path], tmp_path: Path, kind: str, rows: int, decided_on: int
) -> None:
    hub = copied(first(kind), tmp_path / "hub")
    old, notes = files_of(hub.get("colours")), Notes()
    made = hub.add_task("paints", data(tmp_path, COLOURS, rows, 3), **{**KIN, "dev_share": 0.0}, reporter=notes)
    start = made.manifest["start"]
    assert start["rows"] == decided_on
    assert start["from"] == start["best"] == {"colours@v1": 1.0}
    assert start["kin"] < start["fresh"]
    tried = {tuple(row["from"]): row["loss"] for row in start["tried"]}
    assert tried["colours@v1",] < tried["animals@v1",]
    assert ("colours@v1", "animals@v1") in tried, "the mean of the best two"
    edges = [(edge.child, edge.parent, edge.relation) for edge in hub.lineage("paints")]
    assert ("paints@v1", "colours@v1", "started_from") in edges
    told = json.loads((made.path / "training.json").read_text())["strategy_summary"]["kin"]
    assert [row["from"] for row in told["race"]][:2] == ["a fresh adapter", {"colours@v1": 1.0}]
    if rows == 24:  # one start, and as many passes over two thirds of the rows as the run makes over all
        assert (len(told["race"]), told["steps"]) == (2, 4)
    assert any("the adapter starts from it" in line for line in notes.said)
    assert files_of(hub.get("colours")) == old
    assert hub.predict(["red stone"], task="colours")[0].adapter == "colours@v1"
    page = hub.report(tmp_path / "report.html").read_text()
    assert "Who helped whom" in page


def test_what_descends_from_a_task_does_not_race_for_it(first: Callable[[str], Path], tmp_path: Path) -> None:
    """It has learned the rows that the race holds out."""
    hub, notes = copied(first("bert"), tmp_path / "hub"), Notes()
    hub.add_task("paints", data(tmp_path, COLOURS, 48, 3), **KIN)
    again = hub.add_task("colours", data(tmp_path, COLOURS), **KIN, reporter=notes)
    assert ["paints@v1" in row["from"] for row in again.manifest["start"]["tried"]] == [False]
    assert "note: paints@v1 is not tried: it descends from a version that has learned colours" in notes.said
    later = hub.add_task("paints", data(tmp_path, COLOURS, 48, 3), **KIN)
    assert ["colours" in ref for row in later.manifest["start"]["tried"] for ref in row["from"]].count(True), (
        "what paints began as has not learned its rows"
    )


def test_a_damaged_version_is_passed_over(first: Callable[[str], Path], tmp_path: Path) -> None:
    hub, notes = copied(first("llama"), tmp_path / "hub"), Notes()
    (hub.get("animals").path / "replay.jsonl").unlink()
    made = hub.add_task("paints", data(tmp_path, COLOURS, 48, 3), **KIN, reporter=notes)
    assert made.manifest["start"]["from"] == {"colours@v1": 1.0}
    assert any(note.startswith("warning: animals@v1 is not tried: ") for note in notes.said)


def test_a_task_that_no_other_helps_starts_fresh_as_isolated_does(first: Callable[[str], Path], tmp_path: Path) -> None:
    """No lead is enough for so high a bar; then the race must leave nothing behind."""
    hub = copied(first("llama"), tmp_path / "hub")
    found = data(tmp_path, COLOURS, 48, 5)
    made = hub.add_task("fresh", found, **KIN, options={"kin.sure": 1e9})
    assert made.manifest["start"]["from"] == {}
    plain = hub.add_task("plain", found, **{**KIN, "strategy": "isolated"})
    assert not [edge for edge in hub.lineage("fresh") if edge.child == "fresh@v1"]
    one, two = (torch_file(record) for record in (made, plain))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one), "a trial leaves no trace"


@pytest.mark.parametrize("rows", [80, 24])
def test_a_version_with_the_very_same_labels_always_races(
    first: Callable[[str], Path], tmp_path: Path, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    worst_first = lambda found: sorted(found, key=lambda kin: -kin.loss)  # noqa: E731
    monkeypatch.setattr(kin_trial, "_ordered", worst_first)
    settings = {**KIN, "dev_share": 0.0, "options": {"kin.starts": 1}}
    made = copied(first("bert"), tmp_path / "hub").add_task("paints", data(tmp_path, COLOURS, rows, 3), **settings)
    race = json.loads((made.path / "training.json").read_text())["strategy_summary"]["kin"]["race"]
    assert [row["from"] for row in race] == ["a fresh adapter", {"animals@v1": 1.0}, {"colours@v1": 1.0}]
    assert made.manifest["start"]["from"] == {"colours@v1": 1.0}


def torch_file(record: Any) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(record.path / "adapter_model.safetensors")


def test_few_rows_or_an_empty_hub_are_told(pico_path: Callable[[str], Path], tmp_path: Path) -> None:
    hub = new_hub(tmp_path / "hub", pico_path("llama"))
    notes = Notes()
    alone = hub.add_task("colours", data(tmp_path, COLOURS), **{**KIN, "epochs": 1}, reporter=notes)
    assert "start" not in alone.manifest
    assert any("nothing of other tasks could be tried" in line for line in notes.said)
    few = hub.add_task("few", data(tmp_path, ANIMALS, 11), **{**KIN, "epochs": 1, "dev_share": 0.0}, reporter=notes)
    assert "start" not in few.manifest
    assert any("11 rows are too few to compare starts on" in line for line in notes.said)
    with pytest.raises(UsageError, match="--on-top-of cannot be combined with kin"):
        hub.add_task("more", data(tmp_path, ANIMALS), **KIN, on_top_of="colours")
    with pytest.raises(UsageError, match="kin makes a fresh adapter"):
        hub.update("colours", data(tmp_path, COLOURS, 12, 4), strategy="kin")
    with pytest.raises(UsageError, match="DoRA"):
        hub.add_task("more", data(tmp_path, ANIMALS), **KIN, dora=True)


class Killed(Exception):
    """Stands for kill -9."""


class KillAt(Notes):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def note(self, text: str) -> None:
        super().note(text)
        if self.text in text:
            raise Killed


def test_a_killed_run_goes_on_with_the_start_that_it_chose(first: Callable[[str], Path], tmp_path: Path) -> None:
    hub, other = (copied(first("llama"), tmp_path / name) for name in ("hub", "other"))
    rows_ = data(tmp_path, COLOURS, 48, 7)
    whole = other.add_task("killed", rows_, **KIN)
    with pytest.raises(Killed):
        hub.add_task("killed", rows_, **KIN, reporter=KillAt("epoch 2 of 2"))
    notes = Notes()
    again = hub.add_task("killed", resume=True, reporter=notes)
    assert again.manifest["start"]["from"] == {"colours@v1": 1.0}
    assert not any("kin: after" in line for line in notes.said), "the race is not run again"
    one, two = torch_file(whole), torch_file(again)
    assert all(torch.equal(value, two[key]) for key, value in one.items())


@pytest.mark.parametrize(("task", "goes"), [("colours", True), ("animals", False)])
def test_an_unfinished_run_goes_with_the_task_that_it_started_from(
    first: Callable[[str], Path], tmp_path: Path, task: str, goes: bool
) -> None:
    hub = copied(first("llama"), tmp_path / "hub")
    with pytest.raises(Killed):
        hub.add_task("killed", data(tmp_path, COLOURS, 48, 7), **KIN, reporter=KillAt("epoch 2 of 2"))
    hub.forget_task(task, key=tmp_path / "key")
    assert (not list(hub.registry.runs_dir.glob("killed-*"))) is goes
    assert hub.prove_forgotten(task, key=tmp_path / "key").ok
    if not goes:
        assert hub.add_task("killed", resume=True).manifest["start"]["from"] == {"colours@v1": 1.0}


def factors(rank: int, seed: int, layer: str = "model.layers.0.self_attn.q_proj") -> dict[str, Any]:
    draw = torch.Generator().manual_seed(seed)
    return {layer: (torch.randn(rank, 32, generator=draw), torch.randn(32, rank, generator=draw))}


@pytest.mark.parametrize("rank", [2, 6])
def test_a_mixture_in_the_shape_of_the_new_adapter(pico_base: Any, rank: int) -> None:
    """Exactly the mean of ΔW where the rank holds it, else its best approximation (Eckart-Young)."""
    layer = "model.layers.0.self_attn.q_proj"
    adapters = {"a@v1": Shelved(factors(1, 1)), "b@v1": Shelved(factors(rank - 1, 2))}
    settings = TrainingSettings(rank=2)
    found = with_weights(Kin({"a@v1": 0.5, "b@v1": 0.5}, 0.0), adapters, pico_base, settings)
    (a1, b1), (a2, b2) = (adapters[ref].factors[layer] for ref in adapters)
    mean = 0.5 * b1 @ a1 + 0.5 * b2 @ a2
    u, s, vh = torch.linalg.svd(mean)
    best = u[:, :2] * s[:2] @ vh[:2]
    assert found.error == pytest.approx(float(s[2:].norm() / s.norm()), abs=1e-5)
    with new_adapter(pico_base, settings, "CAUSAL_LM") as model:
        assert put_factors(model, {**found.layers, "no.such.layer": found.layers[layer]}) == 1
        module = model.get_base_model().get_submodule(layer)
        torch.testing.assert_close(module.get_delta_weight("default"), best, atol=1e-4, rtol=1e-4)
        with pytest.raises(ValueError, match="rank 3"):
            put_factors(model, factors(3, 4))


def test_a_head_for_the_same_labels_is_carried_over(load_pico: Callable[..., Any]) -> None:
    """By label, whatever the order of the rows; a head for other labels is left alone."""
    base, settings = load_pico("bert"), TrainingSettings(rank=2)
    rows = {label: (torch.full((32,), float(k)), k / 10) for k, label in enumerate(("dog", "cat"))}
    for labels, same in ((("cat", "dog"), True), (("cat", "cow"), False)):
        with new_adapter(base, settings, "SEQ_CLS", tasks=[Task("animals", "choice", labels=labels)]) as model:
            layer = model.get_base_model().classifier
            put_rows(model, rows)
            assert (layer.weight[0].eq(1).all() and layer.weight[1].eq(0).all()).item() is same
            assert layer.bias.tolist() == (pytest.approx([0.1, 0.0]) if same else [0.0, 0.0])


def test_the_lead_is_of_pairs() -> None:
    mean, error = lead([2.0, 4.0, 9.0, 1.0], [1.0, 2.0, 6.0, -1.0])
    assert mean == 2.0
    assert error == pytest.approx((2 / 3 / 4) ** 0.5)


@pytest.mark.parametrize(("rows", "decided_on"), [(12, 12), (63, 63), (64, 16), (1000, 40)])
def test_what_a_race_is_decided_on_is_not_learned_in_it(rows: int, decided_on: int) -> None:
    parts = parted(rows, 40, "seed")
    assert sorted({row for part in parts for row in part.held}) == sorted(row for part in parts for row in part.held)
    assert sum(len(part.held) for part in parts) == decided_on
    assert all(sorted(part.held + part.learned) == list(range(rows)) for part in parts)
    assert parted(11, 40, "seed") == []


def test_the_steps_of_a_race_are_passes_over_its_rows() -> None:
    rows = list(range(10, 17))
    steps = lists(rows, 3, 5, random.Random(0))
    assert [len(step) for step in steps] == [3] * 5
    drawn = [row for step in steps for row in step]
    assert sorted(drawn[:7]) == sorted(drawn[7:14]) == rows
    assert drawn[:7] != drawn[7:14]
    assert lists([1, 2], 3, 1, random.Random(0))[0] in ([1, 2, 1], [1, 2, 2], [2, 1, 1], [2, 1, 2])


def test_a_probe_knows_what_can_be_told_apart() -> None:
    draw = torch.Generator().manual_seed(0)
    labels = [k % 2 for k in range(40)]
    noise = torch.randn(40, 6, generator=draw)
    told = noise.clone()
    told[:, 0] += 6 * torch.tensor(labels)
    assert probe_loss(told, labels) < 0.5 < 0.65 < probe_loss(noise, labels)
    head = [(torch.tensor([0.0, 1.0]), 0.0), (torch.tensor([1.0, 0.0]), 0.5)]
    by_hand = float(torch.log(1 + torch.exp(torch.tensor(1.0 - 2.5))))
    assert own_head_loss(torch.tensor([[2.0, 1.0]]), [1], head) == pytest.approx(by_hand)
