"""The client of a vLLM, against a server that closes kept connections at the worst moment."""

from __future__ import annotations

import asyncio
import json

import pytest

from adapterhub_cl.errors import EngineDownError
from adapterhub_cl.remote.vllm_client import VllmClient

BODY = json.dumps({"data": [{"id": "base", "parent": None}]}).encode()
WHOLE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(BODY) + BODY


async def asked(drops: set[int], pieces: bytes = WHOLE, times: int = 2) -> tuple[int, list[list[str]]]:
    """How many requests a server got that closes the connection when it has read one of `drops`, and what the client
    was told each time."""
    seen = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal seen
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                seen += 1
                if seen in drops:
                    return
                writer.write(pieces)
                await writer.drain()
                if pieces is not WHOLE:
                    return
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    client = VllmClient(f"http://127.0.0.1:{port}", "", 5.0)
    try:
        told = [[one["id"] for one in await client.models()] for _ in range(times)]
    finally:
        await client.close()
        server.close()
    return seen, told


def test_a_kept_connection_that_was_closed_meanwhile_is_no_failure() -> None:
    assert asyncio.run(asked({2})) == (3, [["base"], ["base"]])


def test_a_server_that_closes_every_connection_is_down() -> None:
    with pytest.raises(EngineDownError, match="broke off"):
        asyncio.run(asked({1, 2}, times=1))


def test_an_answer_that_breaks_off_is_not_asked_again() -> None:
    with pytest.raises(EngineDownError, match="broke off"):
        asyncio.run(asked(set(), WHOLE[:-5], times=1))
