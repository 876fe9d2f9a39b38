"""`push` and `pull` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from cl_adapter.__main__ import main
from registry_support import BASE, publish_into
from safetensors.numpy import save

from adapterhub_cl.registry import Registry

CONFIG = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["layer"]}
WEIGHTS = save({f"base_model.model.layer.lora_{ab}.weight": np.ones((1, 1), np.float32) for ab in "AB"})


def hubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    pytest.importorskip("cryptography", reason="sharing needs the extra `share`")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    mine = Registry.create(tmp_path / "mine", BASE)
    with mine.new_draft("news") as draft:
        (draft.path / "adapter_model.safetensors").write_bytes(WEIGHTS)
        (draft.path / "adapter_config.json").write_text(json.dumps(CONFIG))
        mine.publish(draft, {"kind": "trained", "base": {"fingerprint": BASE.fingerprint}})
    Registry.create(tmp_path / "yours", BASE)
    return str(tmp_path / "mine"), str(tmp_path / "yours")


def test_a_version_moves_between_two_hubs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mine, yours = hubs(tmp_path, monkeypatch)
    store = str(tmp_path / "store")
    assert main(["--hub", mine, "push", "news@v1", store]) == 0
    told = capsys.readouterr()
    assert told.out.startswith("news@v1 pushed, ")
    assert "its fingerprint is ed25519:" in told.err
    assert main(["--hub", mine, "push", "--all", store]) == 0
    assert capsys.readouterr().out == "news@v1 was there already\n"
    assert main(["--hub", yours, "--json", "pull", store]) == 0
    size = len(WEIGHTS) + len(json.dumps(CONFIG))
    assert json.loads(capsys.readouterr().out) == [{"ref": "news@v1", "moved": True, "bytes": size}]
    assert Registry.open(yours).get("news@v1").kind == "trained"


def test_what_is_missing_or_wrong_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mine, yours = hubs(tmp_path, monkeypatch)
    store = str(tmp_path / "store")
    publish_into(Registry.open(yours), "news", content=b"other")
    assert main(["--hub", mine, "--quiet", "push", "news", store]) == 0
    capsys.readouterr()
    for words, code, said in (
        (["--hub", mine, "push", store], 2, "push needs what to push"),
        (["--hub", mine, "push", "news", "--all", store], 2, "push versions, or everything"),
        (["--hub", yours, "pull", store], 1, "another news@v1, with other content"),
        (["--hub", yours, "pull", store, "mood"], 2, "unknown adapter 'mood'"),
        (["--hub", yours, "pull", store, "news@v1", "--as", "A B"], 2, "not a valid name"),
        (["--hub", yours, "pull", str(tmp_path / "nowhere")], 1, "nothing was pushed"),
    ):
        assert main(words) == code, words
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 2
        assert lines[0].startswith("error: ")
        assert said in lines[0]
        assert lines[1].startswith("hint: ")
