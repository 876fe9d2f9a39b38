"""E-mails to a shop, and the JSON object of what each says: name, order number, product, date and wish."""

from __future__ import annotations

import random
from typing import Any

from shop_draws import kept_apart

FIRST = (
    "Alice", "Benedikt", "Carmen", "Dmitri", "Elif", "Farah", "Gordon", "Hanna", "Ivo", "Jasmine", "Kofi", "Lena",
    "Marcus", "Nadia", "Owen", "Paula", "Quentin", "Rosa", "Samir", "Tess", "Umar", "Vera", "Wout", "Yuki", "Zoe",
)  # fmt: skip
LAST = (
    "Adler", "Brooks", "Castellano", "Dawson", "Eriksen", "Fischer", "Grant", "Haddad", "Ibsen", "Jansen", "Kowalski",
    "Lopez", "Murray", "Nakamura", "O'Brien", "Patel", "Quist", "Rahman", "Silva", "Tanaka", "Usman", "Vogel", "Weaver",
)  # fmt: skip
PRODUCTS = (
    "desk lamp", "water bottle", "rain jacket", "coffee grinder", "yoga mat", "bike pump", "reading chair",
    "hiking boots", "garden hose", "phone case", "wall clock", "travel pillow", "frying pan", "wool blanket",
    "folding table", "electric kettle", "camping stove", "laptop bag", "picture frame", "running shoes",
)  # fmt: skip
KEPT = 4  # first names, last names and products at the end of the lists that only test rows use
WISHES: dict[str, tuple[str, ...]] = {
    "refund": ("I would like my money back", "please refund me", "kindly return the full amount to my card"),
    "exchange": ("please swap it for another one", "I would like a different size", "could you exchange it"),
    "repair": ("can it be mended", "please repair it", "I want it fixed, not replaced"),
    "invoice": ("I still need the invoice", "please send me the bill as a PDF", "could I have a receipt for it"),
    "cancel": ("please cancel the order", "I don't need it any more, so stop the order", "take it off my order"),
}
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
GREETINGS = ("Hello,", "Dear Sir or Madam,", "Hi team,", "Good afternoon,", "Hello Larkspur,")
BOUGHT = (
    "on {date} I bought a {product} from you.", "I ordered the {product} on {date}.",
    "this is about the {product} that I got from your shop on {date}.",
    "{date} was the day I ordered your {product}.",
)  # fmt: skip
NUMBERED = ("The order number is {order}.", "Order {order}.", "It was order no. {order}.", "(My order: {order})")
ASIDES = (
    "My earlier order {other} was fine.", "My brother {person} has the same one.",
    "The {thing} from last year is still good.", "I tried to phone you twice.", "It was a present.",
    "The colour is nice, by the way.",
)  # fmt: skip
CLOSINGS = ("Best wishes,\n{name}", "Regards\n{name}", "Many thanks, {name}", "Yours, {name}", "{name}")


def email(draw: random.Random, held: bool) -> dict[str, Any]:
    """One e-mail as `input`, and the object as `output`; `order` is null where the e-mail names none.

    Args:
        held: a test row; a third of these have a name or a product that no training row has.
    """
    first, last, product = (_word(words, draw, held) for words in (FIRST, LAST, PRODUCTS))
    wish = draw.choice(tuple(WISHES))
    day, month, year = draw.randrange(1, 29), draw.randrange(12), draw.choice((2025, 2026))
    order = _number(draw) if draw.random() < 0.8 else None
    parts = [draw.choice(BOUGHT).format(date=_date(day, month, year, draw), product=product)]
    if order:
        parts.append(draw.choice(NUMBERED).format(order=order))
    if draw.random() < 0.5:
        thing, person = (draw.choice(kept_apart(words, KEPT, draw)[0]) for words in (PRODUCTS, FIRST))
        parts.append(draw.choice(ASIDES).format(other=_number(draw), person=person, thing=thing))
    said = draw.choice(WISHES[wish])
    parts.append(said[0].upper() + said[1:] + ".")
    name = f"{first} {last}"
    text = f"{draw.choice(GREETINGS)}\n{' '.join(parts)}\n{draw.choice(CLOSINGS).format(name=name)}"
    date = f"{year}-{month + 1:02d}-{day:02d}"
    return {"input": text, "output": {"name": name, "order": order, "product": product, "date": date, "wish": wish}}


def _word(words: tuple[str, ...], draw: random.Random, held: bool) -> str:
    known, kept = kept_apart(words, KEPT, draw)
    return draw.choice(kept if held and draw.random() < 0.33 else known)


def _number(draw: random.Random) -> str:
    return f"LB-{draw.randrange(1000, 9999)}"


def _date(day: int, month: int, year: int, draw: random.Random) -> str:
    name = MONTHS[month]
    return draw.choice((f"{day} {name} {year}", f"{name} {day}, {year}", f"{day}/{month + 1}/{year}"))
