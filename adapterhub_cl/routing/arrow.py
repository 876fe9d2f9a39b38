"""arrow: how strongly each adapter would respond to an input, judged by the adapters' weights alone (Ostapenko et al.
2024, arXiv:2405.11157).

The top right singular vector v of an adapter's ΔW in a layer is the direction of inputs that it amplifies most. The
score of a task is |v·x|/‖x‖, averaged over tokens and over the layers that its adapter changes. Tasks served by one
adapter get equal scores. Choose it if there are no samples (imported adapters); otherwise the routers that read
samples are far more accurate, and cheaper: this one needs a pass through all layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adapterhub_cl.routing import BaseRouter

if TYPE_CHECKING:
    import torch

    from adapterhub_cl.routing import Seen


class Router(BaseRouter):
    purpose = "uses only the adapters' weights: needs no samples"
    reads = "factors"

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.directions: dict[str, dict[str, torch.Tensor]] = {}

    def learn(self, task: str, known: Any) -> None:
        from adapterhub_cl.merging.factors import decompose

        found = {}
        for layer, factors in known.items():
            if factors.rank:
                _, strengths, right = decompose(factors)
                if float(strengths[0]) > 0:  # a zero update amplifies nothing
                    found[layer] = right[:, 0].float().contiguous()
        if task not in self.directions:
            self.tasks.append(task)
        self.directions[task] = found

    def unlearn(self, task: str, known: Any) -> None:
        if self.directions.pop(task, None) is not None:
            self.tasks.remove(task)

    def scores(self, seen: Seen) -> torch.Tensor:
        import torch

        stacked = self._stacked()
        if not stacked:
            return torch.zeros(len(seen.texts), len(self.tasks))
        # The mean is over all layers: a task without a direction in a layer has 0 there, and the layer must not count.
        own = torch.tensor([max(1, len(self.directions[task])) for task in self.tasks])
        return seen.activity(stacked) * (len(stacked) / own)

    def _stacked(self) -> dict[str, torch.Tensor]:
        """Layer → the tasks' directions `[n_tasks, in]`; zeros for a task whose adapter does not change the layer."""
        import torch

        first: dict[str, torch.Tensor] = {}
        for task in sorted(self.directions):
            for layer, direction in self.directions[task].items():
                first.setdefault(layer, direction)
        return {
            layer: torch.stack([self.directions[task].get(layer, torch.zeros_like(like)) for task in self.tasks])
            for layer, like in sorted(first.items())
        }

    def state(self) -> dict[str, torch.Tensor]:
        return self._stacked()

    def restore(self, tasks: Sequence[str], state: Mapping[str, torch.Tensor]) -> None:
        self.tasks = list(tasks)
        self.directions = {
            task: {layer: rows[k].clone() for layer, rows in state.items() if bool(rows[k].any())}
            for k, task in enumerate(tasks)
        }
