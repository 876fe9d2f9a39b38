"""Quantised weights in the user's cache: the same base from them, and whatever happens to them, never another one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from adapterhub_cl import AdapterHub
from adapterhub_cl.bases import kept_weights, loading
from adapterhub_cl.bases.loading import LoadedBase, inspect_base, load_base
from adapterhub_cl.progress import Reporter

INPUTS = torch.tensor([[1, 50, 60, 70, 2]])


class Place(NamedTuple):
    """A cache of our own, and how often a base was quantised."""

    cache: Path
    base: Path
    quantised: list[str]

    @property
    def copies(self) -> list[Path]:
        return sorted((self.cache / "adapterhub-cl/bases").glob("*"))

    def load(self, quantization: str = "nf4") -> LoadedBase:
        return load_base(inspect_base(str(self.base), quantization), device="cpu", dtype="fp32")


@pytest.fixture
def place(tmp_path: Path, pico_path: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(loading, "LEAST_PARAMETERS", 0)
    found = Place(tmp_path / "cache", Path(shutil.copytree(pico_path("llama"), tmp_path / "base")), [])
    load = loading._load_causal

    def counted(path: Path, config: Any, quantization: Any, **options: Any) -> Any:
        found.quantised.append(path.name)
        return load(path, config, quantization, **options)

    monkeypatch.setattr(loading, "_load_causal", counted)
    return found


def logits(base: LoadedBase) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = base.model(INPUTS).logits
    return found


@pytest.mark.parametrize("quantization", ["nf4", "fp4", "int8"])
def test_the_second_start_does_not_quantise_and_gives_the_same_base(place: Place, quantization: str) -> None:
    first, second = place.load(quantization), place.load(quantization)
    assert (place.quantised, len(place.copies)) == (["base"], 1)
    assert first.note == second.note == ""
    assert torch.equal(logits(first), logits(second))
    assert first.model.config.to_dict() == second.model.config.to_dict()
    assert first.model.name_or_path == second.model.name_or_path, "adapters record where the base lies"
    assert first.model.generation_config.to_dict() == second.model.generation_config.to_dict()
    assert [p.requires_grad for p in second.model.parameters()] == [False] * len(list(second.model.parameters()))


def test_an_adapter_trained_on_either_is_the_same(place: Place, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"thing {k}", "label": "ab"[k % 2]}) + "\n" for k in range(24)))
    made = []
    for name in ("one", "two"):
        hub = AdapterHub.init(tmp_path / name, str(place.base), dtype="fp32")
        hub.add_task("t", rows, epochs=1, rank=2, max_length=32)
        made.append((hub.path("t") / "adapter_model.safetensors").read_bytes())
    assert place.quantised == ["base"]
    assert made[0] == made[1]


def spoil_a_byte(copy: Path) -> None:
    path = copy / "model.safetensors"
    path.chmod(0o600)
    content = bytearray(path.read_bytes())
    content[-3] ^= 0xFF
    path.write_bytes(content)


def cut(copy: Path) -> None:
    (copy / "model.safetensors").write_bytes((copy / "model.safetensors").read_bytes()[:999])


def add_a_pickle(copy: Path) -> None:
    (copy / "pytorch_model.bin").write_bytes(b"\x80\x04.")


def list_nothing(copy: Path) -> None:
    (copy / "kept.json").write_text("{}")


def no_list(copy: Path) -> None:
    (copy / "kept.json").unlink()


def a_deep_list(copy: Path) -> None:
    (copy / "kept.json").write_text("[" * 100_000)


def other_code(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModelForCausalLM": "evil.Model"}}))


@pytest.mark.parametrize("spoil", [spoil_a_byte, cut, add_a_pickle, list_nothing, no_list, a_deep_list, other_code])
def test_a_spoilt_copy_is_made_again_and_said(place: Place, spoil: Callable[[Path], None]) -> None:
    wanted = logits(place.load())
    (copy,) = place.copies
    spoil(copy)
    found = place.load()
    assert "cannot be used" in found.note
    assert str(copy) in found.note
    assert torch.equal(logits(found), wanted)
    assert place.quantised == ["base"] * 2
    assert place.load().note == "", "it is whole again"
    assert place.quantised == ["base"] * 2


def test_a_link_in_place_of_a_copy_is_removed_and_what_it_names_stays(place: Place, tmp_path: Path) -> None:
    wanted = logits(place.load())
    (copy,) = place.copies
    copy.rename(tmp_path / "elsewhere")
    copy.symlink_to(tmp_path / "elsewhere")
    found = place.load()
    assert "was a link" in found.note
    assert torch.equal(logits(found), wanted)
    assert (tmp_path / "elsewhere" / "config.json").is_file()
    assert copy.is_dir()
    assert not copy.is_symlink()
    assert place.load().note == ""


def test_a_copy_is_not_blamed_for_too_little_memory(place: Place) -> None:
    place.load()
    (copy,) = place.copies
    kept = kept_weights.KeptWeights("x")
    kept.folder = copy

    def full(folder: Path) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        kept.load(full)
    assert copy.is_dir()


def test_the_note_reaches_the_user(place: Place, tmp_path: Path) -> None:
    place.load()
    cut(place.copies[0])
    hub = AdapterHub.init(tmp_path / "hub", str(place.base), dtype="fp32")
    told: list[str] = []

    class Told(Reporter):
        def note(self, text: str) -> None:
            told.append(text)

    hub.load_base(Told())
    assert [line.partition(":")[0] for line in told] == ["note"]


def test_another_base_another_type_and_another_version_are_other_copies(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.load()
    load_base(inspect_base(str(place.base), "nf4"), device="cpu", dtype="bf16")
    assert len(place.copies) == 2
    monkeypatch.setattr(loading, "version", lambda name: "9.9")
    place.load()
    assert len(place.copies) == 3
    config = json.loads((place.base / "config.json").read_text())
    (place.base / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    place.load()
    assert len(place.copies) == 4


def test_what_a_user_changes_about_writing_is_seen(place: Place) -> None:
    place.load()
    (place.base / "generation_config.json").write_text(json.dumps({"repetition_penalty": 1.5}))
    assert place.load().model.generation_config.repetition_penalty == 1.5
    assert place.quantised == ["base"], "it is no part of the weights"


def test_a_cache_without_room_keeps_nothing_and_says_so(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    free = shutil.disk_usage(place.base)._replace(free=1000)
    monkeypatch.setattr(kept_weights.shutil, "disk_usage", lambda path: free)
    assert "GB free" in place.load().note
    assert place.copies == []


def test_a_disk_that_fills_up_leaves_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kept_weights, "sha256_file", full)
    assert "No space left" in place.load().note
    assert place.copies == []


def test_a_cache_that_is_a_file_does_no_harm(place: Place) -> None:
    place.cache.mkdir()
    (place.cache / "adapterhub-cl").write_text("")
    assert "nothing is kept" in place.load().note


def test_what_a_killed_process_left_is_removed_after_a_day(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.load()
    (kept,) = place.copies
    left = kept.with_name(".abc.17.tmp")
    left.mkdir()
    now = kept_weights.time.time()
    load_base(inspect_base(str(place.base), "nf4"), device="cpu", dtype="bf16")
    assert left.is_dir(), "it may be at work"
    monkeypatch.setattr(kept_weights.time, "time", lambda: now + 2 * 86400)
    place.load("fp4")
    assert not left.is_dir()
    assert kept.is_dir()
    monkeypatch.setattr(kept_weights.time, "time", lambda: now + 61 * 86400)
    place.load("int8")
    assert not kept.is_dir(), "not used for long"


def test_two_at_once_keep_one_copy(place: Place) -> None:
    info = inspect_base(str(place.base), "nf4")
    base = load_base(info, device="cpu", dtype="fp32")
    (copy,) = place.copies
    shutil.rmtree(copy)
    stores = [kept_weights.KeptWeights("same") for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda one: one.store(base.model.save_pretrained, 10), stores))
    assert len(place.copies) == 1
    assert [one.note for one in stores] == [""] * 4


def test_a_small_base_is_not_kept(tmp_path: Path, pico_path: Callable[[str], Path], monkeypatch: Any) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    load_base(inspect_base(str(pico_path("llama")), "nf4"), device="cpu", dtype="fp32")
    assert not (tmp_path / "adapterhub-cl/bases").exists()
