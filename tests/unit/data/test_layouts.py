"""Nothing that belongs to a question is dropped silently: read, named, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adapterhub_cl.data.columns import examples, inputs, read_examples
from adapterhub_cl.data.layouts import parse_columns, recognise
from adapterhub_cl.data.learned_layouts import fits
from adapterhub_cl.data.reading import SourceRows
from adapterhub_cl.data.tasks import infer_task, why_kind
from adapterhub_cl.errors import DataError, UsageError
from adapterhub_cl.types import Example, Layout


def rows(*given: dict[str, Any]) -> SourceRows:
    return SourceRows(list(given), "train.jsonl", "0" * 64, list(range(1, len(given) + 1)))


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"question": "Who?", "sentence": "Ann.", "label": "a"}, "Who?\nAnn."),
        ({"premise": "It rains.", "hypothesis": "It is wet.", "label": 0}, "It rains.\nIt is wet."),
        ({"sentence1": "one", "sentence2": "two", "label": 0}, "one\ntwo"),
        ({"question": "Who?", "choices": ["Ann", "Bob"], "answer": 1}, "Who?\nA. Ann\nB. Bob"),
        (
            {"question": "Who?", "choices": {"text": ["Ann", "Bob"], "label": ["1", "2"]}, "answerKey": "2"},
            "Who?\n1. Ann\n2. Bob",
        ),
        ({"context": "Ann went.", "question": "Who?", "answer": "Ann"}, "Ann went.\nWho?"),
        ({"query": "Hello?", "response": "Yes."}, "Hello?"),
    ],
)
def test_what_is_asked_is_read(row: dict[str, Any], text: str) -> None:
    made = examples(rows(row)).examples[0]
    assert made.input == text
    answer = next(name for name in ("label", "answer", "answerKey", "response") if name in row)
    bare = {name: value for name, value in row.items() if name != answer}
    # without its answer the same text is read, by the layout that training recorded
    assert inputs(rows(bare), layouts=[examples(rows(row)).read])[0].input == text


def test_a_number_among_options_is_their_letter() -> None:
    assert examples(rows({"question": "q", "choices": ["x", "y", "z"], "answer": 2})).examples[0].answer == "C"


def test_system_history_and_tools() -> None:
    made = examples(rows({"prompt": "Hi", "system_prompt": "Be kind.", "response": "Hello"})).examples[0]
    assert (made.instruction, made.input, made.answer) == ("Be kind.", "Hi", "Hello")
    row = {"instruction": "And now?", "input": "", "output": "Bye", "history": [["Hi", "Hello"]], "system": "Be kind."}
    made = examples(rows(row)).examples[0]
    assert [(turn.role, turn.content) for turn in made.turns] == [
        ("system", "Be kind."),
        ("user", "Hi"),
        ("assistant", "Hello"),
        ("user", "And now?"),
    ]
    tools = [{"type": "function", "function": {"name": "look"}}]
    talk = [{"role": "user", "content": "Look!"}, {"role": "assistant", "content": "look()"}]
    for given in (tools, json.dumps(tools)):
        assert json.loads(examples(rows({"messages": talk, "tools": given})).examples[0].tools) == tools


def test_tool_calls_and_other_roles() -> None:
    call = [{"type": "function", "function": {"name": "look", "arguments": {"town": "Rome"}}}]
    talk = [
        {"role": "developer", "content": "Use tools."},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": call},
        {"role": "tool", "content": "sunny", "tool_call_id": "1"},
        {"role": "assistant", "content": "It is sunny."},
    ]
    made = examples(rows({"messages": talk})).examples[0]
    assert [turn.message() for turn in made.turns] == [{**m, "content": m["content"] or ""} for m in talk[:-1]]
    assert (made.instruction, made.answer) == ("Use tools.", "It is sunny.")
    called = examples(rows({"messages": talk[:3]})).examples[0]
    assert json.loads(called.calls) == call
    assert json.loads(str(called.answer)) == call[0]["function"]
    with pytest.raises(DataError, match="the role 'critic'"):
        examples(rows({"messages": [{"role": "critic", "content": "x"}, {"role": "assistant", "content": "y"}]}))


def test_conversational_prompt_and_completion() -> None:
    asked, said = [{"role": "user", "content": "Hi"}], [{"role": "assistant", "content": "Hello"}]
    made = examples(rows({"prompt": asked, "completion": said}))
    assert (made.layout, made.examples) == ("messages", [Example("Hi", "Hello")])


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"text": "t", "label": "l", "question": "q"}, "'question' would be ignored"),
        ({"prompt": "p", "completion": "c", "context": "x"}, "'context' would be ignored"),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "input": "i"},
            "'input'",
        ),
        ({"instruction": "i", "input": "x", "context": "c", "output": "o"}, "'context' would be ignored"),
    ],
)
def test_a_column_that_asks_is_never_dropped(row: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        examples(rows(row))


def test_a_file_with_conversations_and_other_rows_names_the_first_of_the_others() -> None:
    talk = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    with pytest.raises(DataError, match="2 has 'input' and no 'messages', unlike other rows") as caught:
        examples(rows(talk, {"input": "i", "output": "o"}, talk))
    assert "from another file" in caught.value.hint


def test_other_columns_are_named() -> None:
    made = examples(rows({"text": "t", "label": "l", "stars": 3, "id": 7, "empty": None}))
    assert made.unused == ("stars", "id")
    chosen = examples(rows({"text": "t", "label": "l", "question": "q"}), {"input": "text", "output": "label"})
    assert chosen.unused == ("question",)


def test_one_role_twice() -> None:
    wanted = parse_columns("input=a,input=b,output=c")
    assert wanted == {"input": ["a", "b"], "output": "c"}
    assert examples(rows({"a": "x", "b": "y", "c": "z"}), wanted).examples == [Example("x\ny", "z")]
    with pytest.raises(UsageError, match="two columns as system"):
        parse_columns("input=a,output=b,system=c,system=d")


def test_several_right_answers_and_answers_that_are_data() -> None:
    made = examples(rows({"question": "q", "answers": ["a", "b", "a"]})).examples[0]
    assert (made.answer, made.references) == ("a", ("b",))
    made = examples(rows({"instruction": "i", "input": "x", "output": {"name": "Ann", "age": 3}})).examples[0]
    assert json.loads(str(made.answer)) == {"name": "Ann", "age": 3}
    both = examples(rows({"prompt": "p", "completion": ["red"]}, {"prompt": "q", "completion": ["red", "blue"]}))
    assert [e.answer for e in both] == ['["red"]', '["red", "blue"]']
    given = examples(rows({"instruction": "i", "input": "x", "output": "a", "references": ["a", "c"]})).examples[0]
    assert given.references == ("c",)
    assert Example.from_json(given.to_json()) == given


def test_code_keeps_its_indentation_and_labels_their_form() -> None:
    made = examples(rows({"prompt": "\n    if x:", "completion": "        return 1\n"})).examples[0]
    assert (made.input, made.answer) == ("    if x:", "        return 1")
    composed, apart = "caf\u00e9", "cafe\u0301"
    labels = {e.answer for e in examples(rows({"text": "a", "label": composed}, {"text": "b", "label": apart}))}
    assert labels == {composed}


def test_squad_and_excel(tmp_path: Path) -> None:
    squad = {
        "data": [
            {
                "title": "t",
                "paragraphs": [
                    {
                        "context": "Ann went.",
                        "qas": [
                            {
                                "id": "1",
                                "question": "Who?",
                                "answers": [{"text": "Ann"}, {"text": "Ann G."}, {"text": "Ann"}],
                            }
                        ],
                    }
                ],
            }
        ]
    }
    path = tmp_path / "squad.json"
    path.write_text(json.dumps(squad))
    [example] = read_examples(path).examples
    assert (example.input, example.answer, example.references) == ("Ann went.\nWho?", "Ann", ("Ann G.",))
    sheet = tmp_path / "sheet.csv"
    sheet.write_text('sep=;\ntext;label\n"a;b";x\nc;y\n')
    made = read_examples(sheet)
    assert [(e.input, e.answer) for e in made] == [("a;b", "x"), ("c", "y")]
    assert made.places[0].endswith("line 3")


def test_a_quote_in_tab_separated_data_swallows_no_row(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text('text\tlabel\n"What a film\tgood\nplain\tbad\nends so"\tgood\n"whole ""one"""\tbad\n5" disk\tbad\n')
    assert [(e.input, e.answer) for e in read_examples(path)] == [
        ('"What a film', "good"),
        ("plain", "bad"),
        ('ends so"', "good"),
        ('whole "one"', "bad"),
        ('5" disk', "bad"),
    ]


@pytest.mark.parametrize("columns", [["question", "sentence", "label"], ["instruction", "text", "label"], ["text"]])
def test_the_input_is_the_same_with_and_without_answers(columns: list[str]) -> None:
    told = recognise(columns) if len(columns) > 1 else Layout("text", ("text",))
    asked = recognise(columns, answers=False)
    assert told is not None
    assert asked is not None
    assert (asked.input, asked.instruction) == (told.input, told.instruction)


def test_a_recorded_layout_survives_json_and_fits_where_its_columns_are() -> None:
    layout = Layout("text pair/label", ("a", "b"), "c", "d")
    assert Layout.from_json(json.loads(json.dumps(layout.to_json()))) == layout
    assert fits(layout, ["a", "b", "x"], answers=False) == Layout("text pair/label", ("a", "b"))
    assert fits(layout, ["a", "b", "x"]) is None
    assert fits(layout, ["a", "c"], answers=False) is None


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("json", {"name": "Ann Bell", "product": "routers", "wish": "an invoice, and a call before noon"}),
        ("json", '{"name": "Ann Bell", "product": "routers", "wish": "an invoice, and a call before noon"}'),
        ("answer", "a much longer text than the mail that it answers, with all that there is to say"),
    ],
)
def test_the_proposed_input_is_neither_an_object_nor_a_column_named_like_an_answer(answer: str, value: Any) -> None:
    with pytest.raises(DataError) as caught:
        examples(rows(*({"email": f"Send {k}.", "shop": "north", answer: value} for k in range(3))))
    assert caught.value.hint == f"name their roles: --columns input=email,output={answer}"


@pytest.mark.parametrize(
    ("columns", "wanted"),
    [
        (("subject", "category"), Layout("text/label", ("subject",), "category")),
        (("Topic", "Article"), Layout("text/label", ("Article",), "Topic")),
        (("email", "json"), Layout("input/output", ("email",), "json")),
        (("id", "mail", "reply"), Layout("input/output", ("mail",), "reply")),
        (("question", "intent"), Layout("text/label", ("question",), "intent")),
        (("subject", "body", "category"), None),
        (("answer", "label"), None),
        (("premise", "label"), None),
        (("image", "label"), None),
        (("subject", "body"), None),
        (("category",), None),
    ],
)
def test_beside_an_answer_the_only_other_column_is_the_input(columns: tuple[str, ...], wanted: Layout | None) -> None:
    assert recognise(columns) == wanted


def facts(count: int, ways: int) -> SourceRows:
    return rows(*({"question": f"way {w} of {k}?", "answer": f"fact {k}"} for k in range(count) for w in range(ways)))


@pytest.mark.parametrize(("count", "ways"), [(40, 3), (40, 12), (12, 6), (5, 10)])
def test_facts_are_not_labels(count: int, ways: int) -> None:
    data = examples(facts(count, ways))
    task = infer_task("t", data)
    assert task.kind == "generation"
    asked = f"because {count * ways} questions share {count} answers, as questions about facts do"
    assert why_kind(task, data).startswith(asked if count <= 20 or ways > 10 else "because")


def test_answers_that_repeat_as_labels_do() -> None:
    data = examples(rows(*({"question": f"{k} is odd", "answer": ("no", "yes")[k % 2]} for k in range(12))))
    task = infer_task("t", data)
    assert (task.kind, task.labels) == ("choice", ("no", "yes"))
    assert "--kind generation" in why_kind(task, data)
    assert why_kind(task, data, "choice") == ""
    many = examples(rows(*({"prompt": f"text {k}", "completion": ["red", "blue", "green"][k % 3]} for k in range(90))))
    assert infer_task("t", many).kind == "choice"


@pytest.mark.parametrize("calls", ["abc", [None, 3], [{"function": {"arguments": "{}"}}], [{"function": {"name": ""}}]])
def test_calls_without_a_name_are_refused(calls: Any) -> None:
    talk = [{"role": "user", "content": "Look!"}, {"role": "assistant", "content": None, "tool_calls": calls}]
    with pytest.raises(DataError, match=r"train\.jsonl line 1: turn 2 in column 'messages': tool_calls is not"):
        examples(rows({"messages": talk}))
