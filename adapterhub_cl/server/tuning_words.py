"""What a training process tells, as events and outcomes of a fine-tuning job."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapterhub_cl import training_file
from adapterhub_cl.errors import IntegrityError
from adapterhub_cl.types import AdapterRecord

_EPOCH = re.compile(r"epoch (\d+) of (\d+)  loss ([0-9.einfa-]+)(.*)")
_STEP = re.compile(r"training (\d+)/(\d+)(?:  loss ([0-9.e+-]+))?")
_DEV = re.compile(r"dev (\w+) ([0-9.e+-]+)")
LEVELS = {"warning:": "warn", "error:": "error", "hint:": "error"}


def event_of(line: str) -> tuple[str, str, dict[str, Any] | None]:
    """A line of the process's notes as an event: its message, level, and figures if it has any."""
    level = LEVELS.get(line.split(" ", 1)[0], "info")
    if found := _EPOCH.match(line):
        figures = {f"valid_{name}": float(value) for name, value in _DEV.findall(found[4])}
        return line, level, {"epoch": int(found[1]), "epochs": int(found[2]), "train_loss": float(found[3]), **figures}
    if found := _STEP.match(line):
        loss = {} if found[3] is None else {"train_loss": float(found[3])}
        return line, level, {"step": int(found[1]), "total_steps": int(found[2]), **loss}
    return line, level, None


def answer_in(out: Path) -> dict[str, Any] | None:
    """The object that the process printed; None if it ended without one."""
    try:
        found = json.loads(out.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and ("ref" in found or "error" in found) else None


def tokens_of(record: AdapterRecord) -> int | None:
    """How many tokens a version was trained on; None where its files do not say."""
    try:
        found = training_file.read(record.path).get("tokens")
    except IntegrityError:
        return None
    return found if isinstance(found, int) else None


def error_of(answer: Mapping[str, Any]) -> dict[str, Any]:
    """The error of an answer in OpenAI's form."""
    code = {"gate": "gate_refused", "data": "invalid_training_file", "usage": "invalid_request"}
    said = "; ".join(str(answer[key]) for key in ("error", "hint") if answer.get(key))
    return {"code": code.get(str(answer.get("code")), str(answer.get("code"))), "message": said, "param": None}


def verdict_of(gate: Mapping[str, Any]) -> str:
    """The gate's decision in a line."""
    effects = gate.get("effects") or []
    if not effects:
        return "the gate: no earlier task is answered by this version, so none can lose"
    words = [f"{row['task']} {row['before']:.4f} → {row['after']:.4f}" for row in effects]
    decided = "passed" if gate.get("passed") else "refused"
    return f"the gate {decided} (limit {gate.get('limit')}): {', '.join(words)}"
