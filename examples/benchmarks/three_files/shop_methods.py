"""What is done with one file: `cl-adapter add-task NAME FILE`, or TRL's SFTTrainer with the best of three rates."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import shop_rows
from machine import installed
from shop_scores import FIRST, mean, values
from shop_tickets import QUEUES

from adapterhub_cl.registry.files import atomic_write_text

OURS = ("ours", "ours-told")
RATES = (2e-4, 5e-4, 1e-3)
BATCH, EPOCHS = 8, 3
DEV = 40  # rows of the training file that choose TRL's learning rate; then all rows are learned
LONGEST = 128  # tokens of an answer
# What a hand-written script says before the text; the command line is given nothing but the file.
ASKED = {
    "tickets": f"Which queue does this ticket belong to: {', '.join(QUEUES)}?\n\n",
    "emails": "Give the name, order, product, date and wish of this e-mail as JSON.\n\n",
}
PACKAGES = ("adapterhub-cl", "torch", "transformers", "peft", "bitsandbytes")
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Place:
    """One job.

    Attributes:
        file: `tickets`, `emails` or `talks`.
        seed: of the rows; TRL also trains with it.
        folder: the job's own, kept between tries; `data` has the files.
        python: TRL's.
        rate: the learning rate that TRL uses, where an earlier seed has chosen it.
    """

    base: str
    file: str
    seed: int
    rows: int
    tests: int
    data: Path
    folder: Path
    python: str = ""
    rate: float | None = None


@dataclass(frozen=True)
class Took:
    """What a process took: seconds on the clock, seconds of CPU, and the most memory that it held."""

    wall_seconds: float
    cpu_seconds: float
    peak_mb: float


def run(words: Sequence[str], log: Path, output: Path | None = None) -> Took:
    """Run a process to its end.

    Raises:
        RuntimeError: it failed; the last line that it wrote to the log.
    """
    started = time.monotonic()
    with log.open("a", encoding="utf-8") as told, (output or Path(os.devnull)).open("w", encoding="utf-8") as out:
        process = subprocess.Popen(words, stdout=out, stderr=told)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        lines = [line for line in log.read_text(encoding="utf-8").splitlines() if line.strip()] or ["it said nothing"]
        raise RuntimeError(f"{Path(words[0]).name} {words[1]} failed with {process.returncode}: {lines[-1]}")
    cpu = usage.ru_utime + usage.ru_stime
    return Took(time.monotonic() - started, cpu, usage.ru_maxrss / 1024)  # Linux counts KiB


def right_and_asked(file: str, tests: Sequence[Row]) -> tuple[list[Any], list[Row]]:
    """The right answers, and the rows without them: of a conversation one for each turn of the assistant."""
    if file != "talks":
        answer, question = ("label", "text") if file == "tickets" else ("output", "input")
        return [row[answer] for row in tests], [{question: row[question]} for row in tests]
    right, asked = [], []
    for row in tests:
        for k, turn in enumerate(row["messages"]):
            if turn["role"] == "assistant":
                right.append(turn["content"])
                asked.append({"messages": row["messages"][:k]})
    return right, asked


def as_messages(file: str, row: Row) -> Row:
    """A row as the conversation that the hand-written script makes of it, with the answer if the row has one."""
    if file == "talks":
        return {"messages": row["messages"]}
    answer, question = ("label", "text") if file == "tickets" else ("output", "input")
    messages = [{"role": "user", "content": ASKED[file] + row[question]}]
    if answer in row:
        found = row[answer]
        said = found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)
        messages.append({"role": "assistant", "content": said})
    return {"messages": messages}


def lines(rows: Sequence[Row]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def ours(place: Place, *, told: bool = False) -> dict[str, Any]:
    """A hub, the file, and the answers, all by the command line and with its defaults.

    Args:
        told: with the script's words as `--instruction`, where it has any.
    """
    _, tests = shop_rows.rows(place.file, place.seed, place.rows, place.tests)
    right, asked = right_and_asked(place.file, tests)
    hub, log = place.folder / "hub", place.folder / "log"
    shutil.rmtree(place.folder, ignore_errors=True)
    place.folder.mkdir(parents=True)
    atomic_write_text(place.folder / "ask.jsonl", lines(asked))
    cli = [str(Path(sys.executable).with_name("cl-adapter"))]
    data = str(place.data / shop_rows.FILES[place.file])
    run([*cli, "init", str(hub), "--base", place.base], log)
    more = ["--instruction", ASKED[place.file].strip()] if told and place.file in ASKED else []
    took = run([*cli, "--hub", str(hub), "add-task", place.file, data, *more], log)
    said = place.folder / "said.json"
    asking = ["predict", "--file", str(place.folder / "ask.jsonl"), "--task", place.file, "--json"]
    run([*cli, "--hub", str(hub), *asking], log, said)
    run([*cli, "--hub", str(hub), "show", place.file, "--json"], log, place.folder / "shown.json")
    answers = [row["prediction"] for row in json.loads(said.read_text(encoding="utf-8"))]
    about = json.loads((place.folder / "shown.json").read_text(encoding="utf-8"))["training"]
    found = {"answers": answers, "values": values(place.file, right, answers), **asdict(took)}
    kept = {key: about.get(key) for key in ("steps", "seconds", "best_epoch")}
    return {**found, "training": kept, "versions": installed(*PACKAGES)}


def trl(place: Place, *, bf16: bool) -> dict[str, Any]:
    """The best of three learning rates by dev rows of the training file, then a training on all of its rows."""
    train, tests = shop_rows.rows(place.file, place.seed, place.rows, place.tests)
    place.folder.mkdir(parents=True, exist_ok=True)
    searched: dict[str, Any] = {}
    if place.rate is None:
        right, asked = right_and_asked(place.file, train[-DEV:])
        for rate in RATES:
            found = _script(place, train[:-DEV], asked, rate, bf16, f"dev-{rate}")
            score = mean(values(place.file, right, found["answers"])[FIRST[place.file]])
            searched[str(rate)] = {"dev": score, **{key: found[key] for key in ("wall_seconds", "cpu_seconds")}}
    best = place.rate or max(RATES, key=lambda rate: searched[str(rate)]["dev"])
    right, asked = right_and_asked(place.file, tests)
    found = _script(place, train, asked, best, bf16, "all")
    return {**found, "rate": best, "searched": searched, "values": values(place.file, right, found["answers"])}


def _script(
    place: Place, train: Sequence[Row], asked: Sequence[Row], rate: float, bf16: bool, stem: str
) -> dict[str, Any]:
    """One run of the script, in TRL's environment; what an earlier try has finished is read."""
    kept = place.folder / f"{stem}.kept.json"
    if not kept.exists():
        files = {name: place.folder / f"{stem}.{name}.jsonl" for name in ("train", "ask")}
        for name, rows in (("train", train), ("ask", asked)):
            atomic_write_text(files[name], lines([as_messages(place.file, row) for row in rows]))
        order, said = place.folder / f"{stem}.asked.json", place.folder / f"{stem}.said.json"
        settings = {"rate": rate, "epochs": EPOCHS, "batch_size": BATCH, "seed": place.seed, "bf16": bf16}
        settings |= {"base": place.base, "folder": str(place.folder / "trainer"), "max_new_tokens": LONGEST}
        atomic_write_text(order, json.dumps(settings | {name: str(path) for name, path in files.items()}))
        script = Path(__file__).with_name("trl_script.py")
        took = run([place.python, str(script), str(order), str(said)], place.folder / "log")
        found = json.loads(said.read_text(encoding="utf-8"))
        atomic_write_text(kept, json.dumps({**found, **asdict(took)}))
    made: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
    return made
