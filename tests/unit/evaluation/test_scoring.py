"""What an evaluation tells of inputs that did not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cl_adapter.__main__ import main
from encoder_hubs import COLOURS, data, new_hub, write


def test_inputs_that_were_cut_are_counted_and_told(
    pico_path: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = new_hub(tmp_path / "hub", pico_path("llama"))
    own: dict[str, Any] = {"rank": 4, "epochs": 1, "dev_share": 0.0, "max_length": 40}
    tests = [{"input": f"red apple {k}" + " stone river" * (20 if k < 2 else 0), "output": "red"} for k in range(5)]
    held = write(tmp_path / "tests.jsonl", tests)
    hub.add_task("colours", data(tmp_path, COLOURS, 12), eval=held, kind="choice", **own)
    [(_, score), *others] = hub.evaluate(["colours"])
    assert score.details["cut_inputs"] == 2
    assert all("cut_inputs" not in other.details for _, other in others), "the same rows, said once"
    capsys.readouterr()
    assert main(["--hub", str(hub.folder), "eval", "colours"]) == 0
    assert "note: 2 of 5 inputs of colours are longer than colours@v1 was trained to read" in capsys.readouterr().err
    assert main(["--hub", str(hub.folder), "--json", "eval", "colours", "--data", str(held)]) == 0
    first, *_ = json.loads(capsys.readouterr().out)["results"]
    assert first["cut_inputs"] == 2
    short = write(tmp_path / "short.jsonl", tests[2:])
    [(_, whole), *_] = hub.evaluate(["colours"], data=short)
    assert "cut_inputs" not in whole.details
