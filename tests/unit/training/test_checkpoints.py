"""Checkpoints: what is loaded is what was saved, bit for bit, or an error that says what to do."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from adapterhub_cl.errors import IntegrityError, StorageError
from adapterhub_cl.registry import Registry, seals
from adapterhub_cl.training import checkpoints
from adapterhub_cl.training.checkpoints import NAME, Checkpoint, load, save
from adapterhub_cl.training.runs import Run
from adapterhub_cl.types import BaseInfo


def sample(value: float = 1.0) -> Checkpoint:
    shared = torch.full((4, 3), value)
    tensors = {
        "model.a.b": shared,
        "best.a.b": shared,
        "model.view": shared.T,
        "model.half": torch.tensor([0.1, value], dtype=torch.bfloat16),
        "random.cpu": torch.get_rng_state(),
        "optimizer.0.step": torch.tensor(3.0),
    }
    return Checkpoint(tensors, {"at": {"epoch": 2, "loss": 0.1 + 0.2, "history": [{"x": 1.5}]}, "strategy": {}})


def equal(one: Checkpoint | None, other: Checkpoint) -> bool:
    return (
        one is not None
        and one.state == other.state
        and one.tensors.keys() == other.tensors.keys()
        and all(torch.equal(one.tensors[k], v) and one.tensors[k].dtype == v.dtype for k, v in other.tensors.items())
    )


def test_round_trip(tmp_path: Path) -> None:
    assert load(tmp_path) is None
    save(tmp_path, sample())
    assert equal(load(tmp_path), sample())
    save(tmp_path, sample(2.0))
    assert equal(load(tmp_path), sample(2.0))
    assert [p.name for p in tmp_path.iterdir()] == [NAME]
    found = load(tmp_path)
    assert found is not None
    assert set(found.part("model")) == {"a.b", "view", "half"}
    assert found.part("mode") == {}


@pytest.mark.parametrize("fused", [True, False])
def test_optimizer_goes_on_bit_for_bit(tmp_path: Path, fused: bool) -> None:
    def make() -> tuple[list[torch.nn.Parameter], torch.optim.Optimizer]:
        torch.manual_seed(0)
        parameters = [torch.nn.Parameter(torch.randn(3, 5)), torch.nn.Parameter(torch.randn(5))]
        return parameters, torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.01, fused=fused)

    def steps(parameters: list[torch.nn.Parameter], optimizer: torch.optim.Optimizer, seeds: range) -> None:
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            for p in parameters:
                p.grad = torch.randn(p.shape, generator=generator)
            optimizer.step()

    whole, optimizer = make()
    steps(whole, optimizer, range(6))
    part, optimizer = make()
    steps(part, optimizer, range(3))
    save(
        tmp_path,
        Checkpoint(
            {f"optimizer.{k}": v for k, v in checkpoints.optimizer_tensors(optimizer).items()}
            | {f"model.{k}": p for k, p in enumerate(part)},
            {},
        ),
    )
    found = load(tmp_path)
    assert found is not None
    resumed, optimizer = make()
    with torch.no_grad():
        for key, value in found.part("model").items():
            resumed[int(key)].copy_(value)
    checkpoints.restore_optimizer(optimizer, found.part("optimizer"))
    steps(resumed, optimizer, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))


def test_an_optimizer_before_its_first_step(tmp_path: Path) -> None:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])
    assert checkpoints.optimizer_tensors(optimizer) == {}
    checkpoints.restore_optimizer(optimizer, {})
    assert optimizer.state_dict()["state"] == {}


def test_random_numbers_go_on(tmp_path: Path) -> None:
    torch.manual_seed(9)
    torch.rand(5)
    save(tmp_path, Checkpoint({f"random.{k}": v for k, v in checkpoints.random_tensors().items()}, {}))
    right = torch.rand(7)
    torch.manual_seed(0)
    found = load(tmp_path)
    assert found is not None
    checkpoints.restore_random(found.part("random"))
    assert torch.equal(torch.rand(7), right)


@pytest.mark.parametrize("where", ["save_file", "fsync", "replace"])
def test_a_full_disk_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    save(tmp_path, sample())
    write = checkpoints.save_file

    def full(*arguments: Any, **_: Any) -> None:
        if where == "save_file":  # part of the file is written before the disk is full
            write(*arguments)
            Path(arguments[1]).write_bytes(Path(arguments[1]).read_bytes()[:50])
        raise OSError(errno.ENOSPC, "No space left on device")

    owner: Any = {"save_file": checkpoints, "fsync": os, "replace": Path}[where]
    with monkeypatch.context() as patch:
        patch.setattr(owner, where, full)
        with pytest.raises(StorageError, match="No space left") as caught:
            save(tmp_path, sample(2.0))
    assert "--resume" in caught.value.hint
    assert [p.name for p in tmp_path.iterdir()] == [NAME]
    assert equal(load(tmp_path), sample())
    save(tmp_path, sample(3.0))
    assert equal(load(tmp_path), sample(3.0))


def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        save(tmp_path / "gone", sample())


def test_killed_while_writing_leaves_the_old_one(tmp_path: Path) -> None:
    save(tmp_path, sample())
    (tmp_path / f".{NAME}.123").write_bytes(b"half of a checkpoint")
    assert equal(load(tmp_path), sample())


@pytest.mark.parametrize("keep", [0, 4, 40, 600, -1])
def test_a_truncated_file_is_an_error(tmp_path: Path, keep: int) -> None:
    save(tmp_path, sample())
    path = tmp_path / NAME
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(IntegrityError, match="cannot be read") as caught:
        load(tmp_path)
    assert "without --resume" in caught.value.hint


def test_a_file_of_another_kind_is_an_error(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.ones(1)}, tmp_path / NAME)
    with pytest.raises(IntegrityError):
        load(tmp_path)
    save_file({"a": torch.ones(1)}, tmp_path / NAME, {"state": "{"})
    with pytest.raises(IntegrityError):
        load(tmp_path)


def flipped(path: Path, place: int, bit: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= bit
    path.write_bytes(data)


def test_a_flipped_bit_anywhere_is_an_error(tmp_path: Path) -> None:
    save(tmp_path, sample())
    path = tmp_path / NAME
    whole = path.read_bytes()
    for place in {*range(0, len(whole), 7), *range(len(whole) - 8, len(whole))}:
        flipped(path, place, 1 << place % 8)
        with pytest.raises(IntegrityError, match="cannot be read") as caught:
            load(tmp_path)
        assert "without --resume" in caught.value.hint
        path.write_bytes(whole)
    assert equal(load(tmp_path), sample())


def test_a_checkpoint_from_before_there_were_seals_is_read(tmp_path: Path) -> None:
    checkpoints.save_file({"model.a": torch.ones(2)}, tmp_path / NAME, {"state": "{}"})
    found = load(tmp_path)
    assert found is not None
    assert torch.equal(found.tensors["model.a"], torch.ones(2))


def test_verify_names_what_was_flipped_in_a_run_and_resume_refuses_it(tmp_path: Path) -> None:
    hub = Registry.create(tmp_path / "hub", BaseInfo("tiny", "f" * 64, quantization="none"))
    run = Run.start(hub.runs_dir, {"verb": "add-task", "name": "news", "seed": 3, "created_at": "2026-01-01"})
    row = json.loads((run.path / "run.json").read_text())
    (run.path / "run.json").write_text(
        json.dumps({**row, "pid": 2**22 + 1, "seal": seals.of_json({**row, "pid": 2**22 + 1})})
    )
    save(run.path, sample())
    assert [problem.problem for problem in hub.verify()] == ["unfinished run of news"]
    assert Run.newest(hub.runs_dir, "add-task", "news").request["seed"] == 3
    flipped(run.path / NAME, -3)
    (problem,) = hub.verify()
    assert (problem.path, problem.problem[:7]) == (f"runs/{run.id}/{NAME}", "changed")
    assert "gc --older-than 0" in problem.fix
    flipped(run.path / NAME, -3)
    text = (run.path / "run.json").read_text()
    (run.path / "run.json").write_text(text.replace('"seed": 3', '"seed": 7'))
    assert [problem.path for problem in hub.verify()] == [f"runs/{run.id}/run.json"]
    with pytest.raises(IntegrityError, match="not what was written") as caught:
        Run.newest(hub.runs_dir, "add-task", "news")
    assert "without --resume" in caught.value.hint
