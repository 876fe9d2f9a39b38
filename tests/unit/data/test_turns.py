"""Conversations as LLaMA-Factory, axolotl and OpenAI write them; and what is wrong with one is told by its turn."""

from __future__ import annotations

import json
from typing import Any

import pytest

from adapterhub_cl.data.columns import examples
from adapterhub_cl.data.reading import SourceRows
from adapterhub_cl.data.turns import messages_of
from adapterhub_cl.errors import DataError
from adapterhub_cl.types import Example

CALL = {"name": "look", "arguments": {"town": "Rome"}}
FUNCTION = {"name": "look", "description": "the weather", "parameters": {"type": "object"}}


def said(role: str, text: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": text, **more}


def read(*messages: dict[str, Any], **columns: Any) -> Example:
    return examples(SourceRows([{"messages": list(messages), **columns}], "t.jsonl", "", [1])).examples[0]


def test_a_sharegpt_file_with_tools() -> None:
    row = {
        "system": "Use tools.",
        "tools": json.dumps([FUNCTION]),
        "conversations": [
            {"from": "human", "value": "Rome?"},
            {"from": "function_call", "value": json.dumps(CALL)},
            {"from": "observation", "value": "sunny"},
            {"from": "gpt", "value": "It is sunny."},
        ],
    }
    found = examples(SourceRows([row], "t.json", "", [1])).examples[0]
    assert [turn.role for turn in found.turns] == ["system", "user", "assistant", "tool"]
    assert found.turns[2].message()["tool_calls"] == [{"type": "function", "function": CALL}]
    assert json.loads(found.tools) == [{"type": "function", "function": FUNCTION}]
    ended = examples(SourceRows([{**row, "conversations": row["conversations"][:2]}], "t.json", "", [1])).examples[0]
    assert json.loads(str(ended.answer)) == CALL
    assert Example.from_json(json.loads(json.dumps(ended.to_json()))) == ended


def test_openais_older_calls_and_arguments_as_text() -> None:
    older = said("assistant", None, function_call={"name": "look", "arguments": '{"town": "Rome"}'})
    found = read(said("user", "Rome?"), older, functions=[FUNCTION])
    assert json.loads(str(found.answer)) == CALL
    assert json.loads(found.tools)[0]["function"] == FUNCTION


def test_a_function_call_that_is_no_json_stays_as_it_is() -> None:
    turns = [{"from": "human", "value": "x"}, {"from": "function_call", "value": "look(Rome)"}]
    assert messages_of(turns, "here", "c")[1] == said("assistant", "look(Rome)")


def test_a_text_beside_a_call_is_kept_in_the_samples() -> None:
    call = [{"id": "1", "type": "function", "function": CALL}]
    found = read(said("user", "Rome?"), said("assistant", "I look.", tool_calls=call))
    assert found.said == "I look."
    again = Example.from_json(json.loads(json.dumps(found.to_json())))
    assert again == found


@pytest.mark.parametrize("off", [{"weight": 0}, {"train": False}, {"training": False}])
def test_an_answer_that_is_not_to_be_learned(off: dict[str, Any]) -> None:
    found = read(said("user", "a"), said("assistant", "b", **off), said("user", "c"), said("assistant", "d", weight=1))
    assert found.answer == "d"
    assert found.turns[1].message() == said("assistant", "b", weight=0)
    assert Example.from_json(json.loads(json.dumps(found.to_json()))) == found
    last = read(said("user", "a"), said("assistant", "b"), said("user", "c"), said("assistant", "d", **off))
    assert last == Example("a", "b")
    with pytest.raises(DataError, match=r"t\.jsonl line 1: no answer \(no assistant turn to learn\)"):
        read(said("user", "a"), said("assistant", "b", **off))


def test_a_thought_beside_an_answer_is_learned_with_it() -> None:
    found = read(said("user", "a"), said("assistant", "b", reasoning_content="hm"))
    assert found.answer == "<think>\nhm\n</think>\n\nb"


def test_a_conversation_as_json_text() -> None:
    talk = [said("user", "a"), said("assistant", "b")]
    assert messages_of(json.dumps(talk), "t.csv line 2", "messages") == talk
    assert messages_of(" ", "t.csv line 2", "messages") == []


@pytest.mark.parametrize(
    ("talk", "message"),
    [
        ([said("user", "a"), said("assistant", None)], r"turn 2 in column 'c' \(assistant\) has no content"),
        ([said("user", "a"), "b"], "turn 2 in column 'c' is not an object"),
        ([said("user", "a"), said("narrator", "b")], "turn 2 in column 'c' has the role 'narrator'"),
        ([said("user", {"a": 1})], r"turn 1 in column 'c' \(user\) has a content that is not a text"),
        ([said("user", [{"type": "image_url", "image_url": {}}])], "turn 1 in column 'c' holds an image"),
        ([said("user", [{"type": "input_audio", "input_audio": {}}])], "turn 1 in column 'c' holds an audio"),
        ("[{", "column 'c' is not JSON"),
        ("hello", "column 'c' is not a list of turns"),
    ],
)
def test_what_is_wrong_is_told_by_its_turn(talk: Any, message: str) -> None:
    with pytest.raises(DataError, match=f"line 3: {message}"):
        messages_of(talk, "line 3", "c")


def test_pictures_beside_a_conversation_are_not_left_out_in_silence() -> None:
    row = {"conversations": [{"from": "human", "value": "<image>what?"}, {"from": "gpt", "value": "a cat"}]}
    with pytest.raises(DataError, match="column 'images' holds what is not text"):
        examples(SourceRows([{**row, "images": ["a.png"]}], "t.jsonl", "", [1]))
    assert len(examples(SourceRows([{**row, "images": []}], "t.jsonl", "", [1]))) == 1


def test_references_alone_are_right_answers() -> None:
    found = examples(SourceRows([{"question": "q", "references": ["a", "b"]}], "t.jsonl", "", [1])).examples
    assert found == [Example("q", "a", references=("b",))]
    assert examples(SourceRows([{"user": "q", "assistant": "a"}], "t.csv", "", [1])).examples == [Example("q", "a")]


def test_a_conversation_as_text_has_every_message_but_the_opening_system_message() -> None:
    call = {"type": "function", "function": {"name": "look_up", "arguments": {"town": "Ely"}}}
    found = Example.conversation(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "developer", "content": "Be kind."},
            {"role": "user", "content": "Who is the mayor?"},
            {"role": "assistant", "content": "Let me look.", "tool_calls": [call]},
            {"role": "tool", "content": "Ann Bell", "name": "look_up"},
            {"role": "system", "content": "Answer now."},
            {"role": "assistant", "content": "Ann Bell."},
        ]
    )
    assert found.instruction == "Be brief."
    assert found.text == (
        "developer: Be kind.\nuser: Who is the mayor?\n"
        'assistant: Let me look.\n{"name": "look_up", "arguments": {"town": "Ely"}}\n'
        "tool: Ann Bell\nsystem: Answer now."
    )
