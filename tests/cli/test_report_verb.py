"""`report`: one page about a hub, from the command line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_support import Cl

from adapterhub_cl.registry import Registry
from adapterhub_cl.types import AdapterRecord

Publish = Callable[..., AdapterRecord]


def test_the_page_is_written_to_the_current_folder(
    cl: Cl, registry: Registry, publish: Publish, tmp_path: Path
) -> None:
    publish()
    said = cl("report", "--hub", registry.path)
    assert said.code == 0
    assert said.out.startswith(f"{registry.path} → report.html (")
    target = tmp_path / "report.html"
    assert f"next: open {target.as_uri()}" in said.err
    assert "mood@v1" in target.read_text()


def test_json_tells_the_path_and_what_is_in_it(cl: Cl, registry: Registry, publish: Publish, tmp_path: Path) -> None:
    publish()
    publish("news", edges=[("mood@v1", "updated_from")])
    said = cl("report", "-o", "out.html", "--hub", registry.path, "--json")
    assert said.json["path"] == "out.html"
    assert said.json["bytes"] == (tmp_path / "out.html").stat().st_size
    assert said.json["notes"] == []
    sections = said.json["sections"]
    assert (sections["tasks"], sections["adapters"], sections["lineage"], sections["routing"]) == (2, 2, 1, 0)


def test_an_earlier_report_is_replaced_and_no_other_file(cl: Cl, registry: Registry, tmp_path: Path) -> None:
    assert cl("report", "--hub", registry.path).code == 0
    assert cl("report", "--hub", registry.path, "--title", "Monday").code == 0
    assert "Monday" in (tmp_path / "report.html").read_text()
    (tmp_path / "notes.html").write_text("mine")
    said = cl("report", "-o", "notes.html", "--hub", registry.path, "--json")
    assert (said.code, said.json["code"]) == (2, "usage")
    assert "--overwrite" in said.json["hint"]
    assert (tmp_path / "notes.html").read_text() == "mine"
    assert cl("report", "-o", "notes.html", "--overwrite", "--hub", registry.path).code == 0


@pytest.mark.parametrize("target", [".", "no/such/folder.html", "hub/report.html"])
def test_a_place_that_cannot_be_written_is_a_usage_error(target: str, cl: Cl, registry: Registry) -> None:
    said = cl("report", "-o", target, "--hub", registry.path)
    assert said.code == 2
    assert said.err.count("\n") == 2  # error and hint
    assert "error: " in said.err
    assert "hint: " in said.err


def test_what_was_passed_over_is_told(cl: Cl, registry: Registry) -> None:
    (registry.path / "routers" / "x-1").mkdir(parents=True)
    (registry.path / "routers" / "x-1" / "router.json").write_text("{")
    said = cl("report", "--hub", registry.path)
    assert said.code == 0
    assert "note: routers/x-1/router.json was skipped: it is not valid JSON" in said.err


def test_without_a_hub_nothing_is_written(cl: Cl, tmp_path: Path) -> None:
    said = cl("report")
    assert said.code == 1
    assert not (tmp_path / "report.html").exists()


def test_the_command_imports_nothing_heavy(registry: Registry, publish: Publish, tmp_path: Path) -> None:
    publish()
    code = (
        "import sys; from cl_adapter.__main__ import main; code = main(sys.argv[1:]);"
        "print([m for m in ('torch', 'transformers', 'peft', 'sqlalchemy', 'numpy', 'matplotlib') if m in sys.modules],"
        " file=sys.stderr); sys.exit(code)"
    )
    argv = [sys.executable, "-c", code, "report", "--hub", str(registry.path)]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "[]"
