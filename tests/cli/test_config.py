"""`--config FILE` under flags."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cl_adapter.flags import effective, read_config
from cli_support import Cl

from adapterhub_cl.data.tasks import read_labels
from adapterhub_cl.errors import UnknownNameError, UsageError
from adapterhub_cl.hub import AdapterHub
from adapterhub_cl.learning.train_options import AddTaskOptions
from adapterhub_cl.options import declared
from adapterhub_cl.registry import Registry
from adapterhub_cl.settings import TrainingSettings

OPTIONS = declared(AddTaskOptions, TrainingSettings)


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return str(path)


def test_flags_win_and_the_rest_comes_from_the_file(
    cl: Cl, registry: Registry, data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {}

    def add_task(_: object, name: str, source: str, **options: Any) -> None:
        asked.update(options)
        raise UsageError("enough")

    monkeypatch.setattr(AdapterHub, "add_task", add_task)
    config = write(tmp_path, "epochs: 2\nlearning-rate: 1e-3\nrslora: true\nstrategy: sequential\nreplay: none\n")
    cl("add-task", "mood", data, "--hub", registry.path, "--config", config, "--strategy", "isolated", "--epochs", 5)
    del asked["reporter"], asked["resume"]
    assert asked == {"strategy": "isolated", "replay": "none", "epochs": 5, "learning_rate": 1e-3, "rslora": True}
    assert effective(asked).learning_rate == 1e-3


@pytest.mark.parametrize("columns", ["columns: input=a,output=b", "columns: {input: a, output: b}"])
@pytest.mark.parametrize("labels", ["labels: x, y", "labels: [x, y]"])
def test_columns_and_labels_in_both_forms(columns: str, labels: str, tmp_path: Path) -> None:
    found = read_config(write(tmp_path, f"{columns}\n{labels}\n"), OPTIONS)
    assert found == {"columns": {"input": "a", "output": "b"}, "labels": ["x", "y"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs: [1\n", r"run\.yaml line 2: not valid YAML"),
        ("- epochs\n", "holds no settings"),
        ("", "holds no settings"),
        ("strategy: [a]\n", "--strategy must be a text"),
        ("columns: 3\n", "columns cannot be 3"),
        ("epochs: many\n", "--epochs must be a whole number"),
        ("epochs: 1\nepochs: 2\n", "the key 'epochs' comes twice"),
        ("seed: 2024-99-99\n", "not valid YAML"),
        ("[" * 5000, "not valid YAML"),
        ("rslora: yes\n", "--rslora must be true or false, not 'yes'"),
        ("eval: 5\n", "--eval cannot be 5"),
        ("set: 5\n", "--set cannot be 5"),
        ("learning-rate: 0.1\nlearning_rate: 0.2\n", r"learning-rate is set twice \(with - and with _\)"),
        ("rank: 0\nepochs: 0\n", "--epochs must be at least 1, not 0; --rank must be at least 1"),
    ],
)
def test_a_bad_file_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        read_config(write(tmp_path, text), OPTIONS)
    assert "\n" not in caught.value.message


def test_an_unknown_key_has_suggestions(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="epoch") as caught:
        read_config(write(tmp_path, "epoch: 2\n"), OPTIONS)
    assert "did you mean epochs" in caught.value.hint


def test_only_what_was_given_reaches_the_facade(
    cl: Cl, registry: Registry, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def add_task(_: object, name: str, source: str, **options: Any) -> None:
        asked.update(options, name=name, data=source)
        raise UsageError("enough")

    monkeypatch.setattr(AdapterHub, "add_task", add_task)
    cl("add-task", "mood", data, "--hub", registry.path, "--no-dora", "--labels", "a, b", "--seed", 3)
    asked.pop("reporter")
    assert asked == {"name": "mood", "data": str(data), "resume": False, "dora": False, "labels": ["a", "b"], "seed": 3}


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("spam, ham", ["spam", "ham"]),
        ('["yes, please", "no"]', ["yes, please", "no"]),
        (' [" a ", "b"]', [" a ", "b"]),
    ],
)
def test_labels_with_commas_stand_in_a_json_list(text: str, labels: list[str]) -> None:
    assert read_labels(text) == labels


@pytest.mark.parametrize("text", ["[a,b]", '["a", 1]', '["a"', "[" * 100_000])
def test_a_list_of_labels_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not a JSON list of texts"):
        read_labels(text)


def test_a_label_yes_stays_a_text(tmp_path: Path) -> None:
    found = read_config(write(tmp_path, "labels: [yes, no, off, 'true']\n"), OPTIONS)
    assert found == {"labels": ["yes", "no", "off", "true"]}
