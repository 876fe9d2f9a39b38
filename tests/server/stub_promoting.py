"""Stands in for `cl-adapter promote` in tests of the page: it promotes, and the gate says what the test wants.

What the gate says is the first word of `gate.txt` beside the hub: nothing (passed), `refuse`, `wait` or `crash`.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

hub, verb, ref = Path(sys.argv[2]), sys.argv[4], sys.argv[5]
assert verb == "promote"
told = hub.parent / "gate.txt"
mode = told.read_text() if told.exists() else ""
effects = [{"task": "reviews", "before": 0.9, "after": 0.5 if mode == "refuse" else 0.9}]
gate = {"limit": 0.02, "passed": mode != "refuse", "effects": effects}
if mode == "crash":
    print(json.dumps({"error": f"cannot read {hub}", "hint": "", "code": "internal"}))
    sys.exit(1)
if mode == "wait":
    time.sleep(60)
if mode == "refuse":
    hint = f"nothing was changed; to promote it anyway: cl-adapter --hub {hub} promote {ref} --max-forgetting 1"
    print(json.dumps({"error": f"{ref} forgets reviews <b>", "hint": hint, "code": "gate", "gate": gate}))
    sys.exit(3)

from adapterhub_cl.registry import Registry  # noqa: E402  (slow to import where nothing is promoted)

Registry.open(hub).promote(ref)
print(json.dumps({"ref": ref, "gate": gate}))
