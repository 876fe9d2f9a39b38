"""`forget-task` and `verify --forgotten`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_support import Cl, mood_rows
from filelock import FileLock
from safetensors.numpy import save_file

from adapterhub_cl.registry import Registry
from adapterhub_cl.types import AdapterRecord, Task

Teach = Callable[..., AdapterRecord]
TEXT = 'Gemüse ist teuer geworden, and so is "everything" else in the market hall'


@pytest.fixture
def teach(registry: Registry) -> Teach:
    """Publishes a version with real tensors and samples."""

    def run(name: str, task: str, *texts: str, seed: int = 0, **given: Any) -> AdapterRecord:
        edges = given.pop("edges", ())
        rows = [json.dumps({"instruction": "", "input": t, "output": "positive"}, ensure_ascii=False) for t in texts]
        random = np.random.default_rng(seed)
        with registry.new_draft(name) as draft:
            (draft.path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
            save_file({"w": random.standard_normal((8, 8))}, draft.path / "adapter_model.safetensors")
            (draft.path / "replay.jsonl").write_text("".join(row + "\n" for row in rows), encoding="utf-8")
            manifest = {"kind": "trained", "rank": 8, "strategy": "isolated", "learned_from": [], **given}
            spec = Task(task, "choice", labels=("negative", "positive")) if task else None
            return registry.publish(draft, manifest, edges=edges, task=spec, verb="add-task")

    return run


@pytest.fixture
def hub(registry: Registry, teach: Teach) -> Path:
    teach("news", "news", TEXT, "a second line of news that is long enough", seed=1)
    teach("mood", "mood", TEXT, "nothing of the kind, but long enough too", seed=2)
    edges = [("news@v1", "merged_from"), ("mood@v1", "merged_from")]
    recipe = {"verb": "merge", "parents": ["news@v1", "mood@v1", "calm@v1"]}
    teach("calm", "calm", "something else altogether, and long enough", seed=5)
    teach("both", "", seed=3, kind="merged", takes_over=["news", "mood"], recipe=recipe, edges=edges)
    teach("solo", "solo", seed=4, strategy="replay", learned_from=["news"])
    return registry.path


def files_of(path: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in path.rglob("*") if p.is_file() and p.name != ".lock"}


def test_it_lists_asks_removes_and_proves(cl: Cl, hub: Path) -> None:
    at = ("--hub", hub)
    before = files_of(hub)
    looked = cl("forget-task", "news", "--dry-run", "--retire", *at)
    assert (looked.code, files_of(hub)) == (0, before)
    for said in ("news@v1", "made for news", "both@v1", "answers for news", "2, and with the same input 1 of mood@v1"):
        assert said in looked.out
    assert "WARNING: solo loses its only adapter" in looked.out
    alone = cl("forget-task", "news", "--retire", *at)
    assert (alone.code, files_of(hub)) == (2, before)
    assert "--yes" in alone.err
    no = cl("forget-task", "news", "--retire", *at, stdin="n\n", terminal=True)
    assert (no.code, files_of(hub)) == (1, before)
    assert "leave solo without an adapter?" in no.err
    yes = cl("forget-task", "news", "--retire", *at, stdin="y\n", terminal=True)
    assert yes.code == 0
    assert "forgot news: 3 versions removed" in yes.out
    assert "verify --forgotten news" in yes.err
    assert "nobody answers for solo now" in yes.out
    proof = cl("verify", "--forgotten", "news", *at)
    assert proof.code == 0
    assert proof.out.startswith("forgot news: nothing of 2 samples and 3 tensors is left in ")
    assert [row["ref"] for row in cl("list", "--json", *at).json] == ["calm@v1", "mood@v1"]
    assert not any(TEXT.encode() in data or b"market hall" in data for data in files_of(hub).values())
    assert cl("verify", *at).out == "ok\n"


def test_as_json(cl: Cl, hub: Path) -> None:
    at = ("--hub", hub, "--json")
    looked = cl("forget-task", "news", "--dry-run", "--retire", *at).json
    assert (looked["dry_run"], looked["tombstone"]) == (True, None)
    done = cl("forget-task", "news", "--yes", "--retire", *at).json
    keys = {"task", "versions", "samples", "evaluations", "runs", "streams", "tasks_without_adapter", "tombstone"}
    assert keys <= done.keys()
    assert {v["ref"]: v["does"] for v in done["versions"]} == {
        "news@v1": "removed",
        "both@v1": "retired",
        "solo@v1": "retired",
    }
    assert {tuple(sorted(v)) for v in done["versions"]} == {("does", "ref", "replacement", "why")}
    assert (done["task"], done["samples"], done["tasks_without_adapter"]) == ("news", 2, ["solo"])
    assert (hub / "tombstones" / done["tombstone"]).is_file()
    proof = cl("verify", "--forgotten", "news", *at).json
    assert (proof["ok"], proof["found"], proof["samples"]) == (True, [], 2)


def test_what_is_left_is_listed_and_the_exit_code_says_so(cl: Cl, hub: Path) -> None:
    at = ("--hub", hub)
    cl("forget-task", "news", "--yes", "--retire", *at)
    (hub / "notes.txt").write_text(json.dumps({"seen": TEXT}))
    said = cl("verify", "--forgotten", "news", *at)
    assert said.code == 1
    assert "notes.txt at byte " in said.out
    assert "of a sample of news" in said.out
    found = cl("verify", "--forgotten", "news", *at, "--json")
    assert (found.code, found.json["ok"], found.json["found"][0]["path"]) == (1, False, "notes.txt")


def test_derived_adapters_are_made_again(cl: Cl, hub: Path, teach: Teach, monkeypatch: pytest.MonkeyPatch) -> None:
    from adapterhub_cl.facade.erasing import Erasing

    def repeat(record: AdapterRecord, gone: object) -> AdapterRecord:
        edges = [("mood@v1", "merged_from")]
        return teach(record.name, "", seed=9, kind="merged", takes_over=["mood"], edges=edges)

    monkeypatch.setattr(Erasing, "_repeat", lambda self, reporter: repeat)
    assert "re-derived" in cl("forget-task", "news", "--dry-run", "--hub", hub).out
    said = cl("forget-task", "news", "--yes", "--hub", hub)
    assert "both@v1 was made again without news: both@v2" in said.out
    assert cl("verify", "--forgotten", "news", "--hub", hub).code == 0


def test_names_that_cannot_be_forgotten(cl: Cl, hub: Path) -> None:
    at = ("--hub", hub)
    unknown = cl("forget-task", "mod", "--yes", *at)
    assert unknown.code == 2
    assert "did you mean mood?" in unknown.err
    early = cl("verify", "--forgotten", "news", *at)
    assert early.code == 2
    assert "has not been forgotten" in early.err
    assert cl("verify", "--forgotten", "news", "--repair", *at).code == 2
    cl("forget-task", "news", "--yes", "--retire", *at)
    again = cl("forget-task", "news", "--yes", *at)
    assert again.code == 2
    assert "it was forgotten on" in again.err


def test_learned_again_is_said(cl: Cl, hub: Path, teach: Teach) -> None:
    cl("forget-task", "news", "--yes", "--retire", "--hub", hub)
    teach("news", "news", "a wholly new line of news, and long enough", seed=7)
    said = cl("verify", "--forgotten", "news", "--hub", hub)
    assert said.code == 1
    assert "was forgotten on" in said.err
    assert f"hint: forget it again: cl-adapter --hub {hub} forget-task news" in said.err


def test_a_run_that_is_going_on_stops_it(cl: Cl, hub: Path) -> None:
    run = hub / "runs" / "news-1"
    run.mkdir()
    (run / "run.json").write_text('{"verb": "add-task", "name": "news"}')
    with FileLock(run / ".lock"):
        said = cl("forget-task", "news", "--yes", "--retire", "--hub", hub)
    assert said.code == 1
    assert "another process is working on the run news-1 of news; nothing was removed" in said.err
    assert (hub / "adapters" / "news" / "v1").exists()


def test_looking_proving_and_removing_load_no_torch(hub: Path, tmp_path: Path) -> None:
    for line in ("forget-task news --dry-run --retire", "forget-task news --yes --retire", "verify --forgotten news"):
        code = (
            "import sys; from cl_adapter.__main__ import main; code = main(sys.argv[1:]);"
            "print('torch' in sys.modules, file=sys.stderr); sys.exit(code)"
        )
        argv = [sys.executable, "-c", code, *line.split(), "--hub", str(hub)]
        done = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert (done.returncode, done.stderr.splitlines()[-1]) == (0, "False"), done.stderr


@pytest.mark.integration
def test_a_trained_adapter_is_forgotten(cl: Cl, trained: Path) -> None:
    weights = (trained / "adapters" / "mood" / "v1" / "adapter_model.safetensors").read_bytes()
    texts = [row["text"].encode() for row in mood_rows(60)]
    kept = [text for text in texts if any(text in data for data in files_of(trained).values())]
    assert kept
    assert cl("forget-task", "mood", "--yes", "--hub", trained).code == 0
    proof = cl("verify", "--forgotten", "mood", "--hub", trained, "--json").json
    assert proof["ok"]
    assert proof["samples"] > 0
    assert proof["tensors"] > 0
    left = files_of(trained).values()
    assert not any(text in data for text in kept for data in left)
    middle = len(weights) // 2
    assert not any(weights[at : at + 64] in data for at in (middle, middle + 999, len(weights) - 64) for data in left)
    assert cl("list", "--json", "--hub", trained).json == []
    assert cl("verify", "--hub", trained).code == 0


def test_a_task_that_is_not_alone_with_its_rows(cl: Cl, registry: Registry, teach: Teach, tmp_path: Path) -> None:
    data = {"training": {"data": {"sha256": "1" * 64, "source": "x.jsonl"}}}
    teach("news", "news", "the first line of news, long enough", seed=1, **data)
    teach("twin", "twin", "the second line of news, long enough", seed=2, **data)
    at, key = ("--hub", registry.path), tmp_path / "keys" / "the.key"
    looked = cl("forget-task", "news", "--dry-run", *at)
    assert (looked.code, "WARNING: twin@v1 stays, and knows the rows" in looked.out) == (0, True)
    assert cl("forget-task", "news", "--dry-run", "--json", *at).json["shared"].keys() == {"twin@v1"}
    before = files_of(registry.path)
    for words in (("--yes",), ("--yes", "--json"), ("--yes", "--everywhere", "--leave-shared")):
        assert (cl("forget-task", "news", *words, *at).code, files_of(registry.path)) == (2, before)
    assert "--everywhere" in cl("forget-task", "news", "--yes", *at).err
    done = cl("forget-task", "news", "--leave-shared", "--yes", "--key", key, *at)
    assert (done.code, str(key) in done.err) == (0, True), done.err
    lost = cl("verify", "--forgotten", "news", *at)
    assert (lost.code, "--key FILE" in lost.err) == (1, True)
    proof = cl("verify", "--forgotten", "news", "--key", key, *at)
    assert (proof.code, "twin@v1, trained on the same data file" in proof.out) == (1, True)
    gone = cl("forget-task", "twin", "--everywhere", "--yes", "--key", key, "--json", *at)
    assert (gone.code, gone.json["shared"]) == (0, {})
    assert cl("verify", "--forgotten", "news", "--key", key, *at).code == 0
    assert cl("verify", "--key", key, *at).code == 2


def test_a_weak_tombstone_is_mended_by_repair(cl: Cl, hub: Path) -> None:
    at = ("--hub", hub)
    assert cl("forget-task", "news", "--retire", "--yes", *at).code == 0
    path = hub / "tombstones" / "news.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 1, "key": ""}))
    said = cl("verify", *at)
    assert "its hashes are weak" in said.out
    mended = cl("verify", "--repair", *at)
    assert "protected the hashes of tombstones/news.json with the key" in mended.err
    assert json.loads(path.read_text())["key"]
    assert "weak" not in mended.out
