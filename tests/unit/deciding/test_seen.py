"""What routers look at, against plain computations; and the decider: its options, and keeping in step with a hub."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from loras import write_lora
from peft import PeftModel
from routed_hubs import SPECS, copied, new_hub, publish, texts

from adapterhub_cl import AdapterHub
from adapterhub_cl.bank.bank import LoraBank
from adapterhub_cl.bank.shelf import Shelved, read_adapter
from adapterhub_cl.bases.hidden import pooled
from adapterhub_cl.deciding import decider as deciding
from adapterhub_cl.deciding import seen as seen_module
from adapterhub_cl.deciding.decider import Decider
from adapterhub_cl.deciding.seen import SeenTexts, routing_text
from adapterhub_cl.deciding.view import View
from adapterhub_cl.errors import AdapterError, UnknownNameError, UsageError
from adapterhub_cl.types import Example

TEXTS = ["a stone", "x", "the red apple is good and the blue stone is bad", "", "日本語 🙂"]
LAYERS = ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    root = tmp_path_factory.mktemp("seen")
    return {f"a{k}@v1": write_lora(root / f"a{k}", k, rank=3 + k) for k in range(3)}


@pytest.fixture
def bank(pico_base: Any, folders: Mapping[str, Path]) -> Iterator[LoraBank]:
    def read(ref: str) -> Shelved:
        return read_adapter(folders[ref], pico_base.dtype)

    opened = LoraBank(pico_base, read, capacity=2)
    yield opened
    opened.close()


def test_the_text_by_which_an_input_is_routed() -> None:
    whole = Example("in", "out", "do it")
    assert (routing_text(whole), routing_text(whole, True)) == ("in", "do it\nin")
    assert routing_text(Example("in"), True) == "in"
    # Nothing but an instruction, and raw text, which stands where answers do.
    assert routing_text(Example("", "out?", "do it")) == "out?"
    assert routing_text(Example("", None, "do it"), True) == routing_text(Example("  ", None, "do it")) == "do it"
    assert routing_text(Example("", "raw text")) == routing_text(Example("", "raw text"), True) == "raw text"


@pytest.mark.parametrize("batch", [64, 2])
@torch.no_grad()
def test_activity_is_the_plain_mean(
    pico_base: Any, bank: LoraBank, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(seen_module, "ROWS", batch)
    draw = torch.Generator().manual_seed(1)
    directions = {
        name: torch.nn.functional.normalize(torch.randn(4, width, generator=draw), dim=1)
        for name, width in zip(LAYERS, (32, 64), strict=True)
    }
    found = SeenTexts(pico_base, bank, TEXTS, 0, {}).activity(directions)
    assert found.shape == (len(TEXTS), 4)
    for row, text in zip(found, TEXTS, strict=True):
        inputs: dict[str, torch.Tensor] = {}
        hooks = [
            pico_base.model.get_submodule(name).register_forward_pre_hook(
                lambda _, given, name=name, inputs=inputs: inputs.__setitem__(name, given[0][0])
            )
            for name in LAYERS
        ]
        pico_base.model(input_ids=torch.tensor([pico_base.tokenizer(text).input_ids]))
        for hook in hooks:
            hook.remove()
        means = [((x @ directions[name].T).abs() / x.norm(dim=1, keepdim=True)).mean(0) for name, x in inputs.items()]
        torch.testing.assert_close(row, torch.stack(means).mean(0), atol=1e-5, rtol=1e-4)
    assert SeenTexts(pico_base, bank, TEXTS, 0, {}).activity({}).shape == (len(TEXTS), 0)
    assert all(not pico_base.model.get_submodule(name)._forward_pre_hooks for name in LAYERS)


@pytest.mark.parametrize("batch", [64, 3])
@torch.no_grad()
def test_losses_are_those_of_plain_peft(
    pico_base: Any,
    bank: LoraBank,
    folders: Mapping[str, Path],
    load_pico: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    batch: int,
) -> None:
    monkeypatch.setattr(seen_module, "ROWS", batch)
    serving = {"t0": "a0@v1", "t1": "a1@v1", "also t0": "a0@v1", "t2": "a2@v1"}  # one more than the bank holds
    tasks = ["also t0", "t2", "t0", "t1"]
    found = SeenTexts(pico_base, bank, TEXTS, 0, serving).losses(tasks)
    for column, task in enumerate(tasks):
        model = PeftModel.from_pretrained(load_pico().model, str(folders[serving[task]]))
        for row, text in enumerate(TEXTS):
            ids = pico_base.tokenizer(text).input_ids
            if len(ids) < 2:
                ids = ids * 2  # an empty text
            tokens = torch.tensor([ids])
            right = model(input_ids=tokens, labels=tokens).loss
            torch.testing.assert_close(found[row, column], right, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[:, 0], found[:, 2])


def test_hidden_is_computed_once(pico_base: Any, bank: LoraBank, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def count(base: Any, given: Any, layer: int) -> torch.Tensor:
        calls.append(layer)
        return pooled(base, given, layer)

    monkeypatch.setattr(seen_module, "pooled", count)
    seen = SeenTexts(pico_base, bank, TEXTS, 1, {})
    assert list(seen.texts) == TEXTS
    assert not calls
    assert torch.equal(seen.hidden, pooled(pico_base, TEXTS, 1))
    assert seen.hidden is seen.hidden
    assert calls == [1]


# -- the decider -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(load_pico: Any, pico_path: Any, tmp_path_factory: pytest.TempPathFactory) -> AdapterHub:
    folder = tmp_path_factory.mktemp("decider") / "hub"
    return new_hub(folder, pico_path("llama"), load_pico(), ("sums", "shouts", "greek"))


Decide = Callable[..., Decider]


@pytest.fixture
def decide(small: AdapterHub) -> Iterator[Decide]:
    opened: list[LoraBank] = []

    def run(name: str = "analytic", hub: AdapterHub = small, **options: Any) -> Decider:
        def read(ref: str) -> Shelved:
            return read_adapter(hub.registry.get(ref).path, torch.float32)

        for bank in opened:
            bank.close()
        base = hub.load_base()
        opened.append(LoraBank(base, read))
        given = {key.replace("__", "."): value for key, value in options.items()}
        return Decider(hub.registry, base, opened[-1], name, given)

    yield run
    for bank in opened:
        bank.close()


def tasks_of(decider: Decider, hub: AdapterHub, asked: list[str], view: View | None = None) -> list[str]:
    own = view or View(hub.registry)
    own.refresh()
    found = [r.weights[0][0] for r in decider.decide(own, [Example(text) for text in asked])]
    if view is None:
        own.close()
    return found


def test_forms_in_which_samples_are_learned(decide: Decide) -> None:
    sample = Example("in", "out", "do it")
    assert decide(router__text="bare").forms(sample) == ["in"]
    assert decide(router__text="whole").forms(sample) == ["do it\nin"]
    assert decide().forms(sample) == decide(router__text="both").forms(sample) == ["in", "do it\nin"]


def test_inputs_are_read_as_the_option_says(decide: Decide, small: AdapterHub, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    class Spy(SeenTexts):
        def __init__(self, base: Any, bank: Any, given: Any, *more: Any) -> None:
            super().__init__(base, bank, given, *more)
            read.extend(self.texts)

    monkeypatch.setattr(deciding, "SeenTexts", Spy)
    for text, wanted in (("bare", "1 2"), ("both", "Add.\n1 2"), ("whole", "Add.\n1 2")):
        decider, view = decide(router__text=text), View(small.registry)
        view.refresh()
        read.clear()
        decider.decide(view, [Example("1 2", None, "Add.")])
        assert read == [wanted]
        view.close()


def test_the_layer_is_the_one_that_was_asked_for(decide: Decide, small: AdapterHub) -> None:
    base = small.load_base()
    for layer in (0, 1):
        decider = decide(router__layer=layer)
        assert torch.equal(decider._embed(["12 3"]), pooled(base, ["12 3"], layer))
        assert tasks_of(decider, small, ["12 3+4"]) == ["sums"]
    assert decide(router__layer="-1").layer in (0, 1)
    with pytest.raises(UsageError, match=r"router\.layer 2: this base has 2 layers"):
        decide(router__layer=2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"router__txt": "bare"}, "'txt'"),
        ({"router__text": "half"}, "router.text must be one of bare, whole, both"),
        ({"router__false_fallbacks": 1}, "router.false_fallbacks"),
        ({"centroid__top": 1}, "centroid.top"),
        ({"analytic__ridge": "much"}, "ridge"),
        ({"analytic__rigde": 1}, "rigde"),
    ],
)
def test_options_that_cannot_be_used(decide: Decide, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        decide(**options)
    assert words in f"{caught.value.message} {caught.value.hint}"


def test_an_unknown_router_is_answered_with_the_nearest(decide: Decide) -> None:
    with pytest.raises(UnknownNameError, match="analitic") as caught:
        decide("analitic")
    assert "did you mean analytic" in caught.value.hint


def test_more_false_fallbacks_raise_the_threshold(decide: Decide, small: AdapterHub) -> None:
    thresholds = []
    for share in (0.0, 0.3):
        decider = decide(router__false_fallbacks=share)
        tasks_of(decider, small, ["1"])
        assert decider.opened is not None
        thresholds.append(decider.opened.calibrated.threshold())
    assert thresholds[0] < thresholds[1]


def test_a_second_decider_loads_what_the_first_fitted(decide: Decide, small: AdapterHub, tmp_path: Path) -> None:
    hub = copied(small, tmp_path / "hub")
    asked = [text for name in ("greek", "sums", "shouts") for text in texts(name, 5, 77)]
    first = decide(hub=hub)
    right = tasks_of(first, hub, asked)
    assert right == ["greek"] * 5 + ["sums"] * 5 + ["shouts"] * 5
    again = decide(hub=hub)
    assert tasks_of(again, hub, asked) == right
    assert again.opened is not None
    assert (again.opened.how, again.opened.embedded) == ("loaded", 0)
    tasks_of(decide(hub=hub, router__text="bare"), hub, asked)
    other = decide(hub=hub, router__text="bare")
    tasks_of(other, hub, asked)
    assert other.opened is not None
    assert other.opened.how == "loaded"


@pytest.mark.parametrize("router", ["analytic", "arrow", "perplexity", "centroid", "learned", "mahalanobis"])
def test_a_task_that_comes_or_goes_refreshes_the_stored_router(
    decide: Decide, small: AdapterHub, tmp_path: Path, router: str
) -> None:
    hub = copied(small, tmp_path / "hub")
    tasks_of(decide(router, hub), hub, ["1"])
    publish(hub, "tales", 3)
    late = decide(router, hub)  # as in a new process: of the old tasks nothing is in memory
    view = View(hub.registry)
    tasks_of(late, hub, ["1"], view)
    assert late.opened is not None
    assert late.opened.changed == ["tales"]
    assert late.opened.how == "refreshed"
    assert late.opened.calibrated.tasks == ["greek", "shouts", "sums", "tales"]
    hub.registry.delete("sums@v1")
    tasks_of(late, hub, ["1"], view)
    assert "sums" not in late.opened.calibrated.tasks
    view.close()


def test_a_new_version_brings_its_own_samples(decide: Decide, small: AdapterHub, tmp_path: Path) -> None:
    """What was kept of the old version's samples in memory is not taken for the new one's."""
    hub = copied(small, tmp_path / "hub")
    decider, view = decide(hub=hub), View(hub.registry)
    tasks_of(decider, hub, ["1"], view)
    keeper = decider._keepers["sums"]
    old = decider.kept("sums", keeper)
    publish(hub, "sums", 9)
    tasks_of(decider, hub, ["1"], view)
    record = hub.get("sums@v2")
    assert decider._keepers["sums"].ref == "sums@v2"
    lines = (record.path / "replay.jsonl").read_text(encoding="utf-8").splitlines()
    kept = decider.kept("sums", decider._keepers["sums"])
    assert [one.input for one in kept] == [json.loads(line)["input"] for line in lines]
    assert kept != old
    # What was stored under the new content is of the new samples: fitted from nothing, the router is the same.
    fresh = decide(hub=copied(hub, tmp_path / "again"))
    for file in (fresh.registry.path / "routers").rglob("*.*"):
        file.unlink()
    own = View(fresh.registry)
    own.refresh()
    asked = [Example(text) for name in SPECS for text in texts(name, 4, 5)]
    right = fresh.decide(own, asked, 3)
    found = decider.decide(view, asked, 3)
    for one, other in zip(found, right, strict=True):
        assert dict(one.weights) == pytest.approx(dict(other.weights), abs=1e-4)
        assert one.familiarity == pytest.approx(other.familiarity, rel=1e-3)
    view.close()
    own.close()


def test_tasks_without_samples_are_named(decide: Decide, small: AdapterHub, tmp_path: Path) -> None:
    hub = copied(small, tmp_path / "hub")
    publish(hub, "tales", 3, samples=0)
    decider = decide(hub=hub)
    assert tasks_of(decider, hub, texts("tales", 1)) != ["tales"]
    assert decider.notes == ["the router cannot choose tales, without replay samples: use --task"]
    view = View(hub.registry)
    view.refresh()
    with pytest.raises(AdapterError, match="there are none for tales"):
        decider.decide(view, [Example("x")], 1, ["tales"])
    view.close()
    assert tasks_of(decide("arrow", hub), hub, ["x"])  # looks at weights, needs no samples


def test_an_explanation_names_the_nearest_samples(decide: Decide, small: AdapterHub) -> None:
    sample = json.loads((small.path("greek") / "replay.jsonl").read_text(encoding="utf-8").splitlines()[3])["input"]
    decider, view = decide(), View(small.registry)
    view.refresh()
    plain, explained = (decider.routes(view, [Example(sample)], 2, count)[0] for count in (0, 4))
    view.close()
    assert (plain.scores, plain.nearest) == ({}, ())
    assert set(explained.scores) == {"sums", "shouts", "greek"}
    assert max(explained.scores, key=explained.scores.__getitem__) == "greek"
    assert len(explained.nearest) == 4
    task, text, cosine = explained.nearest[0]
    assert (task, text) == ("greek", sample)
    assert cosine == pytest.approx(1, abs=1e-3)
    assert [c for _, _, c in explained.nearest] == sorted((c for _, _, c in explained.nearest), reverse=True)
    assert (plain.adapters, plain.tasks) == (explained.adapters, explained.tasks)
