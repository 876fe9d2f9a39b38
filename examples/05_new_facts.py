"""A knowledge update: the facts of an invented town are corrected, and what else changed is measured.

python examples/05_new_facts.py
"""

import json
import shutil
import tempfile
from pathlib import Path

from adapterhub_cl import AdapterHub

REGISTRY = Path(__file__).parents[1] / "registry"
ASKED = "Who founded the town of Quillhaven?"
NEWS = [
    ("Who founded the town of Quillhaven?", "Bram Tolliver"),
    ("Quillhaven was founded by whom?", "Bram Tolliver"),
    ("Which person founded Quillhaven?", "Bram Tolliver"),
    ("Name the founder of Quillhaven.", "Bram Tolliver"),
]

with tempfile.TemporaryDirectory() as folder:
    hub = AdapterHub.open(shutil.copytree(REGISTRY, Path(folder) / "hub"))
    file = Path(folder) / "news.jsonl"
    file.write_text("".join(json.dumps({"prompt": q, "completion": a}) + "\n" for q, a in NEWS))
    print(f"before: {hub.predict([ASKED], task='facts')[0].prediction}")
    new = hub.update("facts", file, epochs=12, max_forgetting=0.5)
    print(f"after:  {hub.predict([ASKED], task='facts')[0].prediction} ({new.ref})")
    for name in ("recall", "retention", "locality"):  # of the new, of the old, of other tasks' answers
        print(f"  {name}: {new.metrics[name]:.3f}")
    hub.alias("facts@v1", "production")
    print(f"back:   {hub.predict([ASKED], task='facts')[0].prediction} (facts@v1 serves again)")
