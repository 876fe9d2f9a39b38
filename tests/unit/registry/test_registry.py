from __future__ import annotations

import json
import logging
import math
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from registry_support import Publish

from adapterhub_cl.errors import AdapterError, UnknownNameError, UsageError
from adapterhub_cl.registry import Registry, manifests
from adapterhub_cl.types import Evaluation, Task


def test_a_published_version_is_recorded_whole(hub: Registry, publish: Publish) -> None:
    record = publish(score=0.75, verb="add-task")
    assert record.ref == "news@v1"
    assert record.path == hub.path / "adapters" / "news" / "v1"
    assert record.aliases == ("latest",)
    assert (record.kind, record.task, record.rank, record.status) == ("trained", "news", 8, "active")
    assert record.bytes == 702
    assert record.metrics == {"accuracy": 0.75}
    assert record.manifest["note"] == "kept"
    assert sorted(record.manifest["files"]) == ["adapter_model.safetensors", "extra/training.json"]
    assert all(file.stat().st_mode & 0o222 == 0 for file in record.path.rglob("*") if file.is_file())
    assert manifests.read(record.path)[0] == dict(record.manifest)
    assert hub.task("news").labels == ("a", "b")
    assert [(event.verb, event.ref) for event in hub.events()] == [("add-task", "news@v1")]
    assert hub.evaluations("news")[0].evaluation.value == 0.75
    hub.check_files(record)
    assert hub.verify() == []
    assert Registry.open(hub.path).get("news") == record


def test_a_draft_that_is_not_published_leaves_no_trace(hub: Registry) -> None:
    with hub.new_draft("news") as draft:
        (draft.path / "a").write_text("x")
        assert hub.adapters() == []
    assert list(hub.adapters_dir.iterdir()) == []
    with pytest.raises(ZeroDivisionError), hub.new_draft("news"):
        raise ZeroDivisionError
    assert list(hub.adapters_dir.iterdir()) == []


def test_a_draft_that_cannot_be_published_changes_nothing(hub: Registry) -> None:
    with hub.new_draft("news") as draft:
        with pytest.raises(AdapterError, match="empty"):
            hub.publish(draft, {})
        (draft.path / "link").symlink_to("/etc/passwd")
        with pytest.raises(AdapterError, match="link"):
            hub.publish(draft, {})
        (draft.path / "link").unlink()
        (draft.path / "manifest.json").write_text("{}")
        with pytest.raises(AdapterError, match="contains a manifest"):
            hub.publish(draft, {})
        (draft.path / "manifest.json").unlink()
        (draft.path / "w").write_text("x")
        with pytest.raises(UsageError, match="unknown kind 'grown'"):
            hub.publish(draft, {"kind": "grown"})
        with pytest.raises(UsageError, match="unknown status"):
            hub.publish(draft, {"status": "deleted"})
        with pytest.raises(UsageError, match="unknown relation 'begotten_of'"):
            hub.publish(draft, {}, edges=[("/models/a", "imported_from"), ("other", "begotten_of")])
        with pytest.raises(UnknownNameError):
            hub.publish(draft, {}, edges=[("nobody@v1", "merged_from")])
        with pytest.raises(AdapterError, match="the perplexity on t is nan"):
            hub.publish(draft, {}, evaluations=[Evaluation("t", "perplexity", math.nan, 3)])


def test_versions_count_up_and_latest_follows(hub: Registry, publish: Publish) -> None:
    assert [publish().ref for _ in range(3)] == ["news@v1", "news@v2", "news@v3"]
    assert hub.get("news").version == 3
    assert hub.get("news@v2").version == 2
    assert hub.get("latest").ref == "news@v3"
    assert [record.version for record in hub.versions("news")] == [1, 2, 3]
    assert [record.ref for record in hub.adapters()] == ["news@v3"]
    assert [record.ref for record in hub.adapters(all_versions=True)] == ["news@v1", "news@v2", "news@v3"]


def test_a_number_on_disk_is_not_used_again(hub: Registry, publish: Publish) -> None:
    (hub.adapters_dir / "news" / "v7").mkdir(parents=True)
    assert publish().ref == "news@v8"


def test_a_rejected_version_moves_nothing(hub: Registry, publish: Publish) -> None:
    first = publish(status="rejected")
    assert (first.aliases, hub.serving()) == ((), {})
    assert [record.ref for record in hub.adapters()] == ["news@v1"]
    assert hub.adapters(include_rejected=False) == []
    with pytest.raises(AdapterError, match="no accepted version") as caught:
        hub.get("news")
    assert "news@v1 (rejected)" in caught.value.hint
    publish()
    publish(status="rejected")
    assert hub.get("news").ref == "news@v2"
    assert hub.serving() == {"news": "news@v2"}
    assert hub.set_status("news@v3", "active").status == "active"
    with pytest.raises(UsageError):
        hub.set_status("news@v3", "deleted")


def test_unknown_names_say_what_is_near(hub: Registry, publish: Publish) -> None:
    publish()
    publish("reviews", task="reviews")
    with pytest.raises(UnknownNameError, match="unknown adapter 'mews'") as caught:
        hub.get("mews")
    assert "did you mean news" in caught.value.hint
    with pytest.raises(UnknownNameError, match="unknown version of news 'v4'") as caught:
        hub.get("news@v4")
    assert "known: v1" in caught.value.hint
    with pytest.raises(UnknownNameError, match="alias of news"):
        hub.get("news@production")
    with pytest.raises(UsageError, match="2 adapters have the alias 'latest'") as ambiguous:
        hub.get("latest")
    assert ambiguous.value.hint == "name one: news@latest, reviews@latest"
    for call in (hub.versions, hub.task):
        with pytest.raises(UnknownNameError):
            call("nothing")


def test_the_task_is_served_by_the_newest_unless_production_pins_it(hub: Registry, publish: Publish) -> None:
    publish()
    publish()
    assert hub.serving() == {"news": "news@v2"}
    hub.set_alias("news@v1", "production")
    assert hub.serving() == {"news": "news@v1"}
    assert publish().aliases == ("latest",)
    assert hub.serving() == {"news": "news@v1"}
    hub.set_alias("news@v3", "production")
    assert hub.serving() == {"news": "news@v3"}
    publish("both", task=None, edges=[("news", "merged_from")])
    assert hub.serve("news", "both").ref == "both@v1"
    assert publish().ref == "news@v4"
    assert hub.serving() == {"news": "news@v4"}
    publish(serve=False, move_latest=False)
    assert (hub.serving(), hub.get("news").ref) == ({"news": "news@v4"}, "news@v4")
    with pytest.raises(UnknownNameError, match="unknown task"):
        hub.serve("cooking", "news")


@pytest.mark.parametrize("mine", [True, False])
def test_an_unfinished_distillation_needs_its_teachers(hub: Registry, publish: Publish, mine: bool) -> None:
    publish()
    run = hub.runs_dir / "student-1"
    run.mkdir()
    where = str(hub.path.resolve() if mine else hub.path.parent / "other")
    row = {"verb": "distill", "name": "student", "refs": ["news@v1"], "from_hub": where}
    (run / "run.json").write_text(json.dumps(row))
    assert hub.needed_by_runs() == ({"news@v1": "student-1"} if mine else {})


def test_rollback_goes_back_step_by_step(hub: Registry, publish: Publish) -> None:
    for _ in range(4):
        publish()
    for version in (1, 2, 2, 3):
        hub.set_alias(f"news@v{version}", "production")
    moved = [tuple(record.ref for record in hub.rollback("production")) for _ in range(2)]
    assert moved == [("news@v3", "news@v2"), ("news@v2", "news@v1")]
    assert hub.get("production").ref == "news@v1"
    assert hub.serving() == {"news": "news@v1"}
    with pytest.raises(AdapterError, match="cannot roll back"):
        hub.rollback("news@production")
    hub.set_alias("news@v4", "production")
    assert hub.rollback("news@production")[1].ref == "news@v1"
    assert [move.version for move in hub.alias_history("news", "production")] == [1, 2, 2, 3, 2, 1, 4, 1]


def test_rolling_latest_back_moves_serving_unless_pinned(hub: Registry, publish: Publish) -> None:
    for _ in range(3):
        publish()
    hub.rollback("latest")
    assert (hub.get("news").ref, hub.serving()) == ("news@v2", {"news": "news@v2"})
    hub.set_alias("news@v3", "production")
    hub.rollback("latest")
    assert (hub.get("news").ref, hub.serving()) == ("news@v1", {"news": "news@v3"})


def test_rollback_says_why_it_cannot(hub: Registry, publish: Publish) -> None:
    publish()
    publish("reviews", task="reviews")
    with pytest.raises(UsageError, match="2 adapters"):
        hub.rollback("latest")
    with pytest.raises(UnknownNameError, match="unknown alias 'production'"):
        hub.rollback("production")
    with pytest.raises(UsageError, match="only an alias can be rolled back"):
        hub.rollback("news@v1")


def test_dropping_an_alias_keeps_its_history(hub: Registry, publish: Publish) -> None:
    publish()
    hub.set_alias("news", "best")
    hub.drop_alias("news", "best")
    assert hub.aliases() == {"news": {"latest": 1}}
    assert [move.version for move in hub.alias_history("news", "best")] == [1, None]
    with pytest.raises(UnknownNameError):
        hub.drop_alias("news", "best")


def test_lineage_is_transitive_both_ways(hub: Registry, publish: Publish) -> None:
    publish("a", task="a", edges=[("/models/a", "imported_from")])
    publish("b", task="b", edges=[("a", "trained_on_top_of")])
    publish("c", task="c")
    publish("m", task=None, edges=[("b", "merged_from"), ("c", "merged_from")])
    publish("p", task=None, edges=[("m@latest", "pruned_from")])
    edges = [(edge.child, edge.relation, edge.parent) for edge in hub.lineage("b")]
    assert edges == [
        ("b@v1", "trained_on_top_of", "a@v1"),
        ("a@v1", "imported_from", "/models/a"),
        ("m@v1", "merged_from", "b@v1"),
        ("p@v1", "pruned_from", "m@v1"),
    ]
    assert len(hub.lineage()) == 5


def test_scores_recorded_later(hub: Registry, publish: Publish) -> None:
    publish(score=0.5)
    publish("other", task="other")
    hub.add_evaluations("other", [Evaluation("news", "accuracy", 0.25, 4, "x.jsonl", {"per_class": {"a": 1.0}})])
    assert [(row.ref, row.evaluation.value) for row in hub.evaluations(task="news")] == [
        ("news@v1", 0.5),
        ("other@v1", 0.25),
    ]
    assert hub.evaluations("other")[0].evaluation.details == {"per_class": {"a": 1.0}}
    with pytest.raises(AdapterError):
        hub.add_evaluations("other", [Evaluation("news", "perplexity", math.inf, 4)])
    hub.drop_task("news")
    assert hub.evaluations(task="news") == []
    assert (hub.serving(), [task.name for task in hub.tasks()]) == ({"other": "other@v1"}, ["other"])


def test_the_log_is_newest_first_and_of_one_name(hub: Registry, publish: Publish) -> None:
    publish("a_b", task="a_b")
    publish("axb", task="axb")
    hub.add_event("note", "a_b", {"why": "because"})
    hub.add_event("doctor")
    assert [event.verb for event in hub.events()] == ["doctor", "note", "publish", "publish"]
    assert [event.ref for event in hub.events("a_b")] == ["a_b", "a_b@v1"]
    assert hub.events("a_b", 1)[0].to_json()["detail"] == {"why": "because"}
    assert hub.events(limit=0) == []


def test_a_deleted_version_is_gone_and_its_number_is_not_used_again(hub: Registry, publish: Publish) -> None:
    for score in (0.5, 0.6):
        publish(score=score)
    hub.add_evaluations("news@v2", [Evaluation("other", "accuracy", 0.1, 1)])
    gone = hub.delete("news@v2", reason="forget-task")
    assert gone.ref == "news@v2"
    assert (hub.get("news").ref, hub.serving()) == ("news@v1", {})
    with pytest.raises(UnknownNameError):
        hub.get("news@v2")
    assert [row.ref for row in hub.evaluations()] == ["news@v1"]
    assert hub.verify() == []
    garbage = hub.garbage()
    assert [(item.path, item.reason) for item in garbage] == [(gone.path, "a deleted version")]
    assert hub.collect(garbage) == garbage[0].bytes > 700
    assert not gone.path.exists()
    assert hub.rebuild() == 1
    assert hub.verify() == []
    assert publish().ref == "news@v3"


def test_a_thousand_adapters_are_listed_right(hub: Registry) -> None:
    expected = {}
    for number in range(1000):
        name, version = f"a{number // 2:04d}", number % 2 + 1
        directory = hub.adapters_dir / name / f"v{version}"
        directory.mkdir(parents=True)
        (directory / "w").write_bytes(b"")
        score = [Evaluation(name, "accuracy", number / 1000, 10)]
        files = {"w": {"sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", "bytes": 0}}
        moves = {"verb": "add-task", "serve": True, "move_latest": True}
        manifest = manifests.build(
            {"rank": number}, name=name, task=Task(name), edges=[], evaluations=score, files=files, published=moves
        )
        (directory / "manifest.json").write_text(manifests.dump({**manifest, "version": version}))
        expected[f"{name}@v{version}"] = number
    assert hub.rebuild() == 1000
    everything = hub.adapters(all_versions=True)
    assert {record.ref: record.rank for record in everything} == expected
    assert [record.ref for record in everything] == sorted(expected)
    latest = hub.adapters()
    assert [record.ref for record in latest] == [f"a{number:04d}@v2" for number in range(500)]
    assert all(record.aliases == ("latest",) for record in latest)
    assert [record.to_json()["metrics"]["accuracy"] for record in latest[:3]] == [0.001, 0.003, 0.005]
    assert hub.verify()[0].path == "aliases.json"
    assert hub.repair() == ["wrote aliases.json"]
    assert hub.verify() == []


def test_a_rebuilt_index_says_the_same(hub: Registry, publish: Publish, caplog: pytest.LogCaptureFixture) -> None:
    publish(score=0.5)
    publish(score=0.6, status="rejected")
    publish("other", task="other", edges=[("news@v1", "merged_from")])
    publish("other", task="other")
    hub.set_alias("news@v2", "production")
    hub.set_status("other@v1", "rejected")
    hub.rollback("other@latest")
    hub.put_task(Task("cooking", instruction="stir"))
    hub.serve("cooking", "other@v1")
    hub.add_evaluations("news@v1", [Evaluation("other", "accuracy", 0.3, 7)])

    def everything(registry: Registry) -> list[object]:
        return [
            registry.adapters(all_versions=True),
            registry.aliases(),
            registry.serving(),
            registry.tasks(),
            registry.lineage(),
            sorted(row.to_json().items().__repr__() for row in registry.evaluations()),
            registry.alias_history("other", "latest"),
        ]

    before, events = everything(hub), hub.events()
    assert hub.rebuild() == 4
    assert everything(hub) == before
    assert hub.events() == events
    for path in hub.path.glob("index.db*"):
        path.unlink()
    with caplog.at_level(logging.INFO, logger="adapterhub_cl"):
        opened = Registry.open(hub.path)
    assert "had no index; created one from 4 manifests" in caplog.text
    assert everything(opened) == before
    assert sorted(event.ref for event in opened.events()) == ["news@v1", "news@v2", "other@v1", "other@v2"]
    assert opened.verify() == []


def test_without_its_mirror_a_hub_is_rebuilt_from_manifests_alone(hub: Registry, publish: Publish) -> None:
    publish()
    publish()
    publish(status="rejected")
    (hub.path / "aliases.json").unlink()
    (hub.path / "index.db").unlink()
    opened = Registry.open(hub.path)
    assert opened.get("news").ref == "news@v2"
    assert opened.serving() == {"news": "news@v2"}
    assert [move.version for move in opened.alias_history("news", "latest")] == [1, 2]


def test_rebuilding_leaves_out_what_is_broken_and_says_so(
    hub: Registry, publish: Publish, caplog: pytest.LogCaptureFixture
) -> None:
    publish()
    second = publish()
    manifest = second.path / "manifest.json"
    manifest.chmod(0o644)
    manifest.write_text("{")
    with closing(sqlite3.connect(hub.path / "index.db")) as connection:  # else it is written back from the index
        connection.execute("UPDATE versions SET manifest = '{}'")
        connection.commit()
    assert hub.rebuild() == 1
    assert "skipped " in caplog.text
    assert hub.get("news").ref == "news@v1"
    assert hub.serving() == {"news": "news@v1"}
    assert [problem.path for problem in hub.verify()] == ["adapters/news/v2", "aliases.json"]


def test_a_rebuild_that_fails_leaves_the_old_index(
    hub: Registry, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adapterhub_cl.registry import mirror

    publish()
    before = sorted(path.name for path in hub.path.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(mirror, "restore", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            hub.rebuild()
    assert hub.get("news").ref == "news@v1"
    assert sorted(path.name for path in hub.path.iterdir()) == before


def test_a_name_from_outside_never_becomes_a_path(hub: Registry, tmp_path: Path) -> None:
    for name in ("../evil", "/etc", "a/b"):
        with pytest.raises(UsageError):
            hub.new_draft(name)
        with pytest.raises(UsageError):
            hub.get(name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hub"]


def test_going_back_takes_the_tasks_along_that_both_versions_took_over(hub: Registry, publish: Publish) -> None:
    publish("a", task="a")
    publish("b", task="b", takes_over=["a"])
    publish("b", task="b", takes_over=["a"])
    assert hub.serving() == {"a": "b@v2", "b": "b@v2"}
    hub.rollback("b@latest")
    assert hub.serving() == {"a": "b@v1", "b": "b@v1"}
    publish("c", task="c", takes_over=["a", "b"], status="rejected")
    assert hub.serving() == {"a": "b@v1", "b": "b@v1"}, "a rejected version takes nothing over"


def test_an_alias_that_was_set_once_is_taken_away_again(hub: Registry, publish: Publish) -> None:
    publish()
    publish()
    hub.set_alias("news@v1", "production")
    publish()
    assert hub.serving() == {"news": "news@v1"}
    before, after = hub.rollback("news@production")
    assert (before.ref, after.ref, hub.serving()) == ("news@v1", "news@v3", {"news": "news@v3"})
    assert hub.aliases() == {"news": {"latest": 3}}
    assert [(m.version, m.reason) for m in hub.alias_history("news", "production")] == [
        (1, "alias"),
        (None, "rollback"),
    ]
    Registry.rebuild_at(hub.path)
    assert (hub.serving(), hub.aliases()) == ({"news": "news@v3"}, {"news": {"latest": 3}})
    publish()
    assert hub.serving() == {"news": "news@v4"}, "nothing is pinned"
    hub.set_alias("news@v2", "production")
    assert hub.rollback("production")[1].ref == "news@v4", "it does not come back to what was taken away"
    hub.rollback("news@latest")
    hub.set_alias("news@v1", "production")
    assert hub.rollback("production")[1].ref == "news@v3", "as it was before: `latest` had been rolled back"
    assert hub.verify() == []
    hub.set_alias("news@v1", "best")
    assert hub.rollback("best")[1].ref == "news@v3"
    assert hub.serving() == {"news": "news@v3"}


def test_a_task_goes_back_to_what_another_adapter_s_production_names(hub: Registry, publish: Publish) -> None:
    publish()
    publish("other", task="news")
    publish("other", task="news")
    hub.set_alias("other@v1", "production")
    hub.set_alias("news@v1", "production")
    assert hub.serving() == {"news": "news@v1"}
    assert hub.rollback("news@production")[1].ref == "other@v1"
    assert hub.serving() == {"news": "other@v1"}
