"""Ways to be asked, for serving_engines.py: a server over HTTP, the engine in process, a loop of plain PEFT."""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adapterhub_cl import AdapterHub

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
        for name in names:  # every adapter is loaded before it is timed
            engine.generate("warm", adapter=name, max_new_tokens=2)

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
