"""Asks llama.cpp the held-out rows of a version, where its Python package is installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub_cl.errors import AdapterError
from adapterhub_cl.evaluation.compared import Answers, scored
from adapterhub_cl.exporting._proof import Reference

if TYPE_CHECKING:
    from adapterhub_cl.data.tokenise import Tokeniser

PYTHON = "CL_ADAPTER_LLAMA_PYTHON"  # a Python that can import llama_cpp, if this one cannot
SCRIPT = Path(__file__).with_name("_llama_cpp_rows.py")
LONGEST = 4096
NOT_RUN = f"note: llama.cpp was not run: llama-cpp-python is not installed, and {PYTHON} names no Python that has it"


def interpreter() -> str:
    """A Python that can import `llama_cpp`; empty if none is known."""
    return sys.executable if find_spec("llama_cpp") is not None else os.environ.get(PYTHON, "")


def answers(
    python: str, found: Reference, tokenizer: Any, context: int, model: Path, lora: Path | None = None
) -> tuple[Answers, float]:
    """What llama.cpp says to the rows of one task; and the share of the prompts that it tokenises as the base does.

    Args:
        python: see `interpreter`.
        tokenizer: of the base, and its `context` in tokens.
        model, lora: GGUF files.

    Raises:
        AdapterError: llama.cpp failed.
    """
    from adapterhub_cl.data.tokenise import Tokeniser

    task = found.task
    encode = Tokeniser(tokenizer, task, context)
    gold = [encode.gold(example) for example in found.examples]
    most = encode.budget([*gold, *(text for example in found.examples for text in example.references)])
    rows = [_row(encode, tokenizer, example, most) for example in found.examples]
    texts = [tokenizer.decode(row["prompt"], clean_up_tokenization_spaces=False) for row in rows]
    longest = max(len(row["prompt"]) for row in rows) + most + 8
    order = {
        "model": str(model),
        "lora": None if lora is None else str(lora),
        "context": min(max(512, longest), LONGEST),
        "threads": max(1, int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)),
        "rows": rows,
        "texts": texts,
    }
    said = _asked(python, order)
    told = [one if isinstance(one, str) else encode.written(_text(tokenizer, one)) for one in said[: len(rows)]]
    same = sum(list(ids) == row["prompt"] for ids, row in zip(said[len(rows) :], rows, strict=True)) / len(rows)
    return scored(found.probe, gold, told), same


def _row(encode: Tokeniser, tokenizer: Any, example: Any, most: int) -> dict[str, Any]:
    from adapterhub_cl.answering.choices import LabelTree

    row: dict[str, Any] = {"prompt": list(encode.prompt(example).prompt)}
    if encode.task.kind == "choice":
        return {**row, "labels": LabelTree({label: encode.answer(label) for label in encode.task.labels}).ids()}
    return {**row, "most": most, "ends": sorted({encode.end, int(tokenizer.eos_token_id)})}


def _text(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _asked(python: str, order: dict[str, Any]) -> list[Any]:
    run = subprocess.run(
        [python, str(SCRIPT)],
        input=json.dumps(order),
        capture_output=True,
        text=True,
        check=False,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    )
    wanted = len(order["rows"]) + len(order["texts"])
    lines = run.stdout.splitlines()
    if run.returncode or len(lines) != wanted:
        why = (run.stderr.strip().splitlines() or [f"exit code {run.returncode}"])[-1]
        raise AdapterError(f"llama.cpp cannot answer with the exported file: {why}", f"check {python}")
    return [json.loads(line) for line in lines]
