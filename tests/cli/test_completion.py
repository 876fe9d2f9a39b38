"""What a shell offers at the Tab key: asked for as the shells' own scripts ask."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_support import Cl

from adapterhub_cl.registry import Registry
from adapterhub_cl.types import BaseInfo, Task


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
        ("cl-adapter add-task a b --replay h", ["hard:200", "herding:200"]),
        ("cl-adapter add-task a b --augment swap:1,s", ["swap:1,swap:1"]),
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
        [sys.executable, "-c", code, str(registry.path)], capture_output=True, text=True, check=False, timeout=60
    )
    assert (said.returncode, said.stdout.split()) == (0, ["mood"]), said.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "powershell"])
def test_the_script_of_each_shell_asks_the_command(shell: str, cl: Cl) -> None:
    said = cl("completion", shell)
    assert said.code == 0
    assert "_CL_ADAPTER_COMPLETE" in said.out


@pytest.fixture(scope="module")
def bash(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str]]:
    """What stands on the line of a real bash after Tab, in a folder whose registry/ has tickets@v1."""
    folder = tmp_path_factory.mktemp("completion")
    hub = Registry.create(folder / "registry", BaseInfo("tiny", "f" * 64, quantization="none"))
    with hub.new_draft("tickets") as draft:
        (draft.path / "adapter_model.safetensors").write_bytes(b"weights")
        hub.publish(draft, {"kind": "trained", "rank": 4}, task=Task("tickets", "choice", labels=("a", "b")))
    process, terminal = pty.fork()
    if process == 0:  # pragma: no cover
        os.chdir(folder)
        os.environ |= {"PS1": "", "TERM": "dumb", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        os.execvp("bash", ["bash", "--norc", "--noprofile", "-i"])

    def until(pattern: str) -> str:
        found = ""
        while (match := re.search(pattern, found)) is None:
            ready, _, _ = select.select([terminal], [], [], 30)
            assert ready, f"bash said {found!r} and no more"
            found += os.read(terminal, 4096).decode()
        return match[1]

    def ask(line: str) -> str:
        # Tab; then the line becomes what `echo` prints.
        os.write(terminal, line.encode() + b"\t\x01echo '<\x05>'\n")
        return until(r"\n<([^>]*)>\r\n")

    os.write(terminal, b"eval \"$(cl-adapter completion bash)\"; bind 'set bell-style none'; echo re''ady\n")
    until("(ready)")
    yield ask
    os.close(terminal)
    os.waitpid(process, 0)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("cl-adapter show tick", "cl-adapter show tickets "),
        ("cl-adapter show tickets@v", "cl-adapter show tickets@v1 "),
        ("cl-adapter predict --adapter=tickets@l", "cl-adapter predict --adapter=tickets@latest "),
        ("cl-adapter add-task a b --strategy=seq", "cl-adapter add-task a b --strategy=sequential "),
        ("cl-adapter add-task a b --replay her", "cl-adapter add-task a b --replay herding:200 "),
        ("cl-adapter add-task a b --augment swap:2,n", "cl-adapter add-task a b --augment swap:2,noise:1 "),
    ],
)
def test_a_real_bash_completes(line: str, expected: str, bash: Callable[[str], str]) -> None:
    assert bash(line) == expected


def test_another_shell_is_named(cl: Cl) -> None:
    said = cl("completion", "tcsh")
    assert said.code == 2
    assert "unknown shell 'tcsh'" in said.err
    assert "fish" in said.err


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_forged_names_are_not_offered(
    shell: str, registry: Registry, publish: Callable[..., Any], cl: Cl, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish("mood")
    forged = "$(id)`x`\\$(touch /tmp/pwn)"
    monkeypatch.setattr(Registry, "serving", lambda self: {forged: "mood@v1", "mood": "mood@v1", "x": f"{forged}@v1"})
    line = f"cl-adapter --hub {registry.path} predict --task "
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", "5")
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", line)
    monkeypatch.setenv("_CL_ADAPTER_COMPLETE", f"complete_{shell}")
    said = cl()
    assert "mood" in said.out
    assert "$" not in said.out
    assert "`" not in said.out


def test_a_call_that_makes_no_sense_says_nothing(cl: Cl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_CL_ADAPTER_COMPLETE", "complete_bash")
    assert cl().err == ""
    monkeypatch.setenv("COMP_WORDS", "cl-adapter ")
    monkeypatch.setenv("COMP_CWORD", "abc")
    assert cl().err == ""
