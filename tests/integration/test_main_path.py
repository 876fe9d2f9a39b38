"""The main job on the embedded base: learn, store, evaluate, use from Python and by plain PEFT, import, update."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from adapterhub_cl import AdapterHub
from adapterhub_cl.bases import TINY, resolve
from adapterhub_cl.errors import AdapterError, BaseModelError, DataError, IntegrityError, UsageError
from adapterhub_cl.learning.teaching import TrainingPlan
from adapterhub_cl.types import AdapterRecord

DEMO = Path(__file__).parents[2] / "adapterhub_cl/demo"
TRAIN, TEST = DEMO / "commands.train.jsonl", DEMO / "commands.test.jsonl"

pytestmark = pytest.mark.integration


@pytest.fixture
def hub(commands_hub: AdapterHub) -> AdapterHub:
    return commands_hub


def first_lines(source: Path, count: int, target: Path) -> Path:
    lines = source.read_text(encoding="utf-8").splitlines(keepends=True)[:count]
    target.write_text("".join(lines), encoding="utf-8")
    return target


@pytest.fixture
def small(trained_hub: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> AdapterHub:
    """A hub on the 4-bit base with one hastily trained adapter, a new copy for each test."""

    def train(folder: Path) -> None:
        stays = tmp_path_factory.mktemp("quick")  # the tests score on it again
        rows = first_lines(DEMO / "tickets.train.jsonl", 64, stays / "train.jsonl")
        test = first_lines(DEMO / "tickets.test.jsonl", 40, stays / "test.jsonl")
        AdapterHub.init(folder, "tiny").add_task("tickets", rows, eval=test, epochs=2, rank=4, max_length=48)

    return AdapterHub.open(trained_hub("tickets-quick", train))


def logits(model: Any, tokenizer: Any) -> torch.Tensor:
    inputs = tokenizer(["turn off the lamp\nAnswer:", "call my sister\nAnswer:"], return_tensors="pt", padding=True)
    with torch.no_grad():
        found: torch.Tensor = model(**inputs).logits
    return found


def plain_base(dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(resolve(TINY), dtype=dtype)


def test_it_learns_far_above_chance(hub: AdapterHub) -> None:
    record = hub.get("commands")
    assert record.ref == "commands@v1"
    assert record.metrics["accuracy"] > 0.45  # six labels, evenly: chance is 0.17
    assert hub.registry.serving() == {"commands": "commands@v1"}
    assert hub.verify() == []


def test_plain_peft_gives_the_same_logits_as_load(hub: AdapterHub) -> None:
    model, tokenizer = hub.load("commands")
    theirs = PeftModel.from_pretrained(plain_base(), hub.path("commands"))
    assert torch.allclose(logits(model, tokenizer), logits(theirs, tokenizer), atol=1e-5)
    assert not torch.allclose(logits(model, tokenizer), logits(plain_base(), tokenizer), atol=1e-2)


def test_predictions_are_those_of_the_recorded_score(hub: AdapterHub) -> None:
    rows = [json.loads(line) for line in TEST.read_text(encoding="utf-8").splitlines()]
    found = hub.predict([row["text"] for row in rows])
    right = sum(f.prediction == row["label"] for f, row in zip(found, rows, strict=True))
    assert right / len(rows) == pytest.approx(hub.get("commands").metrics["accuracy"])
    assert all(f.adapter == "commands@v1" and 0 < f.confidence <= 1 for f in found)
    scores = {s.metric: s.value for _, s in hub.evaluate(["commands"])}
    assert scores == pytest.approx(hub.get("commands").metrics)


def test_an_adapter_of_plain_peft_comes_in_with_its_own_logits(hub: AdapterHub, tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = get_peft_model(plain_base(), LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    tokens = torch.randint(3, 4000, (4, 16))
    for _ in range(3):
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    model.save_pretrained(tmp_path / "elsewhere")
    record = hub.import_adapter(tmp_path / "elsewhere", "foreign", labels=("yes", "no"))
    assert (record.kind, record.rank, record.ref) == ("imported", 4, "foreign@v1")
    loaded, tokenizer = hub.load("foreign")
    assert torch.allclose(logits(loaded, tokenizer), logits(model, tokenizer), atol=1e-5)
    assert hub.lineage("foreign")[0].relation == "imported_from"
    assert hub.predict(["is it?"], adapter="foreign")[0].prediction in ("yes", "no")


def test_export_is_what_peft_opens(hub: AdapterHub, tmp_path: Path) -> None:
    target = hub.export("commands", tmp_path / "out")
    model, tokenizer = hub.load("commands")
    theirs = PeftModel.from_pretrained(plain_base(), target)
    assert torch.equal(logits(model, tokenizer), logits(theirs, tokenizer))
    with pytest.raises(UsageError, match="not an empty directory"):
        hub.export("commands", tmp_path / "out")


def test_two_loads_do_not_disturb_each_other(hub: AdapterHub) -> None:
    first, tokenizer = hub.load("commands")
    before = logits(first, tokenizer)
    hub.load("commands")
    hub.predict(["play some jazz"], task="commands")
    assert torch.equal(before, logits(first, tokenizer))


def test_update_starts_from_the_old_version_and_reviews_it(hub: AdapterHub, tmp_path: Path) -> None:
    rows = [{"text": f"please order {n} pizzas", "label": "order food"} for n in range(2, 26)]
    data = tmp_path / "new.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    record = hub.update("commands", data, epochs=2, max_length=48)
    assert record.ref == "commands@v2"
    assert record.training["settings"]["rank"] == record.rank == 8  # as its parent, whatever the default is
    assert [(e.parent, e.relation) for e in hub.lineage("commands@v2")] == [("commands@v1", "updated_from")]
    task = hub.registry.task("commands")
    assert task.labels == (*hub.get("commands@v1").manifest["task_spec"]["labels"], "order food")
    assert hub.predict(["could you order 3 pizzas"], task="commands")[0].prediction == "order food"
    kept = {score["metric"]: score for score in record.manifest["evaluations"]}
    assert kept["retention"]["n"] == 100
    assert kept["recall"]["details"]["before"] == 0 < kept["recall"]["value"]
    # The old version still knows its own labels only.
    assert hub.predict(["order 3 pizzas"], adapter="commands@v1")[0].prediction != "order food"
    before, after = hub.rollback("commands@latest")
    assert (before.ref, after.ref) == ("commands@v2", "commands@v1")
    with pytest.raises(UsageError, match="rank"):
        hub.update("commands", data, rank=2)


def test_raw_text_updates_an_adapter_and_makes_a_text_task(hub: AdapterHub, tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("\n\n".join(f"The harbour of Quillhaven has {n} piers." for n in range(30)), encoding="utf-8")
    record = hub.add_task("notes", text, eval=text, epochs=2, rank=4, max_length=48)
    assert hub.registry.task("notes").kind == "text"
    assert 1 < record.metrics["perplexity"] < 200
    updated = hub.update("commands", text, epochs=1, max_length=48)
    assert hub.registry.task("commands").kind == "choice"
    assert updated.kind == "updated"


def test_generation_task_answers_freely(hub: AdapterHub) -> None:
    facts = DEMO / "facts.train.jsonl"
    record = hub.add_task("facts", facts, eval=facts, epochs=1, rank=4, max_length=64)
    assert set(record.metrics) == {"exact_match", "token_f1", "rouge_l", "strict_match"}
    assert isinstance(hub.generate("Who founded the town of Quillhaven?", task="facts", max_new_tokens=5), str)
    assert hub.generate("The river", adapter="base", max_new_tokens=4) == hub.generate(
        "The river", adapter="base", max_new_tokens=4
    )


def test_sequential_goes_on_from_the_newest_adapter(tmp_path: Path, few: Path) -> None:
    hub = AdapterHub.init(tmp_path / "hub", "tiny")
    hub.add_task("tickets", few, epochs=1, rank=4, max_length=48)
    record = hub.add_task("commands", few, strategy="sequential", epochs=1, max_length=48)
    assert record.rank == 4
    assert [(e.parent, e.relation) for e in hub.lineage("commands")] == [("tickets@v1", "updated_from")]


def test_same_seed_same_adapter_other_seed_another(tmp_path: Path, few: Path) -> None:
    weights = []
    for number, seed in enumerate((5, 5, 6)):
        hub = AdapterHub.init(tmp_path / f"hub{number}", "tiny")
        hub.add_task("commands", few, epochs=1, rank=4, max_length=48, seed=seed, dropout=0.1)
        weights.append((hub.path("commands") / "adapter_model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    assert weights[0] != weights[2]


def test_what_does_not_fit_is_refused(hub: AdapterHub, few: Path, tmp_path: Path) -> None:
    hub.add_task("tickets", few, epochs=1, rank=4, max_length=48)  # with one task there is nothing to route
    with pytest.raises(DataError, match="commands"):
        hub.add_task("x", tmp_path / "commands.train.jsonl")
    with pytest.raises(UsageError, match="--epochs must be at least 1"):
        hub.add_task("x", TRAIN, epochs=0)
    with pytest.raises(DataError):
        hub.predict(["  "], task="commands")
    with pytest.raises(UsageError, match="both a task and a router"):
        hub.predict(["play jazz"], task="commands", router="analytic")
    assert hub.predict(["play jazz"], max_new_tokens=3)[0].routing is not None  # nobody said which task
    broken = hub.export("commands@v1", tmp_path / "broken") / "adapter_model.safetensors"
    broken.write_bytes(broken.read_bytes()[:-100])
    with pytest.raises(IntegrityError):
        hub.import_adapter(tmp_path / "broken", "broken")
    other = AdapterHub.init(tmp_path / "other", "tiny")
    assert other.list() == []
    assert not any(a.name in ("x", "broken") for a in hub.list())


def test_a_tampered_adapter_is_refused(small: AdapterHub) -> None:
    hub = small
    file = hub.path("tickets") / "adapter_model.safetensors"
    file.chmod(0o644)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    for use in (lambda: hub.load("tickets"), lambda: hub.predict(["a"]), lambda: hub.path("tickets")):
        with pytest.raises(IntegrityError, match="adapter_model"):
            use()


def test_another_base_is_refused(tmp_path: Path) -> None:
    import shutil

    base = tmp_path / "base"
    shutil.copytree(resolve(TINY), base)
    hub = AdapterHub.init(tmp_path / "hub", str(base), quantization="none")
    file = base / "model.safetensors"
    file.chmod(0o644)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(BaseModelError, match="has changed"):
        hub.load_base()
    assert [p.path for p in hub.verify()] == [str(base.resolve())]


def test_a_lora_of_another_shape_is_refused(hub: AdapterHub, tmp_path: Path) -> None:
    folder = hub.export("commands@v1", tmp_path / "out")
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    config["r"] = 3
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(AdapterError, match="does not fit this base"):
        hub.import_adapter(folder, "wrong")
    assert "wrong" not in {a.name for a in hub.list()}


@pytest.fixture(scope="session")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 32 tickets: enough where nothing is said about what was learned."""
    return first_lines(DEMO / "tickets.train.jsonl", 32, tmp_path_factory.mktemp("few") / "tickets.jsonl")


def test_the_recorded_score_is_what_the_stored_version_scores(small: AdapterHub) -> None:
    again = {score.metric: score.value for _, score in small.evaluate(["tickets"])}
    assert again == small.get("tickets@v1").metrics
    assert small.log("tickets")[0].verb == "eval"


def test_an_import_takes_no_task_over(small: AdapterHub, tmp_path: Path) -> None:
    record = small.import_adapter(small.export("tickets@v1", tmp_path / "out"), "copy", task="tickets")
    assert small.registry.serving()["tickets"] == "tickets@v1"
    assert small.predict(["it crashed"], adapter=record.ref)[0].adapter == "copy@v1"


def test_an_adapter_of_another_base_is_refused_and_found(small: AdapterHub) -> None:
    folder = small.path("tickets@v1")
    with small.registry.new_draft("stranger") as draft:
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            (draft.path / name).write_bytes((folder / name).read_bytes())
        manifest = {"kind": "trained", "rank": 4, "base": {"fingerprint": "f" * 64}}
        small.registry.publish(draft, manifest, task=small.registry.task("tickets"), serve=False)
    with pytest.raises(AdapterError, match="another base"):
        small.predict(["hello"], adapter="stranger")
    assert [p.problem for p in small.verify()] == ["made for another base"]
    small.registry.delete("stranger@v1")


def test_a_refused_setting_leaves_no_run_behind(small: AdapterHub) -> None:
    with pytest.raises(UsageError, match="matches no layer"):
        small.add_task("x", TRAIN, target_modules="foo")
    with pytest.raises(UsageError, match="is larger than the width"):
        small.add_task("x", TRAIN, rank=1000)
    assert list(small.registry.runs_dir.iterdir()) == []


def test_a_run_killed_between_rename_and_commit_is_not_published_twice(
    tmp_path: Path, few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adapterhub_cl.training.runs import Run

    hub = AdapterHub.init(tmp_path / "hub", "tiny")
    monkeypatch.setattr(Run, "remove", lambda self: None)  # as if killed before this
    made = hub.add_task("tickets", few, epochs=1, rank=2, max_length=32)
    monkeypatch.undo()
    (hub.folder / "index.db").unlink()
    for extra in hub.folder.glob("index.db-*"):
        extra.unlink()
    orphan = made.path.with_name("v1")
    blank = orphan.rename(tmp_path / "v1")
    hub = AdapterHub.open(hub.folder)  # an index without the version …
    blank.rename(orphan)  # … beside its whole directory: renamed, not committed
    assert hub.list() == []
    assert hub.add_task("tickets", resume=True).ref == "tickets@v1"
    assert [record.ref for record in hub.list(all_versions=True)] == ["tickets@v1"]
    assert list(hub.registry.runs_dir.iterdir()) == []


def test_a_dry_run_says_what_a_run_would_do_and_writes_nothing(small: AdapterHub, few: Path) -> None:
    def files() -> dict[str, int]:
        return {str(p): p.stat().st_mtime_ns for p in small.folder.rglob("*") if "index.db" not in p.name}

    before = files()
    settings: dict[str, Any] = {"epochs": 2, "rank": 4, "max_length": 48, "seed": 3}
    plan: TrainingPlan = small.add_task("planned", few, dry_run=True, **settings)
    assert files() == before
    assert "planned" not in {record.name for record in small.list()}
    record: AdapterRecord = small.add_task("planned", few, **settings)
    facts = json.loads((record.path / "training.json").read_text(encoding="utf-8"))
    assert (plan.examples, plan.steps) == (facts["trained_on"], facts["steps"])
    assert (plan.held_out, plan.learning_rate) == (facts["dev_examples"], facts["learning_rate"])
    assert (plan.epochs, plan.batch_size, plan.rank) == (2, 16, 4)
    assert plan.labels == record.manifest["task_spec"]["labels"]
    assert any(note.startswith("because a column of labels holds") for note in plan.notes)
    assert plan.memory_bytes > 1e8
    assert (plan.kind, plan.prompt_format, plan.truncated) == ("choice", "instruction", facts["truncated"])
    assert 2 < plan.typical_length <= plan.longest <= plan.max_length == 48
    assert 0 < plan.seconds < 600
    assert [part.learned for part in plan.shown] == [False, True]
    assert plan.shown[1].text.split("<")[0].strip() in record.manifest["task_spec"]["labels"]
    assert facts["memory_bytes"] > 1e8
    assert facts["peak_memory_bytes"] > 1e8
    assert plan.trainable == sum(p.numel() for p in load_file(record.path / "adapter_model.safetensors").values())
    with pytest.raises(UsageError, match="has its plan already"):
        small.add_task("planned", resume=True, dry_run=True)
    with pytest.raises(UsageError, match="--memory 1MB is too small"):
        small.add_task("never", few, dry_run=True, memory="1MB")
    with pytest.raises(UsageError, match="--memory 1MB is too small"):
        small.add_task("never", few, memory="1MB")
    assert list(small.registry.runs_dir.iterdir()) == []
