"""Flags made from declared options, `--config FILE` merged under them, and the line that announces the settings."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, get_origin

import typer
from cl_adapter import completion
from cl_adapter.app import SETTINGS_PANEL

from adapterhub_cl.errors import UsageError
from adapterhub_cl.learning.train_options import FACT_SETTINGS
from adapterhub_cl.options import LISTS, Option, declared, given_of, read
from adapterhub_cl.progress import Passing, Reporter
from adapterhub_cl.settings import TrainingSettings
from adapterhub_cl.yaml_files import load_yaml, what_is_wrong


class Announcing(Passing):
    """Tells the settings before anything else, once the request is known to be good: an error comes alone."""

    def __init__(self, inner: Reporter, settings: str) -> None:
        super().__init__(inner)
        self.settings = settings

    def _announce(self) -> None:
        if self.settings:
            said, self.settings = self.settings, ""
            self.inner.note(said)

    def note(self, text: str) -> None:
        self._announce()
        super().note(text)

    def start(self, what: str, total: int) -> None:
        self._announce()
        super().start(what, total)


def takes(
    *classes: type[Any], config: bool = True, stream: bool = False, hidden: Collection[str] = (), **other: str
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a verb one flag for each option that these classes declare; it gets those that were given as `given`.

    Args:
        config: whether the verb has `--config FILE`, whose keys are its flags; flags win.
        stream: only the options that a task of a stream may have.
        hidden: options that help does not show, because the verb refuses them and says why.
        other: the defaults that differ for this verb, as help shows them.
    """
    options = {n: one for n, one in declared(*classes).items() if one.stream or not stream}

    def wrap(command: Callable[..., None]) -> Callable[..., None]:
        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "given"]
        settings = declared(TrainingSettings) if TrainingSettings in classes else {}
        made = [_parameter(one, other.get(n, one.default), n in settings, n in hidden) for n, one in options.items()]
        if config:
            made.append(_CONFIG)

        @functools.wraps(command)
        def run(**values: Any) -> None:
            asked = {name: values.pop(name) for name in options}
            file = values.pop("config") if config else None
            written = read_config(file, options) if file else {}
            flags = {name: _meant(options[name], value) for name, value in asked.items() if value is not None}
            found = {**written, **read(options, flags, "the command line")}
            command(**values, given={name: found[name] for name in options if name in found})

        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*own, *made)]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return wrap


def flags(given: Mapping[str, Any], *classes: type[Any]) -> str:
    """Given options as they are written on the command line, for a message."""
    known = declared(*classes)
    return ", ".join(known[name].flag for name in given)


def effective(given: Mapping[str, Any]) -> TrainingSettings:
    """The whole training settings, defaults filled in.

    Raises:
        UsageError: any of them cannot be used; all problems in one message.
    """
    usual = FACT_SETTINGS if given.get("facts") else {}
    return TrainingSettings.from_mapping({**usual, **given_of(TrainingSettings, given)}, "the settings")


_CONFIG = inspect.Parameter(
    "config",
    inspect.Parameter.KEYWORD_ONLY,
    default=None,
    annotation=Annotated[str | None, typer.Option(metavar="FILE", help="a YAML file of these flags; flags win")],
)


def _parameter(one: Option, default: Any, setting: bool, hidden: bool = False) -> inspect.Parameter:
    """A parameter of a command as typer reads it. It is None where the flag was not given."""
    kind = one.kinds[0]
    many = ((get_origin(kind) or kind) in LISTS and not one.parse) or one.flag == "--set"
    if bool in one.kinds:
        kind = bool
        written = f"{one.flag}/--no-{one.flag[2:]}" if setting else one.flag
    else:
        kind = list[str] if many else kind if kind in (int, float) and not one.parse else str
        written = one.flag
    show = default is not None and default is not True and default not in ("", (), {})
    show = show and (setting or default is not False)
    option = typer.Option(
        written,
        help=f"{one.help} [{'off' if default is False else default}]" if show else one.off or one.help,
        metavar=one.metavar or None,
        rich_help_panel=SETTINGS_PANEL if setting else None,
        show_default=False,
        hidden=hidden,
        autocompletion=getattr(completion, one.names) if one.names else None,
    )
    return inspect.Parameter(
        one.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _meant(one: Option, value: Any) -> Any:
    """A flag's value as the option has it: `--no-eval` makes `evaluate` false."""
    return not value if one.flag.startswith("--no-") else value


def read_config(config: str, options: Mapping[str, Option]) -> dict[str, Any]:
    """The options in a YAML file whose keys are flags.

    Raises:
        UsageError: the file cannot be read, or holds something that cannot be used.
    """
    found = read({name: one for name, one in options.items() if one.config}, _yaml(config), config)
    TrainingSettings.from_mapping(given_of(TrainingSettings, found), config)
    return found


def _yaml(config: str) -> dict[Any, Any]:
    import yaml

    try:
        text = Path(config).expanduser().read_text(encoding="utf-8")
        rows = load_yaml(text)
    except FileNotFoundError as error:
        raise UsageError(f"{config}: no such file", "--config takes a YAML file of settings") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{config} cannot be read: {error}", "--config takes a YAML file of settings") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{config}{what_is_wrong(error)}", "write one `setting: value` a line") from error
    if not isinstance(rows, dict):
        raise UsageError(f"{config} holds no settings", "write one `setting: value` a line, for example `epochs: 2`")
    return rows
