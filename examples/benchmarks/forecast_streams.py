"""The streams of the forecast's benchmark: which tasks a hub learns, in which order and how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

ENCODER: Mapping[str, Any] = {
    "learning_rate": 2e-3, "max_length": 96, "batch_size": 8, "epochs": 6, "rank": 8, "replay": "balanced:32"
}  # fmt: skip
WELL: Mapping[str, Any] = {**ENCODER, "learning_rate": 3e-3, "max_length": 64}
DEMO = ("tickets", "reviews", "commands", "facts")
TINY: Mapping[str, Any] = {"rank": 16, "epochs": 4, "replay": "balanced:32"}
LONG: Mapping[str, Any] = {**TINY, "epochs": 8}


@dataclass(frozen=True)
class Stream:
    """Tasks that one hub learns in this order.

    Attributes:
        settings: of every training; `later` is what is changed of them after the first task.
        begin: of `BEGINNINGS`: tasks that one adapter knows before, learned together.
        rows, held: of each task of cl15: learned, and scored on. The demo's tasks have their own.
    """

    base: str
    strategy: str
    tasks: Sequence[str]
    settings: Mapping[str, Any]
    later: Mapping[str, Any] = field(default_factory=dict)
    begin: str = ""
    rows: int = 96
    held: int = 120


# Beginning → base, tasks, settings: one adapter that `multitask` teaches them all, so that each has much to lose.
BEGINNINGS: Mapping[str, tuple[str, Sequence[str], Mapping[str, Any]]] = {
    "four": ("MiniLM", ("agnews", "dbpedia", "sst2", "yahoo"), {**WELL, "epochs": 5, "learning_rate": 2e-3}),
    "three": ("tiny", ("tickets", "reviews", "commands"), LONG),
    "other": (
        "MiniLM",
        ("dbpedia", "yahoo", "imdb", "agnews"),
        {**WELL, "epochs": 5, "learning_rate": 2e-3, "seed": 1},
    ),
}
# The later streams begin with tasks that are learned well, because one that guesses has nothing to lose.
STREAMS: Mapping[str, Stream] = {
    "order 1": Stream("MiniLM", "sequential", ("dbpedia", "amazon", "yahoo", "agnews", "sst2"), ENCODER),
    "order 4, end": Stream("MiniLM", "replay", ("yelp", "amazon", "sst2", "dbpedia", "agnews"), ENCODER),
    "tiny, sequential": Stream("tiny", "sequential", ("tickets", "reviews", "commands", "facts"), TINY),
    "low rate": Stream(
        "MiniLM", "sequential", ("agnews", "imdb", "yahoo", "qqp", "dbpedia"), {**ENCODER, "learning_rate": 7e-4}
    ),
    "ewc": Stream("MiniLM", "ewc", ("imdb", "dbpedia", "yahoo", "agnews", "amazon"), ENCODER),
    "well learned": Stream("MiniLM", "sequential", ("agnews", "sst2", "dbpedia", "yahoo"), WELL, {}, "", 128, 200),
    "tiny, replay": Stream("tiny", "replay", ("commands", "tickets", "facts", "reviews"), LONG),
    "gentle": Stream(
        "MiniLM", "sequential", ("sst2", "agnews", "dbpedia", "yahoo"), WELL, {"learning_rate": 5e-4}, "", 128, 200
    ),
    "one more": Stream("MiniLM", "sequential", ("amazon", "qqp"), {**WELL, "epochs": 4}, begin="four"),
    "one more, low rate": Stream(
        "MiniLM", "sequential", ("imdb", "boolq"), {**WELL, "epochs": 3, "learning_rate": 5e-4}, begin="four"
    ),
    "tiny, one more": Stream("tiny", "sequential", ("facts", "agnews"), LONG, begin="three"),
    "one more, replay": Stream("MiniLM", "replay", ("yelp", "imdb"), {**WELL, "epochs": 4}, begin="four"),
    "tiny, one more, replay": Stream("tiny", "replay", ("sst2", "facts"), {**LONG, "epochs": 3}, begin="three"),
    "one more, lwf": Stream(
        "MiniLM", "lwf", ("qqp", "amazon"), {**WELL, "epochs": 3, "learning_rate": 2e-3}, begin="four"
    ),
    "tiny, one more, low rate": Stream(
        "tiny", "sequential", ("qqp", "facts"), {**LONG, "epochs": 2, "learning_rate": 3e-4}, begin="three"
    ),
    "one more, short": Stream(
        "MiniLM", "sequential", ("boolq", "yelp"), {**WELL, "epochs": 2, "learning_rate": 1e-3}, begin="four"
    ),
    "one more, other four": Stream("MiniLM", "sequential", ("sst2", "amazon"), {**WELL, "epochs": 3}, begin="other"),
    "one more, other four, replay": Stream(
        "MiniLM", "replay", ("qqp", "sst2"), {**WELL, "epochs": 3, "learning_rate": 1e-3}, begin="other"
    ),
    "one more, other four, ewc": Stream(
        "MiniLM", "ewc", ("amazon", "boolq"), {**WELL, "epochs": 3, "learning_rate": 2e-3}, begin="other"
    ),
    "one more, other four, low rate": Stream(
        "MiniLM", "sequential", ("yelp", "qqp"), {**WELL, "epochs": 4, "learning_rate": 3e-4}, begin="other"
    ),
}
# Those that were known when it was chosen what the model looks at, when, and on how many rows.
CHOSEN_ON = tuple(name for name, stream in STREAMS.items() if stream.begin != "other")
