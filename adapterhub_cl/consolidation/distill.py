"""The verb `distill`: one adapter that answers as its teachers do, each for its own tasks."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from accelerate import Accelerator

from adapterhub_cl import merging, objectives
from adapterhub_cl.adapters.head_files import LAYOUT
from adapterhub_cl.adapters.lora import new_adapter, save_adapter
from adapterhub_cl.adapters.lora_config import CONFIG, WEIGHTS
from adapterhub_cl.adapters.serving_check import check_served
from adapterhub_cl.bases.loading import LoadedBase
from adapterhub_cl.consolidation.asked import FRESH, DistillRequest, MeasuredOptions, MergeRequest
from adapterhub_cl.consolidation.checking import check_distill
from adapterhub_cl.consolidation.derived import Making, record, writer
from adapterhub_cl.consolidation.merge import merged
from adapterhub_cl.consolidation.parents import Parents, find_parents, head_of_all
from adapterhub_cl.consolidation.teachers import AskedOfTeacher, Sources, ask, gather, tokens_of
from adapterhub_cl.context import Hub
from adapterhub_cl.distillation.lessons import TeachersAnswers
from adapterhub_cl.distillation.student import Student
from adapterhub_cl.errors import AdapterHubError, StorageError, TrainingInterrupted, UsageError
from adapterhub_cl.evaluation.measuring import Yardstick
from adapterhub_cl.evaluation.retention import Retained
from adapterhub_cl.options import flag
from adapterhub_cl.progress import Reporter
from adapterhub_cl.registry import Registry, changes, storage_errors
from adapterhub_cl.samples import rows_seen
from adapterhub_cl.samples.of_task import length_of
from adapterhub_cl.strategies import Origin
from adapterhub_cl.training import checkpoints, speed
from adapterhub_cl.training.learn import Learned, learn
from adapterhub_cl.training.runs import Run, held, leave, published_by
from adapterhub_cl.training.training_rows import TrainingSet
from adapterhub_cl.types import AdapterRecord, Example

TEACHERS = "teachers.safetensors"
OF_THE_START = ("alpha", "target_modules", "layers", "rslora", "init")  # the merged teachers decide them


@dataclass(frozen=True)
class Places:
    """The hub of the teachers, and that of the student where its base is another one."""

    teachers: Hub
    into: Hub | None = None

    @property
    def student(self) -> Hub:
        return self.into or self.teachers


@changes.operation()
def distill(
    places: Places,
    name: str,
    request: DistillRequest,
    *,
    new_version: bool = False,
    run: Run | None = None,
) -> AdapterRecord:
    """Teach a student and record it; see `AdapterHub.distill`.

    Args:
        run: the run to go on with.
    """
    registry, student, reporter = places.teachers.registry, places.student.registry, places.teachers.reporter
    elsewhere = places.into is not None
    if run is not None and (done := published_by(student, run, reporter)) is not None:
        return done
    least = check_distill(student, request, name, new_version=new_version, elsewhere=elsewhere)
    settings, held_to = request.training(), request.held_to()
    parents = find_parents(registry, request.refs)
    request = replace(request, refs=parents.refs)  # a resumed run keeps to these very versions
    if not elsewhere:
        _first_rank(request, parents)
    base = places.teachers.base
    student_base = places.student.base
    if elsewhere:
        _same_tokenizer(base, student_base)
        reporter.note("the student starts afresh: on another base there is no merged adapter to start from")
    if run is None:
        _tell_ignored(request, parents, elsewhere, reporter)
    request = replace(request, settings={"max_length": _length(parents), **request.settings})
    length = min(request.training().max_length, base.context, student_base.context)
    sources = Sources(request.samples, tuple(request.data), request.pseudo)
    asked = gather(registry, base, parents, sources, length, settings.seed, reporter)
    tokens = tokens_of(asked, base, length)
    told = ", ".join(f"{one.task.name} {one.told(len(rows))}" for one, rows in zip(asked, tokens, strict=True))
    reporter.note(f"rows to learn from: {told}")
    run = run or _new_run(student, name, request, new_version, places)
    lock = run.lock()
    try:
        with held(lock):
            answers = ask(base, asked, tokens, held_to, run.path / TEACHERS, reporter)
            first = not new_version
            made = _Distillation(places, name, first, request, parents, asked, answers, least, run).make()
    except BaseException as error:
        _leave(run, name, error)
        raise
    run.remove()
    return made


class _Distillation:
    """One run: students of one rank or of growing ranks, the best of which is recorded.

    Args:
        first: no version of the name may be there.
    """

    def __init__(
        self,
        places: Places,
        name: str,
        first: bool,
        request: DistillRequest,
        parents: Parents,
        asked: Sequence[AskedOfTeacher],
        answers: TeachersAnswers,
        least: float | None,
        run: Run,
    ) -> None:
        self.places, self.name, self.first, self.request, self.parents = places, name, first, request, parents
        self.asked, self.answers, self.least, self.run = asked, answers, least, run
        self.reporter = places.teachers.reporter
        self.most = sum(record.rank for record in parents.records)

    def make(self) -> AdapterRecord:
        """Teach, and record the student that retains most."""
        rank = self.request.training().rank if self.places.into else _first_rank(self.request, self.parents)
        yardstick = None
        if self.request.evaluate:
            tasks = self.parents.tasks()
            yardstick = Yardstick.of(self.places.teachers, tasks)
        tried: list[tuple[float, int, Learned]] = []
        while True:
            learned = self.teach(rank)
            if not self.request.grow or yardstick is None or self.least is None:
                tried.append((0.0, rank, learned))
                break
            effects, _ = yardstick.measure(self.places.student.base, self.folder(rank) / "student")
            lowest = Retained(self.least, tuple(effects)).lowest or 0.0
            self.reporter.note(f"rank {rank}: lowest retention {lowest:.3f}")
            tried.append((lowest, rank, learned))
            if lowest >= self.least or rank >= self.most:
                break
            rank = min(2 * rank, self.most)
        _, rank, learned = max(tried, key=lambda one: one[:2])
        return self.record(rank, learned, yardstick)

    def record(self, rank: int, learned: Learned, yardstick: Yardstick | None) -> AdapterRecord:
        """Publish a student."""
        places, request = self.places, self.request
        elsewhere = places.into is not None
        asked = asdict(request)
        recipe = {
            "verb": "distill",
            "parents": self.parents.refs,
            **{key: asked[key] for key in asked if key not in ("refs", *MeasuredOptions.__dataclass_fields__)},
            "rank": rank,
            "from_hub": str(places.teachers.registry.path.resolve()) if elsewhere else "",
            "run": self.run.id,
        }
        facts = ("steps", "seconds", "best_epoch", "history", "learning_rate")
        report = {
            "rows": {one.task.name: len(one.examples) for one in self.asked},
            "training": {key: learned.facts[key] for key in facts},
            "student": learned.facts["strategy_summary"],
        }
        if elsewhere:
            for one in self.asked:
                places.student.registry.put_task(one.task)
        least = self.least if request.evaluate else None
        instead = "more --epochs, unlabelled text (--data), a higher --rank or --grow"
        making = Making(
            self.name,
            "distilled",
            self.parents,
            recipe,
            least,
            request.evaluate,
            report,
            elsewhere,
            instead,
            self.first,
            request,
        )
        write = _copies(self.folder(rank) / "student", [row for one in self.asked for row in one.examples])
        return record(places.student, making, write, yardstick)

    def folder(self, rank: int) -> Path:
        """Where a student's training keeps its files."""
        return self.run.path / f"rank-{rank}"

    def teach(self, rank: int) -> Learned:
        """Train one student of a rank; its files are in `student` in its folder afterwards."""
        base, folder = self.places.student.base, self.folder(rank)
        settings = replace(self.request.training(), rank=rank)
        objective = objectives.of(base.info)
        with storage_errors(folder):
            folder.mkdir(exist_ok=True)
            start = self.start(rank)
        first, *others = self.asked
        lesson = TrainingSet(
            first.task,
            first.examples,
            past=[(one.task, Origin(one.task.name, None, e)) for one in others for e in one.examples],
            together=True,
        )
        hook = Student(self.request.held_to(), self.answers)
        try:
            with new_adapter(
                base, settings, objective.task_type, start, tasks=[one.task for one in self.asked]
            ) as model:
                learned = learn(
                    model,
                    base,
                    objective,
                    hook,
                    lesson,
                    settings,
                    run=folder,
                    chosen=speed.stored(folder),
                    on_speed=lambda choice: speed.store(folder, choice),
                    accelerator=Accelerator(cpu=base.device.type == "cpu"),
                    reporter=self.reporter,
                )
                student = folder / "student"
                with storage_errors(student):
                    student.mkdir(exist_ok=True)
                    save_adapter(model, student, base.info.source, [one.task.name for one in self.asked])
                    check_served(model, base, student, "the student")
        finally:
            hook.close()
        return learned

    def start(self, rank: int) -> Path | None:
        """The merged adapter that the student starts from; made once for a run. None for a fresh student."""
        places, request, parents = self.places, self.request, self.parents
        folder = self.folder(rank) / "start"
        if request.start == FRESH or places.into is not None:
            return None
        if (folder / WEIGHTS).is_file():
            return folder
        method = merging.build(request.start, {})
        weighted = replace(parents, weights=method.default_weights(len(parents.records)))
        wanted = MergeRequest(parents.refs, method=request.start, rank=rank, seed=request.training().seed)
        with ExitStack() as stack:
            adapters = parents.open(stack)
            layers = merged(places.teachers, weighted, method, wanted, adapters)
            head = head_of_all(parents, adapters)
            factors = {one.name: one.result.factors for one in layers}
            making = folder.with_name("start.making")  # a kill leaves it half written
            for left in (making, folder):
                shutil.rmtree(left, ignore_errors=True)
            making.mkdir()
            writer(factors, adapters, places.teachers.registry.base, head)(making)
            making.rename(folder)
        return folder


def _tell_ignored(request: DistillRequest, parents: Parents, elsewhere: bool, reporter: Reporter) -> None:
    """Name the options that a student which starts from a merge cannot have, and teachers that nothing is asked."""
    given = [flag(name) for name in OF_THE_START if name in request.settings]
    if given and request.start != FRESH and not elsewhere:
        reporter.note(
            f"note: {', '.join(given)} {'is' if len(given) == 1 else 'are'} ignored, since the student starts from the "
            "merged teachers and keeps their shape; --start none starts afresh"
        )
    asked = {record.ref for record in parents.tasks().values()}
    for ref in parents.refs:
        if ref not in asked:
            reporter.note(f"note: {ref} is not asked: other teachers answer for its tasks")


def _first_rank(request: DistillRequest, parents: Parents) -> int:
    """The rank asked for, else the largest parent's.

    Raises:
        UsageError: the merged adapter that the student starts from cannot have it.
    """
    rank, most = request.training().rank, sum(record.rank for record in parents.records)
    if "rank" not in request.settings:
        return max(record.rank for record in parents.records)
    if rank > most and request.start != FRESH:
        raise UsageError(f"--rank {rank} is above {most}, the parents' ranks added up", "or start afresh: --start none")
    return rank


def _same_tokenizer(teacher: LoadedBase, student: LoadedBase) -> None:
    one, other = teacher.tokenizer, student.tokenizer
    if one.get_vocab() != other.get_vocab() or one.eos_token_id != other.eos_token_id:
        raise UsageError(
            f"the bases {teacher.info.source!r} and {student.info.source!r} have different tokenizers",
            "distillation compares probabilities of tokens: both bases must share them",
        )


def _length(parents: Parents) -> int:
    """The longest that any teacher's examples were cut to: a student need not read more."""
    return max(length_of(record) for record in parents.records)


def _copies(source: Path, seen: Sequence[Example]) -> Callable[[Path], None]:
    """A function that writes the student's files, and hashes of the rows that it saw: `forget-task` of another task
    finds those of its own there."""

    def write(folder: Path) -> None:
        rows_seen.write(folder, seen)
        for file in (CONFIG, WEIGHTS, LAYOUT):
            if (source / file).is_file():
                shutil.copyfile(source / file, folder / file)

    return write


def _new_run(registry: Registry, name: str, request: DistillRequest, new_version: bool, places: Places) -> Run:
    row = {
        "verb": "distill",
        "name": name,
        "created_at": datetime.now(UTC).isoformat(),
        "new_version": new_version,
        "from_hub": str(places.teachers.registry.path.resolve()),
        **asdict(request),
    }
    return Run.start(registry.runs_dir, row)


def _leave(run: Run, name: str, error: BaseException) -> None:
    """Drop a run that was refused or has nothing to go on from; of one that was stopped, say how to resume it."""
    stopped = isinstance(error, (KeyboardInterrupt, TrainingInterrupted, StorageError))
    trained = any(run.path.glob(f"*/{checkpoints.NAME}"))
    heard = (run.path / TEACHERS).is_file() and stopped
    refused = isinstance(error, AdapterHubError) and not stopped
    kept = "" if refused else "a checkpoint" if trained else "what the teachers said" if heard else ""
    leave(run, error, f"cl-adapter distill --as {name} --resume", kept)


def resumed(registry: Registry, name: str) -> tuple[Run, DistillRequest, bool, str]:
    """The unfinished run of a name, what it was asked for, whether the name may be there, and the teachers' hub.

    Raises:
        UsageError: there is none.
    """
    run = Run.newest(registry.runs_dir, "distill", name)
    row = run.request
    return run, DistillRequest.from_json(row), bool(row.get("new_version")), str(row.get("from_hub", ""))
