"""How notebooks display results: tables and cards in HTML. All text is escaped here."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")
MOST_ROWS = 200  # of a table
LONGEST = 300  # characters of a cell
NOTHING = "–"
# Notebooks render formulas between dollar signs, but users' texts contain prices.
_PLAIN = "tex2jax_ignore mathjax_ignore"


class Listing(list[T]):
    """A list that a notebook displays as a table; otherwise a plain list."""

    def _cells(self, item: T) -> Mapping[str, Any]:
        """The cells of one item: column → value."""
        return cells_of(item)

    def _repr_html_(self) -> str:
        shown = [dict(self._cells(item)) for item in self[:MOST_ROWS]]
        headers = list(dict.fromkeys(header for row in shown for header in row))
        left = len(self) - len(shown)
        return table(
            headers, ([row.get(header) for header in headers] for row in shown), f"{left:,} more" if left else ""
        )


def cells_of(item: Any) -> Mapping[str, Any]:
    """A record's cells in a table; for a pair (version, score) those of both."""
    if isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str):
        return {"adapter": item[0], **cells_of(item[1])}
    found: Mapping[str, Any] = item._cells()
    return found


def table(headers: Sequence[str], rows: Iterable[Sequence[Any]], below: str = "") -> str:
    """A table in HTML; numbers are right-aligned.

    Args:
        rows: a cell for each header; None and empty texts are shown as a dash.
        below: a line under it.
    """
    body = [list(row) for row in rows]
    if not body:
        return _block("<em>empty</em>")
    right = [all(isinstance(row[k], int | float) or row[k] is None for row in body) for k in range(len(headers))]
    lines = ["".join(_cell("th", header, right=right[k]) for k, header in enumerate(headers))]
    lines += ["".join(_cell("td", cell, right=right[k]) for k, cell in enumerate(row)) for row in body]
    head, *rest = [f"<tr>{line}</tr>" for line in lines]
    return _block(f"<table><thead>{head}</thead><tbody>{''.join(rest)}</tbody></table>", below)


def card(title: str, facts: Mapping[str, Any]) -> str:
    """A title, and a line for each known fact."""
    known = {name: told for name, told in facts.items() if told not in (None, "", (), [], {})}
    lines = [f"<tr>{_cell('th', name)}{_cell('td', told)}</tr>" for name, told in known.items()]
    return (
        f'<div class="{_PLAIN}"><strong>{escaped(title)}</strong><table><tbody>{"".join(lines)}</tbody></table></div>'
    )


def heat(rows: Sequence[Sequence[float | None]], columns: Sequence[str], names: Sequence[str], below: str = "") -> str:
    """A table of numbers, the larger the darker; None is blank.

    Args:
        names: of the rows.
    """
    known = [cell for row in rows for cell in row if cell is not None]
    low, high = (0.0, 1.0) if all(0 <= cell <= 1 for cell in known) else (min(known), max(known))
    head = "".join(_cell("th", name, right=True) for name in ("", *columns))
    body = []
    for name, row in zip(names, rows, strict=False):
        line = _cell("th", name)
        for cell in row:
            depth = 0.0 if cell is None else 0.6 * (cell - low) / ((high - low) or 1.0)
            look = f"text-align: right; background: rgba(31, 119, 180, {depth:.2f})" if cell is not None else ""
            line += f'<td style="{look}">{"" if cell is None else number(cell)}</td>'
        body.append(f"<tr>{line}</tr>")
    note = f"<div>{escaped(below)}</div>" if below else ""
    return (
        f'<div class="{_PLAIN}"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table>{note}</div>'
    )


def escaped(value: Any) -> str:
    """A text that is safe in HTML: cut, without control characters or characters that change the text direction."""
    text = value if isinstance(value, str) else number(value) if isinstance(value, float) else str(value)
    text = text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
    text = "".join("�" if unicodedata.category(c) in ("Cc", "Cf", "Cs") and not c.isspace() else c for c in text)
    return html.escape(text)


def number(value: float) -> str:
    """A score: four digits for a share, fewer for a large number."""
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}"


def size(count: int) -> str:
    """1536 → `1.5 kB`; units of 1000."""
    value, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def _block(inside: str, below: str = "") -> str:
    note = f"<div>{escaped(below)}</div>" if below else ""
    return f'<div class="{_PLAIN}">{inside}{note}</div>'


def _cell(tag: str, told: Any, *, right: bool = False) -> str:
    empty = told is None or told == ""
    look = ' style="text-align: right"' if right else ' style="text-align: left"'
    return f"<{tag}{look}>{NOTHING if empty and tag == 'td' else '' if empty else escaped(told)}</{tag}>"
