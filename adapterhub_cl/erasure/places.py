"""Where a hub stores data of a task outside its versions: runs, comparison hubs, logs, routers, leftovers."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from adapterhub_cl.adapters.vllm_folder import EXPORTS
from adapterhub_cl.erasure.versions import KnownVersion, reads_the_past, tries_versions
from adapterhub_cl.learning.chosen_settings import FOLDER as TUNED
from adapterhub_cl.rebasing.new_hub import FOLDER as REBASE
from adapterhub_cl.registry import Registry, files, tombstones
from adapterhub_cl.registry.samples import ROUTERS
from adapterhub_cl.traffic.lesson_book import FOLDER as LESSONS
from adapterhub_cl.training.runs import CHECKPOINT
from adapterhub_cl.training.runs import FILE as RUN_FILE

STREAMS, LOGS = "streams", "logs"
UPLOADS, JOBS = "server/files", "server/jobs"  # of fine-tuning over HTTP; see `adapterhub_cl/server`
_GRACE_S = 60.0  # a run that is just starting has no run.json yet


def run_folders(runs: Path) -> list[Path]:
    found = sorted(runs.iterdir()) if runs.is_dir() else []
    return [p for p in found if p.is_dir() and not p.is_symlink() and not p.name.startswith(files.TEMPORARY)]


def run_request(path: Path) -> dict[str, Any]:
    """What a run was asked to do; empty if that is unknown."""
    try:
        row = json.loads((path / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return row if isinstance(row, dict) else {}


def is_of(
    path: Path, task: str, known: Mapping[str, KnownVersion], found: Mapping[str, tuple[str, bool]], since: str | None
) -> bool:
    """Whether a run has data of the task: it trains the task, continues from a version that has, or reads its rows."""
    request = run_request(path)
    name, parent = str(request.get("name", "")), request.get("parent")
    if name == task or any(value in found for value in _strings(request)):
        return True
    names = {ref.partition("@")[0] for ref in found}  # for a distillation that names its teachers without versions
    if any("@v" not in str(ref) and str(ref).partition("@")[0] in names for ref in request.get("refs") or ()):
        return True
    mine = [one for one in known.values() if one.name == name]
    if any(one.task == task for one in mine) and request.get("verb") != "add-task":
        return True
    if parent is None and str(request.get("verb", "")).startswith("update") and any(one.ref in found for one in mine):
        return True
    strategy = str(request.get("strategy") or "")
    if since is None or str(request.get("created_at") or since) < since[:19]:
        return False
    if tries_versions(strategy) and ((starts := _starts(path)) is None or starts & found.keys()):
        return True
    return reads_the_past(strategy)


def _starts(path: Path) -> set[str] | None:
    """The versions that the adapter of an unfinished run started from, as its checkpoint says; None where none says."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path / CHECKPOINT, "numpy") as file:
            told = json.loads(file.metadata()["state"])["strategy"]
        return {ref for part in told.values() for ref in part.get("from", ())}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError):
        return None


def is_nobodys(path: Path) -> bool:
    """Whether a run cannot be resumed, and its task is unknown."""
    return not run_request(path) and time.time() - path.stat().st_mtime > _GRACE_S


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


def stream_hubs(hub: Path) -> list[Path]:
    """The hubs inside a hub in which strategies were compared."""
    folder = hub / STREAMS
    found = sorted(folder.glob("**/hub.toml")) if folder.is_dir() else []
    return [path.parent for path in found]


def hub_versions(hub: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Directory and manifest of each version in a hub inside a hub."""
    for path in sorted((hub / "adapters").glob("*/v*/manifest.json")):
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(manifest, dict):
            yield path.parent, manifest


def knows(hub: Path, task: str) -> bool:
    """Whether a hub inside a hub has anything of a task; read from its files, because its index may be in use."""
    try:
        state = json.loads((hub / "aliases.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        state = {}
    if task in state.get("tasks", ()):
        return True
    if any(run_request(path).get("name") == task for path in run_folders(hub / "runs")):
        return True
    return any(knows_of(manifest, task) for _, manifest in hub_versions(hub))


def knows_of(manifest: Mapping[str, Any], task: str) -> bool:
    """Whether a version's own manifest says that it learned a task, or rows of it."""
    return manifest.get("task") == task or any(task in (manifest.get(k) or ()) for k in ("takes_over", "learned_from"))


def others(registry: Registry, names: set[str], gone: set[str]) -> Iterator[str]:
    """Leftovers of dead processes, training logs and fine-tuning jobs of the task's adapters with the files that were
    uploaded for them, what was learned from their traffic, the rows that a rebase wrote down for them, the settings
    that were chosen on their data, the copies of the versions `gone` that a vLLM loads, and routers, which are fitted
    again."""
    hub, store = registry.path, registry.adapters_dir
    folders = [hub, registry.runs_dir, hub / tombstones.FOLDER, store]
    folders += [p for p in store.iterdir() if p.is_dir() and not p.is_symlink()] if store.is_dir() else []
    paths = [p for folder in folders for p in sorted(folder.glob(f"{files.TEMPORARY}*")) if files.is_leftover(p)]
    paths += [p for name in sorted(names) for within in (LOGS, LESSONS, REBASE) if (p := hub / within / name).exists()]
    paths += [p for name in sorted(names) if (p := hub / TUNED / f"{name}.json").exists()]
    paths += trained_over_http(hub, names)
    paths += sorted((hub / ROUTERS).iterdir()) if (hub / ROUTERS).is_dir() else []
    paths += sorted(p for p in (hub / EXPORTS).glob("*/*") if p.name.rpartition("-")[0] in gone)
    for path in paths:
        yield str(path) if not path.is_relative_to(hub) else path.relative_to(hub).as_posix()


def trained_over_http(hub: Path, names: set[str]) -> list[Path]:
    """The files of fine-tuning jobs for these adapters, and what was uploaded for them."""
    found: set[Path] = set()
    for path in sorted((hub / JOBS).glob("ftjob-*.json")):
        try:
            job = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        if not isinstance(job, dict) or job.get("name") not in names:
            continue
        found.update((hub / JOBS).glob(f"{path.stem}.*"))
        for file_id in (job.get("training_file"), job.get("validation_file")):
            if isinstance(file_id, str) and re.fullmatch(r"file-[0-9a-f]+", file_id):
                found.update((hub / UPLOADS).glob(f"{file_id}.*"))
    return sorted(found)


def task_names(registry: Registry) -> set[str]:
    """All tasks of the hub and of the hubs inside it."""
    found = {task.name for task in registry.tasks()} | {r.task for r in registry.adapters(all_versions=True)}
    for hub in stream_hubs(registry.path):
        found |= {str(manifest.get("task") or "") for _, manifest in hub_versions(hub)}
    return found - {""}
