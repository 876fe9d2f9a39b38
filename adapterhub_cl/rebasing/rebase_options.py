"""The options of `rebase`. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from adapterhub_cl.bases.sources import QUANTIZATIONS
from adapterhub_cl.errors import UsageError
from adapterhub_cl.options import option

FEWEST = 4  # rows to learn a task from
PORTED, RESIDUAL = "ported", "residual"
# How a version is used on the new base where nothing is trained.
HOW = {PORTED: "as it is", RESIDUAL: "with the difference of the bases in it"}


@dataclass(frozen=True, kw_only=True)
class RebaseOptions:
    """The options of `rebase`."""

    to: str = option("", "the folder of the hub on the new base: new, empty, or begun by an earlier rebase")
    tasks: Sequence[str] = option(
        tuple, "only these tasks: a,b,c; default: every task that an adapter answers for",
        parse="adapterhub_cl.rebasing.rebase_options:read_tasks",
    )  # fmt: skip
    min_retention: float = option(
        0.9, "the share of its old score that a task must keep, 0 to 1; chance is allowed for as the gate does",
        check="adapterhub_cl.rebasing.rebase_options:check_share",
    )  # fmt: skip
    budget: int | None = option(
        None, "the most rows that each task is learned from, evenly over the labels of a choice task; facts and raw "
        "text are learned whole; default: all rows",
        check="adapterhub_cl.rebasing.rebase_options:check_budget",
    )  # fmt: skip
    pseudo_samples: int = option(
        0, "where a task's data are gone: rows that the old version writes and answers itself, beside the samples that "
        "are left, or alone where none are; only from bases that write",
        check="adapterhub_cl.rebasing.rebase_options:check_pseudo_samples",
    )  # fmt: skip
    soft_targets: float = option(
        0.0, "weight of the probability that the old version gives to each label, learned beside the right label; for "
        "choice tasks, also where the tokenizers differ; 0 learns the right labels alone",
        check="adapterhub_cl.rebasing.rebase_options:check_soft_targets",
    )  # fmt: skip
    port: bool = option(
        False, "first try each version as it is on the new base, and train it on from there only if it keeps too "
        "little; for a base that was fine-tuned or trained on from this hub's",
    )  # fmt: skip
    port_residual: bool = option(
        False, "try each version with the difference of the two bases put into it, as far as rank 64 holds it, after "
        "--port where that is given too; for a base with the same layers",
    )  # fmt: skip
    quantization: str = option(
        "",
        "how the new base is stored in memory: nf4, fp4, int8 or none; default: as this hub's",
        choices=QUANTIZATIONS,
    )
    again: bool = option(False, "move those tasks once more that were rejected, or have a newer version in the old hub")


def ways(options: RebaseOptions) -> list[str]:
    """How versions are to be tried without training, in this order."""
    asked = {PORTED: options.port, RESIDUAL: options.port_residual}
    return [way for way, wanted in asked.items() if wanted]


def read_tasks(value: Any) -> tuple[str, ...]:
    """`a,b,c`, or a list of names.

    Raises:
        UsageError: no name is among them.
    """
    parts = value.split(",") if isinstance(value, str) else [str(one) for one in value]
    found = tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))
    if not found:
        raise UsageError("--tasks names no task", "--tasks news,reviews; or leave it out for all of them")
    return found


def check_share(value: float) -> None:
    """Raise where a retention is out of range.

    Raises:
        UsageError: it is not between 0 and 1.
    """
    if not 0 <= value <= 1:
        raise UsageError(
            f"--min-retention must be between 0 and 1, not {value}", "0.9 lets a task lose a tenth of its score"
        )


def check_budget(rows: int) -> None:
    """Raise where a budget is too small for anything to be learned.

    Raises:
        UsageError: it is below `FEWEST` rows.
    """
    if rows < FEWEST:
        raise UsageError(f"--budget must be at least {FEWEST} rows, not {rows}", "--budget 500, or leave it out")


def check_pseudo_samples(rows: int) -> None:
    """Raise where a number of rows is out of range.

    Raises:
        UsageError: it is negative.
    """
    if rows < 0:
        raise UsageError(f"--pseudo-samples must be at least 0, not {rows}", "--pseudo-samples 200, or leave it out")


def check_soft_targets(weight: float) -> None:
    """Raise where a weight is out of range.

    Raises:
        UsageError: it is not between 0 and 100.
    """
    if not 0 <= weight <= 100:
        raise UsageError(
            f"--soft-targets must be between 0 and 100, not {weight}", "1 weighs them like the right label"
        )
