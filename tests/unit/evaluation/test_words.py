"""Which answers count as the same, and what a word of one is."""

from __future__ import annotations

import pytest

from adapterhub_cl.evaluation.metrics import exact_match, rouge_l, score, strict_match, token_f1
from adapterhub_cl.evaluation.words import words
from adapterhub_cl.types import Task

DIFFERENT = [
    *(("-5", "5"), ("+1", "-1"), ("50%", "50"), ("C#", "C++"), (".5", "5"), ("@ann", "#ann"), ("$5", "5")),
    *(("a*b", "ab"), ("5!", "5"), ("1,5", "15"), ("x_1", "x1"), ("--no", "no"), ("f()", "f"), ("3.5", "35")),
    *(("~/a", "/a"), ("10:30", "1030"), ("<b>", "b"), ("2^3", "23"), ("€3", "3")),
]
SAME = [
    *(("Paris", "paris."), ('"Paris"', "Paris"), ("the Mill", "The  mill!"), ("«Straße»", "strasse"), ("No", "no…")),
    *(("东京", "东京。"), ("caf\u00e9", "cafe\u0301"), ("Rome", "“Rome”."), ("42", "42."), ("yes", "Yes,")),
]


@pytest.mark.parametrize(("gold", "answer"), DIFFERENT)
def test_different_answers_are_no_match(gold: str, answer: str) -> None:
    assert exact_match([gold], [answer]) == exact_match([answer], [gold]) == 0.0
    if any(c.isdigit() for c in gold) or gold[-1] in "#+":  # elsewhere SQuAD's words have no punctuation
        assert token_f1([gold], [answer]) < 1.0


SYMBOLS = [
    *(
        ("👍", "👎"),
        ("★★★", "★★★★★"),
        ("✓", "✗"),
        ("→", "←"),
        ("∞", "-∞"),
        ("A♯", "A♭"),
        ("a≤b", "a≥b"),
        ("P∧Q", "P∨Q"),
    ),
    *(("A-", "A"), ("今天😀", "今天😢"), ("()", "[]"), ("...", "?!?"), ("O−", "O")),
]


@pytest.mark.parametrize(("gold", "answer"), SYMBOLS)
def test_symbols_are_words(gold: str, answer: str) -> None:
    for metric in (exact_match, token_f1, rouge_l):
        assert metric([gold], [answer]) == metric([answer], [gold]) < 1.0
        assert metric([gold], [gold]) == metric([answer], [answer]) == 1.0
    assert token_f1([f"so {gold}, yes"], [f"so {gold} yes."]) == 1.0


@pytest.mark.parametrize(("gold", "answer"), SAME)
def test_case_quotes_and_sentence_marks_do_not_count(gold: str, answer: str) -> None:
    assert exact_match([gold], [answer]) == exact_match([answer], [gold]) == 1.0
    assert strict_match([gold], [answer]) == 0.0
    assert strict_match([gold], [f" {gold}\n"]) == 1.0


def test_scripts_without_spaces_go_by_character() -> None:
    assert token_f1(["今天天气很好"], ["今天天气很坏"]) == pytest.approx(5 / 6)
    assert rouge_l(["今天天气很好"], ["今天天气很坏"]) == pytest.approx(5 / 6)
    assert words("今天 ok好") == ["今", "天", "ok", "好"]
    assert token_f1(["ดีมาก"], ["ดีมา"]) > 0.5


def test_words_as_squad_has_them() -> None:
    assert words("The state-of-the-art, don't!", articles=False) == ["stateoftheart", "dont"]
    assert words("It costs $3.50 (or 50%).") == ["it", "costs", "$3.50", "or", "50%"]
    assert words("- first – then… `so` • pre-war") == ["first", "then", "so", "prewar"]


def test_the_best_of_several_right_answers_counts() -> None:
    task = Task("t", "generation")
    found = score(task, ["Ann", "Bob"], ["Ann Green", "Rob"], references=[("Ann Green", "A. Green"), ()])
    assert found["exact_match"] == 0.5
    assert found["strict_match"] == 0.5
    assert score(task, ["Ann"], ["Ann"])["exact_match"] == 1.0
