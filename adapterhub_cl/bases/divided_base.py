"""A base too large for one device: its weights divided among processes by FSDP2, through Accelerate.

Each process reads its own share of the checkpoint, so none ever holds the whole base. A layer is put together when it
is needed and freed after it. The adapter is attached later and stays whole in every process: it is small, and so
optimiser, checkpoints and strategies work on it as they always do. (PyTorch's fully_shard: Zhao et al. 2023, "PyTorch
FSDP", arXiv 2304.11277, in its per-parameter form.)

Where only the first process works (scores, samples), the others put the layers together with it: see `Shards.alone`.
"""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from adapterhub_cl.errors import BaseModelError, TrainingError, UsageError

T = TypeVar("T")
_DONE, _FAILED = -1, -2
_M_MMAP_THRESHOLD = -3  # of malloc.h
_KINDS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Shards:
    """The parts of a divided base, as this process holds them."""

    def __init__(self, model: Any) -> None:
        from torch.distributed.fsdp import FSDPModule

        self.parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
        self.device = next(model.parameters()).device
        self.first = dist.get_rank() == 0
        self.leading = False
        for number, part in enumerate(self.parts):
            part.set_custom_all_gather(_Told(self, number))  # type: ignore[arg-type]

    def alone(self, work: Callable[[], T]) -> T | None:
        """What `work` gives in the first process; None in the others, which meanwhile only help to put parts together.

        Raises:
            TrainingError: in the others, if the work failed.
        """
        if self.first:
            ended = _FAILED
            self.leading = True
            try:
                found = work()
                ended = _DONE
                return found
            finally:
                self.leading = False
                self.say(ended)
        while (number := self.say(0)) >= 0:
            self.parts[number].unshard()
            self.parts[number].reshard()
        if number == _FAILED:
            raise TrainingError("the first process has stopped", "its message says why")
        return None

    def say(self, number: int) -> int:
        """What the first process says, in all of them."""
        told = torch.tensor([number], device=self.device)
        dist.broadcast(told, 0)
        return int(told)


class _Told:
    """FSDP's all-gather of one part; while the first process works alone, it tells the others which part it is."""

    def __init__(self, shards: Shards, number: int) -> None:
        self.shards, self.number = shards, number

    def allocate(self, size: Any, *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: Any, async_op: bool = False
    ) -> Any:
        if self.shards.leading:
            self.shards.say(self.number)
        gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)  # its name since torch 2.13
        return gather(output_tensor, input_tensor, group=group, async_op=async_op)


def alone(shards: Shards | None, work: Callable[[], T]) -> T | None:
    """`Shards.alone`; where the base is not divided, every process does the work."""
    return work() if shards is None else shards.alone(work)


def is_divided(model: Any) -> bool:
    """Whether a model's base is divided among processes."""
    from torch.distributed.fsdp import FSDPModule

    return any(isinstance(module, FSDPModule) for module in model.modules())


def check_divisible(quantization: str, *, encoder: bool) -> None:
    """Raise where a base cannot be divided.

    Raises:
        UsageError: it is quantised, or an encoder.
    """
    if encoder:
        raise UsageError("FSDP divides causal language models, and the base is an encoder", "start it without FSDP")
    if quantization != "none":
        raise UsageError(
            f"FSDP divides bases in 16 or 32 bits, and this hub's is {quantization}: bitsandbytes' packed weights "
            "cannot be divided",
            "cl-adapter init NEW_HUB --base … --quantization none; a base in 4 bits often fits on one device",
        )


def same_everywhere(value: T, device: torch.device) -> T:
    """The first process's value, in all of them: what each measured for itself may differ."""
    from accelerate import Accelerator
    from accelerate.utils import broadcast_object_list

    Accelerator(cpu=device.type == "cpu")  # lets the processes find each other
    found: T = broadcast_object_list([value])[0]
    return found


def load_divided(path: Path, kind: Any, config: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """The base with this process's share of each weight.

    Args:
        path: folder with the base's safetensors files.
        kind: transformers' class that makes the model of a config.

    Raises:
        BaseModelError: the weights are stored under other names than the model has them.
    """
    from accelerate import Accelerator, FullyShardedDataParallelPlugin, init_empty_weights
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model

    accelerator = Accelerator(cpu=device.type == "cpu")
    if device.type == "cpu":
        _return_large_pieces()
    with init_empty_weights(include_buffers=False):
        model = kind.from_config(config, dtype=dtype)
    model.tie_weights()
    model.requires_grad_(False)
    # Unless the launcher says otherwise, each layer is a part of its own; without a policy the base would be one part.
    policy = None if "FSDP_AUTO_WRAP_POLICY" in os.environ else "transformer_based_wrap"
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy=policy, cpu_ram_efficient_loading=False)
    accelerator.state.fsdp_plugin = plugin  # on a CPU, Accelerate itself leaves it out
    model = fsdp2_prepare_model(accelerator, model)
    names = [name for name, _ in model.named_parameters()]
    files = _stored(path)
    shares = {}
    for name, parameter in model.named_parameters():
        stored = next((n for n in (name, name.removeprefix(model.base_model_prefix + ".")) if n in files), None)
        if stored is None:
            raise BaseModelError(
                f"the weights of {path} are stored under other names ({name} is missing), which FSDP cannot read",
                "load the base once in transformers and save it with save_pretrained",
            )
        shares[name] = _share(parameter, files[stored], device)
    model.load_state_dict(shares, strict=False, assign=True)
    model.tie_weights()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    assert [name for name, _ in model.named_parameters()] == names
    for name, buffer in list(model.named_buffers()):
        if name in files:
            raise BaseModelError(
                f"{path} stores {name}, which is no weight and cannot be divided", "start it without FSDP"
            )
        place, _, last = name.rpartition(".")
        model.get_submodule(place)._buffers[last] = buffer.to(device)
    return model


def _return_large_pieces() -> None:
    """Have glibc return each large piece of memory when it is freed. Otherwise it keeps what a layer took, in holes
    that the next one does not fit into: measured, as much memory as the whole base."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 18)


class _StoredTensor:
    """Where a tensor lies: file, first byte, type, shape."""

    def __init__(self, file: Path, start: int, about: dict[str, Any]) -> None:
        self.file, self.start = file, start + about["data_offsets"][0]
        self.dtype, self.shape = _KINDS.get(about["dtype"]), tuple(about["shape"])


def _stored(path: Path) -> dict[str, _StoredTensor]:
    """The tensors of a folder's safetensors files by name, from their headers."""
    found = {}
    for file in sorted(path.glob("*.safetensors")):
        with open(file, "rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(size))
        found.update({n: _StoredTensor(file, 8 + size, about) for n, about in header.items() if n != "__metadata__"})
    return found


def _share(parameter: Any, place: _StoredTensor, device: torch.device) -> torch.nn.Parameter:
    """This process's rows of a weight, read into memory of their own: a mapped file would count as memory too."""
    from torch.distributed.tensor import DTensor

    if place.dtype is None or place.shape != tuple(parameter.shape):
        raise BaseModelError(f"{place.file} holds a weight of another shape or type", "check the base's config.json")
    mesh = parameter.device_mesh
    local = torch.empty(parameter.to_local().shape, dtype=place.dtype)
    if local.numel():
        first = mesh.get_local_rank() * -(-len(parameter) // mesh.size())  # rows are divided as torch.chunk does
        with open(place.file, "rb") as stream:
            stream.seek(place.start + first * local[0].numel() * place.dtype.itemsize)
            view = memoryview(local.view(torch.uint8).numpy()).cast("B")  # type: ignore[arg-type]
            if stream.readinto(view) != len(view):
                raise BaseModelError(f"{place.file} is truncated", "download the base again")
    local = local.to(device, parameter.dtype)
    whole = DTensor.from_local(
        local, mesh, parameter.placements, run_check=False, shape=parameter.shape, stride=parameter.stride(),
    )  # fmt: skip
    return torch.nn.Parameter(whole, requires_grad=False)
