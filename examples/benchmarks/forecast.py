"""How well a training's cost to earlier tasks is foretold: forecasts early in the training against what happened.

    python examples/benchmarks/forecast.py run --encoder PATH --work /tmp/forecast
    python examples/benchmarks/forecast.py fit --work /tmp/forecast
    python examples/benchmarks/forecast.py table --work /tmp/forecast -o docs/benchmarks

`run` teaches streams of tasks with `add-task --forecast` to hubs on an encoder (cl15 of ../shared/data, few rows) and
on the embedded base (the demo's tasks), and goes on where it stopped. A step is one earlier task in one training: its
signs stand in the version's manifest beside what the gate measured. `fit` makes the model that the package uses from
all streams. `table` fits it once for each stream to all the others, and judges it on that stream alone.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent))  # forecast_fit.py, machine.py
from forecast_fit import figures, fitted_to, judged, reached
from forecast_page import page
from forecast_streams import BEGINNINGS, DEMO, STREAMS

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "cl15"
SIGNS = "signs.jsonl"  # in the work folder: what was read after other shares of the steps
FITTED = Path(__file__).parents[2] / "adapterhub_cl" / "forecasting" / "fitted.json"


def split(task: str, rows: int, held: int, folder: Path) -> tuple[str, str]:
    """Files with training rows that are learned, and others that are scored on; no test row is read."""
    lines = (DATA / task / "train.jsonl").read_text(encoding="utf-8").strip().split("\n")
    random.Random(task).shuffle(lines)
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for part, own in (("train", lines[:rows]), ("held", lines[rows : rows + held])):
        path = folder / f"{task}.{part}.jsonl"
        text = "".join(line + "\n" for line in own)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
        found.append(str(path))
    return found[0], found[1]


def run(arguments: argparse.Namespace) -> None:
    """Teach what is missing."""
    from adapterhub_cl import AdapterHub
    from adapterhub_cl.errors import UsageError

    work = Path(arguments.work)
    for name, stream in STREAMS.items():
        folder = folder_of(work, name)
        base = "tiny" if stream.base == "tiny" else arguments.encoder
        if not (folder / "hub" / "hub.toml").is_file():
            if stream.begin:
                shutil.copytree(begun(work, stream.begin, base), folder / "hub")
            else:
                AdapterHub.init(folder / "hub", base, quantization="none")
        hub = AdapterHub.open(folder / "hub")
        known = {record.name for record in hub.registry.adapters()}
        for k, task in enumerate(stream.tasks):
            if task in known:
                continue
            data, held = rows_of(stream.base, task, stream.rows, stream.held, work)
            settings = {**stream.settings, **(stream.later if k else {})}
            given = {"eval": held, "strategy": stream.strategy, "forecast": True, "max_forgetting": 1.0}
            started = time.monotonic()
            with also_read(arguments.shares, work / SIGNS, name, task):
                try:
                    record = hub.add_task(task, resume=True)
                except UsageError:  # nothing was stopped on the way
                    record = hub.add_task(task, data, **given, **settings, general="none")
            own = record.metrics.get("accuracy", record.metrics.get("exact_match", 0.0))
            rows = [f"{row['task']} {row['foretold']:+.2f} {row['drop']:+.2f}" for row in steps_of(name, record)]
            print(f"{name:18} {task:9} {own:.3f}  {time.monotonic() - started:.0f} s  {'; '.join(rows)}", flush=True)


@contextmanager
def also_read(shares: str, file: Path, stream: str, learned: str) -> Iterator[None]:
    """Read the signs after other shares of the steps too, only to compare with."""
    from adapterhub_cl.forecasting.early_signs import EarlySigns, step_of

    after_step = EarlySigns.after_step

    def reading(self: Any, stage: Any) -> None:
        for share in (float(text) for text in shares.split(",") if text):
            if stage.step == step_of(share, stage.steps):
                signs = {task: found.to_json() for task, found in self.read(stage).items()}
                row = {"share": share, "stream": stream, "learned": learned, "signs": signs}
                with file.open("a", encoding="utf-8") as out:
                    out.write(json.dumps(row) + "\n")
        after_step(self, stage)

    EarlySigns.after_step = reading  # type: ignore[method-assign]
    try:
        yield
    finally:
        EarlySigns.after_step = after_step  # type: ignore[method-assign]


def begun(work: Path, name: str, base: str) -> Path:
    """A hub with one adapter that knows all tasks of a beginning; the tasks before the last are only announced."""
    from adapterhub_cl import AdapterHub

    folder = work / f"begin-{name}"
    kind, tasks, settings = BEGINNINGS[name]
    if not (folder / "hub.toml").is_file():
        AdapterHub.init(folder, base, quantization="none")
    hub = AdapterHub.open(folder)
    known = {record.name for record in hub.registry.adapters()}
    for task in (task for task in tasks if task not in known):
        data, held = rows_of(kind, task, 128, 200, work)
        last = task == tasks[-1]
        own = settings if last else {**settings, "epochs": 1}
        strategy = "multitask" if last else "isolated"
        record = hub.add_task(task, data, eval=held, strategy=strategy, max_forgetting=1.0, general="none", **own)
        told = {row["task"]: round(row["value"], 3) for row in record.manifest["evaluations"]}
        print(f"begin {name:12} {task:9} {told}", flush=True)
    return folder


def rows_of(base: str, task: str, rows: int, held: int, work: Path) -> tuple[str, str]:
    """Where the rows of a task are, to learn and to score on."""
    if base == "tiny" and task in DEMO:
        return f"demo:{task}.train", f"demo:{task}.test"
    return split(task, rows, held, work / f"data-{rows}")


def folder_of(work: Path, name: str) -> Path:
    return work / "".join(c if c.isalnum() else "-" for c in name)


def steps_of(stream: str, record: Any) -> Iterator[dict[str, Any]]:
    """Each earlier task of a training: its signs, and the drop that the gate measured."""
    measured = {row["task"]: row for row in record.manifest["gate"]["effects"] if row["task"] != record.task}
    for told in (record.manifest.get("forecast") or {}).get("tasks", ()):
        if told["task"] in measured and "signs" in told:
            row = measured[told["task"]]
            yield {
                "stream": stream, "learned": record.task, "task": told["task"], "signs": told["signs"],
                "foretold": told["drop"], "before": row["before"], "drop": row["drop"], "n": row["n"],
            }  # fmt: skip


def steps(work: Path) -> list[dict[str, Any]]:
    """All steps of all streams that are there, with the signs that the package reads."""
    from adapterhub_cl import AdapterHub
    from adapterhub_cl.forecasting.early_signs import SHARE

    found: list[dict[str, Any]] = []
    for name in STREAMS:
        folder = folder_of(work, name) / "hub"
        if (folder / "hub.toml").is_file():
            records = sorted(
                AdapterHub.open(folder).registry.adapters(all_versions=True), key=lambda record: record.created_at
            )
            found += [row for record in records for row in steps_of(name, record)]
    # Where the package read them at another time, but they were read at this one too:
    other = {key_of(row): row for row in at_other_shares(work, found).get(SHARE, ())}
    return [other.get(key_of(row), row) for row in found]


def key_of(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["stream"], row["learned"], row["task"]


def at_other_shares(work: Path, found: Sequence[Mapping[str, Any]]) -> dict[float, list[dict[str, Any]]]:
    """Share of the steps → the same steps with the signs that were read then."""
    file = work / SIGNS
    read: dict[float, dict[tuple[str, str, str], dict[str, float]]] = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        row = json.loads(line)
        for task, signs in row["signs"].items():
            read.setdefault(row["share"], {})[row["stream"], row["learned"], task] = signs
    return {
        share: [{**row, "signs": at[key_of(row)]} for row in found if key_of(row) in at]
        for share, at in sorted(read.items())
    }


def fit(arguments: argparse.Namespace) -> None:
    """The model that the package uses: fitted to all steps, with the error that it has on streams left out."""
    rows = steps(Path(arguments.work))
    model, error = fitted_to(rows), figures(judged(rows))
    found = {**model.to_json(), "error": {**error, "aim_reached": reached(error)}}
    Path(arguments.into).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found["error"]))


def table(arguments: argparse.Namespace) -> None:
    """forecast.md and forecast.json of what was measured."""
    work, out = Path(arguments.work), Path(arguments.output)
    found = steps(work)
    text, row = page(found, at_other_shares(work, found))
    (out / "forecast.md").write_text(text, encoding="utf-8")
    (out / "forecast.json").write_text(json.dumps(row) + "\n", encoding="utf-8")
    print("\n".join(text.splitlines()[:24]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    one = verbs.add_parser("run")
    one.add_argument("--work", required=True)
    one.add_argument("--encoder", required=True)
    one.add_argument("--shares", default="", help="of the steps, after which signs are read too; such as 0.2,0.4")
    one.set_defaults(call=run)
    one = verbs.add_parser("fit")
    one.add_argument("--work", required=True)
    one.add_argument("--into", default=str(FITTED))
    one.set_defaults(call=fit)
    one = verbs.add_parser("table")
    one.add_argument("--work", required=True)
    one.add_argument("-o", "--output", required=True)
    one.set_defaults(call=table)
    arguments = parser.parse_args()
    arguments.call(arguments)


if __name__ == "__main__":
    main()
