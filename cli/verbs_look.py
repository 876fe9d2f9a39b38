"""`list`, `show`, `log`, `lineage`: what is there. None of them imports torch, but for `show --prompt`."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from cl_adapter import display
from cl_adapter.app import LOOK, verb
from cl_adapter.completion import Ref, versions
from cl_adapter.session import Session

from adapterhub_cl.errors import IntegrityError
from adapterhub_cl.evaluation.gate import general_of
from adapterhub_cl.learning.chosen_settings import in_words
from adapterhub_cl.rebasing.rebase_options import HOW
from adapterhub_cl.registry import run_checks
from adapterhub_cl.types import BASE, DERIVED, LATEST, AdapterRecord, Edge

if TYPE_CHECKING:
    from adapterhub_cl.deciding.scope import FactScope
    from adapterhub_cl.hub import AdapterHub
    from adapterhub_cl.registry import StoredEvaluation, Usage


@verb(LOOK, "cl-adapter list --json", "list")
def list_adapters(
    ctx: typer.Context,
    all_versions: Annotated[bool, typer.Option("--all", help="list every version")] = False,
) -> None:
    """List the adapters: the version that serves, and the newest one."""
    session = Session.of(ctx)
    hub = session.hub()
    found = hub.list(all_versions=all_versions)
    serves: dict[str, list[str]] = {}
    for task, ref in hub.registry.serving().items():
        serves.setdefault(ref, []).append(task)
    if session.json:
        counts: Counter[str] = Counter()
        for row in hub.registry.usage():
            counts[row.ref] += row.requests
        session.give([{**r.to_json(), "serves": serves.get(r.ref, []), "requests": counts[r.ref]} for r in found])
        return
    if stopped := run_checks.resumable(hub.registry.runs_dir):
        more = f" (and {len(stopped) - 1} more, see verify)" if stopped[1:] else ""
        session.note(f"unfinished; go on with: {display.one_line(session.command(stopped[0]))}{more}")
    if not found:
        session.note(f"no adapters yet; make one: {session.command('add-task NAME DATA.jsonl')}")
        return
    first, rows = _first_scores(hub.evaluations(), found), Counter(record.name for record in found)
    display.table(
        ("ref", "task", "kind", "metric", "value", "rank", "size", "age", "state", "aliases"),
        [
            _row(record, first.get(record.ref), len(serves.get(record.ref, ())), alone=rows[record.name] == 1)
            for record in found
        ],
        right=("value", "rank", "size", "age"),
    )
    if not all_versions and (refused := _newer_but_rejected(hub, found)):
        session.note(f"newer, but rejected by the gate: {display.some(refused, 5)} (--all lists every version)")


def _newer_but_rejected(hub: AdapterHub, shown: Sequence[AdapterRecord]) -> list[str]:
    """The newest version of each adapter if the gate rejected it and an older one is listed."""
    listed = {record.name: record.version for record in shown}
    newest = {record.name: record for record in hub.list(all_versions=True)}
    return [r.ref for r in newest.values() if r.status == "rejected" and r.version > listed.get(r.name, r.version)]


def _first_scores(found: Iterable[StoredEvaluation], records: Iterable[AdapterRecord]) -> dict[str, StoredEvaluation]:
    """The main score of each version, as it was first measured: by the metric of its task, where there is such a
    score."""
    main = {r.ref: (r.task, (r.manifest.get("task_spec") or {}).get("metric")) for r in records}
    first: dict[str, StoredEvaluation] = {}
    meant: dict[str, StoredEvaluation] = {}
    for stored in found:
        first.setdefault(stored.ref, stored)
        if (stored.evaluation.task, stored.evaluation.metric) == main.get(stored.ref):
            meant.setdefault(stored.ref, stored)
    return {**first, **meant}


def _row(record: AdapterRecord, scored: StoredEvaluation | None, served: int, *, alone: bool) -> Sequence[Any]:
    """One row of the table; `latest` is shown only if an adapter has more than one row."""
    metric = scored.evaluation.metric if scored else None
    value = scored.evaluation.value if scored else None
    kept = _finite(record.retention) if record.kind in DERIVED and len(record.tasks) > 1 else None
    if kept:  # one score would stand for one of its tasks only
        metric = "of its parent" if record.kind == "pruned" else "mean retention"
        value = sum(kept.values()) / len(kept)
    return (
        record.ref,
        ", ".join(record.tasks[:3]) + (", …" if len(record.tasks) > 3 else "") if not record.task else record.task,
        record.kind,
        metric,
        None if value is None else display.value(value),
        record.rank,
        display.size(record.bytes),
        display.age(record.created_at),
        record.state(served),
        ",".join(alias for alias in record.aliases if alias != LATEST or not alone),
    )


def _finite(numbers: Mapping[str, float]) -> dict[str, float]:
    """The measured values, without NaN."""
    return {key: number for key, number in numbers.items() if math.isfinite(number)}


@verb(LOOK, "cl-adapter show news@v2")
def show(
    ctx: typer.Context,
    ref: Ref,
    prompt: Annotated[
        bool, typer.Option("--prompt", help="show a replay sample too, as the base reads it; what is learned is marked")
    ] = False,
) -> None:
    """Show everything about one version."""
    session = Session.of(ctx)
    hub = session.hub()
    if ref == BASE and BASE not in {known.name for known in hub.list()}:
        _show_base(session, hub)
        return
    record = hub.get(ref)
    scores = hub.evaluations(record.ref)
    parents = [edge for edge in hub.lineage(record.ref) if edge.child == record.ref]
    served = sorted(task for task, answers in hub.registry.serving().items() if answers == record.ref)
    usage = hub.registry.usage(record.ref)
    example = hub.example(record.ref) if prompt else []
    scope = _scope(session, hub, record.ref)
    if session.json:
        about = _whole(record, scores, parents)
        shown = {"example": [asdict(part) for part in example]} if prompt else {}
        tuned = hub.tuned(record.name)
        shown |= {"tuned": tuned["settings"]} if tuned else {}
        shown |= {"subjects": scope.names, "keeps_away": scope.closed} if scope and scope.names else {}
        session.give({**about, "serves": served, "usage": [row.to_json() for row in usage], **shown})
        return
    _print_whole(record, scores, parents, served, usage)
    if scope and scope.names:
        print(f"\nknows facts about {display.some(scope.names, _SUBJECTS)}")
        if not scope.closed:
            print(display.NOT_KEPT_AWAY)
    if tuned := hub.tuned(record.name):
        chosen = in_words(tuned["settings"])
        print(f"\nlater trainings of {record.name} begin with what tune kept: {chosen or tuned['kept']}")
    if prompt and not example:
        session.note("note: it keeps no replay samples, so there is no row to show")
    elif prompt:
        print(f"a row, with what is learned between {display.LEARNED[0]} and {display.LEARNED[1]}:")
        print(display.marked(example))


def _scope(session: Session, hub: AdapterHub, ref: str) -> FactScope | None:
    """What facts are about; None where the samples are damaged, too."""
    try:
        return hub.scope(ref)
    except IntegrityError as error:
        session.note(f"note: {error.message}; {error.hint}")
        return None


def _show_base(session: Session, hub: AdapterHub) -> None:
    """The base's own answers."""
    usage = hub.registry.usage(BASE)
    about = {
        "base": hub.base.source,
        "quantization": hub.base.quantization,
        "parameters": hub.base.parameters,
        "requests": sum(row.requests for row in usage),
        "out_of_distribution": sum(row.fallbacks for row in usage),
    }
    if session.json:
        session.give({**about, "usage": [row.to_json() for row in usage]})
    else:
        display.pairs({key.replace("_", " "): value for key, value in about.items()})


_SUBJECTS = 12  # of a version's facts that are listed
_IN_RECORD = {"name", "version", "kind", "task", "status", "rank", "bytes", "created_at", "evaluations", "lineage"}


def _whole(record: AdapterRecord, scores: Sequence[StoredEvaluation], parents: Sequence[Edge]) -> dict[str, Any]:
    return {
        **record.to_json(),
        "path": str(record.place),
        **{key: _plain(value) for key, value in record.manifest.items() if key not in _IN_RECORD},
        "evaluations": [stored.to_json() for stored in scores],
        "lineage": [{"parent": edge.parent, "relation": edge.relation} for edge in parents],
    }


def _plain(value: Any) -> Any:
    """Replace NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _plain(below) for key, below in value.items()}
    if isinstance(value, list):
        return [_plain(below) for below in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _print_whole(
    record: AdapterRecord,
    scores: Sequence[StoredEvaluation],
    parents: Sequence[Edge],
    served: Sequence[str],
    usage: Sequence[Usage],
) -> None:
    made, task = record.manifest, record.manifest.get("task_spec") or {}
    training, base, replay = (made.get(key) or {} for key in ("training", "base", "replay"))
    data, held_out = training.get("data") or {}, training.get("eval") or {}
    error = made.get("truncation_error")
    about = {
        "ref": record.ref,
        "status": record.status,
        "kind": record.kind,
        "aliases": ", ".join(record.aliases),
        "made": f"{display.moment(record.created_at)} ({display.age(record.created_at)} ago)",
        "task": f"{record.task} ({task.get('kind', 'unknown')})" if record.task else "",
        "made of": _made_of(made.get("recipe") or {}),
        "for the tasks": "" if record.task else ", ".join(record.tasks),
        "retention": ", ".join(f"{t} {share:.3f}" for t, share in _finite(record.retention).items()),
        "loss on general text": effect.describe() if (effect := general_of(made.get("gate") or {})) else "",
        "truncation error": f"{error:.4g}" if isinstance(error, int | float) and math.isfinite(error) else "",
        "answers for": ", ".join(served),
        "requests": _requests(usage, len(record.tasks) > 1),
        "labels": ", ".join(task.get("labels", ())),
        "instruction": task.get("instruction"),
        "prompt format": "" if "heads.json" in record.manifest.get("files", ()) else task.get("prompt_format"),
        "base": f"{base['source']} ({str(base.get('fingerprint') or '')[:12]})" if base.get("source") else "",
        "rebased from": _rebased(made.get("rebased_from") or {}),
        "rank": record.rank,
        "alpha": made.get("alpha"),
        "modules": ", ".join(made.get("target_modules") or ()),
        "strategy": made.get("strategy"),
        "learned by": objective if (objective := training.get("objective")) in ("dpo", "kto") else "",
        "replay samples": f"{replay['samples']} ({replay.get('policy')})" if "samples" in replay else "",
        "data": _source(data),
        "held-out data": _source(held_out),
        "settings": _settings(training),
        "size": display.size(record.bytes),
        "path": record.place,
    }
    display.pairs({**about, **{f"parent {i}": _edge(edge) for i, edge in enumerate(parents, 1)}})
    if scores:
        print()
        display.table(
            ("task", "metric", "value", "95 % interval", "n", "measured", "data"),
            [
                (
                    s.evaluation.task,
                    s.evaluation.metric,
                    display.value(s.evaluation.value),
                    display.interval(s.evaluation),
                    s.evaluation.n,
                    display.moment(s.created_at),
                    s.evaluation.data,
                )
                for s in scores
            ],
            right=("value", "n"),
        )
    reported = [stored.evaluation for stored in scores if stored.evaluation.details.get("classes")]
    if reported:
        print()
        display.class_report(reported[-1])
    print()
    files = [(name, display.size(row["bytes"]), row["sha256"][:16]) for name, row in made.get("files", {}).items()]
    display.table(("file", "size", "sha256"), files, right=("size",))


def _rebased(told: Mapping[str, Any]) -> str:
    """`news@v2 of old-hub on tiny (6f…), learned from samples: accuracy 0.81 → 0.79`."""
    if not told:
        return ""
    base = told.get("base") or {}
    said = f"{told.get('ref')} of {told.get('hub')} on {base.get('source')} ({str(base.get('fingerprint') or '')[:12]})"
    if told.get("source") == "rebound":
        return f"{said}, copied because the weights are the same"
    scores = [told.get("old_score"), told.get("new_score")]
    both = " → ".join(display.value(one) if isinstance(one, int | float) else "?" for one in scores)
    source = str(told.get("source"))
    how = f"used {HOW[source]}" if source in HOW else f"learned from {source}"
    begun = ", begun as a copy of it" if told.get("begun_as_copy") else ""
    return f"{said}, {how}{begun}: {told.get('metric')} {both}"


def _requests(usage: Sequence[Usage], by_task: bool) -> str:
    """`12, the last 4 d ago; 9 routed with mean confidence 0.93`, and how many for each of several tasks."""
    total, routed = sum(row.requests for row in usage), sum(row.routed for row in usage)
    if not total:
        return ""
    said = f"{total}, the last {display.age(max(row.last_at for row in usage))} ago"
    if routed:
        sure = sum(row.routed * (row.mean_confidence or 0.0) for row in usage) / routed
        said += f"; {routed} routed with mean confidence {sure:.2f}"
    if by_task or len(usage) > 1:
        said += "; " + ", ".join(f"{row.task or 'no task'} {row.requests}" for row in usage)
    return said


def _made_of(recipe: dict[str, Any]) -> str:
    """`0.5 × news@v1, 0.5 × reviews@v1 by ties`."""
    weights, parents = recipe.get("weights") or {}, recipe.get("parents")
    parts = [
        f"{weight:.4g} × {ref}" if isinstance(weight := weights.get(str(ref)), int | float) else str(ref)
        for ref in (parents if isinstance(parents, list) else ())
    ]
    return ", ".join(parts) + (f" by {recipe['method']}" if recipe.get("method") else "")


def _source(data: dict[str, Any]) -> str:
    return f"{data['source']} ({data.get('examples', '?')} examples)" if data.get("source") else ""


def _settings(training: dict[str, Any]) -> str:
    settings = dict(training.get("settings") or {})
    if "learning_rate" in training:  # the one that was trained with, where the setting left it to be chosen
        settings["learning_rate"] = training["learning_rate"]
    return " ".join(f"{k.replace('_', '-')}={v}" for k, v in settings.items() if v not in (None, ""))


def _edge(edge: Edge) -> str:
    return f"{edge.relation.replace('_', ' ')} {edge.parent}"


@verb(LOOK, "cl-adapter log news -n 5")
def log(
    ctx: typer.Context,
    name: Annotated[
        str | None, typer.Argument(help="an adapter, a version or a task; default: everything", autocompletion=versions)
    ] = None,
    count: Annotated[
        int, typer.Option("--number", "-n", min=0, max=10**9, help="how many of the newest to show; 0 for all")
    ] = 20,
) -> None:
    """Show the log, newest first."""
    session = Session.of(ctx)
    hub = session.hub()
    found = hub.log(name, count or None)
    if name is not None and not found:
        hub.get(name)  # nothing happened to it because it is not there: the error says what is
    if session.json:
        session.give([event.to_json() for event in found])
        return
    if not found:
        session.note("nothing has happened yet")
        return
    rows = [(display.moment(event.at), event.verb, event.ref, _detail(event.detail)) for event in found]
    display.table(("when", "verb", "what", "detail"), rows)


def _detail(detail: Any) -> str:
    return " ".join(
        f"{key}={value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for key, value in detail.items()
        if value not in (None, "", [], {})
    )


@verb(LOOK, "cl-adapter lineage news")
def lineage(
    ctx: typer.Context,
    ref: Ref,
) -> None:
    """Show a version's ancestors and descendants."""
    session = Session.of(ctx)
    hub: AdapterHub = session.hub()
    record = hub.get(ref)
    edges = hub.lineage(record.ref)
    if session.json:
        rows = [{"child": edge.child, "parent": edge.parent, "relation": edge.relation} for edge in edges]
        session.give({"ref": record.ref, "edges": rows, "rebased_from": record.manifest.get("rebased_from")})
        return
    print(record.ref)
    if told := _rebased(record.manifest.get("rebased_from") or {}):
        print(display.one_line(f"  rebased from {told}"))
    _branch(record.ref, edges, upwards=True, depth=1, seen={record.ref})
    if any(edge.parent == record.ref for edge in edges):
        print(f"made from {record.ref}:")
        _branch(record.ref, edges, upwards=False, depth=1, seen={record.ref})


def _branch(ref: str, edges: Sequence[Edge], *, upwards: bool, depth: int, seen: set[str]) -> None:
    for edge in edges:
        here, there = (edge.child, edge.parent) if upwards else (edge.parent, edge.child)
        if here != ref:
            continue
        words = edge.relation.replace("_", " ")
        line = f"{words} {there}" if upwards else f"{there} {words} {here}"
        print("  " * depth + display.one_line(line))
        if there not in seen:
            _branch(there, edges, upwards=upwards, depth=depth + 1, seen={*seen, there})
