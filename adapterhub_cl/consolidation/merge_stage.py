"""What merge methods see of the base and the parents' replay samples, where they ask for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from typing import Any

import torch

from adapterhub_cl import objectives
from adapterhub_cl.adapters.lora_files import LoraFile
from adapterhub_cl.adapters.targets import length_first
from adapterhub_cl.bases.encoders import put_head, take_head
from adapterhub_cl.bases.hidden import at_tokens
from adapterhub_cl.consolidation.layers import parts_of, shapes_of
from adapterhub_cl.consolidation.parents import Parents, head_of_all
from adapterhub_cl.context import Hub
from adapterhub_cl.data.batches import Batch, by_length, collate
from adapterhub_cl.data.tokenise import Tokens
from adapterhub_cl.errors import AdapterError
from adapterhub_cl.merging.factors import Factors
from adapterhub_cl.samples.of_task import samples_of

ROWS = 16


class MergeStage:
    """The `Stage` of a merge; see there."""

    def __init__(
        self,
        hub: Hub,
        parents: Parents,
        adapters: Sequence[LoraFile],
        seed: int,
    ) -> None:
        self.registry, self.base, self.parents, self.adapters = hub.registry, hub.base, parents, adapters
        self._seed, self.reporter = seed, hub.reporter
        self.objective = objectives.of(self.base.info)
        self._batches: dict[int, list[Batch]] = {}

    @property
    def seed(self) -> int:
        return self._seed

    @cached_property
    def layers(self) -> Mapping[str, Sequence[Factors]]:
        return _Layers(self.adapters)

    def batches(self, adapter: int) -> Sequence[Batch]:
        if adapter not in self._batches:
            self._batches[adapter] = self._read(adapter)
        return self._batches[adapter]

    def _read(self, adapter: int) -> list[Batch]:
        record = self.parents.records[adapter]
        rows: list[Tokens] = []
        for task in record.tasks:
            found = samples_of(self.registry, task, record)
            if found is not None:
                encode = self.objective.tokeniser(
                    self.base.tokenizer, found.task, min(found.max_length, self.base.context)
                )
                rows += [tokens for tokens in encode.many(found.examples) if tokens.answer]
        if not rows:
            raise AdapterError(
                f"{record.ref} has no replay samples, and this merge method learns from them",
                "choose one that needs none, such as linear or knots",
            )
        pad = self.base.tokenizer.pad_token_id
        device = self.base.model.device
        return [collate(rows, part, pad).to(device) for part in by_length([len(row) for row in rows], ROWS)]

    @contextmanager
    def attached(
        self,
        parts: Mapping[str, Factors],
        gates: Mapping[str, torch.Tensor] | None = None,
        see: Callable[[str, torch.Tensor], None] | None = None,
    ) -> Iterator[None]:
        hooks = []
        self._mask: torch.Tensor | None = None
        for name, part in parts.items():
            gate = None if gates is None else gates[name]
            layer = self._layer(name)
            hooks.append(layer.register_forward_hook(self._adds(name, part, gate, see)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _layer(self, name: str) -> torch.nn.Module:
        try:
            found: torch.nn.Module = self.base.model.get_submodule(name)
        except AttributeError as error:
            raise AdapterError(f"this base has no layer {name}", "the adapters are of another base") from error
        return found

    def _adds(self, name: str, part: Factors, gate: torch.Tensor | None, see: Any) -> Callable[..., torch.Tensor]:
        device, dtype = self.base.model.device, self.base.dtype
        a, b = part.a.to(device, dtype), part.b.to(device, dtype)
        turned = name in length_first(self.base)

        def hook(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            x = inputs[0]
            if see is not None and self._mask is not None:
                with torch.autocast(device.type, enabled=False):
                    see(name, at_tokens(x.detach(), self._mask, turned))
            hidden = x.to(dtype) @ a.T
            if gate is not None:
                hidden = hidden * gate.to(device, dtype)
            return output + (hidden @ b.T).to(output.dtype)

        return hook

    def loss(self, batch: Batch) -> torch.Tensor:
        self._mask = batch.attention_mask.bool()
        with self.base.autocast():
            return self.objective.losses(self.base.model, batch).mean()

    def progress(self, what: str, total: int) -> AbstractContextManager[Callable[..., None]]:
        return self.reporter.piece(what, total)


@contextmanager
def merge_stage(
    hub: Hub,
    parents: Parents,
    adapters: Sequence[LoraFile],
    seed: int,
) -> Iterator[MergeStage]:
    """A stage; within the block an encoder has the heads of all parents' tasks."""
    base = hub.base
    head = head_of_all(parents, adapters)
    if head is not None:
        put_head(base.model, head.layout, head.tensors)
    try:
        yield MergeStage(hub, parents, adapters, seed)
    finally:
        take_head(base.model)


class _Layers(Mapping[str, Sequence[Factors]]):
    """Layer → each adapter's ΔW, read when asked for."""

    def __init__(self, adapters: Sequence[LoraFile]) -> None:
        self.adapters, self.shapes = adapters, shapes_of(adapters)

    def __getitem__(self, name: str) -> Sequence[Factors]:
        return parts_of(self.adapters, name, self.shapes[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)
