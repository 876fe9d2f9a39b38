"""The fused layer is PEFT's layer: same output, same gradients; what it cannot do it leaves alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from toys import stir, toy_settings, toy_tokens

from adapterhub_cl.adapters.fused import fused
from adapterhub_cl.adapters.lora import new_adapter
from adapterhub_cl.data.batches import collate
from adapterhub_cl.objectives.causal_lm import Objective


class Net(torch.nn.Module):
    """Two linear layers, with and without a bias."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Linear(12, 20)
        self.second = torch.nn.Linear(20, 7, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x)))


def lora(**changes: Any) -> Any:
    options = {"r": 3, "lora_alpha": 5.0, "target_modules": ["first", "second"], **changes}
    model = get_peft_model(Net(), LoraConfig(**options))
    stir(model, size=0.5)
    return model


def gradients(model: Any, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The output, and the gradient of everything that wants one, for a loss with uneven weights."""
    model.zero_grad(set_to_none=True)
    x.grad = None
    y = model(x)
    (y.sin() * torch.linspace(-1, 2, y.numel()).view_as(y)).sum().backward()
    found = {"y": y.detach()} | {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    return found if x.grad is None else {**found, "x": x.grad.clone()}


@pytest.mark.parametrize("wants_x", [True, False])
@pytest.mark.parametrize("changes", [{}, {"use_rslora": True}, {"lora_alpha": 0.5}], ids=["plain", "rslora", "small"])
@pytest.mark.parametrize("shape", [(4, 12), (2, 3, 12), (1, 1, 12)])
def test_output_and_gradients_equal_peft(changes: dict[str, Any], wants_x: bool, shape: tuple[int, ...]) -> None:
    model = lora(**changes)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_(wants_x)
    right = gradients(model, x)
    with fused(model, torch.float32) as layers:
        assert layers == 2
        ours = gradients(model, x)
    assert ours.keys() == right.keys()
    assert len(ours) == 5 + wants_x
    for name, value in right.items():
        torch.testing.assert_close(ours[name], value, atol=1e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    with torch.no_grad(), fused(model, torch.float32):
        torch.testing.assert_close(model(x), right["y"], atol=1e-5, rtol=1e-5)


def test_gradients_are_right_by_finite_differences() -> None:
    model = lora().double()
    x = torch.randn(3, 12, dtype=torch.float64, requires_grad=True)
    with fused(model, torch.float64):
        assert torch.autograd.gradcheck(model, (x,))


@pytest.mark.parametrize(
    "changes", [{"use_dora": True}, {"lora_dropout": 0.1}, {"lora_bias": True, "target_modules": ["first"]}]
)
def test_other_kinds_of_layer_are_left_alone(changes: dict[str, Any]) -> None:
    model = lora(**changes)
    model.train("lora_dropout" in changes)
    x = torch.randn(2, 12)
    right = lora(**changes).eval()(x)
    with fused(model, torch.float32) as layers:
        assert layers == 0
        assert torch.equal(model.eval()(x), right)


def test_merged_layers_and_a_second_adapter_are_left_alone() -> None:
    model = lora()
    model.merge_adapter()
    with fused(model, torch.float32) as layers:
        assert layers == 0
    model.unmerge_adapter()
    model.add_adapter("other", LoraConfig(r=2, target_modules=["first"]))
    model.set_adapter("other")
    with fused(model, torch.float32) as layers:
        assert layers == 0


def test_transposed_layers_are_left_alone(load_pico: Callable[..., Any]) -> None:
    with new_adapter(load_pico("gpt2"), toy_settings(), "CAUSAL_LM") as model, fused(model, torch.float32) as layers:
        assert layers == 0


def test_forward_is_peft_s_again_after_the_block_and_after_an_error() -> None:
    model = lora()
    x = torch.randn(2, 12)
    right = model(x)
    with fused(model, torch.float32):
        assert all("forward" in m.__dict__ for m in model.modules() if isinstance(m, LoraLayer))
    with pytest.raises(KeyError), fused(model, torch.float32):
        raise KeyError
    assert not any("forward" in m.__dict__ for m in model.modules())
    assert torch.equal(model(x), right)


def of_a_pico(
    base: Any, *, fuse: bool, keep_bytes: int = 0, dtype: torch.dtype | None = None
) -> dict[str, torch.Tensor]:
    """Losses of a batch, and the gradients of a stirred LoRA."""
    batch = collate(toy_tokens(6), range(6), 0)
    dtype = dtype or base.dtype
    with new_adapter(base, toy_settings(rank=4), "CAUSAL_LM") as model:
        stir(model)
        parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        with (
            fused(model if fuse else torch.nn.Module(), dtype, keep_bytes) as layers,
            torch.autocast("cpu", dtype, enabled=dtype != torch.float32),
        ):
            assert layers == (14 if fuse else 0)
            losses = Objective().losses(model, batch)
        found = torch.autograd.grad(losses.sum(), list(parameters.values()))
    return {"losses": losses.detach(), **dict(zip(parameters, found, strict=True))}


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_a_whole_model_in_fp32(load_pico: Callable[..., Any], kind: str) -> None:
    base = load_pico(kind)
    right, ours = of_a_pico(base, fuse=False), of_a_pico(base, fuse=True)
    for name, value in right.items():
        torch.testing.assert_close(ours[name], value, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 1e-4), ("bf16", 0.05)])
@pytest.mark.parametrize("quantization", ["nf4", "fp4"])
def test_four_bit_weights(load_pico: Callable[..., Any], quantization: str, dtype: str, tolerance: float) -> None:
    base = load_pico("llama", quantization, dtype=dtype)
    right, ours = of_a_pico(base, fuse=False), of_a_pico(base, fuse=True)
    for name, value in right.items():
        assert (ours[name] - value).norm() <= tolerance * value.norm() + 1e-6, name
    kept = of_a_pico(base, fuse=True, keep_bytes=1 << 30)
    some = of_a_pico(base, fuse=True, keep_bytes=5000)
    for name, value in ours.items():
        assert torch.equal(kept[name], value), name
        assert torch.equal(some[name], value), name


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_an_evaluated_four_bit_base_still_gives_gradients(
    load_pico: Callable[..., Any], dtype: str, fuse: bool
) -> None:
    """bitsandbytes repacks 4-bit weights in eval mode on some CPUs, and the packed layout has no backward."""
    fresh, used = (load_pico("llama", "nf4", dtype=dtype) for _ in range(2))
    ids = torch.randint(3, 300, (2, 9))
    used.model.eval()
    with torch.no_grad(), torch.autocast("cpu", used.dtype, enabled=dtype == "bf16"):
        used.model(input_ids=ids)
        used.model(input_ids=ids[:, :1])
    right, ours = of_a_pico(fresh, fuse=fuse), of_a_pico(used, fuse=fuse)
    for name, value in right.items():
        assert torch.equal(ours[name], value), name
    first = next(name for name in right if "layers.0" in name and "lora_A" in name)
    assert right[first].abs().max() > 0, "the gradient reaches the first layer"
