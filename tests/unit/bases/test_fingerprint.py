"""The fingerprint: any byte that makes the model changes it, nothing else does."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterhub_cl.bases import fingerprint
from adapterhub_cl.bases.fingerprint import changed_to

Copy = Callable[..., Path]
PARTS = ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json")


def cache_file() -> Path:
    from platformdirs import user_cache_path

    return user_cache_path("adapterhub-cl") / "fingerprints.json"


def test_it_is_the_same_in_another_place(pico_path: Callable[[str], Path], pico_copy: Copy) -> None:
    assert fingerprint(pico_path("llama")) == fingerprint(pico_copy("llama")) != fingerprint(pico_path("qwen2"))


@pytest.mark.parametrize("name", PARTS)
def test_any_byte_changes_it(pico_copy: Copy, name: str) -> None:
    folder = pico_copy()
    file = folder / name
    whole, before = file.read_bytes(), fingerprint(folder)

    @settings(max_examples=8)
    @given(where=st.integers(0, len(whole) - 1), by=st.integers(1, 255))
    def flip(where: int, by: int) -> None:
        file.write_bytes(whole[:where] + bytes([whole[where] ^ by]) + whole[where + 1 :])
        # Two writes within one tick of the clock must not look alike to the cache.
        flip.tick += 1_000_000_000  # type: ignore[attr-defined]
        os.utime(file, ns=(flip.tick, flip.tick))  # type: ignore[attr-defined]
        assert fingerprint(folder) != before

    flip.tick = file.stat().st_mtime_ns  # type: ignore[attr-defined]
    flip()
    file.write_bytes(whole)
    os.utime(file, ns=(1, 1))
    assert fingerprint(folder) == before


def test_added_and_missing_files_change_it(pico_copy: Copy) -> None:
    folder = pico_copy()
    seen = {fingerprint(folder)}
    for change in (
        lambda: (folder / "added_tokens.json").write_text("{}"),
        lambda: (folder / "added_tokens.json").rename(folder / "special_tokens_map.json"),
        lambda: (folder / "special_tokens_map.json").unlink() or (folder / "tokenizer_config.json").unlink(),
        lambda: (folder / "chat_template.jinja").write_text("{{ messages }}"),
    ):
        change()
        seen.add(fingerprint(folder))
    assert len(seen) == 5


def test_what_changes_no_token_does_not_change_it(pico_copy: Copy) -> None:
    folder = pico_copy()
    before = fingerprint(folder)
    (folder / "generation_config.json").write_text('{"temperature": 0.1}')
    (folder / "README.md").write_text("hello")
    (folder / "modeling_x.py").write_text("pass")
    assert fingerprint(folder) == before


def test_hashes_are_kept_between_calls(pico_copy: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    folder = pico_copy()
    before = fingerprint(folder)
    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("read again"))
        assert fingerprint(folder) == before


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b'"x"', b"null"])
def test_a_spoilt_cache_costs_nothing_but_time(pico_copy: Copy, content: bytes) -> None:
    folder = pico_copy()
    before = fingerprint(folder)
    cache_file().write_bytes(content)
    assert fingerprint(folder) == before
    assert json.loads(cache_file().read_text())


def test_a_cache_that_cannot_be_written(pico_copy: Copy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = pico_copy()
    before = fingerprint(folder)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert fingerprint(folder) == before


def test_a_spoilt_cache_does_not_make_a_base_another_one(pico_copy: Copy) -> None:
    folder = pico_copy()
    wanted = fingerprint(folder)
    known = json.loads(cache_file().read_text())
    cache_file().write_text(json.dumps(dict.fromkeys(known, "0" * 64)))
    assert fingerprint(folder) != wanted, "the cache is believed as long as nothing depends on it"
    assert changed_to(folder, wanted) == ""
    assert fingerprint(folder) == wanted, "it is right again"
    (folder / "config.json").write_text("{}")
    assert changed_to(folder, wanted) == fingerprint(folder)
