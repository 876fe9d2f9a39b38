"""GGUF files of models and of LoRAs, written with the package `gguf` for the architectures of the Llama family.

In files of the architecture `llama`, llama.cpp rotates neighbouring pairs of each head's values, where transformers
rotates a value of the first half with one of the second. So the rows of the query and key projections stand in another
order there. B of a LoRA has the same rows as the projection and moves with it; A does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub_cl.errors import AdapterError
from adapterhub_cl.exporting._gguf_tokens import BY_CONVERTER, add_tokenizer

if TYPE_CHECKING:
    import numpy
    import torch

LARGEST_F16 = 65504.0
# transformers' class → llama.cpp's architecture, and whether query and key rows are reordered there.
ARCHITECTURES = {
    "LlamaForCausalLM": ("llama", True),
    "MistralForCausalLM": ("llama", True),
    "Qwen2ForCausalLM": ("qwen2", False),
    "Qwen3ForCausalLM": ("qwen3", False),
}


@dataclass(frozen=True)
class GgufPlan:
    """How the tensors of one model are named and ordered in GGUF.

    Attributes:
        arch: llama.cpp's architecture.
        heads: number of heads of the queries, and of the keys.
        reorders: whether the rows of their projections are reordered.
    """

    arch: str
    blocks: int
    heads: tuple[int, int]
    reorders: bool

    def name(self, key: str) -> str:
        """GGUF's name of a tensor of transformers.

        Raises:
            AdapterError: llama.cpp has no such tensor.
        """
        found = self._names().get_name(key, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise AdapterError(f"GGUF has no place for {key} of a {self.arch} model", BY_CONVERTER)
        return str(found)

    def ordered(self, key: str, rows: torch.Tensor) -> torch.Tensor:
        """The rows of a tensor as llama.cpp has them.

        Args:
            key: its name in transformers, or the name of its layer.
        """
        heads = self._heads_of(key)
        return rows if heads is None else _moved(rows, heads, 2)

    def restored(self, key: str, rows: torch.Tensor) -> torch.Tensor:
        """The inverse of `ordered`."""
        heads = self._heads_of(key)
        return rows if heads is None else _moved(rows, heads, rows.shape[0] // heads // 2)

    def _heads_of(self, key: str) -> int | None:
        if not self.reorders:
            return None
        return next(
            (n for n, part in zip(self.heads, ("q_proj", "k_proj"), strict=True) if f".{part}" in f".{key}"), None
        )

    def _names(self) -> Any:
        import gguf

        kind = next(one for one, name in gguf.MODEL_ARCH_NAMES.items() if name == self.arch)
        return gguf.get_tensor_name_map(kind, self.blocks)


def _moved(rows: torch.Tensor, heads: int, first: int) -> torch.Tensor:
    """Rows as `[heads, first, rest]`, with the two last exchanged."""
    shape = (heads, first, rows.shape[0] // heads // first, *rows.shape[1:])
    return rows.reshape(shape).transpose(1, 2).reshape(rows.shape).contiguous()


def plan_for(config: Any, architecture: str) -> GgufPlan:
    """How a model's tensors are written.

    Args:
        config: transformers' config of it.

    Raises:
        AdapterError: its architecture, or how it encodes positions, is not known here.
    """
    if architecture not in ARCHITECTURES:
        raise AdapterError(
            f"a {architecture} cannot be written as GGUF here; {', '.join(ARCHITECTURES)} can", BY_CONVERTER
        )
    rope = _rope(config)
    if rope.get("rope_type", "default") not in ("default", "linear", "llama3"):
        raise AdapterError(f"positions of type {rope['rope_type']!r} cannot be written as GGUF here", BY_CONVERTER)
    if float(rope.get("partial_rotary_factor") or 1.0) != 1.0:
        raise AdapterError("heads that are rotated in part only cannot be written as GGUF here", BY_CONVERTER)
    arch, reorders = ARCHITECTURES[architecture]
    heads = int(config.num_attention_heads)
    return GgufPlan(arch, int(config.num_hidden_layers), (heads, int(config.num_key_value_heads or heads)), reorders)


def write_model(file: Path, model: Any, folder: Path, quant: str, name: str) -> GgufPlan:
    """Write a model with its tokenizer.

    Args:
        model: a transformers model.
        folder: of its tokenizer.
        quant: how matrices are stored; vectors are fp32.
        name: what the file calls it.

    Raises:
        AdapterError: it cannot be written, or its weights do not fit into f16.
    """
    import gguf

    config = model.config
    plan = plan_for(config, type(model).__name__)
    writer = gguf.GGUFWriter(file, plan.arch)
    try:
        writer.add_type(gguf.GGUFType.MODEL)
        writer.add_name(name)
        writer.add_file_type(
            {"f32": gguf.LlamaFileType.ALL_F32, "f16": gguf.LlamaFileType.MOSTLY_F16}.get(
                quant, gguf.LlamaFileType.MOSTLY_Q8_0
            )
        )
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        _add_shape(writer, config, plan)
        add_tokenizer(writer, folder, model.get_input_embeddings().num_embeddings)
        for key, value in tensors_of(model):
            rows = plan.ordered(key, value.detach().float())
            _add(writer, plan.name(key), rows, quant if value.dim() > 1 else "f32")
        if (factors := _frequency_factors(config)) is not None:
            _add(writer, "rope_freqs.weight", factors, "f32")
        _finish(writer)
    finally:
        writer.close()
    return plan


def write_lora(file: Path, layers: Mapping[str, tuple[Any, Any]], plan: GgufPlan, quant: str, name: str) -> None:
    """Write a LoRA for llama.cpp.

    llama.cpp scales every layer by α ÷ its rank and knows no other scaling. So the factors contain theirs, and every
    layer has the same rank, which is also α: smaller ones are filled with zeros.

    Args:
        layers: layer → B `[out, r]`, scaled, and A `[r, in]`.

    Raises:
        AdapterError: llama.cpp has no such layer, or the factors do not fit into f16.
    """
    import gguf
    import torch

    rank = max(a.shape[0] for _, a in layers.values())
    writer = gguf.GGUFWriter(file, plan.arch)
    try:
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_name(name)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(rank))
        for layer, (b, a) in layers.items():
            missing = rank - a.shape[0]
            b = torch.nn.functional.pad(plan.ordered(layer, b), (0, missing))
            a = torch.nn.functional.pad(a, (0, 0, 0, missing))
            place = plan.name(f"{layer}.weight")
            _add(writer, f"{place}.lora_a", a, quant)
            _add(writer, f"{place}.lora_b", b, quant)
        _finish(writer)
    finally:
        writer.close()


def read_tensors(file: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a GGUF file, dequantised to fp32, one by one."""
    import gguf
    import torch

    for tensor in gguf.GGUFReader(file).tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        yield tensor.name, torch.from_numpy(values.copy()).reshape([int(n) for n in reversed(tensor.shape)])


def tensors_of(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The model's parameters; a tied output layer only once."""
    seen: set[int] = set()
    for key, value in model.named_parameters(remove_duplicate=False):
        if id(value) not in seen:
            seen.add(id(value))
            yield key, value


def read_lora(file: Path, plan: GgufPlan, layers: Sequence[str]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Layer → B with its scaling, and A, of a file that `write_lora` wrote."""
    import gguf

    alpha = gguf.GGUFReader(file).get_field(gguf.Keys.Adapter.LORA_ALPHA)
    found = dict(read_tensors(file))
    factors = {}
    for layer in layers:
        place = plan.name(f"{layer}.weight")
        b, a = found[f"{place}.lora_b"], found[f"{place}.lora_a"]
        scale = float(alpha.contents()) / a.shape[0] if alpha is not None else 1.0
        factors[layer] = (plan.restored(layer, b) * scale, a)
    return factors


# -- inside ------------------------------------------------------------------------------------------


def _add(writer: Any, name: str, value: torch.Tensor, quant: str) -> None:
    import gguf
    import numpy

    data: numpy.ndarray[Any, Any] = value.detach().float().contiguous().numpy()
    if quant == "q8_0" and data.shape[-1] % gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType.Q8_0][0] == 0:
        packed = gguf.quants.quantize(data, gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    elif quant == "f32":
        writer.add_tensor(name, data)
    else:
        if numpy.abs(data).max(initial=0.0) > LARGEST_F16:
            raise AdapterError(f"the weights of {name} are too large for f16", "store them as they are: --quant f32")
        writer.add_tensor(name, data.astype(numpy.float16))


def _finish(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()


def _add_shape(writer: Any, config: Any, plan: GgufPlan) -> None:
    import gguf

    heads, keys = plan.heads
    head = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    rope = _rope(config)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(plan.blocks)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(keys)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(float(rope.get("rope_theta") or 10000.0))
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))


def _rope(config: Any) -> dict[str, Any]:
    found = dict(getattr(config, "rope_parameters", None) or {})
    found.setdefault("rope_theta", getattr(config, "rope_theta", None))
    return found


def _frequency_factors(config: Any) -> torch.Tensor | None:
    """By what Llama 3.1 divides each rotation's frequency; None for other models. The formula is transformers'
    `rope_type` "llama3"."""
    import math

    import torch

    rope = _rope(config)
    if rope.get("rope_type") != "llama3":
        return None
    head = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    factor, low, high = (float(rope[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    context = float(rope["original_max_position_embeddings"])
    base = float(rope["rope_theta"])
    waves = 2 * math.pi * base ** (torch.arange(0, head, 2, dtype=torch.float64) / head)
    smooth = (context / waves - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    found = torch.where(waves > context / low, torch.full_like(waves, factor), between)
    return torch.where(waves < context / high, torch.ones_like(waves), found).float()
