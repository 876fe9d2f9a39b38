"""The plug-in for a stock vLLM: what names stand for, and what becomes of them when the hub changes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from routed_hubs import copied, new_hub, publish
from safetensors.torch import load_file

from adapterhub_cl import AdapterHub
from adapterhub_cl.remote.vllm_exports import VllmExports
from adapterhub_cl.remote.vllm_resolver import FIRST_ID, Followed, HubNames, allowed_rank, register


@dataclass
class Request:
    lora_name: str
    lora_int_id: int
    lora_path: str


@pytest.fixture(scope="module")
def made(load_pico: Any, pico_path: Any, tmp_path_factory: pytest.TempPathFactory) -> AdapterHub:
    return new_hub(tmp_path_factory.mktemp("resolver") / "hub", pico_path("llama"), load_pico(), ("sums", "tales"))


@pytest.fixture
def hub(made: AdapterHub, tmp_path: Path) -> AdapterHub:
    return copied(made, tmp_path / "hub")


def followed(hub: AdapterHub, allowed: int = 0) -> Followed:
    return Followed(HubNames(str(hub.folder)), Request, allowed)


def asked(kept: Followed, name: str) -> Request:
    found = kept.names.find(name)
    assert found is not None
    request: Request = kept.first(name, found)
    return request


def look(kept: Followed) -> None:
    kept.apply(kept.moves())


def test_names_stand_for_versions(hub: AdapterHub) -> None:
    hub.alias("tales@v1", "production")
    names = HubNames(str(hub.folder))
    for name in ("tales", "tales@v1", "tales@production", "tales@latest"):
        found = names.find(name)
        assert found is not None
        assert (found.ref, found.rank) == ("tales@v1", 8)
        assert (found.folder / "adapter_model.safetensors").is_file()
    assert names.find("news") is names.find("tales@v7") is names.find("../x") is None


def test_the_base_is_compared(hub: AdapterHub, pico_path: Any) -> None:
    names = HubNames(str(hub.folder))
    assert names.has_base(str(pico_path("llama")))
    assert not names.has_base(str(pico_path("gpt2")))
    assert not names.has_base("somebody/else")


def test_an_alias_moves_and_a_version_does_not(hub: AdapterHub) -> None:
    hub.alias("tales@v1", "production")
    kept = followed(hub)
    production, fixed = asked(kept, "tales@production"), asked(kept, "tales@v1")
    assert (production.lora_name, fixed.lora_name) == ("tales@production (tales@v1)", "tales@v1")
    before = production.lora_path
    publish(hub, "tales", 9)
    look(kept)
    assert production.lora_path == before  # production pins the version
    hub.alias("tales@v2", "production")
    look(kept)
    assert production.lora_name == "tales@production (tales@v2)"
    assert production.lora_path != before
    assert production.lora_int_id > FIRST_ID + 1
    assert (fixed.lora_name, fixed.lora_path) == ("tales@v1", before)
    hub.rollback("tales@production")
    look(kept)
    assert (production.lora_name, production.lora_path) == ("tales@production (tales@v1)", before)


def test_a_rank_that_vllm_may_not_take_is_not_moved_to(hub: AdapterHub, caplog: pytest.LogCaptureFixture) -> None:
    careful, told = followed(hub), followed(hub, allowed=32)
    one, other = asked(careful, "tales"), asked(told, "tales")
    publish(hub, "tales", 9, rank=20)
    look(careful)
    look(told)
    assert one.lora_name == "tales (tales@v1)"
    assert "--max-lora-rank" in caplog.text
    assert other.lora_name == "tales (tales@v2)"


def test_what_is_forgotten_answers_as_the_base(hub: AdapterHub) -> None:
    kept = followed(hub)
    tales, fixed = asked(kept, "tales"), asked(kept, "tales@v1")
    hub.forget_task("tales")
    look(kept)
    for request in (tales, fixed):
        assert request.lora_name.endswith("(gone)")
        assert not any(value.any() for value in load_file(f"{request.lora_path}/adapter_model.safetensors").values())
    look(kept)  # nothing more


def test_a_hub_that_cannot_be_read_leaves_things_as_they_are(hub: AdapterHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from adapterhub_cl.errors import StorageError

    kept = followed(hub)
    request = asked(kept, "tales")
    before = request.lora_path

    def broken(_: str) -> None:
        raise StorageError("the disk is gone", "wait")

    monkeypatch.setattr(kept.names, "find", broken)
    look(kept)
    assert request.lora_path == before


@pytest.mark.parametrize(
    ("line", "rank"),
    [
        (["vllm", "serve", "m", "--max-lora-rank", "64"], 64),
        (["vllm", "--max_lora_rank=32", "m"], 32),
        (["vllm", "m"], 0),
        (["vllm", "--max-lora-rank"], 0),
    ],
)
def test_the_largest_rank_is_read_off_the_command_line(line: list[str], rank: int) -> None:
    assert allowed_rank(line) == rank


def test_without_a_hub_it_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CL_ADAPTER_HUB", raising=False)
    register()


def test_it_imports_nothing_heavy() -> None:
    code = (
        "import sys, adapterhub_cl.remote.vllm_resolver; "
        "print([m for m in ('torch', 'transformers', 'peft', 'sqlalchemy', 'httpx2') if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


def test_versions_of_equal_content_do_not_take_each_others_folder(
    hub: AdapterHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    exports = VllmExports(hub.registry)
    monkeypatch.setattr(hub.registry, "check_files", lambda _: None)  # which does not know the twin
    one, folder = exports.folder(hub.get("tales"))
    twin = replace(hub.get("tales"), name="copy")
    other, beside = exports.folder(twin)
    assert (one != other, folder.parent) == (True, beside.parent)
    exports.drop("copy@v1")
    assert not beside.exists()
    assert (folder / "adapter_model.safetensors").is_file()
    exports.drop("tales@v1")
    assert not folder.parent.exists()
