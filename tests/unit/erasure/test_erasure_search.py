"""The search: what stands in a file is found wherever and however it stands there, and nothing else is."""

from __future__ import annotations

import io
import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from erasure_support import ANSWERS, SAME, SECRETS, SHARED, publish, rows, tensors
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from adapterhub_cl.erasure.proof import Proof, prove
from adapterhub_cl.erasure.removal import forget
from adapterhub_cl.erasure.search import Needles, Searched
from adapterhub_cl.erasure.windows import (
    BLOCK,
    LENGTHS,
    LONGEST,
    SHORTEST,
    Secret,
    Window,
    of_sample,
    of_tensors,
    rolling,
)
from adapterhub_cl.errors import StorageError, UnknownNameError, UsageError
from adapterhub_cl.registry import Registry
from adapterhub_cl.types import Example

SALT = Secret(b"salt", b"key")


@pytest.fixture
def forgotten(world: Registry) -> Registry:
    forget(world, "news")
    assert prove(world, "news").ok
    return world


def places(proof: Proof) -> set[tuple[str, int | None]]:
    return {(find.path, find.offset) for find in proof.found}


def scan(data: bytes, *pieces: bytes) -> list[tuple[int, int]]:
    found = Needles((Window.of(piece, SALT), SALT) for piece in pieces).scan(io.BytesIO(data), Searched())
    return sorted((at, window.extent) for at, window in found)


@given(st.binary(min_size=SHORTEST, max_size=LONGEST), st.binary(max_size=300), st.binary(max_size=300))
def test_a_piece_is_found_where_it_stands_and_nowhere_else(piece: bytes, before: bytes, after: bytes) -> None:
    data = before + piece + after
    every = [(i, len(piece)) for i in range(len(data)) if data[i : i + len(piece)] == piece]
    assert scan(data, piece) == every
    other = bytes([piece[0] ^ 1]) + piece[1:]
    assert scan(data, other) == [(i, len(piece)) for i in range(len(data)) if data[i : i + len(piece)] == other]


@given(st.binary(max_size=200))
def test_the_hash_rolls(data: bytes) -> None:
    view = np.frombuffer(data, np.uint8)
    for length, keys in zip(LENGTHS, rolling(view, LENGTHS), strict=True):
        assert len(keys) == max(0, len(data) - length + 1)
        for at, key in enumerate(keys):
            assert Window.of(data[at : at + length], SALT).key == key


@pytest.mark.parametrize("length", [SHORTEST, 31, 47, 48, LONGEST])
@pytest.mark.parametrize("at", [0, BLOCK - 1, BLOCK, BLOCK - LONGEST, BLOCK + 1 - LONGEST, 2 * BLOCK - 30, 3 * BLOCK])
def test_pieces_across_the_blocks_of_a_large_file(length: int, at: int) -> None:
    random = np.random.default_rng(at)
    data = bytearray(random.bytes(3 * BLOCK + length))
    piece = random.bytes(length)
    data[at : at + length] = piece
    assert scan(bytes(data), piece) == [(at, length)]
    assert scan(bytes(data[: at + length]), piece) == [(at, length)]  # as the last bytes of a file
    assert scan(bytes(data[: at + length - 1]), piece) == []


@given(st.text(min_size=4, max_size=120))
def test_a_text_is_found_in_each_form_of_json(text: str) -> None:
    item = of_sample(Example(text, "a"), SALT)
    size = len(text.encode("utf-8", "surrogatepass"))
    assert item.state == ("searched" if size >= SHORTEST else "short")
    needles = Needles((window, SALT) for window, _ in [(w, 0) for w in item.without(set()).groups for w in w])
    if item.state == "short":
        return
    for form in (text, json.dumps(text), json.dumps(text, ensure_ascii=False), json.dumps({"x": [text]}, indent=1)):
        data = b"\x00 before " + form.encode("utf-8", "surrogatepass") + b" after"
        assert list(needles.scan(io.BytesIO(data), Searched()))


@pytest.mark.parametrize("number", range(len(SECRETS)))
@pytest.mark.parametrize("form", ["plain", "ascii", "unicode"])
def test_a_planted_text_is_found(forgotten: Registry, number: int, form: str) -> None:
    text = SECRETS[number]
    written = {"plain": text, "ascii": json.dumps(text), "unicode": json.dumps(text, ensure_ascii=False)}[form]
    (forgotten.path / "notes").mkdir()
    (forgotten.path / "notes" / ".hidden").write_text("x" * 1001 + written + "y", encoding="utf-8")
    proof = prove(forgotten, "news")
    assert {find.path for find in proof.found} == {"notes/.hidden"}
    assert all(find.offset is not None and find.offset >= 1001 for find in proof.found)
    assert all("sample of news" in find.what for find in proof.found)


def test_a_copy_that_was_there_before_is_found(world: Registry) -> None:
    (world.path / "backup").mkdir()
    copied = (world.adapters_dir / "news" / "v2" / "replay.jsonl").read_bytes()
    (world.path / "backup" / "replay.jsonl").write_bytes(copied)
    weights = (world.adapters_dir / "news" / "v1" / "adapter_model.safetensors").read_bytes()
    (world.adapters_dir / "mood" / "v1" / "extra.bin").write_bytes(weights)
    forget(world, "news")
    proof = prove(world, "news")
    assert {find.path for find in proof.found} == {"backup/replay.jsonl", "adapters/mood/v1/extra.bin"}
    assert proof.samples == 9


def test_a_long_answer_and_a_row_of_a_feed_are_found(forgotten: Registry) -> None:
    (forgotten.path / "a.txt").write_text(ANSWERS[-1])
    (forgotten.path / "b.txt").write_text("A row that came in over the wire and was never learned at all")
    assert {find.path for find in prove(forgotten, "news").found} == {"a.txt", "b.txt"}


@pytest.mark.parametrize("seed", [1, 2, 5, 6, 8, 9])
def test_planted_tensors_are_found(forgotten: Registry, seed: int) -> None:
    data = tensors(seed)["layer.lora_B.weight"].tobytes()
    (forgotten.path / "streams" / "blob.bin").write_bytes(b"\x01" * (BLOCK - 100) + data)
    found = prove(forgotten, "news").found
    assert {(find.path, "tensor of news" in find.what) for find in found} == {("streams/blob.bin", True)}


def test_a_copy_in_the_index_or_its_journal_is_found(forgotten: Registry) -> None:
    keeper = sqlite3.connect(forgotten.path / "index.db")
    keeper.execute("SELECT count(*) FROM events").fetchone()
    forgotten.add_event("note", "mood@v1", {"text": SECRETS[2]})
    proof = prove(forgotten, "news")
    assert any(path == "index.db-wal" for path, _ in places(proof))
    keeper.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert any(path == "index.db" for path, _ in places(prove(forgotten, "news")))
    keeper.close()


def test_a_row_in_a_table_counts_too(forgotten: Registry) -> None:
    from adapterhub_cl.types import Evaluation

    forgotten.add_evaluations("mood@v1", [Evaluation("news", "accuracy", 0.5, 10)])
    assert [(find.path, find.what) for find in prove(forgotten, "news").found] == [("index.db", "1 scores on news")]


def test_what_others_share_is_not_taken_for_a_trace(forgotten: Registry) -> None:
    proof = prove(forgotten, "news")
    # lora_A of six versions and of the one in streams/ is the fresh one that mood has as well; their B is zero
    assert (proof.passed_over["tensor shared"], proof.passed_over["tensor constant"]) == (7, 7)
    (forgotten.path / "copy.bin").write_bytes(SHARED.tobytes())
    assert prove(forgotten, "news").ok


def test_counts(forgotten: Registry) -> None:
    proof = prove(forgotten, "news")
    assert proof.samples == 9
    assert proof.tensors == 6 + 1 + 1 + 5  # lora_B of each version, one memory, one in streams/, five checkpoints
    assert proof.files == sum(1 for p in forgotten.path.rglob("*") if p.is_file())
    assert proof.windows >= proof.samples + proof.tensors
    assert proof.to_json()["ok"] is True


def test_a_text_that_stays_as_part_of_another_is_said(hub: Registry) -> None:
    publish(hub, "news", "news", seed=1, samples=rows(["a text of news that others have", "no 7"]))
    publish(hub, "mood", "mood", seed=2, samples=rows(["they quote: a text of news that others have; fine"]))
    forget(hub, "news")
    proof = prove(hub, "news")
    assert (proof.ok, proof.samples) == (True, 0)
    assert proof.passed_over["sample shared"] == 1
    assert proof.passed_over["sample short"] == 1


def test_links_are_not_followed_and_an_unreadable_file_is_no_proof(
    forgotten: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "outside.txt").write_text(SAME)
    (forgotten.path / "link.txt").symlink_to(tmp_path / "outside.txt")
    assert prove(forgotten, "news").ok
    (forgotten.path / "locked.txt").write_text("x")
    real = Path.open

    def refuse(self: Path, *args: object, **kwargs: object) -> object:
        if self.name == "locked.txt":
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, *args, **kwargs)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(StorageError, match=r"locked\.txt cannot be read"):
        prove(forgotten, "news")


def test_a_store_elsewhere_is_searched_too(world: Registry, tmp_path: Path) -> None:
    text = (world.path / "hub.toml").read_text()
    store = tmp_path / "elsewhere"
    world.adapters_dir.rename(store)
    (world.path / "hub.toml").write_text(text.replace("file:adapters", f"file:{store}"))
    moved = Registry.open(world.path)
    forget(moved, "news")
    assert prove(moved, "news").ok
    (store / "mood" / "stray.txt").write_text(SECRETS[0])
    assert {find.path for find in prove(moved, "news").found} == {str(store / "mood" / "stray.txt")}


def test_who_asks_too_early_or_for_another_name(world: Registry) -> None:
    with pytest.raises(UsageError, match="has not been forgotten"):
        prove(world, "news")
    forget(world, "news")
    with pytest.raises(UnknownNameError) as caught:
        prove(world, "nwes")
    assert caught.value.near == ["news"]


def test_a_file_that_is_no_safetensors_file_counts_as_one_tensor(tmp_path: Path) -> None:
    data = np.random.default_rng(0).bytes(5000)
    (tmp_path / "broken.safetensors").write_bytes(data)
    (item,) = of_tensors(tmp_path / "broken.safetensors", "x", SALT)
    assert item.state == "searched"
    found = Needles((w, SALT) for group in item.groups for w in group).scan(io.BytesIO(data), Searched())
    assert sum(1 for _ in found) >= 2


def test_tensors_of_few_numbers(tmp_path: Path) -> None:
    sparse = np.zeros(3_000_000, np.float32)
    sparse[2_000_001:2_000_005] = [1.5, -2.25, 3.125, 1e-3]
    found = {"sparse": sparse, "ones": np.ones(1000, np.float32), "tiny": np.ones(2, np.float32), "none": np.ones(0)}
    save_file(found, tmp_path / "x.safetensors")
    states = sorted(item.state for item in of_tensors(tmp_path / "x.safetensors", "x", SALT))
    assert states == ["constant", "searched", "short", "short"]
    windows = [w for item in of_tensors(tmp_path / "x.safetensors", "x", SALT) for group in item.groups for w in group]
    assert list(Needles((w, SALT) for w in windows).scan(io.BytesIO(sparse.tobytes()), Searched()))
