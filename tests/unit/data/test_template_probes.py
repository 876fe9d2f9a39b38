"""Chat templates that fail, that leave out what they are given, and that have no place for tools."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pico import make_tokenizer

from adapterhub_cl.data import chat, template_probes
from adapterhub_cl.data.tokenise import Tokeniser
from adapterhub_cl.errors import DataError
from adapterhub_cl.types import Example, Layout, Task

ASKED = "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
CHATML = "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}<pad>\n{% endfor %}" + ASKED
KNOWN = (  # as Zephyr's: another role is left out
    "{% for m in messages %}{% if m.role in ('user', 'assistant', 'system') %}"
    "<s>{{ m.role }}\n{{ m.content }}<pad>\n{% endif %}{% endfor %}" + ASKED
)
TOOLS = (
    "{% if tools %}<s>tools\n{{ tools | tojson }}<pad>\n{% endif %}{% for m in messages %}<s>{{ m.role }}\n"
    "{{ m.content }}{% for c in m.tool_calls or [] %}<call>{{ c.function.name }}</call>{% endfor %}<pad>\n{% endfor %}"
    + ASKED
)
TALKS = Task("t", "generation", "chat", layout=Layout("messages", chat="messages"))
CALL = [{"type": "function", "function": {"name": "look", "arguments": {"town": "Rome"}}}]
TALK = [
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": "", "tool_calls": CALL},
    {"role": "tool", "content": "sunny"},
    {"role": "assistant", "content": "It is sunny."},
]
OFFERED = [{"type": "function", "function": {"name": "look"}}]


def speaker(template: str) -> Any:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ raise_exception('only for customers') }}", "only for customers"),
        ("{% for m in messages %}{{ m.content }", "unexpected '}'"),
        ("{{ messages[0].foo.bar }}", "has no attribute 'foo'"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "maximum recursion depth exceeded"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "Range too big"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        (" ", "it leaves out what the user says"),
        ("{# nothing #}", "it leaves out what the user says"),
        ("hello", "it leaves out what the user says"),
        (CHATML.replace("m.content", "m.content[:9]"), "it leaves out what the user says"),
        (CHATML.replace("m.content", "m.content[:4000]"), "it leaves out what the user says"),
        (CHATML.replace("{{ m.content }}", "{% if m.role != 'user' %}{{ m.content }}{% endif %}"), "it leaves out"),
    ],
)
def test_a_template_that_does_not_work_is_told_once(template: str, why: str) -> None:
    tokenizer = speaker(template)
    with pytest.raises(chat.BrokenTemplateError, match=f"the base's chat template does not work: .*{why}") as told:
        Tokeniser(tokenizer, TALKS, 128)(Example("one", "two"))
    assert "--prompt-format instruction" in told.value.hint
    assert "\n" not in told.value.message


def test_a_template_that_does_not_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_probes, "PATIENCE", 0.2)
    endless = "{% for a in range(9000) %}{% for b in range(500) %}{{ a }}{% endfor %}{% endfor %}" + CHATML
    assert "does not end" in template_probes.why_broken(speaker(endless))


@pytest.mark.parametrize("template", [CHATML, CHATML.replace("m.content", "m.content | upper | trim"), KNOWN, TOOLS])
def test_a_template_that_works(template: str) -> None:
    assert template_probes.why_broken(speaker(template)) == ""
    assert template_probes.keeps_turns(speaker(template))


def test_a_template_that_forgets_earlier_turns_is_refused_for_conversations_alone() -> None:
    tokenizer = speaker("{% set m = messages[-1] %}<s>{{ m.role }}\n{{ m.content }}<pad>\n" + ASKED)
    assert Tokeniser(tokenizer, TALKS, 128)(Example("one", "two")).answer
    talk = [{"role": r, "content": t} for r, t in (("user", "one"), ("assistant", "two"), ("user", "three"))]
    with pytest.raises(DataError, match="leaves out the earlier turns of a conversation"):
        chat.prompt_of(tokenizer, talk)


def test_a_template_with_a_place_for_tools_gets_them_as_they_are() -> None:
    tokenizer = speaker(TOOLS)
    asked = chat.apply(tokenizer, TALK[:3], json.dumps(OFFERED))
    assert asked == tokenizer.apply_chat_template(TALK[:3], tools=OFFERED, tokenize=False, add_generation_prompt=True)


def test_tools_calls_and_results_are_not_left_out_where_the_template_knows_none() -> None:
    tokenizer = speaker(KNOWN)
    assert chat.apply(tokenizer, TALK[:3], json.dumps(OFFERED)) == (
        f"<s>system\nTools: {json.dumps(OFFERED)}<pad>\n<s>user\nWeather?<pad>\n"
        '<s>assistant\n{"name": "look", "arguments": {"town": "Rome"}}<pad>\n<s>user\nsunny<pad>\n<s>assistant\n'
    )
    tokens = Tokeniser(tokenizer, TALKS, 256)(Example.conversation(TALK, OFFERED))
    learned = [tokenizer.decode(tokens.ids[a:b]) for a, b in tokens.earlier]
    assert learned == ['{"name": "look", "arguments": {"town": "Rome"}}<pad>']
    assert tokenizer.decode(tokens.answer) == "It is sunny.<pad>"


def test_a_system_message_that_is_there_gets_the_tools() -> None:
    talk = [{"role": "system", "content": "Be kind."}, TALK[0]]
    assert chat.apply(speaker(KNOWN), talk, "[1]").startswith("<s>system\nBe kind.\nTools: [1]<pad>\n<s>user\n")


def test_an_answer_of_weight_0_is_read_and_not_learned() -> None:
    talk = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "bad", "weight": 0},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "good"},
    ]
    tokenizer = speaker(CHATML)
    tokens = Tokeniser(tokenizer, TALKS, 128)(Example.conversation(talk))
    assert "bad<pad>" in tokenizer.decode(tokens.prompt)
    assert tokens.earlier == ()


def test_a_template_that_does_not_end_for_conversations_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_probes, "PATIENCE", 0.2)
    endless = "{% for a in range(9000) %}{% for b in range(500) %}{{ a }}{% endfor %}{% endfor %}"
    tokenizer = speaker("{% if messages | length > 1 %}" + endless + "{% endif %}" + CHATML)
    with pytest.raises(chat.BrokenTemplateError, match="does not end within"):
        Tokeniser(tokenizer, TALKS, 128)(Example.conversation([TALK[0], TALK[3], TALK[0]]))


SHOUTS = CHATML.replace("m.content", "m.content | upper")
SILENT = CHATML.replace("{{ m.content }}", "{% if m.role != 'assistant' %}{{ m.content }}{% endif %}")


@pytest.mark.parametrize(("template", "end"), [(CHATML, "<pad>"), (SHOUTS, "<pad>"), (SILENT, "</s>")])
def test_only_what_follows_an_answer_ends_it(template: str, end: str) -> None:
    tokenizer = speaker(template)
    assert tokenizer.decode(Tokeniser(tokenizer, TALKS, 128).answer("two")[-1:]) == end


LONG = [f"{word} {word * 30} end of {word}" for word in "abc"]
TURNS = [{"role": role, "content": text} for role, text in zip(("user", "assistant", "user"), LONG, strict=True)]


@pytest.mark.parametrize(
    "template",
    [
        CHATML.replace("m.content", "(m.content[:20] if m.role == 'system' else m.content)"),
        CHATML.replace("m.content", "(m.content[:20] if m.role == 'user' else m.content)"),
        CHATML.replace("in messages", "in messages[-4:]"),
    ],
)
def test_a_template_that_cuts_what_was_said_is_refused(template: str) -> None:
    told = [{"role": "system", "content": "Be kind to everyone who asks."}, *TURNS, TURNS[1], TURNS[2]]
    with pytest.raises(DataError, match=r"leaves out|does not work"):
        chat.prompt_of(speaker(template), told)


def test_an_earlier_answer_that_the_template_cuts_is_not_learned() -> None:
    tokenizer = speaker(CHATML.replace("m.content", "(m.content[:20] if m.role == 'assistant' else m.content)"))
    assert Tokeniser(tokenizer, TALKS, 512)(Example.conversation([*TURNS, TURNS[1]])).earlier == ()
    kept = Tokeniser(speaker(CHATML), TALKS, 512)(Example.conversation([*TURNS, TURNS[1]]))
    assert len(kept.earlier) == 1


ENDS = "<pad>\n{% endfor %}" + ASKED
AS_OBJECT = (
    "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name }} {{ c.function.arguments | tojson }}{% endfor %}" + ENDS
)
AS_TEXT = AS_OBJECT.replace("{{ c.function.arguments | tojson }}", "{{ '' + c.function.arguments }}")
AS_PAIRS = AS_OBJECT.replace(
    "{{ c.function.arguments | tojson }}", "{% for k, v in c.function.arguments.items() %}{{ k }}={{ v }}{% endfor %}"
)


@pytest.mark.parametrize("arguments", [{"town": "Rome"}, '{"town": "Rome"}'])
@pytest.mark.parametrize(
    ("template", "written"),
    [(AS_OBJECT, 'look {"town": "Rome"}'), (AS_TEXT, 'look {"town": "Rome"}'), (AS_PAIRS, "look town=Rome")],
)
def test_arguments_are_written_in_the_form_that_the_template_reads(template: str, written: str, arguments: Any) -> None:
    """OpenAI's clients send the arguments as a JSON text; they must not be encoded twice, nor as Python writes them."""
    talk = [TALK[0], {**TALK[1], "tool_calls": [{"function": {"name": "look", "arguments": arguments}}]}, *TALK[2:]]
    assert written in chat.prompt_of(speaker(template), talk[:3])
    tokenizer = speaker(template)
    learned = Tokeniser(tokenizer, TALKS, 128)(Example.conversation(talk[:2])).answer
    assert tokenizer.decode(learned) == f"{written}<pad>"


def test_roles_are_blamed_only_where_they_are_out_of_order() -> None:
    tokenizer = speaker("{% if messages | length > 1 %}{{ raise_exception('no') }}{% endif %}" + CHATML)
    for talk, blamed in ((TALK, False), (TURNS, False), ([TURNS[0], TURNS[0]], True), (TURNS[1:], True)):
        with pytest.raises(DataError) as told:
            chat.apply(tokenizer, talk)
        assert ("alternate" in told.value.hint) == blamed
