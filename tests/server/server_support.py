"""The reference hub behind a real socket."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import uvicorn
from openai import OpenAI

from adapterhub_cl import AdapterHub
from adapterhub_cl.bases.loading import LoadedBase, load_base
from adapterhub_cl.server.application import Guard, application
from adapterhub_cl.server.serve_options import ServeOptions

C = TypeVar("C")
_FREE: list[LoadedBase] = []  # bases that no server uses now: two engines cannot share one
REFERENCE = Path(__file__).parents[2] / "registry"


@dataclass
class Running:
    """A server that runs in this process.

    Attributes:
        clients: closed when the server ends. One that a failed call's traceback holds would otherwise be found by the
            garbage collector, perhaps after its open socket.
    """

    url: str
    hub: AdapterHub
    server: uvicorn.Server
    engine: Any
    clients: list[Any] = field(default_factory=list)

    def client(self, key: str = "none", **options: Any) -> OpenAI:
        return self.keep(OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, **options))

    def keep(self, client: C) -> C:
        """A client that is closed when the server ends."""
        self.clients.append(client)
        return client


@contextmanager
def running(folder: Path, *, train: Sequence[str] = (), engine_at: str = "", **options: Any) -> Iterator[Running]:
    hub = AdapterHub.open(folder)
    base = hub._loaded = _FREE.pop() if _FREE else load_base(hub.base, device="cpu")
    where = {"engine": engine_at} if engine_at else {}
    with socket.socket() as listening, hub.engine(capacity=32, **where) as engine:
        listening.bind(("127.0.0.1", 0))
        listening.listen(256)
        wanted = ServeOptions(**options)
        app = application(hub.registry, engine, wanted, Guard.of(wanted), train)
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=10))
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        found = Running(f"http://127.0.0.1:{listening.getsockname()[1]}", hub, server, engine)
        try:
            yield found
        finally:
            for client in found.clients:
                client.close()
            server.should_exit = True
            thread.join(30)
    if engine.closed:  # it has left the base as it found it
        _FREE.append(base)
