"""Rooms: names without imports, third parties by entry point, suggestions for what is not there."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapterhub_cl.errors import AdapterHubError, UnknownNameError
from adapterhub_cl.plugins import Room
from adapterhub_cl.strategies import ROOM, BaseStrategy

MODULES = {
    "good": "class Strategy:\n    shares = 'from afar'\n",
    "broken": "import a_module_that_is_not_there\n",
    "raises": "raise RuntimeError('no licence')\n",
    "empty": "",
}


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A distribution, as pip installs one, that brings strategies."""
    for name, source in MODULES.items():
        (tmp_path / f"afar_{name}.py").write_text(source)
    info = tmp_path / "afar-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: afar\nVersion: 1.0\n")
    lines = [f"{name} = afar_{name}:Strategy" for name in MODULES]
    lines.append("isolated = afar_good:Strategy")
    (info / "entry_points.txt").write_text("\n".join(["[adapterhub_cl.strategies]", *lines, ""]))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in MODULES:
        sys.modules.pop(f"afar_{name}", None)


@pytest.mark.usefixtures("foreign")
def test_third_parties_are_listed_and_loaded() -> None:
    names = ROOM.names()
    assert names == sorted(set(names))
    assert {"good", "broken", "isolated"} <= set(names)
    assert not any(name.startswith("afar_") for name in sys.modules), "listing imports nothing"
    assert ROOM.get("good").shares == "from afar"


@pytest.mark.usefixtures("foreign")
def test_our_own_name_wins() -> None:
    assert issubclass(ROOM.get("isolated"), BaseStrategy)


@pytest.mark.usefixtures("foreign")
@pytest.mark.parametrize("name", ["broken", "raises", "empty"])
def test_a_broken_one_says_whose_it_is(name: str) -> None:
    with pytest.raises(AdapterHubError, match=f"the strategy '{name}' of 'afar_{name}:Strategy' cannot be loaded") as e:
        ROOM.get(name)
    assert "uninstall the package" in e.value.hint
    assert e.value.__cause__ is not None


def test_an_unknown_name_suggests_and_lists() -> None:
    with pytest.raises(UnknownNameError, match="unknown strategy 'sequental'") as caught:
        ROOM.get("sequental")
    assert caught.value.near[0] == "sequential"
    assert "did you mean sequential" in caught.value.hint
    assert "isolated" in caught.value.hint


@pytest.mark.parametrize("name", ["__init__", "", "_projection", "..plugins", "causal_lm.Objective"])
def test_only_methods_have_names(name: str) -> None:
    room = Room("adapterhub_cl.objectives", "objective", "Objective")
    assert name not in room.names()
    with pytest.raises(UnknownNameError):
        room.get(name)


@pytest.mark.parametrize("room", ["strategies", "replay", "objectives"])
def test_listing_imports_no_backend(room: str) -> None:
    code = (
        f"import sys; from adapterhub_cl.{room} import ROOM; names = ROOM.names(); "
        "print(len(names), sorted({m.split('.')[0] for m in sys.modules} "
        "& {'torch', 'transformers', 'peft', 'numpy', 'sklearn', 'datasets', 'accelerate'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, _, loaded = done.stdout.strip().partition(" ")
    assert int(count) > 0
    assert loaded == "[]"


def test_the_package_and_the_bases_import_no_torch() -> None:
    code = (
        "import sys, adapterhub_cl, adapterhub_cl.bases, adapterhub_cl.settings, adapterhub_cl.training.runs; "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_modules_that_are_no_methods_are_not_listed() -> None:
    from adapterhub_cl.merging import ROOM

    assert "factors" not in ROOM.names()
    with pytest.raises(UnknownNameError, match="merge method"):
        ROOM.get("factors")


def test_a_file_without_the_class_says_which_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_room").mkdir()
    (tmp_path / "a_room" / "__init__.py").touch()
    (tmp_path / "a_room" / "mine.py").write_text("class Strategie: ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    room = Room("a_room", "strategy", "Strategy")
    assert room.names() == ["mine"]
    with pytest.raises(AdapterHubError, match=r"a_room\.mine defines no class Strategy") as caught:
        room.get("mine")
    assert "begin the file's name with _" in caught.value.hint
