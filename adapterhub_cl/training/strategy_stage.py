"""What strategies see of the loop, and may compute with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from adapterhub_cl.adapters.head_files import read_layout
from adapterhub_cl.adapters.lora import training_mode
from adapterhub_cl.answering.writing import drawn
from adapterhub_cl.data.batches import Batch, collate
from adapterhub_cl.data.tokenise import Tokens
from adapterhub_cl.errors import UsageError
from adapterhub_cl.strategies import Kin, Origin
from adapterhub_cl.types import HeadRows

if TYPE_CHECKING:
    from adapterhub_cl.training.loop import Loop


class LoopStage:
    """The `Stage` of a loop; see there."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop

    @property
    def model(self) -> Any:
        return self._loop.model

    @property
    def parameters(self) -> Mapping[str, torch.nn.Parameter]:
        return self._loop.parameters

    @property
    def step(self) -> int:
        return self._loop.at.steps

    @property
    def steps(self) -> int:
        return int(self._loop.total)

    @property
    def seed(self) -> int:
        return self._loop.settings.seed

    @property
    def resumed(self) -> bool:
        return self._loop.has_checkpoint

    @property
    def fresh(self) -> int:
        return self._loop.fresh

    @property
    def origins(self) -> Sequence[Origin]:
        return self._loop.origins

    @property
    def parent(self) -> Path | None:
        return self._loop.parent

    @property
    def kin(self) -> Sequence[Kin]:
        return self._loop.kin

    @property
    def rate(self) -> float:
        return self._loop.rate

    def rate_at(self, step: int, steps: int) -> float:
        return self._loop.settings.rate_at(self.rate, step, steps)

    @property
    def batch(self) -> int:
        return int(self._loop.rows_per_step)

    @cached_property
    def reviewed(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for row, origin in enumerate(self.origins, self.fresh):
            found.setdefault(origin.task, []).append(row)
        return found

    @property
    def context(self) -> int:
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or 0
        return int(limit) if limit > 0 else 4096

    def length(self, row: int) -> int:
        return int(self._loop.lengths[row])

    def tokens(self, row: int) -> Tokens:
        return self._loop.examples[row]

    def write(self, prompts: Sequence[Sequence[int]], ends: Sequence[int], longest: int) -> list[list[int]]:
        if self._loop.divided:
            raise UsageError(
                "this strategy writes answers in training, which a base divided by FSDP cannot do",
                "train without --use_fsdp, or choose another --strategy",
            )
        seed = int(torch.randint(2**62, ()))  # of the generator whose state is in each checkpoint
        with self._loop.autocast:
            found = drawn(self.model, self._loop.pad_id, prompts, ends, longest, seed)
        training_mode(self.model)
        return found

    def batches(self, rows: Sequence[int], *, padding: bool = True) -> Iterator[Batch]:
        loop = self._loop
        for k in range(0, len(rows), loop.at.rows):
            some, padded = rows[k : k + loop.at.rows], padding or loop.padding
            yield collate(loop.examples, some, loop.pad_id, padding=padded).to(self.model.device)

    def collate(self, tokens: Sequence[Tokens]) -> Batch:
        return collate(tokens, range(len(tokens)), self._loop.pad_id).to(self.model.device)

    def logits(self, batch: Batch) -> torch.Tensor:
        with self._loop.autocast:
            return self._loop.objective.logits(self.model, batch)

    @cached_property
    def _known(self) -> HeadRows:
        return read_layout(self.parent) if self.parent is not None else {}

    def recalled(self) -> Sequence[torch.Tensor] | None:
        return self._loop.objective.recalled(self.model, self._known)

    def loss(self, batch: Batch) -> torch.Tensor:
        with self._loop.autocast:
            return self._loop.objective.losses(self.model, batch).mean()

    def mean_losses(self, rows: Sequence[int]) -> list[float]:
        loop = self._loop
        if not rows:
            return []
        chosen = [loop.examples[row] for row in rows]
        with self._loop.autocast:
            found = loop.objective.perplexities(self.model, chosen, loop.pad_id, loop.at.rows)
        training_mode(self.model)
        return [total / max(1, count) for total, count in found]

    def note(self, text: str) -> None:
        self._loop.reporter.note(text)

    def progress(self, what: str, total: int) -> AbstractContextManager[Callable[..., None]]:
        return self._loop.reporter.piece(what, total)
