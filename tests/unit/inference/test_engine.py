"""The engine: requests of all kinds from many threads, what changes in the hub meanwhile, what goes wrong."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from loras import dense
from routed_hubs import SPECS, UNLIKE, new_hub, on_base, publish, texts

from adapterhub_cl import AdapterHub
from adapterhub_cl.answering import Answer
from adapterhub_cl.answering.decoding import Decoder
from adapterhub_cl.answering.written import WrittenRow
from adapterhub_cl.errors import (
    AdapterError,
    AdapterHubError,
    DataError,
    IntegrityError,
    StorageError,
    UnknownNameError,
    UsageError,
)
from adapterhub_cl.inference import tally
from adapterhub_cl.inference.engine import Engine
from adapterhub_cl.inference.queue import Call
from adapterhub_cl.inference.requests import AnswerRequest, free_request
from adapterhub_cl.objectives.causal_lm import Objective
from adapterhub_cl.registry import Registry
from adapterhub_cl.types import Example, Prediction

NAMES = ("sums", "shouts", "greek", "tales")
SUM, GREEK = "12+34=46 3-2", "αβγδ εζηθ ικλμ"
CAUTIOUS = {"router.false_fallbacks": 0.1}  # what is unlike the samples is certainly out of distribution
KNOWN = {name: texts(name, 6, 50) for name in SPECS}


@pytest.fixture(scope="module")
def made(load_pico: Any, pico_path: Any, tmp_path_factory: pytest.TempPathFactory) -> AdapterHub:
    """Four tasks (`tales` is written freely), with a fitted router; leave it as it is."""
    hub = new_hub(tmp_path_factory.mktemp("engine") / "hub", pico_path("llama"), load_pico(), NAMES)
    with hub.engine() as engine:
        engine.prepare()
    return hub


@pytest.fixture
def blank(made: AdapterHub, tmp_path: Path) -> AdapterHub:
    """A hub without adapters."""
    return on_base(Registry.create(tmp_path / "blank", made.base), made.load_base())


def adapters_of(found: Sequence[Prediction]) -> list[str]:
    return [one.adapter for one in found]


def same(one: Prediction, other: Prediction) -> None:
    assert one.confidence == pytest.approx(other.confidence, abs=1e-4)
    assert one.routing == pytest.approx(other.routing, abs=1e-4)
    assert dict(one.scores) == pytest.approx(dict(other.scores), abs=1e-4)
    for key in ("text", "adapter", "prediction", "task", "adapters", "out_of_distribution", "truncated"):
        if key != "adapters":
            assert getattr(one, key) == getattr(other, key)
    assert dict(one.adapters) == pytest.approx(dict(other.adapters), abs=1e-4)


# -- answering ---------------------------------------------------------------------------------------


def requests() -> list[tuple[str, dict[str, Any]]]:
    """Requests of all kinds: (method, arguments)."""
    found: list[tuple[str, dict[str, Any]]] = []
    for name in NAMES:
        for text in KNOWN[name][:2]:
            found += [
                ("submit", {"text": text, "max_new_tokens": 6}),
                ("submit", {"text": text, "task": "sums", "max_new_tokens": 6}),
                ("submit", {"text": text, "adapter": "greek@v1"}),
                ("submit", {"text": text, "top_k": 2, "max_new_tokens": 6}),
                ("generate", {"text": text, "adapter": "tales", "max_new_tokens": 5, "temperature": 0.8, "seed": 4}),
                ("generate", {"text": text, "max_new_tokens": 4}),
            ]
    found += [
        ("submit", {"text": UNLIKE, "max_new_tokens": 5}),
        ("submit", {"text": "x", "adapter": "base", "task": "sums"}),
        ("generate", {"text": "once", "adapter": "base", "raw": True, "max_new_tokens": 5}),
        ("chat", {"messages": [{"role": "user", "content": KNOWN["shouts"][0]}], "max_new_tokens": 4}),
    ]
    return found


def ask(engine: Engine, method: str, given: dict[str, Any]) -> Prediction:
    found = getattr(engine, method)(**given)
    return found.result() if isinstance(found, Future) else found


def test_requests_from_eight_threads_are_answered_as_one_after_another(engine: Engine) -> None:
    asked = requests()
    right = [ask(engine, *one) for one in asked]
    assert {one.adapter for one in right} == {"base", *(f"{name}@v1" for name in NAMES)}
    order = list(range(len(asked))) * 2
    random.Random(0).shuffle(order)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda k: ask(engine, *asked[k]), order))
    for k, one in zip(order, found, strict=True):
        same(one, right[k])


def test_the_router_finds_the_task_and_its_adapter_answers(engine: Engine, hub: AdapterHub) -> None:
    inputs = [text for name in NAMES for text in KNOWN[name]]
    found = engine.predict(inputs, max_new_tokens=6)
    assert [one.task for one in found] == [name for name in NAMES for _ in KNOWN[name]]
    assert adapters_of(found) == [f"{one.task}@v1" for one in found]
    assert all(one.routing is not None and 0.5 < one.routing <= 1 for one in found)
    for name in NAMES:  # and the answers are those of the adapter alone, under plain PEFT
        right = hub.predict(KNOWN[name], task=name, max_new_tokens=6)
        for one, other in zip((p for p in found if p.task == name), right, strict=True):
            assert one.prediction == other.prediction
            assert one.confidence == pytest.approx(other.confidence, abs=1e-4)
            assert dict(one.scores) == pytest.approx(dict(other.scores), abs=1e-4)


def test_a_request_may_name_who_answers(engine: Engine) -> None:
    text = KNOWN["greek"][0]
    routed = engine.predict([text])[0]
    assert (routed.adapter, routed.task) == ("greek@v1", "greek")
    named = engine.predict([text], task="sums")[0]
    assert (named.adapter, named.task, named.routing) == ("sums@v1", "sums", None)
    assert named.prediction in SPECS["sums"].labels
    forced = engine.predict([text], adapter="shouts")[0]
    assert (forced.adapter, forced.task, forced.routing) == ("shouts@v1", "shouts", None)
    other = engine.predict([text], task="greek", adapter="sums@v1")[0]
    assert (other.adapter, other.task) == ("sums@v1", "greek")
    assert other.prediction in SPECS["greek"].labels
    base = engine.predict([text], adapter="base")[0]  # the task's prompt and labels, no adapter
    assert (base.adapter, base.task, dict(base.adapters)) == ("base", "greek", {})
    assert dict(base.scores) != dict(routed.scores)


@torch.no_grad()
def test_top_k_answers_with_the_explicit_sum(engine: Engine, load_pico: Any, hub: AdapterHub) -> None:
    text = f"{KNOWN['greek'][0]} {KNOWN['sums'][1]}"
    found = engine.predict([text], top_k=3)[0]
    weights = dict(found.adapters)
    assert len(weights) == 3
    assert sum(weights.values()) == pytest.approx(1)
    assert found.adapter == max(weights, key=weights.__getitem__)
    plain = load_pico()
    for ref, weight in weights.items():
        for name, delta in dense(hub.path(ref)).items():
            plain.model.get_submodule(name).weight += weight * delta.float()
    [(label, confidence, scores, *_)] = Objective().predict(
        plain.model, plain.tokenizer, SPECS[found.task], [Example(text)], max_length=256
    )
    assert found.prediction == label
    assert found.confidence == pytest.approx(confidence, abs=1e-4)
    assert dict(found.scores) == pytest.approx(scores, abs=1e-4)
    assert engine.route([text], top_k=3)[0].adapters == pytest.approx(weights)


def test_a_limit_is_the_context_at_most(hub: AdapterHub) -> None:
    context = hub.load_base().context
    for asked, limit in ((None, context), (100, 100), (10_000, context)):
        with hub.engine(max_length=asked) as engine:
            assert engine._worker.rows.answerer.max_length == limit


def test_requests_of_several_top_k_in_one_batch_keep_their_own(hub: AdapterHub) -> None:
    text = f"{KNOWN['greek'][0]} {KNOWN['sums'][1]}"
    with hub.engine(top_k=2, wait_ms=50) as engine:
        futures = [engine.submit(text, top_k=k) for k in (1, 3, None)]
        assert [len(future.result().adapters) for future in futures] == [1, 3, 2]


def test_what_is_out_of_distribution_is_answered_by_the_base_and_says_so(hub: AdapterHub) -> None:
    with hub.engine(options=CAUTIOUS) as engine:
        found, known = engine.predict([UNLIKE, KNOWN["sums"][0]], max_new_tokens=5)
        assert (found.adapter, found.task, found.out_of_distribution) == ("base", "", True)
        assert (known.adapter, known.out_of_distribution) == ("sums@v1", False)
        route = engine.route([UNLIKE])[0]
        assert (dict(route.adapters), route.out_of_distribution) == ({}, True)
        assert route.familiarity is not None
        assert route.threshold is not None
        assert route.familiarity < route.threshold
        written = engine.generate(UNLIKE, max_new_tokens=5)
        assert (written.adapter, written.out_of_distribution) == ("base", True)
        assert written.prediction.strip() == found.prediction
        named = engine.predict([UNLIKE], task="greek")[0]
        assert (named.adapter, named.out_of_distribution) == ("greek@v1", False)
    with hub.engine(options=CAUTIOUS, fallback=False) as engine:
        found = engine.predict([UNLIKE], max_new_tokens=5)[0]
        assert found.adapter == f"{found.task}@v1"
        assert not found.out_of_distribution
        route = engine.route([UNLIKE])[0]
        assert (dict(route.adapters), route.out_of_distribution) == ({found.adapter: 1.0}, True)


def test_an_adapter_of_several_tasks_lets_the_router_choose_among_them(hub: AdapterHub) -> None:
    publish(hub, "both", 5, takes_over=("greek", "sums"))
    with hub.engine() as engine:
        found = engine.predict([KNOWN["greek"][0], KNOWN["sums"][0], UNLIKE], adapter="both")
        assert adapters_of(found) == ["both@v1"] * 3
        assert [one.task for one in found[:2]] == ["greek", "sums"]
        assert found[2].task in ("greek", "sums")
        assert engine.predict([KNOWN["greek"][0]], adapter="both", task="sums")[0].task == "sums"
        assert engine.predict([KNOWN["shouts"][0]], adapter="both")[0].task in ("greek", "sums")


def test_examples_with_an_instruction_and_broken_characters(engine: Engine) -> None:
    text = KNOWN["greek"][0]
    found = engine.predict([Example(text, None, "Own words."), Example("", None, text), "\ud800" + text])
    assert [one.text for one in found] == [text, text, "���" + text]
    assert [one.task for one in found] == ["greek"] * 3
    assert dict(found[0].scores) != dict(engine.predict([text])[0].scores)
    assert engine.predict([Example("\udfff" + text)])[0].text == "���" + text


# -- the hub changes meanwhile -----------------------------------------------------------------------


@pytest.fixture
def elsewhere(hub: AdapterHub) -> AdapterHub:
    """The same hub, opened once more: what it commits is not known to the engine's own objects."""
    return on_base(Registry.open(hub.folder), hub.load_base())


def test_versions_aliases_and_rollbacks_take_effect_at_once(engine: Engine, elsewhere: AdapterHub) -> None:
    text = KNOWN["sums"][0]

    def now() -> tuple[str, dict[str, float]]:
        routed, named = engine.predict([text])[0], engine.predict([text], task="sums")[0]
        assert routed.adapter == named.adapter == engine.predict([text], adapter="sums")[0].adapter
        return routed.adapter, dict(routed.scores)

    ref, first = now()
    assert ref == "sums@v1"
    publish(elsewhere, "sums", 21)
    ref, second = now()
    assert ref == "sums@v2"
    assert second != pytest.approx(first, abs=1e-3)
    elsewhere.alias("sums@v1", "production")
    assert engine.predict([text])[0].adapter == "sums@v1"
    elsewhere.alias("sums@v2", "production")
    assert engine.predict([text])[0].adapter == "sums@v2"
    elsewhere.rollback("sums@production")
    found = engine.predict([text])[0]
    assert found.adapter == "sums@v1"
    assert dict(found.scores) == pytest.approx(first, abs=1e-4)
    assert dict(engine.predict([text], adapter="sums@v2")[0].scores) == pytest.approx(second, abs=1e-4)


def test_an_alias_moved_by_another_process_takes_effect(engine: Engine, elsewhere: AdapterHub) -> None:
    publish(elsewhere, "sums", 21)
    assert engine.predict([KNOWN["sums"][0]])[0].adapter == "sums@v2"
    code = (
        "import sys; from adapterhub_cl.registry import Registry;"
        "Registry.open(sys.argv[1]).set_alias('sums@v1', 'production')"
    )
    subprocess.run([sys.executable, "-c", code, str(elsewhere.folder)], check=True)
    assert engine.predict([KNOWN["sums"][0]])[0].adapter == "sums@v1"


def test_a_deleted_version_answers_no_more(engine: Engine, elsewhere: AdapterHub) -> None:
    publish(elsewhere, "sums", 21)
    assert engine.predict([SUM], adapter="sums@v2")[0].adapter == "sums@v2"
    assert "sums@v2" in engine.bank.refs
    elsewhere.alias("sums@v1", "production")
    elsewhere.registry.delete("sums@v2")
    with pytest.raises(UnknownNameError, match="v2"):
        engine.predict([SUM], adapter="sums@v2")
    assert "sums@v2" not in [*engine.bank.refs, *engine.bank.shelf.refs]
    assert engine.predict([KNOWN["sums"][0]])[0].adapter == "sums@v1"


def test_a_new_task_and_a_forgotten_one(engine: Engine, elsewhere: AdapterHub) -> None:
    new, old = KNOWN["cyrillic"], KNOWN["greek"]
    assert all(one.task != "cyrillic" for one in engine.predict(new, max_new_tokens=2))
    publish(elsewhere, "cyrillic", 8)
    found = engine.predict(new)
    assert [one.task for one in found] == ["cyrillic"] * len(new)
    assert all(one.prediction in SPECS["cyrillic"].labels for one in found)
    assert [one.task for one in engine.predict(old)] == ["greek"] * len(old)
    elsewhere.forget_task("greek")
    assert all(one.task != "greek" for one in engine.predict(old, max_new_tokens=2))
    assert "greek@v1" not in [*engine.bank.refs, *engine.bank.shelf.refs]
    for asked in ({"task": "greek"}, {"adapter": "greek"}, {"adapter": "greek@v1"}):
        with pytest.raises(UnknownNameError, match="greek"):
            engine.predict([GREEK], **asked)  # type: ignore[arg-type]
    assert [one.task for one in engine.predict(new)] == ["cyrillic"] * len(new)


def test_a_rebuilt_index_is_read(engine: Engine, hub: AdapterHub) -> None:
    assert engine.predict([SUM], task="sums")[0].adapter == "sums@v1"
    Registry.rebuild_at(hub.folder)
    publish(on_base(Registry.open(hub.folder), hub.load_base()), "sums", 21)
    assert engine.predict([SUM], task="sums")[0].adapter == "sums@v2"


def test_a_task_that_lost_its_server(engine: Engine, elsewhere: AdapterHub) -> None:
    assert engine.predict(["1"], task="sums")[0].adapter == "sums@v1"
    with elsewhere.registry._index.writing() as connection:
        connection.exec_driver_sql("DELETE FROM serving WHERE task = 'sums'")
    with pytest.raises(AdapterError, match="no adapter serves the task 'sums'"):
        engine.predict(["1"], task="sums")
    assert engine.predict(["1"], adapter="sums")[0].adapter == "sums@v1"
    assert engine.predict([SUM], max_new_tokens=2)[0].task != "sums"


def test_an_index_that_cannot_be_read_for_a_while(engine: Engine, hub: AdapterHub, monkeypatch: Any) -> None:
    publish(hub, "sums", 21)
    with monkeypatch.context() as patch:
        patch.setattr(hub.registry, "serving", lambda: raised(StorageError("the index is busy")))
        with pytest.raises(StorageError, match="busy"):
            engine.predict(["1"], task="sums")
    assert engine.predict(["1"], task="sums")[0].adapter == "sums@v2"


def raised(error: Exception) -> Any:
    raise error


# -- what cannot be answered -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "error", "words"),
    [
        ({"text": "1", "task": "sum"}, UnknownNameError, "did you mean sums"),
        ({"text": "1", "adapter": "sum"}, UnknownNameError, "did you mean sums"),
        ({"text": "1", "adapter": "sums@v7"}, UnknownNameError, "v7"),
        ({"text": ""}, DataError, "the text is empty"),
        ({"text": " \n", "task": "sums"}, DataError, "the text is empty"),
        ({"text": "1", "top_k": 0}, UsageError, "--top-k must be 1 or more"),
        ({"text": "1", "task": 7}, Exception, ""),
    ],
)
def test_a_request_that_cannot_be_answered_harms_no_other(
    hub: AdapterHub, asked: dict[str, Any], error: type[Exception], words: str
) -> None:
    with hub.engine(wait_ms=50) as engine:  # all in one batch
        before, wrong, after = engine.submit(SUM), engine.submit(**asked), engine.submit(GREEK)
        with pytest.raises(error) as caught:
            wrong.result()
        assert words in f"{caught.value} {getattr(caught.value, 'hint', '')}"
        assert (before.result().adapter, after.result().adapter) == ("sums@v1", "greek@v1")


def test_unknown_routers_options_and_settings(hub: AdapterHub) -> None:
    with pytest.raises(UnknownNameError) as caught:
        hub.engine("analitic")
    assert "did you mean analytic" in caught.value.hint
    with pytest.raises(UnknownNameError, match="rigde"):
        hub.engine(options={"analytic.rigde": 1})
    for settings in ({"top_k": 0}, {"capacity": 0}, {"batch_size": 0}, {"wait_ms": -1}):
        with pytest.raises(UsageError, match=next(iter(settings))):
            hub.engine(**settings)  # type: ignore[arg-type]
    with hub.engine() as engine:  # none of these left an engine behind
        assert engine.predict([SUM])[0].adapter == "sums@v1"


def test_inputs_that_are_none(engine: Engine) -> None:
    for wrong in (["1", " "], [Example("")], [Example(" ", None, "\n")]):
        for method in (engine.predict, engine.route, engine.drift):
            with pytest.raises(DataError, match=r"input \d is empty"):
                method(wrong)  # type: ignore[operator]
    with pytest.raises(UsageError, match="a single text was given"):
        engine.predict(SUM)
    with pytest.raises(DataError, match="NoneType"):
        engine.predict([None])  # type: ignore[list-item]
    with pytest.raises(UsageError, match="--temperature"):
        engine.predict(["1"], temperature=-1)
    assert engine.predict([]) == []
    assert engine.route([]) == []


def test_an_adapter_of_another_base_and_a_tampered_one(hub: AdapterHub) -> None:
    publish(hub, "cyrillic", 8, fingerprint="f" * 64)
    file = hub.get("greek@v1").path / "adapter_model.safetensors"
    file.chmod(0o644)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    with hub.engine(wait_ms=50) as engine:
        fine, foreign, broken = (
            engine.submit(SUM),
            engine.submit("а", task="cyrillic"),
            engine.submit("α", task="greek"),
        )
        with pytest.raises(AdapterError, match="cyrillic@v1 was made for another base"):
            foreign.result()
        with pytest.raises(IntegrityError, match=r"adapter_model\.safetensors of greek@v1"):
            broken.result()
        assert fine.result().adapter == "sums@v1"
        with pytest.raises(IntegrityError):  # routed there
            engine.predict([KNOWN["greek"][0]])


def test_a_text_longer_than_the_context(engine: Engine) -> None:
    long = " ".join(KNOWN["sums"] * 40)
    cut, short = engine.predict([long, SUM])
    assert (cut.truncated, short.truncated) == (True, False)
    assert cut.task == "sums"
    assert cut.text == long
    assert engine.predict([long], task="tales", max_new_tokens=3)[0].truncated
    assert engine.generate(long, max_new_tokens=3).truncated  # cut as in its training
    with pytest.raises(
        DataError, match=r"the text has \d+ tokens and more; with 64 new ones .* over the base's 256"
    ) as e:
        engine.generate(long, adapter="base")
    assert "shorten the text or lower --max-new-tokens" in e.value.hint
    with pytest.raises(DataError, match="over the base's 256"):
        engine.generate("short", task="tales", max_new_tokens=256)
    with pytest.raises(DataError, match="over the base's"):
        list(engine.stream(long, adapter="base", raw=True))


def test_a_hub_without_adapters(blank: AdapterHub) -> None:
    with blank.engine() as engine:
        for ask in (
            lambda: engine.predict(["x"]),
            lambda: engine.generate("x"),
            lambda: engine.route(["x"]),
            lambda: engine.drift(["x"]),
            lambda: engine.prepare(),
            lambda: engine.predict(["x"], adapter="base"),
        ):
            with pytest.raises(UsageError, match=r"this hub has no adapters? yet") as caught:
                ask()
            assert "add-task" in caught.value.hint
        with pytest.raises(UnknownNameError):
            engine.predict(["x"], task="sums")
        assert engine.generate("x", adapter="base", max_new_tokens=3).adapter == "base"
        publish(blank, "sums", 0)  # and the first one makes it a hub like any other
        assert engine.predict([SUM])[0].adapter == "sums@v1"


def test_a_hub_whose_tasks_keep_no_samples(blank: AdapterHub) -> None:
    for seed, name in enumerate(("sums", "greek")):
        publish(blank, name, seed, samples=0)
    with blank.engine() as engine:
        for ask in (lambda: engine.predict(["x"]), lambda: engine.route(["x"])):
            with pytest.raises(AdapterError, match="there are none for greek, sums") as caught:
                ask()
            assert "--router arrow" in caught.value.hint
        assert engine.predict(["x"], task="greek")[0].adapter == "greek@v1"
    with blank.engine("arrow") as engine:
        assert engine.predict(["x"])[0].adapter in ("greek@v1", "sums@v1")
        assert engine.route(["x"])[0].confidence > 0
    publish(blank, "shouts", 3)
    with blank.engine() as engine:  # one task that the router knows: it is told what it does not
        assert engine.predict(KNOWN["shouts"])[0].routing == 1
        assert engine.notes == ["the router cannot choose greek, sums, without replay samples: use --task"]


def test_dora_is_refused_by_the_engine_and_served_alone(
    hub: AdapterHub, load_pico: Callable[..., Any], tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, use_dora=True, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(load_pico().model, config).save_pretrained(tmp_path / "dora")
    record = hub.import_adapter(tmp_path / "dora", "dora", labels=("yes", "no"))
    with hub.engine() as engine:
        with pytest.raises(AdapterError, match=r"dora@v1: .*DoRA"):
            engine.predict(["x"], adapter="dora")
        assert engine.predict([SUM])[0].adapter == "sums@v1"
        assert {one.task for one in engine.predict([*KNOWN["sums"], UNLIKE])} <= {*NAMES, ""}
        assert engine.notes == ["the router cannot choose dora, because DoRA cannot be mixed: use --task"]
    found = hub.predict(["x"], adapter="dora")[0]
    assert (found.adapter, found.prediction in ("yes", "no")) == (record.ref, True)


def test_an_error_in_the_worker_reaches_who_asked_and_the_engine_goes_on(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(engine._worker.rows.answerer, "answer", lambda *_, **__: raised(RuntimeError("a bug")))
        futures = [engine.submit(SUM), engine.submit(GREEK, task="greek")]
        for future in futures:
            with pytest.raises(RuntimeError, match="a bug"):
                future.result()
    with monkeypatch.context() as patch:
        patch.setattr(engine._worker.decider, "decide", lambda *_: raised(ZeroDivisionError("in the router")))
        with pytest.raises(ZeroDivisionError):
            engine.predict([SUM])
        with pytest.raises(ZeroDivisionError):
            engine._call(lambda: 1 / 0)
        assert engine.predict(["1"], task="sums")[0].adapter == "sums@v1"
    assert engine.predict([SUM])[0].adapter == "sums@v1"


# -- counters ----------------------------------------------------------------------------------------


def test_counters_add_up(hub: AdapterHub) -> None:
    with hub.engine(options=CAUTIOUS) as engine:
        routed = engine.predict([*KNOWN["sums"], *KNOWN["greek"][:2]])
        fallback = engine.predict([UNLIKE] * 2, max_new_tokens=2)
        engine.predict(["1"] * 3, task="sums")
        engine.predict(["x"], adapter="shouts")
        engine.predict([SUM], adapter="base")
        engine.route(["1", GREEK])  # counts nothing
        with pytest.raises(UsageError):
            engine.predict(["1"], task="nowhere")
    usage = {(one.ref, one.task): one for one in hub.registry.usage()}
    assert {key: (one.requests, one.routed, one.fallbacks) for key, one in usage.items()} == {
        ("base", ""): (2, 0, 2),
        ("base", "sums"): (1, 1, 0),
        ("greek@v1", "greek"): (2, 2, 0),
        ("shouts@v1", "shouts"): (1, 0, 0),
        ("sums@v1", "sums"): (9, 6, 0),
    }
    confidence = sum(one.routing or 0 for one in routed[:6]) / 6
    assert usage["sums@v1", "sums"].mean_confidence == pytest.approx(confidence, abs=1e-6)
    assert usage["base", ""].mean_confidence == pytest.approx(fallback[0].routing, abs=1e-6)
    assert usage["shouts@v1", "shouts"].mean_confidence is None


def test_counters_are_written_now_and_then(hub: AdapterHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "EVERY", 4)
    with hub.engine(batch_size=1) as engine:
        for _ in range(3):
            engine.predict(["1"], task="sums")
        assert hub.registry.usage() == []
        engine.predict(["1"], task="sums")
        engine.route(["1"])  # the worker is past the counting
        assert [one.requests for one in hub.registry.usage()] == [4]


def test_a_hub_that_cannot_be_written_makes_no_request_fail(hub: AdapterHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "EVERY", 2)
    monkeypatch.setattr(tally, "EVERY_S", 0.2)
    count = hub.registry.count_requests
    for error in (StorageError("the hub is read-only"), RuntimeError("something else")):
        with hub.engine() as engine:
            with monkeypatch.context() as patch:
                patch.setattr(hub.registry, "count_requests", lambda _, error=error: raised(error))
                for _ in range(3):
                    assert len(engine.predict(["1", "2"], task="sums")) == 2
                engine.route(["1"])
                assert engine.notes == [f"counters were not written: {error}"]
            until = time.monotonic() + 20
            while engine.notes and time.monotonic() < until:  # written as soon as it can be, although nobody asks
                time.sleep(0.05)
            assert engine.notes == []
    assert hub.registry.count_requests == count
    assert [one.requests for one in hub.registry.usage()] == [12]  # what could not be written was, later


def test_a_text_that_cannot_be_routed_fails_alone(hub: AdapterHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from adapterhub_cl.deciding.decider import Decider

    real = Decider.decide

    def decide(self: Any, view: Any, examples: Sequence[Any], *more: Any) -> Any:
        if any(example.input == "bad" for example in examples):
            raise DataError("a text contains an unknown token", "remove it")
        return real(self, view, examples, *more)

    monkeypatch.setattr(Decider, "decide", decide)
    with hub.engine() as engine:
        asked = [engine.ask(AnswerRequest(Example(text))) for text in ("1", "2", "bad", "3", "4")]
        assert [future.exception(60) is None for future in asked] == [True, True, False, True, True]
        assert isinstance(asked[2].exception(), DataError)


# -- opening and closing -----------------------------------------------------------------------------


def test_one_engine_at_a_time_on_a_hub_object(hub: AdapterHub) -> None:
    with hub.engine() as first:
        with pytest.raises(UsageError, match="works on this hub object already"):
            hub.engine()
        assert hub.predict([KNOWN["sums"][0]])[0].adapter == "sums@v1"  # asks the engine that is there
        assert hub.route([GREEK])[0].tasks.keys() == {"greek"}
        assert hub.generate(GREEK, max_new_tokens=2) == first.generate(GREEK, max_new_tokens=2).prediction
        for options in ({"router": "centroid"}, {"options": {"analytic.ridge": 1}}):
            with pytest.raises(UsageError, match="an engine with the router analytic works"):
                hub.predict(["1"], **options)  # type: ignore[arg-type]
    assert first.closed
    with hub.engine("centroid") as second:
        assert second.predict([KNOWN["sums"][0]])[0].adapter == "sums@v1"


def test_a_task_and_a_router_are_one_too_many(hub: AdapterHub) -> None:
    messages = [{"role": "user", "content": "x"}]
    for ask in (
        lambda: hub.predict(["x"], task="sums", router="analytic"),
        lambda: hub.generate("x", task="sums", router="analytic"),
        lambda: hub.write(messages, task="sums", router="analytic"),
    ):
        with pytest.raises(UsageError, match="both a task and a router"):
            ask()


def test_plain_peft_and_the_engine_share_the_base(engine: Engine, hub: AdapterHub) -> None:
    """`--task` and `--adapter` put PEFT's layers onto the base of a working engine, which waits meanwhile."""
    right = {name: engine.predict(KNOWN[name], task=name, max_new_tokens=3) for name in NAMES}
    stop = threading.Event()
    wrong: list[Any] = []

    def keep_asking() -> None:
        while not stop.is_set():
            for name in NAMES:
                for one, other in zip(
                    engine.predict(KNOWN[name], task=name, max_new_tokens=3), right[name], strict=True
                ):
                    if one.prediction != other.prediction or abs(one.confidence - other.confidence) > 1e-4:
                        wrong.append((one, other))

    thread = threading.Thread(target=keep_asking)
    thread.start()
    try:
        for _ in range(3):
            for name in NAMES:
                alone = hub.predict(KNOWN[name], task=name, max_new_tokens=3)
                assert [one.prediction for one in alone] == [one.prediction for one in right[name]]
    finally:
        stop.set()
        thread.join()
    assert not wrong


def test_close_answers_what_waits(hub: AdapterHub) -> None:
    engine = hub.engine()
    futures = [engine.submit(KNOWN["sums"][k % 6]) for k in range(80)]
    engine.close()
    assert all(future.done() for future in futures)
    assert adapters_of([future.result() for future in futures]) == ["sums@v1"] * 80
    engine.close()  # once more does no harm
    assert hub.load_base().model(input_ids=torch.tensor([[1, 5]])).logits.isfinite().all()
    assert not engine._thread.is_alive()


def test_close_may_abandon_what_waits(hub: AdapterHub) -> None:
    engine = hub.engine()
    go, taken = threading.Event(), threading.Event()
    engine._worker.queue.put([Call(lambda: (taken.set(), go.wait()))])
    taken.wait()
    futures = [engine.submit(SUM) for _ in range(5)]
    closing = threading.Thread(target=engine.close, kwargs={"abandon": True})
    closing.start()
    while not engine.closing:
        pass
    go.set()
    closing.join()
    assert [future.cancelled() for future in futures] == [True] * 5


def test_an_exception_in_the_block_abandons_what_waits(hub: AdapterHub) -> None:
    go = threading.Event()
    futures: list[Future[Prediction]] = []
    taken = threading.Event()

    def hold() -> None:
        taken.set()
        go.wait()

    def leave(engine: Engine) -> None:
        engine._worker.queue.put([Call(hold)])
        taken.wait()
        futures.extend(engine.submit(SUM) for _ in range(5))
        threading.Timer(0.2, go.set).start()
        raise KeyError("out")

    with pytest.raises(KeyError), hub.engine() as engine:
        leave(engine)
    assert [future.cancelled() for future in futures] == [True] * 5
    with pytest.raises(CancelledError):
        futures[0].result()


def test_a_closed_engine_says_so(hub: AdapterHub) -> None:
    with hub.engine(options=CAUTIOUS) as engine:
        pass
    for ask in (
        lambda: engine.predict(["1"]),
        lambda: engine.submit("1"),
        lambda: engine.generate("1"),
        lambda: list(engine.stream("1")),
        lambda: engine.route(["1"]),
        lambda: engine.prepare(),
        lambda: engine.chat([{"role": "user", "content": "1"}]),
    ):
        with pytest.raises(UsageError, match="this engine is closed"):
            ask()
    assert hub.predict([SUM])[0].adapter == "sums@v1"  # an engine of its own


def test_a_new_engine_waits_for_the_one_that_closes(hub: AdapterHub) -> None:
    first, go, taken = hub.engine(), threading.Event(), threading.Event()
    first._worker.queue.put([Call(lambda: (taken.set(), go.wait()))])
    taken.wait()
    future = first.submit(SUM)
    closing = threading.Thread(target=first.close)
    closing.start()
    while not first.closing:
        pass
    threading.Timer(0.2, go.set).start()
    with hub.engine() as second:
        assert first.closed
        assert future.result().adapter == "sums@v1"
        assert second.predict([SUM])[0].adapter == "sums@v1"
    closing.join()


def test_a_callback_may_close_the_engine_but_not_wait_for_it(hub: AdapterHub) -> None:
    engine, caught = hub.engine(), []

    def called(_: Future[Prediction]) -> None:
        try:
            engine.predict([SUM])
        except UsageError as error:
            caught.append(error)
        engine.close()

    go, taken = threading.Event(), threading.Event()
    engine._worker.queue.put([Call(lambda: (taken.set(), go.wait()))])
    taken.wait()
    future = engine.submit(SUM)
    future.add_done_callback(called)
    go.set()
    assert future.result().adapter == "sums@v1"
    engine.close()
    assert engine.closed
    assert "a callback of the engine waits for the engine" in str(caught[0])


# -- writing -----------------------------------------------------------------------------------------


def test_an_emit_that_fails_ends_its_own_answer_only(engine: Engine, hub: AdapterHub) -> None:
    right = engine.generate("abc", adapter="base", raw=True, max_new_tokens=12).prediction
    bad, good = (free_request("abc", None, "base", 1, True, {"max_new_tokens": 12}) for _ in range(2))
    pieces: list[str] = []
    bad.emit = lambda _: raised(ValueError("the other end hung up"))
    good.emit = lambda piece: not pieces.append(piece)  # type: ignore[func-returns-value]
    engine._worker.queue.put([bad, good])
    with pytest.raises(ValueError, match="hung up"):
        bad.future.result()
    assert good.future.result().prediction == "".join(pieces) == right
    with pytest.raises(ValueError, match="hung up"):
        hub.write("abc", adapter="base", raw=True, max_new_tokens=12, emit=bad.emit)


def test_what_began_to_be_written_is_not_begun_again(
    engine: Engine, elsewhere: AdapterHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fails in the middle, and the hub changed meanwhile: a second answer must not follow the half of a first."""
    real, tries = Decoder.step, []

    def broken(self: Decoder) -> Any:
        tries.append(len(self.rows))
        for _ in range(4):
            real(self)
        elsewhere.alias("greek@v1", f"try-{len(tries)}")
        raise AdapterError(f"broke off after {self.rows[0].text()!r}")

    monkeypatch.setattr(Decoder, "step", broken)
    pieces: list[str] = []
    with pytest.raises(AdapterError, match="broke off"):
        pieces.extend(engine.stream("abc", adapter="base", raw=True, max_new_tokens=8))
    assert pieces
    assert len(tries) == 1
    tries.clear()
    with pytest.raises(AdapterError, match="broke off"):
        engine.generate("abc", adapter="base", raw=True, max_new_tokens=8)
    assert len(tries) == 5  # nobody saw anything of it


def test_settings_of_an_answer_are_checked(engine: Engine) -> None:
    for wrong, said in (
        ({"max_new_tokens": "8"}, "not a number of its kind"),
        ({"max_new_tokens": True}, "not a number of its kind"),
        ({"temperature": float("nan")}, "0 or more"),
        ({"seed": -1}, "from 0"),
        ({"stop": (3,)}, "no text"),
        ({"stop": ("",)}, "empty stop string"),
        ({"top_p": 0}, "above 0"),
    ):
        with pytest.raises(UsageError, match=said):
            engine.predict(["x"], **wrong)  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="max_tokens"):
        engine.predict(["x"], max_tokens=3)


def test_a_stream_is_the_text(engine: Engine) -> None:
    for asked in (
        {"task": "tales"},
        {"adapter": "base", "raw": True},
        {"temperature": 0.9, "seed": 3},
        {"stop": ("a",)},
    ):
        right = engine.generate("abc abd", max_new_tokens=20, **asked)  # type: ignore[arg-type]
        pieces = list(engine.stream("abc abd", max_new_tokens=20, **asked))  # type: ignore[arg-type]
        assert "".join(pieces) == right.prediction
        if "stop" in asked:
            assert "a" not in right.prediction
        else:
            assert len(pieces) > 3
    with pytest.raises(DataError, match="the text is empty"):
        list(engine.stream(" "))
    with pytest.raises(UnknownNameError):
        list(engine.stream("x", task="nowhere"))


def test_a_stream_that_is_given_up_stops_the_writing(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    step, written = threading.Semaphore(0), []
    real, halt = WrittenRow.finish, engine._worker.rows.answerer.halt

    def finish(self: WrittenRow) -> Answer:
        written.append(real(self))
        return written[-1]

    monkeypatch.setattr(WrittenRow, "finish", finish)
    monkeypatch.setattr(engine._worker.rows.answerer, "halt", lambda: step.acquire() and halt())
    stream = engine.stream("abc", adapter="base", raw=True, max_new_tokens=150)
    step.release(20)  # so many tokens may be written
    try:
        assert next(stream)
        stream.close()  # type: ignore[attr-defined]
    finally:
        step.release(200)
    assert engine.predict([SUM])[0].adapter == "sums@v1"  # the worker is free
    while not written:
        engine.predict([SUM])
    assert len(engine.base.tokenizer(written[0].text).input_ids) < 40
    assert not written[0].finished


def test_abandoning_ends_what_is_being_written(hub: AdapterHub, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, step = hub.engine(), threading.Semaphore(0)
    halt = engine._worker.rows.answerer.halt
    monkeypatch.setattr(engine._worker.rows.answerer, "halt", lambda: step.acquire() and halt())
    stream = engine.stream("abc", adapter="base", raw=True, max_new_tokens=150)
    step.release(10)
    try:
        first = next(stream)
        engine._worker.halt.set()
    finally:
        step.release(200)
        engine.close(abandon=True)
    assert len(engine.base.tokenizer(first + "".join(stream)).input_ids) < 60


def prompts_of(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The prompts that the engine answers from now on."""
    found: list[str] = []
    real = engine._worker.rows.answerer.answer

    def answer(rows: Any, *given: Any, **more: Any) -> None:
        words, most = engine.base.tokenizer, engine.base.context
        found.extend(words.decode(row.ready(row.tokeniser(words, most), most)[0]) for row in rows)
        real(rows, *given, **more)

    monkeypatch.setattr(engine._worker.rows.answerer, "answer", answer)
    return found


def turns(*said: str, system: str = "") -> list[dict[str, str]]:
    opening = [{"role": "system", "content": system}] if system else []
    return [*opening, *({"role": ("user", "assistant")[k % 2], "content": text} for k, text in enumerate(said))]


def test_chat_shows_the_whole_conversation_to_those_who_learned_one(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = prompts_of(engine, monkeypatch)
    said = turns("HELLO", "hi", "AGAIN", system="be kind")
    found = engine.chat(said, task="shouts", max_new_tokens=3)
    assert (found.adapter, found.text) == ("shouts@v1", "AGAIN")
    whole = "<s>system: be kind\n<s>user: HELLO\n<s>assistant: hi\n<s>user: AGAIN\nassistant:"
    assert prompts.pop() == whole
    assert engine.chat(said, adapter="base", max_new_tokens=3).adapter == "base"
    assert prompts.pop() == whole
    engine.chat(said, task="tales", max_new_tokens=3)  # another format: the same conversation as lines
    assert "be kind\nuser: HELLO\nassistant: hi\nuser: AGAIN" in prompts[0]
    assert "Go on." not in prompts.pop()  # the system message says how to answer, in the instruction's place
    routed = engine.chat(turns("HELLO", "hi", KNOWN["greek"][0]), max_new_tokens=3)  # by the last message
    assert routed.task == "greek"


def test_the_oldest_turns_of_a_conversation_go_first(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = prompts_of(engine, monkeypatch)
    long = [f"{k} " + "y" * 50 for k in range(9)]
    engine.chat(turns(*long, system="be kind"), task="shouts", max_new_tokens=20)
    kept = prompts.pop()
    assert kept.startswith("<s>system: be kind\n<s>user: ")
    assert kept.endswith(f"<s>user: {long[8]}\nassistant:")
    assert long[7] in kept
    assert long[0] not in kept
    assert len(engine.base.tokenizer(kept, add_special_tokens=False).input_ids) <= 256 - 20
    # Several messages of the user in a row: the last one is never dropped.
    said = [{"role": "system", "content": "s"}, *({"role": "user", "content": text} for text in ("z" * 200, "now?"))]
    engine.chat(said, task="shouts", max_new_tokens=64)
    assert prompts.pop() == "<s>system: s\n<s>user: now?\nassistant:"
    found = engine.chat(turns("short", "ok", "y" * 300), task="shouts", max_new_tokens=20)  # of the last one what fits
    assert found.truncated
    kept = prompts.pop()
    assert kept.startswith("<s>user: yyy")
    assert kept.endswith("yyy\nassistant:")


def test_conversations_that_are_none(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    for messages, words in (
        (turns("a", "b"), "does not end with a message of the user"),
        ([{"role": "user"}], "lacks its role or its content"),
        (["hello"], "lacks its role or its content"),
        (turns(" "), "the text is empty"),
        ([], "an empty conversation"),
    ):
        with pytest.raises(AdapterHubError, match=words):
            engine.chat(messages)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="cannot be raw"):
        list(engine.stream(turns("a"), raw=True))
    template = "{{ raise_exception('roles must alternate') if messages | length > 1 else messages[0].content }}"
    monkeypatch.setattr(engine.base.tokenizer, "chat_template", template)
    wrong, fine = engine.submit(SUM), engine.submit(GREEK)
    with pytest.raises(DataError, match="rejects the conversation: roles must alternate"):
        engine.chat(turns("A", "b", "C"), task="shouts")
    assert (wrong.result().adapter, fine.result().adapter) == ("sums@v1", "greek@v1")


def test_the_same_through_the_hub(hub: AdapterHub) -> None:
    """Without a router: plain PEFT writes what the engine writes."""
    for asked in (
        {"text": "abc", "task": "tales"},
        {"text": "ABC", "adapter": "shouts@v1", "temperature": 0.8, "top_p": 0.9, "seed": 2},
        {"text": "abc", "adapter": "base", "raw": True, "stop": ("\n",)},
        {"text": turns("HI", "ho", "HEY"), "task": "shouts"},
    ):
        pieces: list[str] = []
        alone = hub.write(**asked, max_new_tokens=12, emit=lambda piece, to=pieces: not to.append(piece))  # type: ignore[arg-type]
        assert hub._engine is None or hub._engine.closed
        assert "".join(pieces) == alone.prediction
        more = {key: value for key, value in asked.items() if key != "text"}
        with hub.engine() as engine:
            ask = engine.generate if isinstance(asked["text"], str) else engine.chat
            other = ask(asked["text"], max_new_tokens=12, **more)  # type: ignore[operator]
        assert (alone.prediction, alone.adapter, alone.task) == (other.prediction, other.adapter, other.task)
        assert alone.confidence == pytest.approx(other.confidence, rel=1e-3)


def test_drift_is_told_by_the_engine(hub: AdapterHub) -> None:
    with hub.engine(options=CAUTIOUS) as engine:
        found = engine.drift([*KNOWN["sums"], *KNOWN["greek"], *"qzwuyv"])
        said = engine.route([*KNOWN["sums"], *KNOWN["greek"]])
    inside = [next(iter(one.tasks)) for one in said if not one.out_of_distribution]
    assert found.n == 18
    assert 16 - len(inside) <= found.out <= 18 - len(inside)
    assert {name: found.tasks[name] for name in ("sums", "greek")} == {n: inside.count(n) for n in ("sums", "greek")}
    assert len(inside) >= 10
