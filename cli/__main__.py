"""The entry point: takes the command line apart, runs the verb, tells what went wrong."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Collection, Sequence
from contextlib import redirect_stdout, suppress
from functools import cache
from typing import Any

import typer
from cl_adapter import (  # noqa: F401 (importing registers the verbs)
    verbs_combine,
    verbs_forget,
    verbs_health,
    verbs_learn,
    verbs_look,
    verbs_loop,
    verbs_move,
    verbs_prune,
    verbs_rebase,
    verbs_replay,
    verbs_report,
    verbs_route,
    verbs_score,
    verbs_serve,
    verbs_share,
    verbs_stream,
    verbs_tune,
    verbs_use,
)
from cl_adapter.app import app
from cl_adapter.argv import Line, hoist
from cl_adapter.completion import VARIABLE, answer
from cl_adapter.failures import DONE, FAILED, USAGE, report

from adapterhub_cl.errors import UnknownNameError, UsageError
from adapterhub_cl.launching import is_helper_process


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if argv is None:
        atexit.register(_end_quickly)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller: say it to nobody
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (as long as the process)
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    if is_helper_process():
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            return _run(words)
    return _run(words)


def _end_quickly() -> None:
    """Leave what torch and transformers hold to the system: at its end Python would search all of it for cycles, which
    takes seconds."""
    gc.freeze()
    gc.disable()


@cache
def _group() -> Any:
    """All verbs, built once: it takes as long as many a verb, and tests call `main` thousands of times."""
    return typer.main.get_command(app)


def _run(words: list[str]) -> int:
    json, debug, hub = "--json" in words, "--debug" in words, ""  # until the line is taken apart
    try:
        group = _group()
        if VARIABLE in os.environ:
            return answer(group, os.environ[VARIABLE])
        line = hoist(words, lambda verb: _valued(group, verb))
        json, debug, hub = line.has("--json"), line.has("--debug"), line.value("--hub")
        _check_verb(group, line)
        with group.make_context("cl-adapter", line.argv) as context:
            group.invoke(context)
        sys.stdout.flush()
        return DONE
    except typer.Exit as finished:
        return _flushed(finished.exit_code)
    except typer.Abort:
        return report(KeyboardInterrupt(), json=json, debug=debug)
    except BrokenPipeError:
        return _quiet_pipe()
    except (Exception, KeyboardInterrupt) as error:
        with suppress(OSError):  # nobody listens, or the disk that stdout goes to is full
            return _flushed(report(error, json=json, debug=debug, hub=hub))
        _quiet_pipe()
        return FAILED


def _valued(group: Any, verb: str) -> Collection[str]:
    """The options of a verb that take a value."""
    command = group.commands.get(verb)
    params = command.params if command is not None else ()
    options = [p for p in params if p.param_type_name == "option" and not p.is_flag and not p.count]
    return {name for option in options for name in option.opts}


def _check_verb(group: Any, line: Line) -> None:
    if line.verb is not None and line.verb not in group.commands:
        if meant := _ELSEWHERE.get(line.verb):
            raise UsageError(f"unknown verb {line.verb!r}", f"did you mean {meant}? see cl-adapter --help")
        raise UnknownNameError("verb", line.verb, group.commands, "see cl-adapter --help")
    if line.verb is None and not line.rest and all(flag.partition("=")[0] in _PLAIN for flag in line.flags):
        if line.has("--json"):
            raise UsageError("no verb given", "see cl-adapter --help")
        print(group.get_help(group.make_context("cl-adapter", ["--help"], resilient_parsing=True)))
        raise typer.Exit(USAGE)


# What other tools call it, where no spelling comes near.
_ELSEWHERE = {
    **dict.fromkeys(("train", "learn", "add", "fit", "finetune"), "add-task"),
    **dict.fromkeys(("delete", "remove", "rm", "drop"), "forget-task, or prune"),
    **dict.fromkeys(("ls", "status"), "list"),
    **dict.fromkeys(("evaluate", "test", "score"), "eval"),
    **dict.fromkeys(("ask", "infer", "run"), "predict"),
    "help": "cl-adapter --help",
    "tag": "alias",
    "history": "log",
    "fsck": "verify",
}
_PLAIN = ("--json", "--quiet", "--debug", "--hub", "--device", "--dtype", "--base-path")


def _flushed(code: int) -> int:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _quiet_pipe()
    return code


def _quiet_pipe() -> int:
    """The reader went away (`cl-adapter log | head`): no error, and none when Python closes stdout at its end."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return DONE


if __name__ == "__main__":
    sys.exit(main())
