"""Stream files: what is read, and that all that is wrong comes in one message."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from adapterhub_cl.data.columns import Examples, read_examples
from adapterhub_cl.errors import DataError
from adapterhub_cl.learning.stream_file import check_leaks, digest, read_stream

GOOD = """
name: two
defaults:
  epochs: 2
  prompt-format: instruction
  replay: balanced:20
tasks:
  - name: yelp
    data: yelp.jsonl
    eval: sub/yelp.test.jsonl
    learning_rate: 1e-3
    columns: {input: review, output: stars}
    labels: [no, 'yes', 3]
  - {name: amazon, data: owner/reviews:train, epochs: 5, labels: "bad, good", columns: "input=a,output=b", replay: none}
"""


def rows(path: Path, *texts: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": t, "label": "ab"[i % 2]}) + "\n" for i, t in enumerate(texts)))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows(tmp_path / "yelp.jsonl", "fine food", "bad food")
    rows(tmp_path / "sub" / "yelp.test.jsonl", "cold soup")
    return tmp_path


def write(folder: Path, text: str, name: str = "stream.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def refused(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_stream(path)
    assert "\n" not in caught.value.message
    assert caught.value.hint
    return caught.value.message


def test_a_good_file(folder: Path) -> None:
    stream = read_stream(write(folder, GOOD))
    yelp, amazon = stream.tasks
    assert (stream.name, yelp.name, amazon.name) == ("two", "yelp", "amazon")
    assert (yelp.data, yelp.eval) == (str(folder / "yelp.jsonl"), str(folder / "sub" / "yelp.test.jsonl"))
    assert (amazon.data, amazon.eval) == ("owner/reviews:train", None)
    assert yelp.settings == {"epochs": 2, "learning_rate": "1e-3"} or yelp.settings["learning_rate"] == 1e-3
    assert amazon.settings == {"epochs": 5}
    assert yelp.options == {
        "columns": {"input": "review", "output": "stars"},
        "labels": ["no", "yes", "3"],
        "prompt_format": "instruction",
        "replay": "balanced:20",
    }
    assert amazon.options["labels"] == ["bad", "good"]
    assert amazon.options["columns"] == {"input": "a", "output": "b"}
    assert amazon.options["replay"] == "none"


def test_json_and_the_name_of_the_file(folder: Path) -> None:
    text = json.dumps({"tasks": [{"name": "yelp", "data": "yelp.jsonl"}]}, indent="\t")
    assert read_stream(write(folder, text, "first.json")).name == "first"
    assert "comes twice" in refused(write(folder, '{"tasks": [], "tasks": []}', "twice.json"))
    assert "not valid JSON" in refused(write(folder, "{", "broken.json"))


def test_paths_beside_the_file_then_as_given(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = folder / "work"
    rows(work / "yelp.jsonl", "another")
    rows(work / "here.jsonl", "here")
    monkeypatch.chdir(work)
    text = "tasks: [{name: a, data: yelp.jsonl}, {name: b, data: here.jsonl}]"
    stream = read_stream(write(folder, text))
    assert [task.data for task in stream.tasks] == [str(folder / "yelp.jsonl"), str(work / "here.jsonl")]


def test_all_problems_in_one_message(folder: Path) -> None:
    text = """
    nmae: x
    defaults: {seed: 3, epochs: 0, rnak: 4}
    tasks:
      - {name: news, data: yelp.jsonl, strategy: ewc}
      - {name: amazon, dta: yelp.jsonl, replay: "balanced", augment: "swop:1", kind: chioce}
      - {name: news, data: gone.jsonl, eval: -, batch-size: many, columns: [1], metric: acuracy}
      - {name: Bad Name, data: yelp.jsonl, prompt_format: nope, labels: 3}
      - just a text
    """
    message = refused(write(folder, text))
    for part in (
        "unknown key 'nmae' — did you mean name?",
        "defaults: seed belongs to the whole stream: say it with --seeds",
        "--epochs must be at least 1, not 0",
        "defaults: unknown key 'rnak' — did you mean rank?",
        "task 1 (news): strategy belongs to the whole stream: say it with --strategy",
        "task 2 (amazon): unknown key 'dta' — did you mean data?",
        "task 2 (amazon): no data",
        "'balanced' is not POLICY:SIZE",
        "unknown augmentation 'swop' — did you mean swap?",
        "unknown kind of task 'chioce' — did you mean choice?",
        "task 3 (news): data 'gone.jsonl': no such file",
        "task 3 (news): eval cannot be standard input",
        "--batch-size must be a whole number, not 'many'",
        "columns cannot be [1]",
        "unknown metric 'acuracy' — did you mean accuracy or reward_accuracy?",
        "'Bad Name' is not a valid name for a task",
        "unknown prompt format 'nope'",
        "--labels 3 is not a JSON list of texts",
        "task 5: must be a mapping with name and data, not 'just a text'",
        "2 tasks of one name (1 and 3: 'news')",
    ):
        assert part in message
    assert message.count("--epochs") == 1


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "no stream in it"),
        ("- a\n", "no stream in it"),
        ("tasks: []", "`tasks` is missing or empty"),
        ("name: x", "`tasks` is missing or empty"),
        ("tasks: {a: 1}", "`tasks` must be a list"),
        ("tasks: [\n  {a: 1", "line 2: not valid YAML"),
        ("tasks: []\ntasks: []", "line 2: not valid YAML (the key 'tasks' comes twice)"),
        ("a: &a [1]\ntasks: [*a, *a]", "aliases are not read"),
        ("tasks: 2024-99-99", "not valid YAML"),
        ("[" * 5000, "not valid YAML"),
        ("? [a]\n: 1", "not valid YAML"),
        ("tasks: !!python/object:os.system {}", "not valid YAML"),
        ("name: 3\ntasks: [{name: 7, data: yelp.jsonl}]", "task 1: name must be a text, not 7; put it in quotes"),
        (
            "tasks: [{name: a, data: yelp.jsonl, batch-size: 1, batch_size: 2}]",
            "batch_size is set twice (with - and with _)",
        ),
    ],
)
def test_what_is_no_stream(folder: Path, text: str, part: str) -> None:
    assert part in refused(write(folder, text))


def test_files_that_cannot_be_read(folder: Path) -> None:
    assert "no such file" in refused(folder / "gone.yaml")
    assert "cannot be read" in refused(folder)
    (folder / "latin.yaml").write_bytes(b"name: \xff\xfe")
    assert "cannot be read" in refused(folder / "latin.yaml")
    assert "over 1 MB" in refused(write(folder, "#" * 1_000_001))


def test_leaks_within_and_across_tasks(folder: Path) -> None:
    stream = read_stream(
        write(folder, "tasks: [{name: yelp, data: yelp.jsonl}, {name: amazon, data: yelp.jsonl}, {name: c, data: a/b}]")
    )

    def examples(name: str, *texts: str) -> Examples:
        return read_examples(rows(folder / name, *texts))

    train, other = examples("yelp.jsonl", "fine food", "bad food"), examples("am.jsonl", "a lamp", "a chair")
    clean, leaky = examples("ok.jsonl", "cold soup"), examples("am.test.jsonl", "a desk", "Bad  FOOD", "a chair")
    check_leaks(stream, {"yelp": (train, clean), "amazon": (other, None)})
    with pytest.raises(DataError) as caught:
        check_leaks(stream, {"yelp": (train, clean), "amazon": (other, leaky)})
    assert (
        f"task amazon: row {folder / 'am.test.jsonl'} line 2 of its evaluation data is also a training row of task yelp"
        f" ({folder / 'yelp.jsonl'} line 2); it could be kept as a replay sample"
    ) in caught.value.message
    assert caught.value.message.endswith("2 such rows in all"), "one line, the first of them named"
    assert "remove each from one" in caught.value.hint
    many = examples("many.jsonl", *["fine food"] * 9)
    with pytest.raises(DataError, match="9 such rows in all"):
        check_leaks(stream, {"yelp": (train, many)})


def test_the_digest_is_of_what_is_asked(folder: Path) -> None:
    first = digest(read_stream(write(folder, GOOD)))
    assert len(first) == 64
    assert digest(read_stream(write(folder, "# a comment\n" + GOOD, "other.yaml"))) == first
    for old, new in (
        ("epochs: 5", "epochs: 6"),
        ("bad, good", "good, bad"),
        ("amazon,", "imdb,"),
        ("yelp.jsonl", "a/b"),
    ):
        assert digest(read_stream(write(folder, GOOD.replace(old, new)))) != first


def test_no_torch() -> None:
    code = "import sys, adapterhub_cl.learning.stream_file; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
