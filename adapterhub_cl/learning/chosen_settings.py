"""The settings that `tune` chose for a task: `<hub>/tuned/NAME.json`, where later trainings begin. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapterhub_cl.data.formats import check_format
from adapterhub_cl.errors import IntegrityError, UsageError
from adapterhub_cl.registry import Registry, seals, storage_errors
from adapterhub_cl.registry.files import atomic_write_text
from adapterhub_cl.settings import TrainingSettings
from adapterhub_cl.types import Problem

FOLDER = "tuned"
# What an adapter that continues from another one takes from it, so that a choice for a fresh one cannot apply.
OF_THE_SHAPE = ("rank", "alpha", "target_modules", "layers")

# What was found for answers, and does not hold for preferences, whose losses need other rates.
OF_ANSWERS = ("learning_rate", "epochs")
FORMAT = "prompt_format"  # the one that is no training setting: how the task is asked


def place_of(registry: Registry, name: str) -> Path:
    return registry.path / FOLDER / f"{name}.json"


def refuse_folder(registry: Registry, name: str) -> None:
    """Raise where a folder stands in the place of what was found: it could neither be read, dropped nor replaced.

    Raises:
        IntegrityError: names it.
    """
    path = place_of(registry, name)
    if path.is_dir() and not path.is_symlink():
        raise IntegrityError(
            f"{path} is a folder, and what tune keeps for {name} belongs there",
            "look at what is in it, and remove or rename it",
        )


def read_choice(registry: Registry, name: str) -> dict[str, Any] | None:
    """What `tune` found for a name: `settings` (empty: the defaults stay), `trials` and how they were confirmed; None
    where nothing was tuned.

    Raises:
        IntegrityError: the file is not what was written.
    """
    refuse_folder(registry, name)
    path = place_of(registry, name)
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(row, dict) or seals.KEY not in row or seals.is_broken_json(row):
            raise ValueError("its SHA-256 is another")
        check_settings(row["settings"], str(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError, UsageError) as error:
        raise IntegrityError(
            f"{path} is not what was written: {error}", f"drop it: cl-adapter tune {name} --drop; or tune again"
        ) from error
    return row


def damaged_choices(registry: Registry) -> list[Problem]:
    """The files that cannot be read, for `verify`: trainings of these names are refused."""
    found = []
    for path in sorted((registry.path / FOLDER).glob("*.json")):
        try:
            read_choice(registry, path.stem)
        except IntegrityError as error:
            where = f"{FOLDER}/{path.name}"
            found.append(Problem(where, error.message.replace(str(path), "the file", 1), error.hint))
    return found


def write_choice(registry: Registry, name: str, row: Mapping[str, Any]) -> None:
    """Keep what was found; it replaces what was there.

    Raises:
        StorageError: the disk refused; what was there is untouched.
    """
    path = place_of(registry, name)
    with storage_errors(path):
        path.parent.mkdir(exist_ok=True)
        atomic_write_text(path, json.dumps({**row, seals.KEY: seals.of_json(row)}, indent=1) + "\n")


def settings_of(registry: Registry, name: str) -> dict[str, Any]:
    """The settings that `tune` chose for a name; empty where the defaults stay."""
    return dict((read_choice(registry, name) or {"settings": {}})["settings"])


def carry_choice(registry: Registry, name: str, settings: Any, source: str) -> str:
    """Keep what `tune` chose for a name in another hub, where nothing is kept for it here; the trials stay there.

    Args:
        settings: as they came: only those that a search can choose are taken, and all must be usable.
        source: where they came from, in words.

    Returns:
        a note that says so; empty where nothing was kept.

    Raises:
        StorageError: the disk refused.
    """
    known = (*OF_THE_SHAPE, *OF_ANSWERS, FORMAT)
    if not isinstance(settings, Mapping) or place_of(registry, name).exists():
        return ""
    taken = {key: settings[key] for key in known if key in settings}
    try:
        check_settings(taken, "the tuned settings")
    except UsageError:
        return ""
    if not taken:
        return ""
    row = {"name": name, "kept": f"tuned, {source}", "settings": taken, "from": source}
    write_choice(registry, name, {**row, "confirmed": {}, "trials": [], "searched": {}, "default_trial": -1})
    return (
        f"later trainings of {name} begin with what tune chose for it, {source}: {in_words(taken)} "
        f"(cl-adapter tune {name} --drop goes back to the defaults)"
    )


def drop_choice(registry: Registry, name: str) -> bool:
    """Remove what was found; False where there was nothing."""
    refuse_folder(registry, name)
    path = place_of(registry, name)
    with storage_errors(path):
        there = path.is_file()
        path.unlink(missing_ok=True)
    return there


def in_words(settings: Mapping[str, Any]) -> str:
    """`rank 8, epochs 3, learning rate 0.001`."""
    return ", ".join(
        f"{key.replace('_', ' ')} {value:.4g}" if isinstance(value, float) else f"{key.replace('_', ' ')} {value}"
        for key, value in settings.items()
    )


def usual_settings(registry: Registry, name: str, *, fresh: bool) -> dict[str, Any]:
    """The settings that trainings of this name begin with.

    Args:
        fresh: whether a new adapter is trained; one that continues from another keeps its shape and how its task is
            asked, and passes over its rows as often as usual, because each further pass costs what was known before.
    """
    found = read_choice(registry, name)
    chosen = dict(found["settings"]) if found else {}
    return {key: value for key, value in chosen.items() if fresh or key not in (*OF_THE_SHAPE, "epochs", FORMAT)}


def check_settings(settings: Mapping[str, Any], what: str) -> None:
    """Raise where settings that a search tried or chose cannot be used.

    Raises:
        UsageError: says which of `what` cannot.
    """
    TrainingSettings.from_mapping({key: value for key, value in settings.items() if key != FORMAT}, what)
    if FORMAT in settings:
        check_format(str(settings[FORMAT]))
