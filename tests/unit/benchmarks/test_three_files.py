"""The benchmark of a new user's three files: its rows, its scores, and its page."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from benchmark_modules import forget

from adapterhub_cl.bases.sources import resolve
from adapterhub_cl.data.columns import read_examples
from adapterhub_cl.data.tasks import infer_task

PLACE = Path(__file__).parents[3] / "examples/benchmarks/three_files"
NAMES = (
    "machine",
    "shop_bookings",
    "shop_draws",
    "shop_emails",
    "shop_methods",
    "shop_page",
    "shop_rows",
    "shop_scores",
    "shop_talks",
    "shop_tickets",
)


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """The benchmark's modules, which import each other by their bare names."""
    forget()
    monkeypatch.syspath_prepend(str(PLACE.parent))
    monkeypatch.syspath_prepend(str(PLACE))
    yield {name: __import__(name) for name in NAMES}
    forget()


def test_a_seed_gives_the_same_files_and_another_one_others(modules: dict[str, Any], tmp_path: Path) -> None:
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        modules["shop_rows"].write(tmp_path / folder, seed, 30, 10)
    a, b, c = ({p.name: p.read_bytes() for p in (tmp_path / folder).iterdir()} for folder in "abc")
    assert a == b
    assert sorted(a) == [
        *("conversations.jsonl", "conversations.test.jsonl", "emails.jsonl", "emails.test.jsonl"),
        *("tickets.csv", "tickets.test.csv"),
    ]
    assert all(a[name] != c[name] for name in a)


@pytest.mark.parametrize("name", ["tickets", "emails", "talks"])
def test_no_test_row_was_learned(modules: dict[str, Any], name: str) -> None:
    rows, asked = modules["shop_rows"].rows, modules["shop_rows"].asked
    train, tests = rows(name, 0, 200, 60)
    assert (len(train), len(tests)) == (200, 60)
    texts = Counter(asked(row) for row in (*train, *tests))
    assert max(texts.values()) == 1


def test_what_settings_are_chosen_on_has_no_words_of_test_rows(modules: dict[str, Any]) -> None:
    asked, talks = modules["shop_rows"].asked, modules["shop_talks"]
    train, dev = modules["shop_rows"].rows("talks", 0, 200, 200, dev=True)
    for ways in (talks.WEEKEND, talks.WHERE, talks.LASTS, talks.USED, talks.LOST):
        said = [[any(way in asked(row) for row in rows) for way in ways[-2:]] for rows in (train, dev)]
        assert said == [[False, False], [True, False]], ways
    products = modules["shop_emails"].PRODUCTS
    train, dev = modules["shop_rows"].rows("emails", 0, 200, 200, dev=True)
    taught, held = ({row["output"]["product"] for row in rows} for rows in (train, dev))
    assert not taught & set(products[-8:])
    assert not held & set(products[-4:])
    assert held & set(products[-8:-4])
    openings = {body.split("{")[0] for queue in modules["shop_tickets"].QUEUES.values() for body in queue[-3:]}
    train, dev = modules["shop_rows"].rows("tickets", 0, 200, 200, dev=True)
    said = "\n".join(asked(row) for row in (*train, *dev))
    assert not [words for words in openings if len(words) > 8 and words in said]


def test_bookings_have_names_apart_and_say_what_their_objects_hold(modules: dict[str, Any]) -> None:
    train, dev = modules["shop_rows"].rows("bookings", 0, 200, 200, dev=True)
    taught, held = ({row["output"]["guest"] for row in rows} for rows in (train, dev))
    assert not taught & set(modules["shop_bookings"].NAMES[-8:])
    assert held & set(modules["shop_bookings"].NAMES[-8:-4])
    assert not held & set(modules["shop_bookings"].NAMES[-4:])
    numbers = modules["shop_bookings"].NUMBERS
    for row in (*train, *dev):
        found = row["output"]
        assert row["input"].count(found["guest"]) == 1
        assert {str(found["people"]), numbers[found["people"] - 2]} & set(
            row["input"].replace(",", " ").replace(".", " ").split()
        )


def test_the_tickets_have_wrong_labels_for_training_only(modules: dict[str, Any]) -> None:
    rows, queues = modules["shop_rows"].rows, modules["shop_tickets"].QUEUES
    known = {queue: [phrase.split("{")[0].strip().casefold() for phrase in found] for queue, found in queues.items()}

    def strange(row: dict[str, str]) -> bool:
        """Whether the ticket has a phrase of some other queue word for word, and none of its own."""
        text = row["text"].casefold()
        has = {queue for queue, phrases in known.items() if any(len(p) > 15 and p in text for p in phrases)}
        return bool(has) and row["label"] not in has

    train, tests = rows("tickets", 0, 400, 100)
    assert {row["label"] for row in train} == {row["label"] for row in tests} == set(queues)
    assert 0.01 < sum(map(strange, train)) / 400 < 0.08
    assert not any(map(strange, tests))


def test_an_object_says_what_its_email_says(modules: dict[str, Any]) -> None:
    train, tests = modules["shop_rows"].rows("emails", 0, 100, 50)
    for row in (*train, *tests):
        text, found = row["input"], row["output"]
        assert list(found) == ["name", "order", "product", "date", "wish"]
        assert text.endswith(found["name"])
        assert found["product"] in text
        assert found["order"] is None or found["order"] in text
        year, _, day = found["date"].split("-")
        assert year in text
        assert str(int(day)) in text
    taught = {row["output"]["product"] for row in train}
    new = sum(row["output"]["product"] not in taught for row in tests)
    assert 5 < new < 30


def test_the_library_reads_the_files_as_a_user_expects(modules: dict[str, Any], tmp_path: Path) -> None:
    modules["shop_rows"].write(tmp_path, 0, 200, 5)
    kinds = {}
    for name, file in modules["shop_rows"].FILES.items():
        examples = read_examples(tmp_path / file)
        assert len(list(examples)) == 200
        kinds[name] = infer_task(name, examples).kind
    assert kinds == {"tickets": "choice", "emails": "generation", "talks": "generation"}


def test_both_methods_are_asked_the_same(modules: dict[str, Any]) -> None:
    methods, rows = modules["shop_methods"], modules["shop_rows"].rows
    for name in modules["shop_rows"].FILES:
        _, tests = rows(name, 0, 5, 5)
        right, asked = methods.right_and_asked(name, tests)
        assert len(right) == len(asked) >= 5
        for row, answer in zip(asked, right, strict=True):
            last = methods.as_messages(name, row)["messages"][-1]
            assert last["role"] == "user"
            said = row["messages"][-1]["content"] if name == "talks" else row.get("text", row.get("input"))
            assert last["content"].endswith(said)
            assert json.dumps(answer) not in json.dumps(row)
        learned = methods.as_messages(name, tests[0])["messages"][-1]
        assert learned["role"] == "assistant"


def test_a_talk_is_asked_turn_by_turn(modules: dict[str, Any]) -> None:
    turns = [{"role": role, "content": role + str(k)} for k in (1, 2) for role in ("user", "assistant")]
    right, asked = modules["shop_methods"].right_and_asked("talks", [{"messages": turns}])
    assert right == ["assistant1", "assistant2"]
    assert [len(row["messages"]) for row in asked] == [1, 3]


def test_scores(modules: dict[str, Any]) -> None:
    values = modules["shop_scores"].values
    assert values("tickets", ["billing", "returns"], ["billing ", "a return"]) == {"accuracy": [1.0, 0.0]}
    right = {"name": "A B", "order": None, "product": "x", "date": "2026-01-02", "wish": "refund"}
    other = {**right, "order": "null", "extra": 1}
    found = values("emails", [right] * 4, [json.dumps(right, indent=1), json.dumps(other), "[1]", "{'name': 1}"])
    assert found["exact JSON"] == [1.0, 0.0, 0.0, 0.0]
    assert found["valid JSON"] == [1.0, 1.0, 0.0, 0.0]
    assert found["field F1"] == [1.0, pytest.approx(2 * 4 / 11), 0.0, 0.0]
    found = values("talks", ["Hello Ann! Bye.", "we open at 9"], ["hello ann! bye", "we close at 9"])
    assert found == {"ROUGE-L": [1.0, 0.75], "exact match": [1.0, 0.0]}
    with pytest.raises(ValueError, match="shorter"):
        values("tickets", ["billing", "returns"], ["billing"])


def test_a_true_is_no_1(modules: dict[str, Any]) -> None:
    assert modules["shop_scores"].field_f1({"a": 1, "b": "1"}, {"a": True, "b": 1}) == 0.0


def test_intervals(modules: dict[str, Any]) -> None:
    scores = modules["shop_scores"]
    low, high = scores.interval([1.0] * 30 + [0.0] * 30)
    assert (low, high) == (pytest.approx(0.377, abs=0.001), pytest.approx(0.623, abs=0.001))
    low, high = scores.difference([0.9] * 50, [0.6] * 50)
    assert (low, high) == (pytest.approx(0.3), pytest.approx(0.3))
    low, high = scores.difference([0.0, 1.0] * 30, [1.0, 0.0] * 30)
    assert low < 0 < high


def test_the_page_keeps_what_is_lost(modules: dict[str, Any]) -> None:
    machine = {"base": "/x/some-model/", "rows": 200, "tests": 2, "machine": "a machine", "versions": {"torch": "2"}}
    cost = {"cpu_seconds": 10.0, "wall_seconds": 20.0, "peak_mb": 1234.0, "seed": 0, "file": "tickets"}
    rows = [
        {**machine, **cost, "method": "ours", "values": {"accuracy": [0.0, 1.0]}},
        {
            **{**machine, **cost, "method": "trl-bf16", "rate": 5e-4, "values": {"accuracy": [1.0, 1.0]}},
            "searched": {str(rate): {"dev": rate * 100, "cpu_seconds": 5.0} for rate in modules["shop_methods"].RATES},
        },
    ]
    text = modules["shop_page"].page(rows)
    assert "| tickets.csv | accuracy | **ours**, defaults | 0.500 |" in text
    assert "| tickets.csv | accuracy | **ours**, defaults | TRL, bf16 | -0.500 | -1.000 to +0.000 | 2 |" in text
    assert "| tickets.csv | TRL, bf16 | 10 s | 20 s | 15 s | 1,234 MB |" in text
    assert "| tickets.csv | TRL, bf16 | 0.020 | 0.050 | 0.100 | 0.0005 |" in text
    assert "TRL was not run yet on emails.jsonl, conversations.jsonl." in text
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.count("|") >= 7


def test_write_and_bad_words(tmp_path: Path) -> None:
    def start(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, str(PLACE), *words], capture_output=True, text=True, check=False)

    done = start("write", "--work", str(tmp_path / "files"), "--rows", "12", "--test-rows", "4")
    assert done.returncode == 0, done.stderr
    with (tmp_path / "files" / "tickets.csv").open(encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 12
    going = ("run", "--base", str(tmp_path), "--work", str(tmp_path / "w"), "--files", "emails", "--seeds", "1")
    done = start(*going)
    assert (done.returncode, done.stderr) == (1, f"no base at {tmp_path}\n")
    (tmp_path / "config.json").write_text("{}")
    nowhere = str(tmp_path / "python")
    done = start(*going, "--methods", "trl-bf16", "--trl-python", nowhere)
    said = f"emails-trl-bf16-0: skipped, {nowhere}: No such file or directory\n"
    assert (done.returncode, done.stderr) == (0, said)
    done = start(*going, "--methods", "trl-bf16", "--rows", "9")
    assert done.returncode == 1
    assert "other settings" in done.stderr


@pytest.mark.slow
def test_ours_runs_by_the_command_line_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    base = str(resolve("tiny"))
    work = ("--work", str(tmp_path / "w"))
    going = ("run", "--base", base, *work, "--methods", "ours", "--rows", "30", "--test-rows", "4", "--seeds", "1")

    def start(*words: str) -> str:
        done = subprocess.run([sys.executable, str(PLACE), *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    said = start(*going).splitlines()
    assert [line.split(":")[0] for line in said] == ["tickets-ours-0", "emails-ours-0", "talks-ours-0"]
    result = tmp_path / "w" / "results" / "emails-ours-0.json"
    row = json.loads(result.read_text(encoding="utf-8"))
    assert (len(row["answers"]), row["training"]["steps"] > 0) == (4, True)
    assert row["cpu_seconds"] > 0
    assert 100 < row["peak_mb"] < 10_000
    result.unlink()
    assert [line.split(":")[0] for line in start(*going).splitlines()] == ["emails-ours-0"]
    text = start("table", *work, "-o", str(tmp_path))
    assert (tmp_path / "three_files.md").read_text(encoding="utf-8").strip() == text.strip()
    assert "| conversations.jsonl | ROUGE-L | **ours**, defaults |" in text
