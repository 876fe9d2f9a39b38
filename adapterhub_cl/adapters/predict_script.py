"""Answers texts with the adapter in this folder; needs only torch, transformers and peft.

    python predict.py --base PATH_OR_ID "a text" "another one"
    python predict.py --base PATH_OR_ID < texts.txt

task.json says how the adapter was prompted in training: its prompt, its labels, what ends an answer. Each answer is one
line of JSON.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel

HERE = Path(__file__).resolve().parent


def load(about: dict[str, Any], source: str | None, quantization: str | None) -> tuple[Any, Any]:
    """The base with the adapter, and the tokenizer."""
    base = about["base"]
    source = source or base["name"]
    if source == "tiny":  # the base that is included in the package adapterhub-cl
        from adapterhub_cl.bases import resolve

        source = str(resolve(source))
    kind, device = quantization or base["quantization"], "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    options: dict[str, Any] = {"dtype": dtype, "device_map": {"": device}}
    if kind == "int8":
        options["quantization_config"] = transformers.BitsAndBytesConfig(load_in_8bit=True)
    elif kind in ("nf4", "fp4"):
        options["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=kind,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    if about["rows"]:
        options |= {"num_labels": about["rows"], "ignore_mismatched_sizes": True}
    model = getattr(transformers, base["class"]).from_pretrained(source, **options)
    tokenizer = transformers.AutoTokenizer.from_pretrained(HERE)
    return PeftModel.from_pretrained(model, HERE).eval(), tokenizer


def fill(template: str, values: dict[str, str]) -> str:
    """The template with its placeholders replaced, in one pass: braces in the text are never interpreted."""
    return re.sub(r"\{(input|instruction)\}", lambda found: values[found[1]], template)


def prompt_ids(tokenizer: Any, task: dict[str, Any], text: str, instruction: str) -> list[int]:
    """The prompt as in training; a text that is too long is cut at its end."""
    template = task["prompt"]["instructed" if instruction else "bare"]
    limit = task["max_length"] - task["longest_answer"]
    while True:
        filled = fill(template, {"input": text, "instruction": instruction})
        ids = list(tokenizer(filled, add_special_tokens=task["prompt"]["add_special_tokens"]).input_ids)
        if len(ids) <= limit or not text:
            return ids
        text = text[: max(0, len(text) - max(1, (len(ids) - limit) // 2))]


@torch.no_grad()
def choose(model: Any, task: dict[str, Any], ids: list[int]) -> dict[str, float]:
    """Label → probability."""
    if task["rows"]:  # an encoder: each label is a row of its head
        logits = model(input_ids=torch.tensor([ids], device=model.device)).logits[0].float()
        shares = logits[list(task["rows"].values())].softmax(-1).tolist()
        return dict(zip(task["rows"], shares, strict=True))
    logs = []
    for answer in task["label_ids"].values():
        whole = torch.tensor([ids + answer], device=model.device)
        told = model(input_ids=whole, use_cache=False).logits[0].float().log_softmax(-1)
        logs.append(sum(told[len(ids) - 1 + k, token] for k, token in enumerate(answer)))
    return dict(zip(task["label_ids"], torch.stack(logs).softmax(-1).tolist(), strict=True))


def write(model: Any, tokenizer: Any, task: dict[str, Any], ids: list[int], most: int) -> tuple[str, bool]:
    """A free answer, without what the prompt format writes around it, and whether it ended by itself."""
    inputs, ends = torch.tensor([ids], device=model.device), task["ends"]
    settings = {"do_sample": False, "max_new_tokens": most, "eos_token_id": ends, "pad_token_id": ends[0]}
    written = model.generate(input_ids=inputs, attention_mask=torch.ones_like(inputs), **settings)
    text = str(tokenizer.decode(written[0, len(ids) :], skip_special_tokens=True)).strip()
    text = text.removeprefix(task["answer_prefix"]).strip().removesuffix(task["answer_suffix"]).strip()
    return text, int(written[0, -1]) in ends


def main() -> None:
    about = json.loads((HERE / "task.json").read_text(encoding="utf-8"))
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("texts", nargs="*", help="texts to answer; default: the lines of standard input")
    parser.add_argument("--base", help=f"folder or id of the base; default: {about['base']['name']}")
    parser.add_argument("--task", choices=list(about["tasks"]), default=next(iter(about["tasks"])))
    parser.add_argument("--instruction", help="what to do with the text; default: the task's own")
    parser.add_argument("--quantization", choices=["nf4", "fp4", "int8", "none"], help="default: as in training")
    parser.add_argument("--max-new-tokens", type=int, help="longest free answer; default: what the task's answers need")
    asked = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        model, tokenizer = load(about, asked.base, asked.quantization)
    except OSError as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        sys.exit(
            f"cannot load the base {asked.base or about['base']['name']!r}: {reason}\ngive its folder or id: --base"
        )
    task = about["tasks"][asked.task]
    instruction = task["instruction"] if asked.instruction is None else asked.instruction
    for text in asked.texts or map(str.strip, sys.stdin):
        ids = prompt_ids(tokenizer, task, text, instruction)
        if task["kind"] == "choice":
            scores = choose(model, task, ids)
            best = max(scores, key=scores.__getitem__)
            answer = {"text": text, "prediction": best, "confidence": round(scores[best], 6)}
        else:
            said, finished = write(model, tokenizer, task, ids, asked.max_new_tokens or task["most_tokens"])
            answer = {"text": text, "prediction": said, "finished": finished}
        print(json.dumps(answer, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
