"""Continual learning: streams, the gate, adapters on top of others, updates, online learning."""

from __future__ import annotations

import io
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from adapterhub_cl import AdapterHub
from adapterhub_cl.errors import DataError, GateRefused, UsageError
from adapterhub_cl.progress import Reporter

DEMO = Path(__file__).parents[2] / "adapterhub_cl/demo"
QUICK: dict[str, Any] = {"epochs": 2, "rank": 4, "max_length": 48, "dev_share": 0.0}
WEIGHTS = "adapter_model.safetensors"

pytestmark = pytest.mark.integration


class Crash(Exception):
    """Stands for kill -9."""


class CrashAt(Reporter):
    """Stops the process where a note says something."""

    def __init__(self, text: str) -> None:
        self.text, self.notes = text, []

    def note(self, text: str) -> None:
        self.notes.append(text)
        if self.text in text:
            raise Crash(text)


class Pieces(Reporter):
    """Notes what each piece of work was announced as, and how far it came."""

    def __init__(self) -> None:
        self.under_way: list[list[Any]] = []
        self.done: list[tuple[str, int, int]] = []

    def start(self, what: str, total: int) -> None:
        self.under_way.append([what, total, 0])

    def advance(self, steps: int = 1, tokens: int = 0, **values: float) -> None:
        self.under_way[-1][2] += steps

    def finish(self) -> None:
        what, total, done = self.under_way.pop()
        self.done.append((what, total, done))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few rows of each demo task, and a stream of two."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("tickets", "commands", "reviews"):
        for split, count in (("train", 32), ("test", 20)):
            lines = (DEMO / f"{name}.{split}.jsonl").read_text(encoding="utf-8").splitlines()[:count]
            (folder / f"{name}.{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    tasks = [{"name": n, "data": f"{n}.train.jsonl", "eval": f"{n}.test.jsonl"} for n in ("commands", "tickets")]
    (folder / "two.json").write_text(json.dumps({"tasks": tasks}), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def taught(data: Path, trained_hub: Callable[..., Path], pico_path: Callable[[], Path]) -> Callable[..., Path]:
    """The folder of a hub that has learned these tasks, one after the other; each sequence is trained once."""

    def folder(*names: str) -> Path:
        def train(place: Path) -> None:
            if names[:-1]:
                shutil.copytree(folder(*names[:-1]), place)
            hub = AdapterHub.open(place) if names[:-1] else AdapterHub.init(place, str(pico_path()))
            hub.add_task(names[-1], data / f"{names[-1]}.train.jsonl", **QUICK)

        return trained_hub("taught-" + "-".join(names), train)

    return folder


@pytest.fixture
def new_hub(taught: Callable[..., Path], tmp_path: Path, pico_path: Callable[[], Path]) -> Callable[..., AdapterHub]:
    """A hub, empty or a copy of one that has learned some tasks; on a pico base, which is fast, unless one is named."""

    def make(name: str = "hub", *tasks: str, base: str = "") -> AdapterHub:
        if not tasks:
            return AdapterHub.init(tmp_path / name, base or str(pico_path()))
        return AdapterHub.open(shutil.move(taught(*tasks), tmp_path / name))

    return make


def weights(hub: AdapterHub, ref: str) -> bytes:
    return (hub.path(ref) / WEIGHTS).read_bytes()


def test_a_stream_is_measured_and_goes_on_where_it_was_stopped(
    new_hub: Callable[[str], AdapterHub], data: Path
) -> None:
    whole, broken = (new_hub(name, base="tiny") for name in ("whole", "broken"))
    (matrix,) = whole.stream(data / "two.json", strategies=["replay"], **QUICK)
    assert matrix.tasks == ("commands", "tickets")
    assert matrix.rows[1][0] == pytest.approx(score_on_commands(whole, "tickets@v1", data))
    assert matrix.rows[0][0] == whole.get("commands").metrics["accuracy"]
    assert matrix.rows[1][1] == whole.get("tickets").metrics["accuracy"]
    assert matrix.bwt == pytest.approx(matrix.rows[1][0] - matrix.rows[0][0])
    assert matrix.fwt_gem is not None
    assert whole.registry.serving() == {"commands": "tickets@v1", "tickets": "tickets@v1"}
    assert whole.evaluate(matrix=True).rows[1] == matrix.rows[1]

    for where in ("stage 2", "epoch 1 of 2"):  # between two tasks, and within one
        with pytest.raises(Crash):
            broken.stream(data / "two.json", strategies=["replay"], reporter=CrashAt(where), **QUICK)
    (again,) = broken.stream(data / "two.json", strategies=["replay"], **QUICK)
    assert again.rows == matrix.rows
    assert weights(broken, "tickets") == weights(whole, "tickets")
    assert [record.ref for record in broken.list(all_versions=True)] == ["commands@v1", "tickets@v1"]
    before = whole.list(all_versions=True)
    assert whole.stream(data / "two.json", strategies=["replay"], **QUICK)[0].rows == matrix.rows
    assert whole.list(all_versions=True) == before, "what is done is not done again"
    assert whole.verify() == []


def score_on_commands(hub: AdapterHub, ref: str, data: Path) -> float:
    """Predicts the test rows with a version, as a user would."""
    rows = [json.loads(line) for line in (data / "commands.test.jsonl").read_text(encoding="utf-8").splitlines()]
    found = hub.predict([row["text"] for row in rows], task="commands", adapter=ref)
    return sum(f.prediction == row["label"] for f, row in zip(found, rows, strict=True)) / len(rows)


def test_isolated_forgets_nothing_and_several_strategies_leave_the_hub_alone(
    new_hub: Callable[[str], AdapterHub], data: Path
) -> None:
    hub = new_hub("hub")
    found = hub.stream(data / "two.json", strategies=["isolated", "sequential"], **QUICK)
    assert [one.name for one in found] == ["isolated", "sequential"]
    assert found[0].bwt == 0.0
    assert found[0].forgetting == 0.0
    assert hub.list() == []
    places = sorted(path.name for path in (hub.folder / "streams" / "two").iterdir() if path.is_dir())
    assert [place.split("-seed0-")[0] for place in places] == ["isolated", "sequential"]
    assert hub.verify() == []


def test_the_gate_refuses_what_forgets_and_promote_overrules_it(commands_hub: AdapterHub, data: Path) -> None:
    hub = commands_hub
    assert hub.get("commands").metrics["accuracy"] > 0.4
    with pytest.raises(GateRefused) as refused:
        hub.add_task(
            "tickets",
            data / "tickets.train.jsonl",
            eval=data / "tickets.test.jsonl",
            strategy="sequential",
            max_forgetting=0.02,
            **{**QUICK, "epochs": 5, "rank": None},
        )
    assert "commands" in refused.value.message
    assert "promote tickets@v1 --max-forgetting 1" in refused.value.hint
    record = refused.value.record
    assert (record.ref, record.status) == ("tickets@v1", "rejected")
    assert hub.registry.serving() == {"commands": "commands@v1"}, "nothing was moved"
    assert record.manifest["gate"]["passed"] is False

    _, effects = hub.forgetting("tickets@v1")
    assert [(e.task, e.answered_by, e.served) for e in effects] == [("commands", "commands@v1", True)]
    assert effects[0].drop > 0.02
    with pytest.raises(GateRefused):
        hub.promote("tickets@v1")
    promoted, _ = hub.promote("tickets@v1", max_forgetting=1.0)
    assert (promoted.status, "production" in promoted.aliases) == ("active", True)
    assert hub.registry.serving() == {"commands": "tickets@v1", "tickets": "tickets@v1"}
    assert hub.verify() == []


def test_on_top_of_a_frozen_adapter(new_hub: Callable[[str], AdapterHub], data: Path) -> None:
    hub = new_hub("hub", "commands")
    below = weights(hub, "commands")
    record = hub.add_task("tickets", data / "tickets.train.jsonl", on_top_of="commands", **{**QUICK, "rank": 3})
    assert record.rank == 7
    assert record.manifest["own_rank"] == 3
    assert weights(hub, "commands") == below
    assert [(e.parent, e.relation) for e in hub.lineage("tickets")] == [("commands@v1", "trained_on_top_of")]
    assert hub.registry.serving() == {"commands": "commands@v1", "tickets": "tickets@v1"}
    model, _ = hub.load("tickets")
    parts = {n: p for n, p in model.named_parameters() if ".lora_A." in n}
    older, _ = hub.load("commands")
    olds = {n: p for n, p in older.named_parameters() if ".lora_A." in n}
    assert all(torch.equal(parts[n][:4], olds[n]) for n in olds), "the frozen one is in it, unchanged"
    with pytest.raises(UsageError, match="--on-top-of"):
        hub.add_task("x", data / "tickets.train.jsonl", on_top_of="commands", strategy="ewc", **QUICK)


def first_rows(source: Path, count: int, target: Path) -> Path:
    target.write_text("".join(source.read_text(encoding="utf-8").splitlines(keepends=True)[:count]), encoding="utf-8")
    return target


def test_what_a_strategy_remembers_survives_the_registry(
    new_hub: Callable[[str], AdapterHub], data: Path, tmp_path: Path
) -> None:
    hub = new_hub("hub")
    for name in ("commands", "tickets"):
        rows = first_rows(data / f"{name}.train.jsonl", 12, tmp_path / f"{name}.jsonl")
        hub.add_task(name, rows, strategy="ewc+der", max_forgetting=1, **{**QUICK, "epochs": 1})
    assert {"strategy.safetensors", "replay.jsonl"} <= set(hub.get("tickets").manifest["files"])
    (hub.folder / "index.db").unlink()
    again = AdapterHub.open(hub.folder)
    new = first_rows(data / "tickets.test.jsonl", 8, tmp_path / "new.jsonl")
    record = again.update("tickets", new, strategy="ewc", max_forgetting=1, epochs=1)
    assert record.manifest["strategy"] == "ewc"
    assert again.verify() == []


def test_an_update_is_measured_by_recall_retention_and_locality(
    new_hub: Callable[[str], AdapterHub], data: Path, tmp_path: Path
) -> None:
    hub = new_hub("hub", "commands", "tickets")
    shown = Pieces()
    changed = {"epochs": 1, "max_length": 48, "strategy": "replay+ewc", "reporter": shown}
    record = hub.update("commands", data / "commands.test.jsonl", max_forgetting=1, **changed)
    assert not shown.under_way
    pieces = {what: (total, done) for what, total, done in shown.done}
    asked = [f"{what}, {when}" for what in ("what commands knew", "what commands is to learn", "other tasks")
             for when in ("before", "after")]  # fmt: skip
    assert pieces.keys() >= {"loading the base", "reading", "training", "estimating importance (ewc)", *asked}
    assert all(total == done > 0 for what, (total, done) in pieces.items() if what in asked or what == "training")
    rows = {row["metric"]: row for row in record.manifest["evaluations"]}
    assert {"recall", "retention", "locality"} <= set(rows)
    assert rows["recall"]["n"] == 20
    told = rows["retention"]["details"]
    assert rows["retention"]["value"] == pytest.approx(told["after"] / told["before"])
    assert 0 <= rows["locality"]["value"] <= 1

    text = tmp_path / "facts.txt"
    text.write_text("The lamp in the hall is called Bertha.\n\nThe radio in the kitchen is called Otto.\n")
    shown = Pieces()
    raw = hub.update("commands", text, max_forgetting=1, epochs=1, dev_share=0.0, reporter=shown)
    assert ("what commands is to learn, after", 2, 2) in shown.done, "of raw text too"
    assert "recall" in {row["metric"] for row in raw.manifest["evaluations"]}
    new = first_rows(data / "commands.test.jsonl", 6, tmp_path / "new.jsonl")
    later = hub.update("commands", new, max_forgetting=1, epochs=1)
    assert later.ref == "commands@v4", "samples of a raw text are read back"
    assert later.manifest["training"]["settings"]["max_length"] == 48, "as the version before"


def test_samples_in_an_evaluation_set_are_left_out(new_hub: Callable[[str], AdapterHub], data: Path) -> None:
    hub = new_hub("hub", "commands")
    leaking = data / "leaking.jsonl"
    row = (data / "commands.train.jsonl").read_text(encoding="utf-8").splitlines()[3]
    leaking.write_text((data / "tickets.test.jsonl").read_text(encoding="utf-8") + row + "\n", encoding="utf-8")
    shown = CrashAt("never said")
    mixed = hub.add_task(
        "mixed", data / "tickets.train.jsonl", eval=leaking, strategy="replay", kind="generation", max_forgetting=1,
        **{**QUICK, "epochs": 1}, reporter=shown,
    )  # fmt: skip
    assert any("the evaluation data have 1 replay sample of commands" in line for line in shown.notes)
    assert "from earlier tasks: commands 31 replay samples" in shown.notes
    assert mixed.manifest["gate"]["effects"], "the earlier task is measured all the same"
    with pytest.raises(DataError, match="would lose"):
        hub.add_task("commands", data / "tickets.train.jsonl", **QUICK)
    kept = hub.add_task("own", data / "commands.train.jsonl", eval=data / "commands.train.jsonl", **QUICK)
    assert kept.manifest["replay"]["samples"] == 0, "what a score is taken on is never kept"


def feed(count: int) -> io.StringIO:
    """Rows that no hub here has learned."""
    lines = (DEMO / "commands.train.jsonl").read_text(encoding="utf-8").splitlines()[72 : 72 + count]
    return io.StringIO("\n".join(lines) + "\n")


def test_online_learning_publishes_and_survives_a_kill(new_hub: Callable[[str], AdapterHub], data: Path) -> None:
    settings: dict[str, Any] = {"every": 16, "epochs": 1, "max_length": 48, "max_forgetting": 1}
    whole, broken = new_hub("whole", "commands"), new_hub("broken", "commands")
    made = whole.update_online("commands", feed(32), **settings)
    assert [record.ref for record in made] == ["commands@v2", "commands@v3"]
    assert [record.manifest["online"]["rows"] for record in made] == [16, 32]
    assert weights(whole, "commands@v2") != weights(whole, "commands@v1")

    with pytest.raises(Crash):
        broken.update_online("commands", feed(32), reporter=CrashAt("24 rows"), **settings)
    assert broken.get("commands").ref == "commands@v2"
    time.sleep(1)  # what was read ahead is written down meanwhile
    received = next(broken.registry.runs_dir.glob("*/received.jsonl")).read_text(encoding="utf-8").splitlines()
    rest = io.StringIO("".join(feed(32).readlines()[len(received) :]))
    again = broken.update_online("commands", rest, resume=True)
    assert [record.manifest["online"]["rows"] for record in again] == [32]
    for ref in ("commands@v2", "commands@v3"):
        assert weights(broken, ref) == weights(whole, ref)
    assert broken.verify() == []


def test_online_rows_that_cannot_be_used_are_passed_over(new_hub: Callable[[str], AdapterHub], data: Path) -> None:
    hub = new_hub("hub", "commands")
    bad = ["not json", "[1]", '{"text": "no label"}', ""]
    lines = io.StringIO("\n".join([*feed(8).read().splitlines(), *bad]) + "\n")
    reporter = CrashAt("never said")
    (record,) = hub.update_online("commands", lines, epochs=1, max_forgetting=1, reporter=reporter)
    assert record.manifest["online"]["rows"] == 8
    passed = [note for note in reporter.notes if "is skipped" in note]
    assert [note.split(" is skipped")[0] for note in passed] == [f"warning: line {k}" for k in (9, 10, 11)]
    with pytest.raises(DataError, match="no row came in"):
        hub.update_online("commands", io.StringIO("\n"))


def facts(path: Path, *rows: tuple[str, str]) -> Path:
    path.write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "strategy",
    [
        pytest.param("sequential", marks=pytest.mark.slow),
        "replay",
        pytest.param("der", marks=pytest.mark.slow),
    ],
)
def test_a_fact_that_changes_replaces_the_old_answer(
    new_hub: Callable[[str], AdapterHub], tmp_path: Path, strategy: str
) -> None:
    hub = new_hub("hub")
    known = [(f"What is the number of house {k}?", f"number {k}") for k in range(12)]
    held = facts(tmp_path / "held.jsonl", ("Who is the mayor now?", "Ines"), ("Which house has number 3?", "house 3"))
    first = facts(tmp_path / "first.jsonl", ("Who is the mayor?", "Ines"), ("The mayor is called?", "Ines"), *known)
    hub.add_task("facts", first, eval=held, kind="generation", **QUICK)
    told = CrashAt("never said")
    changed = ("who is the  mayor?", "Tamsin"), ("Who is the mayor now?", "Tamsin"), ("Who was elected?", "Tamsin")
    new = facts(tmp_path / "new.jsonl", *changed)
    record = hub.update("facts", new, strategy=strategy, max_forgetting=1, reporter=told, epochs=2, max_length=48)
    assert told.notes.count("note: dropping 1 old sample that contradicts the new data") == 1
    assert "13 replay samples of facts@v1 are mixed in" in told.notes
    assert any(note.startswith("note: the gate leaves out 1 held-out row that contradicts") for note in told.notes)
    assert json.loads((record.path / "training.json").read_text(encoding="utf-8"))["trained_on"] == 16
    kept = (record.path / "replay.jsonl").read_text(encoding="utf-8")
    assert ("Who is the mayor?" in kept, "who is the  mayor?" in kept, "The mayor is called?" in kept) == (
        False,
        True,
        True,
    )
    rows = {row["metric"]: row for row in record.manifest["evaluations"]}
    assert rows.get("retention", {"n": 13})["n"] == 13
    (effect,) = record.manifest["gate"]["effects"]
    assert (effect["n"], effect["data"]) == (1, f"{held}, 1 outdated left out")
    assert len(record.manifest["outdated"]) == 2
    hub.alias("facts@v1", "production")
    _, decision = hub.promote("facts@v2", max_forgetting=1)
    assert [(e.n, e.data) for e in decision.effects] == [(1, effect["data"])], "the same comparison as before"
    again = hub.update("facts", new, strategy=strategy, max_forgetting=1, epochs=1, max_length=48)
    assert again.manifest["outdated"] == record.manifest["outdated"]


def test_a_fact_that_changes_in_a_feed_replaces_the_old_answer(
    new_hub: Callable[[str], AdapterHub], tmp_path: Path
) -> None:
    hub = new_hub("hub")
    known = [(f"What is the number of house {k}?", f"number {k}") for k in range(12)]
    hub.add_task("facts", facts(tmp_path / "first.jsonl", ("Who is the mayor?", "Ines"), *known), **QUICK)
    later = [
        (f"Who lives in house {k}?", f"person {k}") for k in range(8)
    ]  # the first batch; the change comes after it
    lines = io.StringIO(facts(tmp_path / "feed.jsonl", *later, ("Who is the mayor?", "Tamsin")).read_text())
    told = CrashAt("never said")
    (record,) = hub.update_online("facts", lines, epochs=1, max_length=48, max_forgetting=1, reporter=told)
    assert "note: dropping 1 old sample that contradicts the new data" in told.notes
    kept = (record.path / "replay.jsonl").read_text(encoding="utf-8")
    assert ('"Ines"' in kept, '"Tamsin"' in kept) == (False, True)


def test_fitting_the_router_is_told_once(new_hub: Callable[[str], AdapterHub], data: Path) -> None:
    hub = new_hub("hub", "commands", "tickets")
    told = CrashAt("never said")
    for _ in range(2):
        hub.predict(["turn the lamp on"], reporter=told)
    assert told.notes == ["fitting the router analytic on 64 samples of 2 tasks; it is stored for next time"]
