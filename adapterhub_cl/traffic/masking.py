"""Takes e-mail addresses and long numbers out of texts before they are kept."""

from __future__ import annotations

import re
from typing import Any

from adapterhub_cl.data.values import whole_characters

EMAIL, NUMBER = "<email>", "<number>"
DIGITS = 7  # a number of so many digits is masked: telephones, accounts, cards, and not years or prices
# Each pattern is bounded, so that a text of a megabyte without spaces takes no longer than another one.
# A Latin letter in front makes a number part of a name (x1234567). Scripts without spaces put any letter there.
_EMAIL = re.compile(r"[\w.+%-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}")
_BETWEEN = "[ \t\u00a0\u2007\u2009\u202f().\\-\u2010-\u2015\u2212/]{0,2}"
_NUMBER = re.compile(rf"(?<![A-Za-z\d])[+(]?\d(?:{_BETWEEN}\d){{{DIGITS - 1},}}")
_IBAN = re.compile(r"(?<![A-Za-z\d])[A-Z]{2}\d{2}(?: ?[A-Z0-9]{2,4}){3,8}(?![A-Za-z\d])")


def masked(text: str) -> str:
    """The text with `<email>` and `<number>` in their place.

    A date such as 2026-11-29 has eight digits and is masked too: a number that should have been masked and was not
    does more harm.
    """
    return _NUMBER.sub(NUMBER, _IBAN.sub(NUMBER, _EMAIL.sub(EMAIL, whole_characters(text))))


def masked_json(value: Any) -> Any:
    """The same for every text inside plain JSON; keys stay."""
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, dict):
        return {key: masked_json(inner) for key, inner in value.items()}
    return [masked_json(inner) for inner in value] if isinstance(value, list) else value
