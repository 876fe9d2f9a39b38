"""The verb `merge`: several versions become one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

from adapterhub_cl import merging
from adapterhub_cl.adapters.lora_files import LoraFile
from adapterhub_cl.consolidation.asked import MergeRequest
from adapterhub_cl.consolidation.checking import MergeOrder
from adapterhub_cl.consolidation.derived import Making, record, writer
from adapterhub_cl.consolidation.interference import interference
from adapterhub_cl.consolidation.layers import Merged, layers_of, refuse_nothing, shapes_of, total_error
from adapterhub_cl.consolidation.merge_stage import merge_stage
from adapterhub_cl.consolidation.parents import Parents, head_of_all
from adapterhub_cl.context import Hub
from adapterhub_cl.errors import UsageError
from adapterhub_cl.merging import BaseMethod
from adapterhub_cl.registry import changes
from adapterhub_cl.types import AdapterRecord

SIZE = 4  # bytes of a stored number


@changes.operation()
def merge(hub: Hub, order: MergeOrder) -> AdapterRecord:
    """Merge and record; see `AdapterHub.merge`."""
    request, parents, method = order.request, order.parents, order.method
    assert order.name is not None
    with ExitStack() as stack:
        adapters = parents.open(stack)
        layers, report = combine(hub, parents, method, request, adapters)
        least = order.least if request.evaluate else None
        making = Making(
            order.name,
            "merged",
            parents,
            recipe_of(parents, method, request),
            least,
            request.evaluate,
            report,
            first=not order.new_version,
            general=request,
        )
        factors = {layer.name: layer.result.factors for layer in layers}
        write = writer(factors, adapters, hub.registry.base, head_of_all(parents, adapters))
        return record(hub, making, write)


def plan(hub: Hub, order: MergeOrder) -> dict[str, Any]:
    """What a merge would give, without writing anything; see `AdapterHub.plan_merge`."""
    request, parents, method = order.request, order.parents, order.method
    estimated = bool(method.reads)
    if estimated:
        method = merging.build("linear", {})
    with ExitStack() as stack:
        adapters = parents.open(stack)
        layers, report = combine(hub, parents, method, request, adapters)
        shapes = shapes_of(adapters)
        sizes = [max(a.rank(m) for m in a.modules) for a in adapters]
        largest = max(shapes, key=lambda m: _layer_bytes(adapters, m, shapes[m], method.dense))
        return {
            **recipe_of(parents, order.method, request),
            **report,
            "parents": [
                {"ref": r.ref, "task": r.task, "tasks": r.tasks, "rank": size, "layers": len(a.modules)}
                for r, a, size in zip(parents.records, adapters, sizes, strict=True)
            ],
            "estimated_on_the_plain_sum": estimated,
            "bytes": sum(SIZE * x.result.factors.rank * sum(shapes[x.name]) for x in layers),
            "memory": _layer_bytes(adapters, largest, shapes[largest], method.dense),
        }


def _layer_bytes(adapters: Sequence[LoraFile], name: str, shape: tuple[int, int], dense: bool) -> int:
    """What merging a layer takes, about: its factors and their bases, and every ΔW where the method is dense."""
    out, in_ = shape
    ranks = sum(adapter.rank(name) for adapter in adapters)
    return SIZE * (3 * ranks * (out + in_) + ((len(adapters) + 2) * out * in_ if dense else 0))


def recipe_of(parents: Parents, method: BaseMethod, request: MergeRequest) -> dict[str, Any]:
    """What stands in the manifest: enough to make the merge again."""
    assert parents.weights is not None
    return {
        "verb": "merge",
        "method": merging.ROOM.canonical(request.method),
        "options": asdict(method.config),
        "parents": parents.refs,
        "weights": dict(zip(parents.refs, parents.weights, strict=True)),
        "weights_given": request.weights is not None or request.expression is not None,
        "rank": request.rank,
        "seed": request.seed,
    }


def combine(
    hub: Hub,
    parents: Parents,
    method: BaseMethod,
    request: MergeRequest,
    adapters: Sequence[LoraFile],
) -> tuple[list[Merged], dict[str, Any]]:
    """The merged layers, and the report: truncation errors, interference, what the method found out; see `merged`."""
    layers = merged(hub, parents, method, request, adapters)
    report = {
        "truncation_error": total_error(layers),
        "rank": max(layer.result.factors.rank for layer in layers),
        "layers": [
            {
                "name": layer.name,
                "rank": layer.result.factors.rank,
                "truncation_error": layer.result.error,
                "norm": layer.result.norm,
            }
            for layer in layers
        ],
        "interference": [pair.to_json(parents.refs) for pair in interference(adapters, request.seed)],
        "found": method.summary(),
    }
    return layers, report


def merged(
    hub: Hub,
    parents: Parents,
    method: BaseMethod,
    request: MergeRequest,
    adapters: Sequence[LoraFile],
) -> list[Merged]:
    """The merged layers.

    Raises:
        AdapterError: different bases, or nothing would be left.
        UsageError: a rank that the result cannot have.
    """
    shapes = shapes_of(adapters)
    if method.reads == "samples":
        with merge_stage(hub, parents, adapters, request.seed) as stage:
            method.prepare(stage)
    rank = _rank(method, request, adapters, shapes)
    method.asked_rank = request.rank
    assert parents.weights is not None
    layers = []
    with hub.reporter.piece("merging", len(shapes)) as advance:
        for layer in layers_of(adapters, parents.weights, method, rank, request.seed):
            layers.append(layer)
            advance()
    refuse_nothing(layers)
    return layers


def _rank(
    method: BaseMethod, request: MergeRequest, adapters: Sequence[LoraFile], shapes: Mapping[str, tuple[int, int]]
) -> int:
    ranks = [max(adapter.rank(name) for name in adapter.modules) for adapter in adapters]
    if request.rank is None:
        return method.default_rank(ranks)
    most = max(min(shape) for shape in shapes.values()) if method.dense else sum(ranks)
    if not 1 <= request.rank <= most:
        what = "the smaller side of the largest layer" if method.dense else "the sum of the parents' ranks"
        raise UsageError(
            f"--rank must be between 1 and {most}, {what}, not {request.rank}", "leave it out to keep all that is there"
        )
    return request.rank
