"""Pull: versions of a store become versions of a hub, with the same name and number, once all of them are checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adapterhub_cl.data.tasks import described_otherwise
from adapterhub_cl.errors import AdapterError, IntegrityError, UnknownNameError, UsageError
from adapterhub_cl.learning.chosen_settings import carry_choice
from adapterhub_cl.progress import Reporter
from adapterhub_cl.registry import Registry, changes, check_new, parse_ref, storage_errors
from adapterhub_cl.registry.files import link_or_copy, sha256_file
from adapterhub_cl.registry.names import is_outside
from adapterhub_cl.registry.remote_store import RemoteStore, document
from adapterhub_cl.registry.samples import FILE_NAME as SAMPLES
from adapterhub_cl.registry.tombstones import forgotten
from adapterhub_cl.sharing.fetching import Fetcher, gathering
from adapterhub_cl.sharing.pulled_adapter import check_adapter
from adapterhub_cl.sharing.shared_version import MovedVersion, SharedVersion, digest, read, without_samples
from adapterhub_cl.sharing.signing import as_fingerprint, pin, pinned
from adapterhub_cl.types import LATEST, AdapterRecord, Evaluation, Task

_BUILT = ("format", "name", "version", "task_spec", "lineage", "evaluations", "published", "files", "bytes")


@dataclass(frozen=True)
class _Place:
    """Where a version goes in this hub.

    Attributes:
        number: None where it takes the next one, under a name of the user's choice.
        there: the version with this content that the hub has already.
    """

    shared: SharedVersion
    name: str
    number: int | None
    there: AdapterRecord | None = None

    @property
    def renamed(self) -> bool:
        return self.number is None


def pull(
    registry: Registry,
    target: str,
    ref: str | None = None,
    *,
    name: str | None = None,
    trust: Sequence[str] = (),
    with_samples: bool = False,
    reporter: Reporter,
) -> list[MovedVersion]:
    """Bring versions of a store into the hub. Everything about them is checked before the first is published, and each
    is published completely or not at all. What is there already is skipped, so a pull that was stopped continues.

    The first pull from a store accepts its signer for this hub; from then on another signer is refused.

    Args:
        ref: a version, or a name for all versions of an adapter; None for everything.
        name: the adapter's name here, instead of the one that it has in the store; needs one version.
        trust: fingerprints of further signers to accept.
        with_samples: bring replay samples too, where the store has them.

    Raises:
        UnknownNameError: the store has no such version.
        UsageError: a value cannot be used.
        AdapterError: a version is of another base, its name and number are taken by other content, its task is
            described otherwise here, or was forgotten.
        IntegrityError: something in the store was changed, is damaged, or another key signed it.
        StorageError: the store cannot be read, or the disk cannot be written.
    """
    with changes.operation():
        return _pull(registry, RemoteStore(target), ref, name, trust, with_samples, reporter)


def _pull(
    registry: Registry,
    store: RemoteStore,
    ref: str | None,
    name: str | None,
    trust: Sequence[str],
    with_samples: bool,
    reporter: Reporter,
) -> list[MovedVersion]:
    accepted = {as_fingerprint(one) for one in trust}
    store.check_there()
    in_store = store.listed()
    _tell_vanished(registry, store, in_store, reporter)
    wanted = _wanted(store, in_store, ref)
    if name is not None and len(wanted) != 1:
        raise UsageError(f"--as names one version, and these are {len(wanted)}", "name one: news@v2")
    if name is not None:
        check_new(name)
    shared = [_read(store, *one) for one in wanted]
    signers = _accepted(registry, store, shared, accepted)
    shared.sort(key=lambda one: (str(one.manifest["created_at"]), one.name, one.number))
    _adopt_interrupted(registry, {name} if name is not None else {one.name for one in shared})
    places = [_place(registry, one, name) for one in shared]
    new = [place for place in places if place.there is None]
    _check_tasks(registry, new)
    done = {p.shared.ref: MovedVersion(p.there.ref, False) for p in places if p.there is not None}
    if with_samples:
        _tell_without(places, reporter)
    if new:
        with gathering(registry.path) as folder:
            fetcher = Fetcher(registry, store, folder)
            listed = {place.shared.ref: _files(place.shared, with_samples) for place in new}
            fetcher.check_space({row["sha256"]: row for rows in listed.values() for row in rows.values()})
            brought: dict[str, dict[str, Path]] = {}
            costs: dict[str, int] = {}
            with reporter.piece(f"pulling from {store.url}", sum(map(len, listed.values()))) as advance:
                for ref_, rows in listed.items():
                    before = fetcher.fetched
                    brought[ref_] = {}
                    for file, row in rows.items():
                        brought[ref_][file] = fetcher.bring(file, row, ref_)
                        advance()
                    costs[ref_] = fetcher.fetched - before
            for place in new:
                check_adapter(place.shared.ref, store.url, brought[place.shared.ref], folder)
            _pin(registry, store, signers, reporter)
            for place in new:
                record = _publish(registry, store, place, brought[place.shared.ref])
                came = f"as it came with {place.shared.ref} from {store.url}"
                if told := carry_choice(registry, record.name, record.manifest.get("tuned"), came):
                    reporter.note(told)
                done[place.shared.ref] = MovedVersion(record.ref, True, costs[place.shared.ref])
    else:
        _pin(registry, store, signers, reporter)
    return [done[one.ref] for one in shared]


# -- what is asked for, and whether it may come --------------------------------------------------------------------


def _tell_without(places: Sequence[_Place], reporter: Reporter) -> None:
    """Say which versions stay without the samples that the store has: a published version is never changed."""
    without = [
        place.there.ref
        for place in places
        if place.there is not None
        and not (place.there.manifest.get("files", {}).get(SAMPLES) or {}).get("bytes")
        and place.shared.files.get(SAMPLES, {}).get("bytes")
    ]
    if without:
        which = f"{without[0]} was pulled" if len(without) == 1 else f"{', '.join(without)} were pulled"
        reporter.note(
            f"note: {which} before without replay samples, and a version is never changed: pull into a new hub with "
            "--with-samples, or under another name with --as NAME"
        )


def _tell_vanished(
    registry: Registry, store: RemoteStore, listed: Mapping[str, Sequence[int]], reporter: Reporter
) -> None:
    """Say which versions came from this store and are not in it any more. A signature cannot tell: an older state of a
    store is as well signed as the newest one."""
    gone = []
    for record in registry.adapters(all_versions=True):
        about = record.manifest.get("shared")
        if isinstance(about, Mapping) and about.get("from") == store.url:
            came = parse_ref(str(about.get("ref")))
            if came.version not in listed.get(came.name, ()):
                gone.append(str(came))
    if gone:
        told = ", ".join(gone[:5]) + (f" and {len(gone) - 5} more" if len(gone) > 5 else "")
        reporter.note(
            f"note: {told} came from {store.url} and {'are' if len(gone) > 1 else 'is'} not there any more: removed by "
            "an owner, or the store was set back to an older state"
        )


def _wanted(store: RemoteStore, listed: Mapping[str, Sequence[int]], ref: str | None) -> list[tuple[str, int]]:
    if not listed:
        raise UsageError(f"{store.url} has no versions", "cl-adapter push makes some there")
    if ref is None:
        return [(name, number) for name, numbers in listed.items() for number in numbers]
    parsed = parse_ref(ref)
    if parsed.name not in listed:
        raise UnknownNameError("adapter", parsed.name, listed, f"these are in {store.url}")
    numbers = listed[parsed.name]
    if parsed.alias == LATEST:
        return [(parsed.name, numbers[-1])]
    if parsed.alias is not None:
        raise UsageError(f"{ref!r}: a store has no aliases but latest", f"name a version: {parsed.name}@v{numbers[-1]}")
    if parsed.version is None:
        return [(parsed.name, number) for number in numbers]
    if parsed.version not in numbers:
        raise UnknownNameError("version", ref, [f"{parsed.name}@v{n}" for n in numbers], f"these are in {store.url}")
    return [(parsed.name, parsed.version)]


def _read(store: RemoteStore, name: str, number: int) -> SharedVersion:
    raw = store.read(document(name, number))
    if raw is None:
        raise IntegrityError(f"{name}@v{number} is no longer in {store.url}", "pull again")
    return read(raw, name, number, store.url)


def _accepted(
    registry: Registry, store: RemoteStore, shared: Sequence[SharedVersion], trusted: set[str]
) -> frozenset[str]:
    """The signers that the hub accepts for the store after this pull.

    Raises:
        IntegrityError: one of the versions was signed by another.
    """
    known = pinned(registry.path, store.url)
    signers = {one.signer for one in shared}
    if not known and not trusted and len(signers) > 1:
        first = " ".join(f"--trust {one}" for one in sorted(signers))
        raise IntegrityError(f"{len(signers)} keys signed what is in {store.url}", f"if you know their owners: {first}")
    accepted = known | trusted or frozenset(signers)
    for one in shared:
        if one.signer not in accepted:
            raise IntegrityError(
                f"{one.ref} in {store.url} was signed by {one.signer}, and this hub accepts "
                f"{', '.join(sorted(accepted))}",
                f"if you know its owner: --trust {one.signer}",
            )
    return accepted


def _pin(registry: Registry, store: RemoteStore, signers: frozenset[str], reporter: Reporter) -> None:
    for one in sorted(signers - pinned(registry.path, store.url)):
        reporter.note(
            f"from now on this hub accepts the signer {one} for {store.url}; compare it with what push showed"
        )
    pin(registry.path, store.url, signers)


def _adopt_interrupted(registry: Registry, names: set[str]) -> None:
    """Complete a pull that was killed between renaming a version's folder and committing its rows."""
    known = {record.ref for record in registry.adapters(all_versions=True)} | registry.deleted_refs()
    there = {f"{name}@{path.name}" for name in names for path in (registry.adapters_dir / name).glob("v*")}
    if there - known:
        registry.repair(hashes=False)


def _place(registry: Registry, shared: SharedVersion, name: str | None) -> _Place:
    made_for = shared.manifest.get("base", {}).get("fingerprint")
    if made_for != registry.base.fingerprint:
        raise AdapterError(
            f"{shared.ref} was made for another base ({str(shared.manifest.get('base', {}).get('source'))[:80]}, "
            f"fingerprint {str(made_for)[:12]}; this hub's is {registry.base.fingerprint[:12]})",
            "pull it into a hub of its own base",
        )
    same = digest(shared.manifest)
    mine = [r for r in registry.adapters(all_versions=True) if r.name == (name or shared.name)]
    if name is not None:
        return _Place(shared, name, None, next((r for r in mine if digest(r.manifest) == same), None))
    another = f"pull it under another name: cl-adapter pull TARGET {shared.ref} --as NAME"
    if shared.ref in registry.deleted_refs():
        raise AdapterError(f"{shared.ref} was deleted in this hub, and its number is not used again", another)
    there = next((record for record in mine if record.version == shared.number), None)
    if there is not None and digest(there.manifest) != same:
        raise AdapterError(f"this hub has another {shared.ref}, with other content", another)
    return _Place(shared, shared.name, shared.number, there)


def _check_tasks(registry: Registry, places: Sequence[_Place]) -> None:
    """Check that the tasks of the versions mean here what they mean there.

    Raises:
        AdapterError: a task was forgotten, is described otherwise, or is unknown.
    """
    gone = forgotten(registry.path)
    known = {task.name: task for task in registry.tasks()}
    for place in places:
        shared, task = place.shared, _task(place)
        names = _tasks(place)
        for name in names:
            if str(shared.manifest["created_at"]) <= gone.get(name, ""):
                raise AdapterError(
                    f"{shared.ref} has learned {name}, which this hub has forgotten since",
                    "pull other versions by name",
                )
        if task is not None and shared.manifest["status"] == "active":
            if task.name in known and described_otherwise(known[task.name], task) and not _follows(registry, place):
                raise AdapterError(
                    f"the task {task.name} of {shared.ref} is described otherwise in this hub",
                    f"pull it as a task of its own: cl-adapter pull TARGET {shared.ref} --as NAME",
                )
            known[task.name] = task
        if missing := [name for name in names if name not in known]:
            raise AdapterError(
                f"{shared.ref} answers for {', '.join(missing[:5])}, and this hub has no such task",
                "pull the adapters of these tasks first, or everything: cl-adapter pull TARGET",
            )


def _tasks(place: _Place) -> list[str]:
    task = _task(place)
    names = [task.name if task is not None else "", *(place.shared.manifest.get("takes_over") or ())]
    return [name for name in dict.fromkeys(names) if name]


def _task(place: _Place) -> Task | None:
    """The task of the version here: under a name of the user's choice it gets that name too."""
    task = place.shared.task
    return replace(task, name=place.name) if task is not None and place.renamed else task


def _follows(registry: Registry, place: _Place) -> bool:
    """Whether a version may answer: what answers now is nothing, or an earlier version of it that was pulled too. What
    was made in this hub keeps answering."""
    serving = registry.serving()
    for task in _tasks(place):
        if (ref := serving.get(task)) is not None:
            now = registry.get(ref)
            if now.name != place.name or "shared" not in now.manifest:
                return False
            if place.number is not None and now.version > place.number:
                return False
    return True


# -- bringing it in ------------------------------------------------------------------------------------------------


def _files(shared: SharedVersion, with_samples: bool) -> dict[str, Mapping[str, Any]]:
    return {name: row for name, row in shared.files.items() if name != SAMPLES or with_samples}


def _publish(registry: Registry, store: RemoteStore, place: _Place, brought: Mapping[str, Path]) -> AdapterRecord:
    shared, task = place.shared, _task(place)
    manifest = shared.manifest if SAMPLES in brought else without_samples(shared.manifest)
    given = {key: value for key, value in manifest.items() if key not in _BUILT}
    given["shared"] = {"from": store.url, "ref": shared.ref, "signer": shared.signer}
    follows = _follows(registry, place)
    if task is not None and not follows:
        task = {one.name: one for one in registry.tasks()}.get(task.name, task)  # as it is described here
    with registry.new_draft(place.name) as draft, storage_errors(draft.path):
        for name, source in brought.items():
            path = draft.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(source, path)  # what was fetched stays for the next pull
            if sha256_file(path) != shared.files[name]["sha256"]:
                raise IntegrityError(f"{name} of {shared.ref} changed on this disk", "pull it again")
        if SAMPLES not in brought:
            (draft.path / SAMPLES).touch()
        return registry.publish(
            draft,
            given,
            edges=_edges(registry, store, place),
            evaluations=_scores(place),
            task=task,
            serve=shared.serves and follows,
            verb="pull",
            repeats=False,
            number=place.number,
        )


def _edges(registry: Registry, store: RemoteStore, place: _Place) -> list[tuple[str, str]]:
    """The lineage as it holds here: a parent that this hub has, with the same content, by its reference; another one as
    a version in the store."""
    found = [(f"{store.url}/{place.shared.ref}", "imported_from")] if place.renamed else []
    here = {record.ref: digest(record.manifest) for record in registry.adapters(all_versions=True)}
    for edge in place.shared.manifest["lineage"]:
        parent, relation = str(edge["parent"]), str(edge["relation"])
        outside = relation == "imported_from" or is_outside(parent)
        known = parent in here and here[parent] == place.shared.parents.get(parent)
        found.append((parent if outside or known else f"{store.url}/{parent}", relation))
    return found


def _scores(place: _Place) -> list[Evaluation]:
    """The scores; of a version that gets another name those of its task under that name."""
    old = place.shared.task.name if place.shared.task is not None and place.renamed else None
    rows = [Evaluation(**row) for row in place.shared.manifest["evaluations"]]
    return [replace(row, task=place.name) if row.task == old else row for row in rows]
