"""Numbers to inline SVG. Pure functions; every colour is a class defined in the page's style sheet, so that a drawing
follows light mode, dark mode and print. All text is escaped here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH, HEIGHT = 320, 150  # of a curve, in units of its view box
_LEFT, _RIGHT, _TOP, _BOTTOM = 34, 12, 10, 24


@dataclass(frozen=True)
class Dot:
    """One version's score in a curve.

    Attributes:
        step: its horizontal position.
        look: `served`, `derived` or `rejected`.
        now: whether it serves the task now.
        line: whether the curve passes through it.
        title: its tooltip.
    """

    step: int
    value: float
    look: str = "served"
    now: bool = False
    line: bool = True
    title: str = ""


def bar(share: float | None, look: str = "", title: str = "") -> Markup:
    """A bar filled to a share from 0 to 1; empty if there is none."""
    if share is None or not math.isfinite(share):
        return Markup("")
    width = _number(100 * min(1.0, max(0.0, share)))
    told = Markup("<title>{}</title>").format(title) if title else Markup("")
    return Markup(
        '<svg class="bar {}" viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true">{}'
        '<rect class="track" width="100" height="6"/><rect class="fill" width="{}" height="6"/></svg>'
    ).format(look, told, width)


def change_bar(change: float, limit: float | None, widest: float) -> Markup:
    """A bar from the middle: losses to the left, gains to the right; a tick marks the limit.

    Args:
        change: after − before.
        limit: the largest accepted loss, above 0; None draws no tick.
        widest: the change that fills half of the bar, above 0.
    """
    if not math.isfinite(change) or widest <= 0:
        return Markup("")
    length = 50 * min(1.0, abs(change) / widest)
    start = 50 - length if change < 0 else 50
    tick = Markup("")
    if limit is not None and limit <= widest:
        tick = Markup('<rect class="tick" x="{}" y="0" width="1" height="10"/>').format(
            _number(49.5 - 50 * limit / widest)
        )
    look = "loss" if change < 0 else "gain"
    return Markup(
        '<svg class="change" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="track" y="2" width="100" height="6"/><rect class="{}" x="{}" y="2" width="{}" height="6"/>'
        '<rect class="zero" x="49.75" width="0.5" height="10"/>{}</svg>'
    ).format(look, _number(start), _number(length), tick)


def spark(values: Sequence[float], top: float, title: str) -> Markup:
    """One thin column for each value, from 0 to `top`."""
    known = [value if math.isfinite(value) else 0.0 for value in values]
    if not known:
        return Markup("")
    columns = Markup("").join(
        Markup('<rect class="fill" x="{}" y="{}" width="3" height="{}"/>').format(
            4 * k, _number(20 - high), _number(high)
        )
        for k, value in enumerate(known)
        for high in [max(0.5, 20 * min(1.0, max(0.0, value) / top)) if top > 0 else 0.5]
    )
    return Markup(
        '<svg class="spark" viewBox="0 0 {} 20" preserveAspectRatio="none" role="img" aria-label="{}">'
        "<title>{}</title>{}</svg>"
    ).format(4 * len(known), title, title, columns)


def limits(values: Sequence[float], least: float = 0.2) -> tuple[float, float]:
    """The lower and upper end of a scale that contains these shares: tenths, within 0 and 1.

    Args:
        least: the minimum distance of the ends, in tenths.
    """
    known = [min(1.0, max(0.0, value)) for value in values if math.isfinite(value)]
    if not known:
        return 0.0, 1.0
    low, high = max(0, math.floor(min(known) * 10 - 0.2)), min(10, math.ceil(max(known) * 10 + 0.2))
    missing = max(0, round(10 * least) - (high - low))
    low = max(0, low - (missing + 1) // 2)
    high = min(10, max(high, low + round(10 * least)))
    low = max(0, min(low, high - round(10 * least)))
    return low / 10, high / 10


def curve(dots: Sequence[Dot], steps: int, axis: tuple[float, float], label: str, base: float | None = None) -> Markup:
    """A task's scores over time: a step line through the versions that served it, and a dot for each version.

    Args:
        steps: the number of horizontal positions.
        axis: lower and upper end of the score axis.
        label: read by screen readers in place of the drawing.
        base: the score without any adapter, drawn as a dashed line.
    """
    low, high = axis
    known = [dot for dot in dots if math.isfinite(dot.value)]

    def x(step: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * ((step - 1) / (steps - 1) if steps > 1 else 0.5)

    def y(value: float) -> float:
        return _TOP + (HEIGHT - _TOP - _BOTTOM) * (1 - (min(high, max(low, value)) - low) / (high - low))

    parts = [_line_across(value, y(value)) for value in (low, (low + high) / 2, high)]
    for step in sorted({1, steps, *(dot.step for dot in known)}) if steps <= 12 else (1, steps):
        parts.append(
            Markup('<text class="label" x="{}" y="{}" text-anchor="middle">{}</text>').format(
                _number(x(step)), HEIGHT - 8, step
            )
        )
    if base is not None and math.isfinite(base):
        parts.append(Markup('<path class="base" d="M{} {}H{}"/>').format(_LEFT, _number(y(base)), WIDTH - _RIGHT))
    path = ""
    for dot in sorted((dot for dot in known if dot.line), key=lambda dot: dot.step):
        path += f"{'H' if path else 'M'}{_number(x(dot.step))}" + (
            f"V{_number(y(dot.value))}" if path else f" {_number(y(dot.value))}"
        )
    if path:
        parts.append(Markup('<path class="line" d="{}H{}"/>').format(path, WIDTH - _RIGHT))
    parts += [_dot(x(dot.step), y(dot.value), dot) for dot in known]
    return Markup('<svg class="curve" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, label, Markup("").join(parts)
    )


def _line_across(value: float, y: float) -> Markup:
    """A line of the score axis, with its label."""
    line = Markup('<path class="grid" d="M{} {}H{}"/>').format(_LEFT, _number(y), WIDTH - _RIGHT)
    words = Markup('<text class="label" x="{}" y="{}" text-anchor="end">{}</text>')
    return line + words.format(_LEFT - 6, _number(y + 3.5), f"{value:.2f}")


def _dot(x: float, y: float, dot: Dot) -> Markup:
    told = Markup("<title>{}</title>").format(dot.title) if dot.title else Markup("")
    ring = (
        Markup('<circle class="ring" cx="{}" cy="{}" r="7"/>').format(_number(x), _number(y)) if dot.now else Markup("")
    )
    if dot.look == "rejected":
        a, b, c, d = (_number(v) for v in (x - 3.5, x + 3.5, y - 3.5, y + 3.5))
        mark = Markup('<path class="cross" d="M{} {}L{} {}M{} {}L{} {}"/>').format(a, c, b, d, a, d, b, c)
    else:
        mark = Markup('<circle class="dot {}" cx="{}" cy="{}" r="3.6"/>').format(dot.look, _number(x), _number(y))
    return Markup("<g>{}{}{}</g>").format(told, ring, mark)


def _number(value: float) -> str:
    """In the shortest form, with at most two decimals."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def cut(text: str, length: int) -> str:
    """A text cut to at most this many characters."""
    return text if len(text) <= length else text[: length - 1] + "…"


def cut_ref(ref: str, length: int) -> str:
    """A reference cut to at most this many characters, keeping its version: `a-very-lo…@v12`."""
    name, at, version = ref.rpartition("@")
    tail = at + version if len(at + version) < length - 4 else ""
    return ref if len(ref) <= length else cut(name if tail else ref, length - len(tail)) + tail
