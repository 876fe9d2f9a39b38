"""Strategies on encoders: several tasks under one adapter with a head for each, and labels that come later."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from encoder_hubs import ANIMALS, COLOURS, QUICK, Notes, data, new_hub, rows, teach, write
from safetensors.torch import load_file
from toys import toy_settings

from adapterhub_cl import AdapterHub, objectives
from adapterhub_cl.adapters.lora import new_adapter
from adapterhub_cl.data.batches import collate
from adapterhub_cl.data.labelled import LabelledTokeniser
from adapterhub_cl.strategies import ROOM, build
from adapterhub_cl.types import Example, Task

FREE = {"max_forgetting": 1.0}  # what is tested here is that it works, not that it never forgets


def head(record: Any) -> tuple[dict[str, dict[str, int]], torch.Tensor]:
    layout = json.loads((record.path / "heads.json").read_text())["rows"]
    return layout, load_file(record.path / "adapter_model.safetensors")["base_model.model.classifier.weight"]


@pytest.fixture(scope="module")
def first(pico_path: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path, str], Any]:
    """Makes a copy of a hub that learned one task by a strategy that others go on from."""
    import shutil

    folder = tmp_path_factory.mktemp("first")
    hub = new_hub(folder / "hub", pico_path("bert_body"))
    teach(hub, folder, "colours", COLOURS, strategy="der+ewc", **FREE)

    def copy(place: Path, _: str = "") -> AdapterHub:
        shutil.copytree(folder / "hub", place)
        return AdapterHub.open(place, dtype="fp32")

    return copy


# Strategies that have the model write are refused on encoders: tests/unit/encoders/test_encoder_bases.py.
SHARING = sorted(name for name in ROOM.names() if name != "isolated" and not ROOM.get(name).writes)


@pytest.mark.parametrize("strategy", SHARING)
def test_every_strategy_gives_each_task_a_head_of_its_own(
    first: Callable[[Path], AdapterHub], tmp_path: Path, strategy: str
) -> None:
    hub = first(tmp_path / "hub")
    record = teach(hub, tmp_path, "animals", ANIMALS, strategy=strategy, **FREE)
    layout, weight = head(record)
    combined = build(strategy)
    shared = combined.shared
    assert set(layout) == ({"colours", "animals"} if shared else {"animals"})
    assert sorted(row for own in layout.values() for row in own.values()) == list(range(len(weight)))
    assert record.metrics["accuracy"] > 0.6
    if shared:
        assert [p.adapter for p in hub.predict(["red stone"], task="colours")] == [record.ref]
        assert hub.predict(["red stone"], task="colours")[0].prediction in COLOURS
    if shared and combined.what_is_read:
        scores = {row["task"]: row["value"] for row in record.manifest["evaluations"]}
        assert scores["colours"] > 0.6
    assert hub.verify() == []


def test_rows_of_other_tasks_do_not_move_where_nothing_asks_them(
    first: Callable[[Path], AdapterHub], tmp_path: Path
) -> None:
    hub = first(tmp_path / "hub")
    before, old = head(hub.get("colours"))
    after, new = head(teach(hub, tmp_path, "animals", ANIMALS, strategy="incremental", **FREE))
    rows_before, rows_after = (list(layout["colours"].values()) for layout in (before, after))
    torch.testing.assert_close(new[rows_after], old[rows_before], atol=0, rtol=0)


def test_a_task_gains_labels_in_an_update(pico_path: Callable[[str], Path], tmp_path: Path) -> None:
    hub = new_hub(tmp_path / "hub", pico_path("bert_body"))
    teach(hub, tmp_path, "animals", ANIMALS)
    one, old = head(hub.get("animals"))
    more = write(tmp_path / "more.jsonl", rows(("horse", "sheep"), 32) + rows(ANIMALS, 16, 3))
    held = data(tmp_path, (*ANIMALS, "horse", "sheep"), 32, 7)
    record = hub.update("animals", more, eval=held, **{**QUICK, "epochs": 10}, **FREE)
    two, new = head(record)
    assert one == {"animals": {"cat": 0, "dog": 1}}
    assert two == {"animals": {"cat": 0, "dog": 1, "horse": 2, "sheep": 3}}
    assert (len(old), len(new)) == (2, 4)
    report = next(s for s in hub.evaluations(record.ref) if s.evaluation.metric == "accuracy").evaluation
    assert report.value > 0.7
    assert set(report.details["classes"]) == {*ANIMALS, "horse", "sheep"}
    notes = Notes()
    other = data(tmp_path, ("horse", "sheep"), 8, 9)
    hub.update("animals", more, eval=other, reporter=notes, **{**QUICK, "epochs": 1}, **FREE)
    assert any(f"animals is measured on {other}, no longer on {held}" in note for note in notes.said)
    hub.update("animals", more, eval=other, reporter=notes, **{**QUICK, "epochs": 1}, **FREE)
    assert sum("no longer on" in note for note in notes.said) == 1, "the same file is no change"
    # The version before still answers, with the labels that it knows.
    assert hub.predict(["cat river 2"], adapter="animals@v1")[0].scores.keys() == {"cat", "dog"}
    assert len(hub.predict(["cat river 2"], task="animals")[0].scores) == 4


def test_lwf_holds_what_the_old_heads_say_to_the_new_inputs(
    first: Callable[[Path], AdapterHub], tmp_path: Path
) -> None:
    asked = [row["input"] for row in rows(ANIMALS, 20, 1)]
    hubs = {name: first(tmp_path / name) for name in ("sequential", "lwf")}
    drift = {}
    for name, hub in hubs.items():
        before = torch.tensor([list(p.scores.values()) for p in hub.predict(asked, task="colours")])
        options = {"lwf.alpha": 10.0} if name == "lwf" else None
        record = teach(hub, tmp_path, "animals", ANIMALS, strategy=name, options=options, **FREE)
        after = torch.tensor([list(p.scores.values()) for p in hub.predict(asked, task="colours")])
        drift[name] = float((after - before).abs().mean())
        assert record.metrics["accuracy"] > 0.6
    assert drift["lwf"] < 0.3 * drift["sequential"]


def test_a_row_is_judged_over_its_own_tasks_labels_only(load_pico: Callable[..., Any]) -> None:
    base = load_pico("bert_body")
    objective = objectives.of(base.info)
    tasks = [Task("colours", "choice", labels=COLOURS), Task("animals", "choice", labels=ANIMALS)]
    with new_adapter(base, toy_settings(), "SEQ_CLS", tasks=tasks) as model:
        encode = {task.name: LabelledTokeniser(base.tokenizer, task, 32) for task in tasks}
        tokens = [encode["animals"](Example("dog stone", "dog")), encode["colours"](Example("red table", "red"))]
        batch = collate(tokens, [0, 1], 0)
        losses = objective.losses(model, batch)
        whole = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    wanted = [-whole[0, 3:].log_softmax(-1)[1], -whole[1, :3].log_softmax(-1)[0]]
    torch.testing.assert_close(losses, torch.stack(wanted))
    gradient = torch.autograd.grad(losses[0], whole, allow_unused=True)[0]
    assert gradient is None or not gradient[0, :3].any()


def test_an_ewc_fisher_of_fewer_labels_holds_only_those(first: Callable[[Path], AdapterHub], tmp_path: Path) -> None:
    from adapterhub_cl.strategies import memory

    hub = first(tmp_path / "hub")
    name = "base_model.model.classifier.weight"
    assert memory(hub.get("colours").path, "ewc")[name].shape == (3, 32)
    record = teach(hub, tmp_path, "animals", ANIMALS, strategy="ewc", **FREE)
    assert memory(record.path, "ewc")[name].shape == (5, 32)


def test_a_stream_gives_its_accuracy_matrix(pico_path: Callable[[str], Path], tmp_path: Path) -> None:
    hub = new_hub(tmp_path / "hub", pico_path("bert_body"))
    tasks = [
        {"name": name, "data": str(data(tmp_path, labels)), "eval": str(data(tmp_path, labels, 24, 1))}
        for name, labels in (("colours", COLOURS), ("animals", ANIMALS))
    ]
    (tmp_path / "stream.json").write_text(json.dumps({"name": "two", "tasks": tasks}))
    (matrix,) = hub.stream(tmp_path / "stream.json", strategies=["replay"], **QUICK)
    assert matrix.tasks == ("colours", "animals")
    assert matrix.rows[1][0] is not None
    assert matrix.rows[1][0] > 0.6
    assert matrix.fwt_gem is None
    assert hub.evaluate(matrix=True).rows[1] == matrix.rows[1]


def test_online_rows_are_learned_and_new_labels_told(pico_path: Callable[[str], Path], tmp_path: Path) -> None:
    import io

    hub = new_hub(tmp_path / "hub", pico_path("bert_body"))
    teach(hub, tmp_path, "animals", ANIMALS)
    lines = [json.dumps(row) for row in rows(ANIMALS, 15, 5)]
    lines.insert(3, json.dumps({"instruction": "Which?", "input": "cow 1", "output": "cow"}))
    notes = Notes()
    made = hub.update_online(
        "animals", io.StringIO("\n".join(lines) + "\n"), every=50, max_forgetting=1.0, reporter=notes, max_length=32
    )
    assert [record.ref for record in made] == ["animals@v2"]
    assert head(made[0])[0] == {"animals": {"cat": 0, "dog": 1}}
    assert any("'cow' is no label of animals" in line for line in notes.said)


def test_multitask_learns_small_tasks_as_often_as_large_ones_where_it_is_asked_to(
    first: Callable[[Path], AdapterHub], tmp_path: Path
) -> None:
    hub = first(tmp_path / "hub")
    few = data(tmp_path, ANIMALS, 12)
    asked = {**QUICK, **FREE, "strategy": "multitask", "epochs": 1}
    plain = hub.add_task("animals", few, **asked)
    balanced = hub.add_task("pets", few, options={"multitask.balance": True}, **asked)
    learned = [json.loads((record.path / "training.json").read_text())["trained_on"] for record in (plain, balanced)]
    assert learned == [48 + 12, 48 + 2 * 4 * 12]
