"""DER++: replay that also keeps old samples close to the logits of the model that learned them (Buzzega et al. 2020,
arXiv:2004.07211).

Each version stores the log-probabilities of the most likely tokens at the answers of its replay samples. A reviewed
sample gets its usual loss plus, times `alpha`, the KL divergence from the model's output just after it had learned the
sample (over those tokens, with all others as one). Samples without stored output (of another strategy) get the usual
loss.

Choose it over replay if only few samples can be stored: an answer's probabilities say more than the answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adapterhub_cl.errors import UsageError
from adapterhub_cl.options import option
from adapterhub_cl.strategies import Stage, memory, replay
from adapterhub_cl.strategies.told_rows import NEVER, beside, sample_key, told_divergence
from adapterhub_cl.types import Example

if TYPE_CHECKING:
    import torch

    from adapterhub_cl.data.batches import Batch
    from adapterhub_cl.data.tokenise import Tokens

TOP = 64  # tokens whose log-probabilities are stored at each position


@dataclass(frozen=True)
class Config(replay.Config):
    """Options of der: those of replay, and the weight of the stored logits."""

    alpha: float = option(0.5, "weight of the stored logits relative to the usual loss")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha <= 100:
            raise UsageError(f"der.alpha must be between 0 and 100, not {self.alpha:g}", "0.5 is usual")


class Strategy(replay.Strategy):
    """Replays old samples together with their stored logits."""

    shares = "all weights, trained on replay samples and the stored logits of their answers too"
    Config = Config

    def begin(self, stage: Stage) -> None:
        self.told: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        folders = {origin.folder: memory(origin.folder, "der") for origin in stage.origins}
        known: dict[Any, dict[int, int]] = {
            folder: {int(key): k for k, key in enumerate(found["keys"])} for folder, found in folders.items() if found
        }
        for row, origin in enumerate(stage.origins, stage.fresh):
            place = known.get(origin.folder, {}).get(sample_key(origin.example))
            if place is not None:
                found = folders[origin.folder]
                first, last = int(found["starts"][place]), int(found["starts"][place + 1])
                self.told[row] = found["logs"][first:last].float(), found["ids"][first:last].long()

    def penalty(self, stage: Stage, batch: Batch, logits: torch.Tensor) -> torch.Tensor | None:
        found = told_divergence(self.told, batch, logits)
        return None if found is None else found * float(self.config.alpha)

    def remember(
        self, stage: Stage, samples: Sequence[Example], tokens: Sequence[Tokens]
    ) -> Mapping[str, torch.Tensor]:
        import torch

        logs: list[torch.Tensor] = []
        ids: list[torch.Tensor] = []
        starts = [0]
        with torch.no_grad(), stage.progress("storing answers (der)", len(samples)) as advance:
            for k in range(0, len(samples), 16):
                found = stage.logits(stage.collate(tokens[k : k + 16])).log_softmax(-1)
                best = found.topk(min(TOP, found.shape[-1]))
                logs, ids = [*logs, best.values.half()], [*ids, best.indices.int()]
                advance(len(tokens[k : k + 16]))
        if not samples:
            return {}
        for row in tokens:
            starts.append(starts[-1] + len(row.answer))
        keys = torch.tensor([sample_key(sample) for sample in samples])
        return {"logs": beside(logs, NEVER), "ids": beside(ids, 0), "starts": torch.tensor(starts), "keys": keys}
