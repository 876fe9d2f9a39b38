"""Training speed and memory against a plain PEFT + transformers Trainer loop: same task, batch, epochs, rank, seed.

    python examples/benchmarks/training_speed.py --data ../shared/data/cl15/agnews
    python examples/benchmarks/training_speed.py --task adapterhub_cl/demo/tickets

Each way runs in a process of its own, one after the other, so that peak memory is its own; ratios are taken within
one run of this script. `--memory` compares what a larger random base (hidden size 1024) takes in memory instead.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil

WAYS = {
    "trainer-fp32": "PEFT + transformers Trainer, fp32 base",
    "trainer-nf4": "PEFT + transformers Trainer, NF4 base",
    "hub-none": "AdapterHub-CL, 16-bit base",
    "hub-nf4": "AdapterHub-CL, NF4 base",
}


def rows_of(prefix: str) -> tuple[Path, Path]:
    """`folder` → folder/train.jsonl and test.jsonl; `path/name` → path/name.train.jsonl and name.test.jsonl."""
    folder = Path(prefix)
    if folder.is_dir():
        return folder / "train.jsonl", folder / "test.jsonl"
    return Path(f"{prefix}.train.jsonl"), Path(f"{prefix}.test.jsonl")


def settings_of(arguments: argparse.Namespace) -> Any:
    from adapterhub_cl import TrainingSettings

    return TrainingSettings(
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        rank=16,
        max_length=arguments.max_length,
        dev_share=0.0,
        learning_rate=2e-3,
        warmup=0.05,
    )


def one_way(way: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train once and score on the test rows; the scoring is the same code for all ways."""
    from adapterhub_cl.bases.loading import inspect_base, load_base
    from adapterhub_cl.data.columns import read_examples
    from adapterhub_cl.data.tasks import infer_task
    from adapterhub_cl.evaluation.scoring import evaluate
    from adapterhub_cl.objectives.causal_lm import Objective

    train, test = (read_examples(path) for path in rows_of(arguments.task))
    task = infer_task("task", train)
    who, quantization = way.split("-")
    quantization = "none" if quantization == "fp32" else quantization
    dtype = "fp32" if who == "trainer" else "auto"
    base = load_base(inspect_base(arguments.base, quantization), device="cpu", dtype=dtype)
    objective, settings = Objective(), settings_of(arguments)
    process = psutil.Process()
    before = process.memory_info().rss
    run = train_with_trainer if who == "trainer" else train_with_hub
    with ExitStack() as opened:  # the adapter stays on the base until it is scored
        model, seconds = run(base, objective, task, train.examples, settings, opened)
        score = evaluate(
            model,
            base.tokenizer,
            objective,
            task,
            test.examples[: arguments.test_rows],
            data="test",
            max_length=settings.max_length,
            dtype=base.dtype,
        )[0]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "way": way,
        "examples_per_second": len(train) * settings.epochs / seconds,
        "seconds": seconds,
        "accuracy": score.value,
        "peak_mb": peak / 1e6,
        "training_mb": (peak - before) / 1e6,
    }


def train_with_trainer(
    base: Any, objective: Any, task: Any, examples: Any, settings: Any, _: ExitStack
) -> tuple[Any, float]:
    """What the documentation of PEFT and transformers shows."""
    from peft import LoraConfig, get_peft_model
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    from adapterhub_cl.data.tokenise import Tokeniser

    tokens = Tokeniser(base.tokenizer, task, settings.max_length).many(examples)
    rows = [{"input_ids": [*t.prompt, *t.answer], "labels": [-100] * len(t.prompt) + list(t.answer)} for t in tokens]
    config = LoraConfig(r=settings.rank, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base.model, config)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model,
            TrainingArguments(
                folder,
                per_device_train_batch_size=settings.batch_size,
                num_train_epochs=settings.epochs,
                learning_rate=settings.learning_rate,
                lr_scheduler_type="cosine",
                warmup_steps=0.05,
                use_cpu=True,
                report_to=[],
                save_strategy="no",
                disable_tqdm=True,
                logging_strategy="no",
                dataloader_pin_memory=False,
                seed=settings.seed,
            ),
            train_dataset=rows,
            data_collator=DataCollatorForSeq2Seq(base.tokenizer),
        )
        started = time.perf_counter()
        trainer.train()
        return model, time.perf_counter() - started


def train_with_hub(
    base: Any, objective: Any, task: Any, examples: Any, settings: Any, opened: ExitStack
) -> tuple[Any, float]:
    """The library's own path, from tokens to the best weights; its choice of attention is inside the time."""
    from accelerate import Accelerator

    from adapterhub_cl.strategies.isolated import Strategy
    from adapterhub_cl.training.learn import Lesson, learn
    from adapterhub_cl.training.lora import new_adapter
    from adapterhub_cl.training.progress import Reporter

    model = opened.enter_context(new_adapter(base, settings, objective.task_type))
    started = time.perf_counter()
    learn(
        model,
        base,
        objective,
        Strategy(),
        Lesson(task, examples),
        settings,
        run=None,
        chosen=None,
        on_speed=lambda choice: None,
        accelerator=Accelerator(cpu=True),
        reporter=Reporter(),
    )
    return model, time.perf_counter() - started


def memory(arguments: argparse.Namespace, kind: str) -> dict[str, Any]:
    """What a random Llama takes in memory once loaded, and at most while loading."""
    import torch

    from adapterhub_cl.bases.loading import inspect_base, load_base

    quantization, dtype = {"fp32": ("none", "fp32"), "bf16": ("none", "bf16"), "nf4": ("nf4", "bf16")}[kind]
    info = inspect_base(arguments.base, quantization)
    import bitsandbytes  # noqa: F401 (its own memory is not the base's)

    before = own_bytes()
    base = load_base(info, device="cpu", dtype=dtype)
    with torch.no_grad():  # mapped weights are read from disk at their first use
        base.model(input_ids=torch.zeros(1, 2, dtype=torch.long))
    held = sum(p.numel() * p.element_size() for p in base.model.parameters())
    return {
        "way": kind,
        "weights_mb": held / 1e6,
        "resident_mb": (own_bytes() - before) / 1e6,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
    }


def own_bytes() -> int:
    """Memory of this process alone, files that are only mapped not counted (Linux)."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("RssAnon"))


def random_base(folder: Path) -> None:
    """A random Llama with hidden size 1024 and 16 layers, beside the embedded base's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from adapterhub_cl.bases import TINY, resolve

    config = LlamaConfig(
        hidden_size=1024, intermediate_size=2816, num_hidden_layers=16, num_attention_heads=16, vocab_size=4096
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    PreTrainedTokenizerFast.from_pretrained(resolve(TINY)).save_pretrained(folder)


def in_its_own_process(arguments: argparse.Namespace, *extra: str) -> dict[str, Any]:
    command = [sys.executable, __file__, *sys.argv[1:], *extra]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", "--data", default="../shared/data/cl15/agnews")
    parser.add_argument("--base", default="tiny")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--test-rows", type=int, default=1000)
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--memory", action="store_true", help="compare the memory of a larger base instead")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(memory(arguments, arguments.one) if arguments.memory else one_way(arguments.one, arguments)))
        return
    print(f"{platform.processor() or platform.machine()}, {psutil.cpu_count()} CPUs, torch threads as by default")
    if arguments.memory:
        with tempfile.TemporaryDirectory() as folder:
            random_base(Path(folder))
            found = [in_its_own_process(arguments, "--base", folder, "--one", k) for k in ("fp32", "bf16", "nf4")]
        print(f"{'base':8} {'weights':>10} {'resident':>10} {'peak':>10} {'fp32 ÷ this':>12}")
        for row in found:
            ratio = found[0]["resident_mb"] / row["resident_mb"]
            print(
                f"{row['way']:8} {row['weights_mb']:>7,.0f} MB {row['resident_mb']:>7,.0f} MB "
                f"{row['peak_mb']:>7,.0f} MB {ratio:>11.1f}×"
            )
        return
    found = [in_its_own_process(arguments, "--one", way) for way in arguments.ways.split(",")]
    print(f"{'':42} {'examples/s':>10} {'ratio':>6} {'accuracy':>9} {'peak':>8} {'in training':>12}")
    for row in found:
        print(
            f"{WAYS[row['way']]:42} {row['examples_per_second']:>10.1f} "
            f"{row['examples_per_second'] / found[0]['examples_per_second']:>5.2f}× {row['accuracy']:>8.1%} "
            f"{row['peak_mb']:>5,.0f} MB {row['training_mb']:>9,.0f} MB"
        )


if __name__ == "__main__":
    main()
