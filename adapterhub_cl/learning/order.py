"""A training order: a request that was read and checked once. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from adapterhub_cl import augmentation, objectives, replay
from adapterhub_cl.augmentation import Augment
from adapterhub_cl.errors import GateRefused, UsageError
from adapterhub_cl.evaluation.gate import Decision, Effect, general_of, limit_of
from adapterhub_cl.evaluation.general_text import GeneralText, general_text
from adapterhub_cl.learning.chosen_settings import OF_ANSWERS, in_words, read_choice
from adapterhub_cl.learning.request import TrainRequest, versions_of
from adapterhub_cl.progress import Reporter
from adapterhub_cl.registry import Registry
from adapterhub_cl.samples.store import Samples
from adapterhub_cl.settings import TrainingSettings
from adapterhub_cl.strategies import Combined
from adapterhub_cl.strategies import build as build_strategy
from adapterhub_cl.training.runs import Run, published_by
from adapterhub_cl.types import AdapterRecord

PARAPHRASE = "paraphrase"  # the augmentation that facts are taught with
REHEARSED = 2  # rewordings of each fact that was learned before
PARAPHRASES = 16  # rewordings of each new fact, where `--augment` names no other number


@dataclass(frozen=True)
class TrainOrder:
    """A training to be carried out.

    Attributes:
        request: what the user asked for.
        settings: all of them, defaults filled in.
        strategy: built, with its options.
        keep: which examples become replay samples.
        augments: the augmentations and how many copies each makes.
        limit: how much an old task may lose.
        general: free text that no task owns, on which the base itself is measured.
    """

    request: TrainRequest
    settings: TrainingSettings
    strategy: Combined
    keep: replay.Keep
    augments: Sequence[Augment]
    limit: float
    general: GeneralText | None

    @property
    def rehearses(self) -> tuple[Augment, ...] | None:
        """The augmentations of the version's own replay samples, where they differ from those of the new rows: a fact
        that is known needs fewer wordings."""
        if not self.request.facts:
            return None
        return tuple(Augment(PARAPHRASE, REHEARSED) if one.name == PARAPHRASE else one for one in self.augments)

    @property
    def prompt_loss(self) -> float:
        """The weight of the prompt's tokens: as asked, or as the selection policy needs it."""
        wanted = self.settings.prompt_loss
        return (0.0 if replay.keeps_data(self.keep.policy) else 0.25) if wanted is None else wanted


def order_of(registry: Registry, request: TrainRequest) -> TrainOrder:
    """The order that a request makes. Every bad setting is found here, before anything is loaded.

    Raises:
        UsageError: a setting cannot be used.
    """
    order = TrainOrder(
        request,
        request.training(),
        build_strategy(request.strategy, request.options),
        replay.parse(request.replay),
        with_paraphrases(request),
        limit_of(registry, request.max_forgetting),
        general_text(registry, request),
    )
    _refuse_writing(registry, order)
    Samples(registry).budget()
    strategy = order.strategy
    if request.verb == "update" and strategy.makes == "fresh":
        raise UsageError(
            f"update continues from {request.name}, and {strategy.name} makes a fresh adapter",
            "leave --strategy out, or use add-task",
        )
    if request.on_top_of:
        if strategy.makes == "continued":
            raise UsageError(
                f"--on-top-of stacks a new adapter on a frozen one, but {strategy.name} continues training an old one",
                "use it with isolated, incremental or olora",
            )
        if strategy.trial is not None:
            raise UsageError(
                f"--on-top-of cannot be combined with {strategy.name}, which chooses what the adapter starts from",
                f"leave --on-top-of out, or use --strategy isolated to train on top of {request.on_top_of}",
            )
        registry.get(request.on_top_of)
    return order


def with_paraphrases(request: TrainRequest) -> tuple[Augment, ...]:
    """The augmentations asked for; facts are paraphrased even where nobody asks."""
    asked = augmentation.parse_all(request.augment)
    if not request.facts or any(one.name == PARAPHRASE for one in asked):
        return asked
    return (*asked, Augment(PARAPHRASE, PARAPHRASES))


def _refuse_writing(registry: Registry, order: TrainOrder) -> None:
    """Raise for what only a base that writes can do.

    Raises:
        UsageError: the base is an encoder.
    """
    base, request = registry.base, order.request
    if "writing" in replay.ROOM.get(order.keep.policy).needs:
        objectives.refuse_writing(base, f"--replay {request.replay}")
    for one in order.augments:
        if augmentation.ROOM.get(one.name).needs_base:
            objectives.refuse_writing(base, f"--augment {one.name}")
    if order.strategy.writes:
        objectives.refuse_writing(base, f"--strategy {order.strategy.name}")
    if request.facts:
        objectives.refuse_writing(base, "--facts")
    if request.prompt_format is not None:
        objectives.refuse_writing(base, "a prompt format")
    if request.settings.get("prompt_loss"):
        objectives.refuse_writing(base, "--prompt-loss")


def refuse_with_preferences(order: TrainOrder) -> None:
    """Raise for options that mean nothing where preferences are learned.

    Raises:
        UsageError: names the option.
    """
    asked = {"--facts": order.request.facts, "--augment": order.augments, "--labels": order.request.labels}
    asked["--prompt-loss"] = order.settings.prompt_loss
    asked[f"--strategy {order.strategy.name}"] = order.strategy.writes
    if found := next((name for name, value in asked.items() if value), ""):
        raise UsageError(f"{found} cannot be used with preference data", f"leave {found} out")


def finished(registry: Registry, request: TrainRequest, run: Run, reporter: Reporter) -> AdapterRecord | None:
    """The version that a resumed run had published just before it was killed; None where there is something to train.

    Raises:
        GateRefused: the gate had refused that version.
    """
    record = published_by(registry, run, reporter)
    if record is not None and record.status == "rejected":
        raise refusal(record, request.strategy)
    return record


def mention_what_is_there(registry: Registry, request: TrainRequest, reporter: Reporter) -> None:
    """Mention the versions and the unfinished runs of an adapter that is about to be trained."""
    if request.verb == "add-task" and (old := versions_of(registry, request.name)):
        reporter.note(
            f"note: {old[-1].ref} exists already, and this trains a new version without it. To continue from it: "
            f"cl-adapter update {request.name} DATA"
        )
    if waiting := Run.unfinished(registry.runs_dir, request.verb, request.name):
        reporter.note(
            f"note: there is an unfinished {request.verb} of {request.name} ({waiting[0].id}); "
            "--resume would continue it, cl-adapter gc --older-than 0 drops it. Starting a new run."
        )


def suited(order: TrainOrder, prefers: bool) -> TrainOrder:
    """Where preferences are learned, the order without the rate and the epochs that `tune` chose for answers."""
    dropped = [key for key in OF_ANSWERS if prefers and key in order.request.tuned]
    if not dropped:
        return order
    settings = {key: value for key, value in order.request.settings.items() if key not in dropped}
    tuned = {key: value for key, value in order.request.tuned.items() if key not in dropped}
    request = replace(order.request, settings=settings, tuned=tuned)
    return replace(order, request=request, settings=request.training())


def tell_tuned(registry: Registry, request: TrainRequest, prefers: bool, reporter: Reporter) -> None:
    """Say which settings that `tune` chose are used, and why others are not."""
    chosen = (read_choice(registry, request.name) or {"settings": {}})["settings"]
    if request.tuned:
        reporter.note(f"begins with what tune chose for {request.name}: {in_words(request.tuned)}")
    if left := {key: chosen[key] for key in OF_ANSWERS if key in chosen and key not in request.settings}:
        if prefers:
            why = "it was chosen for answers, and preference data need a lower learning rate and the usual epochs"
        elif request.facts:
            why = "facts are learned by heart, with the passes that they need"
        else:
            why = "what continues from an older version passes over new rows as often as usual, to keep what it knows"
        reporter.note(f"note: what tune chose is not used here ({in_words(left)}): {why}")


def refusal(record: AdapterRecord, strategy: str) -> GateRefused:
    """The error that says why a rejected version was refused, and what to try."""
    gate = record.manifest["gate"]
    decision = Decision(gate["limit"], tuple(Effect.from_json(row) for row in gate["effects"]), general_of(gate))
    hint = _what_to_try(strategy, record, decision)
    return GateRefused(decision.message(record.ref), hint, record=record, gate=decision.to_json())


def what_keeps_more(strategy: str) -> str:
    """The option with which less is forgotten than with a strategy."""
    return "a larger --set replay.ratio" if "replay" in strategy else "--strategy replay"


def _what_to_try(strategy: str, record: AdapterRecord, decision: Decision) -> str:
    refused = decision.blamed
    if not refused:
        return (
            f"{record.ref} is kept as rejected and nothing was moved; try a lower --learning-rate, fewer --epochs or a "
            f"lower --rank, or let it pass: cl-adapter promote {record.ref} --max-base-forgetting 10"
        )
    tried = f"{what_keeps_more(strategy)}, a lower --learning-rate"
    anew = all(e.task == record.task and e.answered_by.startswith(f"{record.name}@") for e in refused)
    if anew and record.kind != "updated":  # it was learned from scratch, and the version before it does better
        tried = f"to continue from the version before it (cl-adapter update {record.name} DATA), more data or --epochs"
    return (
        f"{record.ref} is kept as rejected and nothing was moved; try {tried}, or let it "
        f"pass: cl-adapter promote {record.ref} --max-forgetting 1"
        + (" --max-base-forgetting 10" if decision.spoils_base else "")
    )
