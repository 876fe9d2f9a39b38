"""What every merge method keeps to, also one that a third party brings."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from loras import SHAPES, dense, relative, write_lora

from adapterhub_cl.adapters.lora_files import LoraFile
from adapterhub_cl.adapters.lora_files import write_lora as store
from adapterhub_cl.consolidation.layers import Merged, layers_of, parts_of, refuse_nothing, shapes_of
from adapterhub_cl.errors import AdapterError, AdapterHubError, UsageError
from adapterhub_cl.merging import ROOM, BaseMethod, build
from adapterhub_cl.merging.factors import Factors

NAMES = ROOM.names()
pytestmark = pytest.mark.parametrize("name", NAMES)


class Inputs:
    """A stage without a base: random inputs, and a loss that wants the sum of the gated updates to be the first's."""

    def __init__(self, adapters: Sequence[LoraFile], seed: int = 0) -> None:
        self.seed = seed
        self.layers: Mapping[str, Sequence[Factors]] = {
            module: parts_of(adapters, module, shape) for module, shape in shapes_of(adapters).items()
        }
        self.names = [adapter.folder.name for adapter in adapters]
        self.see: Any = None

    def batches(self, adapter: int) -> list[Any]:
        return [torch.Generator().manual_seed(100 * len(self.names[adapter]) + k) for k in range(3)]

    @contextmanager
    def attached(self, parts: Mapping[str, Factors], gates: Any = None, see: Any = None) -> Iterator[None]:
        self.parts, self.gates, self.see = parts, gates, see
        yield

    def loss(self, batch: torch.Generator) -> torch.Tensor:
        total = torch.zeros(())
        for module, part in sorted(self.parts.items()):
            x = torch.randn(50, part.shape[1], generator=batch)
            if self.see is not None:
                self.see(module, x)
            if self.gates is not None:
                first = self.layers[module][0]
                said = (x @ part.a.T * self.gates[module]) @ part.b.T
                total = total + (said - x @ first.a.T @ first.b.T).square().mean()
        return total

    @contextmanager
    def progress(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        yield lambda steps: None


def merged(
    method: BaseMethod,
    folders: Sequence[Path],
    weights: Sequence[float] | None = None,
    rank: int | None = None,
    seed: int = 0,
) -> tuple[dict[str, torch.Tensor], list[Merged]]:
    """ΔW of every module, and the layers."""
    with ExitStack() as stack:
        adapters = [stack.enter_context(LoraFile(folder)) for folder in folders]
        if method.reads:
            method.prepare(Inputs(adapters, seed))
        layers = list(layers_of(adapters, weights or method.default_weights(len(folders)), method, rank, seed))
    found = {module: torch.zeros(shape, dtype=torch.float64) for module, shape in SHAPES.items()}
    return found | {layer.name: layer.result.factors.dense().double() for layer in layers}, layers


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    """Two adapters of other ranks, scalings and layers."""
    one = write_lora(tmp_path / "one", 1, rank=3, alpha=6, ranks={"model.layers.0.self_attn.q_proj": 7})
    other = write_lora(tmp_path / "other", 2, rank=5, alpha=5, rslora=True, modules=("q_proj", "up_proj"))
    return [one, other]


def test_it_says_what_it_is(name: str) -> None:
    method = ROOM.get(name)
    assert issubclass(method, BaseMethod)
    assert is_dataclass(method.Config)
    assert 10 < len(method.purpose) < 120
    module = inspect.getmodule(method)
    assert module is not None
    assert "Choose it" in (module.__doc__ or ""), "the module docstring says when to choose it: Choose it when …"
    assert len(inspect.getsource(module).splitlines()) <= 160
    assert all(field.metadata.get("help") for field in fields(method.Config))


def test_its_name_and_options_are_known_without_torch(name: str) -> None:
    code = (
        f"import sys; from adapterhub_cl.merging import build; build({name!r}, {{}}); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_unknown_options_are_refused_by_name(name: str) -> None:
    with pytest.raises(UsageError, match="nonsense"):
        build(name, {"nonsense": 1})
    with pytest.raises(UsageError, match="other"):
        build(name, {"other.density": 0.5})


def test_one_adapter_at_weight_one_is_itself(name: str, pair: list[Path]) -> None:
    options = ROOM.get(name).identity_options
    method = build(name, options or {})
    found, layers = merged(method, pair[:1])
    error = relative(found, dense(pair[0]))
    if options is None:
        assert error > method.identity_error, "it has options that keep one adapter as it is: name them"
    else:
        assert error < method.identity_error <= 1e-4
    assert all(layer.result.lost <= 1e-5 * layer.result.norm for layer in layers)


def test_the_order_of_naming_matters_where_it_says_so(name: str, pair: list[Path], tmp_path: Path) -> None:
    three = [*pair, write_lora(tmp_path / "third", 3, rank=2)]
    apart = relative(merged(build(name, {}), three)[0], merged(build(name, {}), three[::-1])[0])
    if ROOM.get(name).order_matters:
        assert apart > 1e-4
        return
    assert apart < 1e-4
    one, _ = merged(build(name, {}), pair, [0.4, 0.6])
    other, _ = merged(build(name, {}), pair[::-1], [0.6, 0.4])
    assert relative(one, other) < 1e-4


def test_the_seed_decides_where_it_says_so(name: str, pair: list[Path]) -> None:
    one, _ = merged(build(name, {}), pair, seed=1)
    other, _ = merged(build(name, {}), pair, seed=2)
    assert all(torch.equal(one[module], other[module]) for module in one) is not ROOM.get(name).random


def test_the_same_call_gives_the_same_adapter(name: str, pair: list[Path]) -> None:
    one, _ = merged(build(name, {}), pair, rank=4)
    other, _ = merged(build(name, {}), pair, rank=4)
    assert all(torch.equal(one[module], other[module]) for module in one)


def test_a_missing_layer_counts_as_zero(name: str, pair: list[Path]) -> None:
    found, _ = merged(build(name, {}), pair)
    only = "model.layers.1.mlp.up_proj"  # of the second alone
    assert found[only].norm() > 0
    assert found["model.layers.0.self_attn.k_proj"].norm() == 0  # of neither


def test_a_rank_is_kept_to_and_its_error_told(name: str, pair: list[Path]) -> None:
    whole, _ = merged(build(name, {}), pair)
    cut, layers = merged(build(name, {}), pair, rank=2)
    assert all(layer.result.factors.rank <= 2 for layer in layers)
    for layer in layers:
        apart = float((whole[layer.name] - cut[layer.name]).norm())
        assert apart == pytest.approx(layer.result.lost, rel=0.02, abs=1e-4 * layer.result.norm)


def test_the_result_is_a_plain_lora(name: str, pair: list[Path], tmp_path: Path, pico_base: Any) -> None:
    """Stored and opened by plain PEFT, and merged into the 16-bit base: the same logits as the dense updates."""
    from copy import deepcopy

    from peft import PeftModel

    truth, layers = merged(build(name, {}), pair, rank=4)
    place = tmp_path / "stored"
    place.mkdir()
    with LoraFile(pair[0]) as one, LoraFile(pair[1]) as other:
        store(place, {x.name: (x.result.factors.b, x.result.factors.a) for x in layers}, [one, other], "pico")
    assert relative(dense(place), truth) < 1e-6
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        by_hand = deepcopy(pico_base.model)
        for module, change in truth.items():
            by_hand.get_submodule(module).weight += change.float()
        wanted = by_hand(ids).logits
        opened = PeftModel.from_pretrained(deepcopy(pico_base.model), str(place)).eval()
        assert torch.allclose(opened(ids).logits, wanted, atol=2e-4)
        assert torch.allclose(opened.merge_and_unload()(ids).logits, wanted, atol=2e-4)


def test_what_cancels_out_is_refused(name: str, pair: list[Path], tmp_path: Path) -> None:
    twin = write_lora(tmp_path / "twin", 1, rank=3, alpha=6, ranks={"model.layers.0.self_attn.q_proj": 7})
    method = build(name, ROOM.get(name).identity_options or {})
    _, layers = merged(method, [pair[0], twin], [1.0, -1.0])
    if method.opposites_cancel:  # where they do not, the class says `opposites_cancel = False`
        with pytest.raises(AdapterError, match="zero"):
            refuse_nothing(layers)
    else:
        refuse_nothing(layers)


def test_adapters_of_different_bases_are_refused(name: str, pair: list[Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    other = write_lora(tmp_path / "wide", 3)
    tensors = load_file(other / "adapter_model.safetensors")
    wide = {k: torch.cat([v, v], 1) if "lora_A" in k else v for k, v in tensors.items()}
    save_file(wide, other / "adapter_model.safetensors")
    with pytest.raises(AdapterHubError, match="different bases"):
        merged(build(name, {}), [pair[0], other])
