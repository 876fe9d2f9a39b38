"""Where a hub's base lies: beside it, where hub.toml says, or where the user says; it must be the same base."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from adapterhub_cl import AdapterHub
from adapterhub_cl.errors import BaseModelError
from adapterhub_cl.registry.hubfile import HubFile


def test_a_hub_beside_its_base_can_be_moved_with_it(pico_copy: Callable[..., Path], tmp_path: Path) -> None:
    base = pico_copy()
    place = tmp_path / "one"
    place.mkdir()
    shutil.move(base, place / "model")
    hub = AdapterHub.init(place / "hub", str(place / "model"), quantization="none")
    assert HubFile.read(place / "hub").base.source == "../model"
    assert hub.base.source == str(place / "model")
    shutil.move(place, tmp_path / "two")
    moved = AdapterHub.open(tmp_path / "two" / "hub")
    assert moved.base.source == str(tmp_path / "two" / "model")
    assert moved.verify() == []


def test_a_base_elsewhere_keeps_its_whole_path(pico_path: Callable[..., Path], tmp_path: Path) -> None:
    hub = AdapterHub.init(tmp_path / "a" / "hub", str(pico_path("llama")), quantization="none")
    assert HubFile.read(hub.folder).base.source == str(pico_path("llama")) == hub.base.source
    tiny = AdapterHub.init(tmp_path / "tiny", "tiny")
    assert HubFile.read(tiny.folder).base.source == "tiny"


@pytest.mark.parametrize("way", ["argument", "environment"])
def test_a_base_that_was_moved_is_found_where_the_user_says(
    pico_copy: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    base = pico_copy()
    hub = AdapterHub.init(tmp_path / "x" / "hub", str(base), quantization="none")
    away = Path(shutil.move(base, tmp_path / "away"))
    assert AdapterHub.open(hub.folder).verify() != []
    told = None
    if way == "environment":
        monkeypatch.setenv("CL_ADAPTER_BASE_PATH", str(away))
    else:
        told = away
    again = AdapterHub.open(hub.folder, base_path=told)
    assert again.base.source == str(away)
    assert again.verify() == []
    assert again.load_base().info.source == str(away)
    again.registry.set_default("max_forgetting", 0.5)  # hub.toml goes on saying what it said
    assert HubFile.read(hub.folder).base.source == str(base)


def test_another_base_is_refused_there(pico_path: Callable[..., Path], tmp_path: Path) -> None:
    hub = AdapterHub.init(tmp_path / "hub", str(pico_path("llama")), quantization="none")
    other = AdapterHub.open(hub.folder, base_path=pico_path("qwen2"))
    with pytest.raises(BaseModelError, match="has changed since this hub was made"):
        other.load_base()


def test_the_embedded_base_lies_where_the_package_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = AdapterHub.init(tmp_path / "hub", "tiny")
    monkeypatch.setenv("CL_ADAPTER_BASE_PATH", str(tmp_path / "nowhere"))
    assert AdapterHub.open(hub.folder).base.source == "tiny"
