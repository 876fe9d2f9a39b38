"""Where the demo's hub is made: beside its place, which it takes when all is done."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path

import psutil

from adapterhub_cl.demo.steps import TASKS, fresh_hub
from adapterhub_cl.errors import UsageError
from adapterhub_cl.hub import AdapterHub
from adapterhub_cl.registry import HubFile, check_local, storage_errors

MADE = {**dict.fromkeys(TASKS, 1), "sum": 1, "all": 2}  # the adapters that the demo leaves, and their newest versions
HUB_HAS = {*("adapters", "aliases.json", "evaluations.jsonl", "hub.toml", "index", "routers", "runs", ".lock")}


@contextmanager
def made_beside(folder: Path) -> Iterator[AdapterHub]:
    """A new hub that takes the folder's place when all is done; until then, and if it is stopped, what is there stays.

    Raises:
        UsageError: the folder holds something that no demo made.
    """
    folder = check_local(folder).resolve()
    check_replaceable(folder)
    for left in folder.parent.glob(f".{escape(folder.name)}.making-*"):  # of a demo that was killed
        if (number := left.name.rpartition("-")[2]).isdigit() and not psutil.pid_exists(int(number)):
            shutil.rmtree(left, ignore_errors=True)
    making, old = (folder.with_name(f".{folder.name}.{what}-{os.getpid()}") for what in ("making", "old"))
    try:
        with storage_errors(folder):
            making.mkdir(parents=True)
        yield fresh_hub(making)
        check_replaceable(folder)  # again: minutes have passed
        with storage_errors(folder):
            if folder.exists():
                folder.rename(old)
            try:
                making.rename(folder)
            except OSError:
                if old.exists():
                    old.rename(folder)
                raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def check_replaceable(folder: Path) -> None:
    """Whether a demo may be made there: nothing is, or only what a demo makes.

    Raises:
        UsageError: something else is there.
    """
    elsewhere = "say where: cl-adapter demo FOLDER"
    if not folder.exists():
        return
    if folder == Path.cwd():
        raise UsageError("the demo takes the place of a whole folder, and this is the one you are in", elsewhere)
    if not folder.is_dir() or (any(folder.iterdir()) and not (folder / "hub.toml").is_file()):
        raise UsageError(f"{folder} already exists and is not a demo's hub", elsewhere)
    if not (folder / "hub.toml").is_file():
        return
    if HubFile.read(folder).defaults.get("demo") is not True:
        raise UsageError(f"{folder} is a hub of your own", elsewhere)
    own = [path for path in folder.iterdir() if path.name.split(".db")[0] not in HUB_HAS]
    adapters = [path for path in (folder / "adapters").glob("*") if path.name not in MADE]
    versions = [path for name, most in MADE.items() for path in (folder / "adapters" / name).glob(f"v[{most + 1}-9]*")]
    if changed := [path.relative_to(folder) for path in (*own, *adapters, *versions)]:
        raise UsageError(f"{folder} has {changed[0]}, which no demo made; nothing was replaced", elsewhere)
