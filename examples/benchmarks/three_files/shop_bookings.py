"""Bookings at a restaurant, and the JSON object of what each says. Settings are chosen on them; no comparison reads
them."""

from __future__ import annotations

import random
from typing import Any

from shop_draws import kept_apart

NAMES = (
    "Bergmann", "Chaudhry", "Delgado", "Eklund", "Farrell", "Goldberg", "Horvat", "Iwasaki", "Jensen", "Kaplan",
    "Lindqvist", "Moreau", "Ndiaye", "Okafor", "Petrov", "Ramirez", "Schultz", "Tembo", "Varga", "Whitfield",
)  # fmt: skip
KEPT = 4  # names at the end of the list that only held-out rows have
DAYS = {
    "Monday": ("Monday", "Mon"), "Tuesday": ("Tuesday", "Tue"), "Wednesday": ("Wednesday", "Wed"),
    "Thursday": ("Thursday", "Thu"), "Friday": ("Friday", "Fri"), "Saturday": ("Saturday", "Sat"),
    "Sunday": ("Sunday", "Sun"),
}  # fmt: skip
NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight")
SEATS = {
    "window": ("by the window", "with a view of the street"), "terrace": ("outside", "on the terrace"),
    "quiet": ("somewhere quiet", "in a corner where we can talk"),
}  # fmt: skip
WISHES = {
    "high chair": ("we need a high chair", "one of us is a baby"), "wheelchair": ("my father uses a wheelchair",),
    "vegan": ("two of us are vegan", "please have something without meat, eggs and milk"),
    "cake": ("it is a birthday, so we bring a cake",), "parking": ("is there a place for our car?",),
}  # fmt: skip
OPENINGS = (
    "A table for {people} on {day} at {time}, please.", "Can we come on {day}, {time}? We are {people}.",
    "I'd like to book for {people}, {day} at {time}.", "{day} {time}, {people} of us, is that possible?",
)  # fmt: skip
CALLED = ("The name is {name}.", "Under {name}, please.", "– {name}", "Yours, {name}")
ASIDES = (
    "Last time we were nine.", "We had the terrace on Sunday, it was lovely.", "Sorry for the late message.",
    "My sister told us about you.",
)  # fmt: skip


def booking(draw: random.Random, held: bool) -> dict[str, Any]:
    """One message as `input`, and the object as `output`; `seat` is null where the guest has no wish.

    Args:
        held: a row that is not learned; a third of these have a name that no training row has.
    """
    known, kept = kept_apart(NAMES, KEPT, draw)
    name = draw.choice(kept if held and draw.random() < 0.33 else known)
    day, seat = draw.choice(tuple(DAYS)), draw.choice((None, *SEATS))
    people, hour, half = draw.randrange(2, 9), draw.randrange(17, 22), draw.random() < 0.4
    clock = f"{hour - 12}{':30' if half else ''} pm" if draw.random() < 0.5 else f"{hour}:{'30' if half else '00'}"
    said = str(people) if draw.random() < 0.5 else NUMBERS[people - 2]
    wishes = sorted(draw.sample(tuple(WISHES), draw.choice((0, 0, 1, 1, 2))))
    parts = [draw.choice(OPENINGS).format(people=said, day=draw.choice(DAYS[day]), time=clock)]
    parts += [f"If you can, {draw.choice(SEATS[seat])}."] if seat else []
    for text in (draw.choice(WISHES[wish]) for wish in wishes):
        parts.append(text[0].upper() + text[1:] + ("" if text.endswith("?") else "."))
    if draw.random() < 0.4:
        parts.insert(draw.randrange(1, len(parts) + 1), draw.choice(ASIDES))
    parts.append(draw.choice(CALLED).format(name=name))
    time = f"{hour}:{'30' if half else '00'}"
    output = {"guest": name, "day": day, "time": time, "people": people, "seat": seat, "wishes": wishes}
    return {"input": " ".join(parts), "output": output}
