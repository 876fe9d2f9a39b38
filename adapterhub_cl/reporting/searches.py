"""What `tune` tried, for the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from adapterhub_cl.learning.chosen_settings import FOLDER, in_words, read_choice
from adapterhub_cl.registry import Registry


@dataclass(frozen=True)
class TrialFacts:
    """One trial: its settings in words, its figures (None where it ended before the first epoch did), how it ended."""

    number: int
    settings: str
    accuracy: float | None
    loss: float | None
    seconds: float
    state: str


@dataclass(frozen=True)
class TunedFacts:
    """The search of one name.

    Attributes:
        kept: what was kept, in words.
        confirmed: how the best settings did against the defaults, in words; empty if no trial was better.
        trials: the defaults first.
    """

    name: str
    kept: str
    confirmed: str
    trials: tuple[TrialFacts, ...]


def all_searches(registry: Registry, attempt: Callable[..., TunedFacts | None]) -> tuple[TunedFacts, ...]:
    """The searches that the hub keeps, by name.

    Args:
        attempt: called with what is read, what to take where that fails, and how to read it.
    """
    folder = registry.path / FOLDER
    names = sorted(path.stem for path in folder.glob("*.json")) if folder.is_dir() else []
    found = (attempt(f"{FOLDER}/{name}.json", None, search_of, registry, name) for name in names)
    return tuple(one for one in found if one is not None)


def search_of(registry: Registry, name: str) -> TunedFacts | None:
    """What is known of a search.

    Raises:
        IntegrityError: its file is not what was written.
    """
    row = read_choice(registry, name)
    if row is None:
        return None
    check, said = row["confirmed"], ""
    if check:
        said = (
            f"{check['measure']} {float(check['best']):.4f} against {float(check['default']):.4f} of the defaults on "
            f"{int(check['rows'])} rows (lead {float(check['lead']):.4f} ± {float(check['error']):.4f})"
        )
    kept = in_words(row["settings"]) or str(row["kept"])
    return TunedFacts(name, kept, said, tuple(_trial(trial, row["default_trial"]) for trial in row["trials"]))


def _trial(row: Mapping[str, Any], default: int) -> TrialFacts:
    figures, number = row["figures"], int(row["number"])
    accuracy, loss = (None if figures.get(k) is None else float(figures[k]) for k in ("accuracy", "loss"))
    state = "defaults" if number == default else str(row["state"])
    return TrialFacts(number, in_words(row["settings"]), accuracy, loss, float(row["seconds"]), state)
