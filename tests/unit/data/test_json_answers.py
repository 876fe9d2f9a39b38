"""What is asked where the answers are JSON objects and nothing says so."""

from __future__ import annotations

import json
from typing import Any

import pytest

from adapterhub_cl.data.columns import examples
from adapterhub_cl.data.json_answers import asks_for_keys, not_asked_for
from adapterhub_cl.data.reading import SourceRows
from adapterhub_cl.data.tasks import infer_task
from adapterhub_cl.types import Example, Task

WANTED = "Answer with a JSON object that has the keys name, order and wish."
OBJECT = {"name": "Ann", "order": None, "wish": ["a", "b"]}


def texts(*objects: Any) -> list[str]:
    return [one if isinstance(one, str) else json.dumps(one) for one in objects]


@pytest.mark.parametrize(
    ("answers", "asked"),
    [
        (texts(OBJECT, OBJECT), WANTED),
        (texts({"name": "Ann"}, OBJECT, {"wish": 1, "order": 2}), WANTED),
        (texts({"name": 1}, {"name": 2}), "Answer with a JSON object that has the key name."),
        (
            texts({"a, b and c": 1, "größe": 2, "d.": 3}),
            'Answer with a JSON object that has the keys "a, b and c", größe and "d.".',
        ),
        (texts({'12"': 1}), r'Answer with a JSON object that has the key "12\"".'),
        ([*texts(OBJECT), None], WANTED),
        (['{"name": "a", "order": 1,\n "wish": {}}'], WANTED),
        (texts({f"key {k}": k for k in range(24)}), None),
        (texts(OBJECT, "free words"), ""),
        (texts(OBJECT, [1]), ""),
        (texts(OBJECT, "3"), ""),
        (texts(OBJECT, '{"name": 1, "name": 2}'), ""),  # reads as two things at once
        (texts({}), ""),
        ([None], ""),
        ([], ""),
        (texts({"Ann": 1}, {"Bo": 2}, {"Cy": 3}), ""),  # the keys are data
        (texts({f"key {k}": k for k in range(25)}), ""),
        (texts({"": 1}), ""),
        (texts({"a\nb": 1}), ""),
        (texts({"a\x1b[2J": 1}), ""),
        (texts({"k" * 40: 1}), f"Answer with a JSON object that has the key {'k' * 40}."),
        (texts({"k" * 41: 1}), ""),
        (["{" * 100_000], ""),
    ],
)
def test_what_is_asked(answers: list[str | None], asked: str | None) -> None:
    found = asks_for_keys([Example(f"text {k} of {k}", answer) for k, answer in enumerate(answers)])
    assert found.endswith('"key 22" and "key 23".') if asked is None else found == asked


def task_of(row: dict[str, Any], **given: Any) -> Task:
    rows = [{"input": f"text {k}", **row} for k in range(6)]
    if isinstance(row["output"], dict) and "labels" not in given:
        rows = [{**one, "output": {**row["output"], "order": k}} for k, one in enumerate(rows)]
    return infer_task("t", examples(SourceRows(rows, "rows", "0", list(range(1, 7)))), **given)


def test_the_task_asks_for_the_keys() -> None:
    assert task_of({"output": OBJECT}).instruction == WANTED
    assert task_of({"output": OBJECT}, kind="generation").instruction == WANTED


@pytest.mark.parametrize(
    ("row", "given", "instruction"),
    [
        ({"output": OBJECT}, {"instruction": ""}, ""),
        ({"output": OBJECT}, {"instruction": "As JSON."}, "As JSON."),
        ({"output": OBJECT, "instruction": "Read it."}, {}, "Read it."),
        ({"output": OBJECT}, {"prompt_format": "E-mail: {input}\nJSON: "}, ""),
        ({"output": OBJECT}, {"kind": "choice", "labels": [json.dumps(OBJECT), "none"]}, ""),
        ({"output": "a sentence"}, {"kind": "generation"}, ""),
    ],
)
def test_what_the_user_or_the_rows_say_stays(row: dict[str, Any], given: dict[str, Any], instruction: str) -> None:
    assert task_of(row, **given).instruction == instruction


@pytest.mark.parametrize(
    ("inputs", "asked"),
    [
        (["one text", "another"], WANTED),
        (["one text"], WANTED),
        (["As JSON: one", "as json, please: two", "three"], ""),
        (["As JSON: one", "two", "three"], WANTED),
        (["Read this mail:\nDear Ann", "Read this mail:\nHello"], ""),
        (["Read it: Dear Ann", "Read it: Hello"], WANTED),
        (["Dear Ann\nWhat does it want?", "Hello\nWhat does it want?"], ""),
    ],
)
def test_inputs_that_say_it_themselves(inputs: list[str], asked: str) -> None:
    assert asks_for_keys([Example(text, json.dumps(OBJECT)) for text in inputs]) == asked


def test_rows_that_say_different_things_are_not_asked_more() -> None:
    rows = [Example(f"text {k}", json.dumps({**OBJECT, "order": k}), f"Do {k}." if k else "") for k in range(4)]
    assert infer_task("t", rows).instruction == ""


def test_a_conversation_is_not_asked_more() -> None:
    said = [
        [
            {"role": role, "content": text}
            for role, text in (("user", f"hi {k}"), ("assistant", "yes"), ("user", "?"), ("assistant", f'{{"a": {k}}}'))
        ]
        for k in range(4)
    ]
    assert infer_task("t", [Example.conversation(messages) for messages in said]).instruction == ""


@pytest.mark.parametrize(
    ("asked", "answer", "new"),
    [
        (WANTED, {"name": 1, "order": 2}, []),
        (WANTED, {"name": 1, "wishes": 2, "due by": 3}, ["wishes", '"due by"']),
        ("Answer with a JSON object that has the key name.", {"key": 1, "am": 2}, ["key", "am"]),
        ("Read the e-mail.", {"size": 1}, []),
        (WANTED, {"s": 1}, ["s"]),
        ('Answer with a JSON object that has the key "due by".', {"due by": 1, "due": 2}, ["due"]),
        (r'Answer with a JSON object that has the keys "12\" or b" and c.', {'12" or b': 1, "c": 2, "b": 3}, ["b"]),
        (WANTED, "free words", []),
    ],
)
def test_keys_that_a_task_does_not_ask_for(asked: str, answer: Any, new: list[str]) -> None:
    assert not_asked_for(asked, [Example("a text", one) for one in texts(answer)]) == new
