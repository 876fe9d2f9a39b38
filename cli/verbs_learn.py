"""`init`, `add-task`, `update`, `demo`: make a hub and teach it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from cl_adapter import display
from cl_adapter.app import MAKE, verb
from cl_adapter.completion import versions
from cl_adapter.failures import explain
from cl_adapter.flags import Announcing, effective, flags, takes
from cl_adapter.session import Session

from adapterhub_cl.bases.already_quantised import advice
from adapterhub_cl.bases.sources import is_gguf
from adapterhub_cl.errors import AdapterHubError, GateRefused, UsageError, count
from adapterhub_cl.hub import AdapterHub
from adapterhub_cl.launching import divides_base, is_helper_process
from adapterhub_cl.learning.train_options import FACT_REPLAY, AddTaskOptions, UpdateOptions
from adapterhub_cl.progress import Reporter
from adapterhub_cl.settings import TrainingSettings
from adapterhub_cl.types import AdapterRecord, BaseInfo, Evaluation

Data = Annotated[
    str | None,
    typer.Argument(
        help="file (JSONL, JSON, CSV, TSV, Parquet, text), saved dataset, hub dataset, or - for JSON lines on stdin"
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="continue the newest unfinished run of this name")]


def fit_router(hub: AdapterHub, reporter: Reporter) -> None:
    """Fit the router now, with a progress bar, instead of during the next predict. A failure here loses nothing."""
    if is_helper_process() or divides_base():  # of a divided base, the other processes would be missing
        return
    try:
        hub.fit_router(reporter=reporter)
    except AdapterHubError as error:
        reporter.note(f"note: the router was not fitted ({error.message}); the next predict fits it")


@verb(MAKE, "cl-adapter init my-hub --base tiny")
def init(
    ctx: typer.Context,
    path: Annotated[
        str | None, typer.Argument(help="the folder of the new hub; default: --hub, else $CL_ADAPTER_HUB")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="tiny (embedded), a folder, a GGUF file, or an id such as Qwen/Qwen2.5-0.5B")
    ] = None,
    quantization: Annotated[str, typer.Option(help="how the base is stored in memory")] = "nf4",
    revision: Annotated[str | None, typer.Option(help="branch, tag or commit of the id")] = None,
    index: Annotated[
        str | None,
        typer.Option(help="postgresql://user@host/database: the index on a server, without a password; see sharing.md"),
    ] = None,
    store: Annotated[
        str | None, typer.Option(help="s3://bucket/prefix: the versions in a store that other machines reach")
    ] = None,
) -> None:
    """Make a hub for one base."""
    session = Session.of(ctx)
    if base is None:
        raise UsageError(
            "init needs --base",
            "cl-adapter init --base tiny takes the embedded one; or give a folder, a GGUF file or a hub id",
        )
    if path and session.hub_path and Path(path).expanduser() != session.hub_path:
        raise UsageError(f"two places for the hub: {path} and --hub {session.hub_path}", "give one of them")
    from adapterhub_cl.hub import AdapterHub

    where = Path(path).expanduser() if path else session.named()
    if where is None:
        raise UsageError("init needs a folder for the hub", "cl-adapter init my-hub --base tiny")
    if is_gguf(base):
        session.note("reading the GGUF file; it is dequantised into the cache unless it is there, which takes a minute")
    hub = AdapterHub.init(where, base, quantization=quantization, revision=revision, index=index, store=store)
    found = hub.base
    if session.json:
        session.give({"hub": str(hub.folder), "base": {k: getattr(found, k) for k in found.__dataclass_fields__}})
        return
    print(
        f"made a hub at {hub.folder}: base {found.source} ({found.architecture}, "
        f"{found.parameters / 1e6:,.1f} million parameters, {found.quantization})"
    )
    if told := advice(found, quantization):
        session.note(f"note: {told}")
    named = "" if hub.folder == session.named() and session.hub_path is None else f"--hub {where} "
    session.note(f"next: cl-adapter {named}add-task NAME DATA.jsonl --eval TEST.jsonl")


@verb(MAKE, "cl-adapter add-task news train.jsonl --eval test.jsonl --epochs 2")
@takes(AddTaskOptions, TrainingSettings)
def add_task(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="the task's and the adapter's name")],
    data: Data = None,
    resume: Resume = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="say what the run would do and need; write nothing"),
    ] = False,
    *,
    given: dict[str, Any],
) -> None:
    """Train an adapter for a new task, keep replay samples, evaluate, record."""
    if dry_run:
        _show_plan(Session.of(ctx), name, data, resume, given)
    else:
        _teach(Session.of(ctx), "add_task", name, data, resume, given)


@verb(
    MAKE,
    "cl-adapter update news fresh.jsonl --eval test.jsonl\n"
    "tail -f feed.jsonl | cl-adapter update news - --online --every 100",
)
@takes(UpdateOptions, TrainingSettings, strategy="sequential", replay="as before", rank="as before")
def update(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="the adapter to update", autocompletion=versions)],
    data: Data = None,
    online: Annotated[bool, typer.Option("--online", help="learn JSON lines from stdin as they come")] = False,
    every: Annotated[
        int,
        typer.Option(help="--online: rows per version, rounded up to whole batches (default: batches of 8, 2 epochs)"),
    ] = 100,
    resume: Resume = False,
    *,
    given: dict[str, Any],
) -> None:
    """Train a new version from new data of a known task, or from raw text."""
    if online:
        _online(Session.of(ctx), name, data, every, resume, given)
    else:
        _teach(Session.of(ctx), "update", name, data, resume, given)


@verb(MAKE, "cl-adapter demo")
def demo(
    ctx: typer.Context,
    folder: Annotated[str | None, typer.Argument(help="folder of its hub; default: ./demo-hub")] = None,
    seed: Annotated[int, typer.Option(help="seed of every random choice")] = 0,
) -> None:
    """Run the whole life cycle on the embedded base."""
    session = Session.of(ctx)
    from adapterhub_cl import demo as shown

    place = Path(folder).expanduser() if folder else session.hub_path
    tell = session.note if session.json else (lambda text: None if session.quiet else print(text, flush=True))
    found = shown.run(place, seed=seed, tell=tell, reporter=session.bars())
    if session.json:
        session.give(found)


def _show_plan(session: Session, name: str, data: str | None, resume: bool, given: dict[str, Any]) -> None:
    hub = session.hub()
    found = hub.add_task(name, data, resume=resume, dry_run=True, reporter=session.reporter(), **given)
    if session.json:
        session.give(asdict(found))
        return
    asked = f", prompt {found.prompt_format!r}" if found.prompt_format else ""
    print(f"task {found.task}: {found.kind}{asked}")
    print(f"  {found.examples} row{'s' if found.examples > 1 else ''} to train on, {found.held_out} held out")
    print(f"  {count(found.epochs, 'epoch')} in batches of {found.batch_size}: {count(found.steps, 'step')}")
    cut = f"; {found.truncated} did not fit into {found.max_length} and were cut" if found.truncated else ""
    print(f"  a row has {found.typical_length} tokens, the longest {found.longest}{cut}")
    print(f"  rank {found.rank}, {found.trainable:,} parameters to train, learning rate {found.learning_rate:g}")
    print(f"  computes in {found.why or found.dtype}, {found.computes}")
    print(
        f"  the steps take about {display.duration(found.seconds)} and {found.memory_bytes / 1e9:.2f} GB of memory; "
        "scoring takes time as well"
    )
    print(f"the first row, with what is learned between {display.LEARNED[0]} and {display.LEARNED[1]}:")
    print(display.marked(found.shown))
    print("nothing was written")


def _teach(session: Session, method: str, name: str, data: str | None, resume: bool, given: dict[str, Any]) -> None:
    started = time.monotonic()
    hub = session.hub(write=True)
    reporter = Announcing(session.reporter(), "" if resume else _settings_line(method, given, hub.base))
    teach = hub.add_task if method == "add_task" else hub.update
    try:
        record = teach(name, data, resume=resume, reporter=reporter, **given)
    except GateRefused as refused:
        show_refused(session, refused, outcome, show_outcome)
        raise
    seconds = time.monotonic() - started
    fit_router(hub, reporter)
    if session.json:
        session.give({**outcome(record), "seconds": round(seconds, 1)})
        return
    show_outcome(record, f"{seconds:.0f} s", hub.registry.serving())
    scope = hub.scope(record.ref)
    if scope and scope.names and not scope.closed:
        session.note(f"note: {display.NOT_KEPT_AWAY}")
    if not record.metrics:
        next_step = f"eval {record.name} --data TEST.jsonl"
    elif hub.registry.serving().get(record.task) == record.ref:
        next_step = f'predict --task {record.task} "TEXT"'
    else:  # production is pinned to another version
        next_step = f"forgetting {record.ref}"
    session.note(f"next: {session.command(next_step)}")


def _online(session: Session, name: str, data: str | None, every: int, resume: bool, given: dict[str, Any]) -> None:
    if data not in (None, "-"):
        raise UsageError(f"--online reads standard input, not {data}", f"cl-adapter update {name} - --online < {data}")
    for option in ("log_with", "augment", "facts", "forecast"):
        if option in given:
            raise UsageError(f"--{option.replace('_', '-')} cannot be used with --online", "leave it out")
    if resume and (fixed := {key: value for key, value in given.items() if key != "max_forgetting"}):
        _refuse_resumed(fixed)
    hub = session.hub(write=True)
    made = hub.update_online(name, every=every, resume=resume, reporter=session.reporter(), **given)
    if not made:
        return
    fit_router(hub, session.reporter())
    if session.json:
        session.give({**outcome(made[-1]), "versions": [outcome(record) for record in made]})
        return
    for record in made:  # each version but the last one was replaced by the next
        show_outcome(record, serving=hub.registry.serving() if record is made[-1] else {})
    session.note(f"next: {session.command(f'show {made[-1].ref}')}")


def _refuse_resumed(given: Mapping[str, Any]) -> None:
    shown = flags(given, AddTaskOptions, TrainingSettings)
    raise UsageError(f"a resumed run keeps its settings: {shown} cannot be given", "leave them out, or --resume")


def _settings_line(method: str, given: Mapping[str, Any], base: BaseInfo) -> str:
    """The most important settings, and all that differ from their defaults; `show` lists every one."""
    from adapterhub_cl import replay, strategies
    from adapterhub_cl.bases.kinds import MASKED, objectives_of

    again = "sequential, for raw text lwf" if MASKED in objectives_of(base.architecture) else "sequential"
    kept = FACT_REPLAY if given.get("facts") else replay.DEFAULT
    usual = (strategies.DEFAULT, kept) if method == "add_task" else (again, "as before")
    shown: dict[str, Any] = dict(zip(("strategy", "replay"), usual, strict=True))
    shown |= {k: v for k, v in given.items() if k in shown}
    shown |= {k: v for k, v in effective(given).to_json().items() if k in ("epochs", "rank") or k in given}
    shown |= {"facts": "yes"} if given.get("facts") else {}
    if method == "update" and "rank" not in given:  # an update keeps the old version's shape
        del shown["rank"]
    words = [f"{k.replace('_', '-')}={v}" for k, v in shown.items() if v not in ("", None)]
    return f"settings: {' '.join(words)}"


def show_refused(
    session: Session,
    refused: GateRefused,
    whole: Callable[[AdapterRecord], dict[str, Any]],
    show: Callable[[AdapterRecord], None],
) -> None:
    """Print the version that the gate refused and that is kept; with `--json` the error stands in the same object.

    Args:
        whole: what `--json` gives for a version; `show` prints one.
    """
    if refused.record is not None and session.json:
        session.give({**whole(refused.record), **explain(refused).to_json()})
        raise typer.Exit(refused.exit_code) from refused
    if refused.record is not None:
        show(refused.record)


def outcome(record: AdapterRecord) -> dict[str, Any]:
    """What `--json` gives for a verb that makes a version."""
    return {
        **record.to_json(),
        "gate": record.manifest.get("gate"),
        **({"forecast": record.manifest["forecast"]} if "forecast" in record.manifest else {}),
        "path": str(record.place),
        "task_spec": record.manifest.get("task_spec"),
        "evaluations": record.manifest.get("evaluations", []),
    }


def show_outcome(record: AdapterRecord, took: str = "", serving: Mapping[str, str] | None = None) -> None:
    """Print the version that was made, what it is for and what it scored.

    Args:
        serving: the hub's serving table.
    """
    spec = record.manifest.get("task_spec") or {}
    labels = f", labels: {display.some(spec['labels'])}" if spec.get("labels") else ""
    print(f"{record.ref}  {spec.get('kind', 'unknown')} task {record.task}{labels}")
    found = [Evaluation(**row) for row in record.manifest.get("evaluations", [])]
    for score in found:
        other = f"{score.task}: " if score.task != record.task else ""
        twice = sum((s.task, s.metric) == (score.task, score.metric) for s in found) > 1
        print(f"  {other}{display.score_line(score)}{f' on {score.data}' if twice and score.data else ''}")
    display.show_general(record.manifest.get("gate") or {})
    display.show_foretold(record.manifest)
    if (taken := record.manifest.get("takes_over")) and record.status != "active":
        print(f"  was to answer for {', '.join(taken)} too")
    elif taken:
        now = serving or {}
        mine = [task for task in taken if now.get(task, record.ref) == record.ref]
        if mine:
            print(f"  answers for {', '.join(mine)} too")
        for task in taken:
            if task not in mine:
                print(f"  {task} stays with {now[task]} (production); to move it: cl-adapter promote {record.ref}")
    now = (serving or {}).get(record.task)
    if record.status == "active" and now and now != record.ref:
        print(f"  {now} still answers for {record.task}; to move it: cl-adapter promote {record.ref}")
    facts = [record.status, f"rank {record.rank}", display.size(record.bytes), took]
    print(f"  {', '.join(fact for fact in facts if fact)}")
