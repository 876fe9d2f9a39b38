"""`export --format vllm` writes the same change of every layer, and refuses what vLLM cannot take."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from loras import dense, write_lora
from safetensors.torch import load_file, save_file

from adapterhub_cl import AdapterHub
from adapterhub_cl.adapters.lora_config import CONFIG, WEIGHTS, told_for
from adapterhub_cl.adapters.vllm_folder import RANKS, largest_difference, outline, write_vllm_folder, write_zeros
from adapterhub_cl.errors import AdapterError, ExportRefused, UsageError
from adapterhub_cl.progress import LineReporter

Q0 = "model.layers.0.self_attn.q_proj"
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "rank 8": {"rank": 8},
    "rank 9": {"rank": 9},
    "rank 64": {"rank": 64},
    "rsLoRA": {"rank": 12, "rslora": True},
    "ranks": {"ranks": {Q0: 20}},
    "alphas": {"alphas": {Q0: 3.0}},
    "both": {"ranks": {Q0: 20}, "alphas": {Q0: 3.0}, "rslora": True},
    "one layer": {"modules": (Q0,)},
}


@pytest.fixture(scope="module")
def hub(pico_path: Any, tmp_path_factory: pytest.TempPathFactory) -> AdapterHub:
    folder = tmp_path_factory.mktemp("vllm") / "hub"
    made = AdapterHub.init(folder, str(pico_path("llama")), quantization="none", dtype="fp32")
    for seed, name in enumerate(("one", "two")):
        made.import_adapter(write_lora(folder.parent / name, seed, rank=6), name)
    return made


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_change_of_every_layer_is_the_same(case: dict[str, Any], tmp_path: Path) -> None:
    folder = write_lora(tmp_path / "own", **case)
    (tmp_path / "made").mkdir()
    rank = write_vllm_folder(folder, tmp_path / "made", "a/name")
    config = json.loads((tmp_path / "made" / CONFIG).read_text())
    assert rank in RANKS
    assert (config["r"], config["lora_alpha"], config["bias"]) == (rank, rank, "none")
    assert config["base_model_name_or_path"] == "a/name"
    assert not {"rank_pattern", "alpha_pattern", "use_rslora"} & config.keys()
    tensors = load_file(tmp_path / "made" / WEIGHTS)
    assert {min(value.shape) if "lora_A" in key else value.shape[1] for key, value in tensors.items()} <= {rank, 32}
    told = {**config, "alpha_pattern": {}, "rank_pattern": {}}
    (tmp_path / "made" / CONFIG).write_text(json.dumps(told))
    mine, theirs = dense(folder), dense(tmp_path / "made")
    assert all(torch.allclose(mine[name], theirs[name], atol=1e-6) for name in mine)
    assert largest_difference(folder, tmp_path / "made")[0] < 1e-6


def test_peft_opens_it_and_answers_the_same(hub: AdapterHub, load_pico: Any, tmp_path: Path) -> None:
    from peft import PeftModel

    hub.export("one", tmp_path / "out", format="vllm", base_name="some/base")
    ids = torch.arange(3, 20)[None]
    right = PeftModel.from_pretrained(load_pico().model, hub.path("one"))(ids).logits
    found = PeftModel.from_pretrained(load_pico().model, tmp_path / "out")(ids).logits
    assert torch.allclose(right, found, atol=1e-5)
    assert (tmp_path / "out" / "task.json").is_file()


def test_the_base_needs_a_public_name(hub: AdapterHub, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no public name") as told:
        hub.export("one", tmp_path / "out", format="vllm")
    assert "--base-name" in told.value.hint
    assert not (tmp_path / "out").exists()


def test_all_are_written_by_name_or_none_is(hub: AdapterHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub.export_all(tmp_path / "all", format="vllm", base_name="some/base") == ["one@v1", "two@v1"]
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == ["one", "two"]
    assert json.loads((tmp_path / "all" / "two" / CONFIG).read_text())["peft_type"] == "LORA"
    monkeypatch.setattr("adapterhub_cl.adapters.vllm_folder.is_dora", lambda path: path.parent.name == "two")
    with pytest.raises(AdapterError, match="DoRA"):
        hub.export_all(tmp_path / "none", format="vllm", base_name="some/base")
    assert not (tmp_path / "none").exists()


def test_two_versions_of_one_adapter_that_both_answer_are_both_written(pico_path: Any, tmp_path: Path) -> None:
    made = AdapterHub.init(tmp_path / "hub", str(pico_path("llama")), quantization="none", dtype="fp32")
    folders = [write_lora(tmp_path / f"lora-{seed}", seed) for seed in range(12)]
    for folder in folders[:10]:
        made.import_adapter(folder, "both", labels=("a", "b"))
    made.import_adapter(folders[10], "other", labels=("c", "d"))
    made.import_adapter(folders[11], "both", task="other")
    made.registry.promote("both@v11")
    found = made.export_all(tmp_path / "all", format="vllm", base_name="some/base")
    assert sorted(found) == sorted(set(made.registry.serving().values())) == ["both@v1", "both@v11"]
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == ["both@v1", "both@v11"]


def test_all_are_the_versions_that_answer(pico_path: Any, tmp_path: Path) -> None:
    made = AdapterHub.init(tmp_path / "hub", str(pico_path("llama")), quantization="none", dtype="fp32")
    for seed in (1, 2):
        made.import_adapter(write_lora(tmp_path / f"lora{seed}", seed), "one", labels=("a", "b"))
    serving = made.registry.serving()["one"]
    assert made.get("one").ref != serving == "one@v1"
    assert made.export_all(tmp_path / "all", format="vllm", base_name="some/base") == [serving]
    told = io.StringIO()
    made.export("one", tmp_path / "newest", format="vllm", base_name="some/base", reporter=LineReporter(told))
    assert "one@v1 is the one that answers now" in told.getvalue()


def test_an_adapter_that_changes_nothing_is_refused(
    hub: AdapterHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(folder: Path, made: Path, name: str) -> int:
        rank = write_vllm_folder(folder, made, name)
        weights = load_file(made / WEIGHTS)
        weights |= {key: value * 0 for key, value in weights.items() if "lora_B" in key}
        save_file(weights, made / WEIGHTS)
        return rank

    monkeypatch.setattr("adapterhub_cl.adapters.vllm_folder.write_vllm_folder", silent)
    with pytest.raises(ExportRefused, match="is not what the hub has"):
        hub.export("one", tmp_path / "out", format="vllm", base_name="some/base")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("config", "layer", "said"),
    [
        ({"use_dora": True}, "", "DoRA"),
        ({"task_type": "SEQ_CLS", "modules_to_save": ["head"]}, "", "has a head"),
        ({}, "lm_head", "no LoRA"),
        ({}, "model.layers.0.mlp.experts.3.up_proj", "experts"),
    ],
)
def test_what_vllm_cannot_serve_is_refused_with_a_way_out(
    config: dict[str, Any], layer: str, said: str, tmp_path: Path
) -> None:
    folder = write_lora(tmp_path / "own", **config)
    if layer:
        weights = load_file(folder / WEIGHTS)
        weights |= {
            f"base_model.model.{layer}.lora_A.weight": torch.ones(4, 32),
            f"base_model.model.{layer}.lora_B.weight": torch.ones(32, 4),
        }
        save_file(weights, folder / WEIGHTS)
    (tmp_path / "made").mkdir()
    with pytest.raises(AdapterError, match=said) as told:
        write_vllm_folder(folder, tmp_path / "made", "x")
    assert "--format" in told.value.hint


def test_a_rank_above_all_of_vllm_is_refused(tmp_path: Path) -> None:
    folder = write_lora(tmp_path / "own", rank=513, modules=(Q0,))
    (tmp_path / "made").mkdir()
    with pytest.raises(AdapterError, match="at most 512"):
        write_vllm_folder(folder, tmp_path / "made", "x")


def test_zeros_are_like_it_and_change_nothing(tmp_path: Path) -> None:
    for name in ("made", "zeros"):
        (tmp_path / name).mkdir()
    write_vllm_folder(write_lora(tmp_path / "own"), tmp_path / "made", "x")
    write_zeros(outline(tmp_path / "made"), tmp_path / "zeros")
    mine, zeros = (load_file(tmp_path / name / WEIGHTS) for name in ("made", "zeros"))
    assert {key: value.shape for key, value in mine.items()} == {key: value.shape for key, value in zeros.items()}
    assert not any(value.any() for value in zeros.values())


@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj", "up_proj", "model.layers.11.mlp.up_proj", "x.q_proj"])
def test_a_pattern_is_read_as_peft_reads_it(name: str) -> None:
    from peft.utils.other import get_pattern_key

    pattern = {"layers.1.mlp.up_proj": 1, "mlp.up_proj": 2, r"layers\.\d+\.q_proj": 3, "q_proj": 4}
    assert told_for(pattern, name, 9) == pattern.get(get_pattern_key(pattern.keys(), name), 9)
