"""Ten thousand requests while the hub changes under the engine: is every answer one that could rightly be given?

    python examples/benchmarks/soak.py run --work /tmp/soak -o docs/benchmarks

Fifty tasks with adapters of random weights on base tiny (NF4), behind a bank of sixteen. Eight threads ask by version,
by alias, by task and by router, while a thread and another process publish and delete versions, move and roll back
aliases, bring whole tasks and take them away again, and clear deleted directories from the disk. Everybody notes what
was done and when. Afterwards each answer is held against this log (was that version, at some time between question and
answer, the one that was asked for?) and its probabilities against those of plain PEFT with that version's weights.
An error is right only where what was asked for was gone. Memory is sampled all along.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

TOLERANCE = 1e-4  # of a label's probability, fp32
VARIANTS = 4  # sets of weights for each task; its versions take them in turns
SAMPLES, TEXTS = 12, 6  # of each task: replay samples, and texts that are asked
VISITORS = "guest"
PRODUCTION, LATEST, CANARY = "production", "latest", "canary"


@dataclass(frozen=True)
class Plan:
    """How large the soak is."""

    base: str = "tiny"
    quantization: str = "nf4"
    tasks: int = 50
    requests: int = 10_000
    threads: int = 8
    capacity: int = 16
    host_bytes: int = 8_000_000
    pause: float = 0.05  # seconds between two changes, of either changer, on average
    seed: int = 0


@dataclass
class Asked:
    """A request and what came of it."""

    how: str
    what: str
    task: str
    text: str
    started: float
    ended: float = 0.0
    adapter: str = ""
    answered: str = ""
    prediction: str = ""
    scores: dict[str, float] = field(default_factory=dict)
    error: str = ""
    kind: str = ""


# -- the world: tasks, texts and weights ---------------------------------------------------------


def names_of(plan: Plan) -> list[str]:
    return [f"t{k:02}" for k in range(plan.tasks)]


def shared_out(plan: Plan) -> tuple[list[str], list[str]]:
    """The tasks that the thread and the other process change; a fifth is left alone."""
    names = names_of(plan)
    return names[: plan.tasks // 2], names[plan.tasks // 2 : plan.tasks * 4 // 5]


def words_of(task: str) -> list[str]:
    draw = random.Random(f"words {task}")
    return ["".join(draw.choice("bdfgklmnprstvz") + draw.choice("aeiou") for _ in range(3)) for _ in range(10)]


def sentences(task: str, what: str, count: int) -> list[str]:
    draw, words = random.Random(f"{what} {task}"), words_of(task)
    return [" ".join(draw.choice(words) for _ in range(8)) for _ in range(count)]


def spec_of(task: str) -> Any:
    from adapterhub_cl.types import Task

    labels = tuple(random.Random(f"labels {task}").sample(("ka", "ko", "ku", "ta", "to", "tu", "na"), 3))
    return Task(task, "choice", instruction=f"Sort {words_of(task)[0]}.", labels=labels, metric="accuracy")


def write_weights(base: Any, folder: Path, tasks: Iterable[str]) -> None:
    """Random adapters in PEFT's format: `VARIANTS` for each task."""
    import torch
    from safetensors.torch import save_file

    from adapterhub_cl.adapters.targets import targets_of

    names = {name.rpartition(".")[2] for name in targets_of(base, None, None)}
    shapes = {
        name: (module.out_features, module.in_features)
        for name, module in base.model.named_modules()
        if name.rpartition(".")[2] in names and hasattr(module, "in_features")
    }
    for task in tasks:
        for variant in range(VARIANTS):
            target = folder / f"{task}-{variant}"
            target.mkdir(parents=True)
            draw = random.Random(f"{task} {variant}")
            rank, generator = draw.choice((4, 8, 16)), torch.Generator().manual_seed(draw.randrange(2**40))
            weights = {}
            for name, (out, in_) in shapes.items():
                a, b = (torch.randn(shape, generator=generator) for shape in ((rank, in_), (out, rank)))
                weights[f"base_model.model.{name}.lora_A.weight"] = a / in_**0.5
                weights[f"base_model.model.{name}.lora_B.weight"] = b * (0.5 / rank**0.5)
            save_file(weights, target / "adapter_model.safetensors", metadata={"format": "pt"})
            config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank}
            config |= {"target_modules": sorted(names), "base_model_name_or_path": base.info.source}
            (target / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
            rows = [
                json.dumps({"instruction": "", "input": text, "output": spec_of(task).labels[k % 3]}) + "\n"
                for k, text in enumerate(sentences(task, "samples", SAMPLES))
            ]
            (target / "replay.jsonl").write_text("".join(rows), encoding="utf-8")


# -- changes -------------------------------------------------------------------------------------


class Changer:
    """Changes its tasks of a hub, and notes what there was of each after every change, and when.

    Runs without torch. A note is {task, begin, end, versions: {version: weights}, aliases, serving}: true from `begin`
    at the earliest and to the next note's `end` at the latest.
    """

    def __init__(self, hub: Path, weights: Path, tasks: Sequence[str], guest: str, seed: str, pause: float) -> None:
        from adapterhub_cl.registry import Registry

        self.registry, self.weights, self.guest, self.pause = Registry.open(hub), weights, guest, pause
        self.tasks, self.draw = list(tasks), random.Random(seed)
        self.versions: dict[str, dict[int, str]] = {task: {} for task in [*tasks, guest]}
        self.next = dict.fromkeys(self.versions, 0)
        self.notes: list[dict[str, Any]] = []
        self.counts: dict[str, int] = {}
        self.doing, self.problems = "", list[str]()

    def begin_with(self, notes: Iterable[Mapping[str, Any]]) -> None:
        """What there is at first."""
        for note in notes:
            if note["task"] in self.versions:
                self.versions[note["task"]] = {int(v): w for v, w in note["versions"].items()}
                self.next[note["task"]] = len(self.versions[note["task"]])

    def note(self, task: str, begin: float) -> None:
        aliases, serving = self.registry.aliases().get(task, {}), self.registry.serving().get(task)
        there = dict(self.versions[task])
        about = {"task": task, "begin": begin, "versions": there, "aliases": aliases, "serving": serving}
        self.notes.append({**about, "end": time.monotonic()})

    def publish(self, task: str) -> None:
        begin, weights = time.monotonic(), f"{task}-{self.next[task] % VARIANTS}"
        with self.registry.new_draft(task) as draft:
            for path in (self.weights / weights).iterdir():
                shutil.copyfile(path, draft.path / path.name)
            record = self.registry.publish(draft, {"kind": "imported", "rank": 8}, task=spec_of(task))
        self.versions[task][record.version] = weights
        self.next[task] += 1
        self.note(task, begin)

    def delete(self, task: str, version: int) -> None:
        begin = time.monotonic()
        self.registry.delete(f"{task}@v{version}")
        del self.versions[task][version]
        self.note(task, begin)

    def spare(self, task: str) -> list[int]:
        """Versions that no alias names and that serve nobody."""
        used = set(self.registry.aliases().get(task, {}).values())
        return [v for v in self.versions[task] if v not in used and f"{task}@v{v}" != self.registry.serving().get(task)]

    def change(self) -> None:
        """One change, drawn."""
        from adapterhub_cl.errors import AdapterError, UnknownNameError

        task, verb = self.draw.choice(self.tasks), self.draw.choice(VERBS)
        self.doing, begin = f"{verb} {task}", time.monotonic()
        if verb == "publish" and len(self.versions[task]) < 6:
            self.publish(task)
        elif verb == "delete" and (spare := self.spare(task)):
            self.delete(task, self.draw.choice(spare))
        elif verb == "replace":  # what served a moment ago is gone
            if PRODUCTION in self.registry.aliases().get(task, {}):  # a rollback may have taken it away
                self.registry.drop_alias(task, PRODUCTION)
            self.note(task, begin)
            self.publish(task)
            for version in self.spare(task):
                self.delete(task, version)
            begin = time.monotonic()
            self.registry.set_alias(f"{task}@v{max(self.versions[task])}", PRODUCTION)
            self.note(task, begin)
        elif verb in (PRODUCTION, CANARY):
            self.registry.set_alias(f"{task}@v{self.draw.choice(list(self.versions[task]))}", verb)
            self.note(task, begin)
        elif verb == "rollback":
            try:
                self.registry.rollback(f"{task}@{PRODUCTION}")
            except (AdapterError, UnknownNameError):
                return  # there is nothing before, or an earlier rollback took it away
            self.note(task, begin)
        elif verb == "guest":
            if self.versions[self.guest]:
                for version in list(self.versions[self.guest]):
                    self.delete(self.guest, version)
            else:
                self.publish(self.guest)
        elif verb == "gc":
            self.registry.collect(self.registry.garbage(0))
        else:
            return
        self.counts[verb] = self.counts.get(verb, 0) + 1

    def go_on(self, stop: Any) -> None:
        while not stop():
            try:
                self.change()
            except Exception as error:  # a change that fails is a finding
                self.problems.append(f"{self.doing}: {type(error).__name__}: {error}")
            time.sleep(self.draw.uniform(0, 2 * self.pause))


COMMON = ("publish", "publish", "delete", "replace", PRODUCTION, CANARY, "rollback")
VERBS = (*COMMON * 6, "guest", "gc")


def changing_process(folder: Path, plan: Plan) -> None:
    """The other process: changes its tasks until its standard input ends."""
    over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
    changer = Changer(
        folder / "hub", folder / "weights", shared_out(plan)[1], f"{VISITORS}2", f"{plan.seed} two", 4 * plan.pause
    )
    changer.begin_with(json.loads((folder / "begin.json").read_text(encoding="utf-8")))
    print("ready", flush=True)
    changer.go_on(over.is_set)
    found = {"notes": changer.notes, "counts": changer.counts, "problems": changer.problems}
    (folder / "other.json").write_text(json.dumps(found), encoding="utf-8")


# -- requests ------------------------------------------------------------------------------------


def asks(plan: Plan, number: int, noted: Mapping[str, int]) -> Iterator[tuple[str, str, str, str]]:
    """What a thread asks: how, what, whose text, text."""
    draw, names = random.Random(f"{plan.seed} thread {number}"), names_of(plan)
    texts = {name: sentences(name, "texts", TEXTS) for name in names}
    while True:
        task = draw.choice(names)
        how = draw.choice(("task", "task", "router", "router", "version", PRODUCTION, LATEST, CANARY))
        what = {"task": task, "router": "", "version": f"{task}@v{draw.randint(1, noted[task])}", LATEST: task}
        yield how, what.get(how, f"{task}@{how}"), task, draw.choice(texts[task])


def ask(engine: Any, plan: Plan, number: int, count: int, newest: Mapping[str, int], into: list[Asked]) -> None:
    from adapterhub_cl.errors import AdapterHubError

    asking = asks(plan, number, newest)
    for _ in range(count):
        how, what, task, text = next(asking)
        named = {"task": {"task": what}, "router": {}}.get(how, {"adapter": what})
        one = Asked(how, what, task, text, time.monotonic())
        try:
            found = engine.predict([text], **named)[0]
            one.adapter, one.answered, one.prediction = found.adapter, found.task, found.prediction
            one.scores = dict(found.scores)
        except AdapterHubError as error:
            one.error, one.kind = str(error), type(error).__name__
        except Exception as error:
            one.error, one.kind = str(error), f"!{type(error).__name__}"
        one.ended = time.monotonic()
        into.append(one)


class Newest(dict[str, int]):
    """Task → a version number around the newest, as far as this process knows."""

    def __init__(self, changer: Changer, rest: Mapping[str, int]) -> None:
        super().__init__(rest)
        self.changer = changer

    def __getitem__(self, task: str) -> int:
        own = self.changer.versions.get(task)
        return max(own, default=1) if own is not None else super().__getitem__(task)


def resident() -> int:
    """Bytes of memory that this process holds."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# -- checking ------------------------------------------------------------------------------------


class Log:
    """What was true of each task, and when."""

    def __init__(self, notes: Iterable[Mapping[str, Any]]) -> None:
        self.of: dict[str, list[Mapping[str, Any]]] = {}
        for note in notes:
            self.of.setdefault(note["task"], []).append(note)
        for own in self.of.values():
            own.sort(key=lambda note: note["begin"])

    def during(self, task: str, begin: float, end: float) -> list[Mapping[str, Any]]:
        """All that was true at some time between two."""
        own = self.of.get(task, [])
        until = [note["end"] for note in own[1:]] + [float("inf")]
        return [note for note, last in zip(own, until, strict=True) if note["begin"] <= end and last >= begin]

    def weights(self, task: str, version: int) -> str:
        for note in self.of.get(task, []):
            for known, weights in note["versions"].items():
                if int(known) == version:
                    return str(weights)
        return ""


def meant(one: Asked, states: Sequence[Mapping[str, Any]]) -> set[str | None]:
    """The versions that could rightly answer; None where there was nobody to answer for a time."""
    task = states[0]["task"] if states else one.task
    if one.how in ("task", "router"):
        return {state["serving"] for state in states}
    if one.how == "version":
        version = int(one.what.rpartition("v")[2])
        return {one.what if version in map(int, state["versions"]) else None for state in states}
    named = {state["aliases"].get(one.how) for state in states}
    return {None if version is None else f"{task}@v{version}" for version in named}


def judge(log: Log, asked: Sequence[Asked]) -> dict[str, Any]:
    """Answers by versions that could not have been meant, and errors that were not due."""
    wrong, errors, due, other_task = [], [], 0, 0
    for one in asked:
        task = one.answered if one.how == "router" and not one.error else one.task
        allowed = meant(one, log.during(task, one.started, one.ended))
        if one.error:
            if None in allowed and not one.kind.startswith("!") and one.how != "router":
                due += 1
            else:
                errors.append(asdict(one) | {"allowed": sorted(map(str, allowed))})
        elif one.adapter not in allowed:
            wrong.append(asdict(one) | {"allowed": sorted(map(str, allowed))})
        other_task += one.how == "router" and not one.error and task != one.task
    return {"wrong": wrong, "errors": errors, "due": due, "other_task": other_task}


def compare(base: Any, weights: Path, log: Log, asked: Sequence[Asked]) -> dict[str, Any]:
    """Largest distance of an answer's probabilities from those of plain PEFT with the weights of its version, of how
    many distinct (weights, task, text); and how far apart the weights of one task are."""
    import torch
    from peft import PeftModel

    from adapterhub_cl.data.tokenise import Tokeniser
    from adapterhub_cl.types import Example

    wanted: dict[str, dict[tuple[str, str], list[Asked]]] = {}
    for one in asked:
        if not one.error:
            name, _, version = one.adapter.rpartition("@v")
            wanted.setdefault(log.weights(name, int(version)), {}).setdefault((one.answered, one.text), []).append(one)
    far: list[float] = []
    bad: list[dict[str, Any]] = []
    seen: dict[tuple[str, str], list[list[float]]] = {}
    first, model = next(iter(wanted)), None
    for name, cases in wanted.items():
        if model is None:
            model = PeftModel.from_pretrained(base.model, weights / first, adapter_name=first).eval()
        else:
            model.load_adapter(str(weights / name), name)
        model.set_adapter(name)
        for (task, text), ones in cases.items():
            encode = Tokeniser(base.tokenizer, spec_of(task), base.context)
            prompt, logs = list(encode(Example(text)).prompt), []
            for label in spec_of(task).labels:
                answer = list(encode.answer(label)[:-1])  # no label is the beginning of another
                ids = torch.tensor([prompt + answer])
                with torch.no_grad():
                    chances = model(input_ids=ids).logits[0].float().log_softmax(-1)
                places = torch.arange(len(prompt) - 1, len(prompt) + len(answer) - 1)
                logs.append(chances[places, torch.tensor(answer)].sum())
            expected = torch.stack(logs).softmax(0).tolist()
            seen.setdefault((task, text), []).append(expected)
            for one in ones:
                given = [one.scores[label] for label in spec_of(task).labels]
                far.append(max(abs(a - b) for a, b in zip(given, expected, strict=True)))
                if not far[-1] <= TOLERANCE:
                    bad.append(asdict(one) | {"expected": expected})
        if name != first:
            with warnings.catch_warnings():  # it was active: that is known
                warnings.simplefilter("ignore")
                model.delete_adapter(name)
    apart = [
        max(abs(a - b) for a, b in zip(one, other, strict=True))
        for all_of_them in seen.values()
        for k, one in enumerate(all_of_them)
        for other in all_of_them[:k]
    ]
    return {
        "compared": len(far),
        "distinct": sum(len(cases) for cases in wanted.values()),
        "farthest": max(far),
        "bad": bad,
        "weights_apart_median": statistics.median(apart) if apart else None,
        "weights_indistinct": sum(value <= 2 * TOLERANCE for value in apart) / len(apart) if apart else None,
    }


# -- the soak ------------------------------------------------------------------------------------


def soak(
    plan: Plan, folder: Path, through: Callable[[Any, Any], AbstractContextManager[Any]] | None = None
) -> dict[str, Any]:
    """All of it; `folder` must not be there yet.

    Args:
        through: (hub, engine) → what is asked in place of the engine.
    """
    from adapterhub_cl import AdapterHub

    folder.mkdir(parents=True)
    hub = AdapterHub.init(folder / "hub", plan.base, quantization=plan.quantization)
    hub = AdapterHub.open(hub.folder, dtype="fp32", device="cpu")
    base = hub.load_base()
    mine, theirs = shared_out(plan)
    guests = (f"{VISITORS}1", f"{VISITORS}2")
    write_weights(base, folder / "weights", [*names_of(plan), *guests])
    maker = Changer(hub.folder, folder / "weights", names_of(plan), guests[0], "begin", 0)
    for task in names_of(plan):
        maker.publish(task)
        maker.publish(task)
        maker.registry.set_alias(f"{task}@v1", CANARY)
        maker.registry.set_alias(f"{task}@v2", PRODUCTION)
        maker.note(task, time.monotonic())
    begin = [note | {"begin": 0.0} for note in {note["task"]: note for note in maker.notes}.values()]
    begin += [
        {"task": guest, "begin": 0.0, "end": 0.0, "versions": {}, "aliases": {}, "serving": None} for guest in guests
    ]
    (folder / "begin.json").write_text(json.dumps(begin), encoding="utf-8")
    changer = Changer(hub.folder, folder / "weights", mine, guests[0], f"{plan.seed} one", plan.pause)
    changer.begin_with(begin)

    asked: list[list[Asked]] = [[] for _ in range(plan.threads)]
    over, memory, open_files = threading.Event(), [], list[int]()
    counts = [plan.requests // plan.threads + (k < plan.requests % plan.threads) for k in range(plan.threads)]
    newest = Newest(changer, dict.fromkeys(names_of(plan), 4))
    command = [sys.executable, __file__, "change", "--work", str(folder), "--plan", json.dumps(asdict(plan))]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    settings = {"capacity": plan.capacity, "host_bytes": plan.host_bytes, "fallback": False}
    try:
        with hub.engine(**settings) as engine, (through or (lambda _, own: nullcontext(own)))(hub, engine) as server:
            engine.route(["warm"])
            assert other.stdout is not None
            assert other.stdout.readline().strip() == "ready"
            threads = [
                threading.Thread(target=ask, args=(server, plan, k, counts[k], newest, asked[k]))
                for k in range(plan.threads)
            ]
            change = threading.Thread(target=changer.go_on, args=(over.is_set,))
            started = time.monotonic()
            for thread in (change, *threads):
                thread.start()
            while any(thread.is_alive() for thread in threads):
                memory.append([time.monotonic() - started, sum(map(len, asked)), resident()])
                open_files.append(sum(1 for _ in Path("/proc/self/fd").iterdir()))
                threads[-1].join(0.25)
                time.sleep(0.05)
            seconds = time.monotonic() - started
            over.set()
            change.join()
            loads, notes = engine.bank.loads, list(engine.notes)
    finally:
        over.set()
        other.communicate(timeout=60)
    elsewhere = json.loads((folder / "other.json").read_text(encoding="utf-8"))

    everything = [one for own in asked for one in own]
    log = Log([*begin, *changer.notes, *elsewhere["notes"]])
    found = judge(log, everything)
    apart = compare(base, folder / "weights", log, everything)
    alone = set(names_of(plan)) - {*mine, *theirs}
    answered: dict[str, int] = {}
    for one in everything:
        if not one.error and one.adapter.partition("@")[0] in alone:
            answered[one.adapter] = answered.get(one.adapter, 0) + 1
    counted = {one.ref: one.requests for one in hub.registry.usage() if one.ref.partition("@")[0] in alone}
    bytes_now = [sample[2] for sample in memory]
    fifth = max(1, len(bytes_now) // 5)
    ways: dict[str, int] = {}
    for one in everything:
        ways[one.how] = ways.get(one.how, 0) + 1
    waits = sorted(one.ended - one.started for one in everything)
    return {
        "plan": asdict(plan),
        "requests": len(everything),
        "asked": ways,
        "answered": sum(not one.error for one in everything),
        "wrong_version": found["wrong"],
        "wrong_answer": apart["bad"],
        "errors": found["errors"],
        "errors_due": found["due"],
        "routed_to_another_task": found["other_task"],
        "compared_with_peft": {key: value for key, value in apart.items() if key != "bad"},
        "changes": {"thread": changer.counts, "process": elsewhere["counts"]},
        "change_problems": [*changer.problems, *elsewhere["problems"]],
        "counters_right": {ref: n for ref, n in counted.items() if n} == answered,
        "problems_after": [asdict(one) for one in hub.verify()],
        "bank_loads": loads,
        "notes": notes,
        "seconds": seconds,
        "requests_a_second": len(everything) / seconds,
        "wait_ms": {name: 1000 * waits[int(len(waits) * at)] for name, at in (("median", 0.5), ("99 %", 0.99))},
        "memory_mb": {
            "second_fifth": statistics.median(bytes_now[fifth : 2 * fifth] or bytes_now) / 1e6,
            "last_fifth": statistics.median(bytes_now[-fifth:]) / 1e6,
            "fifths": [statistics.median(bytes_now[k * fifth : (k + 1) * fifth] or bytes_now) / 1e6 for k in range(5)],
            "most": max(bytes_now) / 1e6,
        },
        "open_files": {
            "second_fifth": statistics.median(open_files[fifth : 2 * fifth] or open_files),
            "last_fifth": statistics.median(open_files[-fifth:]),
        },
        "memory": [[round(t, 2), n, b] for t, n, b in memory],
    }


def shown(found: Mapping[str, Any]) -> str:
    """Markdown of what was found."""
    plan, memory, peft = found["plan"], found["memory_mb"], found["compared_with_peft"]
    changes = {
        verb: sum(side.get(verb, 0) for side in found["changes"].values())
        for verb in sorted({verb for side in found["changes"].values() for verb in side})
    }
    growth = memory["last_fifth"] / memory["second_fifth"] - 1
    lines = [
        "# Requests while the hub changes",
        "",
        f"{found['requests']:,} requests from {plan['threads']} threads over {plan['tasks']} tasks, base "
        f"{plan['base']} ({plan['quantization']}, fp32), a bank of {plan['capacity']} adapters, "
        f"{plan['host_bytes'] / 1e6:.0f} MB behind it. Made by `python examples/benchmarks/soak.py run`; see there for "
        "how answers are judged.",
        "",
        "| | |",
        "|---|---|",
        f"| asked | {', '.join(f'{n:,} by {how}' for how, n in sorted(found['asked'].items()))} |",
        f"| changes meanwhile | {', '.join(f'{n} {verb}' for verb, n in changes.items())} |",
        f"| changes that failed | {len(found['change_problems'])} |",
        f"| answered | {found['answered']:,} |",
        f"| by a version that was not meant | {len(found['wrong_version'])} |",
        f"| probabilities other than plain PEFT's (> {TOLERANCE:g}) | {len(found['wrong_answer'])} |",
        f"| largest distance from plain PEFT | {peft['farthest']:.1e} |",
        f"| errors that were due (what was asked for was gone) | {found['errors_due']} |",
        f"| errors that were not | {len(found['errors'])} |",
        f"| routed to another task than the text's | {found['routed_to_another_task']} |",
        f"| counters of untouched versions right | {'yes' if found['counters_right'] else 'no'} |",
        f"| problems that `verify` finds afterwards | {len(found['problems_after'])} |",
        f"| adapters put on the bank | {found['bank_loads']:,} |",
        f"| requests a second | {found['requests_a_second']:.0f} |",
        f"| wait, median and 99 % | {found['wait_ms']['median']:.0f} ms, {found['wait_ms']['99 %']:.0f} ms |",
        f"| memory, second and last fifth of the run | {memory['second_fifth']:.0f} MB, {memory['last_fifth']:.0f} MB "
        f"({100 * growth:+.1f} %) |",
        f"| memory, median of each fifth | {', '.join(f'{value:.0f}' for value in memory['fifths'])} MB |",
        f"| open files, second and last fifth | {found['open_files']['second_fifth']:.0f}, "
        f"{found['open_files']['last_fifth']:.0f} |",
        "",
        "Weights of one task are told apart by their probabilities: median distance "
        f"{peft['weights_apart_median']:.2f}, {100 * peft['weights_indistinct']:.1f} % of pairs nearer than "
        f"{2 * TOLERANCE:g}.",
        "",
        f"Measured on {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, one thread for "
        "torch, a machine shared with other work.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    running, changing = verbs.add_parser("run"), verbs.add_parser("change", help="the other process; used by run")
    for one in (running, changing):
        one.add_argument("--work", type=Path, required=True)
    running.add_argument("-o", "--output", type=Path)
    running.add_argument("--requests", type=int, default=Plan.requests)
    running.add_argument("--seed", type=int, default=0)
    changing.add_argument("--plan", required=True)
    given = parser.parse_args()
    if given.verb == "change":
        changing_process(given.work, Plan(**json.loads(given.plan)))
        return
    shutil.rmtree(given.work / "soak", ignore_errors=True)
    found = soak(Plan(requests=given.requests, seed=given.seed), given.work / "soak")
    print(shown(found))
    for key in ("wrong_version", "wrong_answer", "errors", "change_problems", "problems_after"):
        for one in found[key][:5]:
            print(key, one)
    if given.output:
        given.output.mkdir(parents=True, exist_ok=True)
        (given.output / "soak.md").write_text(shown(found), encoding="utf-8")
        (given.output / "soak.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
