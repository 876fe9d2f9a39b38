"""Routing: which task an input belongs to, with a confidence. One file per router."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from adapterhub_cl.errors import UsageError
from adapterhub_cl.options import NoOptions, from_mapping, option
from adapterhub_cl.plugins import Room

if TYPE_CHECKING:
    import torch

    from adapterhub_cl.merging.factors import Factors

ROOM = Room("adapterhub_cl.routing", "router", "Router")
DEFAULT = "analytic"
FORMS = ("bare", "whole", "both")


@dataclass(frozen=True)
class Common:
    """Options of every router, written `router.OPTION`."""

    text: str = option("both", "text to learn from a sample: bare (input), whole (instruction and input), or both")
    layer: int = option(-1, "layer of the base whose output is used, counted from 0; -1: two thirds up")
    false_fallbacks: float = option(0.005, "share of the known tasks' inputs that may go to the base by mistake")

    def __post_init__(self) -> None:
        if self.text not in FORMS:
            raise UsageError(
                f"router.text must be one of {', '.join(FORMS)}, not {self.text!r}", "--set router.text=bare"
            )
        if not 0 <= self.false_fallbacks < 1:
            raise UsageError(f"router.false_fallbacks must be at least 0 and below 1, not {self.false_fallbacks}")


class Seen(Protocol):
    """What a router may compute from the inputs; everything is computed on demand.

    Attributes:
        texts: the inputs.
        hidden: each text's hidden states at a shallow layer, pooled (`bases.hidden.pooled`), `[n, in]`, fp32.
    """

    @property
    def texts(self) -> Sequence[str]: ...
    @property
    def hidden(self) -> torch.Tensor: ...

    def activity(self, directions: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Mean over its tokens and the layers of |v·x|/‖x‖, `[n, n_directions]`, fp32; x is the layer's input.

        Args:
            directions: layer → unit vectors `[n_directions, in]`.
        """
        ...

    def losses(self, tasks: Sequence[str]) -> torch.Tensor:
        """Mean loss (nats) of each text's tokens under the adapter that serves each task, `[n, n_tasks]`, fp32."""
        ...


@dataclass(frozen=True)
class Routed:
    """The decision for one input.

    Attributes:
        weights: task and weight of the best ones, in descending order; the weights sum to 1.
        confidence: calibrated probability of the first of them among all allowed tasks.
        familiarity: how similar the input is to the known tasks' samples.
        threshold: an input whose familiarity is below it is out of distribution.
        out_of_distribution: whether it belongs to no known task; the weights then show the closest ones.
        why: what the scopes of facts said, where they decided: the subject that the input names, or that it names none.
    """

    weights: tuple[tuple[str, float], ...]
    confidence: float
    familiarity: float
    threshold: float
    out_of_distribution: bool
    why: str = ""


class BaseRouter:
    """A router: raw scores of the tasks for an input. Calibration, top-k and the threshold are shared by all routers.

    Modules import torch only inside functions, so that names and options are available without it. `learn` and
    `unlearn` change what is known of one task, exactly and in any order; `solve` is called after the last of them.

    Attributes:
        purpose: one line for `--help`.
        reads: what `learn` gets for a task: `samples` (pooled hidden states of its replay samples, `[n, in]`),
            `factors` (layer → ΔW of the adapter that serves it), or "": nothing (None).
        calibrates: whether a temperature may be fitted to the scores; otherwise they are used as log-weights.
        input_matters: whether the scores depend on the input. The contract tests check it.
        Config: a frozen dataclass of options, each made by `adapterhub_cl.options.option`.
        tasks: in the order in which they were learned; the columns of `scores`.
    """

    purpose: ClassVar[str] = ""
    reads: ClassVar[str] = ""
    calibrates: ClassVar[bool] = True
    input_matters: ClassVar[bool] = True
    Config: ClassVar[type] = NoOptions

    def __init__(self, config: Any = None) -> None:
        self.config: Any = self.Config() if config is None else config
        self.tasks: list[str] = []

    @classmethod
    def trial_options(cls, tasks: Sequence[str]) -> Mapping[str, Any]:
        """Options to try the router out with these tasks; needed only where it does not work with its defaults."""
        return {}

    def learn(self, task: str, known: torch.Tensor | Mapping[str, Factors] | None) -> None:
        """Add a task; for a known task these are further samples."""
        raise NotImplementedError

    def unlearn(self, task: str, known: torch.Tensor | Mapping[str, Factors] | None) -> None:
        """Remove what `learn` was given; a task with nothing left is removed from `tasks`."""
        raise NotImplementedError

    def solve(self) -> None:
        """Compute what `scores` needs from everything learned."""

    def scores(self, seen: Seen) -> torch.Tensor:
        """Raw scores `[n, n_tasks]`, fp32; the task with the highest one wins."""
        raise NotImplementedError

    def familiarity(self, seen: Seen, scores: torch.Tensor) -> torch.Tensor:
        """How similar an input is to the known tasks' samples, `[n]`; below a threshold it is out of distribution."""
        return scores.amax(1)

    def state(self) -> dict[str, torch.Tensor]:
        """What was learned, as tensors to store; `restore` reads them."""
        return {}

    def restore(self, tasks: Sequence[str], state: Mapping[str, torch.Tensor]) -> None:
        """Restore the router that returned `state`, including `solve`."""
        self.tasks = list(tasks)


def build(name: str, options: Mapping[str, Any] | None = None) -> BaseRouter:
    """Create a router with its options (`OPTION` or `NAME.OPTION` → value).

    Raises:
        UnknownNameError: no such router or option.
        UsageError: an option has an invalid value.
    """
    found: type[BaseRouter] = ROOM.get(name)
    plain = ROOM.canonical(name)
    own = {key.removeprefix(f"{plain}."): value for key, value in (options or {}).items()}
    config: Any = from_mapping(found.Config, own, f"the options of {plain}", prefix=f"{plain}.")
    if not 0 <= getattr(config, "seed", 0) < 2**63:
        raise UsageError(f"{plain}.seed must be from 0 to 2^63 - 1", f"--set {plain}.seed=0")
    return found(config)
