"""What a benchmark's page says of the machine and of the packages."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from adapterhub_cl.bases.this_machine import processor_name as processor


def machine() -> str:
    return f"{processor()}, {os.cpu_count()} cores, no GPU"


def remarks(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """What has to be said of some runs, such as of a fault that was mended since; as lines of Markdown."""
    said = dict.fromkeys(str(row["remark"]) for row in rows if row.get("remark"))
    return [line for text in said for line in (text, "")]


def status_kib(name: str) -> int:
    """A figure of this process's memory in KiB, as Linux names it: `VmHWM`, `RssAnon`."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def peak_bytes() -> int:
    """The most memory that this process held at once (Linux), else this process or the one that started it."""
    if Path("/proc/self/status").is_file():
        return status_kib("VmHWM") * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def installed(*packages: str) -> dict[str, str]:
    """Package → version."""
    return {name: _version(name) for name in packages}


def versions(*packages: str) -> str:
    """Packages with their versions: `torch 2.13.0, peft 0.21.2`."""
    return ", ".join(f"{name} {found}" for name, found in installed(*packages).items())


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
