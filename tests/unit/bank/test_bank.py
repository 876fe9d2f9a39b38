"""The bank against plain PEFT and against explicit sums."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loras import dense, write_lora
from peft import PeftModel

from adapterhub_cl.bank.bank import LoraBank
from adapterhub_cl.bank.shelf import Shelf, Shelved, read_adapter
from adapterhub_cl.errors import AdapterError, IntegrityError, UsageError

MODULES = [("q_proj", "v_proj"), ("q_proj", "k_proj", "up_proj", "down_proj"), ("gate_proj",), ("o_proj", "down_proj")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """32 adapters of ranks 4 to 64 on different layers; some rsLoRA, some with a rank of their own in one layer."""
    root, found = tmp_path_factory.mktemp("bank"), {}
    for k in range(32):
        own = {"model.layers.1.self_attn.q_proj": 3} if k % 5 == 0 and "q_proj" in MODULES[k % 4] else None
        found[f"a{k}@v1"] = write_lora(
            root / f"a{k}",
            k,
            rank=(4, 8, 12, 16, 32, 64)[k % 6],
            modules=MODULES[k % 4],
            rslora=k % 7 == 0,
            ranks=own,
            size=0.2,
        )
    return found


@pytest.fixture
def bank(load_pico: Callable[..., Any], folders: Mapping[str, Path]) -> Iterator[LoraBank]:
    base = load_pico()
    opened = LoraBank(base, lambda ref: read_adapter(folders[ref], base.dtype))
    yield opened
    opened.close()


def inputs(rows: int, length: int = 9, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 300, (rows, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def alone(model: Any, folder: Path | None, ids: torch.Tensor) -> torch.Tensor:
    """Logits of one row under plain PEFT."""
    if folder is None:
        return model(input_ids=ids).logits
    opened = PeftModel.from_pretrained(model, str(folder))
    try:
        return opened(input_ids=ids).logits
    finally:
        opened.unload()


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@torch.no_grad()
def test_each_row_of_a_mixed_batch_is_its_adapter_alone(
    load_pico: Callable[..., Any], folders: Mapping[str, Path], quantization: str
) -> None:
    base, plain = load_pico("llama", quantization), load_pico("llama", quantization)
    refs: list[str | None] = [*folders, None, None]
    random.Random(1).shuffle(refs)
    ids = inputs(len(refs))
    bank = LoraBank(base, lambda ref: read_adapter(folders[ref], base.dtype))
    for keep in (False, True):
        with bank.rows([{ref: 1.0} if ref else {} for ref in refs], keep=keep) as model:
            found = [model(input_ids=ids).logits for _ in range(2)]
        for row, ref in enumerate(refs):
            right = alone(plain.model, folders[ref] if ref else None, ids[row : row + 1])[0]
            for logits in found:
                torch.testing.assert_close(logits[row], right, atol=1e-4, rtol=1e-4)
    bank.close()
    torch.testing.assert_close(base.model(input_ids=ids).logits, plain.model(input_ids=ids).logits, atol=0, rtol=0)


@torch.no_grad()
def test_one_adapter_for_all_rows(bank: LoraBank, folders: Mapping[str, Path], pico_base: Any) -> None:
    ids = inputs(3)
    for ref in ("a5@v1", "a2@v1"):
        with bank.rows([{ref: 1.0}] * 3) as model:
            found = model(input_ids=ids).logits
        torch.testing.assert_close(found, alone(pico_base.model, folders[ref], ids), atol=1e-4, rtol=1e-4)


@given(
    mixtures=st.lists(
        st.dictionaries(st.sampled_from([f"a{k}@v1" for k in range(32)]), st.floats(-1, 2, width=32), max_size=3),
        min_size=1,
        max_size=5,
    )
)
@torch.no_grad()
def test_mixtures_are_the_explicit_sums(
    bank: LoraBank, folders: Mapping[str, Path], pico_base: Any, mixtures: list[dict[str, float]]
) -> None:
    ids = inputs(len(mixtures), seed=2)
    with bank.rows(mixtures) as model:
        found = model(input_ids=ids).logits
    for row, mixture in enumerate(mixtures):
        sums: dict[str, torch.Tensor] = {}
        for ref, weight in mixture.items():
            for name, delta in dense(folders[ref]).items():
                sums[name] = sums.get(name, torch.zeros_like(delta)) + weight * delta
        weights = {name: pico_base.model.get_submodule(name).weight for name in sums}
        before = {name: weight.clone() for name, weight in weights.items()}
        for name, delta in sums.items():
            weights[name] += delta.float()
        right = pico_base.model(input_ids=ids[row : row + 1]).logits[0]
        for name, weight in before.items():
            weights[name].copy_(weight)
        torch.testing.assert_close(found[row], right, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("wide", [False, True])
@torch.no_grad()
def test_few_tokens_of_rows_that_share_adapters(
    bank: LoraBank, folders: Mapping[str, Path], pico_base: Any, wide: bool
) -> None:
    """As when answers are written token by token: rows that want the same are multiplied side by side."""
    mixtures: list[dict[str, float]] = [{"a1@v1": 1.0}, {}, {"a2@v1": 0.5, "a8@v1": 0.5}] * 4
    mixtures += [{"a4@v1" if wide else "a3@v1": 1.0}] * (1 if wide else 2)
    ids = inputs(len(mixtures), 3)
    with bank.rows(mixtures) as model:
        right = model(input_ids=ids).logits
    with bank.rows(mixtures, keep=True) as model:
        for _ in range(2):
            torch.testing.assert_close(model(input_ids=ids).logits, right, atol=1e-4, rtol=1e-4)
        assert bank._active is not None
        assert (bank._active.shared is None) is False
    torch.testing.assert_close(right[1], pico_base.model(input_ids=ids[1:2]).logits[0], atol=1e-4, rtol=1e-4)
    one = alone(pico_base.model, folders["a1@v1"], ids[:1])[0]
    torch.testing.assert_close(right[0], one, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["gpt2", "qwen2"])
@torch.no_grad()
def test_other_architectures(load_pico: Callable[..., Any], tmp_path: Path, kind: str) -> None:
    from peft import LoraConfig, get_peft_model

    base, plain = load_pico(kind), load_pico(kind)
    made = []
    for k, targets in enumerate((["c_attn"] if kind == "gpt2" else ["q_proj", "v_proj"], "all-linear")):
        torch.manual_seed(k)
        model = get_peft_model(
            load_pico(kind).model,
            LoraConfig(
                r=4,
                lora_alpha=8,
                target_modules=targets,
                init_lora_weights=False,
                task_type="CAUSAL_LM",
                fan_in_fan_out=kind == "gpt2",
            ),
        )
        model.save_pretrained(tmp_path / str(k))
        made.append(tmp_path / str(k))
    bank, ids = LoraBank(base, lambda ref: read_adapter(Path(ref), base.dtype)), inputs(3)
    with bank.rows([{str(made[0]): 1.0}, {}, {str(made[1]): 1.0}]) as model:
        found = model(input_ids=ids).logits
    for row, folder in enumerate((made[0], None, made[1])):
        right = alone(plain.model, folder, ids[row : row + 1])[0]
        torch.testing.assert_close(found[row], right, atol=1e-4, rtol=1e-4)


def test_the_least_recently_used_gives_way_and_memory_stays_bounded(
    load_pico: Callable[..., Any], folders: Mapping[str, Path]
) -> None:
    base = load_pico()
    bank = LoraBank(base, lambda ref: read_adapter(folders[ref], base.dtype), capacity=4, host_bytes=40_000)
    most, refs, draw = 0, list(folders), random.Random(0)
    for _ in range(200):
        wanted = draw.sample(refs, 3)
        bank.require(wanted)
        assert set(wanted) <= set(bank.refs)
        assert bank.refs[-1] == wanted[-1] or set(bank.refs[-3:]) == set(wanted)
        assert len(bank.refs) <= 4
        most = max(most, bank.bytes)
        assert bank.shelf.bytes <= 40_000 or len(bank.shelf.refs) == 1
    largest = max(read_adapter(folder, base.dtype).rank for folder in folders.values())
    layers = sum(
        (o + i) * 4 for o, i in ((32, 32), (32, 32), (32, 32), (32, 32), (64, 32), (64, 32), (32, 64)) for _ in "01"
    )
    assert most <= 4 * 4 * largest * layers
    with (
        pytest.raises(UsageError, match="5 adapters at once, and the bank holds 4"),
        bank.rows([{r: 1.0} for r in refs[:5]]),
    ):
        pass


@torch.no_grad()
def test_adding_and_removing_while_it_serves(bank: LoraBank, folders: Mapping[str, Path], pico_base: Any) -> None:
    ids, refs = inputs(1), list(folders)
    for k, ref in enumerate(refs):
        bank.require([ref])
        if k >= 2:
            bank.remove([refs[k - 2], "never there"])
        with bank.rows([{ref: 1.0}]) as model:
            found = model(input_ids=ids).logits
        torch.testing.assert_close(found, alone(pico_base.model, folders[ref], ids), atol=1e-4, rtol=1e-4)
    assert bank.refs == refs[-2:]
    other = read_adapter(folders[refs[0]], torch.float32)
    bank.add(refs[-1], other)
    with bank.rows([{refs[-1]: 1.0}]) as model:
        found = model(input_ids=ids).logits
    torch.testing.assert_close(found, alone(pico_base.model, folders[refs[0]], ids), atol=1e-4, rtol=1e-4)


def test_what_does_not_fit_is_refused_and_the_others_are_served(bank: LoraBank, tmp_path: Path) -> None:
    wrong = write_lora(tmp_path / "wrong", modules=("q_proj",))
    fine = read_adapter(wrong, torch.float32)
    elsewhere = Shelved({"model.layers.9.self_attn.q_proj": next(iter(fine.factors.values()))})
    with pytest.raises(AdapterError, match=r"layers\.9\.self_attn\.q_proj is 32 × 32, the base's is not there"):
        bank.add("wrong@v1", elsewhere)
    a, b = next(iter(fine.factors.values()))
    with pytest.raises(AdapterError, match="is 32 × 16, the base's is 32 × 32"):
        bank.add("wrong@v1", Shelved({"model.layers.0.self_attn.q_proj": (a[:, :16], b)}))
    assert "wrong@v1" not in bank.refs
    bank.require(["a0@v1"])
    with pytest.raises(AdapterError, match="DoRA"):
        read_adapter(write_lora(tmp_path / "dora", use_dora=True), torch.float32)
    (wrong / "adapter_model.safetensors").write_bytes(b"half")
    with pytest.raises(IntegrityError):
        read_adapter(wrong, torch.float32)


def test_the_shelf_reads_each_adapter_once_for_all_who_wait() -> None:
    import threading

    reads: list[str] = []
    go = threading.Event()

    def read(ref: str) -> Shelved:
        go.wait(5)
        reads.append(ref)
        if ref == "bad":
            raise AdapterError("bad")
        return Shelved({"layer": (torch.zeros(1, 4), torch.zeros(4, 1))})

    shelf = Shelf(read, 80)
    shelf.prefetch(["x", "y", "bad"])
    results: list[Any] = []
    threads = [threading.Thread(target=lambda: results.append(shelf.get("x"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    go.set()
    for thread in threads:
        thread.join()
    assert reads.count("x") == 1
    assert len({id(found) for found in results}) == 1
    with pytest.raises(AdapterError):
        shelf.get("bad")
    with pytest.raises(AdapterError):
        shelf.get("bad")
    for name in "abc":
        shelf.get(name)
    assert shelf.bytes <= 80
    assert shelf.refs == ["b", "c"]
    shelf.close()
