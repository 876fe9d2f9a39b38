"""Requests that join a running batch of the engine, what the hub does meanwhile, and who hangs up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from routed_hubs import new_hub, on_base, publish, texts

from adapterhub_cl import AdapterHub
from adapterhub_cl.errors import AdapterHubError, UnknownNameError
from adapterhub_cl.inference.engine import Engine
from adapterhub_cl.inference.requests import free_request
from adapterhub_cl.registry import Registry
from adapterhub_cl.types import Prediction

SUM = texts("sums", 6, 50)[0]


@pytest.fixture(scope="module")
def made(load_pico: Any, pico_path: Any, tmp_path_factory: pytest.TempPathFactory) -> AdapterHub:
    hub = new_hub(tmp_path_factory.mktemp("joining") / "hub", pico_path("llama"), load_pico(), ("sums", "tales"))
    with hub.engine() as engine:
        engine.prepare()
    return hub


@pytest.fixture
def tokens(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Lets the engine write so many tokens, and none without it."""
    allowed, halt = threading.Semaphore(0), engine._worker.rows.answerer.halt
    monkeypatch.setattr(engine._worker.rows.answerer, "halt", lambda: allowed.acquire() and halt())
    yield allowed.release
    allowed.release(10_000)


def until(true: Callable[[], Any]) -> None:
    for _ in range(3000):
        if true():
            return
        time.sleep(0.02)
    raise AssertionError("it does not come")


def begun(engine: Engine, tokens: Callable[[int], None], adapter: str = "base") -> tuple[Future[Prediction], list[str]]:
    """A long answer of which something is written."""
    request = free_request("once upon", None, adapter, 1, True, {"max_new_tokens": 120})
    pieces: list[str] = []
    there = threading.Event()
    request.emit = lambda piece: not (pieces.append(piece) or there.set())
    found = engine.ask(request)
    tokens(6)
    assert there.wait(60)
    until(lambda: engine.writing == 1 and tokens.__self__._value == 0)  # type: ignore[attr-defined]
    return found, pieces


def test_what_comes_later_and_is_short_is_answered_before_what_is_long(
    hub: AdapterHub, engine: Engine, tokens: Callable[[int], None]
) -> None:
    right = {
        adapter: hub.write("abc", adapter=adapter, raw=True, max_new_tokens=5).prediction
        for adapter in ("tales@v1", "sums@v1")
    }
    long, _ = begun(engine, tokens)
    found: dict[str, str] = {}

    def ask(adapter: str) -> None:
        found[adapter] = engine.generate("abc", adapter=adapter, raw=True, max_new_tokens=5).prediction

    threads = [threading.Thread(target=ask, args=(adapter,)) for adapter in right]
    for thread in threads:
        thread.start()
    until(lambda: engine.waiting + engine.writing == 3)
    tokens(12)
    for thread in threads:
        thread.join(60)
    assert found == right
    assert not long.done()
    tokens(200)
    assert long.result(60).adapter == "base"


def test_labels_are_chosen_and_the_router_is_asked_between_two_tokens(
    engine: Engine, tokens: Callable[[int], None]
) -> None:
    long, _ = begun(engine, tokens)
    label = engine.submit(SUM, task="sums")
    with ThreadPoolExecutor(1) as pool:
        route = pool.submit(engine.route, [SUM])
        until(lambda: engine.waiting + label.done() + route.done() == 2)
        tokens(4)
        assert label.result(60).adapter == "sums@v1"
        assert "sums" in route.result(60)[0].tasks
    assert not long.done()
    tokens(200)
    assert len(long.result(60).tokens) <= 120


def test_an_answer_keeps_the_version_that_it_began_with(
    hub: AdapterHub, engine: Engine, tokens: Callable[[int], None]
) -> None:
    right = hub.write("once upon", adapter="tales@v1", raw=True, max_new_tokens=120)
    elsewhere = on_base(Registry.open(hub.folder), hub.load_base())
    long, pieces = begun(engine, tokens, adapter="tales")
    publish(elsewhere, "tales", 21)
    elsewhere.registry.delete("tales@v1")
    later = engine.ask(free_request("once upon", None, "tales", 1, True, {"max_new_tokens": 3}))
    tokens(20)
    assert later.result(60).adapter == "tales@v2"
    assert not long.done()
    assert "tales@v1" in engine.bank.refs  # it is still needed
    tokens(300)
    found = long.result(60)
    assert (found.adapter, found.prediction) == ("tales@v1", right.prediction)
    assert "".join(pieces) == found.prediction
    with pytest.raises(UnknownNameError):
        engine.generate("x", adapter="tales@v1", raw=True, max_new_tokens=2)
    assert "tales@v1" not in [*engine.bank.refs, *engine.bank.shelf.refs]


def test_who_hangs_up_frees_the_row_also_without_a_stream(engine: Engine, tokens: Callable[[int], None]) -> None:
    there = threading.Event()
    there.set()
    asked = [free_request("once upon", None, "base", 1, True, {"max_new_tokens": 120}) for _ in range(2)]
    for request in asked:
        request.wanted = there.is_set
        engine.ask(request)
    tokens(5)
    until(lambda: engine.writing == 2)
    there.clear()
    tokens(3)
    assert [len(request.future.result(60).tokens) < 20 for request in asked] == [True, True]
    until(lambda: engine.writing == 0)
    gone = free_request("once upon", None, "base", 1, True, {"max_new_tokens": 120})
    gone.wanted = lambda: False
    engine.ask(gone)
    tokens(2)
    with pytest.raises(AdapterHubError, match="nobody waits"):
        gone.future.result(60)


def test_more_requests_than_rows_and_adapters_that_fit(hub: AdapterHub) -> None:
    asked = [(f"abc {k}", ("tales@v1", "sums@v1", "base")[k % 3], 1 + k % 7) for k in range(20)]
    right = [hub.write(t, adapter=a, raw=True, max_new_tokens=n).prediction for t, a, n in asked]
    with hub.engine(batch_size=3, capacity=1) as engine:
        futures = [engine.ask(free_request(t, None, a, 1, True, {"max_new_tokens": n})) for t, a, n in asked]
        assert [future.result(120).prediction for future in futures] == right
        assert engine.waiting == engine.writing == 0


def test_a_base_that_generate_writes_for(pico_path: Any, load_pico: Any, tmp_path: Path) -> None:
    hub = new_hub(tmp_path / "hub", pico_path("mistral"), load_pico("mistral"), ("sums", "tales"))
    right = hub.write("abc", adapter="tales@v1", raw=True, max_new_tokens=5).prediction
    with hub.engine() as engine:
        assert engine._worker.rows.running is None
        assert engine.generate("abc", adapter="tales@v1", raw=True, max_new_tokens=5).prediction == right
        assert (engine.waiting, engine.writing) == (0, 0)


def test_a_mistake_in_the_loop_itself_reaches_who_asked(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def mistake() -> None:
        raise ZeroDivisionError("in the loop")

    assert engine._worker.rows.running is not None
    with monkeypatch.context() as patch:
        patch.setattr(engine._worker.rows.running, "_admit", mistake)
        with pytest.raises(ZeroDivisionError):
            engine.generate("abc", adapter="base", raw=True, max_new_tokens=5)
    assert engine.generate("abc", adapter="base", raw=True, max_new_tokens=5).adapter == "base"
