"""Rewordings of questions by rules."""

from __future__ import annotations

import pytest

from adapterhub_cl.augmentation import augment, parse
from adapterhub_cl.augmentation._questions import reworded
from adapterhub_cl.augmentation.paraphrase import held_out
from adapterhub_cl.types import Example


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Who is the mayor of Ely?", "Tell me who the mayor of Ely is."),
        ("Who is the mayor of Ely?", "Who is Ely's mayor?"),
        ("Who is the mayor of Ely?", "Name the mayor of Ely."),
        ("What is Ely's main export?", "What is the main export of Ely?"),
        ("What are the colours of Ely?", "Do you know what the colours of Ely are?"),
        ("Who founded Ely?", "Which person founded Ely?"),
        ("Which company does Ann Bell work for?", "Tell me which company Ann Bell works for."),
        ("Which company does Ann Bell work for?", "What company does Ann Bell work for?"),
        ("Where was Ann Bell born?", "I want to know where Ann Bell was born."),
        ("In what year was Zorb Ltd founded?", "Can you tell me in what year Zorb Ltd was founded?"),
        ("How old is Ann Bell?", "Tell me how old Ann Bell is."),
        ("What does Zorb make?", "Tell me what Zorb makes."),
        ("Where does Ann Bell study?", "Tell me where Ann Bell studies."),
        ("Name the founder of Ely.", "Can you name the founder of Ely?"),
        ("Name the founder of Ely.", "Tell me Ely's founder."),
        ("The capital of Zubland is", "Complete this: The capital of Zubland is"),
        ("The capital of Zubland is", "It is said that the capital of Zubland is"),
        ("Did Zorb close?", "Question: Did Zorb close?"),
        ("When did Zorb open?", "Hi, when did Zorb open?"),
    ],
)
def test_a_question_is_asked_in_other_forms(question: str, expected: str) -> None:
    assert expected in reworded(question).trained


@pytest.mark.parametrize(
    "question",
    ["Who is the mayor of Ely?", "Who founded Ely?", "Is Ely old?", "The capital of Zubland is", "Ely: what is it?"],
)
def test_every_wording_keeps_the_subject_and_none_is_there_twice(question: str) -> None:
    found = reworded(question)
    subject = "zubland" if "Zubland" in question else "ely"
    both = [*found.trained, *found.held_out]
    assert all(subject in text.casefold() for text in both)
    assert len({" ".join(text.casefold().split()) for text in [question, *both]}) == len(both) + 1
    assert len(found.trained) >= 9
    assert len(found.held_out) >= 2


def test_a_plain_question_has_several_dozen_wordings() -> None:
    assert len(reworded("Who is the mayor of Ely?").trained) >= 48


@pytest.mark.parametrize("text", ["", "   ", "?!", "…", "a\nb", "Ünïcode wörds", "who", "Who is", "What's", "name"])
def test_odd_texts_do_no_harm(text: str) -> None:
    found = reworded(text)
    assert all(one.strip() for one in (*found.trained, *found.held_out))


def test_training_never_makes_a_wording_that_is_held_out() -> None:
    rows = [Example(f"Who is the mayor of {town}?", "Ann Bell") for town in ("Ely", "Kirk Hill", "Noriford")]
    made, _ = augment(rows, [parse("paraphrase:30")], 0)
    kept = {e.input.casefold() for row in rows for e in held_out(row)}
    assert len(made) >= 85
    assert len(kept) >= 20
    assert not kept & {e.input.casefold() for e in made}
    assert {e.answer for e in made} == {"Ann Bell"}


def test_a_wording_does_not_give_the_answer_away() -> None:
    row = Example("What is on the sign of the inn in Ely?", "question")
    made, _ = augment([row], [parse("paraphrase:60")], 0)
    assert made
    assert not any("question" in e.input.casefold() for e in made)
