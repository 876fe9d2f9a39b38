"""The algebra of low-rank updates against the dense matrices that it never forms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adapterhub_cl.merging import factors as algebra
from adapterhub_cl.merging.factors import Factors

sizes = st.integers(1, 24)


def draw(seed: int, out: int, in_: int, rank: int) -> Factors:
    generator = torch.Generator().manual_seed(seed)
    return Factors(torch.randn(out, rank, generator=generator), torch.randn(rank, in_, generator=generator))


@st.composite
def families(draw_: Any) -> list[Factors]:
    """Updates of one shape, of any ranks, also 0 and above the shape."""
    out, in_ = draw_(sizes), draw_(sizes)
    ranks = draw_(st.lists(st.integers(0, 12), min_size=1, max_size=5))
    seed = draw_(st.integers(0, 10_000))
    return [draw(seed + k, out, in_, rank) for k, rank in enumerate(ranks)]


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one.double(), other.double(), rtol=1e-4, atol=1e-4)


@given(families())
def test_a_stack_is_the_sum(parts: list[Factors]) -> None:
    whole = algebra.stacked(parts)
    assert whole.rank == sum(part.rank for part in parts)
    assert close(whole.dense(), sum(part.dense() for part in parts))  # type: ignore[arg-type]


@given(families(), st.floats(-3, 3))
def test_scale_and_difference(parts: list[Factors], weight: float) -> None:
    one, other = parts[0], parts[-1]
    assert close(algebra.scaled(one, weight).dense(), weight * one.dense())
    assert close(algebra.difference(one, other).dense(), one.dense() - other.dense())


@given(families())
def test_inner_product_and_norm(parts: list[Factors]) -> None:
    one, other = parts[0], parts[-1]
    wanted = float((one.dense().double() * other.dense().double()).sum())
    scale = float(one.dense().norm() * other.dense().norm())
    assert abs(algebra.inner(one, other) - wanted) <= 1e-4 * scale + 1e-6
    assert abs(algebra.norm(one) - float(one.dense().norm())) <= 1e-4 * float(one.dense().norm()) + 1e-6


@given(families())
def test_what_cancels_out_is_zero_to_rounding(parts: list[Factors]) -> None:
    one = parts[0]
    assert algebra.norm(algebra.difference(one, one)) <= 1e-5 * algebra.norm(one) + 1e-12


@given(families(), st.integers(1, 30))
def test_truncation_is_as_good_as_that_of_the_dense_svd(parts: list[Factors], rank: int) -> None:
    whole = algebra.stacked(parts)
    cut = algebra.truncate(whole, rank)
    assert cut.factors.rank <= min(rank, whole.rank, *whole.shape)
    matrix = whole.b.double() @ whole.a.double()
    values = torch.linalg.svdvals(matrix)
    size = float(values.norm())
    best = float(values[rank:].norm()) / size if size else 0.0
    assert abs(cut.error - best) <= 1e-6
    apart = float((matrix - cut.factors.b.double() @ cut.factors.a.double()).norm())
    assert apart <= (best + 3e-6) * size + 1e-9


@given(families(), st.booleans())
def test_core_coordinates_give_each_update_back(parts: list[Factors], aligned: bool) -> None:
    core = algebra.core(parts, aligned=aligned)
    for part, coordinates in zip(parts, core.cores, strict=True):
        assert close(core.factors(coordinates).dense(), part.dense())
    for basis in (core.left, core.right):
        assert close(basis.T @ basis, torch.eye(basis.shape[1]))


def test_aligned_bases_have_the_strongest_direction_first() -> None:
    strong, weak = draw(1, 20, 16, 1), algebra.scaled(draw(2, 20, 16, 1), 1e-3)
    core = algebra.core([weak, strong], aligned=True)
    direction = strong.b[:, 0] / strong.b.norm()
    assert abs(float(core.left[:, 0] @ direction)) > 0.999


@given(families())
def test_decomposition(parts: list[Factors]) -> None:
    whole = algebra.stacked(parts)
    u, s, v = algebra.decompose(whole)
    assert close(u * s.float() @ v.T, whole.dense())
    assert close(s, algebra.singular_values(whole))
    assert all(s[:-1] >= s[1:])


@pytest.mark.parametrize(("share", "rank"), [(0.0001, 1), (0.5, 1), (0.81, 2), (0.96, 3), (1.0, 3)])
def test_rank_for_an_energy_share(share: float, rank: int) -> None:
    values = torch.tensor([8.0, 4.0, 2.0])  # squares 64, 16, 4 of 84: shares 0.762, 0.952, 1
    assert algebra.rank_for_energy(values, share) == rank
    assert algebra.rank_for_energy(torch.zeros(4), share) == 0
    assert algebra.rank_for_energy(torch.zeros(0), share) == 0


def test_randomised_svd_of_a_product() -> None:
    truth = algebra.scaled(draw(3, 200, 120, 6), 1.0)
    noise = 1e-4 * torch.randn(200, 120, generator=torch.Generator().manual_seed(4))
    matrix = truth.dense() + noise
    u, s, v = algebra.from_product(
        lambda x: matrix @ x, lambda y: matrix.T @ y, 120, 6, torch.Generator().manual_seed(0)
    )
    exact = torch.linalg.svdvals(matrix)
    assert torch.allclose(s, exact[:6], rtol=1e-4)
    assert float((matrix - u * s @ v.T).norm()) <= 1.001 * float(exact[6:].norm())


@pytest.mark.parametrize("rank", [3, 30])
def test_truncating_a_dense_matrix(rank: int) -> None:
    matrix = draw(5, 60, 50, 40).dense()
    cut = algebra.truncate_dense(matrix, rank, torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(matrix)
    best = float(values[rank:].norm() / values.norm())
    assert best <= cut.error + 1e-6 <= 1.01 * best + 2e-6
    apart = float((matrix - cut.factors.dense()).norm() / matrix.norm())
    assert abs(apart - cut.error) < 1e-3


def test_an_update_of_rank_zero_changes_nothing() -> None:
    nothing = algebra.zero(5, 7)
    assert nothing.shape == (5, 7)
    assert torch.equal(nothing.dense(), torch.zeros(5, 7))
    assert algebra.truncate(nothing, 3).error == 0.0
