"""Scores a derived adapter on every task of its parents, compared with the parent that was trained for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from adapterhub_cl.adapters.as_served import as_served
from adapterhub_cl.bases.loading import LoadedBase
from adapterhub_cl.context import Hub
from adapterhub_cl.evaluation.gate import Effect
from adapterhub_cl.evaluation.probes import Probe, effect, probe_of, recorded_score, score, with_source
from adapterhub_cl.types import AdapterRecord, Evaluation


@dataclass
class Yardstick:
    """What the tasks of some versions are measured on, and the scores of those versions.

    Attributes:
        before: task → the score of its parent, and which parent that is.
        unmeasured: tasks with no data left to measure them on.
    """

    hub: Hub
    probes: dict[str, Probe] = field(default_factory=dict)
    before: dict[str, tuple[Evaluation, str]] = field(default_factory=dict)
    unmeasured: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, hub: Hub, tasks: Mapping[str, AdapterRecord]) -> Yardstick:
        """Find the examples of each task and score its parent; newly measured scores are recorded.

        Args:
            tasks: task → the version that was trained for it.
        """
        made = cls(hub)
        for task, parent in tasks.items():
            probe = probe_of(hub.registry, task)
            if probe is None:
                made.unmeasured.append(task)
                hub.reporter.note(f"note: no data is left to measure {task} on; its retention is unknown")
                continue
            made.probes[task] = probe
            made.before[task] = (recorded_score(hub, parent, probe), parent.ref)
        return made

    def measure(self, base: LoadedBase, folder: Path) -> tuple[list[Effect], list[Evaluation]]:
        """Score the adapter in a folder on every task.

        Returns:
            its effects, and the scores to record with the version.
        """
        effects, scores = [], []
        with as_served(base, folder) as model:
            for task, probe in self.probes.items():
                before, ref = self.before[task]
                after = score(model, base, probe, self.hub.reporter, f"measuring retention on {task}")
                effects.append(effect(probe, before, after, ref))
                scores.append(with_source(after, probe.sha256))
        return effects, scores
