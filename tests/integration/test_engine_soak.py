"""The soak of examples/benchmarks/soak.py, small: requests from threads while two others change the hub."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

SOAK = Path(__file__).parents[2] / "examples" / "benchmarks" / "soak.py"

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def soak(_torch: object) -> ModuleType:
    spec = importlib.util.spec_from_file_location("engine_soak", SOAK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_answers_stay_right_while_the_hub_changes(
    soak: ModuleType, pico_path: Callable[[str], Path], tmp_path: Path
) -> None:
    plan = soak.Plan(
        base=str(pico_path("llama")),
        quantization="none",
        tasks=8,
        requests=200,
        threads=4,
        capacity=4,
        host_bytes=200_000,
        pause=0.01,
    )
    found = soak.soak(plan, tmp_path / "soak")
    assert found["wrong_version"] == []
    assert found["wrong_answer"] == []
    assert found["errors"] == []
    assert found["change_problems"] == []
    assert found["problems_after"] == []
    assert found["counters_right"]
    assert found["answered"] + found["errors_due"] == plan.requests
    assert found["compared_with_peft"]["weights_indistinct"] < 0.05  # else the comparison shows little
    assert all(sum(side.values()) > 3 for side in found["changes"].values())
