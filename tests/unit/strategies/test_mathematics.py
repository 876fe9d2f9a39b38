"""The tensor functions of strategies, by hand-worked cases and identities."""

from __future__ import annotations

import math
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from adapterhub_cl.strategies.inflora import extended, without
from adapterhub_cl.strategies.lwf import distillation
from adapterhub_cl.strategies.olora import row_basis
from adapterhub_cl.strategies.replay import Config, Strategy, review_rate, review_shares
from adapterhub_cl.strategies.slao import orthonormal_rows
from adapterhub_cl.strategies.told_rows import sample_key, top_divergence
from adapterhub_cl.types import Example


def test_review_shares_are_half_even_half_by_the_rise() -> None:
    assert review_shares({"a": 0.0, "b": 0.0}) == {"a": 0.5, "b": 0.5}
    assert review_shares({"a": 3.0, "b": 1.0, "c": -2.0}) == pytest.approx(
        {"a": 1 / 6 + 3 / 8, "b": 1 / 6 + 1 / 8, "c": 1 / 6}
    )


def test_review_rate_rises_with_the_mean_slip() -> None:
    assert review_rate({"a": -1.0, "b": 0.0}) == 0.5
    assert review_rate({"a": 1.0, "b": 0.0}) == 1.0
    assert review_rate({"a": 9.0, "b": 9.0}) == 1.5


def test_samples_that_do_not_fit_into_a_step_are_reviewed_in_a_later_one() -> None:
    """Of every two rounds all samples are reviewed about as often, the long ones too."""
    lengths = [20] * 10 + [20] * 50 + [110] * 50
    strategy = Strategy(Config(token_budget=150))
    seen: Counter[int] = Counter()
    for step in range(400):
        stage: Any = SimpleNamespace(
            seed=0, step=step, steps=400, length=lengths.__getitem__, reviewed={"old": range(10, 110)}
        )
        seen.update(row for row, _ in strategy.review(stage, [0, 1, 2, 3]))
    counts = [seen[row] for row in range(10, 110)]
    assert min(counts) >= 8
    assert max(counts) - min(counts) <= 2


def test_distillation_is_zero_only_for_equal_distributions() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 5.0]])
    assert distillation(logits, logits + 7.0, 2.0).item() == pytest.approx(0, abs=1e-6)
    student, teacher = torch.log(torch.tensor([[0.5, 0.5]])), torch.log(torch.tensor([[0.9, 0.1]]))
    by_hand = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    assert distillation(student, teacher, 1.0).item() == pytest.approx(by_hand, rel=1e-5)


def test_stored_logits_cost_nothing_where_nothing_changed() -> None:
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    best = logits.log_softmax(-1).topk(8)
    assert top_divergence(best.values, best.indices, logits).item() == pytest.approx(0, abs=1e-5)
    worse = logits.clone().requires_grad_()
    changed = top_divergence(best.values, best.indices, worse * 0.2)
    changed.backward()
    assert changed.item() > 0.05
    assert worse.grad is not None
    assert worse.grad.abs().sum() > 0


def test_a_sample_s_key_is_its_text() -> None:
    assert sample_key(Example("a", "b", "c")) == sample_key(Example("a", "b", "c"))
    assert sample_key(Example("a", "b", "c")) != sample_key(Example("a", "c", "b"))
    assert 0 <= sample_key(Example("ü", None)) < 2**63


def test_row_basis_spans_the_rows() -> None:
    a = torch.randn(3, 10, generator=torch.Generator().manual_seed(1))
    basis = row_basis(torch.cat([a, a[:1] * 2]))  # a fourth row that adds nothing
    assert basis.shape == (10, 3)
    torch.testing.assert_close(basis.T @ basis, torch.eye(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(a @ basis @ basis.T, a, atol=1e-5, rtol=0)


def test_orthonormal_rows_span_the_same_space() -> None:
    a = torch.randn(3, 10, generator=torch.Generator().manual_seed(1))
    q = orthonormal_rows(a)
    torch.testing.assert_close(q @ q.T, torch.eye(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(a @ q.T @ q, a, atol=1e-5, rtol=0)


def test_what_is_taken_out_is_gone() -> None:
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(2))
    basis = row_basis(x[:2])
    gram = without(x.T @ x, basis)
    torch.testing.assert_close(gram @ basis, torch.zeros(6, 2), atol=1e-3, rtol=0)
    assert torch.equal(without(x.T @ x, None), x.T @ x)


def test_the_memory_grows_until_the_energy_is_inside() -> None:
    gram = torch.diag(torch.tensor([90.0, 9.0, 1.0, 0.0]))
    assert extended(None, gram, 0.9).shape == (4, 1)
    assert extended(None, gram, 0.95).shape == (4, 2)
    assert extended(None, gram, 1.0).shape == (4, 3)
    basis = extended(None, gram, 0.9)
    assert extended(basis, gram, 0.9).shape == (4, 1), "nothing new"
    other = torch.diag(torch.tensor([0.0, 0.0, 0.0, 5.0]))
    wider = extended(basis, other, 0.9)
    assert wider.shape == (4, 2)
    torch.testing.assert_close(wider.T @ wider, torch.eye(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(wider.abs().sum(1), torch.tensor([1.0, 0.0, 0.0, 1.0]), atol=1e-5, rtol=0)
