"""A moto server for tests that need a bucket; they are skipped where moto or s3fs is missing."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator

import pytest


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server without buckets, which s3fs finds through its environment variables."""
    s3fs = pytest.importorskip("s3fs", reason="needs s3fs")
    threaded = pytest.importorskip("moto.server", reason="needs moto[server]").ThreadedMotoServer(port=0)
    threaded.start()
    host, port = threaded.get_host_and_port()
    reset = urllib.request.Request(f"http://127.0.0.1:{port}/moto-api/reset", method="POST")
    urllib.request.urlopen(reset).close()  # all servers of a process share their buckets
    for key, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(key, value)
    s3fs.S3FileSystem.clear_instance_cache()  # those of an earlier server
    yield f"http://{host}:{port}"
    threaded.stop()


__all__ = ["server"]
