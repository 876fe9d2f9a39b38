"""Kills a verb at the Nth write that it makes below a folder, or lets the disk be full from the Nth write on.

The verb runs in a forked child, in which every function of Python that writes is counted: opening to write, writing,
syncing, renaming, linking, making and removing, and each commit of the index, just before it and just after it.
"""

from __future__ import annotations

import builtins
import errno
import io
import json
import os
import shutil
import sqlite3
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Act = Callable[[Path], str]  # does something to a hub; what it said in the end
KILLED = 137


@dataclass(frozen=True)
class Outcome:
    """How a child ended.

    Attributes:
        code: 0 done, 1 an error that is told, `KILLED`, 2 anything else.
        said: the error's message, or what the verb returned.
        writes: how many writes it made.
    """

    code: int
    said: str
    writes: int


@dataclass
class _Injector:
    root: Path
    at: int
    full: bool
    count: int = 0

    def hit(self, what: str, path: Any, *, space: bool = True, dir_fd: int | None = None) -> None:
        """One write; the process ends here if it is its turn, or the disk is full."""
        try:
            place = Path(os.fsdecode(path)) if not isinstance(path, int) else _open_at(path)
        except OSError:
            return
        place = (Path.cwd() if dir_fd is None else _open_at(dir_fd)) / place
        if not place.is_relative_to(self.root):
            return
        self.count += 1
        if not self.full and self.count == self.at:
            os._exit(KILLED)
        if self.full and self.count >= self.at and space:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(place))


def _open_at(descriptor: int) -> Path:
    return Path(f"/proc/self/fd/{descriptor}").readlink()


def _patch(one: _Injector) -> None:
    def wrap(name: str, *, to: int = 0, space: bool = True, writes: Callable[..., bool] = lambda *_: True) -> None:
        real = getattr(os, name)

        def call(*given: Any, **named: Any) -> Any:
            if writes(*given):
                fd = named.get("dir_fd", named.get("dst_dir_fd"))
                one.hit(name, given[to], space=space, dir_fd=fd)
            return real(*given, **named)

        setattr(os, name, call)
        for supported in (os.supports_dir_fd, os.supports_follow_symlinks):
            if real in supported:
                supported.add(call)

    changing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
    wrap("open", writes=lambda _path, flags, *_: bool(flags & changing))
    for name in ("write", "fsync", "mkdir"):
        wrap(name)
    for name in ("rename", "replace", "link"):
        wrap(name, to=1)
    for name in ("unlink", "remove", "rmdir"):
        wrap(name, space=False)
    wrap("sendfile")
    real_open = io.open

    def opened(file: Any, mode: str = "r", *given: Any, **named: Any) -> Any:
        if isinstance(mode, str) and set(mode) & set("wax+"):
            one.hit("open", file)
        return real_open(file, mode, *given, **named)

    builtins.open = io.open = opened  # type: ignore[assignment]
    from sqlalchemy.engine import RootTransaction

    commit = RootTransaction.commit

    def committed(self: Any) -> None:
        place = one.root / "index.db"
        try:
            one.hit("commit", place)
        except OSError as error:
            raise sqlite3.OperationalError("database or disk is full") from error
        commit(self)
        try:
            one.hit("committed", place)
        except OSError as error:
            raise sqlite3.OperationalError("disk I/O error") from error

    RootTransaction.commit = committed  # type: ignore[method-assign]


def inject(act: Act, hub: Path, at: int, *, full: bool, root: Path | None = None) -> Outcome:
    """Run `act` on a hub in a child, and stop it at its write number `at`, or fill the disk from that one on."""
    from adapterhub_cl.errors import AdapterHubError

    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover (another process)
        os.close(reading)
        one = _Injector((root or hub).absolute(), at, full)
        write = os.write
        code, said = 2, ""
        try:
            sys.stdout = sys.stderr = io.StringIO()
            # A new thread of a forked process cannot set up torch's pool where the parent had used it.
            os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"
            _patch(one)
            code, said = 0, act(hub)
        except AdapterHubError as error:
            code, said = 1, error.message
        except BaseException:  # whatever it is, the parent is to see it
            said = traceback.format_exc()
        write(writing, json.dumps([code, said, one.count]).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status) == KILLED:
        return Outcome(KILLED, "", at)
    return Outcome(*json.loads(told))


def in_child(act: Callable[[], object]) -> int:
    """Run `act` in a process of its own, which it may end; its exit code, 1 after an exception."""
    child = os.fork()
    if child == 0:  # pragma: no cover (another process)
        code = 1  # an exception must not go on into the test runner: there would be two of them
        try:
            os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"  # as in `inject`
            act()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@dataclass(frozen=True)
class Case:
    """A verb to be stopped.

    Attributes:
        act: the verb; called again it must bring about the same.
        begins: makes the hub that it starts from, in a folder.
        state: what of a hub is to be right.
        repeats: whether a second call of the verb does nothing more; else it is called again only where it had not
            been done.
        steps: whether a state in between may be seen before the verb is called again.
        outside: a folder beside the hub into which it writes.
    """

    act: Act
    begins: Callable[[Path], None]
    state: Callable[[Path], Mapping[str, Any]]
    repeats: bool = True
    steps: bool = False
    outside: str = ""


def check(case: Case, folder: Path, *, every: int = 1, first: int = 1) -> int:
    """Stop a verb at every place where it writes, by a kill and by a full disk; how many stops there were.

    Raises:
        AssertionError: a message said what was not so, something was lost, or calling the verb again did not mend it.
    """
    from adapterhub_cl.registry import Registry

    template = folder / "template"
    template.mkdir()
    case.begins(template / "hub")
    before = case.state(template / "hub")
    whole = _fresh(template, folder / "whole")
    done = inject(case.act, whole / "hub", 10**9, full=False, root=whole)
    assert done.code == 0, done.said
    after = case.state(whole / "hub")
    stops = 0
    for full in (False, True):
        for at in range(first, done.writes + 1, every):
            place = _fresh(template, folder / "work")
            hub = place / "hub"
            what = f"{'full disk from' if full else 'killed at'} write {at} of {done.writes}"
            said = inject(case.act, hub, at, full=full, root=place)
            stops += 1
            assert said.code != 2, f"{what}: {said.said}"
            if said.code == KILLED or said.code == 1:
                now = case.state(hub) if (hub / "hub.toml").is_file() else before
                if "nothing was changed" in said.said:
                    assert now == before, f"{what}: {said.said}"
                if not case.steps:
                    assert now in (before, after), f"{what}: {said.said}\n{now}"
            elif said.code == 0:
                assert case.state(hub) == after, f"{what}: it was said to be done"
            if case.repeats or not (hub / "hub.toml").is_file() or case.state(hub) == before:
                again = inject(case.act, hub, 10**9, full=False, root=place)
                assert again.code == 0, f"{what}, called again: {again.said}"
            assert case.state(hub) == after, f"{what}, called again"
            registry = Registry.open(hub)
            left = registry.verify()
            assert {problem.fix for problem in left} <= {"cl-adapter verify --repair"}, f"{what}: {left}"
            registry.repair()
            assert registry.verify() == [], what
            assert case.state(hub) == after, f"{what}, repaired"
            assert registry.rebuild() >= 0
            assert case.state(hub) == after, f"{what}, rebuilt"
    return stops


def _fresh(template: Path, place: Path) -> Path:
    if place.exists():
        shutil.rmtree(place)
    shutil.copytree(template, place)
    return place


def index_of(hub: Path) -> Iterator[tuple[str, Any]]:
    """What the index and the version folders of a hub say, without times."""
    from adapterhub_cl.registry import Registry

    registry = Registry.open(hub)
    yield "aliases", registry.aliases()
    yield "serving", registry.serving()
    yield "tasks", {task.name: list(task.labels) for task in registry.tasks()}
    yield "defaults", dict(registry.hub_file.defaults)
    yield "scores", sorted((s.ref, s.evaluation.task, s.evaluation.value) for s in registry.evaluations())
    for record in registry.adapters(all_versions=True):
        registry.check_files(record)
        kept = record.path / "replay.jsonl"
        yield record.ref, [record.status, record.kind, kept.read_text() if kept.is_file() else ""]


def state_of(hub: Path) -> dict[str, Any]:
    return dict(index_of(hub))
