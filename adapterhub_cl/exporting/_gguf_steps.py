"""What both formats of GGUF share: their options, what is checked first, what stands beside the file, and how others
write or open one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub_cl.bases.sources import public_name
from adapterhub_cl.errors import AdapterError, UsageError, first_line
from adapterhub_cl.exporting import ExportOrder
from adapterhub_cl.options import option

if TYPE_CHECKING:
    import torch

QUANTS = ("f16", "q8_0", "f32")


@dataclass(frozen=True)
class GgufOptions:
    """The options of formats that write GGUF."""

    quant: str = option("f16", "how the weights are stored in GGUF: f16, q8_0 or f32", choices=QUANTS, word="--quant")
    converter: str = option(
        "",
        "llama.cpp's convert_hf_to_gguf.py, for architectures that cannot be written without it; gguf-lora takes "
        "convert_lora_to_gguf.py",
        metavar="FILE",
    )

    def __post_init__(self) -> None:
        if self.converter and not Path(self.converter).expanduser().is_file():
            raise UsageError(f"--converter {self.converter}: no such file", "name llama.cpp's convert_hf_to_gguf.py")


def config_of(folder: Path) -> Any:
    """transformers' config of the model in a folder."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder)


def name_of(order: ExportOrder) -> str:
    """What a GGUF file calls itself."""
    base = order.config.base_name or public_name(order.base.source)
    return f"{order.record.ref} on {base}"


def check_kind(order: ExportOrder, folder: Path) -> None:
    """Raise if the base cannot be written, and no converter is named.

    Raises:
        AdapterError: see `plan_for`.
    """
    from adapterhub_cl.exporting._gguf_files import plan_for
    from adapterhub_cl.exporting._gguf_tokens import check_tokenizer

    if not order.config.converter:
        plan_for(config_of(folder), order.base.architecture)
        check_tokenizer(folder)


def write_beside(order: ExportOrder, made: Path, folder: Path, name: str, source: str, adapter: str = "") -> None:
    """Write task.json and the Modelfile.

    Args:
        folder: of the base.
        name: of the Modelfile; for source and adapter see `modelfile`.
    """
    from transformers import AutoTokenizer

    from adapterhub_cl.adapters import task_file
    from adapterhub_cl.exporting._modelfile import for_tasks

    about = task_file.about_export(order.record, order.base, order.tasks)
    task_file.tell_prompts(about, order.record, order.base, folder, order.tasks)
    task_file.write_task_file(about, made)
    text = for_tasks(AutoTokenizer.from_pretrained(folder), about, source, adapter)
    (made / name).write_text(text, encoding="utf-8")


def convert(script: str, folder: Path, file: Path, quant: str, more: Sequence[str] = ()) -> None:
    """Let llama.cpp's converter write a file.

    Args:
        script: its path.
        folder: what it converts.
        more: further arguments.

    Raises:
        AdapterError: it failed.
    """
    asked = [sys.executable, str(Path(script).expanduser()), str(folder), "--outfile", str(file), "--outtype", quant]
    run = subprocess.run([*asked, *more], capture_output=True, text=True, check=False)
    if run.returncode or not file.is_file():
        why = (run.stderr.strip().splitlines() or [f"exit code {run.returncode}"])[-1]
        raise AdapterError(f"llama.cpp's converter failed: {why}", f"run it by itself: {' '.join(asked[:2])} --help")


def opened(folder: Path, file: str, dtype: torch.dtype) -> Any:
    """A GGUF file as transformers opens it, dequantised.

    Raises:
        AdapterError: transformers does not read this architecture from GGUF.
    """
    from transformers import AutoModelForCausalLM, GgufConfig

    from adapterhub_cl.quiet import no_loading_bars

    try:
        with no_loading_bars():
            return AutoModelForCausalLM.from_pretrained(
                folder, gguf_file=file, quantization_config=GgufConfig(dequantize=True), dtype=dtype
            )
    except Exception as error:  # an architecture that transformers does not read from GGUF
        raise AdapterError(
            f"transformers cannot open the file to try it: {first_line(error)}",
            "install llama-cpp-python, which then tries it",
        ) from error


def check_package() -> None:
    """Raise if the package `gguf` is missing.

    Raises:
        UsageError: it is.
    """
    if find_spec("gguf") is None:
        raise UsageError(
            "writing GGUF needs the package gguf", "pip install gguf, or pip install 'adapterhub-cl[gguf]'"
        )
