"""Prediction, generation and perplexity do not depend on how examples are batched."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from toys import stir, toy_settings, toy_tokens

from adapterhub_cl.adapters.lora import new_adapter
from adapterhub_cl.data.batches import collate
from adapterhub_cl.data.tokenise import Tokeniser
from adapterhub_cl.evaluation.scoring import evaluate
from adapterhub_cl.objectives import ROOM
from adapterhub_cl.objectives.causal_lm import Objective
from adapterhub_cl.types import Example, Task

CHOICE = Task("mood", "choice", instruction="good or bad?", labels=("positive", "negative", "neither"))
FREE = Task("free", "generation", instruction="say more")
INPUTS = ["the red apple", "a", "the blue stone is bad, the red apple is good", "日本 🍎", "x y z"]
EXAMPLES = [Example(text) for text in INPUTS]


def test_room_knows_it() -> None:
    assert ROOM.get("causal_lm") is Objective


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bloom"])
def test_generation_in_a_left_padded_batch_equals_one_by_one(load_pico: Callable[..., Any], kind: str) -> None:
    base, objective = load_pico(kind), Objective()
    options = {"max_length": 128, "max_new_tokens": 6}
    together = objective.predict(base.model, base.tokenizer, FREE, EXAMPLES, **options)
    for example, (answer, confidence, scores, *_) in zip(EXAMPLES, together, strict=True):
        alone = objective.predict(base.model, base.tokenizer, FREE, [example], **options)[0]
        prompt = Tokeniser(base.tokenizer, FREE, 128)(example).prompt
        ids, logs = list(prompt), []
        for _ in range(6):
            with torch.no_grad():
                step = base.model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
            ids.append(int(step.argmax()))
            logs.append(float(step.max()))
            if ids[-1] == base.tokenizer.eos_token_id:
                break
        by_hand = base.tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True).strip()
        assert answer == alone[0] == by_hand
        assert confidence == pytest.approx(alone[1], rel=1e-4)
        assert confidence == pytest.approx(math.exp(sum(logs) / len(logs)), rel=1e-4)
        assert scores == {}


@pytest.mark.parametrize("kind", ["llama", "qwen2", "bloom"])
def test_choice_in_any_batch_size_and_order(load_pico: Callable[..., Any], kind: str) -> None:
    base, objective = load_pico(kind), Objective()
    found = objective.predict(base.model, base.tokenizer, CHOICE, EXAMPLES, batch_size=2)
    backwards = objective.predict(base.model, base.tokenizer, CHOICE, EXAMPLES[::-1], batch_size=5)[::-1]
    for (answer, confidence, scores, *_), (other_answer, _, other_scores, *_) in zip(found, backwards, strict=True):
        assert answer == other_answer == max(scores, key=scores.__getitem__)
        assert confidence == scores[answer]
        assert list(scores) == list(CHOICE.labels)
        assert sum(scores.values()) == pytest.approx(1, abs=1e-5)
        assert scores == pytest.approx(other_scores, abs=1e-4)


def test_perplexity_is_the_sum_over_the_answer(pico_base: Any) -> None:
    examples = toy_tokens(7)
    found = Objective().perplexities(pico_base.model, examples, 0, batch_size=3)
    for example, (nll, count) in zip(examples, found, strict=True):
        ids = torch.tensor([[*example.prompt, *example.answer]])
        logs = pico_base.model(input_ids=ids).logits[0].log_softmax(-1)
        start = len(example.prompt)
        right = -sum(float(logs[start - 1 + k, token]) for k, token in enumerate(example.answer))
        assert nll == pytest.approx(right, abs=1e-4)
        assert count == len(example.answer)


def test_progress_counts_every_example_once(pico_base: Any) -> None:
    done: list[int] = []
    Objective().predict(pico_base.model, pico_base.tokenizer, CHOICE, EXAMPLES, batch_size=2, progress=done.append)
    assert sum(done) == len(EXAMPLES)


def test_dropout_is_off_for_predictions_and_on_again_after(pico_base: Any) -> None:
    objective = Objective()
    with new_adapter(pico_base, toy_settings(dropout=0.5), "CAUSAL_LM") as model:
        stir(model, size=0.3)
        model.train()
        first, second = (objective.predict(model, pico_base.tokenizer, CHOICE, EXAMPLES) for _ in range(2))
        assert first == second
        assert model.training
        batch = collate(toy_tokens(4), range(4), 0)
        assert not torch.equal(objective.losses(model, batch), objective.losses(model, batch))
        model.eval()
        objective.perplexities(model, toy_tokens(2), 0)
        assert not model.training


def test_raw_text_can_be_asked_to_go_on(pico_base: Any) -> None:
    task = Task("facts", "text", metric="perplexity")
    by_answer = Objective().predict(
        pico_base.model, pico_base.tokenizer, task, [Example("", "the red")], max_new_tokens=3
    )
    by_input = Objective().predict(pico_base.model, pico_base.tokenizer, task, [Example("the red")], max_new_tokens=3)
    assert by_answer == by_input


def test_examples_without_instruction_and_input_are_learned_from_their_first_token(
    load_pico: Callable[..., Any],
) -> None:
    """A base without a beginning-of-text id: an empty prompt has nothing to predict the first token from."""
    base = load_pico("qwen2")
    assert base.tokenizer.bos_token_id is None
    tokens = Tokeniser(base.tokenizer, Task("free"), 64).many([Example("", "red apple"), Example("x", "stone")])
    batch = collate(tokens, range(2), 0)
    assert len(Objective().losses(base.model, batch)) == sum(len(t.answer) for t in tokens)
    found = Objective().perplexities(base.model, tokens, 0)
    assert [count for _, count in found] == [len(t.answer) for t in tokens]


def test_long_known_answers_leave_room_for_the_prompt(pico_base: Any) -> None:
    """Evaluation reserves room for answers longer than the known ones; that must not crowd out the prompt."""
    examples = [Example("red apple " * 4, "0123456789" * 5)]
    evaluations = evaluate(
        pico_base.model,
        pico_base.tokenizer,
        Objective(),
        FREE,
        examples,
        data="here",
        max_length=64,
        dtype=torch.float32,
    )
    assert [e.n for e in evaluations] == [1] * len(evaluations)
