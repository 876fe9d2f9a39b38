"""Unfinished runs of a hub: which there are, what they need, and what is wrong with them."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub_cl.registry import files, seals
from adapterhub_cl.types import Problem

if TYPE_CHECKING:
    from adapterhub_cl.registry.checks import Place

COLLECT = "cl-adapter gc"
_RUN_GRACE_S = 60.0  # a run that is just starting has no run.json yet


def run_directories(runs: Path) -> Iterator[tuple[Path, dict[str, Any] | None]]:
    """Runs that no process is working on, with their `run.json`; None if it is missing or unreadable."""
    for path in sorted(runs.iterdir()) if runs.is_dir() else ():
        if path.name.startswith(files.TEMPORARY) or not path.is_dir() or path.is_symlink():
            continue
        try:
            about = json.loads((path / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            if time.time() - touched(path) > _RUN_GRACE_S:
                yield path, None
            continue
        about = about if isinstance(about, dict) else {}
        pid, host = about.get("pid"), about.get("host", socket.gethostname())
        if not (isinstance(pid, int) and host == socket.gethostname() and files.alive(pid)):
            yield path, about


def needed_by_runs(place: Place, dropped: Collection[Path] = ()) -> dict[str, str]:
    """Version → the unfinished run (in progress or resumable) that continues from it, trains on top of it or asks it as
    a teacher; a bare adapter name if the run will continue from whichever version is the latest by then.

    Args:
        dropped: runs to leave out.
    """
    found: dict[str, str] = {}
    for path in sorted(place.runs.iterdir()) if place.runs.is_dir() else ():
        if path in dropped or path.name.startswith(files.TEMPORARY) or path.is_symlink():
            continue
        with suppress(OSError, ValueError):
            about = json.loads((path / "run.json").read_text(encoding="utf-8"))
            if not isinstance(about, dict):
                continue
            teachers = about.get("refs") if about.get("from_hub") == str(place.hub.resolve()) else ()
            refs = [about.get("parent"), about.get("on_top_of"), *(teachers if isinstance(teachers, list) else ())]
            refs += [about.get("name")] if about.get("verb") == "update-online" else []
            found |= {ref: path.name for ref in refs if isinstance(ref, str) and ref}
    return found


def touched(path: Path) -> float:
    return max([path.stat().st_mtime, *(file.stat().st_mtime for file in files.walk_files(path)[0].values())])


def unfinished(place: Place) -> Iterator[Problem]:
    for path, about in run_directories(place.runs):
        if about is None:
            yield Problem(place.relative(path), "a run without run.json, which cannot be resumed", COLLECT)
        elif broken := _broken_in(path, about):
            fix = f"start the run again without --resume, and delete this one: {COLLECT} --older-than 0"
            for file in broken:
                yield Problem(place.relative(file), "changed: its SHA-256 differs from the recorded one", fix)
        else:
            fix = f"cl-adapter {_resume(about)}, or delete it: {COLLECT} --older-than 0"
            yield Problem(place.relative(path), f"unfinished run of {about.get('name', 'NAME')}", fix)


def resumable(runs: Path) -> list[str]:
    """The commands that go on with the unfinished runs that no process is working on, each once."""
    return list(dict.fromkeys(_resume(about) for _, about in run_directories(runs) if about))


def _resume(about: Mapping[str, Any]) -> str:
    verb, name = about.get("verb", "add-task"), about.get("name", "NAME")
    special = {"update-online": f"update {name} - --online", "distill": f"distill --as {name}"}
    return f"{special.get(verb, f'{verb} {name}')} --resume"


def _broken_in(run: Path, about: dict[str, Any]) -> list[Path]:
    """The files of a run whose content is not what was written."""
    broken = [run / "run.json"] if seals.is_broken_json(about) else []
    for file in sorted(run.rglob("*.safetensors")):
        if not file.name.startswith("."):  # still being written
            with suppress(FileNotFoundError):
                broken += [file] if file.is_symlink() or seals.is_broken(file) else []
    return broken
