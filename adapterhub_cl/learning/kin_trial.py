"""Versions of other tasks are tried on a new task's rows before it is trained, for strategies that may start from them.

All rows go through the LoRA bank, each with the version or the mixture that it is tried with, so one pass over a batch
tries many. Nothing is trained here: a causal base answers with what each version knows. An encoder has no head for the
new labels, so a linear classifier is fitted to what each version reads off the rows, and judged on rows that it was not
fitted to (a linear probe, Alain & Bengio 2017, arXiv:1610.01644). Where a version knows the very same labels, its own
head is tried as well. Mixtures are means of ΔW, as in LoraHub (Huang et al. 2024, arXiv:2307.13269), of the best two
and three.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from adapterhub_cl import objectives
from adapterhub_cl.answering import evaluating
from adapterhub_cl.bank.bank import LoraBank
from adapterhub_cl.bank.shelf import Shelved, read_adapter
from adapterhub_cl.bases.encoders import bare, head_of
from adapterhub_cl.bases.loading import LoadedBase
from adapterhub_cl.context import Hub
from adapterhub_cl.data.batches import Batch, by_length, collate
from adapterhub_cl.data.tokenise import Tokens
from adapterhub_cl.errors import AdapterError, IntegrityError
from adapterhub_cl.learning.linear_probe import own_head_loss, probe_loss
from adapterhub_cl.learning.material import Material
from adapterhub_cl.learning.order import TrainOrder
from adapterhub_cl.learning.some_rows import some_rows
from adapterhub_cl.merging.factors import Factors, stacked, truncate
from adapterhub_cl.registry import Registry
from adapterhub_cl.settings import TrainingSettings
from adapterhub_cl.strategies import Kin, Trial
from adapterhub_cl.types import Task

ROWS = 32  # in one pass: rows times what they are tried with
MIXED = (2, 3)  # how many of the best are mixed
NORM_OF_A = 3**-0.5  # of a row of A as PEFT draws it

Mixture = dict[str, float]


def try_versions(hub: Hub, order: TrainOrder, material: Material, trial: Trial) -> list[Kin]:
    """What answers for the hub's other tasks, alone and mixed, in the order of its loss on rows of the new task.

    Returns:
        the best first; the first `trial.starts` have their weights, in the shape of the new adapter.
    """
    base, settings, reporter = hub.base, order.settings, hub.reporter
    adapters = _readable(hub, _candidates(hub, material.task.name, trial.versions))
    _, rows = some_rows(base, material.task, material.data.examples, settings, trial.rows, f"kin {settings.seed}")
    if not adapters or not rows:
        return []
    bank = LoraBank(base, lambda ref: adapters[ref], capacity=len(adapters))
    reader = _Probed if base.is_encoder and material.task.kind == "choice" else _Answered
    tried = reader(base, bank, rows, material.task.labels)
    singles: list[Mixture] = [{ref: 1.0} for ref in adapters]
    with _closing(bank), reporter.piece("trying other tasks' adapters", len(rows) * len(singles)) as advance:
        found = _ordered(tried.losses(singles, adapters, advance))
        best = [next(iter(kin.parents)) for kin in found]
        mixtures = [{ref: round(1 / n, 6) for ref in best[:n]} for n in MIXED if n <= len(best)]
        found = _ordered([*found, *tried.losses(mixtures, adapters, lambda _: None)])
    alike = _same_labels(hub.registry, material.task, adapters)
    found = [replace(kin, same_labels=len(kin.parents) == 1 and not alike.isdisjoint(kin.parents)) for kin in found]
    racing = {*range(trial.starts), *[k for k, kin in enumerate(found) if kin.same_labels][:1]}
    return [with_weights(kin, adapters, base, settings) if k in racing else kin for k, kin in enumerate(found)]


def _ordered(found: Sequence[Kin]) -> list[Kin]:
    return sorted(found, key=lambda kin: (kin.loss, tuple(kin.parents)))


@contextmanager
def _closing(bank: LoraBank) -> Iterator[None]:
    try:
        yield
    finally:
        bank.close()


def _candidates(hub: Hub, task: str, most: int) -> list[str]:
    """The versions that answer for other tasks, the newest first."""
    registry: Registry = hub.registry
    serving = registry.serving()
    own = serving.get(task)
    records = {ref: registry.get(ref) for name, ref in serving.items() if ref != own and name != task}
    # What began as a version of this task has learned its rows, and would win on any that are held out.
    edges = registry.lineage()
    taught = {record.ref for record in registry.adapters(all_versions=True) if task in record.tasks}
    while more := {edge.child for edge in edges if edge.parent in taught} - taught:
        taught |= more
    for ref in sorted(taught & records.keys()):
        hub.reporter.note(f"note: {ref} is not tried: it descends from a version that has learned {task}")
        del records[ref]
    newest = sorted(records, key=lambda ref: (records[ref].created_at, ref), reverse=True)
    if len(newest) > most:
        hub.reporter.note(
            f"{most} of {len(newest)} versions are tried, the newest ones (--set kin.versions={len(newest)} tries all)"
        )
    return newest[:most]


def _same_labels(registry: Registry, task: Task, refs: Iterable[str]) -> set[str]:
    """The versions that know a choice task with the very same labels."""
    if task.kind != "choice":
        return set()
    alike = {one.name for one in registry.tasks() if one.kind == "choice" and set(one.labels) == set(task.labels)}
    return {ref for ref in refs if not alike.isdisjoint(registry.get(ref).tasks)}


def _readable(hub: Hub, refs: Sequence[str]) -> dict[str, Shelved]:
    """Those of the versions that can stand in a bank; the others are named in a note."""
    found: dict[str, Shelved] = {}
    for ref in refs:
        record = hub.registry.get(ref)
        try:
            hub.registry.check_files(record)
            adapter = read_adapter(record.path, hub.base.dtype)
            probe = LoraBank(hub.base, lambda _, adapter=adapter: adapter, capacity=1)  # type: ignore[misc]
            with _closing(probe):
                probe.require([ref])
            found[ref] = adapter
        except (AdapterError, IntegrityError) as error:
            hub.reporter.note(f"warning: {ref} is not tried: {error.message}")
    return found


def with_weights(kin: Kin, adapters: Mapping[str, Shelved], base: LoadedBase, settings: TrainingSettings) -> Kin:
    """The kin with its ΔW at the rank of the new adapter, and what that cuts off."""
    layers, worst = {}, 0.0
    for name in dict.fromkeys(layer for ref in kin.parents for layer in adapters[ref].factors):
        there = [(adapters[ref].factors[name], w) for ref, w in kin.parents.items() if name in adapters[ref].factors]
        whole = stacked([Factors(b.float(), a.float()) for (a, b), _ in there], [weight for _, weight in there])
        if whole.rank > settings.rank:
            cut = truncate(whole, settings.rank)
            worst = max(worst, cut.error)
            norms = cut.factors.a.norm(dim=1).clamp_min(1e-12) / NORM_OF_A  # so that A is as large as a fresh one
            whole = Factors(cut.factors.b * norms, cut.factors.a / norms[:, None])
        layers[name] = (whole.a.cpu(), whole.b.cpu())
    return replace(kin, layers=layers, error=round(worst, 6))


@dataclass(frozen=True)
class _Answered:
    """The loss of the answers themselves."""

    base: LoadedBase
    bank: LoraBank
    rows: Sequence[Tokens]
    labels: Sequence[str]

    def losses(self, mixtures: Sequence[Mixture], adapters: Mapping[str, Shelved], advance: Any) -> list[Kin]:
        objective = objectives.of(self.base.info)
        sums = [[0.0, 0] for _ in mixtures]
        for numbers, batch, model in self.passes(mixtures):
            counts = (batch.labels[:, 1:] != -100).sum(1).tolist()
            for number, losses in zip(numbers, torch.split(objective.losses(model, batch), counts), strict=True):
                sums[number][0] += float(losses.sum())
                sums[number][1] += losses.numel()
            advance(len(numbers))
        return [Kin(mixture, total / max(1, count)) for mixture, (total, count) in zip(mixtures, sums, strict=True)]

    def passes(self, mixtures: Sequence[Mixture]) -> Iterator[tuple[list[int], Batch, Any]]:
        """Batches of rows with the number of the mixture that each is tried with, and the model that tries them."""
        pairs = [(number, row) for row in range(len(self.rows)) for number in range(len(mixtures))]
        for chunk in by_length([len(self.rows[row]) for _, row in pairs], ROWS):
            numbers, rows = [pairs[k][0] for k in chunk], [self.rows[pairs[k][1]] for k in chunk]
            batch = collate(rows, range(len(rows)), self.base.tokenizer.pad_token_id).to(self.base.device)
            with self.bank.rows([mixtures[n] for n in numbers]) as model, evaluating(model), torch.no_grad():
                yield numbers, batch, model


class _Probed(_Answered):
    """The loss of a linear classifier on what each mixture reads off the rows, or of a head that knows the labels."""

    def losses(self, mixtures: Sequence[Mixture], adapters: Mapping[str, Shelved], advance: Any) -> list[Kin]:
        final = bare(self.base.model).get_submodule(head_of(self.base.model).final)  # type: ignore[union-attr]
        kept: list[torch.Tensor] = []
        hook = final.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0].detach().float().cpu()))
        read: list[list[torch.Tensor]] = [[] for _ in mixtures]
        answers: list[list[int]] = [[] for _ in mixtures]
        try:
            for numbers, batch, model in self.passes(mixtures):
                model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
                states = kept.pop()
                states = states if states.dim() == 2 else states[:, 0]
                for number, state, answer in zip(numbers, states, batch.labels[:, 1].tolist(), strict=True):
                    read[number].append(state)
                    answers[number].append(answer)
                advance(len(numbers))
        finally:
            hook.remove()
        found = []
        for mixture, states_, right in zip(mixtures, read, answers, strict=True):
            seen = torch.stack(states_)
            kin = Kin(mixture, probe_loss(seen, right))
            head = self._head(mixture, adapters)
            if head and (own := own_head_loss(seen, right, [head[label] for label in self.labels])) < kin.loss:
                kin = Kin(mixture, own, head=head)
            found.append(kin)
        return found

    def _head(self, mixture: Mixture, adapters: Mapping[str, Shelved]) -> dict[str, tuple[torch.Tensor, float]]:
        """The rows for the new task's labels of the weightiest version that knows the very same ones."""
        for ref in mixture:
            stored = adapters[ref].head
            for task in stored.layout if stored is not None else ():
                weight, bias, labels = stored.part(task)  # type: ignore[union-attr]
                if set(labels) == set(self.labels):
                    return {label: (weight[k].float(), float(bias[k])) for k, label in enumerate(labels)}
        return {}
