"""One run: a method taught one order with one seed in a hub of its own, and what was measured."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import derived
from jobs import Job
from machine import peak_bytes
from orders import BUDGETS, COLUMNS, FAMILY, Budget, Method, count_of, kept, tested

from adapterhub_cl.registry.files import atomic_write_text

Row = Mapping[str, str]


def taught(job: Job, base: str, quantization: str) -> dict[str, Any]:
    """A run's figures: the accuracy matrix with what is read off it, time, memory and size.

    Args:
        base: as `AdapterHub.init` takes it.
    """
    started, resumed = time.monotonic(), job.place.exists()
    method, budget = job.method, BUDGETS[job.budget]
    settings = {**budget.settings(), "learning_rate": budget.learning_rate * method.rate, "seed": job.seed}
    if method.name == "zero-shot":
        found = derived.zero_shot(base, quantization, job.data, job.tasks, budget)
    elif method.routed:
        found = isolated(hub_at(job.place, base, quantization), job.data, job.tasks, method, settings, budget)
    elif method.from_ours:
        found = derived.MAKES[method.name](job, settings)
    else:
        found = stream(hub_at(job.place, base, quantization), job, settings, budget)
    if resumed:  # what the processes before took is not known
        return {**found, "seconds": None, "wall_seconds": None, "peak_mb": None}
    return {**found, "wall_seconds": round(time.monotonic() - started, 1), "peak_mb": round(peak_bytes() / 2**20)}


def hub_at(place: Path, base: str, quantization: str) -> Any:
    from adapterhub_cl import AdapterHub

    if (place / "hub.toml").exists():
        return AdapterHub.open(place)
    return AdapterHub.init(place, base=base, quantization=quantization)


def reporter(name: str) -> Any:
    """Notes as lines of a log."""
    from adapterhub_cl.progress import Reporter

    class Lines(Reporter):
        def note(self, text: str) -> None:
            print(f"[{name}] {text}", flush=True)

    return Lines()


# -- methods of one shared adapter -------------------------------------------------------------


def stream(hub: Any, job: Job, settings: Mapping[str, Any], budget: Budget) -> dict[str, Any]:
    """Taught by `cl-adapter stream`: each test row is asked as a row of its own task."""
    data, method = job.data, job.method
    tasks = [
        {
            "name": name,
            "data": str(data / f"{name}.train.jsonl"),
            "eval": str(data / f"{name}.test.jsonl"),
            "columns": COLUMNS,
            "replay": kept(method, count_of(data, name)),
            "epochs": budget.epochs(count_of(data, name)),
        }
        for name in job.tasks
    ]
    file = hub.folder / "stream.json"
    file.write_text(json.dumps({"name": f"order{job.order}", "tasks": tasks}), encoding="utf-8")
    plain = {key: value for key, value in settings.items() if key != "seed"}
    (matrix,) = hub.stream(
        file,
        strategies=[method.strategy],
        seeds=[settings["seed"]],
        options=dict(method.options),
        reporter=reporter(method.name),
        **plain,
    )
    records = [hub.get(name) for name in job.tasks]
    return {
        **figures(matrix),
        "seconds": sum(record.training["seconds"] for record in records),
        "parameters": trained(records[-1]),
        "stored_mb": stored([records[-1]]),
    }


# -- ours and kin: an adapter a task, and a router ---------------------------------------------


def isolated(
    hub: Any, data: Path, tasks: Sequence[str], method: Method, settings: Mapping[str, Any], budget: Budget
) -> dict[str, Any]:
    """Each task in an adapter of its own. `matrix` is of the hub that is not told the task (the whole prompt is what
    the router reads), `given` what each adapter scores when the task is named, `bare` the same as `matrix` at the
    end, from inputs without their instruction."""
    from adapterhub_cl.evaluation.matrix import AccuracyMatrix

    tests = {task: tested(data, task) for task in tasks}
    rows: list[list[float | None]] = []
    first_bare, given, routing = {}, {}, {}
    for number, task in enumerate(tasks, 1):
        note = hub.folder / f"stage-{number}.json"
        if not note.exists():
            if task not in {record.name for record in hub.list()}:
                files = {"data": data / f"{task}.train.jsonl", "eval": data / f"{task}.test.jsonl", "columns": COLUMNS}
                hub.add_task(
                    task,
                    **files,
                    strategy=method.strategy,
                    options=dict(method.options),
                    replay=method.replay,
                    max_forgetting=1.0,
                    reporter=reporter(method.name),
                    epochs=budget.epochs(count_of(data, task)),
                    **settings,
                )
            with hub.engine(fallback=False, max_length=settings["max_length"]) as engine:
                whole = routed(engine, tests, tasks[:number], whole=True)
                bare = routed(engine, tests, tasks if number == len(tasks) else [task], whole=False)
            found = {"whole": whole, "bare": bare, "given": hub.get(task).metrics["accuracy"]}
            atomic_write_text(note, json.dumps(found))
        stage = json.loads(note.read_text(encoding="utf-8"))
        print(
            f"[{method.name}] stage {number} {task}: {stage['given']:.3f} given, {stage['whole'][task][0]:.3f} found",
            flush=True,
        )
        rows.append([stage["whole"][name][0] if name in stage["whole"] else None for name in tasks])
        first_bare[task], given[task] = stage["bare"][task][0], stage["given"]
        for form in ("whole", "bare"):
            routing[form] = {name: stage[form][name][1:] for name in stage[form]}
    matrix = AccuracyMatrix(tuple(tasks), tuple(map(tuple, rows)), ("accuracy",) * len(tasks), name=method.name)
    last = {name: stage["bare"][name][0] for name in tasks}
    loss = [last[name] - first_bare[name] for name in tasks[:-1]]
    records = [hub.get(task) for task in tasks]
    return {
        **figures(matrix),
        "seconds": sum(record.training["seconds"] for record in records),
        "given": [given[task] for task in tasks],
        "given_accuracy": mean(given.values()),
        "bare": [last[task] for task in tasks],
        "bare_accuracy": mean(last.values()),
        "bare_bwt": mean(loss) if loss else None,
        "routing": {form: mean(r[0] for r in found.values()) for form, found in routing.items()},
        "family": {form: mean(r[1] for r in found.values()) for form, found in routing.items()},
        "parameters": trained(records[-1]),
        "stored_mb": stored(records),
    }


def routed(
    engine: Any, tests: Mapping[str, Sequence[Row]], tasks: Sequence[str], *, whole: bool
) -> dict[str, tuple[float, float, float]]:
    """Task → share of right answers, of right task choices, and of choices of the right family, the task not told."""
    found = {}
    for task in tasks:
        answers = engine.predict(asked(tests[task], whole))
        right = [a.prediction == row["output"] for a, row in zip(answers, tests[task], strict=True)]
        same = [a.task == task for a in answers]
        kin = [FAMILY.get(a.task, a.task) == FAMILY.get(task, task) for a in answers]
        found[task] = (mean(right), mean(same), mean(kin))
    return found


def asked(rows: Sequence[Row], whole: bool) -> list[Any]:
    from adapterhub_cl.types import Example

    return [Example(row["input"], instruction=row["instruction"] if whole else "") for row in rows]


def figures(matrix: Any) -> dict[str, Any]:
    """What is kept of an accuracy matrix."""
    names = ("tasks", "matrix", "average_accuracy", "bwt", "forgetting")
    return {name: value for name, value in matrix.to_json().items() if name in names}


def mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


def trained(record: Any) -> int:
    """Parameters that one adapter trains."""
    from safetensors import safe_open

    with safe_open(record.path / "adapter_model.safetensors", "pt") as tensors:
        sizes = [tensors.get_slice(key).get_shape() for key in tensors.keys()]  # noqa: SIM118 (no mapping)
    return sum(math.prod(size) for size in sizes)


def stored(records: Sequence[Any]) -> float:
    """Megabytes of the adapters that answer in the end."""
    return round(sum((r.path / "adapter_model.safetensors").stat().st_size for r in records) / 1e6, 1)
