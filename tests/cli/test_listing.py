"""`list`, `show`, `log`, `lineage`, `alias`, `rollback` on a hub of fake adapters."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_support import Cl

from adapterhub_cl.hub import AdapterHub
from adapterhub_cl.registry import Registry
from adapterhub_cl.training.runs import Run

Publish = Callable[..., Any]
GONE = 2**22 + 1  # no process has such a number
CONTRACT = {"ref", "name", "version", "kind", "aliases", "task", "rank", "bytes", "created_at", "status"}


@pytest.fixture
def hub(registry: Registry, publish: Publish) -> Path:
    """mood@v1, mood@v2 (updated from it), taste@v1 (imported)."""
    publish("mood")
    publish("mood", kind="updated", edges=[("mood@v1", "updated_from")])
    publish("taste", kind="imported", edges=[("/elsewhere/taste", "imported_from")])
    return registry.path


def test_list(hub: Path, cl: Cl) -> None:
    said = cl("--hub", hub, "list")
    head, *rows = said.out.splitlines()
    columns = ["ref", "task", "kind", "metric", "value", "rank", "size", "age", "state", "aliases"]
    assert head.split() == columns
    assert [row.split()[0] for row in rows] == ["mood@v2", "taste@v1"]
    assert rows[0].split()[1:6] == ["mood", "updated", "accuracy", "0.9000", "8"]
    assert "\x1b" not in said.out
    assert said.err == ""


def test_list_as_json_has_what_the_contract_says(hub: Path, cl: Cl) -> None:
    rows = cl("list", "--all", "--json", "--hub", hub).json
    assert [row["ref"] for row in rows] == ["mood@v1", "mood@v2", "taste@v1"]
    assert all(row.keys() >= CONTRACT for row in rows)


def test_an_empty_hub_says_what_to_do(registry: Registry, cl: Cl) -> None:
    said = cl("list", "--hub", registry.path)
    assert (said.code, said.out) == (0, "")
    assert f"cl-adapter --hub {registry.path} add-task" in said.err
    assert cl("list", "--hub", registry.path, "--quiet").err == ""
    assert cl("list", "--hub", registry.path, "--json").json == []


def test_show(hub: Path, cl: Cl) -> None:
    said = cl("show", "mood@v1", "--hub", hub).out
    for text in ("mood@v1", "negative, positive", "How is it?", "accuracy", "0.700–0.970", "precision", "epochs=3"):
        assert text in said
    for text in ("train.jsonl (60 examples)", "12 (balanced)", "adapter_model.safetensors", f"{hub}/adapters/mood/v1"):
        assert text in said
    assert "updated from mood@v1" in cl("show", "mood", "--hub", hub).out


def test_show_as_json(hub: Path, cl: Cl) -> None:
    row = cl("show", "mood", "--hub", hub, "--json").json
    assert row.keys() >= CONTRACT | {"path", "evaluations", "lineage", "files", "training", "task_spec"}
    assert row["lineage"] == [{"parent": "mood@v1", "relation": "updated_from"}]
    assert row["evaluations"][0]["details"]["interval"] == [0.7, 0.97]


def test_log(hub: Path, cl: Cl) -> None:
    assert [row["ref"] for row in cl("log", "--json", "--hub", hub).json] == ["taste@v1", "mood@v2", "mood@v1"]
    assert [row["ref"] for row in cl("log", "mood", "-n", 1, "--json", "--hub", hub).json] == ["mood@v2"]
    assert len(cl("log", "-n", "0", "--hub", hub).out.splitlines()) == 4
    assert cl("log", "nothing", "--hub", hub).code == 2


def test_lineage(hub: Path, cl: Cl) -> None:
    assert cl("lineage", "mood", "--hub", hub).out == "mood@v2\n  updated from mood@v1\n"
    assert cl("lineage", "mood@v1", "--hub", hub).out.splitlines()[1:] == [
        "made from mood@v1:",
        "  mood@v2 updated from mood@v1",
    ]
    assert cl("lineage", "taste", "--hub", hub, "--json").json == {
        "ref": "taste@v1",
        "edges": [{"child": "taste@v1", "parent": "/elsewhere/taste", "relation": "imported_from"}],
        "rebased_from": None,
    }


def test_alias_and_rollback(hub: Path, cl: Cl) -> None:
    assert cl("alias", "mood@v1", "production", "--hub", hub).out == "mood@production is now mood@v1\n"
    assert cl("alias", "mood@v2", "production", "--hub", hub, "--json").json == {
        "ref": "mood@v2",
        "alias": "production",
        "aliases": ["latest", "production"],
    }
    assert AdapterHub.open(hub).registry.serving()["mood"] == "mood@v2"
    back = cl("rollback", "mood@production", "--hub", hub, "--json")
    moved = {"mood": "mood@v1"}
    assert back.json == {"alias": "mood@production", "from": "mood@v2", "to": "mood@v1", "serving": moved}
    assert AdapterHub.open(hub).registry.serving()["mood"] == "mood@v1"
    again = cl("rollback", "production", "--hub", hub)
    assert again.code == 1
    assert "it has never named a version other than" in again.err


def test_rollback_straight_after_the_first_alias_takes_the_pin_away(hub: Path, cl: Cl) -> None:
    said = cl("alias", "mood@v1", "production", "--hub", hub)
    proposed = said.err.partition("cl-adapter ")[2].split()
    assert proposed[-2:] == ["rollback", "mood@production"]
    back = cl(*proposed)
    assert back.code == 0, back.err
    assert back.out.splitlines() == [
        "production: no longer mood@v1; mood has no such alias now, as before it was set",
        "  mood is served by mood@v2",
    ]
    assert cl("verify", "--rebuild-index", "--hub", hub).code == 0
    registry = AdapterHub.open(hub).registry
    assert (registry.serving()["mood"], "production" in registry.aliases()["mood"]) == ("mood@v2", False)
    assert cl("verify", "--hub", hub).code == 0


def test_export(hub: Path, cl: Cl, tmp_path: Path) -> None:
    said = cl("export", "mood", "-o", tmp_path / "out", "--hub", hub, "--json")
    assert said.json == {"ref": "mood@v2", "path": str(tmp_path / "out"), "format": "peft"}
    assert (tmp_path / "out" / "adapter_model.safetensors").read_bytes() == b"weights" * 50
    assert cl("export", "mood", "-o", tmp_path / "out", "--hub", hub).code == 2


def test_the_hub_is_found_by_flag_environment_and_place(
    hub: Path, cl: Cl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = cl("list")
    assert said.code == 1
    assert "cl-adapter init --base tiny" in said.err
    hub.rename(tmp_path / "registry")
    assert len(cl("list", "--json").json) == 2
    (tmp_path / "registry").rename(tmp_path / "other")
    monkeypatch.setenv("CL_ADAPTER_HUB", str(tmp_path / "other"))
    assert len(cl("list", "--json").json) == 2
    assert cl("list", "--hub", "nowhere").code == 1


def test_json_is_one_document_and_notes_stay_on_stderr(hub: Path, cl: Cl) -> None:
    for verb in (["list"], ["show", "mood"], ["log"], ["lineage", "mood"], ["verify"], ["gc", "--dry-run"]):
        json.loads(cl(*verb, "--hub", hub, "--json").out)


def states(cl: Cl, hub: Path, *flags: str) -> dict[str, str]:
    """Version → the state and aliases that `list` shows."""
    lines = cl("list", *flags, "--hub", hub).out.splitlines()
    at = lines[0].index("state")
    return {line.split()[0]: " ".join(line[at:].split()) for line in lines[1:]}


def test_list_shows_what_serves_beside_the_newest(hub: Path, cl: Cl) -> None:
    assert states(cl, hub) == {"mood@v2": "serves -", "taste@v1": "serves -"}
    assert cl("rollback", "mood@latest", "--hub", hub).code == 0
    assert states(cl, hub) == {"mood@v1": "serves latest", "mood@v2": "ready -", "taste@v1": "serves -"}
    rows = {row["ref"]: row for row in cl("list", "--json", "--hub", hub).json}
    assert {ref: row["serves"] for ref, row in rows.items()} == {
        "mood@v1": ["mood"],
        "mood@v2": [],
        "taste@v1": ["taste"],
    }


def test_list_after_production_was_pinned_and_rolled_back(hub: Path, publish: Publish, cl: Cl) -> None:
    publish("mood", kind="updated", edges=[("mood@v2", "updated_from")])
    assert set(states(cl, hub)) == {"mood@v3", "taste@v1"}
    cl("alias", "mood@v2", "production", "--hub", hub)
    pinned = {"mood@v2": "serves production", "mood@v3": "ready latest", "taste@v1": "serves -"}
    assert states(cl, hub) == pinned
    cl("alias", "mood@v1", "production", "--hub", hub)
    assert states(cl, hub)["mood@v1"] == "serves production"
    assert cl("rollback", "mood@production", "--hub", hub).code == 0
    assert states(cl, hub) == pinned
    assert set(states(cl, hub, "--all")) == {"mood@v1", "mood@v2", "mood@v3", "taste@v1"}


def test_list_says_how_an_unfinished_run_goes_on(hub: Path, cl: Cl) -> None:
    for name, pid in (("mood", 0), ("taste", os.getpid())):  # the second one is going on
        run = Run.start(hub / "runs", {"verb": "update", "name": name})
        about = json.loads((run.path / "run.json").read_text(encoding="utf-8"))
        (run.path / "run.json").write_text(json.dumps({**about, "pid": pid or GONE}), encoding="utf-8")
    assert cl("list", "--hub", hub).err == f"unfinished; go on with: cl-adapter --hub {hub} update mood --resume\n"
    Run.start(hub / "runs", {"verb": "add-task", "name": "new\x1b[31m"})
    run = next((hub / "runs").glob("new*/run.json"))
    run.write_text(json.dumps({**json.loads(run.read_text(encoding="utf-8")), "pid": GONE}), encoding="utf-8")
    said = cl("list", "--hub", hub)
    assert "(and 1 more, see verify)" in said.err
    assert "\x1b" not in said.err


def test_list_names_a_refused_update_and_shows_what_serves(hub: Path, publish: Publish, cl: Cl) -> None:
    publish("mood", kind="updated", status="rejected", edges=[("mood@v2", "updated_from")])
    publish("bad", status="rejected")
    assert states(cl, hub) == {"bad@v1": "rejected -", "mood@v2": "serves -", "taste@v1": "serves -"}
    assert cl("list", "--hub", hub).err == "newer, but rejected by the gate: mood@v3 (--all lists every version)\n"
    assert cl("list", "--all", "--hub", hub).err == ""
    publish("mood", kind="updated", edges=[("mood@v2", "updated_from")])
    assert states(cl, hub) == {"bad@v1": "rejected -", "mood@v4": "serves -", "taste@v1": "serves -"}
    assert cl("list", "--hub", hub).err == ""


def test_list_shows_an_older_version_that_serves_another_task(hub: Path, publish: Publish, cl: Cl) -> None:
    publish("both", takes_over=["taste"])
    publish("both", kind="updated", edges=[("both@v1", "updated_from")])
    serving = AdapterHub.open(hub).registry.serving()
    assert (serving["both"], serving["taste"]) == ("both@v2", "both@v1")
    assert states(cl, hub) == {
        "both@v1": "serves 1 of 2 -",
        "both@v2": "serves latest",
        "mood@v2": "serves -",
        "taste@v1": "ready -",
    }
