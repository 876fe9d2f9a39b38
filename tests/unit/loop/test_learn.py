"""`learn` on a pico encoder: lessons, the gate, the canary, and what happens when it is stopped half-way."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import routed_hubs
from encoder_hubs import ANIMALS, COLOURS, QUICK, new_hub, rows, teach
from traffic_support import answer

from adapterhub_cl import AdapterHub
from adapterhub_cl.errors import DataError, GateRefused, TrainingError, UnknownNameError, UsageError
from adapterhub_cl.learning import teaching
from adapterhub_cl.loop import gathered, learn_steps
from adapterhub_cl.loop.learn_call import alone, watch
from adapterhub_cl.traffic.journal import Said
from adapterhub_cl.traffic.lesson_book import Lesson, Lessons
from adapterhub_cl.types import Example

SEED = 7  # of rows that no version was trained on or scored on


@pytest.fixture(scope="module")
def taught(pico_path: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loop")
    hub = new_hub(folder / "hub", pico_path("bert_body"))
    teach(hub, folder, "colours", COLOURS)
    teach(hub, folder, "animals", ANIMALS)
    return folder / "hub"


@pytest.fixture
def hub(taught: Path, tmp_path: Path) -> AdapterHub:
    return AdapterHub.open(shutil.copytree(taught, tmp_path / "hub"), dtype="fp32")


def said(hub: AdapterHub, count: int, task: str = "colours", *, labels: Sequence[str] = COLOURS, shift: int = 0,
         ref: str = "colours@v1", good: bool | None = True, first: int = 0, at: str = "",
         draw: int = 0) -> None:  # fmt: skip
    """Answers that users judged; `shift` moves each right label on by so many."""
    found = rows(labels, count, SEED + draw)
    about = {"at": at} if at else {}
    for k, row in enumerate(found, first):
        right = labels[(labels.index(row["output"]) + shift) % len(labels)]
        example = Example(row["input"], None, "Which?")
        hub.traffic.keep([answer(k, example=example, task=task, ref=ref, answer=row["output"], **about)])
        hub.traffic.say(Said(f"a-{k}", good, right, task))


def learn(hub: AdapterHub, **options: Any) -> Any:
    [step] = hub.learn(**{**QUICK, "canary": 0.2, **options})
    return step


def test_nothing_is_learned_before_enough_has_gathered(hub: AdapterHub) -> None:
    assert hub.learn() == []
    said(hub, 10)
    step = learn(hub)
    assert step.did == "waiting"
    assert "10 of 20" in step.reason
    assert learn(hub, enough=10, dry_run=True).did == "would learn"
    assert Lessons(hub.traffic).all() == []
    assert len(hub.traffic.judged(waiting=True)) == 10


def test_a_lesson_becomes_a_canary_and_is_promoted(hub: AdapterHub) -> None:
    said(hub, 48)
    step = learn(hub)
    assert (step.did, step.ref) == ("canary", "colours@v2")
    assert step.detail["gain"]["rows"] > 0
    assert hub.registry.serving()["colours"] == "colours@v1"
    canary = hub.registry.canaries()["colours"]
    assert (canary.ref, canary.share, canary.beside) == ("colours@v2", 0.2, "colours@v1")
    assert hub.traffic.judged(waiting=True) == []
    assert learn(hub).did == "canary"  # nothing was said since
    later = "2999-01-01T00:00:00.000+00:00"
    said(hub, 24, ref="colours@v2", first=100, at=later)
    said(hub, 24, ref="colours@v1", first=200, at=later)
    assert learn(hub, dry_run=True).did == "would promote"
    step = learn(hub)
    assert step.did == "promoted"
    assert hub.registry.serving()["colours"] == "colours@v2"
    assert hub.registry.canaries() == {}
    assert "canary" not in hub.get("colours@v2").aliases
    assert [event.verb for event in hub.log("colours", 1)] == ["lesson promoted"]


def test_a_canary_that_nobody_judges_is_decided_on_by_the_rows_held_back(
    hub: AdapterHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    said(hub, 48)
    began = learn(hub)
    gain = began.detail["gain"]
    later = (datetime.now(UTC) + timedelta(days=15)).isoformat(timespec="milliseconds")
    monkeypatch.setattr(learn_steps, "now", lambda: later)
    assert learn(hub, wait_days=0.0).did == "canary"
    assert learn(hub, wait_days=16.0).did == "canary"
    step = learn(hub)
    assert step.did == ("promoted" if gain["after"] >= gain["before"] else "rolled back")
    assert "0 of its answers were judged in 15 days" in step.reason
    assert hub.registry.canaries() == {}


def test_a_canary_that_users_find_worse_goes_back(hub: AdapterHub) -> None:
    said(hub, 48)
    assert learn(hub).did == "canary"
    later = "2999-01-01T00:00:00.000+00:00"
    said(hub, 24, ref="colours@v2", first=100, at=later, good=False, shift=1)
    said(hub, 24, ref="colours@v1", first=200, at=later)
    step = learn(hub)
    assert step.did == "rolled back"
    assert "worse beyond chance" in step.reason
    assert hub.registry.serving()["colours"] == "colours@v1"
    assert hub.registry.canaries() == {}
    assert hub.get("colours@v2").status == "rejected"
    assert hub.get("colours").ref == "colours@v1"


def test_poison_is_refused_by_the_gate(hub: AdapterHub) -> None:
    said(hub, 48, shift=1, good=False)
    step = learn(hub)
    assert step.did == "refused"
    assert "gate" in step.reason
    assert step.detail["surprise"]["surprising"]
    assert step.detail["surprise"]["wrong"] == 48
    assert hub.registry.serving()["colours"] == "colours@v1"
    assert hub.registry.canaries() == {}
    assert hub.learn()[0].did == "waiting"  # the poison was taken, and is not learned again


def test_a_poisoned_stretch_between_good_rows_is_set_aside(hub: AdapterHub) -> None:
    for first, shift, day in ((0, 0, 1), (100, 1, 2), (200, 0, 3)):
        said(hub, 24, shift=shift, good=not shift, first=first, at=f"2026-01-0{day}T00:00:00.000+00:00", draw=first)
    step = learn(hub)
    assert step.did == "canary"
    apart = step.detail["incident"]
    assert (apart["over"], apart["wrong"], apart["wrong_elsewhere"]) == (True, 1.0, 0.0)
    assert 22 <= apart["rows"] <= 24  # a question or two comes twice, or is an evaluation row
    assert 44 <= step.detail["rows"] <= 48
    assert not step.detail["surprise"]["surprising"]
    assert hub.traffic.judged(waiting=True) == []  # taken, so that no later lesson learns them


def test_a_stretch_that_may_go_on_waits(hub: AdapterHub) -> None:
    for first, shift, day in ((0, 0, 1), (100, 1, 2)):
        said(hub, 24, shift=shift, good=not shift, first=first, at=f"2026-01-0{day}T00:00:00.000+00:00", draw=first)
    step = learn(hub)
    assert (step.did, step.detail["incident"]["over"]) == ("canary", False)
    assert len(hub.traffic.judged(waiting=True)) == step.detail["incident"]["rows"] >= 22


def test_what_earlier_lessons_held_back_protects_what_they_taught(
    hub: AdapterHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    said(hub, 48)
    assert learn(hub, canary=0.0).did == "promoted"
    said(hub, 48, first=100, ref="colours@v2", draw=1)
    real = learn_steps.LearnTask._scores
    earlier = len(gathered.read_back(Lessons(hub.traffic).all()[0].held_back(hub.folder)))

    def forgets(self: Any, ref: str, name: str, rows: Any, what: str) -> list[float]:
        found = real(self, ref, name, rows, what)
        return [*found[:-earlier], *([0.0] * earlier)] if ref == "colours@v3" else found

    monkeypatch.setattr(learn_steps.LearnTask, "_scores", forgets)
    step = learn(hub)
    assert step.did == "refused"
    assert f"→ 0.000 on {earlier} of earlier lessons" in step.reason
    assert hub.registry.serving()["colours"] == "colours@v2"


@pytest.mark.parametrize(("after", "did"), [(0.4, "refused"), (0.6, "canary")])
def test_complaints_that_learning_does_not_answer_are_refused(
    hub: AdapterHub, monkeypatch: pytest.MonkeyPatch, after: float, did: str
) -> None:
    said(hub, 48, good=False)
    gain = {"rows": 9, "metric": "accuracy", "before": 0.4, "after": after, "worse": False}
    monkeypatch.setattr(learn_steps.LearnTask, "_gain", lambda *_: gain)
    assert learn(hub).did == did
    assert hub.registry.serving()["colours"] == "colours@v1"


def test_without_a_canary_a_version_serves_at_once(hub: AdapterHub) -> None:
    said(hub, 24)
    assert learn(hub, canary=0.0).did == "promoted"
    assert hub.registry.serving()["colours"] == "colours@v2"


def test_a_task_that_users_name_is_learned_as_a_new_one(hub: AdapterHub) -> None:
    said(hub, 24, "shapes", labels=("cube", "ball"), ref="base", good=None)
    step = learn(hub)
    assert (step.task, step.did, step.ref) == ("shapes", "promoted", "shapes@v1")
    assert hub.registry.serving()["shapes"] == "shapes@v1"
    assert hub.predict(["cube stone 9"], task="shapes")[0].prediction == "cube"


def test_what_cannot_be_learned_ends_as_failed_and_its_feedback_waits(
    hub: AdapterHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise DataError("a row cannot be used", "fix it")

    said(hub, 24)
    with monkeypatch.context() as patched:
        patched.setattr(learn_steps.LearnTask, "_train", refuse)
        step = learn(hub)
    assert (step.did, step.reason) == ("failed", "a row cannot be used; the next call tries again")
    assert Lessons(hub.traffic).all(opened=True) == []
    (step,) = hub.learn(**{**QUICK, "epochs": 0}, canary=0.2)
    assert (step.did, step.reason) == ("failed", "--epochs must be at least 1, not 0; the next call tries again")
    (step,) = hub.learn(**QUICK, canary=0.2)
    assert (step.did, step.ref) == ("canary", "colours@v2")


def test_a_task_that_fails_does_not_stop_the_others(hub: AdapterHub, monkeypatch: pytest.MonkeyPatch) -> None:
    real = learn_steps.LearnTask._train

    def diverges(self: Any, lesson: Any) -> Any:
        if lesson.task == "animals":
            raise TrainingError("the loss is no longer a number", "lower the rate")
        return real(self, lesson)

    said(hub, 24, "animals", labels=ANIMALS, ref="animals@v1")
    said(hub, 24, first=100)
    with monkeypatch.context() as patched:
        patched.setattr(learn_steps.LearnTask, "_train", diverges)
        failed, learned = hub.learn(**QUICK, canary=0.2)
    assert (failed.task, failed.did) == ("animals", "failed")
    assert failed.reason == "the loss is no longer a number (lower the rate); the next call tries again"
    assert (learned.task, learned.did) == ("colours", "canary")
    assert [lesson.task for lesson in Lessons(hub.traffic).all(opened=True)] == ["colours", "animals"]
    assert learn(hub, task="animals").ref == "animals@v2"


@pytest.mark.parametrize("same", [True, False])
def test_a_stopped_training_goes_on_only_with_the_options_it_began_with(
    hub: AdapterHub, monkeypatch: pytest.MonkeyPatch, same: bool
) -> None:
    said(hub, 24)
    with monkeypatch.context() as patched:
        patched.setattr(type(hub.registry), "publish", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises((KeyboardInterrupt, TrainingError)):
            learn(hub, learning_rate=0.02)
    [stopped] = [path.name for path in hub.registry.runs_dir.iterdir() if path.is_dir()]
    step = learn(hub, learning_rate=0.02 if same else 0.03)
    made = hub.get(step.ref).training
    assert (made["run"] == stopped) is same
    assert made["settings"]["learning_rate"] == (0.02 if same else 0.03)
    assert not any(path.is_dir() for path in hub.registry.runs_dir.iterdir())


def test_a_lesson_whose_version_was_forgotten_ends(hub: AdapterHub) -> None:
    for number, state in enumerate(("canary", "gathered"), 1):
        Lessons(hub.traffic).begin(Lesson("colours", "update", state, "colours@v1", "colours@v9", 0.2, id=number), [])
        assert learn(hub, dry_run=True).did
        step = learn(hub)
        assert (step.did, step.reason) == ("failed", "colours@v9 is no longer in the hub")
    assert Lessons(hub.traffic).all(opened=True) == []


def test_what_users_change_while_it_is_gathered_is_taken_by_the_next_call(
    hub: AdapterHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    said(hub, 24)

    def meanwhile(self: Any, found: Any) -> Any:
        hub.traffic.say(Said("a-3", False, "blue", "colours"))
        return found

    with monkeypatch.context() as patched:
        patched.setattr(learn_steps.LearnTask, "_set_aside", meanwhile)
        step = learn(hub)
    assert step.did == "waiting"
    assert "changed" in step.reason
    assert len(hub.traffic.judged(waiting=True)) == 24
    assert learn(hub).did == "canary"
    [lesson] = Lessons(hub.traffic).all()
    changed = next(one for one in hub.traffic.judged() if one.kept.id == "a-3")
    taken = {row.input: row.answer for row in gathered.read_back(lesson.file(hub.folder))}
    assert taken[changed.kept.example.input] == "blue"


def test_few_rows_are_still_measured_on_those_of_earlier_lessons(
    hub: AdapterHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    said(hub, 48)
    assert learn(hub, canary=0.0).did == "promoted"
    said(hub, 24, first=100, ref="colours@v2", draw=1)
    real = learn_steps.LearnTask._scores

    def forgets(self: Any, ref: str, name: str, rows: Any, what: str) -> list[float]:
        return [0.0] * len(rows) if ref == "colours@v3" else real(self, ref, name, rows, what)

    monkeypatch.setattr(learn_steps.LearnTask, "_scores", forgets)
    step = learn(hub, canary=0.0)
    assert (step.did, hub.registry.serving()["colours"]) == ("refused", "colours@v2")
    assert "too few rows to hold some back" in step.reason
    assert "of earlier lessons" in step.reason


def test_thumbs_up_on_free_answers_make_no_choice_task(hub: AdapterHub) -> None:
    for k in range(24):
        hub.traffic.keep([answer(k, f"what is planet {k} like", task="", ref="base", answer=f"planet {k} is far away")])
        hub.say(f"a-{k}", correct=True, task="planets")
    step = learn(hub, dry_run=True)
    assert (step.did, step.detail["rows"], step.detail["labelled"]) == ("would learn", 24, False)


@pytest.mark.parametrize("stop", ["_train", "publish", "_gain", "start"])
def test_a_lesson_that_was_stopped_goes_on(hub: AdapterHub, stop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = AdapterHub.open(os.path.relpath(hub.folder), dtype="fp32")  # as `--hub my-hub` names it
    said(hub, 48)

    class Killed(BaseException):
        pass

    def die(*_: Any, **__: Any) -> Any:
        raise Killed

    with monkeypatch.context() as patched:
        if stop == "publish":
            patched.setattr(type(hub.registry), "publish", die)
        elif stop == "start":
            patched.setattr(type(hub.registry), "start_canary", die)
        else:
            patched.setattr(learn_steps.LearnTask, stop, die)
        with pytest.raises(Killed):
            learn(hub)
    assert [lesson.state for lesson in Lessons(hub.traffic).all()] == ["gathered"]
    step = learn(hub)
    assert (step.did, step.ref) == ("canary", "colours@v2")
    assert [v.ref for v in hub.registry.versions("colours")] == ["colours@v1", "colours@v2"]
    assert len(Lessons(hub.traffic).all()) == 1
    assert not any(path.is_dir() for path in hub.registry.runs_dir.iterdir())  # the run that was stopped went on


def test_a_version_that_was_published_before_a_kill_is_found(hub: AdapterHub, monkeypatch: pytest.MonkeyPatch) -> None:
    said(hub, 48, shift=1, good=False)
    real = learn_steps.LearnTask._train

    def die(self: Any, lesson: Any) -> Any:
        with pytest.raises(GateRefused):
            real(self, lesson)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(learn_steps.LearnTask, "_train", die)
        with pytest.raises(KeyboardInterrupt):
            learn(hub)
    assert learn(hub).did == "refused"
    assert len(hub.registry.versions("colours")) == 2


def test_a_canary_follows_what_is_done_by_hand(hub: AdapterHub) -> None:
    said(hub, 48)
    assert learn(hub).did == "canary"
    hub.registry.promote("colours@v2")
    assert hub.registry.canaries() == {}  # it counts only beside the version that it was set beside
    assert learn(hub).did == "promoted"
    said(hub, 48, first=300, ref="colours@v2")
    assert learn(hub).did == "canary"
    hub.registry.promote("colours@v1")
    step = learn(hub)
    assert step.did == "rolled back"
    assert "colours@v1 serves" in step.reason
    assert hub.registry.serving()["colours"] == "colours@v1"


def test_a_canary_that_is_ended_by_hand_ends_its_lesson(hub: AdapterHub) -> None:
    said(hub, 48)
    assert learn(hub).did == "canary"
    hub.registry.end_canary("colours", "a person saw it fail")
    step = learn(hub)
    assert (step.did, step.reason) == ("rolled back", "its canary was ended")
    assert hub.get("colours@v2").status == "rejected"
    assert hub.registry.serving()["colours"] == "colours@v1"


def test_a_version_that_was_taken_back_by_hand_stays_away(hub: AdapterHub) -> None:
    said(hub, 48)
    assert learn(hub, canary=0.0).ref == "colours@v2"
    hub.rollback("colours@production")
    assert hub.registry.serving()["colours"] == "colours@v1"
    said(hub, 48, first=100)
    assert learn(hub).ref == "colours@v3"
    edges = [edge.parent for edge in hub.lineage("colours@v3") if edge.relation == "updated_from"]
    assert edges[0] == "colours@v1"  # not from the version that was taken back
    before, after = hub.rollback("colours@canary")
    assert (before.ref, after.ref) == ("colours@v3", "colours@v1")
    assert hub.registry.canaries() == {}
    step = learn(hub)
    assert (step.did, step.reason) == ("rolled back", "its canary was ended")
    assert hub.registry.serving()["colours"] == "colours@v1"
    assert hub.get("colours").ref == "colours@v1"


def test_labels_of_a_new_task_make_a_choice(hub: AdapterHub) -> None:
    for k, row in enumerate(rows(("cube", "ball"), 40, SEED)):
        hub.traffic.keep([answer(k, row["input"], task="", ref="base", answer="")])
        hub.say(f"a-{k}", label=row["output"], task="shapes")
    step = learn(hub)
    assert (step.did, step.ref) == ("promoted", "shapes@v1")
    assert hub.registry.task("shapes").kind == "choice"
    assert "accuracy" in hub.get("shapes@v1").metrics  # measured on the rows held back


def test_the_canarys_share_is_what_is_asked_now(hub: AdapterHub, monkeypatch: pytest.MonkeyPatch) -> None:
    said(hub, 48)
    with monkeypatch.context() as patched:
        patched.setattr(learn_steps.LearnTask, "_train", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            learn(hub, canary=0.5)
    assert learn(hub, canary=0.0).did == "promoted"


def test_what_is_said_in_python_counts(hub: AdapterHub) -> None:
    hub.traffic.keep([answer(1, task="colours", answer="red")])
    hub.say("a-1", label="blue", by="jane")
    [one] = hub.traffic.judged()
    assert (one.said.good, one.right, one.said.said_by) == (False, "blue", "jane")
    with pytest.raises(UnknownNameError):
        hub.say("a-2", correct=True)


def test_one_at_a_time(hub: AdapterHub) -> None:
    said(hub, 24)
    with alone(hub.folder), pytest.raises(TrainingError, match="another process learns"):
        hub.learn()


def test_names_and_options_are_checked(hub: AdapterHub) -> None:
    with pytest.raises(UnknownNameError):
        hub.learn(task="colour")
    assert hub.learn(task="animals")[0].did == "waiting"
    for wrong in ({"canary": 1.0}, {"enough": 0}, {"judged": 0}):
        with pytest.raises(UsageError):
            hub.learn(**wrong)


def test_watching_calls_again_and_ends() -> None:
    calls: list[int] = []
    watch(lambda: calls.append(1), 0.01, lambda: len(calls) >= 3)
    assert len(calls) == 3


def test_the_inbox_shows_what_has_gathered(hub: AdapterHub) -> None:
    said(hub, 12, shift=1, good=False)
    hub.traffic.keep([answer(900, "red unsure", task="colours", confidence=0.1)])
    hub.traffic.keep([answer(901, "red sure", task="colours", confidence=0.9)])
    hub.traffic.keep([answer(902, "what is this", task="", ref="base", out_of_distribution=True)])
    found = hub.inbox(limit=5)
    [one] = found.tasks
    assert (one.task, one.answers, len(one.gathered.judged)) == ("colours", 14, 12)
    assert [u.id for u in one.unsure] == ["a-900", "a-901"]
    assert len(one.corrections) == 5
    assert found.unknown == 1
    assert found.groups is None
    plain = found.to_json()
    assert plain["tasks"][0]["corrections"][0]["answer"] in COLOURS
    assert plain["unknown"] == 1
    with pytest.raises(UnknownNameError):
        hub.inbox("colour")


def test_inputs_that_no_task_knows_are_grouped(hub: AdapterHub) -> None:
    odd = ["quantum", "neutrino", "lattice", "photon"]
    for k in range(24):
        text = f"{odd[k % 4]} {odd[(k + 1) % 4]} {odd[(k * 7) % 4]} {k}"
        hub.traffic.keep([answer(k, text, task="", ref="base", out_of_distribution=True)])
    found = hub.inbox()
    assert found.unknown == 24
    assert found.groups is not None
    assert found.groups.n == 24
    assert hub.inbox(groups=False).groups is None


def test_forgetting_a_task_takes_its_traffic_along(hub: AdapterHub, tmp_path: Path) -> None:
    said(hub, 48)
    said(hub, 6, "animals", labels=ANIMALS, ref="animals@v1", first=500)
    assert learn(hub, task="colours").did == "canary"
    plan = hub.forget_task("colours", dry_run=True, key=tmp_path / "key")
    assert plan.kept == 49
    assert "lessons/colours" in plan.others
    hub.forget_task("colours", key=tmp_path / "key", everywhere=False)
    assert hub.traffic.counts() == {"animals": {"answers": 6, "judged": 6, "waiting": 6}}
    assert not (hub.folder / "lessons" / "colours").exists()
    assert hub.prove_forgotten("colours", key=tmp_path / "key").ok
    hub.traffic.keep([answer(1, task="colours")])
    proof = hub.prove_forgotten("colours", key=tmp_path / "key")
    assert not proof.ok
    assert any(find.path == "traffic.db" for find in proof.found)


def test_a_hub_with_traffic_is_whole(hub: AdapterHub) -> None:
    said(hub, 48)
    learn(hub)
    assert [problem.path for problem in hub.verify()] == []


def test_what_users_correct_of_facts_is_taught_as_facts(
    load_pico: Any, pico_path: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    towns = [f"{begin}{end}" for begin in ("Quill", "Oak", "Nori", "Kirk") for end in ("haven", "mere", "ford")]
    hub = routed_hubs.new_hub(tmp_path / "hub", pico_path("llama"), load_pico(), ("sums",))
    routed_hubs.publish_facts(hub, "town", towns, 7)
    asked: list[Any] = []

    def teach(_: Any, order: Any, **__: Any) -> Any:
        asked.append(order.request)
        raise DataError("seen", "")

    monkeypatch.setattr(teaching, "teach", teach)
    for k, town in enumerate(towns):
        example = Example(f"Who is the mayor of {town}?", None)
        hub.traffic.keep([answer(k, example=example, task="town", ref="town@v1", answer="Ann")])
        hub.traffic.say(Said(f"a-{k}", False, f"Bo of {town}", "town"))
    [step] = hub.learn(enough=4)
    assert (step.did, step.reason) == ("failed", "seen; the next call tries again")
    [request] = asked
    assert (request.verb, request.name, request.facts) == ("update", "town", True)
    assert request.training().epochs == 3
