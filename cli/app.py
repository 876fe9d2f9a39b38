"""The parser: verbs in groups, help without colour or boxes (which would cost start-up time), the global flags."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from cl_adapter.completion import own_words
from cl_adapter.session import Session
from typer.core import TyperCommand, TyperGroup

from adapterhub_cl.errors import AdapterHubError
from adapterhub_cl.launching import is_helper_process
from adapterhub_cl.plugins import Room

SETTINGS_PANEL = "Training settings"
MAKE, LOOK, USE, COMBINE = "Learn", "Look", "Use", "Combine, shrink, forget"
MOVE, HEALTH = "Versions and the outside", "Health"
GROUPS = (MAKE, LOOK, USE, COMBINE, MOVE, HEALTH)
_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class VerbGroup(TyperGroup):
    """Shows the verbs under the purpose they serve."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = {title: [] for title in GROUPS}
        for name, command in self.commands.items():
            groups[command.rich_help_panel].append((name, command.get_short_help_str(200)))
        for title, rows in groups.items():
            with formatter.section(title):
                formatter.write_dl(rows)


class Verb(TyperCommand):
    """A verb's help: options by group, the names that options know, one example."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        if extra.get("resilient_parsing"):  # a shell asks what may stand next
            args = own_words(info_name or "", args, parent)
        return super().make_context(info_name, args, parent, **extra)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for param in self.get_params(ctx):
            row = param.get_help_record(ctx)
            if row is not None:
                default = "Arguments" if param.param_type_name == "argument" else "Options"
                groups.setdefault(getattr(param, "rich_help_panel", None) or default, []).append(row)
        for title, rows in groups.items():
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)
        if any(p.name == "strategy" for p in self.params):
            with formatter.section("Strategies (their options by --set)"):
                formatter.write_dl(_strategies())
        if any(p.name == "method" for p in self.params):
            with formatter.section("Merge methods (their options by --set)"):
                formatter.write_dl(_methods())
        if any(p.name == "router" for p in self.params):
            with formatter.section("Routers (their options by --set)"):
                formatter.write_dl(_routers())
        known = {name: names() for name, names in _KNOWN.items() if any(p.name == name for p in self.params)}
        if known:
            with formatter.section("Known names"):
                formatter.write_dl([(f"--{name.replace('_', '-')}", ", ".join(names)) for name, names in known.items()])

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Example"):
            for line in (self.epilog or "").splitlines():
                formatter.write(f"{'':{formatter.current_indent}}{line}\n")
        formatter.write_paragraph()
        formatter.write_text(
            "--hub, --json, --quiet, --debug, --device, --dtype and --base-path go before or after the verb."
        )


def _strategies() -> list[tuple[str, str]]:
    from adapterhub_cl.strategies import ROOM

    return _rows(ROOM, "shares")


def _methods() -> list[tuple[str, str]]:
    from adapterhub_cl.merging import ROOM

    return _rows(ROOM, "purpose")


def _routers() -> list[tuple[str, str]]:
    from adapterhub_cl.routing import ROOM, Common

    return [*_rows(ROOM, "purpose"), ("router", _options("router", Common, "options of all of them"))]


def _rows(room: Room, about: str) -> list[tuple[str, str]]:
    """The methods of a room with their options; one that cannot be loaded says so."""
    rows = []
    for name in room.names():
        try:
            found = room.get(name)
            rows.append((name, _options(name, found.Config, getattr(found, about))))
        except AdapterHubError as error:
            rows.append((name, error.message))
    return rows


def _options(name: str, config: Any, line: str) -> str:
    from dataclasses import fields

    options = ", ".join(f"{name}.{f.name} [{f.default}]" for f in fields(config))
    return line + (f"; {options}" if options else "")


def _policies() -> list[str]:
    from adapterhub_cl.replay import ROOM

    return [f"{name}:SIZE" for name in ROOM.names()] + ["none"]


def _augmentations() -> list[str]:
    from adapterhub_cl.augmentation import ROOM

    return [f"{name}:COPIES" for name in ROOM.names()]


def _quantizations() -> list[str]:
    from adapterhub_cl.bases.sources import QUANTIZATIONS

    return list(QUANTIZATIONS)


def _formats() -> list[str]:
    from adapterhub_cl.data.formats import NAMES

    return [*NAMES, "or a template with {input}"]


# listed when help is asked for, not at each start
_KNOWN: dict[str, Callable[[], list[str]]] = {
    "replay": _policies,
    "augment": _augmentations,
    "quantization": _quantizations,
    "prompt_format": _formats,
}

app = typer.Typer(
    cls=VerbGroup,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings=_CONTEXT,
    help="Manage what a language model learns after pretraining: LoRA adapters on a frozen, quantised base, "
    "versioned and measured.",
    epilog="Start with: cl-adapter demo, or cl-adapter init --base tiny. Each verb has its own --help with an example.",
)


def verb(group: str, example: str, name: str | None = None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function a verb; its docstring is its help.

    Args:
        group: the heading it stands under in `cl-adapter --help`.
        example: one or more command lines.
        name: the verb, where it differs from the function's name.
    """
    return app.command(name, cls=Verb, rich_help_panel=group, epilog=example, context_settings=_CONTEXT)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"cl-adapter {version('adapterhub-cl')}")
        raise typer.Exit


@app.callback()
def root(
    ctx: typer.Context,
    hub: Annotated[
        str | None, typer.Option(help="the hub's directory; default: $CL_ADAPTER_HUB, else ./registry if it is a hub")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="answer in JSON on stdout, errors too")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="no notes and no progress on stderr")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show the traceback of an error")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
    dtype: Annotated[str, typer.Option(help="type of the matrix products: auto, bf16, fp16, fp32")] = "auto",
    base_path: Annotated[
        str | None, typer.Option(help="where the hub's base lies now; default: $CL_ADAPTER_BASE_PATH, else hub.toml")
    ] = None,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="show it")] = False,
) -> None:
    path = Path(hub).expanduser() if hub else None
    ctx.obj = Session(path, json, quiet or is_helper_process(), debug, device, dtype, base_path)
    from adapterhub_cl.registry import changes

    ctx.with_resource(changes.operation())  # a refusal of the disk tells what the whole command has changed
    if debug:
        import logging

        logging.basicConfig(level=logging.INFO, stream=sys.stderr)
