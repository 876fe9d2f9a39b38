"""Where each strategy starts from."""

from __future__ import annotations

from pathlib import Path

from adapterhub_cl.strategies import DEFAULT, ROOM, BaseStrategy, Past, isolated, sequential
from adapterhub_cl.types import AdapterRecord


def record(name: str) -> AdapterRecord:
    return AdapterRecord(name, 1, "trained", name, 4, 100, "2026-01-01", "active", Path(name))


def test_the_default_is_known() -> None:
    assert DEFAULT in ROOM.names()


def test_isolated_starts_afresh_and_does_nothing_else() -> None:
    assert isolated.Strategy().starts_from(Past([record("a"), record("b")])) is None
    hooks = ("begin", "penalty", "before_step", "after_step", "end", "state", "restore")
    assert all(getattr(isolated.Strategy, hook) is getattr(BaseStrategy, hook) for hook in hooks)


def test_sequential_goes_on_from_the_newest() -> None:
    assert sequential.Strategy().starts_from(Past()) is None
    newest = sequential.Strategy().starts_from(Past([record("a"), record("b")]))
    assert newest is not None
    assert newest.ref == "b@v1"
