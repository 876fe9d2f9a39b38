"""The tables of `traffic.db`.

They are not part of the index: requests come by the thousand, an engine looks at the index again whenever anything is
committed to it, and a rebuilt index must not lose them. Columns are only ever added, with a default.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from adapterhub_cl.errors import HubError

FORMAT = 1  # SQLite's `user_version`; a higher one was made by a newer version of this project

# answers: an empty task is none (the base answered), `example` is the JSON of `Example.to_json`, masked, and
#   `conversation` is a hash.
# feedback: `good` is NULL where the user said neither, `task` is the one that the user named, else the answer's,
#   `lesson` is the lesson that took it, NULL while it waits, and `labelled` says that the right answer came as a label.
# lessons: see `adapterhub_cl.traffic.lesson_book`.
TABLES = """
CREATE TABLE answers (
    id TEXT PRIMARY KEY, at TEXT NOT NULL, task TEXT NOT NULL, ref TEXT NOT NULL, example TEXT NOT NULL,
    answer TEXT NOT NULL, confidence REAL, routing REAL, out_of_distribution INTEGER NOT NULL,
    conversation TEXT NOT NULL, asked_by TEXT NOT NULL
);
CREATE INDEX ix_answers_task_at ON answers (task, at);
CREATE INDEX ix_answers_at ON answers (at);
CREATE TABLE feedback (
    id TEXT PRIMARY KEY REFERENCES answers (id) ON DELETE CASCADE, at TEXT NOT NULL, good INTEGER, right_answer TEXT,
    task TEXT NOT NULL, said_by TEXT NOT NULL, lesson INTEGER, labelled INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX ix_feedback_task_lesson ON feedback (task, lesson);
CREATE TABLE lessons (
    id INTEGER PRIMARY KEY, task TEXT NOT NULL, verb TEXT NOT NULL, state TEXT NOT NULL, served_before TEXT NOT NULL,
    ref TEXT NOT NULL, share REAL NOT NULL, began_at TEXT NOT NULL, changed_at TEXT NOT NULL, reason TEXT NOT NULL,
    detail TEXT NOT NULL
);
CREATE INDEX ix_lessons_task ON lessons (task);
"""


def make_tables(connection: sqlite3.Connection, file: Path) -> None:
    """Make the tables of a file that has none.

    Raises:
        HubError: a newer version made it.
    """
    found = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if found > FORMAT:
        raise HubError(
            f"{file} was made by a newer version (format {found}, this one knows {FORMAT})",
            "upgrade: pip install --upgrade adapterhub-cl",
        )
    if found == FORMAT:
        return
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("BEGIN IMMEDIATE")
    if int(connection.execute("PRAGMA user_version").fetchone()[0]) < FORMAT:  # another process may have been faster
        for statement in TABLES.split(";"):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {FORMAT}")
    connection.execute("COMMIT")
