"""`stream`, `forgetting`, `promote`, `update --online` and the flags of continual learning, as a user types them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_support import TRAINING, Cl, Said, mood_rows, write_rows

from adapterhub_cl.evaluation.gate import Effect
from adapterhub_cl.registry import Registry
from adapterhub_cl.types import AdapterRecord


@pytest.fixture
def hub(training_run: tuple[Path, Said], tmp_path: Path) -> Path:
    """A copy of the trained hub."""
    return Path(shutil.copytree(training_run[0], tmp_path / "own"))


@pytest.fixture
def stream_file(tmp_path: Path) -> Path:
    for k, name in enumerate(("one", "two")):
        write_rows(tmp_path / f"{name}.jsonl", mood_rows(48, 1000 * k))
        write_rows(tmp_path / f"{name}.test.jsonl", mood_rows(12, 1000 * k + 500))
    tasks = [{"name": n, "data": f"{n}.jsonl", "eval": f"{n}.test.jsonl"} for n in ("one", "two")]
    path = tmp_path / "tasks.yaml"
    path.write_text(json.dumps({"tasks": tasks}), encoding="utf-8")
    return path


def test_stream_prints_matrices_and_writes_what_was_asked(cl: Cl, stream_file: Path, tmp_path: Path) -> None:
    cl("--hub", "hub", "init", "--base", "tiny")
    words = ["stream", stream_file, "--strategy", "sequential", "--strategy", "isolated", *TRAINING, "--hub", "hub"]
    said = cl(*words, "--csv", "m.csv", "--picture", "m.png", "--curves", "c.svg")
    assert said.code == 0, said.err
    assert "after two" in said.out
    assert "AP" in said.out
    assert "BWT 0.0000" in said.out, "isolated forgets nothing"
    assert {line.split()[0] for line in said.out.splitlines()[-2:]} == {"sequential", "isolated"}
    assert Path("m.png").read_bytes()[:4] == b"\x89PNG"
    assert "<svg" in Path("c.svg").read_text(encoding="utf-8")
    table = Path("m.csv").read_text(encoding="utf-8").splitlines()
    assert table[0].startswith("run,after")
    assert len(table) == 5

    told = cl(*words, "--json").json  # done already: nothing is trained again
    assert {"tasks", "matrix", "average_accuracy", "bwt", "forgetting", "fwt"} <= told.keys()
    assert [run["name"] for run in told["runs"]] == ["sequential", "isolated"]
    assert told["runs"][1]["bwt"] == 0.0
    assert told["runs"][0]["fwt_sapt"] is not None


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        (["--strategy", "ewc+olora"], 2, "cannot be combined"),
        (["--strategy", "replay", "--set", "replay.ratio=-1"], 2, "replay.ratio must be between"),
        (["--strategy", "replay", "--set", "ratio=1"], 2, "is not NAME.OPTION=VALUE"),
        (["--strategy", "replay", "--set", "ewc.strength=1"], 2, "does not belong to any of the strategies"),
        (["--strategy", "rply"], 2, "unknown strategy 'rply'"),
        (["--strategy", "isolated", "--strategy", "../../rply"], 2, "unknown strategy '../../rply'"),
        (["--strategy", "isolated", "--strategy", "replay", "--set", "replay.ratio=-1"], 2, "must be between"),
        (["--seeds", "0,x"], 2, "not a list of whole numbers"),
        (["--seed", "3"], 2, "did you mean --seeds"),
        (["--picture", "m.gif"], 2, "written as .png or .svg"),
        (["--max-forgetting", "2"], 2, "between 0 and 1"),
        (["--replay", "balanced"], 2, "is not POLICY:SIZE"),
        (["--augment", "swop:1"], 2, "unknown augmentation 'swop'"),
    ],
)
def test_a_stream_that_cannot_be_run_trains_nothing(
    cl: Cl, registry: Registry, stream_file: Path, words: list[str], code: int, why: str
) -> None:
    said = cl("stream", stream_file, "--hub", registry.path, *words)
    assert (said.code, said.out) == (code, "")
    assert why in said.err
    assert registry.adapters() == []
    assert list(registry.runs_dir.iterdir()) == []
    assert not (registry.path / "streams").exists()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"epoch": 3}, "epoch"),
        ({"strategy": "ewc"}, "--strategy"),
        ({"name": "two"}, "two"),
        ({"data": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"data": "two.test.jsonl"}, "line 1"),  # rows of the other's evaluation set
        ({"labels": "positive,neutral"}, "negative"),
    ],
)
def test_a_bad_stream_file_is_refused_with_its_reason(
    cl: Cl, registry: Registry, stream_file: Path, change: dict[str, Any], why: str
) -> None:
    told = json.loads(stream_file.read_text(encoding="utf-8"))
    told["tasks"][0].update(change)
    stream_file.write_text(json.dumps(told), encoding="utf-8")
    said = cl("stream", stream_file, "--hub", registry.path)
    assert said.code in (1, 2)
    assert said.err.startswith("error: ")
    assert why in said.err
    assert "internal" not in said.err
    assert registry.adapters() == []


FIGURES = {"task", "metric", "before", "after", "n", "drop", "interval"}


def test_a_refused_promotion_tells_both_scores_of_each_task(
    cl: Cl, registry: Registry, publish: Callable[..., AdapterRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    from adapterhub_cl.evaluation import promoting

    publish("mood")
    publish("mood", kind="updated", edges=[("mood@v1", "updated_from")])
    effects = [
        Effect("mood", "accuracy", 0.9, 0.4, 200, "test.jsonl", "mood@v2"),
        Effect("taste", "exact_match", 0.5, 0.6, 50, "replay samples of taste@v3", "taste@v3"),
    ]
    monkeypatch.setattr(promoting, "effects_of", lambda *_: effects)
    said = cl("promote", "mood@v1", "--max-forgetting", "0.1", "--hub", registry.path, "--json")
    assert said.code == 3
    told = said.json
    assert (told["code"], told["ref"], told["gate"]["limit"]) == ("gate", "mood@v1", 0.1)
    lost, gained = told["gate"]["effects"]
    assert lost.keys() >= FIGURES
    assert (lost["task"], lost["before"], lost["after"], lost["n"]) == ("mood", 0.9, 0.4, 200)
    assert lost["interval"] == pytest.approx([0.416, 0.574], abs=0.002)  # Newcombe's: 0.5 and about 0.08 to each side
    assert (gained["task"], gained["drop"]) == ("taste", pytest.approx(-0.1))
    plain = cl("promote", "mood@v1", "--max-forgetting", "0.1", "--hub", registry.path)
    assert plain.code == 3
    (row,) = [line.split() for line in plain.out.splitlines() if line.startswith("mood ")]
    assert row[1:5] == ["mood@v2", "0.9000", "0.4000", "+0.5000"]
    assert plain.err.splitlines()[0] == told["error"].join(["error: ", ""])


def test_the_gate_on_the_command_line(cl: Cl, hub: Path, tmp_path: Path) -> None:
    """The second task says the opposite: whoever learns it on the same weights forgets the first."""
    rows = mood_rows(60, 200)
    other = {"positive": "negative", "negative": "positive"}
    turned = [{**row, "label": other[row["label"]]} for row in rows]
    data = write_rows(tmp_path / "turned.jsonl", turned)
    first = cl("--hub", hub, "add-task", "sure", write_rows(tmp_path / "s.jsonl", rows), "--eval",
               write_rows(tmp_path / "st.jsonl", mood_rows(60, 400)), *TRAINING[2:], "--epochs", "4")  # fmt: skip
    assert first.code == 0, first.err
    words = ["add-task", "turned", data, "--strategy", "sequential", "--epochs", "4", *TRAINING[4:], "--hub", hub]
    said = cl(*words, "--json")
    assert said.code == 3, said.err
    told = said.json
    assert (told["ref"], told["status"], told["code"]) == ("turned@v1", "rejected", "gate")
    assert told["gate"]["passed"] is False
    assert all(effect.keys() >= FIGURES for effect in told["gate"]["effects"])
    assert told["hint"]
    assert "sure" in told["error"]
    assert {row["ref"]: row["status"] for row in cl("list", "--hub", hub, "--json").json}["turned@v1"] == "rejected"
    assert cl("predict", "good thing", "--task", "sure", "--hub", hub, "--json").json[0]["adapter"] == "sure@v1"

    seen = cl("forgetting", "turned@v1", "--hub", hub, "--json").json
    assert "sure" in {effect["task"] for effect in seen["effects"] if effect["served"]}
    assert "sure@v1" in cl("forgetting", "turned@v1", "--hub", hub).out
    assert cl("promote", "turned@v1", "--hub", hub).code == 3
    line = cl("log", "turned", "-n", "1", "--hub", hub, "--json").json[0]
    assert (line["verb"], line["ref"], line["detail"]["limit"]) == ("promote-refused", "turned@v1", 0.02)
    assert "sure" in {row["task"] for row in line["detail"]["refused"]}
    assert "promote-refused" in cl("log", "--hub", hub).out
    said = cl("promote", "turned@v1", "--max-forgetting", "1", "--hub", hub)
    assert said.code == 0, said.err
    assert "turned@v1 serves turned" in said.out
    assert cl("predict", "good thing", "--task", "sure", "--hub", hub, "--json").json[0]["adapter"] == "turned@v1"
    for words in (("--task", "turned"), ("--report",), ("--batch-size", "7"), ("--columns", "input=a,output=b")):
        refused = cl("eval", "--matrix", *words, "--hub", hub)
        assert refused.code == 2
        assert f"{words[0]} cannot be given with --matrix" in refused.err
    said = cl("eval", "--matrix", "--hub", hub)
    assert "after turned" in said.out
    assert cl("eval", "--matrix", "--hub", hub, "--json").json["tasks"][-1] == "turned"
    assert cl("verify", "--hub", hub).code == 0


def turned(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same texts with the other label."""
    other = {"positive": "negative", "negative": "positive"}
    return [{**row, "label": other[row["label"]]} for row in rows]


def test_the_gate_guards_a_task_against_its_own_relearning(cl: Cl, hub: Path, tmp_path: Path) -> None:
    """From scratch, or on top of another task's adapter: what serves the task already must not be replaced by worse."""
    flags = [*TRAINING[2:], "--epochs", "4"]
    data = write_rows(tmp_path / "s.jsonl", mood_rows(60, 200))
    held = write_rows(tmp_path / "st.jsonl", mood_rows(60, 400))
    assert cl("add-task", "sure", data, "--eval", held, *flags, "--hub", hub).code == 0
    assert cl("add-task", "other", data, "--epochs", "1", *TRAINING[2:], "--hub", hub).code == 0
    wrong = write_rows(tmp_path / "wrong.jsonl", turned(mood_rows(60, 200)))
    for strategy in ("isolated", "sequential"):
        own = shutil.copytree(hub, tmp_path / strategy)
        words = ["add-task", "sure", wrong, "--strategy", strategy, *flags, "--hub", own, "--json"]
        said = cl(*words)
        assert said.code == 3, said.err
        told = said.json
        assert (told["ref"], told["status"], told["code"]) == ("sure@v2", "rejected", "gate")
        assert "these tasks drop by more than 0.02: " in told["error"]
        assert ("cl-adapter update sure DATA" in told["hint"]) == (strategy == "isolated")
        (effect,) = (effect for effect in told["gate"]["effects"] if effect["task"] == "sure")
        assert (effect["answered_by"], effect["n"], effect["data"]) == ("sure@v1", 60, str(held))
        assert effect["drop"] > 0.5
        assert Registry.open(own).serving()["sure"] == "sure@v1"
        said = cl(*words, "--max-forgetting", "1", "--epochs", "1")
        assert said.code == 0, said.err
        assert Registry.open(own).serving()["sure"] == "sure@v3"


def test_update_online_from_standard_input(cl: Cl, hub: Path) -> None:
    feed = "".join(json.dumps(row) + "\n" for row in mood_rows(20, 700))
    said = cl("update", "mood", "-", "--online", "--every", "12", "--epochs", "1", "--max-forgetting", "1",
              "--hub", hub, "--json", stdin=feed)  # fmt: skip
    assert said.code == 0, said.err
    assert [row["ref"] for row in said.json["versions"]] == ["mood@v2", "mood@v3"]
    assert {"recall", "retention"} <= said.json["metrics"].keys()
    assert cl("update", "mood", "rows.jsonl", "--online", "--hub", hub).code == 2
    assert "must be at least 1" in cl("update", "mood", "-", "--online", "--every", "0", "--hub", hub).err
    assert "nothing" not in cl("list", "--hub", hub).out


def test_a_config_file_may_set_options(cl: Cl, registry: Registry, data: Path, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("strategy: replay\nset: {replay.ratio: -2}\nmax-forgetting: 0.1\n", encoding="utf-8")
    said = cl("add-task", "mood", data, "--config", config, "--hub", registry.path)
    assert said.code == 2
    assert "replay.ratio must be between 0 and 16, not -2" in said.err


def test_forgetting_of_the_only_task(cl: Cl, publish: Callable[..., AdapterRecord], registry: Registry) -> None:
    publish()
    said = cl("forgetting", "mood", "--hub", registry.path)
    assert said.code == 0
    assert "no other task" in said.out
    assert cl("forgetting", "nobody", "--hub", registry.path).code == 2


def test_production_does_not_go_around_the_gate(
    cl: Cl, publish: Callable[..., AdapterRecord], registry: Registry
) -> None:
    publish()
    publish(status="rejected")
    said = cl("alias", "mood@v2", "production", "--hub", registry.path)
    assert said.code == 1
    assert "refused by the gate" in said.err
    assert "promote mood@v2" in said.err
    assert cl("alias", "mood@v2", "trial", "--hub", registry.path).code == 0
    assert registry.serving() == {"mood": "mood@v1"}
    said = cl("add-task", "other", "rows.jsonl", "--on-top-of", "mood@v2", "--hub", registry.path)
    assert said.code != 0


def test_a_stream_does_not_mix_with_what_the_hub_learned_otherwise(
    cl: Cl, publish: Callable[..., AdapterRecord], registry: Registry, stream_file: Path
) -> None:
    publish("two")
    said = cl("stream", stream_file, "--hub", registry.path)
    assert said.code == 2
    assert "has learned two already (two@v1)" in said.err
    assert [record.ref for record in registry.adapters(all_versions=True)] == ["two@v1"]


def test_a_budget_that_drops_samples_asks(cl: Cl, hub: Path) -> None:
    said = cl("replay", "budget", "2", "--hub", hub)
    assert said.code == 2
    assert "add --yes" in said.err
    assert cl("replay", "list", "--hub", hub, "--json").json[0]["samples"] > 2
    assert cl("replay", "budget", "2", "--yes", "--hub", hub, "--json").json["samples"] == 2
    assert cl("show", "mood", "--hub", hub, "--json").json["serves"] == ["mood"]
    assert cl("verify", "--hub", hub).code == 0


@pytest.mark.parametrize(
    ("line", "why"), [("max_forgetting = 7", "max_forgetting is 7"), ('replay_budget = "lots"', "'lots' is not a")]
)
def test_defaults_that_cannot_be_used_are_told_before_training(
    cl: Cl, registry: Registry, data: Path, line: str, why: str
) -> None:
    toml = registry.path / "hub.toml"
    toml.write_text(toml.read_text(encoding="utf-8").replace("[defaults]", "") + f"\n[defaults]\n{line}\n")
    said = cl("add-task", "mood", data, "--hub", registry.path)
    assert said.code in (1, 2)
    assert why in said.err
    assert "epoch" not in said.err
