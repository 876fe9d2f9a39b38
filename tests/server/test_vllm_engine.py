"""The server with `--engine URL`: the same answers and headers as with the built-in engine, and an orderly error where
the vLLM is gone."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest
from openai import APIStatusError
from server_support import REFERENCE, Running, running
from vllm_stub import StubVllm, listening

from adapterhub_cl import AdapterHub
from adapterhub_cl.bases.loading import load_base

ASKED = [{"role": "user", "content": "they charged my card twice"}]
HEADERS = ("x-adapter", "x-adapter-sha256", "x-task", "x-fallback")


@pytest.fixture(scope="module")
def stub() -> Iterator[StubVllm]:
    base = load_base(AdapterHub.open(REFERENCE).base, device="cpu", dtype="fp32")
    with listening(StubVllm(base.model, root="tiny")) as found:
        yield found


@pytest.fixture(scope="module")
def remote(stub: StubVllm, routed_copy: Callable[[], Path]) -> Iterator[Running]:
    with running(routed_copy(), engine_at=stub.url) as found:
        yield found


@pytest.mark.parametrize("model", ["auto", "tickets", "tickets@v1", "base"])
def test_answers_and_headers_are_those_of_the_built_in_engine(served: Running, remote: Running, model: str) -> None:
    told = [
        one.client().chat.completions.with_raw_response.create(model=model, messages=ASKED, max_tokens=6)  # type: ignore[arg-type]
        for one in (served, remote)
    ]
    mine, other = (one.parse().choices[0].message.content for one in told)
    assert mine == other
    assert [told[0].headers.get(name) for name in HEADERS] == [told[1].headers.get(name) for name in HEADERS]


def test_a_stream_passes_through(remote: Running, stub: StubVllm) -> None:
    whole = remote.client().completions.create(model="base", prompt="The cat", max_tokens=8).choices[0].text
    pieces = [
        event.choices[0].text
        for event in remote.client().completions.create(model="base", prompt="The cat", max_tokens=8, stream=True)
        if event.choices
    ]
    assert "".join(pieces) == whole
    assert stub.bodies[-1]["stream"] is True


def test_a_vllm_that_fails_is_told_in_openais_form(remote: Running, stub: StubVllm) -> None:
    stub.dies_after = 0
    try:
        with pytest.raises(APIStatusError) as told:
            remote.client().completions.create(model="base", prompt="The cat", max_tokens=8)
        assert told.value.status_code == 503
        assert told.value.body["code"] == "engine_down"  # type: ignore[index]
        assert "start it" in told.value.message
    finally:
        stub.dies_after = None
    assert remote.client().completions.create(model="base", prompt="The cat", max_tokens=2).choices


def test_the_server_is_ready_only_while_the_vllm_is(remote: Running, stub: StubVllm) -> None:
    found = []
    for well in (True, False, True):
        stub.well = well
        found.append(httpx2.get(f"{remote.url}/health/ready").status_code)
    assert found == [200, 503, 200]
    assert httpx2.get(f"{remote.url}/health/live").status_code == 200


def test_nothing_is_left_when_the_server_ends(stub: StubVllm, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(REFERENCE, tmp_path / "hub"))
    with running(folder, engine_at=stub.url) as found:
        found.client().chat.completions.create(model="reviews", messages=ASKED)  # type: ignore[arg-type]
        assert any(name.startswith("reviews@v1-") for name in stub.loaded)
    assert not any(name.startswith("reviews@v1-") for name in stub.loaded)
