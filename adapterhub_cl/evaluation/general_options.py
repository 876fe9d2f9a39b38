"""The options of every gate that watch the base itself. Commands read them at their start, so nothing heavy is imported
here."""

from __future__ import annotations

from dataclasses import dataclass

from adapterhub_cl.options import option


@dataclass(frozen=True, kw_only=True)
class GeneralOptions:
    """What a new version may do to the base's loss on text that no task owns."""

    general: str = option(
        "", "raw text on which the gate measures what the base itself forgets, or none; default: a built-in sample",
        stream=False, parse="adapterhub_cl.data.reading:absolute",
    )  # fmt: skip
    max_base_forgetting: float | None = option(
        None, "how much the loss on that text may rise, in nats per token; default: the hub's, else no limit",
        stream=False,
    )  # fmt: skip
