"""The lineage as a drawing: versions in layers, parents before their descendants, typed edges between them. Pure
functions.

Layers go from left to right, or from top to bottom if they would be wider than a page (long chains of updates).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from adapterhub_cl.reporting.drawing import cut, cut_ref
from adapterhub_cl.types import Edge

BOX_WIDTH, BOX_HEIGHT = 158, 44
PAGE_WIDTH = 1080
_MARGIN = 6
_BEND = 10  # the space that an edge needs in a layer that it passes
_SWEEPS = 12


@dataclass(frozen=True)
class Box:
    """One version in the drawing.

    Attributes:
        second: the line below the reference.
        look: `trained`, `derived`, `rejected` or `outside`.
        serves: whether it serves a task now.
        title: its tooltip.
        first: the line above, if it is not the reference.
    """

    ref: str
    second: str = ""
    look: str = "trained"
    serves: bool = False
    title: str = ""
    first: str = ""


def layers(refs: Sequence[str], edges: Sequence[Edge]) -> dict[str, int]:
    """Each version's layer: 0 without parents, otherwise one after its last parent. Edges that close a cycle are
    ignored."""
    parents: dict[str, list[str]] = {ref: [] for ref in refs}
    for edge in edges:
        if edge.child in parents and edge.parent in parents:
            parents[edge.child].append(edge.parent)
    depth: dict[str, int] = {}
    for start in refs:
        stack, above = [start], {start}
        while stack:
            ref = stack[-1]
            waiting = [p for p in parents[ref] if p not in depth and p not in above]
            if waiting:
                stack.append(waiting[0])
                above.add(waiting[0])
                continue
            depth[ref] = 1 + max((depth[p] for p in parents[ref] if p in depth), default=-1)
            above.discard(stack.pop())
    return depth


@dataclass(frozen=True)
class _Way:
    """How layers are arranged, in units of the drawing.

    Attributes:
        along, across: size of a box in the direction of the layers, and beside it.
        gap: between two layers; `beside`: between two boxes of a layer.
    """

    upright: bool
    along: int
    across: int
    gap: int
    beside: int

    def point(self, along: float, across: float) -> str:
        x, y = (across, along) if self.upright else (along, across)
        return f"{x:.1f} {y:.1f}"


_SIDEWAYS = _Way(False, BOX_WIDTH, BOX_HEIGHT, 66, 14)
_UPRIGHT = _Way(True, BOX_HEIGHT, BOX_WIDTH, 30, 18)
Places = dict[str, tuple[float, float]]


def graph(boxes: Sequence[Box], edges: Sequence[Edge], label: str) -> Markup:
    """The drawing. Edges with an end that is not among the boxes are left out, and so are repeated ones."""
    known = {box.ref: box for box in boxes}
    drawn = [edge for edge in dict.fromkeys(edges) if edge.child in known and edge.parent in known]
    depth = layers([box.ref for box in boxes], drawn)
    deep = 1 + max(depth.values(), default=0)
    wide = deep * (_SIDEWAYS.along + _SIDEWAYS.gap) > PAGE_WIDTH + _SIDEWAYS.gap
    way = _UPRIGHT if wide else _SIDEWAYS
    places, across = _places(list(known), drawn, depth, way)
    along = deep * way.along + (deep - 1) * way.gap + 2 * _MARGIN
    width, height = (across, along) if way.upright else (along, across)
    parts = [_edge(edge, known[edge.parent], places, depth, way) for edge in drawn]
    parts += [_box(known[ref], places[ref], way) for ref in known]
    return Markup(
        '<svg class="graph" viewBox="0 0 {} {}" width="{}" height="{}" role="img" aria-label="{}">{}</svg>'
    ).format(round(width), round(height), round(width), round(height), label, Markup("").join(parts))


def _places(refs: Sequence[str], edges: Sequence[Edge], depth: Mapping[str, int], way: _Way) -> tuple[Places, float]:
    """The positions, as (start of the layer, centre across it), of references and of edges that pass a layer; and the
    total size across.

    Within a layer the order follows the mean position of the neighbours before and after, swept to and fro; then
    everything moves towards that mean as far as there is room.
    """
    order: list[list[str]] = [[] for _ in range(max(depth.values(), default=-1) + 1)]
    for ref in refs:
        order[depth[ref]].append(ref)
    near: dict[str, list[str]] = {ref: [] for ref in refs}
    for edge in edges:
        chain = [edge.parent, *_stops(edge, depth), edge.child]
        for k, name in enumerate(chain[1:-1], depth[edge.parent] + 1):
            if name not in near:
                near[name] = []
                order[k].append(name)
        for a, b in pairwise(chain):
            near[a].append(b)
            near[b].append(a)
    layer_of = {name: k for k, layer in enumerate(order) for name in layer}
    size = {name: float(way.across if name in depth else _BEND) for name in layer_of}
    at: dict[str, float] = {}
    for layer in order:
        _stack(layer, {}, size, way.beside, at)
    for sweep in range(_SWEEPS):
        forwards = sweep % 2 == 0
        for k in range(len(order)) if forwards else reversed(range(len(order))):
            wanted = {}
            for name in order[k]:
                beside = [at[n] for n in near[name] if layer_of[n] != k and (layer_of[n] < k) == forwards]
                wanted[name] = sum(beside) / len(beside) if beside else at[name]
            order[k].sort(key=wanted.__getitem__)
            _stack(order[k], wanted, size, way.beside, at)
    first = min((at[name] - size[name] / 2 for name in at), default=0.0) - _MARGIN
    last = max((at[name] + size[name] / 2 for name in at), default=0.0) + _MARGIN
    step = way.along + way.gap
    return {name: (float(_MARGIN + layer_of[name] * step), at[name] - first) for name in at}, last - first


def _stack(
    names: Sequence[str], wanted: Mapping[str, float], size: Mapping[str, float], gap: float, at: dict[str, float]
) -> None:
    """Place names next to each other, each as close to its wanted position as the order allows: those that would
    collide move together."""
    groups: list[tuple[list[str], float, float]] = []  # names, what they take together, their middle
    for name in names:
        group, length, middle = [name], size[name] + gap, wanted.get(name, 0.0)
        while groups and groups[-1][2] + groups[-1][1] / 2 > middle - length / 2:
            before, more, centre = groups.pop()
            # the joint middle that is the mean of what each wants, with its own offset taken off
            middle = ((centre + length / 2) * len(before) + (middle - more / 2) * len(group)) / (
                len(before) + len(group)
            )
            group, length = [*before, *group], more + length
        groups.append((group, length, middle))
    for group, length, middle in groups:
        begin = middle - length / 2
        for name in group:
            at[name] = begin + (size[name] + gap) / 2
            begin += size[name] + gap


def _stops(edge: Edge, depth: Mapping[str, int]) -> list[str]:
    """Names of the positions of an edge in the layers that it passes."""
    return [f"{edge.child}\n{edge.parent}\n{k}" for k in range(depth[edge.parent] + 1, depth[edge.child])]


def _edge(edge: Edge, parent: Box, places: Places, depth: Mapping[str, int], way: _Way) -> Markup:
    along, across = places[edge.parent]
    along += way.along
    path = f"M{way.point(along, across)}"
    for name in [*_stops(edge, depth), edge.child]:
        begin, middle = places[name]
        half = (along + begin) / 2
        path += f"C{way.point(half, across)} {way.point(half, middle)} {way.point(begin, middle)}"
        along, across = begin + way.along, middle
        if name != edge.child:
            path += f"L{way.point(along, across)}"
    told = f"{edge.child} {edge.relation.replace('_', ' ')} {parent.first or parent.ref}"
    return Markup('<path class="edge {}" d="{}"><title>{}</title></path>').format(edge.relation, path, told)


def _box(box: Box, place: tuple[float, float], way: _Way) -> Markup:
    along, across = place
    x, y = (across - BOX_WIDTH / 2, along) if way.upright else (along, across - BOX_HEIGHT / 2)
    mark = Markup("")
    if box.serves:
        mark = Markup('<circle class="serving" cx="{}" cy="{}" r="4"/>').format(
            f"{x + BOX_WIDTH - 12:.1f}", f"{y + 13:.1f}"
        )
    text = Markup('<text class="{}" x="{}" y="{}">{}</text>')
    return Markup(
        '<g class="box {}"><title>{}</title><rect x="{}" y="{}" width="{}" height="{}" rx="7"/>{}{}{}</g>'
    ).format(
        f"{box.look} serves" if box.serves else box.look,
        box.title or box.ref,
        f"{x:.1f}",
        f"{y:.1f}",
        BOX_WIDTH,
        BOX_HEIGHT,
        text.format("ref", f"{x + 10:.1f}", f"{y + 18:.1f}", cut_ref(box.first or box.ref, 16 if box.serves else 18)),
        text.format("second", f"{x + 10:.1f}", f"{y + 34:.1f}", cut(box.second, 25)),
        mark,
    )
