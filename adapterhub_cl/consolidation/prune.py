"""The verb `prune`: a version with fewer ranks, or fewer bits."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapterhub_cl.adapters.lora_files import LoraFile
from adapterhub_cl.consolidation.asked import MEASUREMENTS, PruneRequest
from adapterhub_cl.consolidation.derived import Making, record, writer
from adapterhub_cl.consolidation.parents import Parents, check_new_name, find_parents, least_retention
from adapterhub_cl.context import Hub
from adapterhub_cl.errors import AdapterError, UsageError
from adapterhub_cl.evaluation.general_text import general_text
from adapterhub_cl.evaluation.measuring import Yardstick
from adapterhub_cl.evaluation.probes import Probe, probe_of, recorded_score, score_version
from adapterhub_cl.evaluation.retention import Retained
from adapterhub_cl.merging.factors import Factors, difference, norm
from adapterhub_cl.pruning import rank, storage
from adapterhub_cl.pruning.magnitude import sparse
from adapterhub_cl.registry import Registry, changes, parse_ref
from adapterhub_cl.samples.of_task import samples_of
from adapterhub_cl.types import AdapterRecord

ENERGY = 0.99  # what `prune NAME` keeps of ‖ΔW‖² in each layer; docs/benchmarks/pruning.md says why
SAMPLES = 50  # replay samples that are enough to search on, so that the held-out data stay for the gate


@dataclass
class PruneOrder:
    """A version on its way to fewer ranks or bits.

    Attributes:
        parents: the version, found and checked.
        kind: how the result is stored; `stored` how the parent is.
        searched: what a search measured; empty without one.
    """

    registry: Registry
    request: PruneRequest
    parents: Parents
    adapter: LoraFile
    spectra: dict[str, rank.Spectrum]
    stored: str
    kind: str
    searched: dict[str, Any] = field(default_factory=dict)

    @property
    def parent(self) -> AdapterRecord:
        return self.parents.records[0]

    def layers(self, ranks: Mapping[str, int]) -> dict[str, Factors]:
        """The pruned factors, before they are stored."""
        share = self.request.magnitude
        cut = {name: found.at(ranks[name]) for name, found in self.spectra.items()}
        return {name: sparse(part, share) for name, part in cut.items()} if share else cut

    def write(self, layers: Mapping[str, Factors], folder: Path) -> None:
        """Write the adapter's files; its numbers are rounded as its kind of storage has them."""
        writer(layers, [self.adapter], self.registry.base, self.adapter.head())(folder)
        if self.kind != "fp32":
            storage.store(folder, self.kind)

    def report(self, ranks: Mapping[str, int], layers: Mapping[str, Factors]) -> dict[str, Any]:
        """What comes out: ranks, errors and bytes, layer by layer and as a whole."""
        rows, lost = [], 0.0
        for name, found in self.spectra.items():
            after = storage.after_storage(layers[name], self.kind) if ranks[name] else None
            # against all singular directions: what they leave out of the stored factors is rounding
            away = found.norm if after is None else norm(difference(found.factors, after))
            lost += away**2
            rows.append(
                {
                    "name": name,
                    "rank_before": found.stored,
                    "rank": ranks[name],
                    "truncation_error": found.lost(ranks[name]) / found.norm if found.norm else 0.0,
                    "error": away / found.norm if found.norm else 0.0,
                    "norm": found.norm,
                }
            )
        whole = sum(found.norm**2 for found in self.spectra.values())
        shapes = {name: found.factors.shape for name, found in self.spectra.items()}
        return {
            "truncation_error": rank.lost_share(self.spectra, ranks),
            "error": (lost / whole) ** 0.5 if whole else 0.0,
            "rank": max(ranks.values()),
            "ranks": sum(ranks.values()),
            "ranks_before": sum(found.stored for found in self.spectra.values()),
            "storage": {
                "format": self.kind,
                "format_before": self.stored,
                "bytes": sum(storage.numbers_bytes(ranks[name], shapes[name], self.kind) for name in shapes),
                "bytes_before": storage.weights_bytes(self.parent.path),
            },
            "layers": rows,
            **({"search": self.searched} if self.searched else {}),
        }


@changes.operation()
def prune(
    hub: Hub,
    request: PruneRequest,
    *,
    name: str | None = None,
    new_version: bool = True,
) -> AdapterRecord:
    """Prune and record; see `AdapterHub.prune`.

    Args:
        new_version: an adapter of another `name` may be there already.
    """
    if (done := _done_before(hub.registry, request, name)) is not None:
        hub.reporter.note(f"{done.ref} is just that already; to prune it once more, name the version: {done.ref}")
        return done
    with ExitStack() as stack:
        work, least = _begin(hub.registry, request, stack)
        if name is not None and name != work.parent.name:
            check_new_name(hub.registry, name, new_version)
        ranks = _ranks(hub, work, least, keep=True)
        layers = work.layers(ranks)
        report = work.report(ranks, layers)

        def write(folder: Path) -> None:
            work.write(layers, folder)
            report["storage"]["bytes"] = storage.weights_bytes(folder)  # the file as it is, with its header

        bound = least if request.evaluate else None
        making = Making(
            name or work.parent.name,
            "pruned",
            work.parents,
            _recipe(work),
            bound,
            request.evaluate,
            report,
            instead="a higher --rank or --energy, --search",
            general=request,
        )
        return record(hub, making, write)


def _done_before(registry: Registry, request: PruneRequest, name: str | None) -> AdapterRecord | None:
    """What a bare name stands for by now, where that was pruned by the very same request: a call that was killed when
    its version was there, and is repeated, must not prune that one in turn."""
    if parse_ref(request.ref).version is not None:
        return None
    record = registry.get(request.ref)
    recipe = record.manifest.get("recipe")
    if record.kind != "pruned" or name not in (None, record.name) or not recipe or recipe.get("verb") != "prune":
        return None
    _check(request)
    least = least_retention(registry, request.min_retention) if request.evaluate else None
    plain = request.rank is None and not request.search and not request.magnitude and request.store is None
    asked = {
        "rank": request.rank,
        "energy": ENERGY if request.energy is None and plain else request.energy,
        "global": request.across,
        "search": request.search,
        "magnitude": request.magnitude,
        "seed": request.seed,
        "measured": request.evaluate,
        "min_retention": least,
        "store": request.store or recipe.get("store"),
        "measurements": request.measurements if request.search else None,
        "bound": recipe.get("bound") if request.bound is None else request.bound,
        "general": request.general,
        "max_base_forgetting": request.max_base_forgetting,
    }
    return record if all(recipe.get(key) == value for key, value in asked.items()) else None


def plan(hub: Hub, request: PruneRequest) -> dict[str, Any]:
    """What a pruning would give, without writing anything; see `AdapterHub.plan_prune`."""
    with ExitStack() as stack:
        work, least = _begin(hub.registry, request, stack)
        ranks = _ranks(hub, work, least, keep=False)
        return {**_recipe(work), **work.report(ranks, work.layers(ranks))}


def _begin(registry: Registry, request: PruneRequest, stack: ExitStack) -> tuple[PruneOrder, float | None]:
    """Check what was asked, open the adapter; with the gate's bound."""
    _check(request)
    least = least_retention(registry, request.min_retention)
    general_text(registry, request)  # read early: a mistake must not cost the work before it
    if request.search and least is None and request.bound is None:
        raise UsageError("--search needs a bound that retention must keep", "add --min-retention 0.95")
    parents = find_parents(registry, [request.ref])
    (adapter,) = parents.open(stack)
    most = max((adapter.rank(name) for name in adapter.modules), default=0)
    if request.rank is not None and request.rank > most:
        raise UsageError(
            f"--rank {request.rank} is above the adapter's: {parents.refs[0]} has rank {most}",
            f"choose a --rank below {most}, or --energy",
        )
    stored = storage.stored_kind(adapter.folder)
    work = PruneOrder(registry, request, parents, adapter, rank.spectra_of(adapter), stored, request.store or stored)
    return work, least


def _check(request: PruneRequest) -> None:
    given = [request.rank is not None, request.energy is not None, request.search]
    if sum(given) > 1:
        raise UsageError("--rank, --energy and --search each say how many ranks stay", "give one of them")
    if request.rank is not None and request.rank < 1:
        raise UsageError(f"--rank must be 1 or more, not {request.rank}", "prune --unused removes whole versions")
    if request.energy is not None and not 0 < request.energy <= 1:
        raise UsageError(f"--energy must be above 0 and at most 1, not {request.energy:g}", "--energy 0.95")
    if request.magnitude is not None and not 0 < request.magnitude < 1:
        raise UsageError(f"--magnitude must be between 0 and 1, not {request.magnitude:g}", "--magnitude 0.3")
    if request.measurements < 1:
        raise UsageError(f"--measurements must be 1 or more, not {request.measurements}", f"{MEASUREMENTS} is usual")
    if request.across and request.search:
        raise UsageError("--global says how --rank or --energy is spent", "leave it out with --search")
    if request.store is not None:
        storage.check_kind(request.store)
    if not request.evaluate and (request.min_retention is not None or request.search):
        raise UsageError("--no-eval leaves out the retention that --min-retention and --search need", "leave it out")


def _energy(work: PruneOrder) -> float | None:
    """The share to be kept: as asked, or the default where nothing else was asked for."""
    asked, changed = work.request, work.kind != work.stored
    if asked.energy is not None or asked.rank is not None or asked.search or asked.magnitude or changed:
        return asked.energy
    return ENERGY


def _ranks(
    hub: Hub,
    work: PruneOrder,
    least: float | None,
    *,
    keep: bool,
) -> rank.Ranks:
    """Layer → the rank that stays.

    Raises:
        AdapterError: nothing would be left, or nothing would change.
    """
    request, spectra, energy = work.request, work.spectra, _energy(work)
    whole = rank.by_energy(spectra, 1.0)
    if not any(whole.values()):
        raise AdapterError(f"{work.parents.refs[0]} changes nothing: its ΔW is zero", "train it again, or remove it")
    if request.search:
        bound = least if request.bound is None else request.bound
        assert bound is not None
        work.searched["min_retention"] = bound
        ranks = _searched(hub, work, bound, keep=keep)
    elif request.rank is not None:
        budget = request.rank * len(spectra)
        ranks = rank.by_budget(spectra, budget) if request.across else rank.fixed(spectra, request.rank)
    elif energy is not None:
        ranks = rank.by_total_energy(spectra, energy) if request.across else rank.by_energy(spectra, energy)
    else:
        ranks = whole
    same = all(ranks[name] == found.stored for name, found in spectra.items())
    if same and work.kind == work.stored and not request.magnitude:
        raise AdapterError(
            f"nothing to prune: every layer of {work.parents.refs[0]} would keep its rank", "a lower --rank or --energy"
        )
    return ranks


def _recipe(work: PruneOrder) -> dict[str, Any]:
    """What stands in the manifest: enough to prune again."""
    asked = work.request
    return {
        "verb": "prune",
        "parents": work.parents.refs,
        "rank": asked.rank,
        "energy": _energy(work),
        "global": asked.across,
        "search": asked.search,
        "measurements": asked.measurements if asked.search else None,
        "bound": work.searched.get("min_retention"),
        "magnitude": asked.magnitude,
        "store": work.kind,
        "seed": asked.seed,
    }


# -- the search ------------------------------------------------------------------------------------------------


def _searched(hub: Hub, work: PruneOrder, least: float, *, keep: bool) -> rank.Ranks:
    """The smallest ranks whose retention stays at or above the bound.

    Found on replay samples, they are confirmed on the gate's examples: of what was good enough there, the smallest that
    is good enough here too. (Of many tries on few examples the smallest good one is often good by luck.)

    Args:
        keep: record scores of the parent that had to be measured.
    """
    yardstick = search_yardstick(hub, work.parents, keep=keep)
    tried: list[dict[str, Any]] = []
    good: list[rank.Ranks] = []

    def measured(by: Yardstick, ranks: rank.Ranks, what: str, count: str) -> bool:
        with tempfile.TemporaryDirectory(prefix="cl-adapter-") as made:
            work.write(work.layers(ranks), Path(made))
            retained = Retained(least, tuple(by.measure(hub.base, Path(made))[0]))
        shares, number = retained.shares_json(), sum(ranks.values())
        tried.append({"what": what, "ranks": number, "retention": shares, "passed": retained.passed})
        told = ", ".join(f"{task} {share:.3f}" for task, share in shares.items())
        verdict = "good enough" if retained.passed else "too little"
        hub.reporter.note(f"{count}: {what}, {number} ranks in all: keeps {told}: {verdict}")
        return retained.passed

    def keeps(ranks: rank.Ranks, what: str) -> bool:
        passed = measured(yardstick, ranks, what, f"{len(tried) + 1} of at most {work.request.measurements}")
        good.extend([ranks] * passed)
        return passed

    found = rank.search(work.spectra, keeps, work.request.measurements)
    ranks = found.ranks
    if any(not probe.sha256 and probe_of(work.registry, task) != probe for task, probe in yardstick.probes.items()):
        check = search_yardstick(hub, work.parents, keep=keep, samples=False)
        smallest = sorted(good, key=lambda those: sum(those.values()))
        confirmed = (those for those in smallest if measured(check, those, "confirmation", "on the gate's examples"))
        ranks = next(confirmed, rank.by_energy(work.spectra, 1.0))
    work.searched |= {
        "on": {task: probe.data for task, probe in yardstick.probes.items()},
        "energy": found.energy,
        "tried": tried,
    }
    return ranks


def search_yardstick(
    hub: Hub,
    parents: Parents,
    *,
    keep: bool,
    samples: bool = True,
) -> Yardstick:
    """What a search measures on: a task's replay samples where there are enough of them and the held-out data are left
    for the gate; else, or without `samples`, the same examples as the gate.

    Raises:
        AdapterError: nothing is left to measure any task on.
    """
    made = Yardstick(hub)
    for task, parent in parents.tasks().items():
        probe = probe_of(hub.registry, task)
        found = samples_of(hub.registry, task, parent) if samples else None
        if probe is not None and probe.sha256 and found is not None and hub.registry.task(task).kind != "text":
            usable = [example for example in found.examples if example.input]
            if len(usable) >= SAMPLES:
                probe = Probe(probe.task, usable, f"replay samples of {found.record.ref}", found.max_length)
        if probe is None:
            made.unmeasured.append(task)
            continue
        verb = "searching" if samples else "confirming"
        hub.reporter.note(f"{verb} on {len(probe.examples)} examples of {task}: {probe.data}")
        score = recorded_score if keep else score_version
        made.probes[task] = probe
        made.before[task] = (score(hub, parent, probe), parent.ref)
    if made.unmeasured or not made.probes:
        what = ", ".join(made.unmeasured) or f"{parents.refs[0]}, which answers for no task,"
        raise AdapterError(
            f"there is no data left to measure {what} on, so a search cannot tell how much it keeps",
            "choose --rank or --energy",
        )
    return made
