"""Requests while the hub changes: every answer is that of the version which its header names."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
from server_support import Running

TEXTS = ("they charged my card twice", "the app crashes when I open the settings", "I forgot my password")


def test_no_answer_comes_from_another_version_than_the_one_it_names(serving: Callable[..., Running]) -> None:
    served = serving()
    right = {
        (ref, text): served.engine.predict([text], task="tickets", adapter=ref)[0].scores
        for ref in ("tickets@v1", "all@v2")
        for text in TEXTS
    }
    stop = threading.Event()
    moved = 0

    def move() -> None:
        nonlocal moved
        while not stop.is_set():
            served.hub.promote("all@v2", max_forgetting=1)
            served.hub.alias("tickets@v1", "production")
            moved += 1

    def ask(number: int) -> tuple[str, str, Any]:
        text = TEXTS[number % len(TEXTS)]
        body = {"inputs": [text], "model": ("tickets", "auto", "all@v2", "tickets@v1")[number % 4]}
        row = httpx2.post(f"{served.url}/v1/predict", json=body, timeout=60).json()["data"][0]
        if number % 4 > 1:
            assert row["adapter"] == body["model"]
        return row["adapter"], text, row["scores"]

    mover = threading.Thread(target=move)
    mover.start()
    try:
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(ask, range(100)))
    finally:
        stop.set()
        mover.join()
    assert moved > 1
    assert {ref for ref, _, _ in answers} == {"tickets@v1", "all@v2"}
    for ref, text, scores in answers:
        for label, share in right[ref, text].items():
            assert abs(scores[label] - share) < 0.02, (ref, text)


def test_an_alias_that_waits_is_answered_by_what_it_names_when_its_turn_comes(serving: Callable[..., Running]) -> None:
    served = serving()
    turn = threading.Event()
    served.engine.submit(TEXTS[0], task="tickets").add_done_callback(lambda _: turn.wait(60))
    with ThreadPoolExecutor(1) as pool:
        body = {"inputs": [TEXTS[0]], "model": "all@latest"}
        waiting = pool.submit(httpx2.post, f"{served.url}/v1/predict", json=body, timeout=60)
        while not served.engine.waiting:
            time.sleep(0.01)
        served.hub.registry.delete("all@v2")
        turn.set()
        (row,) = waiting.result().json()["data"]
    assert row["adapter"] == "all@v1"
