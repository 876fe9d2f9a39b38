"""Forgetting a task whose rows another task was trained on as well."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from erasure_support import rows, tensors
from safetensors.numpy import save_file

from adapterhub_cl.erasure.proof import prove
from adapterhub_cl.erasure.removal import forget, look
from adapterhub_cl.errors import UsageError
from adapterhub_cl.registry import Registry, drafts
from adapterhub_cl.samples import rows_seen as _seen
from adapterhub_cl.types import AdapterRecord, Example, Task

OURS = ["Ann pays late every month", "Bob never pays at all", "Cyd pays twice by mistake"]
THEIRS = ["The train was late again", "It rains in the mountains"]


def teach(hub: Registry, name: str, seen: list[str], *, sha: str = "", kept: int = 1, **given: Any) -> AdapterRecord:
    """A version trained on these rows; `kept` of them are replay samples."""
    edges = given.pop("edges", ())
    serve = given.pop("serve", True)
    with hub.new_draft(name) as draft:
        save_file(tensors(sum(name.encode())), draft.path / "adapter_model.safetensors")
        (draft.path / "replay.jsonl").write_text(rows(seen[:kept]))
        if seen:
            _seen.write(draft.path, [Example(text, "a") for text in seen])
        manifest = {"kind": "trained", "rank": 8, "strategy": "isolated", "learned_from": [], **given}
        if sha:
            manifest["training"] = {"data": {"sha256": sha, "source": "x.jsonl"}}
        task = None if "takes_over" in given else Task(name, "choice", labels=("a", "b"))
        return hub.publish(draft, manifest, edges=edges, task=task, serve=serve)


@pytest.fixture
def shared(hub: Registry) -> Registry:
    """Task payers; risk saw two of its rows and one in another spelling, twin its very file, trains none of it."""
    teach(hub, "payers", OURS, sha="1" * 64)
    teach(hub, "risk", [*THEIRS[:1], OURS[1], f"  {OURS[2].upper()} "], sha="2" * 64)
    teach(hub, "twin", [], sha="1" * 64, kept=0)
    teach(hub, "trains", THEIRS, sha="3" * 64)
    teach(hub, "both", [], kept=0, kind="merged", takes_over=["risk", "trains"], serve=False,
          edges=[("risk@v1", "merged_from"), ("trains@v1", "merged_from")])  # fmt: skip
    teach(hub, "later", ["something new"], strategy="replay", learned_from=["risk"], read_from=["risk@v1"])
    run = hub.runs_dir / "more-1"
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"verb": "add-task", "name": "more", "sha256": "1" * 64}))
    return hub


def test_the_plan_names_every_version_that_saw_the_rows(shared: Registry) -> None:
    plan = look(shared, "payers")
    assert [version.ref for version in plan.versions] == ["payers@v1"]
    assert dict(plan.shared) == {
        "risk@v1": "trained on 2 of the rows that payers was trained on",
        "twin@v1": "trained on the same file as payers",
        "runs/more-1": "an unfinished run on the same file as payers",
    }
    assert plan.to_json()["shared"] == dict(plan.shared)
    assert look(shared, "trains").shared == {"risk@v1": "trained on 1 of the rows that trains was trained on"}


def test_nothing_goes_until_somebody_says_what_is_to_become_of_them(shared: Registry) -> None:
    with pytest.raises(UsageError, match="risk@v1 was trained on 2 of the rows") as caught:
        forget(shared, "payers")
    assert "--everywhere" in caught.value.hint
    assert "--leave-shared" in caught.value.hint
    assert not (shared.path / "tombstones").exists()
    assert shared.get("payers").ref == "payers@v1"


def test_everywhere_takes_them_and_what_was_made_of_them(shared: Registry) -> None:
    done = forget(shared, "payers", everywhere=True)
    assert {v.ref for v in done.versions} == {"payers@v1", "risk@v1", "twin@v1", "both@v1", "later@v1"}
    assert [record.ref for record in shared.adapters()] == ["trains@v1"]
    assert not (shared.runs_dir / "more-1").exists()
    proof = prove(shared, "payers")
    assert (proof.ok, proof.found) == (True, ())
    assert shared.verify() == []


def test_those_that_are_left_are_named_by_the_proof(shared: Registry) -> None:
    forget(shared, "payers", everywhere=False)
    assert {record.name for record in shared.adapters()} == {"both", "later", "risk", "trains", "twin"}
    proof = prove(shared, "payers")
    assert not proof.ok
    assert {(find.path, find.what) for find in proof.found} == {
        ("adapters/risk/v1", "risk@v1, trained on 2 of its rows"),
        ("adapters/twin/v1", "twin@v1, trained on the same data file"),
    }


def test_one_that_learns_the_rows_later_is_found(hub: Registry) -> None:
    teach(hub, "payers", OURS, sha="1" * 64)
    forget(hub, "payers")
    assert prove(hub, "payers").ok
    teach(hub, "fresh", [*THEIRS, OURS[0].lower()], sha="9" * 64, kept=0)
    found = [find.what for find in prove(hub, "payers").found if find.offset is None]
    assert found == ["fresh@v1, trained on 1 of its rows"]


def test_a_removal_that_was_stopped_keeps_to_what_was_said(shared: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def fault(reached: str) -> None:
        if reached == "rows erased":
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(drafts, "fault", fault)
        with pytest.raises(Killed):
            forget(shared, "payers", everywhere=True)
    forget(shared, "payers")
    assert [record.ref for record in shared.adapters()] == ["trains@v1"]
    assert prove(shared, "payers").ok


def test_rows_are_told_as_a_drop_tells_them(tmp_path: Path) -> None:
    _seen.write(tmp_path, [Example("One  two", "a"), Example("ONE two", "b"), Example("", "x", "say it")])
    assert len(_seen.read(tmp_path)) == 2
    assert (tmp_path / _seen.FILE_NAME).stat().st_size == 16
    many = [Example(str(number), "a") for number in np.arange(5000)]
    _seen.write(tmp_path, many)
    assert len(_seen.read(tmp_path)) == 5000
