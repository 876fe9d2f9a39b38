"""Pictures of accuracy matrices, as PNG or SVG. matplotlib is imported on demand; equal matrices give equal files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adapterhub_cl.errors import DataError, UsageError
from adapterhub_cl.evaluation.matrix import AccuracyMatrix
from adapterhub_cl.plotting import cut, heat_map
from adapterhub_cl.registry import check_local

SUFFIXES = (".png", ".svg")
DPI = 140
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # Okabe & Ito
STYLES = ("-", "--", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def matrix_picture(matrices: Sequence[AccuracyMatrix], path: str | Path) -> Path:
    """One heat map for each matrix, at most four in a row; cells that were not measured are blank.

    Raises:
        DataError: no matrices.
        UsageError: the path ends neither in .png nor in .svg.
    """
    path = _checked(matrices, path)
    columns, lines = _grid(len(matrices))
    size = max(len(matrix.tasks) for matrix in matrices)
    side = max(2.9, 1.1 + 0.52 * size)
    figure = _figure(columns * side + 0.9, lines * (side + 0.35))
    low, high = _range(matrices)
    panels = figure.subplots(lines, columns, squeeze=False)
    image = None
    for panel, matrix in zip(panels.flat, matrices, strict=False):
        image = heat_map(panel, matrix.rows, matrix.tasks, matrix.headline, low, high)
    for panel in panels.flat[len(matrices) :]:
        panel.set_axis_off()
    bar = figure.colorbar(image, ax=panels, shrink=0.9 / lines**0.5, aspect=24, pad=0.015)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=7)
    return _save(figure, path)


def curves_picture(matrices: Sequence[AccuracyMatrix], path: str | Path) -> Path:
    """One panel for each task: its score after each stage, one line for each name.

    Matrices with the same name are runs of one method (several seeds): the line is their mean, the band their minimum
    and maximum. All matrices must have the same tasks in the same order.

    Raises:
        DataError: no matrices, or of different tasks.
        UsageError: the path ends neither in .png nor in .svg.
    """
    path = _checked(matrices, path)
    tasks = matrices[0].tasks
    for matrix in matrices:
        if matrix.tasks != tasks:
            raise DataError(
                f"curves of different tasks: {_names(tasks)} and {_names(matrix.tasks)}", "draw each separately"
            )
    columns, lines = _grid(len(tasks))
    figure = _figure(max(4.5, columns * 3.1), lines * 2.5 + 0.7)
    panels = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=_shares(matrices))
    runs: dict[str, list[AccuracyMatrix]] = {}
    for matrix in matrices:
        runs.setdefault(matrix.name or "adapters", []).append(matrix)
    handles: dict[str, Any] = {}
    for j, (panel, task) in enumerate(zip(panels.flat, tasks, strict=False)):
        for k, (name, group) in enumerate(runs.items()):
            handles[name] = _curve(panel, group, j, k)
        panel.axvline(j, color="#999999", linewidth=0.8, linestyle=":", zorder=0)
        panel.set_title(cut(task, 28), fontsize=9)
        panel.set_xlim(-0.3, len(tasks) - 0.7)
        panel.set_xticks(range(len(tasks)), [cut(name, 12) for name in tasks], rotation=40, ha="right", fontsize=7)
        panel.tick_params(axis="y", labelsize=7)
        panel.tick_params(axis="x", labelbottom=j + columns >= len(tasks))
        panel.grid(axis="y", color="#e5e5e5", linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels.flat[len(tasks) :]:
        panel.set_axis_off()
    figure.supxlabel("after learning", fontsize=8)
    figure.supylabel("score", fontsize=8)
    figure.legend(
        handles.values(), [cut(n, 24) for n in handles], loc="outside right center", fontsize=8, frameon=False
    )
    return _save(figure, path)


def _curve(panel: Any, group: Sequence[AccuracyMatrix], task: int, number: int) -> Any:
    stages = range(max(len(matrix.rows) for matrix in group))
    x, mean, least, best = [], [], [], []
    for i in stages:
        cells = [matrix.rows[i][task] for matrix in group if i < len(matrix.rows)]
        values = [cell for cell in cells if cell is not None]
        if values:
            x.append(i)
            mean.append(math.fsum(values) / len(values))
            least.append(min(values))
            best.append(max(values))
    look = {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": STYLES[number // len(COLOURS) % len(STYLES)],
        "marker": MARKERS[(number + number // len(COLOURS)) % len(MARKERS)],
    }
    if len(group) > 1:
        panel.fill_between(x, least, best, color=look["color"], alpha=0.15, linewidth=0)
    return panel.plot(x, mean, linewidth=1.4, markersize=3.5, **look)[0]


def _checked(matrices: Sequence[AccuracyMatrix], path: str | Path) -> Path:
    path = check_local(path, "a file")
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{path}: a picture is written as {' or '.join(SUFFIXES)}", f"use {path.stem}.png")
    if not matrices:
        raise DataError("no accuracy matrix to draw", "measure one first: cl-adapter eval --matrix")
    return path


def _grid(count: int) -> tuple[int, int]:
    """Columns and rows of panels: at most four in a row, no row nearly empty."""
    columns = count if count <= 3 else 2 if count == 4 else 3 if count <= 6 else 4
    return columns, math.ceil(count / columns)


def _shares(matrices: Sequence[AccuracyMatrix]) -> bool:
    return all(matrix.scale == (0.0, 1.0) for matrix in matrices)


def _range(matrices: Sequence[AccuracyMatrix]) -> tuple[float, float]:
    """One scale for all panels: 0 to 1 for shares."""
    if _shares(matrices):
        return 0.0, 1.0
    cells = [cell for matrix in matrices for row in matrix.rows for cell in row if cell is not None]
    return min(cells), max(cells)


def _names(tasks: Sequence[str]) -> str:
    return cut(", ".join(tasks), 60)


def _figure(width: float, height: float) -> Any:
    """A figure of this size in inches, without global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: Path) -> Path:
    import matplotlib

    metadata = {"Date": None} if path.suffix.lower() == ".svg" else {"Software": None}
    with matplotlib.rc_context({"svg.hashsalt": "adapterhub-cl"}):
        figure.savefig(path, dpi=DPI, metadata=metadata, bbox_inches="tight", pad_inches=0.08)
    return path
