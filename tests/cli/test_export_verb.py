"""`export` of one version or of all that answer, for another tool."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

REFERENCE = ["--hub", str(Path(__file__).parents[2] / "registry")]


def test_all_that_answer_are_written_for_vllm(cl: Any, tmp_path: Path) -> None:
    asked = [*REFERENCE, "export", "--all", "--format", "vllm", "-o", str(tmp_path / "out")]
    said = cl(*asked, "--base-name", "some/base", "--json")
    assert said.code == 0
    assert said.json["refs"] == ["commands@v1", "facts@v1", "reviews@v1", "tickets@v1"]
    for folder in (tmp_path / "out").iterdir():
        config = json.loads((folder / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "some/base"
        assert config["r"] in (16, 32)
    again = cl(*asked, "--base-name", "some/base")
    assert again.code == 2
    assert "not an empty directory" in again.err


def test_one_version_or_all_is_said(cl: Any, tmp_path: Path) -> None:
    for argv in (["export", "--all", "tickets"], ["export"]):
        said = cl(*REFERENCE, *argv, "-o", str(tmp_path / "out"))
        assert said.code == 2
        assert "export one version, or all of them" in said.err


def test_the_next_step_names_the_command(cl: Any, tmp_path: Path) -> None:
    asked = [*REFERENCE, "export", "tickets", "--format", "vllm", "-o", str(tmp_path / "out")]
    refused = cl(*asked)
    assert refused.code == 2
    assert "--base-name" in refused.err
    said = cl(*asked, "--base-name", "some/base")
    assert said.code == 0
    assert "vllm serve some/base --enable-lora --max-lora-rank 16" in said.err
