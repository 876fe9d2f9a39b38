"""Augmentation: further training examples made from those at hand (one file per method). Answers never change."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from adapterhub_cl.data.tasks import find_leaks
from adapterhub_cl.errors import UsageError
from adapterhub_cl.plugins import Room
from adapterhub_cl.types import Example

ROOM = Room("adapterhub_cl.augmentation", "augmentation", "Augmentation")
ATTEMPTS = 4  # tries for one copy before it is given up

# prompts, seed → one continuation for each prompt, written by the base
Writer = Callable[[Sequence[str], int], list[str]]


class BaseAugmentation(ABC):
    """Makes examples out of examples. A method of words fills in `vary`; one that lets the base write, `write`."""

    needs_base: ClassVar[bool] = False

    @abstractmethod
    def vary(self, example: Example, generator: random.Random) -> str | None:
        """Another input for the same answer; None where the example cannot be changed. Draws from the generator."""

    def write(self, examples: Sequence[Example], count: int, generator: random.Random, writer: Writer) -> list[Example]:
        """At most `count` examples whose inputs the base writes; only for methods with `needs_base`."""
        raise NotImplementedError(f"{type(self).__module__} does not write")


@dataclass(frozen=True)
class Augment:
    """A parsed part of an `--augment` value.

    Attributes:
        name: name of the augmentation.
        copies: new examples for each example of the training data.
    """

    name: str
    copies: int

    def __str__(self) -> str:
        return f"{self.name}:{self.copies}"


@dataclass(frozen=True)
class Counts:
    """What `augment` did.

    Attributes:
        made: new examples.
        duplicates: drafts dropped because the training data or another new example has the same input.
        leaks: drafts dropped because an evaluation row has the same input.
    """

    made: int
    duplicates: int
    leaks: int


def parse(value: str) -> Augment:
    """`swap:2` → `Augment("swap", 2)`.

    Raises:
        UsageError: the form is not NAME:COPIES, or copies is not a whole number ≥ 1.
        UnknownNameError: no such augmentation.
    """
    name, colon, copies = value.partition(":")
    if not colon or not (copies.isascii() and copies.isdecimal()) or int(copies) < 1:
        raise UsageError(
            f"--augment {value!r} is not NAME:COPIES", "for example --augment swap:1, or --augment swap:2,noise:1"
        )
    ROOM.get(name)
    return Augment(name, int(copies))


def parse_all(value: str) -> tuple[Augment, ...]:
    """`swap:2,noise:1` → both, in this order; an empty text → none. Errors as `parse`; no name may come twice."""
    if not value.strip():
        return ()
    wanted = tuple(parse(part.strip()) for part in value.split(","))
    names = [one.name for one in wanted]
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise UsageError(f"--augment names {twice[0]} twice", "say each once, with all its copies: swap:3")
    return wanted


def augment(
    examples: Sequence[Example],
    wanted: Sequence[Augment],
    seed: int,
    *,
    avoid: Sequence[Example] = (),
    writer: Writer | None = None,
) -> tuple[list[Example], Counts]:
    """The new examples only, in an order that the seed decides alone.

    Args:
        examples: the training examples.
        wanted: which augmentations, and how many copies of each example.
        seed: decides every draw; each augmentation has a generator of its own, so one does not move the others.
        avoid: evaluation rows; nothing new has the input of one of them.
        writer: lets the base write; needed where an augmentation has `needs_base`.

    Raises:
        UsageError: an augmentation needs the base and there is no writer.
        UnknownNameError: no such augmentation.
    """
    sieve = _Sieve(examples, avoid)
    made: list[Example] = []
    for one in wanted:
        method: BaseAugmentation = ROOM.get(one.name)()
        generator = random.Random(f"{seed}/{one.name}")
        if not method.needs_base:
            made += _vary(method, examples, one.copies, generator, sieve)
        elif writer is not None:
            made += _write(method, examples, one.copies, generator, writer, sieve)
        else:
            raise UsageError(f"--augment {one.name} needs the base to write, and there is none here", "choose swap:1")
    return made, Counts(len(made), sieve.duplicates, sieve.leaks)


class _Sieve:
    """Passes drafts whose input is new. What counts as the same input is `find_leaks`' word."""

    def __init__(self, examples: Sequence[Example], avoid: Sequence[Example]) -> None:
        self.duplicates = self.leaks = 0
        self._examples, self._avoid = examples, avoid
        self._seen: set[str] = set()

    def passes(self, drafts: Sequence[Example]) -> list[bool]:
        leaks, known = set(find_leaks(self._avoid, drafts)), set(find_leaks(self._examples, drafts))
        answers = []
        for index, draft in enumerate(drafts):
            key = " ".join(f"{draft.instruction}\n{draft.input}".casefold().split())
            good = index not in leaks and index not in known and key not in self._seen
            self._seen.add(key)
            self.leaks += index in leaks
            self.duplicates += not good and index not in leaks
            answers.append(good)
        return answers


def _vary(
    method: BaseAugmentation, examples: Sequence[Example], copies: int, generator: random.Random, sieve: _Sieve
) -> list[Example]:
    made: dict[int, Example] = {}
    slots = [i for i in range(len(examples)) for _ in range(copies)]
    open_slots = list(range(len(slots)))
    for _ in range(ATTEMPTS):
        drafts: dict[int, Example] = {}
        for slot in open_slots:
            example = examples[slots[slot]]
            text = method.vary(example, generator)
            if text is not None:
                drafts[slot] = example.with_input(text)
        passed = sieve.passes(list(drafts.values()))
        made |= {slot: draft for (slot, draft), good in zip(drafts.items(), passed, strict=True) if good}
        open_slots = [slot for slot in drafts if slot not in made]
        if not open_slots:
            break
    return [made[slot] for slot in sorted(made)]


def _write(
    method: BaseAugmentation,
    examples: Sequence[Example],
    copies: int,
    generator: random.Random,
    writer: Writer,
    sieve: _Sieve,
) -> list[Example]:
    made: list[Example] = []
    for _ in range(ATTEMPTS):
        missing = copies * len(examples) - len(made)
        if missing < 1:
            break
        drafts = method.write(examples, missing, generator, writer)
        made += [draft for draft, good in zip(drafts, sieve.passes(drafts), strict=True) if good]
        if not drafts:
            break
    return made
