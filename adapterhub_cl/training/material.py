"""What a training request reads: its data, held-out data, task, parent and the parent's replay samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adapterhub_cl import strategies
from adapterhub_cl.data.columns import Examples, examples, read_examples
from adapterhub_cl.data.reading import read_rows
from adapterhub_cl.data.tasks import check_answers, find_leaks, infer_task, updated_task
from adapterhub_cl.errors import DataError
from adapterhub_cl.registry import Registry
from adapterhub_cl.training.progress import Reporter
from adapterhub_cl.training.request import Request
from adapterhub_cl.types import AdapterRecord, Example, Task


@dataclass(frozen=True)
class Material:
    """What a request reads from files and from the hub."""

    data: Examples
    held_out: Examples | None
    task: Task
    parent: AdapterRecord | None
    review: Sequence[Example]

    @property
    def raw(self) -> bool:
        """Raw text for an adapter whose task is another one."""
        return self.data.layout == "raw text" and self.task.kind != "text"


def prepare(
    registry: Registry,
    request: Request,
    strategy: strategies.BaseStrategy,
    *,
    parent: str | None = None,
    sha256: str | None = None,
) -> Material:
    """Read and check everything that the request names; writes nothing.

    Args:
        parent: what a resumed run started from (empty: nothing); None decides now.
        sha256: what the data must still be, for a resumed run.
    """
    columns = dict(request.columns) or None
    data = read_examples(request.data, columns, request.instruction or "")
    if sha256 is not None and data.sha256 != sha256:
        raise DataError(
            f"{request.data} has changed since the run was started", "restore it, or start again without --resume"
        )
    held_out = read_examples(request.eval, columns, request.instruction or "") if request.eval else None
    start = _parent(registry, request, strategy) if parent is None else registry.get(parent) if parent else None
    if start is not None:
        request.refuse_shape(start.ref)
    review: Sequence[Example] = ()
    if request.verb == "update" and start is not None:
        review = kept_samples(start)
        task = updated_task(registry.task(start.task), data)
    else:
        task = infer_task(
            request.name,
            data,
            kind=request.kind,
            labels=list(request.labels) or None,
            prompt_format=request.prompt_format,
            metric=request.metric,
            instruction=request.instruction,
        )
    material = Material(data, held_out, task, start, review)
    if not material.raw:
        check_answers(task, data)
        if held_out is not None:
            check_answers(task, held_out)
    return material


def kept_samples(record: AdapterRecord) -> list[Example]:
    """The replay samples of a version.

    Raises:
        DataError: `replay.jsonl` is there and cannot be read.
    """
    path = record.path / "replay.jsonl"
    if not path.is_file() or path.stat().st_size == 0:
        return []
    return list(examples(read_rows(path)).examples)


def _parent(registry: Registry, request: Request, strategy: strategies.BaseStrategy) -> AdapterRecord | None:
    if request.verb == "update":
        return registry.get(request.name)
    latest = sorted(registry.adapters(include_rejected=False), key=lambda record: record.created_at)
    return strategy.starts_from(strategies.Past(latest))


def tell(material: Material, request: Request, reporter: Reporter) -> None:
    """What was read, in a line or two, and what may be wrong with it."""
    task, data = material.task, material.data
    labels = f", {len(task.labels)} labels" if task.labels else ""
    overrule = " (another kind? say it with --kind)" if request.verb == "add-task" and request.kind == "auto" else ""
    reporter.note(
        f"{len(data)} example{'s' if len(data) > 1 else ''} ({data.layout}) → a {task.kind} task{labels}, "
        f"prompt {task.prompt_format!r}{overrule}"
    )
    if data.skipped:
        reporter.note(f"note: {data.skipped} empty rows were passed over")
    if material.review:
        reporter.note(f"{len(material.review)} replay samples of {material.parent.ref} are mixed in")  # type: ignore[union-attr]
    if material.held_out is not None:
        leaks = find_leaks(data, material.held_out)
        if leaks:
            reporter.note(
                f"warning: {len(leaks)} of {len(material.held_out)} evaluation rows are in the training data as well "
                f"(first: {material.held_out.places[leaks[0]]}); the score will flatter"
            )
