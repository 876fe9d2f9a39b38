"""`merge`, `distill`, `promote`, `rollback` as commands: what they print, their JSON, exit codes and bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cli_support import Cl, write_rows
from loras import write_lora

from adapterhub_cl import AdapterHub


def rows(count: int = 12) -> list[dict[str, str]]:
    return [{"text": f"thing {k} is here", "label": "bad" if k % 2 else "good"} for k in range(count)]


@pytest.fixture
def hub(cl: Cl, pico_path: Any, tmp_path: Path) -> Path:
    """Two imported random adapters on a pico base, and a trained one with replay samples."""
    place = tmp_path / "hub"
    assert cl("init", place, "--base", pico_path("llama"), "--quantization", "none").code == 0
    for k, name in enumerate(("news", "my-reviews")):
        folder = write_lora(tmp_path / f"lora{k}", k + 1)
        assert cl("--hub", place, "import", folder, "--as", name, "--labels", "good,bad").code == 0
    return place


@pytest.fixture
def taught(cl: Cl, hub: Path, tmp_path: Path) -> Path:
    """The same, and two tasks that were trained, with replay samples."""
    data = write_rows(tmp_path / "d.jsonl", rows())
    for name in ("one", "two"):
        said = cl("--hub", hub, "add-task", name, data, "--epochs", 1, "--rank", 4, "--max-length", 32)
        assert said.code == 0, said.err
    return hub


def test_merge_prints_and_answers_in_json(cl: Cl, taught: Path) -> None:
    said = cl("--hub", taught, "merge", "one", "two", "--as", "both")
    assert said.code == 0, said.err
    assert said.out.startswith("both@v1  merged from one@v1, two@v1 by linear\n")
    assert "truncation error 0.0000" in said.out
    assert f"next: cl-adapter --hub {taught} promote both@v1 lets it serve one, two" in said.err
    moved = cl("--hub", taught, "alias", "both@v1", "production")
    assert moved.code == 0
    assert f"moves none of them; cl-adapter --hub {taught} promote both@v1 lets it serve one, two" in moved.err
    found = cl("--hub", taught, "merge", "one", "two", "--as", "c", "--method", "ties", "--rank", 2, "--json").json
    assert (found["ref"], found["status"], found["rank"]) == ("c@v1", "active", 2)
    assert found["truncation_error"] > 0
    assert set(found["retention"]) == {"one", "two"}
    assert found["gate"]["passed"] is True
    assert found["recipe"]["parents"] == ["one@v1", "two@v1"]


def test_an_expression_with_a_leading_minus(cl: Cl, hub: Path) -> None:
    said = cl("--hub", hub, "merge", "--expression", "-0.5*news + my-reviews", "--as", "x", "--no-eval", "--json")
    assert said.code == 0, said.err
    assert said.json["recipe"]["weights"] == {"news@v1": -0.5, "my-reviews@v1": 1.0}
    assert "metrics" in said.json


def test_a_dry_run_needs_no_name_and_writes_nothing(cl: Cl, hub: Path) -> None:
    before = set((hub / "adapters").rglob("*"))
    said = cl("--hub", hub, "merge", "news", "my-reviews", "--rank", 2, "--dry-run")
    assert said.code == 0, said.err
    assert "news@v1 and my-reviews@v1: cosine" in said.out
    assert said.out.endswith("nothing was written\n")
    assert set((hub / "adapters").rglob("*")) == before
    found = cl("--hub", hub, "merge", "news", "my-reviews", "--dry-run", "--json").json
    assert [p["ref"] for p in found["parents"]] == ["news@v1", "my-reviews@v1"]
    assert found["bytes"] > 0
    assert found["memory"] > 0


def test_the_gate_refuses_with_exit_code_3(cl: Cl, taught: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from adapterhub_cl.evaluation import measuring

    real = measuring.effect

    def worse(probe: Any, before: Any, after: Any, ref: str) -> Any:
        found = real(probe, before, after, ref)
        return type(found)(found.task, found.metric, 1.0, 0.3, found.n, found.data, ref)

    monkeypatch.setattr(measuring, "effect", worse)
    said = cl("--hub", taught, "merge", "one", "two", "--as", "both", "--min-retention", 0.95)
    assert said.code == 3
    assert "the gate refused both@v1: it retains less than 0.95 of" in said.err
    assert "rejected" in said.out
    assert cl("--hub", taught, "list", "--json").json[0]["status"] == "rejected"
    again = cl("--hub", taught, "merge", "one", "two", "--as", "b2", "--min-retention", 0.95, "--json")
    assert again.code == 3
    assert again.json["code"] == "gate"
    assert again.json["ref"] == "b2@v1"
    effects = again.json["gate"]["effects"]
    assert {(row["task"], row["before"], row["after"]) for row in effects} == {("one", 1.0, 0.3), ("two", 1.0, 0.3)}
    assert all(row["n"] > 0 and row["interval"][0] < 0.7 < row["interval"][1] for row in effects)


def test_promote_serves_and_rollback_brings_the_parents_back(cl: Cl, taught: Path) -> None:
    assert cl("--hub", taught, "merge", "one", "two", "--as", "both", "--no-eval").code == 0
    said = cl("--hub", taught, "promote", "both", "--max-forgetting", 1)
    assert said.code == 0, said.err
    assert "both@v1 serves one, two" in said.out
    assert "rollback both@production" in said.err
    assert cl("--hub", taught, "predict", "--task", "two", "thing 1", "--json").json[0]["adapter"] == "both@v1"
    back = cl("--hub", taught, "rollback", "both@production", "--json").json
    assert back["serving"] == {"one": "one@v1", "two": "two@v1"}
    shown = cl("--hub", taught, "show", "both")
    assert "0.5 × one@v1, 0.5 × two@v1 by linear" in shown.out
    # Nobody says which of its tasks: a router chooses among them.
    found = cl("--hub", taught, "predict", "--adapter", "both", "thing 1", "--json").json[0]
    assert (found["adapter"], found["task"] in ("one", "two")) == ("both@v1", True)
    assert 0 < found["routing"] <= 1


def test_distill_and_refresh(cl: Cl, taught: Path, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("epochs: 1\ntemperature: 3\nstart: ties\nmax-length: 32\n")
    said = cl("--hub", taught, "distill", "one", "two", "--as", "both", "--config", tmp_path / "c.yaml", "--json")
    assert said.code == 0, said.err
    found = said.json
    assert found["ref"] == "both@v1"
    assert found["recipe"]["distillation"]["temperature"] == 3.0
    assert found["recipe"]["start"] == "ties"
    assert set(found["retention"]) == {"one", "two"}
    assert "settings: start=ties temperature=3.0 epochs=1 max-length=32" in said.err
    same = cl("--hub", taught, "distill", "--refresh", "both")
    assert same.code == 0
    assert "no teacher has a newer version" in same.err
    assert cl("--hub", taught, "distill", "--refresh", "both", "--epochs", 2).code == 2
    assert cl("--hub", taught, "distill", "--as", "both", "--resume").code == 2


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["merge", "news", "my-reviews"], "--as NAME"),
        (["merge", "--as", "x"], "at least 1"),
        (["merge", "news", "nope", "--as", "x"], "nope"),
        (["merge", "news", "my-reviews", "--as", "x", "--weights", "a,b"], "not a list of numbers"),
        (["merge", "news", "my-reviews", "--as", "x", "--weights", "1"], "1 weight for 2 adapters"),
        (["merge", "news", "my-reviews", "--as", "x", "--method", "tie"], "did you mean ties"),
        (["merge", "news", "my-reviews", "--as", "x", "--set", "density=1"], "NAME.OPTION=VALUE"),
        (["merge", "news", "my-reviews", "--as", "news"], "already exists"),
        (["merge", "--expression", "news +", "--as", "x"], "cannot be read"),
        (["merge", "--expression", "news - news", "--as", "x"], "nothing would be left"),
        (["distill", "news", "my-reviews"], "--as NAME"),
        (["distill", "news", "my-reviews", "--as", "x"], "keeps no replay samples"),
        (["distill", "news", "my-reviews", "--as", "x", "--temperature", "0"], "--temperature"),
        (["distill", "news", "my-reviews", "--as", "x", "--grow"], "--min-retention"),
        (["distill", "news", "--as", "x", "--into", "nowhere"], "nowhere"),
        (["update", "x", "d.jsonl"], "x"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(cl: Cl, hub: Path, line: list[str], words: str) -> None:
    before = sorted(p for p in (hub / "adapters").rglob("*"))
    said = cl("--hub", hub, *line)
    assert said.code in (1, 2)
    assert words in said.err
    assert said.err.startswith("error: ") or "\nerror: " in said.err
    assert "Traceback" not in said.err
    assert "hint: " in said.err
    assert sorted(p for p in (hub / "adapters").rglob("*")) == before


def test_help_names_every_method_with_its_options(cl: Cl) -> None:
    from adapterhub_cl.merging import ROOM

    said = cl("merge", "--help")
    assert all(name in said.out for name in ROOM.names())
    assert "ties.density [0.5]" in " ".join(said.out.split())
    assert "[8]" in cl("distill", "--help").out


def test_two_merges_of_one_name_at_once(hub: Path) -> None:
    """The name is looked at before and the version published after: neither overwrites the other."""
    one, other = AdapterHub.open(hub), AdapterHub.open(hub)
    first = one.merge(["news", "my-reviews"], name="x", evaluate=False)
    second = other.merge(["news", "my-reviews"], name="x", evaluate=False, new_version=True)
    assert [first.ref, second.ref] == ["x@v1", "x@v2"]
    assert one.verify() == []
