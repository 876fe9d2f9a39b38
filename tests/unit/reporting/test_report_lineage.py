"""The lineage's layers and its drawing."""

from __future__ import annotations

import re
from itertools import combinations
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub_cl.reporting.lineage import BOX_HEIGHT, BOX_WIDTH, Box, graph, layers
from adapterhub_cl.types import RELATIONS, Edge

graphs = st.integers(1, 25).flatmap(
    lambda n: st.lists(
        st.tuples(st.integers(0, n - 1), st.integers(0, n - 1), st.sampled_from(RELATIONS)), max_size=40
    ).map(lambda pairs: (n, [Edge(f"a@v{max(i, j)}", f"a@v{min(i, j)}", r) for i, j, r in pairs if i != j]))
)


def boxes_of(svg: str) -> dict[str, tuple[float, float]]:
    """Reference → the upper left corner of its box."""
    found = {}
    for group in ElementTree.fromstring(svg).iter("g"):
        rect, title = group.find("rect"), group.find("title")
        assert rect is not None
        assert title is not None
        found[title.text or ""] = (float(rect.get("x", "")), float(rect.get("y", "")))
    return found


def test_a_version_stands_after_its_last_parent() -> None:
    edges = [Edge("c", "a", "merged_from"), Edge("c", "b", "merged_from"), Edge("b", "a", "updated_from")]
    assert layers(["a", "b", "c", "d"], edges) == {"a": 0, "b": 1, "c": 2, "d": 0}


def test_a_circle_ends() -> None:
    edges = [Edge("a", "b", "merged_from"), Edge("b", "a", "merged_from"), Edge("a", "a", "merged_from")]
    assert set(layers(["a", "b"], edges)) == {"a", "b"}
    ElementTree.fromstring(graph([Box("a"), Box("b")], edges, "circle"))


@given(graphs)
def test_every_version_is_drawn_once_and_none_covers_another(made: tuple[int, list[Edge]]) -> None:
    n, edges = made
    refs = [f"a@v{k}" for k in range(n)]
    drawn = graph([Box(ref) for ref in refs], edges, "x")
    places = boxes_of(drawn)
    assert sorted(places) == sorted(refs)
    for (ax, ay), (bx, by) in combinations(places.values(), 2):
        assert abs(ax - bx) >= BOX_WIDTH or abs(ay - by) >= BOX_HEIGHT
    root = ElementTree.fromstring(drawn)
    width, height = float(root.get("width", "")), float(root.get("height", ""))
    for x, y in places.values():
        assert 0 <= x <= width - BOX_WIDTH + 1
        assert 0 <= y <= height - BOX_HEIGHT + 1
    assert sum(p.get("class", "").startswith("edge ") for p in root.iter("path")) == len(set(edges))


@given(graphs)
def test_parents_stand_before_what_was_made_of_them(made: tuple[int, list[Edge]]) -> None:
    n, edges = made
    refs = [f"a@v{k}" for k in range(n)]
    places = boxes_of(graph([Box(ref) for ref in refs], edges, "x"))
    depth = layers(refs, edges)
    upright = (1 + max(depth.values())) * 224 > 1080 + 66
    for edge in edges:
        parent, child = places[edge.parent], places[edge.child]
        assert parent[upright] + (BOX_HEIGHT if upright else BOX_WIDTH) < child[upright]


@pytest.mark.parametrize(("count", "upright"), [(3, False), (30, True)])
def test_a_long_chain_goes_downwards(count: int, upright: bool) -> None:
    edges = [Edge(f"a@v{k + 1}", f"a@v{k}", "updated_from") for k in range(1, count)]
    drawn = graph([Box(f"a@v{k}") for k in range(1, count + 1)], edges, "x")
    found = re.search(r'viewBox="0 0 (\d+) (\d+)"', drawn)
    assert found is not None
    width, height = int(found[1]), int(found[2])
    assert (height > width) == upright
    assert width < 1080


def test_names_are_escaped_and_cut() -> None:
    evil = "<script>alert(1)</script>" * 9
    drawn = graph([Box("a", evil, title=evil, first=evil)], [], evil)
    assert "<script" not in drawn
    assert all(len(text.text or "") <= 25 for text in ElementTree.fromstring(drawn).iter("text"))


def test_edges_to_what_is_not_drawn_are_left_out() -> None:
    assert "edge" not in graph([Box("a")], [Edge("a", "gone", "merged_from")], "x")
    ElementTree.fromstring(graph([], [], "nothing"))
