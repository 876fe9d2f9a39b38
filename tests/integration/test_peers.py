"""examples/benchmarks/peers: its ways on pico models, its page, and what it says where something is missing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PEERS = ROOT / "examples" / "benchmarks" / "peers"
TICKETS = ("--task", "adapterhub_cl/demo/tickets")
FEW = (*TICKETS, "--train-rows", "16", "--test-rows", "8", "--epochs", "1", "--batch-size", "8", "--max-length", "64")


def peers(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(PEERS), *words], cwd=ROOT, capture_output=True, text=True, check=False, timeout=600
    )


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(PEERS))
    import page  # type: ignore[import-not-found]

    return page


def section(base: str, table: str, speed: float) -> dict[str, Any]:
    row = {
        "way": "a",
        "told": f"way at {speed}",
        "examples_per_second": speed,
        "cpu_seconds": 10 / speed,
        "accuracy": 0.5,
        "peak_mb": 1000.0,
        "training_mb": 100.0,
        "rounds": [speed, speed],
        "accuracies": [0.4, 0.6],
    }
    twice = {**row, "told": "another", "examples_per_second": 2 * speed, "cpu_seconds": 4 / speed}
    return {
        "base": base,
        "base_told": base,
        "task": "data/news",
        "task_told": "news",
        "table": table,
        "command": "python examples/benchmarks/peers",
        "machine": "a machine",
        "settings": {"epochs": 1, "test rows": 100},
        "versions": {"torch": "2"},
        "rows": [row, twice, {"way": "b", "told": "missing", "why": "is not installed"}],
    }


def test_several_calls_make_one_page(page: ModuleType, tmp_path: Path) -> None:
    for one in (section("tiny", "ways", 3.0), section("bert", "ways", 7.0), section("tiny", "ablation", 5.0)):
        page.write(one, tmp_path)
    page.write(section("tiny", "ways", 11.0), tmp_path)  # in the place of the first
    stored = json.loads((tmp_path / "peers.json").read_text(encoding="utf-8"))
    assert [(one["base"], one["table"]) for one in stored] == [("bert", "ways"), ("tiny", "ablation"), ("tiny", "ways")]
    text = (tmp_path / "peers.md").read_text(encoding="utf-8")
    assert "| way at 11.0 | 11.0 | 1.00× | 1.00× | – | – | 50.0% | 1,000 | 100 |  |" in text
    assert "| another | 22.0 | 2.00× | 2.50× |" in text
    assert "| missing | – | – | – | – | – | – | – | – | is not installed |" in text
    assert "An accuracy of 100 rows is known to ±10 points." in text
    assert "way at 3.0" not in text
    fewer = section("tiny", "ways", 13.0)
    fewer["rows"] = fewer["rows"][:2]
    with pytest.raises(SystemExit, match="has missing besides; run all ways"):
        page.write(fewer, tmp_path)
    assert (tmp_path / "peers.md").read_text(encoding="utf-8") == text
    assert {path.name for path in tmp_path.iterdir()} == {"peers.json", "peers.md"}


@pytest.mark.parametrize("broken", ['[{"base": "tiny"', '{"runs": []}', "[1]", '[{"base_told": "tiny"}]'])
def test_a_page_that_is_broken_is_refused_before_anything_is_trained(
    page: ModuleType, tmp_path: Path, broken: str
) -> None:
    (tmp_path / "peers.json").write_text(broken, encoding="utf-8")
    with pytest.raises(SystemExit, match="is broken; move it away"):
        page.read(tmp_path)
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(SystemExit, match="give -o a folder"):
        page.read(tmp_path / "file")


def test_nothing_is_compared_with_a_way_that_failed(page: ModuleType) -> None:
    failed = section("tiny", "ways", 3.0)
    failed["rows"].insert(0, {"way": "c", "told": "first", "why": "failed"})
    assert [row[1:4] for row in page.rows_of(failed)] == [("–",) * 3, ("3.0", "–", "–"), ("6.0", "–", "–"), ("–",) * 3]


@pytest.mark.integration
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--task", "nowhere"), "peers: no data: nowhere.train.jsonl is not there"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ((*TICKETS, "--base", "/nowhere"), "peers: "),
                ((*TICKETS, "--ways", "trainer"), "peers: no way 'trainer'; known: trainer-fp32"),
                (("--task", "DATA/raw"), "peers: DATA/raw: no label column was found in the training rows"),
                (("--task", "DATA/strange"), "peers: DATA/strange/test.jsonl line 1: 'martian' not among the labels"),
            )
        ),
    ],
)
def test_what_is_missing_is_said_in_a_line(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    rows = {
        "raw": ([{"text": f"row {k}"} for k in range(8)], [{"text": "another"}]),
        "strange": (
            [{"text": f"row {k}", "label": "ab"[k % 2]} for k in range(8)],
            [{"text": "c", "label": "martian"}],
        ),
    }
    for name, files in rows.items():
        (tmp_path / name).mkdir()
        for kind, found in zip(("train", "test"), files, strict=True):
            text = "".join(json.dumps(row) + "\n" for row in found)
            (tmp_path / name / f"{kind}.jsonl").write_text(text, encoding="utf-8")
    words = tuple(word.replace("DATA", str(tmp_path)) for word in words)
    said = said.replace("DATA", str(tmp_path))
    done = peers(*words)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith(said)


@pytest.mark.slow
def test_the_ways_run_on_a_causal_base(pico_path: Callable[[str], Path], tmp_path: Path) -> None:
    base = str(pico_path("llama"))
    done = peers(*FEW, "--base", base, "--ways", "trainer-fp32,trl,ours-nf4", "-o", str(tmp_path))
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "peers.json").read_text(encoding="utf-8"))[0]["rows"]
    assert [row["way"] for row in rows] == ["trainer-fp32", "trl", "ours-nf4"]
    assert all("why" not in row and row["train_rows"] == 16 for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "own"), [("llama", "all-positions"), ("bert", "own-dropout")])
def test_the_ablations_run(kind: str, own: str, pico_path: Callable[[str], Path], tmp_path: Path) -> None:
    ways = f"ours,fp32,sdpa,eager,peft-layers,random-batches,max-length,{own}"  # compiling takes a minute
    done = peers(*FEW, "--base", str(pico_path(kind)), "--ablate", "--ways", ways, "-o", str(tmp_path))
    assert done.returncode == 0, done.stderr
    rows = {row["way"]: row for row in json.loads((tmp_path / "peers.json").read_text(encoding="utf-8"))[0]["rows"]}
    assert ",".join(rows) == ways
    assert not [row for row in rows.values() if "why" in row]
    assert rows["sdpa"]["attention"] == "sdpa"
    assert rows["eager"]["attention"] == "eager"


@pytest.mark.slow
def test_an_encoder_has_no_language_models_trainer(pico_path: Callable[[str], Path], tmp_path: Path) -> None:
    done = peers(*FEW, "--base", str(pico_path("bert")), "--ways", "trainer-bf16,trl,ours-16bit", "-o", str(tmp_path))
    assert done.returncode == 0, done.stderr
    first, left, last = json.loads((tmp_path / "peers.json").read_text(encoding="utf-8"))[0]["rows"]
    assert "encoder" in left["why"]
    assert first["learning_rate"] == last["learning_rate"]
