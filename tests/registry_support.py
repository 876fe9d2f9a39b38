"""Hubs in a temporary directory, and a quick way to publish into them."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from adapterhub_cl.registry import Registry, migrations
from adapterhub_cl.registry.index import Index
from adapterhub_cl.types import AdapterRecord, BaseInfo, Evaluation, Task

BASE = BaseInfo("tiny", "f" * 64, quantization="none", architecture="LlamaForCausalLM", parameters=1234)
Publish = Callable[..., AdapterRecord]


@pytest.fixture
def base() -> BaseInfo:
    return BASE


@pytest.fixture
def hub(tmp_path: Path) -> Registry:
    return Registry.create(tmp_path / "hub", BASE)


def publish_into(
    registry: Registry,
    name: str = "news",
    *,
    task: str | None = "news",
    status: str = "active",
    score: float | None = None,
    content: bytes = b"weights" * 100,
    takes_over: Sequence[str] = (),
    **options: object,
) -> AdapterRecord:
    with registry.new_draft(name) as draft:
        (draft.path / "adapter_model.safetensors").write_bytes(content)
        (draft.path / "extra").mkdir()
        (draft.path / "extra" / "training.json").write_text("{}")
        return registry.publish(
            draft,
            {"kind": "trained", "rank": 8, "status": status, "note": "kept", "takes_over": list(takes_over)},
            task=None if task is None else Task(task, "choice", labels=("a", "b")),
            evaluations=[] if score is None or task is None else [Evaluation(task, "accuracy", score, 10)],
            **options,  # type: ignore[arg-type]
        )


@pytest.fixture
def publish(hub: Registry) -> Publish:
    def run(name: str = "news", **options: object) -> AdapterRecord:
        return publish_into(hub, name, **options)  # type: ignore[arg-type]

    return run


def rows_of(registry: Registry) -> dict[str, list[tuple[object, ...]]]:
    """Table → all rows of a hub's index."""
    with closing(sqlite3.connect(registry.path / "index.db")) as connection:
        names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name").fetchall()
        return {name: connection.execute(f"SELECT * FROM {name}").fetchall() for (name,) in names}


def at_revision(registry: Registry, revision: str) -> None:
    """Replace a hub's index by one of an older schema, made by its migrations, with the rows of the tables it has."""
    rows = rows_of(registry)
    for path in registry.path.glob("index.db*"):
        path.unlink()
    with Index(registry.path, "sqlite:///index.db").writing() as made:
        migrations.upgrade(made, revision)
    with closing(sqlite3.connect(registry.path / "index.db")) as connection:
        for name in rows_of(registry).keys() - {"alembic_version"}:
            for row in rows[name]:
                connection.execute(f"INSERT INTO {name} VALUES ({', '.join('?' * len(row))})", row)
        connection.commit()
