"""Reading `replay.jsonl`, the replay samples of one version, and how many facts they are of."""

from __future__ import annotations

from adapterhub_cl.data.reading import read_rows
from adapterhub_cl.errors import DataError
from adapterhub_cl.types import AdapterRecord, Example


def kept_samples(record: AdapterRecord) -> list[Example]:
    """The replay samples of a version.

    Raises:
        DataError: `replay.jsonl` exists but cannot be read.
    """
    path = record.path / "replay.jsonl"
    if not path.is_file() or path.stat().st_size == 0:
        return []
    found = []
    hint = "restore it from a copy of the hub; see cl-adapter verify"
    try:
        rows = read_rows(path)
    except DataError as error:
        raise DataError(f"the replay samples of {record.ref} are damaged: {error.message}", hint) from error
    for k, row in enumerate(rows.rows):
        try:
            example = Example.from_json({"input": "", **row})
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{rows.where(k)}: not a replay sample", hint) from error
        if example.answer is None:
            raise DataError(f"{rows.where(k)}: not a replay sample", hint)
        found.append(example)
    return found


def facts_learned(record: AdapterRecord) -> int:
    """How many facts a version and those before it learned; 0 if they did not learn facts alone, or nobody counted."""
    known = (record.manifest.get("replay") or {}).get("facts")
    return known if isinstance(known, int) and known > 0 else 0
