"""A file is read as the task learned it: nothing of the question is left out without a word."""

from __future__ import annotations

from typing import Any

import pytest

from adapterhub_cl.data.columns import examples, inputs
from adapterhub_cl.data.reading import SourceRows
from adapterhub_cl.errors import DataError
from adapterhub_cl.types import Layout, Task


def rows(*given: dict[str, Any]) -> SourceRows:
    return SourceRows(list(given), "x.jsonl", "", list(range(1, len(given) + 1)))


def learned(*given: dict[str, Any], **more: Any) -> Layout:
    return examples(rows(*given), **more).read


# what a task was trained on, what is asked, and what is read of it; an error where nothing may be guessed
CASES = [
    ({"instruction": "Say hi", "output": "hi"}, {"instruction": "Translate", "input": "chat"}, ("chat", "Translate")),
    ({"question": "who?", "answer": "x"}, {"question": "who?", "context": "Ann is"}, ("Ann is\nwho?", "")),
    ({"question": "who?", "answer": "x"}, {"question": "who?", "choices": ["a", "b"]}, ("who?\nA. a\nB. b", "")),
    ({"text": "t", "label": "a"}, {"text": "t", "system": "Be strict"}, ("t", "Be strict")),
    ({"text": "t", "label": "a"}, {"text": "t", "question": "Is it?"}, "'question' would be ignored"),
    ({"prompt": "Say hi", "completion": "hi"}, {"prompt": "Translate", "input": "chat"}, "'input' would be ignored"),
    ({"Text": "a", "Label": "x"}, {"text": "zz", "question": "q"}, "'question' would be ignored"),
    ({"Text": "a", "Label": "x"}, {" TEXT ": "zz", "id": 7}, ("zz", "")),
    ({"premise": "a", "hypothesis": "b", "label": "x"}, {"hypothesis": "b", "text": "z"}, "no column 'premise'"),
    ({"question": "a", "sentence": "b", "label": "x"}, {"sentence": "b"}, "no column 'question'"),
]


@pytest.mark.parametrize(("taught", "asked", "read"), CASES)
def test_predict_reads_what_eval_reads_or_both_refuse(taught: dict[str, Any], asked: dict[str, Any], read: Any) -> None:
    layout = learned(taught, {**taught, next(iter(taught)): "other"})
    answered = {**asked, str(layout.output): "a"}
    if isinstance(read, str):
        for ask in (lambda: inputs(rows(asked), layouts=[layout]), lambda: examples(rows(answered), layout=layout)):
            with pytest.raises(DataError, match=read) as told:
                ask()
            assert "--columns" in told.value.hint
        return
    for found in (inputs(rows(asked), layouts=[layout])[0], examples(rows(answered), layout=layout).examples[0]):
        assert (found.input, found.instruction) == read


def test_turns_and_tools_that_training_did_not_have_are_read() -> None:
    layout = learned({"instruction": "a", "input": "b", "output": "c"})
    [found] = inputs(rows({"instruction": "a", "input": "b", "history": [["p", "q"]]}), layouts=[layout])
    assert [turn.content for turn in found.turns] == ["p", "q", "a\nb"]
    talk = [{"role": "user", "content": "x"}]
    layout = learned({"messages": [*talk, {"role": "assistant", "content": "y"}]})
    [found] = inputs(rows({"messages": talk, "tools": [{"name": "w"}]}), layouts=[layout])
    assert '"w"' in found.tools


def test_what_the_user_left_out_stays_out() -> None:
    layout = learned({"question": "q", "sentence": "s", "label": "x"}, columns={"input": "sentence", "output": "label"})
    [found] = inputs(rows({"question": "q", "sentence": "s"}), layouts=[layout])
    assert found.input == "s"


def test_a_part_of_a_question_may_be_enough_if_the_user_says_so() -> None:
    layout = learned({"question": "a", "sentence": "b", "label": "x"})
    half = rows({"sentence": "b"})
    assert inputs(half, {"input": "sentence"}, layouts=[layout])[0].input == "b"
    two = [layout, learned({"text": "a", "label": "x"})]
    assert inputs(half, layouts=two)[0].input == "b", "where no task is named, it may be for another one"


def test_an_update_from_other_columns_forgets_none() -> None:
    first = learned({"instruction": "Repeat", "input": "cat", "output": "cat"})
    then = learned({"instruction": "Say moon", "output": "moon"}).after(first)
    assert then == first, "which reads those columns too"
    [found] = inputs(rows({"instruction": "Repeat", "input": "cat"}), layouts=[then])
    assert (found.input, found.instruction) == ("cat", "Repeat")
    chosen = {"input": ["subject", "body"], "output": "team"}
    mails = learned({"subject": "s", "body": "b", "team": "t"}, columns=chosen)
    both = learned({"text": "t", "label": "l"}).after(mails)
    assert (both.name, both.older) == ("text/label", (mails,))
    assert both.columns == ("text", "label")
    kept = Task.from_json(Task("mails", layout=both).to_json()).layout
    assert kept == both
    assert inputs(rows({"subject": "s", "body": "b"}), layouts=[both])[0].input == "s\nb"
    assert inputs(rows({"text": "t"}), layouts=[both])[0].input == "t"
    again = mails.after(both)
    assert (again.input, [one.name for one in again.older]) == (mails.input, ["text/label"])
    for k in range(9):
        again = learned({f"a{k}": "x", "y": "z"}, columns={"input": f"a{k}", "output": "y"}).after(again)
    assert [one.input for one in again.older] == [("a7",), ("a6",), ("a5",), ("a4",)]


@pytest.mark.parametrize("older", [7, "text", [3], [None], {"name": "x"}])
def test_a_damaged_layout_is_no_layout(older: Any) -> None:
    with pytest.raises(TypeError):
        Layout.from_json({"name": "text/label", "input": ["text"], "older": older})
    nested: dict[str, Any] = {"name": "text/label", "input": ["text"]}
    for _ in range(5000):
        nested = {"name": "text/label", "input": ["body"], "older": [nested]}
    assert [one.older for one in Layout.from_json(nested).older] == [()]
