"""Settings: every problem at once, and no key or type that is not known."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub_cl.errors import UnknownNameError, UsageError
from adapterhub_cl.settings import TrainingSettings

BAD: dict[str, Any] = {
    "epochs": 0,
    "batch_size": 0,
    "accumulation": -1,
    "rank": 0,
    "checkpoint_every": 0,
    "weight_decay": -0.1,
    "clip": -1.0,
    "patience": -1,
    "seed": -1,
    "warmup": 1.0,
    "dropout": -0.5,
    "dev_share": 1.5,
    "max_length": 7,
    "learning_rate": 0.0,
    "alpha": -1.0,
    "target_modules": " ",
    "layers": "5-3",
    "schedule": "cosin",
}


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def test_every_problem_is_reported_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        TrainingSettings(**BAD)
    for name in BAD:
        assert flag(name) in caught.value.message
    assert caught.value.message.count(";") == len(BAD) - 1


@pytest.mark.parametrize("name", [name for name in BAD if name != "schedule"])
def test_each_problem_alone_names_its_flag_only(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        TrainingSettings(**{name: BAD[name]})
    assert flag(name) in caught.value.message
    assert ";" not in caught.value.message


@pytest.mark.parametrize("name", ["learning_rate", "alpha", "weight_decay", "clip", "warmup", "dropout", "dev_share"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_number_and_no_end_are_refused(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=flag(name)):
        TrainingSettings(**{name: value})


def test_unknown_schedule_suggests() -> None:
    with pytest.raises(UnknownNameError) as caught:
        TrainingSettings(schedule="cosin")
    assert "did you mean cosine" in caught.value.hint


def test_every_setting_has_a_help_line() -> None:
    for each in fields(TrainingSettings):
        assert len(each.metadata["help"]) > 10, each.name


def test_from_mapping_takes_dashes_underscores_and_numbers_as_text() -> None:
    found = TrainingSettings.from_mapping(
        {"batch-size": 8, "learning_rate": "1e-3", "epochs": 2.0, "alpha": None, "layers": [0, 2], "dora": True},
        "x.yaml",
    )
    assert found == TrainingSettings(batch_size=8, learning_rate=1e-3, epochs=2, layers="0,2", dora=True)
    assert isinstance(found.epochs, int)
    assert TrainingSettings.from_mapping(found.to_json(), "training.json") == found


def test_from_mapping_refuses_unknown_keys_with_a_suggestion() -> None:
    with pytest.raises(UnknownNameError, match=r"setting in my\.yaml 'learning_rat'") as caught:
        TrainingSettings.from_mapping({"learning_rat": 1}, "my.yaml")
    assert "did you mean learning-rate" in caught.value.hint


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epochs", "three"),
        ("epochs", 2.5),
        ("epochs", True),
        ("rank", None),
        ("epochs", float("inf")),
        ("rank", [4]),
        ("dropout", "much"),
        ("dora", "yes"),
        ("dora", 1),
        ("learning-rate", False),
        ("schedule", None),
        ("schedule", {"a": 1}),
    ],
)
def test_from_mapping_refuses_wrong_types(key: str, value: Any) -> None:
    with pytest.raises(UsageError, match=flag(key)):
        TrainingSettings.from_mapping({key: value}, "my.yaml")


def test_from_mapping_reports_all_wrong_types_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        TrainingSettings.from_mapping({"epochs": "x", "rslora": "y", "clip": []}, "my.yaml")
    assert all(name in caught.value.message for name in ("--epochs", "--rslora", "--clip"))


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("", None), ("0", [0]), ("8-10", [8, 9, 10]), ("4,0,2", [0, 2, 4]), ("0-2,1,5", [0, 1, 2, 5]), ("3-3", [3])],
)
def test_layer_numbers(text: str, numbers: list[int] | None) -> None:
    assert TrainingSettings(layers=text).layer_numbers() == numbers


@given(st.sets(st.integers(0, 50), min_size=1))
def test_layer_numbers_of_a_list_are_the_list(numbers: set[int]) -> None:
    assert TrainingSettings(layers=",".join(map(str, numbers))).layer_numbers() == sorted(numbers)


@pytest.mark.parametrize("text", ["x", "1-", "-1", "1,,2", "1;2", "2-1", " "])
def test_layers_that_are_no_list(text: str) -> None:
    with pytest.raises(UsageError, match="--layers"):
        TrainingSettings(layers=text)


def test_peak_rate_falls_with_the_base_s_width() -> None:
    settings = TrainingSettings()
    assert settings.peak_rate(4096) == pytest.approx(2.9e-4)
    assert settings.peak_rate(256) == pytest.approx(2.5e-3)
    rates = [settings.peak_rate(width) for width in (64, 256, 1024, 4096, 16384)]
    assert rates == sorted(rates, reverse=True)
    assert TrainingSettings(learning_rate=0.5).peak_rate(256) == 0.5
    assert settings.peak_rate(384, encoder=True) == pytest.approx(settings.peak_rate(384) / 2, rel=0.01)


def test_alpha_is_twice_the_rank_unless_given() -> None:
    assert TrainingSettings(rank=7).effective_alpha == 14
    assert TrainingSettings(rank=7, alpha=3).effective_alpha == 3


@pytest.mark.parametrize(("rank", "scale"), [(4, 4.0), (16, 2.0), (64, 1.0)])
def test_rslora_does_not_scale_higher_ranks_up(rank: int, scale: float) -> None:
    assert TrainingSettings(rank=rank, rslora=True).effective_alpha / rank**0.5 == scale


def test_the_names_of_other_libraries_are_known() -> None:
    with pytest.raises(UnknownNameError, match="unknown setting in the config 'lr'") as caught:
        TrainingSettings.from_mapping({"lr": 1e-3}, "the config")
    assert "what others call lr is learning-rate here" in caught.value.hint


@pytest.mark.parametrize(
    ("rows", "fresh", "encoder", "epochs"),
    [
        (512, "choice", True, 3),
        (240, "choice", True, 7),
        (60, "choice", True, 12),
        (1, "choice", True, 12),
        (337, "choice", False, 3),
        (336, "choice", False, 4),
        (240, "choice", False, 5),
        (176, "choice", False, 6),
        (60, "choice", False, 6),
        (60, "", True, 3),
        (60, "", False, 3),
    ],
)
def test_few_rows_are_passed_over_more_often_by_a_new_adapter(
    rows: int, fresh: str, encoder: bool, epochs: int
) -> None:
    found = TrainingSettings().for_rows(rows, fresh=fresh, encoder=encoder)
    assert (found.epochs, found.passes) == (epochs, epochs)
    assert TrainingSettings(epochs=2).for_rows(rows, fresh=fresh, encoder=encoder).epochs == 2


@pytest.mark.parametrize(
    ("rows", "fresh", "settings", "batch"),
    [
        (60, "generation", {}, 4),
        (168, "generation", {}, 4),
        (169, "generation", {}, 8),
        (335, "generation", {}, 8),
        (340, "generation", {}, 16),
        (60, "generation", {"epochs": 12}, 8),
        (1, "generation", {}, 4),
        (120, "generation", {"epochs": 12}, 16),
        (60, "generation", {"accumulation": 2}, 16),
        (60, "generation", {"batch_size": 16}, 16),
        (60, "generation", {"batch_size": 4}, 4),
        (60, "choice", {}, 16),
        (60, "", {}, 16),
    ],
)
def test_few_rows_with_free_answers_are_learned_in_smaller_batches(
    rows: int, fresh: str, settings: dict[str, Any], batch: int
) -> None:
    asked = TrainingSettings(**settings)
    found = asked.for_rows(rows, fresh=fresh, encoder=False)
    assert (found.batch_size, found.batch) == (batch, batch)
    assert found.steps(rows) == math.ceil(rows / (batch * found.accumulation)) * found.passes


def test_without_a_number_of_rows_there_are_three_passes() -> None:
    assert (TrainingSettings().epochs, TrainingSettings().passes, TrainingSettings().steps(32)) == (None, 3, 6)
