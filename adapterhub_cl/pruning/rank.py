"""How many ranks each layer of an adapter keeps: a fixed rank, a share of the energy, a budget over all layers, or the
smallest that a search finds good enough. Always on ΔW (its singular values), never on A and B separately.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from adapterhub_cl.adapters.lora_files import LoraFile
from adapterhub_cl.merging.factors import Factors, decompose, rank_for_energy

ROUNDING = 1e-6  # relative to a layer's largest singular value: smaller values are rounding errors of fp32 factors


@dataclass(frozen=True)
class Spectrum:
    """One layer's ΔW and its singular values.

    Attributes:
        values: singular values, descending, fp64, without rounding errors.
        factors: ΔW at all of them, strongest first, √σ on either side.
        stored: the layer's rank as stored.
    """

    values: torch.Tensor
    factors: Factors
    stored: int

    @property
    def rank(self) -> int:
        return len(self.values)

    @property
    def norm(self) -> float:
        """‖ΔW‖."""
        return float(self.values.norm())

    def at(self, rank: int) -> Factors:
        """The best approximation of ΔW at a rank (Eckart–Young)."""
        return Factors(self.factors.b[:, :rank], self.factors.a[:rank])

    def lost(self, rank: int) -> float:
        """‖ΔW − ΔW_r‖."""
        return float(self.values[rank:].norm())


Spectra = Mapping[str, Spectrum]
Ranks = dict[str, int]


def spectrum_of(factors: Factors) -> Spectrum:
    u, s, v = decompose(factors)
    kept = int((s > ROUNDING * s[0]).sum()) if len(s) else 0
    root = s[:kept].sqrt().to(u.dtype)
    whole = Factors((u[:, :kept] * root).contiguous(), (v[:, :kept] * root).T.contiguous())
    return Spectrum(s[:kept], whole, factors.rank)


def spectra_of(adapter: LoraFile) -> dict[str, Spectrum]:
    """Layer → spectrum, of a stored adapter."""
    return {name: spectrum_of(Factors(*adapter.factors(name))) for name in adapter.modules}


def fixed(spectra: Spectra, rank: int) -> Ranks:
    """The same rank in every layer, or the layer's own rank if that is lower."""
    return {name: min(rank, found.rank) for name, found in spectra.items()}


def by_energy(spectra: Spectra, share: float) -> Ranks:
    """In each layer the smallest rank that keeps this share of its ‖ΔW‖²."""
    return {name: rank_for_energy(found.values, share) for name, found in spectra.items()}


def by_budget(spectra: Spectra, budget: int) -> Ranks:
    """This many ranks over all layers together: the largest singular values of all layers are kept."""
    return _strongest(spectra, budget)


def by_total_energy(spectra: Spectra, share: float) -> Ranks:
    """The fewest ranks over all layers together that keep this share of Σ‖ΔW‖²; strong layers keep more, weak ones
    may lose all of theirs."""
    every = torch.cat([found.values for found in spectra.values()]) if spectra else torch.zeros(0)
    return _strongest(spectra, rank_for_energy(every.sort(descending=True).values, share))


def _strongest(spectra: Spectra, count: int) -> Ranks:
    every = sorted(
        ((float(value), name) for name, found in spectra.items() for value in found.values), key=lambda pair: -pair[0]
    )
    kept = [name for _, name in every[:count]]
    return {name: kept.count(name) for name in spectra}


def lost_share(spectra: Spectra, ranks: Mapping[str, int]) -> float:
    """‖ΔW − ΔW_r‖ ÷ ‖ΔW‖ over all layers together."""
    whole = sum(found.norm**2 for found in spectra.values())
    lost = sum(found.lost(ranks[name]) ** 2 for name, found in spectra.items())
    return float((lost / whole) ** 0.5) if whole else 0.0


def energy_levels(spectra: Spectra) -> list[float]:
    """The energy shares at which some layer gets one more rank, ascending; the last keeps everything."""
    found: set[float] = set()
    for spectrum in spectra.values():
        energy = spectrum.values.square().cumsum(0)
        found |= {round(float(share), 9) for share in energy / energy[-1]} if len(energy) else set()
    return sorted(found)


@dataclass(frozen=True)
class RankChoice:
    """The result of a search.

    Attributes:
        ranks: the smallest that were good enough; the adapter's own if none were.
        energy: the share used for all layers before single kinds of layer were lowered further; 1: nothing was good
            enough.
        measured: how many allocations were tried.
    """

    ranks: Ranks
    energy: float
    measured: int


def search(spectra: Spectra, keeps: Callable[[Ranks, str], bool], limit: int) -> RankChoice:
    """The smallest ranks that are good enough: one energy share for all layers by bisection, then, while measurements
    are left, for each kind of layer (q_proj, up_proj, …) as many fewer as it tolerates.

    Quality need not fall evenly with the ranks: the result was measured as good enough, and the next smaller one that
    was tried was not; even smaller ones that might be good again are not tried.

    Args:
        keeps: whether an allocation is good enough; gets a description of what is tried.
        limit: maximum number of calls of `keeps`.
    """
    levels = energy_levels(spectra)
    ranks, energy, count = by_energy(spectra, 1.0), 1.0, 0
    low, high = -1, len(levels) - 1
    while high - low > 1 and count < limit:
        middle = (low + high) // 2
        tried = by_energy(spectra, levels[middle])
        count += 1
        if keeps(tried, f"energy {levels[middle]:.4f}"):
            high, ranks, energy = middle, tried, levels[middle]
        else:
            low = middle
    seen: list[Ranks] = []
    for kind, names in _kinds(spectra, ranks):
        cut = (max(ranks[name] for name in names) + 1) // 2
        while cut and count < limit:
            tried = {**ranks, **{name: max(0, ranks[name] - cut) for name in names}}
            if any(tried.values()) and tried != ranks and tried not in seen:
                count += 1
                seen.append(tried)
                if keeps(tried, f"{cut} fewer in {kind}"):
                    ranks = tried
                    continue
            cut //= 2
    return RankChoice(ranks, energy, count)


def _kinds(spectra: Spectra, ranks: Mapping[str, int]) -> list[tuple[str, list[str]]]:
    """Layers by their last names, those with the most parameters to save first."""
    groups: dict[str, list[str]] = {}
    for name in spectra:
        groups.setdefault(name.rpartition(".")[2], []).append(name)
    size = {kind: sum(ranks[n] * sum(spectra[n].factors.shape) for n in names) for kind, names in groups.items()}
    return sorted(groups.items(), key=lambda pair: -size[pair[0]])
