"""`replay list`, `show`, `export`, `drop`, `budget` on a hub of fake adapters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_support import Cl

from adapterhub_cl.registry import Registry
from adapterhub_cl.types import Task


@pytest.fixture
def hub(registry: Registry) -> Path:
    """mood@v1 and mood@v2, the second with one sample more."""
    for count in (2, 3):
        with registry.new_draft("mood") as draft:
            (draft.path / "adapter_model.safetensors").write_bytes(b"w")
            rows = [{"instruction": "How?", "input": f"thing {i}", "output": "good"} for i in range(count)]
            (draft.path / "replay.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            replay = {"policy": "balanced", "samples": count}
            registry.publish(draft, {"kind": "trained", "replay": replay}, task=Task("mood"))
    return registry.path


def test_list_and_show(hub: Path, cl: Cl) -> None:
    assert cl("replay", "list", "--hub", hub).out.splitlines()[1].split()[:4] == ["mood@v2", "mood", "balanced", "3"]
    (row,) = cl("--json", "replay", "list", "--hub", hub).json
    assert row.keys() == {"ref", "task", "policy", "samples", "bytes"}
    said = cl("replay", "show", "mood", "--limit", "2", "--hub", hub)
    assert [line.split()[0] for line in said.out.splitlines()] == ["row", "1", "2"]
    shown = cl("replay", "--hub", hub, "show", "mood@v1", "--json").json
    assert shown["ref"] == "mood@v1"
    assert shown["samples"][1] == {"row": 2, "instruction": "How?", "input": "thing 1", "output": "good"}


def test_export(hub: Path, cl: Cl, tmp_path: Path) -> None:
    assert cl("replay", "export", "-o", "all.jsonl", "--hub", hub).out == "3 replay samples → all.jsonl\n"
    assert json.loads((tmp_path / "all.jsonl").read_text().splitlines()[0])["task"] == "mood"
    again = cl("replay", "export", "mood@v1", "-o", "all.jsonl", "--hub", hub)
    assert again.code == 2
    assert "--overwrite" in again.err
    said = cl("replay", "export", "mood@v1", "-o", "all.jsonl", "--overwrite", "--hub", hub, "--json")
    assert said.json == {"ref": "mood@v1", "path": "all.jsonl", "samples": 2}


def test_drop(hub: Path, cl: Cl) -> None:
    said = cl("replay", "drop", "mood", "--row", "1", "--row", "3", "--hub", hub, "--yes", "--json")
    assert said.json == {"name": "mood", "dropped": 3}
    assert "thing 1" in cl("replay", "show", "mood@v1", "--hub", hub).out
    refused = cl("replay", "drop", "mood", "--matching", "THING", "--hub", hub, stdin="n\n", terminal=True)
    assert (refused.code, refused.out) == (1, "")
    assert "all versions of mood" in refused.err
    said = cl("replay", "drop", "mood@v1", "--matching", "THING", "--hub", hub, stdin="y\n", terminal=True)
    assert said.out == "dropped 1 replay sample from mood@v1\n"
    assert cl("replay", "drop", "mood", "--all", "--yes", "--hub", hub).code == 0
    assert cl("verify", "--hub", hub).out == "ok\n"


def test_budget(hub: Path, cl: Cl) -> None:
    assert cl("replay", "budget", "--hub", hub).out.endswith("budget: none\n")
    said = cl("replay", "budget", "2", "--yes", "--hub", hub, "--json").json
    assert (said["budget"], said["samples"]) == ({"amount": 2, "unit": "samples"}, 2)
    assert said["cut"] == [{"ref": "mood@v2", "before": 3, "after": 2}]
    assert "budget: 2MB" in cl("replay", "budget", "2MB", "--hub", hub).out
    assert cl("replay", "budget", "none", "--hub", hub, "--json").json["budget"] is None


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("lst", "did you mean list"),
        ("list mood", "takes no name"),
        ("show", "needs the name"),
        ("show modd", "did you mean mood"),
        ("show mood --yes", "an option of replay drop"),
        ("export mood", "add -o"),
        ("drop mood", "--matching TEXT"),
        ("drop mood --all --row 1", "do not go together"),
        ("drop mood --all", "--yes"),
        ("drop mood --row 9 --yes", "9"),
        ("budget lots", "2MB"),
    ],
)
def test_refusals(hub: Path, cl: Cl, line: str, said: str) -> None:
    found = cl("replay", *line.split(), "--hub", hub)
    assert found.code == 2
    assert said in found.err
    assert cl("replay", *line.split(), "--hub", hub, "--json").json["code"] in ("usage", "unknown_name")
