"""`replay`: the samples that adapters keep of their tasks. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from cl_adapter import display
from cl_adapter.app import MAKE, verb
from cl_adapter.session import Session, ask

from adapterhub_cl.errors import UnknownNameError, UsageError

if TYPE_CHECKING:
    from adapterhub_cl.samples.budget import Budget
    from adapterhub_cl.samples.store import Samples

_ACTIONS: dict[str, tuple[str, ...]] = {  # action → the options it knows
    "list": (),
    "show": ("--limit",),
    "export": ("--output", "--overwrite"),
    "drop": ("--row", "--matching", "--all", "--yes"),
    "budget": ("--yes",),
}
_WIDEST = 100  # characters of a sample's text in the table
_EXAMPLES = """cl-adapter replay list
cl-adapter replay show news --limit 10
cl-adapter replay export news -o samples.jsonl
cl-adapter replay drop news --matching "Jane Doe" --yes
cl-adapter replay budget 2MB"""


@verb(MAKE, _EXAMPLES, "replay")
def replay_samples(
    ctx: typer.Context,
    action: Annotated[str, typer.Argument(metavar="ACTION", help="list, show, export, drop or budget")],
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="news or news@v2; for budget: 500, 2MB or none")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=0, help="show: how many to show")] = None,
    output: Annotated[str | None, typer.Option("--output", "-o", metavar="FILE", help="export: JSON lines")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="export: overwrite an existing file")] = False,
    row: Annotated[
        list[int] | None, typer.Option(metavar="N", help="drop: a row number from `replay show`; may be repeated")
    ] = None,
    matching: Annotated[
        str | None, typer.Option(metavar="TEXT", help="drop: every row that contains this text")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="drop: every row")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="drop: do not ask")] = False,
) -> None:
    """See and remove what adapters keep of their tasks, and limit how much that is.

    A bare NAME shows the newest version, and drops from all versions; news@v2 means that one alone.
    """
    given = {
        "--limit": limit is not None,
        "--output": output is not None,
        "--overwrite": overwrite,
        "--row": bool(row),
        "--matching": matching is not None,
        "--all": everything,
        "--yes": yes,
    }
    _check(action, [option for option, is_given in given.items() if is_given])
    session = Session.of(ctx)
    from adapterhub_cl.samples.store import Samples

    changes = action == "drop" or (action == "budget" and name is not None)
    samples = Samples(session.hub(write=changes).registry)
    if action == "list":
        if name is not None:
            raise UsageError("replay list takes no name", f"see one: cl-adapter replay show {name}")
        _list(session, samples)
    elif action == "show":
        _show(session, samples, _needed(action, name), limit)
    elif action == "export":
        if output is None:
            raise UsageError("replay export needs a file to write", "add -o samples.jsonl")
        count = samples.export(name, output, overwrite=overwrite)
        if session.json:
            session.give({"ref": samples.record(name).ref if name else None, "path": output, "samples": count})
        else:
            print(f"{_samples(count)} → {output}")
    elif action == "drop":
        _drop(session, samples, _needed(action, name), row or None, matching, everything, yes)
    else:
        _budget(session, samples, name, yes)


def _check(action: str, given: list[str]) -> None:
    if action not in _ACTIONS:
        raise UnknownNameError("action of replay", action, _ACTIONS, "see cl-adapter replay --help")
    for option in given:
        if option not in _ACTIONS[action]:
            owner = next(name for name, options in _ACTIONS.items() if option in options)
            raise UsageError(
                f"{option} is an option of replay {owner}, not of {action}", "see cl-adapter replay --help"
            )


def _needed(action: str, name: str | None) -> str:
    if name is None:
        raise UsageError(f"replay {action} needs the name of an adapter", "see them: cl-adapter replay list")
    return name


def _samples(count: int) -> str:
    return f"{count} replay sample{'' if count == 1 else 's'}"


def _list(session: Session, samples: Samples) -> None:
    found = samples.rows()
    if session.json:
        session.give([row.to_json() for row in found])
        return
    if not found:
        session.note(f"no adapters yet; make one: {session.command('add-task NAME DATA.jsonl')}")
        return
    rows = [(row.ref, row.task, row.policy, row.samples, display.size(row.bytes)) for row in found]
    display.table(("ref", "task", "policy", "samples", "size"), rows, right=("samples", "size"))


def _show(session: Session, samples: Samples, name: str, limit: int | None) -> None:
    ref = samples.record(name).ref
    found = samples.show(ref, limit)
    if session.json:
        rows: list[dict[str, Any]] = [{"row": i, **example.to_json()} for i, example in enumerate(found, 1)]
        session.give({"ref": ref, "samples": rows})
        return
    if not found and limit != 0:
        session.note(f"{ref} keeps no replay samples")
        return
    table = [(i, _cut(e.instruction), _cut(e.input), _cut(e.answer or "")) for i, e in enumerate(found, 1)]
    display.table(("row", "instruction", "input", "output"), table, right=("row",))


def _cut(text: str) -> str:
    return text if len(text) <= _WIDEST else text[: _WIDEST - 1] + "…"


def _drop(
    session: Session,
    samples: Samples,
    name: str,
    rows: list[int] | None,
    matching: str | None,
    everything: bool,
    yes: bool,
) -> None:
    ways = [
        way for way, given in (("--row", rows), ("--matching", matching is not None), ("--all", everything)) if given
    ]
    if len(ways) != 1:
        what = f"{' and '.join(ways)} do not go together" if ways else "replay drop does not know what to drop"
        raise UsageError(what, "give one of --row N, --matching TEXT and --all")
    ref = samples.record(name).ref  # an unknown name is no question
    if not yes:
        which = {"--row": f"row {', '.join(map(str, rows or ()))}", "--matching": "what matches", "--all": "everything"}
        whose = ref if "@" in name else f"all versions of {name}"
        ask(f"drop {which[ways[0]]} from the replay samples of {whose}?", "samples", "add --yes")
    dropped = samples.drop(name, rows=rows, matching=matching)
    if session.json:
        session.give({"name": name, "dropped": dropped})
    else:
        print(f"dropped {_samples(dropped)} from {name if '@' in name else f'all versions of {name}'}")


def _budget(session: Session, samples: Samples, size: str | None, yes: bool) -> None:
    from adapterhub_cl.samples.budget import parse_budget

    wanted = parse_budget(size)
    if wanted is not None and not yes:
        held = samples.rows()
        now = sum(row.samples if wanted.unit == "samples" else row.bytes for row in held)
        if now > wanted.amount:
            much = _samples(now) if wanted.unit == "samples" else display.size(now)
            ask(f"{much} are kept, more than {_words(wanted)}: drop what is over?", "samples", "add --yes")
    cut = [] if size is None else samples.set_budget(size)
    budget, rows = samples.budget(), samples.rows()
    count, taken = sum(row.samples for row in rows), sum(row.bytes for row in rows)
    if session.json:
        limit = {"amount": budget.amount, "unit": budget.unit} if budget else None
        session.give({"budget": limit, "samples": count, "bytes": taken, "cut": [row.to_json() for row in cut]})
        return
    for row in cut:
        session.note(f"{row.ref}: {row.before} → {row.after} samples")
    print(f"{_samples(count)}, {display.size(taken)}; budget: {_words(budget)}")


def _words(budget: Budget | None) -> str:
    if budget is None:
        return "none"
    return _samples(budget.amount) if budget.unit == "samples" else str(budget)
