"""Columns: every layout, numbers as labels, chats, overrides, and rows that cannot be used."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from adapterhub_cl.data.columns import examples, inputs, parse_columns, read_examples, read_inputs
from adapterhub_cl.data.reading import SourceRows
from adapterhub_cl.errors import DataError, UnknownNameError, UsageError
from adapterhub_cl.types import Example, Layout


def rows(*values: dict[str, Any], class_names: Mapping[str, Sequence[str]] | None = None) -> SourceRows:
    names = {column: tuple(classes) for column, classes in (class_names or {}).items()}
    return SourceRows(list(values), "train.jsonl", "0" * 64, list(range(1, len(values) + 1)), class_names=names)


LAYOUTS = [
    ({"instruction": "Sort.", "input": "x", "output": "y"}, Example("x", "y", "Sort."), "instruction/input/output"),
    ({"instruction": "Sort.", "input": "x", "response": "y"}, Example("x", "y", "Sort."), "instruction/input/output"),
    ({"instruction": "Say hi", "input": "", "output": "hi"}, Example("Say hi", "hi"), "instruction/input/output"),
    ({"instruction": "Say hi", "answer": "hi"}, Example("Say hi", "hi"), "instruction/input/output"),
    ({"instruction": "Q", "context": "c", "response": "r"}, Example("c", "r", "Q"), "instruction/input/output"),
    ({"prompt": "p", "completion": " c"}, Example("p", "c"), "prompt/completion"),
    ({"prompt": "p", "response": "c"}, Example("p", "c"), "prompt/completion"),
    ({"question": "q", "answer": "a"}, Example("q", "a"), "question/answer"),
    ({"question": "q", "answers": ["a", "b"]}, Example("q", "a", references=("b",)), "question/answer"),
    (
        {"id": "1", "context": "c", "question": "q", "answers": {"text": ["a"], "answer_start": [0]}},
        Example("c\nq", "a"),
        "question/answer",
    ),
    ({"input": "i", "output": "o"}, Example("i", "o"), "input/output"),
    ({"Text": " t ", "Label": "l"}, Example("t", "l"), "text/label"),
    ({"sentence": "t", "label": 3}, Example("t", "3"), "text/label"),
    ({"review": "t", "sentiment": True}, Example("t", "true"), "text/label"),
    ({"content": "t", "category": 2.0}, Example("t", "2"), "text/label"),
    ({"text": "t", "intent": "l"}, Example("t", "l"), "text/label"),
    ({"text": "t", "class": "l"}, Example("t", "l"), "text/label"),
    ({"text": "t", "labels": ["l"]}, Example("t", "l"), "text/label"),
    ({"text": "t", "label": 0, "label_text": "bad"}, Example("t", "bad"), "text/label"),
    ({"text": "t", "label": "l", "instruction": "Sort."}, Example("t", "l", "Sort."), "text/label"),
    ({"text": "a long document", "url": "http://…"}, Example("", "a long document"), "raw text"),
    (
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]},
        Example("hi", "hello"),
        "messages",
    ),
]


@pytest.mark.parametrize(("row", "example", "layout"), LAYOUTS)
def test_layouts(row: dict[str, Any], example: Example, layout: str) -> None:
    made = examples(rows(row))
    assert made.examples == [example]
    assert made.layout == layout
    assert (made.places, made.skipped, len(made)) == (["train.jsonl line 1"], 0, 1)


def test_instruction_for_those_without() -> None:
    made = examples(
        rows({"instruction": "own", "input": "a", "output": "b"}, {"input": "c", "output": "d"}), None, "all"
    )
    assert [example.instruction for example in made] == ["own", "all"]


def test_class_names_replace_numbers() -> None:
    made = examples(rows({"text": "t", "label": 1}, class_names={"label": ["bad", "good"]}))
    assert made.examples[0].answer == "good"
    with pytest.raises(DataError, match=r"line 1: class 7 in column 'label', which has 2 classes"):
        examples(rows({"text": "t", "label": 7}, class_names={"label": ["bad", "good"]}))
    with pytest.raises(DataError, match="line 1: no answer"):
        examples(rows({"text": "t", "label": -1}, class_names={"label": ["bad", "good"]}))


CHAT = [
    {"from": "system", "value": "Be kind."},
    {"from": "human", "value": "one"},
    {"from": "gpt", "value": "two"},
    {"from": "human", "value": "three"},
    {"from": "gpt", "value": "four"},
    {"from": "human", "value": "five"},
]


def test_conversations() -> None:
    made = examples(rows({"conversations": CHAT}))
    [example] = made.examples
    assert (example.text, example.answer) == ("user: one\nassistant: two\nuser: three", "four")
    assert (example.instruction, example.input) == ("Be kind.", "three")
    assert [turn.role for turn in example.turns] == ["system", "user", "assistant", "user"]
    asked = inputs(rows({"conversations": CHAT}))
    assert asked[0].answer is None
    assert asked[0].text.endswith("assistant: four\nuser: five")
    parts = [{"role": "user", "content": [{"type": "text", "text": "look"}, {"type": "text", "text": "here"}]}]
    assert inputs(rows({"messages": parts})) == [Example("look\nhere")]
    with pytest.raises(DataError, match="line 1: no answer"):
        examples(rows({"messages": CHAT[:2]}))
    with pytest.raises(DataError, match="line 1: turn 1 in column 'messages' has no role"):
        examples(rows({"messages": [{"content": "x"}]}))
    with pytest.raises(DataError, match="line 1: column 'messages' is not a list"):
        examples(rows({"messages": "hi"}))


def test_override() -> None:
    source = rows({"review": "nice", "stars": 5, "ask": "Rate it."})
    assert examples(source, {"input": "review", "output": "stars"}).examples == [Example("nice", "5")]
    wanted = parse_columns("input=review, output=stars,instruction=ask")
    assert examples(source, wanted).examples == [Example("nice", "5", "Rate it.")]
    assert examples(source, {"output": "review"}).examples == [Example("", "nice")]
    assert inputs(source, {"input": "review"}) == [Example("nice")]
    with pytest.raises(UnknownNameError, match="unknown column 'star'") as caught:
        examples(source, {"input": "review", "output": "star"})
    assert "did you mean stars" in caught.value.hint
    with pytest.raises(UsageError, match="names no output"):
        examples(source, {"input": "review"})
    with pytest.raises(UsageError, match="names no input"):
        inputs(source, {"output": "review"})


MAIL = {"mail": "Two lamps, please.", "product": "lamp", "count": 2, "note": None, "id": "7"}
WANTED = "input=mail,output=product,output=count,output=note"


def test_several_outputs_are_one_object() -> None:
    source = rows(MAIL, {**MAIL, "product": "", "count": float("nan"), "note": " late "})
    read = examples(source, parse_columns(WANTED))
    assert [json.loads(example.answer or "") for example in read] == [
        {"product": "lamp", "count": 2, "note": None},
        {"product": None, "count": None, "note": "late"},
    ]
    assert read.examples[0].answer == '{"product": "lamp", "count": 2, "note": null}'
    assert read.unused == ("id",)
    assert read.read.columns == ("mail", "product", "count", "note")
    kept = Layout.from_json(json.loads(json.dumps(read.read.to_json())))
    assert kept == read.read
    assert examples(source, layout=kept).examples == read.examples, "an update reads the same columns again"
    less = rows({"mail": "Two lamps, please.", "product": "lamp"})
    assert inputs(less, layouts=[kept]) == [Example("Two lamps, please.")]
    with pytest.raises(DataError, match="no answer"):
        examples(rows(MAIL, {"mail": "Hello?"}), parse_columns(WANTED))


def test_several_outputs_have_the_names_of_their_classes() -> None:
    source = rows({"mail": "a", "kind": 1, "tags": ["x", 2.0]}, class_names={"kind": ("no", "yes")})
    (one,) = examples(source, {"input": "mail", "output": ["kind", "tags"]}).examples
    assert one.answer == '{"kind": "yes", "tags": ["x", 2]}'


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("output=product,output=count", "no input"),
        ("input=mail,output=product,output=count,rejected=note", "several outputs"),
        ("input=mail,chosen=product,output=count", "two columns as output"),
        ("input=mail,output=product,instruction=note,instruction=id", "two columns as instruction"),
    ],
)
def test_several_outputs_that_cannot_be(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        examples(rows(MAIL), parse_columns(text))


@pytest.mark.parametrize("text", ["", "review", "input=", "input=a,stars"])
def test_columns_of_another_form(text: str) -> None:
    with pytest.raises(UsageError, match="not of the form"):
        parse_columns(text)


def test_unknown_role() -> None:
    with pytest.raises(UnknownNameError, match="ouput") as caught:
        parse_columns("input=a,ouput=b")
    assert "did you mean output" in caught.value.hint


def test_unrecognised_columns_come_with_a_hint_to_paste() -> None:
    source = rows({"id": 1, "body": "a long text", "stars": 5}, {"id": 2, "body": "another text", "stars": 5})
    with pytest.raises(DataError, match=r"the columns match no known layout \(id, body, stars\)") as caught:
        examples(source)
    assert "--columns input=body,output=stars" in caught.value.hint
    assert examples(source, parse_columns("input=body,output=stars")).examples[0] == Example("a long text", "5")
    with pytest.raises(DataError, match="no known layout"):  # an unknown column may be the answer: not raw text
        examples(rows({"text": "a", "stars": 5}))


def test_empty_rows_are_skipped_and_counted() -> None:
    made = examples(rows({"text": "a", "label": "x"}, {}, {"text": " ", "label": None}, {"text": "b", "label": "y"}))
    assert made.skipped == 2
    assert made.places == ["train.jsonl line 1", "train.jsonl line 4"]
    with pytest.raises(DataError, match="all 1 rows are empty"):
        examples(rows({"text": "", "label": ""}))


def test_half_rows_are_errors() -> None:
    full = {"text": "a", "label": "x"}
    with pytest.raises(DataError, match=r"train\.jsonl line 2: no answer \(column 'label'; 2 such rows: line 2, 3\)"):
        examples(rows(full, {"text": "b"}, {"text": "c", "label": float("nan")}))
    with pytest.raises(DataError, match=r"line 2: no input \(column 'text'\)"):
        examples(rows(full, {"text": "", "label": "x"}))
    with pytest.raises(DataError, match="no input"):  # labels alone are not raw text
        examples(rows({"text": "", "label": "x"}))
    with pytest.raises(DataError, match="line 1: 2 labels in column 'labels'"):
        examples(rows({"text": "a", "labels": ["x", "y"]}))
    with pytest.raises(DataError, match="line 1: column 'text' is a list"):
        examples(rows({"text": ["a"], "label": "y"}))


@pytest.mark.parametrize("example", [Example("in", "out", "do"), Example("in", "out"), Example("", "raw text")])
def test_replay_rows_read_back(tmp_path: Path, example: Example) -> None:
    path = tmp_path / "replay.jsonl"
    path.write_text(json.dumps(example.to_json()) + "\n", encoding="utf-8")
    assert read_examples(path).examples == [example]


@pytest.mark.parametrize(
    ("row", "example"),
    [
        ({"text": "a"}, Example("a")),
        ({"text": "a", "stars": 5}, Example("a")),
        ({"text": "a", "label": "x"}, Example("a", "x")),
        ({"prompt": "a"}, Example("a")),
        ({"question": "a"}, Example("a")),
        ({"input": "a"}, Example("a")),
        ({"instruction": "do", "input": "a"}, Example("a", None, "do")),
        ({"instruction": "do"}, Example("do")),
    ],
)
def test_inputs_need_no_answers(row: dict[str, Any], example: Example) -> None:
    assert inputs(rows(row)) == [example]


def test_inputs_keep_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\n\nthree\n", encoding="utf-8")
    assert [example.input for example in read_inputs(path)] == ["one", "two", "three"]
    with pytest.raises(DataError, match="line 2: no input"):  # dropping it would shift every later prediction
        inputs(rows({"text": "a"}, {"text": ""}))
    with pytest.raises(DataError, match="no known layout") as caught:
        inputs(rows({"body": "x"}))
    assert caught.value.hint.endswith("--columns input=body")


def test_rows_of_a_second_layout_are_an_error_and_not_empty() -> None:
    mixed = rows({"text": "a", "label": "x"}, {"prompt": "b", "completion": "y"})
    with pytest.raises(DataError, match=r"line \d: the columns of the other rows"):
        examples(mixed)


def test_a_hint_can_be_pasted_and_names_no_empty_column() -> None:
    source = rows(
        *(
            {
                "Meldung (Hausmeister)": f"a long text {k}",
                "note": None,
                "who": f"person {k}",
                "Art": "ab"[k % 2],
                "x": 1,
            }
            for k in range(4)
        )
    )
    with pytest.raises(DataError, match="no known layout") as caught:
        examples(source)
    assert caught.value.hint.endswith("--columns 'input=Meldung (Hausmeister),output=Art'")
    words = shlex.split(caught.value.hint.partition(": ")[2])
    assert examples(source, parse_columns(words[1])).examples[0] == Example("a long text 0", "a")


def test_a_column_that_is_empty_in_every_row_is_named_so() -> None:
    source = rows(*({"body": f"text {k}", "note": (None, "", float("nan"))[k], "kind": "x"} for k in range(3)))
    with pytest.raises(DataError, match="column 'note' is empty in every row") as caught:
        examples(source, {"input": "body", "output": "note"})
    assert caught.value.hint == "choose another: --columns input=body,output=kind"
    with pytest.raises(DataError, match="column 'label' is empty in every row") as caught:
        examples(rows({"text": "a", "label": None}, {"text": "b", "label": None}))
    assert caught.value.hint == "give every row its answer"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"a": 1.5, "b": float("nan"), "c": [float("nan"), ""]}, '{"a": 1.5, "b": null, "c": [null, ""]}'),
        ({"when": date(2024, 5, 1), "many": Decimal("2.50")}, '{"when": "2024-05-01", "many": "2.50"}'),
        ([{"a": float("nan")}], '[{"a": null}]'),
    ],
)
def test_an_answer_of_several_values_is_json(answer: Any, expected: str) -> None:
    assert examples(rows({"prompt": "p", "completion": answer})).examples == [Example("p", expected)]


@pytest.mark.parametrize("answer", [float("inf"), Decimal("-Infinity"), {"a": float("inf")}, [1, [float("-inf")]]])
def test_an_infinite_number_is_no_answer(answer: Any) -> None:
    with pytest.raises(DataError, match=r"line 1: column 'completion' holds an infinite number"):
        examples(rows({"prompt": "p", "completion": answer}))
    with pytest.raises(DataError, match=r"line 1: column .* holds an infinite number"):
        examples(rows({"mail": "p", "a": 1, "b": answer}), parse_columns("input=mail,output=a,output=b"))
    with pytest.raises(DataError, match="line 1: column 'prompt' holds an infinite number"):
        inputs(rows({"prompt": float("inf")}))


def test_an_answer_that_is_nested_too_deeply_is_named() -> None:
    deep: Any = float("nan")
    for _ in range(900):
        deep = {"a": deep}
    calls = [{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": deep}]}]
    for row, columns in (
        ({"prompt": "p", "completion": deep}, None),
        ({"mail": "p", "a": 1, "b": deep}, parse_columns("input=mail,output=a,output=b")),
        ({"messages": calls}, None),
    ):
        with pytest.raises(
            DataError, match=r"train\.jsonl line 1.* holds objects or lists that are nested too deeply$"
        ):
            examples(rows(row), columns)


@pytest.mark.parametrize("wrong", [5, {"a": 1}, True])
def test_references_are_texts(wrong: Any) -> None:
    with pytest.raises(DataError, match=r"train.jsonl line 1: column 'references' is .*, not a list of right answers"):
        examples(rows({"question": "q", "answer": "a", "references": wrong}))

    def read(row: dict[str, Any]) -> tuple[str | None, tuple[str, ...]]:
        (found,) = examples(rows({"question": "q", **row})).examples
        return found.answer, found.references

    assert read({"answer": "a", "references": "b"}) == ("a", ("b",))
    assert read({"references": ["c", 7]}) == ("c", ("7",))
    assert read({"answer": "a", "references": float("nan")}) == ("a", ())
