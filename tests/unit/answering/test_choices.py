"""Scoring all labels in one pass gives what one pass a label gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from families import build
from hypothesis import given
from hypothesis import strategies as st

from adapterhub_cl.answering.choices import (
    LabelTree,
    _plain_scores,
    _tree_scores,
    score_rows,
    settle,
)
from adapterhub_cl.bases.loading import inspect_base, load_base

EOS = 2
LABELS: Mapping[str, Sequence[int]] = {
    "begins alike": [10, 11, 40, 41, EOS],
    "begins alike too": [10, 11, 40, 42, EOS],
    "one token": [20, EOS],
    "a beginning": [10, 11, EOS],
    "apart": [30, 31, 32, EOS],
}
NO_BEGINNING = {name: ids for name, ids in LABELS.items() if name != "a beginning"}
ONE_TOKEN = {"x": [10, EOS], "y": [20, EOS], "z": [33, EOS]}
PROMPTS = [[1, 50, 60, 70], [1, 80], [1, 90, 91, 92, 93, 94, 95, 96, 97], [5]]


@torch.no_grad()
def one_by_one(model: Any, labels: Mapping[str, Sequence[int]], prompts: Sequence[Sequence[int]]) -> torch.Tensor:
    """Log-likelihoods from plain forward passes: no padding, no tree, no hook."""
    bare = [list(ids[:-1]) for ids in labels.values()]
    begins = any(a != b and b[: len(a)] == a for a in bare for b in bare)
    table = []
    for prompt in prompts:
        row = []
        for ids in labels.values():
            answer = list(ids) if begins else list(ids[:-1])
            logits = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0].float().log_softmax(-1)
            row.append(sum(logits[len(prompt) - 1 + k, token] for k, token in enumerate(answer)))
        table.append(torch.stack(row))
    return torch.stack(table)


def stacked(
    way: Callable[..., Any], model: Any, tree: LabelTree, prompts: Sequence[Sequence[int]], pad: int = 0
) -> torch.Tensor:
    return torch.stack(way(model, [tree] * len(prompts), prompts, pad))


@pytest.mark.parametrize("labels", [LABELS, NO_BEGINNING, ONE_TOKEN], ids=["beginning", "no-beginning", "one-token"])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "mistral", "gpt2"])
@torch.no_grad()
def test_tree_equals_label_by_label(
    load_pico: Callable[..., Any], kind: str, labels: Mapping[str, Sequence[int]]
) -> None:
    model, tree = load_pico(kind).model, LabelTree(labels)
    right = one_by_one(model, labels, PROMPTS)
    torch.testing.assert_close(stacked(_tree_scores, model, tree, PROMPTS), right, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(stacked(_plain_scores, model, tree, PROMPTS), right, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(stacked(score_rows, model, tree, PROMPTS), right, atol=1e-4, rtol=1e-5)
    assert getattr(model, "_adapterhub_tree_scoring", True), f"{kind} can attend by a free mask"
    alone = torch.cat([stacked(score_rows, model, tree, [prompt]) for prompt in PROMPTS])
    torch.testing.assert_close(alone, right, atol=1e-4, rtol=1e-5)


tokens = st.lists(st.integers(10, 14), min_size=1, max_size=4).map(tuple)


@given(
    answers=st.lists(tokens, min_size=1, max_size=6, unique=True),
    prompts=st.lists(st.lists(st.integers(3, 299), min_size=1, max_size=7), min_size=1, max_size=4),
)
@torch.no_grad()
def test_tree_equals_label_by_label_for_any_labels(
    pico_base: Any, answers: list[tuple[int, ...]], prompts: list[list[int]]
) -> None:
    labels = {str(ids): [*ids, EOS] for ids in answers}
    tree = LabelTree(labels)
    right = one_by_one(pico_base.model, labels, prompts)
    torch.testing.assert_close(stacked(_tree_scores, pico_base.model, tree, prompts), right, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(stacked(_plain_scores, pico_base.model, tree, prompts), right, atol=1e-4, rtol=1e-5)


@given(answers=st.lists(tokens, min_size=1, max_size=8, unique=True))
def test_each_node_is_a_distinct_beginning_and_each_label_its_own_path(answers: list[tuple[int, ...]]) -> None:
    tree = LabelTree({str(ids): [*ids, EOS] for ids in answers})

    def path(node: int) -> tuple[int, ...]:
        return () if node < 0 else (*path(tree.parents[node]), tree.tokens[node])

    paths = [path(node) for node in range(len(tree.tokens))]
    assert len(set(paths)) == len(paths), "labels that begin alike share nodes"
    assert [len(p) - 1 for p in paths] == tree.depths
    begins = any(a != b and b[: len(a)] == a for a in answers for b in answers)
    for ids, steps in zip(answers, tree.steps, strict=True):
        wanted = (*ids, EOS) if begins else ids
        assert tuple(token for _, token in steps) == wanted
        assert [path(node) for node, _ in steps] == [wanted[:k] for k in range(len(wanted))]
    assert tree.depth == max(len(steps) for steps in tree.steps)
    seen = tree.ancestry()
    for node, own in enumerate(paths):
        assert {paths[k] for k in seen[node].nonzero().flatten().tolist()} == {own[:k] for k in range(1, len(own) + 1)}


@torch.no_grad()
def test_alibi_is_read_label_by_label(load_pico: Callable[..., Any]) -> None:
    model = load_pico("bloom").model
    scores = stacked(score_rows, model, LabelTree(LABELS), PROMPTS)
    assert model._adapterhub_tree_scoring is False
    torch.testing.assert_close(scores, one_by_one(model, LABELS, PROMPTS), atol=1e-4, rtol=1e-5)


@torch.no_grad()
def test_sliding_window_shorter_than_the_prompt(load_pico: Callable[..., Any]) -> None:
    """A free mask replaces the window's own: short prompts agree, and the longer ones must still be right."""
    model, tree = load_pico("mistral").model, LabelTree(LABELS)
    assert model.config.sliding_window == 24
    long = [[1, *range(100, 160)], [1, 50, 51]]
    for prompts in (PROMPTS, long):
        right = one_by_one(model, LABELS, prompts)
        torch.testing.assert_close(stacked(score_rows, model, tree, prompts), right, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bloom"])
@torch.no_grad()
def test_rows_with_labels_of_their_own(load_pico: Callable[..., Any], kind: str) -> None:
    model = load_pico(kind).model
    labels = [LABELS, ONE_TOKEN, NO_BEGINNING, ONE_TOKEN]
    trees = {id(own): LabelTree(own) for own in labels}
    found = score_rows(model, [trees[id(own)] for own in labels], PROMPTS, 0)
    for own, prompt, scores in zip(labels, PROMPTS, found, strict=True):
        torch.testing.assert_close(scores, one_by_one(model, own, [prompt])[0], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    ("family", "free"),
    [
        ("llama", True),
        ("qwen3_moe", True),
        ("gemma3_text", True),
        ("mistral3", True),
        ("gpt_neo", False),
        ("falcon:alibi", False),
        ("mpt", False),
        ("lfm2", False),
        ("recurrent_gemma", False),
        ("falcon_h1", False),
        ("qwen3_next", False),
        ("mamba", False),
        ("rwkv", False),
    ],
)
@torch.no_grad()
def test_which_bases_attend_by_a_free_mask(tmp_path: Path, family: str, free: bool) -> None:
    """The scores are right, whatever was asked first: a prompt of one token would hide what a long one shows."""
    build(family, tmp_path)
    long = [[1, *range(100, 160)], [1, 50, 51]]
    for first in ([[5]], long):
        model = load_base(inspect_base(str(tmp_path), "none"), device="cpu", dtype="fp32").model
        tree = LabelTree(LABELS)
        stacked(score_rows, model, tree, first, 2)
        torch.testing.assert_close(
            stacked(score_rows, model, tree, long, 2), one_by_one(model, LABELS, long), atol=2e-4, rtol=1e-4
        )
        assert settle(model, 2) is free


@torch.no_grad()
def test_a_class_that_ignores_the_mask_is_found_out(load_pico: Callable[..., Any]) -> None:
    """Nothing in its config tells; the comparison on a long prompt does."""
    model = load_pico("llama").model
    whole = model.model.forward

    def deaf(*args: Any, attention_mask: Any = None, **more: Any) -> Any:
        return whole(*args, attention_mask=None, **more)

    model.model.forward = deaf
    assert not settle(model, 0)


@torch.no_grad()
def test_an_adapter_that_has_diverged_decides_nothing(load_pico: Callable[..., Any]) -> None:
    model = load_pico("llama").model
    kept = model.lm_head.weight.data.clone()
    model.lm_head.weight.data.fill_(float("nan"))
    assert not settle(model, 0)
    model.lm_head.weight.data.copy_(kept)
    assert settle(model, 0)
