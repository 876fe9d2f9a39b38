"""Twelve weeks of production: feedback with noise, two poisoned weeks, drift and a new task, without a manual step.

    python examples/benchmarks/weeks.py run --base PATH --work /tmp/weeks --seed 0
    python examples/benchmarks/weeks.py table --work /tmp/weeks -o docs/benchmarks

A hub learns three tasks of cl15 (../shared/data) and answers over HTTP. Users ask, judge some answers (a few of them
wrongly), and `learn` is called at the end of each week, as cron would. Beside it plain PEFT trains every week on the
same feedback, without a gate: what a nightly script does. Both are scored on the same test rows after each week.
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

sys.path.append(str(Path(__file__).parent))  # machine.py
from machine import machine, versions

DATA = Path(__file__).parents[2].parent / "shared" / "data"
WEEKS, ASKED, JUDGED, NOISE = (
    12,
    60,
    0.6,
    0.05,
)  # questions of each task a week, share that is judged, share of that wrong
FIRST, TESTED = 200, 300  # rows that each task is first taught with; test rows
START = ("agnews", "sst2", "dbpedia")
POISONED = {3: "agnews", 9: "sst2"}  # in these weeks every judgement on this task is another label than the right one
DRIFTS, NEW = 5, 7  # from this week on sst2's users ask about whole reviews (imdb); yahoo's users appear
MEASURED = (*START, "imdb", "yahoo")  # imdb is asked of the task sst2, whose labels it has
LENGTH = 192
OPTIONS: dict[str, Any] = {"canary": 0.3, "judged": 8, "enough": 20, "max_length": LENGTH}

Rows = list[dict[str, str]]


class Material:
    """The rows of one seed: to begin with, to ask, to be scored on. None stands in two of them."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(f"weeks {seed}")
        self.first: dict[str, Rows] = {}
        self.held: dict[str, Rows] = {}
        self.pool: dict[str, Iterator[dict[str, str]]] = {}
        self.test: dict[str, Rows] = {}
        for task in MEASURED:
            train = _rows(DATA / "cl15" / task / "train.jsonl")
            more = DATA / "cl4" / task / "train.jsonl"
            self.draw.shuffle(train)
            known = {row["input"] for row in train}
            extra = [row for row in _rows(more) if row["input"] not in known] if more.exists() else []
            dev = DATA / "cl15" / task / "dev.jsonl"
            held = _rows(dev) if dev.exists() else train[-80:]
            train = train if dev.exists() else train[:-80]
            self.first[task], self.held[task] = train[:FIRST], held[:200]
            self.pool[task] = iter([*train[FIRST:], *extra])
            test = _rows(DATA / "cl15" / task / "test.jsonl")
            self.test[task] = self.draw.sample(test, min(TESTED, len(test)))

    def labels(self, task: str) -> list[str]:
        return sorted({row["output"] for row in self.first[task]})

    def week(self, week: int) -> list[tuple[str, dict[str, str], str | None]]:
        """What is asked in a week: the task as users see it, the row, and what they say is right (None: nothing)."""
        asked = []
        for task in (*START, *(("yahoo",) if week >= NEW else ())):
            source = "imdb" if task == "sst2" and week >= DRIFTS else task
            for _ in range(ASKED):
                row = next(self.pool[source])
                said = row["output"] if self.draw.random() < JUDGED else None
                wrong = self.draw.random() < NOISE or POISONED.get(week) == task
                if said is not None and wrong:
                    labels = self.labels(source)
                    said = labels[(labels.index(said) + 1) % len(labels)]
                asked.append((task, row, said))
        self.draw.shuffle(asked)
        return asked


def _rows(path: Path) -> Rows:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def _write(path: Path, rows: Sequence[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# -- ours -----------------------------------------------------------------------------------------


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The hub behind a socket, with `serve --log`; yields its address."""
    import uvicorn

    from adapterhub_cl import AdapterHub
    from adapterhub_cl.server.application import Guard, application
    from adapterhub_cl.server.serve_options import ServeOptions

    hub, options = AdapterHub.open(folder), ServeOptions(log=True)
    with socket.socket() as listening, hub.engine() as engine:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        config = uvicorn.Config(
            application(hub.registry, engine, options, Guard.of(options)), log_config=None, access_log=False
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        finally:
            server.should_exit = True
            thread.join()


def ask(address: str, asked: Sequence[tuple[str, dict[str, str], str | None]]) -> tuple[int, int]:
    """Ask a week's questions and say what users say; how many answers were right, of how many."""
    import httpx2

    right = 0
    with httpx2.Client(base_url=address, timeout=300) as client:
        for k in range(0, len(asked), 20):
            part = asked[k : k + 20]
            body = {"inputs": [row["input"] for _, row, _ in part], "model": "auto"}
            rows = client.post("/predict", json=body).raise_for_status().json()["data"]
            for (task, row, said), answer in zip(part, rows, strict=True):
                right += answer["prediction"] == row["output"]
                if said is not None:
                    told = {"id": answer["id"], "label": said, "task": task}
                    client.post("/feedback", json=told).raise_for_status()
    return right, len(asked)


def ours(base: str, material: Material, work: Path, weeks: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """Each week's scores, what `learn` did, and what the inbox proposed; week 0 is the beginning."""
    from adapterhub_cl import AdapterHub

    hub = AdapterHub.init(work / "hub", base, quantization="none")
    for task in START:
        data = _write(work / f"{task}.jsonl", material.first[task])
        hub.add_task(task, data, eval=_write(work / f"{task}.held.jsonl", material.held[task]), max_length=LENGTH)
    yield {"scores": scored(hub, material), "steps": [], "found": [], "right": None, "seconds": 0.0}
    with serving(hub.folder) as address:
        for asked in weeks:
            right, count = ask(address, asked)
            time.sleep(2)  # kept answers are written in the background
            found = [line for line in _proposals(hub) if "new task" in line]
            started, steps = time.monotonic(), []
            for _ in range(2):  # a canary is decided on, and then the next lesson begins
                steps += [step.to_json() for step in hub.learn(**OPTIONS) if step.did != "waiting"]
            seconds = time.monotonic() - started
            steps = list({(s["task"], s["did"], s["ref"]): s for s in steps}.values())
            yield {
                "scores": scored(hub, material), "steps": steps, "found": found, "right": right / count,
                "seconds": seconds,
            }  # fmt: skip


def _proposals(hub: Any) -> Sequence[str]:
    groups = hub.inbox().groups
    return groups.proposals if groups is not None else ()


def scored(hub: Any, material: Material) -> dict[str, float]:
    """Share of right answers on the test rows of each task that there is, with the task named."""
    found = {}
    serves = hub.registry.serving()
    for source in MEASURED:
        task = "sst2" if source == "imdb" else source
        if task in serves:
            rows = material.test[source]
            answers = hub.predict([row["input"] for row in rows], task=task)
            found[source] = sum(a.prediction == r["output"] for a, r in zip(answers, rows, strict=True)) / len(rows)
    return found


# -- what a nightly script does -------------------------------------------------------------------


class Nightly:
    """One plain PEFT adapter for each task, trained on every week's feedback as it comes."""

    def __init__(self, base: str, material: Material, seed: int) -> None:
        from transformers import AutoTokenizer

        self.base, self.material, self.seed = base, material, seed
        self.tokenizer = AutoTokenizer.from_pretrained(base)
        self.models: dict[str, Any] = {}

    def learn(self, task: str, rows: Rows) -> None:
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForSequenceClassification

        from adapterhub_cl.settings import TrainingSettings

        labels, fresh = self.material.labels(task), task not in self.models
        torch.manual_seed(self.seed)
        if fresh:
            model = AutoModelForSequenceClassification.from_pretrained(self.base, num_labels=len(labels))
            about = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="SEQ_CLS")
            self.models[task] = get_peft_model(model, about)
        model = self.models[task].train()
        usual = TrainingSettings().for_rows(len(rows), fresh=fresh, encoder=True)
        rate, epochs = usual.peak_rate(model.config.hidden_size), usual.passes
        optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
        steps = epochs * -(-len(rows) // usual.batch_size)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / steps)
        draw = random.Random(self.seed)
        for _ in range(epochs):
            mixed = draw.sample(rows, len(rows))
            for k in range(0, len(mixed), usual.batch_size):
                part = mixed[k : k + usual.batch_size]
                wanted = torch.tensor([labels.index(row["output"]) for row in part])
                loss = model(**self._tokens([row["input"] for row in part]), labels=wanted).loss
                loss.backward()
                optimiser.step()
                schedule.step()
                optimiser.zero_grad()

    def scored(self) -> dict[str, float]:
        import torch

        found = {}
        for source in MEASURED:
            task = "sst2" if source == "imdb" else source
            if task not in self.models:
                continue
            model, labels, right = self.models[task].eval(), self.material.labels(task), 0
            rows = self.material.test[source]
            for k in range(0, len(rows), 32):
                with torch.no_grad():
                    best = model(**self._tokens([row["input"] for row in rows[k : k + 32]])).logits.argmax(-1)
                right += sum(labels[b] == row["output"] for b, row in zip(best.tolist(), rows[k : k + 32], strict=True))
            found[source] = right / len(rows)
        return found

    def _tokens(self, texts: Sequence[str]) -> Any:
        return self.tokenizer(list(texts), truncation=True, max_length=LENGTH, padding=True, return_tensors="pt")


def nightly(base: str, material: Material, seed: int, weeks: Sequence[Any]) -> Iterator[dict[str, float]]:
    script = Nightly(base, material, seed)
    for task in START:
        script.learn(task, material.first[task])
    yield script.scored()
    for asked in weeks:
        for task in dict.fromkeys(task for task, _, _ in asked):
            rows = [{**row, "output": said} for of, row, said in asked if of == task and said is not None]
            script.learn(task, rows)
        yield script.scored()


# -- running and showing --------------------------------------------------------------------------


def run(arguments: argparse.Namespace) -> None:
    import tempfile

    work = Path(arguments.work)
    work.mkdir(parents=True, exist_ok=True)
    material = Material(arguments.seed)
    weeks = [material.week(week) for week in range(1, arguments.weeks + 1)]
    with tempfile.TemporaryDirectory() as folder:
        plain = nightly(arguments.base, material, arguments.seed, weeks)
        rows = []
        for week, mine in enumerate(ours(arguments.base, material, Path(folder), weeks)):
            memory = psutil.Process().memory_info().rss // 1_000_000
            rows.append({"week": week, **mine, "nightly": next(plain), "memory_mb": memory})
            shown = {
                task: f"{mine['scores'][task]:.3f}/{rows[-1]['nightly'].get(task, 0):.3f}" for task in mine["scores"]
            }
            did = (f"{s['task']}:{s['did']} ({s['reason']})" for s in mine["steps"])
            print(week, shown, f"{memory} MB", *did, *mine["found"], flush=True)
            (work / f"{arguments.seed}.json").write_text(json.dumps(rows) + "\n", encoding="utf-8")


def table(arguments: argparse.Namespace) -> None:
    """weeks.md and weeks.json of what was measured."""
    seeds = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(Path(arguments.work).glob("*.json"))}
    packages = versions("torch", "transformers", "peft")
    tasks = [task for task in MEASURED if any(task in row["scores"] for rows in seeds.values() for row in rows)]
    lines = [
        "# Twelve weeks of production",
        "",
        f"{machine()}. {packages}.",
        "",
        f"An encoder (MiniLM) is taught {', '.join(START)} with {FIRST} rows each and served over HTTP. Every "
        f"week brings {ASKED} questions for each task; users judge {JUDGED:.0%} of the answers, and {NOISE:.0%} of "
        f"what they say is wrong. In weeks {' and '.join(map(str, POISONED))} everything that is said of "
        f"{' and '.join(POISONED.values())} is wrong. From week {DRIFTS} on the users of sst2 ask about whole "
        f"reviews (imdb). From week {NEW} on there are users with questions that no task knows (yahoo). At the end "
        f"of each week `learn` is called twice, with {OPTIONS['canary']:.0%} of the conversations for a canary. Nobody "
        "does anything else. **Script** is plain PEFT, one adapter for each task, trained with the same rate, epochs "
        "and batch size on every week's feedback. Scores are the share of right answers, in percent, on "
        f"{TESTED} test rows of each task.",
    ]
    for seed, rows in seeds.items():
        lines += ["", f"## Seed {seed}", ""]
        head = [f"{task}: {who}" for task in tasks for who in ("ours", "script")]
        lines += [f"| week | {' | '.join(head)} | what `learn` did |", f"|---|{'---|' * len(head)}---|"]
        for row in rows:
            cells = []
            for task in tasks:
                for scores in (row["scores"], row["nightly"]):
                    cells.append(f"{100 * scores[task]:.1f}" if task in scores else "–")
            did = [_told(step) for step in row["steps"]] + ["a new task is proposed"] * bool(row["found"])
            lines.append(f"| {row['week']} | {' | '.join(cells)} | {'; '.join(did) or '–'} |")
    drops = {
        who: [
            100 * (rows[week - 1][who][task] - min(rows[week][who][task], rows[week + 1][who][task]))
            for rows in seeds.values()
            for week, task in POISONED.items()
        ]
        for who in ("scores", "nightly")
    }
    lines += [
        "",
        "## What the poisoned weeks cost",
        "",
        "Points that the poisoned task is lower in that week or the next one than in the week before, over "
        f"{len(drops['scores'])} poisoned weeks:",
        "",
        "| | mean | worst |",
        "|---|---|---|",
        *(
            f"| {name} | {statistics.fmean(drops[who]):.1f} | {max(drops[who]):.1f} |"
            for name, who in (("ours", "scores"), ("script", "nightly"))
        ),
    ]
    lines += ["", "## Where it ends", "", "| task | ours | script |", "|---|---|---|"]
    for task in tasks:
        mine = [100 * rows[-1]["scores"][task] for rows in seeds.values() if task in rows[-1]["scores"]]
        script = [100 * rows[-1]["nightly"][task] for rows in seeds.values() if task in rows[-1]["nightly"]]
        lines.append(f"| {task} | {statistics.fmean(mine):.1f} | {statistics.fmean(script):.1f} |")
    lines += [
        "",
        "<!-- not run: takes an hour, and the real texts and model -->",
        "```console",
        "$ python examples/benchmarks/weeks.py run --base MINILM --work weeks-work --seed 0",
        "$ python examples/benchmarks/weeks.py table --work weeks-work -o docs/benchmarks",
        "```",
    ]
    out = Path(arguments.output)
    (out / "weeks.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (out / "weeks.json").write_text(json.dumps(seeds) + "\n", encoding="utf-8")
    print("\n".join(lines))


def _told(step: dict[str, Any]) -> str:
    odd = (step["detail"].get("surprise") or {}).get("surprising")
    begun = step["did"] in ("canary", "refused")
    return f"{step['task']} {step['did']}" + (" (more wrong answers than expected)" if odd and begun else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    going = verbs.add_parser("run")
    going.add_argument("--base", required=True, help="folder of an encoder")
    going.add_argument("--seed", type=int, default=0)
    going.add_argument("--weeks", type=int, default=WEEKS)
    going.set_defaults(do=run)
    shown = verbs.add_parser("table")
    shown.add_argument("-o", "--output", required=True, help="folder for weeks.md and weeks.json")
    shown.set_defaults(do=table)
    for verb in (going, shown):
        verb.add_argument("--work", required=True, help="folder for the results")
    arguments = parser.parse_args()
    if arguments.verb == "run" and not DATA.is_dir():
        sys.exit(f"the texts are not there: {DATA}")
    arguments.do(arguments)


if __name__ == "__main__":
    main()
