"""Chooses by a short measurement how a run computes: which attention, and whether weights stay dequantised.

The choice is stored by machine, base and length, so the same run computes the same way and gives the same adapter.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from adapterhub_cl.adapters.as_served import spare_bytes
from adapterhub_cl.adapters.fused import fused
from adapterhub_cl.bases.loading import LoadedBase
from adapterhub_cl.data.batches import collate
from adapterhub_cl.data.tokenise import Tokens
from adapterhub_cl.errors import StorageError
from adapterhub_cl.objectives import BaseObjective
from adapterhub_cl.registry import storage_errors
from adapterhub_cl.registry.files import atomic_write_text

# Another implementation must be this much faster than the default to be chosen: noise must not decide.
MARGIN = 1.1
BUDGET = 2.0  # seconds
LEAST_PAIRS, MOST_PAIRS = 3, 12
TRIED = 512  # tokens of the rows that are tried


@dataclass(frozen=True)
class Speed:
    """How a run computes.

    Attributes:
        attention: transformers' `attn_implementation`.
        keep_bytes: memory for dequantised 4-bit weights, in bytes.
    """

    attention: str = "sdpa"
    keep_bytes: int = 0

    def describe(self) -> str:
        kept = f", 4-bit weights kept dequantised (up to {self.keep_bytes / 1e6:,.0f} MB)" if self.keep_bytes else ""
        return f"{self.attention} attention{kept}"


def choose(
    model: Any,
    base: LoadedBase,
    objective: BaseObjective,
    tokens: Sequence[Tokens],
    batch_size: int,
    *,
    attention: str = "auto",
    tell: Callable[[str], None] = lambda text: None,
) -> Speed:
    """The faster of eager and scaled-dot-product attention for one training step of these examples.

    Both are tried in turn on a few rows, for `BUDGET` seconds at most, and only where nothing is known of this machine,
    base and length.

    Args:
        model: the base with a trainable LoRA.
        batch_size: rows in a batch.
        attention: `auto`, or what to take without measuring.
        tell: called before anything is measured.
    """
    keep = spare_bytes(base)
    default = "sdpa" if getattr(base.model, "_supports_sdpa", True) else "eager"
    if attention != "auto":
        return Speed(attention, keep)
    if base.device.type != "cpu" or default == "eager":
        return Speed(default, keep)
    rows = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
    middle = len(rows) // 2
    typical = rows[max(0, middle - batch_size // 2) :][:batch_size]
    length = max(len(tokens[i]) for i in typical)
    store = _Choices()
    key = "|".join(
        str(part)
        for part in (
            platform.processor() or platform.machine(),
            torch.__version__,
            base.info.fingerprint[:16],
            base.info.quantization,
            base.dtype,
            length.bit_length(),  # twice as long counts as another length
        )
    )
    chosen = store.get(key)
    if chosen is None:
        tell(f"measuring for {BUDGET:g} s at most which attention is faster here; --attention sdpa does without")
        batch = collate(tokens, typical[: max(1, TRIED // length)], base.tokenizer.pad_token_id)
        # A run that measures and one that finds the choice must draw the same dropout.
        with fused(model, base.dtype, keep), torch.random.fork_rng(devices=[]):
            chosen = _faster(lambda name: _step_seconds(model, objective, batch, name, base.dtype))
        store.put(key, chosen)
    return Speed(chosen, keep)


def _faster(measure: Callable[[str], float]) -> str:
    """`eager` where it is clearly faster than `sdpa`, by pairs of steps measured one after the other.

    Args:
        measure: seconds of one step.
    """
    started = time.perf_counter()
    measure("sdpa")  # the first step of each makes kernels and buffers
    if time.perf_counter() - started > BUDGET / 4:
        return "sdpa"  # so slow that measuring would cost more than it could gain
    measure("eager")
    pairs: list[tuple[float, float]] = []
    while len(pairs) < MOST_PAIRS and (len(pairs) < LEAST_PAIRS or time.perf_counter() - started < BUDGET):
        pairs.append((measure("sdpa"), measure("eager")))
        if time.perf_counter() - started > BUDGET and len(pairs) < LEAST_PAIRS:
            return "sdpa"
    ratios = sorted(sdpa / eager for sdpa, eager in pairs)
    return "eager" if ratios[len(ratios) // 4] > MARGIN else "sdpa"


def current(model: Any) -> Speed:
    """How the model computes now."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return Speed(inner.config._attn_implementation)


@contextmanager
def use(model: Any, speed: Speed) -> Iterator[None]:
    """Within the block the model computes that way; then as before, however the block ends."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    before = current(model)
    inner.set_attn_implementation(speed.attention)
    try:
        yield
    finally:
        inner.set_attn_implementation(before.attention)


def _step_seconds(model: Any, objective: BaseObjective, batch: Any, attention: str, dtype: torch.dtype) -> float:
    parameters = [p for p in model.parameters() if p.requires_grad]
    with use(model, Speed(attention)):
        started = time.perf_counter()
        with torch.autocast("cpu", dtype) if dtype != torch.float32 else nullcontext():
            loss = objective.losses(model, batch).mean()
        torch.autograd.grad(loss, parameters, allow_unused=True)
        return time.perf_counter() - started


class _Choices:
    """What was measured before, by machine and base; losing it costs a second, so every failure is harmless."""

    def __init__(self) -> None:
        from platformdirs import user_cache_path

        self.path = user_cache_path("adapterhub-cl") / "speed.json"

    def _read(self) -> dict[str, str]:
        try:
            found: dict[str, str] = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def get(self, key: str) -> str | None:
        value = self._read().get(key)
        return value if value in ("eager", "sdpa") else None

    def put(self, key: str, value: str) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write_text(self.path, json.dumps({**self._read(), key: value}, indent=1))
        except (OSError, StorageError):
            return


def to_json(speed: Speed) -> dict[str, Any]:
    return asdict(speed)


def stored(run: Path) -> Speed | None:
    """The choice that a resumed run had made; None if it cannot be read, and it is measured again."""
    try:
        found = json.loads((run / "speed.json").read_text(encoding="utf-8"))
        chosen = Speed(str(found["attention"]), int(found["keep_bytes"]))
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return chosen if chosen.attention in ("sdpa", "eager") and chosen.keep_bytes >= 0 else None


def store(run: Path, choice: Speed) -> None:
    """Keep a run's choice for a resume.

    Raises:
        StorageError: the disk refused.
    """
    with storage_errors(run):
        (run / "speed.json").write_text(json.dumps(to_json(choice)), encoding="utf-8")
