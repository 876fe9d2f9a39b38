"""Replay: which examples of a task become replay samples (one file per selection policy), stored with each version."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from adapterhub_cl.errors import AdapterHubError, UsageError
from adapterhub_cl.plugins import Room
from adapterhub_cl.types import Example

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

ROOM = Room("adapterhub_cl.replay", "selection policy", "Policy")
DEFAULT = "balanced:200"


class Evidence(Protocol):
    """What a policy may compute about the examples it chooses from; each fact is computed at first use."""

    def losses(self) -> list[float]:
        """For each example the mean negative log-likelihood (nats) of an answer token under its adapter."""

    def embeddings(self) -> NDArray[numpy.float32]:
        """`[n_examples, dim]`: the frozen base's mean last hidden state over the bare input's tokens."""

    def write(self, count: int, seed: int) -> list[tuple[Example, float]]:
        """Up to `count` examples that the adapter generates, each with its confidence (0 to 1)."""


class BasePolicy(ABC):
    """Chooses replay samples.

    Attributes:
        needs: the evidence it uses: `losses`, `embeddings`, `writing`.
        keeps_data: whether its samples are examples of the data; False if they are generated.
        nested: how the samples of a small size relate to those of a larger one. `all`: the first ones; `answer`:
            this holds for each answer, but the number per answer may differ; "": neither. The contract tests check it.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    keeps_data: ClassVar[bool] = True
    nested: ClassVar[str] = "all"

    @abstractmethod
    def select(self, examples: Sequence[Example], size: int, generator: random.Random, evidence: Evidence) -> list[int]:
        """Indices of at most `size` different examples, in order of priority.

        The first k should be what the policy would choose for size k, as nearly as its method allows, so that a
        store can be reduced by cutting its end. The generator decides ties and random draws.
        """

    def samples(
        self, examples: Sequence[Example], size: int, generator: random.Random, evidence: Evidence
    ) -> list[Example]:
        return [examples[i] for i in self.select(examples, size, generator, evidence)]


class NoEvidence:
    """Evidence without a model: for policies that use only the examples."""

    def __init__(self, policy: str = "this policy") -> None:
        self.policy = policy

    def losses(self) -> list[float]:
        raise self.refusal()

    def embeddings(self) -> NDArray[numpy.float32]:
        raise self.refusal()

    def write(self, count: int, seed: int) -> list[tuple[Example, float]]:
        raise self.refusal()

    def refusal(self) -> UsageError:
        """The error for any use of the evidence."""
        return UsageError(
            f"the selection policy {self.policy!r} needs a model, but none is loaded here",
            "choose balanced or reservoir, which need only the examples",
        )


@dataclass(frozen=True)
class Keep:
    """A parsed `--replay` value.

    Attributes:
        policy: name of the selection policy.
        size: how many samples to keep; 0 keeps none.
    """

    policy: str
    size: int

    def select(self, examples: Sequence[Example], seed: int, evidence: Evidence | None = None) -> list[Example]:
        """The replay samples from these examples, highest priority first; the seed decides random draws.

        Raises:
            UsageError: the policy needs a model, and there is no evidence.
        """
        if self.size == 0 or not examples:
            return []
        policy: BasePolicy = ROOM.get(self.policy)()
        if evidence is None:
            evidence = NoEvidence(self.policy)
            if policy.needs:
                raise evidence.refusal()
        size = min(self.size, len(examples)) if policy.keeps_data else self.size
        return policy.samples(examples, size, random.Random(seed), evidence)

    def __str__(self) -> str:
        return f"{self.policy}:{self.size}"


def parse(value: str) -> Keep:
    """`balanced:200` → `Keep("balanced", 200)`; `none` keeps nothing.

    Raises:
        UsageError: the value is not POLICY:SIZE, or the size is not a whole number ≥ 0.
        UnknownNameError: no such selection policy.
    """
    if value == "none":
        return Keep("reservoir", 0)
    policy, colon, size = value.partition(":")
    if not colon or not size.isdecimal():
        raise UsageError(f"--replay {value!r} is not POLICY:SIZE", f"for example --replay {DEFAULT}, or --replay none")
    ROOM.get(policy)
    return Keep(ROOM.canonical(policy), int(size))


def keeps_data(policy: str) -> bool:
    """Whether a policy's samples are examples of the data; False also where it is not installed, or cannot be loaded:
    what cannot be ruled out counts."""
    try:
        return bool(ROOM.get(policy).keeps_data)
    except AdapterHubError:
        return False
