"""What computes the answers: the engine in process or behind our server, a vLLM alone or behind it, plain transformers.

    python examples/benchmarks/serving_engines.py --base MODEL --vllm-python VENV/bin/python -o docs/benchmarks

One run, one machine, the same adapters and questions: N copies of one adapter of rank 16, asked by M clients at once
over HTTP, each request for another adapter, 24 tokens at most. All servers run all the time, and each cell asks them in
turn. Requests a second, tokens a second, and the time to the first token. The page is written after each cell, so an
interrupted run leaves the cells that it did.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent))  # serving.py, machine.py
from machine import machine, versions
from serving import TOKENS, in_process, make_hub, over_http, plain, questions, server

from adapterhub_cl import AdapterHub
from adapterhub_cl.registry.files import atomic_write_text

ENGINE, BUILT_IN, BEHIND, ALONE, LOOP = (
    "engine, in process",
    "cl-adapter serve",
    "cl-adapter serve --engine vLLM",
    "vLLM alone",
    "transformers + PEFT",
)
START_S = 300


@contextmanager
def vllm(python: str, base: str, folder: Path, most: int) -> Iterator[str]:
    """A vLLM in its own environment, with the adapters of a folder that `export --all` wrote; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    loras = [f"{path.name}={path}" for path in sorted(folder.iterdir())]
    line = [
        python,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        base,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    line += ["--enable-lora", "--max-lora-rank", "16", "--max-loras", str(most), "--max-cpu-loras", str(2 * most)]
    line += [
        "--max-model-len",
        "512",
        "--max-num-seqs",
        "32",
        "--block-size",
        "32",
        "--enforce-eager",
        "--lora-modules",
        *loras,
    ]
    environment = {
        **os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }  # fmt: skip
    environment.pop("PYTHONPATH", None)
    log = folder.parent / "vllm.log"
    with log.open("w") as out:
        process = subprocess.Popen(line, env=environment, stdout=out, stderr=out, start_new_session=True)
        try:
            url, ends = f"http://127.0.0.1:{port}", time.monotonic() + START_S
            while not alive(url):
                if process.poll() is not None or time.monotonic() > ends:
                    raise SystemExit(f"vLLM did not start:\n{log.read_text()[-3000:]}")
                time.sleep(1)
            yield url
        except BaseException:
            print(log.read_text()[-6000:], file=sys.stderr)
            raise
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def alive(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def page(rows: Sequence[dict[str, Any]], base: str, packages: str) -> str:
    known = {(r["clients"], r["adapters"], r["round"]): r for r in rows if r["way"] == ENGINE}
    lines = ["# What computes the answers", "", f"Base: `{Path(base).name}`. {machine()}. {packages}.", ""]
    lines += [
        f"Each request asks one of N adapters (rank 16) and gets {TOKENS} tokens at most, over HTTP except for the "
        "engine in process and the loop of plain transformers. The clients run on the same cores. All servers run all "
        "the time, and each cell asks them in turn. The loop answers one request after another, so its first token is "
        "its whole answer. The first token's time is the median. The load is the machine's in the last minute: where "
        "it is above 4, other programs used the machine, and only ratios within a cell can be compared.",
        "",
        "| way | clients | adapters | round | requests/s | of the engine | tokens/s | first token | (p95) | load |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        mine = known.get((row["clients"], row["adapters"], row["round"]))
        share = f"{row['requests_per_s'] / mine['requests_per_s']:.2f} ×" if mine else "–"
        lines.append(
            f"| {row['way']} | {row['clients']} | {row['adapters']} | {row['round']} | {row['requests_per_s']:.2f} | "
            f"{share} | {row['tokens_per_s']:.0f} | {row['first_p50']:.2f} s | {row['first_p95']:.2f} s | "
            f"{row['load']:.1f} |"
        )
    lines += ["", "<!-- not run: takes minutes, the real model, and a vLLM -->", "```console"]
    lines += [
        "$ python examples/benchmarks/serving_engines.py --base MODEL --vllm-python VENV/bin/python -o docs/benchmarks"
    ]
    return "\n".join([*lines, "```"]) + "\n"


def fresh(count: int, cell: int) -> list[str]:
    """Questions that nobody asked before: a vLLM keeps what it read of a prompt."""
    return [f"Number {1000 * cell + k}. {text}" for k, text in enumerate(questions(count))]


def package(python: str, name: str) -> str:
    code = f"from importlib.metadata import version; print(version({name!r}))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="folder of an instruct model")
    parser.add_argument("--vllm-python", required=True, help="the Python of an environment with vllm or vllm-cpu")
    parser.add_argument("-o", "--output", required=True, help="folder for serving_engines.md and serving_engines.json")
    parser.add_argument("--clients", default="1,8,32")
    parser.add_argument("--adapters", default="1,8,32")
    parser.add_argument("--rounds", type=int, default=1, help="how often each cell is measured (default: 1)")
    parser.add_argument("--requests", type=int, default=64, help="of each cell (default: 64); a quarter for one client")
    arguments = parser.parse_args()
    many, base = [int(count) for count in arguments.adapters.split(",")], str(Path(arguments.base).resolve())
    out, rows = Path(arguments.output), list[dict[str, Any]]()
    packages = versions("torch", "transformers", "peft")
    packages += f", vllm-cpu {package(arguments.vllm_python, 'vllm-cpu')}"

    def keep(way: str, clients: int, adapters: int, found: dict[str, float]) -> None:
        cell = {"way": way, "clients": clients, "adapters": adapters}
        before = sum(cell.items() <= row.items() for row in rows)
        rows.append({**cell, "round": before + 1, **found, "load": os.getloadavg()[0]})
        print(json.dumps(rows[-1]), flush=True)
        atomic_write_text(out / "serving_engines.md", page(rows, base, packages))
        atomic_write_text(out / "serving_engines.json", json.dumps(rows) + "\n")

    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        hub: AdapterHub = make_hub(Path(folder), base, max(many))
        hub.export_all(Path(folder) / "all", format="vllm", base_name=base)
        about = json.loads((Path(folder) / "all" / "writer0" / "task.json").read_text(encoding="utf-8"))
        prompt = about["tasks"]["writer0"]["prompt"]
        alone = running.enter_context(vllm(arguments.vllm_python, base, Path(folder) / "all", max(many)))
        own = running.enter_context(server(hub.folder))
        behind = running.enter_context(server(hub.folder, "--engine", alone, "--resident", str(max(many))))
        for adapters in many * arguments.rounds:
            names = [f"writer{k}" for k in range(adapters)]
            for url in (own, behind, alone):  # every adapter is loaded before it is timed
                over_http(url, names, fresh(adapters, 0), 8, None if url != alone else prompt)
            for clients in (int(count) for count in arguments.clients.split(",")):
                count = max(arguments.requests if clients > 1 else arguments.requests // 4, 4)
                asked = fresh(count, len(rows) + 1)
                keep(ENGINE, clients, adapters, in_process(hub, names, asked, clients))
                keep(BUILT_IN, clients, adapters, over_http(own, names, asked, clients))
                keep(ALONE, clients, adapters, over_http(alone, names, asked, clients, prompt))
                keep(BEHIND, clients, adapters, over_http(behind, names, asked, clients))
                if clients == 1:
                    keep(LOOP, 1, adapters, plain(base, Path(folder) / "exported", names, asked))


if __name__ == "__main__":
    main()
