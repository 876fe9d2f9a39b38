"""Kin: a new adapter that starts from what helps most of the hub's other tasks, where that beats a fresh start.

Before training, the versions that answer for other tasks are tried on some of the new rows through the LoRA bank, alone
and mixed (their few-shot loss; nothing is trained). The best starts and a fresh adapter then run a short race: each is
trained for the same few steps on the same rows, and their losses on rows held out from the race are compared in pairs,
one round of successive halving (Jamieson & Talwalkar 2016, arXiv:1502.07943). Few rows are soon learned: there the best
start alone runs against the fresh adapter, over the whole run, with each third of the rows held out in turn. A version
of a task with the very same labels is always in the race. The race is needed because a low loss before training says
little about a fresh adapter, which has not learned the form of the answers yet. A start is taken only if it leads by
more than chance; the new adapter is then a copy that is trained on, so the old task keeps its own version untouched.
Mixtures are means of ΔW, as in LoraHub (Huang et al. 2024, arXiv:2307.13269).

Choose it where tasks resemble each other (the same labels, the same form of answers) and some have few rows.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adapterhub_cl.errors import UsageError
from adapterhub_cl.options import option
from adapterhub_cl.strategies import BaseStrategy, Kin, Stage, Trial
from adapterhub_cl.strategies._race import RowsOfRace, lists, mean, parted, put, raced, run
from adapterhub_cl.strategies._race import lead as lead

if TYPE_CHECKING:
    import torch

FRESH = "a fresh adapter"


@dataclass(frozen=True)
class Config:
    rows: int = option(64, "rows of the new task on which every version is tried")
    versions: int = option(16, "versions that are tried at most, the newest ones")
    starts: int = option(2, "starts that race against a fresh adapter; with fewer than 64 rows, 1")
    share: float = option(0.1, "length of the race, as a share of the run's steps (8 steps at least)")
    confirm: float = option(
        0.4,
        "share of the run's steps to which the best start and a fresh adapter then race on; with fewer than 64 rows, 1",
    )
    held: int = option(64, "rows on which the race is decided, a quarter of the rows at most; with fewer than 64, all")
    sure: float = option(2.0, "a start must lead by this many standard errors of the paired differences")

    def __post_init__(self) -> None:
        problems = [
            f"kin.{name} must be at least {least}, not {getattr(self, name)}"
            for name, least in (("rows", 8), ("versions", 1), ("starts", 1), ("held", 8))
            if getattr(self, name) < least
        ]
        problems += [
            f"kin.{name} must be above 0 and at most 1, not {getattr(self, name):g}"
            for name in ("share", "confirm")
            if not 0 < getattr(self, name) <= 1
        ]
        if not 0 <= self.sure < float("inf"):
            problems.append(f"kin.sure must be at least 0, not {self.sure:g}")
        if problems:
            raise UsageError("; ".join(problems), "for example --set kin.rows=64")


class Strategy(BaseStrategy):
    """Starts from the best kin, or fresh."""

    shares = "a starting point: the best of the other tasks' adapters, if it beats a fresh one"
    form = "fresh"
    Config = Config

    @property
    def trial(self) -> Trial:
        return Trial(self.config.rows, self.config.versions, self.config.starts)

    def begin(self, stage: Stage) -> None:
        self.told: dict[str, Any] = {}
        if stage.resumed:
            return
        self.told = {"tried": [{"from": dict(k.parents), "loss": round(k.loss, 4)} for k in stage.kin]}
        self.told |= {"race": [], "from": {}}
        racing = [kin for kin in stage.kin if kin.layers]
        parts = parted(stage.fresh, self.config.held, f"kin {stage.seed}")
        if len(parts) > 1:
            racing = [kin for place, kin in enumerate(racing) if not place or kin.same_labels]
        if not racing or not parts:
            stage.note(
                "kin: nothing of other tasks could be tried, so the adapter starts fresh"
                if not racing
                else f"kin: {stage.fresh} rows are too few to compare starts on, so the adapter starts fresh"
            )
            return
        if any("lora_magnitude" in name for name in stage.parameters):
            raise UsageError("kin cannot start a DoRA adapter from another one", "leave --dora out, or use isolated")
        self._race(stage, racing, parts)

    def _race(self, stage: Stage, racing: Sequence[Kin], parts: Sequence[RowsOfRace]) -> None:
        import torch

        first = {name: p.detach().clone() for name, p in stage.parameters.items()}
        whole = len(parts) > 1
        if whole:  # as many passes as the run makes
            steps, more = max(4, round(stage.steps * len(parts[0].learned) / stage.fresh)), 0
        else:
            steps = max(8, round(self.config.share * stage.steps))
            more = max(0, round(self.config.confirm * stage.steps) - steps)
        draw = random.Random(f"race {stage.seed}")
        batches = [lists(part.learned, stage.batch, steps + more, draw) for part in parts]
        starts = (None, *racing)
        with (
            torch.random.fork_rng(),
            stage.progress("race of starts", steps * len(parts) * len(starts)) as advance,
        ):
            found = raced(stage, starts, first, parts, [rows[:steps] for rows in batches], advance)
        losses = [runner.losses for runner in found]
        told = self.told["race"]
        for k, kin in enumerate(starts):
            row: dict[str, Any] = {"from": dict(kin.parents) if kin else FRESH}
            row |= {"before": mean(found[k].before), "after": mean(losses[k])}
            row["lead"], row["error"] = (round(x, 4) for x in lead(losses[0], losses[k]))
            if kin is not None:
                row |= {"cut": kin.error, "layers_left_out": found[k].missing, "with_head": bool(kin.head)}
            told.append(row)
        best = max(range(1, len(starts)), key=lambda k: told[k]["lead"])
        ahead, error = lead(losses[0], losses[best])
        taken = ahead > self.config.sure * error
        if taken and more:
            with (
                torch.random.fork_rng(),
                stage.progress("race of the best start and a fresh adapter", 2 * more) as advance,
            ):
                for k in (0, best):
                    torch.manual_seed(stage.seed)
                    run(stage, found[k], batches[0][steps:], advance)
                    losses[k] = stage.mean_losses(parts[0].held)
                    told[k]["confirmed"] = mean(losses[k])
            steps += more
            ahead, error = lead(losses[0], losses[best])
            taken = ahead > self.config.sure * error
        put(stage, first, racing[best - 1] if taken else None)
        parents = dict(racing[best - 1].parents)
        fresh, other = mean(losses[0][: len(losses[best])]), mean(losses[best])
        self.told |= {"steps": steps, "rows": len(losses[best]), "fresh": fresh, "kin": other}
        self.told |= {"best": parents, "from": parents if taken else {}}
        names = " + ".join(f"{w:g} · {ref}" if w != 1 else ref for ref, w in parents.items())
        stage.note(
            f"kin: after {steps} steps the loss on {len(losses[best])} rows is {other:.4f} from {names}, "
            f"{fresh:.4f} from {FRESH} (lead {ahead:.4f}, needed {self.config.sure * error:.4f}): "
            + ("the adapter starts from it" if taken else "the adapter starts fresh")
        )

    def start(self) -> Mapping[str, Any]:
        return {key: value for key, value in self.told.items() if key != "race"} if self.told.get("race") else {}

    def summary(self) -> dict[str, Any]:
        return self.told

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        return {}, self.told

    def restore(self, tensors: Mapping[str, torch.Tensor], values: Mapping[str, Any]) -> None:
        self.told = dict(values)
