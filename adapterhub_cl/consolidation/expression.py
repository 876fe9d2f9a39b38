"""`0.7*news + 0.3*reviews - slang`: a sum of adapters, each with a number. No torch."""

from __future__ import annotations

import re
from collections.abc import Collection

from adapterhub_cl.errors import UsageError

_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(?=\s*(?:[*/)+]|-\s|$))"
    r"|(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*(?:@[A-Za-z0-9][A-Za-z0-9._-]*)?)|(?P<sign>[-+*/()]))"
)
HINT = 'write it like "0.7*news + 0.3*reviews - slang"; names may hold dashes: put spaces around a minus'

DEEPEST = 50  # brackets within brackets


def parse_expression(text: str, known: Collection[str] = ()) -> dict[str, float]:
    """Adapter → its number, in the order of naming; one that is named twice gets the sum.

    Brackets and division by numbers are understood: `(news + reviews)/2 - 0.5*slang@v2`.

    Args:
        known: names of adapters: `a-b` is then a minus where there is an `a` and no `a-b`.

    Raises:
        UsageError: it cannot be read.
    """
    return _Parser(text, known).whole()


class _Parser:
    """Reads from left to right: a sum is terms with signs between, a term numbers and one name or bracket."""

    def __init__(self, text: str, known: Collection[str]) -> None:
        self.text, self.tokens, self.at, self.depth = text, _tokens(text, known), 0, 0

    def whole(self) -> dict[str, float]:
        found = self.sum()
        if self.at < len(self.tokens):
            raise self.wrong(f"{self.tokens[self.at][1]!r} stands where a sign or the end should be")
        return found

    def sum(self) -> dict[str, float]:
        total: dict[str, float] = {}
        sign = -1.0 if self.take("-") else 1.0
        if sign > 0:
            self.take("+")
        while True:
            for name, weight in self.term().items():
                total[name] = total.get(name, 0.0) + sign * weight
            if self.take("+"):
                sign = 1.0
            elif self.take("-"):
                sign = -1.0
            else:
                return total

    def term(self) -> dict[str, float]:
        factor, found = 1.0, None
        divides = False
        while True:
            kind, token = self.next()
            if kind == "number":
                if divides and not float(token):
                    raise self.wrong("a division by zero")
                factor = factor / float(token) if divides else factor * float(token)
            elif found is not None or divides:
                raise self.wrong(f"{token!r}: only numbers can be multiplied with an adapter or divide it")
            elif kind == "name":
                found = {token: 1.0}
            elif token == "(":
                self.depth += 1
                if self.depth > DEEPEST:
                    raise self.wrong(f"brackets within brackets, more than {DEEPEST} deep")
                found = self.sum()
                self.depth -= 1
                if not self.take(")"):
                    raise self.wrong("a bracket is not closed")
            else:
                raise self.wrong(f"{token!r} stands where an adapter or a number should be")
            if self.take("*"):
                divides = False
            elif self.take("/"):
                divides = True
            else:
                break
        if found is None:
            raise self.wrong("a number without an adapter")
        return {name: weight * factor for name, weight in found.items()}

    def next(self) -> tuple[str, str]:
        if self.at == len(self.tokens):
            raise self.wrong("it ends where an adapter should be")
        self.at += 1
        return self.tokens[self.at - 1]

    def take(self, sign: str) -> bool:
        if self.at < len(self.tokens) and self.tokens[self.at] == ("sign", sign):
            self.at += 1
            return True
        return False

    def wrong(self, what: str) -> UsageError:
        shown = self.text if len(self.text) <= 80 else self.text[:77] + "…"
        return UsageError(f"the expression {shown!r} cannot be read: {what}", HINT)


def _tokens(text: str, known: Collection[str]) -> list[tuple[str, str]]:
    found, at = [], 0
    text = text.rstrip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None or match.end() == at:
            raise UsageError(f"the expression {text!r} cannot be read at {text[at:].strip()[:10]!r}", HINT)
        kind = match.lastgroup or ""
        token = match[kind]
        if kind == "name" and token.partition("@")[0] not in known:
            cuts = [k for k, letter in enumerate(token) if letter == "-" and token[:k].partition("@")[0] in known]
            token = token[: cuts[-1]] if cuts else token
        found.append((kind, token))
        at = match.start(kind) + len(token)
    return found
