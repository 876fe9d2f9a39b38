"""Batches of invented facts, learned one after another: what is answered right, and what else changes.

    python examples/benchmarks/knowledge run --base PATH --work /tmp/knowledge
    python examples/benchmarks/knowledge table --work /tmp/knowledge -o docs/benchmarks

`run` writes one JSON file for each method, seed and batch, and goes on where it stopped. `--methods a,b` limits it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))  # machine.py
import page
from invented import Batch, batches
from methods import BY_NAME, METHODS, TASK, Method, Sheet, alone, answers_of, base_answers, measure

from adapterhub_cl import AdapterHub

SLOW = 20  # questions of each kind for a method that reads all facts with each question


def place_of(work: Path, method: str, seed: int, number: int) -> Path:
    return work / "rows" / f"{method.replace(', ', '-').replace(' ', '-')}.seed-{seed}.batch-{number + 1}.json"


def run(arguments: argparse.Namespace) -> None:
    """Make the rows that are missing, method by method."""
    work = Path(arguments.work)
    (work / "rows").mkdir(parents=True, exist_ok=True)
    setup = {key: getattr(arguments, key) for key in ("batches", "size")} | {"base": Path(arguments.base).name}
    _same_setup(work / "setup.json", setup)
    for seed in range(arguments.seeds):
        made = batches(arguments.batches, arguments.size, seed)
        before = _before(arguments.base, work, made, seed)
        for method in METHODS:
            if method.name in _chosen(arguments.methods) and method.name != "isolated, named":
                _stages(method, arguments.base, work, made, seed, before)


def _same_setup(path: Path, setup: dict[str, Any]) -> None:
    if path.exists() and (known := json.loads(path.read_text(encoding="utf-8"))) != setup:
        sys.exit(f"{path.parent} holds results of {known}, not of {setup}: name another --work")
    path.write_text(json.dumps(setup), encoding="utf-8")


def _chosen(text: str) -> list[str]:
    names = [name.strip() for name in text.split(";") if name.strip()] if text else list(BY_NAME)
    if unknown := [name for name in names if name not in BY_NAME]:
        sys.exit(f"no {'; '.join(unknown)}; there are: {'; '.join(BY_NAME)}")
    return names


def _before(base: str, work: Path, made: Sequence[Batch], seed: int) -> dict[str, str]:
    """What the base says to every unrelated question, asked once."""
    path = work / f"before.seed-{seed}.json"
    if not path.exists():
        texts = list(dict.fromkeys(text for batch in made for text in Sheet.of(batch).unrelated))
        with tempfile.TemporaryDirectory() as folder:
            said = alone(base_answers(AdapterHub.init(Path(folder) / "hub", base, quantization="none")), texts)
        path.write_text(json.dumps(said), encoding="utf-8")
    found: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _stages(method: Method, base: str, work: Path, made: Sequence[Batch], seed: int, before: dict[str, str]) -> None:
    """One method through all batches; a hub that is half done goes on."""
    numbers = method.asked_after(len(made))
    if all(place_of(work, method.name, seed, number).exists() for number in numbers):
        return
    folder = work / "hubs" / place_of(work, method.name, seed, 0).name.removesuffix(".batch-1.json")
    if not (folder / "hub" / "hub.toml").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        AdapterHub.init(folder / "hub", base, quantization="none")
    hub = AdapterHub.open(folder / "hub")
    versions = len(hub.registry.adapters(all_versions=True))
    known = versions if method.per_batch else versions * len(made)  # batches that this hub has learned
    for number in numbers:
        path = place_of(work, method.name, seed, number)
        started = time.monotonic()
        if number >= known and method.trains is not None:
            method.trains(hub, made, number, seed, folder)
            known = number + 1
        if path.exists():
            continue
        row = {"method": method.name, "seed": seed, "batch": number + 1}
        row |= {"seconds": round(time.monotonic() - started, 1)}
        sheet, first = Sheet.of(made[number]), Sheet.of(made[0])
        if method.slow:
            sheet, first = sheet.fewer(SLOW), first.fewer(SLOW)
        say = answers_of(method, hub, made, number)
        row |= measure(say, sheet, first, before)
        if method.trains is not None:
            row["scores"] = _own_scores(hub, f"batch-{number + 1}" if method.routed else TASK)
        if method.routed:
            _named(hub, work, made, number, seed, before)
            texts = [text for text, _ in (*sheet.taught, *sheet.others)]
            right = [f"batch-{number + 1}" == max(r.tasks, key=r.tasks.__getitem__) for r in hub.route(texts)]
            row["routed"] = sum(right) / len(right)
        path.write_text(json.dumps(row), encoding="utf-8")
        print(json.dumps(row), flush=True)


def _own_scores(hub: AdapterHub, name: str) -> dict[str, Any]:
    """What the hub itself measured of the newest version, and what its training took."""
    record = hub.get(name)
    about = record.training
    return {**record.metrics, "training_seconds": about.get("seconds"), "steps": about.get("steps")}


def _named(hub: AdapterHub, work: Path, made: Sequence[Batch], number: int, seed: int, before: dict[str, str]) -> None:
    """The same adapters where each question names its batch; the first batch's facts go to its own adapter."""
    place = place_of(work, "isolated, named", seed, number)
    if place.exists():
        return
    first = {fact.question for fact in made[0].facts} if number else set()

    def say(texts: Sequence[str]) -> list[str]:
        said: dict[str, str] = {}
        for task, mine in (
            ("batch-1", [text for text in texts if text in first]),
            (f"batch-{number + 1}", [text for text in texts if text not in first]),
        ):
            found = hub.predict(mine, task=task, max_new_tokens=16) if mine else []
            said |= {text: answer.prediction for text, answer in zip(mine, found, strict=True)}
        return [said[text] for text in texts]

    row = {"method": "isolated, named", "seed": seed, "batch": number + 1}
    row |= measure(say, Sheet.of(made[number]), Sheet.of(made[0]), before)
    place.write_text(json.dumps(row), encoding="utf-8")
    print(json.dumps(row), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    going = verbs.add_parser("run")
    going.add_argument("--base", required=True, help="folder or id of an instruct model")
    going.add_argument("--batches", type=int, default=20)
    going.add_argument("--size", type=int, default=50, help="facts in a batch")
    going.add_argument("--seeds", type=int, default=1)
    going.add_argument("--methods", default="", help=f"some of them, with ; between: {'; '.join(BY_NAME)}")
    going.set_defaults(do=run)
    shown = verbs.add_parser("table")
    shown.add_argument("-o", "--output", required=True, help="folder for knowledge.md and knowledge.json")
    shown.add_argument("--note", default="", help="what a reader of these rows must know; put below the setup")
    shown.set_defaults(do=page.table)
    going.add_argument("--work", required=True, help="folder for the results")
    shown.add_argument("--work", required=True, help="folders of results, with commas between")
    arguments = parser.parse_args()
    arguments.do(arguments)


if __name__ == "__main__":
    main()
