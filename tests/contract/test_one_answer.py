"""Training's evaluation, `eval`, `predict` and the engine give one answer: a score is a score of what users get."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import routed_hubs
from encoder_hubs import COLOURS, QUICK, new_hub, rows, write

from adapterhub_cl import AdapterHub
from adapterhub_cl.answering import Answer
from adapterhub_cl.answering.answerer import Answerer
from adapterhub_cl.errors import AdapterHubError
from adapterhub_cl.inference.engine import Engine
from adapterhub_cl.types import Prediction

CASES = {
    "choice": ("llama", lambda count, seed: rows(COLOURS, count, seed), "accuracy"),
    "free answers": ("llama", lambda count, seed: rows(COLOURS, count, seed), "exact_match"),
    "encoder": ("roberta", lambda count, seed: rows(COLOURS, count, seed), "accuracy"),
}


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[list[Answer]]:
    """The answers of each evaluation from now on, in the order of its rows."""
    found: list[list[Answer]] = []
    whole = Answerer.all

    def spy(self: Answerer, asked: Sequence[Any], **options: Any) -> list[Answer]:
        found.append(whole(self, asked, **options))
        return found[-1]

    monkeypatch.setattr(Answerer, "all", spy)
    return found


def same(found: Sequence[Prediction], answers: Sequence[Answer], apart: float) -> None:
    assert [p.prediction for p in found] == [a.text for a in answers]
    assert [p.confidence for p in found] == pytest.approx([a.confidence for a in answers], abs=apart)
    assert [p.finished for p in found] == [a.finished for a in answers]
    for prediction, answer in zip(found, answers, strict=True):
        assert dict(prediction.scores) == pytest.approx(answer.scores, abs=apart)


@pytest.mark.parametrize("case", CASES)
def test_evaluation_predict_and_engine_give_one_answer(
    case: str, pico_path: Callable[[str], Path], tmp_path: Path, scored: list[list[Answer]]
) -> None:
    kind, make, metric = CASES[case]
    hub: AdapterHub = new_hub(tmp_path / "hub", pico_path(kind))
    held_out, n = write(tmp_path / "test.jsonl", make(11, 1)), 11
    options = {**QUICK, "epochs": 2, "max_length": 200, "kind": "choice" if metric == "accuracy" else "generation"}
    hub.add_task("colours", write(tmp_path / "train.jsonl", make(24, 0)), eval=held_out, **options)
    trained = next(answers for answers in reversed(scored) if len(answers) == n)
    [value] = [e.value for _, e in hub.evaluate(["colours"]) if e.metric == metric]
    evaluated = scored[-1]
    inputs = hub.read_inputs(str(held_out), task="colours")
    predicted = hub.predict(inputs, task="colours")
    with hub.engine(batch_size=3) as engine:
        mixed = engine.predict(inputs, task="colours")
    same(predicted, evaluated, 0)
    same(predicted, trained, 1e-5)
    same(mixed, evaluated, 1e-5)
    gold = [json.loads(line)["output"] for line in held_out.read_text().splitlines()]
    assert len({a.confidence for a in evaluated}) > 1
    assert value == sum(p.prediction == right for p, right in zip(predicted, gold, strict=True)) / n
    if case == "free answers":
        written = [hub.write(example.text, task="colours") for example in inputs[:2]]
        same(written, evaluated[:2], 1e-5)


@pytest.fixture(scope="module")
def several(load_pico: Any, pico_path: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> AdapterHub:
    """Three tasks; `sums` has a second version, which serves it, and `both` was made for two of them."""
    folder = tmp_path_factory.mktemp("several") / "hub"
    hub = routed_hubs.new_hub(folder, pico_path("llama"), load_pico(), ("sums", "greek", "tales"))
    routed_hubs.publish(hub, "sums", 9)
    routed_hubs.publish(hub, "both", 5, takes_over=("greek", "tales"))
    return hub


@pytest.mark.parametrize(
    "named",
    [
        {"task": "sums"},
        {"task": "tales"},
        {"task": "greek"},  # served by an adapter of two tasks
        {"adapter": "sums@v1"},
        {"adapter": "greek"},
        {"adapter": "both", "task": "tales"},
        {"adapter": "sums", "task": "greek"},
        {"adapter": "base", "task": "sums"},
        {"adapter": "base"},
        {"adapter": "both"},
        {},
        {"task": "nothing"},
        {"adapter": "nobody"},
        {"adapter": "sums@v7"},
    ],
    ids=str,
)
def test_all_ways_to_ask_agree_on_who_answers(several: AdapterHub, named: dict[str, str]) -> None:
    text = routed_hubs.texts("greek", 1, 50)[0]

    def asked(hub: AdapterHub | Engine) -> list[Any]:
        ways = [lambda: hub.predict([text], max_new_tokens=4, **named)[0]]
        if isinstance(hub, Engine):
            ways += [lambda: hub.generate(text, max_new_tokens=4, **named)]
        else:
            ways += [lambda: hub.write(text, max_new_tokens=4, **named)]
        found: list[Any] = []
        for ask in ways:
            try:
                one = ask()
            except AdapterHubError as error:
                found.append((type(error), error.message, error.hint))
            else:
                found.append((one.adapter, one.task, one.prediction, dict(one.adapters), sorted(one.scores)))
        return found

    alone = asked(several)
    with several.engine() as engine:
        assert asked(engine) == alone
