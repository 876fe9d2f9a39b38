"""An engine whose answers a vLLM computes: the same answers as those of the built-in engine, and everything that may go
wrong with another server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from loras import write_lora
from routed_hubs import copied, new_hub, publish, texts
from vllm_stub import StubVllm, listening

from adapterhub_cl import AdapterHub
from adapterhub_cl.adapters.vllm_folder import EXPORTS
from adapterhub_cl.errors import AdapterError, AdapterHubError, EngineDownError, EngineError, UsageError
from adapterhub_cl.inference.engine import Engine
from adapterhub_cl.inference.requests import free_request
from adapterhub_cl.types import Prediction

NAMES = ("sums", "shouts", "tales", "marks")
LONG = {"max_new_tokens": 40}


@pytest.fixture(scope="module")
def made(load_pico: Any, pico_path: Any, tmp_path_factory: pytest.TempPathFactory) -> AdapterHub:
    return new_hub(tmp_path_factory.mktemp("vllm") / "hub", pico_path("llama"), load_pico(), NAMES)


@pytest.fixture
def hub(made: AdapterHub, tmp_path: Path) -> AdapterHub:
    return copied(made, tmp_path / "hub")


@pytest.fixture
def stub(load_pico: Any) -> Iterator[StubVllm]:
    with listening(StubVllm(load_pico().model)) as found:
        yield found


@pytest.fixture
def engine(hub: AdapterHub, stub: StubVllm) -> Iterator[Engine]:
    with hub.engine(engine=stub.url) as opened:
        yield opened


def asked_of_all(engine: Engine) -> dict[str, list[Prediction]]:
    found = {name: engine.predict(texts(name, 4, 9), task=name, max_new_tokens=9) for name in NAMES}
    return found | {"routed": engine.predict([texts(name, 1, 7)[0] for name in NAMES], max_new_tokens=9)}


def close(mine: Prediction, other: Prediction) -> bool:
    same = (mine.prediction, mine.adapter, mine.task, mine.finished, mine.truncated, mine.prompt_tokens)
    assert same == (other.prediction, other.adapter, other.task, other.finished, other.truncated, other.prompt_tokens)
    assert mine.scores.keys() == other.scores.keys()
    assert [token for token, _ in mine.tokens] == [token for token, _ in other.tokens]
    pairs = [*zip(mine.scores.values(), other.scores.values(), strict=True)]
    pairs += [(a, b) for (_, a), (_, b) in zip(mine.tokens, other.tokens, strict=True)]
    return all(abs(a - b) < 1e-4 for a, b in [*pairs, (mine.confidence, other.confidence)])


def test_it_answers_as_the_built_in_engine_does(hub: AdapterHub, stub: StubVllm) -> None:
    with hub.engine() as built_in:
        right = asked_of_all(built_in)
        base = built_in.generate("abc", adapter="base", raw=True, max_new_tokens=6)
    with hub.engine(engine=f"{stub.url}/v1/") as engine:
        found = asked_of_all(engine)
        assert close(engine.generate("abc", adapter="base", raw=True, max_new_tokens=6), base)
    for name, answers in right.items():
        assert all(close(*pair) for pair in zip(found[name], answers, strict=True))
    assert {one.adapter for one in found["routed"]} == {f"{name}@v1" for name in NAMES}
    assert stub.loaded == {}  # unloaded at the end


def test_a_stream_gives_the_pieces_of_the_answer(hub: AdapterHub, engine: Engine, stub: StubVllm) -> None:
    whole = engine.generate("abc", adapter="tales@v1", raw=True, max_new_tokens=12).prediction
    stub.slow = 0.01
    pieces = list(engine.stream("abc", adapter="tales@v1", raw=True, max_new_tokens=12))
    assert "".join(pieces) == whole
    assert len(pieces) > 1


def test_an_answer_ends_at_a_stop_string(engine: Engine) -> None:
    whole = engine.generate("abc", adapter="tales@v1", raw=True, max_new_tokens=20).prediction
    stop = whole[6:9]
    found = engine.generate("abc", adapter="tales@v1", raw=True, max_new_tokens=20, stop=stop)
    assert found.prediction == whole[: whole.find(stop)]
    assert found.finished


def test_a_task_of_many_labels_is_scored_in_parts(hub: AdapterHub, stub: StubVllm, tmp_path: Path) -> None:
    labels = [chr(65 + k) * (1 + k % 2) for k in range(26)]
    hub.import_adapter(write_lora(tmp_path / "many", 3), "many", labels=labels)
    with hub.engine() as built_in:
        right = built_in.predict(["abc", "x y"], task="many")
    with hub.engine(engine=stub.url) as engine:
        assert all(close(*pair) for pair in zip(engine.predict(["abc", "x y"], task="many"), right, strict=True))


def test_names_say_the_content_and_a_new_version_is_another_name(
    hub: AdapterHub, engine: Engine, stub: StubVllm
) -> None:
    engine.generate("abc", task="tales", max_new_tokens=2)
    before = next(name for name in stub.loaded if name.startswith("tales@v1-"))
    publish(hub, "tales", 77)
    assert engine.generate("abc", task="tales", max_new_tokens=2).adapter == "tales@v2"
    assert any(name.startswith("tales@v2-") for name in stub.loaded)
    assert before in stub.loaded


def test_no_more_than_the_residents_are_loaded_and_none_is_unloaded_in_use(hub: AdapterHub, stub: StubVllm) -> None:
    stub.slow = 0.005
    with hub.engine(engine=stub.url, resident=2) as engine, ThreadPoolExecutor(8) as pool:

        def ask(k: int) -> str:
            return engine.generate("abc", adapter=f"{NAMES[k % 4]}@v1", raw=True, max_new_tokens=5).adapter

        assert list(pool.map(ask, range(24))) == [f"{NAMES[k % 4]}@v1" for k in range(24)]
    assert stub.most == 2
    assert stub.unloaded_in_use == []


def test_a_restarted_vllm_gets_its_adapters_again(engine: Engine, stub: StubVllm) -> None:
    first = engine.generate("abc", task="tales", max_new_tokens=4)
    stub.forget()
    assert close(engine.generate("abc", task="tales", max_new_tokens=4), first)


def test_a_vllm_that_is_gone_is_said_to_be_and_asked_again_later(hub: AdapterHub, load_pico: Any) -> None:
    stub = StubVllm(load_pico().model)
    with listening(stub):
        engine = hub.engine(engine=stub.url)
        engine.generate("abc", task="tales", max_new_tokens=4)
    port = int(stub.url.rpartition(":")[2])
    try:
        with pytest.raises(EngineDownError, match="no vLLM answers"):
            engine.generate("abc", task="tales", max_new_tokens=4)
        with pytest.raises(EngineDownError):
            engine.predict(["1+1"], task="sums")
        stub.forget()
        with listening(stub, port):
            assert engine.generate("abc", task="tales", max_new_tokens=4).adapter == "tales@v1"
            engine.close()
    finally:
        engine.close()


def test_a_vllm_that_dies_in_the_middle_ends_the_answer_with_an_error(engine: Engine, stub: StubVllm) -> None:
    stub.dies_after = 3
    pieces = []
    with pytest.raises(EngineDownError, match="broke off"):
        pieces += list(engine.stream("abc", adapter="tales@v1", raw=True, **LONG))
    stub.dies_after = None
    assert engine.generate("abc", adapter="tales@v1", raw=True, max_new_tokens=4).tokens


def test_a_vllm_that_gives_nothing_is_given_up(hub: AdapterHub, stub: StubVllm) -> None:
    with hub.engine(engine=stub.url, timeout_s=0.3) as engine:
        engine.generate("abc", task="tales", max_new_tokens=1)
        stub.slow = 1.0
        with pytest.raises(EngineDownError, match="gave nothing"):
            engine.generate("abc", task="tales", max_new_tokens=3)


def test_who_hangs_up_ends_the_request_there(engine: Engine, stub: StubVllm) -> None:
    stub.slow = 0.05
    wanted = threading.Event()
    request = free_request("abc", None, "tales@v1", 1, True, {"max_new_tokens": 100})
    pieces: list[str] = []
    request.emit, request.wanted = (lambda piece: not pieces.append(piece)), lambda: not wanted.is_set()
    future = engine.ask(request)
    until(lambda: pieces and engine.writing == 1)
    wanted.set()
    with pytest.raises(AdapterHubError, match="nobody waits"):
        future.result(10)
    until(lambda: not any(stub.running.values()))


def test_closing_without_waiting_ends_the_answers(hub: AdapterHub, stub: StubVllm) -> None:
    stub.slow = 0.05
    engine = hub.engine(engine=stub.url)
    future = engine.ask(free_request("abc", None, "tales@v1", 1, True, {"max_new_tokens": 100}))
    until(lambda: engine.writing == 1)
    engine.close(abandon=True)
    with pytest.raises(AdapterHubError, match="closed"):
        future.result(1)


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_another_base_is_refused(hub: AdapterHub, load_pico: Any) -> None:
    other = load_pico()
    for parameter in other.model.parameters():
        parameter.data = parameter.data.roll(1, 0)
    with listening(StubVllm(other.model)) as stub, pytest.raises(EngineError, match="another base"):
        hub.engine(engine=stub.url)
    with hub.engine() as engine:  # the base is free again
        assert engine.predict(["1+1"], task="sums")


def test_an_adapter_that_does_nothing_there_is_refused(engine: Engine, stub: StubVllm) -> None:
    stub.deaf = True
    with pytest.raises(EngineError, match="changes nothing"):
        engine.generate("abc", task="tales", max_new_tokens=4)
    assert stub.loaded == {}
    stub.deaf = False
    assert engine.generate("abc", task="tales", max_new_tokens=4).adapter == "tales@v1"


def test_an_adapter_that_does_something_else_there_is_refused(
    hub: AdapterHub, engine: Engine, stub: StubVllm, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = StubVllm.logs

    def swapped(self: StubVllm, name: str, ids: list[int]) -> Any:
        other = next((one for one in self.factors if one.startswith("marks")), name)
        return real(self, other if name.startswith("tales") else name, ids)

    engine.generate("abc", task="marks", max_new_tokens=2)
    monkeypatch.setattr(StubVllm, "logs", swapped)
    with pytest.raises(EngineError, match="something else there"):
        engine.generate("abc", task="tales", max_new_tokens=4)


def test_what_the_vllm_refuses_is_said_with_the_next_step(hub: AdapterHub, engine: Engine, stub: StubVllm) -> None:
    publish(hub, "tales", 5, rank=20)
    with pytest.raises(EngineError, match="max_lora_rank 16") as told:
        engine.generate("abc", task="tales", max_new_tokens=4)
    assert "--max-lora-rank" in told.value.hint
    stub.runtime_loading = False
    with pytest.raises(EngineError, match="loads no adapters") as told:
        engine.generate("abc", task="marks", max_new_tokens=4)
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" in told.value.hint


def test_a_vllm_without_chosen_log_probabilities_is_refused(hub: AdapterHub, stub: StubVllm) -> None:
    stub.old = True
    with pytest.raises(EngineError, match="chosen tokens"):
        hub.engine(engine=stub.url)


def test_mixtures_and_dora_are_refused(hub: AdapterHub, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="mixture"):
        engine.predict([texts("sums", 1)[0]], top_k=2, fallback=False)
    monkeypatch.setattr("adapterhub_cl.adapters.vllm_folder.is_dora", lambda _: True)
    with pytest.raises(AdapterError, match="DoRA"):
        engine.generate("abc", task="tales", max_new_tokens=4)


@pytest.mark.parametrize("where", ["ftp://127.0.0.1", "127.0.0.1:8000", "http://", "http://h:99999", "vllm"])
def test_an_address_that_is_none_is_told_at_once(hub: AdapterHub, where: str) -> None:
    with pytest.raises(UsageError, match="neither built-in nor an address"):
        hub.engine(engine=where)


def test_no_server_and_no_vllm(hub: AdapterHub) -> None:
    with pytest.raises(EngineDownError, match="no vLLM answers"):
        hub.engine(engine="http://127.0.0.1:9")


def test_a_key_is_sent_from_the_environment(hub: AdapterHub, stub: StubVllm, monkeypatch: pytest.MonkeyPatch) -> None:
    stub.key = "secret"
    with pytest.raises(EngineError, match="wants an API key"):
        hub.engine(engine=stub.url)
    monkeypatch.setenv("CL_ADAPTER_ENGINE_KEY", "secret")
    with hub.engine(engine=stub.url) as engine:
        assert engine.predict(["1+1"], task="sums")


# -- what is left behind ----------------------------------------------------------------------------------------------


def test_a_forgotten_task_leaves_neither_the_vllm_nor_a_copy(hub: AdapterHub, engine: Engine, stub: StubVllm) -> None:
    engine.generate("abc", task="tales", max_new_tokens=2)
    engine.generate("abc", task="marks", max_new_tokens=2)
    copies = {path.name.partition("@")[0] for path in (hub.folder / EXPORTS).glob("*/*")}
    assert copies == {"tales", "marks"}
    hub.forget_task("tales")
    assert engine.predict(["1+1"], task="sums")  # the next request sees the change
    until(lambda: {name.partition("@")[0] for name in stub.loaded} == {"marks", "sums"})
    until(lambda: {p.name.partition("@")[0] for p in (hub.folder / EXPORTS).glob("*/*")} == {"marks", "sums"})


def test_forgetting_removes_the_copies_of_a_server_that_was_killed(hub: AdapterHub, stub: StubVllm) -> None:
    with hub.engine(engine=stub.url) as engine:
        engine.generate("abc", task="tales", max_new_tokens=2)
    assert list((hub.folder / EXPORTS).glob("*/tales@v1-*"))
    hub.forget_task("tales")
    assert not list((hub.folder / EXPORTS).glob("*/tales@v1-*"))


def until(true: Callable[[], Any]) -> None:
    for _ in range(1000):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("it does not come")


def test_a_base_in_four_bits_needs_the_same_files_there(load_pico: Any, pico_path: Any, tmp_path: Path) -> None:
    """Rounding hides there which base answers."""
    base = load_pico("llama", "nf4")
    hub = new_hub(tmp_path / "hub", pico_path("llama"), base, ("sums",))
    with listening(StubVllm(load_pico().model)) as stub:
        with pytest.raises(EngineError, match="whether that is the same cannot be seen"):
            hub.engine(engine=stub.url)
        stub.root = str(pico_path("llama"))
        with hub.engine(engine=stub.url) as engine:
            assert engine.predict(["1+1"], task="sums")
