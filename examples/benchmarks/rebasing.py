"""What `rebase` keeps of a hub's tasks that are learned again from data, from samples, or from rows written for it.

    python examples/benchmarks/rebasing.py run --base PATH --work /tmp/rebasing
    python examples/benchmarks/rebasing.py table --work /tmp/rebasing -o docs/benchmarks

A hub learns tasks of cl15 (../shared/data). One command then moves them to a second base: the first one with noise in
its matrices, or fine-tuned on another task (`--second tuned`, language models), or any other (`--second PATH`). That
command is killed (SIGKILL) up to three times on the way, and each time it is simply run again. Old and new versions are
scored on the same held-out rows. `run` goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.append(str(Path(__file__).parent))  # cl15_rows.py, machine.py, resumable.py
from cl15_rows import DATA, write_rows
from machine import machine, versions
from resumable import chosen, prepare, results

from adapterhub_cl import AdapterHub
from adapterhub_cl.registry.files import atomic_write_text

TASKS = ("agnews", "sst2", "dbpedia", "yahoo", "qqp", "imdb", "boolq", "yelp")
MADE = ("noisy", "tuned")  # second bases that are made of the first one
SOURCES = ("data", "samples", "pseudo-samples", "ported", "residual")
WITHOUT_WRITING = ",".join(one for one in SOURCES if one != "pseudo-samples")  # encoders do not write
NOISE = 0.1  # times a matrix's standard deviation
ELSE, ELSE_ROWS = "amazon", 240  # what a base that was fine-tuned on something else has learned
KEPT = 100  # samples of a task, where the hub keeps any
KILLED_AFTER = (1, 3, 6)  # tasks that are in the new hub when the command is killed
LENGTH = 192
FEW = "--rows 60 --test-rows 60 --tasks agnews,sst2,dbpedia,yelp"
INTRODUCTION = f"""
A hub has learned tasks of cl15. One command, `cl-adapter rebase`, moves them to a second base. *noisy* is the first
base with noise in each matrix, {NOISE} times its standard deviation; *tuned* is the first base fine-tuned on
{ELSE_ROWS} rows of another task ({ELSE}; an adapter of rank 16, added into the weights). Any other second base is a
model of its own; `model/smollm2` is SmolLM2-135M-Instruct. The command was killed with SIGKILL on the way and run
again, as often as the table says. Old and new versions are scored on the same held-out rows. One seed; each source
has a hub of its own, so the old scores differ a little between them. From *data*, every training row is learned
again; from *samples*, the {KEPT} that the hub keeps of each task, the files being gone; from *pseudo-samples*, rows
that the old version writes and answers, files and samples being gone. *ported* means `--port`: versions that keep
their score are used as they are, and the others are trained on from where they stand, with the same rows and epochs
as from data; *residual* means `--port-residual`: the difference of the two bases is put into each version's adapter, as
far as rank 64 holds it, and versions that keep too little even so are learned again from data. In the runs shown here
*residual* moved a copy of the hub of *ported*, so their old versions are the same.
""".strip()


def noisy(base: Path, to: Path) -> Path:
    """A second base: the first one with noise in each matrix."""
    if to.exists():
        return to
    import torch
    from safetensors.torch import load_file, save_file

    draft = to.with_name(f"{to.name}.part")
    shutil.rmtree(draft, ignore_errors=True)
    shutil.copytree(base, draft)
    torch.manual_seed(0)
    for path in draft.glob("*.safetensors"):
        tensors = load_file(path)
        for name, tensor in tensors.items():
            if tensor.ndim == 2 and tensor.is_floating_point():
                tensors[name] = tensor + (torch.randn(tensor.shape) * NOISE * tensor.float().std()).to(tensor.dtype)
        save_file(tensors, path, metadata={"format": "pt"})
    draft.rename(to)
    return to


def tuned(base: Path, to: Path, tests: int) -> Path:
    """A second base: the first one with an adapter of another task in its weights."""
    if to.exists():
        return to
    data = to.with_name(f"{to.name}-rows")
    write_rows(data, ELSE, ELSE_ROWS, tests)
    hub = taught(to.with_name(f"{to.name}-hub"), base, data, [ELSE], replay="none")
    return hub.export(ELSE, to, format="merged")


def named(base: str) -> str:
    """A base by the end of its path, which is the same on each machine."""
    return base if base == "tiny" else "/".join(Path(base).resolve().parts[-2:])


def taught(folder: Path, base: Path | str, data: Path, tasks: Sequence[str], **settings: Any) -> AdapterHub:
    """A hub that has learned the tasks; one that is half done goes on."""
    hub = (
        AdapterHub.open(folder)
        if (folder / "hub.toml").exists()
        else AdapterHub.init(folder, base=str(base), quantization="none")
    )
    known = {record.name for record in hub.list()}
    for task in tasks:
        if task not in known:
            files = {"data": data / f"{task}.train.jsonl", "eval": data / f"{task}.test.jsonl"}
            hub.add_task(task, **files, max_length=LENGTH, **settings)
    return hub


def move(
    hub: Path, base: Path | str, to: Path, log: Path, *, kills: Sequence[int], more: Sequence[str]
) -> dict[str, Any]:
    """What the command says of the tasks when it has ended, having been killed on the way."""
    words = [sys.executable, "-m", "cli", "--hub", str(hub), "--json", "rebase", str(base), "--to", str(to), *more]
    killed, started = 0, time.monotonic()
    for after in kills:
        with log.open("a") as lines:
            going = subprocess.Popen(words, stdout=lines, stderr=lines)
            while going.poll() is None and len(list(to.glob("adapters/*/v*/manifest.json"))) < after:
                time.sleep(0.2)
            time.sleep(1)  # somewhere in the next task
            if going.poll() is None:
                going.send_signal(signal.SIGKILL)
                going.wait()
                killed += 1
    with log.open("a") as lines:
        done = subprocess.run(words, stdout=subprocess.PIPE, stderr=lines, text=True, check=False)
    found: dict[str, Any] = json.loads(done.stdout)
    return {**found, "killed": killed, "seconds": time.monotonic() - started}


def run(arguments: argparse.Namespace) -> None:
    """Teach, move from each source, and keep what was kept."""
    work, base = Path(arguments.work).resolve(), arguments.base
    asked = {"base": named(base), "rows": arguments.rows, "tests": arguments.test_rows}
    asked["second"] = arguments.second if arguments.second in MADE else named(arguments.second)
    prepare(work, asked, "hubs")
    tasks = chosen(arguments.tasks, TASKS)
    second = arguments.second
    if second in MADE:
        place = work / f"{Path(base).name}-{second}"
        second = noisy(Path(base), place) if second == "noisy" else tuned(Path(base), place, arguments.test_rows)
    for source in chosen(arguments.sources, SOURCES):
        path = work / "results" / f"{source}.json"
        if path.exists():
            continue
        data = work / f"rows-{source}"
        for task in TASKS:
            write_rows(data, task, arguments.rows, arguments.test_rows)
        writes: dict[str, Any] = {
            "replay": "none",
            "prompt_loss": 0.3,
        }  # prompts are learned, so that it can write them
        settings = writes if source == "pseudo-samples" else {"replay": f"balanced:{KEPT}"}
        hub = taught(work / "hubs" / f"old-{source}", base, data, tasks, **settings)
        if source in ("samples", "pseudo-samples"):
            for task in tasks:
                (data / f"{task}.train.jsonl").unlink()
        words = {
            "pseudo-samples": ("--pseudo-samples", str(arguments.rows)),
            "ported": ("--port",),
            "residual": ("--port-residual",),
        }
        to, log = work / "hubs" / f"new-{source}", work / "logs" / f"{source}.log"
        found = move(hub.folder, second, to, log, kills=KILLED_AFTER[: len(tasks) // 2], more=words.get(source, ()))
        trained = {record.name: record.training["seconds"] for record in AdapterHub.open(to).list()}
        row = {**asked, "source": source, **found, "training_seconds": trained, "machine": machine()}
        atomic_write_text(path, json.dumps(row))
        print(f"{source}: {', '.join(str(task['retention']) for task in row['tasks'])}", flush=True)


def page(rows: Sequence[Mapping[str, Any]]) -> str:
    """The page as Markdown."""
    lines = [
        "# Moving a hub to another base",
        "",
        f"{'; '.join(dict.fromkeys(row['machine'] for row in rows))}. "
        + versions("torch", "transformers", "peft", "adapterhub-cl")
        + ". Written by `examples/benchmarks/rebasing.py`.",
        "",
        INTRODUCTION,
        "",
        "| base | second base | learned from | tasks | rows each | test rows | killed | mean old score "
        "| mean new score | mean retention | lowest retention | time |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        kept = [task for task in row["tasks"] if task["retention"] is not None]
        cells = (
            row["base"], row["second"], row["source"], len(row["tasks"]), row["rows"], row["tests"], row["killed"],
            f"{fmean(task['old_score'] for task in kept):.3f}", f"{fmean(task['new_score'] for task in kept):.3f}",
            f"{fmean(task['retention'] for task in kept):.2f}", f"{min(task['retention'] for task in kept):.2f}",
            f"{row['seconds'] / 60:.0f} min",
        )  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += [
        "",
        "*Time* is that of the command with all that the kills cost, on a machine that did other work too.",
        "",
        "| base | second base | learned from | task | rows | old score | new score | retention | state | training |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        for task in row["tasks"]:
            scores = " | ".join("–" if task[k] is None else f"{task[k]:.3f}" for k in ("old_score", "new_score"))
            kept = "–" if task["retention"] is None else f"{task['retention']:.2f}"
            seconds = row["training_seconds"].get(task["task"]) if task["rows"] else None  # else it was only copied
            lines.append(
                f"| {row['base']} | {row['second']} | {_from(task)} | {task['task']} | {task['rows']} | {scores} "
                f"| {kept} | {task['state']} | {'–' if seconds is None else f'{seconds:.0f} s'} |"
            )
    lines += [
        "",
        "<!-- not run: takes minutes, and the real texts and model -->",
        "```console",
        f"$ python examples/benchmarks/rebasing.py run --base MINILM --work rebasing-1 --sources {WITHOUT_WRITING}",
        f"$ python examples/benchmarks/rebasing.py run --base tiny --second SMOLLM2 --work rebasing-2 {FEW}",
        f"$ python examples/benchmarks/rebasing.py run --base SMOLLM2 --second tuned --work rebasing-3 {FEW}",
        "$ python examples/benchmarks/rebasing.py table --work rebasing-1,rebasing-2,rebasing-3 -o docs/benchmarks",
        "```",
    ]
    return "\n".join(lines) + "\n"


def _from(task: Mapping[str, Any]) -> str:
    """What a task was learned from."""
    return f"{task['source']}, trained on" if task.get("begun_as_copy") else str(task["source"])


def table(arguments: argparse.Namespace) -> None:
    rows = [row for work in arguments.work.split(",") for row in results(Path(work))]
    out = Path(arguments.output)
    atomic_write_text(out / "rebasing.md", page(rows))
    atomic_write_text(out / "rebasing.json", json.dumps(rows) + "\n")
    print(page(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    going = verbs.add_parser("run")
    going.add_argument("--base", required=True, help="folder of an encoder or an instruct model, or tiny")
    going.add_argument("--work", required=True, help="folder for hubs, logs and results")
    going.add_argument("--rows", type=int, default=150, help="training rows of a task (default: 150)")
    going.add_argument("--test-rows", type=int, default=150, help="test rows of a task (default: 150)")
    going.add_argument("--tasks", default="", help=f"some of {', '.join(TASKS)}; default: all")
    going.add_argument("--sources", default="", help=f"some of {', '.join(SOURCES)}; default: all")
    going.add_argument("--second", default="noisy", help=f"{' or '.join(MADE)}, or another base (default: noisy)")
    going.set_defaults(do=run)
    shown = verbs.add_parser("table")
    shown.add_argument("--work", required=True, help="folders of results, with commas between")
    shown.add_argument("-o", "--output", required=True, help="folder for rebasing.md and rebasing.json")
    shown.set_defaults(do=table)
    arguments = parser.parse_args()
    if arguments.verb == "run" and not DATA.is_dir():
        sys.exit(f"the texts are not there: {DATA}")
    arguments.do(arguments)


if __name__ == "__main__":
    main()
