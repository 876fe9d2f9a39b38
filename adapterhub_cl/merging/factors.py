"""The algebra of low-rank updates: ΔW = B·A, stored as its factors; nothing here forms an out×in matrix unless its
docstring says so.

B is `[out, r]` and includes the scaling, A is `[r, in]`. A sum of updates is a stack of factors. Whatever needs the sum
as a whole (norm, singular values, best truncation) happens in its core: with [B₁…Bₙ] = Q_B·R_B and [A₁;…;Aₙ]ᵀ = Q_A·R_A
the update is Q_B·(R_B·R_Aᵀ)·Q_Aᵀ, and R_B·R_Aᵀ is Σr×Σr. Factors are fp32; the small matrices of the core are fp64, so
that relative errors as small as 1e-6 can be measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Factors:
    """ΔW = b·a of one layer.

    Attributes:
        b: `[out, r]`, scaled.
        a: `[r, in]`.
    """

    b: torch.Tensor
    a: torch.Tensor

    @property
    def rank(self) -> int:
        """Columns of b, an upper bound of the rank of ΔW."""
        return self.a.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """`(out, in)`."""
        return self.b.shape[0], self.a.shape[1]

    def dense(self) -> torch.Tensor:
        """ΔW itself, `[out, in]`."""
        return self.b @ self.a


@dataclass(frozen=True)
class Core:
    """Several updates in common bases: ΔWᵢ = left·cores[i]·rightᵀ.

    Attributes:
        left: `[out, p]`, orthonormal columns, p ≤ Σr.
        right: `[in, q]`, orthonormal columns, q ≤ Σr.
        cores: for each update its coordinates, `[p, q]`, fp64.
    """

    left: torch.Tensor
    right: torch.Tensor
    cores: tuple[torch.Tensor, ...]

    def factors(self, coordinates: torch.Tensor) -> Factors:
        """The update with these coordinates `[p, q]`, at rank min(p, q)."""
        if coordinates.shape[0] <= coordinates.shape[1]:
            return Factors(self.left, coordinates.to(self.right.dtype) @ self.right.T)
        return Factors(self.left @ coordinates.to(self.left.dtype), self.right.T.contiguous())


def zero(out: int, in_: int) -> Factors:
    """The zero update, at rank 0."""
    return Factors(torch.zeros(out, 0), torch.zeros(0, in_))


def scaled(factors: Factors, weight: float) -> Factors:
    """weight·ΔW."""
    return Factors(factors.b * weight, factors.a)


def stacked(parts: Sequence[Factors], weights: Sequence[float] | None = None) -> Factors:
    """Σ wᵢ·ΔWᵢ, exactly, at rank Σr.

    Args:
        weights: of each; None: 1.
    """
    if weights is None:
        return parts[0] if len(parts) == 1 else Factors(torch.cat([p.b for p in parts], 1), _rows(parts))
    b = torch.empty(parts[0].shape[0], sum(part.rank for part in parts), dtype=parts[0].b.dtype)
    at = 0
    for part, weight in zip(parts, weights, strict=True):
        torch.mul(part.b, weight, out=b[:, at : at + part.rank])
        at += part.rank
    return Factors(b, _rows(parts))


def _rows(parts: Sequence[Factors]) -> torch.Tensor:
    return torch.cat([part.a for part in parts])


def difference(one: Factors, other: Factors) -> Factors:
    """ΔW₁ − ΔW₂, exactly, at the sum of both ranks."""
    return stacked([one, scaled(other, -1.0)])


def inner(one: Factors, other: Factors) -> float:
    """⟨ΔW₁, ΔW₂⟩ = tr(ΔW₁ᵀΔW₂), in O(r₁·r₂·(out + in)): the entries of B₁ᵀB₂ and A₁A₂ᵀ multiplied and added up."""
    return float(((one.b.T @ other.b).double() * (one.a @ other.a.T).double()).sum())


def norm(factors: Factors) -> float:
    """‖ΔW‖, Frobenius; computed in the core, so that what cancels within the stack is 0 up to rounding."""
    left, right = _triangles(factors)
    return float((left @ right.T).norm())


def _triangles(factors: Factors) -> tuple[torch.Tensor, torch.Tensor]:
    """R_B and R_A `[k, r]` with R_BᵀR_B = BᵀB and R_AᵀR_A = AAᵀ, fp64: as from QR, in a third of the time.

    Computed from the products BᵀB and AAᵀ in fp64 by Cholesky, or by their eigenvectors if the stack has a lower rank.
    Both are accurate to √ε ≈ 1e-8 of the largest singular value.
    """
    b, a = factors.b.double(), factors.a.double()
    if factors.rank > min(factors.shape):  # more columns than rows: QR makes it smaller
        wide: tuple[torch.Tensor, torch.Tensor] = (torch.linalg.qr(b).R, torch.linalg.qr(a.T).R)
        return wide
    return _root(b.T @ b), _root(a @ a.T)


def _root(gram: torch.Tensor) -> torch.Tensor:
    """R with RᵀR = gram."""
    triangle, failed = torch.linalg.cholesky_ex(gram, upper=True)
    found: torch.Tensor = triangle
    if int(failed):
        values, vectors = torch.linalg.eigh(gram)
        found = values.clamp(min=0).sqrt()[:, None] * vectors.T
    return found


def core(parts: Sequence[Factors], *, aligned: bool = False) -> Core:
    """Updates of one shape in bases that span all of them.

    O(Σr²·(out + in)); if Σr is larger than out or in, the bases have only that size.

    Args:
        aligned: whether the bases are the singular vectors of the stacked B's and A's, strongest first, as in core
            space (Panariello et al. 2025, arXiv:2509.17786); otherwise any bases with the same span.
    """
    left, triangle_b = torch.linalg.qr(torch.cat([p.b for p in parts], 1))
    right, triangle_a = torch.linalg.qr(torch.cat([p.a for p in parts]).T)
    if aligned:
        turn_b, turn_a = (torch.linalg.svd(t, full_matrices=False).U for t in (triangle_b, triangle_a))
        left, triangle_b = left @ turn_b, turn_b.T @ triangle_b
        right, triangle_a = right @ turn_a, turn_a.T @ triangle_a
    at, cores = 0, []
    for part in parts:
        here = slice(at, at + part.rank)
        cores.append(triangle_b[:, here].double() @ triangle_a[:, here].double().T)
        at += part.rank
    return Core(left, right, tuple(cores))


def singular_values(factors: Factors) -> torch.Tensor:
    """The singular values of ΔW, in descending order, `[min(r, out, in)]`, fp64."""
    left, right = _triangles(factors)
    values: torch.Tensor = torch.linalg.svdvals(left @ right.T)
    return values


@dataclass(frozen=True)
class Truncated:
    """The best approximation of an update at a rank (Eckart–Young).

    Attributes:
        factors: at that rank, √σ on either side.
        norm: norm of the whole update.
        lost: norm of what was cut off.
    """

    factors: Factors
    norm: float
    lost: float

    @property
    def error(self) -> float:
        """‖ΔW − ΔW_r‖ ÷ ‖ΔW‖; 0 for an update that is zero."""
        return self.lost / self.norm if self.norm else 0.0


def decompose(factors: Factors) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """ΔW = U·diag(s)·Vᵀ: U `[out, k]`, s `[k]` descending (fp64), V `[in, k]`, k = min(r, out, in)."""
    whole = core([factors])
    u, s, vh = torch.linalg.svd(whole.cores[0], full_matrices=False)
    return whole.left @ u.to(whole.left.dtype), s, whole.right @ vh.T.to(whole.right.dtype)


def truncate(factors: Factors, rank: int) -> Truncated:
    """The update's best approximation at a rank (or at its own rank if that is lower), and what it leaves out.

    With the core M = R_B·R_Aᵀ = u·s·vᵀ (u and s² from M·Mᵀ, as precise as M itself), U·s = B·(R_Aᵀ·v) and
    s·Vᵀ = (uᵀ·R_B)·A: no basis is formed, and only what is kept is multiplied out.
    """
    left, right = _triangles(factors)
    core_ = left @ right.T
    squares, vectors = torch.linalg.eigh(core_ @ core_.T)
    s = squares.flip(0).clamp(min=0).sqrt()[: min(*core_.shape)]
    kept = min(rank, int((s > s[:1] * 1e-7).sum()))  # smaller values are rounding errors
    u, root = vectors.flip(1)[:, :kept], s[:kept].sqrt()
    b = factors.b @ (right.T @ (core_.T @ u) / (s[:kept] * root)).to(factors.b.dtype)
    a = (u.T @ left / root[:, None]).to(factors.a.dtype) @ factors.a
    return Truncated(Factors(b, a), float(core_.norm()), float(s[rank:].norm()))


def _cut(u: torch.Tensor, s: torch.Tensor, v: torch.Tensor, rank: int) -> Truncated:
    root = s[:rank].sqrt().to(u.dtype)
    kept = Factors((u[:, :rank] * root).contiguous(), (v[:, :rank] * root).T.contiguous())
    return Truncated(kept, float(s.norm()), float(s[rank:].norm()))


def rank_for_energy(values: torch.Tensor, share: float) -> int:
    """The smallest rank that keeps this share of ‖ΔW‖², from the singular values; 0 for a zero update."""
    energy = values.double().square().cumsum(0)
    if not len(energy) or energy[-1] == 0:
        return 0
    return int((energy < share * energy[-1] * (1 - 1e-12)).sum()) + 1


def from_product(
    times: Callable[[torch.Tensor], torch.Tensor],
    transposed_times: Callable[[torch.Tensor], torch.Tensor],
    in_: int,
    rank: int,
    generator: torch.Generator,
    *,
    oversample: int = 10,
    iterations: int = 3,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The leading singular triples of a matrix that is given only as a product (randomised SVD; Halko et al. 2011,
    arXiv:0909.4061, algorithm 4.4), for ranks far below its size.

    Args:
        times: X `[in, k]` → M·X `[out, k]`.
        transposed_times: Y `[out, k]` → Mᵀ·Y `[in, k]`.
        rank: how many triples to return; `oversample` more are computed.
        iterations: power iterations; use more for slowly decaying spectra.

    Returns:
        U `[out, rank]`, s `[rank]`, V `[in, rank]`.
    """
    start = torch.randn(in_, min(in_, rank + oversample), generator=generator)
    basis = torch.linalg.qr(times(start)).Q
    for _ in range(iterations):
        basis = torch.linalg.qr(times(torch.linalg.qr(transposed_times(basis)).Q)).Q
    u, s, vh = torch.linalg.svd(transposed_times(basis).T, full_matrices=False)
    return (basis @ u)[:, :rank], s[:rank], vh[:rank].T


def truncate_dense(matrix: torch.Tensor, rank: int, generator: torch.Generator) -> Truncated:
    """A dense `[out, in]` matrix truncated to a rank: by randomised SVD if the rank is much smaller, else exactly."""
    out, in_ = matrix.shape
    if rank * 4 >= min(out, in_):
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        return _cut(u, s.double(), vh.T, rank)
    u, s, v = from_product(lambda x: matrix @ x, lambda y: matrix.T @ y, in_, rank, generator)
    whole = float(matrix.double().norm())
    kept = _cut(u, s.double(), v, rank)
    return Truncated(kept.factors, whole, max(0.0, whole**2 - kept.norm**2) ** 0.5)
