"""Tasks: what is inferred from examples, what an update may change, leaks between training and held-out data."""

from __future__ import annotations

from dataclasses import replace

import pytest

from adapterhub_cl.data.columns import examples
from adapterhub_cl.data.reading import SourceRows
from adapterhub_cl.data.tasks import (
    METRICS,
    check_answers,
    check_labels_kept,
    find_leaks,
    find_outdated,
    infer_task,
    listed_labels,
    mark_of,
    merge_tasks,
    updated_task,
)
from adapterhub_cl.errors import DataError, UnknownNameError, UsageError
from adapterhub_cl.types import TASK_KINDS, Example, Task


def made(*answers: str, instruction: str = "", times: int = 3) -> list[Example]:
    return [Example(f"text {i} {a}", a, instruction) for i in range(times) for a in answers]


def test_choice_with_sorted_labels() -> None:
    task = infer_task("t", made("b", "a"))
    assert task == Task("t", "choice", "instruction", "", ("a", "b"), "accuracy")


@pytest.mark.parametrize(
    ("answers", "times"),
    [
        (("a", "b"), 2),  # each answer must come three times on average
        (tuple(f"label {i}" for i in range(101)), 3),
        (("a", " ".join(["long"] * 13)), 3),
    ],
)
def test_free_answers(answers: tuple[str, ...], times: int) -> None:
    task = infer_task("t", made(*answers, times=times))
    assert (task.kind, task.labels, task.metric) == ("generation", (), "exact_match")


def test_raw_text() -> None:
    task = infer_task("t", [Example("", "a text"), Example("", "another")])
    assert (task.kind, task.metric) == ("text", "perplexity")


def test_given_settings_win() -> None:
    rows = made("a", "b", instruction="Sort.")
    assert infer_task("t", rows, kind="generation").kind == "generation"
    task = infer_task("t", rows, labels=["b", "a", "c"], metric="macro_f1", prompt_format="plain", instruction="Do.")
    assert task == Task("t", "choice", "plain", "Do.", ("b", "a", "c"), "macro_f1")
    assert infer_task("t", made("a", "b", times=1), kind="choice").labels == ("a", "b")


def test_shared_instruction() -> None:
    assert infer_task("t", made("a", "b", instruction="Sort.")).instruction == "Sort."
    mixed = [*made("a", "b", instruction="Sort."), *made("a", "b", instruction="Order.")]
    assert infer_task("t", mixed).instruction == ""


@pytest.mark.parametrize(
    ("instruction", "answers", "labels"),
    [
        (  # the whole list, with what no example has
            "Choose. Option: World, Sports, Business, Science or Technology.",
            {"Sports", "World"},
            ("World", "Sports", "Business", "Science or Technology"),
        ),
        ("Is it true or false? Option: True, False.", {"False", "True"}, ("True", "False")),
        ("Say A or B. According to it. Option: A, B.", {"A", "B"}, ("A", "B")),
        ("Options: spam, ham or eggs", {"ham", "spam"}, ("spam", "ham", "eggs")),
        (  # "negative" is not found inside "very negative"
            "Is it very negative, negative or good?",
            {"good", "negative", "very negative"},
            ("very negative", "negative", "good"),
        ),
        ("Say yes or no: is the noodle good?", {"no", "yes"}, ("yes", "no")),
        ("Is it good?", {"good", "bad"}, ("bad", "good")),  # only one of them is listed
        ("", {"b", "a"}, ("a", "b")),
    ],
)
def test_order_of_labels(instruction: str, answers: set[str], labels: tuple[str, ...]) -> None:
    assert listed_labels(instruction, dict.fromkeys(answers, 1)) == labels


def test_refusals() -> None:
    rows = made("a", "b")
    with pytest.raises(DataError, match="no examples"):
        infer_task("t", [])
    with pytest.raises(DataError, match="a single label, 'a'") as single:
        infer_task("t", made("a"))
    assert "--labels a,OTHER" in single.value.hint
    assert "--kind generation" in single.value.hint
    assert infer_task("t", made("a"), labels=["a", "b"]).labels == ("a", "b")
    with pytest.raises(UnknownNameError, match="choise"):
        infer_task("t", rows, kind="choise")
    with pytest.raises(UnknownNameError, match="metric of a choice task 'acuracy'") as metric:
        infer_task("t", rows, metric="acuracy")
    assert "did you mean accuracy" in metric.value.hint
    with pytest.raises(UnknownNameError, match="rouge_l"):  # a metric of another kind
        infer_task("t", rows, metric="rouge_l")
    with pytest.raises(UnknownNameError, match="prompt format"):
        infer_task("t", rows, prompt_format="instruktion")
    with pytest.raises(UsageError, match="--labels needs a task of kind choice, not generation"):
        infer_task("t", rows, labels=["a", "b"], kind="generation")
    with pytest.raises(UsageError, match="repeated label"):
        infer_task("t", rows, labels=["a", "b", "a"])
    with pytest.raises(DataError, match="example 2: 'b' not among the labels"):
        infer_task("t", rows, labels=["a", "c"])


def test_foreign_answers_are_named_with_their_line() -> None:
    task = infer_task("t", made("a", "b"))
    values = [{"text": "x", "label": label} for label in ("a", "c", "b", "d")]
    held_out = examples(SourceRows(list(values), "test.jsonl", "", [1, 2, 4, 5]))
    with pytest.raises(
        DataError, match=r"test\.jsonl line 2: 'c', 'd' not among the labels of task t \('a', 'b'\)"
    ) as e:
        check_answers(task, held_out)
    assert "update adds new labels to a task" in e.value.hint
    check_answers(task, [Example("x")])
    check_answers(infer_task("t", made("a", "b"), kind="generation"), held_out)


def test_updates_keep_labels() -> None:
    old = infer_task("t", made("b", "a"))
    new = updated_task(old, made("c", "a", times=1))
    assert new.labels == ("a", "b", "c")
    check_labels_kept(old, new)
    assert merge_tasks(old, infer_task("t", made("z", "a"), prompt_format="plain")) == Task(
        "t", "choice", "instruction", "", ("a", "b", "z"), "accuracy"
    )
    assert updated_task(old, [Example("", "raw text")]) == old
    with pytest.raises(DataError, match="would lose 'a', 'b'"):
        check_labels_kept(new, Task("t", "choice", labels=("c",)))
    with pytest.raises(DataError, match="order"):
        check_labels_kept(old, Task("t", "choice", labels=("b", "a")))
    with pytest.raises(DataError, match="1 answers that are not labels of task t"):
        updated_task(old, [Example("why", "because " * 20)])
    with pytest.raises(DataError, match="kind choice, but the new data is of kind generation"):
        merge_tasks(old, Task("t"))
    with pytest.raises(DataError, match="is raw text"):
        merge_tasks(Task("t", "text"), old)
    with pytest.raises(DataError, match="is raw text"):
        updated_task(Task("t", "text"), made("a"))
    assert updated_task(Task("t"), made("a")) == Task("t")


def test_leaks() -> None:
    train = [Example("One  two"), Example("three", "x", "Sort."), Example("", "Raw text")]
    held_out = [Example("one TWO\n", "y"), Example("three"), Example("three", None, "sort."), Example("", "raw  text")]
    assert find_leaks(train, held_out) == [0, 2, 3]


def test_each_kind_has_metrics() -> None:
    assert tuple(METRICS) == TASK_KINDS


def test_outdated_is_what_is_asked_again_and_answered_otherwise() -> None:
    old = [
        Example("Who is the mayor?", "Ines", "Say it."),
        Example("Who is  the MAYOR?", "Ines"),  # the task's instruction is said for it
        Example("Who is the mayor?", "Tamsin  Oake", "Say it."),
        Example("Who is the mayor?", "Ines", "Say it backwards."),
        Example("Who is the baker?", "Ines", "Say it."),
        Example("", "Who is the mayor? Ines."),
    ]
    new = [Example("who is the mayor?", "Tamsin Oake", "say it."), Example("", "Who is the mayor? Nobody.")]
    assert find_outdated(old, new, "Say it.") == [0, 1]
    assert find_outdated(old, new) == [0], "without an instruction it is another question"
    assert find_outdated(old, [*new, Example("Who is the mayor?", "Ines")], "Say it.") == [], "both answers are new"
    assert find_outdated(old, []) == []
    judged = [replace(row, desirable=False) for row in old]
    assert find_outdated(judged, new, "Say it.") == [2], "what was judged wrong is a right answer now"


def test_a_mark_stands_for_question_and_answer() -> None:
    mark = mark_of(Example("Who is the mayor?", "Ines"), "Say it.")
    assert mark == mark_of(Example("who  is the mayor?", "ines", "Say it."))
    assert mark != mark_of(Example("Who is the mayor?", "Tamsin"), "Say it.")
    assert "mayor" not in mark


def test_new_answers_that_stand_once_each_are_no_labels() -> None:
    old = infer_task("t", made("a", "b"))
    fresh = [Example(f"x{k}", f"answer {k}") for k in range(11)]
    with pytest.raises(DataError, match="11 answers that are not labels of task t"):
        updated_task(old, fresh)
    assert len(updated_task(old, fresh[:10]).labels) == 12
    assert len(updated_task(old, [*fresh, fresh[0]]).labels) == 13


def test_questions_are_no_data_of_a_raw_text() -> None:
    text = Task("t", "text")
    check_answers(text, examples(SourceRows([{"text": "it rained"}], "a.jsonl", "", [1])))
    with pytest.raises(DataError, match=r"a\.jsonl: the rows have a question and an answer \(text/label\)"):
        check_answers(text, examples(SourceRows([{"text": "it rained", "label": "wet"}], "a.jsonl", "", [1])))
