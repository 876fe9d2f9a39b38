"""The verb `distill`: what is learned, recorded, resumed, refreshed, and taught to another base."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from consolidation_support import add, rows, tree
from loras import dense, relative

from adapterhub_cl import AdapterHub
from adapterhub_cl.answering import Answer
from adapterhub_cl.consolidation import distill as verb
from adapterhub_cl.consolidation import teachers
from adapterhub_cl.erasure.removal import look
from adapterhub_cl.errors import AdapterError, AdapterHubError, GateRefused, TrainingInterrupted, UsageError
from adapterhub_cl.progress import LineReporter, Reporter
from adapterhub_cl.registry import Registry, seals
from adapterhub_cl.types import Example, Task

QUICK: dict[str, Any] = {"epochs": 2, "batch_size": 8}


def report(hub: AdapterHub, ref: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((hub.get(ref).path / "recipe.json").read_text())["report"]
    return found


def test_a_student_comes_nearer_to_its_teachers_than_the_merge_it_starts_from(hub: AdapterHub) -> None:
    merged = hub.merge(["news", "reviews"], name="merged", rank=6)
    made = hub.distill(["news", "reviews"], name="student", epochs=12, batch_size=8, learning_rate=0.01, dev_share=0)
    assert (made.kind, made.rank, made.tasks) == ("distilled", 6, ["news", "reviews"])
    assert [(e.parent, e.relation) for e in hub.lineage("student")] == [
        ("news@v1", "distilled_from"),
        ("reviews@v1", "distilled_from"),
    ]
    history = report(hub, "student")["training"]["history"]
    assert history[-1]["loss"] < 0.6 * history[0]["loss"]
    assert relative(dense(made.path), dense(merged.path)) > 0.01
    assert report(hub, "student")["rows"] == {"news": 12, "reviews": 12}
    assert not list((hub.folder / "runs").glob("*/run.json"))
    assert hub.verify() == []


def test_the_same_call_gives_the_same_student(hub: AdapterHub) -> None:
    one = hub.distill(["news", "slang"], name="one", seed=3, evaluate=False, **QUICK)
    other = hub.distill(["news", "slang"], name="other", seed=3, evaluate=False, **QUICK)
    assert relative(dense(one.path), dense(other.path)) == 0


def test_each_row_is_asked_of_its_own_teacher(hub: AdapterHub, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: dict[str, int] = {}
    real = teachers.as_served

    def listen(base: Any, folder: Path) -> Any:
        heard[folder.parent.name] = heard.get(folder.parent.name, 0) + 1
        return real(base, folder)

    monkeypatch.setattr(teachers, "as_served", listen)
    hub.distill(["news", "slang"], name="s", evaluate=False, **QUICK)
    assert heard == {"news": 1, "slang": 1}


def test_unlabelled_text_and_what_teachers_write(hub: AdapterHub, tmp_path: Path) -> None:
    (tmp_path / "all.txt").write_text("the red horse\nthe blue lamp\n")
    (tmp_path / "news.jsonl").write_text('{"text": "paper of today"}\n')
    made = hub.distill(
        ["news", "slang"],
        name="s",
        samples=False,
        data=[str(tmp_path / "all.txt"), f"news={tmp_path / 'news.jsonl'}"],
        evaluate=False,
        **QUICK,
    )
    assert report(hub, made.ref)["rows"] == {"news": 3, "slang": 2}
    written = hub.distill(["news", "slang"], name="w", samples=False, pseudo=6, evaluate=False, **QUICK)
    assert all(0 < count <= 6 for count in report(hub, written.ref)["rows"].values())


def test_features_of_chosen_layers(hub: AdapterHub) -> None:
    made = hub.distill(["news", "slang"], name="s", features="0,1", feature_weight=2.0, evaluate=False, **QUICK)
    plain = hub.distill(["news", "slang"], name="p", evaluate=False, **QUICK)
    assert relative(dense(made.path), dense(plain.path)) > 1e-4


def test_the_rank_grows_until_enough_is_retained(hub: AdapterHub, monkeypatch: pytest.MonkeyPatch) -> None:
    real = verb.Yardstick.measure
    asked: list[str] = []

    def measure(self: Any, base: Any, folder: Path) -> Any:
        effects, scores = real(self, base, folder)
        asked.append(folder.parent.name)
        after = 1.0 if folder.parent.name == "rank-4" or len(asked) > 2 else 0.1
        return [type(e)(e.task, e.metric, 1.0, after, e.n, e.data, e.answered_by) for e in effects], scores

    monkeypatch.setattr(verb.Yardstick, "measure", measure)
    made = hub.distill(["news", "slang"], name="s", rank=2, grow=True, min_retention=0.9, epochs=1)
    assert asked[:2] == ["rank-2", "rank-4"]
    assert made.rank == 4
    with pytest.raises(UsageError, match="--grow"):
        hub.distill(["news", "slang"], name="t", grow=True)


def test_the_gate(hub: AdapterHub, monkeypatch: pytest.MonkeyPatch) -> None:
    real = verb.Yardstick.measure

    def measure(self: Any, base: Any, folder: Path) -> Any:
        effects, scores = real(self, base, folder)
        return [type(e)(e.task, e.metric, 1.0, 0.5, e.n, e.data, e.answered_by) for e in effects], scores

    monkeypatch.setattr(verb.Yardstick, "measure", measure)
    with pytest.raises(GateRefused, match=r"retains less than 0\.9"):
        hub.distill(["news", "slang"], name="s", min_retention=0.9, epochs=1)
    assert hub.get("s@v1").status == "rejected"
    assert not list((hub.folder / "runs").iterdir())


def test_stopped_and_resumed_it_is_the_same_student(hub: AdapterHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from adapterhub_cl.training.loop import Loop

    settings = {**QUICK, "checkpoint_every": 1, "seed": 2}
    whole = hub.distill(["news", "reviews"], name="whole", evaluate=False, **settings)
    real = Loop.one_step
    steps = 0

    def stop(self: Loop, fresh: Any) -> float:
        nonlocal steps
        steps += 1
        if steps == 4:
            raise KeyboardInterrupt
        return real(self, fresh)

    monkeypatch.setattr(Loop, "one_step", stop)
    with pytest.raises(TrainingInterrupted) as stopped:
        hub.distill(["news", "reviews"], name="half", evaluate=False, **settings)
    assert stopped.value.hint == "continue with: cl-adapter distill --as half --resume"
    monkeypatch.setattr(Loop, "one_step", real)
    asked: list[int] = []
    monkeypatch.setattr(teachers, "_listen", lambda *a: asked.append(1))
    resumed = hub.distill_resume("half")
    assert not asked  # the teachers' answers were kept
    assert relative(dense(resumed.path), dense(whole.path)) == 0
    with pytest.raises(UsageError, match="no unfinished distill"):
        hub.distill_resume("half")


@pytest.mark.parametrize("limit", [None, 77.0])
def test_a_refresh_takes_the_newest_teachers(hub: AdapterHub, limit: float | None) -> None:
    limits = {"general": "none"} if limit is None else {"max_base_forgetting": limit}
    hub.distill(["news", "slang"], name="s", temperature=3.0, evaluate=False, **limits, **QUICK)
    assert hub.distill_refresh("s")[1] is False
    add(hub, "slang", 8, rank=3, modules=("up_proj", "q_proj"))
    made, new = hub.distill_refresh("s")
    assert new
    assert made.ref == "s@v2"
    assert made.manifest["recipe"]["parents"] == ["news@v1", "slang@v2"]
    assert made.manifest["recipe"]["distillation"]["temperature"] == 3.0
    recipe = made.manifest["recipe"]
    assert (recipe["general"], recipe["max_base_forgetting"]) == (limits.get("general", ""), limit), "as it was made"
    with pytest.raises(UsageError, match="was trained"):
        hub.distill_refresh("news")


def test_a_student_on_another_base(hub: AdapterHub, pico_path: Callable[[str], Path], tmp_path: Path) -> None:
    from adapterhub_cl.bases.loading import inspect_base

    other = AdapterHub(
        Registry.create(tmp_path / "other", inspect_base(str(pico_path("mistral")), "none")), "cpu", "fp32"
    )
    made = hub.distill(["news", "slang"], name="s", into=other, rank=3, **QUICK)
    assert made.path.is_relative_to(other.folder)
    assert {t.name for t in other.registry.tasks()} == {"news", "slang"}
    assert {e.parent for e in other.lineage("s")} == {str(hub.get(n).path.resolve()) for n in ("news", "slang")}
    assert set(made.manifest["retention"]) == {"news", "slang"}
    assert "s" not in {r.name for r in hub.list()}
    assert other.verify() == []
    with pytest.raises(UsageError, match="--features"):
        hub.distill(["news", "slang"], name="t", into=other, features="0", **QUICK)


def test_bases_with_other_tokenizers_are_refused(
    hub: AdapterHub, pico_copy: Callable[[str], Path], tmp_path: Path
) -> None:
    from adapterhub_cl.bases.loading import inspect_base

    folder = pico_copy("mistral")
    text = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = text["model"]["vocab"]
    one, two = list(vocabulary)[10:12]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    (folder / "tokenizer.json").write_text(json.dumps(text))
    other = AdapterHub(Registry.create(tmp_path / "other", inspect_base(str(folder), "none")), "cpu", "fp32")
    with pytest.raises(UsageError, match="different tokenizers"):
        hub.distill(["news", "slang"], name="s", into=other, **QUICK)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"temperature": 0}, "--temperature"),
    ({"task_loss": -1}, "--task-loss"),
    ({"start": "tie"}, "unknown merge method"),
    ({"features": "9"}, "2 layers"),
    ({"rank": 50}, "above 7"),
    ({"epochs": 0}, "--epochs"),
    ({"pseudo": -1}, "--pseudo"),
    ({"dora": True}, "DoRA"),
    ({"name": "news"}, "already exists"),
    ({"data": ["nowhere.txt"]}, "nowhere"),
    ({"data": ["weather=x.txt"]}, "no teacher answers for 'weather'"),
    ({"samples": False}, "nothing to ask the teachers"),
    ({"min_retention": 0.9, "evaluate": False}, "--no-eval"),
    ({"prompt_loss": 0.5}, "at the answers only"),
]


@pytest.mark.parametrize(("asked", "message"), BAD)
def test_bad_requests_write_nothing(hub: AdapterHub, asked: dict[str, Any], message: str) -> None:
    before = tree(hub.folder)
    with pytest.raises(AdapterHubError, match=message):
        hub.distill(["news", "slang"], **{"name": "new", "epochs": 1, **asked})
    assert tree(hub.folder) == before


def test_a_teacher_without_samples_says_what_to_do(hub: AdapterHub) -> None:
    add(hub, "bare", 5, samples=0)
    with pytest.raises(AdapterError, match="keeps no replay samples") as refused:
        hub.distill(["news", "bare"], name="s")
    assert "--pseudo" in refused.value.hint
    assert len(rows("x")) == 12


def test_stopped_while_the_students_have_not_begun_the_answers_are_kept(
    hub: AdapterHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = hub.distill(["news", "slang"], name="whole", evaluate=False, seed=4, **QUICK)

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    real = verb.learn
    monkeypatch.setattr(verb, "learn", stop)
    with pytest.raises(TrainingInterrupted, match="what the teachers said was kept"):
        hub.distill(["news", "slang"], name="s", evaluate=False, seed=4, **QUICK)
    (path,) = (hub.folder / "runs").glob("*/run.json")
    about = {**json.loads(path.read_text()), "pid": 999_999_999}  # as after the process has ended
    about.pop(seals.KEY)
    path.write_text(json.dumps({**about, seals.KEY: seals.of_json(about)}))
    assert any("distill --as s --resume" in problem.fix for problem in hub.verify())
    monkeypatch.setattr(verb, "learn", real)
    add(hub, "news", 9)  # a resumed run keeps to the teachers that it began with
    assert relative(dense(hub.distill_resume("s").path), dense(whole.path)) == 0
    assert hub.get("s").manifest["recipe"]["parents"] == ["news@v1", "slang@v1"]


def test_killed_while_the_students_start_is_written(hub: AdapterHub, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = hub.distill(["news", "slang"], name="whole", evaluate=False, seed=4, **QUICK)
    real = verb.writer

    def half(*asked: Any) -> Any:
        def write(folder: Path) -> None:
            real(*asked)(folder)
            file = folder / "adapter_model.safetensors"
            file.write_bytes(file.read_bytes()[:100])
            raise KeyboardInterrupt

        return write

    with monkeypatch.context() as patched:
        patched.setattr(verb, "writer", half)
        with pytest.raises(TrainingInterrupted):
            hub.distill(["news", "slang"], name="s", evaluate=False, seed=4, **QUICK)
    assert relative(dense(hub.distill_resume("s").path), dense(whole.path)) == 0


def test_what_the_merged_start_decides_and_who_is_not_asked_is_told(hub: AdapterHub) -> None:
    add(hub, "news", 9)
    told = io.StringIO()
    asked: dict[str, Any] = {"alpha": 3.0, "layers": "0", "evaluate": False, **QUICK}
    hub.distill(["news@v1", "news@v2", "slang"], name="s", reporter=LineReporter(told), **asked)
    assert "--alpha, --layers are ignored" in told.getvalue()
    assert "news@v1 is not asked: other teachers answer for its tasks" in told.getvalue()
    afresh = io.StringIO()
    hub.distill(["news", "slang"], name="t", start="none", reporter=LineReporter(afresh), **asked)
    assert "ignored" not in afresh.getvalue()


def test_the_rows_that_a_student_saw_are_found_when_their_task_is_forgotten(hub: AdapterHub, tmp_path: Path) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": row["input"]}) + "\n" for row in rows("reviews")))
    hub.distill(["news", "slang"], name="s", data=[f"slang={texts}"], evaluate=False, **QUICK)
    shared = look(hub.registry, "reviews").shared
    assert shared["s@v1"] == "trained on 12 of the rows that reviews was trained on"


def test_answers_that_did_not_end_are_not_learned(hub: AdapterHub, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int | None] = []

    class Objective:
        def predict(self, *given: Any, max_new_tokens: int | None, **_: Any) -> list[Answer]:
            asked.append(max_new_tokens)
            return [Answer("whole", 1.0, {}), Answer("cut at the limi", 1.0, {}, finished=False)]

    monkeypatch.setattr(teachers.objectives, "of", lambda _: Objective())
    notes: list[str] = []

    class Told(Reporter):
        def note(self, text: str) -> None:
            notes.append(text)

    free = Task("free", "generation")
    for task, most in ((free, 128), (replace(free, answer_tokens=9), None)):
        base = hub.context().base
        found = teachers._answered(None, base, task, [Example("a"), Example("b")], 256, Told())
        assert [row.answer for row in found] == ["whole"]
        assert asked[-1] == most
    assert notes[0] == "note: 1 answers of free's teacher did not end by themselves, and are left out"


def test_a_run_that_was_published_just_before_it_was_killed(hub: AdapterHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from adapterhub_cl.training.runs import Run

    monkeypatch.setattr(Run, "remove", lambda self: None)
    made = hub.distill(["news", "slang"], name="s", evaluate=False, **QUICK)
    monkeypatch.undo()
    assert hub.distill_resume("s").ref == made.ref
    assert [r.ref for r in hub.list(all_versions=True) if r.name == "s"] == ["s@v1"]
    assert not list((hub.folder / "runs").glob("*/run.json"))
