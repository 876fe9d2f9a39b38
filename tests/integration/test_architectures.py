"""The whole life of an adapter on a tiny model of each family; the table is docs/benchmarks/architectures.md."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
from architectures import STEPS, outcomes
from families import CAUSAL, COMPOSED, ENCODERS, REFUSED, build

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


@pytest.mark.slow
@pytest.mark.parametrize("family", CAUSAL)
def test_rows_that_join_write_what_generate_writes_for_each_alone(
    tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the decode loop takes a family at all; the others are written by `generate`."""
    from adapterhub_cl.answering import writing
    from adapterhub_cl.answering.decoding import Decoder, can_decode
    from adapterhub_cl.answering.writing import Writing, write_rows
    from adapterhub_cl.answering.written import WrittenRow
    from adapterhub_cl.bases.loading import inspect_base, load_base

    base = load_base(inspect_base(str(build(family, tmp_path / "base")), "none"), device="cpu", dtype="fp32")
    pad, ends = base.tokenizer.pad_token_id or 0, {base.tokenizer.eos_token_id}
    prompts = ((1, 40, 41, 42), (1, 90, 17, 63, 104, 11, 12, 13, 50), (1, 7), (1, 60, 61, 33, 20, 9, 8, 77, 60, 61, 62))
    wanted = (Writing(10), Writing(5), Writing(9, 0.9, seed=4), Writing(8))
    joins = can_decode(base.model)
    monkeypatch.setattr(writing, "can_decode", lambda model: False)
    right = [write_rows(base.model, base.tokenizer, [p], [w])[0] for p, w in zip(prompts, wanted, strict=True)]
    if not joins:
        assert all(one.tokens for one in right)
        return
    rows = [WrittenRow(base.tokenizer, ends, p, w) for p, w in zip(prompts, wanted, strict=True)]
    decoder, left = Decoder(base.model, lambda _: nullcontext(base.model), pad, list(ends)), [2, 0, 1, 3]
    while left or decoder.rows:
        if left:
            decoder.join([rows[left.pop(0)]])
        if decoder.rows:
            decoder.step()
    assert [row.ids for row in rows] == [[token for token, _ in one.tokens] for one in right]
