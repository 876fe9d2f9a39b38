"""Rows that say which answers are wanted, in the forms of TRL and LLaMA-Factory."""

from __future__ import annotations

from typing import Any

import pytest

from adapterhub_cl.data.columns import examples, inputs, parse_columns
from adapterhub_cl.data.reading import SourceRows
from adapterhub_cl.errors import DataError, UsageError
from adapterhub_cl.types import Example

USER = {"role": "user", "content": "q"}
GOOD, BAD = {"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}
OPEN = {"from": "human", "value": "q"}


def rows(*given: dict[str, Any]) -> SourceRows:
    return SourceRows(list(given), "train.jsonl", "0" * 64, list(range(1, len(given) + 1)))


PAIRS = [
    {"prompt": "q", "chosen": "a", "rejected": "b"},
    {"question": "q", "chosen": "a", "rejected": "b"},
    {"instruction": "q", "input": "", "chosen": "a", "rejected": "b"},
    {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
    {"prompt": [USER], "chosen": GOOD, "rejected": BAD},
    {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
    {"prompt": "q", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
    {
        "conversations": [OPEN],
        "chosen": {"from": "gpt", "value": "a"},
        "rejected": {"from": "gpt", "value": "b"},
    },
]
JUDGED = [
    {"prompt": "q", "completion": "a", "label": True},
    {"prompt": [USER], "completion": [GOOD], "label": True},
    {"instruction": "q", "input": "", "output": "a", "kto_tag": True},
    {"conversations": [OPEN, {"from": "gpt", "value": "a"}], "kto_tag": "true"},
]


@pytest.mark.parametrize("row", PAIRS, ids=lambda row: "/".join(row))
def test_pairs(row: dict[str, Any]) -> None:
    found = examples(rows(row))
    assert found.read.rejected == "rejected"
    assert found.unused == ()
    [made] = found.examples
    assert (made.input, made.answer, made.rejected) == ("q", "a", "b")
    assert Example.from_json(made.to_json()) == made
    again = examples(rows(made.to_json())).examples  # as `replay.jsonl` of a hub is read as data
    assert [(e.text, e.answer, e.rejected) for e in again] == [("q", "a", "b")]
    assert [(e.input, e.rejected) for e in inputs(rows(row))] == [("q", "")]
    assert not made.question().prefers


@pytest.mark.parametrize("row", JUDGED, ids=lambda row: "/".join(row))
def test_single_answers_that_were_judged(row: dict[str, Any]) -> None:
    column = next(name for name in ("label", "kto_tag") if name in row)
    found = examples(rows(row, {**row, column: False}))
    assert [(e.input, e.answer, e.desirable) for e in found] == [("q", "a", True), ("q", "a", False)]
    for made in found:
        assert Example.from_json(made.to_json()) == made
        assert [e.desirable for e in examples(rows(made.to_json()))] == [made.desirable]


def test_turns_before_the_answer_and_named_columns() -> None:
    early = [USER, {"role": "assistant", "content": "x"}, {"role": "user", "content": "r"}]
    [made] = examples(rows({"chosen": [*early, GOOD], "rejected": [*early, BAD]})).examples
    assert ([t.content for t in made.turns], made.answer, made.rejected) == (["q", "x", "r"], "a", "b")
    assert Example.from_json(made.to_json()) == made
    named = parse_columns("input=ask,output=up,rejected=down")
    [made] = examples(rows({"ask": "q", "up": "a", "down": "b"}), named).examples
    assert (made.answer, made.rejected) == ("a", "b")


def test_a_label_that_is_no_judgement_stays_a_label() -> None:
    found = examples(rows({"text": "x", "label": True}, {"text": "y", "label": False}))
    assert [(e.answer, e.desirable) for e in found] == [("true", None), ("false", None)]


def test_pairs_without_a_difference_are_left_out_and_told() -> None:
    same = {"prompt": "q", "chosen": "a", "rejected": "a"}
    found = examples(rows(same, PAIRS[0]))
    assert len(found) == 1
    assert found.remarks == ("note: 1 pair is left out: chosen and rejected are the same (train.jsonl line 1)",)
    with pytest.raises(DataError, match="the same in every pair"):
        examples(rows(same))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": ""}, "no rejected answer"),
        ({"prompt": "q", "chosen": "", "rejected": "b"}, "no answer"),
        ({"chosen": [USER, GOOD], "rejected": [{"role": "user", "content": "other"}, BAD]}, "same conversation"),
        ({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD, USER, BAD]}, "3 messages long"),
        ({"prompt": "q", "preferred": "a", "dispreferred": "b"}, "names that are not known"),
        ({"prompt": "q", "response_a": "a", "response_b": "b", "winner": "a"}, "names that are not known"),
        ({"chosen": "Human: q Assistant: a", "rejected": "Human: q Assistant: b"}, "no column has the question"),
    ],
)
def test_bad_rows_are_named(row: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        examples(rows(PAIRS[0] if "prompt" in row and isinstance(row["prompt"], str) and "chosen" in row else row, row))


@pytest.mark.parametrize(
    ("chosen", "rejected", "said"),
    [
        ("a", ["b", "c"], "column 'chosen' holds a text and column 'rejected' a list"),
        ({"a": 1}, "b", "column 'chosen' holds an object and column 'rejected' a text"),
        (7, "b", "column 'chosen' holds a number and column 'rejected' a text"),
        (True, 1, "column 'chosen' holds a truth value and column 'rejected' a number"),
    ],
)
def test_answers_that_are_written_differently_are_no_pair(chosen: Any, rejected: Any, said: str) -> None:
    odd = {"prompt": "r", "chosen": chosen, "rejected": rejected}
    with pytest.raises(DataError, match=f"line 2: {said}"):
        examples(rows(PAIRS[0], odd))
    even = [{"prompt": "q", "chosen": {"n": k}, "rejected": {"n": k + 1}} for k in (3, 5)]
    assert [(e.answer, e.rejected) for e in examples(rows(*even))] == [
        ('{"n": 3}', '{"n": 4}'),
        ('{"n": 5}', '{"n": 6}'),
    ]


def test_a_row_without_its_judgement_is_named() -> None:
    with pytest.raises(DataError, match="line 2: no judgement"):
        examples(rows(JUDGED[0], {**JUDGED[0], "label": None}))


ASKED = {"question": "q", "answer": "a"}


@pytest.mark.parametrize("column", ["label", "kto_tag", "thumb", "thumbs", "Rating"])
@pytest.mark.parametrize(
    ("yes", "no"),
    [
        (True, False),
        ("up", "down"),
        ("Yes", "no"),
        ("good", "bad"),
        (1, 0),
        ("1", "-1"),
        (1, -1),
        (1.0, 0.0),
        ("👍", "👎"),
    ],
)
def test_a_column_beside_an_answer_judges_it(column: str, yes: Any, no: Any) -> None:
    for asked in (ASKED, {"prompt": "q", "completion": "a"}):
        judged = rows({**asked, column: yes}, {**asked, column: no})
        assert [e.desirable for e in examples(judged)] == [True, False]
        question, answer = asked
        named = parse_columns(f"input={question},output={answer},desirable={column}")
        assert [e.desirable for e in examples(judged, named)] == [True, False]


def test_judgements_that_are_numbers_of_classes() -> None:
    told = SourceRows(
        [{**ASKED, "label": 0}, {**ASKED, "label": 1}], "x", "0" * 64, [1, 2], class_names={"label": ["up", "down"]}
    )
    assert [e.desirable for e in examples(told)] == [True, False]


@pytest.mark.parametrize(("column", "bad"), [("label", "flase"), ("kto_tag", 2), ("thumb", "sideways"), ("rating", 3)])
def test_a_judgement_that_cannot_be_read_is_named(column: str, bad: Any) -> None:
    good = [{**ASKED, column: 1}, {**ASKED, column: 0}]
    told = rows(*good, *good, {**ASKED, column: bad}, {**ASKED, column: bad})
    with pytest.raises(
        DataError, match=rf"^train.jsonl line 5: no judgement: '{bad}' .*2 such rows: line 5, 6"
    ) as said:
        examples(told)
    assert "--columns input=question,output=answer" in said.value.hint
    with pytest.raises(DataError, match="line 5: no judgement"):
        examples(told, parse_columns(f"input=question,output=answer,desirable={column}"))


def test_what_may_be_a_judgement_is_never_ignored() -> None:
    stars = rows(*({**ASKED, "rating": k} for k in range(1, 6)))
    with pytest.raises(DataError, match="'rating' stands beside an answer and holds no judgements") as said:
        examples(stars)
    assert "--columns input=question,output=answer;" in said.value.hint
    assert examples(stars, parse_columns("input=question,output=answer")).unused == ("rating",)
    with pytest.raises(DataError, match="holds 0 beside -1 and 1"):
        examples(rows(*({**ASKED, "rating": k} for k in (-1, 0, 1))))
    beside = rows({**ASKED, "rating": 4, "thumb": "up"}, {**ASKED, "rating": 2, "thumb": "down"})
    assert [e.desirable for e in examples(beside)] == [True, False]
    empty = examples(rows({**ASKED, "thumb": ""}))
    assert [e.desirable for e in empty] == [None]


@pytest.mark.parametrize("worse", ["good", "bad"])
def test_pairs_under_other_names_are_proposed_as_pairs(worse: str) -> None:
    order = ("bad", "good") if worse == "bad" else ("good", "bad")
    pair = rows({"question": "why is that so?", **{name: f"{name} answer" for name in order}})
    with pytest.raises(DataError) as said:
        examples(pair)
    assert said.value.hint.endswith("--columns input=question,output=good,rejected=bad")
    with pytest.raises(DataError) as said:
        examples(rows({"q": "?", "good": "a long answer", "bad": "another long answer"}))
    assert said.value.hint.endswith("--columns input=q,output=good,rejected=bad")
    with pytest.raises(DataError) as said:
        examples(rows({"prompt": "q", "preferred": "a", "dispreferred": "b"}))
    assert said.value.hint.endswith("--columns input=prompt,output=preferred,rejected=dispreferred")
    for wanted in ("input=question,output=good,rejected=bad", "input=question,chosen=good,rejected=bad"):
        [made] = examples(pair, parse_columns(wanted)).examples
        assert (made.answer, made.rejected) == ("good answer", "bad answer")
    [made] = examples(pair, {"input": "question", "chosen": "good", "rejected": "bad"}).examples
    assert made.rejected == "bad answer"
    with pytest.raises(UsageError, match="two columns as output"):
        parse_columns("input=question,chosen=good,output=bad")
