"""What is told of the rows that a run learns."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from encoder_hubs import Notes

from adapterhub_cl import AdapterHub
from adapterhub_cl.data.tokenise import Tokens
from adapterhub_cl.training.training_rows import _unlearned_answers, _what_was_cut
from adapterhub_cl.types import Example, Layout, Task


def conversation(*, weight: int = 1) -> Example:
    said = [("user", "Hello."), ("assistant", "Hi!"), ("user", "Why?"), ("assistant", "So."), ("user", "How?")]
    messages: list[dict[str, Any]] = [{"role": role, "content": content} for role, content in said]
    messages[1]["weight"] = weight
    return Example.conversation([*messages, {"role": "assistant", "content": "Thus."}])


@pytest.mark.parametrize(
    ("form", "row", "weight", "told"),
    [
        ("chat", Tokens((1, 2), (3,), earlier=((0, 1), (1, 2))), 1, ""),
        (
            "chat",
            Tokens((1, 2), (3,), True, earlier=((0, 1),)),
            1,
            "1 earlier answer of the assistant is not learned, because the oldest turns",
        ),
        ("chat", Tokens((1, 2), (3,), True), 0, "1 earlier answer of"),
        (
            "instruction",
            Tokens((1, 2), (3,)),
            1,
            "2 earlier answers of the assistant are not learned, because the prompt format 'instruction'",
        ),
        ("instruction", Tokens((1, 2), ()), 1, ""),
    ],
)
def test_answers_in_conversations_that_are_not_learned(form: str, row: Tokens, weight: int, told: str) -> None:
    encode: Any = SimpleNamespace(task=Task("t", "generation", prompt_format=form))
    found = _unlearned_answers([(conversation(weight=weight), row), (Example("one", "text"), row)], encode)
    assert bool(found) == bool(told)
    if told:
        assert re.search(told, found)


@pytest.mark.parametrize(("answers", "told"), [(1, True), (2, False)])
def test_learning_the_last_answer_only_is_told_where_there_is_one_anyway(
    pico_copy: Callable[[str], Path], tmp_path: Path, answers: int, told: bool
) -> None:
    base = pico_copy("llama")
    (base / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}", encoding="utf-8"
    )
    said = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello!"}] * answers
    data, notes = tmp_path / "talks.jsonl", Notes()
    data.write_text((json.dumps({"messages": said}) + "\n") * 4, encoding="utf-8")
    hub = AdapterHub.init(tmp_path / "hub", str(base), quantization="none")
    hub.add_task("talks", data, learn="last", dry_run=True, reporter=notes)
    assert any("--learn last changes nothing" in note for note in notes.said) == told


@pytest.mark.parametrize(
    ("talks", "context", "end"),
    [
        (False, 512, "the end of the input (or of its passage) was cut (d line 1, 2). --max-length N keeps more"),
        (False, 64, "was cut (d line 1, 2). The base reads 64 tokens at most: shorten them"),
        (True, 512, "or the end of the last question or of a result was cut (d line 1, 2). --max-length N keeps more"),
    ],
)
def test_a_longer_limit_is_proposed_only_where_the_base_reads_more(talks: bool, context: int, end: str) -> None:
    task = Task("t", "generation", layout=Layout("messages", chat="messages") if talks else None)
    encode: Any = SimpleNamespace(task=task, max_length=64, longest_answer=4)
    told = _what_was_cut(["d line 1", "d line 2"], 9, encode, context)
    assert told.startswith("note: 2 of 9 examples are longer than 64 tokens, which leaves 60 for the prompt beside the")
    assert told.endswith(end)


@pytest.mark.parametrize(("asked", "told"), [({"max_length": 4000}, 1), ({"max_length": 64}, 0), ({}, 0)])
def test_a_limit_that_the_base_lowers_is_told_once(
    pico_copy: Callable[[str], Path], tmp_path: Path, asked: dict[str, Any], told: int
) -> None:
    data, notes = tmp_path / "rows.jsonl", Notes()
    data.write_text('{"prompt": "the red apple", "completion": "good"}\n' * 4, encoding="utf-8")
    hub = AdapterHub.init(tmp_path / "hub", str(pico_copy("llama")), quantization="none")
    hub.add_task("rows", data, dry_run=True, reporter=notes, **asked)
    found = [note for note in notes.said if "--max-length" in note]
    assert found == ["note: --max-length 4000 is lowered to 256, the most that the base reads"][:told]
