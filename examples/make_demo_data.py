"""Write the data of `cl-adapter demo`: three choice tasks and a set of facts, composed from hand-written phrases.

    python examples/make_demo_data.py [--out DIR]

The phrases lie in examples/demo_phrases/. A row is one or two sentence frames with their slots filled, now and then
with an opening and a closing, written in several degrees of care. Train and test draw on banks that have no frame,
noun or opening in common, so a model that only memorises its training rows does not pass. The same seed gives the
same files, byte for byte.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

PHRASES = Path(__file__).parent / "demo_phrases"
OUT = Path(__file__).parents[1] / "adapterhub_cl" / "demo"
SEED = 7
WORDS = (4, 40)  # shortest and longest row
Banks = Mapping[str, list[str]]


class Recipe(NamedTuple):
    """Rows for each label, and how often a row gets an opening, a closing, a second frame."""

    train: int
    test: int
    opener: float
    closer: float
    second: float
    spoken: bool = False


RECIPES = {
    "tickets": Recipe(train=50, test=13, opener=0.35, closer=0.35, second=0.2),
    "reviews": Recipe(train=120, test=40, opener=0.45, closer=0.15, second=0.35),
    "commands": Recipe(train=40, test=12, opener=0.4, closer=0.25, second=0.0, spoken=True),
}


def read_banks(task: str) -> dict[tuple[str, str], dict[str, list[str]]]:
    """(label or `shared`, split) → bank → phrases."""
    banks: dict[tuple[str, str], dict[str, list[str]]] = {}
    phrases: list[str] = []
    for line in (PHRASES / f"{task}.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("== "):
            *label, split, bank = line[3:].split()
            phrases = banks.setdefault((" ".join(label), split), {}).setdefault(bank, [])
        elif line and not line.startswith("#"):
            phrases.append(line)
    return banks


def fill(phrase: str, banks: Banks, chosen: dict[str, str], rng: random.Random) -> str:
    """Fill the slots (one slot keeps its item within a row) and settle the alternatives `(a|b)`."""

    def item(match: re.Match[str]) -> str:
        name = match[1]
        if name not in chosen:
            chosen[name] = rng.choice(banks[name])
        return chosen[name]

    phrase = re.sub(r"\(([^()]*\|[^()]*)\)", lambda match: rng.choice(match[1].split("|")), phrase)
    return " ".join(re.sub(r"\{(\w+)\}", item, phrase).split())


def articles(text: str) -> str:
    """`a apple` → `an apple`."""
    return re.sub(r"\b([Aa]) (?=[aeio]|u(?!ni|se))", r"\1n ", text)


def careless(text: str, rng: random.Random) -> str:
    """As people type: small letters, no full stop, a contraction, two letters swapped."""
    if rng.random() < 0.35:
        for full, short in (("I am ", "I'm "), ("do not", "don't"), ("cannot", "can't"), ("It is ", "It's ")):
            text = text.replace(full, short)
    if rng.random() < 0.15:
        text = text[0] + text[1:].lower() if rng.random() < 0.3 else text.lower()
    if rng.random() < 0.2:
        text = text.rstrip(".!")
    long = list(re.finditer(r"[a-z]{6,}", text))
    if long and rng.random() < 0.12:
        at = rng.choice(long).start() + rng.randint(1, 3)
        text = text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    return text


def compose(banks: Banks, frames: list[str], recipe: Recipe, rng: random.Random) -> str:
    """One row from one frame, or two, with what stands around them."""
    chosen: dict[str, str] = {}
    parts = [fill(frames[0], banks, chosen, rng)]
    if len(frames) > 1 and rng.random() < recipe.second:
        parts.append(fill(frames[1], banks, chosen, rng))
    # questions such as "what is the weather like" take no "could you" before them
    asks = recipe.spoken and re.match(
        r"(what|will|do|does|how|is|are|when|which|who|where|should|can|I|it|the|no) ", parts[0]
    )
    if rng.random() < recipe.opener and not asks:
        parts.insert(0, fill(rng.choice(banks["opener"]), banks, chosen, rng))
    if rng.random() < recipe.closer and not asks:
        parts.append(fill(rng.choice(banks["closer"]), banks, chosen, rng))
    if recipe.spoken:
        return articles(" ".join(parts))
    sentences = [parts[0][0].upper() + parts[0][1:]]
    for before, part in pairwise(parts):
        goes_on = before.endswith(",") and re.match(r"[A-Z][a-z]", part)  # "Hello, the app …", but "Hello, I …"
        sentences.append((part[0].lower() if goes_on else part[0].upper()) + part[1:])
    return careless(articles(" ".join(sentences)), rng)


def make_choice(task: str, split: str, rng: random.Random) -> list[dict[str, str]]:
    """The rows of a choice task, labels in turn, no row twice; every frame is used before one comes again."""
    recipe, all_banks = RECIPES[task], read_banks(task)
    shared = all_banks["shared", split]
    rows: list[dict[str, str]] = []
    seen: set[str] = set()
    for label in [label for label, part in all_banks if part == split and label != "shared"]:
        banks = {**shared, **all_banks[label, split]}
        queue: list[str] = []
        left = recipe.train if split == "train" else recipe.test
        while left:
            if len(queue) < 2:
                queue = rng.sample(banks["frame"], len(banks["frame"])) + queue
            frame, other = queue.pop(), queue[-1]
            text = compose(banks, [frame, *([other] if other != frame else [])], recipe, rng)
            key = re.sub(r"\W+", " ", text.lower())
            if WORDS[0] <= len(text.split()) <= WORDS[1] and key not in seen:
                seen.add(key)
                rows.append({"text": text, "label": label})
                left -= 1
    rng.shuffle(rows)
    return rows


def make_facts(split: str) -> list[dict[str, str]]:
    """The facts: two questions each for training, a paraphrase for the test."""
    rows = []
    for line in (PHRASES / "facts.txt").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            answer, *asked, paraphrase = (part.strip() for part in line.split(" | "))
            rows += [{"prompt": q, "completion": answer} for q in (asked if split == "train" else [paraphrase])]
    return rows


def make(task: str, split: str) -> list[dict[str, str]]:
    """The rows of one file, `<task>.<split>.jsonl`."""
    if task == "facts":
        return make_facts(split)
    return make_choice(task, split, random.Random(f"{SEED} {task} {split}"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=OUT, help="folder to write to")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for task in (*RECIPES, "facts"):
        for split in ("train", "test"):
            rows = make(task, split)
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (out / f"{task}.{split}.jsonl").write_text(text, encoding="utf-8", newline="\n")
            print(f"{task}.{split}.jsonl: {len(rows)} rows")


if __name__ == "__main__":
    main()
