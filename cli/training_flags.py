"""Flags made from `TrainingSettings`' fields, and `--config FILE` merged under them."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import typer
from cl_adapter.app import SETTINGS_PANEL

from adapterhub_cl.errors import UnknownNameError, UsageError
from adapterhub_cl.options import flag
from adapterhub_cl.progress import Reporter
from adapterhub_cl.settings import TrainingSettings

_TYPES: Mapping[str, type] = {"int": int, "float": float, "str": str, "bool": bool}
_TEXTS = (
    "eval",
    "strategy",
    "replay",
    "on_top_of",
    "augment",
    "kind",
    "instruction",
    "prompt_format",
    "metric",
    "log_with",
    "start",
    "features",
)
_NUMBERS = ("max_forgetting", "min_retention", "temperature", "task_loss", "feature_weight")
_COUNTS = ("pseudo", "top")


@dataclass(frozen=True)
class Wishes:
    """What the user asked of a training verb; nothing that was left at its default.

    Attributes:
        options: arguments of the façade's method, such as `strategy`.
        settings: fields of `TrainingSettings`.
    """

    options: dict[str, Any]
    settings: dict[str, Any]

    def effective(self) -> TrainingSettings:
        """The whole settings, defaults filled in.

        Raises:
            UsageError: any of them cannot be used; all problems in one message.
        """
        return TrainingSettings.from_mapping(self.settings, "the settings")


class Announcing(Reporter):
    """Tells the settings before anything else, once the request is known to be good: an error comes alone."""

    def __init__(self, inner: Reporter, settings: str) -> None:
        self.inner, self.settings = inner, settings

    def _announce(self) -> None:
        if self.settings:
            said, self.settings = self.settings, ""
            self.inner.note(said)

    def note(self, text: str) -> None:
        self._announce()
        self.inner.note(text)

    def start(self, what: str, total: int) -> None:
        self._announce()
        self.inner.start(what, total)

    def advance(self, steps: int = 1, tokens: int = 0, **values: float) -> None:
        self.inner.advance(steps, tokens, **values)

    def finish(self) -> None:
        self.inner.finish()


def training_flags(command: Callable[..., None], **other: str) -> Callable[..., None]:
    """Give a verb one flag for each training setting; it receives those that were given as the dict `settings`.

    Args:
        other: the defaults that differ for this verb, as help shows them.
    """
    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "settings"]
    names = [f.name for f in fields(TrainingSettings)]
    made = [
        _parameter(f.name, str(f.type), other.get(f.name, f.default), f.metadata["help"])
        for f in fields(TrainingSettings)
    ]

    @functools.wraps(command)
    def run(**values: Any) -> None:
        asked = {name: values.pop(name) for name in names}
        command(**values, settings={name: value for name, value in asked.items() if value is not None})

    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*own, *made)]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


def _parameter(name: str, annotated: str, default: Any, text: str) -> inspect.Parameter:
    kind = _TYPES[annotated.split(" ")[0]]
    declared = f"{flag(name)}/--no-{flag(name)[2:]}" if kind is bool else flag(name)
    shown = text if default in (None, "") else f"{text} [{'off' if default is False else default}]"
    option = typer.Option(declared, help=shown, rich_help_panel=SETTINGS_PANEL, show_default=False)
    annotation = Annotated[kind | None, option]  # type: ignore[valid-type]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def wishes(config: str | None, options: Mapping[str, Any], settings: Mapping[str, Any]) -> Wishes:
    """Flags over the config file.

    Args:
        config: a YAML file whose keys are flags of the verb, or None.
        options: every option of the verb that may stand in the file, None where it was not given; its `columns` and
            `labels` are texts as flags take them.
        settings: training settings that were given as flags.

    Raises:
        UsageError: the file cannot be read, or holds something that cannot be used.
    """
    from adapterhub_cl.data.columns import parse_columns

    written = _read(config, options) if config else Wishes({}, {})
    given = {name: value for name, value in options.items() if value is not None}
    if "columns" in given:
        given["columns"] = parse_columns(given["columns"])
    if "labels" in given:
        given["labels"] = split_labels(given["labels"])
    return Wishes({**written.options, **given}, {**written.settings, **settings})


def parse_set(
    given: Sequence[str] | None, form: str = "STRATEGY.OPTION=VALUE, for example --set replay.ratio=0.5"
) -> dict[str, str]:
    """`["replay.ratio=0.5"]` → `{"replay.ratio": "0.5"}`.

    Args:
        form: how an option is written, for the message.

    Raises:
        UsageError: not of that form.
    """
    found: dict[str, str] = {}
    for text in given or ():
        key, sign, value = text.partition("=")
        if not sign or "." not in key or not value.strip():
            what, _, example = form.partition(", ")
            raise UsageError(f"--set {text!r} is not {what}", example)
        found[key.strip()] = value.strip()
    return found


def split_labels(text: str) -> list[str]:
    """`spam, ham` or `["spam", "ham"]` → the labels; in the second form a label may have commas.

    Raises:
        UsageError: it begins like a JSON list and is none of texts.
    """
    if not text.lstrip().startswith("["):
        return [label.strip() for label in text.split(",")]
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(isinstance(label, str) for label in found):
        raise UsageError(
            f"--labels {text!r} is no JSON list of texts", """for example --labels '["yes, please", "no"]'"""
        )
    return found


def _read(config: str, options: Collection[str]) -> Wishes:
    rows = _yaml(config)
    known = {name.replace("_", "-") for name in (*options, *(f.name for f in fields(TrainingSettings)))}
    known = {"set" if name == "options" else name for name in known}
    found = Wishes({}, {})
    for key, value in rows.items():
        name = str(key).replace("-", "_")
        if name.replace("_", "-") not in known:
            raise UnknownNameError(f"setting in {config}", str(key), known)
        if name in options or name == "set":
            found.options["options" if name == "set" else name] = _option(config, name, value)
        else:
            found.settings[name] = value
    TrainingSettings.from_mapping(found.settings, config)
    return found


def _option(config: str, name: str, value: Any) -> Any:
    if name in _TEXTS and isinstance(value, str):
        return value
    if name == "set" and isinstance(value, dict):
        return {str(key): entry for key, entry in value.items()}
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if name in _NUMBERS and number:
        return float(value)
    if (name in _COUNTS and number and value == int(value)) or (name == "grow" and isinstance(value, bool)):
        return value
    if name == "data" and isinstance(value, (str, list)):
        return [value] if isinstance(value, str) else [str(entry) for entry in value]
    if name == "columns":
        from adapterhub_cl.data.columns import parse_columns

        if isinstance(value, dict):
            value = ",".join(f"{role}={column}" for role, column in value.items())
        if isinstance(value, str):
            return parse_columns(value)
    if name == "labels" and isinstance(value, (str, list)):
        return split_labels(value) if isinstance(value, str) else [_label(label) for label in value]
    raise UsageError(f"{config}: {name.replace('_', '-')} cannot be {value!r}", f"write it as {flag(name)} takes it")


def _label(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _yaml(config: str) -> dict[Any, Any]:
    import yaml

    try:
        text = Path(config).expanduser().read_text(encoding="utf-8")
        rows = yaml.safe_load(text)
    except FileNotFoundError as error:
        raise UsageError(f"{config}: no such file", "--config takes a YAML file of settings") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{config} cannot be read: {error}", "--config takes a YAML file of settings") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error)
        raise UsageError(f"{config}{line}: not valid YAML ({problem})", "write one `setting: value` a line") from error
    if not isinstance(rows, dict):
        raise UsageError(f"{config} holds no settings", "write one `setting: value` a line, for example `epochs: 2`")
    return rows
