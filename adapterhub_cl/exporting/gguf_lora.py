"""gguf-lora: the adapter alone as a LoRA in GGUF, which llama.cpp and Ollama put on a GGUF file of the same base.

The scaling is folded into B, because llama.cpp knows α ÷ rank only, and no rsLoRA. The file is read back, and the
factors in it answer the held-out rows on the hub's base; if llama.cpp's Python package is installed, it answers them
instead, on the base as a GGUF file.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub_cl.errors import AdapterError, UsageError
from adapterhub_cl.exporting import BaseFormat, BaseNameOption, ExportOrder, ProofOptions, _proof
from adapterhub_cl.exporting._gguf_steps import GgufOptions
from adapterhub_cl.types import BaseInfo

if TYPE_CHECKING:
    from adapterhub_cl.evaluation.compared import Answers

ADAPTER, BASE = "adapter.gguf", "base.gguf"
MODELFILE = "Modelfile"


@dataclass(frozen=True)
class Config(GgufOptions, ProofOptions, BaseNameOption):
    """Options of gguf-lora."""

    def __post_init__(self) -> None:
        GgufOptions.__post_init__(self)
        ProofOptions.__post_init__(self)
        if self.quant == "q8_0":
            raise UsageError(
                "a LoRA is stored in f16 or f32: its factors are too narrow for q8_0",
                "leave --quant out; the base that it is put on may be q8_0",
            )


class Format(BaseFormat):
    purpose = "the adapter alone as a LoRA in GGUF, for llama.cpp and Ollama"
    Config = Config

    def check(self, order: ExportOrder) -> None:
        from adapterhub_cl.adapters.lora_files import LoraFile
        from adapterhub_cl.exporting import _gguf_steps, _whole_model

        _gguf_steps.check_package()
        self.folder = _whole_model.original_folder(order.base)
        _gguf_steps.check_kind(order, self.folder)
        with LoraFile(order.record.path) as lora:
            tied = _gguf_steps.config_of(self.folder).tie_word_embeddings
            if tied and any(name.rpartition(".")[2] == "lm_head" for name in lora.modules):
                raise AdapterError(
                    f"{order.record.ref} changes the output layer, which this base shares with its embeddings",
                    "export the whole model: --format gguf",
                )

    def write(self, order: ExportOrder, made: Path) -> None:
        from adapterhub_cl.adapters.lora_files import LoraFile, write_lora
        from adapterhub_cl.exporting import _gguf_files, _gguf_steps

        self.references = _proof.references(order, order.hub.base)
        with LoraFile(order.record.path) as lora:
            layers = {name: lora.factors(name) for name in lora.modules}
            if order.config.converter:
                with tempfile.TemporaryDirectory(prefix="cl-adapter-") as place:
                    write_lora(Path(place), layers, [lora], _gguf_steps.name_of(order))
                    options = ["--base", str(self.folder)]
                    quant = order.config.quant
                    _gguf_steps.convert(order.config.converter, Path(place), made / ADAPTER, quant, options)
            else:
                plan = _gguf_files.plan_for(_gguf_steps.config_of(self.folder), order.base.architecture)
                _gguf_files.write_lora(made / ADAPTER, layers, plan, order.config.quant, _gguf_steps.name_of(order))
        _gguf_steps.write_beside(order, made, self.folder, MODELFILE, f"./{BASE}", f"./{ADAPTER}")

    def prove(self, order: ExportOrder, made: Path) -> None:
        from adapterhub_cl.exporting import _llama_cpp

        python, least = _llama_cpp.interpreter(), _proof.PLAIN
        facts: dict[str, Any] = {"quant": order.config.quant}
        lines = ["```console", f"$ llama-server -m {BASE} --lora {ADAPTER}", "```"]
        card = {"library": "gguf", "relation": "adapter", "lines": lines}
        if not python and order.config.converter:
            raise UsageError(
                "a LoRA that llama.cpp's converter wrote can only be tried with llama.cpp",
                f"pip install llama-cpp-python, or set {_llama_cpp.PYTHON} to a Python that has it",
            )
        if not python:
            order.hub.reporter.note(_llama_cpp.NOT_RUN)
            said = self._by_the_hub(order, made)
            _proof.judge(
                order,
                made,
                self.references,
                lambda one: said[one.task.name],
                least=least,
                opened_by="the hub's base",
                card=card,
                more=facts,
            )
            return
        base, tokens = order.hub.base, dict[str, float]()
        with tempfile.TemporaryDirectory(prefix="cl-adapter-") as place:
            model = self._base_file(order, Path(place))

            def answer(one: _proof.Reference) -> Answers:
                said, tokens[one.task.name] = _llama_cpp.answers(
                    python, one, base.tokenizer, base.context, model, made / ADAPTER
                )
                return said

            facts["same_tokens"] = tokens
            _proof.judge(
                order, made, self.references, answer, least=least, opened_by="llama.cpp", card=card, more=facts
            )

    def next_steps(self, path: Path, base: BaseInfo) -> list[str]:
        return [f"next: llama-server -m BASE.gguf --lora {path / ADAPTER}; or see {path / MODELFILE} for Ollama"]

    def _by_the_hub(self, order: ExportOrder, made: Path) -> dict[str, Answers]:
        """Task → what the factors in the file say on the hub's base."""
        from adapterhub_cl.adapters.as_served import as_served
        from adapterhub_cl.adapters.lora_files import LoraFile, write_lora
        from adapterhub_cl.exporting import _gguf_files, _gguf_steps

        plan = _gguf_files.plan_for(_gguf_steps.config_of(self.folder), order.base.architecture)
        base = order.hub.base
        with tempfile.TemporaryDirectory(prefix="cl-adapter-") as place, LoraFile(order.record.path) as lora:
            layers = _gguf_files.read_lora(made / ADAPTER, plan, lora.modules)
            write_lora(Path(place), layers, [lora], "")
            with as_served(base, Path(place)) as model:
                return {
                    one.task.name: _proof.answers_of(model, base, one.probe, order, "asking the export")
                    for one in self.references
                }

    def _base_file(self, order: ExportOrder, place: Path) -> Path:
        """The base as GGUF: the hub's own file, or one that is written here."""
        from adapterhub_cl.bases.sources import is_gguf
        from adapterhub_cl.exporting import _gguf_files

        if is_gguf(order.base.source):
            return Path(order.base.source)
        import transformers

        model = transformers.AutoModelForCausalLM.from_pretrained(self.folder, dtype="auto", use_safetensors=True)
        _gguf_files.write_model(place / BASE, model, self.folder, "f16", "base")
        return place / BASE
