"""What is said where a Ray cluster is missing, unreachable or too small; no Ray is needed for that."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest
import torch

from adapterhub_cl import AdapterHub
from adapterhub_cl.errors import (
    DataError,
    GateRefused,
    HubError,
    ServerError,
    TrainingError,
    UnknownNameError,
    UsageError,
)
from adapterhub_cl.progress import Reporter
from adapterhub_cl.registry import Registry
from adapterhub_cl.spreading.ray_cluster import check_address, needs_of, rebuilt
from adapterhub_cl.spreading.worker_side import Board, Failure, Opening, carry_out, own_version
from adapterhub_cl.types import BaseInfo

HERE = torch.get_num_threads()


def opening(path: Path, *, device: str = "cpu", threads: int = 2, version: str | None = None) -> Opening:
    return Opening(path, "", device, "fp32", threads, own_version() if version is None else version)


def test_without_ray_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    hub = AdapterHub.init(tmp_path / "hub", "tiny", quantization="none")
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "label": "b"}\n', encoding="utf-8")
    (tmp_path / "tasks.yaml").write_text("tasks:\n- {name: a, data: rows.jsonl}\n", encoding="utf-8")
    with pytest.raises(UsageError, match="--on ray needs the package ray") as caught:
        hub.stream(tmp_path / "tasks.yaml", on="ray")
    assert "adapterhub-cl[ray]" in caught.value.hint
    assert not list((hub.folder / "runs").iterdir())
    with pytest.raises(UnknownNameError, match="unknown on 'slurm'"):
        hub.stream(tmp_path / "tasks.yaml", on="slurm")


@pytest.mark.parametrize("address", ["ray://head:10001", "head", "head:x", ":6379", "head:70000"])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(UsageError, match="is not HOST:PORT"):
        check_address(address)


def test_a_cluster_that_does_not_answer() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        with pytest.raises(ServerError, match=f"no Ray cluster answers at RAY_ADDRESS=127.0.0.1:{port}"):
            check_address(f"127.0.0.1:{port}")
        free.listen()
        check_address(f"127.0.0.1:{port}")
    for usual in ("", "auto", "local"):
        check_address(usual)


def test_what_a_run_takes_of_a_node() -> None:
    nodes = [{"CPU": 1.0}, {"CPU": 4.0}]
    assert needs_of(opening(Path(), threads=4), nodes) == {"num_cpus": 4, "num_gpus": 0}
    with pytest.raises(UsageError, match="a run takes 8 cores, and no node of the cluster has them") as caught:
        needs_of(opening(Path(), threads=8), nodes)
    assert caught.value.hint.startswith("OMP_NUM_THREADS=4")
    with pytest.raises(UsageError, match="2 cores and a GPU"):
        needs_of(opening(Path(), device="cuda"), nodes)
    with_gpu = [*nodes, {"CPU": 4.0, "GPU": 2.0}]
    assert needs_of(opening(Path(), device="auto"), with_gpu)["num_gpus"] == 1
    assert needs_of(opening(Path(), device="cpu"), with_gpu)["num_gpus"] == 0
    with pytest.raises(UsageError, match="--device cuda:1"):
        needs_of(opening(Path(), device="cuda:1"), with_gpu)


def test_a_worker_opens_the_hub_or_says_why_it_cannot(tmp_path: Path) -> None:
    Registry.create(tmp_path / "hub", BaseInfo("tiny", ""))
    hub = opening(tmp_path / "hub", threads=HERE).hub(Reporter())
    assert (hub.registry.path, hub.device, hub.dtype) == (tmp_path / "hub", "cpu", "fp32")
    with pytest.raises(HubError, match="no hub") as caught:
        opening(tmp_path / "elsewhere").hub(Reporter())
    assert "every node must see the hub's folder" in caught.value.hint
    with pytest.raises(HubError, match=r"version .* of adapterhub-cl, and the command has 0\.0\.1"):
        opening(tmp_path / "hub", version="0.0.1").hub(Reporter())


def test_errors_cross_the_border_as_plain_values() -> None:
    again = rebuilt(Failure("DataError", "no rows", "check the data"))
    assert (type(again), again.message, again.hint) == (DataError, "no rows", "check the data")
    assert type(rebuilt(Failure("UnknownNameError", "unknown x", ""))) is UsageError
    assert type(rebuilt(Failure("GateRefused", "too much", ""))) is GateRefused
    assert type(rebuilt(Failure("OfAPlugin", "x", ""))) is TrainingError


def test_a_worker_says_what_went_wrong(tmp_path: Path) -> None:
    def fails(hub: object, ask: object) -> None:
        raise DataError("no rows", "check the data")

    Registry.create(tmp_path / "hub", BaseInfo("tiny", ""))
    found = carry_out(fails, opening(tmp_path / "hub", threads=HERE), None, 0, ())
    assert found == Failure("DataError", "no rows", "check the data")


def test_the_board_keeps_what_was_said_until_it_is_read() -> None:
    board = Board()
    board.say(1, "note", "begun")
    board.say(2, "epoch", (1, {"loss": 0.5}))
    assert board.take() == [(1, "note", "begun"), (2, "epoch", (1, {"loss": 0.5}))]
    assert board.take() == []
    assert board.answered(2) is None
    board.answer(2, "go on")
    assert (board.answered(2), board.answered(2)) == ("go on", None)
