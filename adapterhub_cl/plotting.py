"""Pictures for notebooks and papers, drawn on matplotlib's axes; nothing is imported before one is drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

Cell = float | None


def axes(given: Any = None, size: tuple[float, float] | None = None) -> Any:
    """The axes that were given, or those of a new figure of that many inches, which a notebook shows by itself."""
    if given is not None:
        return given
    from matplotlib import pyplot

    return pyplot.subplots(figsize=size, layout="constrained")[1]


def heat_map(
    panel: Any, rows: Sequence[Sequence[Cell]], tasks: Sequence[str], title: str, low: float, high: float
) -> Any:
    """Draw an accuracy matrix; cells that were not measured stay blank. Gives matplotlib's image.

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
    """Draw the loss of each epoch, of what is trained on and of what is held out, and the accuracy on the latter.

    Args:
        history: a row for each epoch, as `training.json` has it.
        best: the epoch that was kept, marked by a line; counted from 1.
    """
    epochs = [row["epoch"] for row in history]
    panel.plot(epochs, [row["loss"] for row in history], marker="o", markersize=3.5, label="loss, training")
    for key, label in (("dev_loss", "loss, held out"), ("dev_accuracy", "accuracy, held out")):
        known = [(row["epoch"], row[key]) for row in history if row.get(key) is not None]
        if not known:
            continue
        side = panel.twinx() if key == "dev_accuracy" else panel
        look = {"color": "#009e73", "linestyle": "--"} if side is not panel else {"color": "#d55e00"}
        side.plot(*zip(*known, strict=True), marker="o", markersize=3.5, label=label, **look)
        if side is not panel:
            side.set_ylim(0, 1)
            side.set_ylabel("accuracy")
            side.legend(loc="lower right", fontsize=8, frameon=False)
    if best:
        panel.axvline(best, color="#888888", linewidth=0.8, linestyle=":")
    panel.set_xticks(epochs if len(epochs) <= 20 else epochs[:: math.ceil(len(epochs) / 20)])
    panel.set_xlabel("epoch")
    panel.set_ylabel("loss (nats)")
    panel.set_ylim(bottom=0)
    panel.legend(loc="upper right", fontsize=8, frameon=False)
    panel.set_title(cut(title, 60), fontsize=9)
    return panel


def number(value: float) -> str:
    """As short as it can be read: two digits of a share."""
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.3g}"


def cut(text: str, length: int) -> str:
    """A text of at most that many characters, its dollar signs no formulas."""
    text = text if len(text) <= length else text[: length - 1] + "…"
    return text.replace("$", r"\$")
