"""What a version does to the base's own language: its loss on free text that no task owns, before and after.

A task's adapter may cost the base what no task measures, so every gate reports this (asked for in huggingface/peft
#2925). The text is a sample that comes with the package, or the user's own.
"""

from __future__ import annotations

import math
import weakref
from pathlib import Path
from typing import Any

from adapterhub_cl import objectives
from adapterhub_cl.adapters.as_served import as_served
from adapterhub_cl.context import Hub
from adapterhub_cl.data.columns import read_examples
from adapterhub_cl.errors import DataError, HubError, UsageError
from adapterhub_cl.evaluation.base_effect import BaseEffect, compared
from adapterhub_cl.evaluation.general_options import GeneralOptions
from adapterhub_cl.evaluation.scoring import diverged
from adapterhub_cl.registry import Registry
from adapterhub_cl.types import Example, Task

BUILT_IN = Path(__file__).with_name("general.txt")
NAMED = "the built-in sample"
NONE = "none"
LEAST = 2  # passages
PASSAGES = 100  # read of a text of the user's own, evenly spread over it
LENGTH = 256  # tokens read of each passage
BATCH = 16

# The loss of the bare base on a text: it never changes while the base is loaded.
_known: weakref.WeakKeyDictionary[Any, dict[str, list[tuple[float, int]]]] = weakref.WeakKeyDictionary()


class GeneralText:
    """A general text, read.

    Args:
        source: a file of raw text; empty for the built-in sample.
        limit: how much the loss may rise.

    Raises:
        DataError: the text cannot be read, is not raw text, or is a single passage.
    """

    def __init__(self, source: str, limit: float | None) -> None:
        self.limit, self.source = limit, source or NAMED
        found = read_examples(source or BUILT_IN)
        if found.layout != "raw text":
            raise DataError(
                f"--general {source} holds {found.layout} rows, not raw text",
                "give a .txt file with paragraphs, or JSONL with a column `text`",
            )
        self.sha256, read = found.sha256, found.examples
        if len(read) < LEAST:  # a text without blank lines
            lines = [line for example in read for line in (example.answer or "").splitlines()]
            read = [Example("", line) for line in lines if line.strip()]
        if len(read) < LEAST:
            raise DataError(
                f"--general {source} is a single passage, and chance can be told from several only",
                "give more text, with blank lines between its paragraphs",
            )
        every = max(1.0, len(read) / PASSAGES)
        self.passages = [read[int(k * every)] for k in range(min(PASSAGES, len(read)))]

    def begin(self, hub: Hub) -> None:
        """Measure the bare base, once for as long as it is loaded; no adapter may be on it."""
        base = hub.base
        known = _known.setdefault(base.model, {})
        if self.sha256 not in known:
            with base.lock:
                known[self.sha256] = self._losses(hub, base.model, "general text, base alone")

    def effect(self, hub: Hub, model: Any) -> BaseEffect:
        """The effect of the adapter that is on `model`; `begin` comes first."""
        before = _known[hub.base.model][self.sha256]
        after = self._losses(hub, model, "general text")
        if not all(math.isfinite(loss) for loss, _ in after):
            raise diverged("general text")
        rise, low, high = compared(before, after)
        tokens = sum(n for _, n in before)
        was = math.fsum(loss for loss, _ in before) / tokens
        return BaseEffect(self.source, self.sha256, len(after), tokens, was, was + rise, (low, high), self.limit)

    def of(self, hub: Hub, folder: Path) -> BaseEffect:
        """The effect of a stored adapter."""
        self.begin(hub)
        with as_served(hub.base, folder) as model:
            return self.effect(hub, model)

    def _losses(self, hub: Hub, model: Any, what: str) -> list[tuple[float, int]]:
        """For each passage the summed loss in nats and the number of tokens."""
        base, objective = hub.base, objectives.of(hub.base.info)
        encode = objective.tokeniser(base.tokenizer, Task("general", "text"), min(LENGTH, base.context))
        windows = [encode.windows(passage)[0] for passage in self.passages]
        with hub.reporter.piece(what, len(windows)) as advance, base.autocast():
            return objective.perplexities(model, windows, base.tokenizer.pad_token_id, BATCH, advance)


def general_text(registry: Registry, options: GeneralOptions) -> GeneralText | None:
    """What a gate measures the base on; None where it is not measured: the user said `none`, or the base is an encoder
    without the head of a language model.

    Raises:
        UsageError, HubError: the limit cannot be used.
        DataError: the text cannot be read.
    """
    limit = base_limit(registry, options.max_base_forgetting)
    source = options.general or str(registry.hub_file.defaults.get("general", ""))
    speaks = "text" in objectives.of(registry.base).answers_with
    if source != NONE and speaks:
        return GeneralText(source, limit)
    if options.max_base_forgetting is not None:
        why = "--general none measures nothing" if speaks else "this base is no language model"
        raise UsageError(f"--max-base-forgetting needs general text to be measured, and {why}", "leave it out")
    return None


def base_limit(registry: Registry, wanted: float | None) -> float | None:
    """How much the loss on general text may rise: `wanted`, otherwise `max_base_forgetting` in hub.toml's [defaults].

    Raises:
        UsageError: `wanted` is not a number of at least 0.
        HubError: the default is not.
    """

    def usable(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf

    if wanted is not None:
        if not usable(wanted):
            raise UsageError(
                f"--max-base-forgetting must be at least 0, not {wanted!r}",
                "0.1 lets the loss on general text rise by 0.1 nats per token",
            )
        return wanted
    found = registry.hub_file.defaults.get("max_base_forgetting")
    if found is not None and not usable(found):
        raise HubError(
            f"{registry.path / 'hub.toml'}: max_base_forgetting is {found!r}, not a number of at least 0",
            "fix that line",
        )
    return None if found is None else float(found)
