"""Requests to encoders: mixed batches with a head for each row, routers, the engine, drift."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from encoder_hubs import COLOURS, QUICK, new_hub, write

from adapterhub_cl import AdapterHub
from adapterhub_cl.errors import AdapterError, UsageError
from adapterhub_cl.types import Example

# Tasks in alphabets of their own, so that a router on an untrained encoder can tell them apart.
LETTERS = {"colours": "abcdefgh", "sums": "0123456789+-=", "shouts": "QRSTUVWXYZ"}
LABELS = {"colours": COLOURS, "sums": ("1", "2"), "shouts": ("LOUD", "QUIET")}


def rows(task: str, count: int, seed: int = 0) -> list[dict[str, str]]:
    import random

    draw = random.Random(f"{task}{seed}")
    labels = LABELS[task]
    return [
        {
            "instruction": f"What is it ({task})?",
            "input": " ".join(
                [labels[k % len(labels)], *("".join(draw.choices(LETTERS[task], k=5)) for _ in range(3))]
            ),
            "output": labels[k % len(labels)],
        }
        for k in range(count)
    ]


@pytest.fixture(scope="module", params=["bert_body", "roberta"])
def hub(request: Any, pico_path: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> AdapterHub:
    folder = tmp_path_factory.mktemp("requests")
    made = new_hub(folder / "hub", pico_path(request.param))
    for rank, task in enumerate(LABELS, 2):
        made.add_task(
            task, write(folder / f"{task}.jsonl", rows(task, 48)), **{**QUICK, "rank": rank, "replay": "reservoir:40"}
        )
    return made


def test_a_mixed_batch_answers_as_each_adapter_alone(hub: AdapterHub) -> None:
    asked = [(task, row["input"]) for task in LABELS for row in rows(task, 5, 9)][::2]
    alone = [hub.predict([text], task=task)[0] for task, text in asked]
    with hub.engine() as engine:
        futures = [engine.submit(text, task=task) for task, text in asked]
        mixed = [future.result() for future in futures]
    assert [p.adapter for p in mixed] == [p.adapter for p in alone]
    for one, other in zip(mixed, alone, strict=True):
        assert list(one.scores) == list(other.scores)
        torch.testing.assert_close(
            torch.tensor(list(one.scores.values())), torch.tensor(list(other.scores.values())), atol=2e-5, rtol=0
        )


def test_a_request_without_a_task_is_routed(hub: AdapterHub) -> None:
    asked = [(task, row["input"]) for task in LABELS for row in rows(task, 8, 5)]
    found = hub.predict([text for _, text in asked], fallback=False)
    right = [p.task == task for p, (task, _) in zip(found, asked, strict=True)]
    assert sum(right) >= 0.9 * len(right)
    assert all(p.prediction in LABELS[p.task] for p in found)
    routes = hub.route([asked[0][1]], explain=2)
    assert set(routes[0].scores) == set(LABELS)
    assert len(routes[0].nearest) == 2
    assert hub.drift([row["input"] for row in rows("sums", 8, 6)]) is not None


@pytest.mark.parametrize("router", ["centroid", "mahalanobis", "learned", "arrow"])
def test_other_routers_work_on_encoders(hub: AdapterHub, router: str) -> None:
    found = hub.predict([row["input"] for row in rows("sums", 4, 3)], router=router, fallback=False)
    assert all(p.prediction in LABELS[p.task] for p in found)


def test_what_needs_a_base_that_writes_is_refused(hub: AdapterHub) -> None:
    with pytest.raises(UsageError, match="the router perplexity needs a base that writes"):
        hub.predict(["1 + 1"], router="perplexity")
    with hub.engine() as engine:
        for ask in (lambda: engine.generate("x"), lambda: engine.chat([{"role": "user", "content": "x"}])):
            with pytest.raises(UsageError, match="writing an answer needs a base that writes"):
                ask()
        with pytest.raises(AdapterError, match="no head for the task sums: colours@v1 never learned it"):
            engine.predict(["1 + 1"], task="sums", adapter="colours")
        with pytest.raises(AdapterError, match="no head for the task sums: the base never learned it"):
            engine.predict(["1 + 1"], task="sums", adapter="base")


def test_what_no_task_knows_gets_no_label(hub: AdapterHub) -> None:
    found = hub.predict([Example("длинный текст на другом языке " * 3), Example(rows("sums", 1)[0]["input"])])
    assert found[1].prediction in LABELS["sums"]
    assert found[0].out_of_distribution
    assert (found[0].prediction, found[0].confidence, found[0].adapter) == ("", 0.0, "base")


def test_several_adapters_may_be_mixed_for_a_row(hub: AdapterHub) -> None:
    found = hub.predict([row["input"] for row in rows("shouts", 3, 4)], top_k=2, fallback=False)
    assert all(len(p.adapters) <= 2 and p.prediction in LABELS[p.task] for p in found)
