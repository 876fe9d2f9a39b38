"""Kin: a new adapter that starts from what helps most of the hub's other tasks, where that beats a fresh start.

Before training, the versions that answer for other tasks are tried on some of the new rows through the LoRA bank, alone
and mixed (their few-shot loss; nothing is trained). The best starts and a fresh adapter then run a short race: each is
trained for the same few steps on the same rows, and their losses on rows held out from the race are compared in pairs,
one round of successive halving (Jamieson & Talwalkar 2016, arXiv:1502.07943). The race is needed because a low loss
before training says little about a fresh adapter, which has not learned the form of the answers yet. A start is taken
only if it leads by more than chance; the new adapter is then a copy that is trained on, so the old task keeps its own
version untouched. Mixtures are means of ΔW, as in LoraHub (Huang et al. 2024, arXiv:2307.13269).

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

if TYPE_CHECKING:
    import torch

LEAST_HELD = 8  # rows that the race is decided on; fewer say nothing
FRESH = "a fresh adapter"


@dataclass(frozen=True)
class Config:
    rows: int = option(64, "rows of the new task on which every version is tried")
    versions: int = option(16, "versions that are tried at most, the newest ones")
    starts: int = option(2, "starts that race against a fresh adapter")
    share: float = option(0.1, "length of the race, as a share of the run's steps (8 steps at least)")
    held: int = option(64, "rows on which the race is decided, a quarter of the rows at most")
    sure: float = option(2.0, "a start must lead by this many standard errors of the paired differences")

    def __post_init__(self) -> None:
        problems = [
            f"kin.{name} must be at least {least}, not {getattr(self, name)}"
            for name, least in (("rows", 8), ("versions", 1), ("starts", 1), ("held", LEAST_HELD))
            if getattr(self, name) < least
        ]
        if not 0 < self.share <= 1:
            problems.append(f"kin.share must be above 0 and at most 1, not {self.share:g}")
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
        rows = list(range(stage.fresh))
        random.Random(f"kin {stage.seed}").shuffle(rows)
        held = rows[: min(self.config.held, len(rows) // 4)]
        if not racing or len(held) < LEAST_HELD:
            stage.note(
                "kin: nothing of other tasks could be tried, so the adapter starts fresh"
                if not racing
                else f"kin: {len(rows)} rows are too few to compare starts on, so the adapter starts fresh"
            )
            return
        if any("lora_magnitude" in name for name in stage.parameters):
            raise UsageError("kin cannot start a DoRA adapter from another one", "leave --dora out, or use isolated")
        self._race(stage, racing, held, rows[len(held) :])

    def _race(self, stage: Stage, racing: Sequence[Kin], held: Sequence[int], rows: Sequence[int]) -> None:
        import torch

        parameters = stage.parameters
        first = {name: p.detach().clone() for name, p in parameters.items()}
        steps = max(8, round(self.config.share * stage.steps))
        draw = random.Random(f"race {stage.seed}")
        batches = [draw.sample(list(rows), min(stage.batch, len(rows))) for _ in range(steps)]
        losses = []
        with (
            torch.random.fork_rng(devices=[]),
            stage.progress("race of starts", steps * (1 + len(racing))) as advance,
        ):
            for kin in (None, *racing):
                torch.manual_seed(stage.seed)
                missing = _put(stage, first, kin)
                before = stage.mean_losses(held)
                _learn(stage, batches, advance)
                losses.append(stage.mean_losses(held))
                row = {"from": dict(kin.parents) if kin else FRESH, "before": _mean(before), "after": _mean(losses[-1])}
                row |= {"lead": 0.0, "error": 0.0}
                if kin is not None:
                    row["lead"], row["error"] = (round(x, 4) for x in lead(losses[0], losses[-1]))
                    row |= {"cut": kin.error, "layers_left_out": missing, "with_head": bool(kin.head)}
                self.told["race"].append(row)
        told = self.told["race"]
        best = min(range(1, len(told)), key=lambda k: told[k]["after"])
        ahead, error = lead(losses[0], losses[best])
        taken = ahead > 0 and ahead > self.config.sure * error
        _put(stage, first, racing[best - 1] if taken else None)
        parents = dict(racing[best - 1].parents)
        self.told |= {"steps": steps, "rows": len(held), "fresh": told[0]["after"], "kin": told[best]["after"]}
        self.told |= {"best": parents, "from": parents if taken else {}}
        names = " + ".join(f"{w:g} · {ref}" if w != 1 else ref for ref, w in parents.items())
        stage.note(
            f"kin: after {steps} steps the loss on {len(held)} rows is {told[best]['after']:.4f} from {names}, "
            f"{told[0]['after']:.4f} from {FRESH} (lead {ahead:.4f} ± {error:.4f}): "
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


def lead(fresh: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """By how much the mean of `other` is lower than that of `fresh`, row by row, and the standard error of that."""
    differences = [a - b for a, b in zip(fresh, other, strict=True)]
    mean = sum(differences) / len(differences)
    spread = sum((d - mean) ** 2 for d in differences) / max(1, len(differences) - 1)
    return mean, float((spread / len(differences)) ** 0.5)


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 4)


def _put(stage: Stage, first: Mapping[str, torch.Tensor], kin: Kin | None) -> int:
    """Set the adapter to its first values, and to those of a kin where one is given.

    Returns:
        layers of the kin that the new adapter does not have.
    """
    import torch

    from adapterhub_cl.adapters.starting import put_factors, put_rows

    with torch.no_grad():
        for name, p in stage.parameters.items():
            p.copy_(first[name])
    if kin is None:
        return 0
    put_rows(stage.model, kin.head)
    return put_factors(stage.model, kin.layers)


def _learn(stage: Stage, batches: Sequence[Sequence[int]], advance: Any) -> None:
    """Train on these rows, one step for each list of them, at the run's rate after a short warm-up."""
    import torch

    optimizer = torch.optim.AdamW(stage.parameters.values(), lr=stage.rate, weight_decay=0.0)
    for step, rows in enumerate(batches):
        for batch in stage.batches(rows):
            (stage.loss(batch) * (len(batch.indices) / len(rows))).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(list(stage.parameters.values()), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = stage.rate * min(1.0, (step + 1) / 4)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        advance()
