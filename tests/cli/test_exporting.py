"""`export` in its formats and `verify --against`: what is told, and the exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_support import Cl


def test_an_export_tells_its_proof(trained: Path, cl: Cl, tmp_path: Path) -> None:
    hub = ("--hub", trained)
    said = cl("export", "mood", "--format", "merged", "--min-retention", 0, "-o", tmp_path / "out", "--json", *hub)
    assert said.code == 0
    assert said.json["proof"] == json.loads((tmp_path / "out" / "proof.json").read_text())
    assert said.json["proof"]["adapter"] == said.json["ref"]
    assert set(said.json["proof"]["tried"]) in (set(), {"original", "dequantised"})
    assert "held-out rows" in said.err


def test_an_export_that_loses_its_task_ends_with_3(
    trained: Path, cl: Cl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adapterhub_cl.evaluation.compared.lost_too_much", lambda proof, least: True)
    said = cl("export", "mood", "--format", "merged", "-o", tmp_path / "out", "--json", "--hub", trained)
    assert said.code == 3
    assert said.json["code"] == "export"
    assert "error: the export retains less than 0.99 of mood" in said.err
    assert not (tmp_path / "out").exists()


def test_options_that_do_not_belong(trained: Path, cl: Cl, tmp_path: Path) -> None:
    hub = ("--hub", trained)
    said = cl("export", "mood", "--quant", "f16", "-o", tmp_path / "out", *hub)
    assert (said.code, "it belongs to --format gguf" in said.err) == (2, True)
    assert cl("verify", "--rows", 3, *hub).code == 2
    assert cl("verify", "--against", "http://127.0.0.1:9", "--repair", *hub).code == 2
    assert cl("verify", "--against", "http://127.0.0.1:9", "--rows", 0, *hub).code == 2
    gone = cl("verify", "--against", "http://127.0.0.1:9", "--json", *hub)
    assert (gone.code, gone.json["code"]) == (1, "server")
