"""What a shell offers at the Tab key: asked for as the shells' own scripts ask."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_support import Cl

from adapterhub_cl.registry import Registry


@pytest.fixture
def offered(
    registry: Registry, publish: Callable[..., Any], cl: Cl, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], list[str]]:
    """What bash is offered at the end of a line; `HUB` in it is a hub of mood@v1, mood@v2 and taste@v1."""
    publish("mood")
    publish("mood")
    publish("taste")

    def ask(line: str) -> list[str]:
        words = line.replace("HUB", str(registry.path)).split(" ")
        monkeypatch.setenv("COMP_WORDS", " ".join(words))
        monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
        monkeypatch.setenv("_CL_ADAPTER_COMPLETE", "complete_bash")
        said = cl()
        assert said.code == 0, said.err
        return said.out.split()

    return ask


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("cl-adapter sho", ["show"]),
        ("cl-adapter --hub HUB show ", ["mood", "taste"]),
        ("cl-adapter show --hub HUB ta", ["taste"]),  # a global flag behind the verb
        ("cl-adapter --hub HUB show mood@", ["mood@v1", "mood@v2", "mood@latest"]),
        ("cl-adapter --hub HUB merge mood t", ["taste"]),
        ("cl-adapter --hub HUB predict --task ", ["mood", "taste"]),
        ("cl-adapter predict --router ma", ["mahalanobis"]),
        ("cl-adapter merge --method dare", ["dare", "dare_ties"]),
        ("cl-adapter add-task a b --strategy replay+in", ["replay+incremental", "replay+inflora"]),
        ("cl-adapter merge --metho", ["--method"]),
        ("cl-adapter completion f", ["fish"]),
        ("cl-adapter --hub /nowhere show ", []),
    ],
)
def test_offers(line: str, expected: list[str], offered: Callable[[str], list[str]]) -> None:
    assert sorted(offered(line)) == sorted(expected)


def test_asking_does_not_import_torch(registry: Registry, publish: Callable[..., Any]) -> None:
    publish("mood")
    code = (
        "import os, sys; os.environ.update(COMP_WORDS='cl-adapter --hub ' + sys.argv[1] + ' show m', COMP_CWORD='4',"
        " _CL_ADAPTER_COMPLETE='complete_bash')\n"
        "from cl_adapter.__main__ import main\nmain([]); assert 'torch' not in sys.modules"
    )
    said = subprocess.run(
        ["python", "-c", code, str(registry.path)], capture_output=True, text=True, check=False, timeout=60
    )
    assert (said.returncode, said.stdout.split()) == (0, ["mood"]), said.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "powershell"])
def test_the_script_of_each_shell_asks_the_command(shell: str, cl: Cl) -> None:
    said = cl("completion", shell)
    assert said.code == 0
    assert "_CL_ADAPTER_COMPLETE" in said.out


def test_bash_takes_the_script(cl: Cl, tmp_path: Path) -> None:
    (tmp_path / "rc").write_text(cl("completion", "bash").out)
    said = subprocess.run(
        ["bash", "--norc", "-c", f"source {tmp_path / 'rc'}; complete -p cl-adapter"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (said.returncode, said.stderr) == (0, "")
    assert "cl-adapter" in said.stdout


def test_another_shell_is_named(cl: Cl) -> None:
    said = cl("completion", "tcsh")
    assert said.code == 2
    assert "unknown shell 'tcsh'" in said.err
    assert "fish" in said.err
