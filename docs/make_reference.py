"""Writes docs/reference/cli.md and docs/reference/api.md from the code: `python docs/make_reference.py`.

`--check` writes nothing, and ends with exit code 1 where a page is not what the code says.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import typer
from cl_adapter import __main__ as command  # importing it registers the verbs
from cl_adapter.app import GROUPS, SETTINGS_PANEL

import adapterhub_cl
from adapterhub_cl import AdapterHub, TrainingSettings, errors, progress, types
from adapterhub_cl.options import flag

PLACE = Path(__file__).parent / "reference"
MADE = "<!-- Made by `python docs/make_reference.py` from the code; do not edit it here. -->"
VALUES = {str: "TEXT", int: "N", float: "NUMBER"}
ROOMS = (
    ("strategies", "Strategies", "`--strategy NAME`, several with `+` between; options by `--set NAME.OPTION=VALUE`."),
    ("replay", "Selection policies", "`--replay NAME:SIZE`, or `none`."),
    ("augmentation", "Augmentations", "`--augment NAME:COPIES`, several with commas between."),
    ("merging", "Merge methods", "`merge --method NAME`; options by `--set NAME.OPTION=VALUE`."),
    ("routing", "Routers", "`--router NAME`; options by `--set NAME.OPTION=VALUE`, common ones by `--set router.…`."),
    ("exporting", "Export formats", "`export --format NAME`; their options are flags of [export](#export)."),
)
STARS = {"VAR_KEYWORD": "**", "VAR_POSITIONAL": "*"}
RETURNED = (
    ("adapterhub_cl.inference.engine", "Engine"),
    ("adapterhub_cl.inference.engine_settings", "Settings"),
    ("adapterhub_cl.evaluation.matrix", "AccuracyMatrix"),
    ("adapterhub_cl.deciding.drift", "Drift"),
)


# -- Markdown ----------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table; empty where there are no rows."""
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *lines, ""] if lines else []


def code(text: str) -> str:
    return f"`{text}`" if text else ""


# -- the command line --------------------------------------------------------------------------------


def cli() -> str:
    """The page of the command line."""
    group: Any = typer.main.get_command(command.app)
    context = group.make_context("cl-adapter", ["--help"], resilient_parsing=True)
    lines = [MADE, "", "# Command line", "", group.help, ""]
    lines += ["`cl-adapter [OPTIONS] VERB …`", ""]
    lines += ["Global options go before or after the verb. Data goes to stdout, notes and progress to stderr.", ""]
    lines += table(("option", "what"), [_option(p) for p in group.get_params(context) if p.param_type_name == "option"])
    lines += ["| exit code | means |", "|---|---|", "| 0 | done |", "| 1 | failed |", "| 2 | usage |"]
    lines += [
        "| 3 | a limit is not met: by the gate, a merge, an export, a server (`verify --against`), drift |",
        "| 130 | interrupted; `--resume` continues |",
        "",
    ]
    by_group = {title: [c for c in group.commands.values() if c.rich_help_panel == title] for title in GROUPS}
    for title, verbs in by_group.items():
        names = " · ".join(f"[{verb.name}](#{verb.name})" for verb in verbs)
        lines += [f"- **{title}**: {names}"]
    lines += ["- **Names**: " + " · ".join(f"[{title}](#{_anchor(title)})" for _, title, _ in ROOMS), ""]
    for title, verbs in by_group.items():
        lines += [f"## {title}", ""]
        for verb in verbs:
            lines += _verb(verb)
    lines += ["## Training settings", "", "Flags of every verb that trains, and keys of its `--config FILE`.", ""]
    lines += table(("option", "what", "default"), [_setting(f) for f in fields(TrainingSettings)])
    for room, title, how in ROOMS:
        lines += _room(room, title, how)
    from adapterhub_cl.bases.sources import QUANTIZATIONS
    from adapterhub_cl.data.formats import NAMES
    from adapterhub_cl.data.tasks import METRICS

    lines += ["## Other names", ""]
    lines += table(
        ("option", "takes"),
        [
            ("`--quantization`", ", ".join(map(code, QUANTIZATIONS))),
            ("`--prompt-format`", ", ".join(map(code, NAMES)) + ", or a template with `{input}`"),
            *(
                (f"`--metric` of a {kind} task", ", ".join(map(code, names)) + "; the first is the default")
                for kind, names in METRICS.items()
            ),
        ],
    )
    return _page(lines)


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def _verb(verb: Any) -> list[str]:
    parameters = [p for p in verb.params if not getattr(p, "hidden", False)]
    arguments = [p for p in parameters if p.param_type_name == "argument"]
    options = [p for p in parameters if p.param_type_name == "option"]
    own = [p for p in options if p.rich_help_panel != SETTINGS_PANEL]
    settings = {p.name: p for p in options if p.rich_help_panel == SETTINGS_PANEL}
    usage = " ".join(["cl-adapter", verb.name, *(["[OPTIONS]"] if options else []), *map(_usage, arguments)])
    lines = [f"### {verb.name}", "", *inspect.cleandoc(verb.help or "").splitlines(), "", code(usage), ""]
    lines += table(("argument", "what"), [(code(_usage(p)), _help(p)) for p in arguments])
    lines += table(("option", "what"), [_option(p) for p in own])
    if settings:
        other = [
            f"`{flag(f.name)}` [{shown}]"
            for f in fields(TrainingSettings)
            if f.name in settings and (shown := _shown_default(settings[f.name])) not in ("", _default(f.default))
        ]
        differ = f"; here with other defaults: {', '.join(other)}" if other else ""
        lines += [f"And the [training settings](#training-settings){differ}.", ""]
    lines += ["```console", *(f"$ {line}" for line in (verb.epilog or "").splitlines()), "```", ""]
    return lines


def _shown_default(option: Any) -> str:
    """The default that the help of a training flag ends with, in square brackets."""
    found = re.search(r"\[([^\]]*)\]$", option.help or "")
    return found[1] if found else ""


def _usage(argument: Any) -> str:
    name = (argument.metavar or argument.name.upper()).strip("[]")
    many = f"{name}…" if argument.nargs == -1 and "…" not in name else name
    return many if argument.required else f"[{many}]"


def _option(option: Any) -> tuple[str, str]:
    names = ", ".join(f"`{name}`" for name in sorted(option.opts, key=len, reverse=True))
    if option.secondary_opts:
        names += f" / `{option.secondary_opts[0]}`"
    value = "" if option.is_flag or option.secondary_opts else option.metavar or _value(option)
    more = ["required"] if option.required else []
    if option.multiple and "repeated" not in _help(option):
        more.append("may be repeated")
    if not option.required and option.show_default and option.default not in (None, False, "", ()):
        more.append(f"default: `{'on' if option.default is True else option.default}`")
    bounds = [f"from {option.min}"] if getattr(option, "min", None) is not None else []
    bounds += [f"up to {option.max}"] if getattr(option, "max", None) is not None else []
    tail = f" ({'; '.join([*more, *bounds])})" if more or bounds else ""
    return f"{names}{f' {value}' if value else ''}", _help(option) + tail


def _value(option: Any) -> str:
    kind = getattr(getattr(option, "type_descriptor", None), "annotation", str)
    return VALUES.get(kind, "TEXT")


def _help(parameter: Any) -> str:
    return " ".join((parameter.help or "").split())


def _setting(field: Any) -> tuple[str, str, str]:
    name = flag(field.name)
    shown = f"`{name}` / `--no-{name[2:]}`" if str(field.type) == "bool" else f"`{name}`"
    return shown, field.metadata["help"], _default(field.default)


def _default(value: Any) -> str:
    return "" if value in (None, "") else "off" if value is False else "on" if value is True else str(value)


def _room(name: str, title: str, how: str) -> list[str]:
    package = import_module(f"adapterhub_cl.{name}")
    rows, options = [], []
    for method in package.ROOM.names():
        found = package.ROOM.get(method)
        line = getattr(found, "shares", "") or getattr(found, "purpose", "") or _sentence(inspect.getmodule(found))
        rows.append((code(method), line))
        config = getattr(found, "Config", None)
        options += _options(method, config) if config is not None else []
    if hasattr(package, "Common"):
        options += _options("router", package.Common)
    lines = [f"## {title}", "", how, "", *table(("name", "what"), rows)]
    return lines + table(("option", "what", "default"), options)


def _options(name: str, config: Any) -> list[tuple[str, str, str]]:
    return [(code(f"{name}.{f.name}"), f.metadata["help"], _default(f.default)) for f in fields(config)]


def _first(text: str | None) -> str:
    return inspect.cleandoc(text or "").split("\n\n")[0].replace("\n", " ")


def _sentence(module: Any) -> str:
    """The first sentence of a module's docstring, without the method's name before the colon."""
    line = re.split(r"\.\s+(?=[A-Z])", _first(module.__doc__))[0].rstrip(".")
    return line.partition(": ")[2] or line


# -- Python ------------------------------------------------------------------------------------------


def api() -> str:
    """The page of the library."""
    lines = [MADE, "", "# Python", "", "`from adapterhub_cl import …`:", ""]
    public = [name for name in adapterhub_cl.__all__ if not name.startswith("_")]
    lines += table(("name", "what"), [(code(name), _first(getattr(adapterhub_cl, name).__doc__)) for name in public])
    lines += ["## AdapterHub", "", *_prose(AdapterHub.__doc__), ""]
    for home in (AdapterHub, *(c for c in AdapterHub.__mro__[1:] if c is not object)):
        methods = [(name, value) for name, value in vars(home).items() if not name.startswith("_") and _callable(value)]
        if methods:
            lines += [
                f"### {'Making, opening, looking' if home is AdapterHub else _first(home.__doc__).rstrip('.')}",
                "",
            ]
            for name, value in methods:
                lines += _method(name, value)
    lines += ["## What methods give", ""]
    records = [v for v in vars(types).values() if inspect.isclass(v) and v.__module__ == types.__name__]
    for found in sorted(records, key=lambda c: c.__name__):
        lines += _record(found)
    for module, name in RETURNED:
        lines += _record(getattr(import_module(module), name), module)
    lines += ["## Progress", "", "In `adapterhub_cl.progress`; what methods take as `reporter`.", ""]
    for reporter in (progress.Reporter, progress.NotebookReporter, progress.BarReporter, progress.LineReporter):
        lines += _reporter(reporter)
    lines += ["## TrainingSettings", "", *_prose(TrainingSettings.__doc__), ""]
    rows = [
        (code(f.name), code(str(f.type)), f.metadata["help"], _default(f.default)) for f in fields(TrainingSettings)
    ]
    lines += table(("setting", "type", "what", "default"), rows)
    lines += [
        "## Errors",
        "",
        "All are in `adapterhub_cl.errors`; `error.message` is one line, `error.hint` the next step.",
        "",
    ]
    kinds = [v for v in vars(errors).values() if inspect.isclass(v) and issubclass(v, errors.AdapterHubError)]
    lines += table(
        ("error", "is a", "code", "exit code", "when"),
        [
            (code(e.__name__), code(e.__mro__[1].__name__), code(e.code), str(e.exit_code), _first(e.__doc__))
            for e in kinds
        ],
    )
    return _page(lines)


def _callable(value: Any) -> bool:
    return inspect.isfunction(value) or isinstance(value, classmethod | property)


def _method(name: str, value: Any) -> list[str]:
    if isinstance(value, property):
        kind = str(inspect.signature(value.fget).return_annotation).strip("'")  # type: ignore[arg-type]
        return [f"**`{name}`**: {code(_tidy(kind))}. {_first(value.__doc__)}".rstrip(), ""]
    function = value.__func__ if isinstance(value, classmethod) else value
    decorator = ["@classmethod"] if isinstance(value, classmethod) else []
    shown = ["```python", *decorator, f"{_signature(name, function)}: ...", "```"]
    return [f"#### {name}", "", *shown, "", *_prose(function.__doc__), ""]


def _signature(name: str, function: Any) -> str:
    signature = inspect.signature(function)
    parts, star = [], False
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            parts.append("*")
            star = True
        text = STARS.get(parameter.kind.name, "") + parameter.name
        star = star or parameter.kind is parameter.VAR_POSITIONAL
        if parameter.annotation is not parameter.empty:
            text += f": {_tidy(str(parameter.annotation))}"
        if parameter.default is not parameter.empty:
            text += f"{' = ' if ':' in text else '='}{_quoted(parameter.default)}"
        parts.append(text)
    result = "" if signature.return_annotation is signature.empty else f" -> {_tidy(str(signature.return_annotation))}"
    line = f"def {name}({', '.join(parts)}){result}"
    return line if len(line) <= 110 else "\n".join([f"def {name}(", *(f"    {p}," for p in parts), f"){result}"])


def _quoted(value: Any) -> str:
    """As Python writes it, texts in double quotes."""
    if isinstance(value, tuple):
        inside = ", ".join(map(_quoted, value))
        return f"({inside},)" if len(value) == 1 else f"({inside})"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _tidy(annotation: str) -> str:
    return annotation.replace("_List[", "list[")


def _record(found: Any, module: str = "") -> list[str]:
    lines = [f"### {found.__name__}", ""]
    lines += [f"In `{module}`."] if module else []
    lines += [""] if module else []
    summary, sections = _parsed(found.__doc__)
    lines += [*summary, ""]
    told = dict(sections.get("Attributes", []))
    if is_dataclass(found):
        rows = []
        for field in fields(found):
            has_factory = field.default_factory is not MISSING
            default = "" if field.default is MISSING else _quoted(field.default)
            default = "empty" if has_factory else default
            rows.append((code(field.name), code(_tidy(str(field.type))), told.get(field.name, ""), code(default)))
        lines += table(("field", "type", "what", "default"), rows)
    own = [(n, v) for n, v in vars(found).items() if not n.startswith("_") and _callable(v) and n != "from_json"]
    for name, value in own:
        if isinstance(value, property):
            lines += _method(name, value)
        elif is_dataclass(found):
            lines += [f"**`{_signature(name, value).removeprefix('def ')}`** {_first(value.__doc__)}".rstrip(), ""]
        else:
            lines += _method(name, value)
    return lines


def _reporter(found: Any) -> list[str]:
    """How one is made; of the one that the others are derived from also what it is told."""
    lines = [f"### {found.__name__}", "", *_prose(found.__doc__), ""]
    if found is not progress.Reporter:
        made = f"    {_signature('__init__', found.__init__)}: ..."
        return [*lines, "```python", f"class {found.__name__}(Reporter):", made, "```", ""]
    for name, value in vars(found).items():
        if not name.startswith("_"):
            lines += _method(name, inspect.unwrap(value))
    return lines


SECTIONS = ("Args", "Raises", "Returns", "Attributes")


def _parsed(text: str | None) -> tuple[list[str], dict[str, list[tuple[str, str]]]]:
    """A docstring's prose, and its sections: (name, text) pairs, the name empty where a section is plain prose."""
    prose: list[str] = []
    sections: dict[str, list[tuple[str, str]]] = {}
    current: list[tuple[str, str]] | None = None
    for line in inspect.cleandoc(text or "").splitlines():
        title = line.rstrip(":")
        if line.endswith(":") and title in SECTIONS:
            current = sections.setdefault(title, [])
        elif current is None:
            prose.append(line)
        elif line.strip():
            entry = re.match(r"    ([\w*][\w, *]*): (.*)$", line) if title not in ("Returns",) else None
            if entry and not line.startswith("     "):
                current.append((entry[1], entry[2]))
            elif current:
                current[-1] = (current[-1][0], f"{current[-1][1]} {line.strip()}")
            else:
                current.append(("", line.strip()))
        else:
            current = current if line.startswith(" ") or not line else None
    while prose and not prose[-1]:
        prose.pop()
    return prose, sections


def _prose(text: str | None) -> list[str]:
    prose, sections = _parsed(text)
    lines = [*prose, ""]
    for title, entries in sections.items():
        shown = {"Args": "", "Attributes": "", "Raises": "Raises ", "Returns": "Returns "}[title]
        lines += [f"- {shown}`{name}`: {told}" if name else f"- {shown}{told}" for name, told in entries]
    return lines


# -- both --------------------------------------------------------------------------------------------


def _page(lines: Sequence[str]) -> str:
    text = "\n".join(line.rstrip() for line in lines)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def stale(write: bool) -> list[str]:
    """The pages that are not what the code says, now written anew if `write`."""
    found = []
    for name, text in (("cli.md", cli()), ("api.md", api())):
        path = PLACE / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            found.append(name)
            if write:
                path.parent.mkdir(exist_ok=True)
                path.write_text(text, encoding="utf-8")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where a page is out of date")
    check = parser.parse_args().check
    found = stale(write=not check)
    for name in found:
        print(f"docs/reference/{name} is {'out of date: python docs/make_reference.py' if check else 'written'}")
    return 1 if check and found else 0


if __name__ == "__main__":
    sys.exit(main())
