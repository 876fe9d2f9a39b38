"""Files of a hub that were damaged or written by somebody else: one bad entry never keeps the rest from being read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from registry_support import BASE, Publish, publish_into, rows_of

from adapterhub_cl.errors import IntegrityError, StorageError
from adapterhub_cl.registry import Registry, manifests, score_file, shapes
from adapterhub_cl.registry.index import Index
from adapterhub_cl.registry.names import is_name
from adapterhub_cl.registry.quoting import quoted
from adapterhub_cl.types import Evaluation

EVIL = "$(id)`x`\x1b[31m\u202eEVIL\n"
SPEC = {"name": "news", "kind": "choice", "labels": ["a", "b"], "metric": "accuracy"}


@pytest.fixture
def lived(trained_hub: Callable[..., Path], tmp_path: Path) -> Registry:
    """A hub with a pin, a rejected version, a task taken over, and a score that was recorded later."""
    made = trained_hub("lived", lambda folder: live(Registry.create(folder, BASE)))
    return Registry.open(shutil.move(made, tmp_path / "hub"))


def live(hub: Registry) -> None:
    publish_into(hub, "news", score=0.5)
    publish_into(hub, "news", score=0.6)
    publish_into(hub, "news", status="rejected")
    publish_into(hub, "mood", task="mood", score=0.7)
    hub.set_alias("news@v1", "tried")
    hub.set_alias("news@v1", "production")
    hub.serve("news", "news@v1")
    hub.set_status("mood@v1", "rejected")
    hub.add_evaluations("news@v1", [Evaluation("news", "accuracy", 0.4, 5, "later.jsonl", {"interval": [0.1, 0.8]})])


def without_index(hub: Registry) -> Path:
    for path in hub.path.glob("index.db*"):
        path.unlink()
    return hub.path


def state(hub: Registry) -> dict[str, Any]:
    return {
        "aliases": hub.aliases(),
        "serving": hub.serving(),
        "tasks": hub.tasks(),
        "statuses": {r.ref: r.status for r in hub.adapters(all_versions=True)},
        "history": hub.alias_history("news", "tried"),
    }


def change(hub: Registry, edit: Callable[[dict[str, Any]], object]) -> None:
    found = json.loads((hub.path / "aliases.json").read_text())
    edit(found)
    (hub.path / "aliases.json").write_text(json.dumps(found))


@pytest.mark.parametrize(
    ("edit", "named", "differs"),
    [
        (lambda s: s["known"].update(news="1"), "the highest version of 'news': '1'", ()),
        (lambda s: s["known"].update(news=None), "the highest version of 'news': None", ()),
        (lambda s: s.update(known=[]), "all of known", ()),
        (lambda s: s.pop("known"), "all of known (it is missing)", ()),
        (lambda s: s.update(aliases=["news"]), "all of aliases", ("aliases",)),
        (lambda s: s["aliases"].update(news=[1]), "the aliases of 'news': [1]", ("aliases",)),
        (lambda s: s["aliases"]["news"].update(tried={"v": 1}), "the alias 'tried' of news", ("aliases",)),
        (lambda s: s["aliases"]["news"].update({EVIL: 1}), "the alias '$(id)", ()),
        (lambda s: s["aliases"].update({EVIL: {"latest": 1}}), "the aliases of '$(id)", ()),
        (lambda s: s["aliases"]["news"].update(v3=1), "the alias 'v3' of news", ()),
        (lambda s: s.update(statuses=["news@v1"]), "all of statuses", ("statuses",)),
        (lambda s: s.update(statuses="!!"), "all of statuses", ("statuses",)),
        (lambda s: s["statuses"].update({"news@v3": "weird"}), "the status of 'news@v3': 'weird'", ()),
        (lambda s: s["statuses"].update({"!!": "active"}), "the status of '!!'", ()),
        (lambda s: s["statuses"].update({"news@v1": ["deleted"]}), "the status of 'news@v1'", ()),
        (lambda s: s.update(tasks=["news"]), "all of tasks", ()),
        (lambda s: s["tasks"].update(news="x"), "the task 'news' (it is a text, not an object)", ()),
        (lambda s: s["tasks"].update(news={**SPEC, "labels": 5}), "the task 'news' (its labels", ()),
        (lambda s: s["tasks"].update({EVIL: {**SPEC, "name": EVIL}}), "the task '$(id)", ()),
        (lambda s: s["tasks"].update(news={**SPEC, "name": "other"}), "its name is 'other'", ()),
        (lambda s: s["tasks"].update(news={**SPEC, "instruction": "\ud800"}), "its instruction is '\\ud800'", ()),
        (lambda s: s["serving"].update(news=None), "what serves 'news': None", ("serving",)),
        (lambda s: s["serving"].update(mood="../../etc"), "what serves 'mood': '../../etc'", ("serving",)),
        (lambda s: s["serving"].update({EVIL: "news@v1"}), "what serves '$(id)", ()),
        (lambda s: s.update(serving="../../etc"), "all of serving", ("serving",)),
        (lambda s: s.update(history=None), "all of history", ("history",)),
        (lambda s: s["history"].append(["tickets"]), "move 6 of history", ()),
        (lambda s: s["history"].insert(0, {"a": 1}), "move 1 of history", ()),
        (lambda s: s["history"].append(["news", "tried", {"v": 1}, "", ""]), "move 6 of history", ()),
        (lambda s: s["history"].append(["news", "tried", 1, "\ud800", ""]), "move 6 of history", ()),
        (lambda s: s["history"].append([EVIL, "tried", 1, "", ""]), "move 6 of history", ()),
    ],
)
def test_a_bad_entry_of_the_state_is_left_out_and_named_and_the_rest_restored(
    lived: Registry,
    caplog: pytest.LogCaptureFixture,
    edit: Callable[[dict[str, Any]], object],
    named: str,
    differs: tuple[str, ...],
) -> None:
    before = state(lived)
    change(lived, edit)
    opened = Registry.open(without_index(lived))
    after = state(opened)
    told = [r.getMessage() for r in caplog.records if "skipped" in r.getMessage()]
    assert len(told) == 1
    assert "aliases.json" in told[0]
    assert named in told[0]
    assert told[0].isprintable()
    assert {key for key in before if before[key] != after[key]} <= set(differs)
    assert opened.get("news").version in (1, 2)
    rows = rows_of(opened)
    assert all(is_name(str(row[0])) for table in ("adapters", "aliases", "tasks", "serving") for row in rows[table])
    opened.repair()
    assert opened.verify() == []
    caplog.clear()
    assert Registry.rebuild_at(lived.path) == 4
    assert "skipped" not in caplog.text


def test_what_serves_is_the_newest_version_where_the_state_does_not_tell(lived: Registry) -> None:
    assert lived.serving()["news"] == "news@v1"
    change(lived, lambda s: s["serving"].update(news=5))
    assert Registry.open(without_index(lived)).serving()["news"] == "news@v2"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "it is not valid JSON"),
        ("\ufeff{}", "it is not valid JSON"),
        ("[1]", "it is not an object"),
        ('{"a":' * 100_000, "it is not valid JSON"),
        ("[" * 500 + "]" * 500, "it is not valid JSON"),
        (b"\xff\xfe", "it is not UTF-8 text"),
        ('{"format": 2, "aliases": {}}', "its format 2 is not supported by this version"),
        ('{"format": "1"}', "its format '1' is not supported by this version"),
        (None, "it cannot be read (is a directory)"),
    ],
)
def test_a_state_that_cannot_be_read_is_kept_beside_the_new_one(
    lived: Registry, caplog: pytest.LogCaptureFixture, text: str | bytes | None, said: str
) -> None:
    path = lived.path / "aliases.json"
    path.unlink()
    if text is None:
        path.mkdir()
    else:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    problems = lived.verify()
    assert [(p.path, p.problem.startswith(said)) for p in problems] == [("aliases.json", True)]
    opened = Registry.open(without_index(lived))
    told = [r.getMessage() for r in caplog.records if "skipped" in r.getMessage()]
    (kept,) = lived.path.glob("aliases.json.broken-*")
    assert len(told) == 1
    assert said in told[0]
    assert kept.name in told[0]
    assert kept.is_dir() if text is None else kept.read_bytes() == (text if isinstance(text, bytes) else text.encode())
    assert (opened.get("news").ref, opened.serving()) == ("news@v2", {"news": "news@v2", "mood": "mood@v1"})
    opened.repair()
    assert [problem.path for problem in opened.verify()] == [kept.name]
    shutil.rmtree(kept) if text is None else kept.unlink()
    assert opened.verify() == []


def test_repairing_keeps_the_state_that_cannot_be_read(lived: Registry) -> None:
    before = state(lived)
    (lived.path / "aliases.json").write_text("{")
    assert any("renamed the unreadable aliases.json to" in line for line in lived.repair())
    assert Registry.open(without_index(lived)).aliases() == before["aliases"]


def test_thousands_of_bad_entries_are_told_in_a_few_lines(lived: Registry, caplog: pytest.LogCaptureFixture) -> None:
    change(lived, lambda s: s["history"].extend([["x"]] * 5000))
    Registry.open(without_index(lived))
    told = [r.getMessage() for r in caplog.records if "skipped" in r.getMessage()]
    assert len(told) == 21
    assert "4980 more entries" in told[-1]


SCORE = {"adapter": "news@v1", "task": "news", "metric": "accuracy", "value": 0.9, "n": 5, "created_at": "2027"}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({**SCORE, "adapter": ["news@v1"]}, "its adapter is ['news@v1']"),
        ({**SCORE, "adapter": "news"}, "its adapter is 'news'"),
        ({**SCORE, "task": ["news"]}, "its task is ['news']"),
        ({**SCORE, "task": EVIL}, "its task is '$(id)"),
        ({**SCORE, "created_at": 5}, "its created_at is 5"),
        ({**SCORE, "value": "x"}, "its value is 'x'"),
        ({**SCORE, "value": float("nan")}, "its value is nan"),
        ({**SCORE, "value": 10**400}, "its value is 1000"),
        ({**SCORE, "n": 10**30}, "its n is 1000"),
        ({**SCORE, "n": -5}, "its n is -5"),
        ({**SCORE, "n": True}, "its n is True"),
        ({**SCORE, "details": "x"}, "its details are not an object"),
        ({**SCORE, "metric": ["x"]}, "its metric is a list"),
        ({**SCORE, "details": {"interval": ["a"]}}, "details.interval is invalid"),
        ({**SCORE, "details": {"classes": {"a": 5}}}, "details.classes is invalid"),
        ({**SCORE, "data": "\ud800"}, "it is not valid JSON"),
        ({key: SCORE[key] for key in SCORE if key != "n"}, "it has no n"),
        ([SCORE], "it is a list"),
        ('{"adapter": "news@v1", "ta', "it is not valid JSON"),
        ("[" * 100_000, "it is not valid JSON"),
    ],
)
def test_a_line_that_is_no_score_is_left_out_and_named(
    lived: Registry, caplog: pytest.LogCaptureFixture, line: Any, said: str
) -> None:
    before = lived.evaluations()
    path = lived.path / "evaluations.jsonl"
    path.write_text((line if isinstance(line, str) else json.dumps(line)) + "\n" + path.read_text())
    opened = Registry.open(without_index(lived))
    told = [r.getMessage() for r in caplog.records if "skipped" in r.getMessage()]
    assert len(told) == 1
    assert "line 1 (" in told[0]
    assert said in told[0]
    assert "evaluations.jsonl" in told[0]
    assert told[0].isprintable()
    key = lambda stored: (stored.ref, stored.created_at, stored.evaluation.metric, stored.evaluation.value)  # noqa: E731
    assert sorted(opened.evaluations(), key=key) == sorted(before, key=key)


def test_a_line_may_hold_what_some_call_the_end_of_a_line(lived: Registry) -> None:
    score = Evaluation("news", "accuracy", 0.3, 5, "a\u2028b\x85c")
    lived.add_evaluations("news@v1", [score])
    assert score in [stored.evaluation for stored in Registry.open(without_index(lived)).evaluations("news@v1")]


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda m: m.update(rank=10**40), "rank is 1000"),
        (lambda m: m.update(rank=-1), "rank is -1"),
        (lambda m: m.update(rank=True), "rank is True"),
        (lambda m: m.update(bytes=10**30), "bytes is 1000"),
        (lambda m: m.update(version="2"), "version '2'"),
        (lambda m: m.update(task=EVIL), "is not a valid task name"),
        (lambda m: m.update(takes_over=["x", 5, None, {}]), "takes_over is not a list of names"),
        (lambda m: m.update(takes_over="abc"), "takes_over is not a list of names"),
        (lambda m: m.update(retention={"x": "y"}), "the retention of 'x' is 'y'"),
        (lambda m: m.update(retention=[1]), "retention is a list, not an object"),
        (lambda m: m.update(training="x"), "training is a text, not an object"),
        (lambda m: m.update(training={"data": 5}), "training.data is a number, not an object"),
        (lambda m: m.update(training={"settings": [1]}), "training.settings is a list, not an object"),
        (lambda m: m.update(recipe="x"), "recipe is a text, not an object"),
        (lambda m: m.update(base=[1]), "base is not an object"),
        (lambda m: m.update(target_modules=5), "target_modules is not a list of texts"),
        (lambda m: m["task_spec"].update(labels=5), "task_spec: its labels are not a list of texts"),
        (lambda m: m["task_spec"].update(name=EVIL), "task_spec: its name is '$(id)"),
        (lambda m: m["published"].update(serve="x"), "published lacks verb, serve or move_latest"),
        (lambda m: m.update(lineage=["x"]), "edge 1 of its lineage has no parent"),
        (lambda m: m.update(lineage=[{"parent": "x", "relation": EVIL}]), "has the relation '$(id)"),
        (lambda m: m.update(evaluations=["x"]), "score 1: it is a text, not an object"),
        (lambda m: m["evaluations"][0].update(value=None), "score 1: its value is None, not a finite number"),
        (lambda m: m["evaluations"][0].update(details=5), "score 1: its details are not an object"),
        (lambda m: m["evaluations"][0].update(more=5), "score 1: unknown key 'more'"),
        (lambda m: m["files"].update(x={"sha256": "0", "bytes": "many"}), "no size for 'x'"),
        (lambda m: m.update(note="\ud800"), "cannot be read"),
        (lambda m: '{"a":' * 100_000 + "1" + "}" * 100_000, "it is nested too deeply"),
        (lambda m: m.update(note=json.loads("[" * 200 + "]" * 200)), "it is nested too deeply"),
    ],
)
def test_a_version_whose_manifest_cannot_be_used_is_left_out_and_named_with_the_reason(
    lived: Registry, caplog: pytest.LogCaptureFixture, edit: Callable[[dict[str, Any]], object], said: str
) -> None:
    path = lived.get("news@v2").path / "manifest.json"
    manifest = json.loads(path.read_text())
    made = edit(manifest)
    path.chmod(0o644)
    path.write_text(made if isinstance(made, str) else json.dumps(manifest))
    opened = Registry.open(without_index(lived))
    told = [r.getMessage() for r in caplog.records if "skipped" in r.getMessage()]
    assert len(told) == 1
    assert said in told[0]
    assert told[0].isprintable()
    assert [r.ref for r in opened.adapters(all_versions=True)] == ["mood@v1", "news@v1", "news@v3"]
    assert opened.get("news").ref == "news@v1"
    for _ in range(2):
        (problem,) = [p for p in opened.verify() if p.path == "adapters/news/v2"]
        assert said in problem.problem
        assert "interrupted" not in problem.problem
        opened.repair()
    with pytest.raises(IntegrityError, match=r"cannot be read|is not a valid manifest"):
        manifests.read(path.parent)


def test_details_of_another_form_do_not_come_out_of_the_index(lived: Registry) -> None:
    path = lived.get("news@v1").path / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["evaluations"][0]["details"] = {"interval": "x", "confusion": "x", "classes": [5], "before": "a", "own": 1}
    path.chmod(0o644)
    path.write_text(json.dumps(manifest))
    first = Registry.open(without_index(lived)).evaluations("news@v1")[0]
    assert (first.evaluation.value, first.evaluation.details) == (0.5, {"own": 1})


def test_what_the_index_refuses_of_a_manifest_leaves_out_that_version_only(
    lived: Registry, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adapterhub_cl.registry import writes

    real = writes.add_evaluations

    def refuse(connection: Any, name: str, version: int, scores: Any, at: str) -> None:
        if (name, version) == ("mood", 1):
            raise OverflowError("Python int too large to convert to SQLite INTEGER")
        real(connection, name, version, scores, at)

    monkeypatch.setattr(writes, "add_evaluations", refuse)
    opened = Registry.open(without_index(lived))
    assert "mood@v1: its manifest contains values that the index cannot store ('Python int too large" in caplog.text
    assert [r.ref for r in opened.adapters()] == ["news@v2"]
    assert any(line.startswith("skipped adapters/mood/v1: its manifest contains") for line in opened.repair())


def test_a_directory_in_the_place_of_the_index_is_named(hub: Registry, publish: Publish) -> None:
    publish()
    without_index(hub)
    (hub.path / "index.db").mkdir()
    for use in (Registry.open, Registry.rebuild_at):
        with pytest.raises(StorageError, match=r"index\.db is a directory") as found:
            use(hub.path)
        assert f"mv {hub.path / 'index.db'} " in found.value.hint
    (hub.path / "index.db").rename(hub.path / "away")
    assert Registry.open(hub.path).get("news").ref == "news@v1"


def test_a_hub_without_an_index_that_cannot_be_written_says_what_to_do(
    hub: Registry, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish()
    without_index(hub)

    def refused(_: Index) -> None:
        error = StorageError("read-only file system at x")
        raise error from OSError(30, "Read-only file system")

    monkeypatch.setattr(Index, "lock", refused)
    with pytest.raises(StorageError, match="has no index yet and is read-only") as found:
        Registry.open(hub.path)
    assert "cp -r" in found.value.hint


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("adapters/a/v1/x", "adapters/a/v1/x"),
        ("a b;rm -rf ~", "'a b;rm -rf ~'"),
        ("it's", "'it'\"'\"'s'"),
        ("\x1b[2Jx'\\\n", r"$'\x1b[2Jx\x27\x5c\x0a'"),
        ("\u202ex", r"$'\xe2\x80\xaex'"),
        ("\udcff", r"$'\xff'"),
    ],
)
def test_a_command_names_a_file_so_that_a_shell_finds_it_and_nothing_else(path: str, word: str) -> None:
    assert quoted(path) == word


def test_a_score_that_this_project_writes_is_sound(lived: Registry) -> None:
    for stored in lived.evaluations():
        assert shapes.wrong_score(stored.evaluation.to_json()) == ""
        assert shapes.wrong_details(stored.evaluation.details) == []
    assert len(score_file.read(lived.path)) == 1
