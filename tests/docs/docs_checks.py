"""What can be said of a command without running it: the verb, its flags, and the names that they take exist."""

from __future__ import annotations

import ast
import inspect
import json
import re
import shlex
import tomllib
from collections.abc import Sequence
from typing import Any

import typer
import yaml
from cl_adapter.__main__ import main as _  # noqa: F401 (registers the verbs)
from cl_adapter.app import app
from cl_adapter.argv import hoist
from docs_blocks import ROOT, Block

import adapterhub_cl
from adapterhub_cl import AdapterHub
from adapterhub_cl.errors import AdapterHubError
from adapterhub_cl.settings import TrainingSettings

GROUP: Any = typer.main.get_command(app)
OTHERS = (
    *("accelerate", "cat", "cd", "cp", "curl", "echo", "export", "for", "git", "grep", "head", "jq", "ls", "make"),
    *(
        "mkdir",
        "mv",
        "nvidia-smi",
        "pip",
        "pip3",
        "printf",
        "pytest",
        "python",
        "python3",
        "ray",
        "rm",
        "sed",
        "source",
    ),
    *("ray", "tail", "tee", "touch", "vllm", "wait", "wc", "do", "done", "eval", "llama-server", "ollama"),
)
_HEREDOC = re.compile(r"<<-?\s*'?(\w+)'?\n.*?\n\1\b", re.DOTALL)
_ASSIGNMENT = re.compile(r"^\w+=")


def simple_commands(text: str) -> list[list[str]]:
    """The simple commands of a line of bash: pipes, lists and substitutions taken apart, redirections left out."""
    text = _HEREDOC.sub("", text).replace("\\\n", " ")
    found: list[list[str]] = []
    for line in text.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="();<>|&")
        lexer.whitespace_split = True
        words: list[str] = []
        skip = False
        for word in lexer:
            if skip:
                skip = False
            elif set(word) <= set("<>&") and set(word) & set("<>"):
                skip = True
                if words and words[-1].isdigit():
                    words.pop()
            elif set(word) <= set("();|&"):
                found.append(words)
                words = []
            else:
                words.append(word)
        found.append(words)
    stripped = []
    for words in found:
        while words and _ASSIGNMENT.match(words[0]):
            words = words[1:]
        if words:
            stripped.append(words)
    return stripped


def check_command(words: Sequence[str], written: Sequence[str] = ()) -> None:
    """Raise where a command names a program, verb, flag, method or file that does not exist.

    Args:
        written: files that the page lets its reader write.
    """
    name, *rest = words
    if name == "cl-adapter":
        check_verb(rest)
    elif name == "accelerate":
        own = rest.index("-m")
        assert rest[0] == "launch", f"accelerate {rest[0]}"
        assert rest[own + 1] == "cl_adapter", "-m cl_adapter starts the command"
        check_launcher(rest[1:])
        check_verb(rest[own + 2 :])
    elif name.startswith("python") and rest[:1] == ["-m"]:
        assert rest[1] in ("cl_adapter", "pip", "venv", "pytest", "http.server"), f"python -m {rest[1]}"
        if rest[1] == "cl_adapter":
            check_verb(rest[2:])
    elif name.startswith("python") and rest and (rest[0].endswith(".py") or "/" in rest[0]):
        there = (ROOT / rest[0]).is_file() or (ROOT / rest[0] / "__main__.py").is_file()
        assert rest[0] in written or there, f"{rest[0]} is not there"
    elif name == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        for target in rest:
            assert "=" in target or target in targets, f"make {target}"
    elif name == "pytest":
        for path in (word for word in rest if word.startswith("tests")):
            assert (ROOT / path.partition("::")[0]).exists(), path
    else:
        assert name in OTHERS, f"{name}: no command that the documentation uses; add it to docs_checks.OTHERS?"


def check_verb(rest: Sequence[str]) -> None:
    """Parse a `cl-adapter` command line with the command's own parser, and look its names up."""

    def valued(verb: str) -> set[str]:
        command = GROUP.commands.get(verb)
        params = command.params if command is not None else ()
        return {o for p in params if p.param_type_name == "option" and not p.is_flag and not p.count for o in p.opts}

    rest = ["VALUE" if word in ("…", "...") else word for word in rest]
    line = hoist(rest, valued)
    if line.verb is None:
        assert set(line.flags) & {"--help", "-h", "--version"} or not rest, f"no verb: {' '.join(rest)}"
        return
    assert line.verb in GROUP.commands, f"unknown verb {line.verb}"
    if {"--help", "-h"} & set(line.rest):
        return
    parent = GROUP.make_context("cl-adapter", [*line.flags, line.verb], resilient_parsing=False)
    found = GROUP.commands[line.verb].make_context(line.verb, list(line.rest), parent=parent).params
    check_names(line.verb, found)


def check_names(verb: str, found: dict[str, Any]) -> None:
    """The names that options take: strategies, policies, merge methods, routers, augmentations and their options."""
    from adapterhub_cl import augmentation, merging, replay, routing
    from adapterhub_cl.strategies import build as build_strategy

    written = found.get("set_") or found.get("options") or ()
    given: dict[str, str] = dict(text.split("=", 1) for text in written)
    for strategies in _each(found.get("strategy")):
        build_strategy(strategies, given)
    if found.get("method"):
        merging.build(found["method"], given)
    if found.get("start") not in (None, "none"):
        merging.ROOM.get(found["start"])
    if found.get("router") or "router" in found:
        name = found.get("router") or next((key.split(".")[0] for key in given if not key.startswith("router.")), "")
        common = {key.removeprefix("router.") for key in given if key.startswith("router.")}
        assert common <= set(routing.Common.__dataclass_fields__), common
        routing.build(name or routing.DEFAULT, {k: v for k, v in given.items() if not k.startswith("router.")})
    if isinstance(found.get("replay"), str) and verb != "replay":
        replay.parse(found["replay"])
    for made in (found.get("augment") or "").split(","):
        if made:
            augmentation.parse(made)
    settings = {name: found.get(name) for name in TrainingSettings.__dataclass_fields__ if found.get(name) is not None}
    TrainingSettings.from_mapping(settings, "the flags")


def _each(value: Any) -> list[str]:
    return [] if not value else [value] if isinstance(value, str) else list(value)


def check_launcher(words: Sequence[str]) -> None:
    from accelerate.commands.launch import launch_command_parser

    launch_command_parser().parse_args(list(words))


def check_code(block: Block) -> None:
    """Python and data blocks parse; what Python takes from the library is there."""
    text = block.text
    if block.language == "python":
        check_python(text)
    elif block.language == "yaml":
        yaml.safe_load(text)
    elif block.language == "toml":
        tomllib.loads(text)
    elif block.language == "json":
        json.loads(text)
    elif block.language == "jsonl":
        for line in text.splitlines():
            json.loads(line)


def check_python(text: str) -> None:
    """It parses, its imports from the library exist, and calls on `hub` fit the method's signature."""
    tree = ast.parse(text)
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "adapterhub_cl":
            home = __import__(node.module, fromlist=["x"])
            for alias in node.names:
                assert hasattr(home, alias.name), f"{node.module} has no {alias.name}"
                imported.add(alias.name)
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and _base(node.func) in ("hub", "AdapterHub")
        ):
            check_call(getattr(AdapterHub, node.func.attr), node)
    used = {name for node in ast.walk(tree) if (name := _base(node))}
    assert used & set(adapterhub_cl.__all__) <= imported, "a block stands alone: import what it uses"


def _base(node: ast.AST) -> str:
    """`AdapterHub` of `AdapterHub.open` and `AdapterHub(…)`; nothing for an annotation."""
    owner = node.value if isinstance(node, ast.Attribute) else node.func if isinstance(node, ast.Call) else None
    return owner.id if isinstance(owner, ast.Name) else ""


def check_call(method: Any, node: ast.Call) -> None:
    """The keywords of a call are parameters, or training settings where the method takes those."""
    parameters = inspect.signature(method).parameters
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    known = {*parameters, *(TrainingSettings.__dataclass_fields__ if open_ended else ())}
    if method.__name__ in ("engine", "generate", "import_adapter"):
        return  # their keywords are checked where they are used
    for keyword in node.keywords:
        assert keyword.arg is None or keyword.arg in known, f"{method.__name__}({keyword.arg}=…)"


def provided(found: Sequence[Block]) -> set[str]:
    """The names of methods that a page's own package brings by entry points."""
    names: set[str] = set()
    for block in found:
        if block.language == "toml":
            for entries in tomllib.loads(block.text).get("project", {}).get("entry-points", {}).values():
                names |= set(entries)
    return names


def told(error: BaseException) -> str:
    """An error in one line."""
    message = error.message if isinstance(error, AdapterHubError) else str(error)
    format_message = getattr(error, "format_message", None)
    return format_message() if format_message else f"{type(error).__name__}: {message}"
