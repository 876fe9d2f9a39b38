"""Versions whose manifest is damaged: nothing that the index knows of them is lost, and no number is used twice."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from registry_support import Publish

from adapterhub_cl.errors import IntegrityError
from adapterhub_cl.registry import Registry


def damage(hub: Registry, text: str | None, version: int = 2) -> Path:
    """Put a text into a version's manifest.json, or remove the file."""
    path = hub.adapters_dir / "news" / f"v{version}" / "manifest.json"
    path.chmod(0o644)
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    return path


def told(hub: Registry) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = json.loads((hub.path / "aliases.json").read_text())
    return found


def spoil(hub: Registry, statement: str) -> None:
    with closing(sqlite3.connect(hub.path / "index.db")) as connection:
        connection.execute("PRAGMA foreign_keys = OFF")
        connection.execute(statement)
        connection.commit()


@pytest.mark.parametrize("text", ["[", None, "{}", '{"format": 1}'])
@pytest.mark.parametrize("mend", ["rebuild", "repair"])
def test_a_manifest_that_the_index_holds_is_written_back(
    hub: Registry, publish: Publish, text: str | None, mend: str
) -> None:
    publish()
    publish()
    hub.set_alias("news@v2", "production")
    path = hub.adapters_dir / "news" / "v2" / "manifest.json"
    before, state = path.read_bytes(), told(hub)
    damage(hub, text)
    assert [problem.fix for problem in hub.verify()] == ["cl-adapter verify --repair"]
    getattr(hub, mend)()
    assert path.read_bytes() == before
    assert hub.verify() == []
    assert told(hub) == state
    assert hub.aliases() == {"news": {"latest": 2, "production": 2}}
    assert hub.serving() == {"news": "news@v2"}


def test_a_number_is_not_used_again_where_the_index_cannot_help(hub: Registry, publish: Publish) -> None:
    publish()
    publish()
    hub.set_alias("news@v2", "production")
    whole = hub.adapters_dir / "news" / "v2" / "manifest.json"
    text = whole.read_text()
    spoil(hub, "UPDATE versions SET manifest = '{}' WHERE version = 2")
    damage(hub, "[")
    assert hub.rebuild() == 1
    hub.repair()
    assert told(hub)["known"] == {"news": 2}
    assert hub.get("news").ref == "news@v1"
    shutil.copytree(whole.parent, hub.path.parent / "v2")
    shutil.rmtree(whole.parent)
    hub.repair()
    assert publish().ref == "news@v3"
    shutil.copytree(hub.path.parent / "v2", whole.parent)
    damage(hub, text)
    hub.repair()
    assert hub.aliases()["news"]["production"] == 2
    assert hub.verify() == []


def test_a_number_that_only_aliases_json_knows_is_not_used_again(hub: Registry, publish: Publish) -> None:
    publish()
    shutil.rmtree(publish().path)
    (hub.path / "index.db").unlink()
    again = Registry.open(hub.path)
    again.repair()
    assert told(again)["known"] == {"news": 2}
    assert publish().ref == "news@v3"


def test_a_changed_manifest_is_written_back_where_all_else_fits(hub: Registry, publish: Publish) -> None:
    publish()
    publish()
    path = hub.adapters_dir / "news" / "v2" / "manifest.json"
    before = path.read_text()
    damage(hub, before.replace('"kept"', '"other"'))
    assert hub.repair() == ["restored adapters/news/v2/manifest.json from the index"]
    assert path.read_text() == before


def fixes(hub: Registry) -> list[str]:
    return [problem.fix for problem in hub.verify()]


def test_the_ways_on_from_a_damaged_version_are_ways(hub: Registry, publish: Publish) -> None:
    for _ in range(2):
        record = publish()
        (record.path / "adapter_model.safetensors").chmod(0o644)
        (record.path / "adapter_model.safetensors").write_bytes(b"x")
        with pytest.raises(IntegrityError) as caught:
            hub.check_files(record)
        if record.version == 1:
            for told in (*fixes(hub), caught.value.hint):
                assert told.endswith(
                    "retrain it: cl-adapter add-task news DATA, or forget it: cl-adapter forget-task news"
                )
    assert caught.value.hint == "see cl-adapter verify, or roll back: cl-adapter rollback news@latest"
    assert fixes(hub)[1].endswith("or roll back: cl-adapter rollback news@latest")
    hub.rollback("news@latest")
    assert not [fix for fix in fixes(hub) if "rollback" in fix]
