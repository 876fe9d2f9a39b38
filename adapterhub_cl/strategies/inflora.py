"""InfLoRA, interference-free low-rank adaptation (Liang & Li 2024, arXiv:2404.00228): the new adapter responds only to
directions that the earlier tasks' inputs do not use.

Before training, the inputs of each layer are collected on the new task; the part in the earlier tasks' input space is
removed, and the `r` strongest remaining directions become A, which is then frozen: only B is trained. Afterwards the
task's own input space, up to the share `energy` of its spectrum, joins the memory (as in GPM, Saha et al. 2021).

It was chosen over GainLoRA (Liang & Li 2025), whose gates weight the adapters at inference: InfLoRA's sum is a plain
LoRA, which PEFT, merging and serving can open directly. Choose it if no samples may be stored and forgetting must be
small; new tasks learn less once the memory fills up.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adapterhub_cl.errors import UsageError
from adapterhub_cl.options import option
from adapterhub_cl.strategies import BaseStrategy, Stage, memory
from adapterhub_cl.types import Example

if TYPE_CHECKING:
    import torch

    from adapterhub_cl.data.tokenise import Tokens

LEAST_FREE = 1e-6  # share of the inputs' energy below which a direction counts as empty


@dataclass(frozen=True)
class Config:
    energy: float = option(0.97, "share of a task's input spectrum that joins the memory")
    examples: int = option(128, "examples used to collect the inputs")

    def __post_init__(self) -> None:
        if not 0 < self.energy <= 1:
            raise UsageError(f"inflora.energy must be above 0 and at most 1, not {self.energy:g}", "0.97 is usual")
        if self.examples < 1:
            raise UsageError(f"inflora.examples must be at least 1, not {self.examples}", "128 is usual")


def without(gram: torch.Tensor, basis: torch.Tensor | None) -> torch.Tensor:
    """XᵀX `[in, in]` of inputs after removing the space of an orthonormal basis `[in, k]`."""
    if basis is None or basis.shape[1] == 0:
        return gram
    left = gram - basis @ (basis.T @ gram)
    return left - (left @ basis) @ basis.T


def extended(basis: torch.Tensor | None, gram: torch.Tensor, energy: float) -> torch.Tensor:
    """The memory's orthonormal basis `[in, k]` with the strongest new directions of XᵀX `[in, in]`, as many as are
    needed for a share `energy` of its energy to be inside the memory."""
    import torch

    total = float(gram.diagonal().sum())
    values, vectors = torch.linalg.eigh(without(gram, basis))
    order = values.argsort(descending=True)
    values, vectors = values[order].clamp(min=0), vectors[:, order]
    missing = float(values.sum()) - (1 - energy) * total
    if missing <= 1e-6 * total:
        return gram.new_zeros(len(gram), 0) if basis is None else basis
    count = int((values.cumsum(0) < missing).sum()) + 1
    old = [] if basis is None else [basis]
    wider: torch.Tensor = torch.linalg.qr(torch.cat([*old, vectors[:, :count]], 1)).Q
    return wider[:, : len(gram)].contiguous()


class Strategy(BaseStrategy):
    """Fixed A in the free directions; only B is trained."""

    shares = "the frozen sum of all earlier adapters; the new one uses only input directions that they do not use"
    form = "stacked"
    projects = True
    Config = Config

    def begin(self, stage: Stage) -> None:
        import torch

        found = memory(stage.parent, "inflora")
        self.bases = {name: found[name].to(p.device) for name, p in stage.parameters.items() if name in found}
        grams = {} if stage.resumed else self._grams(stage)
        for name, parameter in stage.parameters.items():
            if ".lora_A." not in name:
                continue
            parameter.requires_grad_(False)
            if name not in grams:
                continue
            free = without(grams[name], self.bases.get(name))
            values, vectors = torch.linalg.eigh(free)
            best = vectors[:, values.argsort(descending=True)[: parameter.shape[0]]].T
            useful = values.sort(descending=True).values[: parameter.shape[0]] > LEAST_FREE * values.sum().clamp(min=0)
            # As large as PEFT's initial values (Kaiming uniform, rows of norm 1/√3); empty directions are 0.
            parameter.data.copy_((best * useful[:, None] / 3**0.5).to(parameter.dtype))

    def _grams(self, stage: Stage) -> dict[str, torch.Tensor]:
        """XᵀX `[in, in]` of the inputs of every layer in training, on some of the new task's rows."""
        import torch

        from adapterhub_cl.bases.hidden import at_tokens

        sums: dict[str, torch.Tensor] = {}
        hooks = []
        mask = torch.empty(0, 0, dtype=torch.bool)

        def watch(key: str) -> Any:
            def hook(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
                x = at_tokens(inputs[0].detach(), mask).float()
                with torch.autocast(x.device.type, enabled=False):
                    sums[key] = sums[key] + x.T @ x if key in sums else x.T @ x

            return hook

        for name in stage.parameters:
            if ".lora_A." in name:
                layer = stage.model.get_submodule(name.split(".lora_A.")[0])
                hooks.append(layer.register_forward_pre_hook(watch(name)))
        rows = list(range(stage.fresh))
        rows = random.Random(f"inputs {stage.seed}").sample(rows, min(self.config.examples, len(rows)))
        try:
            with torch.no_grad(), stage.progress("collecting inputs (inflora)", len(rows)) as advance:
                for batch in stage.batches(rows):
                    mask = batch.attention_mask.bool()
                    stage.logits(batch)
                    advance(len(batch.indices))
        finally:
            for hook in hooks:
                hook.remove()
        return sums

    def remember(
        self, stage: Stage, samples: Sequence[Example], tokens: Sequence[Tokens]
    ) -> Mapping[str, torch.Tensor]:
        grams = self._grams(stage)
        return {name: extended(self.bases.get(name), gram, self.config.energy).cpu() for name, gram in grams.items()}
