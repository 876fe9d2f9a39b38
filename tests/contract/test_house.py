"""The house stays easy to walk: rooms say what they are for, hide what is theirs, and name each file and class once."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapterhub_cl import augmentation, exporting, merging, objectives, replay, routing, strategies

ROOT = Path(__file__).parents[2] / "adapterhub_cl"
KINDS = (augmentation, exporting, merging, objectives, replay, routing, strategies)
PLUGINS = {room.__name__.rpartition(".")[2] for room in KINDS}
FILES = sorted(p for p in ROOT.rglob("*.py") if "migrations" not in p.parts)
ROOMS = sorted(p.parent for p in FILES if p.name == "__init__.py" and p.parent != ROOT)
# what every plug-in of a kind is called
CALLED = {"Config", "Method", "Strategy", "Policy", "Router", "Augmentation", "Objective", "Stage", "Format"}


def imports(file: Path) -> Iterator[tuple[str, ...]]:
    """The parts of each name of this library that a file imports, after `adapterhub_cl`."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "adapterhub_cl":
            for name in node.names:
                yield (*str(node.module).split(".")[1:], name.name)


def test_no_room_imports_what_is_private_in_another() -> None:
    found = []
    for file in FILES:
        room = file.relative_to(ROOT).parts[0] if file.parent != ROOT else ""
        for parts in imports(file):
            if parts[0] != room and any(p.startswith("_") and not p.startswith("__") for p in parts):
                found.append(f"{file.relative_to(ROOT)}: {'.'.join(parts)}")
    assert found == []


def test_only_rooms_of_plug_ins_have_private_files() -> None:
    """There the underscore says "not a plug-in"; elsewhere it would say nothing."""
    private = [p for p in FILES if p.name.startswith("_") and not p.name.startswith("__")]
    assert {p.parent.name for p in private} <= PLUGINS, private


def test_every_file_has_a_name_of_its_own() -> None:
    """But for plug-ins of different kinds, which are named as users type them."""
    names = Counter(p.name for p in FILES if p.name != "__init__.py" and p.parent.name not in PLUGINS)
    assert [name for name, count in names.items() if count > 1] == []


def test_every_class_has_a_name_of_its_own() -> None:
    names: Counter[str] = Counter()
    for file in FILES:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        names.update(node.name for node in tree.body if isinstance(node, ast.ClassDef))
    assert [name for name, count in names.items() if count > 1 and name not in CALLED] == []


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_a_room_says_in_one_sentence_what_it_is_for(room: Path) -> None:
    said = ast.get_docstring(ast.parse((room / "__init__.py").read_text(encoding="utf-8"))) or ""
    first = said.split("\n\n")[0].replace("\n", " ")
    assert first.endswith(".")
    assert len(first) <= 160, first


def test_no_module_is_over_400_lines() -> None:
    assert {str(p.relative_to(ROOT)): n for p in FILES if (n := len(p.read_text().splitlines())) > 400} == {}
