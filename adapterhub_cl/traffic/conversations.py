"""Which share of the traffic a conversation belongs to: the same conversation always to the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def place_of(text: str) -> float:
    """A number from 0 to below 1 that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:6]) / 2**48


def conversation_of(first: str, user: str = "") -> str:
    """The hash under which all requests of a conversation are found.

    Args:
        first: its first message; it stays the same while the conversation goes on.
        user: who asks, or which conversation it is, as far as the client says so.
    """
    return hashlib.sha256(f"{user}\0{'' if user else first}".encode("utf-8", "surrogatepass")).hexdigest()[:32]


def canary_answers(ref: str, share: float, conversation: str) -> bool:
    """Whether a conversation is among the share that a canary answers. Another canary gets another share."""
    return bool(conversation) and place_of(f"{ref} {conversation}") < share


def held_back(questions: Iterable[str], share: float) -> list[bool]:
    """For each question whether it is held back to measure on; the same question always is."""
    return [place_of(f"held back {question}") < share for question in questions]
