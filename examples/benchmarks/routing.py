"""How well each router finds the task of a text, and what its mistakes cost: cl15, base tiny, NF4.

    python examples/benchmarks/routing.py run --work /tmp/routing
    python examples/benchmarks/routing.py table --work /tmp/routing -o docs/benchmarks

`run` trains one adapter for each of fifteen tasks and each seed (1,000 training rows, 200 replay samples), then routes
and answers test rows that no adapter was trained on; started again it goes on where it stopped, one JSON file for each
result. Every router decides on the same rows, in a hub of the four tasks of order 1 and in one of all fifteen, from the
whole prompt and from the bare input; the answer of a row under a task is computed once and shared by all routers. The
oracle is the same engine with the task named. `table` writes Markdown and JSON. The texts are those of
../shared/data/cl15.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from adapterhub_cl.registry.files import atomic_write_text

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "cl15"
FOUR = ("dbpedia", "amazon", "yahoo", "agnews")
TASKS = (*FOUR, "mnli", "cb", "wic", "copa", "qqp", "boolq", "rte", "imdb", "yelp", "sst2", "multirc")
FAMILY = {"yelp": "amazon", "imdb": "sst2"}  # the same labels and the same question
SCOPES = {"four": FOUR, "fifteen": TASKS}
UNKNOWN = (("dbpedia", "wic"), ("qqp", "imdb"), ("agnews", "boolq"))  # left out, in turn
ROUTERS = ("analytic", "mahalanobis", "learned", "centroid", "arrow", "perplexity")
FORMS = ("whole", "bare")
MARGIN = 0.05  # by which the oracle beats the most frequent answer where a task was learned at all
TEST_ROWS, UNKNOWN_ROWS = 250, 50  # of each task
SLOW, SLOW_ROWS = ("perplexity",), 20  # it reads a text once under every adapter: fewer rows, one pair left out
ONE_SEED = ("arrow", "perplexity")
WRITTEN = 16  # tokens that the base writes where it steps in; no label is longer
SETTINGS: dict[str, Any] = {"epochs": 3, "max_length": 160, "rank": 16}


@dataclass(frozen=True)
class Row:
    """A test row."""

    key: str
    task: str
    input: str
    instruction: str
    output: str

    def example(self, form: str) -> Any:
        from adapterhub_cl.types import Example

        return Example(self.input, instruction=self.instruction if form == "whole" else "")


@cache
def lines_of(task: str, split: str) -> list[dict[str, str]]:
    text = (DATA / task / f"{split}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def drawn(tasks: Sequence[str], count: int) -> list[Row]:
    """A fixed draw of test rows, without those whose input is among the training rows."""
    found = []
    for task in tasks:
        trained = {row["input"] for row in lines_of(task, "train")}
        rows = [(k, row) for k, row in enumerate(lines_of(task, "test")) if row["input"] not in trained]
        random.Random(f"routing {task}").shuffle(rows)
        found += [Row(f"{task}.{k}", task, r["input"], r["instruction"], r["output"]) for k, r in rows[:count]]
    return found


def rows_for(router: str, tasks: Sequence[str]) -> list[Row]:
    return drawn(tasks, SLOW_ROWS if router in SLOW else TEST_ROWS)


# -- hubs ----------------------------------------------------------------------------------------


def train(work: Path, seed: int) -> None:
    """The hub of a seed, with one adapter for each task; trains those that are missing."""
    from adapterhub_cl import AdapterHub

    place = work / f"hub-{seed}"
    hub = AdapterHub.open(place) if (place / "hub.toml").exists() else AdapterHub.init(place, base="tiny")
    there = {record.name for record in hub.list()}
    for task in TASKS:
        if task not in there:
            asked = {"columns": {"input": "input", "output": "output"}, "kind": "choice", **SETTINGS}
            instruction = lines_of(task, "train")[0]["instruction"]
            hub.add_task(task, DATA / task / "train.jsonl", instruction=instruction, seed=seed, **asked)
            print(f"seed {seed}: trained {task}", flush=True)


def scoped(work: Path, seed: int, name: str, tasks: Iterable[str]) -> Any:
    """A copy of a seed's hub that has these tasks only: engines write counters and routers into it."""
    from adapterhub_cl import AdapterHub

    place = work / "scoped" / f"{name}-{seed}"
    if not place.exists():
        draft = place.with_name(f".{place.name}")
        shutil.rmtree(draft, ignore_errors=True)
        known = work / "scoped" / f"fifteen-{seed}"  # the hidden states of its samples need not be computed again
        shutil.copytree(known if known.exists() else work / f"hub-{seed}", draft)
        for path in (draft / "routers").glob("*/router.json"):
            shutil.rmtree(path.parent)
        hub = AdapterHub.open(draft)
        for record in hub.list(all_versions=True):
            if record.task not in set(tasks):
                hub.registry.delete(record.ref)
        draft.rename(place)
    return AdapterHub.open(place)


# -- results -------------------------------------------------------------------------------------


class Results:
    """One JSON file for each result."""

    def __init__(self, work: Path) -> None:
        self.folder = work / "results"
        self.folder.mkdir(parents=True, exist_ok=True)

    def get(self, name: str) -> Any:
        path = self.folder / f"{name}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def put(self, name: str, found: Any) -> None:
        atomic_write_text(self.folder / f"{name}.json", json.dumps(found) + "\n")

    def made(self, name: str, make: Callable[[], Any]) -> Any:
        """A result, computed where it is missing."""
        found = self.get(name)
        if found is None:
            started = time.monotonic()
            found = make()
            self.put(name, found)
            print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)
        return found


def decide(hub: Any, router: str, form: str, rows: Sequence[Row], more: Sequence[Row] = ()) -> dict[str, Any]:
    """What a router says of test rows (and of `more`), and the base's answers where it steps in."""
    with hub.engine(router=router) as engine:
        started = time.perf_counter()
        engine.route([rows[0].example(form)])  # fits the router
        fitted = time.perf_counter() - started
        started = time.perf_counter()
        routes = engine.route([row.example(form) for row in rows])
        seconds = time.perf_counter() - started
        others = engine.route([row.example(form) for row in more]) if more else []
        shy = [(row, route) for row, route in zip(rows, routes, strict=True) if route.out_of_distribution]
        asked = [row.example(form) for row, _ in shy] if not more else []
        answers = engine.predict(asked, max_new_tokens=WRITTEN) if asked else []
        return {
            "keys": [row.key for row in rows],
            "task": [next(iter(route.tasks)) for route in routes],
            "confidence": [route.confidence for route in routes],
            "out": [route.out_of_distribution for route in routes],
            "familiarity": [route.familiarity for route in routes],
            "unknown": [route.familiarity for route in others],
            "unknown_out": [route.out_of_distribution for route in others],
            "threshold": routes[0].threshold,
            "base": {row.key: answer.prediction for (row, _), answer in zip(shy, answers, strict=False)},
            "fit_seconds": fitted,
            "seconds": seconds / len(rows),
            "notes": engine.notes,
        }


class Answers:
    """Row, form, task → the answer of that task's adapter; computed once for each seed."""

    def __init__(self, results: Results, hub: Any, seed: int) -> None:
        self.results, self.hub, self.name = results, hub, f"answers-{seed}"
        self.known: dict[str, str] = results.get(self.name) or {}

    @staticmethod
    def key(row: Row, form: str, task: str) -> str:
        # Under the right task a bare input gets the very instruction that the whole prompt brings.
        return f"{row.key} {'' if task == row.task else form} {task}"

    def need(self, wanted: Iterable[tuple[Row, str, str]]) -> None:
        """Have these answers."""
        missing: dict[str, dict[str, tuple[Row, str]]] = {}
        for row, form, task in wanted:
            key = self.key(row, form, task)
            if key not in self.known:
                missing.setdefault(task, {})[key] = (row, form)
        if not missing:
            return
        with self.hub.engine() as engine:
            for task, rows in missing.items():
                found = engine.predict([row.example(form) for row, form in rows.values()], task=task)
                self.known |= {key: one.prediction for key, one in zip(rows, found, strict=True)}
        self.results.put(self.name, self.known)


def mixed(hub: Any, form: str, rows: Sequence[Row]) -> dict[str, Any]:
    """Answers of analytic with the adapters of two tasks mixed."""
    with hub.engine(top_k=2) as engine:
        found = engine.predict([row.example(form) for row in rows], max_new_tokens=WRITTEN)
    return {
        "keys": [row.key for row in rows],
        "prediction": [one.prediction for one in found],
        "second": [min(one.adapters.values()) if len(one.adapters) > 1 else 0.0 for one in found],
    }


def grow(hub: Any) -> dict[str, Any]:
    """analytic's weights after the tasks came one by one (and one went), against a fit on all at once."""
    import torch

    from adapterhub_cl.bank.bank import LoraBank
    from adapterhub_cl.deciding.decider import Decider
    from adapterhub_cl.deciding.view import View

    base, registry = hub.load_base(), hub.registry
    bank = LoraBank(base, lambda ref: None)
    view = View(registry)
    view.refresh()
    serving, steps = dict(view.serving), 0

    def weights(decider: Any, tasks: Sequence[str]) -> torch.Tensor:
        nonlocal steps
        steps += 1
        view.serving, view.generation = {task: serving[task] for task in tasks}, steps
        decider.refresh(view)
        router = decider.opened.calibrated.router
        return router.weights[:, [router.tasks.index(task) for task in sorted(router.tasks)]].clone()

    def cleared() -> Any:
        for path in (hub.folder / "routers").glob("*/router.json"):
            shutil.rmtree(path.parent)  # the hidden states stay
        return Decider(registry, base, bank, "analytic", {})

    try:
        steadily, hows = cleared(), []
        for count in range(1, len(TASKS) + 1):
            one_by_one = weights(steadily, TASKS[:count])
            hows.append(steadily.opened.how)
        numbers = [steadily.opened.calibrated.temperature, *steadily.opened.calibrated.thresholds]
        after = weights(steadily, TASKS[:-1])
        at_once = cleared()
        all_of_them = weights(at_once, TASKS)
        fresh = [at_once.opened.calibrated.temperature, *at_once.opened.calibrated.thresholds]
        fewer = weights(cleared(), TASKS[:-1])
    finally:
        bank.close()
        view.close()
    return {
        "largest_weight": float(all_of_them.abs().max()),
        "one_by_one": float((one_by_one - all_of_them).abs().max()),
        "one_removed": float((after - fewer).abs().max()),
        "how": hows,
        "temperature_and_threshold": [abs(a - b) for a, b in zip(numbers, fresh, strict=True)],
    }


# -- overhead ------------------------------------------------------------------------------------


def wide_hub(work: Path) -> Any:
    """A random NF4 Llama of hidden size 1024 with a random adapter for each of four tasks, and their replay samples."""
    from mixed_batch import make_base, write_adapters

    from adapterhub_cl import AdapterHub
    from adapterhub_cl.types import Task

    place = work / "hub-wide"
    if (place / "done").exists():
        return AdapterHub.open(place)
    shutil.rmtree(place, ignore_errors=True)
    folders = write_adapters(make_base(work, "hidden1024"), work / "wide-adapters", len(FOUR))
    hub = AdapterHub.init(place, base=str(work / "hidden1024"))
    for task, folder in zip(FOUR, folders, strict=True):
        rows = lines_of(task, "train")[:40]
        with hub.registry.new_draft(task) as draft:
            for path in folder.iterdir():
                shutil.copyfile(path, draft.path / path.name)
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (draft.path / "replay.jsonl").write_text(text, encoding="utf-8")
            labels = tuple(sorted({row["output"] for row in rows}))
            spec = Task(task, "choice", instruction=rows[0]["instruction"], labels=labels, metric="accuracy")
            hub.registry.publish(draft, {"kind": "imported", "rank": 16}, task=spec)
    (place / "done").touch()
    return hub


def overhead(hub: Any, rounds: int) -> list[dict[str, Any]]:
    """Seconds of deciding within requests, against the whole of them: bare inputs of agnews."""
    from adapterhub_cl.inference.requests import AnswerRequest, free_request

    texts = [row.input for row in drawn(("agnews",), 100)]
    spent: list[float] = []
    found = []
    with hub.engine(wait_ms=0) as engine:
        worker, generate = engine._worker, engine.base.model.generate
        deciding = worker.decider.decide

        def timed(*given: Any, **more: Any) -> Any:
            started = time.perf_counter()
            routed = deciding(*given, **more)
            spent.append(time.perf_counter() - started)
            # All are taken for known: the base would write answers of another length.
            return [replace(one, out_of_distribution=False) for one in routed]

        def written_out(*given: Any, **more: Any) -> Any:
            return generate(*given, **more, min_new_tokens=more["max_new_tokens"])

        worker.decider.decide = timed
        engine.base.model.generate = written_out
        try:
            for kind in ("32 tokens written", "a label chosen"):
                for rows in (1, 16):
                    shares, wholes, parts = [], [], []
                    for turn in range(rounds + 2):
                        asked = [texts[(turn * rows + k) % len(texts)] for k in range(rows)]
                        requests: list[AnswerRequest] = [
                            free_request(text, None, None, 1, False, {"max_new_tokens": 32})
                            if kind.startswith("32")
                            else AnswerRequest(_bare(text))
                            for text in asked
                        ]
                        spent.clear()
                        started = time.perf_counter()
                        worker.queue.put(requests)  # all at once, as 16 clients at the same moment
                        for request in requests:
                            request.future.result()
                        whole = time.perf_counter() - started
                        if turn >= 2:
                            shares.append(sum(spent) / whole)
                            wholes.append(whole)
                            parts.append(sum(spent))
                    one = {"request": kind, "rows": rows, "share": statistics.median(shares)}
                    one |= {"routing_ms": 1000 * statistics.median(parts), "whole_ms": 1000 * statistics.median(wholes)}
                    found.append(one)
                    print(one, flush=True)
        finally:
            worker.decider.decide = deciding
            del engine.base.model.generate
    return found


def _bare(text: str) -> Any:
    from adapterhub_cl.types import Example

    return Example(text)


# -- run -----------------------------------------------------------------------------------------


def run(work: Path, seeds: Sequence[int], only: Sequence[str]) -> None:
    """Everything that is not there yet."""
    results = Results(work)
    for seed in seeds:
        train(work, seed)
    for seed in seeds:
        wanted: list[tuple[Row, str, str]] = []
        for scope, tasks in SCOPES.items():
            hub = scoped(work, seed, scope, tasks)
            for router in routers(only, seed == seeds[0]):
                for form in FORMS:
                    rows = rows_for(router, tasks)
                    name = f"decisions-{seed}-{scope}-{form}-{router}"
                    found = results.made(name, lambda h=hub, r=router, f=form, n=rows: decide(h, r, f, n))
                    wanted += [(row, form, task) for row, task in zip(rows, found["task"], strict=True)]
                    wanted += [(row, form, row.task) for row in rows]
        answers = Answers(results, scoped(work, seed, "fifteen", TASKS), seed)
        answers.need(wanted)
        print(f"seed {seed}: {len(answers.known)} answers", flush=True)
    for seed in seeds:
        for pair in UNKNOWN:
            tasks = tuple(task for task in TASKS if task not in pair)
            hub = scoped(work, seed, "-".join(("without", *pair)), tasks)
            for router in routers(only, seed == seeds[0]):
                if router in SLOW and pair != UNKNOWN[0]:
                    continue
                for form in FORMS:
                    few = SLOW_ROWS if router in SLOW else UNKNOWN_ROWS
                    rows, others = drawn(tasks, few), drawn(pair, few)
                    name = f"unknown-{seed}-{'-'.join(pair)}-{form}-{router}"
                    results.made(name, lambda h=hub, r=router, f=form, n=rows, o=others: decide(h, r, f, n, o))
    for seed in seeds:
        if "analytic" in only:
            for scope, tasks in SCOPES.items():
                for form in FORMS:
                    rows, hub = drawn(tasks, TEST_ROWS), scoped(work, seed, scope, tasks)
                    results.made(f"mixed-{seed}-{scope}-{form}", lambda h=hub, f=form, n=rows: mixed(h, f, n))
            results.made(f"growth-{seed}", lambda s=seed: grow(scoped(work, s, "growing", TASKS)))
        if "analytic" in only and seed == seeds[0]:
            results.made("overhead-tiny", lambda s=seed: overhead(scoped(work, s, "fifteen", TASKS), 40))
            results.made("overhead-wide", lambda: overhead(wide_hub(work), 15))


def routers(only: Sequence[str], first_seed: bool) -> list[str]:
    """Those that are measured in a seed."""
    return [router for router in ROUTERS if router in only and (first_seed or router not in ONE_SEED)]


# -- table ---------------------------------------------------------------------------------------


def family(task: str) -> str:
    return FAMILY.get(task, task)


def mean_over_tasks(hits: Iterable[tuple[str, bool]]) -> tuple[float, dict[str, float]]:
    """Mean over tasks of the share of hits, and each task's."""
    by_task: dict[str, list[bool]] = {}
    for task, hit in hits:
        by_task.setdefault(task, []).append(hit)
    shares = {task: sum(own) / len(own) for task, own in by_task.items()}
    return sum(shares.values()) / len(shares), shares


def scored(results: Results, seed: int, scope: str, form: str, router: str, known: dict[str, str]) -> Any:
    """The figures of one router, seed, scope and form."""
    found = results.get(f"decisions-{seed}-{scope}-{form}-{router}")
    if found is None:
        return None
    rows = rows_for(router, SCOPES[scope])
    tasks, out = found["task"], found["out"]

    def answer(row: Row, task: str) -> str:
        return known[Answers.key(row, form, task)]

    def hits(named: Sequence[str], fallback: bool) -> list[tuple[str, bool]]:
        return [
            (row.task, (found["base"][row.key] if fallback and shy else answer(row, task)) == row.output)
            for row, task, shy in zip(rows, named, out, strict=True)
        ]

    oracle, oracles = mean_over_tasks(hits([row.task for row in rows], False))
    learned = [task for task in oracles if oracles[task] >= most_frequent(task) + MARGIN]
    figures: dict[str, Any] = {
        "seed": seed,
        "scope": scope,
        "form": form,
        "router": router,
        "task": mean_over_tasks((row.task, task == row.task) for row, task in zip(rows, tasks, strict=True))[0],
        "family": mean_over_tasks(
            (row.task, family(task) == family(row.task)) for row, task in zip(rows, tasks, strict=True)
        )[0],
        "fallback": mean_over_tasks((row.task, shy) for row, shy in zip(rows, out, strict=True))[0],
        "oracle": oracle,
        "oracle_per_task": oracles,
        "ms": 1000 * found["seconds"],
        "fit_s": found["fit_seconds"],
        "threshold": found["threshold"],
        "rows": len(rows),
    }
    for name, fallback in (("", True), ("_no_fallback", False)):
        end, ends = mean_over_tasks(hits(tasks, fallback))
        figures |= {f"end{name}": end, f"relative{name}": end / oracle, f"per_task{name}": ends}
        of_learned = sum(ends[task] for task in learned) / sum(oracles[task] for task in learned)
        figures[f"relative_learned{name}"] = of_learned
    figures["learned"] = learned
    confusions: dict[str, int] = {}
    for row, task in zip(rows, tasks, strict=True):
        if task != row.task:
            confusions[f"{row.task} → {task}"] = confusions.get(f"{row.task} → {task}", 0) + 1
    figures["confusions"] = dict(sorted(confusions.items(), key=lambda item: -item[1])[:8])
    shy_by_task: dict[str, int] = {}
    for row, shy in zip(rows, out, strict=True):
        if shy:
            shy_by_task[row.task] = shy_by_task.get(row.task, 0) + 1
    figures["fallbacks"] = dict(sorted(shy_by_task.items(), key=lambda item: -item[1]))
    return figures


@cache
def most_frequent(task: str) -> float:
    """Share of the most frequent answer among the test rows."""
    said = [row.output for row in drawn((task,), TEST_ROWS)]
    return max(said.count(answer) for answer in set(said)) / len(said)


def blended(results: Results, seed: int, scope: str, form: str, known: dict[str, str]) -> Any:
    """The figures of analytic with two tasks mixed."""
    found = results.get(f"mixed-{seed}-{scope}-{form}")
    if found is None:
        return None
    rows = drawn(SCOPES[scope], TEST_ROWS)
    end, ends = mean_over_tasks(
        (row.task, said == row.output) for row, said in zip(rows, found["prediction"], strict=True)
    )
    oracle, _ = mean_over_tasks((row.task, known[Answers.key(row, form, row.task)] == row.output) for row in rows)
    return {"seed": seed, "scope": scope, "form": form, "end": end, "relative": end / oracle, "per_task": ends}


def auroc(known: Sequence[float], unknown: Sequence[float]) -> float:
    """Chance that a text of an unknown task is less familiar than one of a known task."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score([1] * len(known) + [0] * len(unknown), [*known, *unknown]))


def shown(values: Sequence[float], digits: int = 1, scale: float = 100.0) -> str:
    """Mean ± standard deviation over the seeds."""
    from adapterhub_cl.evaluation.matrix import mean_and_spread

    mean, spread, count = mean_and_spread([scale * value for value in values])
    return f"{mean:.{digits}f}" + (f" ± {spread:.{digits}f}" if spread is not None and count > 1 else "")


def table(work: Path, output: Path, seeds: Sequence[int]) -> None:
    """Markdown and JSON of what was measured."""
    results = Results(work)
    rows: list[dict[str, Any]] = []
    blends: list[dict[str, Any]] = []
    unknown: list[dict[str, Any]] = []
    for seed in seeds:
        known = results.get(f"answers-{seed}") or {}
        for scope in SCOPES:
            for form in FORMS:
                found = [scored(results, seed, scope, form, router, known) for router in ROUTERS]
                rows += [one for one in found if one]
                blends += [one for one in [blended(results, seed, scope, form, known)] if one]
        for pair in UNKNOWN:
            for form in FORMS:
                for router in ROUTERS:
                    one = results.get(f"unknown-{seed}-{'-'.join(pair)}-{form}-{router}")
                    if one:
                        about = {"seed": seed, "pair": pair, "form": form, "router": router}
                        about["flagged"] = sum(one["unknown_out"]) / len(one["unknown_out"])
                        about["false"] = sum(one["out"]) / len(one["out"])
                        about["auroc"] = auroc(one["familiarity"], one["unknown"])
                        least = sorted(one["familiarity"])[len(one["familiarity"]) // 100]
                        about["at_one_percent"] = sum(value < least for value in one["unknown"]) / len(one["unknown"])
                        unknown.append(about)
    growth = [one for one in (results.get(f"growth-{seed}") for seed in seeds) if one]
    overheads = {name: results.get(f"overhead-{name}") for name in ("tiny", "wide")}
    lines = [
        *_head(),
        *_read(rows, blends, unknown, overheads),
        *_ends(rows, blends),
        *_per_task(rows),
        *_unknown(unknown),
        *_growth(growth),
    ]
    lines += _overhead(overheads)
    about = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    lines += ["", f"Measured on {about}, one thread, a machine shared with other work.", ""]
    output.mkdir(parents=True, exist_ok=True)
    text = "\n".join(lines)
    (output / "routing.md").write_text(text, encoding="utf-8")
    kept = {"rows": rows, "mixed": blends, "unknown": unknown, "growth": growth, "overhead": overheads}
    (output / "routing.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    print(text)


def _head() -> list[str]:
    return [
        "# Which task a text belongs to",
        "",
        "Fifteen adapters of cl15 on base `tiny` (NF4; rank 16, 1,000 training rows, 3 epochs, 200 replay samples), "
        f"three seeds. {TEST_ROWS} test rows of each task (cb has {len(drawn(('cb',), TEST_ROWS))}, copa "
        f"{len(drawn(('copa',), TEST_ROWS))}) that no adapter was trained on; perplexity, which reads each text once "
        f"under every adapter, decides on {SLOW_ROWS} of them; it and arrow in one seed. Shares in %, mean over tasks, "
        "then mean ± standard deviation over the seeds (each with its own adapters, replay samples and router).",
        "",
        "- *task*: the right one is chosen; *family*: so is one with the same labels and question (yelp for amazon, "
        "imdb for sst2).",
        "- *fallback*: taken for out of distribution, so that the base answers.",
        "- *end*: the answer equals the row's to the letter; *of the oracle*: that ÷ the same engine's with the task "
        "named, on the same rows; *without fallback*: with `fallback=False`, the likeliest task always answers.",
        "- *ms*: of deciding, for one of some hundred texts asked at once, on one thread; what routing adds to a "
        "request is below.",
        "",
        "    python examples/benchmarks/routing.py run --work DIR",
        "    python examples/benchmarks/routing.py table --work DIR -o docs/benchmarks",
    ]


def _read(
    rows: list[dict[str, Any]],
    blends: list[dict[str, Any]],
    unknown: list[dict[str, Any]],
    overheads: dict[str, Any],
) -> list[str]:
    """What can be read from the tables, with their numbers."""

    def of(router: str, scope: str, form: str, key: str) -> str:
        return shown([r[key] for r in rows if (r["router"], r["scope"], r["form"]) == (router, scope, form)])

    lines = ["", "## What can be read from it", ""]
    for form, named in (("whole", "From the whole prompt"), ("bare", "From the bare input")):
        four, fifteen = (of("analytic", scope, form, "relative") for scope in SCOPES)
        lines.append(
            f"- {named} `analytic` keeps {four} % of the oracle's end accuracy among four tasks and {fifteen} % among "
            f"fifteen; without fallback {of('analytic', 'four', form, 'relative_no_fallback')} and "
            f"{of('analytic', 'fifteen', form, 'relative_no_fallback')}. It names the task in "
            f"{of('analytic', 'four', form, 'task')} % and {of('analytic', 'fifteen', form, 'task')} %."
        )
    lines.append(
        "- Of the others, fifteen tasks from the bare input (task found, share of the oracle): "
        + "; ".join(
            f"`{router}` {of(router, 'fifteen', 'bare', 'task')} and {of(router, 'fifteen', 'bare', 'relative')} %"
            for router in ("mahalanobis", "learned", "centroid")
        )
        + "."
    )
    lines.append(
        f"- `arrow` ({of('arrow', 'fifteen', 'whole', 'task')} % of fifteen tasks) and `perplexity` "
        f"({of('perplexity', 'fifteen', 'whole', 'task')} %; chance is {100 / len(TASKS):.1f} %) do not route these "
        "adapters: whatever the text, they mostly name the same one or two tasks. Why was not measured."
    )
    for form in FORMS:
        both = [one["end"] for one in blends if (one["scope"], one["form"]) == ("fifteen", form)]
        if both:
            lines.append(
                f"- Mixing two adapters (`top_k=2`), fifteen tasks, {form}: {shown(both)} % end accuracy, against "
                f"{of('analytic', 'fifteen', form, 'end')} with one."
            )
    for form in FORMS:
        for router in ("analytic", "learned", "centroid"):
            own = [one for one in unknown if (one["router"], one["form"]) == (router, form)]
            if own:
                lines.append(
                    f"- Texts of unknown tasks, {form}: `{router}` has an AUROC of {_mean(own, 'auroc'):.3f} and flags "
                    f"{100 * _mean(own, 'flagged'):.0f} % of them at its own threshold, with "
                    f"{100 * _mean(own, 'false'):.1f} % of the known tasks' texts; at 1 % of these it would flag "
                    f"{100 * _mean(own, 'at_one_percent'):.0f} %."
                )
    for base, found in overheads.items():
        shares = [f"{100 * one['share']:.1f}" for one in found or () if one["request"].startswith("32")]
        if shares:
            lines.append(
                f"- Of a request that writes 32 tokens routing takes {shares[0]} % ({base} base, one row), and "
                f"{shares[1]} % of sixteen at once."
            )
    here = [r for r in rows if (r["router"], r["scope"], r["form"]) == ("analytic", "fifteen", "whole")]
    learned = [task for task in TASKS if all(task in row["learned"] for row in here)]
    lines.append(
        f"- The oracle itself is right in {shown([row['oracle'] for row in here])} % only: with `tiny`, of six million "
        f"weights, it beats the most frequent answer by {100 * MARGIN:.0f} points in every seed on {len(learned)} of "
        f"{len(TASKS)} tasks ({', '.join(learned)}), and on the others a wrong task can cost little. (This margin "
        f"was set after the figures were seen.) On the tasks so learned analytic "
        f"keeps {of('analytic', 'fifteen', 'whole', 'relative_learned')} % from the whole prompt and "
        f"{of('analytic', 'fifteen', 'bare', 'relative_learned')} % from the bare input, among fifteen."
    )
    return lines


def _ends(rows: list[dict[str, Any]], blends: list[dict[str, Any]]) -> list[str]:
    lines: list[str] = []
    inputs = {"whole": "whole prompt (instruction and input)", "bare": "bare input"}
    for scope in SCOPES:
        for form in FORMS:
            here = [row for row in rows if row["scope"] == scope and row["form"] == form]
            if not here:
                continue
            oracle = shown([row["oracle"] for row in here if row["router"] == ROUTERS[0]])
            lines += ["", f"## {scope} tasks, {inputs[form]}", "", f"The oracle answers {oracle} rightly.", ""]
            lines.append(
                "| router | task | family | fallback | end | of the oracle | end without fallback "
                "| of the oracle without fallback | ms |"
            )
            lines.append("|---|" + "---|" * 8)
            ranked = {r: [row for row in here if row["router"] == r] for r in ROUTERS}
            for router in sorted((r for r in ROUTERS if ranked[r]), key=lambda r: -_mean(ranked[r], "relative")):
                own = ranked[router]
                keys = ("task", "family", "fallback", "end", "relative", "end_no_fallback", "relative_no_fallback")
                cells = " | ".join(shown([row[key] for row in own]) for key in keys)
                few = f" ({own[0]['rows']} rows)" if router in SLOW else ""
                lines.append(f"| {router}{few} | {cells} | {shown([row['ms'] for row in own], 1, 1)} |")
            both = [one for one in blends if one["scope"] == scope and one["form"] == form]
            if both:
                end, relative = (shown([one[key] for one in both]) for key in ("end", "relative"))
                lines.append(f"| analytic, `top_k=2` | | | | {end} | {relative} | | | |")
    return lines


def _mean(rows: Sequence[dict[str, Any]], key: str) -> float:
    return sum(float(row[key]) for row in rows) / len(rows)


def _per_task(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["", "## Each task of fifteen: end accuracy", ""]
    for form in FORMS:
        here = [row for row in rows if row["scope"] == "fifteen" and row["form"] == form]
        there = [router for router in ROUTERS if any(row["router"] == router for row in here)]
        if not there:
            continue
        lines += [f"From the {form} {'prompt' if form == 'whole' else 'input'}, fallback on.", ""]
        lines += [f"| task | oracle | {' | '.join(there)} |", "|---|" + "---|" * (len(there) + 1)]
        for task in TASKS:
            cells = [shown([row["oracle_per_task"][task] for row in here if row["router"] == there[0]])]
            cells += [shown([row["per_task"][task] for row in here if row["router"] == router]) for router in there]
            lines.append(f"| {task} | {' | '.join(cells)} |")
        lines.append("")
    return lines[:-1]


def _unknown(found: list[dict[str, Any]]) -> list[str]:
    if not found:
        return []
    pairs = ", ".join(" and ".join(pair) for pair in UNKNOWN)
    lines = ["", "## Texts of unknown tasks", ""]
    lines += [
        f"Two of the fifteen left out of the hub ({pairs}; mean of the three). *AUROC*: chance that a test text of a "
        "left-out task is less familiar than one of a known task. *Flagged*: left-out texts taken for out of "
        "distribution at the threshold that calibration chose; *falsely*: known tasks' texts that were; *at 1 %*: what "
        "would be flagged at the threshold that takes 1 % of these known texts falsely, which only the test texts "
        "tell. "
        f"{UNKNOWN_ROWS} texts of each task. Arrow: one seed; perplexity: one seed, the first pair, {SLOW_ROWS} texts.",
        "",
        "| router | AUROC, whole | flagged | falsely | at 1 % | AUROC, bare | flagged | falsely | at 1 % |",
        "|---|" + "---|" * 8,
    ]
    for router in ROUTERS:
        cells = []
        for form in FORMS:
            here = [one for one in found if one["router"] == router and one["form"] == form]
            seeds = sorted({one["seed"] for one in here})
            for key in ("auroc", "flagged", "false", "at_one_percent"):
                own = [_mean([one for one in here if one["seed"] == seed], key) for seed in seeds]
                cells.append((shown(own, 3, 1) if key == "auroc" else shown(own)) if own else "")
        if any(cells):
            lines.append(f"| {router} | {' | '.join(cells)} |")
    lines += ["", "Analytic by pair:", "", "| left out | AUROC, whole | flagged | AUROC, bare | flagged |"]
    lines.append("|---|---|---|---|---|")
    for pair in UNKNOWN:
        cells = []
        for form in FORMS:
            here = [o for o in found if o["router"] == "analytic" and o["form"] == form and tuple(o["pair"]) == pair]
            cells += [shown([one["auroc"] for one in here], 3, 1), shown([one["flagged"] for one in here])]
        lines.append(f"| {' and '.join(pair)} | {' | '.join(cells)} |")
    return lines


def _growth(found: list[dict[str, Any]]) -> list[str]:
    if not found:
        return []
    least = {key: max(one[key] for one in found) for key in ("one_by_one", "one_removed", "largest_weight")}
    return [
        "",
        "## One by one against all at once",
        "",
        "Fifteen tasks added to analytic one after another, against a fit on all fifteen at once; then one taken out, "
        f"against a fit on fourteen. Largest difference of a weight over {len(found)} seeds: "
        f"{least['one_by_one']:.1e} and {least['one_removed']:.1e} (largest weight "
        f"{least['largest_weight']:.2f}).",
    ]


def _overhead(found: dict[str, Any]) -> list[str]:
    if not any(found.values()):
        return []
    lines = ["", "## What routing adds to a request", ""]
    lines += [
        "Time within `decide` against the whole of the call, bare inputs of agnews, medians; the adapters were kept "
        "from ending an answer before 32 tokens. *wide*: a random Llama of hidden size 1024 with four random adapters.",
        "",
        "| base | request | rows at once | routing, ms | whole, ms | share |",
        "|---|---|---|---|---|---|",
    ]
    for base, rows in found.items():
        for row in rows or ():
            times = f"{row['routing_ms']:.1f} | {row['whole_ms']:.1f}"
            lines.append(f"| {base} | {row['request']} | {row['rows']} | {times} | {100 * row['share']:.1f} % |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    running = verbs.add_parser("run")
    showing = verbs.add_parser("table")
    for one in (running, showing):
        one.add_argument("--work", type=Path, required=True)
        one.add_argument("--seeds", default="0,1,2")
    running.add_argument("--only", default=",".join(ROUTERS), help="these routers")
    showing.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    seeds = [int(seed) for seed in given.seeds.split(",")]
    if not DATA.is_dir():
        raise SystemExit(f"the data are not at {DATA}: nothing was measured")
    if given.verb == "table":
        table(given.work, given.output, seeds)
    else:
        run(given.work, seeds, given.only.split(","))


if __name__ == "__main__":
    main()
