"""Everything that users get wrong: one line, the next step, the exit code, and nothing written."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_support import Cl, mood_rows, write_rows

from adapterhub_cl.bases import resolve
from adapterhub_cl.errors import GateRefused, TrainingInterrupted
from adapterhub_cl.hub import AdapterHub
from adapterhub_cl.registry import Registry
from adapterhub_cl.training.runs import Run
from adapterhub_cl.types import BaseInfo


def check(cl: Cl, argv: list[object], code: int, message: str, hint: str) -> None:
    """Both forms of an error say the same: two lines on stderr, and one object on stdout with --json."""
    said = cl(*argv)
    assert said.code == code, said
    assert said.out == ""
    lines = [line for line in said.err.splitlines() if line.startswith(("error: ", "hint: "))]
    assert message in lines[0]
    assert hint in lines[1]
    assert len(lines) == 2
    assert "Traceback" not in said.err
    again = cl(*argv, "--json") if "--" not in argv else cl("--json", *argv)
    assert again.code == code
    assert again.json.keys() == {"error", "hint", "code"}
    assert message in again.json["error"]
    assert hint in again.json["hint"]


BROKEN = {
    "missing": (None, "missing.jsonl: no such file", "did you mean"),
    "empty": ("", "empty.jsonl: contains no rows", "at least one row"),
    "line 7": ('{"text": "a", "label": "x"}\n' * 6 + '{"text": \n', "line 7", ""),
    "columns": (
        '{"foo": "a b c", "bar": "x"}\n' * 5,
        "the columns match no known layout (foo, bar)",
        "--columns input=foo",
    ),
}


@pytest.mark.parametrize("case", sorted(BROKEN))
def test_bad_data(case: str, cl: Cl, registry: Registry, tmp_path: Path) -> None:
    text, message, hint = BROKEN[case]
    path = tmp_path / f"{case.replace(' ', '-')}.jsonl"
    write_rows(tmp_path / "other.jsonl", mood_rows(3))
    if text is not None:
        path.write_text(text)
    check(cl, ["--hub", registry.path, "add-task", "mood", path], 1, message, hint)
    assert registry.adapters() == []
    assert not list(registry.runs_dir.iterdir())


@pytest.mark.parametrize(
    ("extra", "message", "hint"),
    [
        (["--strategy", "isolatd"], "unknown strategy 'isolatd'", "did you mean isolated"),
        (["--replay", "balancd:20"], "unknown selection policy 'balancd'", "did you mean balanced?"),
        (["--replay", "balanced"], "--replay 'balanced' is not POLICY:SIZE", "--replay balanced:200"),
        (["--schedule", "cosin"], "unknown schedule 'cosin'", "did you mean cosine?"),
        (["--kind", "choise"], "unknown kind of task 'choise'", "did you mean choice?"),
        (["--metric", "acuracy"], "unknown metric 'acuracy'", "did you mean accuracy or reward_accuracy?"),
        (["--prompt-format", "alpacca"], "unknown prompt format 'alpacca'", "did you mean alpaca?"),
        (["--columns", "input=txt,output=label"], "unknown column 'txt'", "did you mean text?"),
        (["--columns", "text"], "not of the form role=column", "--columns input=COLUMN"),
        (["--epochs", "0", "--rank", "0"], "--epochs must be at least 1, not 0; --rank", "add-task --help"),
        (["--rank", "three"], "invalid value for '--rank'", "add-task --help"),
        (["--rnak", "3"], "unknown option '--rnak'", "did you mean --rank"),
        (["--resume"], "no unfinished add-task of 'mood'", "without --resume"),
        (["--resume", "--rank", "3"], "no unfinished add-task of 'mood'", "without --resume"),
        (["--config", "none.yaml"], "none.yaml: no such file", "YAML"),
    ],
)
def test_bad_options_of_training(
    extra: list[str], message: str, hint: str, cl: Cl, registry: Registry, data: Path
) -> None:
    check(cl, ["--hub", registry.path, "add-task", "mood", data, *extra], 2, message, hint)
    assert registry.adapters() == []
    assert not list(registry.runs_dir.iterdir())


def test_bad_names_and_words(cl: Cl, registry: Registry, publish: Callable[..., Any], data: Path) -> None:
    publish("mood")
    hub: list[object] = ["--hub", registry.path]
    check(cl, [*hub, "add-task", "a/b", data], 2, "'a/b' is not a valid name", "use 'a-b'")
    check(cl, [*hub, "update", "moood", data], 2, "unknown adapter 'moood'", "did you mean mood?")
    check(cl, [*hub, "add-task", "mood"], 2, "no data given", "add-task mood DATA")
    check(cl, [*hub, "lits"], 2, "unknown verb 'lits'", "did you mean list")
    check(cl, [*hub, "list", "--al"], 2, "unknown option '--al'", "did you mean --all?")
    check(cl, [*hub, "show"], 2, "missing argument", "cl-adapter show --help")
    check(cl, [*hub, "list", "--device"], 2, "--device needs a value", "--device cpu")
    check(cl, [*hub, "show", "moood"], 2, "unknown adapter 'moood'", "did you mean mood?")
    check(cl, [*hub, "alias", "mood@v7", "production"], 2, "unknown version of mood 'v7'", "known: v1")
    check(cl, [*hub, "alias", "mood", "v3"], 2, "looks like a version", "production")
    check(cl, [*hub, "export", "mood", "-o", "out", "--format", "pfet"], 2, "unknown export format", "peft?")
    check(cl, [*hub, "predict", "x", "--task", "moood"], 2, "unknown task 'moood'", "did you mean mood?")
    check(cl, [*hub, "predict", "x", "--dtype", "bf61"], 2, "unknown dtype 'bf61'", "did you mean bf16")
    check(cl, [*hub, "predict", "x", "--device", "gpu"], 2, "unknown device 'gpu'", "auto, cpu, cuda")
    check(cl, [*hub, "predict", "x", "--file", "y"], 2, "both texts and --file", "one of them")
    check(cl, [*hub, "predict", "--columns", "input=x", "--", "--json"], 2, "--columns without --file", "--file")
    check(cl, [*hub, "predict"], 1, "no text on standard input", "predict")
    check(cl, [*hub, "import", "x", "--as", "y", "--task", "mood", "--kind", "text"], 2, "--kind would", "one or")
    assert cl(*hub, "predict", terminal=True).code == 2


def test_a_hub_that_cannot_be_made(cl: Cl, tmp_path: Path) -> None:
    check(cl, ["init"], 2, "init needs --base", "--base tiny")
    check(cl, ["init", "q", "--base", "tinny"], 1, "no base at 'tinny'", "or tiny")
    check(cl, ["init", "q", "--base", "./nowhere"], 1, "no base at", "config.json")
    check(cl, ["init", "q", "--base", "nobody/nothing"], 1, "not cached here", "--base tiny")
    check(cl, ["init", "q", "--base", "tiny", "--quantization", "nf5"], 2, "unknown quantization", "did you mean nf4")
    check(cl, ["init", "q", "--hub", "r", "--base", "tiny"], 2, "two places", "one of them")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    check(cl, ["init", "full", "--base", "tiny"], 2, "is neither empty nor a hub", "missing or empty")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["full"]
    made = cl("init", "mine", "--base", "tiny", "--json")
    assert made.json["base"]["source"] == "tiny"
    check(cl, ["init", "mine", "--base", "tiny"], 1, "already a hub", "cl-adapter --hub mine list")
    assert "--hub other" in cl("init", "other", "--base", "tiny").err


def test_a_base_that_has_changed(cl: Cl, tmp_path: Path) -> None:
    base = Path(shutil.copytree(resolve("tiny"), tmp_path / "base"))
    assert cl("init", "registry", "--base", base).code == 0
    registry = Registry.open("registry")
    assert isinstance(registry.base, BaseInfo)
    (base / "config.json").write_text((base / "config.json").read_text() + "\n")
    argv: list[object] = ["generate", "hello", "--adapter", "base"]
    check(cl, argv, 1, "has changed since this hub was made", "create a new hub with cl-adapter init")
    said = cl("verify", "--json")
    assert said.code == 1
    assert "has changed" in said.json["problems"][0]["problem"]
    shutil.rmtree(base)
    check(cl, argv, 1, "no base at", "--base-path")


def no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk(cl: Cl, registry: Registry, publish: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    publish("mood")
    with monkeypatch.context() as patch:
        patch.setattr("adapterhub_cl.registry.files.write_all", no_space)
        check(cl, ["init", "q", "--base", "tiny"], 1, "no space left on", "free some space")
        with pytest.raises(Exception, match="no space left"):
            publish("mood")
    assert [record.ref for record in registry.adapters(all_versions=True)] == ["mood@v1"]
    assert cl("verify", "--hub", registry.path).out == "ok\n"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (GateRefused("accuracy on news fell by 0.2", "--force"), 3, "accuracy on news fell"),
        (TrainingInterrupted("stopped after 30 steps", "cl-adapter add-task x --resume"), 130, "stopped after 30"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (ValueError("a\nb"), 1, "internal error: ValueError: a b"),
        (MemoryError(), 1, "out of memory"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 1, "no permission to write"),
    ],
)
def test_exit_codes(
    error: BaseException, code: int, message: str, cl: Cl, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(AdapterHub, "list", fail)
    said = cl("--hub", registry.path, "list")
    assert said.code == code
    assert said.err.startswith(f"error: {message}")
    assert "Traceback" not in said.err
    assert message in cl("--hub", registry.path, "list", "--json").json["error"]
    if code == 1 and "internal" in message:
        assert "run again with --debug" in said.err
        assert "Traceback" in cl("--hub", registry.path, "list", "--debug").err


CHANGING = [
    ["add-task", "mood", "rows.jsonl"],
    ["update", "mood", "rows.jsonl"],
    ["stream", "s.yaml"],
    ["merge", "a", "b", "--as", "c"],
    ["distill", "a", "b", "--as", "c"],
    ["prune", "a", "--rank", "2"],
    ["prune", "--unused", "--yes"],
    ["forget-task", "mood", "--yes"],
    ["alias", "mood@v1", "best"],
    ["rollback", "production"],
    ["promote", "mood"],
    ["import", "folder", "--as", "new"],
    ["replay", "drop", "mood", "--all", "--yes"],
    ["replay", "budget", "20"],
    ["eval"],
    ["forgetting", "mood"],
    ["verify", "--repair"],
    ["verify", "--rebuild-index"],
    ["gc", "--yes"],
]


@pytest.mark.parametrize("words", CHANGING, ids=" ".join)
def test_a_verb_that_changes_a_hub_refuses_the_default_one(
    cl: Cl, registry: Registry, tmp_path: Path, words: list[str]
) -> None:
    registry.path.rename(tmp_path / "registry")
    before = {p: p.read_bytes() for p in (tmp_path / "registry").rglob("*") if p.is_file()}
    said = cl(*words)
    assert said.code == 2, said
    assert "only read unless you name it" in said.err
    assert "--hub registry" in said.err
    assert {p: p.read_bytes() for p in (tmp_path / "registry").rglob("*") if p.is_file()} == before


def test_reading_verbs_and_a_named_default_hub_work(cl: Cl, registry: Registry, tmp_path: Path) -> None:
    registry.path.rename(tmp_path / "registry")
    for words in (["list"], ["verify"], ["gc", "--dry-run"], ["log"], ["replay", "list"]):
        assert "only read" not in cl(*words).err
    assert cl("--hub", "registry", "gc", "--yes").code == 0


def test_init_needs_a_folder(cl: Cl) -> None:
    said = cl("init", "--base", "tiny")
    assert said.code == 2
    assert "cl-adapter init my-hub --base tiny" in said.err


def test_a_hint_names_the_hub_that_was_given(cl: Cl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = tmp_path / "my hub"
    AdapterHub.init(hub, "tiny")
    for argv in (("--hub", hub, "eval"), ("eval", "--hub", hub)):
        assert f"hint: name an adapter and data: cl-adapter --hub '{hub}' eval NAME --data" in cl(*argv).err
    monkeypatch.setenv("CL_ADAPTER_HUB", str(hub))
    assert "hint: name an adapter and data: cl-adapter eval NAME --data" in cl("eval").err


@pytest.mark.parametrize(
    ("flag", "here"),
    [("--lr", "--learning-rate"), ("--num-train-epochs", "--epochs"), ("--lora-alpha", "--alpha"), ("--r", "--rank")],
)
def test_the_names_of_other_libraries_are_known(cl: Cl, tmp_path: Path, flag: str, here: str) -> None:
    said = cl("add-task", "x", write_rows(tmp_path / "a.jsonl", mood_rows(4)), flag, "3")
    assert f"unknown option '{flag}'" in said.err
    assert f"did you mean {here}?" in said.err


def test_an_old_run_does_not_take_the_place_of_what_was_made_since(
    registry: Registry, publish: Callable[..., Any], cl: Cl
) -> None:
    row = {"verb": "add-task", "name": "mood", "data": "/gone.jsonl", "created_at": "2000-01-01T00:00:00"}
    run = Run.start(registry.runs_dir, row)
    publish("mood", status="rejected")
    assert "made after" not in cl("--hub", registry.path, "add-task", "mood", "--resume").err, "it serves nobody"
    publish("mood")
    said = cl("--hub", registry.path, "add-task", "mood", "--resume")
    assert said.code == 2
    assert "mood@v2 was made after this run had begun" in said.err
    assert "gc --older-than 0" in said.err
    assert run.path.is_dir()
