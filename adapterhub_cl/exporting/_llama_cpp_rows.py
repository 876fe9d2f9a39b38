"""Answers rows with llama.cpp; needs only the package llama_cpp, so that it also runs in another environment.

Standard input has one JSON object: `model`, `lora` (a file or null), `context`, `threads`, `texts` to tokenise, and
`rows`, each with the ids of a prompt and either `labels` (label → ids) or `most` (tokens to write) and `ends` (ids that
end an answer). Each line of standard output is the answer to one row: the label of the highest likelihood, or the ids
that were written; then the ids of each text.
"""

from __future__ import annotations

import json
import math
import sys
from typing import Any


def likelihood(logits: Any, token: int) -> float:
    """The logarithm of the probability of a token."""
    top = float(max(logits))
    return float(logits[token]) - top - math.log(sum(math.exp(float(one) - top) for one in logits))


def choose(model: Any, row: dict[str, Any]) -> str:
    """The likeliest label; the prompt is read once."""
    prompt = row["prompt"]
    model.reset()
    model.eval(prompt)
    first = model.scores[model.n_tokens - 1].copy()
    found: dict[str, float] = {}
    for label, ids in row["labels"].items():
        told = likelihood(first, ids[0])
        if len(ids) > 1:
            model.n_tokens = len(prompt)
            model.eval(ids[:-1])
            told += sum(likelihood(model.scores[len(prompt) + k], token) for k, token in enumerate(ids[1:]))
        found[label] = told
    return max(found, key=found.__getitem__)


def write(model: Any, row: dict[str, Any]) -> list[int]:
    """The likeliest next token, again and again."""
    model.reset()
    model.eval(row["prompt"])
    written: list[int] = []
    while len(written) < row["most"]:
        token = int(model.scores[model.n_tokens - 1].argmax())
        if token in row["ends"]:
            break
        written.append(token)
        model.eval([token])
    return written


def main() -> None:
    import llama_cpp  # type: ignore[import-not-found]

    usual = llama_cpp.llama_model_default_params

    def plain() -> Any:
        # Weights as they are in the file: rearranged for AMX, q8_0 ends some machines with a segmentation fault.
        params = usual()
        params.use_extra_bufts = False
        return params

    llama_cpp.llama.llama_cpp.llama_model_default_params = plain
    order = json.load(sys.stdin)
    model = llama_cpp.Llama(
        model_path=order["model"],
        lora_path=order["lora"],
        n_ctx=order["context"],
        logits_all=True,
        n_threads=order["threads"],
        n_threads_batch=order["threads"],
        verbose=False,
    )
    for row in order["rows"]:
        said = choose(model, row) if "labels" in row else write(model, row)
        print(json.dumps(said), flush=True)
    for text in order["texts"]:
        print(json.dumps(model.tokenize(text.encode(), add_bos=False, special=True)), flush=True)


if __name__ == "__main__":
    main()
