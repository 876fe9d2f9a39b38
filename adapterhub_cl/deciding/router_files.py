"""Fitted routers and the pooled hidden states they learned from, in `<hub>/routers/`.

`embeddings/<key>.safetensors` has the hidden states of one task's samples; the key covers the base, the layer, how
the texts were read, and their content. `<router>-<key>/` has `router.json` (task → content, and the decisions for its
held-out samples; the state's SHA-256) and `state.safetensors`. All of it can be recomputed, so nothing here is ever an
error: a file that is damaged, foreign or from a newer version is ignored, and if the disk cannot be written the router
stays in memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from math import inf
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from adapterhub_cl.deciding.calibrated import Calibrated, See
from adapterhub_cl.errors import StorageError
from adapterhub_cl.merging.factors import Factors
from adapterhub_cl.registry import files
from adapterhub_cl.routing import ROOM, build

FORMAT = 2
EMBEDDINGS = "embeddings"


@dataclass(frozen=True)
class KnownTask:
    """What is available of a task.

    Attributes:
        content: hash of the samples' content; for a router that reads anything else, of the adapter's too.
        texts: its samples, each in one or more forms (the bare text, the whole prompt), the same number for all.
        factors: reads layer → ΔW of the adapter that serves it.
    """

    content: str
    texts: Sequence[Sequence[str]] = ()
    factors: Callable[[], Mapping[str, Factors]] | None = None


@dataclass(frozen=True)
class Source:
    """Where hidden states come from.

    Attributes:
        folder: `<hub>/routers`; created when something is stored.
        about: what they depend on besides the texts: fingerprint of the base, quantisation, layer, length, text mode.
        embed: texts → `[n, in]`.
        storing: a lock to hold while something of these tasks (task → content) is stored; False: the tasks are no
            longer current (forgotten in the meantime), and nothing is stored.
    """

    folder: Path
    about: Mapping[str, str | int]
    embed: Callable[[list[str]], torch.Tensor]
    storing: Callable[[Mapping[str, str]], AbstractContextManager[bool]] = lambda _: nullcontext(True)

    @property
    def linked(self) -> bool:
        """Whether a link would redirect what is stored to another place."""
        return any(path.is_symlink() for path in (self.folder, self.folder / EMBEDDINGS))


@dataclass
class OpenedRouter:
    """A router that is ready for use.

    Attributes:
        calibrated: the router.
        how: `loaded` (nothing had changed), `refreshed` (for the tasks in `changed`), or `fitted` (from scratch).
        changed: tasks that were added or removed, or whose samples changed.
        embedded: number of texts whose hidden states were computed.
        note: why it could not be stored; empty if it was, or did not need to be.
        contents: task → content, for the tasks it knows.
    """

    calibrated: Calibrated
    how: str = "fitted"
    changed: list[str] = field(default_factory=list)
    embedded: int = 0
    note: str = ""
    contents: dict[str, str] = field(default_factory=dict)


def open_router(
    source: Source,
    name: str,
    options: Mapping[str, Any],
    known: Mapping[str, KnownTask],
    *,
    see: See | None = None,
    holdout: float = 0.2,
    false_fallbacks: float = 0.005,
    seed: int = 0,
    before: OpenedRouter | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> OpenedRouter:
    """A router that knows these tasks: loaded, updated, or fitted.

    Args:
        before: the same router as opened earlier, to be updated in place of the stored one.
        tell: called with a line before the router is fitted from scratch, which takes some time.

    Raises:
        UnknownNameError, UsageError: no such router, or an invalid option.
        AdapterError, BaseModelError: a task cannot be learned (see `Calibrated.add_task`).
    """

    def blank() -> Calibrated:
        router = build(name, options)
        return Calibrated(router, holdout=holdout, false_fallbacks=false_fallbacks, seed=seed, see=see)

    opened = OpenedRouter(blank())
    router = opened.calibrated.router
    config: dict[str, Any] = {"router": ROOM.canonical(name), "options": asdict(router.config), **source.about}
    config |= {"holdout": holdout, "false_fallbacks": false_fallbacks, "seed": seed, "see": see is not None}
    # The random features come from torch, which may draw others in another version.
    key = _key({**config, "torch": torch.__version__.partition("+")[0], "format": FORMAT})
    place = source.folder / f"{config['router']}-{key[:16]}"
    cache = Cache(source, router.reads != "samples", opened)

    stored = _read(place, opened.calibrated, cache) if before is None else dict(before.contents)
    if before is not None:
        opened.calibrated = before.calibrated
    opened.contents = {task: known[task].content for task in known}
    if stored and stored == opened.contents:
        opened.how = "loaded"
        return opened
    changed = [
        task for task in {**(stored or {}), **opened.contents} if (stored or {}).get(task) != opened.contents.get(task)
    ]
    opened.changed = sorted(changed)
    try:
        if not stored:
            raise LookupError("nothing is stored")
        _step(opened, stored, known, cache)
        opened.how = "refreshed"
    except Exception:
        # Nothing usable is stored, or its training data cannot be read any more: start from scratch.
        opened.calibrated, opened.how = blank(), "fitted"
        if router.reads == "samples":
            count = sum(len(have.texts) for have in known.values())
            on = f"{count} sample{'' if count == 1 else 's'} of {len(known)} task{'' if len(known) == 1 else 's'}"
            tell(f"fitting the router {config['router']} on {on}; it is stored for next time")
        _step(opened, {}, known, cache)
    try:
        with files.storage_errors(source.folder):
            _store(place, opened, config, cache)
    except (OSError, StorageError) as error:
        opened.note = f"the fitted router was not stored: {getattr(error, 'message', error)}"
    return opened


def _step(opened: OpenedRouter, stored: Mapping[str, str], known: Mapping[str, KnownTask], cache: Cache) -> None:
    """Remove what is gone or has changed since `stored`, add what is new, fit."""
    router = opened.calibrated
    for task, content in stored.items():
        if task not in known or known[task].content != content:
            router.remove_task(task)
    for task, have in known.items():
        if stored.get(task) != have.content:
            factors = have.factors() if have.factors and router.router.reads == "factors" else None
            router.add_task(task, cache.get(task, have), factors)
    router.fit()


class Cache:
    """Hidden states of tasks' samples, in memory and on disk."""

    def __init__(self, source: Source, unread: bool, opened: OpenedRouter) -> None:
        self.source, self.opened = source, opened
        self.unread = unread  # the router reads no hidden states: samples are only counted
        self.counts: dict[str, int] = {}
        self._rows: dict[str, torch.Tensor] = {}

    def file(self, content: str) -> Path:
        """The file of a content's hidden states."""
        return self.source.folder / EMBEDDINGS / f"{_key({**self.source.about, 'content': content})[:32]}.safetensors"

    def rows(self, task: str, content: str) -> torch.Tensor | None:
        """The stored hidden states of a content, `[n, forms, in]`; None if there are none that can be read."""
        if self.unread:
            return torch.zeros(self.counts.get(task, 0), 1, 1)
        if content not in self._rows:
            with suppress(Exception):  # missing, truncated or foreign: they are recomputed
                data = self.file(content).read_bytes()
                rows, about = load(data)["hidden"], _metadata(data)
                whole = rows.dim() == 3 and about.get("content") == content and about.get("sha256") == _digest(rows)
                if whole and bool(torch.isfinite(rows).all()):
                    self._rows[content] = rows.float()
        return self._rows.get(content)

    def get(self, task: str, known: KnownTask) -> torch.Tensor:
        """A task's hidden states, computed and stored if they are not known."""
        if self.unread:
            self.counts[task] = len(known.texts)
        found = self.rows(task, known.content)
        if found is None or len(found) != len(known.texts):
            texts = [form for sample in known.texts for form in sample]
            if not texts:
                return torch.empty(0, 1, 1)
            self.opened.embedded += len(texts)
            # Rounded to 16 bits before learning: what is learned must equal what is read back and removed later.
            rows = self.source.embed(texts).half()
            half = rows.reshape(len(known.texts), -1, rows.shape[1])
            found = self._rows[known.content] = half.float()
            try:
                self._keep(task, known.content, half)
            except (OSError, StorageError) as error:
                self.opened.note = f"hidden states were not stored: {getattr(error, 'message', error)}"
        return found

    def _keep(self, task: str, content: str, rows: torch.Tensor) -> None:
        """Store hidden states, if the task still exists."""
        if not bool(torch.isfinite(rows).all()) or self.source.linked:
            return
        path = self.file(content)
        with self.source.storing({task: content}) as current, files.storage_errors(path.parent):
            if current:
                path.parent.mkdir(parents=True, exist_ok=True)
                about = {"content": content, "sha256": _digest(rows)}
                files.atomic_write_bytes(path, save({"hidden": rows.contiguous()}, about))


class _Stored(Mapping[str, torch.Tensor]):
    """task → samples, read on demand."""

    def __init__(self, cache: Cache, contents: Mapping[str, str]) -> None:
        self.cache, self.contents = cache, contents

    def __getitem__(self, task: str) -> torch.Tensor:
        found = self.cache.rows(task, self.contents[task])
        if found is None:
            raise KeyError(task)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self.contents)

    def __len__(self) -> int:
        return len(self.contents)


def _read(place: Path, calibrated: Calibrated, cache: Cache) -> dict[str, str] | None:
    """Load a router from its folder; task → content, or None if there is nothing usable."""
    with suppress(Exception):  # whatever is wrong with it, the router is fitted again
        about = json.loads((place / "router.json").read_text("utf-8"))
        data = (place / "state.safetensors").read_bytes()
        if about["format"] != FORMAT or about["sha256"] != _seal(data, about["order"], about["tasks"]):
            return None
        contents = {str(task): str(entry["content"]) for task, entry in about["tasks"].items()}
        cache.counts = {task: int(entry["samples"]) for task, entry in about["tasks"].items()}
        calibrated.restore(list(about["order"]), load(data), _Stored(cache, contents))
        calibrated.confusion = {task: dict(entry["held_out"]) for task, entry in about["tasks"].items()}
        known = bool(calibrated.thresholds) and all(one == one for one in calibrated.thresholds)  # no NaN
        sound = 0 < calibrated.temperature < inf and known
        return contents if sound and sorted(calibrated.router.tasks) == sorted(contents) else None
    return None


def _store(place: Path, opened: OpenedRouter, config: Mapping[str, Any], cache: Cache) -> None:
    """Store a router, if all its tasks are still current."""
    source = cache.source
    if source.linked or place.is_symlink():
        opened.note = f"the fitted router was not stored: {source.folder} is, or contains, a link"
        return
    with source.storing(opened.contents) as current:
        if current:
            _write(place, opened.calibrated, config, opened.contents, cache)
            _sweep(source.folder)


def _write(
    place: Path, calibrated: Calibrated, config: Mapping[str, Any], contents: Mapping[str, str], cache: Cache
) -> None:
    place.mkdir(parents=True, exist_ok=True)
    data = save({key: value.contiguous() for key, value in calibrated.state().items()})
    tasks = {
        task: {
            "content": content,
            "samples": calibrated.samples_of(task),
            "embeddings": cache.file(content).name,
            "held_out": calibrated.confusion.get(task, {}),
        }
        for task, content in contents.items()
    }
    about = {**config, "format": FORMAT, "tasks": tasks, "order": calibrated.router.tasks}
    about |= {"sha256": _seal(data, about["order"], tasks), "written_at": files.now()}
    # Two files: a crash, or another writer, between them leaves a wrong checksum, and the router is fitted again.
    files.atomic_write_bytes(place / "state.safetensors", data)
    files.atomic_write_text(place / "router.json", json.dumps(about, indent=1, ensure_ascii=False, default=str) + "\n")


def _sweep(folder: Path) -> None:
    """Remove hidden states that no stored router refers to."""
    used = {file for path in folder.glob("*/router.json") for file in _refers(path)}
    for path in (folder / EMBEDDINGS).glob("*.safetensors"):
        if path.name not in used and re.fullmatch(r"[0-9a-f]{32}", path.stem):
            path.unlink(missing_ok=True)


def _refers(path: Path) -> list[str]:
    """Files of hidden states that a router.json lists; none if it cannot be read."""
    with suppress(Exception):
        tasks = json.loads(path.read_text("utf-8"))["tasks"]
        return [str(entry["embeddings"]) for entry in tasks.values()]
    return []


def _seal(state: bytes, order: Sequence[str], tasks: Mapping[str, Any]) -> str:
    """SHA-256 over everything that is read of a stored router."""
    return sha256(state + json.dumps([list(order), dict(tasks)], sort_keys=True).encode()).hexdigest()


def _digest(rows: torch.Tensor) -> str:
    """SHA-256 of hidden states and their shape."""
    plain = rows.contiguous()
    return sha256(f"{tuple(plain.shape)} {plain.dtype} ".encode() + plain.numpy().tobytes()).hexdigest()


def _metadata(data: bytes) -> dict[str, str]:
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return dict(header.get("__metadata__", {}))


def _key(about: Mapping[str, Any]) -> str:
    return sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()
