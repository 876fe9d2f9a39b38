"""Reads a file of what people said of answers, and attaches it: all of it, or nothing."""

from __future__ import annotations

from pathlib import Path

from adapterhub_cl.data.reading import read_rows
from adapterhub_cl.errors import AdapterHubError, DataError
from adapterhub_cl.registry import Registry
from adapterhub_cl.traffic.journal import Journal, Said
from adapterhub_cl.traffic.saying import WAYS, said_of


def say_rows(registry: Registry, file: Path, by: str = "") -> tuple[int, int]:
    """Attach what each row says of the answer whose `id` it names.

    Args:
        file: rows with `id` and one of `correct`, `label`, `answer` and `thumb`, such as `inbox --export` writes; rows
            of the export that nobody filled in are passed over.

    Returns:
        how many rows said something, and how many did not.

    Raises:
        DataError: a row has no id, or what it says cannot be used; nothing was attached.
    """
    journal, found, without = Journal(registry.path), list[Said](), 0
    before = {one.kept.id: one.said for one in journal.judged()}
    for number, row in enumerate(read_rows(str(file)).rows, 1):
        where = f"{file}, row {number}"
        answer = row.get("id")
        if not isinstance(answer, str):
            raise DataError(f"{where} has no id", "take the rows of: cl-adapter inbox --export FILE")
        told = {way: row[way] for way in (*WAYS, "task") if row.get(way) is not None}
        old = before.get(answer)
        # An exported row says what is known already; what a person added beside it is what they mean.
        if old is not None and old.right == told.get("answer") and ("label" in told or "thumb" in told):
            told.pop("answer", None)
        if len([way for way in WAYS if way in told]) > 1:
            told.pop("correct", None)
        if not any(way in told for way in WAYS):
            without += 1
            continue
        try:
            said = said_of(registry, journal.get(answer), told, by)
        except AdapterHubError as error:
            raise DataError(f"{where}: {error.message}", error.hint) from error
        if old is None or (old.good, old.right, old.task) != (said.good, said.right, said.task):
            found.append(said)
        else:
            without += 1
    journal.say(*found)
    return len(found), without
