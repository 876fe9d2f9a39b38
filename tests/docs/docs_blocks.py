"""Reads the blocks of a page: what is fenced, what is indented, and the marks that stand above it.

A mark is an HTML comment right before the fence, which readers do not see; several may stand there:

    <!-- not run: REASON -->      the block is only checked: verbs, flags and names exist, Python and YAML parse
    <!-- slow from here -->       the default tier runs the page up to this block, the slow tier runs all of it
    <!-- exits: 3 -->             exit code of the block's last command (the others give 0); `0 3` names all of them,
                                  `0|3` allows either
    <!-- needs: ../shared/data --> run where that path is, else only checked
    <!-- file: NAME -->           the reader writes this block to a file; so does the test (a first line
                                  `# NAME` that looks like a file's name says the same)
    <!-- first: COMMANDS -->      commands of the test's own, run before the block
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHELL = ("console", "bash", "sh", "shell")
CODE = ("python", "yaml", "toml", "json", "jsonl")
PLAIN = ("", "text", "svg", "html")
MARKS = ("not run", "slow from here", "exits", "needs", "file", "first")
NEAR = ("not", "slow", "exit", "exits", "run", "skip", "need", "needs", "file", "first")
_FENCE = re.compile(r"^(?P<indent> {0,3})(?P<fence>```+|~~~+)\s*(?P<language>[\w-]*)\s*$")
_COMMENT = re.compile(r"<!--\s*(.*?)\s*-->", re.DOTALL)
_COMMAND = re.compile(
    r"^\s*(\$ |(cl-adapter|python3?|pip|make|accelerate|vllm|curl|source|export|pytest|tail|git)\s+[\w./$'\"-])"
)
_FILE = re.compile(r"^# ?(?P<name>[\w./-]+\.(ya?ml|toml|py|jsonl?|txt))\s*$")


@dataclass(frozen=True)
class Command:
    """One command of a block, and the lines that the page shows after it."""

    text: str
    shown: tuple[str, ...] = ()


@dataclass(frozen=True)
class Block:
    """A block of a page.

    Attributes:
        page: its path from the project's folder.
        line: of its first line, counted from 1.
        language: after the fence; `indented` for an indented block.
        marks: the comments above it, word → what follows the colon.
    """

    page: str
    line: int
    language: str
    text: str
    marks: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def is_shell(self) -> bool:
        return self.language in SHELL or (self.language == "indented" and self.has_commands)

    @property
    def has_commands(self) -> bool:
        return any(_COMMAND.match(line) for line in self.text.splitlines())

    @property
    def reason(self) -> str | None:
        """Why it is not run; None where it is."""
        return self.marks.get("not run")

    @property
    def file(self) -> str | None:
        """The file that it is the text of."""
        if "file" in self.marks:
            return self.marks["file"]
        first = _FILE.match(self.text.splitlines()[0]) if self.text.strip() and not self.is_shell else None
        return first["name"] if first else None

    @property
    def runs(self) -> bool:
        """Whether a test does anything with it beyond checking it."""
        return self.reason is None and (self.is_shell or self.file is not None or self.language == "python")

    def commands(self) -> list[Command]:
        """In `console` blocks lines after `$ ` are commands (`> ` goes on with one) and what follows them is shown
        output; else all lines are commands."""
        if any(line.startswith("$ ") for line in self.text.splitlines()):
            return _console(self.text)
        found, whole = [], ""
        for line in self.text.splitlines():
            whole += line + "\n"
            if whole.strip() and not line.endswith("\\") and _complete(whole):
                found.append(Command(whole.strip()))
                whole = ""
        return [*found, *([Command(whole.strip())] if whole.strip() else [])]

    def exits(self, count: int) -> list[set[int]]:
        """The exit codes that are allowed, one set for each command."""
        said = [{int(code) for code in word.split("|")} for word in self.marks.get("exits", "0").split()]
        if len(said) not in (1, count):
            raise ValueError(f"{self}: {len(said)} exit codes for {count} commands")
        return said if len(said) == count else [{0}] * (count - 1) + said


def _console(text: str) -> list[Command]:
    found: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        elif not found:
            raise ValueError(f"a line before the first command: {line!r}")
        elif not found[-1][1] and line.startswith("> "):
            found[-1] = (f"{found[-1][0]}\n{line[2:]}", [])
        else:
            found[-1][1].append(line.rstrip())
    return [Command(command, tuple(line for line in shown if line)) for command, shown in found]


def _complete(command: str) -> bool:
    """Whether bash could run it, or waits for more lines."""
    if "<<" not in command and not re.search(r"\b(for|while|if|case|function)\b|\{|\(|'|\"", command):
        return True
    done = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True, check=False)
    return done.returncode == 0 and not done.stderr


def pages() -> list[str]:
    """README, CONTRIBUTING and every page of docs/, as paths from the project's folder."""
    docs = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
    return ["README.md", "CONTRIBUTING.md", *(page for page in docs if not page.startswith("docs/decisions/"))]


def blocks(page: str, text: str | None = None) -> list[Block]:
    """The blocks of a page, in order.

    Raises:
        ValueError: a fence that is not closed, or a mark that is none.
    """
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines() if text is None else text.splitlines()
    found: list[Block] = []
    comment: list[str] | None = None
    marks: dict[str, str] = {}
    number = 0
    while number < len(lines):
        line = lines[number]
        number += 1
        if comment is None and line.lstrip().startswith("<!--"):
            comment = []
        if comment is not None:
            comment.append(line)
            if "-->" in line:
                marks |= _marks(f"{page}:{number}", "\n".join(comment))
                comment = None
            continue
        fence = _FENCE.match(line)
        if fence:
            first = number
            while number < len(lines) and lines[number].strip() != fence["fence"]:
                number += 1
            if number == len(lines):
                raise ValueError(f"{page}:{first}: the fence is not closed")
            body = "\n".join(text.removeprefix(fence["indent"]) for text in lines[first:number])
            found.append(Block(page, first, fence["language"], body, marks))
            number += 1
        elif line.startswith("    ") and (number == 1 or not lines[number - 2].strip()) and not _in_list(lines, number):
            first = number
            while number < len(lines) and (lines[number].startswith("    ") or not lines[number].strip()):
                number += 1
            body = "\n".join(text.removeprefix("    ") for text in lines[first - 1 : number]).rstrip()
            found.append(Block(page, first, "indented", body, marks))
        if line.strip():
            marks = {}
    return found


def _in_list(lines: list[str], number: int) -> bool:
    """Whether an indented line goes on with a list's item."""
    for line in reversed(lines[: number - 1]):
        if line.strip() and not line.startswith(" "):
            return bool(re.match(r"([-*+]|\d+\.)\s", line))
    return False


def _marks(place: str, text: str) -> dict[str, str]:
    found = {}
    for said in _COMMENT.findall(text):
        word, _, rest = said.partition(":")
        if word.strip() in MARKS:
            found[word.strip()] = rest.strip()
        elif re.split(r"\W", said.lower())[0] in NEAR:
            raise ValueError(f"{place}: {said!r} is no mark; known: {', '.join(MARKS)}")
    return found
