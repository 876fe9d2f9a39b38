"""The demo's data: what the script writes is what is committed, and it cannot be passed by memorising or guessing."""

from __future__ import annotations

import importlib.util
import json
import re
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from adapterhub_cl.data.columns import read_examples
from adapterhub_cl.data.tasks import check_answers, find_leaks, infer_task

ROOT = Path(__file__).parents[3]
DEMO = ROOT / "adapterhub_cl" / "demo"
CHOICES = {
    "tickets": ({"billing", "login", "delivery", "bug", "feature request"}, 240, 60),
    "reviews": ({"good", "bad"}, 240, 80),
    "commands": ({"play music", "set timer", "weather", "lights", "call", "navigate"}, 240, 72),
}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_demo_data", ROOT / "examples" / "make_demo_data.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(task: str, split: str) -> list[dict[str, str]]:
    lines = (DEMO / f"{task}.{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("task", [*CHOICES, "facts"])
def test_script_reproduces_the_files(script: ModuleType, task: str, split: str) -> None:
    assert script.make(task, split) == rows(task, split)


@pytest.mark.parametrize("task", CHOICES)
def test_banks_have_nothing_in_common(script: ModuleType, task: str) -> None:
    phrases: dict[str, set[str]] = {"train": set(), "test": set()}
    for (_, split), banks in script.read_banks(task).items():
        phrases[split] |= {phrase.lower() for bank in banks.values() for phrase in bank}
    assert not phrases["train"] & phrases["test"]


@pytest.mark.parametrize("task", CHOICES)
def test_choice_tasks(task: str) -> None:
    labels, least_train, least_test = CHOICES[task]
    train, test = (read_examples(DEMO / f"{task}.{split}.jsonl") for split in ("train", "test"))
    assert len(train) >= least_train
    assert len(test) >= least_test
    found = infer_task(task, train)
    assert (found.kind, set(found.labels)) == ("choice", labels)
    check_answers(found, test)
    assert find_leaks(train, test) == []
    for part in (train, test):
        texts = [re.sub(r"\W+", " ", example.input.lower()) for example in part]
        assert len(set(texts)) == len(texts)
        assert all(4 <= len(example.input.split()) <= 40 for example in part)
        assert not any(re.search(r"[{}|()]", example.input) for example in part)  # every slot was filled
        counts = Counter(example.answer for example in part).values()
        assert max(counts) <= 1.25 * min(counts)
        assert max(counts) / len(part) <= 0.55


@pytest.mark.parametrize("task", CHOICES)
def test_words_help_and_do_not_suffice(task: str) -> None:
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    train, test = rows(task, "train"), rows(task, "test")
    model = make_pipeline(CountVectorizer(), LogisticRegression(max_iter=2000))
    model.fit([row["text"] for row in train], [row["label"] for row in train])
    score = model.score([row["text"] for row in test], [row["label"] for row in test])
    assert 0.65 <= score <= 0.95


def test_facts() -> None:
    train, test = (read_examples(DEMO / f"facts.{split}.jsonl") for split in ("train", "test"))
    assert infer_task("facts", train).kind == "generation"
    assert find_leaks(train, test) == []
    assert len(test) >= 40
    answers = [example.answer for example in test]
    assert len(set(answers)) == len(answers)  # no answer is right for two questions
    assert Counter(example.answer for example in train) == dict.fromkeys(answers, 2)
    assert len({example.input for example in [*train, *test]}) == len(train) + len(test)
