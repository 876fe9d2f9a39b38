"""Loads a base: quantised, frozen, and checked against its recorded fingerprint."""

from __future__ import annotations

import ctypes
import gc
import json
import re
import threading
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
)

from adapterhub_cl.bases.already_quantised import STORED, loading_options, make_trainable, stored_quantization
from adapterhub_cl.bases.divided_base import Shards, check_divisible, load_divided, same_everywhere
from adapterhub_cl.bases.encoders import head_of, load_encoder, load_masked_lm
from adapterhub_cl.bases.fingerprint import changed_to, fingerprint
from adapterhub_cl.bases.kept_weights import LEAST_PARAMETERS, KeptWeights
from adapterhub_cl.bases.kinds import CAUSAL_CLASS, MASKED, auto_class, is_encoder, objectives_of, why_unusable
from adapterhub_cl.bases.precision import NAMES, choose_dtype
from adapterhub_cl.bases.sources import (
    QUANTIZATIONS,
    TINY,
    check_tokenizer,
    is_local,
    read_config,
    refuse_lacking,
    resolve,
)
from adapterhub_cl.bases.this_machine import IDENTITY
from adapterhub_cl.bases.tokens import check_special_ids, check_tokenizer_of, refuse_unknown_ids
from adapterhub_cl.bases.whole_rows import keep_rows_whole
from adapterhub_cl.errors import BaseModelError, UnknownNameError, UsageError, first_line
from adapterhub_cl.launching import divides_base, local_rank
from adapterhub_cl.quiet import import_bitsandbytes, no_loading_bars, quiet_third_parties
from adapterhub_cl.types import BaseInfo


@dataclass(frozen=True)
class LoadedBase:
    """A frozen base in memory.

    Attributes:
        model: a transformers causal language model, or for an encoder its sequence classification with a `Head`; none
            of its parameters requires a gradient.
        tokenizer: its tokenizer, with a padding token.
        dtype: the data type of matrix products.
        why: the reason for it; empty if the user named it.
        note: what the user should know about how it was loaded; mostly empty.
        path: the folder it was read from.
        shards: where its weights are divided among processes (FSDP).
        lock: must be held while computing with the model or changing it; threads take turns.
    """

    model: Any
    tokenizer: Any
    info: BaseInfo
    path: Path
    dtype: torch.dtype
    device: torch.device
    why: str = ""
    note: str = ""
    shards: Shards | None = None
    lock: threading.RLock = field(default_factory=threading.RLock, compare=False, repr=False)

    def autocast(self) -> AbstractContextManager[Any]:
        """Inside this block matrix products run in `dtype`."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    @property
    def context(self) -> int:
        """The longest input in tokens."""
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or 4096
        limit = limit if limit > 0 else 4096
        if self.is_encoder:
            # RoBERTa and related models number positions from after their padding id.
            tables = (m for n, m in self.model.named_modules() if n.endswith("position_embeddings"))
            limit -= next((m.padding_idx + 1 for m in tables if getattr(m, "padding_idx", None) is not None), 0)
        return int(min(limit, self.tokenizer.model_max_length or limit))

    @property
    def width(self) -> int:
        """The size of a hidden state."""
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def is_encoder(self) -> bool:
        """Whether it is an encoder, which does not write text."""
        return is_encoder(self.info.architecture)

    @property
    def reading(self) -> dict[str, Any]:
        """Arguments of a forward pass for inspection only: a causal model should keep no cache."""
        return {} if self.is_encoder else {"use_cache": False}

    @property
    def writes(self) -> bool:
        """Whether it can write text."""
        return not self.is_encoder

    @cached_property
    def masked_lm(self) -> Any:
        """The masked language model of an encoder, on the same body; loaded at first use.

        Raises:
            UsageError: the checkpoint has no such head.
        """
        if MASKED not in objectives_of(self.info.architecture):
            raise UsageError(
                f"{self.info.source!r} is a {self.info.architecture} without a masked language modelling head",
                "choose a checkpoint whose architecture ends in ForMaskedLM",
            )
        with no_loading_bars():
            found = load_masked_lm(self.path, self.model, dtype=self.dtype, use_safetensors=True)
        return found.to(self.device)


def choose_device(device: str = "auto") -> torch.device:
    """The device to use. `auto` is the GPU if there is one; under a launcher, `auto` and `cuda` give each process one.

    Raises:
        UsageError: the device does not exist here, or there are fewer GPUs than processes.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"unknown device {device!r}", "use auto, cpu, cuda or cuda:N") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device {device!r}: this machine has no usable GPU", "use --device cpu")
    rank = local_rank()
    if chosen.type != "cuda" or chosen.index is not None or rank is None:
        return chosen
    # The base is loaded before Accelerate gives each process its device, so choose that same device here.
    if rank >= (there := torch.cuda.device_count()):
        raise UsageError(
            f"process {rank} has no GPU of its own: this machine has {there}",
            f"accelerate launch --num_processes {there}",
        )
    return torch.device("cuda", rank)


def inspect_base(source: str, quantization: str, revision: str | None = None) -> BaseInfo:
    """What a hub records about its base; reads the files but not the weights' values.

    Args:
        quantization: how to store it in memory; a checkpoint that is already quantised stays as it is.

    Raises:
        BaseModelError: the base cannot be found, is neither a causal language model nor an encoder, is quantised in a
            way that cannot be trained here, or has another model's tokenizer.
        UnknownNameError: the quantisation is unknown.
    """
    if quantization not in QUANTIZATIONS:
        raise UnknownNameError("quantization", quantization, QUANTIZATIONS)
    path = resolve(source, revision)
    check_tokenizer(path, source)
    architectures = read_config(path).get("architectures")
    if not architectures:
        raise BaseModelError(
            f"config.json of base {source!r} names no architectures",
            'add "architectures": ["…ForCausalLM"] or similar',
        )
    architecture = next((name for name in architectures if objectives_of(name)), None)
    if architecture is None:
        raise BaseModelError(
            f"base {source!r} is a {architectures[0]}, which is neither a causal language model nor an encoder",
            "choose a model whose architecture ends in ForCausalLM or ForMaskedLM, or the body of an encoder",
        )
    if reason := why_unusable(read_config(path), architecture):
        raise BaseModelError(
            f"base {source!r} is a {architecture}, {reason}", "choose a causal language model or an encoder"
        )
    quantization = stored_quantization(read_config(path), source) or quantization
    check_tokenizer_of(path, source)
    from safetensors import safe_open

    parameters = 0
    try:
        for file in sorted(path.glob("*.safetensors")):
            with safe_open(file, "pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118 (not a mapping)
                    size = 1
                    for side in tensors.get_slice(key).get_shape():
                        size *= side
                    parameters += size
    except Exception as error:  # safetensors raises its own untyped error for a truncated file
        raise BaseModelError(
            f"the weights of base {source!r} cannot be read: {error}", "download the base again"
        ) from error
    local = str(Path(source).expanduser().resolve()) if source != TINY and is_local(source) else source
    return BaseInfo(local, fingerprint(path), quantization, revision, architecture, parameters)


def load_base(
    info: BaseInfo,
    *,
    device: str = "auto",
    dtype: str = "auto",
    attention: str | None = None,
    trust_remote_code: bool = False,
) -> LoadedBase:
    """Load the base of a hub, quantised as the hub says, with all parameters frozen.

    Args:
        info: what the hub recorded; an empty fingerprint skips the check.
        device: `auto`, `cpu`, `cuda`, `cuda:N`.
        dtype: `auto` (measured: see `choose_dtype`), `bf16`, `fp16`, `fp32`: the type of the products and of the layers
            that are not quantised.
        attention: transformers' `attn_implementation`; None chooses the fastest that the architecture supports.

    Raises:
        BaseModelError: the base is missing, cannot be loaded, or is not the one that the hub was made for.
    """
    quiet_third_parties()
    import_bitsandbytes()
    path = resolve(info.source, info.revision)
    if info.fingerprint and (now := changed_to(path, info.fingerprint)):
        raise BaseModelError(
            f"base {info.source!r} has changed since this hub was made "
            f"(fingerprint {now[:12]}, expected {info.fingerprint[:12]})",
            "restore the old files or revision; for the new base create a new hub with cl-adapter init",
        )
    if info.quantization not in (*QUANTIZATIONS, *STORED):
        raise UnknownNameError("quantization in hub.toml", info.quantization, QUANTIZATIONS)
    where, written = choose_device(device), read_config(path)
    kind, why = choose_dtype(dtype, where, written, info.parameters)
    encoder, stored = is_encoder(info.architecture), stored_quantization(written, info.source)
    if divided := divides_base():
        check_divisible(info.quantization, encoder=encoder)
        kind, why = same_everywhere((kind, why), where)
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
        options = {
            "dtype": kind,
            "device_map": {"": where},
            "attn_implementation": attention,
            "use_safetensors": True,
            "trust_remote_code": trust_remote_code,
        }
        identity = "" if trust_remote_code else _identity(info, path, kind, where)
        quantised_here = info.quantization != "none" and not (encoder or stored)
        kept = KeptWeights(identity) if identity and quantised_here else None
        with no_loading_bars():
            model = kept.load(lambda folder: _read_kept(folder, path, config, **options)) if kept else None
            if divided:
                model = _as_read_from(path, load_divided(path, _class_of(config), config, kind, where))
            if model is None:
                load = load_encoder if encoder else _load_causal
                settings = None if stored else _quantization_config(info.quantization, kind)
                settings = loading_options(stored).get("quantization_config", settings)
                model = load(path, config, settings, **options)
                make_trainable(model, stored, info.source)
                if info.quantization != "none":
                    gc.collect()  # the 16-bit weights
                    trim()
                if kept:
                    kept.store(partial(_save, model), model.get_memory_footprint())
    except BaseModelError:
        raise
    except Exception as error:  # tokenizers and safetensors raise their own untyped errors for damaged files
        first = first_line(error)
        raise BaseModelError(
            f"base {info.source!r} cannot be loaded: {first}",
            "if one of its files is damaged, download it again; cl-adapter doctor checks the installation",
        ) from error
    if encoder and tokenizer.pad_token_id is None:
        raise BaseModelError(
            f"the tokenizer of base {info.source!r} has no padding token", "set pad_token in tokenizer_config.json"
        )
    if tokenizer.eos_token_id is None and not encoder:
        raise BaseModelError(
            f"the tokenizer of base {info.source!r} has no end-of-text token", "set eos_token in tokenizer_config.json"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    check_special_ids(tokenizer, model.get_input_embeddings().num_embeddings, info.source)
    refuse_unknown_ids(model, tokenizer)
    _keep_trainable_layout(model)
    if not encoder:
        keep_rows_whole(model)
    model.requires_grad_(False)
    model.eval()
    if identity:
        setattr(model, IDENTITY, identity)
    parameters = info.parameters or sum(p.numel() for p in model.parameters())
    info = replace(info, parameters=parameters, architecture=info.architecture or type(model).__name__)
    shards = Shards(model) if divided else None
    loaded = LoadedBase(model, tokenizer, info, path, kind, where, why, kept.note if kept else "", shards)
    head = head_of(model)
    if head is not None and MASKED in objectives_of(info.architecture):
        head.masked = lambda: loaded.masked_lm
    return loaded


def _identity(info: BaseInfo, path: Path, dtype: torch.dtype, device: torch.device) -> str:
    """Whatever decides the values of the weights and what is computed with them; empty for a small base, of which
    nothing need be kept."""
    if info.parameters < LEAST_PARAMETERS:
        return ""
    versions = [version(name) for name in ("bitsandbytes", "transformers", "torch")]
    parts = (info.fingerprint or fingerprint(path), info.quantization, NAMES[dtype], device.type, *versions)
    return "|".join(parts)


def _save(model: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)  # it is read from the base itself


def _read_kept(folder: Path, base: Path, config: Any, **options: Any) -> Any:
    return _as_read_from(base, _class_of(config).from_pretrained(folder, **options))


def _as_read_from(base: Path, model: Any) -> Any:
    """A model that transformers did not read from the base's folder, with what stands there beside the weights."""
    model.name_or_path = model.config._name_or_path = str(base)  # adapters record it
    if (base / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(base)
    return model


def _class_of(config: Any) -> Any:
    with_images = auto_class((config.architectures or [""])[0]) != CAUSAL_CLASS
    return AutoModelForImageTextToText if with_images else AutoModelForCausalLM


def _load_causal(path: Path, config: Any, quantization: Any, **options: Any) -> Any:
    kind = _class_of(config)
    if isinstance(quantization, BitsAndBytesConfig) and (names := _read_by_weight(kind, config)):
        quantization.llm_int8_skip_modules = names
    model, told = kind.from_pretrained(
        path, config=config, quantization_config=quantization, output_loading_info=True, **options
    )
    learned = {name for name, _ in model.named_parameters()}  # buffers and tied weights may be missing in a checkpoint
    refuse_lacking(path, sorted(learned.intersection(told["missing_keys"])))
    return model


def _read_by_weight(kind: Any, config: Any) -> list[str]:
    """Names of layers that cannot be quantised because Mamba's code multiplies by their weights directly. Includes the
    output layer, which is excluded by default; empty for most architectures."""
    if not re.search("mamba|ssm", json.dumps(config.to_dict(), default=str), re.I):
        return []
    with torch.device("meta"):
        plan = kind.from_config(config)
    output = plan.get_output_embeddings()
    found = [
        f"{name}.{last}"
        for name, module in plan.named_modules()
        if re.search("mamba|ssm", type(module).__name__, re.I)
        for last, part in module.named_children()
        if last in ("dt_proj", "out_proj") and isinstance(part, torch.nn.Linear)
    ]
    return [*found, *(name for name, module in plan.named_modules() if module is output)] if found else []


def trim() -> None:
    """Return freed memory to the system: glibc would keep it."""
    with suppress(OSError, AttributeError):  # another C library: nothing to do
        ctypes.CDLL(None).malloc_trim(0)


def _keep_trainable_layout(model: Any) -> None:
    """Stop bitsandbytes 0.50 from repacking 4-bit weights at the first evaluation on a CPU with AVX512-BF16.

    The packed layout has no backward pass: a model that is evaluated once and then trained silently gets no gradient
    through its base layers (docs/decisions/002). The plain layout is also the faster one for batches.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _quantization_config(quantization: str, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    if quantization == "none":
        return None
    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
