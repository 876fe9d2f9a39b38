"""What a model says about examples, for selection policies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from toys import stir, toy_settings

from adapterhub_cl.adapters.lora import new_adapter
from adapterhub_cl.data.tokenise import Tokeniser
from adapterhub_cl.evaluation.evidence import ModelEvidence
from adapterhub_cl.objectives.causal_lm import Objective
from adapterhub_cl.types import Example, Task

TASK = Task("t", "choice", instruction="Say it.", labels=("positive", "negative"), metric="accuracy")
EXAMPLES = [Example("the red apple is good " * k, "positive" if k % 2 else "negative", "Say it.") for k in range(1, 7)]


@pytest.fixture(scope="module")
def adapted(load_pico: Callable[..., Any]) -> Iterator[tuple[Any, Any]]:
    base = load_pico()
    with new_adapter(base, toy_settings(), "CAUSAL_LM") as model:
        stir(model)
        model.eval()
        yield model, base


def evidence(adapted: tuple[Any, Any], examples: list[Example] = EXAMPLES, task: Task = TASK) -> ModelEvidence:
    return ModelEvidence(*adapted, Objective(), task, examples, 200)


def test_losses_are_those_of_an_answer_token(adapted: tuple[Any, Any]) -> None:
    model, base = adapted
    tokens = Tokeniser(base.tokenizer, TASK, 200).many(EXAMPLES)
    each = [Objective().perplexities(model, [one], 0)[0] for one in tokens]
    assert evidence(adapted).losses() == pytest.approx([total / count for total, count in each], rel=1e-4)


def test_embeddings_are_the_bare_base_s_and_not_of_the_batch(adapted: tuple[Any, Any]) -> None:
    model, _ = adapted
    found = evidence(adapted).embeddings()
    assert found.shape == (6, 32)
    assert found.dtype == np.float32
    alone = np.concatenate([evidence(adapted, [e]).embeddings() for e in EXAMPLES])
    np.testing.assert_allclose(found, alone, atol=1e-4)
    stir(model, seed=5, size=1.0)
    np.testing.assert_allclose(found, evidence(adapted).embeddings(), atol=1e-5)
    stir(model)


@pytest.mark.parametrize("kind", ["choice", "text"])
def test_writing_follows_from_the_seed(adapted: tuple[Any, Any], kind: str) -> None:
    task = TASK if kind == "choice" else Task("t", "text", metric="perplexity")
    rows = EXAMPLES if kind == "choice" else [Example("", e.input) for e in EXAMPLES]
    one, two, other = (evidence(adapted, rows, task).write(6, seed) for seed in (1, 1, 2))
    assert one == two
    assert one != other
    assert all(0 <= sure <= 1 for _, sure in one)
    if kind == "choice":
        assert one
        assert all(e.answer in TASK.labels and e.input and e.instruction == "Say it." for e, _ in one)
        assert not any("Answer:" in e.input for e, _ in one)
