"""The store of replay samples where it meets rejected, deleted and rolled-back versions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adapterhub_cl.registry import Registry
from adapterhub_cl.samples.store import Samples, sample_key
from adapterhub_cl.types import AdapterRecord, BaseInfo, Example, Task


@pytest.fixture
def hub(tmp_path: Path) -> Registry:
    return Registry.create(tmp_path / "hub", BaseInfo("tiny", "f" * 64, quantization="none"))


def keep(hub: Registry, *rows: tuple[str, str, str], status: str = "active", name: str = "news") -> AdapterRecord:
    """Publish a version that keeps these (instruction, input, output)."""
    with hub.new_draft(name) as draft:
        (draft.path / "adapter_model.safetensors").write_bytes(b"w")
        text = "".join(
            json.dumps(dict(zip(("instruction", "input", "output"), row, strict=True))) + "\n" for row in rows
        )
        (draft.path / "replay.jsonl").write_text(text)
        manifest = {"kind": "trained", "status": status, "replay": {"policy": "hard", "samples": len(rows)}}
        return hub.publish(draft, manifest, task=Task("news"))


def test_a_bare_name_reaches_rejected_versions_and_deleted_ones(hub: Registry) -> None:
    gone = keep(hub, ("", "secret", "a"))
    keep(hub, ("", "secret", "b"), ("", "other", "a"))
    keep(hub, ("", "Secret", "a"), ("", "third", "a"), status="rejected")
    hub.delete("news@v1")
    store = Samples(hub)
    assert store.record("news").ref == "news@v2"
    assert store.drop("news", matching="SECRET") == 2
    assert [example.input for example in store.show("news@v3")] == ["third"]
    assert not (gone.path / "replay.jsonl").exists()
    assert b"secret" not in b"".join(p.read_bytes().lower() for p in hub.adapters_dir.rglob("replay.jsonl"))
    assert hub.verify() == []


def test_a_text_that_only_a_deleted_version_has_goes_too(hub: Registry) -> None:
    gone = keep(hub, ("", "secret", "a"))
    keep(hub, ("", "other", "a"))
    hub.delete("news@v1")
    assert Samples(hub).drop("news", matching="secret") == 0
    assert not (gone.path / "replay.jsonl").exists()
    assert [example.input for example in Samples(hub).show("news")] == ["other"]


def test_an_adapter_of_rejected_versions_only_can_be_emptied(hub: Registry) -> None:
    keep(hub, ("", "one", "a"), status="rejected")
    assert Samples(hub).rows() == []
    assert Samples(hub).drop("news") == 1


def test_rows_are_numbered_by_the_newest_version_after_a_rollback(hub: Registry) -> None:
    keep(hub, ("", "old", "a"))
    keep(hub, ("", "new", "a"), ("", "old", "a"))
    hub.rollback("news@latest")
    assert Samples(hub).drop("news", rows=[1]) == 1
    assert [example.input for example in Samples(hub).show("news")] == ["old"]


def test_a_row_without_input_is_told_by_its_instruction_and_answer(hub: Registry) -> None:
    keep(hub, ("is it so?", "", "yes"), ("and this?", "", "yes"))
    assert Samples(hub).drop("news", rows=[1]) == 1
    assert [example.instruction for example in Samples(hub).show("news")] == ["and this?"]


def test_adapters_of_one_task_divide_its_share(hub: Registry) -> None:
    for name in ("news", "more"):
        keep(hub, *[("", f"{name} {i}", "a") for i in range(4)], name=name)
    assert {cut.ref: cut.after for cut in Samples(hub).set_budget(5)} == {"more@v1": 3, "news@v1": 2}
    assert sum(row.samples for row in Samples(hub).rows()) == 5


def test_a_record_read_before_a_removal_still_checks(hub: Registry) -> None:
    record = keep(hub, ("", "one", "a"), ("", "two", "a"))
    Samples(hub).drop("news", rows=[1])
    hub.check_files(record)
    detail = hub.events("news", 1)[0]
    assert detail.verb == "replay-drop"
    assert "one" not in json.dumps(dict(detail.detail))


ACCENTS = ("Jos\u00e9", "Jose\u0301")  # one code point, and a letter with a combining accent


@pytest.mark.parametrize("said", ACCENTS)
def test_a_text_is_found_in_all_that_a_sample_holds_however_it_is_encoded(hub: Registry, said: str) -> None:
    for row in (
        {"input": "q", "output": "a", "references": [f"{ACCENTS[1]} said so"]},
        {"input": "", "output": "a", "messages": [{"role": "user", "content": "q", "name": ACCENTS[0].upper()}]},
        {"input": f"letter of {ACCENTS[0]}", "output": "a"},
        {"input": "another", "output": "a"},
    ):
        with hub.new_draft("news") as draft:
            (draft.path / "adapter_model.safetensors").write_bytes(b"w")
            (draft.path / "replay.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
            manifest = {"kind": "trained", "replay": {"policy": "hard", "samples": 1}}
            hub.publish(draft, manifest, task=Task("news"))
    assert sorted(Samples(hub).find("news", matching=said)) == ["news@v1", "news@v2", "news@v3"]


def test_the_same_row_in_another_encoding_is_the_same_row() -> None:
    one, other = (sample_key(Example(f"letter of {name}")) for name in ACCENTS)
    assert one == other == sample_key(Example(f"LETTER  of {ACCENTS[1]}"))
