"""What is told of rows that were read otherwise than they stand, that repeat, or whose labels look alike."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from adapterhub_cl.data.columns import Examples, examples
from adapterhub_cl.data.label_forms import for_task, tell_alike, with_known_labels
from adapterhub_cl.data.reading import SourceRows
from adapterhub_cl.data.remarks import tell_repeats
from adapterhub_cl.types import Task


def read(*rows: dict[str, Any]) -> Examples:
    return examples(SourceRows(list(rows), "d.jsonl", "", list(range(1, len(rows) + 1))))


def labelled(*labels: Any) -> Examples:
    return read(*({"text": f"text {k}", "label": label} for k, label in enumerate(labels)))


def test_numbers_and_booleans_are_read_as_text_and_that_is_told() -> None:
    found = labelled(True, False, 1.0, 2, "3", Decimal("4.00"))
    assert [e.answer for e in found] == ["true", "false", "1", "2", "3", "4"]
    assert found.remarks == (
        "note: column 'label' is read as text: True → 'true', False → 'false', 1.0 → '1', 4.00 → '4' (first: d.jsonl "
        "line 1)",
    )
    assert labelled(1, 2, "x").remarks == (), "whole numbers are written as they stand"


def test_spaces_around_labels_are_told() -> None:
    found = labelled("spam", " spam", "ham ")
    assert [e.answer for e in found] == ["spam", "spam", "ham"]
    assert found.remarks == ("note: 2 labels are read without the spaces around them (d.jsonl line 2, 3)",)


def test_what_follows_the_last_answer_is_told() -> None:
    talk = [{"role": r, "content": r} for r in ("user", "assistant", "user")]
    found = read({"messages": talk[:2]}, {"messages": talk}, {"messages": []})
    assert len(found) == 2
    assert found.remarks == (
        "note: 1 empty row is skipped (d.jsonl line 3)",
        "note: 1 conversation is not read to the end: what follows the last answer that is to be learned is left out "
        "(d.jsonl line 2)",
    )


def test_rows_that_repeat_are_told() -> None:
    rows = [("a", "x"), ("b", "x"), ("a", "x"), ("a", "y"), ("a", "x")]
    found = read(*({"text": text, "label": label} for text, label in rows))
    assert tell_repeats(found.examples, found.places, "choice") == [
        "note: 2 rows are repeated with the same answer, and learned as often as they occur (d.jsonl line 3, 5)",
        "warning: 1 row asks what another row asks, with another answer (first: d.jsonl line 1 has 'x', line 4 has "
        "'y'); a choice has one right answer: correct the rows",
    ]
    assert tell_repeats(found.examples[:3], found.places[:3], "choice") == [
        "note: 1 row is repeated with the same answer, and learned as often as it occurs (d.jsonl line 3)"
    ]
    free = tell_repeats(found.examples, found.places, "generation")
    assert free[1].startswith("note: 1 row asks")
    assert "'references'" in free[1]
    facts = tell_repeats(found.examples, found.places, "generation", facts=True)
    assert facts[1].startswith("warning: 1 row asks")
    assert facts[1].endswith("a fact has one right answer: correct the rows")
    assert tell_repeats(found.examples[:2], found.places[:2], "choice") == []


@pytest.mark.parametrize(
    ("labels", "answers", "expected"),
    [
        (("false", "true"), ("True", "FALSE", "true"), ["true", "false", "true"]),
        (("0", "1"), ("0.0", "1.00", " 1"), ["0", "1", "1"]),
        (("ham", "spam"), ("Spam", "HAM", "other"), ["spam", "ham", "other"]),
        (("Spam", "spam"), ("SPAM", "Spam"), ["SPAM", "Spam"]),
        (("01", "1"), ("1.0", "01.0"), ["1", "01"]),
        (("ham", "spam"), ("spam\u200b", "\ufeffHam", "s\u00adpam"), ["spam", "ham", "spam"]),
    ],
)
def test_answers_are_read_as_the_labels_that_a_task_has(
    labels: tuple[str, ...], answers: tuple[str, ...], expected: list[str]
) -> None:
    found = with_known_labels(labels, labelled(*answers))
    assert [e.answer for e in found] == expected


def test_a_label_that_is_read_otherwise_is_told() -> None:
    task = Task("t", "choice", labels=("ham", "spam"))
    found = for_task(task, labelled("spam", "Spam", "HAM"))
    assert found.remarks == (
        "note: 2 answers are read as the task's label that is written otherwise: 'HAM' → 'ham', 'Spam' → 'spam' "
        "(d.jsonl line 2, 3)",
    )
    data = labelled("spam", "ham")
    assert for_task(task, data) is data
    assert for_task(Task("t", "generation"), labelled("Spam")).remarks == ()


def test_labels_that_look_alike_are_told() -> None:
    data = labelled("Spam", "ham", "spam", "spam")
    assert tell_alike(("Spam", "ham", "spam", "SPAM"), data) == [
        "warning: the labels 'Spam' (1 row, first: d.jsonl line 1), 'spam' (2 rows, first: d.jsonl line 3), 'SPAM' (no "
        "row) differ only in how they are written and are learned as 3 labels; write them alike if they mean the same"
    ]
    assert tell_alike(("ham", "spam"), data) == []


@pytest.mark.parametrize(
    "unseen",
    ["\u200b", "\u00ad", "\u200d", "\u2060", "\ufeff", "\u202e", "\0", "\x1b", "\ufe0f", "\u3164", "\U000e0020"],
)
def test_labels_that_differ_by_what_nobody_sees_are_told(unseen: str) -> None:
    other = f"sp{unseen}am"
    (told,) = tell_alike(("ham", "spam", other), labelled("spam", "ham", other))
    assert told.startswith(
        f"warning: the labels 'spam' (1 row, first: d.jsonl line 1), {other!r} (1 row, first: d.jsonl"
    )
    assert "differ only in how they are written" in told


def test_conversations_that_begin_with_an_answer_are_told() -> None:
    talk = [{"role": r, "content": r} for r in ("assistant", "user", "assistant")]
    system = {"role": "system", "content": "s"}
    unlearned = {**talk[0], "weight": 0}
    found = read({"messages": talk}, {"messages": [system, *talk]}, {"messages": [unlearned, *talk[1:]]})
    assert found.remarks == (
        "note: 1 conversation begins with the assistant's turn, which is not learned, because nothing asks for it "
        "(d.jsonl line 1)",
    )
    assert read({"messages": talk, "system": "s"}).remarks == ()


def test_system_messages_behind_the_first_message_are_told() -> None:
    talk = [{"role": r, "content": r} for r in ("system", "user", "assistant")]
    found = read({"messages": talk}, {"messages": [*talk, *talk]}, {"messages": [talk[1], talk[0], talk[2]]})
    assert found.remarks == (
        "note: 2 conversations have a system message that is not the first message (d.jsonl line 2, 3)",
    )


def test_a_role_that_speaks_twice_in_a_row_is_told() -> None:
    def conversation(*roles: str) -> dict[str, Any]:
        return {"messages": [{"role": role, "content": f"{role} {k}"} for k, role in enumerate(roles)]}

    found = read(
        conversation("user", "assistant", "assistant"),
        conversation("system", "user", "assistant", "user", "user", "assistant"),
        conversation("user", "assistant"),
        conversation("user", "user", "assistant"),
    )
    assert found.remarks == (
        "note: 1 conversation has two messages of the assistant in a row (d.jsonl line 1)",
        "note: 2 conversations have two messages of the user in a row (d.jsonl line 2, 4)",
    )
