"""`inbox` and `learn`: what production has left, and learning from it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from cl_adapter import display
from cl_adapter.app import USE, verb
from cl_adapter.flags import takes
from cl_adapter.session import Session, ask

from adapterhub_cl.errors import GateRefused, LearnsElsewhere, StorageError, UsageError
from adapterhub_cl.loop.learn_options import LearnOptions
from adapterhub_cl.settings import TrainingSettings

if TYPE_CHECKING:
    from adapterhub_cl.hub import AdapterHub
    from adapterhub_cl.loop.inbox import Inbox, TaskInbox
    from adapterhub_cl.loop.learn_steps import LearnStep

_TEXT, _ANSWER = 60, 30  # columns of a question and of an answer in a table
_EXAMPLES = """cl-adapter inbox
cl-adapter inbox tickets --limit 20
cl-adapter inbox --export to-label.jsonl
cl-adapter inbox --say labelled.jsonl
cl-adapter inbox --withdraw chatcmpl-5f2c0e
cl-adapter inbox --drop --before 2026-10-01"""


@verb(USE, _EXAMPLES)
def inbox(
    ctx: typer.Context,
    task: Annotated[str | None, typer.Argument(help="only this task")] = None,
    limit: Annotated[int, typer.Option(min=0, help="how many rows of each sort to show")] = 10,
    export: Annotated[
        str | None, typer.Option(metavar="FILE", help="write every kept answer, one JSON object a line")
    ] = None,
    say: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="read feedback: JSON lines with id and label, answer, correct or thumb"),
    ] = None,
    withdraw: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="take back what was said of this answer; may be repeated")
    ] = None,
    drop: Annotated[bool, typer.Option("--drop", help="drop kept answers: of TASK, or --before a day")] = False,
    before: Annotated[str | None, typer.Option(metavar="DAY", help="drop: those before this day, 2026-10-01")] = None,
    no_groups: Annotated[
        bool, typer.Option("--no-groups", help="do not look for groups that no task knows, which loads the base")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="drop: do not ask")] = False,
) -> None:
    """What `serve --log` has gathered: corrections, answers worth labelling, and inputs that no task knows."""
    session = Session.of(ctx)
    does = (("--export", export), ("--say", say), ("--withdraw", withdraw), ("--drop", drop))
    given = [flag for flag, there in does if there]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} are different things", "give one of them")
    if before and not drop:
        raise UsageError("--before is an option of --drop", "cl-adapter inbox --drop --before 2026-10-01")
    if task and (say or withdraw):
        raise UsageError(f"{given[0]} takes no TASK: it says which answers are meant", "leave the task out")
    hub = session.hub(write=bool(say or withdraw or drop))
    if export:
        _export(session, hub, export, task or "")
    elif say:
        _say(session, hub, say)
    elif withdraw:
        _withdraw(session, hub, withdraw)
    elif drop:
        _drop(session, hub, task, before, yes)
    else:
        found = hub.inbox(task or "", limit=limit, groups=not no_groups, reporter=session.reporter())
        if session.json:
            session.give(found.to_json())
        else:
            _print_inbox(session, found)


def _export(session: Session, hub: AdapterHub, file: str, task: str) -> None:
    from adapterhub_cl.loop.inbox import export_rows

    count = export_rows(hub.registry, Path(file), task)
    if session.json:
        session.give({"path": file, "answers": count})
    else:
        print(f"{_answers(count)} → {file}")
        session.note(f'add "label" or "answer" to rows, then: {session.command(f"inbox --say {file}")}')


def _say(session: Session, hub: AdapterHub, file: str) -> None:
    from adapterhub_cl.loop.say_file import say_rows

    count, without = say_rows(hub.registry, Path(file))
    if session.json:
        session.give({"path": file, "said": count, "without": without})
    else:
        print(f"took what was said of {_answers(count)}; {without} rows say nothing new")


def _withdraw(session: Session, hub: AdapterHub, ids: Sequence[str]) -> None:
    learned = hub.withdraw(*ids)
    if session.json:
        session.give({"withdrawn": len(set(ids)), "learned": learned})
        return
    print(f"took back what was said of {_answers(len(set(ids)))}")
    if learned:
        print(f"{len(learned)} of these were in a lesson already, and its version stays as it is: {', '.join(learned)}")


def _drop(session: Session, hub: AdapterHub, task: str | None, before: str | None, yes: bool) -> None:
    from adapterhub_cl.loop.inbox import check_known

    if bool(task) == bool(before):
        raise UsageError("--drop needs a TASK, or --before a day", "cl-adapter inbox --drop --before 2026-10-01")
    if before:
        try:
            before = date.fromisoformat(before).isoformat()  # 20261001 and 2026-W40 are days too; answers have dashes
        except ValueError:
            raise UsageError(f"--before {before} is no day", "write 2026-10-01") from None
    check_known(hub.registry, hub.traffic, task or "")
    what = f"of {task}" if task else f"from before {before}"
    if not yes:
        ask(f"drop every kept answer {what}, and what was said of it?", "kept answers", "--yes removes them")
    count = hub.traffic.drop(task=task, before=before or "")
    if session.json:
        session.give({"dropped": count})
    else:
        print(f"dropped {_answers(count)}")


def _print_inbox(session: Session, found: Inbox) -> None:
    if not found.tasks and not found.unknown:
        session.note(f"nothing was kept yet: {session.command('serve --log')} keeps requests and answers")
        return
    display.table(
        ("task", "answers kept", "judged since", "rows to learn", "last lesson"),
        [
            (
                one.task if one.gathered.known else f"{one.task} (new)",
                one.answers,
                len(one.gathered.judged),
                len(one.gathered.clean.rows),
                f"{one.lesson.state} {one.lesson.ref}".strip() if one.lesson else display.NOTHING,
            )
            for one in found.tasks
        ],
        right=("answers kept", "judged since", "rows to learn"),
    )
    for one in found.tasks:
        _print_task(one)
    if found.unknown:
        print(f"no task knew the input of {_answers(found.unknown)} (20 are looked at for groups)")
    if found.groups is not None:
        from cl_adapter.verbs_route import print_drift

        print_drift(found.groups)
    if found.tasks:
        session.note(f"next: {session.command('learn --dry-run')}")


def _print_task(one: TaskInbox) -> None:
    said = one.gathered
    if said.surprise is not None and said.surprise.surprising:
        print(f"{one.task}: {said.surprise}: its inputs have changed, or what was said is wrong")
    if said.clean.dropped:
        counts = ", ".join(f"{count} {why}" for why, count in said.clean.dropped.items())
        print(f"{one.task} leaves out: {counts} (--export FILE marks these rows)")
    if one.corrections:
        print(f"{one.task}: corrections")
        rows = [
            (
                display.short(c.kept.example.text, _TEXT),
                display.short(c.kept.answer, _ANSWER),
                display.short(c.said.right or display.NOTHING, _ANSWER),
            )
            for c in one.corrections
        ]
        display.table(("text", "answered", "right"), rows)
    if one.unsure:
        print(f"{one.task}: worth labelling")
        unsure = [
            (u.id, display.short(u.example.text, _TEXT), display.short(u.answer, _ANSWER), f"{u.confidence or 0:.3f}")
            for u in one.unsure
        ]
        display.table(("id", "text", "answered", "confidence"), unsure, right=("confidence",))


def _answers(count: int) -> str:
    return f"{count} answer{'' if count == 1 else 's'}"


@verb(
    USE,
    "cl-adapter learn --dry-run\ncl-adapter learn --task tickets --canary 0.1\ncl-adapter learn --watch --every 600",
)
@takes(LearnOptions, TrainingSettings)
def learn(
    ctx: typer.Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would be done")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="go on, until Ctrl-C")] = False,
    every: Annotated[float, typer.Option(min=1, help="seconds between two looks of --watch")] = 300.0,
    *,
    given: dict[str, Any],
) -> None:
    """Learn from the inbox: train a new version, gate it, try it as a canary, then promote it or take it back.

    Each call takes the next step for every task; call it from cron, or let it watch. Exit code 3 says that the gate
    refused a version, 1 that a task could not be learned.
    """
    session = Session.of(ctx)
    if watch and dry_run:
        raise UsageError("--watch and --dry-run are different things", "give one of them")
    hub = session.hub(write=not dry_run)

    def once() -> list[LearnStep]:
        try:
            found = hub.learn(dry_run=dry_run, reporter=session.reporter(), **given)
        except LearnsElsewhere as error:  # under cron this is no failure
            session.note(f"note: {error.message}; {error.hint}")
            if session.json:
                session.give([])
            return []
        except StorageError as error:
            if not watch:
                raise
            session.note(f"error: {error.message}; {error.hint or 'it is tried again'}")
            return []
        if session.json and watch:
            print(json.dumps([step.to_json() for step in found]), flush=True)
        elif session.json:
            session.give([step.to_json() for step in found])
        else:
            _print_steps(session, found)
        return found

    if watch:
        from adapterhub_cl.loop.learn_call import watch as watching

        session.note(f"looks every {every:g} seconds; Ctrl-C ends it")
        with suppress(KeyboardInterrupt):
            watching(once, every)
        return
    done = {step.did for step in once()}
    if "failed" in done:
        raise typer.Exit(1)
    if "refused" in done:
        raise typer.Exit(GateRefused.exit_code)


def _print_steps(session: Session, found: Sequence[LearnStep]) -> None:
    if not found:
        session.note("nothing to do: nobody has said anything of an answer yet")
        return
    for step in found:
        print(f"{step.task}: {step.did}{f' {step.ref}' if step.ref else ''}: {display.one_line(step.reason)}")
        if (odd := step.detail.get("surprise")) and odd.get("surprising"):
            print(f"  {odd['told']}")
        if apart := step.detail.get("incident"):
            does = "set aside, not learned" if apart["over"] else "left waiting, since it may go on"
            print(f"  {does}: {apart['told']}")
        if dropped := step.detail.get("dropped"):
            print(f"  left out: {', '.join(f'{count} {why}' for why, count in dropped.items())}")
