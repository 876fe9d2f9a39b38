"""How third-party libraries behave in our process: no messages that users can do nothing about, passive waiting."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial, wraps
from typing import Any

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


# How often a waiting thread looks whether the other one is done before it sleeps: about 30 µs.
_LOOKS = "3000"


def wait_politely() -> None:
    """Make torch's threads sleep while they wait for each other for long, unless the user has set this.

    By default they spin for 3 ms. If anything else runs on the machine, a spinning thread keeps the one that it waits
    for off the core: measured 4 to 7 times slower. If they sleep at once, the waking costs more than many a product:
    writing and small trainings took 1.8 times as long on an idle machine. So they look for a moment and then sleep
    (docs/decisions/004 and 059). This must be called before torch is imported.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", _LOOKS)


def import_bitsandbytes() -> None:
    """Import bitsandbytes without torch's compiler, which takes more than a second to import: bitsandbytes 0.50 passes
    four functions to `torch.compile` as it is imported. They are compiled when they are first called instead."""
    if "bitsandbytes" in sys.modules:
        return
    import torch

    compile_now = torch.compile

    def compile_later(function: Any = None, **options: Any) -> Any:
        if function is None:
            return partial(compile_later, **options)
        compiled: Callable[[], Any] = cache(lambda: compile_now(function, **options))

        @wraps(function)
        def call(*inputs: Any, **named: Any) -> Any:
            return compiled()(*inputs, **named)

        return call

    torch.compile = compile_later  # type: ignore[assignment]
    try:
        import bitsandbytes  # noqa: F401
    finally:
        torch.compile = compile_now


@contextmanager
def no_loading_bars() -> Iterator[None]:
    """Hide transformers' "Loading weights" bars, which appear even for a model that loads in a moment, and its table
    of weights that are missing: whoever loads says that in a line."""
    from transformers.utils import logging as transformers_logging

    shown, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if shown:
            transformers_logging.enable_progress_bar()
