"""Chooses by a short measurement how a run computes: which attention, and whether rows are padded.

The choice is stored by machine, base and length, so the same run computes the same way and gives the same adapter.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from adapterhub_cl.adapters.as_served import spare_bytes
from adapterhub_cl.adapters.fused import fused
from adapterhub_cl.answering import evaluating
from adapterhub_cl.answering.free_mask import REFUSED, TOLERANCE
from adapterhub_cl.answering.unpadded_attention import NAMES, can_do_without_padding
from adapterhub_cl.bases.encoders import bare
from adapterhub_cl.bases.loading import LoadedBase
from adapterhub_cl.bases.precision import DTYPES
from adapterhub_cl.bases.this_machine import UserCache, processor
from adapterhub_cl.data.batches import Batch, collate
from adapterhub_cl.data.tokenise import Tokens
from adapterhub_cl.objectives import BaseObjective
from adapterhub_cl.registry import storage_errors
from adapterhub_cl.settings import TrainingSettings
from adapterhub_cl.training.layer_stack import few_layers, recomputed

# Another way must be this much faster than the default to be chosen: noise must not decide.
MARGIN = 1.05
BUDGET = 2.0  # seconds; or this share of a long run:
SHARE = 0.02
MOST = 0.15  # of a run; a machine on which the rounds take longer computes in the default way
LEAST_ROUNDS, MOST_ROUNDS = 3, 12
MEASURED = 4  # layers
WORTH = 1e12  # floating-point operations; a run of fewer takes seconds, and measuring would take as long
TRIED = 1024  # tokens of the rows that are tried


@dataclass(frozen=True)
class Speed:
    """How a run computes.

    Attributes:
        attention: transformers' `attn_implementation`.
        keep_bytes: memory for dequantised 4-bit weights, in bytes.
        padding: whether the rows of a batch are padded to one length; without, what they begin with alike is computed
            once.
        dtype: type of the products, where it is known.
        every: every how many layers one is computed again in the backward pass instead of kept; 0: none.
        rows: rows in memory at once, where that is fewer than a batch; 0: a batch.
        expected: bytes that the run is expected to need at its peak.
    """

    attention: str = "sdpa"
    keep_bytes: int = 0
    padding: bool = True
    dtype: str = ""
    every: int = 0
    rows: int = 0
    expected: int = 0

    def describe(self) -> str:
        rows = "" if self.padding else ", no padding"
        kept = f", 4-bit weights kept dequantised (up to {self.keep_bytes / 1e6:,.0f} MB)" if self.keep_bytes else ""
        numbers = {1: "every layer", 2: "every second layer", 3: "every third layer"}
        again = f", {numbers.get(self.every, f'every {self.every}th layer')} computed twice" if self.every else ""
        pieces = f", {self.rows} rows at a time" if self.rows else ""
        return f"{self.attention} attention{rows}{kept}{again}{pieces}"


# The ways that are compared, by the names that are kept; the first is the default where a base has both attentions.
WAYS = {
    "sdpa": Speed("sdpa"),
    "eager": Speed("eager"),
    "sdpa without padding": Speed("sdpa", padding=False),
    "eager without padding": Speed("eager", padding=False),
}


def usual_attention(base: LoadedBase) -> str:
    """What is taken where nothing is measured."""
    return "sdpa" if getattr(base.model, "_supports_sdpa", True) else "eager"


def choose(
    model: Any,
    base: LoadedBase,
    objective: BaseObjective,
    tokens: Sequence[Tokens],
    batch_size: int,
    *,
    total: int = 0,
    attention: str = "auto",
    padding: bool = False,
    tell: Callable[[str], None] = lambda text: None,
) -> Speed:
    """The fastest way to compute a training step of these examples: which attention, and with or without padding.

    All are tried in turn on a few rows, for `BUDGET` seconds or `SHARE` of the run, and only where nothing is known of
    this machine, base and length. Rows without padding are considered where they give the same losses. A run of less
    than `WORTH` takes the default: its size decides, never a clock, so the same run always computes the same way.

    Args:
        model: the base with a trainable LoRA.
        batch_size: rows in a batch.
        total: rows that the run computes, over all epochs; 0 if unknown.
        attention: `auto`, or what to take without measuring.
        padding: True if the run needs padded rows.
        tell: called before anything is measured.
    """
    keep = spare_bytes(base)
    inner = model.get_base_model()
    default = usual_attention(base)
    if attention != "auto":
        return Speed(attention, keep)
    rows = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
    middle = len(rows) // 2
    typical = rows[max(0, middle - batch_size // 2) :][:batch_size]
    length, longest = (max(len(tokens[i]) for i in among) for among in (typical, rows))
    attentions = ("sdpa", "eager") if base.device.type == "cpu" and default == "sdpa" else (default,)
    free = not padding and objective.task_type == "CAUSAL_LM" and can_do_without_padding(inner, longest)
    names = [name for name, way in WAYS.items() if way.attention in attentions and (way.padding or free)]
    small = 0 < 4 * base.info.parameters * sum(len(row) for row in tokens) * total / len(tokens) < WORTH
    if len(names) == 1 or small:
        return Speed(default, keep)
    store = UserCache("speed.json")
    key = "|".join(
        str(part)
        for part in (
            torch.cuda.get_device_name(base.device) if base.device.type == "cuda" else processor(),
            torch.__version__,
            base.info.fingerprint[:16],
            base.info.quantization,
            base.dtype,
            length.bit_length(),  # twice as long counts as another length
            *(["padded"] if padding else []),
        )
    )
    chosen = store.get(key)
    if chosen not in names:
        tried = typical[: max(1, TRIED // length)]
        pad = base.tokenizer.pad_token_id
        paddings = {WAYS[name].padding for name in names}
        batches = {padded: collate(tokens, tried, pad, padding=padded).to(base.device) for padded in paddings}

        def step(name: str) -> float:
            return step_seconds(model, objective, batches[WAYS[name].padding], WAYS[name], base)

        # A run that measures and one that finds the choice must draw the same dropout.
        with fused(model, base.dtype, keep), torch.random.fork_rng():
            with few_layers(inner, MEASURED):  # rounding adds up over layers, a wrong mask shows in the first ones
                same = free and _same_losses(model, objective, batches, base)
            names = [name for name in names if same or WAYS[name].padding]
            if len(names) == 1:
                return Speed(default, keep)
            run = step(default) * total / len(tried)
            budget = max(BUDGET, SHARE * run)
            tell(f"measuring for about {budget:.0f} s which way to compute is fastest here; the choice is kept")
            with few_layers(inner, MEASURED):
                chosen = fastest(step, names, budget, max(2 * budget, MOST * run))
            if chosen is None:
                return Speed(default, keep)
        store.put(key, chosen)
    return replace(WAYS[chosen], keep_bytes=keep)


def fastest(
    measure: Callable[[str], float], names: Sequence[str], budget: float, most: float | None = None
) -> str | None:
    """The name that is clearly faster than the first one, by rounds in which all are measured in turn.

    None if steps are too slow for `LEAST_ROUNDS` rounds.

    Args:
        measure: seconds of one step.
        budget: seconds for all rounds.
        most: seconds after which too few rounds are given up; None: twice the budget.
    """
    most = 2 * budget if most is None else most
    started = time.perf_counter()
    for name in names[1:]:
        measure(name)  # the first step of each makes kernels and buffers
    rounds: list[list[float]] = []
    while len(rounds) < MOST_ROUNDS and (len(rounds) < LEAST_ROUNDS or time.perf_counter() - started < budget):
        rounds.append([measure(name) for name in names])
        if time.perf_counter() - started > most and len(rounds) < LEAST_ROUNDS:
            return None
    scores = {}
    for column, name in enumerate(names):
        ratios = sorted(row[0] / row[column] for row in rounds)
        scores[name] = ratios[len(ratios) // 4]
    best = names[0]
    for name in names[1:]:  # of two that are about as fast, always the earlier one
        best = name if scores[name] > MARGIN * scores[best] else best
    return best


@torch.no_grad()
def _same_losses(model: Any, objective: BaseObjective, batches: Mapping[bool, Batch], base: LoadedBase) -> bool:
    """Whether rows without padding give the losses of padded ones, up to rounding."""
    found = {}
    for padded, batch in batches.items():
        try:
            with evaluating(model), use(model, Speed(padding=padded)), base.autocast():
                found[padded] = objective.losses(model, batch)
        except REFUSED:
            return False
    right, other = found[True], found[False]
    return bool(((right - other).abs() <= TOLERANCE[base.dtype] * right.abs().clamp_min(10.0)).all())


def current(model: Any) -> str:
    """The attention that the model computes with now."""
    return str(bare(model).config._attn_implementation)


@contextmanager
def use(model: Any, speed: Speed) -> Iterator[None]:
    """Within the block the model computes that way; then as before, however the block ends."""
    inner = bare(model)
    before = current(model)
    inner.set_attn_implementation(speed.attention if speed.padding else NAMES[speed.attention])
    try:
        yield
    finally:
        inner.set_attn_implementation(before)


def step_seconds(model: Any, objective: BaseObjective, batch: Batch, speed: Speed, base: LoadedBase) -> float:
    """How long a forward and a backward pass of a batch take; no gradient is left behind."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    with use(model, speed):
        started = time.perf_counter()
        with base.autocast():
            loss = objective.losses(model, batch).mean()
        torch.autograd.grad(loss, parameters, allow_unused=True)
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        return time.perf_counter() - started


def seconds_per_row(
    model: Any,
    base: LoadedBase,
    objective: BaseObjective,
    tokens: Sequence[Tokens],
    settings: TrainingSettings,
    way: Speed,
) -> float:
    """How long a row of middle length takes in a batch of such rows, by one timed step after another one."""
    order = sorted(range(len(tokens)), key=lambda k: len(tokens[k]))
    size = min(way.rows or settings.batch, len(order))
    typical = order[(len(order) - size) // 2 :][:size]
    batch = collate(tokens, typical, base.tokenizer.pad_token_id, padding=way.padding).to(base.device)
    with (
        torch.random.fork_rng(),
        fused(model, base.dtype, way.keep_bytes),
        recomputed(model.get_base_model(), way.every),
    ):
        step_seconds(model, objective, batch, way, base)  # makes kernels and buffers
        return step_seconds(model, objective, batch, way, base) / size


def to_json(speed: Speed) -> dict[str, Any]:
    return asdict(speed)


def stored(run: Path) -> Speed | None:
    """The choice that a resumed run had made; None if it cannot be read, and it is measured again."""
    try:
        found = json.loads((run / "speed.json").read_text(encoding="utf-8"))
        known = asdict(Speed())
        if not {"attention", "keep_bytes"} <= found.keys():
            return None
        chosen = Speed(**{name: type(known[name])(value) for name, value in found.items()})
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    fits = chosen.attention in ("sdpa", "eager") and min(chosen.keep_bytes, chosen.every, chosen.rows) >= 0
    return chosen if fits and chosen.dtype in ("", *DTYPES) else None


def store(run: Path, choice: Speed) -> None:
    """Keep a run's choice for a resume.

    Raises:
        StorageError: the disk refused.
    """
    with storage_errors(run):
        (run / "speed.json").write_text(json.dumps(to_json(choice)), encoding="utf-8")
