"""Encoders: loaded as transformers' sequence classification, with a head whose rows change with the active adapter.

The head is one linear layer, `[labels, hidden]` and a bias; each row is a label of a task. Layers between the body and
the head that are not in the checkpoint (a pooler, a dense layer) are the neck: initialised from a fixed seed, the same
for all adapters of a base, frozen, and stored with each of them, so that plain PEFT finds it (docs/decisions/013).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification
from transformers.utils import logging

from adapterhub_cl.bases.sources import refuse_lacking
from adapterhub_cl.errors import AdapterError, BaseModelError
from adapterhub_cl.types import HeadRows

# task → label → row of the head; labels are in the task's order.
_SEED = 13
_ANY = 2  # placeholder number of labels; the layer is replaced before it is used


@dataclass
class Head:
    """The head of an encoder in memory.

    Attributes:
        final: name of the linear layer whose rows are labels.
        modules: names of the modules that plain PEFT has to save and load for it: `modules_to_save`.
        neck: parameters within these modules other than those of `final`, the same for every adapter of this hub.
        layout: what the rows of the layer currently mean; empty if no adapter is active.
        passed: output of the layer for the labelled rows of the last pass, `[rows, head rows]`, with its gradient.
        passed_text: the same for its raw text, `[places, vocabulary]`.
        masked: loads the masked language model on the same body; None if the checkpoint has none.
    """

    final: str
    modules: tuple[str, ...]
    neck: Mapping[str, torch.Tensor] = field(default_factory=dict, repr=False)
    layout: HeadRows = field(default_factory=dict)
    passed: torch.Tensor | None = field(default=None, repr=False)
    passed_text: torch.Tensor | None = field(default=None, repr=False)
    masked: Callable[[], Any] | None = field(default=None, repr=False)

    @property
    def weight(self) -> str:
        return f"{self.final}.weight"

    @property
    def bias(self) -> str:
        return f"{self.final}.bias"


def bare(model: Any) -> Any:
    """The transformers model inside DDP and PEFT wrappers."""
    inner = getattr(model, "module", model)
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


def head_of(model: Any) -> Head | None:
    """The head of an encoder, wrapped or not; None for other models."""
    found: Head | None = getattr(bare(model), "_adapterhub_head", None)
    return found


def load_encoder(path: Path, config: Any, quantization: Any, **options: Any) -> Any:
    """transformers' sequence classification model of the base, with its `Head`.

    Args:
        quantization: for the layers of the body; head and neck are not quantised.
        options: for `from_pretrained`.

    Raises:
        BaseModelError: the model class has no linear layer for the labels.
    """
    config.num_labels = _ANY
    with torch.device("meta"):
        plan = AutoModelForSequenceClassification.from_config(config)
    final = _final(plan)
    if quantization is not None:
        quantization.llm_int8_skip_modules = _outside_the_layers(plan)
    with _no_report():  # a new head is intended, so transformers need not report it
        model, told = AutoModelForSequenceClassification.from_pretrained(
            path,
            config=config,
            quantization_config=quantization,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
    new = {*told["missing_keys"], *(key[0] if isinstance(key, tuple) else key for key in told["mismatched_keys"])}
    new -= {f"{final}.weight", f"{final}.bias"}
    refuse_lacking(path, sorted(key for key in new if key.startswith(_read_by_all(plan))))
    _draw(model, new)
    body = model.base_model_prefix
    top = final.split(".")[0]
    modules = {top, *(key.rpartition(".")[0] for key in new if not key.startswith(f"{top}."))}
    if top == body:
        raise BaseModelError(f"the head of {type(model).__name__} is part of its body", "choose another encoder")
    named = dict(model.named_parameters())
    neck = {
        key: value.detach().clone()
        for key, value in named.items()
        if any(key.startswith(f"{module}.") for module in modules) and not key.startswith(f"{final}.")
    }
    model._adapterhub_head = Head(final, tuple(sorted(modules)), neck)
    return model


def load_masked_lm(path: Path, model: Any, **options: Any) -> Any:
    """The masked language model of a base, sharing the body of its sequence classification (adapters included)."""
    with _no_report():
        found = AutoModelForMaskedLM.from_pretrained(path, **options)
    found.requires_grad_(False)  # before it gets the shared body, which may be in training
    found.eval()
    prefix = found.base_model_prefix
    setattr(found, prefix, getattr(model, prefix))
    found.tie_weights()
    return found


def put_head(model: Any, layout: HeadRows, tensors: Mapping[str, torch.Tensor], *, trainable: bool = False) -> None:
    """Put a head on an encoder, replacing the current one.

    Args:
        layout: what its rows mean.
        tensors: the parameters of `Head.modules` by name; those of the neck may be missing.

    Raises:
        AdapterError: the tensors do not fit this encoder's head.
    """
    inner, head = bare(model), head_of(model)
    assert head is not None
    weight, bias = tensors.get(head.weight), tensors.get(head.bias)
    old = inner.get_submodule(head.final)
    neck = {key: tensors.get(key, value) for key, value in head.neck.items()}
    fits = weight is not None and weight.dim() == 2 and weight.shape[1] == old.in_features
    fits = fits and (bias is None or bias.shape == weight.shape[:1])  # type: ignore[union-attr]
    fits = fits and not set(tensors) - {head.weight, head.bias, *neck}
    fits = fits and all(value.shape == head.neck[key].shape for key, value in neck.items())
    if not fits or weight is None:
        shapes = ", ".join(f"{key} {tuple(value.shape)}" for key, value in sorted(tensors.items()))
        raise AdapterError(
            f"the adapter's head does not fit this base: it has {shapes or 'no tensors'}",
            f"it must have been made for {type(inner).__name__} on this same base",
        )
    with torch.no_grad():
        for key, value in neck.items():
            inner.get_parameter(key).copy_(value)
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], device=inner.device, dtype=torch.float32)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(torch.zeros(len(weight)) if bias is None else bias)
    layer.requires_grad_(trainable)
    inner.set_submodule(head.final, layer)
    head.layout, head.passed, head.passed_text = layout, None, None


def take_head(model: Any) -> None:
    """Remove an adapter's head; the base's own neck is restored, and no row has a meaning."""
    inner, head = bare(model), head_of(model)
    if head is not None:
        width = inner.get_submodule(head.final).in_features
        put_head(model, {}, {head.weight: torch.zeros(1, width)})


def head_tensors(model: Any) -> dict[str, torch.Tensor]:
    """What plain PEFT saves of the current head: parameter → value, on the CPU."""
    inner, head = bare(model), head_of(model)
    assert head is not None
    names = [head.weight, head.bias, *head.neck]
    return {name: inner.get_parameter(name).detach().cpu().contiguous().clone() for name in names}


@contextmanager
def _no_report() -> Iterator[None]:
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _final(plan: Any) -> str:
    prefix = f"{plan.base_model_prefix}."
    found = [
        name
        for name, module in plan.named_modules()
        if isinstance(module, torch.nn.Linear) and module.out_features == _ANY and not name.startswith(prefix)
    ]
    if not found:
        raise BaseModelError(
            f"{type(plan).__name__} has no linear layer for labels", "choose another encoder, such as a BERT or RoBERTa"
        )
    return str(found[-1])


def _stacks(plan: Any) -> list[str]:
    count = plan.config.num_hidden_layers
    return [n for n, m in plan.named_modules() if isinstance(m, torch.nn.ModuleList) and len(m) == count]


def _read_by_all(plan: Any) -> tuple[str, ...]:
    """Name prefixes of the weights that every task needs: embeddings and layers."""
    words = plan.get_input_embeddings()
    return tuple(f"{name}." for name in (*_stacks(plan), *(n for n, m in plan.named_modules() if m is words)))


def _outside_the_layers(plan: Any) -> list[str]:
    """Names of the linear layers outside the stack of layers: pooler, neck, head."""
    stacks = _stacks(plan)
    linear = [n for n, m in plan.named_modules() if isinstance(m, torch.nn.Linear)]
    return [name for name in linear if not any(name.startswith(f"{stack}.") for stack in stacks)]


def _draw(model: Any, names: set[str]) -> None:
    """Initialise parameters that the checkpoint lacks, identically wherever the base is loaded."""
    generator = torch.Generator().manual_seed(_SEED)
    with torch.no_grad():
        for name in sorted(names):
            parameter = model.get_parameter(name)
            if parameter.dim() > 1:
                drawn = torch.randn(parameter.shape, generator=generator) / parameter.shape[1] ** 0.5
            else:
                drawn = torch.full(parameter.shape, float(name.endswith("weight")))
            parameter.copy_(drawn)
