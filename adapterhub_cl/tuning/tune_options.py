"""The options of `tune`. No torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from adapterhub_cl.data.formats import NAMES, check_format
from adapterhub_cl.errors import UsageError
from adapterhub_cl.options import option, read_texts

# What a search does not use: it holds out rows of the data itself, makes no version, and reads no other task.
UNUSED = (
    "eval", "serve", "log_with", "on_top_of", "general", "max_base_forgetting", "max_forgetting", "replay", "forecast"
)  # fmt: skip
# Help does not show these either: facts cannot be held out, and an adapter of its own has one strategy.
NOT_SHOWN = (*UNUSED, "facts", "strategy", "options")


@dataclass(frozen=True, kw_only=True)
class TuneOptions:
    """The options of `tune`."""

    trials: int = option(20, "settings that are tried at most, the defaults among them")
    minutes: float | None = option(None, "begin no further trial after so many minutes; default: no limit")
    confirm: int = option(2, "further seeds with which the best settings and the defaults are trained and compared")
    formats: Sequence[str] = option(
        tuple, "prompt formats to try beside the task's own: chat,instruction,plain, or a JSON list of templates",
        parse="adapterhub_cl.tuning.tune_options:read_formats",
    )  # fmt: skip

    def __post_init__(self) -> None:
        problems = [
            f"--{name} must be at least {least}, not {getattr(self, name)}"
            for name, least in (("trials", 2), ("confirm", 1))
            if getattr(self, name) < least
        ]
        if self.minutes is not None and not 0 < self.minutes < float("inf"):
            problems.append(f"--minutes must be above 0, not {self.minutes:g}")
        if problems:
            raise UsageError("; ".join(problems), "cl-adapter tune NAME DATA --trials 20")


def read_formats(value: Any) -> tuple[str, ...]:
    """`a,b`, one template, a JSON list, or a list of names and templates.

    Raises:
        UsageError: a text without any, or one that cannot be used.
    """
    one = isinstance(value, str) and "{" in value and not re.match(r"\s*\[\s*\"", value)
    found = [value] if one else read_texts(value, "--formats", '["plain", "Q: {input}\\nA:"]')
    names = [form if "{" in form else form.strip() for form in found if form.strip()]
    if not names and isinstance(value, str):
        raise UsageError("--formats names no prompt format", f"--formats {','.join(NAMES)}; or leave it out")
    return tuple(dict.fromkeys(map(check_format, names)))
