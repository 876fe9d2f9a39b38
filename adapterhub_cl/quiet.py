"""How third-party libraries behave in our process: no messages that users can do nothing about, passive waiting."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# bitsandbytes: an optional kernel package that we do not need; a cast that is part of how LLM.int8 works.
_LINES = ("gemm_4bit", "MatMul8bitLt: inputs will be cast", "MatMul8bitLt: input matrix will be converted")
_WARNINGS = (
    # peft 0.21 asks transformers 5 for an attribute that was renamed.
    r"`is_gradient_checkpointing` is deprecated",
    r"MatMul8bitLt: inputs will be cast",
    # torch warns about pinned memory if there is no GPU.
    r".*'pin_memory' argument is set as true but no accelerator is found",
)


class _Drop(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return not any(line in message for line in _LINES)


def quiet_third_parties() -> None:
    """Install the filters once; safe to call again. Call it before bitsandbytes is imported."""
    for name in ("bitsandbytes.backends.cpu.ops", "bitsandbytes.autograd._functions"):
        logger = logging.getLogger(name)
        if not any(isinstance(f, _Drop) for f in logger.filters):
            logger.addFilter(_Drop())
    for pattern in _WARNINGS:
        warnings.filterwarnings("ignore", message=pattern)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def wait_politely() -> None:
    """Make torch's threads sleep while they wait for each other, unless the user has set this.

    By default they spin. If anything else runs on the machine, a spinning thread keeps the one that it waits for off
    the core: measured 4 to 7 times slower, against a gain of at most 13 % on an idle machine (docs/decisions/004). This
    must be called before torch is imported.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@contextmanager
def no_loading_bars() -> Iterator[None]:
    """Hide transformers' "Loading weights" bars, which appear even for a model that loads in a moment."""
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
