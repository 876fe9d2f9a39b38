"""The similarity of two adapters: what it must be for pairs made to have one."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from stored_loras import LAYERS, write_factors, write_random_lora

from adapterhub_cl.adapters.lora_files import LoraFile
from adapterhub_cl.pruning.redundancy import Similarity, overlap, redundant, similarities

RANKS = dict.fromkeys(LAYERS, 3)
NAME = "model.layers.0.mlp.up_proj"


def compared(*folders: Path) -> dict[tuple[int, int], Similarity]:
    with ExitStack() as stack:
        return similarities([stack.enter_context(LoraFile(folder)) for folder in folders])


def orthonormal(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(rows, columns, generator=generator)).Q


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 99))
def test_overlap_is_a_share_and_says_nothing_of_the_bases_chosen(r: int, q: int, seed: int) -> None:
    one, other = orthonormal(20, r, seed), orthonormal(20, q, seed + 1000)
    found = overlap(one, other)
    assert 0 <= found <= 1
    assert found == pytest.approx(overlap(other, one), abs=1e-5)
    turned = one @ orthonormal(r, r, seed + 7)
    assert overlap(turned, other) == pytest.approx(found, abs=1e-5)
    both = torch.cat([one, orthonormal(20, 12, seed + 3)], 1)
    assert overlap(one, torch.linalg.qr(both).Q) == pytest.approx(1, abs=1e-5)  # contained


def test_half_of_a_space_in_common_is_one_half() -> None:
    whole = torch.eye(10)
    assert overlap(whole[:, :2], whole[:, 1:3]) == 0.5
    assert overlap(whole[:, :2], whole[:, 4:6]) == 0
    assert overlap(whole[:, :0], whole[:, :2]) == 0


def test_an_adapter_is_the_same_as_itself_at_another_scale_and_factorisation(tmp_path: Path) -> None:
    one = write_random_lora(tmp_path / "one", RANKS, seed=1)
    again = write_random_lora(tmp_path / "again", RANKS, seed=1, rslora=True, alpha=3)
    other = write_random_lora(tmp_path / "other", RANKS, seed=2)
    found = compared(one, again, other)
    same = found[0, 1]
    assert (same.columns, same.rows, same.spaces, same.cosine) == pytest.approx((1, 1, 1, 1), abs=1e-4)
    assert found[0, 2].spaces < 0.4
    assert abs(found[0, 2].cosine) < 0.3


def test_rows_from_one_seed_are_no_similarity(tmp_path: Path) -> None:
    """Two adapters trained from the same A: their row spaces are one, what they do is not."""
    a = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    b = orthonormal(40, 6)
    one = write_factors(tmp_path / "one", {NAME: (b[:, :3], a)})
    other = write_factors(tmp_path / "other", {NAME: (b[:, 3:], a)})
    found = compared(one, other)[0, 1]
    assert found.rows == pytest.approx(1, abs=1e-5)
    assert found.columns == pytest.approx(0, abs=1e-5)
    assert found.spaces == pytest.approx(0, abs=1e-2)


def test_the_opposite_lies_in_the_same_spaces_and_is_not_redundant(tmp_path: Path) -> None:
    b, a = orthonormal(40, 3), orthonormal(16, 3).T
    one = write_factors(tmp_path / "one", {NAME: (b, a)})
    other = write_factors(tmp_path / "other", {NAME: (-b, a)})
    found = compared(one, other)[0, 1]
    assert found.spaces == pytest.approx(1, abs=1e-4)
    assert found.cosine == pytest.approx(-1, abs=1e-4)
    assert not redundant(found, None, 0.9)


def test_layers_count_by_what_they_change_and_a_missing_one_is_no_overlap(tmp_path: Path) -> None:
    b, a = orthonormal(40, 3), orthonormal(16, 3).T
    second = "model.layers.1.mlp.up_proj"
    one = write_factors(tmp_path / "one", {NAME: (b, a), second: (0.5 * b, a)})
    other = write_factors(tmp_path / "other", {NAME: (b, a)})
    found = compared(one, other)[0, 1]
    assert found.spaces == pytest.approx(2 / 2.5, abs=1e-4)  # weights ‖ΔW₁‖ + ‖ΔW₂‖: 2 where both are, 0.5 alone
    assert found.cosine == pytest.approx(1 / 1.25**0.5, abs=1e-4)


def test_nothing_is_like_nothing(tmp_path: Path) -> None:
    zero = {NAME: (torch.zeros(40, 2), torch.ones(2, 16))}
    found = compared(write_factors(tmp_path / "one", zero), write_factors(tmp_path / "other", zero))[0, 1]
    assert found == Similarity(0.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("spaces", "cosine", "agreement", "is_redundant"),
    [
        (0.95, 0.1, 0.96, True),  # the predictions decide where there are any
        (0.95, 0.99, 0.5, False),
        (0.95, 0.96, None, True),
        (0.95, 0.5, None, False),
        (0.5, 1.0, 1.0, False),
    ],
)
def test_both_spaces_and_answers_must_agree(
    spaces: float, cosine: float, agreement: float | None, is_redundant: bool
) -> None:
    assert redundant(Similarity(1, 1, spaces, cosine), agreement, 0.9) is is_redundant
