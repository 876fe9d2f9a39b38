"""A stream file: a sequence of tasks in YAML or JSON, checked whole before anything is trained. No torch.

    name: reviews-first          # optional
    defaults: {epochs: 2}        # optional: options of add-task for all tasks
    tasks:
      - {name: yelp, data: yelp.jsonl, eval: yelp.test.jsonl}
      - {name: amazon, data: amazon.jsonl, rank: 8, replay: "balanced:50"}

Options are those of `add-task`, with dashes or underscores. `--strategy` and `--seeds` belong to the whole stream and
have no place in the file. A relative path of data is looked for beside the stream file first, then from the working
directory. YAML aliases are refused: `defaults` serves what they are for.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapterhub_cl.data.columns import Examples
from adapterhub_cl.data.reading import DEMO, EXTENSIONS, HUB_ID, at_hand
from adapterhub_cl.data.tasks import find_leaks
from adapterhub_cl.errors import AdapterHubError, DataError, UnknownNameError
from adapterhub_cl.learning.train_options import AddTaskOptions
from adapterhub_cl.options import Option, declared, given_of
from adapterhub_cl.registry import check_name
from adapterhub_cl.settings import TrainingSettings
from adapterhub_cl.types import Example
from adapterhub_cl.yaml_files import TOO_DEEP, load_yaml, what_is_wrong

MAX_BYTES = 1_000_000
TOP = ("tasks", "defaults", "name")
OWN = ("name", "data", "eval")
OPTIONS = {n: o for n, o in declared(AddTaskOptions, TrainingSettings).items() if o.stream}
# what the whole stream shares → its flag
SHARED = {"strategy": "--strategy", "set": "--set", "max_forgetting": "--max-forgetting"}
SHARED |= {"seed": "--seeds", "seeds": "--seeds"}


@dataclass(frozen=True)
class StreamTask:
    """One task of a stream.

    Attributes:
        data: absolute path, or id of a data set of the hub; `eval` of the held-out data, None without.
        options: arguments of `add_task` beside the settings, defaults of the file filled in; only what was given.
        settings: fields of `TrainingSettings`, the same way.
    """

    name: str
    data: str
    eval: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StreamFile:
    """A checked stream file.

    Attributes:
        name: what the file calls itself, else the file's name without its ending.
    """

    name: str
    path: Path
    tasks: tuple[StreamTask, ...]


def read_stream(path: str | Path) -> StreamFile:
    """Read and check a stream file; no data is read.

    Raises:
        DataError: the file cannot be read, or all that is wrong with it in one message.
    """
    path = Path(path).expanduser()
    content = _load(path)
    if not isinstance(content, dict):
        raise DataError(f"{path}: no stream in it", "write `tasks:` and a list of {name, data}")
    problems: list[str] = []
    problems += [_unknown("", key, TOP) for key in content if _plain(key) not in TOP]
    title = content.get("name")
    if title is not None and not (isinstance(title, str) and title.strip()):
        problems.append(f"name must be a text, not {_short(title)}")
        title = None
    problems += _tried("", check_name, title or slug(path.stem), "stream")
    rows = content.get("tasks")
    if not isinstance(rows, list) or not rows:
        problems.append("`tasks` is missing or empty" if not rows else f"`tasks` must be a list, not {_short(rows)}")
        rows = []
    defaults = content.get("defaults")
    if defaults is not None and not isinstance(defaults, dict):
        problems.append(f"defaults must be a mapping, not {_short(defaults)}")
        defaults = None
    options, settings, wrong = _wishes(defaults or {}, "defaults: ", ())
    problems += wrong
    tasks = []
    for number, row in enumerate(rows, 1):
        task, wrong = _task(row, number, path.absolute().parent, options, settings)
        problems += wrong
        tasks.append(task)
    problems += _twice([task.name for task in tasks])
    if problems:
        raise DataError(f"{path}: " + "; ".join(problems), "fix the file; nothing has been trained")
    return StreamFile(title or slug(path.stem), path, tuple(tasks))


def slug(stem: str) -> str:
    """A file's name as the name of a stream."""
    return re.sub(r"[^a-z0-9._-]+", "-", stem.lower()).strip("-._") or "stream"


def check_leaks(stream: StreamFile, read: Mapping[str, tuple[Examples, Examples | None]]) -> None:
    """Refuse an evaluation row of any task that is also a training row of any task: it could become a replay sample.

    Args:
        stream: whose tasks are checked, in its order.
        read: task → its training and evaluation examples.

    Raises:
        DataError: names the places and both tasks.
    """
    names = [task.name for task in stream.tasks if task.name in read]
    held_out: list[tuple[str, str, Example]] = []
    for name in names:
        rows = read[name][1]
        if rows is not None:
            held_out += [(name, place, example) for place, example in zip(rows.places, rows, strict=True)]
    train = [example for name in names for example in read[name][0]]
    leaks = find_leaks(train, [example for _, _, example in held_out])
    if not leaks:
        return
    name, place, example = held_out[leaks[0]]
    other, at = next((n, found[0]) for n in names if (found := find_leaks([example], read[n][0])))
    rest = f"; {len(leaks)} such rows in all" if len(leaks) > 1 else ""
    raise DataError(
        f"task {name}: row {place} of its evaluation data is also a training row of task {other} "
        f"({read[other][0].places[at]}); it could be kept as a replay sample{rest}",
        "remove it from one of them" if len(leaks) == 1 else "remove each from one",
    )


def digest(stream: StreamFile) -> str:
    """SHA-256 over the names, data paths, options and settings, in order: whether a stream is still the same one."""
    rows = [[t.name, t.data, t.eval, dict(t.options), dict(t.settings)] for t in stream.tasks]
    return hashlib.sha256(json.dumps([stream.name, rows], sort_keys=True, default=str).encode()).hexdigest()


def _task(
    row: Any, number: int, folder: Path, options: Mapping[str, Any], settings: Mapping[str, Any]
) -> tuple[StreamTask, list[str]]:
    if not isinstance(row, dict):
        return StreamTask("", ""), [f"task {number}: must be a mapping with name and data, not {_short(row)}"]
    values = {_plain(key): value for key, value in row.items()}
    name = values.get("name")
    where = f"task {number} ({name}): " if isinstance(name, str) and name else f"task {number}: "
    own_options, own_settings, problems = _wishes(row, where, OWN)
    for key in ("name", "data"):
        if values.get(key) in (None, ""):
            problems.append(f"{where}no {key}")
    if name and not isinstance(name, str):
        problems.append(f"{where}name must be a text, not {_short(name)}; put it in quotes")
    elif name:
        problems += _tried(where, check_name, name, "task")
    sources: dict[str, str] = {}
    for key in ("data", "eval"):
        source = values.get(key)
        if isinstance(source, str) and source:
            found = _resolve(source, folder)
            problems += [] if found else [f"{where}{_missing(key, source)}"]
            sources[key] = found or source
        elif source:
            problems.append(f"{where}{key} must be a path, not {_short(source)}")
    task = StreamTask(
        name if isinstance(name, str) else "",
        sources.get("data", ""),
        sources.get("eval"),
        {**options, **own_options},
        {**settings, **own_settings},
    )
    return task, problems


def _wishes(row: Mapping[Any, Any], where: str, own: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Options, settings and problems of a mapping; keys of `own` are ignored."""
    found: dict[str, Any] = {}
    problems: list[str] = []
    seen: set[str] = set()
    for key, value in row.items():
        name = _plain(key)
        if name in seen:
            problems.append(f"{where}{name} is set twice (with - and with _)")
        seen.add(name)
        if name in own:
            continue
        if name in SHARED:
            problems.append(f"{where}{key} belongs to the whole stream: say it with {SHARED[name]}")
        elif name in OPTIONS:
            if value is not None:
                problems += _tried(where, _put, found, OPTIONS[name], value)
        else:
            problems.append(_unknown(where, key, (*own, *OPTIONS)))
    settings = given_of(TrainingSettings, found)
    problems += _tried(where, TrainingSettings.from_mapping, settings, "it")
    return given_of(AddTaskOptions, found), settings, problems


def _put(found: dict[str, Any], one: Option, value: Any) -> None:
    found[one.name] = one.read(value)


def _tried(where: str, check: Any, *values: Any) -> list[str]:
    try:
        check(*values)
    except AdapterHubError as error:
        return [where + _told(error)]
    return []


def _told(error: AdapterHubError) -> str:
    near = isinstance(error, UnknownNameError) and error.near
    return f"{error.message} — did you mean {' or '.join(near)}?" if near else error.message


def _unknown(where: str, key: Any, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(_plain(key), known, n=1, cutoff=0.6)
    return f"{where}unknown key {_short(key)}" + (f" — did you mean {near[0].replace('_', '-')}?" if near else "")


def _twice(names: Sequence[str]) -> Iterator[str]:
    for name in dict.fromkeys(names):
        places = [str(number) for number, other in enumerate(names, 1) if other == name]
        if name and len(places) > 1:
            yield f"{len(places)} tasks of one name ({' and '.join(places)}: {name!r})"


def _resolve(source: str, folder: Path) -> str | None:
    """Where data lies: beside the stream file, else as given; an id of the hub as it is; None where nothing does."""
    if source.startswith(DEMO):
        return source if at_hand(source) else None
    for base in (folder, Path.cwd()):
        path = base / Path(source).expanduser()
        if path.exists():
            return str(path.resolve())
        stem, colon, split = str(path).rpartition(":")
        if colon and split.isidentifier() and Path(stem).is_dir():
            return f"{Path(stem).resolve()}:{split}"
    stem = source.rpartition(":")[0] or source
    is_id = HUB_ID.fullmatch(stem) and not stem.lower().endswith((*EXTENSIONS, ".gz"))
    return source if is_id and not (folder / stem.split("/")[0]).is_dir() else None


def _missing(key: str, source: str) -> str:
    return f"{key} cannot be standard input" if source == "-" else f"{key} {source!r}: no such file"


def _plain(key: Any) -> str:
    return str(key).replace("-", "_")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"


def _load(path: Path) -> Any:
    """What the file holds.

    Raises:
        DataError: missing, too large, neither YAML nor JSON, or a key comes twice in one mapping.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path}: over 1 MB, no stream file", "list the tasks; the data lies in other files")
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file", "give a YAML or JSON file with `tasks:`") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}", "give a YAML or JSON file with `tasks:`") from error
    import yaml

    try:
        return json.loads(text, object_pairs_hook=_pairs) if path.suffix.lower() == ".json" else load_yaml(text)
    except yaml.YAMLError as error:
        marked = isinstance(error, yaml.MarkedYAMLError)
        hint = "fix this line" if marked else "write `tasks:` and a list of {name, data}"
        raise DataError(f"{path}{what_is_wrong(error)}", hint) from error
    except (ValueError, RecursionError) as error:
        reason = str(error).partition("\n")[0] or TOO_DEEP
        raise DataError(f"{path}: not valid JSON ({reason})", "write `tasks:` and a list of {name, data}") from error


def _pairs(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"the key {key!r} comes twice")
    return dict(pairs)
