"""The verbs that load a model, on one small trained hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cli_support import TRAINING, Cl, Said, Stdin, mood_rows, write_rows

from adapterhub_cl.errors import IntegrityError
from adapterhub_cl.hub import AdapterHub

pytestmark = pytest.mark.integration


def test_add_task_answers_with_its_contract(training_run: tuple[Path, Said]) -> None:
    said = training_run[1]
    assert said.code == 0
    row = said.json
    assert row.keys() >= {"ref", "status", "metrics", "gate", "task_spec", "evaluations", "seconds"}
    assert (row["ref"], row["status"], row["gate"]["passed"]) == ("mood@v1", "active", True)
    assert row["metrics"].keys() == {"accuracy", "macro_f1"}
    settings = next(line for line in said.err.splitlines() if line.startswith("settings: "))
    for word in ("strategy=isolated", "replay=balanced:200", "epochs=1", "rank=4"):
        assert word in settings.split()


def test_eval(trained: Path, cl: Cl) -> None:
    shown = cl("eval", "--report", "--hub", trained).out
    assert shown.splitlines()[0].split() == ["adapter", "task", "metric", "value", "95", "%", "interval", "n"]
    assert "support" in shown
    results = cl("eval", "mood", "--hub", trained, "--json", "--quiet").json["results"]
    assert [row["metric"] for row in results] == ["accuracy", "macro_f1"]
    assert results[0].keys() >= {"adapter", "task", "metric", "value", "n", "interval"}
    assert results[0]["n"] == 20


@pytest.mark.parametrize("verb", ["predict", "chat"])
def test_standard_input_that_is_no_text_is_told(
    trained: Path, cl: Cl, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    def read(self: Stdin, *_: Any) -> str:
        return b"\xff\xfe bad\n".decode()

    monkeypatch.setattr(Stdin, "read", read)
    monkeypatch.setattr(Stdin, "readline", read)
    said = cl(verb, "--hub", trained, stdin="x")
    assert said.code == 1
    assert "standard input is not utf-8: invalid start byte at byte 1" in said.err
    assert "internal error" not in said.err


def test_predict_from_arguments_file_and_stdin(trained: Path, cl: Cl, tmp_path: Path) -> None:
    hub = ("--hub", trained)
    rows = cl("predict", "good day", "bad day", "--json", *hub).json
    assert [row["text"] for row in rows] == ["good day", "bad day"]
    assert all(row.keys() >= {"text", "adapter", "prediction", "confidence"} for row in rows)
    assert {row["adapter"] for row in rows} == {"mood@v1"}
    (tmp_path / "texts.txt").write_text("good day\nbad day\n")
    table = cl("predict", "--file", "texts.txt", *hub).out.splitlines()
    piped = cl("predict", *hub, stdin="good day\n\nbad day\n").out.splitlines()
    assert table == piped
    assert table[1].split()[0] == rows[0]["prediction"]
    assert cl("predict", "x", "--adapter", "base", "--task", "mood", "--json", *hub).json[0]["adapter"] == "base"


def test_generate(trained: Path, cl: Cl, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = ("generate", "good day", "--max-new-tokens", 4, "--hub", trained)
    row = cl(*argv, "--json").json
    assert row.keys() >= {"text", "adapter", "task", "generated"}
    assert (row["adapter"], row["routing"]) == ("mood@v1", None)  # one task: nothing is to be routed
    assert cl(*argv).out == row["generated"] + "\n"
    assert cl(*argv, "--adapter", "base", "--raw", "--temperature", "0.7", "--seed", 1).code == 0


def test_a_tampered_adapter_is_refused_everywhere(trained: Path, cl: Cl) -> None:
    path = trained / "adapters" / "mood" / "v1" / "adapter_model.safetensors"
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    for argv in (["predict", "x"], ["eval"], ["generate", "x"], ["export", "mood", "-o", "out"]):
        said = cl(*argv, "--hub", trained, "--json")
        assert said.code == 1
        assert said.json["code"] == "integrity"
        assert "adapter_model.safetensors" in said.json["error"]
    with pytest.raises(IntegrityError):
        AdapterHub.open(trained).load("mood")
    assert cl("verify", "--hub", trained).code == 1


def test_update_export_import_and_lineage(trained: Path, cl: Cl, tmp_path: Path) -> None:
    hub = ("--hub", trained)
    fresh = write_rows(tmp_path / "fresh.jsonl", mood_rows(16, 500))
    updated = cl("update", "mood", fresh, "--epochs", 1, "--max-length", 64, *hub)
    assert updated.code == 0
    assert updated.out.startswith("mood@v2  choice task mood, labels: negative, positive\n")
    assert "next: cl-adapter --hub" in updated.err
    assert cl("lineage", "mood", *hub).out == "mood@v2\n  updated from mood@v1\n"
    assert cl("update", "mood", fresh, "--rank", 9, *hub).code == 2
    assert cl("export", "mood", "-o", "out", *hub).code == 0
    made: dict[str, Any] = cl("import", "out", "--as", "copy", "--task", "mood", "--json", *hub).json
    assert (made["ref"], made["kind"], made["task"], made["gate"]) == ("copy@v1", "imported", "mood", None)
    same = [cl("predict", "good day", "--adapter", name, "--json", *hub).json[0] for name in ("mood", "copy")]
    assert same[0]["scores"] == same[1]["scores"]


def test_a_full_disk_leaves_the_hub_as_it_was(
    trained: Path, cl: Cl, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from test_bad_input import no_space

    with monkeypatch.context() as patch:
        patch.setattr("adapterhub_cl.registry.files.write_all", no_space)
        said = cl("add-task", "other", data, *TRAINING, "--hub", trained)
    assert said.code == 1
    assert "error: no space left on" in said.err
    assert [row["ref"] for row in cl("list", "--all", "--json", "--hub", trained).json] == ["mood@v1"]


def test_raw_text_and_broken_tasks_are_told(trained: Path, cl: Cl, tmp_path: Path) -> None:
    wrong = write_rows(tmp_path / "wrong.jsonl", [{"text": "a", "label": "purple"}])
    said = cl("eval", "mood", "--data", wrong, "--hub", trained)
    assert said.code == 1
    assert "'purple' not among the labels" in said.err
