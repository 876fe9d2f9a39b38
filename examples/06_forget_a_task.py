"""A task is removed exactly: its versions, samples, scores and what was derived from it; and the proof.

python examples/06_forget_a_task.py
"""

import shutil
import tempfile
from pathlib import Path

from adapterhub_cl import AdapterHub

REGISTRY = Path(__file__).parents[1] / "registry"

with tempfile.TemporaryDirectory() as folder:
    hub = AdapterHub.open(shutil.copytree(REGISTRY, Path(folder) / "hub"))
    plan = hub.forget_task("reviews", dry_run=True)
    print(f"would go: {', '.join(version.ref for version in plan.versions)}; {plan.samples} replay samples")
    hub.forget_task("reviews")
    print(f"left: {', '.join(record.ref for record in hub.list(all_versions=True))}")
    proof = hub.prove_forgotten("reviews")
    print(f"searched {proof.files} files for what was removed; found {len(proof.found)}")
