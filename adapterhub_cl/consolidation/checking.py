"""Checks what a merge or a distillation was asked for, before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass, replace

from adapterhub_cl import merging
from adapterhub_cl.consolidation.asked import FRESH, DistillRequest, MergeRequest
from adapterhub_cl.consolidation.parents import Parents, check_new_name, find_parents, least_retention
from adapterhub_cl.errors import UsageError
from adapterhub_cl.evaluation.general_text import general_text
from adapterhub_cl.merging import BaseMethod
from adapterhub_cl.registry import Registry, parse_ref
from adapterhub_cl.types import AdapterRecord


@dataclass(frozen=True)
class MergeOrder:
    """A merge that was found good.

    Attributes:
        parents: each with its weight.
        least: the gate's bound.
        name: of the adapter that it becomes a version of; None for a plan.
        new_version: there may be versions of it already.
    """

    request: MergeRequest
    parents: Parents
    method: BaseMethod
    least: float | None
    name: str | None = None
    new_version: bool = False


def check_merge(
    registry: Registry, request: MergeRequest, name: str | None, *, new_version: bool = False
) -> MergeOrder:
    """Check what was asked and find the parents; writes nothing.

    Args:
        name: None for a plan of a merge that has no name yet.

    Raises:
        UsageError: names, weights, rank, bound or options that cannot be used.
        AdapterError, IntegrityError: a parent that cannot be used.
    """
    if request.min_retention is not None and not request.evaluate:
        raise UsageError("--min-retention needs the retention that --no-eval leaves out", "give one or the other")
    method = merging.build(request.method, request.options or {})
    if request.rank is not None and request.rank < 1:
        raise UsageError(f"--rank must be 1 or more, not {request.rank}", "leave it out to keep all that is there")
    least = least_retention(registry, request.min_retention)
    general_text(registry, request)  # read early: a mistake must not cost the work before it
    if name is not None:
        check_new_name(registry, name, new_version)
    parents = find_parents(registry, request.refs, weights=request.weights, expression=request.expression)
    if parents.weights is None:
        parents = replace(parents, weights=method.default_weights(len(parents.records)))
    return MergeOrder(request, parents, method, least, name, new_version)


def check_distill(
    registry: Registry, request: DistillRequest, name: str, *, new_version: bool = False, elsewhere: bool = False
) -> float | None:
    """Check what was asked; writes nothing.

    Args:
        registry: of the hub that the student is for.
        elsewhere: the student's base is another one than the teachers'.

    Returns:
        the gate's bound.

    Raises:
        UsageError: a name or settings that cannot be used.
    """
    settings, held_to = request.training(), request.held_to()
    least = least_retention(registry, request.min_retention)
    general_text(registry, request)  # read early: a mistake must not cost the work before it
    if request.start != FRESH:
        merging.build(request.start, {})
    problems = [
        (
            request.min_retention is not None and not request.evaluate,
            "--min-retention needs the retention that --no-eval leaves out",
            "give one or the other",
        ),
        (
            request.grow and (least is None or not request.evaluate),
            "--grow raises the rank until a retention is reached",
            "say which: --min-retention 0.95",
        ),
        (request.pseudo < 0, f"--pseudo must be at least 0, not {request.pseudo}", "--pseudo 200"),
        (settings.dora, "a student is plain LoRA, not DoRA", "leave --dora out"),
        (
            elsewhere and bool(held_to.features),
            "--features compares layers of one base with each other",
            "leave it out with --into",
        ),
        (
            bool(settings.prompt_loss),
            "teachers are listened to at the answers only",
            "leave --prompt-loss out",
        ),
        (
            not (request.samples or request.data or request.pseudo),
            "nothing to ask the teachers: --no-samples leaves their replay samples out",
            "give text with --data FILE, or let them write some: --pseudo 200",
        ),
    ]
    for wrong, message, hint in problems:
        if wrong:
            raise UsageError(message, hint)
    check_new_name(registry, name, new_version)
    return least


def refreshed(registry: Registry, name: str) -> tuple[AdapterRecord, DistillRequest | None]:
    """How a distilled adapter is made again from its teachers as they are now; None where none has a newer version.

    Raises:
        UsageError: it was not distilled, or from another hub.
    """
    there = registry.get(name)
    recipe = there.manifest.get("recipe") or {}
    if there.kind != "distilled" or recipe.get("from_hub"):
        raise UsageError(
            f"{there.ref} was {there.kind}" + (" from another hub" if recipe.get("from_hub") else ""),
            "--refresh makes a distilled adapter again from its teachers' newest versions",
        )
    newest = [registry.get(parse_ref(ref).name).ref for ref in recipe["parents"]]
    if newest == list(recipe["parents"]):
        return there, None
    asked = {**recipe, "refs": newest, "min_retention": recipe["min_retention"], "evaluate": recipe["measured"]}
    return there, DistillRequest.from_json(asked)
