"""Every verb that writes without a model, killed and starved of disk at its writes; see `crashes`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from crashes import Case, check, state_of
from registry_support import BASE

from adapterhub_cl.registry import Registry
from adapterhub_cl.samples.store import Samples
from adapterhub_cl.types import Evaluation, Task

KEPT = ("a secret of Ann", "a text of nobody", "one more text")


def publish(registry: Registry, name: str, *, texts: tuple[str, ...] = KEPT, **given: Any) -> None:
    edges, serve = given.pop("edges", ()), given.pop("serve", True)
    with registry.new_draft(name) as draft:
        (draft.path / "adapter_model.safetensors").write_bytes(f"weights of {name}".encode())
        (draft.path / "adapter_config.json").write_text("{}")
        rows = [json.dumps({"instruction": "", "input": text, "output": "a"}) + "\n" for text in texts]
        (draft.path / "replay.jsonl").write_text("".join(rows))
        manifest = {"kind": "trained", "rank": 8, "strategy": "isolated", "learned_from": [], **given}
        manifest["replay"] = {"policy": "balanced", "samples": len(texts)}
        task = None if "takes_over" in given else Task(name, "choice", labels=("a", "b"))
        registry.publish(draft, manifest, edges=edges, task=task, serve=serve, verb="import")


def begin(hub: Path) -> None:
    """Task news in three versions, mood in one, both of which serves neither; a score, an alias, a deleted version."""
    registry = Registry.create(hub, BASE)
    for number in range(3):
        publish(registry, "news", texts=(*KEPT, f"only {number}"))
    publish(registry, "mood", texts=("nothing of the kind",))
    edges = [("news@v3", "merged_from"), ("mood@v1", "merged_from")]
    publish(registry, "both", texts=(), kind="merged", takes_over=["news", "mood"], edges=edges, serve=False)
    publish(registry, "old", texts=("an old text",))
    registry.delete("old@v1")
    registry.add_evaluations("news@v1", [Evaluation("news", "accuracy", 0.5, 10)])
    registry.set_alias("news@v1", "production")
    registry.set_alias("news@v2", "production")


def imported(hub: Path) -> str:
    publish(Registry.open(hub), "news", texts=(), kind="imported", edges=[("/elsewhere", "imported_from")])
    return ""


def forgotten(hub: Path) -> str:
    from adapterhub_cl.erasure.removal import forget
    from adapterhub_cl.errors import UnknownNameError

    try:
        forget(Registry.open(hub), "mood", key=hub.parent / "the.key")
    except UnknownNameError as error:
        if "was forgotten" not in error.hint:
            raise
    return ""


EXPORTED = {"adapter_config.json", "adapter_model.safetensors", "task.json", "tokenizer.json", "tokenizer_config.json"}


def begin_export(hub: Path) -> None:
    import transformers.models.auto.tokenization_auto  # noqa: F401 (once here, and not in each child)

    begin(hub)


def exported(hub: Path) -> str:
    from adapterhub_cl.errors import UsageError
    from adapterhub_cl.exporting import ExportOrder, export
    from adapterhub_cl.exporting.peft import Format
    from adapterhub_cl.hub import AdapterHub

    target = hub.parent / "out"
    try:
        opened = AdapterHub.open(hub)
        export(ExportOrder(opened.get("news"), target, opened.base, [], opened.context()), Format())
    except UsageError:  # it is all there, and nothing else
        if {path.name for path in target.iterdir()} != EXPORTED:
            raise
    return ""


def exported_state(hub: Path) -> Mapping[str, Any]:
    out = hub.parent / "out"
    there = {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()} if out.is_dir() else {}
    return {**state_of(hub), "out": there}


def collected(hub: Path) -> str:
    registry = Registry.open(hub)
    registry.collect(registry.garbage(0))
    return ""


def said(done: object) -> str:
    return str(done)


def made(hub: Path) -> str:
    if not (hub / "hub.toml").is_file():
        Registry.create(hub, BASE, {"max_forgetting": 0.02})
    return ""


ACTS: dict[str, Case] = {
    "alias": Case(lambda hub: said(Registry.open(hub).set_alias("news@v3", "production")), begin, state_of),
    "rollback": Case(lambda hub: said(Registry.open(hub).rollback("news@production")), begin, state_of, repeats=False),
    "promote": Case(lambda hub: said(Registry.open(hub).promote("both@v1")), begin, state_of),
    "drop": Case(lambda hub: said(Samples(Registry.open(hub)).drop("news", matching="secret")), begin, state_of),
    "budget": Case(lambda hub: said(Samples(Registry.open(hub)).set_budget(2)), begin, state_of),
    "import": Case(imported, begin, state_of),
    "eval": Case(
        lambda hub: said(Registry.open(hub).add_evaluations("news", [Evaluation("mood", "accuracy", 0.25, 4)])),
        begin,
        state_of,
        repeats=False,
    ),
    "delete": Case(lambda hub: said(Registry.open(hub).delete("news@v1")), begin, state_of, repeats=False),
    "rebuild": Case(lambda hub: said(Registry.rebuild_at(hub)), begin, state_of),
    "gc": Case(collected, begin, state_of),
    "forget": Case(forgotten, begin, state_of, steps=True),
    "init": Case(made, lambda hub: None, lambda hub: state_of(hub) if hub.exists() else {}),
    "export": Case(exported, begin_export, exported_state, steps=True),
}
FAST = {"alias": 2, "promote": 2}  # verb → of how many writes one is tried in each run of the suite


@pytest.mark.parametrize("verb", FAST)
def test_a_verb_that_is_stopped_anywhere_is_mended_by_itself(tmp_path: Path, verb: str) -> None:
    assert check(ACTS[verb], tmp_path, every=FAST[verb]) >= 10


@pytest.mark.slow
@pytest.mark.parametrize("verb", ACTS)
def test_each_verb_that_is_stopped_anywhere_is_mended_by_itself(tmp_path: Path, verb: str) -> None:
    assert check(ACTS[verb], tmp_path) > 10
