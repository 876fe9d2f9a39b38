"""A data source → rows: files, standard input, directories written by `datasets`, and datasets on the Hub."""

from __future__ import annotations

import difflib
import gzip
import hashlib
import json
import re
import sys
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapterhub_cl.data import arrow_rows
from adapterhub_cl.data.parsing import PARSERS, Numbered, parse_json, parse_lines
from adapterhub_cl.errors import DataError

TEXT_EXTENSIONS = (*PARSERS, ".json")
EXTENSIONS = (*TEXT_EXTENSIONS, ".parquet")
DEMO = "demo:"
DEMO_FOLDER = Path(__file__).parents[1] / "demo"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class SourceRows:
    """The rows of a source, before the roles of its columns are known.

    Attributes:
        rows: one mapping of column → value for each row, in the source's order.
        source: the source as the user named it.
        sha256: SHA-256 of the file's bytes (compressed ones as they are on disk); for a directory, over the names
            and bytes of its files; for a dataset on the Hub, over its rows.
        lines: for each row the place it came from, counted from 1.
        unit: what `lines` counts: `line`, `item` or `row`.
        class_names: column → names of its classes, if the source has them.
    """

    rows: list[dict[str, Any]]
    source: str
    sha256: str
    lines: list[int]
    unit: str = "line"
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, index: int) -> str:
        """The place of a row, for messages: `train.jsonl line 7`."""
        return f"{self.source} {self.unit} {self.lines[index]}"


def read_rows(source: str | Path, split: str = "train", *, text_lines: bool = False) -> SourceRows:
    """Read a data source.

    Args:
        source: `.jsonl`, `.ndjson`, `.json`, `.csv`, `.tsv`, `.txt` (documents separated by blank lines), each also
            with `.gz`; `.parquet`; `-` for JSON lines on standard input; a directory written by `save_to_disk`;
            or a dataset on the Hub, `owner/name`. The last two take a split: `owner/name:test`. `demo:tickets.train`
            is the package's own file `tickets.train.jsonl`.
        split: the split, if the source has several and `source` names none.
        text_lines: whether `.txt` has one text a line.

    Raises:
        DataError: missing, empty, broken or of an unknown kind; names the line if there is one.
    """
    source = str(source)
    if source == "-":
        if sys.stdin is None:
            raise DataError("standard input is closed", "give a file, or send JSON lines")
        return _file_rows(sys.stdin.buffer.read(), "standard input", ".jsonl", text_lines)
    source, split, path = _parted(source, split)
    if path.is_dir():
        return _directory_rows(path, source, split)
    if path.is_file():
        extension = _extension(path, source)
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise DataError(f"{source}: cannot be read ({error.strerror})", "check the permissions") from error
        return _file_rows(raw, source, extension, text_lines)
    if path.exists():
        raise DataError(f"{source}: neither a file nor a directory", "give a file; use - for standard input")
    if _is_hub_id(source):
        rows, names = arrow_rows.read_hub_dataset(source, split)
        digest = hashlib.sha256(json.dumps(rows, sort_keys=True, default=str).encode()).hexdigest()
        return _arrow_rows(rows, names, source, digest)
    raise _absent(path, source)


def check_there(source: str | Path) -> None:
    """Raise at once for a file that is not there, before anything slow begins; `read_rows` raises the same.

    Raises:
        DataError: there is no such file, and it is no dataset on the Hub either.
    """
    if source != "-":
        source, _, path = _parted(str(source), "")
        if not path.exists() and not _is_hub_id(source):
            raise _absent(path, source)


def _parted(source: str, split: str) -> tuple[str, str, Path]:
    """A source without the split that it may name, the split, and where the source would lie.

    Args:
        split: of a source that names none.
    """
    path = located(source)
    if not path.exists() and ":" in source:
        stem, _, tail = source.rpartition(":")
        if re.fullmatch(r"\w+", tail) and (Path(stem).is_dir() or _is_hub_id(stem)):
            return stem, tail, Path(stem).expanduser()
    return source, split, path


def _absent(path: Path, source: str) -> DataError:
    if path.is_symlink():
        return DataError(f"{source}: a symbolic link that leads nowhere", "correct the link, or give the file itself")
    return DataError(f"{source}: no such file", _near_files(path))


def located(source: str) -> Path:
    """The path of a source; `demo:NAME` is a file of the package, named the same wherever that is installed.

    Raises:
        DataError: the demo has no such data.
    """
    if not source.startswith(DEMO) or ("." not in source and Path("demo").is_dir()):  # a saved dataset and its split
        return Path(source).expanduser()
    names = sorted(path.name.removesuffix(".jsonl") for path in DEMO_FOLDER.glob("*.jsonl"))
    name = source.removeprefix(DEMO).removesuffix(".jsonl")
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5) or names
        raise DataError(f"{source}: the demo has no such data", f"it has {', '.join(DEMO + one for one in near)}")
    return DEMO_FOLDER / f"{name}.jsonl"


def at_hand(source: str) -> bool:
    """Whether a file or directory that was read before still exists."""
    try:
        return located(source).exists()
    except DataError:
        return False


def absolute(source: str | Path) -> str:
    """An absolute path, so that another working directory does not matter; ids and `-` are returned unchanged."""
    path = Path(source).expanduser()
    return str(path.resolve()) if str(source) and path.exists() else str(source)


def _extension(path: Path, source: str) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    extension = suffixes[-1] if suffixes else ""
    if extension == ".gz" and len(suffixes) > 1 and suffixes[-2] in TEXT_EXTENSIONS:
        return f"{suffixes[-2]}.gz"
    if extension not in EXTENSIONS:
        raise DataError(
            f"{source}: unknown kind of data file {extension or '(no extension)'!r}",
            f"known: {', '.join(EXTENSIONS)}; text files also with .gz",
        )
    return extension


def _file_rows(raw: bytes, source: str, extension: str, text_lines: bool) -> SourceRows:
    digest = hashlib.sha256(raw).hexdigest()
    if extension == ".parquet":
        rows, names = arrow_rows.parse_parquet(raw, source) if raw else ([], {})
        return _arrow_rows(rows, names, source, digest)
    if extension.endswith(".gz"):
        extension = extension.removesuffix(".gz")
        try:
            raw = gzip.decompress(raw) if raw else raw
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{source}: not a complete gzip file ({error})", "compress or download it again") from error
    numbered: Numbered
    unit = "line"
    if extension == ".json":
        numbered, unit = parse_json(raw, source)
    else:
        parse = parse_lines if extension == ".txt" and text_lines else PARSERS[extension]
        numbered = parse(raw, source)
    if not numbered:
        raise DataError(f"{source}: contains no rows", "give a file with at least one row")
    return SourceRows([row for _, row in numbered], source, digest, [line for line, _ in numbered], unit)


def _arrow_rows(rows: list[dict[str, Any]], names: dict[str, tuple[str, ...]], source: str, digest: str) -> SourceRows:
    if not rows:
        raise DataError(f"{source}: contains no rows", "give a source with at least one row")
    return SourceRows(rows, source, digest, list(range(1, len(rows) + 1)), "row", names)


def _directory_rows(path: Path, source: str, split: str) -> SourceRows:
    if not arrow_rows.is_saved_dataset(path):
        inside = sorted(p.name for p in path.iterdir() if p.suffix in (*EXTENSIONS, ".gz"))
        hint = f"give one of its files: {', '.join(inside[:5])}" if inside else "give a data file"
        raise DataError(f"{source}: a directory that was not written by datasets.save_to_disk", hint)
    rows, names = arrow_rows.read_saved_dataset(path, split)
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("cache-")):
        digest.update(
            f"{file.relative_to(path).as_posix()}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode()
        )
    return _arrow_rows(rows, names, source, digest.hexdigest())


def _is_hub_id(source: str) -> bool:
    owner = source.partition("/")[0]
    known = source.lower().removesuffix(".gz").endswith(EXTENSIONS)
    return bool(HUB_ID.fullmatch(source)) and not known and not Path(owner).is_dir()


def _near_files(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"the folder {folder} does not exist"
    files = sorted(p.name for p in folder.iterdir())
    near = difflib.get_close_matches(path.name, files, n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(str(folder / name) for name in near)}?"
    data = [name for name in files if name.lower().removesuffix(".gz").endswith(EXTENSIONS)]
    return f"data files in {folder}: {', '.join(data[:8])}" if data else f"there are no data files in {folder}"
