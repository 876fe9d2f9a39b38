"""A hub that somebody else wrote, or that was damaged: verbs go on, and nothing of it moves a terminal's cursor."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_support import Cl

from adapterhub_cl.registry import Registry, files
from adapterhub_cl.types import AdapterRecord

Publish = Callable[..., AdapterRecord]
EVIL = "\x1b[31m\u202eEVIL\u2066\nx"


def rewritten(record: AdapterRecord, hub: Path, **changed: Any) -> None:
    """Change a manifest as its finder did, and take the index away."""
    path = record.path / "manifest.json"
    path.chmod(0o644)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    for index in hub.glob("index.db*"):
        index.unlink()


def test_lineage_prints_what_a_manifest_calls_a_parent_on_one_line(
    cl: Cl, registry: Registry, publish: Publish
) -> None:
    record = publish()
    rewritten(record, registry.path, lineage=[{"parent": EVIL, "relation": "merged_from"}])
    for verb in ("lineage", "show"):
        said = cl(verb, "mood", "--hub", registry.path)
        assert said.code == 0
        assert "merged from �[31m�EVIL� x" in said.out
        assert all(line.isprintable() for line in said.out.splitlines())
    assert cl("lineage", "mood", "--hub", registry.path, "--json").json["edges"][0]["parent"] == EVIL


def test_verify_gives_a_command_that_names_the_file(cl: Cl, registry: Registry, publish: Publish) -> None:
    folder = publish().path
    (folder / "\x1b[2J\x07x").write_text("x")
    (folder / "a  b;c").write_text("x")
    said = cl("verify", "--hub", registry.path)
    assert all(line.isprintable() for line in said.out.splitlines())
    commands = [line.split("delete it: ")[1] for line in said.out.splitlines() if "delete it" in line]
    assert r"rm $'adapters/mood/v1/\x1b[2J\x07x'" in commands
    for command in commands:
        subprocess.run(["bash", "-c", command], cwd=registry.path, check=True)
    assert cl("verify", "--hub", registry.path).out == "ok\n"


def test_verify_offers_to_go_back_only_where_something_came_before(
    cl: Cl, registry: Registry, publish: Publish
) -> None:
    for record in (publish(), publish()):
        (record.path / "adapter_model.safetensors").unlink()
    problems = cl("verify", "--hub", registry.path, "--json").json["problems"]
    told = {row["path"].split("/")[2]: row["fix"] for row in problems}
    assert told["v1"] == "restore it from a copy of the hub"
    assert "cl-adapter rollback mood@latest" in told["v2"]
    assert cl("rollback", "mood@latest", "--hub", registry.path).code == 0, "what it offers is there"


@pytest.mark.parametrize("number", [float("nan"), float("inf"), "x", None])
def test_a_truncation_error_that_is_no_number_is_not_shown(
    cl: Cl, registry: Registry, publish: Publish, number: object
) -> None:
    record = publish("both", kind="merged", takes_over=["a", "b"], retention={"a": 0.5, "b": 0.9})
    rewritten(record, registry.path, truncation_error=number, retention={"a": float("inf"), "b": 0.9})
    said = cl("show", "both", "--hub", registry.path)
    assert "truncation error" not in said.out
    assert "retention" in said.out
    assert "a inf" not in said.out
    found = cl("show", "both", "--hub", registry.path, "--json")
    json.loads(found.out, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert "0.9000" in cl("list", "--hub", registry.path).out


def test_details_of_another_form_stop_neither_show_nor_list_nor_report(
    cl: Cl, registry: Registry, publish: Publish, tmp_path: Path
) -> None:
    record = publish()
    scores = [dict(row) for row in record.manifest["evaluations"]]
    scores[0]["details"] = {"interval": EVIL, "classes": {EVIL: 5}, "confusion": "x"}
    scores[0]["data"] = EVIL
    rewritten(record, registry.path, evaluations=scores, strategy=EVIL, gate="x")
    for verb in (["list"], ["show", "mood"], ["verify"], ["report"], ["log"]):
        said = cl(*verb, "--hub", registry.path)
        assert "internal error" not in said.err
        assert all(line.isprintable() for line in (said.out + said.err).splitlines())
    notes = cl("report", "--hub", registry.path, "--json").json["notes"]
    assert any(note.startswith("interval, classes, confusion of the accuracy of mood@v1") for note in notes)
    page = (tmp_path / "report.html").read_text()
    assert not set(page) & set(EVIL) & {"\x1b", "\u202e", "\u2066"}


def test_the_user_is_told_once_what_is_left_out(registry: Registry, publish: Publish) -> None:
    publish()
    state = registry.path / "aliases.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "history": [["x"]]}))
    command = [sys.executable, "-m", "cl_adapter", "--hub", str(registry.path)]
    said = [
        subprocess.run([*command, *verb], capture_output=True, text=True, check=False)
        for verb in (["verify", "--rebuild-index"], ["list"])
    ]
    assert [run.stderr.count("skipped move 1 of history: ['x'] of aliases.json") for run in said] == [
        1,
        0,
    ]
    assert [run.returncode for run in said] == [1, 0]  # verify finds that aliases.json is to be written again


def test_a_link_in_a_circle_and_one_to_nowhere_are_no_place_for_a_report(
    cl: Cl, registry: Registry, tmp_path: Path
) -> None:
    (tmp_path / "circle.html").symlink_to("circle.html")
    (tmp_path / "nowhere.html").symlink_to("no/such/page.html")
    for name, words in (("circle.html", "leads back to itself"), ("nowhere.html", "whose directory does not exist")):
        said = cl("report", "-o", name, "--overwrite", "--hub", registry.path)
        assert said.code == 2
        assert said.err.startswith(f"error: {name} is a link ")
        assert words in said.err


@pytest.mark.parametrize("linked", [False, True])
def test_a_full_disk_names_the_path_that_was_given_and_its_own_disk(
    cl: Cl, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, linked: bool
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "page.html"
    if linked:
        target.symlink_to(tmp_path / "elsewhere" / "other.html")
    monkeypatch.setattr(files, "write_all", full)
    said = cl("report", "-o", target, "--overwrite", "--hub", registry.path)
    assert said.code == 1
    assert f"no space left on {target}; nothing was changed" in said.err
    assert "free some space on its disk, or name a file elsewhere: -o FILE" in said.err
    assert "cl-adapter gc" not in said.err
