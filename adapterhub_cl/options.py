"""Options: each is declared once, as a field of a dataclass, and everything else is made from that field.

A verb's options are one dataclass, `adapterhub_cl.learning.request.AddTaskOptions` for example. Its fields give the
flags of the command line, the keyword arguments of the Python method, the keys of `--config FILE` and of a stream
file, the reference page and the checks. No torch.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, dataclass, field, fields
from importlib import import_module
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from adapterhub_cl.errors import UnknownNameError, UsageError

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
LISTS = (list, tuple, Sequence)
PLAIN: dict[str, Any] = {kind.__name__: kind for kind in WORDS} | {f"{k.__name__} | None": k | None for k in WORDS}

# What peft, transformers and TRL call options of this project.
ELSEWHERE = {
    "lr": "learning_rate",
    "r": "rank",
    "lora_r": "rank",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "num_train_epochs": "epochs",
    "num_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "gradient_accumulation_steps": "accumulation",
    "gradient_checkpointing": "checkpointing",
    "max_seq_length": "max_length",
    "lr_scheduler_type": "schedule",
    "warmup_ratio": "warmup",
    "max_grad_norm": "clip",
    "use_rslora": "rslora",
    "use_dora": "dora",
    "layers_to_transform": "layers",
}


@dataclass(frozen=True)
class Option:
    """One declared option.

    Attributes:
        name: of the field, and of the argument in Python.
        kind: the type of its value.
        default: what holds where nobody gives it; None where it depends, which `help` then says.
        help: what it means, with its unit.
        flag: how it is written on the command line. A flag `--no-…` makes a value false that is true by default.
        off: what such a flag does, for its help; `help` says what the value does.
        metavar: what stands for the value in help.
        choices: the values that it takes, if they are few; `word` is what one of them is called in a message.
        parse: `module:function` that makes the value from what users write: a text, or what YAML or Python give.
        check: `module:function` that raises where a value cannot be used.
        joins: whether a list of texts is read as one text with commas between.
        names: what its values are names of, for shell completion, e.g. `strategies`.
        config: whether it is a key of `--config FILE`.
        stream: whether a task of a stream file may have it.
    """

    name: str
    kind: Any
    default: Any
    help: str = ""
    flag: str = ""
    off: str = ""
    metavar: str = ""
    choices: tuple[str, ...] = ()
    word: str = ""
    parse: str = ""
    check: str = ""
    joins: bool = False
    names: str = ""
    config: bool = True
    stream: bool = True

    @property
    def key(self) -> str:
        """How it is written in a config or stream file."""
        return flag(self.name)[2:] if self.flag.startswith("--no-") else self.flag[2:]

    @property
    def kinds(self) -> list[Any]:
        """The types of which a value may be one, without None."""
        return [one for one in _kinds(self.kind) if one is not NoneType]

    def read(self, value: Any, prefix: str = "") -> Any:
        """The value that users wrote, of this option's type.

        Args:
            prefix: stands before the option in messages instead of `--`, for example `replay.`.

        Raises:
            UsageError: it cannot be used.
        """
        shown = f"{prefix}{self.name}" if prefix else self.flag
        if self.parse and value is not None:
            try:
                return _function(self.parse)(value)
            except (TypeError, ValueError, AttributeError, OverflowError) as error:
                raise UsageError(f"{shown} cannot be {value!r}") from error
        try:
            if isinstance(value, list | tuple) and str in self.kinds and not self.joins:
                raise TypeError
            made = _as(self.kind, value)
        except (TypeError, ValueError, OverflowError) as error:
            raise UsageError(f"{shown} must be {_words(self.kind)}, not {value!r}") from error
        if made is not None and self.choices and made not in self.choices:
            raise UnknownNameError(self.word or self.name.replace("_", " "), str(made), self.choices)
        if made is not None and self.check:
            _function(self.check)(made)
        return made


@dataclass(frozen=True)
class NoOptions:
    """The options of a plug-in that has none."""


def option(default: Any, help: str, **about: Any) -> Any:  # noqa: A002 (the metadata's name)
    """A dataclass field that declares an option.

    Args:
        default, help, about: see `Option`; `flag` is the field's name with dashes unless another one is given.
    """
    made: dict[str, Any] = {"default_factory": default} if callable(default) else {"default": default}
    return field(**made, metadata={"help": help, **about})


def flag(name: str) -> str:
    """`learning_rate` → `--learning-rate`."""
    return "--" + name.replace("_", "-")


def declared(*classes: type[Any]) -> dict[str, Option]:
    """Name → option, of every option that these classes declare."""
    return {name: one for cls in classes for name, one in options_of(cls).items() if one.help}


def options_of(cls: type[Any]) -> dict[str, Option]:
    """Name → option, of every field of a class; a third party's may have no help, and then reads lists as texts."""
    kinds = kinds_of(cls)
    found = {}
    for one in fields(cls):
        factory = one.default_factory
        default = factory() if factory is not MISSING else None if one.default is MISSING else one.default
        about = {"flag": flag(one.name), "joins": not one.metadata, **one.metadata}
        known = {key: value for key, value in about.items() if key in Option.__dataclass_fields__}
        found[one.name] = Option(one.name, kinds[one.name], default, **known)
    return found


def given_of(cls: type[Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of some given options that a class declares."""
    mine = declared(cls)
    return {name: value for name, value in given.items() if name in mine}


def read(options: Mapping[str, Option], values: Mapping[Any, Any], where: str, prefix: str = "") -> dict[str, Any]:
    """Options from the command line, keyword arguments or a file, each of the type that was declared.

    Args:
        options: those that there are, by name.
        values: option → value; dashes and underscores both do, numbers may be texts.
        where: where they came from, for the message.
        prefix: see `Option.read`.

    Raises:
        UnknownNameError: no such option, or no such choice.
        UsageError: values of the wrong type, all in one message.
    """
    keys = {one.key.replace("-", "_"): one for one in options.values()} | dict(options)
    found: dict[str, Any] = {}
    problems: list[UsageError] = []
    seen: set[str] = set()
    for key, value in values.items():
        one = keys.get(str(key).replace("-", "_"))
        if one is None:
            here = ELSEWHERE.get(str(key).replace("-", "_"), "")
            hint = f"what others call {key} is {options[here].key} here" if here in options else ""
            raise UnknownNameError(f"setting in {where}", str(key), [o.key for o in options.values()], hint)
        if one.name in seen:
            raise UsageError(f"{where}: {one.key} is set twice (with - and with _)", "leave one of them out")
        seen.add(one.name)
        try:
            found[one.name] = one.read(value, prefix)
        except UnknownNameError:
            raise
        except UsageError as error:
            problems.append(error)
    if problems:
        hint = problems[0].hint if len(problems) == 1 and problems[0].hint else f"fix {where}"
        raise UsageError("; ".join(error.message for error in problems), hint)
    return {name: found[name] for name in options if name in found}


def from_mapping(cls: type[T], values: Mapping[str, Any], where: str, *, prefix: str = "") -> T:
    """A dataclass of options from a config file or keyword arguments; see `read`.

    Raises:
        UnknownNameError, UsageError: see `read`; or whatever the class itself refuses.
    """
    return cls(**read(options_of(cls), values, where, prefix))


def takes(*classes: type[Any], stream: bool = False, hidden: Collection[str] = (), **other: Any) -> Callable[[F], F]:
    """Give a method, in place of its `**asked`, one keyword argument for each option that these classes declare.

    The method gets those that were given and are not None, checked and of their types. Its signature and its
    docstring list them all.

    Args:
        stream: only those that a task of a stream may have.
        hidden: those that are not listed, because the method refuses them and says why.
        other: the defaults that differ for this method, as its signature shows them.
    """

    def wrap(method: F) -> F:
        options = {name: one for name, one in declared(*classes).items() if one.stream or not stream}
        listed = {name: one for name, one in options.items() if name not in hidden}

        @functools.wraps(method)
        def call(*args: Any, **given: Any) -> Any:
            own = {name: given.pop(name) for name in list(given) if name in named}
            wanted = {name: value for name, value in given.items() if value is not None}
            return method(*args, **own, **read(options, wanted, "the arguments"))

        signature = inspect.signature(method)
        stay = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        named = {p.name for p in stay}
        made = [
            inspect.Parameter(
                one.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=other.get(one.name, one.default),
                annotation=_shown(one.kind),
            )
            for one in listed.values()
        ]
        call.__signature__ = signature.replace(parameters=[*stay, *made])  # type: ignore[attr-defined]
        call.__doc__ = _with_arguments(inspect.cleandoc(method.__doc__ or ""), listed)
        return call  # type: ignore[return-value]

    return wrap


def _with_arguments(doc: str, options: Mapping[str, Option]) -> str:
    """A docstring whose section Args lists the options as well."""
    lines = [f"    {one.name}: {one.help}." for one in options.values()]
    if "\nArgs:\n" in doc:
        head, _, tail = doc.partition("\nArgs:\n")
        own, blank, after = tail.partition("\n\n")
        return f"{head}\nArgs:\n{own}\n" + "\n".join(lines) + blank + after
    head, raises, tail = doc.partition("\n\nRaises:")
    return f"{head}\n\nArgs:\n" + "\n".join(lines) + raises + tail


def _shown(kind: Any) -> str:
    """A type as source code has it."""
    return (
        getattr(kind, "__name__", str(kind))
        if not get_args(kind)
        else str(kind).replace("typing.", "").replace("collections.abc.", "")
    )


def _function(written: str) -> Callable[[Any], Any]:
    module, _, name = written.partition(":")
    found: Callable[[Any], Any] = getattr(import_module(module), name)
    return found


def parse_set(value: Any) -> dict[str, Any]:
    """`["replay.ratio=0.5"]` → `{"replay.ratio": "0.5"}`; a mapping comes back with texts as keys.

    Raises:
        UsageError: not of the form NAME.OPTION=VALUE.
    """
    if isinstance(value, Mapping):
        return {str(key): entry for key, entry in value.items()}
    found: dict[str, Any] = {}
    for text in [value] if isinstance(value, str) else value:
        key, sign, entry = str(text).partition("=")
        if not sign or "." not in key or not entry.strip():
            raise UsageError(f"--set {text!r} is not NAME.OPTION=VALUE", "for example --set replay.ratio=0.5")
        found[key.strip()] = entry.strip()
    return found


def read_texts(value: Any, wanted: str, example: str) -> list[str]:
    """`a,b`, or `["a, b", "c"]` where a text may have commas, or a list of anything but lists and objects.

    Args:
        wanted: the flag, for the message; `example` its value as a JSON list.

    Raises:
        UsageError: it begins like a JSON list and is not a list of texts.
    """
    found = value
    if isinstance(value, str):
        if not value.lstrip().startswith("["):
            return [text.strip() for text in value.split(",")]
        with suppress(ValueError, RecursionError):
            found = json.loads(value)
        found = found if isinstance(found, list) and all(isinstance(text, str) for text in found) else None
    if not isinstance(found, Sequence) or any(isinstance(text, list | dict) for text in found):
        raise UsageError(f"{wanted} {value!r} is not a JSON list of texts", f"for example {wanted} '{example}'")
    # YAML reads an unquoted `yes` as true
    return [str(text).lower() if isinstance(text, bool) else str(text) for text in found]


def kinds_of(cls: type[Any]) -> dict[str, Any]:
    """The type of each option, whether or not the class was written under `from __future__ import annotations`."""
    try:
        hints = get_type_hints(cls)
    except NameError:  # a name that only type checkers import: such an option is taken as it is given
        hints = {f.name: PLAIN.get(f.type, Any) if isinstance(f.type, str) else f.type for f in fields(cls)}
    return {f.name: hints[f.name] for f in fields(cls)}


def _kinds(kind: Any) -> tuple[Any, ...]:
    """The types of which a value may be one."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _as(kind: Any, value: Any) -> Any:
    """The value as the first of the types that takes it."""
    error: Exception = TypeError()
    for one in _kinds(kind):
        try:
            return _as_one(one, value)
        except (TypeError, ValueError, OverflowError) as refused:
            error = refused
    raise error


def _as_one(kind: Any, value: Any) -> Any:
    origin = get_origin(kind) or kind
    if origin in LISTS:
        return _as_list(kind, value)
    if origin is Literal:
        return get_args(kind)[[str(one) for one in get_args(kind)].index(str(value))]
    if kind is Any:
        return value
    if kind is bool and isinstance(value, str) and value.lower() in ("true", "false"):  # as --set writes it
        return value.lower() == "true"
    if kind is NoneType or kind is bool:
        if not isinstance(value, kind):
            raise TypeError
        return value
    if isinstance(value, bool):
        raise TypeError
    if kind is int:
        if isinstance(value, int):
            return value
        if float(value) != int(float(value)):
            raise ValueError
        return int(float(value))
    if kind is float:
        return float(value)
    if isinstance(value, list):
        return ",".join(str(v) for v in value)
    if not isinstance(value, str | int | float):
        raise TypeError
    return str(value)


def _as_list(kind: Any, value: Any) -> Any:
    """A list, or a text with commas between."""
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, list | tuple):
        raise TypeError
    inner = [one for one in get_args(kind) if one is not Ellipsis] or [Any]
    made = [_as(inner[0], one) for one in value]
    return tuple(made) if (get_origin(kind) or kind) is tuple else made


def _words(kind: Any) -> str:
    """What a value must be, for a message."""
    said = []
    for one in _kinds(kind):
        origin = get_origin(one) or one
        if origin is Literal:
            said.append("one of " + ", ".join(str(choice) for choice in get_args(one)))
        elif origin in LISTS:
            said.append("a list, or a text with commas between")
        elif one is not NoneType:
            said.append(WORDS.get(one, "a text"))
    return " or ".join(said)
