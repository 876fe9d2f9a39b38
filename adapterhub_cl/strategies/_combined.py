"""Several strategies as one: `replay+olora`. Losses and review rows are summed; the order of names does not matter."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from adapterhub_cl.errors import UnknownNameError, UsageError
from adapterhub_cl.options import from_mapping
from adapterhub_cl.strategies import ROOM, BaseStrategy, Past, Stage, Trial
from adapterhub_cl.types import AdapterRecord, Example

if TYPE_CHECKING:
    import torch

    from adapterhub_cl.data.batches import Batch
    from adapterhub_cl.data.tokenise import Tokens

READS = ("", "samples", "data")
MEANS = {
    "fresh": "makes a fresh adapter",
    "continued": "continues training the newest adapter",
    "stacked": "stacks a new adapter on the frozen ones",
}


def build(text: str, options: Mapping[str, Any] | None = None) -> Combined:
    """The strategy that `--strategy` and `--set` ask for.

    Args:
        text: a name, or names with `+` between them.
        options: `NAME.OPTION` → value.

    Raises:
        UnknownNameError: no such strategy or option.
        UsageError: strategies that cannot be combined, or an invalid value.
    """
    names = sorted(part.strip() for part in text.split("+"))
    if len(set(names)) < len(names):
        raise UsageError(f"--strategy {text!r} names a strategy twice", "name each once")
    classes: dict[str, type[BaseStrategy]] = {name: ROOM.get(name) for name in names}
    given: dict[str, dict[str, Any]] = {name: {} for name in names}
    for key, value in (options or {}).items():
        name, dot, field = str(key).partition(".")
        if not dot or name not in given:
            known = [f"{n}.{f.name}" for n, c in classes.items() for f in fields(c.Config)]
            raise UnknownNameError("strategy option", str(key), known, f"--strategy is {text}")
        given[name][field] = value
    parts = {
        name: cls(from_mapping(cls.Config, given[name], f"the options of {name}", prefix=f"{name}."))
        for name, cls in classes.items()
    }
    _check(parts)
    return Combined(parts)


def _check(parts: Mapping[str, BaseStrategy]) -> None:
    forms = {name: part.form for name, part in parts.items() if part.form}
    if len(set(forms.values())) > 1:
        told = ", ".join(f"{name} {MEANS[form]}" for name, form in forms.items())
        raise UsageError(f"{'+'.join(parts)} cannot be combined: {told}", "choose one of them")
    alone = [name for name, part in parts.items() if part.form == "fresh" and len(parts) > 1]
    if alone:
        raise UsageError(f"{alone[0]} cannot be combined with other strategies", f"use --strategy {alone[0]} alone")
    projecting = [name for name, part in parts.items() if part.projects]
    if len(projecting) > 1:
        raise UsageError(f"{' and '.join(projecting)} both project gradients", "choose one of them")
    mixing = [name for name, part in parts.items() if part.reads]
    if len(mixing) > 1:
        raise UsageError(f"{' and '.join(mixing)} both mix in replay samples", "choose one of them")


class Combined(BaseStrategy):
    """One or more strategies behind the same hooks.

    Attributes:
        parts: name → strategy, in the order of the names.
        makes: `fresh`, `continued` or `stacked`.
    """

    def __init__(self, parts: Mapping[str, BaseStrategy]) -> None:
        super().__init__()
        self.parts = dict(sorted(parts.items()))
        self.makes = next((part.form for part in self.parts.values() if part.form), "continued")
        self.what_is_read = max((part.reads for part in self.parts.values()), key=READS.index)
        self.watches_layers = any(part.watches_layers for part in self.parts.values())
        penalising = [part for part in self.parts.values() if type(part).penalty is not BaseStrategy.penalty]
        self.reads_logits = any(part.reads_logits for part in penalising)
        self.writes = any(part.writes for part in self.parts.values())

    @property
    def name(self) -> str:
        return "+".join(self.parts)

    @property
    def shared(self) -> bool:
        return self.makes in ("continued", "stacked") or self.what_is_read == "data"

    def parent(self, past: Past) -> AdapterRecord | None:
        """The version that the new adapter continues from, or is stacked on."""
        return past.newest if self.makes in ("continued", "stacked") else None

    @property
    def own_loss(self) -> float:
        return math.prod(part.own_loss for part in self.parts.values())

    @property
    def trial(self) -> Trial | None:
        return next((part.trial for part in self.parts.values() if part.trial is not None), None)

    def repeats(self, tasks: Sequence[str]) -> Sequence[int]:
        return [max(times) for times in zip(*(part.repeats(tasks) for part in self.parts.values()), strict=True)]

    def begin(self, stage: Stage) -> None:
        for part in self.parts.values():
            part.begin(stage)

    def review(self, stage: Stage, rows: Sequence[int]) -> Sequence[tuple[int, float]]:
        return [row for part in self.parts.values() for row in part.review(stage, rows)]

    def penalty(self, stage: Stage, batch: Batch, logits: torch.Tensor) -> torch.Tensor | None:
        found = [p for part in self.parts.values() if (p := part.penalty(stage, batch, logits)) is not None]
        return sum(found[1:], start=found[0]) if found else None

    def before_step(self, stage: Stage) -> None:
        for part in self.parts.values():
            part.before_step(stage)

    def after_step(self, stage: Stage) -> None:
        for part in self.parts.values():
            part.after_step(stage)

    def end(self, stage: Stage) -> None:
        for part in self.parts.values():
            part.end(stage)

    def remember(
        self, stage: Stage, samples: Sequence[Example], tokens: Sequence[Tokens]
    ) -> Mapping[str, torch.Tensor]:
        return {
            f"{name}.{key}": value
            for name, part in self.parts.items()
            for key, value in part.remember(stage, samples, tokens).items()
        }

    def start(self) -> Mapping[str, Any]:
        return next((found for part in self.parts.values() if (found := part.start())), {})

    def summary(self) -> dict[str, Any]:
        return {name: told for name, part in self.parts.items() if (told := part.summary())}

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        states = {name: part.state() for name, part in self.parts.items()}
        tensors = {f"{name}.{key}": value for name, (found, _) in states.items() for key, value in found.items()}
        return tensors, {name: values for name, (_, values) in states.items()}

    def restore(self, tensors: Mapping[str, torch.Tensor], values: Mapping[str, Any]) -> None:
        for name, part in self.parts.items():
            mine = {k.removeprefix(name + "."): v for k, v in tensors.items() if k.startswith(name + ".")}
            part.restore(mine, values.get(name, {}))
