"""The benchmark of knowledge: its invented facts, and what counts as right."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from benchmark_modules import forget

from adapterhub_cl.learning import general_questions

PLACE = Path(__file__).parents[3] / "examples/benchmarks/knowledge"


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """The benchmark's modules, imported as when its folder is run."""
    forget()
    monkeypatch.syspath_prepend(str(PLACE.parent))
    monkeypatch.syspath_prepend(str(PLACE))
    yield {name: __import__(name) for name in ("invented", "methods", "page")}
    forget()


def test_a_seed_gives_the_same_facts_and_another_one_others(modules: dict[str, ModuleType]) -> None:
    batches = modules["invented"].batches
    assert batches(3, 20, 1) == batches(3, 20, 1)
    questions = [{f.question for batch in batches(3, 20, seed) for f in batch.facts} for seed in (1, 2)]
    assert len(questions[0] & questions[1]) < 5


def test_every_question_is_asked_once_and_has_one_answer(modules: dict[str, ModuleType]) -> None:
    made = modules["invented"].batches(20, 50, 0)
    assert [len(batch.facts) for batch in made] == [50] * 20
    facts = [fact for batch in made for fact in batch.facts]
    wordings = [text for fact in facts for text in (fact.question, *fact.others)]
    assert len(set(wordings)) == len(wordings)
    near = {fact.near for fact in facts}
    assert len(near) == len(facts)
    assert not near & set(wordings)
    assert all(len(fact.others) >= 3 and fact.answer for fact in facts)
    assert not any(fact.answer.casefold() in fact.question.casefold() for fact in facts)


def test_a_question_over_two_hops_follows_from_two_facts_of_its_batch(modules: dict[str, ModuleType]) -> None:
    invented = modules["invented"]
    links = {
        invented.HOPS["employer+seat"]: (invented.ASKED["employer"][0], invented.ASKED["seat"][0]),
        invented.HOPS["seat+mayor"]: (invented.ASKED["seat"][0], invented.ASKED["mayor"][0]),
        invented.HOPS["author+birthplace"]: (invented.ASKED["author"][0], invented.ASKED["birthplace"][0]),
        invented.HOPS["birthplace+river"]: (invented.ASKED["birthplace"][0], invented.ASKED["river"][0]),
    }
    checked = 0
    for batch in invented.batches(4, 27, 3):
        known = {fact.question: fact.answer for fact in batch.facts}
        for hop in batch.hops:
            for pattern, (first, second) in links.items():
                before, after = pattern.split("{}")
                if hop.question.startswith(before) and hop.question.endswith(after):
                    subject = hop.question[len(before) : len(hop.question) - len(after)]
                    assert known[second.format(known[first.format(subject)])] == hop.answer
                    checked += 1
        assert batch.hops
    assert checked == sum(len(batch.hops) for batch in invented.batches(4, 27, 3))


def test_what_is_measured_of_the_base_is_not_what_training_uses(modules: dict[str, ModuleType]) -> None:
    assert not set(modules["invented"].GENERAL) & {*general_questions.TRAINED, *general_questions.HELD_OUT}
    assert not set(general_questions.TRAINED) & set(general_questions.HELD_OUT)


def test_an_answer_holds_the_right_one_as_whole_words(modules: dict[str, ModuleType]) -> None:
    holds = modules["methods"].holds
    assert holds("It is based in Elderham, I think.", "Elderham")
    assert holds("the Parrot", "a parrot")
    assert not holds("Elderhamford", "Elderham")
    assert not holds("", "Elderham")


def test_the_sheet_of_answers_is_scored_by_kind(modules: dict[str, ModuleType]) -> None:
    methods, invented = modules["methods"], modules["invented"]
    first, second = invented.batches(2, 10, 0)
    sheet = methods.Sheet.of(second)
    before = dict.fromkeys(sheet.unrelated, "no idea")
    right = dict((*sheet.taught, *sheet.hops))

    def say(texts: list[str]) -> list[str]:
        return [right.get(text, "no idea") for text in texts]

    found = methods.measure(say, sheet, methods.Sheet.of(first), before)
    assert (found["efficacy"], found["portability"], found["locality"]) == (1, 1, 1)
    assert (found["paraphrase"], found["first"]) == (0, 0)
    assert len(methods.Sheet.of(first).fewer(4).others) == 4


def test_the_page_shows_the_methods_that_ran(modules: dict[str, ModuleType]) -> None:
    row = {"seed": 0, "efficacy": 1.0, "paraphrase": 0.5, "first": 1.0, "locality": None}
    rows = [{**row, "method": "shared", "batch": number, "scores": {"training_seconds": 60}} for number in (1, 2)]
    parts = [{"setup": {"base": "B", "batches": batches, "size": 5}, "rows": rows} for batches in (2, 4)]
    text = modules["page"].page(parts)
    assert ("## 2 batches of 5 facts, 1 seed" in text, "## 4 batches of 5 facts, 1 seed" in text) == (True, True)
    (line,) = [one for one in text.splitlines() if one.startswith("| shared | 100.0")][:1]
    assert "50.0" in line
    assert "1.0 min" in line
    assert "isolated, routed" not in text


def test_after_which_batches_a_method_is_asked(modules: dict[str, ModuleType]) -> None:
    by_name = modules["methods"].BY_NAME
    asked = {name: [list(by_name[name].asked_after(count)) for count in (1, 4, 5)] for name in by_name}
    every, last = [[0], [0, 1, 2, 3], [0, 1, 2, 3, 4]], [[0], [3], [4]]
    assert asked.pop("facts in the context") == [[0], [0, 1, 2, 3], [0, 4]]
    assert asked.pop("base") == asked.pop("all at once") == last
    assert set(map(str, asked.values())) == {str(every)}
