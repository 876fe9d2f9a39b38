"""One place that turns any exception into one line, the next step, and an exit code."""

from __future__ import annotations

import difflib
import re
import shlex
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cl_adapter.argv import SWITCHES, WITH_VALUE
from cl_adapter.display import one_line
from cl_adapter.session import print_json

from adapterhub_cl.errors import AdapterHubError, GateRefused, is_out_of_memory
from adapterhub_cl.launching import is_helper_process
from adapterhub_cl.options import ELSEWHERE, flag

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130


@dataclass(frozen=True)
class Failure:
    """What the user is told. `code` is a word for programs, `exit_code` the process's.

    Attributes:
        facts: what else `--json` gives: of a refusal by the gate the version and the whole decision.
    """

    message: str
    hint: str
    code: str
    exit_code: int
    facts: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {"error": self.message, "hint": self.hint, "code": self.code, **self.facts}


def explain(error: BaseException) -> Failure:
    """The failure behind an exception."""
    if isinstance(error, AdapterHubError):
        facts: dict[str, Any] = {}
        if isinstance(error, GateRefused):
            facts = {"ref": error.record.ref if error.record is not None else None, "gate": error.gate}
        return Failure(one_line(error.message), one_line(error.hint), error.code, error.exit_code, facts)
    if isinstance(error, KeyboardInterrupt):
        return Failure("interrupted", "", "interrupted", INTERRUPTED)
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # click's, or typer's copy of it
        return _usage(error)
    if is_out_of_memory(error):
        return Failure("out of memory", "lower --batch-size or --max-length, or use a smaller base", "memory", FAILED)
    if isinstance(error, OSError):
        if error.filename is None and error.strerror:
            return Failure(f"cannot write the output: {error.strerror.lower()}", "", "storage", FAILED)
        from adapterhub_cl.registry.files import storage_error

        refused = storage_error(error, error.filename or "")
        if refused is not None:
            return explain(refused)
        if error.filename and error.strerror:
            return Failure(f"{error.filename}: {error.strerror.lower()}", "check the path", "storage", FAILED)
    kind, text = type(error).__name__, one_line(str(error))
    return Failure(f"internal error: {kind}: {text}".rstrip(": "), "run again with --debug", "internal", FAILED)


def report(error: BaseException, *, json: bool, debug: bool, hub: str = "") -> int:
    """Tell the user, and return the exit code.

    Args:
        hub: what was given to `--hub`: the commands in the hint name it too, so that they can be copied.
    """
    failure = explain(error)
    if hub and "--hub" not in failure.hint:
        failure = replace(failure, hint=_COMMAND.sub(lambda _: f"cl-adapter --hub {shlex.quote(hub)} ", failure.hint))
    if is_helper_process() and failure.code != "internal":
        return failure.exit_code
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    print(f"error: {failure.message}", file=sys.stderr)
    if failure.hint:
        print(f"hint: {failure.hint}", file=sys.stderr)
    if json:
        print_json(failure.to_json())
    return failure.exit_code


def _usage(error: Any) -> Failure:
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "cl-adapter"
    hint, message = f"see {path} --help", str(error.format_message())
    example = (getattr(getattr(context, "command", None), "epilog", None) or "").splitlines()
    if type(error).__name__ == "MissingParameter" and example:
        hint = f"for example {example[0]}; {hint}"
    option = getattr(error, "option_name", None)
    if option is not None and type(error).__name__ == "NoSuchOption":
        message = f"unknown option {option!r}"
        params = context.command.params if context is not None else []
        known = [o for p in params if p.param_type_name == "option" for o in (*p.opts, *p.secondary_opts)]
        here = flag(ELSEWHERE.get(option.lstrip("-").replace("-", "_"), ""))
        near = [here] if here in known else []
        near = near or difflib.get_close_matches(option, sorted({*known, *SWITCHES, *WITH_VALUE}), n=3, cutoff=0.6)
        hint = f"did you mean {' or '.join(near)}? {hint}" if near else hint
    message = one_line(message).replace(": Input should be", ": should be").rstrip(".")
    return Failure(message[:1].lower() + message[1:], hint, "usage", error.exit_code)


# A command of this program in a hint, but for a page of help.
_COMMAND = re.compile(r"\bcl-adapter (?=[a-z])(?!(?:[a-z-]+ )?--help)(?!(?:init|demo|doctor|completion)\b)")
