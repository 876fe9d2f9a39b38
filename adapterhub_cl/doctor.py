"""The checks of `cl-adapter doctor`: the installation, the machine, the embedded base, and the hub if there is one."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adapterhub_cl.errors import AdapterHubError

DISTRIBUTION = "adapterhub-cl"
SHOWN = ("torch", "transformers", "peft", "accelerate", "bitsandbytes")
LEAST_PYTHON = (3, 11)
LEAST_MEMORY = 1_000_000_000
LEAST_DISK = 1_000_000_000
NF4_ERROR = (1e-4, 0.2)  # relative error of a product: below it nothing was quantised; above it the result is wrong


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        detail: what was found.
        fix: the next step; empty if everything is fine.
    """

    name: str
    ok: bool
    detail: str
    fix: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def examine(hub: Path | None, folder: Path, *, device: str = "auto") -> list[Check]:
    """All checks, in order; a check that raises an error counts as failed and does not stop the others.

    Args:
        hub: the hub's directory, or None.
        folder: where a hub would be made; its disk is checked if there is no hub.
        device: as in `AdapterHub.open`.
    """
    steps: list[tuple[str, Callable[[], Check], str]] = [
        ("python", _python, f"install Python {LEAST_PYTHON[0]}.{LEAST_PYTHON[1]} or newer"),
        ("packages", _packages, f"pip install --upgrade {DISTRIBUTION}"),
        ("processor", lambda: _processor(device), "use --device cpu, or fix the GPU driver"),
        ("memory", _memory, "close other programs, or use a smaller base"),
        ("disk", lambda: _disk(hub or folder), "free some space, or put the hub on another disk"),
        ("cache", _cache, "set XDG_CACHE_HOME and HF_HOME to writable folders"),
        ("nf4", _nf4, "pip install --upgrade bitsandbytes, or make hubs with --quantization none"),
        ("embedded base", lambda: _embedded(device), f"pip install --force-reinstall {DISTRIBUTION}"),
        ("hub", lambda: _hub(hub), "cl-adapter verify says how to fix it"),
    ]
    return [_carefully(name, step, fix) for name, step, fix in steps]


def _carefully(name: str, step: Callable[[], Check], fix: str) -> Check:
    try:
        check = step()
    except AdapterHubError as error:
        return Check(name, False, error.message, error.hint or fix)
    except Exception as error:  # a broken installation can raise anything; show it
        return Check(name, False, f"{type(error).__name__}: {' '.join(str(error).split())}", fix)
    return check if check.ok or check.fix else Check(check.name, False, check.detail, fix)


def _python() -> Check:
    return Check("python", sys.version_info >= LEAST_PYTHON, ".".join(map(str, sys.version_info[:3])))


def _packages() -> Check:
    from importlib.metadata import PackageNotFoundError, version

    found, wrong = [], []
    for name, specifier in _required():
        try:
            installed = version(name)
        except PackageNotFoundError:
            wrong.append(f"{name} is not installed")
            continue
        if name in SHOWN:
            found.append(f"{name} {installed}")
        if not specifier.contains(installed, prereleases=True):
            wrong.append(f"{name} {installed} is not {specifier}")
    return Check("packages", not wrong, "; ".join(wrong) if wrong else ", ".join(found))


def _required() -> Iterator[tuple[str, Any]]:
    """Name and version range of every package that this one needs."""
    from importlib.metadata import requires

    from packaging.requirements import Requirement

    for line in requires(DISTRIBUTION) or ():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement.name, requirement.specifier


def _processor(device: str) -> Check:
    import torch

    from adapterhub_cl.bases.loading import choose_device
    from adapterhub_cl.bases.precision import choose_dtype

    chosen = choose_device(device)
    _, dtype = choose_dtype("auto", chosen)
    if chosen.type == "cuda":
        properties = torch.cuda.get_device_properties(chosen)
        return Check(
            "processor", True, f"{properties.name}, {properties.total_memory / 1e9:.0f} GB; computes in {dtype}"
        )
    has = torch.cpu
    units = [
        name
        for name, there in (
            ("AVX512-BF16", has._is_avx512_bf16_supported()),
            ("AMX", has._is_amx_tile_supported()),
        )
        if there
    ]
    what = f"CPU, {torch.get_num_threads()} threads, {' and '.join(units) or 'no bf16 unit'}; computes in {dtype}"
    return Check("processor", True, what)


def _memory() -> Check:
    import psutil

    memory = psutil.virtual_memory()
    detail = f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free"
    return Check("memory", memory.available >= LEAST_MEMORY, detail)


def _disk(where: Path) -> Check:
    import shutil

    there = next((path for path in (where, *where.absolute().parents) if path.exists()), Path.cwd())
    free = shutil.disk_usage(there).free
    return Check("disk", free >= LEAST_DISK, f"{free / 1e9:.1f} GB free at {there.absolute()}")


def _cache() -> Check:
    from huggingface_hub.constants import HF_HUB_CACHE
    from platformdirs import user_cache_path

    folders = [user_cache_path(DISTRIBUTION), Path(HF_HUB_CACHE)]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder)
        os.close(handle)
        Path(name).unlink()
    return Check("cache", True, f"writable: {', '.join(map(str, folders))}")


def _nf4() -> Check:
    import torch
    from bitsandbytes import functional

    generator = torch.Generator().manual_seed(0)
    weight, inputs = torch.randn(128, 128, generator=generator), torch.randn(4, 128, generator=generator)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    packed, state = functional.quantize_4bit(weight.to(device), quant_type="nf4")
    restored = functional.dequantize_4bit(packed, state).float().cpu()
    exact = inputs @ weight.T
    error = float((inputs @ restored.T - exact).norm() / exact.norm())
    smaller = packed.numel() * packed.element_size() / (weight.numel() * 4)
    ok = NF4_ERROR[0] < error < NF4_ERROR[1] and smaller < 0.2
    return Check("nf4", ok, f"weights take {smaller:.0%} of fp32 on {device}; the error of a product is {error:.1%}")


def _embedded(device: str) -> Check:
    import torch

    from adapterhub_cl.bases.loading import inspect_base, load_base

    info = inspect_base("tiny", "nf4")
    base = load_base(info, device=device)
    tokens = base.tokenizer("The doctor looks.", return_tensors="pt").input_ids.to(base.device)
    with torch.no_grad():
        logits = base.model(tokens).logits
    ok = bool(torch.isfinite(logits.float()).all())
    answers = "and answers" if ok else "but its outputs are not finite"
    detail = (
        f"{info.parameters / 1e6:.1f} million parameters, fingerprint {info.fingerprint[:12]}; loads in nf4 {answers}"
    )
    return Check("embedded base", ok, detail)


def _hub(hub: Path | None) -> Check:
    if hub is None:
        return Check("hub", True, "none here (cl-adapter init --base tiny makes one)")
    from adapterhub_cl.bases.fingerprint import changed_to
    from adapterhub_cl.bases.sources import TINY, resolve
    from adapterhub_cl.registry import Registry

    registry = Registry.open(hub)
    base, count = registry.base, len(registry.adapters(all_versions=True))
    if (base.source == TINY or Path(base.source).is_dir()) and changed_to(resolve(base.source), base.fingerprint):
        return Check("hub", False, f"{hub}: base {base.source} has changed since this hub was made")
    return Check("hub", True, f"{hub}: {count} versions on {base.source} ({base.quantization})")
