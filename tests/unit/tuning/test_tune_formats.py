"""`tune --formats`: prompt formats among what is searched, and trainings that begin with the one that was chosen."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cl_adapter.__main__ import main
from encoder_hubs import COLOURS, data, new_hub, write

from adapterhub_cl import AdapterHub
from adapterhub_cl.errors import IntegrityError, TrainingInterrupted, UnknownNameError, UsageError
from adapterhub_cl.learning.chosen_settings import carry_choice, place_of, write_choice
from adapterhub_cl.learning.request import build
from adapterhub_cl.tuning.tune_options import read_formats

pytest.importorskip("optuna")
OWN = "{instruction}\n> {input}\n<"
FIXED: dict[str, Any] = {"batch_size": 8, "max_length": 32, "epochs": 1, "rank": 2, "learning_rate": 1e-3}


@pytest.fixture
def hub(pico_copy: Callable[[str], Path], tmp_path: Path) -> AdapterHub:
    """On a base without a chat template."""
    base = pico_copy("llama")
    (base / "chat_template.jinja").unlink()
    return new_hub(tmp_path / "hub", base)


def test_formats_are_tried_each_with_prompts_of_its_own(
    hub: AdapterHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adapterhub_cl.tuning import tune_trials

    asked: list[str] = []
    learn = tune_trials.learn

    def noting(model: Any, base: Any, objective: Any, strategy: Any, lesson: Any, *rest: Any, **more: Any) -> Any:
        asked.append(lesson.task.prompt_format)
        return learn(model, base, objective, strategy, lesson, *rest, **more)

    monkeypatch.setattr(tune_trials, "learn", noting)
    rows = data(tmp_path, COLOURS, 110)
    found = hub.tune("colours", rows, trials=5, confirm=1, formats=["plain", OWN], target_modules="q_proj", **FIXED)
    assert found["searched"] == {"prompt_format": ["instruction", "plain", OWN]}
    assert found["default"] == {"prompt_format": "instruction"}
    tried = [trial["settings"]["prompt_format"] for trial in found["trials"]]
    assert tried[0] == "instruction"
    assert asked[: len(tried)] == tried


def test_later_trainings_begin_with_the_format_that_was_chosen(hub: AdapterHub, tmp_path: Path) -> None:
    rows = data(tmp_path, COLOURS)
    write_choice(hub.registry, "colours", {"settings": {"prompt_format": OWN, "rank": 4}, "trials": []})

    def asked(verb: str, **given: Any) -> Any:
        return build(hub.registry, verb, "colours", rows, False, given)[0]

    begun = asked("add-task")
    assert (begun.prompt_format, begun.training().rank) == (OWN, 4)
    assert begun.tuned == {"prompt_format": OWN, "rank": 4}
    own = asked("add-task", prompt_format="plain")
    assert (own.prompt_format, own.tuned) == ("plain", {"rank": 4}), "a flag wins"
    assert asked("add-task", strategy="sequential").prompt_format is None, "it continues from another task's version"
    made = hub.add_task("colours", rows, batch_size=8, max_length=32, epochs=1)
    assert hub.registry.task("colours").prompt_format == OWN
    assert made.manifest["tuned"] == {"prompt_format": OWN, "rank": 4}
    assert asked("update").prompt_format is None, "an update keeps what its task has"


def test_bad_formats_are_refused(
    hub: AdapterHub, pico_path: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = data(tmp_path, COLOURS, 110)
    said = [[{"role": "user", "content": f"{k}"}, {"role": "assistant", "content": "a number"}] for k in range(110)]
    talks = write(tmp_path / "talks.jsonl", [{"messages": one} for one in said])
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"a line about {k}" for k in range(110)))
    for source, given, why in (
        (rows, "chat", "needs a base whose tokenizer has a chat template"),
        (rows, "nosuch", "unknown prompt format 'nosuch'"),
        (rows, ",", "names no prompt format"),
        (rows, "{inputs}", "the prompt format has {inputs}"),
        (rows, '["plain"', "not a JSON list of texts"),
        (talks, "plain", "a conversation is written by the chat template"),
        (text, "plain", "raw text has no prompt"),
    ):
        assert main(["--hub", str(hub.folder), "tune", "colours", str(source), "--formats", given, "--dry-run"]) == 2
        assert why in capsys.readouterr().err
    encoder = new_hub(tmp_path / "encoder", pico_path("bert"))
    with pytest.raises(UsageError, match="--formats needs a base that writes"):
        encoder.tune("colours", rows, formats="plain", dry_run=True)
    assert not list((hub.folder / "runs").iterdir())


def test_a_search_over_formats_goes_on(hub: AdapterHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials that have ended, with a format among their settings, are believed when the study is opened again."""
    from adapterhub_cl.tuning import tune_trials

    learn, begun = tune_trials.learn, []

    def stopping(*given: Any, **more: Any) -> Any:
        begun.append(1)
        if len(begun) == 2:
            raise TrainingInterrupted("stopped")
        return learn(*given, **more)

    monkeypatch.setattr(tune_trials, "learn", stopping)
    rows = data(tmp_path, COLOURS, 110)
    with pytest.raises(TrainingInterrupted):
        hub.tune("colours", rows, trials=3, confirm=1, formats=["plain"], target_modules="q_proj", **FIXED)
    found = hub.tune("colours", resume=True)
    assert len(found["trials"]) == 3


def test_a_search_that_is_resumed_keeps_its_formats(hub: AdapterHub) -> None:
    with pytest.raises(UsageError, match="keeps its data and settings"):
        hub.tune("colours", resume=True, formats=["plain"])


def test_formats_are_read_as_names_a_template_or_a_list() -> None:
    assert read_formats("chat, plain,chat") == ("chat", "plain")
    assert read_formats("[Q] {input}, A:") == ("[Q] {input}, A:",)
    assert read_formats(json.dumps(["plain", OWN])) == ("plain", OWN)
    assert read_formats(["alpaca"]) == ("alpaca",)
    with pytest.raises(UnknownNameError):
        read_formats(["chatt"])


def test_a_format_that_cannot_be_used_is_not_taken_over(hub: AdapterHub, tmp_path: Path) -> None:
    assert carry_choice(hub.registry, "colours", {"prompt_format": "{nothing}"}, "from afar") == ""
    assert carry_choice(hub.registry, "colours", {"prompt_format": ["plain"]}, "from afar") == ""
    assert "prompt format plain" in carry_choice(hub.registry, "colours", {"prompt_format": "plain"}, "from afar")
    write_choice(hub.registry, "colours", {"settings": {"prompt_format": "{nothing}"}, "trials": []})
    with pytest.raises(IntegrityError, match="not what was written"):
        hub.tuned("colours")
    assert place_of(hub.registry, "colours").exists()
