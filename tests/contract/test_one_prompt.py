"""Training, evaluation, predict, the engine and chat ask one prompt: every layout × format × length × kind.

`COMBINATIONS` counts them; each is compared in all of the ways that ask.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pico import make_tokenizer

from adapterhub_cl.answering import Answer, answerer
from adapterhub_cl.data.columns import read_examples, read_inputs
from adapterhub_cl.data.layouts import parse_columns
from adapterhub_cl.data.tasks import infer_task
from adapterhub_cl.data.tokenise import Tokeniser, with_limits
from adapterhub_cl.evaluation.scoring import evaluate
from adapterhub_cl.inference.requests import AnswerRequest, Resolved, free_request, row_of
from adapterhub_cl.objectives import causal_lm
from adapterhub_cl.types import Example, Task

LONG = "the red apple stands beside the blue stone and says so, again and again, all day long. " * 4
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"town": "string"}}}]
LIMITS = {"short": 256, "long": 150}
KINDS = ("choice", "generation")


def said(*turns: str, system: str = "") -> list[dict[str, Any]]:
    opening = [{"role": "system", "content": system}] if system else []
    return [*opening, *({"role": ("user", "assistant")[k % 2], "content": text} for k, text in enumerate(turns))]


def layouts(text: str) -> dict[str, tuple[dict[str, Any], str]]:
    """Name → a row without its answer, and the column of the answer (empty where the conversation holds it).

    Args:
        text: what makes the row short or long.
    """
    older = [f"earlier {k}: {text}" for k in range(2)]
    return {
        "text": ({"text": f"{text} one"}, "label"),
        "text, instruction": ({"text": f"{text} one", "instruction": "Good or bad?"}, "label"),
        "pair": ({"premise": f"{text} all", "hypothesis": "so it is"}, "label"),
        "question, sentence": ({"question": "Who?", "sentence": text or "Ann."}, "label"),
        "input": ({"input": f"{text} one"}, "output"),
        "instruction": ({"instruction": "Say it.", "input": f"{text} one"}, "output"),
        "instruction alone": ({"instruction": f"{text} one"}, "output"),
        "prompt": ({"prompt": f"{text} one"}, "completion"),
        "prompt, input": ({"prompt": "Say it.", "input": f"{text} one"}, "completion"),
        "query": ({"query": f"{text} one"}, "response"),
        "system prompt": ({"prompt": f"{text} one", "system_prompt": "Be kind."}, "response"),
        "question": ({"question": f"{text} who?"}, "answer"),
        "passage": ({"context": f"{text} Ann went.", "question": "Who went?"}, "answer"),
        "options": ({"question": f"{text} who?", "choices": ["Ann", "Bob"]}, "answer"),
        "history": ({"instruction": "Now?", "input": "", "history": [[older[0], "yes"], [older[1], "no"]]}, "output"),
        "columns": ({"title": f"{text} one", "body": "two"}, "stars"),
        "messages": ({"messages": said(f"{text} one")}, ""),
        "messages, system": ({"messages": said(f"{text} one", system="Be kind.")}, ""),
        "turns": ({"messages": said(older[0], "yes", older[1], "no", "now?")}, ""),
        "turns, system": ({"messages": said(older[0], "yes", older[1], "no", "now?", system="Be kind.")}, ""),
        "sharegpt": ({"conversations": [{"from": "human", "value": f"{text} one"}]}, ""),
        "tools": ({"messages": said(f"{text} one"), "tools": TOOLS}, ""),
        "TRL": ({"prompt": said(f"{text} one")}, "completion"),
    }


FORMATS = ("instruction", "plain", "alpaca", "chat", "Q: {input}\nHint: {instruction}\nA:")
COMBINATIONS = len(layouts("")) * len(FORMATS) * len(LIMITS) * len(KINDS)


def answered(row: dict[str, Any], column: str, answer: str) -> dict[str, Any]:
    if column == "completion" and isinstance(row["prompt"], list):
        return {**row, column: [{"role": "assistant", "content": answer}]}
    if column:
        return {**row, column: answer}
    name = next(name for name in ("messages", "conversations") if name in row)
    last = {"from": "gpt", "value": answer} if name == "conversations" else {"role": "assistant", "content": answer}
    return {**row, name: [*row[name], last]}


def varied(row: Any, k: int) -> Any:
    """The same row about something else."""
    return json.loads(json.dumps(row).replace("one", f"one {k}").replace("now?", f"now {k}?"))


@pytest.fixture(
    scope="module",
    params=["frames", *(pytest.param(way, marks=pytest.mark.slow) for way in ("begins", "bare"))],
)
def spoken_base(request: pytest.FixtureRequest, load_pico: Callable[..., Any]) -> Any:
    """A base whose tokenizer puts an id before a text, or on both sides, or none."""
    from dataclasses import replace

    from tokenizers import processors

    tokenizer = make_tokenizer(bos=request.param != "bare")
    if request.param == "frames":
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    tokenizer.chat_template = (
        "{% if tools %}tools: {{ tools | length }}\n{% endif %}"
        "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>\n{% endfor %}"
        "{% if add_generation_prompt %}<s>assistant: {% endif %}"
    )
    return replace(load_pico(), tokenizer=tokenizer)


def heard(monkeypatch: pytest.MonkeyPatch, ask: Callable[[], Any]) -> list[tuple[int, ...]]:
    """The prompts that the model is asked for answers, in the examples' order."""
    found: list[tuple[int, ...]] = []

    def choose(model: Any, trees: Sequence[Any], prompts: Sequence[Any], pad: int) -> list[torch.Tensor]:
        found.extend(map(tuple, prompts))
        return [torch.zeros(len(tree.labels)) for tree in trees]

    def write(model: Any, tokenizer: Any, prompts: Sequence[Any], *_: Any, **__: Any) -> list[Answer]:
        found.extend(map(tuple, prompts))
        return [Answer("x", 1.0, {})] * len(prompts)

    with monkeypatch.context() as patch:
        patch.setattr(answerer, "settle", lambda model, pad: True)
        patch.setattr(answerer, "score_rows", choose)
        patch.setattr(answerer, "write_rows", write)
        patch.setattr(answerer, "by_length", lambda lengths, size: [[k] for k in range(len(lengths))])
        ask()
    return found


def asked_by_engine(base: Any, request: AnswerRequest, task: Task) -> tuple[int, ...]:
    row = row_of(base, request, Resolved({}, task), base.context)
    return tuple(row.ready(row.tokeniser(base.tokenizer, base.context), base.context)[0])


@pytest.mark.parametrize("prompt_format", FORMATS)
@pytest.mark.parametrize("name", layouts(""))
def test_one_prompt(
    name: str, prompt_format: str, spoken_base: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, objective = spoken_base, causal_lm.Objective()
    for length, limit in LIMITS.items():
        row, column = layouts(LONG if length == "long" else "")[name]
        columns = parse_columns(f"input=title,input=body,output={column}") if name == "columns" else None
        rows = [varied(row, k) for k in range(4)]
        told, bare = tmp_path / f"{length}.jsonl", tmp_path / f"{length}-bare.jsonl"
        full = [answered(one, column, ("good", "bad")[k % 2]) for k, one in enumerate(rows)]
        told.write_text("".join(json.dumps(one) + "\n" for one in full))
        bare.write_text("".join(json.dumps(one) + "\n" for one in rows))
        data = read_examples(told, columns)
        for kind in KINDS:
            labels = ["good", "bad"] if kind == "choice" else None
            task = infer_task("t", data, kind=kind, labels=labels, prompt_format=prompt_format)
            task = Task.from_json(json.loads(json.dumps(task.to_json())))  # as it is stored
            task = with_limits(task, base.tokenizer, data.examples, limit)
            trained = [tokens.prompt for tokens in Tokeniser(base.tokenizer, task, limit).many(data.examples)]
            where = f"{name}, {prompt_format!r}, {length}, {kind}"
            assert all(len(prompt) < limit for prompt in trained), where
            cut = [t.truncated for t in Tokeniser(base.tokenizer, task, limit).many(data.examples)]
            assert all(cut) == any(cut) == (length == "long"), where

            def score(task: Task = task, examples: list[Example] = data.examples) -> Any:
                return evaluate(
                    base.model,
                    base.tokenizer,
                    objective,
                    task,
                    examples,
                    data="x",
                    max_length=base.context,
                    dtype=base.dtype,
                )

            assert heard(monkeypatch, score) == trained, where
            for file in (told, bare):  # with the answers still in the file, and without
                inputs = read_inputs(file, layouts=[task.layout] if task.layout else [])
                assert [e.question() for e in inputs] == [e.question() for e in data.examples], where
                assert [asked_by_engine(base, AnswerRequest(e), task) for e in inputs] == trained, where

                def predict(task: Task = task, inputs: list[Example] = inputs) -> Any:
                    return objective.predict(base.model, base.tokenizer, task, inputs, max_length=base.context)

                assert heard(monkeypatch, predict) == trained, where
            if task.talks and name not in ("tools", "sharegpt", "TRL"):
                asked = [free_request(one["messages"], "t", None, 1, False, {}) for one in rows]
                assert [asked_by_engine(base, one, task) for one in asked] == trained, where


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_cut_is_never_the_question(spoken_base: Any, kind: str) -> None:
    """Of a passage the passage loses its end, of a conversation the oldest turns go; the question stays whole."""
    base = spoken_base
    passage = Example(f"{LONG}\nWho went?", "good", "Answer.", passage=len(LONG))
    talk = Example.conversation([*said(LONG, "yes", LONG, "no", "now?", system="Be kind."), *said("", "good")[1:]])
    labels = ("good", "bad") if kind == "choice" else ()
    for example, form, kept, gone in (
        (passage, "instruction", ["Answer.", "the red apple", "Who went?"], ()),
        (passage, "chat", ["Answer.", "the red apple", "Who went?"], ()),
        (talk, "chat", ["Be kind.", "now?"], ["yes", "no"]),
        (talk, "instruction", ["Be kind.", "now?"], ["yes"]),
    ):
        task = with_limits(Task("t", kind, form, labels=labels), base.tokenizer, [example], 130)
        tokens = Tokeniser(base.tokenizer, task, 256)(example)
        text = base.tokenizer.decode(tokens.prompt)
        assert tokens.truncated
        assert all(part in text for part in kept), text
        assert not any(f"{part}<" in text or f"{part}\n" in text for part in gone), text


def test_every_combination_is_counted() -> None:
    assert COMBINATIONS == 23 * 5 * 2 * 2 == 460
