"""Writes adapterhub_cl/deciding/ordinary.txt: words too common to be the name of anything.

    python examples/make_ordinary_words.py

They are the words that this project's own texts (documentation, comments, samples) write without a capital letter more
often than with one, and those that the tokenizer of the embedded base, which was trained for this project, writes as
one token.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
OUT = ROOT / "adapterhub_cl/deciding/ordinary.txt"
TOKENIZER = ROOT / "adapterhub_cl/bases/tiny/tokenizer.json"
WORD = re.compile(r"(?<![\w`./'-])[A-Za-z][a-z]+(?![\w`/'-])")  # no part of a path, an option or a longer word


def texts() -> Iterator[str]:
    """What people wrote here for people to read."""
    for pattern in ("*.md", "docs/*.md", "docs/decisions/*.md", "docs/benchmarks/*.md", "adapterhub_cl/**/*.txt"):
        for path in sorted(ROOT.glob(pattern)):
            if path != OUT:
                yield path.read_text(encoding="utf-8")
    for folder in ("adapterhub_cl", "cli", "examples"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path.read_text(encoding="utf-8")


def main() -> None:
    counts = Counter(word for text in texts() for word in WORD.findall(text))
    words = {word for word in counts if word.islower() and counts[word] > counts[word.capitalize()]}
    vocabulary = json.loads(TOKENIZER.read_text(encoding="utf-8"))["model"]["vocab"]
    words |= {token[1:] for token in vocabulary if re.fullmatch(r"Ġ[a-z]{2,}", token)}
    OUT.write_text(textwrap.fill(" ".join(sorted(words)), 120) + "\n", encoding="utf-8")
    print(f"{len(words):,} words in {OUT.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
