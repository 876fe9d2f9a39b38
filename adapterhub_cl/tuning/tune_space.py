"""Which settings are searched, and in what range."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from adapterhub_cl.adapters.targets import usable_layers
from adapterhub_cl.bases.loading import LoadedBase
from adapterhub_cl.learning.chosen_settings import FORMAT
from adapterhub_cl.settings import TrainingSettings

RANKS = (4, 8, 16, 32, 64)
EPOCHS = (1, 2, 3, 4, 6, 8)
WIDEST = 4.0  # the learning rate is searched from a fourth of the default to four times it
ALL = "all-linear"


@dataclass(frozen=True)
class Space:
    """The ranges, without what the user fixed.

    Attributes:
        choices: setting → its values.
        rate: lowest and highest learning rate; None if it is fixed.
        default: the settings of the first trial, one value for each that is searched.
    """

    choices: Mapping[str, tuple[Any, ...]]
    rate: tuple[float, float] | None
    default: Mapping[str, Any]

    def draw(self, trial: Any) -> dict[str, Any]:
        """One trial's settings, drawn by Optuna."""
        found = {name: trial.suggest_categorical(name, list(values)) for name, values in self.choices.items()}
        if self.rate is not None:
            found["learning_rate"] = trial.suggest_float("learning_rate", *self.rate, log=True)
        return found

    def describe(self) -> dict[str, list[Any]]:
        """Setting → its values, or the ends of its range."""
        found: dict[str, list[Any]] = {name: list(values) for name, values in self.choices.items()}
        return found if self.rate is None else {**found, "learning_rate": [float(f"{x:.3g}") for x in self.rate]}


def space_of(
    base: LoadedBase, settings: TrainingSettings, fixed: Mapping[str, Any], formats: Sequence[str] = ()
) -> Space:
    """The ranges for a base.

    Args:
        settings: the defaults, with a number of epochs and a learning rate.
        fixed: what the user gave.
        formats: prompt formats, the default first.
    """
    width = base.model.config.get_text_config().hidden_size
    values: dict[str, tuple[Any, ...]] = {
        "rank": tuple(sorted({*(r for r in RANKS if r <= width), settings.rank})),
        "epochs": tuple(sorted({*EPOCHS, settings.passes})),
        "target_modules": tuple(dict.fromkeys((settings.target_modules, ALL, *_parts(base)))),
    }
    values[FORMAT] = tuple(dict.fromkeys(formats))
    choices = {name: found for name, found in values.items() if name not in fixed and len(found) > 1}
    rate = settings.learning_rate if "learning_rate" not in fixed else None
    usual = {**asdict(settings), FORMAT: next(iter(formats), "")}
    default = {name: usual[name] for name in choices} | ({"learning_rate": rate} if rate else {})
    return Space(choices, (rate / WIDEST, rate * WIDEST) if rate else None, default)


def _parts(base: LoadedBase) -> list[str]:
    """Attention alone and the rest alone, as names with commas between; a name that stands in both means neither."""
    inside: dict[bool, set[str]] = {True: set(), False: set()}
    for name in usable_layers(base):
        path, _, last = name.rpartition(".")
        inside["att" in path.lower()].add(last)
    alone = (inside[True] - inside[False], inside[False] - inside[True])
    return [",".join(sorted(names)) for names in alone if names]
