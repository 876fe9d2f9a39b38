"""Tickets of a shop's help desk and the queue that each belongs to, with typing errors, asides and wrong labels."""

from __future__ import annotations

import random

from shop_draws import kept_apart

QUEUES: dict[str, tuple[str, ...]] = {
    "billing": (
        "I was charged twice for order {order}", "my invoice for {month} shows the wrong amount",
        "the discount code was not taken off the total", "I need a copy of the invoice for my {item}",
        "you took {sum} from my card and I don't know what for", "please put our VAT number on the bill",
        "the instalment for {month} came off two days early", "my bank says the payment to you was declined",
        "why is there a fee of {sum} on my statement", "the gift card only covered half of what I bought",
        "can I pay the {item} by bank transfer instead", "the price on the bill is not the price on the page",
    ),
    "delivery": (
        "my parcel has been stuck in {town} since {day}",
        "the courier says he delivered order {order} but nobody saw him",
        "tracking has not moved for {days} days", "the {item} should have been here on {day}",
        "can you send the parcel to my office instead", "the driver left the {item} in the rain",
        "I will be away on {day}, please bring it later", "only one of two boxes has come",
        "when will order {order} leave the warehouse", "the delivery address has an old house number",
        "nobody rang the bell and now the box is at a shop in {town}", "is order {order} on its way yet",
    ),
    "returns": (
        "I want to send the {item} back", "the {item} is too small, can I have the next size",
        "where do I print the label for sending order {order} back",
        "I returned the {item} {days} days ago and heard nothing",
        "I'd like my money back for the {item}", "the {item} you sent is not the one I chose, I want to swap it",
        "how long do I have to change my mind about the {item}", "it doesn't suit me, what do I do with it now",
        "can I hand the {item} in at the store in {town}", "please cancel order {order} before it goes out",
        "I'd rather have the blue one than the one I got", "do I have to pay for sending it back",
    ),
    "technical": (
        "the {item} does not switch on", "the app crashes when I pair the {item}",
        "the screen of the {item} stays black", "the battery of the {item} is empty after {days} hours",
        "after the update the {item} makes a loud noise", "error {code} comes up whenever I start it",
        "the {item} loses its connection every few minutes", "how do I reset the {item}",
        "the charging light blinks red and nothing happens", "the {item} gets very hot",
        "a button on the {item} is stuck", "the {item} won't update past {code}",
    ),
    "account": (
        "I can't log in any more", "please change my e-mail address", "the link for a new password never arrives",
        "someone else has ordered with my name", "how do I delete my profile", "I want to stop the newsletter",
        "my two profiles should be put together", "the code for signing in comes too late",
        "I typed my birthday wrong when I signed up", "it says my user name is taken",
        "my saved addresses have vanished since {day}", "I am locked out after {days} tries",
    ),
    "advice": (
        "which {item} is best for beginners", "does the {item} work with my old phone",
        "will you have the {item} in green again", "how heavy is the {item}",
        "is the {item} waterproof", "what is the difference between the two kinds of {item}",
        "is there a {item} for left-handed people", "do you sell spare parts for the {item}",
        "would the {item} fit in a small car", "can a child of {days} use the {item}",
        "when does the new {item} come out", "which size of {item} should I take at 1.80 m",
    ),
}  # fmt: skip
KEPT = 3  # phrases of each queue that only test rows use
ASIDES = (
    "The {item} came on {day}, thanks.", "I already paid the bill.", "I know my password, that is fine.",
    "I don't want to send anything back.", "The app works.", "Delivery was quick last time.", "I love the {item}.",
    "My neighbour took the parcel.", "The refund for my last order arrived.",
    "I have been a customer for {days} years.",
)  # fmt: skip
OPENERS = (
    "Hi,", "Hello,", "Good morning,", "hey", "Dear team,", "Hi there,", "To whom it may concern,", "", "", "",
    "Urgent!", "Second mail about this:", "Quick question:", "Sorry to bother you, but",
)  # fmt: skip
CLOSERS = (
    "Thanks", "Please help.", "Regards, {name}", "Can someone call me?", "This is getting silly.", "Cheers {name}", "",
    "", "", "I'm waiting for your answer.", "Thx", "It's for a birthday on {day}.",
)  # fmt: skip
WORDS = {
    "item": ("lamp", "kettle", "headset", "bike computer", "jacket", "toaster", "speaker", "watch", "backpack", "drill",
             "camera", "printer", "scooter", "heater", "keyboard", "tent", "helmet", "mixer"),
    "month": ("January", "March", "May", "July", "September", "November"),
    "day": ("Monday", "Tuesday", "Friday", "the 3rd", "the 12th", "Sunday"),
    "town": ("Leeds", "Bath", "York", "Derby", "Hull", "Truro"),
    "name": ("Anna", "Tom", "Mr Okafor", "J. Lindqvist", "Priya", "Sue", "Karim"),
}  # fmt: skip
MISSORTED = 0.04  # share of the training rows that a hurried colleague put into a wrong queue
TYPOS = 0.04  # share of the words that are typed wrong


def ticket(draw: random.Random, held: bool) -> dict[str, str]:
    """One ticket: `text` and its queue as `label`. The labels of test rows are right.

    Args:
        held: a test row; half of these use phrases that no training row has.
    """
    queue = draw.choice(tuple(QUEUES))
    known, kept = kept_apart(QUEUES[queue], KEPT, draw)
    body = draw.choice(kept if held and draw.random() < 0.5 else known)
    parts = [draw.choice(OPENERS), body + draw.choice((".", "", "!", "?!", "..."))]
    if draw.random() < 0.35:
        parts.insert(draw.choice((1, 2)), draw.choice(ASIDES))
    parts.append(draw.choice(CLOSERS))
    text = typed(filled(" ".join(part for part in parts if part), draw), draw)
    label = queue
    if not held and draw.random() < MISSORTED:
        label = draw.choice([other for other in QUEUES if other != queue])
    return {"text": text, "label": label}


def filled(text: str, draw: random.Random) -> str:
    """The text with words drawn for its gaps."""
    words = {name: draw.choice(found) for name, found in WORDS.items()}
    return text.format(
        **words,
        order=draw.randrange(10000, 99999),
        sum=f"£{draw.randrange(5, 180)}.{draw.choice(('00', '50', '99'))}",
        days=draw.randrange(2, 15),
        code=f"E{draw.randrange(10, 99)}",
    )


def typed(text: str, draw: random.Random) -> str:
    """The text as it is typed in a hurry: letters swapped, doubled or left out, and sometimes all in lower case."""
    words = text.split(" ")
    for k, word in enumerate(words):
        if len(word) > 3 and draw.random() < TYPOS:
            at = draw.randrange(len(word) - 2)
            a, b = word[at], word[at + 1]
            words[k] = word[:at] + draw.choice((b + a, a + a + b, a)) + word[at + 2 :]
    text = " ".join(words)
    return text.lower() if draw.random() < 0.2 else text
