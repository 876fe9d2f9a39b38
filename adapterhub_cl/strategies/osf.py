"""OSF, orthogonal subspace fine-tuning (Nayak et al. 2025, arXiv:2504.07097; in PEFT as OSF), for LoRA: the new
adapter neither reads nor writes the directions that matter to the base and to the adapters beneath it.

OSF as such splits every weight by its SVD, freezes the top singular directions and trains the rest of the full
weight, so its result is no LoRA: it could not be stacked, merged or served beside others. Here its principle holds
for a new LoRA on frozen ones. Of each layer, U and V are the top left and right singular vectors of the frozen
weight (the share `preserve` of them, half as in PEFT) with the column and row spaces of the adapters beneath. B is
kept orthogonal to U and A to V: their gradients are projected before every step, and they themselves after it,
because Adam leaves the subspace. PEFT projects gradients only. The paper's importance of single layers is left out.
A layer's U and V take as much memory as 2 × `preserve` of its weight in fp32.

Choose it if no samples may be stored and what the base itself knows must be kept, at the cost of what the new task
learns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adapterhub_cl.errors import UsageError
from adapterhub_cl.options import option
from adapterhub_cl.strategies import BaseStrategy, Stage

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Config:
    preserve: float = option(0.5, "share of the frozen weight's singular directions that stay untouched")

    def __post_init__(self) -> None:
        if not 0 <= self.preserve < 1:
            raise UsageError(f"osf.preserve must be at least 0 and below 1, not {self.preserve:g}", "0.5 is usual")


def top_directions(weight: torch.Tensor, share: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The top left and right singular vectors of a weight `[out, in]`: U `[out, k]` and V `[in, k]`; k is the share of
    min(out, in). They come from the smaller Gram matrix, which is faster than an SVD."""
    import torch

    dense = weight.float()
    wide = dense.shape[0] < dense.shape[1]
    gram = dense @ dense.T if wide else dense.T @ dense
    count = int(share * len(gram))
    known = torch.linalg.eigh(gram).eigenvectors[:, len(gram) - count :]
    other = torch.linalg.qr((dense.T if wide else dense) @ known).Q
    return (known, other) if wide else (other, known)


def joined(basis: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """An orthonormal basis `[n, k]` of what both span."""
    import torch

    left = columns.float() - basis @ (basis.T @ columns.float())
    u, values, _ = torch.linalg.svd(left, full_matrices=False)
    size = columns.float().norm().clamp(min=1e-30)
    return torch.cat([basis, u[:, values > 1e-5 * size]], 1)


class Strategy(BaseStrategy):
    """Keeps the new adapter out of the top directions of everything beneath it."""

    shares = "the frozen sum of all earlier adapters; the new one avoids its directions and the strongest of the base"
    form = "stacked"
    projects = True
    reads_logits = False
    Config = Config

    def begin(self, stage: Stage) -> None:
        from adapterhub_cl.adapters.fused import dense_weight

        layers = dict(stage.model.named_modules())
        names = [name for name in stage.parameters if ".lora_A." in name]
        self.protected: dict[str, torch.Tensor] = {}
        with stage.progress("top directions of the weights (osf)", len(names)) as advance:
            for name in names:
                layer: Any = layers[name.split(".lora_A.")[0]]
                base = layer.get_base_layer()
                weight = dense_weight(base, stage.parameters[name].dtype)
                frozen = base.weight.detach().T if weight is None else weight().detach()  # Conv1D has [in, out]
                u, v = top_directions(frozen.to(stage.parameters[name].device), self.config.preserve)
                if "beneath" in layer.lora_A:
                    u = joined(u, layer.lora_B["beneath"].weight.detach())
                    v = joined(v, layer.lora_A["beneath"].weight.detach().T)
                self.protected[name] = v
                self.protected[name.replace(".lora_A.", ".lora_B.")] = u
                advance()
        self._project({name: p.data for name, p in stage.parameters.items()})

    def _project(self, values: dict[str, torch.Tensor]) -> None:
        """Take the protected directions out, in place: out of the rows of A and of the columns of B."""
        for name, basis in self.protected.items():
            value = values.get(name)
            if value is None:
                continue
            own = basis.to(value.dtype)
            value -= (value @ own) @ own.T if ".lora_A." in name else own @ (own.T @ value)

    def before_step(self, stage: Stage) -> None:
        self._project({name: p.grad for name, p in stage.parameters.items() if p.grad is not None})

    def after_step(self, stage: Stage) -> None:
        self._project({name: p.data for name, p in stage.parameters.items()})
