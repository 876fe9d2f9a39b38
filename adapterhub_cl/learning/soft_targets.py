"""Soft targets: beside the right label of a row, the probability that an older version gave to each label (Hinton et
al. 2015, arXiv:1503.02531).

The probabilities are of labels, not of tokens, so the older version may stand on another base with another tokenizer.
Where this base writes a label in several tokens, each token of the right label has as its target the probabilities of
the labels that begin like it, summed by their next token.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub_cl.bases.loading import LoadedBase
from adapterhub_cl.data.tokenise import Tokens
from adapterhub_cl.errors import IntegrityError
from adapterhub_cl.learning.material import Material
from adapterhub_cl.objectives import BaseObjective
from adapterhub_cl.registry.files import atomic_write_text
from adapterhub_cl.strategies import BaseStrategy, Combined, Stage
from adapterhub_cl.strategies.told_rows import NEVER, sample_key, told_divergence

if TYPE_CHECKING:
    import torch

    from adapterhub_cl.data.batches import Batch

LEAST = 1e-6  # a right label that the older version thought less likely than this has no soft target


@dataclass(frozen=True)
class OldProbabilities:
    """What an older version said of the rows of a choice task.

    Attributes:
        labels: in the order of the probabilities.
        rows: `sample_key` of a row → the probability of each label.
    """

    labels: Sequence[str]
    rows: Mapping[int, Sequence[float]] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write them as JSON.

        Raises:
            OSError: the disk refused.
        """
        rows = {str(key): [round(value, 6) for value in values] for key, values in self.rows.items()}
        atomic_write_text(path, json.dumps({"labels": list(self.labels), "rows": rows}, ensure_ascii=False) + "\n")

    @classmethod
    def read(cls, path: Path) -> OldProbabilities:
        """The reverse of `write`.

        Raises:
            IntegrityError: the file is missing or damaged.
        """
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            labels = [str(label) for label in found["labels"]]
            rows = {int(key): [float(value) for value in values] for key, values in found["rows"].items()}
            if any(len(row) != len(labels) or not all(0 <= value <= 1 for value in row) for row in rows.values()):
                raise ValueError("a row has no probability for each label")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise IntegrityError(
                f"{path} cannot be read: {error}", "run the same cl-adapter rebase again: it writes the file anew"
            ) from error
        return cls(labels, rows)


class SoftTargets(BaseStrategy):
    """Adds the divergence from the soft targets to the loss.

    Args:
        targets: (prompt, answer) of a row → log-probabilities `[n_answer, k]`, and the tokens `[n_answer, k]`.
        weight: of the divergence, relative to the usual loss.
    """

    def __init__(
        self,
        targets: Mapping[tuple[tuple[int, ...], tuple[int, ...]], tuple[torch.Tensor, torch.Tensor]],
        weight: float,
    ) -> None:
        super().__init__()
        self.targets, self.weight = targets, weight

    def begin(self, stage: Stage) -> None:
        rows = {row: stage.tokens(row) for row in range(stage.fresh)}
        keys = {row: (tokens.prompt, tokens.answer) for row, tokens in rows.items()}
        self.told = {row: self.targets[key] for row, key in keys.items() if key in self.targets}

    def penalty(self, stage: Stage, batch: Batch, logits: torch.Tensor) -> torch.Tensor | None:
        found = told_divergence(self.told, batch, logits)
        return None if found is None else found * self.weight

    def summary(self) -> dict[str, Any]:
        return {"rows": len(self.told), "weight": self.weight}


def with_soft_targets(
    strategy: Combined,
    hub: Path,
    asked: Mapping[str, Any],
    material: Material,
    base: LoadedBase,
    objective: BaseObjective,
    length: int,
) -> Combined:
    """The strategy with soft targets beside it; the strategy itself where none are asked for.

    Args:
        hub: its folder.
        asked: `file` in the hub, which `OldProbabilities.write` wrote, and `weight`; or nothing.
        length: the longest row in tokens.

    Raises:
        IntegrityError: the file is missing or damaged.
    """
    if not asked:
        return strategy
    old = OldProbabilities.read(hub / asked["file"])
    encode = objective.tokeniser(base.tokenizer, material.task, length)
    targets = {}
    paths: dict[str, tuple[int, ...]] = {}
    for example in material.data.examples:
        row = old.rows.get(sample_key(example))
        if row is None:
            continue
        paths = paths or {label: encode(replace(example, answer=label)).answer for label in old.labels}
        tokens: Tokens = encode(example)
        if tokens.answer and paths.get(str(example.answer)) == tokens.answer:
            targets[tokens.prompt, tokens.answer] = along(tokens.answer, paths, dict(zip(old.labels, row, strict=True)))
    return Combined({**strategy.parts, "soft targets": SoftTargets(targets, float(asked["weight"]))})


def along(
    answer: Sequence[int], paths: Mapping[str, Sequence[int]], probabilities: Mapping[str, float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The targets of an answer's tokens: of each the next tokens of the labels that begin like the answer up to there.

    Args:
        paths: label → the tokens that it is written in.

    Returns:
        log-probabilities `[n_answer, k]`, `NEVER` where there are fewer than k, and the tokens.
    """
    import torch

    steps: list[dict[int, float]] = []
    for k, right in enumerate(answer):
        nexts: dict[int, float] = {}
        for label, path in paths.items():
            if len(path) > k and tuple(path[:k]) == tuple(answer[:k]):
                nexts[path[k]] = nexts.get(path[k], 0.0) + probabilities.get(label, 0.0)
        total = sum(nexts.values())
        shares = {right: 1.0} if total < LEAST else {token: value / total for token, value in nexts.items()}
        steps.append({token: value for token, value in shares.items() if value > 0})
    width = max(map(len, steps))
    logs, ids = torch.full((len(steps), width), NEVER), torch.zeros(len(steps), width, dtype=torch.long)
    for k, likely in enumerate(steps):
        for j, (token, value) in enumerate(sorted(likely.items())):
            logs[k, j], ids[k, j] = math.log(value), token
    return logs, ids
