"""A batch whose rows need different adapters: the bank against one adapter for all rows, and against PEFT.

    python examples/benchmarks/mixed_batch.py --work /tmp/mixed -o docs/benchmarks
    python examples/benchmarks/mixed_batch.py --work /tmp/mixed --bases tiny --adapters 1 8

Random adapters (ranks 8 and 16, all linear layers) on two NF4 bases: the embedded `tiny`, and a random Llama of hidden
size 1024. One batch of 128 rows of 48 tokens is read (logits at the last token), and 16 tokens are written after it.
Every way of doing it runs in this one process, in turns; times are the medians of several rounds. `fresh load` opens
the adapter's file for each request as a script would; it is timed on eight requests and scaled. Then 1,000 adapters on
disk behind a bank of 64: what a hit and a miss cost, and the memory.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROWS, LENGTH, WRITTEN = 128, 48, 16
FRESH = 8  # requests that a fresh load is timed on


def make_base(work: Path, kind: str) -> Any:
    """The NF4 base, loaded."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from adapterhub_cl.bases.loading import inspect_base, load_base
    from adapterhub_cl.bases.sources import resolve

    source = kind
    if kind != "tiny":
        folder = work / kind
        if not (folder / "config.json").exists():
            tokenizer = AutoTokenizer.from_pretrained(resolve("tiny", None))
            torch.manual_seed(0)
            config = LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=1024,
                intermediate_size=2816,
                num_hidden_layers=4,
                num_attention_heads=16,
                num_key_value_heads=16,
                max_position_embeddings=512,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
                bos_token_id=tokenizer.bos_token_id,
            )
            LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        source = str(folder)
    return load_base(inspect_base(source, "nf4"), device="cpu")


def write_adapters(base: Any, folder: Path, count: int) -> list[Path]:
    """Random adapters in PEFT's format."""
    import torch
    from safetensors.torch import save_file

    from adapterhub_cl.adapters.targets import targets_of

    names = {name.rpartition(".")[2] for name in targets_of(base, None, None)}
    shapes = {
        name: (module.out_features, module.in_features)
        for name, module in base.model.named_modules()
        if name.rpartition(".")[2] in names and hasattr(module, "in_features")
    }
    made = []
    for k in range(count):
        target = folder / f"a{k:04}"
        made.append(target)
        if (target / "adapter_model.safetensors").exists():
            continue
        target.mkdir(parents=True, exist_ok=True)
        rank, draw = (8, 16)[k % 2], torch.Generator().manual_seed(k)
        weights = {}
        for name, (out, in_) in shapes.items():
            weights[f"base_model.model.{name}.lora_A.weight"] = torch.randn(rank, in_, generator=draw) * 0.02
            weights[f"base_model.model.{name}.lora_B.weight"] = torch.randn(out, rank, generator=draw) * 0.02
        save_file(weights, target / "adapter_model.safetensors", metadata={"format": "pt"})
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": rank,
            "lora_alpha": rank,
            "target_modules": sorted(names),
            "base_model_name_or_path": base.info.source,
        }
        (target / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return made


def timed(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each way, taken in turns."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if turn:  # the first turn warms up
                found[name].append(time.perf_counter() - started)
    return {name: statistics.median(times) for name, times in found.items()}


def measure(base: Any, folders: Sequence[Path], count: int, rounds: int) -> dict[str, Any]:
    """Seconds of one batch with `count` adapters among its rows, for each way; and how far the logits are apart."""
    import torch
    from peft import PeftModel

    from adapterhub_cl.bank.bank import LoraBank
    from adapterhub_cl.bank.shelf import read_adapter

    refs = [folder.name for folder in folders[:count]]
    wanted = [refs[k % count] for k in range(ROWS)]
    random.Random(count).shuffle(wanted)
    ids = torch.randint(5, 4000, (ROWS, LENGTH), generator=torch.Generator().manual_seed(1))
    kept: dict[str, torch.Tensor] = {}

    def read(model: Any, part: Any = slice(None), **more: Any) -> torch.Tensor:
        with torch.no_grad(), base.autocast():
            found: torch.Tensor = model(input_ids=ids[part], logits_to_keep=1, use_cache=False, **more).logits
        return found

    def write(model: Any, part: Any = slice(None), **more: Any) -> None:
        with torch.no_grad(), base.autocast():
            model.generate(
                input_ids=ids[part],
                attention_mask=torch.ones_like(ids[part]),
                max_new_tokens=WRITTEN,
                min_new_tokens=WRITTEN,
                do_sample=False,
                pad_token_id=base.tokenizer.pad_token_id,
                **more,
            )

    results: dict[str, Any] = {"adapters": count}
    by_name = {folder.name: folder for folder in folders}
    bank = LoraBank(base, lambda ref: read_adapter(by_name[ref], base.dtype), capacity=max(count, 1))

    def banked(step: Callable[..., Any], mixtures: list[dict[str, float]], name: str) -> None:
        with bank.rows(mixtures, keep=step is write) as model:
            kept[name] = step(model)

    one, mixed = [{refs[0]: 1.0}] * ROWS, [{ref: 1.0} for ref in wanted]
    for label, step in (("read", read), ("write", write)):
        ways: dict[str, Callable[[], Any]] = {
            "bank, one adapter for all rows": lambda step=step: banked(step, one, "one"),
            "bank, mixed": lambda step=step: banked(step, mixed, "bank"),
            "bank, base only": lambda step=step: banked(step, [{}] * ROWS, "base"),
        }
        results[label] = timed(ways, rounds)
    with bank.rows(mixed) as model:
        kept["bank"] = read(model)
    results["bank_bytes"] = bank.bytes
    bank.close()

    peft = PeftModel.from_pretrained(base.model, str(folders[0]), adapter_name=refs[0])
    for folder in folders[1:count]:
        peft.load_adapter(str(folder), adapter_name=folder.name)
    peft.eval()

    def in_turn(step: Callable[..., Any]) -> None:
        for ref in refs:
            peft.set_adapter(ref)
            step(peft, [k for k, name in enumerate(wanted) if name == ref])

    few = 1 if count >= 32 else 2
    for label, step in (("read", read), ("write", write)):
        results[label] |= timed(
            {
                "PEFT, adapter_names": lambda step=step: kept.update(peft=step(peft, adapter_names=wanted)),
                "PEFT, set_adapter in turn": lambda step=step: in_turn(step),
            },
            few,
        )
    kept["peft"] = read(peft, adapter_names=wanted)
    peft.unload()
    results["apart"] = float((kept["bank"].float() - kept["peft"].float()).abs().max())

    def fresh() -> None:
        for k in range(FRESH):
            opened = PeftModel.from_pretrained(base.model, str(by_name[wanted[k]]))
            read(opened, [k])
            opened.unload()

    started = time.perf_counter()
    fresh()
    results["read"]["PEFT, fresh load per request"] = (time.perf_counter() - started) * ROWS / FRESH
    gc.collect()
    return results


def latency(base: Any, folders: Sequence[Path], capacity: int) -> dict[str, Any]:
    """One request at a time over many adapters on disk: milliseconds of a hit and of a miss; memory."""
    import psutil
    import torch

    from adapterhub_cl.bank.bank import LoraBank
    from adapterhub_cl.bank.shelf import read_adapter

    by_name = {folder.name: folder for folder in folders}
    bank = LoraBank(base, lambda ref: read_adapter(by_name[ref], base.dtype), capacity=capacity, host_bytes=10**8)
    ids = torch.randint(5, 4000, (1, LENGTH), generator=torch.Generator().manual_seed(1))
    draw = random.Random(0)
    times: dict[str, list[float]] = {"hit": [], "shelf": [], "disk": []}
    memory = []
    for turn in range(4000):
        # Some are popular: what a cache is for.
        ref = folders[min(int(draw.paretovariate(0.6)) - 1, len(folders) - 1)].name
        kind = "hit" if ref in bank.refs else "shelf" if ref in bank.shelf else "disk"
        started = time.perf_counter()
        with bank.rows([{ref: 1.0}]) as model, torch.no_grad(), base.autocast():
            model(input_ids=ids, logits_to_keep=1, use_cache=False)
        times[kind].append((time.perf_counter() - started) * 1000)
        if turn % 500 == 499:
            memory.append(round(psutil.Process().memory_info().rss / 1e6))
    found = {
        "adapters_on_disk": len(folders),
        "capacity": capacity,
        "rss_mb": memory,
        "bank_mb": round(bank.bytes / 1e6, 1),
        "shelf_mb": round(bank.shelf.bytes / 1e6, 1),
    }
    for kind, values in times.items():
        ordered = sorted(values)
        found[kind] = {
            "n": len(values),
            "p50_ms": round(statistics.median(values), 2) if values else None,
            "p95_ms": round(ordered[int(len(ordered) * 0.95)], 2) if values else None,
        }
    bank.close()
    return found


def as_markdown(found: dict[str, Any]) -> str:
    lines = [
        "# A batch whose rows need different adapters",
        "",
        f"{ROWS} rows of {LENGTH} tokens read, and {WRITTEN} tokens written after them; NF4 bases, random adapters of",
        f"ranks 8 and 16 on all linear layers; seconds, medians of one run. {found['machine']}.",
        "`of one`: the rate of one adapter for all rows that is left. Made by `examples/benchmarks/mixed_batch.py`.",
        "",
    ]
    for base, about in found["bases"].items():
        for step, what in (("read", "read"), ("write", "read and write")):
            names = list(about["batches"][0][step])
            lines += [f"## {base}: {what}", "", "| adapters | " + " | ".join(names) + " | of one | PEFT mixed ÷ bank |"]
            lines.append("|" + "---|" * (len(names) + 3))
            for row in about["batches"]:
                times = row[step]
                share = times["bank, one adapter for all rows"] / times["bank, mixed"]
                ratio = times["PEFT, adapter_names"] / times["bank, mixed"]
                cells = " | ".join(f"{times[name]:.3f}" for name in names)
                lines.append(f"| {row['adapters']} | {cells} | {share:.2f} | {ratio:.1f} |")
            lines.append("")
        apart = max(row["apart"] for row in about["batches"])
        lines += [f"Largest difference of a logit between the bank and PEFT, bf16: {apart:.3g}.", ""]
        if "latency" in about:
            one = about["latency"]
            lines += [
                f"{one['adapters_on_disk']:,} adapters on disk, a bank of {one['capacity']}, one request of {LENGTH} "
                "tokens at a time:",
                "",
                "| adapter is | requests | median ms | 95th percentile ms |",
                "|---|---|---|---|",
                *(
                    f"| {name} | {one[key]['n']} | {one[key]['p50_ms']} | {one[key]['p95_ms']} |"
                    for key, name in (("hit", "in the bank"), ("shelf", "on the shelf"), ("disk", "on disk"))
                ),
                "",
                f"Bank {one['bank_mb']} MB, shelf {one['shelf_mb']} MB; the process's memory after every 500 requests: "
                f"{', '.join(str(mb) for mb in one['rss_mb'])} MB.",
                "",
            ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="where bases and adapters are kept")
    parser.add_argument("--bases", nargs="+", default=["tiny", "wide"])
    parser.add_argument("--adapters", nargs="+", type=int, default=[1, 8, 32, 128])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--on-disk", type=int, default=1000, help="adapters for the latencies; 0 leaves them out")
    parser.add_argument("-o", "--output", type=Path, help="folder for mixed_batch.json and mixed_batch.md")
    asked = parser.parse_args()
    import torch

    from adapterhub_cl.quiet import quiet_third_parties

    quiet_third_parties()
    found: dict[str, Any] = {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}",
        "bases": {},
    }
    for kind in asked.bases:
        base = make_base(asked.work, kind)
        folders = write_adapters(base, asked.work / f"adapters-{kind}", max(asked.adapters))
        about: dict[str, Any] = {"batches": []}
        for count in asked.adapters:
            about["batches"].append(measure(base, folders, count, asked.rounds))
            print(kind, json.dumps(about["batches"][-1]), flush=True)
        if asked.on_disk and kind == "tiny":
            about["latency"] = latency(base, write_adapters(base, asked.work / f"adapters-{kind}", asked.on_disk), 64)
            print(kind, json.dumps(about["latency"]), flush=True)
        found["bases"][kind] = about
    if asked.output:
        asked.output.mkdir(parents=True, exist_ok=True)
        (asked.output / "mixed_batch.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        (asked.output / "mixed_batch.md").write_text(as_markdown(found), encoding="utf-8")


if __name__ == "__main__":
    main()
