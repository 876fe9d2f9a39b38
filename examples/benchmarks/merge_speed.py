"""Merging against PEFT's `add_weighted_adapter`: time, memory, and error to the true Σ wᵢ·ΔWᵢ, in one run.

    python examples/benchmarks/merge_speed.py -o docs/benchmarks

Random adapters of mixed ranks (8 to 64, some rsLoRA) on random bases of two sizes: hidden 1024 with 14 modules, and
layers of an 8-billion-parameter Llama (4096 × 14336; `--layers` of them). PEFT merges adapters that are loaded on a
model; ours are read from their files and written again: reading and writing are in our time, loading is not in PEFT's.
PEFT's `linear` needs equal ranks; where they differ it is given the same adapters, padded with zeros to one rank.
The error is taken on every module (on a sample of rows at 4096) against Σ wᵢ·Bᵢ·Aᵢ in fp64. Each part runs in a process
of its own, so that peaks of memory can be told apart.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from machine import status_kib

RANKS = (8, 16, 32, 64)
OUR_RANK = 32
PEFT_METHODS = ("svd", "linear", "cat", "ties_svd")
SLOW = {"svd", "ties_svd"}


def shapes(size: str, layers: int) -> dict[str, tuple[int, int]]:
    """Module → (out, in)."""
    if size == "1024":
        pairs = {"q": (1024, 1024), "k": (1024, 1024), "v": (1024, 1024), "o": (1024, 1024)}
        pairs |= {"gate": (2816, 1024), "up": (2816, 1024), "down": (1024, 2816)}
        layers = 2
    else:
        pairs = {"q": (4096, 4096), "k": (1024, 4096), "v": (1024, 4096), "o": (4096, 4096)}
        pairs |= {"gate": (14336, 4096), "up": (14336, 4096), "down": (4096, 14336)}
    return {f"layers.{k}.{name}": shape for k in range(layers) for name, shape in pairs.items()}


def make(folder: Path, size: str, layers: int, count: int) -> list[Path]:
    """Random adapters, as PEFT stores them."""
    import torch
    from safetensors.torch import save_file

    made = []
    for k in range(count):
        rank = RANKS[k % len(RANKS)]
        place = folder / f"adapter{k}"
        place.mkdir(parents=True)
        generator = torch.Generator().manual_seed(k)
        tensors = {}
        for name, (out, in_) in shapes(size, layers).items():
            tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(rank, in_, generator=generator) / in_**0.5
            tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(out, rank, generator=generator) / rank**0.5
        save_file(tensors, place / "adapter_model.safetensors")
        config = {
            "peft_type": "LORA",
            "r": rank,
            "lora_alpha": 2 * rank,
            "use_rslora": k % 3 == 2,
            "target_modules": sorted({name.rpartition(".")[2] for name in tensors_names(size, layers)}),
        }
        (place / "adapter_config.json").write_text(json.dumps(config))
        made.append(place)
    return made


def tensors_names(size: str, layers: int) -> list[str]:
    return list(shapes(size, layers))


def weights(count: int) -> list[float]:
    return [(k + 1) / count for k in range(count)]


class Peak:
    """The highest memory of this process within a block, in MB over where it began: its own pages, not those of
    mapped files, which the system takes back as it likes."""

    def __enter__(self) -> Peak:
        self.began = self.highest = self.now()
        self.running = True
        self.watcher = threading.Thread(target=self.watch, daemon=True)
        self.watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.running = False
        self.watcher.join()
        self.highest = max(self.highest, self.now())

    def watch(self) -> None:
        while self.running:
            self.highest = max(self.highest, self.now())
            time.sleep(0.002)

    def now(self) -> float:
        return status_kib("RssAnon") / 1000

    @property
    def grown(self) -> float:
        return self.highest - self.began


def error(folders: list[Path], found: Any) -> float:
    """‖found − Σ wᵢ·Bᵢ·Aᵢ‖ ÷ ‖Σ wᵢ·Bᵢ·Aᵢ‖, fp64, on 256 rows of each module.

    Args:
        found: module → (rows → their part of the merged ΔW).
    """
    import torch

    from adapterhub_cl.adapters.lora_files import LoraFile

    files = [LoraFile(folder) for folder in folders]
    apart = whole = 0.0
    for name in files[0].modules:
        out = files[0].shapes[name][0]
        rows = torch.randperm(out, generator=torch.Generator().manual_seed(1))[:256]
        truth = torch.zeros(len(rows), files[0].shapes[name][1], dtype=torch.float64)
        for weight, file in zip(weights(len(files)), files, strict=True):
            b, a = file.factors(name)
            truth += weight * b[rows].double() @ a.double()
        apart += float((found(name, rows).double() - truth).square().sum())
        whole += float(truth.square().sum())
    return (apart / whole) ** 0.5


class Loaded:
    """An adapter whose factors are in memory already, as PEFT's are; else like the file it was read from."""

    def __init__(self, file: Any) -> None:
        self.folder, self.modules, self.shapes, self.rank = file.folder, file.modules, file.shapes, file.rank
        self.kept = {name: file.factors(name) for name in file.modules}

    def factors(self, name: str) -> Any:
        return self.kept[name]


def in_memory(folders: list[Path], method: str, rank: int | None) -> dict[str, Any]:
    """Merge what is loaded, and leave the result in memory: what PEFT's clock measures too."""
    from adapterhub_cl.adapters.lora_files import LoraFile
    from adapterhub_cl.consolidation.layers import layers_of
    from adapterhub_cl.merging import build

    loaded: Any = [Loaded(LoraFile(folder)) for folder in folders]
    with Peak() as memory:
        started = time.perf_counter()
        merged = list(layers_of(loaded, weights(len(folders)), build(method, {}), rank, 0))
        seconds = time.perf_counter() - started
    by_name = {x.name: x.result.factors for x in merged}
    off = error(folders, lambda name, rows: by_name[name].b[rows] @ by_name[name].a)
    return {"seconds": seconds, "memory_mb": memory.grown, "error": off}


def ours(folders: list[Path], method: str, rank: int | None, target: Path) -> dict[str, Any]:
    """Merge from files to a file."""
    from contextlib import ExitStack

    from adapterhub_cl.adapters.lora_files import LoraFile, write_lora
    from adapterhub_cl.consolidation.layers import layers_of
    from adapterhub_cl.merging import build

    started = time.perf_counter()
    with ExitStack() as stack, Peak() as memory:
        files = [stack.enter_context(LoraFile(folder)) for folder in folders]
        merged = list(layers_of(files, weights(len(files)), build(method, {}), rank, 0))
        write_lora(target, {x.name: (x.result.factors.b, x.result.factors.a) for x in merged}, files, "random")
    seconds = time.perf_counter() - started
    factors = sum((folder / "adapter_model.safetensors").stat().st_size for folder in folders) / 1e6
    by_name = {x.name: x.result.factors for x in merged}
    off = error(folders, lambda name, rows: by_name[name].b[rows] @ by_name[name].a)
    return {"seconds": seconds, "memory_mb": memory.grown, "factors_mb": factors, "error": off}


def peft(folders: list[Path], method: str, rank: int, limit: int) -> dict[str, Any]:
    """Merge what is loaded on a model of bare linear layers."""
    import torch
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file

    names = {k.removeprefix("base_model.model.").rpartition(".lora_")[0] for k in load_file(folders[0] / W)}
    sizes = load_file(folders[0] / W)
    chosen = sorted(names)[:limit] if limit else sorted(names)

    class Bare(torch.nn.Module):
        """The layers, without anything between them; empty weights, which merging never reads."""

        def __init__(self) -> None:
            super().__init__()
            for name in chosen:
                out = sizes[f"base_model.model.{name}.lora_B.weight"].shape[0]
                in_ = sizes[f"base_model.model.{name}.lora_A.weight"].shape[1]
                self.put(name.split("."), torch.nn.Linear(in_, out, bias=False, dtype=torch.bfloat16))

        def put(self, path: list[str], layer: torch.nn.Module) -> None:
            at: torch.nn.Module = self
            for part in path[:-1]:
                if not hasattr(at, part):
                    at.add_module(part, torch.nn.Module())
                at = getattr(at, part)
            at.add_module(path[-1], layer)

    padded = method == "linear"
    model: Any = None
    for k, folder in enumerate(folders):
        about = json.loads((folder / "adapter_config.json").read_text())
        r = max(RANKS) if padded else about["r"]
        scaling = about["lora_alpha"] / (about["r"] ** 0.5 if about["use_rslora"] else about["r"])
        config = LoraConfig(r=r, lora_alpha=scaling * r, target_modules=chosen, init_lora_weights=False)
        if model is None:
            model = get_peft_model(Bare(), config, adapter_name=f"a{k}")
        else:
            model.add_adapter(f"a{k}", config)
        tensors = load_file(folder / W)
        with torch.no_grad():
            for name in chosen:
                layer = model.base_model.model.get_submodule(name)
                for which, store in (("A", layer.lora_A), ("B", layer.lora_B)):
                    value = tensors[f"base_model.model.{name}.lora_{which}.weight"]
                    weight = store[f"a{k}"].weight
                    weight.zero_()
                    weight[tuple(slice(0, n) for n in value.shape)] = value
    options: dict[str, Any] = {"density": 0.5} if "ties" in method else {}
    if method.endswith("svd"):
        options["svd_rank"] = rank
    names_ = [f"a{k}" for k in range(len(folders))]
    with Peak() as memory:
        started = time.perf_counter()
        model.base_model.add_weighted_adapter(
            names_, weights(len(folders)), "merged", combination_type=method, **options
        )
        seconds = time.perf_counter() - started
    used = memory.grown

    def found(name: str, rows: torch.Tensor) -> torch.Tensor:
        layer = model.base_model.model.get_submodule(name)
        a, b = layer.lora_A["merged"].weight, layer.lora_B["merged"].weight
        product: torch.Tensor = (b[rows].float() @ a.float()) * layer.scaling["merged"]
        return product.detach()

    if limit:
        return {"seconds": seconds, "memory_mb": used, "error": None, "modules": len(chosen)}
    return {"seconds": seconds, "memory_mb": used, "error": error(folders, found), "modules": len(chosen)}


W = "adapter_model.safetensors"


def warm_up() -> None:
    """Lets the libraries of linear algebra start before any clock does."""
    import torch

    small = torch.rand(200, 64, dtype=torch.float64)
    gram = small.T @ small
    torch.linalg.cholesky(gram)
    torch.linalg.eigh(gram)
    torch.linalg.svd(small.float())


def child(given: argparse.Namespace) -> None:
    warm_up()
    folders = sorted(Path(given.adapters).iterdir(), key=lambda p: int(p.name.removeprefix("adapter")))
    if given.who == "ours" and given.method == "memory":
        found = in_memory(folders, "linear", OUR_RANK)
    elif given.who == "ours":
        with tempfile.TemporaryDirectory() as target:
            rank = None if given.method == "exact" else OUR_RANK
            method = "linear" if given.method in ("exact", "linear") else given.method
            found = ours(folders, method, rank, Path(target))
    else:
        found = peft(folders, given.method, OUR_RANK, given.limit)
    print(json.dumps(found))


def measure(who: str, method: str, adapters: Path, limit: int = 0) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", "--who", who, "--method", method, "--adapters", str(adapters)]
    done = subprocess.run([*command, "--limit", str(limit)], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--layers", type=int, default=2, help="layers at 4096")
    parser.add_argument("--counts", default="4,16")
    parser.add_argument("--sizes", default="1024,4096")
    parser.add_argument("--slow-modules", type=int, default=1, help="modules that PEFT's SVDs are timed on at 4096")
    for name in ("--who", "--method", "--adapters"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given)
        return
    rows = []
    for size in given.sizes.split(","):
        for count in map(int, given.counts.split(",")):
            with tempfile.TemporaryDirectory() as folder:
                adapters = make(Path(folder), size, given.layers, count)[0].parent
                modules = len(shapes(size, given.layers))
                names = {
                    "memory": "linear, in memory",
                    "linear": "linear",
                    "exact": "linear, all ranks",
                    "ties": "ties",
                }
                many = size != "1024" and count > 4  # dense ΔWs of so many adapters would fill this machine's memory
                for method, name in names.items():
                    if many and method == "ties":
                        continue
                    found = measure("ours", method, adapters)
                    name = f"ours: {name}"
                    rows.append({"size": size, "adapters": count, "modules": modules, "who": name, **found})
                    show(rows[-1])
                for method in PEFT_METHODS:
                    if many and method == "ties_svd":
                        continue
                    limit = given.slow_modules if size != "1024" and method in SLOW else 0
                    found = measure("peft", method, adapters, limit)
                    if limit:  # the first so many modules in alphabetical order, scaled up by their work
                        found["timed_on"] = found["modules"]
                        found["seconds"] *= work(size, given.layers) / work(size, given.layers, limit)
                    rows.append(
                        {"size": size, "adapters": count, "who": f"PEFT: {method}", **found, "modules": modules}
                    )
                    show(rows[-1])
    write(rows, given.output)


def work(size: str, layers: int, limit: int = 0) -> float:
    """Σ out·in·min(out, in) over modules: what a dense SVD costs, up to a constant."""
    pairs = sorted(shapes(size, layers).items())[: limit or None]
    return sum(float(out) * in_ * min(out, in_) for _, (out, in_) in pairs)


def show(row: dict[str, Any]) -> None:
    off = "-" if row["error"] is None else f"{row['error']:.2e}"
    print(
        f"hidden {row['size']}, {row['adapters']:2} adapters  {row['who']:24} {row['seconds']:9.3f} s  "
        f"{row['memory_mb']:8.0f} MB  error {off}",
        flush=True,
    )


def write(rows: list[dict[str, Any]], output: Path | None) -> None:
    lines = [
        "# Merging: time, memory, error",
        "",
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; one run. Ranks 8 to 64, "
        f"result at rank {OUR_RANK} unless it says otherwise. Error: ‖merged − Σ wᵢ·ΔWᵢ‖ ÷ ‖Σ wᵢ·ΔWᵢ‖. Memory: growth "
        "of the process's own pages while merging. Ours *in memory* starts where PEFT's clock starts, with the "
        "adapters loaded; the other rows of ours read them from disk and write the result. PEFT's times marked ~ were "
        "taken on some modules and scaled by their work.",
    ]
    for key in dict.fromkeys((row["size"], row["adapters"]) for row in rows):
        mine = [row for row in rows if (row["size"], row["adapters"]) == key]
        base = next(row["seconds"] for row in mine if row["who"] == "ours: linear, in memory")
        factors = next(row["factors_mb"] for row in mine if "factors_mb" in row)
        lines += [
            "",
            f"## hidden {key[0]}, {mine[0]['modules']} modules, {key[1]} adapters ({factors:.0f} MB of factors)",
            "",
            "| | seconds | × ours | MB | error |",
            "|---|---|---|---|---|",
        ]
        for row in mine:
            about = "~" if "timed_on" in row else ""
            off = "not measured" if row["error"] is None else f"{row['error']:.2e}"
            lines.append(
                f"| {row['who']} | {about}{row['seconds']:.3f} | {row['seconds'] / base:.1f} | {row['memory_mb']:.0f} "
                f"| {off} |"
            )
    print("\n".join(lines))
    if output:
        output.mkdir(parents=True, exist_ok=True)
        (output / "merge_speed.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
        (output / "merge_speed.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
