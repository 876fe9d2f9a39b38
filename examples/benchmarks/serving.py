"""What a server costs: `cl-adapter serve` beside the engine it asks, and beside a loop of plain transformers and PEFT.

    python examples/benchmarks/serving.py --base MODEL -o docs/benchmarks

One run, one machine, the same adapters and questions: N copies of one adapter, asked by M clients at once, each request
for another adapter, 24 tokens written. Requests a second, tokens a second, and the time to the first token.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent))  # machine.py
from machine import installed, machine

from adapterhub_cl import AdapterHub
from adapterhub_cl.registry.files import atomic_write_text

TOKENS = 24
WORDS = ("river", "bread", "train", "letter", "council", "market", "window", "garden", "winter", "teacher", "harbour",
         "violin")  # fmt: skip


def questions(count: int) -> list[str]:
    return [f"Write about the {WORDS[k % 12]} and the {WORDS[(k * 5 + 3) % 12]}, number {k}." for k in range(count)]


def make_hub(folder: Path, base: str, most: int) -> AdapterHub:
    """A hub with `most` versions of one small adapter under names of their own."""
    hub = AdapterHub.init(folder / "hub", base, quantization="none")
    rows = [
        {"prompt": f"What is {word}?", "completion": f"A {word} is a thing that people know."} for word in WORDS * 2
    ]
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    hub.add_task("writer0", data, epochs=1, kind="generation", dev_share=0.0, general="none")
    exported = hub.export("writer0", folder / "exported")
    for k in range(1, most):
        hub.import_adapter(exported, f"writer{k}")
    return hub


@contextmanager
def server(hub: Path, *options: str) -> Iterator[str]:
    """`cl-adapter serve` in a process of its own; its address."""
    command = [sys.executable, "-m", "cl_adapter", "--hub", str(hub), "--json", "serve", "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            text = ""
            while "}" not in text:
                text += process.stdout.readline()
            yield json.loads(text)["url"]
        finally:
            process.terminate()


def over_http(
    url: str, names: Sequence[str], asked: Sequence[str], clients: int, prompt: Mapping[str, Any] | None = None
) -> dict[str, float]:
    """By OpenAI's own client, streamed.

    Args:
        prompt: from a `task.json`: the server is asked with a whole prompt, and not with a message.
    """
    import openai

    async def all_of_them() -> list[tuple[float, int]]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0, timeout=600) as client:
            gate = asyncio.Semaphore(clients)

            async def one(number: int, text: str) -> tuple[float, int]:
                async with gate:
                    started, first, usage = time.perf_counter(), 0.0, 0
                    how: dict[str, Any] = {
                        "model": names[number % len(names)], "stream": True, "max_tokens": TOKENS, "temperature": 0,
                        "stream_options": {"include_usage": True},
                    }  # fmt: skip
                    stream: Any
                    if prompt is None:
                        messages = [{"role": "user", "content": text}]
                        stream = await client.chat.completions.create(messages=messages, **how)
                    else:
                        special = {"add_special_tokens": prompt["add_special_tokens"]}
                        whole = prompt["bare"].replace("{input}", text)
                        stream = await client.completions.create(prompt=whole, extra_body=special, **how)
                    async for chunk in stream:
                        if not first and chunk.choices and _text(chunk.choices[0]):
                            first = time.perf_counter() - started
                        usage = chunk.usage.completion_tokens if chunk.usage else usage
                    return first, usage

            return list(await asyncio.gather(*(one(k, text) for k, text in enumerate(asked))))

    started = time.perf_counter()
    found = asyncio.run(all_of_them())
    return figures(time.perf_counter() - started, found)


def _text(choice: Any) -> str:
    return str((choice.delta.content if hasattr(choice, "delta") else choice.text) or "")


def in_process(hub: AdapterHub, names: Sequence[str], asked: Sequence[str], clients: int) -> dict[str, float]:
    """By threads that ask the engine itself."""
    with hub.engine(capacity=32) as engine, ThreadPoolExecutor(clients) as pool:
        engine.generate("warm", adapter=names[0], max_new_tokens=2)

        def one(pair: tuple[int, str]) -> tuple[float, int]:
            number, text = pair
            started, first, written = time.perf_counter(), 0.0, ""
            messages = [{"role": "user", "content": text}]
            for piece in engine.stream(messages, adapter=names[number % len(names)], max_new_tokens=TOKENS):
                first = first or time.perf_counter() - started
                written += piece
            return first, len(engine.base.tokenizer(written, add_special_tokens=False)["input_ids"]) + 1

        started = time.perf_counter()
        found = list(pool.map(one, enumerate(asked)))
        return figures(time.perf_counter() - started, found)


def plain(base: str, exported: Path, names: Sequence[str], asked: Sequence[str]) -> dict[str, float]:
    """What PEFT's documentation shows: one model, an adapter for each name, one request after another."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    model = PeftModel.from_pretrained(model, exported, adapter_name=names[0])
    for name in names[1:]:
        model.load_adapter(exported, adapter_name=name)
    model.eval()
    started, found = time.perf_counter(), []
    for number, text in enumerate(asked):
        model.set_adapter(names[number % len(names)])
        begun = time.perf_counter()
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.no_grad():
            written = model.generate(**ids, max_new_tokens=TOKENS, do_sample=False)
        found.append((time.perf_counter() - begun, int(written.shape[1] - ids["input_ids"].shape[1])))
    return figures(time.perf_counter() - started, found)


def figures(seconds: float, found: Sequence[tuple[float, int]]) -> dict[str, float]:
    first = sorted(time for time, _ in found)
    return {
        "requests_per_s": len(found) / seconds,
        "tokens_per_s": sum(count for _, count in found) / seconds,
        "first_p50": statistics.median(first),
        "first_p95": first[min(len(first) - 1, int(0.95 * len(first)))],
    }


def page(rows: Sequence[dict[str, Any]], base: str) -> str:
    best = {(r["clients"], r["adapters"]): r for r in rows if r["way"] == "engine, in process"}
    versions = ", ".join(
        f"{k} {v}" for k, v in installed("torch", "transformers", "peft", "fastapi", "uvicorn").items()
    )
    lines = ["# Serving", "", f"Base: `{Path(base).name}`, 16-bit. {machine()}. {versions}.", ""]
    lines += [
        f"Each request asks one of N adapters and gets {TOKENS} tokens at most. The clients run on the same two cores. "
        "The loop of plain transformers answers one request after another, so its first token is its whole answer.",
        "",
        "| way | clients | adapters | requests/s | of the engine | tokens/s | first token (p50) | first token (p95) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        known = best.get((row["clients"], row["adapters"]))
        share = f"{row['requests_per_s'] / known['requests_per_s']:.2f} ×" if known else "–"
        lines.append(
            f"| {row['way']} | {row['clients']} | {row['adapters']} | {row['requests_per_s']:.2f} | {share} | "
            f"{row['tokens_per_s']:.0f} | {row['first_p50']:.2f} s | {row['first_p95']:.2f} s |"
        )
    lines += ["", "<!-- not run: takes minutes, and the real model -->", "```console"]
    lines += ["$ python examples/benchmarks/serving.py --base MODEL -o docs/benchmarks", "```"]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="folder of an instruct model")
    parser.add_argument("-o", "--output", required=True, help="folder for serving.md and serving.json")
    parser.add_argument("--clients", default="1,8,32")
    parser.add_argument("--adapters", default="1,8,32")
    parser.add_argument("--requests", type=int, default=64, help="of each cell (default: 64)")
    arguments = parser.parse_args()
    many = [int(count) for count in arguments.adapters.split(",")]
    rows: list[dict[str, Any]] = []

    def keep(way: str, clients: int, adapters: int, found: dict[str, float]) -> None:
        rows.append({"way": way, "clients": clients, "adapters": adapters, **found})
        print(json.dumps(rows[-1]), flush=True)

    with tempfile.TemporaryDirectory() as folder:
        hub = make_hub(Path(folder), arguments.base, max(many))
        for adapters in many:
            names = [f"writer{k}@v1" for k in range(adapters)]
            for clients in (int(count) for count in arguments.clients.split(",")):
                asked = questions(max(arguments.requests if clients > 1 else arguments.requests // 4, 4))
                keep("engine, in process", clients, adapters, in_process(hub, names, asked, clients))
                with server(hub.folder) as url:
                    over_http(url, names, asked[:2], 1)
                    keep("cl-adapter serve", clients, adapters, over_http(url, names, asked, clients))
                if clients == 1:
                    plain_names = [f"writer{k}" for k in range(adapters)]
                    keep("transformers + PEFT", 1, adapters,
                         plain(arguments.base, Path(folder) / "exported", plain_names, asked))  # fmt: skip
    out = Path(arguments.output)
    atomic_write_text(out / "serving.md", page(rows, arguments.base))
    atomic_write_text(out / "serving.json", json.dumps(rows) + "\n")
    print(page(rows, arguments.base))


if __name__ == "__main__":
    main()
