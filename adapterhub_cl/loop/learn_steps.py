"""What `learn` does for one task: begin a lesson, go on with one, or decide on a canary.

Each step is recorded before the next begins, and can be repeated: after a kill, the same call goes on from there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from statistics import fmean
from typing import Any

from adapterhub_cl.adapters.serving import answering, task_of
from adapterhub_cl.context import Hub
from adapterhub_cl.data.reading import absolute
from adapterhub_cl.errors import DataError, GateRefused, StorageError, UsageError
from adapterhub_cl.evaluation.intervals import paired_interval
from adapterhub_cl.evaluation.probes import Probe, score_rows
from adapterhub_cl.learning.order import finished, order_of
from adapterhub_cl.learning.request import build, versions_of
from adapterhub_cl.loop import gathered, verdict
from adapterhub_cl.loop.incident import incident
from adapterhub_cl.loop.learn_options import LearnOptions
from adapterhub_cl.loop.surprise import surprise
from adapterhub_cl.registry.files import now
from adapterhub_cl.samples.kept import facts_learned
from adapterhub_cl.traffic.cleaning import question_of
from adapterhub_cl.traffic.journal import Journal
from adapterhub_cl.traffic.lesson_book import CANARY, FAILED, GATHERED, PROMOTED, REFUSED, ROLLED_BACK, Lesson, Lessons
from adapterhub_cl.training.runs import Run
from adapterhub_cl.types import LATEST, AdapterRecord, Example

EARLIER = 200  # rows held back of earlier lessons that a new version is measured on
HALF = 0.5  # an answer with a lower score than this is wrong
WAITING, WOULD = "waiting", "would learn"


@dataclass(frozen=True)
class LearnStep:
    """What was done for a task, and why.

    Attributes:
        did: the state of the lesson, or `waiting` (nothing was begun), or `would learn` (a dry run).
        ref: the version that it is about.
    """

    task: str
    did: str
    reason: str
    ref: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {"task": self.task, "did": self.did, "ref": self.ref, "reason": self.reason, "detail": dict(self.detail)}

    @classmethod
    def of(cls, lesson: Lesson) -> LearnStep:
        return cls(lesson.task, lesson.state, lesson.reason, lesson.ref, {"lesson": lesson.id, **lesson.detail})


class LearnTask:
    """The steps of one task.

    Args:
        settings: of the training, those that were given.
    """

    def __init__(self, hub: Hub, journal: Journal, options: LearnOptions, settings: Mapping[str, Any]) -> None:
        self.hub, self.journal, self.options, self.settings = hub, journal, options, settings
        self.registry, self.lessons = hub.registry, Lessons(journal)

    def run(self, task: str, *, dry_run: bool = False) -> LearnStep:
        """The next step.

        Raises:
            StorageError: the disk refuses; the same call goes on.
        """
        for lesson in self.lessons.all(task, opened=True):
            if (gone := self._gone(lesson)) and not dry_run:
                self.registry.end_canary(task, f"{gone} is gone")
                return self._end(lesson, FAILED, f"{gone} is no longer in the hub")
            if lesson.state == CANARY:
                return self._judge(lesson, dry_run)
            if dry_run:
                return LearnStep(task, WOULD, f"lesson {lesson.id} was begun and not finished")
            return self._teach(lesson)
        found, enough = gathered.gather(self.registry, self.journal, task), self.options.enough
        if len(found.clean.rows) >= enough:
            found = self._set_aside(found)
        detail = {key: value for key, value in found.to_json().items() if key not in ("task", "known")}
        rows = len(found.clean.rows)
        if rows < enough:
            beside = f", beside {found.incident}" if found.incident else ""
            told = f"{rows} of {enough} rows with a right answer have gathered{beside}"
            return LearnStep(task, WAITING, told, "", detail)
        if found.known and task not in {record.name for record in self.registry.adapters(include_rejected=False)}:
            served = self.registry.serving().get(task, "nothing")
            return LearnStep(task, WAITING, f"{served} serves it, and no adapter of its own can be updated", "", detail)
        verb = "update" if found.known else "add-task"
        if dry_run:
            return LearnStep(task, WOULD, f"{verb} with {rows} rows", "", detail)
        begun = self._begin(found, verb, detail)
        if begun is None:
            told = "users changed what they had said while it was gathered; the next call takes it as it is then"
            return LearnStep(task, WAITING, told, "", detail)
        return self._teach(begun)

    def _gone(self, lesson: Lesson) -> str:
        """A version that a lesson goes on with, and that was forgotten since; empty where all are there."""
        needed = (lesson.ref,) if lesson.state == CANARY else (lesson.ref, lesson.served_before)
        there = {record.ref for record in self.registry.adapters(all_versions=True)}
        return next((ref for ref in needed if ref and ref not in there), "")

    # -- learning --------------------------------------------------------------------------------

    def _set_aside(self, found: gathered.Gathered) -> gathered.Gathered:
        """Without the rows of an incident, see `loop.incident`. One that goes on and leaves too few others is learned
        with them: it may be drift, and the gate, the rows held back and the canary judge what it makes."""
        served = self.registry.serving().get(found.task)
        if not found.known or served is None or self.registry.task(found.task).kind == "text":
            return found
        scores = self._scores(served, found.task, found.clean.rows, "comparing what users said")
        seen = incident([score < HALF for score in scores])
        if seen is None:
            return found
        left = found.without(self.registry, seen)
        return left if seen.over or len(left.clean.rows) >= self.options.enough else found

    def _begin(self, found: gathered.Gathered, verb: str, detail: Mapping[str, Any]) -> Lesson | None:
        """Write a lesson's rows and record it; None where users have changed what they had said."""
        served = self.registry.serving().get(found.task, "")
        lesson = Lesson(found.task, verb, served_before=served, detail=detail, id=self.lessons.next_id())
        learned, back = found.split()
        task = self.registry.task(found.task) if found.known else None
        chat = bool(task.layout.chat) if task and task.layout else any(row.turns for row in learned)
        hub = self.registry.path
        gathered.write_rows(lesson.file(hub), learned, chat=chat)
        lesson.held_back(hub).unlink(missing_ok=True)  # of a call that was killed before it had recorded its lesson
        if back:
            gathered.write_rows(lesson.held_back(hub), back, chat=chat)
        return self.lessons.begin(lesson, [one.said for one in found.judged])

    def _teach(self, lesson: Lesson) -> LearnStep:
        """Train, measure, and let the version answer its share."""
        if not lesson.ref:
            try:
                record = self._train(lesson)
            except GateRefused as error:
                refused = error.record.ref if error.record else ""
                return self._end(lesson, REFUSED, f"the gate refused {refused}: {error.message}", ref=refused)
            except (DataError, UsageError) as error:
                return self._end(lesson, FAILED, f"{error.message}; the next call tries again")
            if record.status != "active":
                return self._end(lesson, REFUSED, f"the gate refused {record.ref}", ref=record.ref)
            lesson = self.lessons.move(lesson, GATHERED, "trained", ref=record.ref)
        if not lesson.served_before:
            return self._end(lesson, PROMOTED, "a new task, which nothing served before")
        gain = self._gain(lesson)
        if gain.get("worse") or gain.get("earlier", {}).get("worse"):
            self._withdraw(lesson, "worse on the rows held back")
            told = f"{lesson.ref} is worse on the rows held back: {_told(gain)}"
            return self._end(lesson, REFUSED, told, {"gain": gain})
        odd = (lesson.detail.get("surprise") or {}).get("surprising")
        # Drift can be learned; what contradicts itself cannot. One row more says nothing.
        if odd and gain.get("rows") and (gain["after"] - gain["before"]) * gain["rows"] < 1.5:
            self._withdraw(lesson, "what users said could not be learned")
            told = f"users found far more wrong answers than expected, and learning them hardly helped: {_told(gain)}"
            return self._end(lesson, REFUSED, told, {"gain": gain})
        share = self.options.canary
        if not share:
            self.registry.promote(lesson.ref)
            return self._end(lesson, PROMOTED, f"accepted by the gate; {_told(gain)}", {"gain": gain})
        self.registry.start_canary(lesson.ref, share)
        reason = f"answers {share:.0%} of the conversations; {_told(gain)}"
        return LearnStep.of(self.lessons.move(lesson, CANARY, reason, share=share, detail={"gain": gain}))

    def _train(self, lesson: Lesson) -> AdapterRecord:
        """The version: made now, or by the run that was stopped, or already there.

        Raises:
            GateRefused: the gate refused it.
        """
        from adapterhub_cl.learning.teaching import teach

        file = absolute(lesson.file(self.registry.path))
        runs = Run.unfinished(self.registry.runs_dir, lesson.verb, lesson.task)
        resume = bool(runs) and runs[0].request.get("data") == file
        if not resume and (made := self._published(lesson.task, file)) is not None:
            return made
        asked: dict[str, Any] = {**self.settings, "serve": not lesson.served_before}
        if lesson.verb == "add-task":
            back = lesson.held_back(self.registry.path)
            asked |= {"eval": str(back)} if back.exists() else {}
            asked |= {"kind": "choice"} if lesson.detail.get("labelled") else {}
        if self.options.max_forgetting is not None:
            asked["max_forgetting"] = self.options.max_forgetting
        served = self.registry.get(lesson.served_before) if lesson.served_before else None
        if lesson.verb == "update" and served is not None and facts_learned(served):
            asked["facts"] = True  # one wording of a correction would leave the others as they were
        request, run = build(self.registry, lesson.verb, lesson.task, file, False, asked)
        if served is not None and served.name == request.name:  # a newer version may have been taken back
            request = replace(request, start=served.ref)
        if resume:
            kept, run = build(self.registry, lesson.verb, lesson.task, None, True, {})
            if not kept.same_as(request) and run is not None:  # other options are given now, and they count
                run.drop()
                run = None
            else:
                request = kept
        if run is not None and (done := finished(self.registry, request, run, self.hub.reporter)) is not None:
            return done
        return teach(self.hub, order_of(self.registry, request), run=run)

    def _published(self, name: str, file: str) -> AdapterRecord | None:
        """The version that was made of a lesson's file before a kill."""
        made = [v for v in versions_of(self.registry, name) if (v.training.get("data") or {}).get("source") == file]
        return made[-1] if made else None

    def _gain(self, lesson: Lesson) -> dict[str, Any]:
        """How often both versions are right on the rows that were held back (few rows have none), and on those of the
        lessons before it."""
        path = self.registry.path
        rows, learned = gathered.read_back(lesson.held_back(path)), gathered.read_back(lesson.file(path))
        seen = {question_of(row) for row in (*rows, *learned)}
        earlier = [row for row in self._earlier(lesson) if question_of(row) not in seen]
        both = [*rows, *earlier]
        if not both or self.registry.task(lesson.task).kind == "text":
            return {}
        before, after = (
            self._scores(ref, lesson.task, both, f"measuring {ref}") for ref in (lesson.served_before, lesson.ref)
        )
        n = len(rows)
        found: dict[str, Any] = {"metric": self.registry.task(lesson.task).metric}
        if rows:
            found |= {"rows": n, **_change(before[:n], after[:n])}
        if earlier:
            found["earlier"] = {"rows": len(earlier), **_change(before[n:], after[n:])}
        return found

    def _earlier(self, lesson: Lesson) -> list[Example]:
        """Rows that were held back of earlier lessons whose version was promoted, the newest first."""
        found: list[Example] = []
        for one in self.lessons.all(lesson.task):
            if one.state == PROMOTED and one.id != lesson.id and len(found) < EARLIER:
                found += gathered.read_back(one.held_back(self.registry.path))
        return found[:EARLIER]

    def _scores(self, ref: str, name: str, rows: Sequence[Example], what: str) -> list[float]:
        """The main score of a version on each row, 0 to 1."""
        record = self.registry.get(ref)
        task = task_of(self.registry, record) if record.task == name else self.registry.task(name)
        probe = Probe(task, rows, "what users said", task.max_length or self.hub.base.context)
        with answering(self.registry, self.hub.base, ref) as model:
            return score_rows(model, self.hub.base, probe, self.hub.reporter, what)

    # -- the canary ------------------------------------------------------------------------------

    def _judge(self, lesson: Lesson, dry_run: bool) -> LearnStep:
        """Decide on a canary, or wait."""
        serves = self.registry.serving().get(lesson.task)
        if serves == lesson.ref and not dry_run:
            self.registry.end_canary(lesson.task, "promoted")
            return self._end(lesson, PROMOTED, lesson.reason if lesson.detail.get("decided") else "promoted by hand")
        if serves != lesson.served_before and serves != lesson.ref and not dry_run:
            self._withdraw(lesson, "another version serves")
            told = f"{serves or 'nothing'} serves the task now, and no longer {lesson.served_before}"
            return self._end(lesson, ROLLED_BACK, told)
        answers = self.registry.canaries().get(lesson.task)
        if (answers is None or answers.ref != lesson.ref) and not dry_run:
            self._withdraw(lesson, "its canary was ended")  # by hand; or by a call of learn that was killed here
            return self._end(lesson, ROLLED_BACK, "its canary was ended")
        since = str(lesson.detail.get("since") or lesson.changed_at)
        refs = (lesson.ref, lesson.served_before)
        judged = verdict.reliable(self.journal.judged(lesson.task, since=since), lesson.served_before)
        canary, beside = (verdict.RightCount.of(judged, ref) for ref in refs)
        odd = surprise(self.registry, lesson.task, judged)
        does, reason = verdict.decide(canary, beside, self.options.judged, odd=odd is not None and odd.surprising)
        days = (datetime.fromisoformat(now()) - datetime.fromisoformat(since)).total_seconds() / 86400
        if does == verdict.WAIT and 0 < self.options.wait_days <= days:
            does, reason = verdict.decide_late(canary, beside, lesson.detail.get("gain") or {}, days)
        detail = {
            "canary": {"right": canary.right, "judged": canary.judged},
            "beside": {"right": beside.right, "judged": beside.judged},
        }
        if does == verdict.WAIT or dry_run:
            did = CANARY if does == verdict.WAIT else f"would {does}"
            return LearnStep(lesson.task, did, reason, lesson.ref, {"lesson": lesson.id, **detail})
        if does == verdict.PROMOTE:
            lesson = self.lessons.move(lesson, CANARY, reason, detail={"decided": does, "since": since, **detail})
            self.registry.promote(lesson.ref)
            self.registry.end_canary(lesson.task, "promoted")
            return self._end(lesson, PROMOTED, reason)
        self._withdraw(lesson, reason)
        return self._end(lesson, ROLLED_BACK, reason, detail)

    def _withdraw(self, lesson: Lesson, why: str) -> None:
        """Take a version that does not serve out of the way: the next lesson continues from the one before it."""
        self.registry.end_canary(lesson.task, why)
        record = self.registry.get(lesson.ref)
        if record.status == "active":
            self.registry.set_status(record.ref, "rejected")
        others = [v.ref for v in self.registry.versions(record.name) if v.status == "active" and v.ref != record.ref]
        if LATEST in record.aliases and others:
            before = lesson.served_before if lesson.served_before in others else others[-1]
            self.registry.set_alias(before, LATEST, reason="lesson withdrawn")

    def _end(
        self, lesson: Lesson, state: str, reason: str, detail: Mapping[str, Any] | None = None, *, ref: str = ""
    ) -> LearnStep:
        try:
            ended = self.lessons.move(lesson, state, reason, ref=ref or lesson.ref, detail=dict(detail or {}))
        except StorageError as error:
            error.hint = f"{error.hint}; then run learn again: it goes on from here"
            raise
        self.registry.add_event(f"lesson {state}", ended.ref or ended.task, {"lesson": ended.id, "reason": reason})
        return LearnStep.of(ended)


def _change(before: Sequence[float], after: Sequence[float]) -> dict[str, Any]:
    low, _ = paired_interval(before, after)
    return {"before": fmean(before), "after": fmean(after), "worse": low > 0}


def _told(gain: Mapping[str, Any]) -> str:
    told = "too few rows to hold some back"
    if gain.get("rows"):
        told = f"{gain['metric']} {gain['before']:.3f} → {gain['after']:.3f} on {gain['rows']} rows held back"
    if old := gain.get("earlier"):
        told += f", {old['before']:.3f} → {old['after']:.3f} on {old['rows']} of earlier lessons"
    return told
