"""What a larger base takes in memory: loaded, and at most while it loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from machine import peak_bytes, status_kib

KINDS = {"fp32": ("none", "fp32"), "bf16": ("none", "bf16"), "nf4": ("nf4", "bf16")}


def memory(source: str, kind: str) -> dict[str, Any]:
    """What a random Llama takes in memory once loaded, and at most while loading."""
    import torch

    from adapterhub_cl.bases.loading import inspect_base, load_base

    quantization, dtype = KINDS[kind]
    info = inspect_base(source, quantization)
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
        "peak_mb": peak_bytes() / 1e6,
    }


def own_bytes() -> int:
    """Memory of this process alone, files that are only mapped not counted (Linux)."""
    return status_kib("RssAnon") * 1024


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


def show(found: list[dict[str, Any]]) -> None:
    """Print the table."""
    print(f"{'base':8} {'weights':>10} {'resident':>10} {'peak':>10} {'fp32 ÷ this':>12}")
    for row in found:
        ratio = f"{found[0]['resident_mb'] / row['resident_mb']:.1f}×"
        mapped = row["resident_mb"] < row["weights_mb"]  # then they are the file's pages, which no process owns
        print(
            f"{row['way']:8} {row['weights_mb']:>7,.0f} MB {row['resident_mb']:>7,.0f} MB "
            f"{row['peak_mb']:>7,.0f} MB {'mapped' if mapped else ratio:>12}"
        )
