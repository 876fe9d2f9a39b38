"""What is written outside of a hub: whole or not at all, and on this machine's disks only."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest
from registry_support import BASE

from adapterhub_cl.adapters.outside import filled
from adapterhub_cl.errors import StorageError, UsageError
from adapterhub_cl.hub import AdapterHub
from adapterhub_cl.registry import Registry, check_local, files
from adapterhub_cl.samples.store import Samples

KILLED = """
import os, signal, sys
from pathlib import Path
from adapterhub_cl.adapters import outside
target, at = Path(sys.argv[1]), int(sys.argv[2])
rename, done = Path.rename, [0]
def killing(self, other):
    if done[0] == at:
        os.kill(os.getpid(), signal.SIGKILL)
    done[0] += 1
    return rename(self, other)
Path.rename = killing
with outside.filled(target) as folder:
    for name in ("a", "b"):
        (folder / name).write_text("half")
    (folder / "inner").mkdir()
    (folder / "inner" / "c").write_text("half")
    if at < 0:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def fill(target: Path) -> None:
    with filled(target) as folder:
        (folder / "a").write_text("whole")
        (folder / "d").write_text("whole")


@pytest.mark.parametrize("at", [-1, 0, 1, 2])
@pytest.mark.parametrize("there", [False, True])
def test_what_a_killed_process_left_gives_way(tmp_path: Path, at: int, there: bool) -> None:
    target = tmp_path / "out"
    if there:
        target.mkdir()
    done = subprocess.run([sys.executable, "-c", KILLED, str(target), str(at)], check=False)
    assert done.returncode == -9
    assert any(target.iterdir())
    fill(target)
    assert sorted((path.name, path.read_text()) for path in target.iterdir()) == [("a", "whole"), ("d", "whole")]


def test_what_somebody_else_put_there_stays(tmp_path: Path) -> None:
    target = tmp_path / "out"
    subprocess.run([sys.executable, "-c", KILLED, str(target), "1"], check=False)
    (target / "mine").write_text("kept")
    with pytest.raises(UsageError, match="not an empty directory"):
        fill(target)
    assert (target / "mine").read_text() == "kept"


def test_a_folder_that_is_just_being_filled_is_not_empty(tmp_path: Path) -> None:
    with filled(tmp_path / "out") as folder:
        (folder / "a").write_text("")
        with pytest.raises(UsageError, match="not an empty directory"):
            fill(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a"]


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("nth", [1, 2])
def test_a_full_disk_leaves_the_target_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool, nth: int
) -> None:
    target = tmp_path / "out"
    if there:
        target.mkdir()
    renamed = []
    rename = Path.rename

    def full(self: Path, other: Path) -> Path:
        renamed.append(self)
        if len(renamed) == nth:
            raise OSError(errno.ENOSPC, "No space left on device")
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(StorageError, match="nothing was changed"):
        fill(target)
    assert list(target.iterdir()) == [] if there else not target.exists()


URLS = (
    "s3://bucket/lora",
    "gs://b",
    "hf://org/name",
    "https://example.com/x.html",
    "file:///tmp/x",
    "S3:/b",
    "az+v2://x",
)


@pytest.mark.parametrize("url", URLS)
def test_a_url_is_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    from adapterhub_cl.reporting.page import check_target
    from adapterhub_cl.reporting.pictures import _checked

    monkeypatch.chdir(tmp_path)
    hub = AdapterHub(Registry.create(tmp_path / "hub", BASE))
    acts = [
        lambda: hub.export("news", url),
        lambda: hub.export("news", Path(url)),
        lambda: hub.import_adapter(url, "news"),
        lambda: AdapterHub.init(url, "tiny"),
        lambda: AdapterHub.open(url),
        lambda: Registry.rebuild_at(url),
        lambda: Samples(hub.registry).export(None, url),
        lambda: check_target(Path(url), hub.folder, False),
        lambda: _checked([], url),
    ]
    for act in acts:
        with pytest.raises(UsageError, match="is a URL") as caught:
            act()
        assert "here" in caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["hub"]


@pytest.mark.parametrize("path", ["a:b", "C:/x", "./s3://b", "x/s3://b", "1s3://b", "/s3:/b"])
def test_a_path_with_a_colon_is_one(path: str) -> None:
    assert check_local(path) == Path(path)
    assert files.TEMPORARY not in str(check_local(path))


def test_what_is_written_can_be_read_by_others(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with filled(target) as made:
        (made / "weights").write_text("1")
        (made / "weights").chmod(0o600)
    (tmp_path / "usual").touch()
    assert (target / "weights").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_link_that_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="a link to a folder that is not there"), filled(tmp_path / "link"):
        pass
