"""Push and pull through a bucket of a moto server."""

from __future__ import annotations

from pathlib import Path

import pytest
from s3_support import server
from sharing_support import lora, make_hub, pull, push, train

from adapterhub_cl.errors import IntegrityError, StorageError
from adapterhub_cl.registry import Registry

__all__ = ["server"]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_bucket_is_a_target(server: str, ours: Registry, theirs: Registry, tmp_path: Path) -> None:
    import s3fs

    train(ours)
    record = train(ours, content=b"better" * 50_000)
    with pytest.raises(StorageError, match="cannot be found"):
        push(ours, "s3://missing/adapters", "news")
    with pytest.raises(StorageError, match=r"cannot be found|nothing was pushed"):
        pull(theirs, "s3://missing/adapters")
    bucket = s3fs.S3FileSystem()
    bucket.mkdir("team")
    assert [one.moved for one in push(ours, "s3://team/adapters", "news")] == [True, True]
    assert [one.moved for one in push(ours, "s3://team/adapters", "news")] == [False, False]
    moved = pull(theirs, "s3://team/adapters", "news@v2")
    assert moved[0].bytes <= 1.05 * record.bytes
    assert (theirs.get("news@v2").path / "adapter_model.safetensors").read_bytes() == lora(b"better" * 50_000)
    assert theirs.verify() == []
    (large,) = [path for path in bucket.find("team/adapters/blobs") if bucket.info(path)["size"] == 300_000]
    bucket.pipe_file(large, b"worse!" * 50_000)
    third = make_hub(tmp_path / "third")
    with pytest.raises(IntegrityError, match="was changed"):
        pull(third, "s3://team/adapters", "news@v2")
    assert third.adapters(all_versions=True) == []
