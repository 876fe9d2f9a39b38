"""The verb `merge`: what is recorded, what the gate does, what is refused with nothing written, and serving."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from consolidation_support import add, tree
from loras import dense, relative
from safetensors.torch import load_file, save_file

from adapterhub_cl import AdapterHub
from adapterhub_cl.errors import (
    AdapterError,
    AdapterHubError,
    GateRefused,
    IntegrityError,
    UnknownNameError,
    UsageError,
)
from adapterhub_cl.evaluation import recorded
from adapterhub_cl.merging import ROOM


def change(hub: AdapterHub, ref: str) -> dict[str, torch.Tensor]:
    return dense(hub.get(ref).path)


def test_linear_is_the_exact_weighted_sum(hub: AdapterHub) -> None:
    made = hub.merge(["news", "reviews", "slang"], name="all", weights=[0.7, 0.3, -1])
    wanted = {
        m: 0.7 * change(hub, "news")[m] + 0.3 * change(hub, "reviews")[m] - change(hub, "slang")[m]
        for m in change(hub, "news")
    }
    assert relative(change(hub, "all"), wanted) < 1e-6
    assert (made.kind, made.rank, made.task, made.tasks) == ("merged", 13, "", ["news", "reviews", "slang"])
    assert made.manifest["truncation_error"] < 1e-6
    assert hub.verify() == []


@pytest.mark.parametrize("general", ["", "none"])
def test_an_adapter_that_gives_no_numbers_does_not_pass_any_gate(hub: AdapterHub, general: str) -> None:
    hub = AdapterHub.open(hub.folder, dtype="fp16")
    add(hub, "news", 1, size=1e3)
    with pytest.raises(AdapterError, match=r"gives no finite scores for .*: its weights have diverged"):
        hub.merge(["news", "reviews"], name="all", weights=[1e6, 1], min_retention=0.1, general=general)
    assert "all" not in {record.name for record in hub.list(all_versions=True)}
    assert hub.verify() == []


def test_a_merge_is_scored_on_the_task_and_in_the_batches_that_are_asked_for(
    hub: AdapterHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.merge(["news", "slang"], name="both")
    real, sizes = recorded.score, []

    def score(*given: Any, batch_size: int) -> Any:
        sizes.append(batch_size)
        return real(*given, batch_size=batch_size)

    monkeypatch.setattr(recorded, "score", score)
    assert [found.task for _, found in hub.evaluate("both", batch_size=3)] == ["news", "slang"]
    assert [found.task for _, found in hub.evaluate("both", task="slang", batch_size=1)] == ["slang"]
    assert sizes == [3, 3, 1]
    with pytest.raises(UnknownNameError, match="unknown task of both@v1 'slangs'"):
        hub.evaluate("both", task="slangs")


def test_an_expression_does_the_same(hub: AdapterHub) -> None:
    hub.merge(["news", "reviews"], name="one", weights=[-0.5, 2])
    hub.merge(name="other", expression="-0.5*news + 2*reviews")
    assert relative(change(hub, "one"), change(hub, "other")) < 1e-7


def test_a_rank_cuts_to_the_best_approximation(hub: AdapterHub) -> None:
    made = hub.merge(["news", "reviews"], name="small", rank=2)
    wanted = {m: (change(hub, "news")[m] + change(hub, "reviews")[m]) / 2 for m in change(hub, "news")}
    lost = whole = 0.0
    for matrix in wanted.values():
        values = torch.linalg.svdvals(matrix)
        lost, whole = lost + float(values[2:].square().sum()), whole + float(values.square().sum())
    assert made.manifest["truncation_error"] == pytest.approx((lost / whole) ** 0.5, abs=1e-6)
    assert relative(change(hub, "small"), wanted) == pytest.approx((lost / whole) ** 0.5, abs=1e-5)


def test_what_is_recorded(hub: AdapterHub) -> None:
    made = hub.merge(["news", "slang"], name="both", method="ties", options={"density": 0.4}, rank=3, seed=5)
    recipe = made.manifest["recipe"]
    assert recipe["parents"] == ["news@v1", "slang@v1"]
    assert (recipe["method"], recipe["options"], recipe["seed"]) == ("ties", {"space": "dense", "density": 0.4}, 5)
    assert [(e.parent, e.relation) for e in hub.lineage("both")] == [
        ("news@v1", "merged_from"),
        ("slang@v1", "merged_from"),
    ]
    report = json.loads((made.path / "recipe.json").read_text())["report"]
    assert {layer["name"] for layer in report["layers"]} == set(dense(made.path)) - {
        m for m, v in dense(made.path).items() if not v.any()
    }
    assert report["interference"][0]["adapters"] == ["news@v1", "slang@v1"]
    assert set(made.manifest["retention"]) == {"news", "slang"}
    assert "merged from `news@v1`" in (made.path / "README.md").read_text()
    assert hub.registry.serving() == {t: f"{t}@v1" for t in ("news", "reviews", "slang")}  # it serves nothing yet


def test_ctm_chooses_its_subspace_of_the_rank_that_was_asked_for(hub: AdapterHub) -> None:
    """Not of the parents' rank, to be cut afterwards; its own option stands above `--rank`."""
    asked = hub.merge(["news", "slang"], name="asked", method="ctm", rank=2, evaluate=False)
    given = hub.merge(["news", "slang"], name="given", method="ctm", options={"ctm.rank": 2}, evaluate=False)
    cut = hub.merge(["news", "slang"], name="cut", method="ctm", options={"ctm.rank": 3}, rank=2, evaluate=False)
    one, two, three = (load_file(made.path / "adapter_model.safetensors") for made in (asked, given, cut))
    assert all(torch.allclose(one[key], two[key], atol=1e-6) for key in one)
    assert not all(torch.allclose(one[key], three[key], atol=1e-3) for key in one)


def test_retention_is_the_merged_score_by_the_parents(hub: AdapterHub) -> None:
    made = hub.merge(["news", "reviews"], name="both")
    for effect in made.manifest["gate"]["effects"]:
        scores = {s.ref: s.evaluation.value for s in hub.evaluations(task=effect["task"])}
        assert scores["both@v1"] == effect["after"]
        assert scores[effect["answered_by"]] == effect["before"]
        share = effect["after"] / effect["before"] if effect["before"] else 1.0
        assert made.manifest["retention"][effect["task"]] == pytest.approx(share, abs=1e-6)


def test_one_adapter_merges_into_itself(hub: AdapterHub) -> None:
    made = hub.merge(["reviews"], name="copy")
    assert relative(change(hub, "copy"), change(hub, "reviews")) < 1e-6
    assert made.manifest["retention"] == {"reviews": 1.0}
    assert made.task == "reviews"


def test_interference_of_an_adapter_with_itself_and_its_opposite(hub: AdapterHub) -> None:
    add(hub, "twin", 1)
    add(hub, "against", 1, alpha=8.0, size=0.3)
    weights = hub.get("against").path / "adapter_model.safetensors"
    pairs = {tuple(p["adapters"]): p for p in hub.merge(["news", "twin", "slang"], dry_run=True)["interference"]}
    assert pairs["news@v1", "twin@v1"]["cosine"] == pytest.approx(1.0, abs=1e-4)
    assert pairs["news@v1", "twin@v1"]["sign_conflicts"] == 0
    assert abs(pairs["news@v1", "slang@v1"]["cosine"]) < 0.3
    assert weights.is_file()


def test_the_gate_refuses_and_keeps_it_as_rejected(hub: AdapterHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from adapterhub_cl.evaluation import measuring

    real = measuring.score
    monkeypatch.setattr(
        measuring,
        "score",
        lambda *a, **k: type(real(*a, **k))("news", "accuracy", 0.0, 12, "replay samples of news@v1"),
    )
    hub.registry.add_evaluations("news", [_score("news", 0.9)])
    with pytest.raises(GateRefused, match=r"retains less than 0\.95 of news") as refused:
        hub.merge(["news", "slang"], name="bad", min_retention=0.95)
    assert refused.value.record.status == "rejected"
    assert hub.get("bad@v1").status == "rejected"
    assert "latest" not in hub.get("bad@v1").aliases
    assert hub.registry.serving()["news"] == "news@v1"


def _score(task: str, value: float) -> Any:
    from adapterhub_cl.types import Evaluation

    return Evaluation(task, "accuracy", value, 12, f"replay samples of {task}@v1", {"sha256": ""})


def test_the_bound_may_stand_in_hub_toml(hub: AdapterHub) -> None:
    hub.registry.set_default("min_retention", 2)
    with pytest.raises(AdapterHubError, match="min_retention is 2"):
        hub.merge(["news", "slang"], name="x")
    hub.registry.set_default("min_retention", 0.0)
    assert hub.merge(["news", "slang"], name="x").manifest["gate"]["min_retention"] == 0.0


def test_promotion_moves_the_tasks_and_rollback_brings_the_parents_back(hub: AdapterHub) -> None:
    hub.merge(["news", "reviews"], name="both")
    before = hub.registry.serving()
    record, _ = hub.promote("both", max_forgetting=1)
    assert "production" in record.aliases
    assert hub.registry.serving() == {**before, "news": "both@v1", "reviews": "both@v1"}
    assert hub.predict(["the apple"], task="news")[0].adapter == "both@v1"
    add(hub, "news", 9)  # a new version of a parent does not push production aside
    assert hub.registry.serving()["news"] == "both@v1"
    hub.rollback("both@production")
    assert hub.registry.serving() == before
    assert "production" not in hub.get("both").aliases
    with pytest.raises(UnknownNameError):
        hub.rollback("both@production")


def test_a_second_version_rolls_back_to_the_first(hub: AdapterHub) -> None:
    hub.merge(["news", "reviews"], name="both")
    hub.promote("both", max_forgetting=1)
    hub.merge(["news", "reviews"], name="both", method="ties", new_version=True)
    hub.promote("both@v2", max_forgetting=1)
    assert hub.registry.serving()["news"] == "both@v2"
    hub.rollback("both@production")
    assert hub.registry.serving()["news"] == hub.registry.serving()["reviews"] == "both@v1"


def test_a_version_of_several_tasks_is_routed_or_its_task_named(hub: AdapterHub) -> None:
    hub.merge(["news", "reviews"], name="both")
    found = hub.predict(["x"], adapter="both")[0]
    assert found.adapter == "both@v1"
    assert found.prediction in hub.registry.task(found.task).labels
    assert found.routing is not None
    assert hub.predict(["x"], adapter="both", task="reviews")[0].prediction in ("good", "bad")
    scored = hub.evaluate(["both"])
    assert [(ref, s.task) for ref, s in scored] == [("both@v1", "news"), ("both@v1", "reviews")]
    with pytest.raises(UsageError, match="several tasks"):
        hub.update("both", "x.jsonl")


@pytest.mark.parametrize("method", ["learned", "regmean"])
def test_methods_that_learn_from_replay_samples(hub: AdapterHub, method: str) -> None:
    made = hub.merge(["news", "reviews"], name="fit", method=method, seed=1)
    hub.merge(["news", "reviews"], name="again", method=method, seed=1)
    assert relative(change(hub, "fit"), change(hub, "again")) == 0
    found = json.loads((made.path / "recipe.json").read_text())["report"]["found"]
    if method == "learned":
        assert found["loss"][1] < found["loss"][0]
        assert len(next(iter(found["weights"].values()))) == 2
    add(hub, "bare", 5, samples=0)
    with pytest.raises(AdapterError, match="bare@v1 has no replay samples"):
        hub.merge(["news", "bare"], name="no", method=method, evaluate=False)


def test_a_plan_writes_nothing(hub: AdapterHub) -> None:
    before = tree(hub.folder)
    plan = hub.merge(["news", "reviews"], rank=3, dry_run=True)
    assert tree(hub.folder) == before
    made = hub.merge(["news", "reviews"], name="m", rank=3)
    assert plan["truncation_error"] == pytest.approx(made.manifest["truncation_error"])
    assert plan["rank"] == made.rank == 3
    assert hub.merge(["news", "reviews"], method="learned", dry_run=True)["estimated_on_the_plain_sum"]


def test_target_modules_are_written_as_plain_peft_has_them(hub: AdapterHub, pico_base: Any) -> None:
    from adapterhub_cl.adapters.lora import stored_adapter

    short = hub.merge(["news", "reviews"], name="short", evaluate=False)
    assert short.manifest["target_modules"] == ["down_proj", "q_proj", "v_proj"]
    only = "model.layers.1.self_attn.q_proj"
    add(hub, "one-layer", 6, modules=(only,))
    add(hub, "other-layer", 7, modules=("model.layers.0.self_attn.k_proj",))
    full = hub.merge(["one-layer", "other-layer"], name="full", evaluate=False)
    assert full.manifest["target_modules"] == ["model.layers.0.self_attn.k_proj", only]
    for made in (short, full):
        with stored_adapter(pico_base, made.path):
            pass  # every tensor found its place, and no layer was left without one


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("unknown method", {"method": "tie"}, "unknown merge method"),
    ("unknown option", {"method": "ties", "options": {"ties.dense": 1}}, "dense"),
    ("weights", {"weights": [1]}, "1 weight for 2 adapters"),
    ("infinite weight", {"weights": [1, float("inf")]}, "finite"),
    ("zero weights", {"weights": [0, 0]}, "all weights are 0"),
    ("rank above the sum", {"rank": 99}, "between 1 and 10"),
    ("rank 0", {"rank": 0}, "1 or more"),
    ("bound above 1", {"min_retention": 1.5}, "between 0 and 1"),
    ("bound without measuring", {"min_retention": 0.9, "evaluate": False}, "--no-eval"),
    ("both ways", {"expression": "news"}, "--expression"),
    ("a name that is there", {"name": "news"}, "already exists"),
    ("no name", {"name": "../x"}, "name"),
    ("a trained adapter's name", {"name": "news", "new_version": True}, "not made of other versions"),
]


@pytest.mark.parametrize(("asked", "message"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad_requests_write_nothing(hub: AdapterHub, asked: dict[str, Any], message: str) -> None:
    before = tree(hub.folder)
    with pytest.raises(AdapterHubError, match=message):
        hub.merge(["news", "reviews"], **{"name": "new", **asked})
    assert tree(hub.folder) == before


@pytest.mark.parametrize(
    ("refs", "error", "message"),
    [
        ([], UsageError, "0 adapters"),
        (["news", "newz"], UnknownNameError, "newz"),
        (["news", "news@v1"], UsageError, "twice"),
        (["news", "news@v7"], UnknownNameError, "v7"),
    ],
)
def test_bad_references(hub: AdapterHub, refs: list[str], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        hub.merge(refs, name="new")


def test_what_cancels_out_is_refused(hub: AdapterHub) -> None:
    before = tree(hub.folder)
    add(hub, "twin", 1)
    for expression in ("news - news", "news - twin"):
        with pytest.raises(AdapterHubError, match=r"zero|all weights are 0"):
            hub.merge(name="nothing", expression=expression)
    assert "nothing" not in {r.name for r in hub.list()}
    assert {k: v for k, v in tree(hub.folder).items() if k in before and "aliases" not in k} == {
        k: v for k, v in before.items() if "aliases" not in k
    }


def spoil(hub: AdapterHub, ref: str, how: Any) -> None:
    """Change a version's tensors and its recorded hashes with them: what only the merge itself can notice."""
    record = hub.get(ref)
    path = record.path / "adapter_model.safetensors"
    tensors = load_file(path)
    path.chmod(0o644)
    save_file(how(tensors), path, metadata={"format": "pt"})


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_nan_in_a_tensor(hub: AdapterHub, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def nan(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors["base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"][0, 0] = float("nan")
        return tensors

    spoil(hub, "news", nan)
    monkeypatch.setattr(hub.registry, "check_files", lambda record: None)  # as if it had been imported so
    before = tree(hub.folder)
    with pytest.raises(IntegrityError, match="NaN"):
        hub.merge(["news", "reviews"], name="x", method=method)
    assert tree(hub.folder) == before


def test_a_tensor_that_is_missing(hub: AdapterHub, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(hub, "news", lambda tensors: {k: v for k, v in tensors.items() if "1.mlp.down_proj.lora_A" not in k})
    with pytest.raises(IntegrityError, match=r"changed|bytes"):
        hub.merge(["news", "reviews"], name="x")
    monkeypatch.setattr(hub.registry, "check_files", lambda record: None)
    with pytest.raises(AdapterError, match="missing or do not fit"):
        hub.merge(["news", "reviews"], name="x")


def test_dora_and_rejected_parents(hub: AdapterHub) -> None:
    add(hub, "dora", 8, use_dora=True)
    with pytest.raises(AdapterError, match="DoRA"):
        hub.merge(["news", "dora"], name="x")
    hub.registry.set_status("slang", "rejected")
    with pytest.raises(AdapterError, match="refused by the gate"):
        hub.merge(["news", "slang@v1"], name="x")


def test_a_full_disk_leaves_nothing(hub: AdapterHub, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    from adapterhub_cl.consolidation import derived
    from adapterhub_cl.errors import StorageError

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "no space")

    before = tree(hub.folder)
    monkeypatch.setattr(derived, "write_lora", full)
    with pytest.raises(StorageError, match="no space"):
        hub.merge(["news", "reviews"], name="x")
    assert tree(hub.folder) == before
    assert not (hub.folder / "adapters" / "x").exists()


def test_every_method_is_listed() -> None:
    assert set(ROOM.names()) >= {
        *("linear", "svd", "ties", "dare", "dare_ties", "della", "breadcrumbs", "knots", "tsv", "iso"),
        *("regmean", "learned", "slao", "ema"),
    }


def test_strategies_do_not_go_on_from_a_merged_adapter(hub: AdapterHub) -> None:
    from adapterhub_cl.learning.material import _parent
    from adapterhub_cl.learning.request import TrainRequest
    from adapterhub_cl.strategies import build

    hub.merge(["news", "reviews"], name="both", evaluate=False)
    request = TrainRequest("add-task", "new", "x.jsonl", strategy="sequential")
    found = _parent(hub.registry, request, build("sequential", {}))
    assert found is not None
    assert found.ref == "slang@v1"


def test_two_hubs_of_one_path_see_the_same(hub: AdapterHub, tmp_path: Path) -> None:
    hub.merge(["news", "reviews"], name="both", evaluate=False)
    (hub.folder / "index.db").unlink()
    again = AdapterHub.open(hub.folder)
    assert again.get("both").tasks == ["news", "reviews"]
    assert again.registry.serving() == {t: f"{t}@v1" for t in ("news", "reviews", "slang")}


def test_a_cut_by_energy_tells_its_error(hub: AdapterHub) -> None:
    made = hub.merge(["news", "reviews"], name="cut", method="svd", options={"energy": 0.6}, evaluate=False)
    wanted = {m: (change(hub, "news")[m] + change(hub, "reviews")[m]) / 2 for m in change(hub, "news")}
    apart = relative(change(hub, "cut"), wanted)
    assert 0.3 < apart < 0.4**0.5 + 1e-6
    assert made.manifest["truncation_error"] == pytest.approx(apart, abs=1e-5)
    less = hub.merge(["news", "reviews"], name="less", method="svd", options={"energy": 0.6}, rank=1, evaluate=False)
    assert less.manifest["truncation_error"] == pytest.approx(relative(change(hub, "less"), wanted), abs=1e-5)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"weights": [1e300, 1e300]}, "1,000,000"),
        ({"weights": [1e-300, 1]}, "1,000,000"),
        ({"seed": 10**23}, "--seed"),
        ({"refs": (), "expression": "(" * 4000 + "news" + ")" * 4000}, "brackets within brackets"),
    ],
)
def test_absurd_numbers(hub: AdapterHub, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        hub.merge(**{"refs": ["news", "reviews"], "name": "x", **asked})


def test_adapters_of_absurd_numbers(hub: AdapterHub) -> None:
    add(hub, "scaled", 5, alpha=1e300)
    with pytest.raises(AdapterError, match=r"scales|rank 4 and alpha"):
        hub.merge(["news", "scaled"], name="x", evaluate=False)
    add(hub, "large", 6, size=1e9)
    with pytest.raises(AdapterError, match="too large"):
        hub.merge(["news", "large"], name="x", evaluate=False)


def test_a_name_that_another_process_takes_meanwhile(hub: AdapterHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from adapterhub_cl.consolidation import derived

    real = derived.derived_card

    def slow(*arguments: Any) -> str:
        monkeypatch.setattr(derived, "derived_card", real)
        AdapterHub.open(hub.folder).merge(["news", "slang"], name="x", evaluate=False)
        return real(*arguments)

    monkeypatch.setattr(derived, "derived_card", slow)
    with pytest.raises(UsageError, match="already exists"):
        hub.merge(["news", "reviews"], name="x", evaluate=False)
    assert [r.ref for r in hub.list(all_versions=True) if r.name == "x"] == ["x@v1"]
    assert hub.get("x").manifest["recipe"]["parents"] == ["news@v1", "slang@v1"]


def test_derived_versions_are_no_steps_of_what_the_hub_learned(hub: AdapterHub) -> None:
    before = hub.evaluate(matrix=True)
    hub.prune("news", rank=2, evaluate=False)
    hub.merge(["news@v1", "reviews"], name="both", evaluate=False)
    after = hub.evaluate(matrix=True)
    assert list(after.tasks) == list(before.tasks) == ["news", "reviews", "slang"]
    assert after.rows == before.rows
