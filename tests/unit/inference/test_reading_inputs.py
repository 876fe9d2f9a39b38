"""A file of inputs is read by the columns that training read; the router is fitted before it is needed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from encoder_hubs import Notes

from adapterhub_cl import AdapterHub
from adapterhub_cl.errors import DataError

PAIRS = [{"question": "Who?", "sentence": f"stone {k}", "label": "ab"[k % 2]} for k in range(12)]
NAMED = [{"head": f"head {k}", "body": f"body {k}", "stars": "12"[k % 2]} for k in range(12)]
QUICK = {"epochs": 1, "rank": 2, "max_length": 64, "attention": "sdpa", "dev_share": 0.0}


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def hub(pico_path: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> AdapterHub:
    folder = tmp_path_factory.mktemp("reading")
    hub = AdapterHub.init(folder / "hub", pico_path("llama"), quantization="none")
    hub.add_task("pairs", write(folder / "pairs.jsonl", PAIRS), **QUICK)
    assert not hub.fit_router(), "one task: nothing is routed"
    wanted = {"input": ["head", "body"], "output": "stars"}
    hub.add_task("named", write(folder / "named.jsonl", NAMED), columns=wanted, **QUICK)
    return hub


def test_the_recorded_columns_are_read(hub: AdapterHub, tmp_path: Path) -> None:
    bare = [{key: value for key, value in row.items() if key not in ("label", "stars")} for row in (*PAIRS, *NAMED)]
    pairs, named = write(tmp_path / "p.jsonl", bare[:12]), write(tmp_path / "n.jsonl", bare[12:])
    assert hub.read_inputs(pairs, task="pairs")[1].input == "Who?\nstone 1"
    for asked in ({"task": "named"}, {"adapter": "named@v1"}, {}):
        assert hub.read_inputs(named, **asked)[1].input == "head 1\nbody 1"
    assert hub.read_inputs(named, columns={"input": "body"})[1].input == "body 1"
    assert hub.read_inputs(write(tmp_path / "o.jsonl", [{"text": "other"}]), task="named")[0].input == "other"
    with pytest.raises(DataError, match="there is no column 'head', and the task was trained on 'head' and 'body'"):
        hub.read_inputs(write(tmp_path / "x.jsonl", [{"body": "x"}]), task="named")
    with pytest.raises(DataError, match="no known layout"):
        hub.read_inputs(write(tmp_path / "x.jsonl", [{"neither": "x"}]), task="named")


def test_a_score_is_what_predict_gives(hub: AdapterHub, tmp_path: Path) -> None:
    file = write(tmp_path / "test.jsonl", NAMED)
    answers = hub.predict(hub.read_inputs(file, task="named"), task="named")
    right = sum(p.prediction == row["stars"] for p, row in zip(answers, NAMED, strict=True)) / len(NAMED)
    scored = {e.metric: e.value for _, e in hub.evaluate(["named"], data=file)}
    assert scored["accuracy"] == right


def test_the_router_is_fitted_before_it_is_needed(hub: AdapterHub) -> None:
    first, second = Notes(), Notes()
    assert hub.fit_router(reporter=first)
    assert any("fitting the router" in text for text in first.said)
    hub.predict(["stone 1"], reporter=second)
    assert second.said == []
