"""`verify`, `gc`, `doctor`, `demo`."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_support import Cl

from adapterhub_cl import doctor
from adapterhub_cl.errors import HubError
from adapterhub_cl.registry import Registry

Publish = Callable[..., Any]


def test_a_healthy_hub(cl: Cl, registry: Registry, publish: Publish) -> None:
    publish()
    said = cl("verify", "--hub", registry.path)
    assert (said.code, said.out) == (0, "ok\n")
    assert cl("verify", "--hub", registry.path, "--json").json == {"ok": True, "problems": [], "done": []}


def test_a_changed_file_is_named_with_its_fix(cl: Cl, registry: Registry, publish: Publish) -> None:
    path = publish().path / "adapter_model.safetensors"
    path.chmod(0o644)
    path.write_bytes(b"W" + path.read_bytes()[1:])
    said = cl("verify", "--hub", registry.path)
    assert said.code == 1
    assert said.out.startswith("adapters/mood/v1/adapter_model.safetensors: changed")
    assert "\n  fix: " in said.out
    found = cl("verify", "--hub", registry.path, "--json")
    assert found.code == 1
    assert found.json["problems"][0].keys() == {"path", "problem", "fix"}
    refused = cl("export", "mood", "-o", "out", "--hub", registry.path)
    assert refused.code == 1
    assert "SHA-256" in refused.err


def test_a_damaged_index_is_found_and_rebuilt(cl: Cl, registry: Registry, publish: Publish) -> None:
    publish()
    for file in registry.path.glob("index.db*"):
        file.write_bytes(b"not a database at all" * 100)
    said = cl("verify", "--hub", registry.path, "--json")
    assert said.code == 1
    assert not said.json["ok"]
    assert "--rebuild-index" in said.json["problems"][0]["fix"]
    mended = cl("verify", "--rebuild-index", "--hub", registry.path)
    assert (mended.code, mended.out) == (0, "ok\n")
    assert "1 versions" in mended.err
    assert [row["ref"] for row in cl("list", "--json", "--hub", registry.path).json] == ["mood@v1"]


def test_repair_says_what_it_did(cl: Cl, registry: Registry, publish: Publish) -> None:
    publish()
    (registry.path / "adapters" / "mood" / ".tmp-999999999-abcd").mkdir()
    assert cl("verify", "--hub", registry.path).code == 1
    said = cl("verify", "--repair", "--hub", registry.path)
    assert (said.code, said.out) == (0, "ok\n")
    assert "removed adapters/mood/.tmp-999999999-abcd" in said.err


@pytest.fixture
def leftover(registry: Registry) -> Path:
    path = registry.path / "adapters" / ".tmp-999999999-abcd"
    path.mkdir()
    (path / "file").write_bytes(b"x" * 2000)
    return path


def test_gc_lists_asks_and_removes(cl: Cl, registry: Registry, leftover: Path) -> None:
    hub = ("--hub", registry.path)
    listed = cl("gc", "--dry-run", *hub)
    assert (listed.code, leftover.exists()) == (0, True)
    assert "2.0 kB" in listed.out
    alone = cl("gc", *hub)
    assert (alone.code, leftover.exists()) == (2, True)
    assert "--yes" in alone.err
    no = cl("gc", *hub, stdin="n\n", terminal=True)
    assert (no.code, leftover.exists()) == (1, True)
    yes = cl("gc", *hub, stdin="y\n", terminal=True)
    assert (yes.code, leftover.exists()) == (0, False)
    assert cl("gc", *hub).out == "nothing to remove\n"


def test_gc_as_json(cl: Cl, registry: Registry, leftover: Path) -> None:
    said = cl("gc", "--yes", "--json", "--hub", registry.path).json
    assert said["freed"] == said["bytes"] == 2000
    assert said["found"][0]["path"] == str(leftover)


def test_gc_takes_runs_by_their_age(cl: Cl, registry: Registry) -> None:
    run = registry.runs_dir / "mood-1"
    run.mkdir()
    (run / "run.json").write_text('{"verb": "add-task", "name": "mood"}')
    os.utime(run / "run.json", (0, 0))
    os.utime(run, (0, 0))
    assert cl("gc", "--dry-run", "--older-than", 40_000, "--hub", registry.path).out == "nothing to remove\n"
    assert "an unfinished run of mood" in cl("gc", "--dry-run", "--hub", registry.path).out


# -- doctor ------------------------------------------------------------------------------------------------------


@pytest.mark.integration
def test_doctor_needs_no_hub(cl: Cl) -> None:
    said = cl("doctor", "--json")
    checks = {check["name"]: check for check in said.json["checks"]}
    assert said.json["ok"] is (said.code == 0)
    for name in ("python", "packages", "processor", "cache", "nf4", "embedded base", "hub"):
        assert checks[name]["ok"], checks[name]
    assert "torch 2" in checks["packages"]["detail"]


def test_what_doctor_finds_wrong_has_a_fix(cl: Cl, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> doctor.Check:
        raise OSError("libbitsandbytes\nis missing")

    def unwell() -> doctor.Check:
        raise HubError("no hub", "make one")

    monkeypatch.setattr(doctor, "_nf4", broken)
    monkeypatch.setattr(doctor, "_embedded", lambda device: unwell())
    monkeypatch.setattr(doctor, "_memory", lambda: doctor.Check("memory", False, "0.1 GB free"))
    said = cl("doctor", "--hub", registry.path)
    assert said.code == 1
    assert "OSError: libbitsandbytes is missing" in said.out
    assert "nf4: pip install --upgrade bitsandbytes" in said.out
    assert "embedded base: make one" in said.out
    assert "memory: close other programs" in said.out
    assert f"{registry.path}: 0 versions on tiny (nf4)" in said.out


def test_doctor_tells_a_base_that_is_another_now(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor._hub(registry.path).ok
    module = importlib.import_module("adapterhub_cl.bases.fingerprint")
    monkeypatch.setattr(module, "fingerprint", lambda path, again=False: "0" * 64)
    found = doctor._hub(registry.path)
    assert not found.ok
    assert "has changed since this hub was made" in found.detail


def test_doctor_tells_an_old_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.requires", lambda name: ["torch>=99", "nonesuch>=1", 'x; extra == "dev"'])
    check = doctor._packages()
    assert not check.ok
    assert ">=99" in check.detail
    assert "nonesuch is not installed" in check.detail


def test_a_hub_that_does_not_open_is_told(tmp_path: Path) -> None:
    with pytest.raises(HubError):
        doctor._hub(tmp_path)
    assert doctor._hub(None).ok


# -- demo --------------------------------------------------------------------------------------------------------


def test_demo_tells_on_stdout_or_gives_json(cl: Cl, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def run(folder: Path | None, *, seed: int = 0, tell: Callable[[str], None], reporter: Any) -> dict[str, Any]:
        asked.append((folder, seed))
        tell("learning")
        return {"forgotten": 0.0}

    monkeypatch.setattr("adapterhub_cl.demo.run", run)
    assert cl("demo").out == "learning\n"
    said = cl("demo", "here", "--seed", 4, "--json")
    assert said.json == {"forgotten": 0.0}
    assert said.err == "learning\n"
    assert cl("demo", "--quiet").out == ""
    assert asked == [(None, 0), (Path("here"), 4), (None, 0)]
