"""How a task is asked where nobody says how: through the base's chat template, if it has one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapterhub_cl import AdapterHub
from adapterhub_cl.bases.loading import inspect_base
from adapterhub_cl.bases.sources import has_chat_template
from adapterhub_cl.types import AdapterRecord

QUICK: dict[str, Any] = {"epochs": 1, "rank": 2, "max_length": 64, "dev_share": 0.0}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": f"thing {k}", "label": "ab"[k % 2]}) + "\n" for k in range(12)))
    return path


def asked(record: AdapterRecord) -> str:
    return str(record.manifest["task_spec"]["prompt_format"])


def without_template(folder: Path) -> Path:
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_the_chat_template_is_the_default_where_there_is_one(
    pico_path: Callable[[str], Path], rows: Path, tmp_path: Path
) -> None:
    hub = AdapterHub.init(tmp_path / "hub", str(pico_path("llama")), quantization="none", dtype="fp32")
    assert asked(hub.add_task("one", rows, **QUICK)) == "chat"
    assert asked(hub.add_task("two", rows, prompt_format="plain", **QUICK)) == "plain"
    assert asked(hub.update("two", rows, **QUICK)) == "plain", "an update keeps the format of its version"
    plan = hub.add_task("three", rows, dry_run=True, **QUICK)
    template = "<s>user: thing 0\nassistant:"
    assert (plan.shown[0].text, plan.shown[0].learned) == (template, False)
    first, learned = hub.example("one")
    assert first.text.startswith("<s>user: thing ")
    assert (first.learned, learned.learned) == (False, True)
    assert learned.text.strip() in ("a</s>", "b</s>")
    hub.add_task("none", rows, replay="none", **QUICK)
    assert hub.example("none") == []
    assert {found.prediction for found in hub.predict(["thing 3"], task="one")} <= {"a", "b"}


def test_show_prints_a_row_as_the_base_reads_it(
    pico_path: Callable[[str], Path], rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from cl_adapter.__main__ import main

    hub = AdapterHub.init(tmp_path / "hub", str(pico_path("llama")), quantization="none", dtype="fp32")
    hub.add_task("one", rows, **QUICK)
    hub.add_task("none", rows, replay="none", **QUICK)
    capsys.readouterr()
    assert main(["--hub", str(hub.folder), "show", "one", "--prompt"]) == 0
    out = capsys.readouterr().out
    assert "<s>user: thing " in out
    assert "</s>⟧" in out
    assert main(["--hub", str(hub.folder), "show", "one", "--prompt", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [part["learned"] for part in told["example"]] == [False, True]
    assert main(["--hub", str(hub.folder), "show", "none", "--prompt"]) == 0
    assert "keeps no replay samples" in capsys.readouterr().err


def test_a_base_without_a_template_is_asked_by_instruction(
    pico_path: Callable[[str], Path], rows: Path, tmp_path: Path
) -> None:
    base = without_template(Path(shutil.copytree(pico_path("llama"), tmp_path / "base")))
    hub = AdapterHub.init(tmp_path / "hub", str(base), quantization="none", dtype="fp32")
    assert asked(hub.add_task("one", rows, **QUICK)) == "instruction"


@pytest.mark.parametrize(("template", "has"), [("", False), (" \n", False), ("{{ messages }}", True)])
def test_an_empty_file_is_no_chat_template(pico_copy: Callable[..., Path], template: str, has: bool) -> None:
    folder = pico_copy()
    (folder / "chat_template.jinja").write_text(template)
    assert has_chat_template(inspect_base(str(folder), "none")) is has
