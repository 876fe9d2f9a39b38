"""What `rebase` takes along beside the adapters: samples of facts, columns, settings, augmentation, what serves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import transformers
from crashes import in_child
from encoder_hubs import COLOURS, Notes, data, new_hub, rows, write
from safetensors.torch import load_file, save_file
from stopping import StopAtStep

from adapterhub_cl import AdapterHub
from adapterhub_cl.data.learned_layouts import carried
from adapterhub_cl.errors import HubError
from adapterhub_cl.evaluation.probes import probe_of
from adapterhub_cl.learning import fact_lessons
from adapterhub_cl.rebasing import rebase_steps
from adapterhub_cl.rebasing.relearning import _settings
from adapterhub_cl.rebasing.task_sources import TaskSource
from adapterhub_cl.settings import TrainingSettings
from adapterhub_cl.types import AdapterRecord, Layout, Task

OWN: dict[str, Any] = {"epochs": 1, "rank": 4, "learning_rate": 0.01, "dev_share": 0.0, "max_length": 64}
BRIEF: dict[str, Any] = {"epochs": 1, "min_retention": 0.0}


@pytest.fixture
def qwen(pico_path: Callable[[str], Path]) -> str:
    return str(pico_path("qwen2"))


def test_facts_keep_their_samples(
    pico_path: Callable[[str], Path], qwen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fact_lessons, "NEAR", 4)
    monkeypatch.setattr(fact_lessons, "NEAR_HELD_OUT", 2)
    hub = new_hub(tmp_path / "old", pico_path("llama"))
    makers = {"apple": "Ann", "stone": "Bob", "house": "Cy", "river": "Dan", "cloud": "Eve", "table": "Fay"}
    facts = [{"question": f"Who made the {what}?", "answer": who} for what, who in makers.items()]
    own = {**OWN, "max_length": 200, "augment": "paraphrase:2"}
    hub.add_task("makers", write(tmp_path / "makers.jsonl", facts), facts=True, **own)
    notes = Notes()
    hub.rebase(qwen, to=str(tmp_path / "new"), reporter=notes, **BRIEF)
    assert not [note for note in notes.said if "also in the training data" in note or "no replay samples" in note]
    new = AdapterHub.open(tmp_path / "new")
    made, was = new.get("makers"), hub.get("makers")
    assert len((made.path / "replay.jsonl").read_text().splitlines()) == len(makers)
    assert made.manifest["replay"] == was.manifest["replay"]
    for one in (hub, new):
        assert one.route(["Who made the apple?"])[0].adapters == {"makers@v1": 1.0}
    more = write(tmp_path / "more.jsonl", [{"question": "Who made the lamp?", "answer": "Zoe"}])
    new.update("makers", more, facts=True, reporter=notes, epochs=1, max_forgetting=1.0)
    assert "6 replay samples of makers@v1 are mixed in" in notes.said
    assert json.loads((new.get("makers").path / "training.json").read_text())["eval"] is None


@pytest.mark.parametrize(("text", "answer"), [("title", "label"), ("foo", "bar"), ("instruction", "output")])
@pytest.mark.parametrize("gone", [False, True])
def test_later_rows_are_read_by_the_same_columns(
    pico_path: Callable[[str], Path], tmp_path: Path, text: str, answer: str, gone: bool
) -> None:
    """Whether the rows are written down from the data or from the samples: they have columns of their own there."""

    def file(count: int, seed: int) -> Path:
        found = [{text: row["input"], "text": "nothing", answer: row["output"]} for row in rows(COLOURS, count, seed)]
        return write(tmp_path / f"{count}-{seed}.jsonl", found)

    hub, first, more = new_hub(tmp_path / "old", pico_path("bert")), file(36, 0), file(12, 1)
    columns = {"input": text, "output": answer}
    hub.add_task("colours", first, kind="choice", columns=columns, replay="balanced:24", **OWN)
    if gone:
        first.unlink()
    hub.rebase(str(pico_path("roberta")), to=str(tmp_path / "new"), **BRIEF)
    new = AdapterHub.open(tmp_path / "new")
    own = hub.registry.task("colours").layout
    assert own is not None
    found = new.registry.task("colours").layout
    assert found is not None
    assert own in (found, *(replace(one, older=()) for one in (found, *found.older)))
    for one in (hub, new):
        assert [row.input for row in one.read_inputs(str(more), task="colours")] == [
            row["input"] for row in rows(COLOURS, 12, 1)
        ]
        assert one.evaluate(["colours"], data=str(more))[0][1].n == 12
    new.update("colours", more, epochs=1, max_forgetting=1.0)
    assert new.get("colours").training["data"]["columns"] == columns
    assert new.get("colours").manifest["gate"]["effects"][0]["n"] > 0
    probe = probe_of(new.registry, "colours")
    assert probe is not None
    assert all(row.input for row in probe.examples)
    new.rebase(str(pico_path("bert")), to=str(tmp_path / "third"), **BRIEF)
    third = AdapterHub.open(tmp_path / "third")
    assert third.read_inputs(str(more), task="colours")[0].input == rows(COLOURS, 12, 1)[0]["input"]


def test_rows_with_the_same_names_in_other_roles_are_read_as_they_were_written() -> None:
    written = Layout("instruction/input/output", ("input",), "output", "instruction")
    turned = Layout("as given by --columns", ("output",), "input")
    assert carried(turned, written) == replace(written, older=(turned,))
    titles = Layout("as given by --columns", ("title",), "label")
    assert carried(titles, written) == replace(titles, older=(written,))
    assert carried(written, written) == written


def saved_again(base: Path, to: Path) -> str:
    """The same tensors in other files, with another fingerprint."""
    transformers.AutoModelForMaskedLM.from_pretrained(base).save_pretrained(to, max_shard_size="20KB")
    transformers.AutoTokenizer.from_pretrained(base).save_pretrained(to)
    return str(to)


def test_copies_serve_as_the_versions_do_in_the_old_hub(pico_path: Callable[[str], Path], tmp_path: Path) -> None:
    hub, moved = new_hub(tmp_path / "old", pico_path("bert")), saved_again(pico_path("bert"), tmp_path / "moved")
    hub.add_task("colours", data(tmp_path, COLOURS, 12), kind="choice", **OWN)
    hub.update("colours", data(tmp_path, COLOURS, 12, 1), epochs=1, max_forgetting=1.0)
    to = str(tmp_path / "new")
    hub.rebase(moved, to=to)
    assert AdapterHub.open(to).registry.serving() == {"colours": "colours@v2"}
    hub.rollback("colours@latest")
    assert hub.rebase(moved, to=to).tasks[0].new == "colours@v1"
    new = AdapterHub.open(to)
    assert new.registry.serving() == hub.registry.serving() == {"colours": "colours@v1"}
    assert new.get("colours").ref == "colours@v1"
    hub.rebase(moved, to=str(tmp_path / "fresh"))
    assert AdapterHub.open(tmp_path / "fresh").get("colours").ref == "colours@v1"
    assert new.verify() == []

    new.update("colours", data(tmp_path, COLOURS, 12, 2), epochs=1, max_forgetting=1.0)
    notes = Notes()
    hub.rebase(moved, to=to, reporter=notes)
    assert AdapterHub.open(to).registry.serving() == {"colours": "colours@v3"}
    assert any(note.startswith("note: colours@v3 goes on serving colours in the new hub") for note in notes.said)


def test_a_rebase_goes_on_after_the_old_hub_was_renamed(pico_path: Callable[[str], Path], tmp_path: Path) -> None:
    hub, moved = new_hub(tmp_path / "old", pico_path("bert")), saved_again(pico_path("bert"), tmp_path / "moved")
    for name in ("colours", "others"):
        hub.add_task(name, data(tmp_path, COLOURS, 12), kind="choice", **OWN)
    to = tmp_path / "new"
    hub.rebase(moved, to=str(to), tasks=["colours"])
    begun = json.loads((to / "rebase" / "begun.json").read_text())
    assert begun["hub"] == "old"
    (tmp_path / "old").rename(tmp_path / "elsewhere")
    hub = AdapterHub.open(tmp_path / "elsewhere")
    assert [one.state for one in hub.rebase(moved, to=str(to)).tasks] == ["moved", "moved"]
    (to / "rebase" / "begun.json").write_text(json.dumps({**begun, "created_at": "another"}))
    with pytest.raises(HubError, match=r"begun by a rebase of another hub \(old\)"):
        hub.rebase(moved, to=str(to))


def test_a_stopped_training_goes_on_after_the_old_hub_was_renamed(
    pico_path: Callable[[str], Path], tmp_path: Path
) -> None:
    hub, roberta = new_hub(tmp_path / "old", pico_path("bert")), str(pico_path("roberta"))
    hub.add_task("colours", data(tmp_path, COLOURS, 36), kind="choice", **OWN)
    asked: dict[str, Any] = {"to": str(tmp_path / "new"), "checkpoint_every": 1, **BRIEF, "epochs": 3, "batch_size": 8}
    assert in_child(lambda: hub.rebase(roberta, reporter=StopAtStep(6), **asked)) == 137
    [run] = (tmp_path / "new" / "runs").glob("colours-*")
    (tmp_path / "old").rename(tmp_path / "elsewhere")
    AdapterHub.open(tmp_path / "elsewhere").rebase(roberta, **asked)
    assert AdapterHub.open(tmp_path / "new").get("colours").training["run"] == run.name


def test_a_stopped_rebase_of_written_rows_still_tries_versions_as_they_are(
    pico_path: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, first = new_hub(tmp_path / "old", pico_path("llama")), data(tmp_path, COLOURS, 24)
    own = {**OWN, "epochs": 6, "prompt_loss": 0.5}
    hub.add_task("colours", first, kind="choice", replay="none", **own)
    first.unlink()
    near = tmp_path / "near"
    shutil.copytree(pico_path("llama"), near)
    tensors = load_file(near / "model.safetensors")
    tensors = {name: tensor * (1 + 1e-4) if tensor.ndim == 2 else tensor for name, tensor in tensors.items()}
    save_file(tensors, near / "model.safetensors", metadata={"format": "pt"})
    asked: dict[str, Any] = {"to": str(tmp_path / "new"), "pseudo_samples": 24, "port": True}

    def stop(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(rebase_steps, "_moved", stop)
        with pytest.raises(KeyboardInterrupt):
            hub.rebase(str(near), **asked)
    held = (tmp_path / "new" / "rebase" / "colours" / "held-out.jsonl").read_text().splitlines()
    hub, notes = AdapterHub.open(tmp_path / "old"), Notes()
    [moved] = hub.rebase(str(near), reporter=notes, **asked).tasks
    assert (moved.state, moved.source, moved.held) == ("moved", "ported", len(held))
    assert moved.notes == (
        f"measured on {len(held)} rows that colours@v1 wrote itself, so the score says how often both agree",
    )
    assert not any("24 rows" in note for note in notes.said), "nothing was written again"


def test_the_augmentation_goes_along(pico_path: Callable[[str], Path], tmp_path: Path) -> None:
    hub = new_hub(tmp_path / "old", pico_path("llama"))
    own = {**OWN, "kind": "choice", "replay": "balanced:12"}
    hub.add_task("colours", data(tmp_path, COLOURS, 24), augment="swap:1", **own)
    hub.add_task("others", data(tmp_path, COLOURS, 24), augment="paraphrase:1,generation:1", **own)
    notes = Notes()
    hub.rebase(str(pico_path("bert")), to=str(tmp_path / "new"), reporter=notes, **BRIEF)
    new = AdapterHub.open(tmp_path / "new")
    told = {name: json.loads((new.get(name).path / "training.json").read_text()) for name in ("colours", "others")}
    assert [told[name]["augment"] for name in ("colours", "others")] == ["swap:1", "paraphrase:1"]
    assert told["colours"]["trained_on"] > new.get("colours").training["data"]["examples"]
    lacks = "note: others is learned without the augmentation of others@v1: generation needs a base that writes"
    assert lacks in notes.said


def test_settings_that_were_chosen_by_the_number_of_rows_are_chosen_anew(
    pico_path: Callable[[str], Path], tmp_path: Path
) -> None:
    hub, roberta = new_hub(tmp_path / "old", pico_path("bert")), str(pico_path("roberta"))
    own = {key: value for key, value in OWN.items() if key != "epochs"}
    hub.add_task("chosen", data(tmp_path, COLOURS, 480), kind="choice", replay="balanced:24", **own)
    hub.add_task("given", data(tmp_path, COLOURS, 24), kind="choice", epochs=2, batch_size=4, **own)
    data(tmp_path, COLOURS, 480).unlink()

    def settings(of: AdapterHub, name: str) -> tuple[int, int]:
        told = of.get(name).training["settings"]
        return told["epochs"], told["batch_size"]

    assert [settings(hub, name) for name in ("chosen", "given")] == [(4, 16), (2, 4)]
    hub.rebase(roberta, to=str(tmp_path / "new"), min_retention=0.0)
    new = AdapterHub.open(tmp_path / "new")
    assert [settings(new, name) for name in ("chosen", "given")] == [(12, 16), (2, 4)]


@pytest.mark.parametrize(
    ("told", "tuned", "kept"),
    [
        ({"given": {"epochs": 9, "rank": 4}}, {}, {"epochs": 9, "rank": 4}),
        ({"given": {"rank": 4}}, {"epochs": 9}, {"rank": 4}),
        ({}, {"epochs": 9}, {"epochs": 9, "rank": 4}),
        ({}, {}, {"rank": 4}),
    ],
)
def test_what_was_given_is_taken_over(
    tmp_path: Path, told: dict[str, Any], tuned: dict[str, Any], kept: dict[str, Any]
) -> None:
    """Versions of earlier releases do not say what was given."""
    (tmp_path / "training.json").write_text(json.dumps(told))
    had = {**TrainingSettings().to_json(), "epochs": 9, "batch_size": 16, "rank": 4}
    manifest = {"training": {"settings": had}, "tuned": tuned}
    record = AdapterRecord("t", 1, "trained", "t", 4, 0, "", "active", tmp_path, manifest=manifest)
    assert _settings(TaskSource(Task("t"), record, first=record), {}, shape=False) == kept
