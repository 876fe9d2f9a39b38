"""Which rows may be learned."""

from __future__ import annotations

from traffic_support import judged

from adapterhub_cl.traffic.cleaning import cleaned
from adapterhub_cl.types import Example


def test_each_question_is_learned_once() -> None:
    rows = [judged(1, "Who  won?", "A"), judged(2, "who won?", "A"), judged(3, "Who lost?", None, True)]
    found = cleaned(rows, [])
    assert [(row.input, row.answer) for row in found.rows] == [("Who  won?", "A"), ("Who lost?", "sports")]
    assert found.dropped == {"repeated": 1}


def test_rows_that_contradict_each_other_go_unless_most_agree() -> None:
    even = [judged(1, "q", "A"), judged(2, "q", "B")]
    assert cleaned(even, []).rows == []
    assert cleaned(even, []).dropped == {"contradicting": 2}
    most = [*even, judged(3, "q", "A"), judged(4, "q", "A")]
    found = cleaned(most, [])
    assert [row.answer for row in found.rows] == ["A"]
    assert found.dropped == {"repeated": 2, "contradicting": 1}
    assert found.left_out == {"a-2": "contradicting", "a-3": "repeated", "a-4": "repeated"}


def test_evaluation_rows_and_near_copies_are_never_learned() -> None:
    held = [Example("The central bank has raised its rate by half a point", "business", "What is it about?")]
    rows = [
        judged(1, "The central bank has raised its rate by half a point!", "sports"),
        judged(2, "the central bank has raised its rate by  half a point", "sports"),
        judged(3, "The central bank has cut its rate, to nobody's surprise at all", "business"),
    ]
    found = cleaned(rows, held)
    assert [row.input for row in found.rows] == [rows[2].kept.example.input]
    assert found.dropped == {"evaluation rows": 2}


def test_short_questions_are_compared_exactly() -> None:
    held = [Example("what is 2 + 3?", "5")]
    found = cleaned([judged(1, "what is 2 + 4?", "6"), judged(2, "What is 2 + 3?", "6")], held)
    assert [row.answer for row in found.rows] == ["6"]
    assert found.dropped == {"evaluation rows": 1}


def test_a_wrong_answer_alone_teaches_nothing() -> None:
    found = cleaned([judged(1, "q", None, False), judged(2, "r", "  "), judged(3, "s", None, None)], [])
    assert found.rows == []
    assert found.dropped == {"without a right answer": 3}


def test_an_answer_is_learned_as_it_was_written() -> None:
    code = "if x:  print(1)"
    found = cleaned([judged(1, "q", code), judged(2, "q", code), judged(3, "q", "if x: print(1)")], [])
    assert [row.answer for row in found.rows] == [code]
    assert found.dropped == {"repeated": 2}
    assert [row.answer for row in cleaned([judged(1, "table", " a\tb\n c ")], []).rows] == ["a\tb\n c"]


def test_an_evaluation_row_is_known_however_its_accents_are_encoded() -> None:
    assert cleaned([judged(1, "Jose\u0301?", "A")], [Example("Jos\u00e9?", "A")]).dropped == {"evaluation rows": 1}
