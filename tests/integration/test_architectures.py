"""The whole life of an adapter on a tiny model of each family; the table is docs/benchmarks/architectures.md."""

from __future__ import annotations

from pathlib import Path

import pytest
from architectures import STEPS, outcomes
from families import CAUSAL, COMPOSED, ENCODERS, REFUSED

pytestmark = pytest.mark.usefixtures("_torch")
# One of each kind: a mixture of experts, layers that flatten their rows, local attention, one layer passed several
# times, layers that have the length first, recurrence, a vision tower.
QUICK = ("mixtral", "opt", "gpt_neo", "albert", "longformer", "mamba2", "qwen3_5")


def check(family: str, folder: Path) -> None:
    found, _ = outcomes(family, folder)
    assert list(found) == list(STEPS)
    assert {step: told for step, told in found.items() if told not in ("ok", "–")} == {}


@pytest.mark.parametrize("family", QUICK)
def test_one_family_of_each_kind(tmp_path: Path, family: str) -> None:
    check(family, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("family", [f for f in (*CAUSAL, *COMPOSED, *ENCODERS) if f not in QUICK])
def test_every_family(tmp_path: Path, family: str) -> None:
    check(family, tmp_path)


@pytest.mark.parametrize("family", REFUSED)
def test_other_kinds_are_refused_at_init(tmp_path: Path, family: str) -> None:
    found, _ = outcomes(family, tmp_path)
    assert list(found) == ["init"]
    assert found["init"].startswith("refused: ")
    assert REFUSED[family][0] in found["init"]
