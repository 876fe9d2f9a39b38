"""The loop: repeatable, resumable at any step to the very same weights, indifferent to memory, honest about failure."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import PAD, distance, same, toy_settings, toy_tokens, train

from adapterhub_cl.adapters.lora import new_adapter, trainable
from adapterhub_cl.data.batches import Batch, collate
from adapterhub_cl.errors import IntegrityError, TrainingError, TrainingInterrupted
from adapterhub_cl.objectives.causal_lm import Objective
from adapterhub_cl.progress import Reporter
from adapterhub_cl.strategies import BaseStrategy, Origin, Stage
from adapterhub_cl.training import checkpoints
from adapterhub_cl.training.loop import Loop
from adapterhub_cl.training.loop_state import LoopOrder, Outcome
from adapterhub_cl.training.strategy_stage import LoopStage
from adapterhub_cl.types import Example

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dropout": {"dropout": 0.3},
    "loraplus": {"loraplus_ratio": 4.0},
    "accumulation": {"batch_size": 2, "accumulation": 2, "dropout": 0.3, "schedule": "linear", "weight_decay": 0.1},
}
STEPS = 8  # two epochs of four steps, see toy_settings


class Crash(Exception):
    """Stands for kill -9: nobody in the loop catches it."""


def crash_at(step: int) -> Callable[[Mapping[str, float], int], None]:
    def log(values: Mapping[str, float], at: int) -> None:
        if at == step and "loss" in values:
            raise Crash

    return log


def ctrl_c_at(step: int) -> Callable[[Mapping[str, float], int], None]:
    def log(values: Mapping[str, float], at: int) -> None:
        if at == step and "loss" in values:
            os.kill(os.getpid(), signal.SIGINT)

    return log


class Scores:
    """Scripted dev figures; keeps the weights that each was asked for."""

    def __init__(self, *values: float) -> None:
        self.values, self.seen = list(values), []

    def __call__(self, model: Any) -> dict[str, float]:
        self.seen.append({n: p.detach().clone() for n, p in trainable(model).items()})
        return {"accuracy": self.values[len(self.seen) - 1]}


class Notes(Reporter):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.steps = 0
        self.finished = False

    def note(self, text: str) -> None:
        self.notes.append(text)

    def advance(self, steps: int = 1, tokens: int = 0, **values: float) -> None:
        self.steps += steps

    def finish(self) -> None:
        self.finished = True


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> dict[str, Any]:
    return KINDS[request.param]


@pytest.fixture(scope="module")
def whole(pico_base: Any, kind: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The weights of an uninterrupted run."""
    outcome = train(pico_base, toy_settings(**kind))
    assert outcome.steps == STEPS
    return dict(outcome.weights)


def test_the_same_run_twice_gives_the_same_weights(
    pico_base: Any, kind: dict[str, Any], whole: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    torch.rand(17)
    assert same(train(pico_base, toy_settings(**kind)).weights, whole)
    assert same(train(pico_base, toy_settings(**kind, checkpoint_every=1), run=tmp_path).weights, whole)
    assert not same(train(pico_base, toy_settings(**{**kind, "seed": 4})).weights, whole)


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_killed_at_any_step_and_resumed(
    pico_base: Any, kind: dict[str, Any], whole: dict[str, torch.Tensor], tmp_path: Path, step: int
) -> None:
    """A checkpoint stands every three steps and at the end of each epoch; what came after it is done again."""
    settings = toy_settings(**kind, checkpoint_every=3)
    with pytest.raises(Crash):
        train(pico_base, settings, run=tmp_path, log=crash_at(step))
    torch.rand(step)
    outcome = train(pico_base, settings, run=tmp_path)
    assert same(outcome.weights, whole)
    assert outcome.steps == STEPS


@pytest.mark.parametrize("step", [1, 3, 4, 8])
def test_ctrl_c_keeps_a_checkpoint_of_that_step(
    pico_base: Any, kind: dict[str, Any], whole: dict[str, torch.Tensor], tmp_path: Path, step: int
) -> None:
    handler = signal.getsignal(signal.SIGINT)
    settings, reporter = toy_settings(**kind), Notes()
    with pytest.raises(
        TrainingInterrupted, match=f"stopped at step {step} of {STEPS}; a checkpoint was kept"
    ) as caught:
        train(pico_base, settings, run=tmp_path, log=ctrl_c_at(step), reporter=reporter)
    assert caught.value.exit_code == 130
    assert "--resume" in caught.value.hint
    assert reporter.finished
    assert signal.getsignal(signal.SIGINT) is handler
    stored = checkpoints.load(tmp_path)
    assert stored is not None
    assert stored.state["at"]["steps"] == step
    again = Notes()
    assert same(train(pico_base, settings, run=tmp_path, reporter=again).weights, whole)
    assert again.steps == STEPS
    assert again.notes[0] == f"continuing at step {step} of {STEPS}"


def test_a_second_ctrl_c_stops_at_once(pico_base: Any) -> None:
    def log(values: Mapping[str, float], step: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(pico_base, toy_settings(), log=log)


def test_sigterm_without_a_run_folder(pico_base: Any) -> None:
    def log(values: Mapping[str, float], step: int) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(TrainingInterrupted, match=f"stopped at step 1 of {STEPS}$"):
        train(pico_base, toy_settings(), log=log)


def test_ctrl_c_while_the_last_epoch_is_scored(pico_base: Any, tmp_path: Path) -> None:
    """It used to be lost there."""
    whole = train(pico_base, toy_settings())
    scored = []

    def evaluate(model: Any) -> dict[str, float]:
        scored.append(1)
        if len(scored) == toy_settings().epochs:
            os.kill(os.getpid(), signal.SIGINT)
        return {"loss": 1.0 / len(scored)}

    with pytest.raises(TrainingInterrupted, match=f"stopped at step {STEPS} of {STEPS}; a checkpoint was kept"):
        train(pico_base, toy_settings(), run=tmp_path, evaluate=evaluate)
    assert same(train(pico_base, toy_settings(), run=tmp_path, evaluate=evaluate).weights, whole.weights)
    assert len(scored) == toy_settings().epochs


def test_a_finished_run_resumed_is_the_same(pico_base: Any, tmp_path: Path) -> None:
    first = train(pico_base, toy_settings(), run=tmp_path)
    again = train(pico_base, toy_settings(), run=tmp_path)
    assert same(first.weights, again.weights)
    assert again.history == first.history


@pytest.mark.parametrize(
    ("first", "then", "alike", "warned"),
    [
        (1.0, (3.0, 3.0), True, True),
        (1.0, (3.0, 3.0), False, False),
        (0.66, (0.7, 0.67), True, False),
        (0.5, (4.5, 3.0), True, False),
        (0.01, (0.05, 0.05), True, False),
    ],
)
def test_a_loss_that_rises_is_told_where_its_first_batch_can_stand_for_all(
    pico_base: Any, monkeypatch: pytest.MonkeyPatch, first: float, then: tuple[float, float], alike: bool, warned: bool
) -> None:
    def scripted(self: Loop, indices: Any) -> float:
        self.at.steps += 1
        return first if self.at.steps == 1 else then[self.at.epoch]

    monkeypatch.setattr(Loop, "one_step", scripted)
    told = Notes()
    train(pico_base, toy_settings(epochs=2), reporter=told, alike=alike)
    assert any(note.startswith("warning: the loss ended higher than it began") for note in told.notes) is warned


def test_the_best_epoch_survives_a_resume(pico_base: Any, tmp_path: Path) -> None:
    settings = toy_settings(epochs=3)
    right = train(pico_base, settings, evaluate=Scores(0.9, 0.5, 0.7))
    assert right.epoch == 1
    with pytest.raises(Crash):
        train(pico_base, settings, run=tmp_path, evaluate=Scores(0.9), log=crash_at(6))
    outcome = train(pico_base, settings, run=tmp_path, evaluate=Scores(0.5, 0.7))
    assert outcome.epoch == 1
    assert same(outcome.weights, right.weights)
    assert [row["dev_accuracy"] for row in outcome.history] == [0.9, 0.5, 0.7]
    assert [row["loss"] for row in outcome.history] == [row["loss"] for row in right.history]


def test_a_checkpoint_of_another_model_is_refused(pico_base: Any, tmp_path: Path) -> None:
    train(pico_base, toy_settings(epochs=1), run=tmp_path)
    with pytest.raises(IntegrityError, match="another model"):
        train(pico_base, toy_settings(epochs=1, target_modules="q_proj"), run=tmp_path)
    with pytest.raises(IntegrityError, match="another model"):
        train(pico_base, toy_settings(epochs=1, rank=5), run=tmp_path)


@pytest.mark.parametrize(("script", "best"), [((1, 3, 2), 2), ((3, 2, 1), 1), ((1, 2, 3), 3), ((2, 2, 2), 1)])
def test_the_best_epoch_s_weights_are_returned_and_left_in_the_model(
    pico_base: Any, script: tuple[int, ...], best: int
) -> None:
    scores = Scores(*script)
    ended: list[dict[str, torch.Tensor]] = []

    class AtEnd(BaseStrategy):
        def end(self, stage: Stage) -> None:
            ended.append({n: p.detach().clone() for n, p in stage.parameters.items()})

    outcome = train(pico_base, toy_settings(epochs=3), evaluate=scores, strategy=AtEnd())
    assert outcome.epoch == best
    assert same(outcome.weights, scores.seen[best - 1])
    assert same(ended[0], scores.seen[best - 1])
    assert not same(scores.seen[0], scores.seen[1])


def test_later_figures_break_ties(pico_base: Any) -> None:
    figures = iter([{"accuracy": 0.5, "loss": 2.0}, {"accuracy": 0.5, "loss": 1.0}])
    assert train(pico_base, toy_settings(), evaluate=lambda model: next(figures)).epoch == 2


def test_without_dev_figures_the_last_epoch_is_kept(pico_base: Any) -> None:
    assert train(pico_base, toy_settings(epochs=3)).epoch == 3


def test_patience_stops_early(pico_base: Any) -> None:
    scores = Scores(1, 3, 2, 3, 9, 9)
    outcome = train(pico_base, toy_settings(epochs=6, patience=2), evaluate=scores)
    assert [row["epoch"] for row in outcome.history] == [1, 2, 3, 4]
    assert outcome.epoch == 2
    assert outcome.steps == 16
    assert len(train(pico_base, toy_settings(epochs=3), evaluate=Scores(3, 2, 1)).history) == 3


def test_only_lora_trains_with_dropout_and_does_so_again_after_an_evaluation(pico_base: Any) -> None:
    modes: list[bool] = []

    class Watch(BaseStrategy):
        def before_step(self, stage: Stage) -> None:
            dropout = [m for n, m in stage.model.named_modules() if n.endswith("lora_dropout")]
            modes.append(bool(dropout) and all(m.training for m in dropout) and not stage.model.training)

    def evaluate(model: Any) -> dict[str, float]:
        model.eval()
        return {"accuracy": 0.0}

    train(pico_base, toy_settings(), evaluate=evaluate, strategy=Watch())
    assert modes == [True] * STEPS


class Small(Objective):
    """Runs out of memory on more than `rows` rows, and on rows past the first part (gradients are there by then)."""

    def __init__(self, rows: int, message: str = "CUDA out of memory. Tried to allocate") -> None:
        self.rows, self.message, self.sizes = rows, message, []

    def losses_of(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        self.sizes.append(len(batch.indices))
        losses = super().losses_of(logits, batch)
        if len(batch.indices) > self.rows:
            raise torch.OutOfMemoryError(self.message)
        return losses


@pytest.mark.parametrize("rows", [4, 2, 1])
def test_out_of_memory_halves_the_rows_and_keeps_the_step(pico_base: Any, rows: int) -> None:
    settings, reporter = toy_settings(batch_size=8), Notes()
    right = train(pico_base, settings)
    outcome = train(pico_base, settings, objective=Small(rows), reporter=reporter)
    assert outcome.steps == right.steps
    assert distance(outcome.weights, right.weights) <= 1e-5
    told = [note for note in reporter.notes if "out of memory" in note]
    assert told[-1].startswith(f"out of memory: continuing with {rows} rows at a time")
    assert len(told) == {4: 1, 2: 2, 1: 3}[rows], "later steps remember it"


def test_out_of_memory_in_a_later_part_does_not_count_the_first_part_twice(pico_base: Any) -> None:
    class Once(Objective):
        calls = 0

        def losses_of(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
            self.calls += 1
            if self.calls == 2:
                raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
            return super().losses_of(logits, batch)

    settings = toy_settings(batch_size=4, accumulation=2)
    right = train(pico_base, settings)
    assert distance(train(pico_base, settings, objective=Once()).weights, right.weights) <= 1e-5


def test_out_of_memory_with_one_row(pico_base: Any) -> None:
    reporter, layer = Notes(), pico_base.model.model.layers[0]
    with pytest.raises(TrainingError, match="one example alone does not fit") as caught:
        train(pico_base, toy_settings(), objective=Small(0), reporter=reporter)
    assert "--max-length" in caught.value.hint
    assert reporter.notes[-1] == "out of memory: continuing with every layer computed twice, the step stays the same"
    assert "forward" not in layer.__dict__, "the base is as it was"


def test_layers_that_are_computed_twice_help_and_a_resumed_run_keeps_them(pico_base: Any, tmp_path: Path) -> None:
    class Narrow(Objective):
        """Fits into memory only where layers are computed twice."""

        def losses_of(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
            if "forward" not in pico_base.model.model.layers[0].__dict__:
                raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
            return super().losses_of(logits, batch)

    settings = toy_settings(checkpoint_every=1)
    right = train(pico_base, settings)
    found = train(pico_base, settings, objective=Narrow(), run=tmp_path)
    assert distance(found.weights, right.weights) <= 1e-5
    stored = checkpoints.load(tmp_path)
    assert stored is not None
    assert stored.state["at"]["again"] is True
    reporter = Notes()
    train(pico_base, settings, objective=Narrow(), run=tmp_path, reporter=reporter)
    assert not [note for note in reporter.notes if "out of memory" in note]


def test_other_errors_are_not_taken_for_memory(pico_base: Any) -> None:
    class Broken(Objective):
        def losses_of(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
            raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        train(pico_base, toy_settings(), objective=Broken())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number(pico_base: Any, tmp_path: Path, value: float) -> None:
    class Bad(Objective):
        calls = 0

        def losses_of(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
            self.calls += 1
            return super().losses_of(logits, batch) * (value if self.calls == 6 else 1.0)

    with pytest.raises(TrainingError, match="no longer a number at step 6") as caught:
        train(pico_base, toy_settings(checkpoint_every=1), objective=Bad(), run=tmp_path)
    assert "--learning-rate (now 0.01)" in caught.value.hint
    stored = checkpoints.load(tmp_path)
    assert stored is not None
    assert stored.state["at"]["steps"] == 5
    assert all(torch.isfinite(v).all() for v in stored.part("model").values())


def test_the_loss_falls_on_a_rule_that_can_be_learned(pico_base: Any) -> None:
    outcome = train(pico_base, toy_settings(epochs=8, rank=8), toy_tokens(48))
    losses = [row["loss"] for row in outcome.history]
    assert losses[-1] < 0.5 * losses[0]


def test_accumulation_equals_a_larger_batch(pico_base: Any) -> None:
    one = train(pico_base, toy_settings(batch_size=8))
    two = train(pico_base, toy_settings(batch_size=4, accumulation=2))
    many = train(pico_base, toy_settings(batch_size=1, accumulation=8))
    assert distance(one.weights, two.weights) <= 1e-5
    assert distance(one.weights, many.weights) <= 1e-5


def gradients_of_first_steps(base: Any, size: float) -> tuple[list[torch.Tensor], Outcome]:
    """The gradients that the strategy sees in each step, of a loss that is as small as `size`."""
    seen: list[torch.Tensor] = []

    class Look(BaseStrategy):
        def before_step(self, stage: Stage) -> None:
            seen.append(torch.cat([p.grad.flatten() for p in stage.parameters.values() if p.grad is not None]))

    class Faint(Objective):
        def losses_of(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
            return super().losses_of(logits, batch) * size

    outcome = train(base, toy_settings(clip=0.0), objective=Faint(), strategy=Look())
    return seen, outcome


def test_small_gradients_survive_fp16(load_pico: Callable[..., Any], pico_base: Any) -> None:
    half = load_pico("llama", "none", dtype="fp16")
    right, _ = gradients_of_first_steps(pico_base, 1e-6)
    found, _ = gradients_of_first_steps(half, 1e-6)
    assert (found[0] - right[0]).norm() <= 0.02 * right[0].norm()


def test_fp16_passes_over_a_step_that_overflows_and_goes_on_with_a_smaller_scale(
    load_pico: Callable[..., Any],
) -> None:
    half = load_pico("llama", "none", dtype="fp16")
    seen, outcome = gradients_of_first_steps(half, 64.0)
    assert not torch.isfinite(seen[0]).all()
    assert torch.isfinite(seen[-1]).all()
    assert all(torch.isfinite(value).all() for value in outcome.weights.values())
    assert outcome.steps == STEPS


class Loud(Objective):
    """A loss whose gradients overflow in fp16 until the scale has come down."""

    def losses_of(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        return super().losses_of(logits, batch) * 64.0


def test_fp16_resumes_to_the_same_weights(load_pico: Callable[..., Any], tmp_path: Path) -> None:
    half = load_pico("llama", "none", dtype="fp16")
    settings = toy_settings(checkpoint_every=1)
    whole = train(half, settings, objective=Loud())
    with pytest.raises(Crash):
        train(half, settings, objective=Loud(), run=tmp_path, log=crash_at(5))
    stored = checkpoints.load(tmp_path)
    assert stored is not None
    assert stored.state["scaler"]["scale"] < 65536, "the scale had come down by then"
    assert same(train(half, settings, objective=Loud(), run=tmp_path).weights, whole.weights)


def loop_of(base: Any, model: Any, settings: Any, strategy: BaseStrategy | None = None) -> Loop:
    rate = settings.learning_rate
    order = LoopOrder(Objective(), strategy or BaseStrategy(), settings, toy_tokens(), rate, PAD, base.dtype)
    return Loop(model, order)


def test_learning_rates_from_start_to_end(pico_base: Any) -> None:
    def rates(**changes: Any) -> list[float]:
        settings = toy_settings(epochs=5, learning_rate=0.1, **changes)
        with new_adapter(pico_base, settings, "CAUSAL_LM") as model:
            loop = loop_of(pico_base, model, settings)
            found = []
            for step in range(loop.total):
                loop.at.steps = step
                found.append(loop.learning_rate())
        return found

    for schedule in ("cosine", "linear", "constant"):
        found = rates(schedule=schedule, warmup=0.2)
        assert len(found) == 20
        assert found[:5] == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1])
        falling = found[4:]
        assert falling == sorted(falling, reverse=True)
        assert min(found) > 0, "no step is wasted"
    assert rates(schedule="constant", warmup=0.0) == [0.1] * 20
    assert rates(schedule="linear", warmup=0.0) == pytest.approx([0.1 * (1 - k / 20) for k in range(20)])
    cosine = rates(schedule="cosine", warmup=0.0)
    assert cosine[0] == 0.1
    assert cosine[10] == pytest.approx(0.05)
    assert all(a + b == pytest.approx(0.1) for a, b in zip(cosine[1:], cosine[:0:-1], strict=True))


def test_the_logged_rate_is_the_one_that_the_step_was_made_with(pico_base: Any) -> None:
    logged: list[float] = []
    settings = toy_settings(warmup=0.0, schedule="linear", learning_rate=0.01)
    train(
        pico_base,
        settings,
        log=lambda values, step: logged.append(values["learning_rate"]) if "loss" in values else None,
    )
    assert logged == pytest.approx([0.01 * (1 - k / STEPS) for k in range(STEPS)])


class Pull(BaseStrategy):
    """A penalty c·Σp², which has the gradient 2·c·p; keeps the first step's gradients."""

    def __init__(self, c: float) -> None:
        self.c, self.found, self.batches = c, {}, []

    def penalty(self, stage: Stage, batch: Batch, logits: torch.Tensor) -> torch.Tensor | None:
        self.batches.append(batch.indices)
        return self.c * sum((p**2).sum() for p in stage.parameters.values()) if self.c else None

    def before_step(self, stage: Stage) -> None:
        if not self.found:
            self.found = {n: p.grad.clone() for n, p in stage.parameters.items()}
            self.start = {n: p.detach().clone() for n, p in stage.parameters.items()}


@pytest.mark.parametrize("changes", [{}, {"batch_size": 1, "accumulation": 4}], ids=["whole", "parts"])
def test_a_strategy_s_penalty_is_added_once_a_step(pico_base: Any, changes: dict[str, Any]) -> None:
    settings = toy_settings(epochs=1, clip=0.0, **changes)
    without, with_it = Pull(0.0), Pull(0.7)
    train(pico_base, settings, strategy=without)
    train(pico_base, settings, strategy=with_it)
    for name, gradient in with_it.found.items():
        wanted = without.found[name] + 2 * 0.7 * with_it.start[name]
        torch.testing.assert_close(gradient, wanted, atol=1e-6, rtol=1e-4)
    assert sorted(i for batch in with_it.batches for i in batch) == list(range(14)), "every batch is shown to it"


def test_gradient_is_the_mean_over_answer_tokens_and_is_clipped(pico_base: Any) -> None:
    examples = toy_tokens(4)
    with new_adapter(pico_base, toy_settings(), "CAUSAL_LM") as model:
        model.train()
        parameters = trainable(model)
        loss = Objective().losses(model, collate(examples, range(4), PAD)).mean()
        right = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
    for clip in (0.0, 1e-3):
        watch = Pull(0.0)
        train(pico_base, toy_settings(epochs=1, clip=clip, batch_size=2, accumulation=2), examples, strategy=watch)
        norm = torch.stack([g.norm() for g in watch.found.values()]).norm()
        scale = 1.0 if clip == 0 else clip / float(torch.stack([g.norm() for g in right.values()]).norm())
        for name, gradient in watch.found.items():
            torch.testing.assert_close(gradient, right[name] * scale, atol=1e-6, rtol=1e-3)
        assert clip == 0 or norm == pytest.approx(clip, rel=1e-3)


def test_hooks_come_in_order_and_may_change_gradients_and_weights(pico_base: Any) -> None:
    calls: list[str] = []

    class Still(BaseStrategy):
        """Undoes every step: the adapter stays as it began."""

        def begin(self, stage: Stage) -> None:
            calls.append("begin")
            assert (stage.step, stage.steps) == (0, STEPS)
            self.start = {n: p.detach().clone() for n, p in stage.parameters.items()}

        def penalty(self, stage: Stage, batch: Batch, logits: torch.Tensor) -> None:
            calls.append("penalty")

        def before_step(self, stage: Stage) -> None:
            calls.append("before")
            assert all(p.grad is not None for p in stage.parameters.values())

        def after_step(self, stage: Stage) -> None:
            calls.append("after")
            with torch.no_grad():
                for name, p in stage.parameters.items():
                    p.copy_(self.start[name])

        def end(self, stage: Stage) -> None:
            calls.append("end")
            assert stage.step == STEPS

    strategy = Still()
    outcome = train(pico_base, toy_settings(), strategy=strategy)
    assert calls == ["begin", *["penalty", "before", "after"] * STEPS, "end"]
    assert same(outcome.weights, strategy.start)


def test_a_strategy_may_freeze_parameters_and_never_add_any(pico_base: Any) -> None:
    class Modest(BaseStrategy):
        def begin(self, stage: Stage) -> None:
            self.name, kept = next(iter(stage.parameters.items()))
            self.before = kept.detach().clone()
            kept.requires_grad_(False)

    modest = Modest()
    outcome = train(pico_base, toy_settings(), strategy=modest)
    assert torch.equal(outcome.weights[modest.name], modest.before)

    class Greedy(BaseStrategy):
        def begin(self, stage: Stage) -> None:
            next(iter(stage.model.parameters())).requires_grad_(True)

    try:
        with pytest.raises(TrainingError):
            train(pico_base, toy_settings(), strategy=Greedy())
    finally:
        for parameter in pico_base.model.parameters():
            parameter.requires_grad_(False)


def test_figures_of_an_outcome(pico_base: Any) -> None:
    reporter, examples = Notes(), toy_tokens()
    outcome = train(pico_base, toy_settings(), examples, reporter=reporter)
    assert reporter.steps == STEPS
    assert reporter.finished
    assert outcome.tokens_per_second / outcome.examples_per_second == pytest.approx(sum(map(len, examples)) / 14)
    assert all(value.device.type == "cpu" and not value.requires_grad for value in outcome.weights.values())


def test_rows_that_are_left_out_are_reviewed_no_more() -> None:
    """Neither by the loop, whatever a strategy asks for, nor shown to it."""
    loop = Loop.__new__(Loop)
    loop.fresh, loop.left_out = 2, set()
    loop.origins = [Origin(task, None, Example("x")) for task in ("a", "a", "b")]
    loop.stage = LoopStage(loop)
    loop.leave_out([])
    assert loop.stage.reviewed == {"a": [2, 3], "b": [4]}
    loop.leave_out([3, 4])
    assert (loop.stage.reviewed, loop.left_out) == ({"a": [2]}, {3, 4})


def test_loraplus_steps_b_at_its_own_rate(pico_base: Any) -> None:
    """AdamW's first step is the rate times the gradient's sign: B moves `ratio` times as far, A as ever."""
    moved = {}
    for ratio in (1.0, 8.0):
        settings = toy_settings(epochs=1, batch_size=16, warmup=0.0, schedule="constant", loraplus_ratio=ratio)
        with new_adapter(pico_base, settings, "CAUSAL_LM") as model:
            for name, p in trainable(model).items():
                torch.nn.init.constant_(p, 0.01) if "lora_B" in name else None
            before = {n: p.detach().clone() for n, p in trainable(model).items()}
            assert loop_of(pico_base, model, settings)().steps == 1
            moved[ratio] = {n: (p.detach() - before[n]).abs().max().item() for n, p in trainable(model).items()}
    for name, step in moved[1.0].items():
        assert moved[8.0][name] == pytest.approx(step * (8 if "lora_B" in name else 1), rel=0.02), name
