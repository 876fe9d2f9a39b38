"""`bisect`: which version broke some rows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cl_adapter.__main__ import main
from encoder_hubs import ANIMALS, COLOURS, QUICK, Notes, data, new_hub, rows, write

from adapterhub_cl import AdapterHub
from adapterhub_cl.errors import DataError, IntegrityError, UsageError
from adapterhub_cl.evaluation import bisecting


def shifted(folder: Path, name: str, seed: int) -> Path:
    """Rows with wrong labels."""
    nexts = dict(zip(COLOURS, (*COLOURS[1:], COLOURS[0]), strict=True))
    return write(folder / name, [{**row, "output": nexts[row["output"]]} for row in rows(COLOURS, 48, seed)])


@pytest.fixture(scope="module")
def hub(pico_path: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> AdapterHub:
    """colours@v1 and v2 are right, v3 has learned wrong labels, and v4 and v5 have not unlearned them."""
    folder = tmp_path_factory.mktemp("bisected")
    made = new_hub(folder / "hub", pico_path("bert"))
    own: dict[str, Any] = {**QUICK, "replay": "none", "max_forgetting": 1.0}
    made.add_task("colours", data(folder, COLOURS), **own)
    made.update("colours", data(folder, COLOURS, 48, 2), **own)
    made.update("colours", shifted(folder, "wrong.jsonl", 3), **{**own, "epochs": 12})
    made.update("colours", shifted(folder, "wrong-too.jsonl", 4), **own)
    made.update("colours", shifted(folder, "wrong-again.jsonl", 5), **own)
    made.add_task("animals", data(folder, ANIMALS, 8), **{**own, "epochs": 1})
    return made


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    return data(tmp_path, COLOURS, 12, 9)


def test_the_version_is_found(hub: AdapterHub, asked: Path) -> None:
    found = hub.bisect("colours", asked)
    assert (found.first, found.before, found.good, found.bad) == (
        "colours@v3",
        "colours@v2",
        "colours@v1",
        "colours@v5",
    )
    assert [one.ref for one in found.tried] == ["colours@v2", "colours@v3"]
    assert found.breakers == {"colours@v3": len(found.broken)}
    assert len(found.broken) > 6
    row = found.broken[0]
    assert row.said != row.wanted == row.text.split()[0]
    assert row.place.startswith(str(asked))


def test_each_row_is_given_the_version_that_broke_it(
    hub: AdapterHub, asked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four versions break rows of their own; no version is asked a row twice, nor rows that it cannot tell of."""
    broken_at = {0: 2, 1: 2, 2: 3, 3: 4, 4: 5}  # row → version; the others never break
    calls: dict[int, list[int]] = {}

    def right(_: Any, record: Any, __: Any, of: Any) -> tuple[list[bool], list[str]]:
        numbers = [int(row.input.split()[-1]) % 1000 for row in of]
        calls.setdefault(record.version, []).extend(numbers)
        return [record.version < broken_at.get(n, 99) for n in numbers], ["red"] * len(of)

    monkeypatch.setattr(bisecting, "_right", right)
    found = hub.bisect("colours", asked)
    assert {int(row.text.split()[-1]) % 1000: row.first for row in found.broken} == {
        row: f"colours@v{version}" for row, version in broken_at.items()
    }
    assert all(int(row.first[-1]) == int(row.before[-1]) + 1 for row in found.broken)
    assert list(found.breakers.items()) == [("colours@v2", 2), ("colours@v3", 1), ("colours@v4", 1), ("colours@v5", 1)]
    assert (found.first, found.before) == ("colours@v2", "colours@v1")
    assert all(len(set(rows)) == len(rows) for rows in calls.values())
    assert [(one.ref, one.rows, one.right) for one in found.tried] == [
        ("colours@v2", 3, 1),
        ("colours@v3", 5, 2),
        ("colours@v4", 2, 1),
    ]


def test_the_search_can_be_narrowed(hub: AdapterHub, asked: Path) -> None:
    found = hub.bisect("colours", asked, good="v2", bad="colours@v3")
    assert (found.first, found.before, found.tried) == ("colours@v3", "colours@v2", ())
    nothing = hub.bisect("colours", asked, good="colours@v1", bad="colours@v2")
    assert (nothing.first, nothing.broken) == ("", ())


def test_what_cannot_be_searched(hub: AdapterHub, asked: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not older"):
        hub.bisect("colours", asked, good="colours@v3", bad="colours@v2")
    with pytest.raises(UsageError, match="colours@v2 is one of them") as named:
        hub.bisect("colours@v2", asked)
    assert "--bad v2" in named.value.hint
    with pytest.raises(UsageError, match="one version only"):
        hub.bisect("animals", asked)
    with pytest.raises(UsageError, match="no version of colours"):
        hub.bisect("colours", asked, good="animals@v1")
    with pytest.raises(DataError, match="not among the labels"):
        hub.bisect("colours", data(tmp_path, ANIMALS, 4))
    notes = tmp_path / "notes.txt"
    notes.write_text("The harbour was closed in spring.\n")
    with pytest.raises(DataError, match="raw text"):
        hub.bisect("colours", notes)


def test_the_command(hub: AdapterHub, asked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--hub", str(hub.folder), "--json", "bisect", "colours", "--data", str(asked)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["first"], told["rows"]) == ("colours@v3", 12)
    assert main(["--hub", str(hub.folder), "bisect", "colours", "--data", str(asked)]) == 0
    shown = capsys.readouterr()
    assert f"colours@v3 broke {len(told['broken'])} of them, which colours@v2 still has right" in shown.out
    assert "show colours@v3" in shown.err


def test_a_damaged_version_in_between_is_passed_over(hub: AdapterHub, asked: Path, tmp_path: Path) -> None:
    other = AdapterHub.open(shutil.copytree(hub.folder, tmp_path / "hub"), dtype="fp32")
    name, refs = "colours", [f"colours@v{k}" for k in range(1, 6)]
    notes = Notes()
    (other.get(refs[1]).path / "adapter_model.safetensors").unlink()
    found = other.bisect(name, asked, reporter=notes)
    assert (found.good, found.bad) == (refs[0], refs[-1])
    assert refs[1] not in {one.ref for one in found.tried}
    assert any(note.startswith(f"warning: {refs[1]} is passed over: ") for note in notes.said)
    (other.get(refs[-1]).path / "adapter_model.safetensors").unlink()
    with pytest.raises(IntegrityError) as refused:
        other.bisect(name, asked)
    assert "--bad" in refused.value.hint
