"""Conversations with the help desk of a bicycle shop, whose answers follow rules that can be learned from them."""

from __future__ import annotations

import random
from typing import Any

from shop_draws import kept_apart

SHOPS = {
    "Leeds": ("9 to 18", "10 to 16", "12 Mill Lane"), "Bath": ("10 to 19", "9 to 14", "3 Abbey Row"),
    "York": ("8 to 17", "9 to 13", "40 Station Road"), "Derby": ("9 to 17", "10 to 15", "7 Silk Street"),
    "Truro": ("10 to 18", "11 to 16", "21 Harbour Walk"),
}  # fmt: skip
PRICES = {
    "a full service": ("£85", "two days"), "new brakes": ("£40", "one day"), "a puncture": ("£12", "one hour"),
    "a new chain": ("£35", "one day"), "a wheel": ("£55", "three days"), "new gears": ("£70", "two days"),
}  # fmt: skip
THINGS = ("helmet", "pump", "lock", "light", "saddle", "jersey", "child seat", "bell", "trailer", "bottle")
NAMES = ("Amir", "Beth", "Cleo", "Dan", "Eve", "Finn", "Gwen", "Hugo", "Iris", "Joel", "Kim", "Lars", "Mona", "Ned")
SYSTEM = "You are Mira of Larkspur Bikes. Be brief and kind."
# Each way of asking that stands last is kept for test rows.
OPENING = ("When are you open in {shop}?", "What are your hours in {shop}?", "How long is the {shop} shop open today?",
           "Until when can I come by in {shop}?")  # fmt: skip
WEEKEND = ("And on Saturday?", "What about Saturdays?", "Is that the same on Saturday?", "And at the weekend?")
WHERE = ("Where is it exactly?", "What is the address?", "How do I find it?", "Which street is that?")
PRICE = (
    "What do you take for {job}?",
    "How much is {job}?",
    "What does {job} cost?",
    "I need {job}, what's the price?",
)
LASTS = ("How long does that take?", "When would it be ready?", "How long will I be without my bike?",
         "Can I wait for it?")  # fmt: skip
RETURN = ("Can I bring back a {thing}?", "The {thing} is not right for me, can I return it?",
          "I want to give a {thing} back.", "How do I return the {thing}?")  # fmt: skip
USED = (
    "I have used it already.",
    "It has been used once.",
    "I rode with it for a day.",
    "It's not quite new any more.",
)
LOST = ("I lost the receipt.", "I don't have the receipt any more.", "And without a receipt?", "The receipt is gone.")
ORDER = ("Where is my order {order}?", "Has order {order} been sent?", "What about my order {order}?",
         "Any news of order {order}?")  # fmt: skip
OTHER = ("Do you sell cars?", "Can you book me a hotel?", "What will the weather be?", "Can you help with my taxes?",
         "Who won the match?", "Do you repair phones?", "Can you recommend a film?")  # fmt: skip
THANKS = ("Thanks!", "Great, thank you.", "Perfect, thanks a lot.", "Cheers, bye!")


def talk(draw: random.Random, held: bool) -> dict[str, Any]:
    """One conversation as `messages`: one subject, or two after each other, sometimes a name, often a system turn.

    Args:
        held: a test row, where half of the questions are put in words that no training row has.
    """
    said: list[tuple[str, str]] = []
    for subject in draw.sample((_hours, _repair, _return, _order, _other), draw.choice((1, 1, 2))):
        said += subject(draw, held)
    if draw.random() < 0.3:
        said.append((_of(THANKS, draw, held), "You're welcome. Ride safely!"))
    name = draw.choice(NAMES) if draw.random() < 0.5 else ""
    question, answer = said[0]
    said[0] = (f"Hi, this is {name}. {question}", f"Hello {name}! {answer}") if name else (question, f"Hello! {answer}")
    messages = [{"role": "system", "content": SYSTEM}] if draw.random() < 0.4 else []
    for question, answer in said:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages}


def _of(ways: tuple[str, ...], draw: random.Random, held: bool) -> str:
    known, kept = kept_apart(ways, 1, draw)
    return kept[0] if held and draw.random() < 0.5 else draw.choice(known)


def _hours(draw: random.Random, held: bool) -> list[tuple[str, str]]:
    shop = draw.choice(tuple(SHOPS))
    week, saturday, street = SHOPS[shop]
    first = (_of(OPENING, draw, held).format(shop=shop), f"Our {shop} shop is open from {week}, Monday to Friday.")
    more = draw.choice((WEEKEND, WHERE))
    answer = (
        f"On Saturday {shop} is open from {saturday}." if more is WEEKEND else f"You find us in {shop} at {street}."
    )
    return [first, (_of(more, draw, held), answer)]


def _repair(draw: random.Random, held: bool) -> list[tuple[str, str]]:
    job = draw.choice(tuple(PRICES))
    price, time = PRICES[job]
    found = [(_of(PRICE, draw, held).format(job=job), f"We do {job} for {price}, parts included.")]
    if draw.random() < 0.6:
        found.append((_of(LASTS, draw, held), f"It takes {time}, and we send you a text when it is ready."))
    return found


def _return(draw: random.Random, held: bool) -> list[tuple[str, str]]:
    thing = draw.choice(THINGS)
    first = (
        _of(RETURN, draw, held).format(thing=thing),
        f"Of course, bring the {thing} back within 30 days with the receipt.",
    )
    if draw.random() < 0.5:
        return [first, (_of(USED, draw, held), f"A used {thing} we can only exchange, not refund.")]
    return [first, (_of(LOST, draw, held), f"Without a receipt you get a voucher for the {thing}.")]


def _order(draw: random.Random, held: bool) -> list[tuple[str, str]]:
    """The answer depends on the last figure of the order's number: even ones go by post, odd ones to the shop."""
    number = draw.randrange(1000, 9999)
    way = "by post, so allow three days" if number % 2 == 0 else "to your shop, so we will ring you"
    return [(_of(ORDER, draw, held).format(order=number), f"Order {number} goes {way}.")]


def _other(draw: random.Random, held: bool) -> list[tuple[str, str]]:
    known, kept = kept_apart(OTHER, 2, draw)
    asked = kept if held and draw.random() < 0.5 else known
    return [(draw.choice(asked), "Sorry, I can only help with bikes. Is there anything about your bike?")]
