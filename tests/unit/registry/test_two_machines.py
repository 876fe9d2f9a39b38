"""Two machines on one hub: an index in PostgreSQL, a bucket, and a folder of copies on each."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from postgres_support import PostgresServer, postgres
from registry_support import BASE, publish_into
from s3_support import server

from adapterhub_cl.errors import HubError, StorageError
from adapterhub_cl.registry import Registry

__all__ = ["postgres", "server"]
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]
BENCHMARK = Path(__file__).parents[3] / "examples" / "benchmarks" / "shared_hub.py"


@pytest.fixture
def bucket(server: str) -> str:
    import s3fs

    s3fs.S3FileSystem().mkdir("team")
    return "s3://team/hub"


@pytest.fixture
def machines(postgres: PostgresServer, bucket: str, tmp_path: Path) -> tuple[Registry, Registry]:
    url = postgres.new_database()
    first, second = (
        Registry.create(tmp_path / name, BASE, index_url=url, store_url=bucket) for name in ("first", "second")
    )
    return first, second


def test_what_one_machine_does_the_other_one_sees(machines: tuple[Registry, Registry]) -> None:
    first, second = machines
    assert publish_into(first, score=0.5).ref == "news@v1"
    assert not second.get("news").place.exists()
    second.check_files(second.get("news"))
    assert publish_into(second, content=b"second").ref == "news@v2"
    first.set_alias("news@v1", "production")
    assert second.serving() == first.serving() == {"news": "news@v1"}
    assert [s.evaluation.value for s in second.evaluations("news@v1")] == [0.5]
    assert first.verify() == second.verify() == []
    assert second.rebuild() == 2  # with the alias that only the other machine has written
    assert first.get("news@production").ref == "news@v1"
    first.erase("news", {"news@v1": None, "news@v2": None}, {}, {"tombstone": "news.json"})
    first.remove_files(["news@v1", "news@v2"])
    Registry.open(second.path)
    assert list((second.path / "adapters").glob("*/v*")) == []
    assert first.verify() == second.verify() == []
    assert publish_into(second).ref == "news@v3"


def test_wrong_stores_are_refused(
    machines: tuple[Registry, Registry], postgres: PostgresServer, bucket: str, tmp_path: Path
) -> None:
    first, _ = machines
    publish_into(first)
    url = first.hub_file.index_url
    with pytest.raises(HubError, match="belongs to a hub with the store s3://team/hub"):
        Registry.create(tmp_path / "new", BASE, index_url=url, store_url="s3://team/elsewhere")
    with pytest.raises(HubError, match="belongs to another hub, whose versions are in s3://team/hub"):
        Registry.create(tmp_path / "new", BASE, index_url=url)
    with pytest.raises(HubError, match="the store s3://team/hub belongs to another hub"):
        Registry.create(tmp_path / "new", BASE, index_url=postgres.new_database(), store_url=bucket)
    blank = postgres.new_database()
    with pytest.raises(StorageError, match="cannot be found"):
        Registry.create(tmp_path / "new", BASE, index_url=blank, store_url="s3://missing/hub")
    assert not (tmp_path / "new" / "hub.toml").exists()
    hub = Registry.create(tmp_path / "new", BASE, index_url=blank, store_url="s3://team/right")
    assert publish_into(hub).ref == "news@v1"


def test_a_bucket_that_is_gone_loses_nothing(machines: tuple[Registry, Registry]) -> None:
    import s3fs

    first, second = machines
    publish_into(first)
    s3fs.S3FileSystem().rm("team", recursive=True)
    with pytest.raises(StorageError) as caught:
        publish_into(second)
    assert "\n" not in caught.value.message
    assert [r.ref for r in first.adapters(all_versions=True)] == ["news@v1"]
    first.check_files(first.get("news"))


def test_writers_that_are_killed_lose_nothing(postgres: PostgresServer, bucket: str) -> None:
    command = [sys.executable, str(BENCHMARK), "--index", postgres.new_database(), "--store", bucket]
    command += ["--writers", "4", "--operations", "8", "--kills", "6", "--every", "2", "--size", "2000"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["kills"] >= 1
    assert sum(told["confirmed"].values()) == 4 * 8
    assert told["lost"] == told["half_versions"] == told["problems_after_repair"] == told["errors"] == []
