"""Replay: which examples of a task are kept (one file per selection policy), written beside each version."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from adapterhub_cl.errors import UsageError
from adapterhub_cl.plugins import Room
from adapterhub_cl.types import Example

ROOM = Room("adapterhub_cl.replay", "selection policy", "Policy")
DEFAULT = "balanced:200"


class BasePolicy(ABC):
    """Chooses replay samples."""

    @abstractmethod
    def select(self, examples: Sequence[Example], size: int, generator: random.Random) -> list[int]:
        """Indices of at most `size` examples, ascending, none twice; the generator decides ties and draws."""


@dataclass(frozen=True)
class Keep:
    """A parsed `--replay` value.

    Attributes:
        policy: name of the selection policy.
        size: how many samples to keep; 0 keeps none.
    """

    policy: str
    size: int

    def select(self, examples: Sequence[Example], seed: int) -> list[Example]:
        """The replay samples of these examples; the seed decides which."""
        if self.size == 0 or not examples:
            return []
        policy: BasePolicy = ROOM.get(self.policy)()
        chosen = policy.select(examples, min(self.size, len(examples)), random.Random(seed))
        return [examples[i] for i in chosen]

    def __str__(self) -> str:
        return f"{self.policy}:{self.size}"


def parse(value: str) -> Keep:
    """`balanced:200` → `Keep("balanced", 200)`; `none` keeps nothing.

    Raises:
        UsageError: the form is not POLICY:SIZE, or the size is not a whole number ≥ 0.
        UnknownNameError: no such selection policy.
    """
    if value == "none":
        return Keep("reservoir", 0)
    policy, colon, size = value.partition(":")
    if not colon or not size.isdecimal():
        raise UsageError(f"--replay {value!r} is not POLICY:SIZE", f"for example --replay {DEFAULT}, or --replay none")
    ROOM.get(policy)
    return Keep(policy, int(size))
