"""Rows in the chat format are, token for token, what `apply_chat_template` gives.

The templates are written as the families of models write theirs.
"""

from __future__ import annotations

from typing import Any

import pytest
from pico import make_tokenizer

from adapterhub_cl.data import chat
from adapterhub_cl.data.tokenise import Tokeniser
from adapterhub_cl.types import Example, Layout, Task

CHATML = """{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}"""

LLAMA_2 = """{%- if messages[0].role == 'system' %}
{%- set rest = messages[1:] %}{%- set told = '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' %}
{%- else %}{%- set rest = messages %}{%- set told = '' %}{%- endif %}
{%- for m in rest %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{%- endif %}
{%- if m.role == 'user' %}
{{- '<s>[INST] ' + (told if loop.first else '') + m.content.strip() + ' [/INST]' }}
{%- else %}{{- ' ' + m.content.strip() + ' </s>' }}{%- endif %}{%- endfor %}"""

LLAMA_3 = """{{- '<s>' }}{%- for m in messages %}
{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""

MISTRAL = """{%- if messages[0].role == 'system' %}{%- set told = messages[0].content + '\\n\\n' %}
{%- set rest = messages[1:] %}{%- else %}{%- set told = '' %}{%- set rest = messages %}{%- endif %}
{{- '<s>' }}{%- for m in rest %}
{%- if m.role == 'user' %}{{- '[INST] ' + (told if loop.first else '') + m.content + ' [/INST]' }}
{%- elif m.role == 'assistant' %}{{- ' ' + m.content + '</s>' }}
{%- else %}{{- raise_exception('only user and assistant') }}{%- endif %}{%- endfor %}"""

GEMMA = """{{- '<s>' }}
{%- if messages[0].role == 'system' %}{{- raise_exception('System role not supported') }}{%- endif %}
{%- for m in messages %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{- raise_exception('roles must alternate') }}{%- endif %}
{%- set role = 'model' if m.role == 'assistant' else m.role %}
{{- '<start_of_turn>' + role + '\\n' + m.content | trim + '<end_of_turn>\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{%- endif %}"""

PHI = """{%- for m in messages %}{{- '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}{%- else %}{{- '</s>' }}{%- endif %}"""

QWEN_3 = """{%- set ns = namespace(last=-1) %}
{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}
{%- for m in messages %}
{%- if m.role != 'assistant' %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
{%- else %}
{%- set content = m.content %}{%- set thought = '' %}
{%- if '</think>' in content %}
{%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}
{%- if loop.index0 > ns.last and (loop.last or thought) %}
{{- '<|im_start|>assistant\\n<think>\\n' + thought + '\\n</think>\\n\\n' + content + '<|im_end|>\\n' }}
{%- else %}{{- '<|im_start|>assistant\\n' + content + '<|im_end|>\\n' }}{%- endif %}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

ZEPHYR = """{%- for m in messages %}{{- '<|' + m.role + '|>\\n' + m.content + '</s>\\n' }}
{%- if loop.last and add_generation_prompt %}{{- '<|assistant|>\\n' }}{%- endif %}{%- endfor %}"""

# Of each: the template, its special tokens, the end of the assistant's turn, and whether it takes a system message.
FAMILIES: dict[str, tuple[str, list[str], str, bool]] = {
    "chatml": (CHATML, ["<|im_start|>", "<|im_end|>"], "<|im_end|>", True),
    "llama 2": (LLAMA_2, [], "</s>", True),
    "llama 3": (LLAMA_3, ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], "<|eot_id|>", True),
    "mistral": (MISTRAL, ["[INST]", "[/INST]"], "</s>", True),
    "gemma": (GEMMA, ["<start_of_turn>", "<end_of_turn>"], "<end_of_turn>", False),
    "phi": (PHI, ["<|user|>", "<|assistant|>", "<|system|>", "<|end|>"], "<|end|>", True),
    "qwen 3": (QWEN_3, ["<|im_start|>", "<|im_end|>"], "<|im_end|>", True),
    "zephyr": (ZEPHYR, [], "</s>", True),
}
SYSTEM = {"role": "system", "content": "Be kind."}
ASKED = {"role": "user", "content": "one of these"}
AGAIN = [ASKED, {"role": "assistant", "content": "the other"}, {"role": "user", "content": "and now"}]
ANSWER = {"role": "assistant", "content": "this one"}
TALKS = Task("t", "generation", "chat", layout=Layout("messages", chat="messages"))
THOUGHT = "<think>\n\n</think>\n\n"


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def speaker(family: str) -> Any:
    template, special, _, _ = FAMILIES[family]
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    if family == "qwen 3":
        tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = template
    return tokenizer


def ids_of(tokenizer: Any, messages: list[dict[str, str]], *, prompt: bool = False) -> list[int]:
    found = tokenizer.apply_chat_template(messages, tokenize=True, add_generation_prompt=prompt)
    return list(found["input_ids"] if hasattr(found, "keys") else found)


def through_the_turn(ids: list[int], end: int) -> list[int]:
    """Up to the end of the last turn: a line end behind it is the beginning of the next one."""
    return ids[: len(ids) - ids[::-1].index(end)]


@pytest.mark.parametrize("said", [[ASKED], AGAIN, [SYSTEM, ASKED], [SYSTEM, *AGAIN]], ids=len)
def test_prompt_and_answer_are_the_templates(family: str, speaker: Any, said: list[dict[str, str]]) -> None:
    _, _, end, takes_system = FAMILIES[family]
    encode = Tokeniser(speaker, TALKS, 256)
    assert encode.end == speaker.convert_tokens_to_ids(end)
    wanted = said
    if said[0] is SYSTEM and not takes_system:  # at the head of the first message of the user
        first = {**said[1], "content": f"{SYSTEM['content']}\n\n{said[1]['content']}"}
        wanted = [first, *said[2:]]
    tokens = encode(Example.conversation([*said, ANSWER]))
    assert list(tokens.prompt) == ids_of(speaker, wanted, prompt=True)
    assert list(tokens.ids) == through_the_turn(ids_of(speaker, [*wanted, ANSWER]), encode.end)
    assert not tokens.truncated


def test_rows_of_any_task_are_asked_in_the_same_way(family: str, speaker: Any) -> None:
    task = Task("t", "choice", "chat", instruction="Which one?", labels=("this one", "another"))
    encode = Tokeniser(speaker, task, 256)
    tokens = encode(Example("a or b", "this one"))
    said = [{"role": "user", "content": "Which one?\na or b"}]
    assert list(encode.prompt(Example("a or b")).prompt) == list(tokens.prompt) == ids_of(speaker, said, prompt=True)
    assert list(tokens.ids) == through_the_turn(ids_of(speaker, [*said, ANSWER]), encode.end)
    assert tokens.answer == encode.answer("this one"), "a label is scored as it was learned"


def test_what_the_template_puts_before_an_answer_is_no_part_of_it(family: str, speaker: Any) -> None:
    encode = Tokeniser(speaker, TALKS, 256)
    assert encode.frame.before.strip() == (THOUGHT.strip() if family == "qwen 3" else "")
    written = speaker.decode(encode.answer("this one")[:-1])
    assert encode.written(written) == "this one"
    assert encode.gold(Example("x", "this one")) == "this one"


def test_a_thought_in_the_data_is_learned(family: str, speaker: Any) -> None:
    thought = "<think>\nhm\n</think>\n\nthis one"
    ids = Tokeniser(speaker, TALKS, 256).answer(thought)
    assert "hm" in speaker.decode(ids)
    assert speaker.decode(ids).count("think>") == 2, "and no empty one before it"


def test_every_answer_of_a_conversation_is_learned(family: str, speaker: Any) -> None:
    tokens = Tokeniser(speaker, TALKS, 256)(Example.conversation([*AGAIN, ANSWER]))
    earlier = [speaker.decode(tokens.prompt[a:b]) for a, b in tokens.earlier]
    if family == "qwen 3":  # it writes an earlier answer otherwise than it was asked for: without the thought
        assert earlier == []
    else:
        assert [text.strip().removesuffix(FAMILIES[family][2]).strip() for text in earlier] == ["the other"]
    assert chat.takes_system(speaker) is FAMILIES[family][3]
