"""The reference hub answers texts that name no task: routed, mixed in one batch, from several threads; and drift.

python examples/03_routing.py
"""

import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from adapterhub_cl import AdapterHub

REGISTRY = Path(__file__).parents[1] / "registry"
TEXTS = [
    "they charged my card twice this month",
    "turn the lights off in the kitchen",
    "The kettle broke after two days, a waste of money.",
    "Who founded the town of Quillhaven?",
]
CODE = [f"for (int i = {k}; i < n; i++) {{ sum += a[i] * {k}; }}" for k in range(24)]

with tempfile.TemporaryDirectory() as folder:
    hub = AdapterHub.open(shutil.copytree(REGISTRY, Path(folder) / "hub"))
    with hub.engine(router="analytic") as engine:
        for found in engine.predict(TEXTS):
            print(f"{found.text[:44]!r:<48} {found.task:<9} {found.routing:.2f}  {found.prediction}")

        with ThreadPoolExecutor(4) as threads:  # one queue: requests of all threads share batches
            answers = list(threads.map(lambda k: engine.submit(TEXTS[k % 4]).result(), range(40)))
        print(f"{len(answers)} requests from 4 threads, by {sorted({one.adapter for one in answers})}")

        (route,) = engine.route(TEXTS[:1], explain=2)
        for task, text, cosine in route.nearest:
            print(f"nearest sample ({cosine:.2f}, {task}): {text[:60]!r}")

        drift = engine.drift(TEXTS + CODE)
        print(f"drift: {drift.share:.0%} of {drift.n} inputs are out of distribution")
        for line in drift.proposals:
            print(f"  {line}")
