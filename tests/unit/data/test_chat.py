"""What the chat template says of prompts, of earlier answers and of the end of a turn."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from pico import make_tokenizer

from adapterhub_cl.data import chat
from adapterhub_cl.data.batches import IGNORED, answers_in, collate
from adapterhub_cl.data.tokenise import Tokeniser
from adapterhub_cl.errors import DataError
from adapterhub_cl.types import Example, Layout, Task

CHATML = (
    "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}<pad>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
TALKS = Task("t", "generation", "chat", layout=Layout("messages", chat="messages"))
TALK = [
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "three"},
    {"role": "assistant", "content": "four"},
]


@pytest.fixture
def speaker() -> Any:
    """A tokenizer whose turns end with <pad> and whose texts end with </s>, as Gemma's and Phi's do."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHATML
    return tokenizer


def test_every_end_ends(speaker: Any) -> None:
    assert chat.turn_end(speaker) == speaker.pad_token_id
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=[7, 9]))
    assert chat.end_ids(speaker, model) == sorted({7, 9, speaker.eos_token_id, speaker.pad_token_id})
    speaker.chat_template = None
    assert chat.end_ids(speaker, SimpleNamespace()) == [speaker.eos_token_id]
    speaker.chat_template = "{{ messages[0].content }}"
    assert chat.turn_end(speaker) is None


def test_every_answer_of_the_assistant_is_learned(speaker: Any) -> None:
    tokens = Tokeniser(speaker, TALKS, 128)(Example.conversation(TALK))
    whole = chat.apply(speaker, TALK, prompt=False).rstrip()
    assert speaker.decode(tokens.ids) == whole
    batch = collate([tokens], [0], 0, earlier=True)
    learned = [t for t, label in zip(batch.input_ids[0].tolist(), batch.labels[0].tolist(), strict=True) if label >= 0]
    assert speaker.decode(learned) == "two<pad>four<pad>"
    assert answers_in([tokens], [0]) == len(learned)
    alone = collate([tokens], [0], 0)
    assert int((alone.labels != IGNORED).sum()) == len(tokens.answer)


def test_the_last_answer_alone_is_learned_where_asked_for(speaker: Any) -> None:
    from adapterhub_cl.errors import UsageError
    from adapterhub_cl.settings import TrainingSettings
    from adapterhub_cl.training.training_rows import as_learned

    tokens = [Tokeniser(speaker, TALKS, 128)(Example.conversation(TALK))]
    (last,) = as_learned(tokens, TrainingSettings(learn="last"))
    batch = collate([last], [0], 0, earlier=True)
    learned = [t for t, label in zip(batch.input_ids[0].tolist(), batch.labels[0].tolist(), strict=True) if label >= 0]
    assert speaker.decode(learned) == "four<pad>"
    assert last.ids == tokens[0].ids
    assert as_learned(tokens, TrainingSettings()) == tokens
    with pytest.raises(UsageError, match="--learn must be one of all, last, not 'first'"):
        TrainingSettings(learn="first")


def test_an_earlier_turn_that_the_template_rewrites_is_not_learned(speaker: Any) -> None:
    speaker.chat_template = (
        "{% for m in messages %}<s>{{ m.role }}\n"
        "{{ m.content if loop.last or m.role != 'assistant' else m.content.split('!')[-1] }}<pad>\n{% endfor %}"
        "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
    )
    talk = [TALK[0], {"role": "assistant", "content": "thought!two"}, *TALK[2:]]
    assert Tokeniser(speaker, TALKS, 128)(Example.conversation(talk)).earlier == ()


def test_a_template_without_a_generation_prompt(speaker: Any) -> None:
    speaker.chat_template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}</s>{% endfor %}"
    assert chat.prompt_of(speaker, TALK[:1]) == "[user] one</s>[assistant] "


def test_the_system_message_stays_one(speaker: Any) -> None:
    said = [{"role": "system", "content": "Be kind."}, *TALK[:2]]
    whole = Tokeniser(speaker, TALKS, 128)(Example.conversation(said)).prompt
    assert speaker.decode(whole) == "<s>system\nBe kind.<pad>\n<s>user\none<pad>\n<s>assistant\n"
    # a bare text for a task whose conversations all had this system message
    from dataclasses import replace

    assert Tokeniser(speaker, replace(TALKS, instruction="Be kind."), 128).prompt(Example("one")).prompt == whole


def test_an_answer_that_calls_tools_is_written_as_the_template_writes_it(speaker: Any) -> None:
    speaker.chat_template = (
        "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}"
        "{% for c in m.tool_calls or [] %}<call>{{ c.function.name }}</call>{% endfor %}<pad>\n{% endfor %}"
        "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
    )
    call = [{"type": "function", "function": {"name": "look", "arguments": {"town": "Rome"}}}]
    example = Example.conversation([TALK[0], {"role": "assistant", "content": "", "tool_calls": call}])
    assert Tokeniser(speaker, TALKS, 128).gold(example) == "<call>look</call>"
    speaker.chat_template = CHATML  # knows no tools: the call is learned as JSON
    assert '"look"' in Tokeniser(speaker, TALKS, 128).gold(example)


def test_a_template_that_raises_is_quoted(speaker: Any) -> None:
    speaker.chat_template = "{{ raise_exception('a system message is needed') }}"
    with pytest.raises(DataError, match="the base's chat template does not work: a system message is needed"):
        Tokeniser(speaker, TALKS, 128)(Example("one", "two"))


def test_conversations_that_end_alike_are_not_the_same_question() -> None:
    from adapterhub_cl.data.tasks import find_leaks, find_outdated
    from adapterhub_cl.samples.store import sample_key

    def talk(first: str, answer: str) -> Example:
        return Example.conversation([{"role": "user", "content": first}, *TALK[1:3], {**TALK[3], "content": answer}])

    one, other = talk("one", "four"), talk("five", "six")
    assert find_leaks([one], [other]) == []
    assert find_outdated([one], [other]) == []
    assert find_outdated([one], [talk("one", "six")]) == [0]
    assert sample_key(one) != sample_key(other)
    assert Example.from_json(one.to_json()) == one
    assert one.with_input("other words").turns[-1].content == "other words"


def test_one_long_answer_takes_half_of_the_limit_at_most_and_is_named_where_it_does_not_fit(speaker: Any) -> None:
    from adapterhub_cl.data.tokenise import with_limits
    from adapterhub_cl.progress import Reporter
    from adapterhub_cl.training.training_rows import TrainingSet, _windows

    rows = [Example("short " * 12, "yes"), Example("ask", "word " * 60), Example("more", "no")]
    task = with_limits(Task("t", "generation"), speaker, rows, 100)
    encode = Tokeniser(speaker, task, 100)
    assert task.answer_tokens > 50
    assert encode.longest_answer == 50
    assert encode.budget() > task.answer_tokens
    with pytest.raises(DataError, match="b line 2: the instruction and the answer alone are longer than 100 tokens"):
        _windows(encode, TrainingSet(task, rows, places=["b line 1", "b line 2", "b line 3"]), Reporter())


@pytest.mark.parametrize(
    "template", ["{{ 1 / 0 }}", "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "{{ messages.x.y }}"]
)
def test_a_template_that_fails_in_any_way_is_a_clear_error(speaker: Any, template: str) -> None:
    speaker.chat_template = template
    with pytest.raises(DataError, match="the base's chat template does not work"):
        Tokeniser(speaker, TALKS, 128)(Example("one", "two"))
    assert chat.end_ids(speaker, SimpleNamespace()) == [speaker.eos_token_id], "other formats go on working"
