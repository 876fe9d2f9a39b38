"""Where words for test rows are kept apart from those of training rows."""

from __future__ import annotations

import random
from collections.abc import Sequence


class DevDraw(random.Random):
    """Draws for choosing settings: the words of test rows never occur, and the last of the others are held out in their
    place, so that nothing is chosen on words that the comparison is tested on."""


def kept_apart(words: Sequence[str], kept: int, draw: random.Random) -> tuple[Sequence[str], Sequence[str]]:
    """The words of training rows, and those that only held-out rows have.

    Args:
        kept: how many at the end of a list are held out.
    """
    known = words[:-kept] if isinstance(draw, DevDraw) else words
    return known[:-kept], known[-kept:]
