"""Runs the blocks of a page as its reader would: in the project's folder, in order, in one shell.

The folder is a temporary one that looks like a checkout: `adapterhub_cl`, `examples` and `tests` are links to this
one's, `.venv` to the environment of the tests, `../shared` to ours where it is there; the reference hub is a copy.
Home and caches are temporary, and no connection leaves the machine. `pip install` installs into the temporary folder,
without dependencies, `tail -f` ends with its file, and `make` and `git`, which would change the checkout, are refused.

A page may show what a command prints. Every shown line must be printed (to stdout or stderr), in that order; other
lines may stand between. Runs of spaces count as one. `…` stands for any text. A shown number with a decimal point may
differ from the real one by a fifth of it, or by 0.05, since another CPU trains to other weights; everything else is
the same to the letter.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from docs_blocks import ROOT, Block, Command

LIMIT = 900  # seconds for one command
LINKS = ("adapterhub_cl", "examples", "tests", "Makefile", "constraints.txt", "pyproject.toml")
_DECIMAL = re.compile(r"(?<![\w.])\d+\.\d+(?![\w.]*\.\d|\w)")
_NO_NETWORK = """\
import socket

_connect = socket.socket.connect


def _refuse(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
        raise OSError(f"the documentation wants the network: {address}")
    return _connect(self, address)


socket.socket.connect = _refuse
"""
_PREAMBLE = """\
pip() { python -m pip "$1" --quiet --no-deps --no-index --no-build-isolation --target "$SITE" "${@:2}"; }
make() { echo "tests run no make: mark the block as not run" >&2; return 1; }
git() { echo "tests run no git: mark the block as not run" >&2; return 1; }
tail() { if [ "$1" = -f ]; then cat "${@:2}"; else command tail "$@"; fi; }
"""


class Failed(AssertionError):
    """A block does not do what its page says."""


def same_line(shown: str, real: str) -> bool:
    """Whether a printed line is the one that the page shows; see the module's text for what may differ."""
    shown, real = " ".join(shown.split()), " ".join(real.split())
    numbers: list[float] = []
    pattern, end = "", 0
    for found in _DECIMAL.finditer(shown):
        pattern += _literal(shown[end : found.start()]) + r"(\d+\.\d+)"
        numbers.append(float(found[0]))
        end = found.end()
    match = re.fullmatch(pattern + _literal(shown[end:]), real)
    if match is None:
        return False
    return all(
        abs(float(told) - wanted) <= max(0.05, wanted / 5) for told, wanted in zip(match.groups(), numbers, strict=True)
    )


def _literal(text: str) -> str:
    return ".*?".join(re.escape(part) for part in text.split("…"))


def check_shown(shown: Sequence[str], printed: str) -> None:
    """Raise where a shown line is not printed, or not in this order.

    Raises:
        Failed: naming the line.
    """
    lines = iter(printed.splitlines())
    for line in shown:
        if line.strip() != "…" and not any(same_line(line, real) for real in lines):
            raise Failed(f"the page shows {line!r}, but what was printed is\n{printed}")


class Shell:
    """One bash for a page, in a folder that looks like a checkout."""

    def __init__(self, place: Path) -> None:
        self.folder = place / "project"
        self.folder.mkdir()
        for name in LINKS:
            if (ROOT / name).exists():
                (self.folder / name).symlink_to(ROOT / name)
        (self.folder / ".venv").symlink_to(sys.prefix)
        if (ROOT / "registry").is_dir():  # the reference hub: a copy, since answering counts requests
            shutil.copytree(ROOT / "registry", self.folder / "registry")
        if (ROOT.parent / "shared").is_dir():
            (place / "shared").symlink_to(ROOT.parent / "shared")
        self.aside = place / "aside"
        site, home = self.aside / "site", self.aside / "home"
        for made in (site, home, self.aside / "tmp"):
            made.mkdir(parents=True)
        (site / "sitecustomize.py").write_text(_NO_NETWORK)
        environment = {
            **os.environ,
            "HOME": str(home),
            "TMPDIR": str(self.aside / "tmp"),
            "SITE": str(site),
            "PYTHONPATH": str(site),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "COLUMNS": "200",
            "PYTHONUNBUFFERED": "1",
            "PIP_NO_INDEX": "1",
        }
        environment.pop("CL_ADAPTER_HUB", None)
        self._bash = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            cwd=self.folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.run(_PREAMBLE)

    def __enter__(self) -> Shell:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
        self._bash.communicate()

    def _end(self) -> None:
        """End the shell and what it started."""
        with suppress(ProcessLookupError):
            os.killpg(self._bash.pid, signal.SIGKILL)

    def run(self, command: str) -> tuple[int, str]:
        """Run a command in the page's shell: its exit code, and what it printed to stdout and stderr."""
        assert self._bash.stdin is not None
        assert self._bash.stdout is not None
        script, out = self.aside / "command.sh", self.aside / "printed.txt"
        script.write_text(command + "\n")
        self._bash.stdin.write(f"source '{script}' > '{out}' 2>&1 < /dev/null; echo \"ended $?\"\n")
        self._bash.stdin.flush()
        watch = threading.Timer(LIMIT, self._end)
        watch.start()
        said = self._bash.stdout.readline()
        watch.cancel()
        code = int(said.split()[1]) if said.startswith("ended") else self._bash.wait(LIMIT)
        return code, out.read_text(errors="replace").replace("\r", "\n")

    def do(self, block: Block) -> None:
        """Run a block: write its file, run its commands or its Python, look at what comes out.

        Raises:
            Failed: a command gives another exit code, or prints something else.
        """
        for command in block.marks.get("first", "").splitlines():
            if command.strip():
                self._expect(block, Command(command.removeprefix("$ ")), {0})
        if block.file is not None:
            self._write(block, block.file)
        elif block.is_shell:
            commands = block.commands()
            for command, codes in zip(commands, block.exits(len(commands)), strict=True):
                self._expect(block, command, codes)
        elif block.language == "python":
            script = self.aside / "block.py"
            script.write_text(block.text)
            self._expect(block, Command(f"python '{script}'"), block.exits(1)[0])

    def _write(self, block: Block, name: str) -> None:
        place = self.folder / name
        if not place.resolve().is_relative_to(self.folder.resolve()):
            raise Failed(f"{block}: {name} is outside of the reader's folder, or would change the project's files")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(block.text + "\n", encoding="utf-8")

    def _expect(self, block: Block, command: Command, codes: set[int]) -> None:
        code, printed = self.run(command.text)
        if code not in codes:
            wanted = " or ".join(map(str, sorted(codes)))
            raise Failed(f"{block}: exit code {code}, not {wanted}\n$ {command.text}\n{printed}")
        try:
            check_shown(command.shown, printed)
        except Failed as error:
            raise Failed(f"{block}: $ {command.text}\n{error}") from None
