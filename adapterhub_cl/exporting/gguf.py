"""gguf: the adapter added into the base's weights, as one GGUF file for llama.cpp, and a Modelfile for Ollama.

The file is written here for the architectures of the Llama family (`_gguf_files`), and by llama.cpp's own converter
for others, where the user names it. It is read back and compared tensor by tensor. Then llama.cpp answers the held-out
rows, if its Python package is installed; otherwise transformers does, which reads GGUF by code of its own.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub_cl.errors import ExportRefused
from adapterhub_cl.exporting import BaseFormat, BaseNameOption, ExportOrder, ProofOptions, _proof
from adapterhub_cl.exporting._gguf_steps import GgufOptions
from adapterhub_cl.types import BaseInfo

if TYPE_CHECKING:
    from adapterhub_cl.evaluation.compared import Answers

MODEL = "model.gguf"
MODELFILE = "Modelfile"
# The largest error of a stored tensor, ‖difference‖ ÷ ‖tensor‖.
ERRORS = {"f32": 1e-6, "f16": 1e-3, "q8_0": 2e-2}


@dataclass(frozen=True)
class Config(GgufOptions, ProofOptions, BaseNameOption):
    """Options of gguf."""

    def __post_init__(self) -> None:
        GgufOptions.__post_init__(self)
        ProofOptions.__post_init__(self)


class Format(BaseFormat):
    purpose = "one GGUF file with the adapter in its weights, for llama.cpp and Ollama"
    Config = Config

    def check(self, order: ExportOrder) -> None:
        from adapterhub_cl.exporting import _gguf_steps, _whole_model

        _gguf_steps.check_package()
        folder = _whole_model.original_folder(order.base)
        _gguf_steps.check_kind(order, folder)

    def write(self, order: ExportOrder, made: Path) -> None:
        import torch

        from adapterhub_cl.exporting import _gguf_files, _gguf_steps, _whole_model

        config = order.config
        self.whole = whole = _whole_model.Whole(order)
        # Sums in fp32 are rounded once, to what the file stores: f16 is finer than the bf16 of most bases.
        model, name = whole.model(torch.float32), _gguf_steps.name_of(order)
        self.facts: dict[str, Any] = {"merged_into": whole.chosen, "tried": whole.tried, "quant": config.quant}
        if config.converter:
            folder = made / "converted"
            _whole_model.save(model, whole.folder, folder, name)
            del model
            _gguf_steps.convert(config.converter, folder, made / MODEL, config.quant)
            shutil.rmtree(folder)
        else:
            plan = _gguf_files.write_model(made / MODEL, model, whole.folder, config.quant, name)
            self.facts["largest_error"] = _check(made / MODEL, model, plan, config.quant)
        _gguf_steps.write_beside(order, made, whole.folder, MODELFILE, f"./{MODEL}")

    def prove(self, order: ExportOrder, made: Path) -> None:
        from adapterhub_cl.exporting import _gguf_steps, _llama_cpp

        whole, python = self.whole, _llama_cpp.interpreter()
        if python:
            opened_by = "llama.cpp"
            tokens: dict[str, float] = {}

            def answer(one: _proof.Reference) -> Answers:
                said, tokens[one.task.name] = whole.by_llama_cpp(python, one, made / MODEL)
                return said

            self.facts["same_tokens"] = tokens
        else:
            import transformers

            opened_by = f"transformers {transformers.__version__}"
            order.hub.reporter.note(_llama_cpp.NOT_RUN)
            model = _gguf_steps.opened(made, MODEL, whole.dtype)

            def answer(one: _proof.Reference) -> Answers:
                return whole.answers(model, one, "asking the export")

        least = _proof.EIGHT_BIT if order.config.quant == "q8_0" else _proof.PLAIN
        lines = ["```console", f"$ llama-server -m {MODEL}", f"$ ollama create NAME -f {MODELFILE}", "```"]
        card = {"library": "gguf", "relation": "finetune", "lines": lines}
        _proof.judge(
            order, made, whole.references, answer, least=least, opened_by=opened_by, card=card, more=self.facts
        )

    def next_steps(self, path: Path, base: BaseInfo) -> list[str]:
        return [f"next: llama-server -m {path / MODEL}; or ollama create NAME -f {path / MODELFILE}"]


def _check(file: Path, model: Any, plan: Any, quant: str) -> float:
    """The largest error of a tensor of the file.

    Raises:
        ExportRefused: it is larger than the storage explains, or a tensor is missing.
    """
    from adapterhub_cl.exporting import _gguf_files

    stored = {plan.name(key): (key, value) for key, value in _gguf_files.tensors_of(model)}
    worst, where = 0.0, ""
    for name, values in _gguf_files.read_tensors(file):
        if name not in stored:
            continue
        key, right = stored.pop(name)
        right = right.detach().float()
        error = float((plan.restored(key, values) - right).norm() / right.norm().clamp_min(1e-12))
        worst, where = max((worst, where), (error, name))
    if stored or worst > ERRORS[quant]:
        what = f"{where} differs by {worst:.2g}" if worst > ERRORS[quant] else f"{next(iter(stored))} is missing"
        raise ExportRefused(
            f"the file that was written is not the model: {what}", "please report this with the base's name"
        )
    return round(worst, 8)
