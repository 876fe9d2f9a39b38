"""A search's study in SQLite, `study.db` in its run's folder, and what is said where the file cannot be used."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub_cl.errors import AdapterHubError, IntegrityError, StorageError, first_line
from adapterhub_cl.learning.chosen_settings import check_settings
from adapterhub_cl.registry.quoting import quoted
from adapterhub_cl.training.runs import Run

if TYPE_CHECKING:
    import optuna

STUDY, FILE = "tune", "study.db"
_REFUSED = {
    sqlite3.SQLITE_FULL: "no space left on",
    sqlite3.SQLITE_IOERR: "no space left on, or an error of the disk at",
    sqlite3.SQLITE_READONLY: "no permission to write",
    sqlite3.SQLITE_CANTOPEN: "no permission to open",
    sqlite3.SQLITE_PERM: "no permission to open",
    sqlite3.SQLITE_BUSY: "another process uses",
}


@contextmanager
def opened_study(run: Run, name: str, seed: int) -> Iterator[optuna.Study]:
    """The study of a search, made where it is missing; it survives a kill at any moment.

    Args:
        name: of the task, for messages.
        seed: of the sampler, together with the number of trials that there are.

    Raises:
        StorageError: the disk is full, or the file cannot be written.
        IntegrityError: the file is damaged.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if run.path.is_symlink() or (run.path / FILE).is_symlink():
        raise IntegrityError(
            f"{run.path / FILE} is, or lies behind, a link, which no search makes",
            f"remove the link, then search anew: cl-adapter tune {name} DATA",
        )
    path, storage = (run.path / FILE).resolve(), None
    try:
        try:
            storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
            study = optuna.create_study(
                storage=storage, study_name=STUDY, direction="maximize", load_if_exists=True,
                pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=0),
            )  # fmt: skip
            count = len(study.trials)
            for trial in study.get_trials(deepcopy=False):
                _check(trial.user_attrs)
        except Exception as error:  # whatever Optuna makes of rows that it did not write
            raise _told(error, path, name) or _damaged(error, path, name) from error
        study.sampler = optuna.samplers.TPESampler(seed=(seed + 7919 * count) % 2**32, n_startup_trials=6)
        try:
            yield study
        except AdapterHubError:
            raise
        except Exception as error:
            told = _told(error, path, name)
            if told is None:
                raise
            raise told from error
    finally:
        if storage is not None:
            storage.remove_session()
            storage.engine.dispose()


def _check(about: Mapping[str, Any]) -> None:
    """Raise where what was kept of a trial that has ended cannot be what a search wrote: Optuna does not look at it."""
    if not about.get("ended"):
        return
    figures = about["figures"]
    numbers = [*figures.values(), about["seconds"], about["epochs_run"]]
    if not all(isinstance(value, int | float) for value in numbers):
        raise ValueError("the figures of a trial are no numbers")
    if not 0 <= figures.get("accuracy", 0.0) <= 1 or not isinstance(about["reason"], str):
        raise ValueError("the figures of a trial cannot be")
    check_settings(about["settings"], "a trial")


def _told(error: BaseException, path: Path, name: str) -> AdapterHubError | None:
    """What an error of SQLite means, which SQLAlchemy and Optuna each wrap; None for any other error."""
    inner: BaseException | None = error
    while inner is not None and not isinstance(inner, sqlite3.Error):
        inner = inner.__cause__ or inner.__context__
    if inner is None:
        return None
    words = _REFUSED.get(getattr(inner, "sqlite_errorcode", 0) & 0xFF)
    if words is None:
        return _damaged(inner, path, name)
    again = f"cl-adapter tune {name} --resume goes on"
    return StorageError(f"{words} {path}: {first_line(inner)}", f"make room, or check its owner and mode; then {again}")


def _damaged(error: BaseException, path: Path, name: str) -> IntegrityError:
    anew = f"search anew: cl-adapter tune {name} DATA; what was tried is lost: rm -r {quoted(str(path.parent))}"
    return IntegrityError(f"{path} is damaged: {first_line(error) or type(error).__name__}", anew)
