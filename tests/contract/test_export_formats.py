"""What every export format keeps to: it is described, its options are declared once, and a failure leaves nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from loras import write_lora

from adapterhub_cl import AdapterHub, exporting
from adapterhub_cl.errors import UnknownNameError, UsageError
from adapterhub_cl.options import declared, options_of

FORMATS = exporting.ROOM.own()


@pytest.fixture(scope="module")
def hub(pico_path: Any, tmp_path_factory: pytest.TempPathFactory) -> AdapterHub:
    folder = tmp_path_factory.mktemp("formats")
    made = AdapterHub.init(folder / "hub", str(pico_path("llama")), quantization="none", dtype="fp32")
    made.import_adapter(write_lora(folder / "one", size=0.1), "one", labels=("red", "blue"))
    return made


def asked(name: str) -> dict[str, str]:
    """What a format must be told of a base that has no public name."""
    return {"base_name": "some/base"} if name == "vllm" else {}


@pytest.mark.parametrize("name", FORMATS)
def test_it_is_described(name: str) -> None:
    found = exporting.ROOM.get(name)
    assert found.purpose
    assert not found.purpose.endswith(".")
    assert all(one.help for one in options_of(found.Config).values())


def test_an_option_of_several_formats_is_one_declaration() -> None:
    known: dict[str, Any] = {}
    for kind in exporting.options():
        for name, one in declared(kind).items():
            assert known.setdefault(name, one) == one


@pytest.mark.parametrize("name", FORMATS)
def test_a_failure_leaves_nothing(hub: AdapterHub, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, target = exporting.ROOM.get(name), tmp_path / "out"

    def fail(self: Any, order: Any, made: Path) -> None:
        (made / "half").write_text("done")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kind, "prove", fail)
    with pytest.raises(Exception, match="space"):
        hub.export("one", target, format=name, **asked(name))
    assert not target.exists()
    monkeypatch.undo()
    hub.export("one", target, format=name, **asked(name))
    with pytest.raises(UsageError, match="is not an empty directory"):
        hub.export("one", target, format=name, **asked(name))
    with pytest.raises(UsageError, match="inside the hub"):
        hub.export("one", hub.folder / "out", format=name, **asked(name))


@pytest.mark.parametrize("name", FORMATS)
def test_no_file_names_this_machine(hub: AdapterHub, tmp_path: Path, name: str) -> None:
    folder = hub.export("one", tmp_path / "out", format=name.replace("_", "-"), **asked(name))
    for file in (path for path in folder.rglob("*") if path.is_file()):
        for secret in (hub.base.source, str(hub.folder), "/tmp", "/dev/shm"):
            assert secret.encode() not in file.read_bytes(), file.name


def test_an_unknown_format_is_refused(hub: AdapterHub, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="unknown export format 'ggfu'") as caught:
        hub.export("one", tmp_path / "out", format="ggfu")
    assert "did you mean gguf" in caught.value.hint


def test_listing_the_formats_imports_no_torch() -> None:
    code = "import sys; from adapterhub_cl import exporting; exporting.options(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
