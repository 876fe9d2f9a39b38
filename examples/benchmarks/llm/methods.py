"""How each method learns a stream, and what is measured of it."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from filelock import FileLock
from machine import peak_bytes
from streams import COLUMNS, Budget, asked, described, labels_of, read, scored, taught_as

from adapterhub_cl import AdapterHub
from adapterhub_cl.progress import Reporter

KEPT = 100  # samples of a task that ours keeps for its router and its distilled form
MERGES = ("linear", "ties", "tsv", "ctm")
SHARED: dict[str, Mapping[str, Any]] = {  # strategy → options, and which samples are kept
    "sequential": {"replay": "none"},
    "replay": {"replay": "balanced:16", "options": {"replay.ratio": 0.25}},
    "der": {"replay": "balanced:16", "options": {"der.ratio": 0.5, "der.alpha": 0.2}},
    "inflora": {"replay": "none", "options": {"inflora.energy": 0.9}},
    "lwf": {"replay": "none", "options": {"lwf.alpha": 1.0}},
    "ewc": {"replay": "none", "options": {"ewc.strength": 1.0}},
    "olora": {"replay": "none", "options": {"olora.weight": 0.1}},
    "osf": {"replay": "none", "options": {"osf.preserve": 0.75}},
    "forever": {"replay": "balanced:16", "options": {"forever.ratio": 0.25}},
    "sdft": {"replay": "none"},
}


class Lines(Reporter):
    """Notes as lines of a log."""

    def note(self, text: str) -> None:
        print(text, flush=True)


@dataclass(frozen=True)
class Place:
    """A method's folder, rows and budget.

    Attributes:
        hub: of this method; one that is there goes on.
        ours: the hub that `ours` leaves for the same stream and seed.
    """

    base: str
    quantization: str
    hub: Path
    ours: Path
    data: Path
    tasks: tuple[str, ...]
    seed: int
    budget: Budget

    def open(self) -> AdapterHub:
        if (self.hub / "hub.toml").exists():
            return AdapterHub.open(self.hub)
        return AdapterHub.init(self.hub, base=self.base, quantization=self.quantization)

    def copy(self) -> AdapterHub:
        """A copy of the hub that `ours` left, which is taught again where its result came from another machine."""
        if not self.hub.exists():
            with FileLock(f"{self.ours}.lock"):
                taught(replace(self, hub=self.ours))
            draft = self.hub.with_name(f"{self.hub.name}.part")
            shutil.rmtree(draft, ignore_errors=True)
            shutil.copytree(self.ours, draft)
            draft.rename(self.hub)
        return AdapterHub.open(self.hub)

    def files(self, task: str) -> dict[str, Any]:
        """What `add_task` is given of a task."""
        train, test = (self.data / f"{task}.{part}.jsonl" for part in ("train", "test"))
        labels = list(labels_of(self.data, task))
        return {
            "data": train,
            "eval": test,
            "columns": COLUMNS,
            **({"labels": labels} if labels else {}),
            **taught_as(task),
        }


def base_alone(place: Place) -> dict[str, Any]:
    """The base before it has learned anything."""
    from adapterhub_cl import objectives

    base = place.open().context().base
    found, form = [], "chat" if base.tokenizer.chat_template else "instruction"
    for task in place.tasks:
        rows = read(place.data, task)
        task_as_asked = described(task, labels_of(place.data, task), form)
        answers = objectives.of(base.info).predict(
            base.model, base.tokenizer, task_as_asked, asked(rows, whole=True), max_length=base.context,
            max_new_tokens=48,
        )  # fmt: skip
        found.append(scored(task, rows, [answer.text for answer in answers]))
    return {"scores": found}


def taught(place: Place, strategy: str = "isolated", *, chosen: bool = False) -> AdapterHub:
    """The hub with an adapter for each task; those that are there are not taught again.

    Args:
        chosen: see `ours`.
    """
    hub = place.open()
    for task in place.tasks:
        if task not in {record.name for record in hub.list()}:
            settings = place.budget.settings(place.seed, chosen=chosen)
            settings |= {"strategy": strategy, "replay": f"balanced:{KEPT}"}
            hub.add_task(task, reporter=Lines(), **place.files(task), **settings)
    return hub


def ours(place: Place, strategy: str = "isolated", *, chosen: bool = False) -> dict[str, Any]:
    """An adapter a task. `oracle`: the task is named; `scores`: the router reads the whole prompt; `bare`: the input
    without its instruction.

    Args:
        chosen: with as many passes and in such batches as `add-task` chooses.
    """
    hub = taught(place, strategy, chosen=chosen)
    records = [hub.get(task) for task in place.tasks]
    told, whole, bare, right = [], [], [], {"whole": [], "bare": []}
    with hub.engine(fallback=False) as engine:
        for task in place.tasks:
            rows = read(place.data, task)
            named = engine.predict(asked(rows, whole=True), task=task)
            told.append(scored(task, rows, [answer.prediction for answer in named]))
            for form, kept in (("whole", whole), ("bare", bare)):
                answers = engine.predict(asked(rows, whole=form == "whole"))
                kept.append(scored(task, rows, [answer.prediction for answer in answers]))
                right[form].append(fmean(answer.task == task for answer in answers))
    return {
        "scores": whole,
        "oracle": told,
        "bare": bare,
        "routing": {form: fmean(shares) for form, shares in right.items()},
        "bwt": 0.0,
        "helped": {r.name: r.manifest["start"]["from"] for r in records if r.manifest.get("start", {}).get("from")},
        "base_rise": fmean(rises(records)),
        "train_seconds": sum(record.training["seconds"] for record in records),
    }


def one_adapter(hub: AdapterHub, ref: str, place: Place) -> dict[str, Any]:
    """Scores of one adapter that answers for all tasks, each named."""
    found = []
    with hub.engine(fallback=False) as engine:
        for task in place.tasks:
            rows = read(place.data, task)
            answers = engine.predict(asked(rows, whole=True), task=task, adapter=ref)
            found.append(scored(task, rows, [answer.prediction for answer in answers]))
    return {"scores": found, "base_rise": fmean(rises([hub.get(ref)]))}


def distilled(place: Place) -> dict[str, Any]:
    """One adapter, taught by all of ours on the samples that they keep."""
    hub, started = place.copy(), time.monotonic()
    if "all" not in {record.name for record in hub.list()}:
        settings = {"max_length": place.budget.max_length, "seed": place.seed}
        hub.distill(list(place.tasks), name="all", task_loss=1.0, reporter=Lines(), **settings)
    return {**one_adapter(hub, "all", place), "train_seconds": time.monotonic() - started}


def merged(place: Place, method: str) -> dict[str, Any]:
    """One adapter, merged of all of ours on their factors, without any rows."""
    hub, started = place.copy(), time.monotonic()
    if method not in {record.name for record in hub.list()}:
        hub.merge(
            list(place.tasks), name=method, method=method, rank=hub.get(place.tasks[0]).rank, seed=place.seed,
            min_retention=0.0, reporter=Lines(),
        )  # fmt: skip
    return {**one_adapter(hub, method, place), "train_seconds": time.monotonic() - started}


def multitask(place: Place, *, chosen: bool = False) -> dict[str, Any]:
    """One adapter trained on the rows of all tasks at once: the bound that papers compare with.

    Args:
        chosen: see `ours`.
    """
    hub, last = place.copy(), place.tasks[-1]
    if not hub.get(last).manifest["takes_over"]:
        hub.add_task(
            last, strategy="multitask", options={"multitask.balance": True}, replay="none", max_forgetting=1.0,
            reporter=Lines(), **place.files(last), **place.budget.settings(place.seed, chosen=chosen),
        )  # fmt: skip
    record = hub.get(last)
    return {**one_adapter(hub, record.ref, place), "train_seconds": record.training["seconds"]}


def shared(name: str, *, chosen: bool = False) -> Callable[[Place], dict[str, Any]]:
    """One adapter that learns the tasks one after another, by a strategy; each task is named.

    Args:
        chosen: see `ours`.
    """

    def learn(place: Place) -> dict[str, Any]:
        hub, how = place.open(), SHARED[name]
        tasks = [
            {"name": task, "replay": how["replay"], **place.files(task)}
            | {key: str(place.files(task)[key]) for key in ("data", "eval")}
            for task in place.tasks
        ]
        file = hub.folder / "stream.json"
        file.write_text(json.dumps({"name": "stream", "tasks": tasks}), encoding="utf-8")
        settings = place.budget.settings(place.seed, chosen=chosen)
        seeds = [settings.pop("seed")]
        (matrix,) = hub.stream(
            file, strategies=[name], seeds=seeds, options=dict(how.get("options", {})), reporter=Lines(), **settings
        )
        records = [hub.get(task) for task in place.tasks]
        row = matrix.to_json()
        return {
            "scores": row["matrix"][-1],
            "bwt": row["bwt"],
            "forgetting": row["forgetting"],
            "base_rise": fmean(rises(records[-1:])),
            "train_seconds": sum(record.training["seconds"] for record in records),
        }

    return learn


def rises(records: Sequence[Any]) -> list[float]:
    """How much the loss on general text rises with each version, in nats per token."""
    return [record.manifest["gate"]["general"]["rise"] for record in records]


METHODS: dict[str, Callable[[Place], dict[str, Any]]] = {  # in the order in which they are run
    "base": base_alone,
    "ours": ours,
    "multitask": multitask,
    "sequential": shared("sequential"),
    "replay": shared("replay"),
    "distilled": distilled,
    "kin": partial(ours, strategy="kin"),
    "chosen": partial(ours, chosen=True),
    "kin-chosen": partial(ours, strategy="kin", chosen=True),
    "multitask-chosen": partial(multitask, chosen=True),
    "der-chosen": shared("der", chosen=True),
    **{f"merged-{method}": partial(merged, method=method) for method in MERGES},
    **{name: shared(name) for name in SHARED if name not in ("sequential", "replay")},
}


def measured(name: str, place: Place) -> dict[str, Any]:
    """Everything of one run."""
    started = time.monotonic()
    found = METHODS[name](place)
    return {
        **found,
        "tasks": list(place.tasks),
        "ap": fmean(found["scores"]),
        "seconds": round(time.monotonic() - started, 1),
        "peak_mb": round(peak_bytes() / 2**20),
    }
