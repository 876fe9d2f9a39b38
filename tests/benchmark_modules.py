"""The benchmarks' modules, which import each other by bare names; several benchmarks have one called `methods`."""

from __future__ import annotations

import sys


def forget() -> None:
    """Have Python import all of them anew."""
    for name, module in list(sys.modules.items()):
        if "/examples/benchmarks/" in str(getattr(module, "__file__", None) or ""):
            del sys.modules[name]
