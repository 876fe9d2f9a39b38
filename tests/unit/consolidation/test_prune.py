"""The verb `prune` on a hub of a pico base: what is written, refused, searched; proposals; what a crash leaves."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from adapterhub_cl import AdapterHub
from adapterhub_cl.adapters.lora_files import LoraFile, is_packed
from adapterhub_cl.consolidation import derived, proposals
from adapterhub_cl.consolidation import prune as verb
from adapterhub_cl.errors import AdapterError, GateRefused, IntegrityError, StorageError, UsageError
from adapterhub_cl.evaluation.gate import Effect
from adapterhub_cl.evaluation.measuring import Yardstick
from adapterhub_cl.merging.factors import Factors, difference, norm
from adapterhub_cl.progress import LineReporter, Reporter
from adapterhub_cl.registry import drafts, files


def rows(count: int, start: int = 0) -> list[dict[str, str]]:
    words = ("good", "bad", "great", "awful")
    return [
        {"text": f"{words[i % 4]} thing {i}", "label": "negative" if i % 2 else "positive"}
        for i in range(start, start + count)
    ]


def write(path: Path, found: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def made(pico_path: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prune")
    hub = AdapterHub.init(folder / "hub", str(pico_path("llama")), quantization="none", dtype="fp32")
    train, test = write(folder / "train.jsonl", rows(80)), write(folder / "test.jsonl", rows(20, 200))
    hub.add_task("mood", train, eval=test, epochs=1, rank=6, replay="balanced:60", learning_rate=0.02)
    return folder / "hub"


@pytest.fixture
def hub(made: Path, tmp_path: Path) -> AdapterHub:
    return AdapterHub.open(shutil.copytree(made, tmp_path / "hub"), dtype="fp32")


def ranks(path: Path) -> dict[str, int]:
    with LoraFile(path) as adapter:
        return {name: adapter.rank(name) for name in adapter.modules}


def distance(one: Path, other: Path) -> float:
    """‖ΔW₁ − ΔW₂‖ ÷ ‖ΔW₁‖, from the files."""
    away = whole = 0.0
    with LoraFile(one) as a, LoraFile(other) as b:
        for name in a.modules:
            mine = Factors(*a.factors(name))
            away += norm(difference(mine, Factors(*b.factors(name))) if b.rank(name) else mine) ** 2
            whole += norm(mine) ** 2
    return float((away / whole) ** 0.5)


def report(record: Any) -> dict[str, Any]:
    found = json.loads((record.path / "recipe.json").read_text(encoding="utf-8"))
    return {**found["recipe"], **found["report"]}


def state(hub: AdapterHub) -> tuple[list[str], list[str], Any]:
    """Everything that a refused pruning must leave as it was."""
    there = sorted(str(path.relative_to(hub.folder)) for path in (hub.folder / "adapters").rglob("*"))
    return there, [record.ref for record in hub.list(all_versions=True)], hub.registry.serving()


# -- what is written ---------------------------------------------------------------------------------------------


def test_a_pruned_version_says_what_it_lost_and_does_not_serve(hub: AdapterHub) -> None:
    parent = hub.get("mood")
    record = hub.prune("mood", rank=2)
    assert (record.ref, record.kind, record.task, record.rank) == ("mood@v2", "pruned", "mood", 2)
    assert set(ranks(record.path).values()) == {2}
    assert [(e.parent, e.relation) for e in hub.lineage(record.ref)] == [("mood@v1", "pruned_from")]
    assert hub.registry.serving() == {"mood": "mood@v1"}
    told = report(record)
    assert told["error"] == pytest.approx(distance(parent.path, record.path), rel=1e-3)
    assert told["truncation_error"] == pytest.approx(told["error"], rel=1e-3)
    assert record.manifest["truncation_error"] == told["truncation_error"]
    weights = record.path / "adapter_model.safetensors"
    assert told["storage"]["bytes"] == weights.stat().st_size < told["storage"]["bytes_before"]
    assert told["storage"]["bytes_before"] == (parent.path / "adapter_model.safetensors").stat().st_size
    assert record.manifest["storage"] == told["storage"]
    assert {row["rank_before"] for row in told["layers"]} == {6}
    assert (told["verb"], told["parents"], told["rank"]) == ("prune", ["mood@v1"], 2)
    assert (record.path / "replay.jsonl").read_bytes() == (parent.path / "replay.jsonl").read_bytes()
    assert record.manifest["gate"]["effects"][0]["n"] == 20
    assert hub.verify() == []


def test_without_a_word_it_keeps_the_default_energy(hub: AdapterHub) -> None:
    record = hub.prune("mood", evaluate=False)
    told = report(record)
    assert told["energy"] == verb.ENERGY
    assert all(row["truncation_error"] ** 2 <= 1 - verb.ENERGY + 1e-6 for row in told["layers"])
    assert record.manifest["gate"]["effects"] == []


def test_energy_over_all_layers_and_another_name(hub: AdapterHub) -> None:
    record = hub.prune("mood", energy=0.9, across=True, name="small", evaluate=False)
    assert record.ref == "small@v1"
    assert distance(hub.get("mood").path, record.path) ** 2 <= 0.1 + 1e-4
    assert len(set(ranks(record.path).values())) > 1
    model, _ = hub.load("small")  # PEFT opens ranks of its own in each layer, and layers that are left out
    assert model.peft_config["default"].rank_pattern


def test_a_rank_as_the_mean_over_all_layers(hub: AdapterHub) -> None:
    record = hub.prune("mood", rank=2, across=True, evaluate=False)
    layers = len(ranks(hub.get("mood@v1").path))
    assert sum(ranks(record.path).values()) == 2 * layers


def test_magnitude_keeps_the_rank_and_says_its_error(hub: AdapterHub) -> None:
    record = hub.prune("mood", magnitude=0.5, evaluate=False)
    weights = load_file(record.path / "adapter_model.safetensors")
    zero = sum(int((value == 0).sum()) for value in weights.values()) / sum(v.numel() for v in weights.values())
    assert zero == pytest.approx(0.5, abs=0.02)
    told = report(record)
    assert told["truncation_error"] < 1e-5
    assert told["error"] == pytest.approx(distance(hub.get("mood@v1").path, record.path), rel=1e-3)


# -- storage -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "worst"), [("bf16", 0.01), ("int8", 0.02), ("int4", 0.25)])
def test_fewer_bits_answer_the_same_in_and_outside_the_hub(
    kind: str, worst: float, hub: AdapterHub, load_pico: Any, tmp_path: Path
) -> None:
    record = hub.prune("mood", store=kind)
    told = report(record)
    assert set(ranks(record.path).values()) == {6}  # the default energy is for when nothing is asked
    assert is_packed(record.path) is (kind != "bf16")
    assert 0 < told["error"] < worst
    assert told["error"] == pytest.approx(distance(hub.get("mood@v1").path, record.path), rel=1e-2)
    assert (told["storage"]["format"], told["storage"]["format_before"]) == (kind, "fp32")
    assert hub.verify() == []
    exported = hub.export(record.ref, tmp_path / "out")
    assert (exported / "recipe.json").is_file()
    assert not (exported / "adapter_model.packed.safetensors").exists()
    ours, _ = hub.load(record.ref)
    plain = PeftModel.from_pretrained(load_pico().model, str(exported))
    tokens = torch.arange(1, 13)[None]
    with torch.no_grad():
        assert torch.equal(ours(input_ids=tokens).logits, plain(input_ids=tokens).logits)
    assert hub.predict(["good thing"], adapter=record.ref)[0].adapter == record.ref


def test_a_packed_version_is_a_parent_like_any_other(hub: AdapterHub, tmp_path: Path) -> None:
    packed = hub.prune("mood", store="int8", name="packed", evaluate=False)
    smaller = hub.prune("packed", rank=2, evaluate=False)
    assert report(smaller)["storage"]["format"] == "int8"  # as the parent is stored
    wide = hub.prune("packed@v1", store="fp32", evaluate=False)
    assert distance(packed.path, wide.path) < 1e-5
    assert not is_packed(wide.path)
    merged = hub.merge(["mood@v1", packed.ref], name="both", evaluate=False)
    assert merged.kind == "merged"
    updated = hub.update("mood", write(tmp_path / "more.jsonl", rows(16, 500)), epochs=1)
    assert updated.version == 2
    hub.prune("mood@v1", store="int4", evaluate=False)
    again = hub.update("mood", write(tmp_path / "more2.jsonl", rows(16, 600)), epochs=1)
    assert [e.parent for e in hub.registry.lineage() if e.child == again.ref] == ["mood@v3"]


def test_importing_a_packed_folder_names_the_way(hub: AdapterHub) -> None:
    packed = hub.prune("mood", store="int4", evaluate=False)
    with pytest.raises(AdapterError, match="is packed"):
        hub.import_adapter(packed.path, "x", kind="choice", labels=["a", "b"])


# -- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({"rank": 7}, UsageError, "above the adapter's"),
        ({"rank": 0}, UsageError, "1 or more"),
        ({"energy": 0.0}, UsageError, "above 0"),
        ({"energy": 1.01}, UsageError, "at most 1"),
        ({"energy": float("nan")}, UsageError, "above 0"),
        ({"energy": 0.5, "rank": 2}, UsageError, "each say"),
        ({"search": True}, UsageError, "needs a bound"),
        ({"search": True, "min_retention": 0.9, "rank": 2}, UsageError, "each say"),
        ({"search": True, "min_retention": 0.9, "across": True}, UsageError, "--global"),
        ({"search": True, "min_retention": 0.9, "evaluate": False}, UsageError, "--no-eval"),
        ({"search": True, "min_retention": 0.9, "measurements": 0}, UsageError, "--measurements"),
        ({"rank": 2, "min_retention": 1.5}, UsageError, "between 0 and 1"),
        ({"magnitude": 1.0}, UsageError, "--magnitude"),
        ({"store": "int3"}, UsageError, "kind of storage"),
        ({"rank": 6}, AdapterError, "nothing to prune"),
        ({"store": "fp32", "energy": 1.0}, AdapterError, "nothing to prune"),
        ({"rank": 2, "name": "Bad Name"}, UsageError, "name"),
    ],
)
def test_what_cannot_be_asked_for_writes_nothing(
    asked: dict[str, Any], error: type[Exception], message: str, hub: AdapterHub
) -> None:
    before = state(hub)
    with pytest.raises(error, match=message):
        hub.prune("mood", **asked)
    assert state(hub) == before


def test_a_name_that_is_taken_and_an_unknown_one(hub: AdapterHub) -> None:
    hub.prune("mood", rank=2, name="small", evaluate=False)
    with pytest.raises(UsageError, match="small already exists"):
        hub.prune("mood", rank=3, name="small")
    with pytest.raises(UsageError, match="unknown adapter"):
        hub.prune("moood", rank=2)


def spoil(hub: AdapterHub, change: Callable[[dict[str, torch.Tensor]], None], **config: Any) -> None:
    """Change the stored adapter in place and let its hashes be those of the change."""
    record = hub.get("mood")
    weights = load_file(record.path / "adapter_model.safetensors")
    change(weights)
    target = hub.folder / "spoilt"
    target.mkdir()
    about = json.loads((record.path / "adapter_config.json").read_text(encoding="utf-8"))
    with hub.registry.new_draft("spoilt") as draft:
        save_file(weights, draft.path / "adapter_model.safetensors")
        (draft.path / "adapter_config.json").write_text(json.dumps({**about, **config}), encoding="utf-8")
        (draft.path / "replay.jsonl").touch()
        manifest = {"kind": "trained", "rank": 6, "base": record.manifest["base"]}
        hub.registry.publish(draft, manifest, task=hub.registry.task("mood"), serve=False)
    target.rmdir()


def zero(weights: dict[str, torch.Tensor]) -> None:
    for key in weights:
        if "lora_B" in key:
            weights[key] = torch.zeros_like(weights[key])


def not_a_number(weights: dict[str, torch.Tensor]) -> None:
    key = next(iter(weights))
    weights[key] = torch.full_like(weights[key], float("nan"))


@pytest.mark.parametrize(
    ("change", "config", "error", "message"),
    [
        (zero, {}, AdapterError, "changes nothing"),
        (not_a_number, {}, IntegrityError, "NaN"),
        (lambda weights: None, {"use_dora": True}, AdapterError, "DoRA"),
    ],
)
def test_an_adapter_that_cannot_be_pruned_is_refused(
    change: Any, config: dict[str, Any], error: type[Exception], message: str, hub: AdapterHub
) -> None:
    spoil(hub, change, **config)
    before = state(hub)
    with pytest.raises(error, match=message):
        hub.prune("spoilt", rank=2)
    assert state(hub) == before


def test_a_rejected_parent_is_refused(hub: AdapterHub) -> None:
    hub.registry.set_status("mood@v1", "rejected")
    with pytest.raises(AdapterError, match="refused by the gate"):
        hub.prune("mood@v1", rank=2)


def test_the_gate_keeps_what_it_refuses_as_rejected(hub: AdapterHub, monkeypatch: pytest.MonkeyPatch) -> None:
    scores(monkeypatch, lambda found: 0.5)
    with pytest.raises(GateRefused, match="retains less than") as refused:
        hub.prune("mood", rank=1, min_retention=0.9)
    assert refused.value.exit_code == 3
    assert refused.value.record.status == "rejected"
    assert "--energy" in refused.value.hint
    assert hub.get("mood").ref == "mood@v1"  # latest stays
    assert hub.registry.serving() == {"mood": "mood@v1"}


# -- search ------------------------------------------------------------------------------------------------------


def scores(
    monkeypatch: pytest.MonkeyPatch,
    score: Callable[[dict[str, int]], float],
    held_out: Callable[[dict[str, int]], float] | None = None,
) -> list[dict[str, str]]:
    """Let retention follow from the ranks of what is measured, on held-out data otherwise where that is told; returns
    what each measurement was made on."""
    seen: list[dict[str, str]] = []

    def measure(self: Yardstick, base: Any, folder: Path) -> Any:
        seen.append({task: probe.data for task, probe in self.probes.items()})
        by = held_out if held_out is not None and self.probes["mood"].sha256 else score
        value = by(ranks(folder))
        return [
            Effect(task, "accuracy", 0.8, 0.8 * value, len(probe.examples), probe.data, "mood@v1")
            for task, probe in self.probes.items()
        ], []

    monkeypatch.setattr(Yardstick, "measure", measure)
    return seen


def test_the_search_measures_on_samples_and_the_gate_on_held_out_data(
    hub: AdapterHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs = {"q_proj": 3, "down_proj": 1}

    def keeps(found: dict[str, int]) -> float:
        names = ranks(hub.get("mood@v1").path)
        enough = all(found.get(n, 0) >= needs.get(n.rpartition(".")[2], 0) for n in names)
        return 1.0 if enough else 0.5

    seen = scores(monkeypatch, keeps)
    record = hub.prune("mood", search=True, min_retention=0.95)
    assert {s["mood"] for s in seen[:-2]} == {"replay samples of mood@v1"}
    assert all(s["mood"].endswith("test.jsonl") for s in seen[-2:])  # one confirmation, and the gate
    assert len(seen) - 1 == len(report(record)["search"]["tried"]) <= verb.MEASUREMENTS + 1
    for name, rank in ranks(record.path).items():
        assert rank >= needs.get(name.rpartition(".")[2], 0)
    most = {kind: max([r for n, r in ranks(record.path).items() if n.endswith(kind)], default=0) for kind in needs}
    assert most["q_proj"] == 3
    assert sum(ranks(record.path).values()) <= 2 * sum(needs.values()) + 4


def test_what_was_good_by_luck_on_the_samples_is_not_taken(hub: AdapterHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The samples are content with anything, the held-out data want half of the ranks."""
    half = sum(ranks(hub.get("mood").path).values()) // 2
    scores(monkeypatch, lambda found: 1.0, lambda found: 1.0 if sum(found.values()) >= half else 0.5)
    record = hub.prune("mood", search=True, min_retention=0.95)
    assert record.status == "active"
    tried = report(record)["search"]["tried"]
    confirmed = [step["ranks"] for step in tried if step["what"] == "confirmation"]
    enough = [step["ranks"] for step in tried if step["what"] != "confirmation" and step["ranks"] >= half]
    assert confirmed == sorted(confirmed)
    assert sum(ranks(record.path).values()) == confirmed[-1] == min(enough)


def test_where_the_held_out_data_want_it_all_nothing_is_pruned(
    hub: AdapterHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores(monkeypatch, lambda found: 1.0, lambda found: 0.5)
    before = state(hub)
    with pytest.raises(AdapterError, match="nothing to prune"):
        hub.prune("mood", search=True, min_retention=0.95)
    assert state(hub) == before


def test_a_dry_search_measures_and_writes_nothing_at_all(hub: AdapterHub, monkeypatch: pytest.MonkeyPatch) -> None:
    before, evaluations = state(hub), hub.evaluations()
    scores(monkeypatch, lambda found: 1.0)
    found = hub.prune("mood", search=True, min_retention=0.95, measurements=3, dry_run=True)
    assert found["search"]["tried"][0]["retention"] == {"mood": 1.0}
    assert [step["what"] for step in found["search"]["tried"]].count("confirmation") == 1
    assert len(found["search"]["tried"]) == 4
    assert (state(hub), hub.evaluations()) == (before, evaluations)


def test_few_samples_are_not_searched_on(hub: AdapterHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verb, "SAMPLES", 61)
    seen = scores(monkeypatch, lambda found: 1.0)
    hub.prune("mood", search=True, min_retention=0.9, measurements=2)
    assert all(s["mood"].endswith("test.jsonl") for s in seen)


def test_a_search_that_finds_nothing_smaller_writes_nothing(hub: AdapterHub, monkeypatch: pytest.MonkeyPatch) -> None:
    before = state(hub)
    scores(monkeypatch, lambda found: 0.5)
    with pytest.raises(AdapterError, match="nothing to prune"):
        hub.prune("mood", search=True, min_retention=0.95)
    assert state(hub)[1:] == before[1:]


def test_nothing_to_measure_is_nothing_to_search_by(hub: AdapterHub) -> None:
    parent = hub.get("mood")
    with hub.registry.new_draft("free") as draft:
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copyfile(parent.path / file, draft.path / file)
        (draft.path / "replay.jsonl").touch()
        hub.registry.publish(draft, {"kind": "trained", "rank": 6, "base": parent.manifest["base"]}, serve=False)
    with pytest.raises(AdapterError, match="answers for no task"):
        hub.prune("free", search=True, min_retention=0.9)
    assert hub.prune("free", rank=2).rank == 2  # without a search there is nothing to be measured, and nothing refused


def test_a_real_search_keeps_its_bound(hub: AdapterHub) -> None:
    told: list[str] = []

    class Told(Reporter):
        def note(self, text: str) -> None:
            told.append(text)

    record = hub.prune("mood", search=True, min_retention=0.5, measurements=4, reporter=Told())
    assert record.manifest["retention"]["mood"] >= 0.5
    assert any("of at most 4" in line for line in told)


def again(hub: AdapterHub, recipe: dict[str, Any], ref: str, name: str) -> Any:
    request = verb.PruneRequest.from_json({**recipe, "ref": ref, "min_retention": None})
    return verb.prune(hub.context(), request, name=name)


def test_a_pruning_that_is_asked_for_again_ends_with_the_version_that_is_there(hub: AdapterHub) -> None:
    first = hub.prune("mood", rank=3, evaluate=False)
    assert hub.prune("mood", rank=3, evaluate=False).ref == first.ref == "mood@v2"
    assert hub.prune("mood@v1", rank=3, evaluate=False).ref == "mood@v2"
    assert hub.prune("mood", rank=2, evaluate=False).ref == "mood@v3"
    assert hub.prune("mood@v1", rank=3, evaluate=False, name="other").ref == "other@v1"
    assert hub.prune("mood", rank=2, evaluate=False).ref == "mood@v3"
    for other in ({"general": "none"}, {"max_base_forgetting": 9.0}):  # which that version was not judged by
        with pytest.raises(AdapterError, match="nothing to prune: every layer of mood@v3"):
            hub.prune("mood", rank=2, evaluate=False, **other)


@pytest.mark.parametrize(
    "asked",
    [{}, {"rank": 2, "across": True}, {"store": "int4"}, {"magnitude": 0.4}, {"energy": 0.8, "store": "bf16"}],
)
def test_a_recipe_makes_the_same_again(asked: dict[str, Any], hub: AdapterHub) -> None:
    first = hub.prune("mood", name="small", evaluate=False, **asked)
    second = again(hub, first.manifest["recipe"], "mood@v1", "twin")
    assert second.ref == "twin@v1"
    for file in ("adapter_config.json", "adapter_model.safetensors", "adapter_model.packed.safetensors"):
        pair = [record.path / file for record in (first, second)]
        assert pair[0].exists() == pair[1].exists()
        assert not pair[0].exists() or pair[0].read_bytes() == pair[1].read_bytes()
    assert second.manifest["gate"]["effects"] == []  # not measured, as the first was not


def test_the_recipe_of_a_search_searches_again(hub: AdapterHub, monkeypatch: pytest.MonkeyPatch) -> None:
    scores(monkeypatch, lambda found: 1.0)
    first = hub.prune("mood", search=True, min_retention=0.9, measurements=4, name="small")
    second = again(hub, first.manifest["recipe"], "mood@v1", "small")
    assert report(second)["search"] == report(first)["search"]


def test_a_plan_says_what_comes_out(hub: AdapterHub) -> None:
    before = state(hub)
    planned = hub.prune("mood", rank=2, store="int8", dry_run=True)
    assert state(hub) == before
    record = hub.prune("mood", rank=2, store="int8", evaluate=False)
    told = report(record)
    for key in ("truncation_error", "error", "rank", "ranks", "layers", "store", "parents"):
        assert planned[key] == told[key]
    assert planned["storage"]["bytes"] < told["storage"]["bytes"] <= planned["storage"]["bytes"] + 12_000  # its header


# -- crashes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["sealed", "manifest written", "renamed"])
def test_a_crash_leaves_nothing(point: str, hub: AdapterHub, monkeypatch: pytest.MonkeyPatch) -> None:
    before = state(hub)

    def crash(at: str) -> None:
        if at == point:
            raise RuntimeError("killed")

    monkeypatch.setattr(drafts, "fault", crash)
    with pytest.raises(RuntimeError, match="killed"):
        hub.prune("mood", store="int4", evaluate=False)
    monkeypatch.undo()
    assert state(hub) == before
    assert hub.verify() == []


def test_a_full_disk_leaves_nothing(hub: AdapterHub, monkeypatch: pytest.MonkeyPatch) -> None:
    before = state(hub)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("adapterhub_cl.pruning.storage.save_file", full)
    with pytest.raises(StorageError, match="no space left"):
        hub.prune("mood", store="int8", evaluate=False)
    monkeypatch.undo()
    monkeypatch.setattr(derived, "derived_card", full)
    with pytest.raises(StorageError, match="no space left"):
        hub.prune("mood", rank=2, evaluate=False)
    assert state(hub) == before


# -- proposals ---------------------------------------------------------------------------------------------------


def test_unused_versions_are_removed_and_gc_frees_them(hub: AdapterHub) -> None:
    hub.prune("mood", rank=3, evaluate=False)
    hub.prune("mood@v1", rank=2, evaluate=False)
    later = datetime.now(UTC) + timedelta(days=40)
    found = {v.record.ref: v for v in proposals.unused(hub.registry, 30, later)}
    assert [ref for ref, v in found.items() if v.proposed] == ["mood@v2"]
    assert {v.proposed for v in hub.unused(30)} == {False}
    with pytest.raises(AdapterError, match="mood@v1 is not unused: serves mood"):
        hub.remove(["mood@v2", "mood@v1"], days=0)
    assert hub.get("mood@v2").status == "active"
    (gone,) = hub.remove(["mood@v2"], days=0)
    assert gone.path.is_dir()
    assert hub.registry.events("mood@v2")[0].verb == "prune"
    (garbage,) = hub.registry.garbage()
    assert garbage.path == gone.path
    hub.registry.collect([garbage])
    assert not gone.path.exists()
    assert hub.verify() == []
    with pytest.raises(UsageError, match="--days"):
        hub.unused(-1)


def test_a_measurement_counts_as_use(hub: AdapterHub) -> None:
    hub.prune("mood", rank=3, evaluate=False)
    before = proposals.last_used(hub.registry, [hub.get("mood@v1")])["mood@v1"]
    hub.evaluate(["mood@v1"])
    assert proposals.last_used(hub.registry, [hub.get("mood@v1")])["mood@v1"] > before


def test_gc_keeps_what_an_unfinished_run_needs(hub: AdapterHub) -> None:
    hub.prune("mood", rank=3, evaluate=False)
    hub.prune("mood@v1", rank=2, evaluate=False)
    run = hub.registry.runs_dir / "mood-run"
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"verb": "update", "name": "mood", "parent": "mood@v2"}))
    assert "mood-run" in next(v.reason for v in hub.unused(0) if v.record.ref == "mood@v2")
    hub.registry.delete("mood@v2")
    assert hub.registry.garbage() == []
    dropped = {item.path.name for item in hub.registry.garbage(older_than_days=0)}
    assert dropped == {"mood-run", "v2"}  # with the run goes what only it needed
    files.remove_tree(run)
    assert [item.path.name for item in hub.registry.garbage()] == ["v2"]


def test_an_online_run_needs_the_latest(hub: AdapterHub) -> None:
    hub.prune("mood", rank=3, evaluate=False)
    hub.prune("mood@v1", rank=3, name="small", evaluate=False)
    found = {v.record.ref: v for v in hub.unused(0)}
    assert found["mood@v2"].proposed
    run = hub.registry.runs_dir / "mood-online"
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"verb": "update-online", "name": "mood"}))
    found = {v.record.ref: v for v in hub.unused(0)}
    assert found["mood@v2"].reason == "the unfinished run mood-online needs it"


def test_redundant_adapters_are_found_by_spaces_and_answers(hub: AdapterHub) -> None:
    hub.prune("mood", store="int8", name="copy", evaluate=False)
    found = hub.redundant()
    (pair,) = found["pairs"]
    assert pair["adapters"] == ["copy@v1", "mood@v1"]
    assert pair["similarity"] > 0.99
    assert pair["redundant"]
    assert pair["agreement"] >= 0.9
    assert pair["n"] == 60
    assert pair["command"].startswith("merge copy@v1 mood@v1 --as copy-mood")
    blind = hub.redundant(evaluate=False)["pairs"][0]
    assert (blind["agreement"], blind["n"], blind["redundant"]) == (None, 0, True)


def test_what_cannot_be_compared_is_left_out_with_a_note(hub: AdapterHub) -> None:
    spoil(hub, lambda weights: None, use_dora=True)
    told: list[str] = []

    class Told(Reporter):
        def note(self, text: str) -> None:
            told.append(text)

    found = hub.redundant(evaluate=False, reporter=Told())
    assert (found["pairs"], found["nearest"], found["compared"]) == ([], None, ["mood@v1"])
    assert "spoilt@v1 is skipped" in told[0]
    with pytest.raises(UsageError, match="--threshold"):
        hub.redundant(threshold=0)


def test_a_version_of_several_tasks_stays_what_it_is(hub: AdapterHub, tmp_path: Path) -> None:
    """The same adapter, made smaller: its own task, what it takes over, and what its strategies remember."""
    data = write(tmp_path / "more.jsonl", [{"text": f"{row['text']}!", "label": row["label"]} for row in rows(24)])
    hub.add_task("more", data, epochs=1, strategy="der+ewc", replay="balanced:10", max_forgetting=1)
    told = io.StringIO()
    pruned = hub.prune("more", energy=0.9, min_retention=0, reporter=LineReporter(told))
    before = hub.get("more@v1")
    assert (pruned.ref, pruned.task) == ("more@v2", "more")
    assert pruned.manifest["takes_over"] == before.manifest["takes_over"] == ["mood"]
    assert (pruned.path / "seen.bin").read_bytes() == (before.path / "seen.bin").read_bytes()
    stored, kept = (load_file(record.path / "strategy.safetensors") for record in (before, pruned))
    assert {key.partition(".")[0] for key in stored} == {"der", "ewc"}
    assert {key for key in stored if key.startswith("der.")} == kept.keys()
    assert "what ewc remembered belongs to the weights of more@v1" in told.getvalue()
    assert hub.update("more", data, epochs=1, max_forgetting=1).ref == "more@v3"
