"""Plots for notebooks and papers, drawn on matplotlib's axes; matplotlib is imported on demand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

Cell = float | None
_LINE: dict[str, Any] = {"marker": "o", "markersize": 3.5, "linewidth": 1.4}


def axes(given: Any = None, size: tuple[float, float] | None = None) -> Any:
    """The given axes, or those of a new figure of this size in inches, which a notebook displays by itself."""
    if given is not None:
        return given
    from matplotlib import pyplot

    return pyplot.subplots(figsize=size, layout="constrained")[1]


def heat_map(
    panel: Any, rows: Sequence[Sequence[Cell]], tasks: Sequence[str], title: str, low: float, high: float
) -> Any:
    """Draw an accuracy matrix; cells that were not measured are blank. Returns matplotlib's image.

    Args:
        low, high: the ends of the colour scale.
    """
    stages, size = len(rows), len(tasks)
    cells = [[math.nan if cell is None else cell for cell in row] for row in rows]
    image = panel.imshow(cells, cmap="cividis", vmin=low, vmax=high, aspect="equal")
    font = 7.5 if size <= 8 else 6
    for i, row in enumerate(rows):
        for j, cell in enumerate(row):
            if cell is not None:
                colour = "white" if cell < low + 0.55 * (high - low) else "black"
                panel.text(j, i, number(cell), ha="center", va="center", fontsize=font, color=colour)
    panel.set_xticks(range(size), [cut(t, 12) for t in tasks], rotation=40, ha="right", fontsize=7)
    panel.set_yticks(range(stages), [cut(t, 12) for t in tasks[:stages]], fontsize=7)
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)
    panel.set_title(title, fontsize=8.5)
    return image


def training_curve(panel: Any, history: Sequence[Mapping[str, Any]], best: int | None, title: str) -> Any:
    """Draw the loss of each epoch, for training and held-out data, and the accuracy on held-out data.

    Args:
        history: a row for each epoch, as in `training.json`.
        best: the epoch whose weights were saved, marked by a line; counted from 1.
    """
    epochs = [row["epoch"] for row in history]
    lines = panel.plot(epochs, [row["loss"] for row in history], color="#0072b2", label="loss, training", **_LINE)
    for key, label, look in (
        ("dev_loss", "loss, held out", {"color": "#d55e00"}),
        ("dev_accuracy", "accuracy, held out", {"color": "#009e73", "linestyle": "--"}),
    ):
        known = [(row["epoch"], row[key]) for row in history if row.get(key) is not None]
        if not known:
            continue
        side = panel
        if key == "dev_accuracy":
            side = panel.twinx()
            side.set_ylim(0, 1.05)
            side.set_ylabel("accuracy")
        lines += side.plot(*zip(*known, strict=True), label=label, **look, **_LINE)
    if best:
        panel.axvline(best, color="#888888", linewidth=0.8, linestyle=":")
    panel.set_xticks(epochs if len(epochs) <= 20 else epochs[:: math.ceil(len(epochs) / 20)])
    panel.set_xlabel("epoch")
    panel.set_ylabel("loss (nats)")
    panel.set_ylim(bottom=0)
    panel.set_title(cut(title, 60), fontsize=9, pad=22)
    panel.legend(handles=lines, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=7.5, frameon=False)
    return panel


def number(value: float) -> str:
    """In the shortest readable form: two digits of a share."""
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.3g}"


def cut(text: str, length: int) -> str:
    """A text cut to at most this many characters, with dollar signs escaped."""
    text = text if len(text) <= length else text[: length - 1] + "…"
    return text.replace("$", r"\$")
