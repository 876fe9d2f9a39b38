"""AdapterHub: the façade. One method per verb; the command line parses, calls one of these, prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from adapterhub_cl.errors import AdapterError, IntegrityError, UsageError
from adapterhub_cl.facade.combining import Combining
from adapterhub_cl.facade.erasing import Erasing
from adapterhub_cl.facade.learning import Learning
from adapterhub_cl.facade.leaving import Leaving
from adapterhub_cl.facade.looping import Looping
from adapterhub_cl.facade.pruning import Pruning
from adapterhub_cl.facade.rebasing import Rebasing
from adapterhub_cl.facade.reporting import Reporting
from adapterhub_cl.facade.travelling import Travelling
from adapterhub_cl.facade.tuning import Tuning
from adapterhub_cl.facade.using import Using
from adapterhub_cl.progress import Reporter
from adapterhub_cl.registry import Event, Registry, StoredEvaluation, check_local
from adapterhub_cl.showing import Listing, card
from adapterhub_cl.types import CANARY, LATEST, PRODUCTION, AdapterRecord, Edge, Evaluation, Problem, Task, Versions

if TYPE_CHECKING:
    from adapterhub_cl.data.marked import Part
    from adapterhub_cl.evaluation.bisecting import Bisected
    from adapterhub_cl.evaluation.matrix import AccuracyMatrix

_List = list  # within the class, `list` is the verb


class AdapterHub(
    Learning, Looping, Using, Combining, Pruning, Erasing, Leaving, Rebasing, Tuning, Travelling, Reporting
):
    """A directory that holds one base's adapters, and everything that can be done with them.

    Made by `init`, opened by `open`; nothing has to be closed. The base is loaded when first needed, and kept.

    Attributes:
        folder: the hub's directory.
        registry: names, versions, aliases, lineage, scores.
    """

    def __repr__(self) -> str:
        return f"AdapterHub({str(self.folder)!r}, base={self.base.source!r})"

    def _repr_html_(self) -> str:
        about = {"base": self.base.source, "quantization": self.base.quantization, "tasks": len(self.registry.tasks())}
        return card(str(self.folder), about) + Versions(self.list(), self.registry.serving())._repr_html_()

    # -- making and opening ----------------------------------------------------------------------

    @classmethod
    def init(
        cls,
        path: str | Path,
        base: str,
        *,
        quantization: str = "nf4",
        revision: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        index: str | None = None,
        store: str | None = None,
    ) -> AdapterHub:
        """Make a hub in a directory that is empty or does not exist yet, or join one whose index is on a server.

        Args:
            base: `tiny` (embedded), a folder, a GGUF file, or a hub id such as `Qwen/Qwen2.5-0.5B`.
            quantization: `nf4`, `fp4`, `int8` or `none`.
            revision: branch, tag or commit of a hub id.
            device: `auto`, `cpu`, `cuda`, `cuda:N`.
            dtype: `auto`, `bf16`, `fp16`, `fp32`.
            index: `postgresql://user@host/database` to keep the index on a server, without a password (libpq reads
                PGPASSWORD and ~/.pgpass); default: in the directory.
            store: `s3://bucket/prefix` or another URL of fsspec to keep the versions where other machines reach them;
                default: in the directory.

        Raises:
            BaseModelError: the base cannot be found or read.
            HubError, UsageError: there is something in that directory already, or the index belongs to another hub.
            StorageError: the server cannot be used.
        """
        check_local(path)  # before the base is read
        from adapterhub_cl.bases.loading import inspect_base

        found = inspect_base(base, quantization, revision)
        return cls(
            Registry.create(path, found, {"max_forgetting": 0.02}, index_url=index, store_url=store), device, dtype
        )

    @classmethod
    def open(
        cls, path: str | Path, *, device: str = "auto", dtype: str = "auto", base_path: str | Path | None = None
    ) -> AdapterHub:
        """Open a hub.

        Args:
            base_path: where its base lies, if not where `hub.toml` says; its fingerprint is checked. None: what the
                environment variable CL_ADAPTER_BASE_PATH says.

        Raises:
            HubError: there is none, or a newer version made it.
            IntegrityError: its index is damaged.
        """
        where = None if base_path is None else str(base_path)
        return cls(Registry.open(path, where), device, dtype)

    # -- looking ---------------------------------------------------------------------------------

    def list(self, *, all_versions: bool = False) -> list[AdapterRecord]:
        """Of each adapter the versions that serve a task and the newest that was accepted, or all versions; loads no
        torch.

        These are two where a task is pinned to an older version or was rolled back to one.
        """
        found = self.registry.adapters(all_versions=True) if all_versions else self.registry.current()
        return Versions(found, self.registry.serving())

    def get(self, ref: str) -> AdapterRecord:
        """One version: `news` (its latest), `news@v2`, `news@production`.

        Raises:
            UnknownNameError: there is none; the hint names the nearest.
        """
        return self.registry.get(ref)

    def path(self, ref: str) -> Path:
        """The version's directory, in PEFT's own format (packed ones: see `export`), its files checked against their
        hashes.

        Raises:
            IntegrityError: a file is missing or changed.
        """
        record = self.registry.get(ref)
        self.registry.check_files(record)
        return record.path

    def log(self, name: str | None = None, limit: int | None = None) -> _List[Event]:
        """What happened in this hub, newest first."""
        return Listing(self.registry.events(name, limit))

    def lineage(self, ref: str) -> _List[Edge]:
        """All edges to ancestors and descendants of a version."""
        return self.registry.lineage(ref)

    def evaluations(self, ref: str | None = None, task: str | None = None) -> _List[StoredEvaluation]:
        """Recorded scores."""
        return Listing(self.registry.evaluations(ref, task))

    # -- measuring and using ---------------------------------------------------------------------

    @overload
    def evaluate(
        self,
        refs: str | Sequence[str] = (),
        *,
        data: str | Path | None = None,
        columns: Mapping[str, str] | None = None,
        task: str | None = None,
        batch_size: int = 32,
        matrix: Literal[False] = False,
        reporter: Reporter | None = None,
    ) -> _List[tuple[str, Evaluation]]: ...

    @overload
    def evaluate(self, *, matrix: Literal[True], reporter: Reporter | None = None) -> AccuracyMatrix: ...

    def evaluate(
        self,
        refs: str | Sequence[str] = (),
        *,
        data: str | Path | None = None,
        columns: Mapping[str, str] | None = None,
        task: str | None = None,
        batch_size: int = 32,
        matrix: bool = False,
        reporter: Reporter | None = None,
    ) -> _List[tuple[str, Evaluation]] | AccuracyMatrix:
        """Score adapters on their tasks and record the scores.

        Args:
            refs: one or several; default: every adapter that serves a task.
            data: default: the held-out data that each was scored on when it was made; of the default adapters, those
                without any are skipped with a note. A version that was made of others is scored on each of its
                tasks.
            task: whose prompt and labels the data have, for a version that answers for several.
            matrix: instead, the accuracy matrix of what this hub learned: every task after each was learned.

        Returns:
            (version, score) pairs, all metrics, the one that stands for the task first; or the matrix.

        Raises:
            DataError: no held-out data is known, or it has changed.
            UsageError: `matrix` with adapters, data or a task: it is of the whole hub.
        """
        if matrix:
            if refs or data or columns or task:
                raise UsageError("the accuracy matrix is of the whole hub", "cl-adapter eval --matrix")
            from adapterhub_cl.evaluation.matrices import hub_matrix

            return hub_matrix(self.context(reporter))
        from adapterhub_cl.evaluation.recorded import score_versions

        refs = [refs] if isinstance(refs, str) else refs
        return Listing(score_versions(self.context(reporter), refs, data, columns, batch_size, task))

    def bisect(
        self,
        name: str,
        data: str | Path,
        *,
        good: str | None = None,
        bad: str | None = None,
        columns: Mapping[str, str] | None = None,
        task: str | None = None,
        reporter: Reporter | None = None,
    ) -> Bisected:
        """Find the version that broke each of some rows: those that the good version answers rightly and the bad one
        wrongly. Of the versions between them, about log2 are asked if one broke them all. Nothing is recorded.

        Args:
            data: rows with their right answers.
            good: an older version; default: the first one.
            bad: a newer version; default: the newest one. Versions that the gate rejected are passed over.
            task: whose prompt and labels the data have, for a version that answers for several.

        Raises:
            DataError: a row has no answer, or one that is no label of the task.
            UsageError: there are not two versions, or the good one is not the older one.
        """
        from adapterhub_cl.evaluation.bisecting import bisect

        return bisect(self.context(reporter), name, data, good=good, bad=bad, columns=columns, task=task)

    def load(self, ref: str) -> tuple[Any, Any]:
        """The base with this adapter as a plain transformers + PEFT model, and the tokenizer.

        The model is a fresh copy, so the caller may change it at will.

        Raises:
            IntegrityError: a file of the adapter is missing or changed.
            BaseModelError: the base is not there, or has changed.
        """
        from adapterhub_cl.adapters.lora import open_adapter, open_plain
        from adapterhub_cl.bases.loading import load_base

        path = self.path(ref)
        base = load_base(self.base, device=self.device, dtype=self.dtype)
        if base.is_encoder:
            return open_plain(base.model, path, base.dtype), base.tokenizer
        return open_adapter(base.model, path), base.tokenizer

    def example(self, ref: str) -> _List[Part]:
        """A replay sample of a version as the base reads it, with what is learned of it marked; empty if it has none.

        Raises:
            BaseModelError: the base is not there.
            DataError: the samples cannot be read.
        """
        from transformers import AutoTokenizer

        from adapterhub_cl import objectives
        from adapterhub_cl.bases import resolve
        from adapterhub_cl.data.marked import marked
        from adapterhub_cl.samples.kept import kept_samples
        from adapterhub_cl.settings import TrainingSettings

        record = self.registry.get(ref)
        samples = kept_samples(record)
        if not samples:
            return []
        task = Task.from_json(record.manifest["task_spec"])
        tokenizer = AutoTokenizer.from_pretrained(resolve(self.base.source, self.base.revision))
        length = task.max_length or TrainingSettings().max_length
        tokens = objectives.of(self.base).tokeniser(tokenizer, task, length).windows(samples[0])[0]
        return marked(tokenizer, task, tokens)

    # -- versions and the outside ----------------------------------------------------------------

    def alias(self, ref: str, alias: str) -> AdapterRecord:
        """Make a movable name point at a version; `production` decides what serves the task."""
        if alias == LATEST:
            raise UsageError("the alias 'latest' moves by itself", "cl-adapter rollback NAME@latest takes it back")
        record = self.registry.get(ref)
        if record.status == "rejected" and alias == PRODUCTION:
            raise AdapterError(
                f"{record.ref} was refused by the gate", f"cl-adapter promote {record.ref} --max-forgetting 1"
            )
        return self.registry.set_alias(ref, alias)

    def rollback(self, alias: str) -> tuple[AdapterRecord, AdapterRecord]:
        """Move an alias (`production`, or `news@production`) back to the version before; returns (before, after).
        A canary ends, and the version beside it answers everything again."""
        if alias.rpartition("@")[2] == CANARY:
            before = self.registry.get(alias)
            self.registry.end_canary(before.name, "rollback")
            return before, self.registry.get(self.registry.serving().get(before.task, before.ref))
        return self.registry.rollback(alias)

    def import_adapter(
        self, source: str | Path, name: str, *, task: str | None = None, any_base: bool = False, **described: Any
    ) -> AdapterRecord:
        """Take in a LoRA that plain PEFT wrote.

        What `export` wrote beside it, or a version's manifest, says how it is asked, and which base it is for.

        Args:
            source: a folder with adapter_config.json and adapter_model.safetensors.
            task: a task of this hub that it serves; otherwise described by `kind`, `labels`, `instruction`,
                `prompt_format`, `metric` as in `add_task`, under its own name.
            any_base: take it in even if it was made for another base.

        Raises:
            AdapterError: not a LoRA, or not of this base; nothing was written.
        """
        folder = check_local(source)
        from adapterhub_cl.adapters.importing import import_adapter

        known = self.registry.task(task) if task else None
        return import_adapter(self.registry, self.load_base(), folder, name, known, described, any_base)

    def verify(self, *, serving: bool = False, reporter: Reporter | None = None) -> _List[Problem]:
        """Everything that is not as it should be: files, index, leftovers, versions that nothing here can open, and the
        base's fingerprint.

        Args:
            serving: also load the base, and each version on it: its layers are used, and it changes the answers.
        """
        from adapterhub_cl.adapters.lora_config import check_stored
        from adapterhub_cl.bases.unchanged import check_adapters, check_base
        from adapterhub_cl.learning.chosen_settings import damaged_choices
        from adapterhub_cl.sharing.signing import damaged_signers

        found = self.registry.verify(reporter)
        found += [*damaged_choices(self.registry), *damaged_signers(self.registry.path)]
        damaged = {problem.path for problem in found}
        with suppress(IntegrityError):  # an index whose rows cannot be read is among the problems already
            records = self.list(all_versions=True)
            found += check_adapters(self.base, records)
            whole = [
                r for r in records if not any(path.startswith(f"adapters/{r.name}/v{r.version}") for path in damaged)
            ]
            found += check_stored(whole)
            found += check_base(self.base)
            if serving and not found:
                from adapterhub_cl.adapters.serving_check import check_all

                found += check_all(self.load_base(), whole)
            return found
        return [*found, *check_base(self.base)]
