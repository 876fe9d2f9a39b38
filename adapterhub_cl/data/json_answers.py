"""Answers that are JSON objects: what their rows ask for, in words."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import takewhile
from statistics import fmean

from adapterhub_cl.data.values import as_object
from adapterhub_cl.types import Example

MOST_KEYS, LONGEST_KEY = 24, 40
BEGINS = "Answer with a JSON object that has the key"
ONE_WORD = re.compile(r"[\w-]+")
AS_NAMED = re.compile(rf'{ONE_WORD.pattern}|"(?:\\.|[^"\\])*"')  # a key in the sentence
SAYS_SOMETHING = 15  # characters with which all inputs begin or end: the prompt of whoever wrote them


def asks_for_keys(rows: Sequence[Example]) -> str:
    """An instruction that names the keys of the answers, in the order in which they first occur.

    A key that is not one word is in quotes, as it is in the answers.

    Empty unless every answer is a JSON object and the objects are alike: 24 keys at most among them, of 40 printable
    characters at most, and half of these in an object on average. Objects that are unlike have data as their keys.
    Empty too where the rows say what is wanted themselves: they have instructions or turns, half of the inputs mention
    JSON, or all begin or end with the same words.

    Args:
        rows: all training rows of a task.
    """
    keys = _keys(rows)
    if not keys or _say_it_themselves(rows):
        return ""
    *others, last = keys
    return f"{BEGINS}s {', '.join(others)} and {last}." if others else f"{BEGINS} {last}."


def not_asked_for(instruction: str, rows: Sequence[Example]) -> list[str]:
    """The keys of new answers that an instruction does not name, if `asks_for_keys` made it."""
    if not instruction.startswith(BEGINS):
        return []
    named = AS_NAMED.findall(instruction.removeprefix(BEGINS).removeprefix("s"))
    return [key for key in _keys(rows) if key not in named]


def _keys(rows: Sequence[Example]) -> list[str]:
    """The keys of answers that are alike, as a sentence has them; none if the answers are unlike, or no objects."""
    answers = [row.answer for row in rows if row.answer is not None]
    objects = list(takewhile(lambda one: isinstance(one, dict), map(as_object, answers)))  # ends at the first other one
    if not objects or len(objects) < len(answers):
        return []
    keys = list(dict.fromkeys(key for one in objects for key in one))
    plain = all(key.strip() and key.isprintable() and len(key) <= LONGEST_KEY for key in keys)
    if len(keys) > MOST_KEYS or not plain or 2 * fmean(map(len, objects)) < len(keys):
        return []
    return [key if ONE_WORD.fullmatch(key) else json.dumps(key, ensure_ascii=False) for key in keys]


def _say_it_themselves(rows: Sequence[Example]) -> bool:
    if any(row.instruction or row.turns for row in rows):
        return True
    texts = list(dict.fromkeys(row.text for row in rows))
    if 2 * sum("json" in text.casefold() for text in texts) >= len(texts):
        return True
    ends = [_shared_beginning(texts), _shared_beginning([text[::-1] for text in texts])] if len(texts) > 1 else []
    return any(len(end.strip()) >= SAYS_SOMETHING for end in ends)


def _shared_beginning(texts: Sequence[str]) -> str:
    first, last = min(texts), max(texts)  # these two differ at least as early as any others
    return "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False)))
