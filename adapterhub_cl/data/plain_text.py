"""Texts as they are compared: what case, spacing and the encoding of an accent do not change."""

from __future__ import annotations

import re
import unicodedata

# Han, kana, Thai, Lao, Tibetan, Burmese, Khmer: written without spaces between words
UNSPACED = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]"
)


def plain(text: str) -> str:
    """The text in one case, with single spaces, each accent in one code point (NFC)."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def pieces(text: str) -> list[str]:
    """The words of a plain text; of scripts that have no spaces between words, the characters."""
    return UNSPACED.sub(lambda found: f" {found[0]} ", text).split()
