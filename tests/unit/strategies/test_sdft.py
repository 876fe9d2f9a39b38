"""What sdft teaches: the divergence from a teacher that has seen the answer, on answers the model writes itself."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from encoder_hubs import Notes
from toys import BOS, EOS, PAD, same, stir, toy_settings, toy_tokens, train

from adapterhub_cl.answering.writing import drawn
from adapterhub_cl.data.tokenise import Tokens
from adapterhub_cl.errors import DataError
from adapterhub_cl.strategies import build
from adapterhub_cl.strategies.lwf import distillation
from adapterhub_cl.strategies.sdft import Config, Strategy, with_example


def sdft(**options: Any) -> Strategy:
    return Strategy(Config(**options))


def test_divergence_is_that_of_the_teacher_from_the_student() -> None:
    draw = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(3, 5, generator=draw) for _ in range(2))
    each = [
        torch.distributions.kl_divergence(
            torch.distributions.Categorical(logits=theirs), torch.distributions.Categorical(logits=ours)
        )
        for ours, theirs in zip(student, teacher, strict=True)
    ]
    assert torch.allclose(distillation(student, teacher, 1.0), torch.stack(each).mean())
    assert float(distillation(teacher, teacher, 1.0)) == pytest.approx(0.0, abs=1e-6)


def test_answers_are_drawn_from_the_models_own_distribution(pico_base: Any) -> None:
    """The first token of 6,000 answers to one prompt: its frequencies are the softmax's, within four deviations."""
    prompt, count = (BOS, 12, 150), 6000
    with torch.no_grad():
        ids = torch.tensor([prompt], device=pico_base.model.device)
        share = pico_base.model(ids).logits[0, -1].float().softmax(-1)
    found = drawn(pico_base.model, PAD, [prompt] * count, [EOS] * count, 1, seed=5)
    seen = torch.bincount(torch.tensor([row[0] for row in found]), minlength=len(share)) / count
    deviation = (share * (1 - share) / count).sqrt()
    assert float(((seen - share).abs() / deviation.clamp(min=1e-9)).max()) < 4.5
    assert drawn(pico_base.model, PAD, [prompt] * 4, [EOS] * 4, 1, seed=5) == found[:4]


def test_an_answer_ends_with_its_end_or_at_the_limit(pico_base: Any) -> None:
    likely = int(pico_base.model(torch.tensor([[BOS, 12]])).logits[0, -1].argmax())
    rows = drawn(pico_base.model, PAD, [(BOS, 12)] * 40, [likely] * 40, 6, seed=1)
    assert any(row[-1] == likely for row in rows)
    assert all(likely not in row[:-1] and 1 <= len(row) <= 6 for row in rows)
    assert all(len(row) == 6 for row in rows if row[-1] != likely)


def test_the_penalty_is_what_its_definition_says(pico_base: Any) -> None:
    """Computed again, row by row, with the model's plain forward pass."""
    strategy, rows = sdft(longest=5, follow=0.0), toy_tokens(3)
    seen: dict[str, float] = {}

    def check(model: Any, loop: Any) -> None:
        strategy.begin(loop.stage)  # the teacher has the weights of now …
        stir(model, seed=4)  # … and the student others
        state = torch.get_rng_state()
        batch = next(loop.stage.batches(range(3)))
        loss = strategy.penalty(loop.stage, batch, torch.empty(0, 0))
        assert loss is not None
        seen["loss"] = float(loss.detach())
        torch.set_rng_state(state)
        written = loop.stage.write([row.prompt for row in rows], [row.answer[-1] for row in rows], 5)
        mine = {name: p.detach().clone() for name, p in loop.parameters.items()}

        def logits(prompt: tuple[int, ...], answer: list[int]) -> torch.Tensor:
            ids = torch.tensor([[*prompt, *answer]], device=model.device)
            return model(ids).logits[0, len(prompt) - 1 : -1].float()

        with torch.no_grad():
            ours = [logits(row.prompt, answer) for row, answer in zip(rows, written, strict=True)]
            for name, value in strategy.teacher.items():
                loop.parameters[name].copy_(value)
            theirs = [
                logits((*row.prompt, *row.answer, *row.prompt), answer)
                for row, answer in zip(rows, written, strict=True)
            ]
            for name, value in mine.items():
                loop.parameters[name].copy_(value)
        seen["wanted"] = float(distillation(torch.cat(ours), torch.cat(theirs), 1.0))

    train(pico_base, toy_settings(epochs=1), rows, strategy=strategy, after=check)
    assert seen["loss"] > 0.01
    assert seen["loss"] == pytest.approx(seen["wanted"], rel=1e-4)


def test_the_teacher_follows_by_its_share(pico_base: Any) -> None:
    strategy = sdft(follow=0.25)
    kept: list[dict[str, torch.Tensor]] = []

    def step(values: Any, at: int) -> None:
        kept.append({name: value.clone() for name, value in strategy.teacher.items()})

    outcome = train(pico_base, toy_settings(epochs=1, batch_size=14), strategy=strategy, log=step)
    stood = {name: torch.zeros_like(value) for name, value in outcome.weights.items() if "lora_B" in name}
    for name, start in stood.items():
        assert torch.allclose(kept[0][name], start.lerp(outcome.weights[name], 0.25), atol=1e-7)
        assert float(outcome.weights[name].abs().max()) > 0
    still = sdft(follow=0.0)
    train(pico_base, toy_settings(epochs=1), strategy=still)
    assert all(float(value.abs().max()) == 0 for name, value in still.teacher.items() if "lora_B" in name)


def test_rows_that_do_not_fit_with_their_example_are_left_out_and_counted(pico_base: Any) -> None:
    context = pico_base.model.config.max_position_embeddings
    long = Tokens((BOS, *(100,) * (context // 2)), (120, EOS))
    assert len(with_example(long)) > context
    strategy, notes = sdft(), Notes()
    rows = [long, *toy_tokens(2)]
    outcome = train(pico_base, toy_settings(epochs=1, batch_size=1), rows, strategy=strategy, reporter=notes)
    assert any("1 of 3 rows are too long for sdft" in line and "are not learned" in line for line in notes.said)
    told = strategy.summary()
    assert (told["rows"], told["left_out"]) == (2, 1)
    assert told["written_tokens"] >= 2
    assert all(torch.isfinite(value).all() for value in outcome.weights.values())


def test_a_training_in_which_no_row_fits_is_refused(pico_base: Any) -> None:
    """Unless the given answers are learned too. The limit that is proposed leaves room for every row."""
    context = pico_base.model.config.max_position_embeddings
    rows = [Tokens((BOS, *(100,) * (context // 2)), (120, EOS))] * 2
    with pytest.raises(DataError, match="2 of 2 rows are too long for sdft") as caught:
        train(pico_base, toy_settings(epochs=1), rows, strategy=sdft())
    found = re.search(r"--max-length (\d+)", caught.value.hint)
    assert found is not None
    train(pico_base, toy_settings(epochs=1), [Tokens((BOS,) * (int(found[1]) - 2), (120, EOS))], strategy=sdft())
    with pytest.raises(DataError) as caught:
        train(pico_base, toy_settings(epochs=1), rows, strategy=sdft(longest=context))
    assert "--max-length" not in caught.value.hint
    notes = Notes()
    train(pico_base, toy_settings(epochs=1), rows, strategy=sdft(answers=1.0), reporter=notes)
    assert any("are learned from their given answers alone" in line for line in notes.said)


def test_the_usual_loss_counts_by_its_weight_alone(pico_base: Any) -> None:
    """With a divergence that is nothing, weight 1 is the usual training, and weight 0 none at all."""

    class Nothing(Strategy):
        def penalty(self, *_: Any) -> None:
            return None

    plain = train(pico_base, toy_settings(epochs=1), strategy=build("sequential"))
    usual = train(pico_base, toy_settings(epochs=1), strategy=Nothing(Config(answers=1.0)))
    none = train(pico_base, toy_settings(epochs=1, weight_decay=0.0), strategy=Nothing(Config()))
    assert same(usual.weights, plain.weights)
    assert all(float(value.abs().max()) == 0 for name, value in none.weights.items() if "lora_B" in name)


def test_with_another_strategy_the_loss_is_still_left_out() -> None:
    both = build("replay+sdft")
    assert both.own_loss == 0
    assert both.writes
    assert build("replay+sdft", {"sdft.answers": "0.5"}).own_loss == 0.5
    assert build("replay").own_loss == 1
