"""regmean: the update whose outputs are closest to every adapter's on that adapter's own inputs (Jin et al. 2023,
arXiv:2212.09849).

With Gᵢ = XᵢᵀXᵢ of a layer's inputs on replay samples, ΔW = (Σ ΔWᵢGᵢ)(ΣGᵢ)⁻¹ in closed form; in factors it is the stack
of the Bᵢ over that of the AᵢGᵢ(ΣGᵢ)⁻¹, so no out×in matrix is formed. In the paper it is always ahead of averaging, and
needs no training. It costs one pass over the replay samples for each adapter, and an in×in matrix for each layer of
a pass. Choose it if there are replay samples and training (`learned`, distillation) takes too long.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adapterhub_cl.merging import BaseMethod, Layer, Stage
from adapterhub_cl.merging._elementwise import share
from adapterhub_cl.options import option

if TYPE_CHECKING:
    import torch

    from adapterhub_cl.merging.factors import Factors

LARGEST = 1 << 30  # bytes of in×in matrices that are collected in one pass


@dataclass(frozen=True)
class Config:
    diagonal: float = option(0.9, "factor for off-diagonal products of the inputs: below 1 stabilises the inverse")

    def __post_init__(self) -> None:
        share("regmean.diagonal", self.diagonal)


class Method(BaseMethod):
    purpose = "the update closest to every adapter's outputs on its own replay samples"
    reads = "samples"
    Config = Config
    identity_error = 1e-4  # the off-diagonal is damped before and after the inverse
    opposites_cancel = False

    def default_weights(self, count: int) -> list[float]:
        return [1.0] * count

    def prepare(self, stage: Stage) -> None:
        self.turned: dict[str, list[torch.Tensor]] = {}
        groups = list(_groups(stage))
        counts = range(len(next(iter(stage.layers.values()))))
        total = len(groups) * sum(len(stage.batches(k)) for k in counts)
        with stage.progress("inputs of the layers", total) as advance:
            for names in groups:
                products = [self._products(stage, k, names, advance) for k in counts]
                for name in names:
                    self._solve(name, stage.layers[name], [found[name] for found in products])

    def _products(self, stage: Stage, adapter: int, names: Sequence[str], advance: Any) -> dict[str, torch.Tensor]:
        """XᵀX of each layer's input under the adapter, per token, `[in, in]`."""
        import torch

        sums: dict[str, torch.Tensor] = {}
        tokens = dict.fromkeys(names, 0)

        def see(name: str, x: torch.Tensor) -> None:
            if name in tokens:
                x = x.float()
                sums[name] = sums[name].addmm_(x.T, x) if name in sums else x.T @ x
                tokens[name] += len(x)

        everything = {name: parts[adapter] for name, parts in stage.layers.items()}
        with torch.no_grad(), stage.attached(everything, see=see):
            for batch in stage.batches(adapter):
                stage.loss(batch)
                advance(1)
        return {name: sums[name] / tokens[name] for name in names}

    def _solve(self, name: str, parts: Sequence[Factors], products: list[torch.Tensor]) -> None:
        import torch

        for product in products:
            product.copy_(self.config.diagonal * product + (1 - self.config.diagonal) * product.diag().diag())
        whole = torch.stack(products).sum(0).double()
        whole += torch.eye(len(whole), dtype=whole.dtype, device=whole.device) * (1e-8 * whole.diag().mean())
        # A·G·S⁻¹ = (S⁻¹·(G·Aᵀ))ᵀ, S symmetric
        self.turned[name] = [
            torch.linalg.solve(whole, (product @ part.a.T.to(product.device)).double()).T.float().cpu()
            for part, product in zip(parts, products, strict=True)
        ]

    def layer(self, layer: Layer) -> Factors:
        from adapterhub_cl.merging.factors import Factors, stacked

        turned = self.turned[layer.name]
        return stacked([Factors(part.b, a) for part, a in zip(layer.weighted, turned, strict=True)])


def _groups(stage: Stage) -> Iterator[list[str]]:
    """Groups of layers whose in×in matrices, one for each adapter, fit into memory together."""
    group: list[str] = []
    size = 0
    for name, parts in stage.layers.items():
        needed = 4 * len(parts) * parts[0].shape[1] ** 2
        if group and size + needed > LARGEST:
            yield group
            group, size = [], 0
        group.append(name)
        size += needed
    if group:
        yield group
