"""What is refused under `accelerate launch`, before anything is read, loaded or written."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest

from adapterhub_cl import AdapterHub, launching
from adapterhub_cl.errors import AdapterHubError, GateRefused, UsageError
from adapterhub_cl.launching import (
    FSDP,
    SHARDED,
    divides_base,
    local_rank,
    one_leads,
    one_process,
    processes,
    refuse_sharding,
)

VERBS: dict[str, Callable[[AdapterHub], object]] = {
    "prune": lambda hub: hub.prune("a"),
    "tune": lambda hub: hub.tune("a", "rows.jsonl"),
    "update --online": lambda hub: hub.update_online("a", io.StringIO()),
}
LED: dict[str, Callable[[AdapterHub], object]] = {
    "merge": lambda hub: hub.merge(["a", "b"], name="c"),
    "distill": lambda hub: hub.distill(["a", "b"], name="c"),
    "distill resumed": lambda hub: hub.distill_resume("c"),
    "distill refreshed": lambda hub: hub.distill_refresh("c"),
    "stream": lambda hub: hub.stream("tasks.yaml"),
}
TAUGHT: dict[str, Callable[[AdapterHub], object]] = {
    "add-task": lambda hub: hub.add_task("a", "rows.jsonl"),
    "update": lambda hub: hub.update("a", "rows.jsonl"),
    "update --online": VERBS["update --online"],
}


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", FSDP, "FSDP_VERSION", *SHARDED):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def hub(tmp_path: Path) -> AdapterHub:
    return AdapterHub.init(tmp_path / "hub", "tiny", quantization="none")


def test_without_a_launcher_there_is_one_process() -> None:
    assert (processes(), local_rank()) == (1, None)
    one_process("distill")


@pytest.mark.parametrize(("said", "rank"), [("0", 0), ("3", 3), ("-1", None), ("", None), ("x", None)])
def test_the_number_of_this_process(monkeypatch: pytest.MonkeyPatch, said: str, rank: int | None) -> None:
    monkeypatch.setenv("LOCAL_RANK", said)
    assert local_rank() == rank


@pytest.mark.parametrize("verb", VERBS)
def test_what_several_processes_would_record_twice_is_refused(
    hub: AdapterHub, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    if verb == "update --online":
        monkeypatch.setattr("adapterhub_cl.learning.request.build", lambda *_: (None, None))  # reads the adapter first
    with pytest.raises(UsageError, match="runs in one process") as caught:
        VERBS[verb](hub)
    assert caught.value.hint == "start it without accelerate launch"
    assert hub.log() == []
    assert list((hub.folder / "runs").iterdir()) == []


@pytest.mark.parametrize("variable", SHARDED)
@pytest.mark.parametrize("verb", TAUGHT)
def test_a_divided_model_is_refused(hub: AdapterHub, monkeypatch: pytest.MonkeyPatch, variable: str, verb: str) -> None:
    monkeypatch.setenv(variable, "true")
    with pytest.raises(UsageError, match=f"{SHARDED[variable]} is not supported") as caught:
        TAUGHT[verb](hub)
    assert "accelerate launch --multi_gpu" in caught.value.hint
    monkeypatch.setenv(variable, "false")
    refuse_sharding()


@pytest.mark.parametrize("verb", TAUGHT)
def test_fsdp_of_version_1_is_refused(hub: AdapterHub, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    monkeypatch.setenv(FSDP, "true")
    with pytest.raises(UsageError, match="FSDP of version 1 is not supported") as caught:
        TAUGHT[verb](hub)
    assert "--fsdp_version 2" in caught.value.hint
    monkeypatch.setenv("FSDP_VERSION", "2")
    refuse_sharding()
    assert divides_base()


class Store:
    """The launcher's store, for processes that run one after another."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}

    def set(self, key: str, value: bytes) -> None:
        self.kept[key] = value

    def wait(self, keys: list[str], timeout: object) -> None:
        assert set(keys) <= self.kept.keys(), "a process waits for what nobody says"

    def get(self, key: str) -> bytes:
        return self.kept[key]


@pytest.fixture
def as_process(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes this process one of two, by its number; each begins to count its calls anew."""
    store = Store()
    monkeypatch.setattr(launching, "_store", lambda: store)
    monkeypatch.setenv("WORLD_SIZE", "2")

    def become(rank: int) -> None:
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setattr(launching, "_calls", 0)

    return become


def test_one_process_leads_and_the_others_return_what_it_did(as_process: Callable[[int], None]) -> None:
    worked = []

    @one_leads(lambda made: {"made": made}, lambda packed, number: packed["made"])
    def work(number: int) -> str:
        worked.append((number, processes()))
        if number == 2:
            raise GateRefused("too much is forgotten", "look at it")
        if number == 3:
            raise ValueError("a bug")
        return f"made {number}"

    as_process(0)
    assert work(1) == "made 1"
    with pytest.raises(GateRefused):
        work(2)
    with pytest.raises(ValueError, match="a bug"):
        work(3)
    assert processes() == 2, "the environment is as before"
    as_process(1)
    assert work(1) == "made 1"
    with pytest.raises(AdapterHubError, match="too much is forgotten") as caught:
        work(2)
    assert caught.value.exit_code == GateRefused.exit_code
    with pytest.raises(AdapterHubError, match="the first process has stopped in work"):
        work(3)
    assert worked == [(1, 1), (2, 1), (3, 1)], "once each, by a process that believes to be alone"


@pytest.mark.parametrize("verb", LED)
def test_processes_that_cannot_find_each_other_are_refused(
    hub: AdapterHub, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="not where they meet") as caught:
        LED[verb](hub)
    assert "accelerate launch" in caught.value.hint
    monkeypatch.setenv(next(iter(SHARDED)), "true")
    with pytest.raises(UsageError, match="is not supported"):
        LED[verb](hub)
    assert hub.log() == []
