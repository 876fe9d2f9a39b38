"""Conversations as LLaMA-Factory, axolotl and OpenAI write them; and what is wrong with one is told by its turn."""

from __future__ import annotations

import json
from typing import Any

import pytest

from adapterhub_cl.data.columns import examples, inputs
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
        ([said("user", [1])], r"turn 1 in column 'c' holds a part that is no text \(its type: int\)"),
        ([said("user", [{"x": "a"}])], r"turn 1 in column 'c' holds a part that is no text \(its type: object\)"),
        ([said("user", [{"type": "document", "source": {}}])], r".*no text \(its type: document\)"),
        ([said("user", [{"type": "thinking", "thinking": "hm"}])], r".*no text \(its type: thinking\)"),
        ([said("assistant", [{"type": "tool_result", "content": "a"}])], r".*no text \(its type: tool_result\)"),
        ([said("user", [{"type": "tool_result", "content": [{"type": "image"}]}])], "turn 1 in column 'c' holds an im"),
        ([said("user", [{"type": "tool_use", "name": "f"}])], r".*\(user\) has tool calls, and only the assistant"),
        ([said("user", "a", tool_calls=[CALL])], r".*\(user\) has tool calls, and only the assistant calls tools"),
        ([said("assistant", "a", function_call="look")], "turn 1 in column 'c': tool_calls is not a list of calls"),
        ([said("assistant", "", tool_calls=[{"name": "f", "arguments": {"x": float("inf")}}])], ".*an infinite number"),
        ([said("assistant", "b", reasoning_content={"a": 1})], r".*has a reasoning_content that is not a text"),
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


def test_contents_in_parts_are_read_to_the_last_part() -> None:
    parts = [
        {"type": "text", "text": "a"},
        {"type": "input_text", "text": "b"},
        {"type": "output_text", "text": "c"},
        {"text": {"value": "d"}},
        {"type": "text", "text": {"value": "e"}},
        {"type": "text", "content": "f"},
        {"type": "refusal", "refusal": "g"},
        None,
        "h",
    ]
    assert messages_of([said("user", parts)], "here", "c") == [said("user", "a\nb\nc\nd\ne\nf\ng\nh")]


def test_anthropics_thoughts_calls_and_results() -> None:
    talk = [
        said("user", "Rome?"),
        said(
            "assistant",
            [
                {"type": "thinking", "thinking": "hm", "signature": "x"},
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "1", "name": "look", "input": {"town": "Rome"}},
                {"type": "tool_use", "id": "2", "name": "stop"},
            ],
        ),
        said(
            "user",
            [
                {"type": "text", "text": "Go on."},
                {"type": "tool_result", "tool_use_id": "1", "content": " sunny "},
                {"type": "tool_result", "tool_use_id": "2", "content": [{"type": "text", "text": "done"}, "!"]},
            ],
        ),
        said("assistant", "It is sunny."),
        said("user", [{"type": "tool_result", "tool_use_id": "3"}]),
    ]
    calls = [
        {"id": "1", "type": "function", "function": CALL},
        {"id": "2", "type": "function", "function": {"name": "stop", "arguments": {}}},
    ]
    assert messages_of(talk, "here", "c") == [
        said("user", "Rome?"),
        said("assistant", "I look.", tool_calls=calls, reasoning_content="hm"),
        said("tool", "sunny", tool_call_id="1"),
        said("tool", "done\n!", tool_call_id="2"),
        said("user", "Go on."),
        said("assistant", "It is sunny."),
        said("tool", "", tool_call_id="3"),
    ]


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ({"name": "f", "arguments": {"x": 1}}, {"name": "f", "arguments": {"x": 1}}),
        ({"name": "f", "args": {"x": 1}, "type": "tool_call"}, {"name": "f", "arguments": {"x": 1}}),
        ({"function": {"name": "f"}}, {"name": "f", "arguments": {}}),
        ({"function": {"name": "f", "arguments": None}}, {"name": "f", "arguments": {}}),
        ({"function": {"name": "f", "arguments": '{"x": [1]}'}}, {"name": "f", "arguments": {"x": [1]}}),
        ({"function": {"name": "f", "arguments": "{not"}}, {"name": "f", "arguments": "{not"}),
        ({"function": {"name": "f", "arguments": "[1]"}}, {"name": "f", "arguments": "[1]"}),
        ({"function": {"name": "f", "arguments": "[" * 99_999}}, {"name": "f", "arguments": "[" * 99_999}),
        ({"function": {"name": "f", "arguments": {"x": float("nan")}}}, {"name": "f", "arguments": {"x": None}}),
    ],
)
def test_calls_have_one_form(call: dict[str, Any], expected: dict[str, Any]) -> None:
    (found,) = messages_of([said("assistant", None, tool_calls=[{"id": "7", **call}])], "here", "c")
    assert found == said("assistant", "", tool_calls=[{"id": "7", "type": "function", "function": expected}])


@pytest.mark.parametrize("more", [{"tool_calls": [CALL]}, {"reasoning_content": "hm"}, {"weight": 0}])
def test_only_an_answer_that_says_nothing_is_empty(more: dict[str, Any]) -> None:
    talk = [said("user", "a"), said("assistant", " ", **more), said("user", "b"), said("assistant", "c")]
    assert read(*talk).answer == "c"


def test_an_empty_answer_is_not_learned_in_silence() -> None:
    talk = [said("user", "a"), said("assistant", " "), said("user", "b"), said("assistant", "c")]
    with pytest.raises(DataError, match=r"line 1: turn 2 in column 'messages' \(assistant\) is empty") as caught:
        read(*talk)
    assert '"weight": 0' in caught.value.hint
    with pytest.raises(DataError, match=r"turn 4 in column 'messages' \(assistant\) is empty"):
        read(*talk[:1], said("assistant", "b"), *talk[2:3], said("assistant", [None]))
    with pytest.raises(DataError, match=r"turn 1 in column 'completion' \(assistant\) is empty"):
        examples(SourceRows([{"prompt": talk[:1], "completion": talk[1:2]}], "t.jsonl", "", [1]))
    with pytest.raises(DataError, match="line 1: no answer"):  # and not the earlier one
        examples(SourceRows([{"prompt": [*talk[2:], *talk[:1]], "completion": ""}], "t.jsonl", "", [1]))
    (asked,) = inputs(SourceRows([{"messages": talk[:3]}], "t.jsonl", "", [1]))
    assert asked.text == "user: a\nassistant: \nuser: b"


@pytest.mark.parametrize("off", [False, "False", "no", "OFF", "0.0", 0, 0.0])
@pytest.mark.parametrize("name", ["train", "weight", "training"])
def test_what_switches_off(name: str, off: Any) -> None:
    (found,) = messages_of([said("assistant", "b", **{name: off})], "here", "c")
    assert found == said("assistant", "b", weight=0)


@pytest.mark.parametrize("on", [True, 1, "true", "Yes", "on", 0.5, "2", None])
def test_what_switches_on(on: Any) -> None:
    assert messages_of([said("assistant", "b", train=on)], "here", "c") == [said("assistant", "b")]


@pytest.mark.parametrize("wrong", [-1, float("nan"), float("inf"), "nan", "-1", "maybe", "", [], {}])
def test_what_switches_neither_on_nor_off(wrong: Any) -> None:
    with pytest.raises(DataError, match=r"turn 1 in column 'c': 'weight' is .*, which says neither") as caught:
        messages_of([said("assistant", "b", weight=wrong)], "here", "c")
    assert caught.value.hint == (
        "write true, yes, on or a number above 0 to learn it; false, no, off or 0 to leave it out"
    )


def test_a_system_column_is_joined_to_the_messages_own() -> None:
    talk = [said("user", "a"), said("assistant", "b")]
    assert read(*talk, system="S").instruction == "S"
    assert read(said("system", "M"), *talk, system="S").instruction == "S\nM"
    assert read(said("system", "S"), *talk, system=" S ").instruction == "S"
    assert read(said("system", ""), *talk, system="S").instruction == "S"


def test_tools_that_are_too_deep_are_named() -> None:
    with pytest.raises(DataError, match="line 1: column 'tools' is not JSON"):
        read(said("user", "a"), said("assistant", "b"), tools="[" * 99_999)
    with pytest.raises(DataError, match=r"column 'tools' is not JSON .*'name' occurs twice"):
        read(said("user", "a"), said("assistant", "b"), tools='[{"name": "f", "name": "g"}]')


@pytest.mark.parametrize("key", ["context", "attachments", "images"])
def test_what_a_message_holds_beside_its_text_is_not_dropped(key: str) -> None:
    turn = {"role": "user", "content": "What does it say?", key: ["The bridge closes at nine."]}
    with pytest.raises(DataError, match=f"turn 1 .* has '{key}', which would be ignored"):
        messages_of([turn], "x.jsonl line 1", "messages")
    assert messages_of([{**turn, key: None, "id": 7}], "x", "messages")[0]["id"] == 7


@pytest.mark.parametrize("key", ["thinking", "reasoning"])
def test_a_thought_under_another_name(key: str) -> None:
    [said] = messages_of([{"role": "assistant", "content": "four", key: "two and two"}], "x", "messages")
    assert said == {"role": "assistant", "content": "four", "reasoning_content": "two and two"}
