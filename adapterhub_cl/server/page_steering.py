"""What a person may change on the page: each change is planned, shown, confirmed, done, and its outcome is kept.

A promotion goes through the gate, which may have to measure. It runs in a process of its own, as training does: the
engine's base answers requests meanwhile, and belongs to one thread.
"""

from __future__ import annotations

import hmac
import itertools
import json
import logging
import secrets
import shlex
import subprocess
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psutil

from adapterhub_cl.errors import UnknownNameError, UsageError
from adapterhub_cl.registry import Registry
from adapterhub_cl.registry.names import check_alias, check_name, parse_ref
from adapterhub_cl.server.api_keys import NOBODY
from adapterhub_cl.server.training_process import TrainingProcess
from adapterhub_cl.server.tuning_words import verdict_of
from adapterhub_cl.types import CANARY, LATEST, PRODUCTION

LOG = logging.getLogger("adapterhub_cl.server")
PROMOTE, ROLL_BACK, END_CANARY, PIN = "promote", "roll-back", "end-canary", "pin"
MOST = 200  # outcomes that are kept
TASKS = 20  # of a version, that a confirmation lists
RUNNING, DONE, REFUSED = "running", "done", "refused"


@dataclass(frozen=True)
class Plan:
    """A change that somebody wants, as it stands now.

    Attributes:
        ref: the version, or the adapter, that it is about.
        alias: that is moved.
        lines: what will be different.
        state: of everything that it depends on; another state makes it another plan.
    """

    action: str
    ref: str
    alias: str
    title: str
    lines: Sequence[str]
    button: str
    state: str


@dataclass(frozen=True)
class SteerOutcome:
    """What became of a plan: `running`, `done` or `refused`, with the lines that say why."""

    number: str
    title: str
    adapter: str
    state: str
    lines: Sequence[str] = ()


class Steering:
    """Plans and does changes. Safe with several threads.

    Args:
        command: the command line of this program on the hub, up to the verb, with `--json`.
        changed: called after the hub was changed.
    """

    def __init__(self, registry: Registry, command: Sequence[str], changed: Callable[[], None]) -> None:
        self.registry, self.command, self.changed = registry, list(command), changed
        self._secret, self._lock, self._numbers = secrets.token_bytes(32), threading.RLock(), itertools.count(1)
        self._outcomes: dict[str, SteerOutcome] = {}
        self._process: TrainingProcess | None = None
        self._stopping = False

    # -- tokens ----------------------------------------------------------------------------------

    def token(self, who: str, plan: Plan | None = None) -> str:
        """Proves that a form is one of ours: for anyone's first step, or for one plan that was shown."""
        about = ["form"] if plan is None else [plan.action, plan.ref, plan.alias, plan.state]
        return hmac.digest(self._secret, json.dumps([who, *about]).encode(), "sha256").hex()

    def is_mine(self, token: str, who: str, plan: Plan | None = None) -> bool:
        return hmac.compare_digest(token.encode("utf-8", "replace"), self.token(who, plan).encode())

    # -- plans -----------------------------------------------------------------------------------

    def plan(self, action: str, ref: str, alias: str) -> Plan:
        """What a change would do.

        Raises:
            UnknownNameError: no such version, adapter or alias.
            UsageError: it cannot be done, or is so already.
        """
        known = {PROMOTE: self._promotion, ROLL_BACK: self._roll_back, END_CANARY: self._end_canary, PIN: self._pin}
        if action not in known:
            raise UnknownNameError("action", action[:40], known)
        return known[action](ref, alias)

    def _promotion(self, ref: str, _: str) -> Plan:
        record = self._version(ref)
        if not record.tasks:
            raise UsageError(f"{record.ref} has no task to serve", "cl-adapter import … --task NAME gives it one")
        serving = self.registry.serving()
        if PRODUCTION in record.aliases and all(serving.get(task) == record.ref for task in record.tasks):
            raise UsageError(f"{record.ref} is in production already, and serves all its tasks")
        lines = [f"{task}: {serving.get(task, 'nothing')} → {record.ref}" for task in record.tasks[:TASKS]]
        if len(record.tasks) > TASKS:
            lines.append(f"and {len(record.tasks) - TASKS} more tasks")
        if record.status == "rejected":
            lines.append("The gate refused this version when it was made.")
        lines.append("The gate is asked first. If a task would lose more than it may, nothing is changed.")
        return self._made(PROMOTE, record.ref, PRODUCTION, f"Promote {record.ref}?", lines, "Promote it")

    def _roll_back(self, name: str, _: str) -> Plan:
        aliases = self._aliases(name)
        alias = PRODUCTION if PRODUCTION in aliases else LATEST
        if alias not in aliases:
            raise UsageError(f"{name} has no {PRODUCTION} and no {LATEST} to roll back")
        moves = [f"v{one.version}" if one.version else "none" for one in self.registry.alias_history(name, alias)]
        lines = [
            f"{name}@{alias} names v{aliases[alias]} now, and goes back to the version that it named before.",
            f"So far it has named, oldest first: {', '.join(moves[-TASKS:])}.",
            "The tasks that the version serves go back with it.",
        ]
        return self._made(ROLL_BACK, name, alias, f"Roll back {name}@{alias}?", lines, "Roll it back")

    def _end_canary(self, name: str, _: str) -> Plan:
        aliases = self._aliases(name)
        if CANARY not in aliases:
            raise UsageError(f"{name} has no canary")
        ref = f"{name}@v{aliases[CANARY]}"
        counts = [one for one in self.registry.canaries().values() if one.ref == ref]
        lines = [
            f"{one.ref} answers {one.share:.0%} of {one.task}; {one.beside} will answer all of it." for one in counts
        ]
        lines = lines or [f"{ref} is a canary, but answers nothing now."]
        lines.append("If learn made it, the next call of learn ends its lesson as rolled back.")
        return self._made(END_CANARY, name, CANARY, f"End the canary of {name}?", lines, "End the canary")

    def _pin(self, ref: str, alias: str) -> Plan:
        record = self._version(ref)
        if check_alias(alias) in (PRODUCTION, LATEST, CANARY):
            raise UsageError(f"{alias} is not set by hand here", "promote a version, or choose another alias")
        before = self._aliases(record.name).get(alias)
        if before == record.version:
            raise UsageError(f"{record.name}@{alias} names {record.ref} already")
        lines = [f"{record.name}@{alias}: {f'v{before}' if before else 'nothing'} → v{record.version}"]
        return self._made(PIN, record.ref, alias, f"Pin {record.name}@{alias} to v{record.version}?", lines, "Pin it")

    def _version(self, ref: str) -> Any:
        if parse_ref(ref).version is None:
            raise UsageError(f"{ref!r} is not a version", "write NAME@vN")
        return self.registry.get(ref)

    def _aliases(self, name: str) -> dict[str, int]:
        self.registry.versions(check_name(name))  # raises for an unknown one
        return self.registry.aliases().get(name, {})

    def _made(self, action: str, ref: str, alias: str, title: str, lines: Sequence[str], button: str) -> Plan:
        name = parse_ref(ref).name
        served = {task: one for task, one in self.registry.serving().items() if parse_ref(one).name == name}
        state = [self._aliases(name), served, [record.status for record in self.registry.versions(name)], list(lines)]
        return Plan(action, ref, alias, title, tuple(lines), button, json.dumps(state, sort_keys=True))

    # -- doing -----------------------------------------------------------------------------------

    def do(self, plan: Plan, who: str) -> SteerOutcome:
        """Do what was planned; a promotion is only begun.

        Raises:
            AdapterHubError: it cannot be done; nothing was changed.
            UsageError: another promotion is running.
        """
        LOG.info(json.dumps({"steered": plan.action, "ref": plan.ref, "alias": plan.alias, "key": who}))
        if plan.action == PROMOTE:
            return self._begin(plan)
        lines: list[str] = []
        if plan.action == ROLL_BACK:
            before, after = self.registry.rollback(f"{plan.ref}@{plan.alias}")
            lines.append(f"{before.ref} → {after.ref}")
        elif plan.action == END_CANARY:
            self.registry.end_canary(
                plan.ref, f"ended on the page by {who}" if who != NOBODY.name else "ended on the page"
            )
            lines.append("The canary answers nothing from the next batch on.")
        else:
            self.registry.set_alias(plan.ref, plan.alias)
            lines.append(f"{parse_ref(plan.ref).name}@{plan.alias} → {plan.ref}")
        self.changed()
        return self._keep(plan, DONE, lines)

    def outcome(self, number: str) -> SteerOutcome:
        """What became of a plan.

        Raises:
            UnknownNameError: it is not known (any more): the server was started anew since.
        """
        found = self._outcomes.get(number)
        if found is None:
            raise UnknownNameError("outcome", number[:20], (), "the page of the adapter shows how it is now")
        return found

    def stop(self) -> None:
        """End a promotion that is running; nothing half-done stays."""
        self._stopping = True
        process = self._process
        if process is not None:
            process.end(5.0)

    def _begin(self, plan: Plan) -> SteerOutcome:
        with self._lock:
            if self._process is not None and not self._process.ended():
                raise UsageError("another promotion is running", "try again when it is done")
            if self._stopping:
                raise UsageError("the server is shutting down")
            own = subprocess.Popen(
                [*self.command, "promote", plan.ref],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
            self._process = TrainingProcess(psutil.Process(own.pid), own)
            outcome = self._keep(plan, RUNNING, ["The gate compares it with what serves now. This may take minutes."])
        threading.Thread(target=self._wait, args=(own, plan, outcome.number), name="promotion", daemon=True).start()
        return outcome

    def _wait(self, own: subprocess.Popen[bytes], plan: Plan, number: str) -> None:
        """Keep what the process says when it is done."""
        said, _ = own.communicate()
        answer: dict[str, Any] = {}
        with suppress(ValueError, RecursionError):
            found = json.loads(said)
            answer = found if isinstance(found, dict) else {}
        self.changed()
        gate = answer.get("gate")
        lines = [_sentence(verdict_of(gate))] if isinstance(gate, dict) else []
        if own.returncode == 0 and answer.get("ref") == plan.ref:
            self._keep(plan, DONE, [*lines, f"{plan.ref} serves from the next batch on."], number)
            return
        if answer.get("code") in ("gate", "usage", "unknown_name", "adapter", "data"):
            here = f" --hub {shlex.quote(str(self.registry.path.resolve()))}"  # nobody's business in a browser
            hint = str(answer.get("hint") or "").replace(here, "")
            lines = [_sentence(str(answer.get("error"))), *([hint[:1].upper() + hint[1:]] if hint else [])]
        else:
            LOG.error(
                "the promotion of %s ended with %s: %s", plan.ref, own.returncode, answer.get("error", "no answer")
            )
            lines = ["It was stopped, or failed; the server's log says why.", "Nothing was changed."]
        self._keep(plan, REFUSED, lines, number)

    def _keep(self, plan: Plan, state: str, lines: Sequence[str], number: str = "") -> SteerOutcome:
        number = number or f"{next(self._numbers)}-{secrets.token_hex(4)}"
        title = plan.title.rstrip("?")
        found = SteerOutcome(number, title, parse_ref(plan.ref).name, state, tuple(lines))
        with self._lock:
            self._outcomes[number] = found
            while len(self._outcomes) > MOST:
                self._outcomes.pop(next(iter(self._outcomes)))
        return found


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "…")) else ".")
