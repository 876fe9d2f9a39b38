"""Ranks: by energy, by budget, by search; against ΔW itself."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stored_loras import LAYERS, write_random_lora

from adapterhub_cl.adapters.lora_files import LoraFile
from adapterhub_cl.merging.factors import Factors
from adapterhub_cl.pruning import rank
from adapterhub_cl.pruning.magnitude import sparse

Dense = dict[str, torch.Tensor]


@st.composite
def stored(draw: st.DrawFn) -> tuple[dict[str, rank.Spectrum], Dense]:
    """A random adapter, with missing layers, ranks of each layer's own, either scaling: as spectra, and dense."""
    names = draw(st.lists(st.sampled_from(sorted(LAYERS)), min_size=1, unique=True))
    ranks = {name: draw(st.integers(1, 8)) for name in names}
    with tempfile.TemporaryDirectory() as folder:
        write_random_lora(
            Path(folder),
            ranks,
            seed=draw(st.integers(0, 999)),
            rslora=draw(st.booleans()),
            alpha=draw(st.floats(1, 64)),
        )
        with LoraFile(Path(folder)) as adapter:
            dense = {name: torch.matmul(*(m.double() for m in adapter.factors(name))) for name in adapter.modules}
            return rank.spectra_of(adapter), dense


def kept_energy(found: rank.Spectrum, at: int, dense: torch.Tensor) -> float:
    """What a truncation keeps of ‖ΔW‖², by the dense matrices."""
    away = dense - found.at(at).dense().double() if at else dense
    return 1 - float(away.square().sum() / dense.square().sum())


@given(stored(), st.floats(0.05, 1.0))
def test_an_energy_share_is_kept_at_the_lowest_rank_that_keeps_it(
    made: tuple[rank.Spectra, Dense], share: float
) -> None:
    spectra, dense = made
    ranks = rank.by_energy(spectra, share)
    for name, found in spectra.items():
        assert kept_energy(found, ranks[name], dense[name]) >= share - 1e-5
        exact = torch.linalg.svdvals(dense[name]).square()
        assert ranks[name] >= 1
        assert float(exact[: ranks[name] - 1].sum() / exact.sum()) < share + 1e-6


@given(stored(), st.integers(0, 40))
def test_a_budget_keeps_the_largest_singular_values_of_all_layers(
    made: tuple[rank.Spectra, Dense], budget: int
) -> None:
    spectra, dense = made
    ranks = rank.by_budget(spectra, budget)
    every = (
        torch.cat([torch.linalg.svdvals(m)[: spectra[n].rank] for n, m in dense.items()]).sort(descending=True).values
    )
    assert sum(ranks.values()) == min(budget, len(every))
    lost = sum(found.lost(ranks[name]) ** 2 for name, found in spectra.items())
    best = float(every[budget:].square().sum())
    assert abs(lost - best) <= 1e-5 * float(every.square().sum())


@given(stored(), st.floats(0.05, 0.999))
def test_energy_over_all_layers_needs_no_more_ranks_than_in_each(
    made: tuple[rank.Spectra, Dense], share: float
) -> None:
    spectra, _ = made
    ranks = rank.by_total_energy(spectra, share)
    assert rank.lost_share(spectra, ranks) ** 2 <= 1 - share + 1e-6
    assert sum(ranks.values()) <= sum(rank.by_energy(spectra, share).values())
    fewer = rank.by_budget(spectra, sum(ranks.values()) - 1)
    assert rank.lost_share(spectra, fewer) ** 2 > 1 - share - 1e-6


@settings(max_examples=20)
@given(stored(), st.integers(1, 8))
def test_a_fixed_rank_is_no_higher_than_the_layer_has(made: tuple[rank.Spectra, Dense], wanted: int) -> None:
    spectra, dense = made
    for name, at in rank.fixed(spectra, wanted).items():
        assert at == min(wanted, spectra[name].rank)
        u, s, vh = torch.linalg.svd(dense[name], full_matrices=False)
        best = (u[:, :at] * s[:at]) @ vh[:at]
        assert torch.allclose(spectra[name].at(at).dense().double(), best, atol=1e-4 * float(s[0]))


def test_directions_that_are_rounding_are_no_ranks() -> None:
    b, a = torch.randn(24, 2, generator=torch.Generator().manual_seed(0)), torch.ones(2, 16)
    found = rank.spectrum_of(Factors(b, a))  # both rows of A are the same: rank 1 stored as 2
    assert (found.rank, found.stored) == (1, 2)
    nothing = rank.spectrum_of(Factors(b, torch.zeros(2, 16)))
    assert (nothing.rank, nothing.norm, rank.by_energy({"x": nothing}, 1.0)) == (0, 0.0, {"x": 0})


# -- search ------------------------------------------------------------------------------------------------------


def spectrum(*values: float) -> rank.Spectrum:
    k = len(values)
    root = torch.tensor(values).sqrt()
    factors = Factors(torch.eye(12)[:, :k] * root, torch.eye(10)[:k] * root[:, None])
    return rank.Spectrum(torch.tensor(values, dtype=torch.float64), factors, k)


def test_the_search_finds_the_smallest_rank_of_an_adapter_made_to_have_one() -> None:
    """Two layers whose first three directions matter, with a tail of noise."""
    tail = (0.01, 0.009, 0.008, 0.007, 0.006)
    spectra = {f"layers.{k}.q_proj": spectrum(3.0, 2.0, 1.0, *tail) for k in range(2)}
    tried: list[rank.Ranks] = []

    def keeps(ranks: rank.Ranks, what: str) -> bool:
        tried.append(ranks)
        return min(ranks.values()) >= 3

    found = rank.search(spectra, keeps, 24)
    assert found.ranks == {"layers.0.q_proj": 3, "layers.1.q_proj": 3}
    assert found.measured == len(tried) <= 24
    assert 0.99 < found.energy < 1


def test_the_search_lowers_one_kind_of_layer_further() -> None:
    spectra = {"layers.0.q_proj": spectrum(*[1.0] * 6), "layers.0.up_proj": spectrum(*[1.0] * 6)}
    found = rank.search(spectra, lambda ranks, _: ranks["layers.0.up_proj"] >= 5 and ranks["layers.0.q_proj"] >= 2, 24)
    assert found.ranks == {"layers.0.q_proj": 2, "layers.0.up_proj": 5}


def test_a_kind_of_layer_that_is_not_needed_goes_but_never_all_of_them() -> None:
    spectra = {"layers.0.q_proj": spectrum(2.0, 1.0), "layers.0.up_proj": spectrum(2.0, 1.0)}
    assert sorted(rank.search(spectra, lambda *_: True, 24).ranks.values()) == [0, 1]


def test_a_search_without_success_keeps_everything() -> None:
    spectra = {"layers.0.q_proj": spectrum(3.0, 2.0, 1.0)}
    found = rank.search(spectra, lambda *_: False, 24)
    assert (found.ranks, found.energy) == ({"layers.0.q_proj": 3}, 1.0)


@given(st.lists(st.lists(st.floats(0.01, 5), min_size=1, max_size=6), min_size=1, max_size=4), st.integers(1, 30))
def test_what_a_search_returns_was_measured_as_good_and_within_its_limit(layers: list[list[float]], limit: int) -> None:
    spectra = {f"layers.{k}.q_proj": spectrum(*sorted(v, reverse=True)) for k, v in enumerate(layers)}
    whole = sum(s.norm**2 for s in spectra.values())
    good: list[rank.Ranks] = []
    calls = 0

    def keeps(ranks: rank.Ranks, what: str) -> bool:
        nonlocal calls
        calls += 1
        fine = sum(s.lost(ranks[n]) ** 2 for n, s in spectra.items()) <= 0.1 * whole
        good.extend([ranks] * fine)
        return fine

    found = rank.search(spectra, keeps, limit)
    assert calls <= limit
    assert found.ranks in good or found.ranks == rank.by_energy(spectra, 1.0)
    levels = rank.energy_levels(spectra)
    if limit >= 12:  # enough to bisect: no energy share for all layers does with less
        passing = [
            e
            for e in levels
            if sum(s.lost(rank.by_energy(spectra, e)[n]) ** 2 for n, s in spectra.items()) <= 0.1 * whole
        ]
        assert found.energy in (passing[0], 1.0)
        assert sum(found.ranks.values()) <= sum(rank.by_energy(spectra, passing[0]).values())


# -- magnitude ---------------------------------------------------------------------------------------------------


@given(st.floats(0.01, 0.99), st.integers(0, 99))
def test_the_smallest_entries_go_and_the_others_stay(share: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    before = Factors(torch.randn(24, 3, generator=generator), torch.randn(3, 16, generator=generator))
    after = sparse(before, share)
    for old, new in ((before.b, after.b), (before.a, after.a)):
        gone = new == 0
        assert int(gone.sum()) == int(share * old.numel())
        assert torch.equal(new[~gone], old[~gone])
        if gone.any():
            assert float(old[gone].abs().max()) <= float(old[~gone].abs().min())
    assert not torch.equal(before.b, torch.zeros_like(before.b))  # what went in is as it was
