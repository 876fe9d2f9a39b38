"""Labels that are written in several ways: `Spam` and `spam`, `1` and `1.0`, `true` and `True`, with and without
characters that nobody sees.

Data of a known task are read with the labels as the task has them. Labels that are new are learned as they are written,
and those that look alike are named.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from adapterhub_cl.data.columns import Examples
from adapterhub_cl.data.remarks import places_of
from adapterhub_cl.types import Task

# what is not seen although Unicode counts it among letters, marks and symbols: fillers, and selectors of a variant
UNSEEN = re.compile("[\u034f\u115f\u1160\u2800\u3164\uffa0\ufe00-\ufe0f\U000e0100-\U000e01ef]")


def form(label: str) -> str:
    """What is left of a label without its case, its spaces, the characters that nobody sees, and the zeros behind a
    whole number's point."""
    if not label.isascii() or not label.isprintable():
        label = UNSEEN.sub("", label)
        label = "".join(c for c in label if c.isspace() or unicodedata.category(c) not in ("Cf", "Cc"))
    text = " ".join(label.casefold().split())
    return re.sub(r"\.0+$", "", text) if re.fullmatch(r"[+-]?\d+\.0+", text) else text


def with_known_labels(labels: Sequence[str], examples: Examples) -> Examples:
    """The examples with each answer that differs from exactly one label in nothing but its form read as that label.
    Their remarks say so."""
    known: dict[str, list[str]] = defaultdict(list)
    for label in labels:
        known[form(label)].append(label)
    exact = set(labels)
    read: dict[str, str] = {}
    for answer in {example.answer for example in examples if example.answer is not None} - exact:
        alike = known.get(form(answer), [])
        if len(alike) == 1:
            read[answer] = alike[0]
    if not read:
        return examples
    found = [replace(e, answer=read[e.answer]) if e.answer in read else e for e in examples]
    places = [place for e, place in zip(examples, examples.places, strict=True) if e.answer in read]
    pairs = ", ".join(f"{answer!r} → {label!r}" for answer, label in sorted(read.items())[:4])
    count = f"{len(places)} answers are" if len(places) > 1 else "1 answer is"
    remark = f"note: {count} read as the task's label that is written otherwise: {pairs} ({places_of(places)})"
    return replace(examples, examples=found, remarks=(*examples.remarks, remark))


def for_task(task: Task, examples: Examples) -> Examples:
    """Data of a known task, see `with_known_labels`; unchanged where the task is no choice."""
    return with_known_labels(task.labels, examples) if task.kind == "choice" else examples


def tell_alike(labels: Iterable[str], examples: Examples) -> list[str]:
    """A warning for each group of labels that differ only in how they are written."""
    groups: dict[str, list[str]] = defaultdict(list)
    for label in labels:
        groups[form(label)].append(label)
    found = []
    for alike in groups.values():
        if len(alike) < 2:
            continue
        told = []
        for label in alike:
            places = [p for e, p in zip(examples, examples.places, strict=True) if e.answer == label]
            rows = f"{len(places)} row{'' if len(places) == 1 else 's'}"
            told.append(f"{label!r} ({rows}, first: {places[0]})" if places else f"{label!r} (no row)")
        found.append(
            f"warning: the labels {', '.join(told)} differ only in how they are written and are learned as "
            f"{len(alike)} labels; write them alike if they mean the same"
        )
    return found
