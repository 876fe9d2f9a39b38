"""What it brings that answers join and leave a running batch at any token, beside `generate` for whole batches.

    OMP_NUM_THREADS=1 python examples/benchmarks/batching.py --base MODEL

One run, one machine, the two ways in turns, random LoRAs on q and v. Prints ratios: of time for the first, of processor
time for the others, because other programs may use the same cores.

- a short answer (8 tokens) that is asked for while four long ones (128 tokens) are being written;
- eight answers of 8 to 64 tokens with four adapters, as `predict` writes them;
- eight answers of the same length, where nothing can be gained by leaving.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

sys.path.append(str(Path(__file__).parent))  # machine.py
from machine import machine

from adapterhub_cl import AdapterHub
from adapterhub_cl.answering.answerer import Answerer, AskedRow
from adapterhub_cl.answering.writing import Writing
from adapterhub_cl.inference.requests import free_request
from adapterhub_cl.quiet import quiet_third_parties
from adapterhub_cl.types import Example, Task

SHORT = 8
PROMPTS = [f"Write about the {word}:" for word in ("river", "old bread", "train", "garden", "market square", "winter",
                                                   "teacher of the town", "violin")]  # fmt: skip
ADAPTERS = ("w0", "w1", "w2", "w3")


@contextmanager
def whole_batches() -> Iterator[None]:
    """As it was before: `generate` writes batches, and what comes meanwhile waits."""
    with (
        mock.patch("adapterhub_cl.answering.writing.can_decode", return_value=False),
        mock.patch("adapterhub_cl.answering.running_rows.can_decode", return_value=False),
    ):
        yield


@contextmanager
def joining() -> Iterator[None]:
    yield


WAYS = {"generate": whole_batches, "joining": joining}


def make_hub(folder: Path, base: str, dtype: str) -> AdapterHub:
    """A hub with four random LoRAs."""
    import torch
    from peft import LoraConfig, get_peft_model

    hub = AdapterHub.init(folder / "hub", base, quantization="none", dtype=dtype)
    for name in ADAPTERS:
        torch.manual_seed(int(name[1:]))
        config = LoraConfig(r=8, target_modules=["q_proj", "v_proj"], init_lora_weights="gaussian")
        model = get_peft_model(hub.load_base().model, config)
        with torch.no_grad():
            for key, part in model.named_parameters():
                if "lora_B" in key:
                    part.normal_(std=0.02)
        model.save_pretrained(folder / name)
        model.unload()
        hub.import_adapter(folder / name, name)
    return hub


def short_beside_long(hub: AdapterHub, long: int) -> float:
    """Seconds until a short answer is there that was asked for when four long ones had begun."""
    begun, going = threading.Event(), threading.Event()
    going.set()

    def emit(_: str) -> bool:
        begun.set()
        return going.is_set()

    with hub.engine(wait_ms=50) as engine:
        for name, text in zip(ADAPTERS, PROMPTS, strict=False):
            request = free_request(text, None, name, 1, True, {"max_new_tokens": long})
            request.emit, request.wanted = emit, going.is_set
            engine.ask(request)
        begun.wait()
        started = time.perf_counter()
        engine.generate(PROMPTS[5], adapter="w1", raw=True, max_new_tokens=SHORT)
        seconds = time.perf_counter() - started
        going.clear()
    return seconds


def seconds_a_token(hub: AdapterHub, lengths: Sequence[int]) -> float:
    """Processor time, of eight answers in one batch, each with one of four adapters."""
    with hub.engine() as engine:
        rows = [
            AskedRow(Task(""), Example(text), {f"{ADAPTERS[k % 4]}@v1": 1.0}, Writing(lengths[k]),
                     tuple(engine.base.tokenizer(text).input_ids))
            for k, text in enumerate(PROMPTS)
        ]  # fmt: skip
        answerer = Answerer(engine.base.tokenizer, engine.bank, max_length=engine.base.context)
        started = time.process_time()
        found = answerer.all(rows)
        return (time.process_time() - started) / sum(len(one.tokens) for one in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="tiny")
    parser.add_argument("--dtype", default="fp32", help="of the base")
    parser.add_argument("--rounds", type=int, default=3, help="the two ways in turns, so many times")
    parser.add_argument("--long", type=int, default=128, help="tokens of a long answer")
    asked = parser.parse_args()
    quiet_third_parties()
    print(f"{asked.base}, {asked.dtype}, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')}, {machine()}")
    with tempfile.TemporaryDirectory(prefix="batching-") as folder:
        hub = make_hub(Path(folder), asked.base, asked.dtype)
        measured: dict[str, Callable[[], float]] = {
            f"a short answer beside four of {asked.long} tokens": lambda: short_beside_long(hub, asked.long),
            "a token, answers of 8 to 64 tokens": lambda: seconds_a_token(hub, range(8, 72, 8)),
            "a token, answers of 24 tokens": lambda: seconds_a_token(hub, [24] * 8),
        }
        for name, measure in measured.items():
            times: dict[str, list[float]] = {way: [] for way in WAYS}
            for _ in range(asked.rounds):
                for way, within in WAYS.items():
                    with within():
                        times[way].append(measure())
            ratios = [old / new for old, new in zip(times["generate"], times["joining"], strict=True)]
            print(f"{name}: {statistics.median(ratios):.2f} times as fast ({', '.join(f'{r:.2f}' for r in ratios)})")


if __name__ == "__main__":
    main()
