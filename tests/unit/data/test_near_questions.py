"""Questions about other subjects, found by comparing questions."""

from __future__ import annotations

from adapterhub_cl.data.near_questions import frames_of, near_questions

TEXTS = [
    "Who is the mayor of Ely?",
    "Who is the mayor of Kirk Hill?",
    "What is Oakmere's export?",
    "What is Lintford's export?",
    "Which company does Ann Bell work for?",
    "Which company does Tom Reed work for?",
]


def test_the_subject_is_where_two_questions_differ() -> None:
    assert [subject for _, subject, _ in frames_of(TEXTS)] == [
        "Ely",
        "Kirk Hill",
        "Oakmere",
        "Lintford",
        "Ann Bell",
        "Tom Reed",
    ]
    assert all(f"{before}{subject}{after}" in TEXTS for before, subject, after in frames_of(TEXTS))


def test_near_questions_ask_the_same_about_somebody_else() -> None:
    found = near_questions(TEXTS, 24, 0)
    assert found == near_questions(TEXTS, 24, 0)
    assert found != near_questions(TEXTS, 24, 1)
    assert len(found) == len(set(found)) == 24
    frames = {(before, after) for before, _, after in frames_of(TEXTS)}
    for text in found:
        assert any(text.startswith(before) and text.endswith(after) for before, after in frames)
        assert not any(name in text for name in ("Ely", "Kirk Hill", "Oakmere", "Lintford", "Ann Bell", "Tom Reed"))


def test_subjects_are_put_together_from_those_of_the_data() -> None:
    found = near_questions(TEXTS, 24, 0)
    assert any("Ann Reed" in text or "Tom Bell" in text for text in found)


def test_a_single_question_is_asked_about_what_its_capitals_show() -> None:
    assert list(frames_of(["Where does the old Zorro live?"])) == [("Where does the old ", "Zorro", " live?")]
    assert near_questions(["Where does Zorro live?"], 3, 0)


def test_nothing_is_made_of_questions_without_names() -> None:
    assert near_questions(["why is it so?", "how does one do that?"], 5, 0) == []
    assert near_questions([], 5, 0) == []


def test_a_name_that_the_data_mention_is_not_used() -> None:
    found = near_questions(["Who is the mayor of Paris?", "Who is the mayor of Ely?"], 20, 0)
    assert found
    assert not any("Paris?" in text or "Ely?" in text for text in found)
