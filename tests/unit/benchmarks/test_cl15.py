"""The stream benchmark: what it runs, on what rows, and the pages that it writes."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from benchmark_modules import forget

from adapterhub_cl.registry import files

PLACE = Path(__file__).parents[3] / "examples/benchmarks/cl15"


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """The benchmark's modules, imported as when its folder is run."""
    import importlib.util

    forget()
    monkeypatch.syspath_prepend(str(PLACE.parent))
    monkeypatch.syspath_prepend(str(PLACE))
    found = {name: __import__(name) for name in ("orders", "jobs", "results", "pages")}
    spec = importlib.util.spec_from_file_location("cl15_main", PLACE / "__main__.py")
    assert spec is not None
    assert spec.loader is not None
    main = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(main)
    yield {**found, "main": main}
    forget()


@pytest.fixture
def texts(tmp_path: Path, modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Data of two tasks: one with dev rows and a larger training file, one with neither."""
    monkeypatch.setattr(modules["orders"], "DATA", tmp_path)

    def write(path: str, *inputs: str) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        rows = [{"instruction": "Which?", "input": text, "output": "a"} for text in inputs]
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (tmp_path / path).write_text("\n".join(lines) + "\n", encoding="utf-8")

    write("cl15/news/train.jsonl", *(f"news {k}" for k in range(40)))
    write("cl4/news/train.jsonl", *(f"more {k}" for k in range(100)), "shared\u2028line")
    write("cl15/news/dev.jsonl", "dev 1", "dev 2")
    write("cl15/news/test.jsonl", *(f"test {k}" for k in range(30)))
    write("cl15/facts/train.jsonl", *(f"fact {k}" for k in range(50)), "test 3")
    write("cl15/facts/test.jsonl", "shared\u2028line", "fact test")
    return tmp_path


def inputs(folder: Path, name: str) -> list[str]:
    text = (folder / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line)["input"] for line in text.split("\n") if line]


def test_nothing_that_is_tested_on_is_learned_under_any_task(
    texts: Path, modules: dict[str, ModuleType], tmp_path: Path
) -> None:
    orders = modules["orders"]
    budget = orders.Budget(passes=1, max_length=8, large=True)
    orders.write_data(tmp_path / "out", ("news", "facts"), budget)
    news, facts = inputs(tmp_path / "out", "news.train"), inputs(tmp_path / "out", "facts.train")
    assert len(news) == 100, "the larger file, without the line that facts is tested on"
    assert len(facts) == 50, "without the line that news is tested on"
    assert len(inputs(tmp_path / "out", "news.test")) == 30
    assert [row["input"] for row in orders.tested(tmp_path / "out", "facts")] != []


def test_dev_rows_are_held_out_where_a_task_has_none(
    texts: Path, modules: dict[str, ModuleType], tmp_path: Path
) -> None:
    orders = modules["orders"]
    orders.write_data(tmp_path / "out", ("news", "facts"), orders.Budget(passes=1, max_length=8), "dev")
    assert set(inputs(tmp_path / "out", "news.test")) == {"dev 1", "dev 2"}
    held = inputs(tmp_path / "out", "facts.test")
    assert len(held) == 11
    assert not set(held) & set(inputs(tmp_path / "out", "facts.train"))


def test_small_tasks_get_more_epochs_and_a_share_is_of_the_rows(modules: dict[str, ModuleType]) -> None:
    orders = modules["orders"]
    budget = orders.Budget(passes=2000, max_length=8)
    assert [budget.epochs(rows) for rows in (250, 400, 1000, 5000)] == [8, 5, 2, 1]
    assert [orders.kept(orders.BY_NAME["replay 5%"], rows) for rows in (1000, 4)] == ["balanced:50", "balanced:1"]
    assert orders.kept(orders.OURS, 1000) == "balanced:200"


def test_every_method_is_run_in_every_order_that_it_depends_on(modules: dict[str, ModuleType], tmp_path: Path) -> None:
    runs, methods = modules["jobs"], modules["orders"].METHODS
    jobs = list(runs.jobs_of(tmp_path, list("123456"), [], [0, 1, 2]))
    names = [job.name for job in jobs]
    assert len(names) == len(set(names))
    for method in methods:
        mine = [(job.order, job.seed) for job in jobs if job.method is method]
        short = [(order, seed) for order, seed in mine if order in "123"]
        if method.name == "zero-shot":
            assert short == [("1", 0)]
        elif method.name in runs.LONG_ONLY:
            assert short == []
        elif method.name in runs.ONCE:
            assert sorted(seed for _, seed in short) == [0, 1, 2]
        else:
            assert len(short) == 9
        assert ("4", 0) in mine
        if method.name in runs.EVERYWHERE:
            assert [seed for order, seed in mine if order == "4"] == [0, 1, 2]
    first = [job for job in jobs if job.method.name == "ewc"][:3]
    assert [(job.order, job.seed) for job in first] == [("1", 0), ("2", 1), ("3", 2)], "the telling ones first"
    assert all(job.budget == ("short" if job.order in "123" else "long") for job in jobs)


def test_what_is_made_of_ours_waits_for_it(modules: dict[str, ModuleType], tmp_path: Path) -> None:
    jobs = modules["jobs"]
    (job,) = jobs.jobs_of(tmp_path, ["1"], ["distilled"], [0])
    assert not job.ready
    job.source.mkdir(parents=True)
    (job.source / "stage-4.json").write_text("{}")
    assert job.ready


def run_of(method: str, order: str, seed: int, **more: Any) -> dict[str, Any]:
    """What a run writes."""
    tasks = ["a", "b"]
    matrix = [[0.9, None], [0.7, 0.8]]
    return {
        "method": method, "order": order, "seed": seed, "trial": None, "base": "/x/minilm/model", "options": {},
        "quantization": "none", "rate": 1.0, "budget": {"passes": 2, "max_length": 64, "rows": 0, "large": True,
        "test_rows": 9, "rank": 16, "learning_rate": 1e-3}, "tasks": tasks, "matrix": matrix, "average_accuracy": 0.75,
        "bwt": -0.2, "forgetting": 0.2, "seconds": 60.0, "smoke": False, "parameters": 10, "stored_mb": 1.5,
        "peak_mb": 900, "wall_seconds": 90.0, **more,
    }  # fmt: skip


@pytest.fixture
def short(modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    """Orders 1 and 2 have the two tasks of `run_of`."""
    for order in "12":
        monkeypatch.setitem(modules["orders"].ORDERS, order, ("a", "b"))


def stored(work: Path, *rows: dict[str, Any]) -> None:
    """Rows where runs leave them."""
    (work / "results").mkdir(exist_ok=True)
    for row in rows:
        name = f"order{row['order']}-{row['method']}-seed{row['seed']}"
        (work / f"results/{name}.json").write_text(json.dumps(row))


def test_the_page_has_every_method_with_its_spread_and_ours_against_the_oracle(
    modules: dict[str, ModuleType], short: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shares = {"whole": 1.0, "bare": 0.9}
    ours = {"given_accuracy": 0.8, "bare_accuracy": 0.6, "bare_bwt": -0.1, "routing": shares, "family": shares}
    rows = [
        run_of("ours", "1", 0, **ours),
        run_of("sequential", "1", 0, average_accuracy=0.5),
        run_of("sequential", "2", 1, average_accuracy=0.3),
        run_of("slao", "2", 2),
        {k: v for k, v in run_of("distilled", "1", 0, scores=[0.6, 0.6], given_accuracy=0.61).items() if k != "matrix"},
    ]
    stored(tmp_path, *rows)
    modules["pages"].write(tmp_path, tmp_path / "out")
    page = (tmp_path / "out/cl15.md").read_text()
    assert "| sequential | 40.0 ± 14.1 | – | 50.0 | 30.0 | – | -20.0 ± 0.0 |" in page
    assert "**4 of 82 planned runs are done** (" in page
    assert ", and 1 of 100 further ones" in page
    assert "\n\nMissing are:\n\n- order 1, seed 0: kin, replay 5%, merged, multitask, zero-shot, " in page
    assert "| 1.0 min | 1.5 min | 900 MB |" in page
    assert "![AP of every method](cl15_ap.png)" in page
    assert "| **ours**: isolated + analytic router | 80.0 | 75.0 |" in page
    assert "| of the oracle's AP (whole prompt) | 93.8 |" in page
    assert "| distilled | 60.0 | 60.0 |" in page
    kept = json.loads((tmp_path / "out/cl15.json").read_text())["runs"]
    assert sorted(row["method"] for row in kept) == ["distilled", "ours", "sequential", "sequential", "slao"]
    assert (tmp_path / "out/cl15_ap.png").stat().st_size > 1000
    assert "AP" in capsys.readouterr().out


def test_runs_of_another_machine_are_taken_over_where_they_were_asked_the_same(
    modules: dict[str, ModuleType], short: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    orders, results = modules["orders"], modules["results"]
    asked = {"base": "/here/minilm/model", "quantization": "none", "smoke": False}
    (tmp_path / "asked.json").write_text(json.dumps(asked))

    def known(name: str, order: str, seed: int, **more: Any) -> dict[str, Any]:
        method = orders.BY_NAME[name]
        own = {"options": dict(method.options), "rate": method.rate, "budget": asdict(orders.BUDGETS["short"])}
        return run_of(name, order, seed, **{**own, **more})

    rows = [
        known("ewc", "1", 0, average_accuracy=0.1),
        known("lwf", "1", 0),
        known("lwf", "2", 1, rate=3.0),
        known("lwf", "2", 2, base="/x/another/base"),
    ]
    page = tmp_path / "cl15.json"
    page.write_text(json.dumps({"runs": rows, "tuning": []}))
    stored(tmp_path, known("ewc", "1", 0, base="/here/minilm/model"))
    results.take_over(page, tmp_path)
    assert {path.stem for path in (tmp_path / "results").iterdir()} == {"order1-ewc-seed0", "order1-lwf-seed0"}
    mine, taken = (results.checked(tmp_path / f"results/order1-{name}-seed0.json") for name in ("ewc", "lwf"))
    assert mine["average_accuracy"] == 0.75, "what was measured here stays"
    assert taken["base"] == "/here/minilm/model"
    assert "1 runs are taken over" in capsys.readouterr().out
    (job,) = modules["jobs"].jobs_of(tmp_path, ["1"], ["lwf"], [0])
    assert results.stale(job) == []
    for broken, said in (
        ("[]", "has no runs"),
        ("{}", "has no runs"),
        ('{"runs": [1]}', "broken"),
        (json.dumps({"runs": [known("lwf", "1", 0, average_accuracy=7)]}), "broken"),
        (json.dumps({"runs": [rows[1], rows[1]]}), "stand there twice"),
        ('{"runs": [NaN]}', "NaN is no JSON"),
    ):
        page.write_text(broken)
        with pytest.raises(SystemExit, match=said):
            results.take_over(page, tmp_path)
    with pytest.raises(SystemExit, match=r"cannot be read .*--known takes"):
        results.take_over(tmp_path / "nowhere.json", tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"average_accuracy": "0.5"}, {"average_accuracy": 1.5}, {"order": "9"}, {"order": 1}, {"method": ["ours"]},
        {"peak_mb": "x"}, {"rate": None}, {"tasks": ["a"]}, {"matrix": [[0.9, None], [None, None]]}, {"seed": 1},
        {"matrix": [[0.9], [0.7, 0.8]]}, {"seconds": float("inf")}, {"method": "ours"}, {"trial": 7}, {"matrix": None},
    ],
)  # fmt: skip
def test_a_row_with_a_figure_that_cannot_be_is_refused(
    change: dict[str, Any], modules: dict[str, ModuleType], short: None, tmp_path: Path
) -> None:
    path = tmp_path / "order1-sequential-seed0.json"
    path.write_text(json.dumps(run_of("sequential", "1", 0)))
    assert modules["results"].checked(path)["method"] == "sequential"
    path.write_text(json.dumps({**run_of("sequential", "1", 0), **change}))
    with pytest.raises(SystemExit, match=r"is no (result|JSON)"):
        modules["results"].checked(path)


def test_what_was_run_with_other_settings_is_not_mixed_in_and_a_hub_that_is_needed_is_taught_again(
    modules: dict[str, ModuleType], short: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main, orders = modules["main"], modules["orders"]
    (tmp_path / "asked.json").write_text('{"base": "/x/minilm/model", "quantization": "none", "smoke": false}')
    own = {"budget": asdict(orders.BUDGETS["short"]), "options": {}}
    shares = {"whole": 1.0, "bare": 0.9}
    ours = {"given_accuracy": 0.8, "bare_accuracy": 0.6, "bare_bwt": -0.1, "routing": shares, "family": shares}
    stored(tmp_path, run_of("ours", "1", 0, **own, **ours), run_of("sequential", "1", 0, **own))
    jobs = {job.method.name: job for job in modules["jobs"].jobs_of(tmp_path, ["1"], [], [0])}
    with pytest.raises(SystemExit, match="made with another rate"):
        main.waiting_of([jobs["sequential"]], keep_hubs=False)
    assert main.waiting_of([jobs["ours"]], keep_hubs=False) == []
    assert main.waiting_of([jobs["ours"], jobs["merged"]], keep_hubs=False) == [jobs["ours"], jobs["merged"]]
    assert "order1-ours-seed0 is taught again" in capsys.readouterr().out
    assert jobs["ours"].result.with_suffix(".before").exists()


def test_what_is_made_of_ours_takes_any_hub_of_the_same_tasks_and_seed(
    modules: dict[str, ModuleType], tmp_path: Path
) -> None:
    (job,) = modules["jobs"].jobs_of(tmp_path, ["4"], ["multitask"], [0])
    assert not job.ready
    for order in ("1", "5"):
        place = tmp_path / f"hubs/order{order}-ours-seed0"
        place.mkdir(parents=True)
        (place / "stage-15.json").write_text("{}")
    assert job.ready
    assert job.source.name == "order5-ours-seed0"


def test_data_that_were_cut_off_are_not_learned(texts: Path, modules: dict[str, ModuleType], tmp_path: Path) -> None:
    orders = modules["orders"]
    budget = orders.Budget(passes=1, max_length=8)
    orders.write_data(tmp_path / "out", ("news",), budget)
    orders.write_data(tmp_path / "out", ("news",), budget)
    path = tmp_path / "out/news.train.jsonl"
    path.write_text(path.read_text()[:-30])
    with pytest.raises(SystemExit, match="is not what this budget draws"):
        orders.write_data(tmp_path / "out", ("news",), budget)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--seeds", "x"], "no seed x; there are: 0, 1, 2"),
        (["--seeds", "12"], "no seed 12; there are: 0, 1, 2"),
        (["--orders", "5", "--methods", "multitask"], "nothing to run"),
        (["--orders", "1, 9"], "no order 9"),
        (["--methods", "nope"], "no method nope; there are: ours"),
        (["--orders", "5", "--seeds", "1"], "nothing to run"),
        (["--jobs", "0"], "--jobs must be at least 1"),
    ],
)
def test_what_cannot_be_run_is_said_in_a_line(
    words: list[str], said: str, modules: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["cl15", "run", "--base", "tiny", "--work", str(tmp_path / "w"), *words])
    with pytest.raises(SystemExit, match=said):
        modules["main"].main()


def test_a_full_disk_is_said_in_a_line(
    modules: dict[str, ModuleType], short: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored(tmp_path, run_of("sequential", "1", 0))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "write_all", full)
    monkeypatch.setattr(sys, "argv", ["cl15", "table", "--work", str(tmp_path), "-o", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="no space left on"):
        modules["main"].main()


def test_a_folder_has_one_scheduler_and_one_budget(
    modules: dict[str, ModuleType], texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main, work = modules["main"], tmp_path / "w"
    monkeypatch.setattr(main, "DATA", texts)
    monkeypatch.setattr(main, "write_data", lambda *_: None)
    asked = main.argparse.Namespace(jobs=1, base="tiny", quantization="none", smoke=False, verb="run")
    with (
        main.prepared(asked, work, work),
        pytest.raises(SystemExit, match="another cl15 works in"),
        main.prepared(asked, work, work),
    ):
        pass
    monkeypatch.setitem(main.BUDGETS, "short", modules["orders"].Budget(passes=7, max_length=8))
    with main.prepared(asked, work, work):
        (work / "results/any.json").write_text("{}")
    monkeypatch.setitem(main.BUDGETS, "short", modules["orders"].Budget(passes=8, max_length=8))
    with pytest.raises(SystemExit, match="another budgets, see"), main.prepared(asked, work, work):
        pass
    (work / "asked.json").write_text('{"base": ')
    with pytest.raises(SystemExit, match="is broken"), main.prepared(asked, work, work):
        pass


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is broken"),
        ("{}", "is no result"),
        (json.dumps(run_of("sequential", "2", 0, budget={})), "runs of different budget lie there"),
        (
            json.dumps(run_of("sequential", "2", 0, base="/x/y")),
            "runs of different base, quantization, smoke lie there",
        ),
        (json.dumps(run_of("sequential", "2", 0, rate=7)), "runs of sequential of different options, rate lie there"),
        (json.dumps(run_of("sequential", "2", 1)), "is no result"),
    ],
)
def test_the_page_is_not_made_of_what_does_not_fit(
    text: str, said: str, modules: dict[str, ModuleType], short: None, tmp_path: Path
) -> None:
    stored(tmp_path, run_of("sequential", "1", 0))
    (tmp_path / "results/order2-sequential-seed0.json").write_text(text)
    with pytest.raises(SystemExit, match=said):
        modules["pages"].write(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
