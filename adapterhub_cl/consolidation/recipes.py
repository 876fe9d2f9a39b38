"""Making a merged or pruned version again, without some of what it was made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adapterhub_cl import merging
from adapterhub_cl.consolidation.asked import MergeRequest, PruneRequest
from adapterhub_cl.consolidation.checking import check_merge
from adapterhub_cl.consolidation.merge import merge
from adapterhub_cl.consolidation.prune import prune
from adapterhub_cl.context import Hub
from adapterhub_cl.errors import AdapterError, DataError, GateRefused, IntegrityError, UnknownNameError, UsageError
from adapterhub_cl.types import REPEATED_FROM, AdapterRecord


def repeat(
    hub: Hub,
    record: AdapterRecord,
    gone: Mapping[str, str | None],
) -> AdapterRecord | None:
    """A new version made by the recipe of an old one, from what is left of its parents.

    Args:
        gone: each version that must not be used → the one that stands in its place, if any.

    Returns:
        the new version; None where it cannot be made: too little is left, or it took training (a distillation).
    """
    recipe = record.manifest.get("recipe") or {}
    left = [gone.get(ref, ref) for ref in recipe.get("parents", ())]
    refs = [ref for ref in left if ref is not None]
    try:
        for ref in refs:
            hub.registry.get(ref)
        if len(refs) < REPEATED_FROM.get(str(recipe.get("verb")), len(refs) + 1):
            return None
        if recipe["verb"] == "merge":
            return _merged(hub, record, recipe, left)
        if recipe["verb"] == "prune":
            request = PruneRequest.from_json({**recipe, "ref": refs[0], "min_retention": None})
            return prune(hub, request, name=record.name)
    except UnknownNameError:  # a parent was removed meanwhile
        return None
    except (AdapterError, IntegrityError, DataError, UsageError, GateRefused) as error:
        hub.reporter.note(f"note: {record.ref} cannot be made again: {error.message}")
    return None


def _merged(
    hub: Hub,
    record: AdapterRecord,
    recipe: Mapping[str, Any],
    left: list[str | None],
) -> AdapterRecord:
    """The merge of the parents that are left: with the weights that were given, or the method's own."""
    method = merging.build(recipe["method"], recipe["options"])
    weights = [recipe["weights"][old] for old, new in zip(recipe["parents"], left, strict=True) if new is not None]
    refs = [ref for ref in left if ref is not None]
    ranks = sum(hub.registry.get(ref).rank for ref in refs)
    rank = recipe["rank"] if method.dense or recipe["rank"] is None else min(recipe["rank"], ranks)
    request = MergeRequest(
        refs,
        weights if recipe["weights_given"] else None,
        None,
        recipe["method"],
        rank,
        recipe["options"],
        evaluate=recipe["measured"],
        seed=recipe["seed"],
    )
    return merge(hub, check_merge(hub.registry, request, record.name, new_version=True))
