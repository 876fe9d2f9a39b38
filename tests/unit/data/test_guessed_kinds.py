"""Free answers are never taken for labels, and the reason for each guess is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapterhub_cl import AdapterHub
from adapterhub_cl.data.columns import examples, read_examples
from adapterhub_cl.data.reading import SourceRows
from adapterhub_cl.data.tasks import infer_task, why_kind
from adapterhub_cl.errors import DataError

CITIES = ("Oslo", "Rome", "Lima", "Cairo", "Quito", "Perth", "Turku", "Malmo")
SHARED = Path(__file__).parents[4] / "shared" / "data"
GENERATION = ("evalution", "glucose", "personachat", "samsum", "sciq")


def guessed(*given: dict[str, Any]) -> tuple[str, str]:
    data = examples(SourceRows(list(given), "d.jsonl", "", list(range(1, len(given) + 1))))
    task = infer_task("t", data)
    return task.kind, why_kind(task, data)


def as_messages(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


FORMS = {
    "question/answer": lambda q, a: {"question": q, "answer": a},
    "prompt/completion": lambda q, a: {"prompt": q, "completion": a},
    "messages": as_messages,
    "input/output": lambda q, a: {"input": q, "output": a},
    "alpaca": lambda q, a: {"instruction": q, "input": "", "output": a},
    "one instruction": lambda q, a: {"instruction": "Answer the question.", "input": q, "output": a},
}


@pytest.mark.parametrize("form", sorted(FORMS))
@pytest.mark.parametrize(
    ("question", "answers"),
    [
        ("In which city is branch {}?", CITIES),
        ("When was branch {} opened?", tuple(str(1990 + k) for k in range(8))),
        ("Is branch {} open on Sundays?", ("yes", "no")),
        ("Does machine {} need oil?", ("true", "false")),
        ("Branch {} is in the city of", CITIES),
        ("The capital of region {} is", ("Brack", "Dunmoor")),
        ("Birthplace of person number {}", ("Brack", "Dunmoor")),
        ("Name the person who governs town {}.", ("Ann Bell", "Bo Lund")),
        ("Branch {} is called …", ("Brack", "Dunmoor")),
    ],
)
def test_facts_with_few_answers_are_free_answers(form: str, question: str, answers: tuple[str, ...]) -> None:
    rows = [FORMS[form](question.format(k), answers[k % len(answers)]) for k in range(60)]
    kind, why = guessed(*rows)
    assert kind == "generation"
    assert "60" in why
    assert f"--kind choice makes the {len(answers)} answers labels" in why


def test_a_column_of_labels_that_are_all_different_holds_free_answers() -> None:
    kind, why = guessed(*({"text": f"row {k}", "label": 1.5 * k} for k in range(12)))
    assert (kind, why) == (
        "generation",
        "because none of the 12 answers occurs twice; --kind choice makes them labels",
    )
    assert guessed(*({"text": f"row {k}", "label": k // 2} for k in range(12)))[0] == "choice"
    assert guessed(*({"text": f"row {k}", "label": k} for k in range(4)))[0] == "choice", "a small file of examples"


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        (["a"], "1 row has 1 answer"),
        (["a", "a"], "2 rows have 1 answer"),
        (["a", "b"], "2 rows have 2 different answers"),
        (["a"] * 4, "4 questions share 1 answer, as questions about facts do (--facts is for those); --kind choice m"),
    ],
)
def test_a_reason_agrees_in_number(answers: list[str], why: str) -> None:
    rows = [FORMS["one instruction"](f"Where is {k}?", answer) for k, answer in enumerate(answers)]
    assert guessed(*rows)[1].startswith(f"because {why}")


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ([as_messages(f"It broke after {k} days.", ("good", "bad")[k % 2]) for k in range(40)], "repeat in 40 rows"),
        (
            [
                {"instruction": "Answer Oslo or Rome.", "input": f"Where is {k}?", "output": CITIES[k % 2]}
                for k in range(8)
            ],
            "the instruction lists the 2 answers",
        ),
        (
            [{"instruction": "Classify the ticket.", "input": f"why {k}?", "output": "abc"[k % 3]} for k in range(12)],
            "repeat in 12 rows",
        ),
        ([{"text": f"where is {k}?", "label": CITIES[k % 8]} for k in range(24)], "a column of labels"),
        ([{"question": f"is it {k}?", "answer": ("yes", "no")[k % 2]} for k in range(200)], "repeat in 200 rows"),
        (
            [
                {"context": "a long passage " * 9, "question": f"is {k}?", "answer": ("yes", "no")[k % 2]}
                for k in range(20)
            ],
            "repeat in 20 rows",
        ),
    ],
)
def test_what_looks_like_labels_is_a_choice(given: list[dict[str, Any]], reason: str) -> None:
    kind, why = guessed(*given)
    assert kind == "choice"
    assert reason in why
    assert why.endswith("; --kind generation makes them free answers")


def test_one_free_answer_for_all_is_no_error() -> None:
    assert guessed(*(as_messages(f"thanks {k}", "you are welcome") for k in range(30)))[0] == "generation"


def test_rows_with_questions_are_not_learned_as_raw_text_in_silence(
    pico_copy: Callable[[str], Path], tmp_path: Path
) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"text": "the red apple", "label": "good"}\n' * 4, encoding="utf-8")
    hub = AdapterHub.init(tmp_path / "hub", str(pico_copy("llama")), quantization="none")
    with pytest.raises(DataError, match=r"the rows have a question and an answer \(text/label\)") as caught:
        hub.add_task("raw", data, kind="text", dry_run=True)
    assert "--columns output=COLUMN" in caught.value.hint
    plan = hub.add_task("raw", data, kind="text", columns={"output": "text"}, dry_run=True)
    assert [(part.text, part.learned) for part in plan.shown] == [("<s>", False), ("the red apple</s>", True)]


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
def test_the_real_tasks_are_guessed_right() -> None:
    for file in sorted(SHARED.glob("*/*/train.jsonl")):
        data = read_examples(file)
        expected = "generation" if file.parent.name in GENERATION else "choice"
        task = infer_task("t", data)
        assert task.kind == expected, file
        assert why_kind(task, data).startswith("because "), file
