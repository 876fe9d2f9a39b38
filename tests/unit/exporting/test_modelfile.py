"""The Modelfile: Ollama's template says what the chat template says, and data cannot add a command."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from pico import make_tokenizer

from adapterhub_cl.exporting._modelfile import chat_pieces, chat_template, for_tasks, modelfile, prompt_template, quoted

CHATML = (
    "{% for m in messages %}"
    "{% if loop.first and m.role != 'system' %}<|im_start|>system\nBe \"kind\".<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ONCE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>\n\n{{ m.content }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n\n{% endif %}"
)
NASTY = 'a """ b\nFROM /etc/passwd\n{{ .Prompt }} }} \\ "x" \u2028 ü'


def rendered(template: str, system: str, turns: list[tuple[str, str]]) -> str:
    """What Go would make of the few actions that are written here."""
    found = re.sub(r"\{\{ if not \.System \}\}(.*?)\{\{ end \}\}", lambda m: "" if system else m[1], template, count=1)
    head, loop, tail = re.fullmatch(
        r"(.*?)\{\{ range \.Messages \}\}(.*)\{\{ end \}\}\{\{ end \}\}(.*)", found
    ).groups()  # type: ignore[union-attr]
    parts = dict(re.findall(r'\{\{ (?:else )?if eq \.Role "(\w+)" \}\}(.*?)(?=\{\{ else if|$)', loop))
    told = [*([("system", system)] if system else []), *turns]
    return (
        _said(head) + "".join(_said(parts[role]).replace("{{ .Content }}", text) for role, text in told) + _said(tail)
    )


def _said(text: str) -> str:
    return re.sub(r'\{\{ ("(?:[^"\\]|\\.)*") \}\}', lambda m: str(json.loads(m[1])), text)


@pytest.mark.parametrize("chat", [None, CHATML, ONCE])
@pytest.mark.parametrize("system", ["", "Answer briefly."])
def test_the_template_is_the_chat_template(chat: str | None, system: str) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = chat or tokenizer.chat_template
    turns = [("user", "one"), ("assistant", "two"), ("user", "three")]
    rows = [{"role": role, "content": text} for role, text in ([("system", system)] if system else []) + turns]
    right = tokenizer.apply_chat_template(rows, tokenize=False, add_generation_prompt=True)
    pieces = chat_pieces(tokenizer)
    assert pieces is not None
    assert rendered(chat_template(pieces), system, turns) == right.removeprefix("<s>" if chat == ONCE else "")


def test_a_template_of_another_form_is_left_to_ollama() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for m in messages|reverse %}{{ m.content }}{% endfor %}"
    assert chat_pieces(tokenizer) is None
    tokenizer.chat_template = "{{ raise_exception('no system text') }}"
    assert chat_pieces(tokenizer) is None


def test_no_text_ends_the_template_or_begins_a_command() -> None:
    assert json.loads(quoted(NASTY)[3:-3]) == NASTY
    template = prompt_template(f"{NASTY}{{instruction}}\n{{input}}", NASTY)
    text = modelfile("./model.gguf", template, [NASTY, 'a"b', "", "</s>", "</s>"], remarks=[NASTY])
    lines = text.splitlines()
    assert [line.split()[0] for line in lines] == ["#", "FROM", "TEMPLATE", "PARAMETER", "PARAMETER"]
    assert lines[1] == "FROM ./model.gguf"
    assert lines[2].count('"""') == 2
    assert lines[2].endswith('"""')
    assert lines[3:] == ['PARAMETER stop "</s>"', "PARAMETER temperature 0"]


def test_a_task_with_a_prompt_of_its_own() -> None:
    tokenizer = make_tokenizer()
    prompt = {
        "add_special_tokens": False,
        "bare": "<s>{input}\nAnswer:",
        "instructed": "<s>{instruction}\n{input}\nAnswer:",
    }
    task: dict[str, Any] = {
        "spec": {"prompt_format": "instruction"},
        "prompt": prompt,
        "instruction": "Sort it.",
        "ends": [2],
    }
    about = {"adapter": "news@v1", "base": {"name": "pico"}, "tasks": {"news": task}}
    text = for_tasks(tokenizer, about, "./base.gguf", "./adapter.gguf")
    assert "ADAPTER ./adapter.gguf\n" in text
    wanted = (
        '{{ if .System }}{{ .System }}{{ else }}{{ "Sort it." }}{{ end }}{{ "\\n" }}{{ .Prompt }}{{ "\\nAnswer:" }}'
    )
    assert f'TEMPLATE """{wanted}"""\n' in text
    assert 'PARAMETER stop "</s>"\n' in text
