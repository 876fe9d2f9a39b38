"""analytic: ridge regression from fixed random features of the hidden state to the tasks, in closed form (RanPAC,
McDonnell et al. 2023, arXiv:2307.02251; analytic continual learning, Zhuang et al. 2022, arXiv:2205.14922).

φ(x) = max(0, xR) with a random R that never changes. The router stores G = Σ φφᵀ, and Σ φ for each task; the weights
are (G + λI)⁻¹ΦᵀY. Adding a task adds to the sums and removing one subtracts from them, so adding tasks one by one gives
the same weights as adding all at once. A task with few samples would lose against one with many: its scores are scaled
by √(mean count ÷ its count). Familiarity is that of `mahalanobis`, whose sums are stored too: at the default threshold
it found 68 % of the inputs of unknown tasks, the regression's own residual and leverage 30 %.

Choose it first: it is as accurate as a trained gate (fifteen text tasks, base `tiny`, 200 samples each in both forms:
95.9 % on the bare text, 99.5 % on the whole prompt), needs no training, and adds and removes tasks exactly. Four times
the features gained 0.4 points for sixteen times the memory (8 MB at 1,024).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adapterhub_cl.errors import UsageError
from adapterhub_cl.options import option
from adapterhub_cl.routing import mahalanobis
from adapterhub_cl.routing._statistics import StatisticsRouter, projection, unit_rows

if TYPE_CHECKING:
    import torch

    from adapterhub_cl.routing import Seen


@dataclass(frozen=True)
class Config:
    features: int = option(1024, "number of random features; memory grows with the square")
    ridge: float = option(10.0, "λ, the weight of ‖W‖² relative to the squared error summed over samples")
    seed: int = option(0, "seed of the random features")

    def __post_init__(self) -> None:
        if not 1 <= self.features <= 32_768:
            raise UsageError(f"analytic.features must be from 1 to 32768, not {self.features}", "1024 is the default")
        if not 0 < self.ridge < float("inf"):
            raise UsageError(f"analytic.ridge must be above 0 and finite, not {self.ridge}")


class Router(StatisticsRouter):
    purpose = "ridge regression on random features; adds and removes tasks exactly"
    Config = Config

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self._projection: torch.Tensor | None = None
        self.weights: torch.Tensor | None = None
        self._near = mahalanobis.Router()

    def features(self, hidden: torch.Tensor) -> torch.Tensor:
        if self._projection is None or len(self._projection) != hidden.shape[1]:
            self._projection = projection(hidden.shape[1], self.config.features, self.config.seed)
        return (unit_rows(hidden) @ self._projection).relu().double()

    def learn(self, task: str, known: Any) -> None:
        super().learn(task, known)
        self._near.learn(task, known)

    def unlearn(self, task: str, known: Any) -> None:
        super().unlearn(task, known)
        self._near.unlearn(task, known)

    def solve(self) -> None:
        import torch

        assert self.second is not None
        sums, counts = self.table()
        damped = self.second.clone()
        damped.diagonal().add_(self.config.ridge)
        weights: torch.Tensor = torch.cholesky_solve(sums, torch.linalg.cholesky(damped))
        self.weights = weights * (counts.mean() / counts).sqrt()
        self._near.solve()

    def scores(self, seen: Seen) -> torch.Tensor:
        assert self.weights is not None
        return (self.features(seen.hidden) @ self.weights).float()

    def familiarity(self, seen: Seen, scores: torch.Tensor) -> torch.Tensor:
        return self._near.familiarity(seen, self._near.scores(seen))

    def state(self) -> dict[str, torch.Tensor]:
        return super().state() | {f"near.{key}": value for key, value in self._near.state().items()}

    def restore(self, tasks: Sequence[str], state: Mapping[str, torch.Tensor]) -> None:
        near = {key.removeprefix("near."): value for key, value in state.items() if key.startswith("near.")}
        self._near.restore(tasks, near)
        super().restore(tasks, state)
