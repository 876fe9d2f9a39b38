"""What each augmentation does to a text; the value of `--augment`; duplicates and leaks."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter

import pytest

from adapterhub_cl.augmentation import ROOM, Augment, Counts, augment, parse_all
from adapterhub_cl.augmentation._words import join, split
from adapterhub_cl.augmentation.generation import first_line
from adapterhub_cl.augmentation.noise import slip
from adapterhub_cl.errors import UnknownNameError, UsageError
from adapterhub_cl.types import Example

TEXT = "The parcel  did not arrive\non Monday, and nobody at the front desk could say where the blue kettle went."
EXAMPLE = Example(TEXT, "kettle")


def vary(name: str, example: Example = EXAMPLE, seeds: int = 60) -> list[str]:
    made = [ROOM.get(name)().vary(example, random.Random(seed)) for seed in range(seeds)]
    return [text for text in made if text is not None]


def test_words_and_gaps_make_the_text_again() -> None:
    for text in (TEXT, "", "  ", " a ", "a"):
        assert join(*split(text)) == text


def test_swap_moves_free_words_only() -> None:
    before = TEXT.split()
    for text in vary("swap"):
        words = text.split()
        assert Counter(words) == Counter(before)
        assert 2 <= sum(a != b for a, b in zip(words, before, strict=True)) <= 4  # 19 words: two swaps
        for guarded in ("not", "arrive", "nobody", "at", "kettle"):  # negations, what follows them, the answer
            assert words.index(guarded) == before.index(guarded)
    assert vary("swap", Example("ham ham ham", "x")) == []


def test_deletion_keeps_half_and_the_order() -> None:
    before = TEXT.split()
    for text in vary("deletion"):
        words = text.split()
        assert 9 <= len(words) < len(before)
        rest = iter(before)
        assert all(word in rest for word in words)
    assert set(vary("deletion", Example("red mill", "x"))) == {"red", "mill"}
    assert vary("deletion", Example("mill", "x")) == []


def test_noise_slips_behind_the_first_letter() -> None:
    before = TEXT.split()
    for text in vary("noise"):
        words = text.split()
        changes = [(a, b) for a, b in zip(before, words, strict=True) if a != b]
        assert 1 <= len(changes) <= 2
        for old, new in changes:
            assert sum(c.isalpha() for c in old) >= 4
            assert old[0] == new[0]
            assert abs(len(old) - len(new)) <= 1
    assert vary("noise", Example("one two six", "x")) == []
    assert {slip("mill", random.Random(s)) for s in range(60)} == {"mlil", "mll", "mil", "miill", "milll"}
    assert "not" not in {text.split()[0] for text in vary("noise", Example("note taken", "x"), 200)}


def test_generation_shows_examples_of_one_answer_and_cuts_at_the_line() -> None:
    rows = [Example(f"good\nthing {k}", "yes", "Judge") for k in range(4)] + [Example("lonely", "no", "Judge")]
    seen: list[str] = []

    def write(prompts: list[str], seed: int) -> list[str]:
        seen.extend(prompts)
        return [f"  a fine thing {k}\nText: next" if k else " too short\n" for k, _ in enumerate(prompts)]

    made = ROOM.get("generation")().write(rows, 3, random.Random(0), write)
    assert made == [Example("a fine thing 1", "yes", "Judge"), Example("a fine thing 2", "yes", "Judge")]
    for prompt in seen:
        lines = prompt.split("\n")
        assert len(lines) == 4
        assert all(line.startswith("Text: good thing ") for line in lines[:3])
        assert lines[3] == "Text:"
    assert first_line("\nText") == ""
    with pytest.raises(UsageError, match="needs a base"):
        augment(rows, [Augment("generation", 1)], 0)


def test_parse() -> None:
    assert parse_all("") == ()
    assert parse_all("swap:2, noise:1") == (Augment("swap", 2), Augment("noise", 1))
    for bad in ("swap", "swap:0", "swap:x", "swap:1,", "swap:-1", "swap:²"):
        with pytest.raises(UsageError, match="is not NAME:COPIES"):
            parse_all(bad)
    with pytest.raises(UnknownNameError) as caught:
        parse_all("swop:1")
    assert "did you mean swap" in caught.value.hint
    with pytest.raises(UsageError, match="names swap twice"):
        parse_all("swap:1,swap:2")


def test_duplicates_and_leaks_are_counted_and_dropped() -> None:
    row = Example("red mill", "x")
    made, counts = augment([row], [Augment("swap", 1)], 0, avoid=[Example("Mill  RED", "y")])
    assert (made, counts) == ([], Counts(0, 0, 4))
    made, counts = augment([row], [Augment("swap", 2)], 0)
    assert (made, counts) == ([Example("mill red", "x")], Counts(1, 4, 0))
    made, counts = augment([row, Example("mill red", "x")], [Augment("swap", 1)], 0)
    assert (made, counts.duplicates) == ([], 8)
    # one augmentation does not move the draws of the next
    alone, _ = augment([EXAMPLE], [Augment("noise", 3)], 1)
    both, _ = augment([EXAMPLE], [Augment("swap", 1), Augment("noise", 3)], 1)
    assert both[1:] == alone


def test_names_are_listed_without_torch() -> None:
    code = "import sys, adapterhub_cl.augmentation as a; assert a.ROOM.names(); a.parse_all('swap:1'); "
    code += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_so_many_copies_that_they_would_never_end_are_refused() -> None:
    assert parse_all("swap:100") == (Augment("swap", 100),)
    with pytest.raises(UsageError, match="100 copies of each row at most"):
        parse_all("swap:999999999999")
