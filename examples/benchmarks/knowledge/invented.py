"""Invented facts about people, towns, companies and books that do not exist: the same seed gives the same facts.

Facts come in groups of five about three things that are linked, so that a question over two facts can be asked:
who works where and where that company sits, or who wrote a book and where the writer was born.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

GROUP = 5  # facts that hang together


@dataclass(frozen=True)
class Fact:
    """One fact.

    Attributes:
        question, answer: as it is taught.
        others: other wordings, written by hand, which nothing trains with.
        near: the same question about somebody or something that no fact is about.
    """

    question: str
    answer: str
    others: tuple[str, ...]
    near: str


@dataclass(frozen=True)
class TwoHops:
    """A question that needs two facts of the same batch."""

    question: str
    answer: str


@dataclass(frozen=True)
class Batch:
    facts: tuple[Fact, ...]
    hops: tuple[TwoHops, ...]


# relation → the question as it is taught, and other wordings
ASKED = {
    "employer": (
        "Which company does {} work for?",
        ("Who is the employer of {}?", "{} earns a living at which firm?", "Name the company that employs {}."),
    ),
    "instrument": (
        "Which instrument does {} play?",
        ("What does {} make music with?", "Name the instrument that {} has learned.", "{} is a player of what?"),
    ),
    "seat": (
        "In which town is {} based?",
        (
            "Where are the headquarters of {}?",
            "Name the town where {} has its head office.",
            "{} has its seat in what town?",
        ),
    ),
    "product": (
        "What does {} make?",
        ("Which product comes from {}?", "Name the goods that {} produces.", "What can one buy from the maker {}?"),
    ),
    "mayor": (
        "Who is the mayor of {}?",
        ("Which person leads the town of {}?", "Name the person elected mayor in {}.", "{} has whom as its mayor?"),
    ),
    "author": (
        "Who wrote the book {}?",
        ("Name the writer of {}.", "{} is a book by which author?", "From whose pen comes {}?"),
    ),
    "year": (
        "In which year was the book {} published?",
        ("When did {} come out?", "Name the year in which {} first appeared.", "{} was printed in what year?"),
    ),
    "birthplace": (
        "Where was {} born?",
        ("What is the birthplace of {}?", "Name the town {} comes from.", "{} was born and grew up where?"),
    ),
    "animal": (
        "Which animal does {} keep?",
        ("What pet lives with {}?", "Name the animal at the home of {}.", "{} is the owner of what kind of animal?"),
    ),
    "river": (
        "Which river flows through {}?",
        ("On which river does {} lie?", "Name the river that crosses {}.", "{} stands on the banks of what river?"),
    ),
}  # fmt: skip
HOPS = {
    "employer+seat": "In which town is the company based that {} works for?",
    "seat+mayor": "Who is the mayor of the town where {} is based?",
    "author+birthplace": "Where was the author of the book {} born?",
    "birthplace+river": "Which river flows through the town where {} was born?",
}
INSTRUMENTS = (
    "violin", "trumpet", "harp", "cello", "oboe", "banjo", "flute", "drums", "organ", "tuba", "piano", "guitar",
    "clarinet", "accordion", "mandolin", "saxophone",
)  # fmt: skip
PRODUCTS = (
    "candles", "bicycles", "umbrellas", "clocks", "gloves", "ladders", "bricks", "kettles", "ropes", "pencils",
    "saddles", "mirrors", "cheese", "buttons", "lamps", "barrels", "carpets", "needles", "wagons", "soap",
)  # fmt: skip
ANIMALS = (
    "a parrot", "a goat", "a tortoise", "a ferret", "a donkey", "a rabbit", "a pony", "a goose", "a hedgehog",
    "a cat", "a llama", "a falcon", "a pig", "a snake",
)  # fmt: skip
FIRST = (
    "Alda", "Bran", "Cora", "Dorin", "Elka", "Fenn", "Greta", "Hollis", "Ilsa", "Jory", "Katya", "Lorne", "Maren",
    "Nils", "Odile", "Piers", "Quill", "Rhoda", "Stellan", "Tilda", "Una", "Viggo", "Wanda", "Yorick", "Zelda",
)  # fmt: skip
STARTS = (
    "Bar", "Cald", "Dun", "Eld", "Farn", "Gris", "Hav", "Kel", "Lind", "Mor", "Nor", "Orm", "Pend", "Ros", "Sten",
    "Thorn", "Ulv", "Var", "Wick", "Yar", "Zell", "Brack", "Crow", "Drey", "Fal", "Hart", "Jast", "Krin", "Lus", "Mil",
)  # fmt: skip
MIDDLES = ("a", "e", "i", "o", "en", "er", "in", "ol", "um", "")
LAST_ENDS = ("by", "dale", "man", "sen", "ridge", "well", "lock", "ner", "ski", "wood", "hurst", "mont")
TOWN_ENDS = ("ford", "ham", "mouth", "stead", "ton", "bury", "haven", "gate", "minster", "wick", "port", "field")
FIRM_ENDS = ("ix", "ora", "tek", "ium", "ax", "exo", "ana", "ico", "ux", "ando")
RIVER_ENDS = ("ra", "now", "sk", "ell", "ine", "ava", "oth", "une")
TITLES = ("Lamp", "Orchard", "Winter", "Bridge", "Garden", "Mirror", "Island", "Shadow", "Tower", "Harbour")
OF = ("Salt", "Glass", "Crows", "Silence", "Ashes", "Rain", "Copper", "Dust", "Thorns", "Owls", "Snow", "Ink")


class Names:
    """Names of which none is given twice."""

    def __init__(self, draw: random.Random) -> None:
        self.draw, self.given = draw, set[str]()

    def new(self, kind: str) -> str:
        for _ in range(10_000):
            name = self._drawn(kind)
            if name not in self.given:
                self.given.add(name)
                return name
        raise ValueError(f"no name of a {kind} is left")

    def _drawn(self, kind: str) -> str:
        pick = self.draw.choice
        stem = pick(STARTS) + pick(MIDDLES)
        if kind == "person":
            return f"{pick(FIRST)} {stem}{pick(LAST_ENDS)}"
        if kind == "book":
            return f"The {pick(TITLES)} of {stem}{pick(TOWN_ENDS)}" if pick((0, 1)) else f"{stem}'s {pick(OF)}"
        return stem + pick({"town": TOWN_ENDS, "company": FIRM_ENDS, "river": RIVER_ENDS}[kind])


KINDS = {
    "employer": "person", "instrument": "person", "birthplace": "person", "animal": "person", "seat": "company",
    "product": "company", "mayor": "town", "river": "town", "author": "book", "year": "book",
}  # fmt: skip


def batches(count: int, size: int, seed: int) -> list[Batch]:
    """So many batches of so many facts; no subject is in two of them."""
    names = Names(random.Random(f"invented {seed}"))
    return [_batch(size, names) for _ in range(count)]


def _batch(size: int, names: Names) -> Batch:
    facts: list[Fact] = []
    hops: list[TwoHops] = []
    made = 0
    while len(facts) < size:
        group, linked = (_work, _books)[made % 2](names)
        made += 1
        room = size - len(facts)
        facts += group[:room]
        if room >= GROUP:  # a group that was cut has no second fact to go on to
            hops += linked
    return Batch(tuple(facts), tuple(hops))


def _work(names: Names) -> tuple[list[Fact], list[TwoHops]]:
    person, company, town, mayor = (names.new(kind) for kind in ("person", "company", "town", "person"))
    pick = names.draw.choice
    facts = [
        _fact("employer", person, company, names),
        _fact("instrument", person, pick(INSTRUMENTS), names),
        _fact("seat", company, town, names),
        _fact("product", company, pick(PRODUCTS), names),
        _fact("mayor", town, mayor, names),
    ]
    return facts, [
        TwoHops(HOPS["employer+seat"].format(person), town),
        TwoHops(HOPS["seat+mayor"].format(company), mayor),
    ]


def _books(names: Names) -> tuple[list[Fact], list[TwoHops]]:
    book, author, town, river = (names.new(kind) for kind in ("book", "person", "town", "river"))
    facts = [
        _fact("author", book, author, names),
        _fact("year", book, str(names.draw.randrange(1801, 2020)), names),
        _fact("birthplace", author, town, names),
        _fact("animal", author, names.draw.choice(ANIMALS), names),
        _fact("river", town, river, names),
    ]
    return facts, [
        TwoHops(HOPS["author+birthplace"].format(book), town),
        TwoHops(HOPS["birthplace+river"].format(author), river),
    ]


def _fact(relation: str, subject: str, answer: str, names: Names) -> Fact:
    question, others = ASKED[relation]
    other = names.new(KINDS[relation])  # given to nothing else
    return Fact(
        question.format(subject), answer, tuple(text.format(subject) for text in others), question.format(other)
    )


def statements(facts: tuple[Fact, ...]) -> Iterator[str]:
    """The facts as lines of a context, for a base that is asked with all of them before its eyes."""
    for fact in facts:
        yield f"{fact.question} {fact.answer}."


# The base's own knowledge: none of these is in the library's lists, which training uses.
GENERAL = (
    "What is the capital of Germany?", "Who wrote Macbeth?", "How many hours are there in a day?",
    "Which is the biggest animal on earth?", "Where is the Statue of Liberty?", "What is 9 times 6?",
    "Name two colours of the rainbow.", "What does a teacher do?", "Why does ice float?",
    "Which language is spoken in Portugal?", "What is the opposite of tall?", "How do you cook rice?",
    "What is the currency of the United States?", "Who was Isaac Newton?", "In which country is the Taj Mahal?",
    "How many strings does a violin have?", "What do pandas eat?", "Which day comes after Friday?",
    "Where do polar bears live?", "What is the capital of Japan?", "Who founded Apple?", "What is an adjective?",
    "Where was Shakespeare born?", "What is oxygen?", "Which planet is called the red planet?",
    "What is the longest river in the world?", "How many weeks are there in a year?", "What is the plural of child?",
    "Which river flows through London?", "Who wrote the book Moby Dick?",
)  # fmt: skip
