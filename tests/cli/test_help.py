"""Help, versions, and what the fast verbs may import."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from cl_adapter.app import GROUPS, app
from cli_support import Cl

from adapterhub_cl.registry import Registry
from adapterhub_cl.settings import TrainingSettings

VERBS = sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
HEAVY = ("torch", "transformers", "peft", "sqlalchemy", "rich", "sklearn", "numpy")


def test_the_verbs_of_the_first_milestone_are_there() -> None:
    wanted = "init add-task update list show log lineage eval predict generate alias rollback import export verify gc"
    assert {*wanted.split(), "doctor", "demo"} <= set(VERBS)


def test_help_groups_the_verbs_by_purpose(cl: Cl) -> None:
    said = cl("--help")
    assert said.code == 0
    places = [said.out.index(f"\n{group}:\n") for group in GROUPS]
    assert places == sorted(places)
    for verb in VERBS:
        assert re.search(rf"^  {verb} ", said.out, re.MULTILINE)


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_every_verb_has_an_example_that_parses(verb: str, cl: Cl) -> None:
    said = cl(verb, "--help")
    assert said.code == 0
    examples = re.findall(r"^  cl-adapter (.*)$", said.out, re.MULTILINE)
    assert examples
    for example in examples:
        assert example.split()[0] == verb
        for option in re.findall(r"(?<=\s)--?[a-z][a-z-]*", example):
            assert option in said.out


@pytest.mark.parametrize("verb", ["add-task", "update"])
def test_every_training_setting_is_a_flag_with_its_help(verb: str, cl: Cl) -> None:
    shown = " ".join(cl(verb, "--help").out.split())
    for name, field in TrainingSettings.__dataclass_fields__.items():
        assert f"--{name.replace('_', '-')}" in shown
        assert field.metadata["help"] in shown


def test_names_of_methods_are_in_the_help(cl: Cl) -> None:
    shown = cl("add-task", "--help").out
    assert "a fresh adapter for each task" in shown
    assert "replay.ratio [0.25]" in " ".join(shown.split())
    assert "swap:COPIES" in shown
    assert "balanced:SIZE" in shown


def test_version(cl: Cl) -> None:
    assert re.fullmatch(r"cl-adapter \d+\.\d+\S*\n", cl("--version").out)


def test_no_verb_shows_the_help_and_is_a_usage_error(cl: Cl) -> None:
    said = cl()
    assert said.code == 2
    assert "Usage: cl-adapter" in said.out
    assert cl("--json").json["code"] == "usage"


@pytest.mark.parametrize(
    "line", ["list --json", "list", "show mood --json", "log", "lineage mood", "--help", "add-task --help", "--version"]
)
def test_fast_verbs_import_nothing_heavy(
    line: str, registry: Registry, publish: Callable[..., object], tmp_path: Path
) -> None:
    publish()
    code = (
        "import sys; from cl_adapter.__main__ import main; code = main(sys.argv[1:]);"
        f"print([m for m in {HEAVY} if m in sys.modules], file=sys.stderr); sys.exit(code)"
    )
    argv = [sys.executable, "-c", code, *line.split(), "--hub", str(registry.path)]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "[]"


def run_process(*argv: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cl_adapter", *argv]
    env = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, check=False)


def test_only_the_first_process_of_a_launch_speaks(registry: Registry, tmp_path: Path) -> None:
    said = run_process("--hub", str(registry.path), "list", "--json", cwd=tmp_path, RANK="1", LOCAL_RANK="1")
    assert (said.returncode, said.stdout, said.stderr) == (0, "", "")
    first = run_process("--hub", str(registry.path), "list", "--json", cwd=tmp_path, RANK="0", LOCAL_RANK="0")
    assert first.stdout == "[]\n"
    failed = run_process("show", "x", "--json", cwd=tmp_path, RANK="1")
    assert (failed.returncode, failed.stdout, failed.stderr) == (1, "", "")


def test_a_reader_that_goes_away_is_no_error(registry: Registry, tmp_path: Path) -> None:
    script = f'"{sys.executable}" -m cl_adapter --hub "{registry.path}" --help | true; echo "${{PIPESTATUS[0]}}"'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.stderr == ""
    assert done.stdout == "0\n"


def test_a_third_partys_method_that_cannot_be_loaded_does_not_spoil_the_help(
    cl: Cl, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adapterhub_cl.errors import AdapterHubError
    from adapterhub_cl.plugins import Room

    whole = Room.get

    def get(self: Room, name: str) -> Any:
        if name == "ewc":
            raise AdapterHubError("the strategy 'ewc' of 'afar:Strategy' cannot be loaded: no torch")
        return whole(self, name)

    monkeypatch.setattr(Room, "get", get)
    said = cl("add-task", "--help")
    assert said.code == 0
    assert "cannot be loaded: no torch" in " ".join(said.out.split())
    assert "replay.ratio" in said.out
