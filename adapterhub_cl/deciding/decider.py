"""The decider: a fitted router that is kept up to date with the hub, and its decisions on texts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from typing import Any

import torch
from torch.nn import functional

from adapterhub_cl.adapters.lora_config import is_dora
from adapterhub_cl.adapters.lora_files import LoraFile
from adapterhub_cl.bank.bank import LoraBank
from adapterhub_cl.bases.hidden import MAX_LENGTH, pooled, shallow_layer
from adapterhub_cl.bases.loading import LoadedBase
from adapterhub_cl.data.values import whole_characters
from adapterhub_cl.deciding.drift import Drift, analyse
from adapterhub_cl.deciding.hub_scopes import HubScopes, examples_kept
from adapterhub_cl.deciding.proper_names import is_ordinary
from adapterhub_cl.deciding.router_files import Cache, KnownTask, OpenedRouter, Source, open_router
from adapterhub_cl.deciding.scope import Bounds
from adapterhub_cl.deciding.seen import SeenTexts, passages, routing_text
from adapterhub_cl.deciding.view import View
from adapterhub_cl.errors import AdapterError, AdapterHubError, UsageError
from adapterhub_cl.merging.factors import Factors
from adapterhub_cl.options import from_mapping
from adapterhub_cl.progress import Reporter
from adapterhub_cl.registry import Registry, samples
from adapterhub_cl.routing import ROOM, Common, Routed, Seen, build
from adapterhub_cl.types import AdapterRecord, Example, Route


class Decider:
    """Chooses tasks for texts. Use it in one thread.

    Args:
        options: of the router, including those of `Common`.

    Raises:
        UnknownNameError, UsageError: no such router or option.
    """

    def __init__(
        self,
        registry: Registry,
        base: LoadedBase,
        bank: LoraBank,
        name: str,
        options: Mapping[str, Any],
        reporter: Reporter | None = None,
        halt: Callable[[], bool] = lambda: False,
    ) -> None:
        self.halt = halt
        self.reporter = reporter or Reporter()
        self.registry, self.base, self.bank, self.name = registry, base, bank, ROOM.canonical(name)
        common = {key: value for key, value in options.items() if key.startswith("router.")}
        own = {key.removeprefix("router."): value for key, value in common.items()}
        self.common = from_mapping(Common, own, "the options of every router", prefix="router.")
        self.options = {key: value for key, value in options.items() if key not in common}
        self.reads = build(name, self.options).reads
        layers = self.base.model.config.get_text_config().num_hidden_layers
        self.layer = shallow_layer(base) if self.common.layer < 0 else self.common.layer
        if self.common.layer < -1 or self.layer >= layers:
            raise UsageError(
                f"router.layer {self.common.layer}: this base has {layers} layers",
                f"use numbers from 0 to {layers - 1}",
            )
        self.opened: OpenedRouter | None = None
        self._seen_generation = -1
        self._without: list[str] = []
        self._dora: list[str] = []
        self._is_dora: dict[str, bool] = {}
        self._contents: dict[str, str] = {}
        self._kept: dict[str, tuple[Example, ...]] = {}
        self._serving: dict[str, str] = {}
        self._keepers: dict[str, AdapterRecord] = {}
        self._scopes = HubScopes(self.kept, self._is_word)

    def _is_word(self, word: str) -> bool:
        """Whether a word is too common to be a name: the base's own tokenizer writes it as one token."""
        written = (word, f" {word}")
        return is_ordinary(word) or any(
            len(self.base.tokenizer(text, add_special_tokens=False)["input_ids"]) == 1 for text in written
        )

    @property
    def notes(self) -> list[str]:
        found = [self.opened.note] if self.opened is not None and self.opened.note else []
        if self._without:
            found.append(f"the router cannot choose {', '.join(self._without)}, without replay samples: use --task")
        found += [
            f"which questions name a subject of {task} cannot be told, so the router alone decides about it: {why}"
            for task, why in self._scopes.unread.items()
        ]
        if self._dora:
            found.append(f"the router cannot choose {', '.join(self._dora)}, because DoRA cannot be mixed: use --task")
        return found

    # -- deciding --------------------------------------------------------------------------------

    def decide(
        self, view: View, examples: Sequence[Example], top_k: int = 1, among: Collection[str] | None = None
    ) -> list[Routed]:
        """The router's decisions for inputs.

        Args:
            among: the only tasks to choose from.

        Raises:
            UsageError: the hub has no adapters.
            AdapterError: the router cannot learn any of its tasks.
        """
        return self._routed(view, examples, top_k, among)[1]

    def routes(
        self, view: View, examples: Sequence[Example], top_k: int, explain: int, fallback: bool = True
    ) -> list[Route]:
        """Where inputs would be routed; see `Engine.route`."""
        seen, routed = self._routed(view, examples, top_k, None)
        assert self.opened is not None
        scores: list[dict[str, float]] = [{} for _ in examples]
        nearest: list[tuple[tuple[str, str, float], ...]] = [() for _ in examples]
        if explain:
            router = self.opened.calibrated.router
            rows = router.scores(seen).tolist()
            scores = [dict(zip(router.tasks, row, strict=True)) for row in rows]
            nearest = self._nearest(seen.hidden, explain)
        found = []
        for example, one, own, near in zip(examples, routed, scores, nearest, strict=True):
            adapters: dict[str, float] = {}
            for task, weight in () if one.out_of_distribution and fallback else one.weights:
                ref = view.server(task)
                adapters[ref] = adapters.get(ref, 0.0) + weight
            found.append(
                Route(
                    example.input or example.instruction,
                    adapters,
                    dict(one.weights),
                    one.confidence,
                    one.out_of_distribution,
                    _finite(one.familiarity),
                    _finite(one.threshold),
                    own,
                    near,
                    one.why,
                )
            )
        return found

    def drift(self, view: View, examples: Sequence[Example]) -> Drift:
        """Compare inputs with what the router knows.

        Raises:
            UsageError: the router has no threshold, so nothing is unknown to it.
        """
        seen, routed = self._routed(view, examples, 1, None, scoped=False)
        assert self.opened is not None
        if _finite(self.opened.calibrated.threshold()) is None:
            raise UsageError(
                f"the router {self.name} cannot detect unknown inputs (it has no threshold)",
                "use another router, or keep more replay samples of each task",
            )
        whole = sum(one.is_whole for one in examples)
        known = self.opened.calibrated.samples(form=int(2 * whole > len(examples)))
        return analyse(seen.texts, seen.hidden, routed, self.common.false_fallbacks, known)

    def _routed(
        self,
        view: View,
        examples: Sequence[Example],
        top_k: int,
        among: Collection[str] | None,
        scoped: bool = True,
    ) -> tuple[SeenTexts, list[Routed]]:
        """Inputs and decisions. An input whose instruction makes it unfamiliar is tried again without it.

        Args:
            scoped: whether the scopes of facts count, too.
        """
        self.refresh(view)
        bounds = [self._scopes.bounds(one, among) if scoped else Bounds() for one in examples]
        seen = self._see(examples, self.common.text != "bare")
        forms = [int(one.is_whole) for one in examples]
        routed = self._decide(seen, top_k, among, bounds, forms if self.common.text == "both" else ())
        strange = [k for k, one in enumerate(routed) if one.out_of_distribution and forms[k]]
        if strange and self.common.text == "both":
            bare = self._see([examples[k] for k in strange], False)
            again = self._decide(bare, top_k, among, [bounds[k] for k in strange])
            for k, one in zip(strange, again, strict=True):
                routed[k] = routed[k] if one.out_of_distribution else one
        return seen, routed

    def _decide(
        self,
        seen: Seen,
        top_k: int,
        among: Collection[str] | None,
        bounds: Sequence[Bounds],
        forms: Sequence[int] = (),
    ) -> list[Routed]:
        if among is not None and set(among) <= {*self._without, *self._dora}:
            raise self._unknown(among)
        assert self.opened is not None
        return self.opened.calibrated.route(seen, top_k, among, forms, bounds)

    def _see(self, examples: Sequence[Example], whole: bool) -> SeenTexts:
        texts = [whole_characters(routing_text(example, whole)) for example in examples]
        return SeenTexts(self.base, self.bank, texts, self.layer, self._serving)

    # -- keeping in step -------------------------------------------------------------------------

    def refresh(self, view: View) -> None:
        """Update the router for what was added, removed or changed in the hub.

        Raises:
            UsageError: the hub has no adapters.
            AdapterError: the router cannot learn any of its tasks.
        """
        if self.opened is not None and self._seen_generation == view.generation:
            return
        if not view.serving:
            raise UsageError("this hub has no adapters yet", "cl-adapter add-task NAME DATA trains one")
        keepers = self._keepers = self._find_keepers(view)
        self._serving = dict(view.serving)
        self._dora = sorted(task for task, ref in view.serving.items() if self._refused(view, ref))
        without = set(view.serving) - set(keepers) - set(self._dora)
        self._without = sorted(without) if self.reads == "samples" else []
        left_out = {*self._without, *self._dora}
        known = {task: self._known(view, task, keepers.get(task)) for task in view.serving if task not in left_out}
        if not known:
            raise self._unknown(view.serving)
        contents = {task: one.content for task, one in known.items()}
        if self.opened is None or contents != self._contents:
            same = {task for task, content in contents.items() if self._contents.get(task) == content}
            self._kept = {task: found for task, found in self._kept.items() if task in same}
            self.opened = open_router(
                self._source(),
                self.name,
                self.options,
                known,
                see=None if self.reads == "samples" else self._of_samples,
                holdout=0.2 if self.reads != "" else 0.05,
                false_fallbacks=self.common.false_fallbacks,
                before=self.opened,
                tell=self.reporter.note,
            )
            self._contents = contents
        self._scopes.refresh(view, known, keepers)
        self._seen_generation = view.generation

    def _source(self) -> Source:
        info = self.base.info
        about: dict[str, str | int] = {
            "base": info.fingerprint,
            "quantization": info.quantization,
            "dtype": str(self.base.dtype),
            "layer": self.layer,
            "max_length": MAX_LENGTH,
            "text": self.common.text,
        }
        return Source(self.registry.path / samples.ROUTERS, about, self._embed, self._storing)

    def _embed(self, texts: list[str]) -> torch.Tensor:
        with self.reporter.piece("the router reads replay samples", len(texts)) as advance:

            def told(count: int) -> None:
                advance(count)
                if self.halt():
                    raise AdapterHubError("the router was not fitted: the engine was closed", "try again")

            return pooled(self.base, texts, self.layer, progress=told)

    @contextmanager
    def _storing(self, contents: Mapping[str, str]) -> Iterator[bool]:
        """The hub's lock, and whether these tasks are still current: forgotten ones must not be stored again."""
        with self.registry.exclusively():
            view = View(self.registry)
            view.refresh()
            keepers = self._find_keepers(view)
            yield all(
                task in view.serving and self._known(view, task, keepers.get(task)).content == content
                for task, content in contents.items()
            )
            view.close()

    def _refused(self, view: View, ref: str) -> bool:
        """Whether the engine cannot serve a version: DoRA."""
        if ref not in self._is_dora:
            self._is_dora[ref] = is_dora(view.record(ref).path)
        return self._is_dora[ref]

    def _find_keepers(self, view: View) -> dict[str, AdapterRecord]:
        """Task → its newest version that has replay samples."""
        found: dict[str, AdapterRecord] = {}
        for record in view.versions.values():
            if record.task not in view.serving or record.status != "active":
                continue
            about = record.manifest.get("files", {}).get(samples.FILE_NAME)
            if about and about.get("bytes", 1):
                newest = found.get(record.task)
                if newest is None or newest.created_at < record.created_at:
                    found[record.task] = record
        return found

    def _known(self, view: View, task: str, keeper: AdapterRecord | None) -> KnownTask:
        """What the router can use of a task; its texts are read on demand."""
        ref = view.server(task)
        content = keeper.manifest["files"][samples.FILE_NAME]["sha256"] if keeper is not None else ""
        if self.reads != "samples":
            content = sha256(f"{content} {ref}".encode()).hexdigest()
        texts = _Texts(self, task, keeper) if keeper is not None else ()
        return KnownTask(content, texts, lambda: self._factors(ref))

    def kept(self, task: str, keeper: AdapterRecord) -> tuple[Example, ...]:
        if task not in self._kept:
            self._kept[task] = tuple(passage for example in examples_kept(keeper) for passage in passages(example))
        return self._kept[task]

    def forms(self, example: Example) -> list[str]:
        """The texts that the router learns from a sample."""
        bare, whole = (whole_characters(routing_text(example, way)) for way in (False, True))
        return {"bare": [bare], "whole": [whole], "both": [bare, whole]}[self.common.text]

    def _factors(self, ref: str) -> dict[str, Factors]:
        record = self.registry.get(ref)
        self.registry.check_files(record)
        with LoraFile(record.path) as file:
            return {name: Factors(*file.factors(name)) for name in file.modules}

    def _of_samples(self, task: str, numbers: Sequence[int]) -> Seen:
        """What a router may compute from a task's samples."""
        own = self.kept(task, self._keepers[task])
        texts = [form for number in numbers for form in self.forms(own[number])]
        return SeenTexts(self.base, self.bank, texts, self.layer, self._serving)

    def _unknown(self, tasks: Collection[str]) -> AdapterError:
        named = ", ".join(sorted(tasks))
        return AdapterError(
            f"the router {self.name} learns from replay samples, but there are none for {named}",
            "use --task or --adapter, or choose --router arrow, which needs only the adapters' weights",
        )

    # -- explaining ------------------------------------------------------------------------------

    def _nearest(self, hidden: torch.Tensor, count: int) -> list[tuple[tuple[str, str, float], ...]]:
        """For each input the most similar replay samples: task, text, cosine of the hidden states."""
        assert self.opened is not None
        cache = Cache(self._source(), False, OpenedRouter(self.opened.calibrated))
        rows, texts = [], []
        for task, keeper in self._keepers.items():
            sha = str(keeper.manifest["files"][samples.FILE_NAME]["sha256"])
            rows.append(cache.get(task, KnownTask(sha, _Texts(self, task, keeper)))[:, 0])
            texts += [(task, routing_text(example)) for example in self.kept(task, keeper)]
        if not rows:
            return [() for _ in hidden]
        table = functional.normalize(torch.cat(rows), dim=1)
        cosines = functional.normalize(hidden, dim=1) @ table.T
        best = cosines.topk(min(count, table.shape[0]), 1)
        return [
            tuple((*texts[at], value) for at, value in zip(where, values, strict=True))
            for where, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]


class _Texts(Sequence[Sequence[str]]):
    """A task's samples in all forms that the router learns, read at first use."""

    def __init__(self, decider: Decider, task: str, keeper: AdapterRecord) -> None:
        self._decider, self._task, self._keeper = decider, task, keeper

    def __len__(self) -> int:
        return len(self._decider.kept(self._task, self._keeper))

    def __getitem__(self, at: Any) -> Any:
        return self._decider.forms(self._decider.kept(self._task, self._keeper)[at])


def _finite(value: float) -> float | None:
    """None for a value that means "no threshold"."""
    return value if abs(value) < float("inf") else None
