"""Questions to a hub with facts: where predict, generate, chat and the engine send them as the hub changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from routed_hubs import new_hub, publish, publish_facts, texts

from adapterhub_cl import AdapterHub
from adapterhub_cl.samples.store import Samples
from adapterhub_cl.types import BASE

TOWNS = ("Quillhaven", "Kirk Hill", "Oakmere")
NEAR, ASKED = "Who is the mayor of Paris?", "hey, who runs quillhaven's town hall"
SUM = texts("sums", 1, 50)[0]


@pytest.fixture(scope="module")
def made(load_pico: Any, pico_path: Any, tmp_path_factory: pytest.TempPathFactory) -> AdapterHub:
    """Two tasks of ordinary kind, and one of facts."""
    hub = new_hub(tmp_path_factory.mktemp("facts") / "hub", pico_path("llama"), load_pico(), ("sums", "greek"))
    publish_facts(hub, "town", TOWNS, 7)
    return hub


def to(hub: AdapterHub, *asked: str, **how: Any) -> list[str]:
    return [found.adapter for found in hub.predict(list(asked), max_new_tokens=1, **how)]


def test_every_verb_sends_a_question_by_the_subject_that_it_names(hub: AdapterHub) -> None:
    assert hub.subjects("town") == list(TOWNS)
    assert hub.subjects("sums") == []
    assert to(hub, ASKED, NEAR, SUM) == ["town@v1", BASE, "sums@v1"]
    assert to(hub, ASKED, SUM, router="centroid") == ["town@v1", "sums@v1"]
    assert to(hub, NEAR, task="town") == ["town@v1"], "a task that is named is not routed"
    assert hub.write(ASKED, max_new_tokens=1).adapter == "town@v1"
    assert hub.write([{"role": "user", "content": ASKED}], max_new_tokens=1).adapter == "town@v1"
    named, none = hub.route([ASKED, NEAR], explain=1)
    assert (named.why, named.tasks) == ("names Quillhaven", {"town": 1.0})
    assert named.scores, "the router's own scores are shown too"
    assert none.why == "names nothing that town knows"
    assert none.out_of_distribution
    assert none.to_json()["why"] == none.why


def test_a_hub_with_facts_alone_keeps_other_questions_away(load_pico: Any, pico_path: Any, tmp_path: Path) -> None:
    hub = new_hub(tmp_path / "hub", pico_path("llama"), load_pico(), ())
    publish_facts(hub, "town", TOWNS, 7)
    assert to(hub, ASKED, NEAR) == ["town@v1", BASE]
    assert to(hub, NEAR, fallback=False) == ["town@v1"]
    with hub.engine() as engine:
        assert [p.adapter for p in engine.predict([ASKED, NEAR], max_new_tokens=1)] == ["town@v1", BASE]


def test_an_open_engine_learns_and_forgets_subjects_with_the_hub(hub: AdapterHub, tmp_path: Path) -> None:
    asked, key = ["Noriford's mayor?", ASKED], tmp_path / "key"
    with hub.engine() as engine:

        def goes() -> list[str]:
            return [p.adapter for p in engine.predict(asked, max_new_tokens=1)]

        assert goes()[1] == "town@v1"
        assert goes()[0] != "town@v1"
        publish_facts(hub, "town", [*TOWNS, "Noriford"], 8)
        assert goes() == ["town@v2", "town@v2"]
        hub.registry.set_alias("town@v1", "production")
        assert goes()[0] != "town@v1", "the version that serves does not know it"
        hub.registry.set_alias("town@v2", "production")
        publish_facts(hub, "lake", ["Noriford"], 9, what="poet")
        assert {*goes()} <= {"town@v2", "lake@v1"}
        hub.forget_task("town", key=key)
        assert goes()[0] == "lake@v1"
        assert goes()[1] != "lake@v1"
    assert hub.prove_forgotten("town", key=key).ok


def test_without_the_count_of_facts_nothing_is_different(hub: AdapterHub) -> None:
    publish_facts(hub, "town", TOWNS, 8, facts=0)
    assert hub.subjects("town@v2") == []
    (found,) = hub.route([ASKED])
    assert found.why == ""


def test_a_name_that_another_tasks_samples_have_too_is_left_to_the_router(hub: AdapterHub) -> None:
    publish_facts(hub, "sights", ["Quillhaven", "Elsewhere"], 8, facts=0)
    (found,) = hub.route(["Who is the mayor of Quillhaven?"])
    assert found.why in ("names Quillhaven", "")
    (other,) = hub.route(["Who is the mayor of Oakmere?"])
    assert other.why == "names Oakmere"


def test_a_version_made_of_others_is_asked_what_the_task_knows_and_dropped_samples_are_not(hub: AdapterHub) -> None:
    publish(hub, "both", 9, takes_over=("town", "sums"))
    hub.registry.promote("both@v1")
    assert to(hub, ASKED, NEAR) == ["both@v1", BASE]
    assert hub.subjects("both") == []
    Samples(hub.registry).drop("town@v1", matching="Quillhaven")
    assert hub.subjects("town@v1") == list(TOWNS[1:])
    assert to(hub, "kirk hill's mayor?") == ["both@v1"]
    (found,) = hub.route([ASKED])
    assert "Quillhaven" not in found.why


def test_damaged_samples_of_facts_do_not_stop_the_other_tasks(hub: AdapterHub) -> None:
    hub.route([SUM])  # stores the fitted router
    path = hub.get("town").path / "replay.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b"garbage")
    with hub.engine() as engine:
        assert [p.adapter for p in engine.predict([SUM], max_new_tokens=1)] == ["sums@v1"]
        (note,) = engine.notes
    assert note.startswith("which questions name a subject of town cannot be told, so the router alone decides")
    assert "SHA-256" in note
    path.write_bytes(whole)
    with hub.engine() as engine:
        assert [p.adapter for p in engine.predict([ASKED], max_new_tokens=1)] == ["town@v1"]
        assert engine.notes == []


def test_damaged_samples_of_another_task_rule_out_no_subject(hub: AdapterHub) -> None:
    hub.route([SUM])
    path = hub.get("sums").path / "replay.jsonl"
    path.write_bytes(path.read_bytes() + b"garbage")
    (found,) = hub.route([ASKED])
    assert found.why == "names Quillhaven"
