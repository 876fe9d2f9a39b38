"""The statistics of the linear routers: counts, sums and second moments of features, added and removed exactly.

Everything is a sum over samples in fp64, so any order of `learn` and `unlearn` gives the same statistics up to
rounding (1e-16 of the sums), and a removed task leaves no other trace.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from adapterhub_cl.errors import AdapterHubError
from adapterhub_cl.routing import BaseRouter

if TYPE_CHECKING:
    import torch


def unit_rows(hidden: torch.Tensor) -> torch.Tensor:
    """Rows scaled to a root mean square of 1, fp32; a row of zeros stays zero."""
    rows = hidden.float()
    return rows / rows.square().mean(1, keepdim=True).sqrt().clamp_min(1e-12)


def projection(inputs: int, outputs: int, seed: int) -> torch.Tensor:
    """A fixed random matrix `[inputs, outputs]`, fp32, that preserves a row's mean square on average."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    found: torch.Tensor = torch.randn(inputs, outputs, generator=generator) / inputs**0.5
    return found


class StatisticsRouter(BaseRouter):
    """A router that stores Σ φ(x) and the number of samples for each task, and Σ φ(x)φ(x)ᵀ over all tasks.

    Attributes:
        moments: whether Σ φφᵀ is stored.
        sums: task → Σ φ(x), `[d]`, fp64.
        counts: task → number of samples.
        second: Σ φφᵀ over all tasks, `[d, d]`, fp64; None if nothing is known.
    """

    reads: ClassVar[str] = "samples"
    moments: ClassVar[bool] = True

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.sums: dict[str, torch.Tensor] = {}
        self.counts: dict[str, int] = {}
        self.second: torch.Tensor | None = None

    def features(self, hidden: torch.Tensor) -> torch.Tensor:
        """φ of each row, `[n, d]`, fp64; a pure function of the row."""
        return unit_rows(hidden).double()

    def learn(self, task: str, known: Any) -> None:
        if not len(known):
            return
        rows = self.features(known)
        if task not in self.counts:
            self.tasks.append(task)
            self.counts[task], self.sums[task] = 0, rows.new_zeros(rows.shape[1])
        self.counts[task] += len(rows)
        self.sums[task] = self.sums[task] + rows.sum(0)
        if self.moments:
            # In place: a temporary of this size for each task would fragment the heap.
            self.second = rows.T @ rows if self.second is None else self.second.addmm_(rows.T, rows)

    def unlearn(self, task: str, known: Any) -> None:
        if len(known) > self.counts.get(task, 0):
            raise AdapterHubError(f"the router knows fewer than {len(known)} samples of task {task!r}", "fit it again")
        if not len(known):
            return
        rows = self.features(known)
        self.counts[task] -= len(rows)
        self.sums[task] = self.sums[task] - rows.sum(0)
        if self.second is not None:
            self.second.addmm_(rows.T, rows, alpha=-1)
        if not self.counts[task]:
            self.tasks.remove(task)
            del self.counts[task], self.sums[task]
        if not self.tasks:  # what remains is rounding error
            self.second = None

    def table(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Σ φ by task `[d, n_tasks]` and the counts `[n_tasks]`, fp64, in the order of `tasks`."""
        import torch

        counts = torch.tensor([self.counts[task] for task in self.tasks], dtype=torch.float64)
        return torch.stack([self.sums[task] for task in self.tasks], 1), counts

    def state(self) -> dict[str, torch.Tensor]:
        if not self.tasks:
            return {}
        sums, counts = self.table()
        found = {"sums": sums.T.contiguous(), "counts": counts.long()}
        return found if self.second is None else found | {"second": self.second.clone()}

    def restore(self, tasks: Sequence[str], state: Mapping[str, torch.Tensor]) -> None:
        self.tasks = list(tasks)
        self.sums = {task: state["sums"][k].clone() for k, task in enumerate(tasks)}
        self.counts = {task: int(state["counts"][k]) for k, task in enumerate(tasks)}
        self.second = state["second"].clone() if self.moments and self.tasks else None
        if self.tasks:
            self.solve()
