"""Subjects of facts: what is found in a question, what a question names, and what the router makes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from routing_support import WIDTH, Cloud, cloud

from adapterhub_cl.deciding.calibrated import Calibrated
from adapterhub_cl.deciding.proper_names import is_ordinary, words_of
from adapterhub_cl.deciding.scope import Bounds, FactScope, Scopes
from adapterhub_cl.examples import Turn
from adapterhub_cl.routing import build
from adapterhub_cl.types import Example

TOWN = ("Who is the mayor of Quillhaven?", "Which river flows through Kirk Hill?", "What does Ann Bell play?")


def scope(*questions: str, facts: int | None = None) -> FactScope:
    return FactScope([Example(text, "answer") for text in questions], len(questions) if facts is None else facts)


def is_word(word: str) -> bool:
    """What a base's vocabulary has: an everyday noun too, which the project's own list lacks."""
    return is_ordinary(word) or word == "apple"


def scopes(**tasks: Sequence[str]) -> Scopes:
    return Scopes({task: scope(*questions) for task, questions in tasks.items()}, lambda task, phrase: False, is_word)


@pytest.mark.parametrize(
    ("question", "subject"),
    [
        ("Who is the mayor of Quillhaven?", "Quillhaven"),
        ("Quillhaven's mayor?", "Quillhaven"),
        ("Name the person who governs Quillhaven.", "Quillhaven"),
        ("Which river flows through Kirk Hill?", "Kirk Hill"),
        ("Who wrote the book The Lamp of Kelham?", "Lamp of Kelham"),
        ("Who wrote Crowham's Salt?", "Crowham's Salt"),
        ("Who is the CEO of Zorbix?", "Zorbix"),
        ("Who is President of Freedonia?", "Freedonia"),
        ("Was Ludwig van Hoven born here?", "Ludwig van Hoven"),
        ("Who wrote J.R.R. Müller's O’Brien Tales?", "J.R.R. Müller's O'Brien Tales"),
        ("When did flight BA42 land?", "BA42"),
        ("Кто построил Оукмир?", "Оукмир"),
        ("where is the refectory?", "refectory"),
        ("who is the mayor of quillhaven", "quillhaven"),
    ],
)
def test_the_subject_of_a_question_is_its_name_or_its_rare_word(question: str, subject: str) -> None:
    assert scope(question).names == [subject]


@pytest.mark.parametrize(
    "asked",
    [
        "who is quillhaven's mayor",
        "QUILLHAVEN!",
        "Hello, tell me of the mayor (Quillhaven’s) please",
        "the river of kirk-hill",
        "Does Ann  Bell's cat play?",
        "Quíllhaven",  # accents do not count
        "Quill\u00adhaven",  # a hyphen that is not seen
    ],
)
def test_a_question_that_names_a_subject_must_go_there(asked: str) -> None:
    assert scopes(town=TOWN).bounds(Example(asked)).only == {"town"}


@pytest.mark.parametrize(
    "asked",
    [
        "Who is the mayor of Paris?",
        "What does Ann Bellamy play?",
        "Which hill is high?",
        "kirk",
        "",
        "???",
        "Where is Quill haven?",
    ],
)
def test_a_question_that_names_none_must_not(asked: str) -> None:
    found = scopes(town=TOWN).bounds(Example(asked))
    assert not found.only
    assert found.never == {"town"}


def test_an_ordinary_word_catches_nothing_by_force() -> None:
    found = scopes(firm=("Who runs Apple?", "Where is the refectory?", "What is the capital of Zorbix?"))
    for text in ("How do I bake an apple pie?", "Is a refectory cheap?"):
        assert not found.bounds(Example(text)), "the router decides"
    assert found.bounds(Example("What is the capital of Germany?")).never == {"firm"}


def test_the_longest_name_counts_and_a_title_is_not_about_what_it_names() -> None:
    both = scopes(town=["Who is the mayor of Ely?"], church=["Who built Ely Cathedral?"])
    assert both.bounds(Example("how old is ely cathedral")).only == {"church"}
    assert both.bounds(Example("how old is ely")).only == {"town"}
    assert both.bounds(Example("Who wrote the book The Lamp of Ely?")).never == {"town", "church"}


def test_all_names_of_a_fact_are_needed_and_one_of_them_leaves_it_to_the_router() -> None:
    match = scopes(games=["Who won the match between Oakmere and Noriford?"])
    assert match.bounds(Example("Noriford beat Oakmere when?")).only == {"games"}
    assert not match.bounds(Example("Where is Oakmere?"))


def test_questions_without_a_subject_leave_the_scope_open_but_are_known_word_by_word() -> None:
    office = scopes(office=["Where is the office?", "What is the capital?"])
    assert not office.tasks["office"].closed
    assert office.bounds(Example("where is the OFFICE")).only == {"office"}
    assert not office.bounds(Example("What is the capital of Germany?"))


def test_a_scope_is_closed_only_if_the_samples_have_the_facts() -> None:
    assert scope(*TOWN).closed
    assert not scope(*TOWN, facts=5).closed
    assert not FactScope([*(Example(text, "a") for text in TOWN), Example("", "raw text of Ely")], 4).closed


def test_a_long_text_and_an_earlier_message_leave_it_to_the_router() -> None:
    town = scopes(town=TOWN)
    assert not town.bounds(Example("Quillhaven is near. " + "More was said of it. " * 20))
    turns = (Turn("user", "Tell me of Quillhaven."), Turn("assistant", "A town."), Turn("user", "Who leads it?"))
    assert not town.bounds(Example("Who leads it?", turns=turns))
    assert town.bounds(Example("Who leads it?")).never == {"town"}


def test_scripts_without_spaces_are_compared_character_by_character() -> None:
    towns = scopes(towns=["北京市长是谁？", "上海市长是谁？"])
    assert not towns.bounds(Example("北京的市长是谁")), "left to the router"
    assert towns.bounds(Example("东京市长是谁？")).never == {"towns"}


@given(st.text(max_size=60), st.text(max_size=60))
def test_any_text_has_words_and_bounds(known: str, asked: str) -> None:
    assert all(word.key for word in words_of(known))
    both = scopes(a=[known, *TOWN], b=[asked])
    found = both.bounds(Example(asked))
    assert found.only <= {"a", "b"}
    assert not found.only & found.never


# -- with a router -----------------------------------------------------------------------------------------------------


def fitted(*tasks: str, name: str = "centroid") -> Calibrated:
    made = Calibrated(build(name, {"tasks": "news"} if name == "static" else {}))
    for task in tasks:
        made.add_task(task, cloud(task, 40))
    made.fit()
    return made


def like(task: str) -> Cloud:
    return Cloud(cloud(task, 1, seed=5))


def decided(router: Calibrated, seen: Cloud, bound: Bounds, **how: object) -> Mapping[str, object]:
    (found,) = router.route(seen, bounds=[bound], **how)  # type: ignore[arg-type]
    return {"to": None if found.out_of_distribution else found.weights[0][0], "why": found.why, "all": found.weights}


def test_a_name_decides_against_the_router_and_against_its_doubt() -> None:
    router = fitted("news", "town")
    bound = Bounds(only=frozenset({"town"}), named=("Ely",))
    assert decided(router, like("news"), Bounds())["to"] == "news"
    assert decided(router, like("news"), bound, top_k=2) == {"to": "town", "why": "names Ely", "all": (("town", 1.0),)}
    strange = Cloud(-50 * torch.ones(1, WIDTH) * torch.arange(WIDTH).remainder(2))
    assert decided(router, strange, bound)["to"] == "town"


def test_a_task_whose_samples_have_the_name_too_is_left_to_the_router() -> None:
    bound = Bounds(only=frozenset({"town"}), named=("Ely",), shares=lambda task: task == "news")
    assert decided(fitted("news", "town"), like("news"), bound)["to"] == "news"


def test_two_tasks_with_one_name_are_told_apart_by_their_scores() -> None:
    router, bound = fitted("news", "town", "trivia"), Bounds(only=frozenset({"town", "trivia"}), named=("Ely",))
    assert [decided(router, like(task), bound)["to"] for task in ("town", "trivia")] == ["town", "trivia"]
    assert decided(router, like("news"), bound)["to"] in ("town", "trivia")


def test_what_names_nothing_goes_to_the_base_or_where_it_would_go_anyway() -> None:
    router, bound = fitted("news", "town"), Bounds(never=frozenset({"town"}))
    assert decided(router, like("news"), bound, top_k=2) == {"to": "news", "why": "", "all": (("news", 1.0),)}
    kept = decided(router, like("town"), bound)
    assert kept["to"] is None
    assert kept["why"] == "names nothing that town knows"
    assert kept["all"] == (("town", 1.0),), "what --no-fallback would take"


def test_a_router_that_looks_at_no_input_is_left_alone() -> None:
    router = fitted("news", "town", name="static")
    assert decided(router, like("town"), Bounds(only=frozenset({"town"})))["to"] == "news"
