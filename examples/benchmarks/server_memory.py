"""What a server holds in memory after thousands of requests and hundreds of new versions. It runs in a process of its
own, so that nothing of the clients or of what publishes the versions is counted.

    python examples/benchmarks/server_memory.py -o docs/benchmarks
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

sys.path.append(str(Path(__file__).parent))  # machine.py, serving.py
from machine import machine
from serving import server

from adapterhub_cl import AdapterHub
from adapterhub_cl.registry.files import atomic_write_text

CLIENTS, EACH = 8, 5  # requests at once; requests for each new version


def taught(folder: Path) -> AdapterHub:
    """A hub on the embedded base with one small task."""
    hub = AdapterHub.init(folder / "hub", "tiny")
    rows = [{"text": f"{label} thing {k}", "label": label} for k in range(10) for label in ("red", "blue")]
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    hub.add_task("colours", data, epochs=1, general="none", dev_share=0.0)
    return hub


def ask(url: str, model: str, number: int) -> None:
    body = json.dumps({"model": model, "inputs": [f"red thing {number}"]}).encode()
    request = urllib.request.Request(f"{url}/v1/predict", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        answer.read()


def page(requests: list[tuple[int, float]], versions: list[tuple[int, float]]) -> str:
    lines = ["# Memory of a server", ""]
    lines += [
        f"`cl-adapter serve --log` on `tiny`, in a process of its own. {machine()}. First {CLIENTS} clients ask one "
        f"task. Then versions of it are published one after another, and each is asked {EACH} times.",
        "",
        "| requests | memory |",
        "|---|---|",
        *(f"| {count:,} | {size:.1f} MB |" for count, size in requests),
        "",
        "| versions published after that | memory |",
        "|---|---|",
        *(f"| {count:,} | {size:.1f} MB |" for count, size in versions),
        "",
        "<!-- not run: takes three minutes -->",
        "```console",
        "$ python examples/benchmarks/server_memory.py -o docs/benchmarks",
        "```",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", required=True, help="folder for server_memory.md")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--versions", type=int, default=300)
    given = parser.parse_args()
    requests, versions = list[tuple[int, float]](), list[tuple[int, float]]()
    with tempfile.TemporaryDirectory() as place, ThreadPoolExecutor(CLIENTS) as pool:
        hub = taught(Path(place))
        exported = hub.export("colours", Path(place) / "exported")
        with server(hub.folder, "--log") as url:
            (process,), step = psutil.Process().children(), max(1, given.requests // 10)
            for begin in range(0, given.requests, step):
                list(pool.map(lambda k: ask(url, "colours", k), range(begin, begin + step)))
                requests.append((begin + step, process.memory_info().rss / 1e6))
                print(*requests[-1], flush=True)
            for count in range(1, given.versions + 1):
                record = hub.import_adapter(exported, "colours")
                for number in range(EACH):
                    ask(url, record.ref, number)
                if count % max(1, given.versions // 5) == 0:
                    versions.append((count, process.memory_info().rss / 1e6))
                    print(*versions[-1], flush=True)
    atomic_write_text(Path(given.output) / "server_memory.md", page(requests, versions))


if __name__ == "__main__":
    main()
