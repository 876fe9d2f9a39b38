"""Drawings: right on edge values, escaped, well-formed XML."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub_cl.reporting import wording
from adapterhub_cl.reporting.drawing import Dot, bar, change_bar, curve, cut, cut_ref, limits, spark

NAN = math.nan
EVIL = "\"'><script>alert(1)</script>&"


def parse(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def numbers(svg: str) -> list[float]:
    return [float(n) for n in re.findall(r' (?:x|y|cx|cy|width|height)="([^"]*)"', svg)]


@pytest.mark.parametrize(
    ("share", "width"), [(0, "0"), (1, "100"), (0.5, "50"), (-1, "0"), (7, "100"), (1 / 3, "33.33")]
)
def test_a_bar_is_as_long_as_its_share(share: float, width: str) -> None:
    fill = parse(bar(share)).findall("rect")[1]
    assert fill.get("width") == width


@pytest.mark.parametrize("share", [None, NAN, math.inf])
def test_no_bar_for_what_is_no_number(share: float | None) -> None:
    assert bar(share) == ""


def test_a_change_goes_from_the_middle_to_its_side() -> None:
    loss, gain = (parse(change_bar(change, 0.1, 0.4)) for change in (-0.2, 0.4))
    lost = next(r for r in loss if r.get("class") == "loss")
    won = next(r for r in gain if r.get("class") == "gain")
    assert (lost.get("x"), lost.get("width")) == ("25", "25")
    assert (won.get("x"), won.get("width")) == ("50", "50")
    tick = next(r for r in loss if r.get("class") == "tick")
    assert tick.get("x") == "37"  # 0.1 of 0.4, to the left, half its own width more
    assert change_bar(NAN, 0.1, 0.4) == change_bar(0.1, 0.1, 0.0) == ""
    assert "tick" not in change_bar(-0.1, 0.9, 0.4)


def test_a_spark_has_a_column_for_each_value() -> None:
    drawn = parse(spark([0.0, 0.5, 1.0, NAN, 2.0], 1.0, EVIL))
    heights = [float(r.get("height", "")) for r in drawn.findall("rect")]
    assert heights == [0.5, 10, 20, 0.5, 20]
    assert drawn.get("aria-label") == EVIL
    assert spark([], 1.0, "x") == ""


@given(st.lists(st.floats(0, 1), max_size=6), st.sampled_from([0.2, 0.4]))
def test_a_scale_holds_its_values(values: list[float], least: float) -> None:
    low, high = limits(values, least)
    assert 0 <= low < high <= 1
    assert round(high - low, 6) >= least
    assert all(low <= value <= high for value in values)
    assert round(low * 10) == pytest.approx(low * 10)


def test_a_scale_of_nothing_is_the_whole_one() -> None:
    assert limits([]) == limits([NAN]) == (0.0, 1.0)


def test_a_curve_holds_a_score_until_the_next() -> None:
    dots = [Dot(3, 1.0), Dot(1, 0.0), Dot(2, 0.5, "rejected", line=False), Dot(3, NAN)]
    drawn = parse(curve(dots, 3, (0.0, 1.0), "news"))
    line = next(p for p in drawn.iter("path") if p.get("class") == "line")
    assert line.get("d") == "M34 126H308V10H308"
    assert len([p for p in drawn.iter("path") if p.get("class") == "cross"]) == 1
    assert len([c for c in drawn.iter("circle") if c.get("class", "").startswith("dot")]) == 2


@pytest.mark.parametrize("dots", [[], [Dot(1, 0.5)], [Dot(1, NAN)], [Dot(1, 0.0), Dot(1, 1.0)]])
def test_a_curve_of_next_to_nothing_is_a_drawing_all_the_same(dots: list[Dot]) -> None:
    drawn = curve(dots, 1, limits([dot.value for dot in dots]), "news", base=NAN)
    parse(drawn)
    assert "nan" not in drawn.lower()
    assert all(math.isfinite(n) for n in numbers(drawn))


def test_a_curve_marks_what_serves_and_the_base() -> None:
    drawn = curve([Dot(1, 0.5, now=True), Dot(2, 0.4, "derived", line=False)], 2, (0.0, 1.0), "news", base=0.25)
    assert drawn.count('class="ring"') == 1
    assert drawn.count('class="dot derived"') == 1
    assert 'class="base" d="M34 97H308"' in drawn


def test_texts_in_drawings_are_escaped() -> None:
    drawn = curve([Dot(1, 0.5, title=EVIL)], 1, (0.0, 1.0), EVIL)
    assert "<script" not in drawn + bar(0.5, title=EVIL) + spark([1.0], 1.0, EVIL)
    assert parse(drawn).get("aria-label") == EVIL
    assert next(parse(drawn).iter("title")).text == EVIL


def test_cutting_keeps_the_version() -> None:
    assert cut("abc", 3) == "abc"
    assert cut("abcd", 3) == "ab…"
    assert cut_ref("news@v1", 18) == "news@v1"
    assert cut_ref("a-very-long-name-indeed@v12", 18) == "a-very-long-n…@v12"
    assert len(cut_ref("x" * 100, 18)) == 18
    assert len(cut_ref("x@" + "y" * 100, 18)) == 18


def test_words() -> None:
    assert [wording.score(v) for v in (0, 1, 0.12345, None, NAN)] == ["0.000", "1.000", "0.123", "–", "–"]
    assert [wording.change(v) for v in (0.5, -0.5, 0.0001, -0.0001, None)] == [
        "+0.500",
        "−0.500",
        "0.000",
        "0.000",
        "–",
    ]
    assert [wording.percent(v) for v in (1, 0.975, None)] == ["100.0 %", "97.5 %", "–"]
    assert [wording.error(v) for v in (0, 0.23412, 1e-7, None)] == ["0", "0.2341", "1e-07", "–"]
    assert [wording.size(v) for v in (0, 999, 1500, 2 * 10**12, 5 * 10**15)] == [
        "0 B",
        "999 B",
        "1.5 kB",
        "2.0 TB",
        "5000.0 TB",
    ]
    assert [wording.count(v, "entry", "entries") for v in (0, 1, 1200)] == ["0 entries", "1 entry", "1,200 entries"]
    assert (
        wording.moment("2026-03-01T15:05:59.123+01:00") == wording.moment("2026-03-01T14:05:59") == "2026-03-01 14:05"
    )
    assert wording.moment("<b>") == "<b>"
    assert [wording.place(p) for p in ("/home/me/base", "Qwen/Qwen2.5-0.5B", "tiny", "~/x/y")] == [
        "base",
        "Qwen/Qwen2.5-0.5B",
        "tiny",
        "y",
    ]
