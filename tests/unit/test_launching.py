"""What is refused under `accelerate launch`, before anything is read, loaded or written."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest

from adapterhub_cl import AdapterHub
from adapterhub_cl.errors import UsageError
from adapterhub_cl.launching import SHARDED, local_rank, one_process, processes, refuse_sharding

VERBS: dict[str, Callable[[AdapterHub], object]] = {
    "merge": lambda hub: hub.merge(["a", "b"], name="c"),
    "distill": lambda hub: hub.distill(["a", "b"], name="c"),
    "distill resumed": lambda hub: hub.distill_resume("c"),
    "distill refreshed": lambda hub: hub.distill_refresh("c"),
    "prune": lambda hub: hub.prune("a"),
    "stream": lambda hub: hub.stream("tasks.yaml"),
    "update --online": lambda hub: hub.update_online("a", io.StringIO()),
}
TAUGHT: dict[str, Callable[[AdapterHub], object]] = {
    "add-task": lambda hub: hub.add_task("a", "rows.jsonl"),
    "update": lambda hub: hub.update("a", "rows.jsonl"),
    "update --online": VERBS["update --online"],
}


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", *SHARDED):
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
