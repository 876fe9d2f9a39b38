"""The soak of soak.py over HTTP: 32 clients ask 128 tasks of a server while the hub changes under it.

python examples/benchmarks/server_soak.py --work /tmp/server-soak -o docs/benchmarks
"""

from __future__ import annotations

import argparse
import json
import shutil
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.append(str(Path(__file__).parent))  # soak.py
import soak

from adapterhub_cl.errors import AdapterHubError
from adapterhub_cl.traffic.journal import Journal

PLAN = soak.Plan(tasks=128, requests=10_000, threads=32, capacity=32, host_bytes=32_000_000)


class Client:
    """Asks `/v1/predict` as `Engine.predict` is asked."""

    def __init__(self, address: str) -> None:
        import httpx2

        self.http = httpx2.Client(base_url=address, timeout=300, limits=httpx2.Limits(max_connections=64))

    def predict(self, texts: Sequence[str], *, task: str = "", adapter: str = "") -> list[Any]:
        """The answers, each with what the header or the row says of who gave it.

        Raises:
            AdapterHubError: the server refused with a status below 500.
            RuntimeError: any other error.
        """
        named = f"{adapter}@latest" if adapter and "@" not in adapter else adapter  # a bare name is a task over HTTP
        got = self.http.post("/v1/predict", json={"inputs": list(texts), "model": named or task or "auto"})
        if got.status_code != 200:
            told = f"{got.status_code} {got.text}"
            raise AdapterHubError(told) if got.status_code < 500 else RuntimeError(told)
        return [SimpleNamespace(**row) for row in got.json()["data"]]


@contextmanager
def served(hub: Any, engine: Any) -> Iterator[Client]:
    """The hub's engine behind a socket."""
    import uvicorn

    from adapterhub_cl.server.application import Guard, application
    from adapterhub_cl.server.serve_options import ServeOptions

    options = ServeOptions(fallback=False, log=True)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(256)
        app = application(hub.registry, engine, options, Guard.of(options))
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        try:
            yield Client(f"http://127.0.0.1:{listening.getsockname()[1]}")
        finally:
            server.should_exit = True
            thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--requests", type=int, default=PLAN.requests)
    given = parser.parse_args()
    shutil.rmtree(given.work / "soak", ignore_errors=True)
    found = soak.soak(replace(PLAN, requests=given.requests), given.work / "soak", served)
    kept = sum(count["answers"] for count in Journal(given.work / "soak" / "hub").counts().values())
    page = soak.shown(found).replace("# Requests while the hub changes", "# Requests to a server while the hub changes")
    page = page.replace("soak.py run", "server_soak.py").replace("threads over", "clients of a server over")
    page = page.replace("| requests a second |", f"| answers that `--log` kept | {kept:,} |\n| requests a second |")
    page += (
        "\nThe memory is that of the test's own process, which holds the clients, what they were told, and what "
        "publishes the versions. [Memory of a server](server_memory.md) has the server alone.\n"
    )
    print(page)
    for key in ("wrong_version", "wrong_answer", "errors", "change_problems", "problems_after"):
        for one in found[key][:5]:
            print(key, one)
    if given.output:
        (given.output / "server_soak.md").write_text(page, encoding="utf-8")
        small = {key: value for key, value in found.items() if key != "memory"}
        text = json.dumps({**small, "kept": kept}, indent=1) + "\n"
        (given.output / "server_soak.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
