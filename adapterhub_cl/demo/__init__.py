"""The demo: four tasks learned on the embedded base, and what naive training forgets of them.

The adapters are then routed, merged, refused, distilled and pruned. The data are written for the demo
(examples/make_demo_data.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adapterhub_cl.hub import AdapterHub
    from adapterhub_cl.progress import Reporter

DATA = Path(__file__).parent
ABOUT = {
    "tickets": "which of five teams a support ticket belongs to",
    "reviews": "whether a product review is good or bad",
    "commands": "which of six things a spoken command wants",
    "facts": "forty facts about a town that does not exist",
}
LEAST = 0.6  # retention that the gate asks for
ENERGY = 0.95


def run(
    folder: Path | None, *, seed: int = 0, tell: Callable[[str], None], reporter: Reporter | None = None
) -> dict[str, Any]:
    """The whole life cycle, told line by line within 80 columns.

    Args:
        folder: where the demo's hub is made; an older demo hub there is replaced. Default: `./demo-hub`.
        seed: of every random choice.
        tell: receives each line for the user.
        reporter: told how training goes on.

    Returns:
        every figure that was told, and the hub's folder.

    Raises:
        UsageError: the folder holds something else than a demo hub.
    """
    from adapterhub_cl.demo.place import made_beside
    from adapterhub_cl.launching import one_process
    from adapterhub_cl.progress import Reporter as Silent

    one_process("demo")
    started = time.monotonic()
    place = folder or Path("demo-hub")
    with made_beside(place) as hub:
        told = _life_cycle(hub, seed, tell, reporter or Silent())
    told |= {"hub": str(place), "seconds": round(time.monotonic() - started, 1)}
    versions, problems = told.pop("versions"), len(told["problems"])
    tell(f"\nDone in {told['seconds']:.0f} s: {versions} versions on disk (list --all), {problems} problems.")
    tell("\nAll of it on one page, and by hand:\n")
    for line in ("report", "list", 'predict "wake me in ten minutes"', "lineage all"):
        tell(f"   cl-adapter --hub {place} {line}")
    return told


def _life_cycle(hub: AdapterHub, seed: int, tell: Callable[[str], None], report: Reporter) -> dict[str, Any]:
    """All that is done with the hub, and every figure of it."""
    from adapterhub_cl.demo import steps
    from adapterhub_cl.reporting.wording import size

    told: dict[str, Any] = {}
    tell(f"A language model of {hub.base.parameters / 1e6:.1f} million parameters, frozen, in 4 bits, learns four")
    tell("things, one after another:\n")
    for task, about in ABOUT.items():
        tell(f"   {task:<9} {about}")

    tell("\n1. With the hub: an adapter for each task\n")
    kept: dict[str, float] = {}
    bare: dict[str, float] = {}
    for task in ABOUT:
        record = steps.learn(hub, task, "isolated", seed, report)
        kept[task] = record.metrics[hub.registry.task(task).metric]
        bare[task] = steps.task_score(hub, task, "base")
        told_bare = f"(base alone {bare[task]:5.1%}), {size(record.bytes)}"
        tell(f"   {record.ref:<12} {kept[task]:6.1%} of unseen texts right {told_bare}")
    told |= {"isolated": kept, "base": bare}

    tell("\n2. Without: one adapter, trained on and on\n")
    tell(f"   {'% right, after':<20}" + "".join(f"{task:>10}" for task in ABOUT))
    rows: list[dict[str, float]] = []
    with steps.naive_hub(hub, first := next(iter(ABOUT))) as naive:
        for task in ABOUT:
            record = naive.get(first) if task == first else steps.learn(naive, task, "sequential", seed, report)
            rows.append({known: steps.task_score(naive, known, record.ref) for known in list(ABOUT)[: len(rows) + 1]})
            tell(f"   {task:<20}" + _cells(rows[-1]))
    tell(f"   {'with the hub':<20}" + _cells(kept))
    lost = [rows[k][task] - rows[-1][task] for k, task in enumerate(ABOUT)][:-1]
    by_hub = steps.forgotten(hub)
    told |= {"naive": rows, "forgetting": {"naive": round(sum(lost) / len(lost), 6), "hub": by_hub}}
    nothing = f"{by_hub:.1%}" if by_hub else "nothing"
    tell(f"\n   Forgotten of the first three: {sum(lost) / len(lost):.1%} on average; with the hub: {nothing}.")

    tell("\n3. Texts that name no task: a router finds it\n")
    found = steps.routed(hub)
    for one in found.shown:
        answer = _cut(one.prediction, 16) if one.task else "(no known task)"
        tell(f"   {_cut(one.text, 42)!r:<46}{answer:<18}{one.adapter}")
    tell(f"\n   The right task is found for {found.right:.1%} of all unseen texts. Then right are:")
    tell(f"   {'':<20}" + _cells(found.scores))
    worst = min(found.scores, key=lambda task: found.scores[task] - kept[task])
    tell(f"   (Most is lost of {worst}: to so small a base they read like the others.)")
    told |= {"routing": found.right, "routed": found.scores, "answers": [one.to_json() for one in found.shown]}

    tell("\n4. One adapter in the place of four\n")
    refused = steps.merge_is_refused(hub, LEAST, seed)
    merged = steps.retention(refused.record) if refused.record else {}
    tell(f"   {'retention of':<20}" + "".join(f"{task:>10}" for task in ABOUT))
    tell(f"   {'merge':<20}" + _cells(merged))
    tell(f"   Refused: the gate here asks for {LEAST:.0%} of each task. A student of the four:")
    student = steps.distil(hub, seed, report)
    smaller = hub.prune(student.ref, energy=ENERGY)
    told |= {"refused": refused.message, "merged": merged}
    for what, record in ((f"distill, {size(student.bytes)}", student), ("", smaller)):
        shares = steps.retention(record)
        if record is smaller:  # measured against the student, told against the tasks' own adapters
            shares = {task: share * told["distilled"][task] for task, share in shares.items()}
        tell(f"   {what or f'prune, {size(record.bytes)}':<20}" + _cells(shares))
        told["distilled" if record is student else "pruned"] = shares

    told["problems"] = [problem.to_json() for problem in hub.verify()]
    told["versions"] = len(hub.list(all_versions=True))
    return told


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _cells(shares: Mapping[str, float]) -> str:
    """One number below each task's name."""
    return "".join(f"{shares[task]:>10.0%}" if task in shares else " " * 10 for task in ABOUT)
