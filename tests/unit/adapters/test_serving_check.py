"""`verify` finds versions that nothing here could open, although their files are as they were written."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from loras import write_lora

from adapterhub_cl import AdapterHub
from adapterhub_cl.adapters.lora_config import CONFIG, WEIGHTS, why_not_served
from adapterhub_cl.registry import Registry


@pytest.fixture
def hub(pico_path: Any, tmp_path: Path) -> AdapterHub:
    made = AdapterHub.init(tmp_path / "hub", str(pico_path("llama")), quantization="none", dtype="fp32")
    made.import_adapter(write_lora(tmp_path / "one", size=0.1), "one")
    return made


def rewritten(hub: AdapterHub, name: str, content: bytes) -> AdapterHub:
    """The hub with one file of its version replaced, as if it had been written so."""
    folder = hub.path("one")
    (folder / name).write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    manifest["bytes"] = sum(row["bytes"] for row in manifest["files"].values())
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    Registry.rebuild_at(hub.folder)
    return AdapterHub.open(hub.folder, dtype="fp32")


def test_a_version_that_serves_is_fine(hub: AdapterHub) -> None:
    assert hub.verify() == []
    assert hub.verify(serving=True) == []


@pytest.mark.parametrize("change", [{"target_parameters": ["experts.down_proj"]}, {"bias": "all"}, {"r": "four"}])
def test_a_config_that_nothing_here_opens(hub: AdapterHub, change: dict[str, Any]) -> None:
    config = json.loads((hub.path("one") / CONFIG).read_text(encoding="utf-8"))
    found = rewritten(hub, CONFIG, json.dumps({**config, **change}).encode()).verify()
    assert [problem.path for problem in found] == ["adapters/one/v1"]


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("base_model.model.model.embed_tokens.lora_embedding_A", "embeddings"),
        ("base_model.model.model.layers.0.mlp.experts.base_layer.lora_A.weight", "experts"),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_B.bias", "bias"),
    ],
)
def test_tensors_that_nothing_here_opens(hub: AdapterHub, tmp_path: Path, key: str, hint: str) -> None:
    from safetensors.torch import load_file, save, save_file

    tensors = load_file(hub.path("one") / WEIGHTS)
    tensors[key] = next(iter(tensors.values())).clone()
    found = rewritten(hub, WEIGHTS, save(tensors, {"format": "pt"})).verify()
    assert [problem.path for problem in found] == ["adapters/one/v1"]
    assert key in found[0].problem
    assert hint in found[0].fix

    folder = write_lora(tmp_path / "half")
    half = {name: value for name, value in load_file(folder / WEIGHTS).items() if not name.endswith("lora_A.weight")}
    save_file(half, folder / WEIGHTS)
    error = why_not_served(folder)
    assert error is not None
    assert "lacks lora_A.weight" in error.message


def test_a_version_of_other_layers_is_found_on_the_base(hub: AdapterHub) -> None:
    from safetensors.torch import load_file, save

    tensors = {k.replace("q_proj", "qkv_proj"): v for k, v in load_file(hub.path("one") / WEIGHTS).items()}
    again = rewritten(hub, WEIGHTS, save(tensors, {"format": "pt"}))
    assert again.verify() == []
    found = again.verify(serving=True)
    assert [problem.path for problem in found] == ["adapters/one/v1"]
    assert "does not fit this base" in found[0].problem
