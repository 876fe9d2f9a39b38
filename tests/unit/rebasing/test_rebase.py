"""`rebase`: the tasks of a hub in a hub on another base."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cl_adapter.__main__ import main
from crashes import in_child
from encoder_hubs import ANIMALS, COLOURS, QUICK, Notes, data, new_hub, rows, teach, write
from filelock import FileLock
from safetensors.torch import load_file, save_file
from stopping import StopAtStep

from adapterhub_cl import AdapterHub
from adapterhub_cl.bases.loading import inspect_base
from adapterhub_cl.bases.same_weights import is_same_model
from adapterhub_cl.context import Hub
from adapterhub_cl.errors import HubError, IntegrityError, TrainingError, UnknownNameError, UsageError
from adapterhub_cl.progress import Reporter
from adapterhub_cl.rebasing import porting, relearning
from adapterhub_cl.rebasing.lesson_files import WrittenLesson
from adapterhub_cl.rebasing.task_sources import one_kind, source_of_task
from adapterhub_cl.types import REWARD, Example, Task

FAST: dict[str, Any] = {"epochs": 8, "learning_rate": 0.01}
BRIEF: dict[str, Any] = {**FAST, "epochs": 1, "min_retention": 0}


@pytest.fixture(scope="module")
def made(pico_path: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hub on bert: colours with its data and held-out file, animals with samples only; colours@v1 in production."""
    folder = tmp_path_factory.mktemp("rebased")
    hub = new_hub(folder / "old", pico_path("bert"))
    teach(hub, folder, "colours", COLOURS)
    gone = folder / "gone"
    gone.mkdir()
    teach(hub, gone, "animals", ANIMALS, replay="balanced:40")
    shutil.rmtree(gone)
    hub.alias("colours@v1", "production")
    return folder


@pytest.fixture
def old(made: Path, tmp_path: Path) -> AdapterHub:
    shutil.copytree(made / "old", tmp_path / "old")
    return AdapterHub.open(tmp_path / "old")


@pytest.fixture
def roberta(pico_path: Callable[[str], Path]) -> str:
    return str(pico_path("roberta"))


def test_tasks_are_learned_from_data_and_from_samples(old: AdapterHub, roberta: str, tmp_path: Path) -> None:
    before = sorted((p.name, p.stat().st_size) for p in (old.folder / "adapters").rglob("*"))
    found = old.rebase(roberta, to=str(tmp_path / "new"), **FAST)
    assert [(one.task, one.source, one.state) for one in found.tasks] == [
        ("animals", "samples", "moved"),
        ("colours", "data", "moved"),
    ]
    animals, colours = found.tasks
    assert (animals.rows, animals.held, colours.rows, colours.held) == (30, 10, 48, 24)
    new = AdapterHub.open(tmp_path / "new")
    assert new.base.fingerprint != old.base.fingerprint
    assert new.registry.serving() == {"animals": "animals@v1", "colours": "colours@v1"}
    for one in found.tasks:
        told = new.get(one.new).manifest["rebased_from"]
        assert told["ref"] == one.old
        assert told["base"]["fingerprint"] == old.base.fingerprint
        assert (told["source"], told["old_score"], told["new_score"]) == (one.source, one.old_score, one.new_score)
        assert one.retention is not None
        assert one.retention > 0.8
        spec = new.get(one.new).manifest["task_spec"]
        was = old.get(one.old).manifest["task_spec"]
        assert [spec[key] for key in ("kind", "labels", "instruction", "metric")] == [
            was[key] for key in ("kind", "labels", "instruction", "metric")
        ]
    assert "production" in new.get("colours@v1").aliases
    assert new.predict(["dog table"], task="animals")[0].prediction == "dog"
    assert new.verify() == []
    assert before == sorted((p.name, p.stat().st_size) for p in (old.folder / "adapters").rglob("*"))


@pytest.mark.parametrize("port", [False, True], ids=["learned", "ported"])
def test_both_bases_are_compared_row_by_row(pico_path: Callable[[str], Path], tmp_path: Path, port: bool) -> None:
    """Every fourth held-out row has a wrong answer, on which both versions fail: their scores go together."""
    hub = new_hub(tmp_path / "old", pico_path("bert"))
    held = rows(COLOURS, 24, 1)
    wrong = {"red": "blue", "blue": "green", "green": "red"}
    odd = [{**row, "output": wrong[row["output"]]} if k % 4 == 0 else row for k, row in enumerate(held)]
    hub.add_task("colours", data(tmp_path, COLOURS), eval=write(tmp_path / "odd.jsonl", odd), **{**QUICK, **FAST})
    base = str(pico_path("roberta")) if not port else near(str(pico_path("bert")), tmp_path / "near", 0.001)
    moved = hub.rebase(base, to=str(tmp_path / "new"), port=port, **FAST).tasks[0]
    assert (moved.source, moved.old_score) == ("ported" if port else "data", pytest.approx(0.75, abs=0.1))
    manifest = AdapterHub.open(tmp_path / "new").get("colours@v1").manifest
    assert manifest["gate"]["effects"][0]["correlation"] > 0.4
    assert "old_row_scores" not in manifest["rebased_from"]


def near(base: str, to: Path, noise: float) -> str:
    """A base whose matrices are those of another one with noise of so many of their standard deviations."""
    shutil.copytree(base, to)
    torch.manual_seed(0)
    file = to / "model.safetensors"
    tensors = load_file(file)
    for name, tensor in tensors.items():
        if tensor.ndim == 2:
            tensors[name] = tensor + noise * tensor.std() * torch.randn(tensor.shape)
    save_file(tensors, file, metadata={"format": "pt"})
    return str(to)


def test_versions_are_used_as_they_are_on_a_base_that_is_near(
    old: AdapterHub, pico_path: Callable[[str], Path], tmp_path: Path
) -> None:
    base = near(str(pico_path("bert")), tmp_path / "near", 0.001)
    planned = old.rebase(base, to=str(tmp_path / "new"), port=True, dry_run=True)
    assert all("is first tried as it is" in one.notes[-1] for one in planned.tasks)
    found = old.rebase(base, to=str(tmp_path / "new"), port=True, **BRIEF)
    assert [(one.task, one.source, one.state, one.rows) for one in found.tasks] == [
        ("animals", "ported", "moved", 0),
        ("colours", "ported", "moved", 0),
    ]
    new = AdapterHub.open(tmp_path / "new")
    for one in found.tasks:
        assert one.retention == pytest.approx(1.0, abs=0.1)
        mine, theirs = new.get(one.new), old.get(one.old)
        for name in set(theirs.manifest["files"]) - {"README.md"}:
            assert (mine.path / name).read_bytes() == (theirs.path / name).read_bytes(), name
        told = mine.manifest["rebased_from"]
        assert (told["source"], told["old_score"], told["new_score"]) == ("ported", one.old_score, one.new_score)
        assert mine.manifest["evaluations"][0]["value"] == one.new_score
        assert mine.manifest["gate"]["passed"]
    assert "production" in new.get("colours@v1").aliases
    assert new.predict(["dog table"], task="animals")[0].prediction == "dog"
    assert new.verify() == []
    again = old.rebase(base, to=str(tmp_path / "new"), port=True, **BRIEF)
    assert [one.source for one in again.tasks] == ["ported", "ported"]


def test_a_rejected_task_that_is_ported_later_is_moved(
    old: AdapterHub, pico_path: Callable[[str], Path], tmp_path: Path
) -> None:
    base, to = near(str(pico_path("bert")), tmp_path / "near", 0.001), str(tmp_path / "new")
    states = [
        old.rebase(base, to=to, tasks=["colours"], **more).tasks[0]
        for more in ({"epochs": 1, "learning_rate": 1e-9}, {}, {"again": True, "port": True}, {}, {"dry_run": True})
    ]
    assert [(one.state, one.new) for one in states] == [
        ("rejected", "colours@v1"),
        ("rejected", "colours@v1"),
        *[("moved", "colours@v2")] * 3,
    ]


def test_a_task_with_a_newer_version_is_moved_again_on_request(
    old: AdapterHub, pico_path: Callable[[str], Path], tmp_path: Path
) -> None:
    base, to = near(str(pico_path("bert")), tmp_path / "near", 0.001), str(tmp_path / "new")
    ask: dict[str, Any] = {"tasks": ["animals"], "port": True, "min_retention": 0.0, "epochs": 1}
    assert old.rebase(base, to=to, **ask).tasks[0].new == "animals@v1"
    old.update("animals", data(tmp_path, ANIMALS, 12, 4), epochs=1, learning_rate=0.01, max_forgetting=1.0)
    notes = Notes()
    assert old.rebase(base, to=to, **ask, reporter=notes).tasks[0].new == "animals@v1"
    assert any("--again moves that one" in note for note in notes.said)
    assert old.rebase(base, to=to, **ask, again=True).tasks[0].new == "animals@v2"
    assert old.rebase(base, to=to, **ask, again=True).tasks[0].new == "animals@v2"
    file = AdapterHub.open(to).get("animals@v2").path / "adapter_model.safetensors"
    file.chmod(0o644)
    file.write_bytes(b"")
    with pytest.raises(IntegrityError, match="animals@v2"):
        old.rebase(base, to=to, **ask)


def test_rows_of_several_kinds_become_rows_of_one() -> None:
    """As updates mix them: answers, pairs, and answers that were judged."""
    plain = [Example("a", "1"), Example("b", "2")]
    pairs = [Example("c", "3", rejected="4")] * 3
    judged = [Example("d", "5", desirable=True), Example("e", "6", desirable=False)]
    answers, rewards = Task("t", "generation"), Task("t", "generation", metric=REWARD)
    assert one_kind(answers, plain) == plain
    assert one_kind(rewards, pairs) == pairs
    assert [row.answer for row in one_kind(answers, [*plain, *pairs, *judged])] == ["1", "2", "3", "3", "3", "5"]
    assert not any(row.prefers for row in one_kind(answers, [*plain, *pairs, *judged]))
    assert one_kind(rewards, [*plain, *pairs, *judged]) == pairs


def test_a_task_of_answers_and_preferences_is_moved(pico_path: Callable[[str], Path], tmp_path: Path) -> None:
    hub = new_hub(tmp_path / "old", pico_path("llama"))
    own: dict[str, Any] = {"epochs": 1, "rank": 4, "dev_share": 0.0, "max_length": 64, "max_forgetting": 1.0}
    words = [{"prompt": f"word {k}", "completion": f"w{k}"} for k in range(16)]
    pairs = [{"prompt": f"say {k}", "chosen": f"w{k}", "rejected": "no"} for k in range(8)]
    hub.add_task("words", write(tmp_path / "words.jsonl", words), kind="generation", **own)
    hub.update("words", write(tmp_path / "pairs.jsonl", pairs), epochs=1, max_forgetting=1.0)
    base = near(str(pico_path("llama")), tmp_path / "near", 0.001)
    (one,) = hub.rebase(base, to=str(tmp_path / "new"), min_retention=0.0, epochs=1).tasks
    assert (one.state, one.source) == ("moved", "data")
    assert any("its rows are of several kinds" in note for note in one.notes)


def test_what_does_not_fit_or_keeps_too_little_is_learned_again(
    old: AdapterHub, roberta: str, pico_path: Callable[[str], Path], tmp_path: Path
) -> None:
    far = near(str(pico_path("bert")), tmp_path / "far", 3.0)
    notes = Notes()
    found = old.rebase(far, to=str(tmp_path / "new"), port=True, tasks=["colours"], reporter=notes, **FAST)
    assert [(one.source, one.rows) for one in found.tasks] == [("data", 48)]
    assert any("colours: colours@v1 cannot be used as it is (its accuracy falls from" in said for said in notes.said)
    assert found.tasks[0].begun_as_copy
    assert AdapterHub.open(tmp_path / "new").get("colours@v1").manifest["rebased_from"]["begun_as_copy"]
    asked = {"to": str(tmp_path / "smaller"), "port": True, "tasks": ["colours"], "rank": 4}
    found = old.rebase(far, **asked, **FAST)
    assert not found.tasks[0].begun_as_copy, "another shape begins fresh"
    assert AdapterHub.open(tmp_path / "smaller").get("colours@v1").rank == 4
    found = old.rebase(roberta, to=str(tmp_path / "other"), port=True, tasks=["colours"], reporter=notes, **BRIEF)
    assert [(one.source, one.state) for one in found.tasks] == [("data", "moved")]
    assert "cannot be used as it is (the adapter in" in next(s for s in reversed(notes.said) if "as it is" in s)


def test_a_training_that_began_as_a_copy_goes_on_without_the_old_files(
    old: AdapterHub, pico_path: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = near(str(pico_path("bert")), tmp_path / "far", 3.0)
    first = load_file(old.get("colours@v1").path / "adapter_model.safetensors")
    asked: dict[str, Any] = {"to": str(tmp_path / "new"), "tasks": ["colours"], "port": True, "learning_rate": 1e-9}
    asked |= {"epochs": 4, "checkpoint_every": 2}
    assert in_child(lambda: old.rebase(far, reporter=StopAtStep(6), **asked)) == 137
    assert len(list((tmp_path / "new" / "runs").glob("colours-*/begun/adapter_model.safetensors"))) == 1
    monkeypatch.setattr(porting.Porter, "port", lambda *_: pytest.fail("tried again"))
    found = old.rebase(far, **asked)
    assert found.tasks[0].begun_as_copy
    assert not list((tmp_path / "new" / "runs").glob("colours-*"))
    made = load_file(AdapterHub.open(tmp_path / "new").get("colours@v1").path / "adapter_model.safetensors")
    assert all(torch.allclose(made[name], first[name], atol=1e-6) for name in first if "lora" in name)


def test_held_back_samples_are_not_learned(old: AdapterHub, roberta: str, tmp_path: Path) -> None:
    old.rebase(roberta, to=str(tmp_path / "new"), tasks=["animals"], **BRIEF)
    folder = tmp_path / "new" / "rebase" / "animals"
    train, held = (
        {json.loads(line)["input"] for line in (folder / name).read_text().splitlines()}
        for name in ("train.jsonl", "held-out.jsonl")
    )
    assert (len(train), len(held), train & held) == (30, 10, set())


def test_samples_that_the_old_version_learned_do_not_flatter_it(old: AdapterHub, roberta: str, tmp_path: Path) -> None:
    """Its score on them is 1; 0.6 was recorded on rows held out, and 0.6 is what a new version must keep."""
    source = source_of_task(old.registry, old.base, "animals")
    assert (source.source, source.measured_on) == ("samples", "")
    row = next(row for row in source.record.manifest["evaluations"] if row["metric"] == "accuracy")
    row |= {"value": 0.6, "n": 24}
    lesson = WrittenLesson("animals", "animals@v1", "samples", "", "", 30, 10, "accuracy")
    notes = Notes()
    hub = Hub(old.registry, old.load_base, notes)
    found = relearning.old_score(hub, source, lesson)
    assert (found.old_score, found.old_n, found.old_measured) == (0.6, 24, 1.0)
    assert found.old_from == row["data"]
    assert "on 24 rows held out, 0.6, as recorded (the lower one; on samples that it learned, 1)" in notes.said[-1]
    row["value"] = 1.0
    assert relearning.old_score(hub, source, lesson).old_score == 1.0
    source.record.manifest["evaluations"].clear()
    assert relearning.old_score(hub, source, lesson).old_score == 1.0
    assert "no score on rows held out is recorded" in notes.said[-1]


def test_a_task_that_keeps_too_little_is_rejected(
    old: AdapterHub, roberta: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["--hub", str(old.folder), "--quiet", "rebase", roberta, "--to", str(tmp_path / "new")]
    code = main([*line, "--tasks", "colours", "--epochs", "1", "--learning-rate", "1e-7"])
    assert code == 3
    assert "rejected" in capsys.readouterr().out
    new = AdapterHub.open(tmp_path / "new")
    assert new.get("colours@v1").status == "rejected"
    assert new.registry.serving() == {}
    assert main([*line, "--epochs", "8", "--learning-rate", "0.01"]) == 3  # the other task goes on
    assert new.registry.serving() == {"animals": "animals@v1"}
    assert len(new.registry.versions("colours")) == 1
    capsys.readouterr()
    main(["--hub", str(new.folder), "show", "colours@v1"])
    assert "rebased from" in capsys.readouterr().out
    assert main([*line, "--again", "--epochs", "8", "--learning-rate", "0.01"]) == 0
    assert new.registry.serving() == {"animals": "animals@v1", "colours": "colours@v2"}


def test_a_dry_run_writes_nothing(
    old: AdapterHub, roberta: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["--hub", str(old.folder), "rebase", roberta, "--to", str(tmp_path / "new"), "--dry-run"])
    told = capsys.readouterr().out
    assert code == 0
    assert "30 samples" in told
    assert "no longer at" in told
    assert not (tmp_path / "new").exists()


class _Killed(Reporter):
    """Ends the process, as kill −9 does, once a note says this."""

    def __init__(self, text: str) -> None:
        self.text = text

    def note(self, text: str) -> None:
        if self.text in text:
            os._exit(137)


@pytest.mark.parametrize("when", ["animals: learned again", "colours: learned again"])
def test_a_killed_rebase_goes_on(old: AdapterHub, roberta: str, tmp_path: Path, when: str) -> None:
    assert in_child(lambda: old.rebase(roberta, to=str(tmp_path / "new"), reporter=_Killed(when), **BRIEF)) == 137
    done = [record.ref for record in AdapterHub.open(tmp_path / "new").list()]
    assert done == (["animals@v1"] if when.startswith("colours") else [])
    notes = Notes()
    found = old.rebase(roberta, to=str(tmp_path / "new"), reporter=notes, **BRIEF)
    assert [one.state for one in found.tasks] == ["moved", "moved"]
    new = AdapterHub.open(tmp_path / "new")
    assert [record.ref for record in new.list(all_versions=True)] == ["animals@v1", "colours@v1"]
    assert [text for text in notes.said if "learned again" in text] == [
        text for text in notes.said if "learned again" in text and not any(ref[:-3] in text for ref in done)
    ]
    assert "production" in new.get("colours").aliases


@pytest.mark.parametrize("more", [{}, {"min_retention": 0.4}, {"rank": 3}])
def test_a_run_that_was_stopped_is_resumed_if_it_had_the_same_options(
    old: AdapterHub, roberta: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    """The old hub is not asked again: its score and the rows are written down."""

    asked: dict[str, Any] = {"to": str(tmp_path / "new"), "tasks": ["colours"], "checkpoint_every": 2, **FAST}
    assert in_child(lambda: old.rebase(roberta, reporter=StopAtStep(6), **asked)) == 137
    runs = list((tmp_path / "new" / "runs").glob("colours-*"))
    assert len(runs) == 1
    monkeypatch.setattr(relearning, "old_score", lambda *_: pytest.fail("measured again"))
    notes = Notes()
    found = old.rebase(roberta, reporter=notes, **(asked | more))
    assert [one.state for one in found.tasks] == ["moved"]
    made = AdapterHub.open(tmp_path / "new").get("colours")
    assert (made.training["run"] == runs[0].name) is not bool(more)
    assert any("colours had other options; it begins again" in text for text in notes.said) is bool(more)
    assert made.manifest["rebased_from"]["min_retention"] == more.get("min_retention", 0.9)
    assert made.rank == more.get("rank", old.get("colours").rank)
    assert not runs[0].exists()


def test_two_at_once_are_refused(old: AdapterHub, roberta: str, tmp_path: Path) -> None:
    old.rebase(roberta, to=str(tmp_path / "new"), tasks=["colours"], **BRIEF)
    with (
        FileLock(tmp_path / "new" / "rebase" / ".lock"),
        pytest.raises(TrainingError, match="going on in another process"),
    ):
        old.rebase(roberta, to=str(tmp_path / "new"), **FAST)


def test_other_hubs_are_left_alone(
    old: AdapterHub, made: Path, roberta: str, pico_path: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="hub that is to be moved"):
        old.rebase(roberta, to=str(old.folder))
    with pytest.raises(UsageError, match="inside the hub"):
        old.rebase(roberta, to=str(old.folder / "sub"))
    assert not (old.folder / "sub").exists()
    with pytest.raises(UsageError, match="needs the folder"):
        old.rebase(roberta)
    with pytest.raises(UsageError, match="between 0 and 1"):
        old.rebase(roberta, to=str(tmp_path / "new"), min_retention=1.5)
    with pytest.raises(UnknownNameError, match="birds"):
        old.rebase(roberta, to=str(tmp_path / "new"), tasks="birds")
    distil = str(pico_path("distilbert"))
    taken = new_hub(tmp_path / "taken", pico_path("distilbert"))
    with pytest.raises(HubError, match="bound to the base"):
        old.rebase(roberta, to=str(tmp_path / "taken"))
    taken.add_task("animals", data(tmp_path, ANIMALS, 8), **{**QUICK, "epochs": 1})
    with pytest.raises(HubError, match="has adapters already"):
        old.rebase(distil, to=str(tmp_path / "taken"))
    other = new_hub(tmp_path / "other", pico_path("bert"))
    teach(other, tmp_path, "colours", COLOURS, epochs=1)
    other.rebase(roberta, to=str(tmp_path / "theirs"), **BRIEF)
    with pytest.raises(HubError, match="rebase of another hub"):
        old.rebase(roberta, to=str(tmp_path / "theirs"))


def test_a_base_that_was_saved_again_is_rebound(old: AdapterHub, made: Path, tmp_path: Path) -> None:
    """Other files, another fingerprint, the same tensors: the copies answer as the versions did, and older versions
    and the lineage come along."""
    import transformers

    old.update("colours", data(tmp_path, COLOURS, 12, 4), epochs=1, learning_rate=0.01, max_forgetting=1.0)
    moved = tmp_path / "moved"
    model = transformers.AutoModelForMaskedLM.from_pretrained(old.base.source)
    model.save_pretrained(moved, max_shard_size="20KB")
    transformers.AutoTokenizer.from_pretrained(old.base.source).save_pretrained(moved)
    idle: dict[str, Any] = {"budget": 8, "pseudo_samples": 4, "epochs": 2}
    planned = old.rebase(str(moved), to=str(tmp_path / "new"), dry_run=True, **idle).tasks[0]
    without = "--budget, --pseudo-samples, --epochs have no effect"
    assert planned.notes == ("the weights are the same, so it is copied", without)
    notes = Notes()
    found = old.rebase(str(moved), to=str(tmp_path / "new"), reporter=notes, **idle)
    assert f"note: {without}" in notes.said
    assert [(one.source, one.state) for one in found.tasks] == [("rebound", "moved")] * 2
    new = AdapterHub.open(tmp_path / "new")
    assert new.base.fingerprint != old.base.fingerprint
    texts = ["red apple", "green stone", "blue"]
    answers = [[(p.prediction, p.scores) for p in hub.predict(texts, task="colours")] for hub in (old, new)]
    assert answers[0] == answers[1]
    assert new.get("colours@v1").metrics == old.get("colours@v1").metrics
    assert new.get("colours@production").ref == "colours@v1"
    assert new.registry.serving() == old.registry.serving()
    edges = [(edge.child, edge.parent, edge.relation) for edge in new.lineage("colours@v2")]
    assert ("colours@v2", "colours@v1", "updated_from") in edges
    told = {record.ref: record.manifest["rebased_from"]["made_at"] for record in new.list(all_versions=True)}
    assert told == {record.ref: record.created_at for record in old.list(all_versions=True)}
    assert min(record.created_at for record in new.list(all_versions=True)) > max(told.values())
    assert new.verify() == []
    again = old.rebase(str(moved), to=str(tmp_path / "new"))
    assert [one.new for one in again.tasks] == ["animals@v1", "colours@v1"]
    assert len(new.list(all_versions=True)) == 3


def test_other_weights_are_not_taken_for_the_same(old: AdapterHub, tmp_path: Path) -> None:
    import torch
    import transformers

    near = tmp_path / "near"
    model = transformers.AutoModelForMaskedLM.from_pretrained(old.base.source)
    with torch.no_grad():
        next(model.parameters())[5, 3] += 1e-3
    model.save_pretrained(near)
    transformers.AutoTokenizer.from_pretrained(old.base.source).save_pretrained(near)
    found = old.rebase(str(near), to=str(tmp_path / "new"), dry_run=True)
    assert [one.source for one in found.tasks] == ["samples", "data"]


def test_a_base_that_was_saved_in_a_wider_type_is_the_same(pico_path: Callable[[str], Path], tmp_path: Path) -> None:
    """Every bf16 value is an fp32 value, but not the other way round."""
    import transformers

    source, narrow, wide = pico_path("bert"), tmp_path / "narrow", tmp_path / "wide"
    for origin, place, dtype in ((source, narrow, torch.bfloat16), (narrow, wide, torch.float32)):
        model = transformers.AutoModelForMaskedLM.from_pretrained(origin, dtype=dtype)
        model.save_pretrained(place)
        transformers.AutoTokenizer.from_pretrained(source).save_pretrained(place)
    bases = {place: inspect_base(str(place), "none") for place in (source, narrow, wide)}
    assert is_same_model(bases[narrow], bases[wide])
    assert is_same_model(bases[wide], bases[narrow])
    assert not is_same_model(bases[source], bases[narrow])


def test_what_a_task_was_learned_from_goes_with_it(old: AdapterHub, roberta: str, tmp_path: Path) -> None:
    old.rebase(roberta, to=str(tmp_path / "new"), tasks=["animals"], **BRIEF)
    new = AdapterHub.open(tmp_path / "new")
    assert (new.folder / "rebase" / "animals").is_dir()
    new.forget_task("animals", key=tmp_path / "key")
    assert not (new.folder / "rebase" / "animals").exists()
    assert new.prove_forgotten("animals", key=tmp_path / "key").ok


def test_changed_data_are_not_learned_from(old: AdapterHub, made: Path, roberta: str, tmp_path: Path) -> None:
    file = Path(old.get("colours").training["data"]["source"])
    text = file.read_text()
    try:
        file.write_text(text + text.splitlines()[0].replace("red", "blue") + "\n")
        found = old.rebase(roberta, to=str(tmp_path / "new"), tasks=["colours"], dry_run=True)
    finally:
        file.write_text(text)
    assert found.tasks[0].source == "samples"
    assert "has changed" in found.tasks[0].reason


def test_rows_that_were_changed_are_written_again(old: AdapterHub, roberta: str, tmp_path: Path) -> None:
    old.rebase(roberta, to=str(tmp_path / "new"), tasks=["animals"], **BRIEF)
    new = AdapterHub.open(tmp_path / "new")
    new.registry.delete("animals@v1")
    rows = tmp_path / "new" / "rebase" / "animals" / "train.jsonl"
    whole = rows.read_text()
    write(rows, [{"input": "cat", "output": "dog"}])
    old.rebase(roberta, to=str(tmp_path / "new"), tasks=["animals"], **BRIEF)
    assert rows.read_text() == whole


def test_free_answers_do_not_go_to_an_encoder(
    pico_path: Callable[[str], Path], roberta: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And a causal base takes everything: from llama to qwen2, with an adapter for each task."""
    hub = new_hub(tmp_path / "old", pico_path("llama"))
    own: dict[str, Any] = {"epochs": 2, "rank": 4, "learning_rate": 0.01, "dev_share": 0.0, "max_length": 64}
    words = [{"input": f"word {k}", "output": f"w{k}"} for k in range(16)]
    hub.add_task("words", write(tmp_path / "words.jsonl", words), kind="generation", metric="token_f1", **own)
    hub.add_task("colours", data(tmp_path, COLOURS, 24), prompt_format="Q: {input} A:", **own)
    text = tmp_path / "text.txt"
    text.write_text("The red apple is good.\n\nThe blue stone is bad.\n\nThe house is green.\n\nA cloud.\n\nA river.\n")
    hub.add_task("prose", text, **own)
    line = ["--hub", str(hub.folder), "--quiet", "rebase", roberta, "--to", str(tmp_path / "encoder"), "--dry-run"]
    assert main([*line, "--tasks", "words,colours"]) == 0
    told = capsys.readouterr().out
    assert "it writes no free answers" in told.replace("\n", " ")
    found = hub.rebase(str(pico_path("qwen2")), to=str(tmp_path / "causal"), min_retention=0, epochs=1)
    assert [(one.task, one.source, one.state) for one in found.tasks] == [
        ("colours", "data", "moved"),
        ("prose", "data", "moved"),
        ("words", "data", "moved"),
    ]
    new = AdapterHub.open(tmp_path / "causal")
    assert new.registry.task("colours").prompt_format == "Q: {input} A:"
    assert (new.registry.task("words").kind, new.registry.task("words").metric) == ("generation", "token_f1")
    assert found.tasks[1].retention is None  # perplexities of two bases
    text.unlink()
    found = hub.rebase(str(pico_path("mistral")), to=str(tmp_path / "third"), tasks=["prose"], dry_run=True)
    assert (found.tasks[0].state, "only from the data" in found.tasks[0].reason) == ("not movable", True)


def test_rows_are_read_back_as_they_were(tmp_path: Path) -> None:
    """Where the original file is not used: passages, further right answers, conversations."""
    from adapterhub_cl.data.columns import read_examples
    from adapterhub_cl.examples import Example, Turn

    talk = (Turn("system", "be brief"), Turn("user", "one"), Turn("assistant", "x"), Turn("user", "two"))
    sets = [
        [Example("a passage q", "a", "read", references=("x",), passage=9), Example("p q", "b", "read", passage=1)],
        [Example("q", "a"), Example("q2", "b")],
        [Example("two", "a", "be brief", turns=talk)],
    ]
    for wanted in sets:
        file = write(tmp_path / "rows.jsonl", [example.to_json() for example in wanted])
        assert list(read_examples(file)) == wanted


def test_a_budget_is_the_most_rows_and_keeps_every_label(old: AdapterHub, roberta: str, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"to": str(tmp_path / "new"), "budget": 12}
    planned = old.rebase(roberta, dry_run=True, **asked)
    assert [(one.task, one.rows, one.held) for one in planned.tasks] == [("animals", 12, 10), ("colours", 12, 24)]
    assert "12 of 48 rows are learned (--budget)" in planned.tasks[1].notes
    found = old.rebase(roberta, **asked, **BRIEF)
    assert [one.rows for one in found.tasks] == [12, 12]
    for task, labels in (("animals", ANIMALS), ("colours", COLOURS)):
        lines = (tmp_path / "new" / "rebase" / task / "train.jsonl").read_text().splitlines()
        answers = [json.loads(line)["output"] for line in lines]
        assert {label: answers.count(label) for label in labels} == dict.fromkeys(labels, 12 // len(labels))
    assert old.rebase(roberta, to=str(tmp_path / "other"), budget=1000, dry_run=True).tasks[1].rows == 48
    with pytest.raises(UsageError, match="--budget must be at least 4 rows, not 3"):
        old.rebase(roberta, to=str(tmp_path / "other"), budget=3)


def test_what_is_expected_is_what_tasks_kept_that_were_moved(
    old: AdapterHub, roberta: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["--hub", str(old.folder), "rebase", roberta, "--to", str(tmp_path / "new"), "--dry-run"]
    assert main(line) == 0
    told = capsys.readouterr().out
    assert "cannot be told before one of them was learned" in told
    assert "expected retention" not in told
    other = AdapterHub.open(old.folder)
    other.add_task("birds", data(tmp_path, ("owl", "hen")), eval=data(tmp_path, ("owl", "hen"), 24, 1), **QUICK)
    moved = old.rebase(roberta, to=str(tmp_path / "new"), tasks=["colours"], **FAST).tasks[0]
    found = {one.task: one for one in old.rebase(roberta, to=str(tmp_path / "new"), dry_run=True).tasks}
    assert (found["birds"].expected, found["birds"].expected_from) == (moved.retention, 1)
    assert (found["animals"].source, found["animals"].expected) == ("samples", None), "nothing was moved from samples"
    assert found["colours"].state == "moved"
    assert main(line) == 0
    assert "what the one task kept that was moved into this hub from data" in capsys.readouterr().out


def test_the_new_hub_may_hold_its_base_otherwise(old: AdapterHub, roberta: str, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"to": str(tmp_path / "new"), "tasks": ["colours"]}
    old.rebase(roberta, **asked, quantization="int8", **BRIEF)
    assert (old.base.quantization, AdapterHub.open(tmp_path / "new").base.quantization) == ("none", "int8")
    with pytest.raises(HubError, match="holds its base in int8, not in none"):
        old.rebase(roberta, **asked, quantization="none", **BRIEF)
    assert old.rebase(roberta, **asked, **BRIEF).tasks[0].state == "moved", "as it is there"
    with pytest.raises(UnknownNameError, match="q4"):
        old.rebase(roberta, **asked, quantization="q4")


def test_where_a_version_came_from_is_shown(
    old: AdapterHub, roberta: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = old.rebase(roberta, to=str(tmp_path / "new"), tasks=["colours"], **BRIEF)
    new = ["--hub", str(tmp_path / "new")]
    for verb in ("show", "lineage"):
        assert main([*new, verb, "colours@v1"]) == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert f"rebased from colours@v1 of old on {old.base.source}" in shown
        assert "learned from data: accuracy" in shown
    assert main([*new, "--json", "log", "colours"]) == 0
    event = next(one for one in json.loads(capsys.readouterr().out) if one["verb"] == "rebase")
    assert event["detail"]["from"] == f"colours@v1 of old on {old.base.source}"
    assert event["detail"]["old_score"] == found.tasks[0].old_score
    assert event["detail"]["new_score"] == found.tasks[0].new_score


def test_the_old_version_writes_rows_where_its_data_are_gone(pico_path: Callable[[str], Path], tmp_path: Path) -> None:
    hub = new_hub(tmp_path / "old", pico_path("llama"))
    own: dict[str, Any] = {"rank": 4, "learning_rate": 0.01, "dev_share": 0.0, "max_length": 64, "prompt_loss": 0.5}
    rows = data(tmp_path, COLOURS, 24)
    hub.add_task("colours", rows, kind="choice", epochs=4, replay="balanced:16", **own)
    asked: dict[str, Any] = {"to": str(tmp_path / "new"), "pseudo_samples": 6}
    assert hub.rebase(str(pico_path("qwen2")), dry_run=True, **asked).tasks[0].notes == (), "the data are there"
    rows.unlink()
    planned = hub.rebase(str(pico_path("qwen2")), dry_run=True, **asked).tasks[0]
    assert planned.notes == ("up to 6 pseudo-samples are written beside them",)
    notes = Notes()
    moved = hub.rebase(str(pico_path("qwen2")), **asked, min_retention=0, epochs=1, reporter=notes).tasks[0]
    written = moved.rows - planned.rows
    assert any(f"colours@v1 wrote {written} of 6 further rows" in line for line in notes.said)
    folder = tmp_path / "new" / "rebase" / "colours"
    inputs = {
        name: [json.loads(line)["input"] for line in (folder / name).read_text().splitlines()]
        for name in ("train.jsonl", "held-out.jsonl")
    }
    assert len(inputs["train.jsonl"]) == moved.rows
    assert 0 < written <= 6
    assert not set(inputs["train.jsonl"]) & set(inputs["held-out.jsonl"])
    assert AdapterHub.open(tmp_path / "new").get(moved.new).manifest["rebased_from"]["pseudo_samples"] == written
    with pytest.raises(UsageError, match="--pseudo-samples must be at least 0"):
        hub.rebase(str(pico_path("qwen2")), to=str(tmp_path / "x"), pseudo_samples=-1)


def test_a_task_of_which_nothing_is_kept_is_learned_from_what_the_old_version_writes(
    pico_path: Callable[[str], Path], tmp_path: Path
) -> None:
    hub = new_hub(tmp_path / "old", pico_path("llama"))
    own: dict[str, Any] = {"rank": 4, "learning_rate": 0.01, "dev_share": 0.0, "max_length": 64, "prompt_loss": 0.5}
    rows, tests = data(tmp_path, COLOURS, 24), data(tmp_path, COLOURS, 6, 40)
    hub.add_task("colours", rows, kind="choice", epochs=6, replay="none", **own)
    qwen, asked = str(pico_path("qwen2")), {"to": str(tmp_path / "new")}
    rows.unlink()
    [plain] = hub.rebase(qwen, dry_run=True, **asked).tasks
    assert plain.state == "not movable"
    assert plain.reason.endswith("it keeps no replay samples; --pseudo-samples 200 lets colours@v1 write some")
    [planned] = hub.rebase(qwen, dry_run=True, pseudo_samples=24, **asked).tasks
    assert (planned.source, planned.rows, planned.notes) == (
        "pseudo-samples",
        0,
        ("up to 24 pseudo-samples are written",),
    )

    notes = Notes()
    given: dict[str, Any] = {**asked, "min_retention": 0, "epochs": 1, "reporter": notes}
    moved = hub.rebase(qwen, pseudo_samples=24, **given).tasks[0]
    folder = tmp_path / "new" / "rebase" / "colours"
    learned, held = (
        [json.loads(line) for line in (folder / name).read_text().splitlines()]
        for name in ("train.jsonl", "held-out.jsonl")
    )
    assert (moved.source, moved.state, moved.old_score) == ("pseudo-samples", "moved", 1.0)
    assert (moved.rows, moved.held) == (len(learned), len(held))
    assert 1 <= len(held) <= len(learned) / 2
    assert {row["output"] for row in learned + held} <= set(COLOURS)
    assert not {row["input"] for row in learned} & {row["input"] for row in held}
    assert any(f"measured on {len(held)} rows that colours@v1 wrote itself" in line for line in notes.said)
    told = AdapterHub.open(tmp_path / "new").get(moved.new).manifest["rebased_from"]
    assert (told["source"], told["pseudo_samples"]) == ("pseudo-samples", len(learned))

    few = hub.rebase(qwen, to=str(tmp_path / "few"), pseudo_samples=1).tasks[0]
    assert few.state == "not movable"
    assert few.reason.startswith("colours@v1 wrote only ")

    hub.add_task("colours", data(tmp_path, COLOURS, 24, 7), eval=tests, kind="choice", epochs=6, replay="none", **own)
    data(tmp_path, COLOURS, 24, 7).unlink()
    third = {"to": str(tmp_path / "third"), "pseudo_samples": 24}
    [again] = hub.rebase(qwen, dry_run=True, **third).tasks
    assert (again.source, again.held) == ("pseudo-samples", 6), "the held-out file is still there"
    [moved] = hub.rebase(qwen, min_retention=0, epochs=1, **third).tasks
    assert (moved.state, moved.held) == ("moved", 6)
