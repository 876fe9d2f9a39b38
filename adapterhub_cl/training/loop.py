"""The one training loop, on Accelerate: one process or many, CPU or GPU, resumable to the very same adapter."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from typing import Any

import torch
from accelerate import Accelerator

from adapterhub_cl.adapters.lora import trainable, training_mode
from adapterhub_cl.bases.divided_base import is_divided
from adapterhub_cl.bases.encoders import bare
from adapterhub_cl.data.batches import collate, plan_epoch
from adapterhub_cl.errors import IntegrityError, TrainingError, TrainingInterrupted, is_out_of_memory
from adapterhub_cl.progress import Reporter
from adapterhub_cl.training import checkpoints
from adapterhub_cl.training.layer_stack import recomputed
from adapterhub_cl.training.loop_state import LoopOrder, Outcome, Progress
from adapterhub_cl.training.memory import give_back
from adapterhub_cl.training.stopping import StopSignal
from adapterhub_cl.training.strategy_stage import LoopStage

RISEN = 1.1  # less says nothing of one batch beside an epoch's mean
SETTLED = 0.1  # nats a token; below it there is little left to learn, and one batch may be lower by chance


class Loop:
    """Trains the LoRA on `model`.

    Args:
        model: the base with one trainable LoRA.
        evaluate: gives the dev figures of the model as it is: `{"accuracy": …, "loss": …}`, in the order in
            which they decide which epoch is best; higher is better but for `loss`. None keeps the last epoch.
        log: called with the newest figures and the step, for a tracker.
    """

    def __init__(
        self,
        model: Any,
        order: LoopOrder,
        *,
        evaluate: Callable[[Any], Mapping[str, float]] | None = None,
        reporter: Reporter | None = None,
        accelerator: Accelerator | None = None,
        log: Callable[[Mapping[str, float], int], None] | None = None,
    ) -> None:
        settings, dtype = order.settings, order.dtype
        self.model, self.objective, self.strategy = model, order.objective, order.strategy
        self.settings, self.rate, self.pad_id, self.run = settings, order.rate, order.pad_id, order.run
        self.examples, self.fresh = [*order.examples, *order.past], len(order.examples)
        self.origins, self.parent, self.kin = order.origins, order.parent, order.kin
        self.prompt_loss, self.alike, self.padding = order.prompt_loss, order.alike, order.padding
        self.watch = order.watch
        self.evaluate, self.reporter, self.log = evaluate, reporter or Reporter(), log or (lambda values, step: None)
        self.accelerator = accelerator or Accelerator(cpu=model.device.type == "cpu")
        self.autocast = torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32)
        # fp16 ends at 6e-8: without scaling the loss, small gradients become zero on their way through the base.
        self.scaler = torch.amp.GradScaler(model.device.type, enabled=dtype == torch.float16)
        self.lengths = [len(e) for e in self.examples]
        self.longest = max(self.lengths, default=0)
        began = checkpoints.processes(self.run) or self.accelerator.num_processes
        self.rows_per_step = settings.batch * settings.accumulation * began
        self.total = settings.steps(self.fresh, began)
        self.parameters = trainable(model)
        self.at = Progress(processes=began, rows=order.rows or settings.batch)
        self.divided = self.accelerator.num_processes > 1 and is_divided(model)
        # What a strategy computes beside the wrapped model, DDP does not see.
        self.exchanged = self.divided or (self.accelerator.num_processes > 1 and not self.strategy.own_loss)
        self.best: dict[str, torch.Tensor] = {}
        self.left_out: set[int] = set()
        self.less = ExitStack()
        self.stage = LoopStage(self)

    def __call__(self) -> Outcome:
        """Train to the end, from the run's checkpoint if it has one.

        Raises:
            TrainingInterrupted: Ctrl-C or SIGTERM; a checkpoint was kept.
            TrainingError: the loss is no number, or one example alone does not fit into memory.
        """
        self.start()
        with self.less, self.reporter.piece("training", self.total) as advance, StopSignal() as stop:
            advance(self.at.steps)
            while self.at.epoch < self.settings.passes and not self.exhausted:
                self.one_epoch(stop)
        means = [row["loss"] for row in self.at.history] or [0.0]
        if self.alike and means[-1] > max(RISEN * self.at.first_loss, SETTLED) and means[-1] > means[0] / RISEN:
            self.reporter.note(
                f"warning: the loss ended higher than it began ({self.at.first_loss:.2f} → "
                f"{means[-1]:.2f}): nothing was learned; try a lower --learning-rate than {self.rate:g}"
            )
        self.put(self.best)
        if 0 < self.at.best_epoch < self.at.epoch:
            self.reporter.note(f"kept epoch {self.at.best_epoch}, the best on the held-out rows")
        return self.finish()

    def start(self) -> None:
        """The strategy, the optimiser and, where there is one, the checkpoint: all before the first step."""
        torch.manual_seed(self.settings.seed + self.accelerator.process_index)
        self.wrapped = self.model
        self.strategy.begin(self.stage)
        if self.watch is not None:
            self.watch.begin(self.stage)
        self.trained = {name: p for name, p in self.parameters.items() if p.requires_grad}
        wider = {n for n, p in self.model.named_parameters() if p.requires_grad} - self.trained.keys()
        if wider or not self.trained:
            raise TrainingError("the strategy changed which parameters are trained")
        self.optimizer = torch.optim.AdamW(
            self.groups(), lr=self.rate, weight_decay=self.settings.weight_decay, fused=True
        )
        self.resume()
        # DDP is the only wrapping that is wanted; the model is on its device already. A divided base has its own, and
        # the adapter's gradients are exchanged in `exchange`.
        if self.accelerator.num_processes > 1 and not self.exchanged:
            self.wrapped = self.accelerator.prepare_model(self.model)
        training_mode(self.model)

    def groups(self) -> list[dict[str, Any]]:
        """What the optimiser trains. With LoRA+ (Hayou et al. 2024) the B matrices are a group with a rate of their
        own; `times` says how it differs from the run's."""
        if self.settings.loraplus_ratio == 1:
            return [{"params": list(self.trained.values()), "times": 1.0}]
        split: dict[bool, list[torch.Tensor]] = {False: [], True: []}
        for name, parameter in self.trained.items():
            split[".lora_B." in name].append(parameter)
        ratios = {False: 1.0, True: self.settings.loraplus_ratio}
        return [{"params": found, "times": ratios[b]} for b, found in split.items() if found]

    def finish(self) -> Outcome:
        """The strategy's last word; what the run leaves."""
        self.strategy.end(self.stage)
        self.less.close()
        weights = {name: p.detach().cpu().clone() for name, p in self.parameters.items()}
        speed = max(self.at.seconds, 1e-9)
        return Outcome(
            weights,
            self.at.best_epoch,
            self.at.history,
            self.at.steps,
            self.at.examples / speed,
            self.at.tokens / speed,
            self.at.tokens,
        )

    def leave_out(self, rows: Collection[int]) -> None:
        """Let rows of the past be reviewed no more."""
        self.left_out |= set(rows)
        for task, known in list(self.stage.reviewed.items()) if rows else ():
            known[:] = [row for row in known if row not in self.left_out]
            if not known:  # a strategy draws from each task that it is shown
                del self.stage.reviewed[task]

    @property
    def exhausted(self) -> bool:
        patience = self.settings.patience
        return bool(patience and self.at.epochs_without_gain >= patience)

    def one_epoch(self, stop: StopSignal) -> None:
        settings, at = self.settings, self.at
        plan = plan_epoch(self.lengths[: self.fresh], self.rows_per_step, settings.seed, at.epoch)
        while at.step_in_epoch < len(plan):
            indices = plan[at.step_in_epoch]
            tokens = at.tokens
            loss = self.one_step(indices)
            at.step_in_epoch += 1
            at.first_loss = loss if at.steps == 1 else at.first_loss
            at.loss_sum += loss
            at.loss_count += 1
            self.reporter.advance(1, at.tokens - tokens, loss=loss)
            self.log({"loss": loss, "learning_rate": self.optimizer.param_groups[0]["lr"]}, at.steps)
            if self.watch is not None:
                self.watch.after_step(self.stage)
            ended = at.step_in_epoch == len(plan)
            if self.run and not ended and at.steps % settings.checkpoint_every == 0:
                self.save()
            self.leave_if_asked(stop)
        self.close_epoch()
        self.leave_if_asked(stop)  # also where it was asked for while the last epoch was scored

    def leave_if_asked(self, stop: StopSignal) -> None:
        """Keep a checkpoint and raise TrainingInterrupted, if any process was asked to stop: all leave at the same
        step, or the others would wait for ever."""
        asked = stop.asked
        if self.accelerator.num_processes > 1:
            sent = torch.tensor(float(asked), device=self.model.device)
            asked = bool(self.accelerator.reduce(sent, "sum") > 0)
        if asked:
            self.save()
            kept = "; a checkpoint was kept" if self.run else ""
            where = f"stopped at step {self.at.steps} of {self.total}"
            raise TrainingInterrupted(f"{where}{kept}", "go on with the same command and --resume")

    def close_epoch(self) -> None:
        at = self.at
        loss = at.loss_sum / max(1, at.loss_count)
        figures = dict(self.evaluate(self.model)) if self.evaluate else {}
        training_mode(self.model)
        score = [-float(v) if name == "loss" else float(v) for name, v in figures.items()]
        at.epoch += 1
        if not at.best_score or not score or score > at.best_score:
            at.best_score, at.best_epoch, at.epochs_without_gain = score, at.epoch, 0
            self.best = {name: p.detach().cpu().clone() for name, p in self.parameters.items()}
        else:
            at.epochs_without_gain += 1
        at.history.append(
            {
                "epoch": at.epoch,
                "loss": round(loss, 6),
                **{f"dev_{k}": v for k, v in figures.items()},
                "seconds": round(at.seconds, 3),
            }
        )
        shown = "  ".join(f"dev {k} {v:.4f}" for k, v in figures.items())
        self.reporter.note(f"epoch {at.epoch} of {self.settings.passes}  loss {loss:.4f}  {shown}".rstrip())
        self.log({f"dev_{k}": v for k, v in figures.items()}, at.steps)
        at.step_in_epoch, at.loss_sum, at.loss_count = 0, 0.0, 0
        if self.run:
            self.save()

    def one_step(self, fresh: Sequence[int]) -> float:
        """One optimiser step on these rows and those that the strategy reviews, all processes together.

        Returns:
            the mean loss of an answer token; of preference data of a row.
        """
        started = time.perf_counter()
        reviewed = {row: weight for row, weight in self.strategy.review(self.stage, fresh) if row not in self.left_out}
        weights = dict.fromkeys(fresh, 1.0) | reviewed
        indices = list(weights)
        counted = self.objective.counted(self.examples, indices)
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        mine, factor = indices[rank::world], 1.0
        if not mine:  # a short last step: take part in the exchange, add nothing
            mine, factor = indices[:1], 0.0
        while True:
            try:
                total = self.gradients(mine, weights, factor * world / counted)
                break
            except (MemoryError, RuntimeError) as error:
                if world > 1 or not is_out_of_memory(error):
                    raise
                self.use_less(error)
        if self.exchanged:
            self.exchange()
        self.scaler.unscale_(self.optimizer)
        if self.settings.clip:
            torch.nn.utils.clip_grad_norm_(list(self.trained.values()), self.settings.clip)
        self.strategy.before_step(self.stage)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate() * group["times"]
        self.scaler.step(self.optimizer)  # in fp16, a step whose gradients overflowed is skipped
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.strategy.after_step(self.stage)
        if world > 1:
            total = self.accelerator.reduce(total, "mean")
        loss = float(total)
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss is no longer a number at step {self.at.steps + 1}",
                f"try a lower --learning-rate (now {self.rate:g})",
            )
        self.at.steps += 1
        self.at.examples += len(indices)
        self.at.tokens += sum(self.lengths[i] for i in indices)
        self.at.seconds += time.perf_counter() - started
        return loss

    def gradients(self, mine: Sequence[int], weights: Mapping[int, float], factor: float) -> torch.Tensor:
        """Adds up the gradients of these rows, in micro-batches; returns the loss."""
        parts = [mine[k : k + self.at.rows] for k in range(0, len(mine), self.at.rows)]
        counted, own = len(parts), self.strategy.own_loss
        if self.divided:  # all processes put the base together at the same moments
            most = -(-len(weights) // self.accelerator.num_processes)
            parts += [mine[:1]] * (-(-most // self.at.rows) - counted)
        total = torch.zeros((), device=self.model.device)
        for k, part in enumerate(parts):
            rows = [weights[i] for i in part]
            plain = all(weight == 1.0 for weight in rows)
            batch = collate(
                self.examples,
                part,
                self.pad_id,
                row_weights=None if plain else rows,
                prompt_loss=self.prompt_loss,
                room=self.longest,
                earlier=True,
                padding=self.padding,
            ).to(self.model.device)
            waiting = k + 1 < len(parts) and self.wrapped is not self.model
            with self.accelerator.no_sync(self.wrapped) if waiting else nullcontext():
                with self.autocast:
                    if self.strategy.reads_logits:
                        logits = self.objective.logits(self.wrapped, batch)
                        losses = self.objective.losses_given(logits, batch, self.wrapped)
                    elif own:
                        logits, losses = torch.empty(0, 0), self.objective.losses(self.wrapped, batch)
                    else:
                        logits, losses = torch.empty(0, 0), torch.zeros(1, device=self.model.device)
                    loss = losses.sum() * (own * factor if k < counted else 0.0)
                penalty = self.strategy.penalty(self.stage, batch, logits) if k < counted else None
                if penalty is not None:
                    loss = loss + penalty * (len(part) / len(mine))
                # Not Accelerate's backward: its own scaler (`--mixed_precision fp16`) knows nothing of this optimiser.
                if loss.requires_grad:
                    self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total

    def exchange(self) -> None:
        """The mean of all processes' gradients, as DDP makes it, in one exchange."""
        trained = list(self.trained.values())
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        flat = torch.cat([parameter.grad.reshape(-1) for parameter in trained if parameter.grad is not None])
        parts = torch.split(self.accelerator.reduce(flat, "mean"), [parameter.numel() for parameter in trained])
        for parameter, part in zip(trained, parts, strict=True):
            parameter.grad = part.view_as(parameter).clone()

    def use_less(self, error: BaseException) -> None:
        """Half the rows in memory at once, and at last layers that are computed twice; the step stays the same."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.at.rows > 1:
            self.at.rows //= 2
            less = f"{self.at.rows} rows at a time"
        elif not self.at.again:
            self.at.again = True
            self.compute_again()
            less = "every layer computed twice"
        else:
            raise TrainingError(
                "one example alone does not fit into memory", "lower --max-length or --rank, or use --quantization nf4"
            ) from error
        give_back(self.model.device)
        self.reporter.note(f"out of memory: continuing with {less}, the step stays the same")

    def compute_again(self) -> None:
        """From now on every layer keeps its input only, until the loop ends."""
        self.less.enter_context(recomputed(bare(self.model), 1))

    def learning_rate(self) -> float:
        """This step's learning rate; a pure function of the step, so nothing of it needs saving."""
        return self.settings.rate_at(self.rate, self.at.steps, self.total)

    def put(self, weights: Mapping[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, value in weights.items():
                self.parameters[name].copy_(value)

    def save(self) -> None:
        if not self.accelerator.is_main_process or self.run is None:
            return
        tensors, values = self.strategy.state()
        parts: dict[str, Mapping[str, torch.Tensor]] = {
            "model": self.parameters,
            "optimizer": checkpoints.optimizer_tensors(self.optimizer),
            "best": self.best,
            "strategy": tensors,
            "random": checkpoints.random_tensors(),
        }
        flat = {f"{part}.{key}": value for part, named in parts.items() for key, value in named.items()}
        state = {"at": self.at.__dict__, "strategy": values, "scaler": self.scaler.state_dict()}
        checkpoints.save(self.run, checkpoints.Checkpoint(flat, state))

    @property
    def has_checkpoint(self) -> bool:
        return self.run is not None and (self.run / checkpoints.NAME).exists()

    def resume(self) -> None:
        stored = checkpoints.load(self.run) if self.run else None
        if stored is None:
            return
        model = stored.part("model")
        if {k: v.shape for k, v in model.items()} != {k: p.shape for k, p in self.parameters.items()}:
            raise IntegrityError(
                f"the checkpoint in {self.run} is of another model", "start the run again without --resume"
            )
        self.put(model)
        checkpoints.restore_optimizer(self.optimizer, stored.part("optimizer"))
        checkpoints.restore_random(stored.part("random"))
        self.best = stored.part("best")
        self.strategy.restore(stored.part("strategy"), stored.state["strategy"])
        self.at = Progress(**stored.state["at"])
        if self.at.again:
            self.compute_again()
        if stored.state.get("scaler"):  # empty where nothing is scaled
            self.scaler.load_state_dict(stored.state["scaler"])
        self.reporter.note(f"continuing at step {self.at.steps} of {self.total}")
