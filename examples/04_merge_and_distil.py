"""Four adapters into one: merged exactly, merged small and refused, distilled, and pruned.

python examples/04_merge_and_distil.py
"""

import shutil
import tempfile
from pathlib import Path

from adapterhub_cl import AdapterHub
from adapterhub_cl.errors import GateRefused
from adapterhub_cl.types import AdapterRecord

REGISTRY = Path(__file__).parents[1] / "registry"
TASKS = ["tickets", "commands"]


def told(record: AdapterRecord) -> str:
    """Size and retention of a version."""
    shares = ", ".join(f"{task} {share:.2f}" for task, share in record.manifest["retention"].items())
    return f"{record.ref}: rank {record.rank}, {record.bytes / 1e6:.1f} MB, retains {shares}"


with tempfile.TemporaryDirectory() as folder:
    hub = AdapterHub.open(shutil.copytree(REGISTRY, Path(folder) / "hub"))
    plan = hub.merge(TASKS, rank=16, dry_run=True)
    print(f"a merge to rank 16 would lose {plan['truncation_error']:.3f} of the sum's norm")
    print(told(hub.merge(TASKS, name="both")))
    try:
        hub.merge(TASKS, name="small", rank=4, min_retention=0.9)
    except GateRefused as refused:
        print(f"refused: {refused.message}")
    print(told(hub.distill(TASKS, name="student", epochs=6)))
    print(told(hub.prune("student", energy=0.95)))
