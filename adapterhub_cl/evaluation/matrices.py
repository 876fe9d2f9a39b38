"""The accuracy matrix of everything that a hub learned."""

from __future__ import annotations

from adapterhub_cl.context import Hub
from adapterhub_cl.errors import UsageError
from adapterhub_cl.evaluation.gate import as_share
from adapterhub_cl.evaluation.matrix import AccuracyMatrix
from adapterhub_cl.evaluation.probes import probe_of, recorded_score
from adapterhub_cl.evaluation.stages import learned, matrix_of, written_score
from adapterhub_cl.types import AdapterRecord


def hub_matrix(hub: Hub) -> AccuracyMatrix:
    """The accuracy matrix of a hub: its tasks in the order in which they were last learned. Scores that no manifest
    has are measured and recorded.

    Raises:
        UsageError: the hub has learned nothing yet.
    """
    stages = learned(hub.registry.adapters(all_versions=True, include_rejected=False))
    if not stages:
        raise UsageError("this hub has learned no task yet", "cl-adapter add-task NAME DATA")

    def score(record: AdapterRecord, owner: AdapterRecord) -> float | None:
        found = written_score(record, owner)
        probe = probe_of(hub.registry, owner.task) if found is None else None
        if probe is None:
            return found
        measured = recorded_score(hub, record, probe)
        return as_share(measured.metric, measured.value)

    return matrix_of(stages, "hub", score)
