"""The removal: what a plan lists is made again without the task or deleted, and a tombstone remains.

Order: the tombstone is begun; derived versions are made again, without holding the hub's lock, because that may take
long; then, under the lock: what was learned in the meantime is added, samples of other tasks with the same input are
dropped, everything to be removed is hashed into the tombstone, all rows are deleted in one transaction, then the files,
then the index is rewritten; the tombstone is closed. Each step can be repeated: calling it again completes a removal
that was killed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from adapterhub_cl.erasure.places import STREAMS, run_folders, run_request, task_names
from adapterhub_cl.erasure.plan import REPEATED, Doomed, ErasurePlan, example_of, make_plan
from adapterhub_cl.erasure.search import shown
from adapterhub_cl.erasure.tombstone import Tombstone, existing, take_hashes
from adapterhub_cl.errors import AdapterError, DataError, GateRefused, StorageError, UnknownNameError, UsageError
from adapterhub_cl.progress import Reporter
from adapterhub_cl.registry import Registry, check_name, drafts, files, samples, tombstones
from adapterhub_cl.registry.keys import get_or_make
from adapterhub_cl.samples.store import sample_key
from adapterhub_cl.traffic.journal import LEARN_LOCK, Journal
from adapterhub_cl.training.runs import acquire
from adapterhub_cl.types import AdapterRecord

Repeat = Callable[[AdapterRecord, Mapping[str, str | None]], AdapterRecord | None]
_CANNOT = (AdapterError, DataError, GateRefused, UsageError)  # the version cannot be made without the task


def look(registry: Registry, task: str, *, may_repeat: bool = True, everywhere: bool | None = None) -> ErasurePlan:
    """What `forget` would do; changes nothing.

    Args:
        everywhere: whether versions of other tasks that saw rows of the task are removed too; None: as in a removal
            that has begun.

    Raises:
        UnknownNameError: the hub has no such task.
    """
    check_name(task, "task")
    stone = _open_one(registry, task)
    plan = _plan(registry, task, stone, may_repeat, everywhere)
    if stone is None:
        _check_known(registry, task, plan)
        return plan
    return replace(plan, tombstone=stone.path.name)


def forget(
    registry: Registry,
    task: str,
    repeat: Repeat | None = None,
    reporter: Reporter | None = None,
    *,
    everywhere: bool | None = None,
    key: Path | None = None,
) -> ErasurePlan:
    """Remove a task and everything that has data of it; continue a removal that was interrupted.

    Args:
        repeat: makes a derived version again: gets its record, and every version to remove → its replacement;
            returns the new version, or None. Without it, all derived versions are retired.
        everywhere: whether versions of other tasks that were trained on the same rows are removed too.
        key: the key file of the tombstone; created if it is missing. By default in the user's configuration directory.

    Returns:
        what was done.

    Raises:
        UnknownNameError: the hub has no such task.
        UsageError: versions of other tasks saw its rows, and `everywhere` is None.
        TrainingError: a run with data of it is in progress.
        StorageError: the disk cannot be written; the same call completes the removal.
    """
    reporter = reporter or Reporter()
    plan = look(registry, task, may_repeat=repeat is not None, everywhere=everywhere)
    check_shared(plan, everywhere)
    with registry.exclusively():
        for line in registry.repair():  # adopts versions that were not in the index yet
            reporter.note(f"note: {line}")
        stone = _open_one(registry, task)
        plan = _plan(registry, task, stone, repeat is not None, everywhere)
        if stone is None:  # another process may have forgotten it since the first look
            _check_known(registry, task, plan)
        check_shared(plan, everywhere)
        _refuse_live(registry, plan)
        if stone is None:
            made = get_or_make(registry.path, key)
            stone = Tombstone.begin(registry.path, task, registry.known_since(task), made)
            reporter.note(
                f"the tombstone's key is {made.path}; verify --forgotten needs it, so keep it, but not in the hub"
            )
        else:
            _unlock(registry, stone, key, reporter)
        stone.everywhere = everywhere if everywhere is not None else stone.everywhere
        _note_down(stone, plan)
        stone.save()
    drafts.fault("tombstone begun")
    try:
        reasons = _make_again(registry, plan, stone, repeat, reporter)
        with registry.exclusively():
            plan = _plan(registry, task, stone, may_repeat=False, everywhere=everywhere)
            _refuse_live(registry, plan)
            _note_down(stone, plan)
            _remove(registry, plan, stone)
    except StorageError as error:
        error.message = f"{error.message.partition(';')[0]}; {task} is not completely removed yet"
        error.args, error.hint = (error.message,), f"{error.hint}; then: cl-adapter forget-task {task} --yes"
        raise
    return _done(plan, stone, reasons)


def _open_one(registry: Registry, task: str) -> Tombstone | None:
    """The removal of the task that was begun and not finished."""
    return next((stone for stone in existing(registry, task) if not stone.finished_at), None)


def check_shared(plan: ErasurePlan, everywhere: bool | None) -> None:
    """Raise if versions of other tasks saw the task's rows, and the user did not say what happens to them."""
    if not plan.shared or everywhere is not None:
        return
    said = "; ".join(f"{ref} was {why}" if "@" in ref else f"{ref}: {why}" for ref, why in plan.shared.items())
    raise UsageError(
        f"other tasks share rows with {plan.task}: {said}",
        "--everywhere forgets these too; --leave-shared forgets only this task, but verify --forgotten lists them",
    )


def _unlock(registry: Registry, stone: Tombstone, key: Path | None, reporter: Reporter) -> None:
    """Prepare a tombstone that was begun before; if its key is lost, continue with another key."""
    if not stone.key:
        stone.strengthen(get_or_make(registry.path, key))
    elif not stone.unlock(registry.path, key):
        stone.start_anew(get_or_make(registry.path, key))
        reporter.note(
            f"note: the key of tombstones/{stone.path.name} is missing; the removal continues with another key, and "
            "what was removed so far cannot be searched for"
        )


def strengthen(registry: Registry, key: Path | None = None) -> list[str]:
    """Add a key to tombstones from before there were keys; returns one line for each.

    Raises:
        StorageError: the disk cannot be written.
    """
    done = []
    with registry.exclusively():
        for path, row in tombstones.read_all(registry.path):
            if tombstones.is_weak(row):
                stone = Tombstone.read(path, row)
                made = get_or_make(registry.path, key)
                stone.strengthen(made)
                stone.save()
                done.append(f"protected the hashes of {shown(path, registry.path)} with the key {made.path}")
    return done


def _plan(
    registry: Registry, task: str, stone: Tombstone | None, may_repeat: bool, everywhere: bool | None = None
) -> ErasurePlan:
    if stone is None:
        return make_plan(registry, task, may_repeat=may_repeat, everywhere=bool(everywhere))
    chosen = stone.everywhere if everywhere is None else everywhere
    plan = make_plan(
        registry,
        task,
        already=stone.versions,
        since=stone.since,
        replacements=stone.replacements,
        may_repeat=may_repeat,
        everywhere=bool(chosen),
    )
    if chosen is not None and everywhere is None:  # this was decided when the removal was begun
        plan = replace(plan, shared={})
    there = {record.ref for record in registry.adapters(all_versions=True)}
    versions = [  # for versions that are already gone, only the tombstone knows
        v if v.ref in there or v.ref not in stone.versions else Doomed(v.ref, **stone.versions[v.ref])
        for v in plan.versions
    ]
    return replace(plan, versions=tuple(versions))


def _check_known(registry: Registry, task: str, plan: ErasurePlan) -> None:
    if not plan.empty or any(known.name == task for known in registry.tasks()):
        return
    hint = "list the tasks that are served: cl-adapter list"
    for record in registry.adapters():
        if record.name == task and record.task:
            hint = f"{task} is an adapter; its task is {record.task}: cl-adapter forget-task {record.task}"
    for stone in existing(registry, task):
        hint = f"it was forgotten on {stone.finished_at[:10]}: cl-adapter verify --forgotten {task}"
    raise UnknownNameError("task", task, task_names(registry), hint)


def _refuse_live(registry: Registry, plan: ErasurePlan) -> None:
    """Raise if a process is working on something to be removed."""
    hub = registry.path
    locks = {hub / name / ".lock": f"the run {Path(name).name} of {plan.task}" for name in plan.runs}
    for name in plan.runs:
        adapter = str(run_request(hub / name).get("name", ""))
        locks[registry.runs_dir / f".online-{adapter}.lock"] = f"an online update of {adapter}"
    for name in plan.streams:
        path = hub / name
        locks[path.parent / f".{path.name}.stream.lock"] = f"the comparison {name}"
        locks |= {run / ".lock": f"a run in {name}" for run in run_folders(path / "runs")}
    locks[hub / LEARN_LOCK] = "what production has left (learn)"
    for path, what in locks.items():
        if path.exists():
            hint = f"wait for it, or stop it; then: cl-adapter forget-task {plan.task}"
            acquire(path, f"another process is working on {what}; nothing was removed", hint).release()


def _note_down(stone: Tombstone, plan: ErasurePlan) -> None:
    """Record a plan in the tombstone; if a removal continues, the larger numbers count."""
    for version in plan.versions:
        row = stone.versions.get(version.ref, {})
        after = row.get("replacement")
        stone.versions[version.ref] = {
            "why": row.get("why", version.why),
            "does": version.does,
            "task": version.task,
            "replacement": after,
        }
    stone.folders = sorted({*stone.folders, *plan.runs, *plan.streams, *plan.others})
    now = {"samples": plan.samples, "elsewhere": sum(plan.elsewhere.values()), "evaluations": plan.evaluations}
    now |= {"runs": len(plan.runs), "streams": len(plan.streams), "kept answers": plan.kept}
    stone.counts = {key: max(value, stone.counts.get(key, 0)) for key, value in now.items()}
    if plan.serve or plan.tasks_without_adapter:  # both are empty once the rows are deleted
        stone.without = list(plan.tasks_without_adapter)


def _make_again(
    registry: Registry, plan: ErasurePlan, stone: Tombstone, repeat: Repeat | None, reporter: Reporter
) -> dict[str, str]:
    """Make derived versions again, parents before children; returns those that could not be made, and why."""
    reasons: dict[str, str] = {}
    gone: dict[str, str | None] = {version.ref: version.replacement for version in plan.versions}
    for version in plan.versions:
        if version.does != REPEATED or version.replacement is not None or repeat is None:
            continue
        made = _made_before(registry, stone, version.ref)
        try:
            made = made or repeat(registry.get(version.ref), dict(gone))
            why = "too little is left of its parents"
        except _CANNOT as error:
            made, why = None, error.message
        if made is not None and (made.status != "active" or _still_holds(registry, made, plan.task, gone)):
            why = f"its replacement {made.ref} was refused or still descends from {plan.task}"
            made = None
        if made is None:
            reasons[version.ref] = why
            continue
        gone[version.ref] = made.ref
        drafts.fault("made again")
        stone.versions[version.ref]["replacement"] = made.ref
        with registry.exclusively():
            stone.save()
    return reasons


def _still_holds(registry: Registry, made: AdapterRecord, task: str, gone: Mapping[str, str | None]) -> bool:
    named = {made.task, *made.manifest.get("takes_over", ()), *made.manifest.get("learned_from", ())}
    return task in named or any(edge.parent in gone for edge in registry.lineage(made.ref))


def _made_before(registry: Registry, stone: Tombstone, ref: str) -> AdapterRecord | None:
    """A replacement that an interrupted removal made but did not record yet."""
    old = registry.get(ref)
    taken = set(stone.replacements.values())
    for record in registry.versions(old.name):
        newer = record.created_at >= stone.started_at and record.kind == old.kind and record.status == "active"
        if newer and record.ref not in taken and record.ref not in stone.versions:
            return record
    return None


def _remove(registry: Registry, plan: ErasurePlan, stone: Tombstone) -> None:
    """Everything that deletes something; needs the hub's lock."""
    for ref, count in plan.elsewhere.items():
        _drop_rows(registry, ref, count, plan.keys)
        drafts.fault("samples dropped")
    take_hashes(stone, registry, plan)
    stone.save()
    drafts.fault("hashes taken")
    gone = {ref: row["replacement"] for ref, row in stone.versions.items()}
    detail = {"tombstone": stone.path.name, "versions": len(gone), **stone.counts}
    registry.erase(plan.task, gone, plan.serve, detail)
    drafts.fault("rows erased")
    registry.remove_files(gone)
    for name in stone.folders:
        _remove_folder(registry, registry.path / name)
        drafts.fault("folder removed")
    Journal(registry.path).drop(task=plan.task, lessons=True, refs=list(gone))
    drafts.fault("kept answers dropped")
    for lock in registry.runs_dir.glob(f".online-{plan.task}.lock"):
        lock.unlink(missing_ok=True)
    registry.scrub()
    drafts.fault("index scrubbed")
    registry.check_mirror()
    stone.finished_at = files.now()
    stone.save()


def _remove_folder(registry: Registry, place: Path) -> None:
    """Remove a run, a comparison hub, or another file; only inside the hub, whatever a tombstone says."""
    inside = any(place.is_relative_to(root) for root in (registry.path, registry.adapters_dir))
    if not inside or ".." in place.parts:
        raise StorageError(f"{place} does not belong to this hub; not removed", "restore the tombstone from a copy")
    files.remove_tree(place)
    if place.is_relative_to(registry.path / STREAMS):
        (place.parent / f".{place.name}.stream.lock").unlink(missing_ok=True)
        with suppress(OSError):
            place.parent.rmdir()  # succeeds only if empty
            (registry.path / STREAMS).rmdir()


def _drop_rows(registry: Registry, ref: str, count: int, keys: frozenset[tuple[str, str]]) -> None:
    """Drop a version's samples that have the same input as one of the task's samples."""
    lines = samples.read(registry.get(ref))
    rows = [(line, example_of(line)) for line in lines]
    kept = [line for line, example in rows if example is None or sample_key(example) not in keys]
    text = "".join(line + "\n" for line in kept)
    registry.replace_samples(ref, text, verb="replay-drop", detail={"samples": count})


def _done(plan: ErasurePlan, stone: Tombstone, reasons: Mapping[str, str]) -> ErasurePlan:
    return replace(
        plan,
        samples=stone.counts["samples"],
        evaluations=stone.counts["evaluations"],
        tasks_without_adapter=tuple(stone.without),
        tombstone=stone.path.name,
        reasons=reasons,
    )
