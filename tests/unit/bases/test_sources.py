"""Where a base comes from, and what is said when it does not come."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from adapterhub_cl.bases import resolve, sources
from adapterhub_cl.bases.loading import inspect_base
from adapterhub_cl.errors import BaseModelError, UnknownNameError

Copy = Callable[..., Path]


def test_a_folder_is_its_own_place(pico_path: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pico_path("llama")
    assert resolve(str(folder)) == folder
    monkeypatch.setenv("HOME", str(folder.parent))
    assert resolve("~/llama") == folder
    monkeypatch.chdir(folder.parent)
    assert resolve("./llama").resolve() == folder.resolve()


@pytest.mark.parametrize(
    "source", ["/nowhere/at/all", "./missing", "../missing", "missing", "a/b/c", "~/missing", "~nobody-here/x"]
)
def test_a_missing_folder_is_not_looked_for_on_the_hub(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_download", lambda *_: pytest.fail("asked the hub"))
    with pytest.raises(BaseModelError, match="there is nothing") as caught:
        resolve(source)
    assert "tiny" in caught.value.hint


def test_a_file_is_no_base(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(BaseModelError, match=r"its name does not end with \.gguf"):
        resolve(str(tmp_path / "model.onnx"))


def test_a_folder_without_config(pico_copy: Copy) -> None:
    folder = pico_copy()
    (folder / "config.json").unlink()
    with pytest.raises(BaseModelError, match=r"config\.json is missing"):
        resolve(str(folder))


def test_weights_in_pickles_are_never_loaded(pico_copy: Copy) -> None:
    folder = pico_copy()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(BaseModelError, match="pickles, which are never loaded") as caught:
        resolve(str(folder))
    assert "safetensors" in caught.value.hint


def test_a_folder_without_weights(pico_copy: Copy) -> None:
    folder = pico_copy()
    (folder / "model.safetensors").unlink()
    with pytest.raises(BaseModelError, match=r"has no \*\.safetensors"):
        resolve(str(folder))


def test_a_hub_id_that_is_not_cached_and_no_network() -> None:
    with pytest.raises(BaseModelError, match="not cached here and the Hub cannot be reached") as caught:
        resolve("someone/no-such-model")
    assert "--base tiny" in caught.value.hint


def test_a_hub_id_is_fetched_without_pickles_or_code(
    pico_path: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked: dict[str, object] = {}

    def download(source: str, **options: object) -> str:
        asked.update(options, source=source)
        return str(pico_path("llama"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve("owner/model", "abc") == pico_path("llama")
    assert (asked["source"], asked["revision"]) == ("owner/model", "abc")
    patterns = asked["allow_patterns"]
    assert isinstance(patterns, list)
    assert "*.safetensors" in patterns
    assert not any(p.endswith((".bin", ".pt", ".py", "*")) for p in patterns)


@pytest.mark.parametrize("message", ["404 Client Error.\nmore lines", ""])
def test_errors_of_the_hub_in_one_line(monkeypatch: pytest.MonkeyPatch, message: str) -> None:
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError

    def download(*_: object, **__: object) -> str:
        raise HFValidationError(message)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(BaseModelError, match="unknown base 'owner/model'") as caught:
        resolve("owner/model")
    assert "\n" not in caught.value.message


def test_inspecting_reads_shapes_and_architecture(pico_path: Callable[[str], Path]) -> None:
    import torch
    from safetensors.torch import load_file

    folder = pico_path("llama")
    info = inspect_base(str(folder), "nf4")
    weights = load_file(folder / "model.safetensors")
    assert info.parameters == sum(v.numel() for v in weights.values() if isinstance(v, torch.Tensor))
    assert info.architecture == "LlamaForCausalLM"
    assert (info.quantization, info.source, len(info.fingerprint)) == ("nf4", str(folder.resolve()), 64)


def test_inspecting_refuses_what_is_no_kind_of_base(pico_copy: Callable[[str], Path]) -> None:
    folder = pico_copy("bert")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["T5ForConditionalGeneration"]}))
    with pytest.raises(BaseModelError, match="neither a causal language model nor an encoder") as caught:
        inspect_base(str(folder), "none")
    assert "ForCausalLM" in caught.value.hint


def test_inspecting_refuses_an_unknown_quantisation(pico_path: Callable[[str], Path]) -> None:
    with pytest.raises(UnknownNameError, match="quantization 'nf5'") as caught:
        inspect_base(str(pico_path("llama")), "nf5")
    assert "did you mean nf4" in caught.value.hint


@pytest.mark.parametrize("content", ["", "{", "[]", '"x"', "{}"])
def test_inspecting_a_spoilt_config(pico_copy: Copy, content: str) -> None:
    folder = pico_copy()
    (folder / "config.json").write_text(content)
    with pytest.raises(BaseModelError):
        inspect_base(str(folder), "none")


@pytest.mark.parametrize("keep", [0, 7, 300, 5000])
def test_inspecting_truncated_weights(pico_copy: Copy, keep: int) -> None:
    folder = pico_copy()
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(BaseModelError, match="cannot be read"):
        inspect_base(str(folder), "none")
