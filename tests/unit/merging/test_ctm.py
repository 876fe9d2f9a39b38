"""The shared subspace of compress-then-merge."""

from __future__ import annotations

import pytest
import torch

from adapterhub_cl.merging import Layer
from adapterhub_cl.merging.ctm import Config, Method, rescaled, shared_subspace
from adapterhub_cl.merging.factors import Factors, singular_values


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_norms_lie_between_their_own_and_the_mean() -> None:
    cores = torch.stack([torch.eye(2).double(), 3 * torch.eye(2).double(), torch.zeros(2, 2).double()])
    own = torch.linalg.matrix_norm(cores)
    assert torch.allclose(torch.linalg.matrix_norm(rescaled(cores, 1.0)), own)
    mean = float(own[:2].mean())
    wanted = torch.tensor([mean, mean, 0.0]).double()
    assert torch.allclose(torch.linalg.matrix_norm(rescaled(cores, 0.0)), wanted)


def test_the_subspace_keeps_what_all_share_and_more_than_its_start() -> None:
    left, right = (torch.linalg.qr(draw(8, 2, seed=k).double()).Q for k in (1, 2))
    cores = torch.stack([left @ draw(2, 2, seed=k).double() @ right.T for k in (3, 4, 5)])
    u, v = shared_subspace(cores, 2)
    assert torch.allclose(u @ (u.T @ cores @ v) @ v.T, cores, atol=1e-8)
    mixed = draw(3, 8, 8, seed=6).double()
    u, v = shared_subspace(mixed, 3)
    start = [torch.linalg.eigh(gram).eigenvectors[:, -3:] for gram in (
        torch.einsum("nij,nkj->ik", mixed, mixed), torch.einsum("nij,nik->jk", mixed, mixed)
    )]  # fmt: skip
    assert float(((u.T @ mixed @ v) ** 2).sum()) >= float(((start[0].T @ mixed @ start[1]) ** 2).sum())
    assert torch.allclose(u.T @ u, torch.eye(3).double(), atol=1e-10)


def test_the_result_has_the_rank_that_was_asked_for() -> None:
    parts = [Factors(draw(12, 4, seed=k), draw(4, 10, seed=k + 9)) for k in range(3)]
    layer = Layer("layer", parts, [1.0] * 3, torch.Generator())
    for rank, asked, expected in ((0, None, 4), (2, None, 2), (9, None, 9), (0, 2, 2), (3, 2, 3)):
        method = Method(Config(rank=rank))
        method.asked_rank = asked
        merged = method.layer(layer)
        assert isinstance(merged, Factors)
        values = singular_values(merged)
        assert int((values > 1e-6 * values[0]).sum()) == expected
        assert method.default_rank([4, 4, 4]) == (rank or 4)
        dense = torch.stack([part.b @ part.a for part in parts]).double()
        u, _, vh = torch.linalg.svd((merged.b @ merged.a).double())
        inside = u[:, :expected].T @ dense @ vh[:expected].T
        lost = (1 - float((inside**2).sum() / (dense**2).sum())) ** 0.5
        assert method.summary()["compression_error"] == pytest.approx(lost, abs=1e-4)
