"""The benchmark of streams on a language model: its rows, its scores, its jobs and its page."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from benchmark_modules import forget
from filelock import FileLock

PLACE = Path(__file__).parents[3] / "examples/benchmarks/llm"


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """The benchmark's modules, which import each other by their bare names."""
    forget()
    monkeypatch.syspath_prepend(str(PLACE.parent))
    monkeypatch.syspath_prepend(str(PLACE))
    names = ("streams", "llm_page", "machine", "resumable")
    yield {name: __import__(name) for name in names}
    forget()


@pytest.fixture
def texts(modules: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Two tasks with forty rows each, one of whose training rows is a test row of the other."""
    root = tmp_path / "data"
    monkeypatch.setattr(modules["streams"], "DATA", root)
    for group, task in (("cl15", "news"), ("superni", "sciq")):
        folder = root / group / task
        folder.mkdir(parents=True)
        for split, count in (("train", 40), ("test", 10)):
            rows = [{"instruction": "Say.", "input": f"{task} {split} {k}", "output": "x"} for k in range(count)]
            if (task, split) == ("news", "train"):
                rows += [{"instruction": "Say.", "input": f"sciq test {k}", "output": "x"} for k in range(10)]
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return tmp_path


def test_every_method_gets_the_same_rows_and_no_test_row(modules: dict[str, Any], texts: Path) -> None:
    streams = modules["streams"]
    drawn = {}
    for seed in (0, 1):
        streams.write_rows(texts / str(seed), ("news", "sciq"), streams.Budget(50, 5, 1), seed)
        files = sorted((texts / str(seed)).iterdir())
        drawn[seed] = {p.name: [json.loads(line)["input"] for line in p.read_text().splitlines()] for p in files}
    held = {text for name, found in drawn[0].items() if "test" in name for text in found}
    assert held
    assert not held & {text for name, found in drawn[0].items() if "train" in name for text in found}
    assert drawn[0]["news.test.jsonl"] == drawn[1]["news.test.jsonl"]
    assert drawn[0]["news.train.jsonl"] != drawn[1]["news.train.jsonl"]
    assert len(drawn[0]["sciq.train.jsonl"]) == 40
    assert (streams.labels_of(texts / "0", "news"), streams.labels_of(texts / "0", "sciq")) == (("x",), ())


def test_scores(modules: dict[str, Any]) -> None:
    streams = modules["streams"]
    rows = [{"output": "the cat sat", "references": ["a dog ran"]}, {"output": "two words"}]
    assert streams.scored("sciq", rows, ["a dog ran", "two"]) == pytest.approx((1.0 + 2 / 3) / 2)
    assert streams.scored("agnews", [{"output": "a"}, {"output": "b"}], ["a", "a"]) == 0.5


def row(method: str, seed: int, scores: list[float], **more: Any) -> dict[str, Any]:
    common = {"base": "/m/smol", "quantization": "none", "rows": 8, "tests": 4, "epochs": 1, "max_length": 256}
    found = {
        "stream": "order1",
        "method": method,
        "seed": seed,
        "scores": scores,
        "ap": sum(scores) / 4,
        "seconds": 1.0,
    }
    return {**common, **found, "peak_mb": 900, "machine": "a Xeon", "tasks": [], **more}


def test_the_page_ranks_the_methods_and_says_what_is_kept(modules: dict[str, Any]) -> None:
    routing = {"whole": 1.0, "bare": 0.5}
    rows = [
        row("base", 0, [0.1, 0.1, 0.1, 0.1]),
        row("ours", 0, [0.8, 0.8, 0.8, 0.8], oracle=[0.8] * 4, bare=[0.4] * 4, routing=routing, bwt=0.0,
            base_rise=0.25, train_seconds=60.0),
        row("sequential", 0, [0.2, 0.2, 0.2, 0.6], bwt=-0.5, base_rise=1.0, train_seconds=30.0),
        row("sequential", 1, [0.4, 0.4, 0.4, 0.8], bwt=-0.3, base_rise=1.0, train_seconds=30.0),
    ]  # fmt: skip
    page = modules["llm_page"].page(rows)
    table = [line for line in page.splitlines() if line.startswith("| ")]
    ours = next(k for k, line in enumerate(table) if "routed, whole prompt" in line)
    other = next(k for k, line in enumerate(table) if line.startswith("| sequential"))
    assert ours < other
    assert "| sequential | 40.0 ± 14.1 | -40.0 ± 14.1 | +1.00 | 0.5 min | 900 MB | 2 |" in page
    assert "| of the score with the task named (bare input) | 50.0 |" in page
    assert "| right task found (whole prompt) | 100.0 |" in page
    assert "## cl15, order 1, 8 rows each" in page


def test_runs_with_other_budgets_stand_in_tables_of_their_own(modules: dict[str, Any]) -> None:
    rows = [row("base", 0, [0.1] * 4), row("sequential", 0, [0.2] * 4, rows=160, machine="an EPYC")]
    page = modules["llm_page"].page(rows)
    few, many = page.index("order 1, 8 rows each"), page.index("order 1, 160 rows each")
    assert few < page.index("| base | 10.0") < many < page.index("| sequential | 20.0")
    assert "a Xeon; an EPYC" in page
    assert "--rows 8 " in page
    assert "--rows 160 " in page


def test_what_stands_on_another_run_waits_for_it(modules: dict[str, Any], tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("llm_main", PLACE / "__main__.py")
    assert spec is not None
    assert spec.loader is not None
    main = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(main)
    for folder in ("results", "locks"):
        (tmp_path / folder).mkdir()
    ours, other = ("order1", "ours", 0), ("order1", "multitask", 0)
    assert main.is_ready(tmp_path, ours, [ours, other])
    assert not main.is_ready(tmp_path, other, [ours, other]), "this process has yet to make it"
    assert main.is_ready(tmp_path, other, [other]), "nobody makes it, which its run says"
    with FileLock(tmp_path / "locks" / "order1-ours-0.lock"):
        assert not main.is_ready(tmp_path, other, [other]), "another process is at it"
    (tmp_path / "results" / "order1-ours-0.json").write_text("{}")
    assert main.is_ready(tmp_path, other, [ours, other])


def test_runs_of_another_machine_are_taken_over_where_the_settings_are_the_same(
    modules: dict[str, Any], tmp_path: Path
) -> None:
    asked = {"base": "/here/model", "rows": 8}
    resumable = modules["resumable"]
    resumable.prepare(tmp_path, asked)
    rows = [
        {"stream": "superni", "method": "ours", "seed": 0, "base": "/there/model", "rows": 8, "ap": 0.5},
        {"stream": "superni", "method": "ours", "seed": 1, "base": "/there/model", "rows": 9, "ap": 0.6},
        {"stream": "superni", "method": "ours", "seed": 2, "base": "/there/other", "rows": 8, "ap": 0.7},
    ]
    page = tmp_path / "llm.json"
    page.write_text(json.dumps(rows), encoding="utf-8")
    resumable.take_over(page, tmp_path, ("stream", "method", "seed"))
    assert resumable.results(tmp_path) == [{**rows[0], "base": "/here/model"}]
    page.write_text("{}x", encoding="utf-8")
    with pytest.raises(SystemExit, match=r"llm\.json is no page"):
        resumable.take_over(page, tmp_path, ("stream", "method", "seed"))
