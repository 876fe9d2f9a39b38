"""Words and tables for people: aligned text in a pipe, a drawn table on a terminal."""

from __future__ import annotations

import json
import math
import re
import sys
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from adapterhub_cl.evaluation.gate import as_share, general_of
from adapterhub_cl.progress import shown
from adapterhub_cl.reporting.wording import size as size  # the verbs say display.size
from adapterhub_cl.types import Evaluation

if TYPE_CHECKING:
    from adapterhub_cl.data.marked import Part

NOTHING = "-"
NOT_KEPT_AWAY = "its samples lack the subjects of too many facts, so questions that name none of them are not kept away"
LEARNED = ("⟦", "⟧")
SHOWN = 1500  # characters from each end of a long piece
SLIGHT = 0.1  # a score below is too small to be divided by
# Control characters but for the tab and the line end, marks and switches of the writing direction, lone surrogates.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_STYLES = {"serves": "green", "rejected": "red", "refused": "red", "failed": "red", NOTHING: "dim"}
_AGES = ((60, "s", 1), (3600, "min", 60), (86_400, "h", 3600), (float("inf"), "d", 86_400))


def one_line(text: str) -> str:
    """A text without line ends or control characters, so that data cannot break a table or a terminal."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "�" for c in " ".join(text.split()))


def as_written(text: str) -> str:
    """A text for a terminal with its line ends, tabs and blanks, but without what moves the cursor, sets a colour or
    turns the direction of what follows. Joiners, which scripts and emoji need, stay."""
    return _UNSAFE.sub("�", text)


def as_json(data: Any, *, indent: int | None = None, ascii_only: bool = False) -> str:
    """Data as JSON whose texts cannot steer a terminal: what `as_written` replaces is escaped, so the data stay."""
    text = json.dumps(finite(data), indent=indent, ensure_ascii=ascii_only, default=str, allow_nan=False)
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def finite(data: Any) -> Any:
    """Data in which a number that JSON does not have (NaN, infinity) is null."""
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, Mapping):
        return {key: finite(value) for key, value in data.items()}
    return [finite(value) for value in data] if isinstance(data, list | tuple) else data


def short(text: str, columns: int = 60) -> str:
    """A text in one line, cut where it is longer."""
    line = one_line(text)
    return line if len(line) <= columns else line[: columns - 1] + "…"


def some(names: Sequence[str], most: int = 20, longest: int = 60) -> str:
    """Names with commas between, in one line; of many the first, of a long one its beginning."""
    lines = [one_line(name) for name in names]
    shown = [line if len(line) <= longest else f"{line[: longest - 1]}…" for line in lines[:most]]
    return ", ".join(shown) + (f", … ({len(names)} in all)" if len(names) > most else "")


def age(created_at: str, now: datetime | None = None) -> str:
    """How long ago an ISO time was: `4 min`."""
    try:
        then = datetime.fromisoformat(created_at)
    except ValueError:
        return created_at
    then = then if then.tzinfo else then.replace(tzinfo=UTC)
    return duration(((now or datetime.now(UTC)) - then).total_seconds())


def duration(seconds: float) -> str:
    """A time in the largest unit that fits: `4 min`."""
    seconds = max(0.0, seconds)
    return next(f"{seconds / per:.0f} {unit}" for limit, unit, per in _AGES if seconds < limit)


def marked(parts: Sequence[Part]) -> str:
    """A row as the base reads it, what is learned between the two `LEARNED` marks; line ends stay, and of a very long
    piece the middle is left out."""
    found = ""
    for part in parts:
        text = part.text if len(part.text) <= 2 * SHOWN else f"{part.text[:SHOWN]} [ … ] {part.text[-SHOWN:]}"
        text = shown(text)
        found += text.join(LEARNED) if part.learned else text
    return found


def moment(at: str) -> str:
    """An ISO time as a person reads it, in the local zone: `2026-03-01 14:05`."""
    try:
        return datetime.fromisoformat(at).astimezone().strftime("%Y-%m-%d %H:%M")
    except ValueError:
        return at


def value(number: float) -> str:
    """A score: four digits of a share, fewer of a large number."""
    return f"{number:.4f}" if abs(number) < 10 else f"{number:.2f}"


def interval(evaluation: Evaluation) -> str:
    """The 95 % interval of a score, where it has one."""
    ends = evaluation.details.get("interval")
    return f"{ends[0]:.3f}–{ends[1]:.3f}" if ends else NOTHING


def width(text: str) -> int:
    """Columns of a terminal that a text takes."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def table(headers: Sequence[str], rows: Iterable[Sequence[Any]], right: Collection[str] = ()) -> None:
    """Print rows under headers; on a narrow terminal texts are wrapped between words, and nothing is cut anywhere.

    Args:
        headers: names of the columns.
        rows: a cell for each header; None shows as `-`.
        right: the columns that hold numbers.
    """
    cells = [[NOTHING if cell is None or cell == "" else one_line(str(cell)) for cell in row] for row in rows]
    if sys.stdout.isatty() and _draw(headers, cells, right):
        return
    widths = [max([width(h), *(width(row[i]) for row in cells)]) for i, h in enumerate(headers)]
    for row in [list(headers), *cells]:
        padded = []
        for cell, header, columns in zip(row, headers, widths, strict=True):
            gap = " " * (columns - width(cell))
            padded.append(gap + cell if header in right else cell + gap)
        print("  ".join(padded).rstrip())


def _draw(headers: Sequence[str], cells: Sequence[Sequence[str]], right: Collection[str]) -> bool:
    """Draw a table; not where even its longest words are too wide for the terminal."""
    from rich.box import HORIZONTALS
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False, emoji=False)
    # The box itself leaves a space between columns.
    drawn = Table(box=HORIZONTALS, header_style="bold", pad_edge=False, padding=0, show_edge=False)
    shown = [n for n in range(len(headers)) if not cells or any(row[n] != NOTHING for row in cells)]
    least = len(shown) - 1
    for n in shown:
        whole = headers[n] in right or not n  # numbers, and what a row is called, are not broken
        words = [
            cell if whole else word for cell in (headers[n], *(row[n] for row in cells)) for word in cell.split(" ")
        ]
        narrowest = max(map(width, words))
        least += narrowest
        side: Any = "right" if headers[n] in right else "left"
        drawn.add_column(headers[n], justify=side, no_wrap=whole, min_width=narrowest)
    if least > console.width:
        return False
    for row in cells:
        drawn.add_row(*(_coloured(row[n]) for n in shown))
    console.print(drawn)
    return True


def _coloured(cell: str) -> Any:
    """A word that means something in its colour; all other cells as they are."""
    from rich.text import Text

    return Text(cell, style=_STYLES.get(cell.split(" ")[0], "") if len(cell) < 20 else "")


def pairs(rows: Mapping[str, Any]) -> None:
    """Print `name  value` lines, the values under each other; empty values are left out."""
    shown = {name: one_line(str(found)) for name, found in rows.items() if found not in (None, "", (), [])}
    columns = max((width(name) for name in shown), default=0)
    for name, found in shown.items():
        print(f"{name}{' ' * (columns - width(name))}  {found}")


def scores(found: Sequence[tuple[str, Evaluation]]) -> None:
    """Print scores with their intervals."""
    table(
        ("adapter", "task", "metric", "value", "95 % interval", "n"),
        [(ref, e.task, e.metric, value(e.value), interval(e), e.n) for ref, e in found],
        right=("value", "n"),
    )


def class_report(evaluation: Evaluation) -> None:
    """Print the per-class report of a choice task's score."""
    table(
        ("class", "precision", "recall", "f1", "support"),
        [
            (label, *(value(row[key]) for key in ("precision", "recall", "f1")), row["support"])
            for label, row in evaluation.details.get("classes", {}).items()
        ],
        right=("precision", "recall", "f1", "support"),
    )


def show_general(gate: Mapping[str, Any]) -> None:
    """Print what the gate measured on general text, if it did: `loss on general text 2.914 → 2.987 (+0.073 …)`."""
    if (effect := general_of(gate)) is not None:
        print(f"  loss on general text {effect.describe()}")


def show_foretold(manifest: Mapping[str, Any]) -> None:
    """Print what was foretold of each earlier task beside what was measured, where there was a forecast."""
    drops = {row["task"]: row["drop"] for row in (manifest.get("gate") or {}).get("effects", ())}
    for told in (manifest.get("forecast") or {}).get("tasks", ()):
        if told["drop"] is not None and told["task"] in drops:
            print(
                f"  {told['task']}: a drop of {told['drop']:.3f} was foretold ({told['low']:.3f} to "
                f"{told['high']:.3f}), {drops[told['task']]:.3f} was measured"
            )


def score_line(evaluation: Evaluation) -> str:
    """`accuracy 0.9123 (95 % 0.880–0.940, n 200)`."""
    ends = interval(evaluation)
    spread = "" if ends == NOTHING else f"95 % {ends}, "
    told = evaluation.details
    if evaluation.metric == "retention" and "before" in told and as_share(told.get("of", ""), told["before"]) < SLIGHT:
        scores = f"{told.get('of', 'score')} {value(told['before'])} → {value(told['after'])}"
        return f"retention: {scores} (n {evaluation.n})"  # a ratio to next to nothing says nothing
    if "before" in told and "after" in told:
        spread += f"{told.get('of', 'score')} {value(told['before'])} → {value(told['after'])}, "
    cut = f", {told['cut_inputs']} inputs cut to the task's limit" if told.get("cut_inputs") else ""
    return f"{evaluation.metric} {value(evaluation.value)} ({spread}n {evaluation.n}{cut})"
