from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from adapterhub_cl.errors import HubError, StorageError, UsageError
from adapterhub_cl.registry import HubFile, Registry, files
from adapterhub_cl.types import BaseInfo


def test_what_is_written_is_read_back(tmp_path: Path, base: BaseInfo) -> None:
    for revision in (None, "abc123"):
        written = HubFile(
            replace(base, revision=revision), "2026-01-01T00:00:00+00:00", defaults={"rank": 16, "replay": {"size": 3}}
        )
        written.write(tmp_path)
        assert HubFile.read(tmp_path) == written


def test_no_hub_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(HubError) as caught:
        Registry.open(tmp_path / "none")
    assert caught.value.hint == f"make one: cl-adapter init --base tiny --hub {tmp_path / 'none'}"


def test_broken_toml_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "hub.toml").write_text("format = 1\n[base\n")
    with pytest.raises(HubError, match="line 2"):
        HubFile.read(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("format = 2\n", "newer version"),
        ("format = 'x'\n", "not a number"),
        ("format = 1\n", "no source and no fingerprint"),
        ("format = 1\nbase = 3\n", "base is not a table"),
        ("[base]\nsource = 'tiny'\nfingerprint = 'f'\nparameters = 'x'\n", "parameters of .base. is 'x'"),
        ("[base]\nsource = 'tiny'\nfingerprint = 'f'\nparameters = true\n", "parameters of .base. is True"),
        ("[base]\nsource = 'tiny'\nfingerprint = 'f'\narchitecture = 3\n", "architecture of .base. is 3"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "hub.toml").write_text(text)
    with pytest.raises(HubError, match=said):
        HubFile.read(tmp_path)


def test_newer_keys_are_tolerated_with_a_warning(
    tmp_path: Path, base: BaseInfo, caplog: pytest.LogCaptureFixture
) -> None:
    written = HubFile(base, "2026-01-01")
    written.write(tmp_path)
    path = tmp_path / "hub.toml"
    path.write_text("colour = 'red'\n" + path.read_text().replace("[base]", "[base]\nmood = 'good'"))
    with caplog.at_level(logging.WARNING, logger="adapterhub_cl"):
        assert HubFile.read(tmp_path) == written
    assert "colour, base.mood" in caplog.text


def test_a_store_that_is_no_directory_is_refused(tmp_path: Path, base: BaseInfo) -> None:
    HubFile(base, "2026-01-01", store_url="s3:bucket").write(tmp_path)
    with pytest.raises(HubError, match="not a file: URL"):
        Registry.open(tmp_path)


def test_create_refuses_a_hub_and_a_full_directory(tmp_path: Path, base: BaseInfo) -> None:
    registry = Registry.create(tmp_path / "hub", base, {"rank": 4})
    assert Registry.open(registry.path).hub_file.defaults == {"rank": 4}
    with pytest.raises(HubError, match="already a hub"):
        Registry.create(registry.path, base)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="neither empty"):
        Registry.create(tmp_path, base)
    with pytest.raises(UsageError, match="is a file"):
        Registry.create(tmp_path / "notes.txt", base)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_half_made_hub_is_no_hub_and_can_be_finished(
    tmp_path: Path, base: BaseInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(HubFile, "write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            Registry.create(tmp_path / "hub", base)
    with pytest.raises(HubError, match="no hub"):
        Registry.open(tmp_path / "hub")
    assert Registry.create(tmp_path / "hub", base).adapters() == []


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, base: BaseInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    HubFile(base, "2026-01-01").write(tmp_path)
    before = (tmp_path / "hub.toml").read_bytes()

    def full(descriptor: int, data: bytes) -> None:
        files.os.write(descriptor, data[:10])
        raise OSError(files.errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "write_all", full)
    with pytest.raises(StorageError, match=r"no space left on .*hub\.toml; nothing was changed"):
        HubFile(base, "2027-01-01").write(tmp_path)
    assert (tmp_path / "hub.toml").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["hub.toml"]
