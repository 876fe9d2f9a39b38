"""Checkpoints whose weights are already quantised: which of them adapters can be trained on, and how they are loaded.

What transformers 5.23 can train on is in its `quantizers`, `is_trainable` of each. Here the weights of bitsandbytes
stay as they are, and those of fp8 and 8-bit torchao are turned into plain ones while they are loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from adapterhub_cl.bases.kinds import is_encoder
from adapterhub_cl.errors import BaseModelError
from adapterhub_cl.types import BaseInfo

BITSANDBYTES = ("nf4", "fp4", "int8")
STORED = ("torchao", "fp8")  # what a hub may record besides what `init --quantization` takes
SMALL = (50_000_000, 1_000_000_000)  # parameters; smaller bases are for demos and tests
SIXTEEN = "take the 16-bit checkpoint of the same model, which is quantised while loading (--quantization nf4)"
# transformers can train on these with packages that this project has not been tried with
UNTRIED = {"gptq": "gptqmodel", "awq": "gptqmodel", "compressed-tensors": "compressed-tensors", "hqq": "hqq",
           "aqlm": "aqlm", "quanto": "optimum-quanto", "eetq": "kernels", "sinq": "sinq"}  # fmt: skip


def stored_quantization(config: Mapping[str, Any], source: str) -> str:
    """How the weights of a checkpoint are already quantised; empty if they are not.

    Args:
        config: its config.json.

    Raises:
        BaseModelError: adapters cannot be trained on this quantisation here, or a package is missing.
    """
    told = _told(config)
    if not told:
        return ""
    method = str(told.get("quant_method") or ("bitsandbytes" if "load_in_4bit" in told else "an unknown method"))
    begin = f"the weights of base {source!r} are already quantised, by {method}"
    if method.startswith("bitsandbytes"):
        if told.get("load_in_8bit") or told.get("_load_in_8bit"):
            return "int8"
        kind = str(told.get("bnb_4bit_quant_type") or "fp4")
        if (told.get("load_in_4bit") or told.get("_load_in_4bit")) and kind in BITSANDBYTES:
            return kind
        raise BaseModelError(f"{begin} with settings that are not known here", SIXTEEN)
    if method == "fp8":
        return method
    if method == "torchao":
        if not _is_8_bit(told.get("quant_type")):
            raise BaseModelError(f"{begin}, and only its 8-bit weights can be trained on", SIXTEEN)
        if find_spec("torchao") is None:
            raise BaseModelError(
                f"{begin}, and the package torchao is not installed", f"pip install torchao; or {SIXTEEN}"
            )
        return method
    if method in UNTRIED:
        raise BaseModelError(f"{begin}, which needs {UNTRIED[method]} and is not supported here", SIXTEEN)
    raise BaseModelError(f"{begin}, which adapters cannot be trained on", SIXTEEN)


def advice(info: BaseInfo, asked: str) -> str:
    """What the user of a new hub should know about how its base is held in memory; empty if nothing.

    Args:
        asked: what `init --quantization` was given.
    """
    if info.quantization != asked:
        return f"the base's weights are already quantised ({info.quantization}); --quantization is not used"
    if asked != "none" and not is_encoder(info.architecture) and SMALL[0] <= info.parameters < SMALL[1]:
        return (
            f"a base of this size needs {2 * info.parameters / 1e9:.1f} GB in 16 bits; --quantization none keeps it "
            "so, which is more exact"
        )
    return ""


def loading_options(quantization: str) -> dict[str, Any]:
    """Arguments of `from_pretrained` for a checkpoint that is already quantised."""
    if quantization != "fp8":
        return {}
    from transformers import FineGrainedFP8Config

    return {"quantization_config": FineGrainedFP8Config(dequantize=True)}


def make_trainable(model: Any, stored: str, source: str) -> None:
    """Bring a model into the form that training needs, after its weights were read as they are stored.

    Args:
        stored: what `stored_quantization` found.

    Raises:
        BaseModelError: weights are plain that bitsandbytes would have to have quantised.
    """
    if stored == "torchao":
        made_plain(model)
    if stored not in BITSANDBYTES:
        return
    import torch
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    for name, layer in model.named_modules():
        plain = isinstance(layer, Linear4bit) and getattr(layer.weight, "quant_state", None) is None
        if plain or (isinstance(layer, Linear8bitLt) and layer.weight.dtype != torch.int8):
            raise BaseModelError(
                f"config.json of base {source!r} says that bitsandbytes quantised its weights, but {name} is not",
                "take quantization_config out of config.json, or download the base again",
            )


def made_plain(model: Any) -> None:
    """Replace torchao's tensors by plain ones of the same values: a storage of their own is what training measures."""
    import torch

    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if type(parameter.data) is not torch.Tensor and hasattr(parameter.data, "dequantize"):
                setattr(module, name, torch.nn.Parameter(parameter.data.dequantize(), requires_grad=False))


def _told(config: Mapping[str, Any]) -> Mapping[str, Any]:
    told, text = config.get("quantization_config"), config.get("text_config")
    if not told and isinstance(text, dict):
        told = text.get("quantization_config")
    return told if isinstance(told, dict) else {}


def _is_8_bit(kind: Any) -> bool:
    """Whether torchao's configuration, a name or its JSON, has 8-bit weights."""
    if isinstance(kind, Mapping):
        one = kind.get("default", kind)
        kind = one.get("_type") if isinstance(one, Mapping) else None
    return isinstance(kind, str) and kind.lower().replace("_", "").startswith(("int8weightonly", "int8dynamicact"))
