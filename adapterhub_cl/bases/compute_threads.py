"""The threads beside which one computes: how to let go of them, so that another thread has the cores for itself."""

from __future__ import annotations

import ctypes
import os

_PAUSE_HARD = 2  # omp_pause_hard of OpenMP 5.0


def let_go_of_threads() -> bool:
    """End the helpers that GNU OpenMP keeps for the calling thread; they come back when it computes again.

    Every thread that has computed with torch keeps helpers of its own. Where all of them together are more than the
    processors, libgomp lets helpers sleep at once after each product instead of waiting awake for the next one. Writing
    token by token, which is hundreds of short products a token, then took 1.7 times as long.

    Returns:
        whether there was a GNU OpenMP that did so; other kinds have no such rule.
    """
    try:
        library = ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOLOAD | os.RTLD_NOW)  # the one that torch has loaded
        return bool(library.omp_pause_resource_all(_PAUSE_HARD) == 0)
    except (OSError, AttributeError):  # it is not loaded, or older than OpenMP 5; RTLD_NOLOAD is not everywhere
        return False
