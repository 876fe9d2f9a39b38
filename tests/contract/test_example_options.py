"""Examples and benchmarks run for minutes or hours, so no test runs them all; what they ask of a hub is read here."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

from adapterhub_cl import AdapterHub

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_examples_give_verbs_options_that_exist() -> None:
    methods = {name: verb for name, verb in inspect.getmembers(AdapterHub, callable) if not name.startswith("_")}
    verbs = {name: inspect.signature(verb).parameters for name, verb in methods.items()}
    open_ended = {name for name, known in verbs.items() if any(p.kind is p.VAR_KEYWORD for p in known.values())}
    wrong, read = [], 0
    for path in sorted(EXAMPLES.rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)):
                continue
            verb, receiver = call.func.attr, ast.unparse(call.func.value)
            if verb not in verbs or verb in open_ended or receiver.rpartition(".")[2] not in ("hub", "AdapterHub"):
                continue
            read += 1
            unknown = [word.arg for word in call.keywords if word.arg and word.arg not in verbs[verb]]
            wrong += [f"{path.relative_to(EXAMPLES)}:{call.lineno}: {verb}({name}=)" for name in unknown]
    assert read > 100
    assert wrong == []
