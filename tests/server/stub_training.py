"""Stands in for `cl-adapter add-task` in tests of fine-tuning jobs: what it does is the task's name, up to the dash.

Each start is a line in `starts.txt` beside the hub's folder.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

hub, verb, name, *rest = (Path(sys.argv[2]), *sys.argv[4:])
mode, run = name.partition("-")[0], hub / "runs" / f"{name}-20261129-000000-abcdef"
stopped = False


def give(answer: dict[str, Any], code: int) -> None:
    print(json.dumps(answer))
    sys.stdout.flush()
    os._exit(code)


def stop(*_: object) -> None:
    global stopped
    stopped = True


signal.signal(signal.SIGTERM, stop)
with (hub.parent / "starts.txt").open("a") as file:
    file.write(" ".join([verb, name, *rest]) + "\n")
print("settings: epochs=2", file=sys.stderr)
print("epoch 1 of 2  loss 0.5000  dev accuracy 0.7500  dev loss 0.4000", file=sys.stderr, flush=True)
if mode in ("long", "once", "deaf") and "--resume" not in rest:
    run.mkdir(parents=True)
    about = {"verb": verb, "name": name, "data": rest[0], "created_at": datetime.now(UTC).isoformat()}
    (run / "run.json").write_text(json.dumps(about))
if mode == "once" and "--resume" not in rest:
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGKILL)
if mode == "crash":
    os.kill(os.getpid(), signal.SIGKILL)
if mode == "gate":
    effect = {"task": "reviews", "before": 0.9, "after": 0.5}
    refused = {"error": f"{name}@v1 forgets reviews", "hint": "lower the learning rate", "code": "gate"}
    give({**refused, "gate": {"limit": 0.02, "passed": False, "effects": [effect]}}, 3)
if mode == "broken":
    give({"error": f"cannot read {hub / 'server/files/x.jsonl'}", "hint": "", "code": "data"}, 1)
if mode in ("long", "deaf", "slow") and "--resume" not in rest:
    until = time.monotonic() + (1.0 if mode == "slow" else 60)
    while time.monotonic() < until and (not stopped or mode == "deaf"):
        time.sleep(0.02)
    if stopped:
        print(f"hint: continue with: cl-adapter --hub {hub} --resume", file=sys.stderr)
        give({"error": "stopped at step 3", "hint": "", "code": "interrupted"}, 130)
shutil.rmtree(run, ignore_errors=True)
give({"ref": "tickets@v1"}, 0)
