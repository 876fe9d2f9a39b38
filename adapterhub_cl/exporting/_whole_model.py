"""The base with an adapter added into its weights, as one transformers model in memory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub_cl.errors import AdapterError, BaseModelError, ExportRefused, UsageError
from adapterhub_cl.exporting import ExportOrder, _proof
from adapterhub_cl.types import BaseInfo

if TYPE_CHECKING:
    import torch

    from adapterhub_cl.adapters.lora_files import LoraFile
    from adapterhub_cl.bases.loading import LoadedBase
    from adapterhub_cl.evaluation.compared import Answers

    Dense = Mapping[str, Callable[[], torch.Tensor]]

FOUR_BIT = ("nf4", "fp4")
ORIGINAL, DEQUANTISED = "original", "dequantised"


class Whole:
    """The merged model of an order, and what the hub says to the held-out rows.

    Where the hub's base is 4-bit, the adapter has learned beside rounded weights: then it is added to the original
    weights and to the dequantised ones, both answer the held-out rows, and the better one is kept.

    Attributes:
        folder: of the base's original weights.
        references: the held-out rows with the answers of the adapter in the hub and of the base.
        chosen: the weights that the adapter was added to: `original` or `dequantised`.
        tried: those weights → the mean share of the adapter's score that they keep; empty where there was no choice.
    """

    def __init__(self, order: ExportOrder) -> None:
        base = order.hub.base
        self.order, self.folder = order, original_folder(order.base)
        self.references = _proof.references(order, base)
        self.chosen, self.tried = ORIGINAL, dict[str, float]()
        self._dense = dense_layers(base) if order.base.quantization in FOUR_BIT else {}
        self._about, self._context = replace(base, model=None), base.context
        if not self._dense:
            order.release()

    def model(self, dtype: torch.dtype | None = None) -> Any:
        """The merged model, on the CPU.

        Args:
            dtype: its data type; None: that of the base's original weights.
        """
        if self._dense and self.references:
            for where in (ORIGINAL, DEQUANTISED):
                self.tried[where] = self._kept(where)
            self.chosen = max(self.tried, key=lambda where: self.tried[where])  # the first of equals: the original
            told = ", ".join(f"{where} weights {share:.3f}" for where, share in self.tried.items())
            self.order.hub.reporter.note(f"retention when added to the {told}; the {self.chosen} ones are written")
        elif self._dense:
            self.order.hub.reporter.note("note: added to the original weights; no held-out rows could compare them")
        model = self._made(self.chosen, dtype)
        self._dense = {}
        self.order.release()
        return model

    def answers(self, model: Any, found: _proof.Reference, what: str) -> Answers:
        """What a model says to the rows of one task.

        Args:
            model: a merged one, as transformers opens it; it is moved to the hub's device.
        """
        model.to(self._about.device).eval()
        if self._about.is_encoder:
            from adapterhub_cl.adapters.heads import mark_plain_head

            mark_plain_head(model, self.order.record.path)
        about = replace(self._about, model=model)
        return _proof.answers_of(model, about, found.probe, self.order, what)

    def by_llama_cpp(self, python: str, found: _proof.Reference, file: Path) -> tuple[Answers, float]:
        """What llama.cpp says with a GGUF file of the model; see `_llama_cpp.answers`."""
        from adapterhub_cl.exporting import _llama_cpp

        return _llama_cpp.answers(python, found, self._about.tokenizer, self._context, file)

    @property
    def dtype(self) -> torch.dtype:
        """The data type in which the hub answers."""
        return self._about.dtype

    def _made(self, where: str, dtype: torch.dtype | None = None) -> Any:
        return with_adapter(self.order, self.folder, self._dense if where == DEQUANTISED else None, dtype)

    def _kept(self, where: str) -> float:
        from adapterhub_cl.evaluation.compared import compare

        model = self._made(where).to(self.dtype)
        kept = []
        for one in self.references:
            export = self.answers(model, one, f"asking the model on {where} weights")
            kept.append(compare(one.probe, one.base, one.adapter, export).retention)
        return sum(kept) / len(kept)


def check_tasks(order: ExportOrder) -> None:
    """Raise where the version is an encoder's without labels.

    Raises:
        UsageError: there is no head that could leave with the model.
    """
    from adapterhub_cl.adapters.head_files import read_layout
    from adapterhub_cl.bases.kinds import is_encoder

    if is_encoder(order.base.architecture) and not read_layout(order.record.path):
        raise UsageError(
            f"{order.record.ref} is an encoder's adapter without labels, and only a classifier is exported as a whole",
            "export it in PEFT's format: --format peft",
        )


def original_folder(base: BaseInfo) -> Path:
    """The folder with the weights of a base as they were published.

    Raises:
        BaseModelError: it is not on this machine, or its weights are already quantised.
    """
    from adapterhub_cl.bases.already_quantised import stored_quantization
    from adapterhub_cl.bases.sources import read_config, resolve

    folder = resolve(base.source, base.revision)
    if kind := stored_quantization(read_config(folder), base.source):
        raise BaseModelError(
            f"the weights of base {base.source!r} are stored in {kind}, and an adapter is added to 16-bit weights",
            "make a hub on the 16-bit checkpoint of the same model and import the adapter there (--any-base)",
        )
    return folder


def dense_layers(base: LoadedBase) -> Dense:
    """Layer → its dequantised weight `[out, in]` in fp32, of the 4-bit layers of a loaded base."""
    import torch

    from adapterhub_cl.adapters.fused import dense_weight

    found = {}
    for name, layer in base.model.named_modules():
        if type(layer).__name__ == "Linear4bit":
            weight = dense_weight(layer, torch.float32)
            if weight is not None:
                found[name] = weight
    return found


def with_adapter(order: ExportOrder, folder: Path, dense: Dense | None = None, dtype: torch.dtype | None = None) -> Any:
    """The model of a base's folder with the version's adapter added into its weights; layer by
    layer, so that it takes little more memory than the model.

    Args:
        folder: see `original_folder`.
        dense: weights that replace those of the folder first.
        dtype: of the result; None: that of the folder's weights.

    Raises:
        ExportRefused: the data type is too coarse: no weight changes.
        AdapterError: the adapter does not fit the base.
    """
    import torch

    from adapterhub_cl.adapters.lora_config import check_config
    from adapterhub_cl.adapters.lora_files import LoraFile

    model = _plain_model(order, folder, dtype or "auto")
    with torch.no_grad():
        for name, weight in (dense or {}).items():
            model.get_submodule(name).weight.copy_(weight())
        if check_config(order.record.path).get("use_dora"):
            model = _merged_by_peft(model, order.record.path)
        else:
            with LoraFile(order.record.path) as lora:
                changed = _add(model, lora)
            if not changed:
                kind = str(model.dtype).removeprefix("torch.")
                raise ExportRefused(
                    f"{order.record.ref} changes nothing: its updates vanish in {kind}",
                    "export it in PEFT's format, which keeps them: --format peft",
                )
    return model.eval()


def _plain_model(order: ExportOrder, folder: Path, dtype: Any) -> Any:
    """The base as transformers opens it, for an encoder with the adapter's head."""
    import transformers

    from adapterhub_cl.adapters.heads import put_plain_head
    from adapterhub_cl.bases.encoders import load_encoder
    from adapterhub_cl.bases.kinds import auto_class, is_encoder
    from adapterhub_cl.quiet import no_loading_bars

    if not is_encoder(order.base.architecture):
        with no_loading_bars():
            kind = getattr(transformers, auto_class(order.base.architecture))
            return kind.from_pretrained(folder, dtype=dtype, use_safetensors=True)
    config = transformers.AutoConfig.from_pretrained(folder)
    with no_loading_bars():
        model = load_encoder(folder, config, None, dtype=dtype, use_safetensors=True)
    put_plain_head(model, order.record.path, model.dtype)
    return model


def _merged_by_peft(model: Any, folder: Path) -> Any:
    from adapterhub_cl.adapters.lora import open_adapter

    return open_adapter(model, folder).merge_and_unload()


def _add(model: Any, lora: LoraFile) -> int:
    """Add ΔW to every layer that the adapter has; the sum is rounded once. Returns how many weights changed."""
    changed = 0
    for name in lora.modules:
        try:
            layer = model.get_submodule(name)
        except AttributeError as error:
            raise AdapterError(
                f"the base has no layer {name}, which the adapter changes", "export it in PEFT's format: --format peft"
            ) from error
        if layer is model.get_output_embeddings():
            _untie(model)
        b, a = lora.factors(name)
        delta = b @ a
        if type(layer).__name__ == "Conv1D":  # GPT-2 stores `[in, out]`
            delta = delta.T
        if layer.weight.shape != delta.shape:
            raise AdapterError(
                f"the adapter's {name} is {tuple(delta.shape)}, and the base's is {tuple(layer.weight.shape)}",
                "it must have been trained on this same base",
            )
        new = (layer.weight.float() + delta).to(layer.weight.dtype)
        changed += int((new != layer.weight).sum())
        layer.weight.copy_(new)
    return changed


def _untie(model: Any) -> None:
    """Give the output embeddings weights of their own, and let the config say so."""
    import torch

    head, words = model.get_output_embeddings(), model.get_input_embeddings()
    if head.weight is not words.weight:
        return
    head.weight = torch.nn.Parameter(words.weight.detach().clone(), requires_grad=False)
    for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
        config.tie_word_embeddings = False


def save(model: Any, base: Path, made: Path, name: str) -> None:
    """Write a model with tokenizer, chat template and generation config.

    Args:
        base: the folder of its base.
        name: what the config calls it.
    """
    import transformers

    from adapterhub_cl.adapters.task_file import copy_tokenizer
    from adapterhub_cl.quiet import no_loading_bars

    if model.can_generate():
        model.generation_config = transformers.GenerationConfig()
    with no_loading_bars():
        model.save_pretrained(made)
    own = base / "generation_config.json"  # as it is: transformers refuses to write some of those that it reads
    if own.is_file():
        shutil.copyfile(own, made / own.name)
    config = json.loads((made / "config.json").read_text(encoding="utf-8"))
    config.pop("_name_or_path", None)
    text = json.dumps(config | ({"_name_or_path": name} if name else {}), indent=2, sort_keys=True) + "\n"
    (made / "config.json").write_text(text, encoding="utf-8")
    copy_tokenizer(base, made)
