"""Soft targets, the cache of answers, features: the parts of a distillation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adapterhub_cl.bases.hidden import decoder_layers
from adapterhub_cl.data.batches import collate
from adapterhub_cl.data.tokenise import Tokens
from adapterhub_cl.distillation.distill_settings import DistillationSettings
from adapterhub_cl.distillation.features import feature_loss, watched
from adapterhub_cl.distillation.lessons import TeachersAnswers, key_of, keys_of
from adapterhub_cl.distillation.logits import divergence, soften
from adapterhub_cl.errors import UsageError
from adapterhub_cl.strategies.lwf import distillation as exact


def logits(seed: int, n: int = 6, vocabulary: int = 40) -> torch.Tensor:
    return 3 * torch.randn(n, vocabulary, generator=torch.Generator().manual_seed(seed))


@given(st.integers(0, 1000), st.sampled_from([0.5, 1.0, 2.0, 4.0]))
def test_with_all_tokens_it_is_the_exact_divergence(seed: int, temperature: float) -> None:
    teacher, student = logits(seed), logits(seed + 1)
    found = divergence(student, soften(teacher, temperature, 40), temperature)
    assert float(found) == pytest.approx(float(exact(student, teacher, temperature)), rel=1e-4)


@given(st.integers(0, 1000), st.integers(1, 39))
def test_with_fewer_tokens_it_is_a_lower_bound_and_zero_for_the_teacher(seed: int, top: int) -> None:
    teacher, student = logits(seed), logits(seed + 1)
    whole = float(divergence(student, soften(teacher, 2.0, 40), 2.0))
    found = float(divergence(student, soften(teacher, 2.0, top), 2.0))
    assert -1e-5 <= found <= whole + 1e-5
    assert abs(float(divergence(teacher, soften(teacher, 2.0, top), 2.0))) < 1e-5


def test_its_gradient_pulls_towards_the_teacher() -> None:
    teacher, student = logits(1), logits(2).requires_grad_()
    soft = soften(teacher, 2.0, 8)
    before = divergence(student, soft, 2.0)
    before.backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    nearer = student.detach() - 0.5 * student.grad
    assert float(divergence(nearer, soft, 2.0)) < float(before.detach())


ROWS = [Tokens((1, 5, 6), (7, 2)), Tokens((1, 9), (8, 8, 2)), Tokens((1,), (2,))]


def answers() -> TeachersAnswers:
    kept = TeachersAnswers()
    for part in ([1], [0, 2]):
        n = sum(len(ROWS[i].answer) for i in part)
        kept.add([key_of(ROWS[i]) for i in part], soften(logits(part[0], n), 1.0, 4), {1: logits(part[0] + 50, n, 8)})
    kept.close()
    return kept


def test_what_was_said_is_found_again_in_the_order_of_the_batch() -> None:
    kept = answers()
    batch = collate(ROWS, [2, 1, 0], 0)
    assert keys_of(batch) == [key_of(ROWS[i]) for i in (2, 1, 0)]
    soft, layers = kept.look_up(batch)
    wanted = torch.cat([soften(logits(0, 3), 1.0, 4).logs[2:], soften(logits(1, 3), 1.0, 4).logs])
    assert torch.equal(soft.logs[:4], wanted)
    assert layers[1].shape == (6, 8)
    with pytest.raises(KeyError):
        kept.look_up(collate([Tokens((3,), (4,))], [0], 0))


def test_the_cache_is_read_only_if_it_is_whole_and_of_these_rows(tmp_path: Path) -> None:
    kept, path = answers(), tmp_path / "teachers.safetensors"
    kept.save(path)
    again = TeachersAnswers.load(path, ROWS)
    assert again is not None
    batch = collate(ROWS, [0, 1, 2], 0)
    assert torch.equal(again.look_up(batch)[0].logs, kept.look_up(batch)[0].logs)
    assert TeachersAnswers.load(path, ROWS[:2]) is None
    assert TeachersAnswers.load(tmp_path / "none", ROWS) is None
    path.write_bytes(path.read_bytes()[:-40])
    assert TeachersAnswers.load(path, ROWS) is None
    path.write_bytes(b"not a safetensors file")
    assert TeachersAnswers.load(path, ROWS) is None


def test_features_are_those_of_the_layers(pico_base: Any) -> None:
    ids = torch.arange(4, 14)[None]
    before = len(decoder_layers(pico_base.model)[0]._forward_hooks)
    with watched(pico_base.model, [0]):
        assert len(decoder_layers(pico_base.model)[0]._forward_hooks) == before + 1
    assert len(decoder_layers(pico_base.model)[0]._forward_hooks) == before
    with watched(pico_base.model, [0, 1]) as seen, torch.no_grad():
        states = pico_base.model.model(ids, output_hidden_states=True).hidden_states
    assert torch.allclose(seen[0], states[1])
    assert len(decoder_layers(pico_base.model)) == 2
    with pytest.raises(UsageError, match="2 layers"), watched(pico_base.model, [2]):
        pass


def test_feature_loss_is_relative() -> None:
    teacher = {0: torch.ones(3, 4), 1: 100 * torch.ones(3, 4)}
    assert float(feature_loss(teacher, teacher)) == 0
    off = {layer: 1.5 * value for layer, value in teacher.items()}
    assert float(feature_loss(off, teacher)) == pytest.approx(0.25)


def test_settings_are_checked_together() -> None:
    with pytest.raises(UsageError) as refused:
        DistillationSettings(temperature=0, task_loss=-1, top=0, features="a,b")
    for word in ("--temperature", "--task-loss", "--top", "--features"):
        assert word in refused.value.message
    assert DistillationSettings(features="5,3").layers() == [3, 5]
