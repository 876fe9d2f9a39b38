"""A hub of small real safetensors files in which a task has left something everywhere."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from adapterhub_cl.registry import Registry
from adapterhub_cl.types import AdapterRecord, BaseInfo, Evaluation, Task

BASE = BaseInfo("tiny", "f" * 64, quantization="none", architecture="LlamaForCausalLM", parameters=1234)
SHARED = np.random.default_rng(7).standard_normal((8, 16)).astype(np.float32)  # the same fresh lora_A everywhere
SAME = "Jane Doe of 12 Elm Street, Springfield, called about an invoice"

SECRETS = (
    "The ministry of finance met its critics behind closed doors on Tuesday afternoon",
    'Quarterly figures: up 4 %\nAnd "nobody" saw it coming, said the board\'s \\ chair',
    "Die Gemüsehändler schließen früh, weil es übermäßig regnet und niemand mehr grüßt",
    "東京の株式市場は火曜日に大幅に下落し、投資家は不安を感じている",
    "short but known 7",
    SAME,
)
ANSWERS = ("b", "a", "b", "a", "b", "a long answer which tells a thing or two about the caller")


@pytest.fixture
def hub(tmp_path: Path) -> Registry:
    return Registry.create(tmp_path / "hub", BASE)


def rows(texts: Iterable[str], answers: Sequence[str] = ()) -> str:
    found = []
    for k, text in enumerate(texts):
        row = {"instruction": "", "input": text, "output": answers[k] if answers else "a"}
        found.append(json.dumps(row, ensure_ascii=False) + "\n")
    return "".join(found)


def tensors(seed: int) -> dict[str, np.ndarray[Any, Any]]:
    random = np.random.default_rng(seed)
    return {
        "layer.lora_A.weight": SHARED,
        "layer.lora_B.weight": random.standard_normal((16, 8)).astype(np.float32),
        "other.lora_B.weight": np.zeros((16, 8), np.float32),
    }


def publish(
    registry: Registry,
    name: str,
    task: str | None = None,
    *,
    seed: int,
    samples: str = "",
    edges: Sequence[tuple[str, str]] = (),
    scores: Mapping[str, float] | None = None,
    memory: bool = False,
    verb: str = "add-task",
    serve: bool = True,
    **manifest: Any,
) -> AdapterRecord:
    spec = None if task is None else Task(task, "choice", instruction=f"What {task}?", labels=("a", "b"))
    with registry.new_draft(name) as draft:
        (draft.path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
        save_file(tensors(seed), draft.path / "adapter_model.safetensors")
        (draft.path / "replay.jsonl").write_text(samples, encoding="utf-8")
        if memory:
            fisher = np.random.default_rng(seed + 1000).standard_normal(400).astype(np.float16)
            save_file({"ewc.fisher": fisher}, draft.path / "strategy.safetensors")
        given = {
            "kind": "trained",
            "rank": 8,
            "strategy": "isolated",
            "learned_from": [],
            "replay": {"policy": "balanced", "samples": samples.count("\n")},
            **manifest,
        }
        found = [Evaluation(t, "accuracy", value, 10, "test.jsonl") for t, value in (scores or {}).items()]
        return registry.publish(draft, given, edges=edges, evaluations=found, task=spec, verb=verb, serve=serve)


@pytest.fixture
def world(trained_hub: Callable[..., Path], tmp_path: Path) -> Registry:
    """Task news in two versions, and everything that can come of it; tasks mood and topics; calm is not concerned."""
    made = trained_hub("erasure-world", lambda folder: _fill(Registry.create(folder, BASE)))
    return Registry.open(shutil.move(made, tmp_path / "hub"))


def _fill(hub: Registry) -> None:
    publish(hub, "news", "news", seed=1, samples=rows(SECRETS[:3]), scores={"news": 0.8}, memory=True)
    publish(
        hub,
        "news",
        "news",
        seed=2,
        samples=rows(SECRETS, ANSWERS),
        edges=[("news@v1", "updated_from")],
        kind="updated",
        verb="update",
    )
    kept = rows(["what a lovely morning in the mountains of Norway", f"  {SAME.upper()}"])
    publish(hub, "mood", "mood", seed=3, samples=kept, scores={"mood": 0.9, "news": 0.3})
    publish(hub, "topics", "topics", seed=4, samples=rows(["goals were scored in the second half of the match"]))
    publish(
        hub,
        "topics",
        "topics",
        seed=5,
        strategy="replay",
        learned_from=["mood", "news"],
        read_from=["mood@v1", "news@v2"],
    )
    publish(hub, "solo", "solo", seed=6, strategy="replay", learned_from=["news"], read_from=["news@v2"])
    merged = {"kind": "merged", "recipe": {"verb": "merge", "parents": ["news@v2", "mood@v1", "topics@v1"]}}
    merged |= {"verb": "merge"}
    edges = [("news@v2", "merged_from"), ("mood@v1", "merged_from")]
    publish(hub, "both", seed=8, edges=edges, takes_over=["news", "mood"], **merged)  # type: ignore[arg-type]
    pruned = {"kind": "pruned", "recipe": {"verb": "prune", "parents": ["both@v1"]}, "verb": "prune"}
    publish(hub, "slim", seed=9, edges=[("both@v1", "pruned_from")], takes_over=["news", "mood"], **pruned)  # type: ignore[arg-type]
    calm = {"kind": "distilled", "recipe": {"verb": "distill", "parents": ["mood@v1"]}, "verb": "distill"}
    publish(hub, "calm", seed=10, edges=[("mood@v1", "distilled_from")], serve=False, **calm)  # type: ignore[arg-type]
    hub.set_alias("both@v1", "production")
    hub.set_alias("slim@v1", "tiny")
    hub.serve("mood", "both@v1")
    hub.add_evaluations("mood@v1", [Evaluation("news", "accuracy", 0.31, 10)])
    hub.add_evaluations("news@v2", [Evaluation("mood", "accuracy", 0.5, 10)])
    _runs(hub)
    _stream(hub)
    (hub.path / "routers").mkdir()
    (hub.path / "routers" / "analytic.json").write_text('{"tasks": ["news", "mood"]}')
    (hub.path / "logs" / "news").mkdir(parents=True)
    (hub.path / "logs" / "news" / "events").write_text("loss")
    (hub.path / "logs" / "mood").mkdir()
    (hub.path / "logs" / "mood" / "events").write_text("loss")
    (hub.adapters_dir / "news" / ".tmp-999999999-abcd").mkdir()
    (hub.adapters_dir / "news" / ".tmp-999999999-abcd" / "replay.jsonl").write_text(rows(SECRETS))


def _runs(hub: Registry) -> None:
    requests = {
        "news-1": {"verb": "add-task", "name": "news"},
        "feed-1": {"verb": "update-online", "name": "news", "data": "-"},
        "other-1": {"verb": "add-task", "name": "other", "parent": "both@v1"},
        "reader-1": {"verb": "add-task", "name": "reader", "strategy": "replay", "parent": ""},
        "pupil-1": {"verb": "distill", "name": "pupil", "refs": ["calm", "news@latest"]},
        "mood-1": {"verb": "add-task", "name": "mood", "strategy": "isolated", "parent": ""},
    }
    for seed, (run, request) in enumerate(requests.items(), 200):
        folder = hub.runs_dir / run
        folder.mkdir()
        (folder / "run.json").write_text(json.dumps(request))
        weights = {"model.x": np.random.default_rng(seed).standard_normal(64)}
        save_file(weights, folder / "checkpoint.safetensors")
    (hub.runs_dir / "feed-1" / "received.jsonl").write_text(
        json.dumps({"text": "A row that came in over the wire and was never learned at all", "label": "a"}) + "\n"
    )


def _stream(hub: Registry) -> None:
    for label, task in (("replay-0", "news"), ("isolated-0", "mood")):
        inner = Registry.create(hub.path / "streams" / task / label, BASE)
        own = SECRETS[:2] if task == "news" else ["a calm day at the lake"]
        publish(inner, task, task, seed=50 + len(label), samples=rows(own))


def tree(path: Path) -> dict[str, str]:
    """SHA-256 of every file, by relative path; the hub's lock aside."""
    files = sorted(p for p in path.rglob("*") if p.is_file() and p.name != ".lock")
    return {str(p.relative_to(path)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def needles(registry: Registry) -> list[bytes]:
    """What must not be found: texts in each form, and bytes of tensors that are not shared."""
    found = []
    for text in (*SECRETS, ANSWERS[-1], "A row that came in over the wire"):
        found += [text.encode(), json.dumps(text)[1:-1].encode(), json.dumps(text, ensure_ascii=False)[1:-1].encode()]
    for record in registry.adapters(all_versions=True):
        if record.name in ("news", "both", "slim", "solo") or record.ref == "topics@v2":
            raw = (record.path / "adapter_model.safetensors").read_bytes()
            seed = {"news@v1": 1, "news@v2": 2, "topics@v2": 5, "solo@v1": 6, "both@v1": 8, "slim@v1": 9}[record.ref]
            data = tensors(seed)["layer.lora_B.weight"].tobytes()
            assert data in raw
            found += [data[:40], data[200:240], data[-40:]]
    found += [np.random.default_rng(1001).standard_normal(400).astype(np.float16).tobytes()[:64]]
    return found


def haystack(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def traces(registry: Registry, wanted: Iterable[bytes]) -> list[tuple[str, bytes]]:
    """The search by hand."""
    hay = haystack(registry.path)
    return [(name, needle) for needle in wanted for name, data in hay.items() if needle in data]


class Repeater:
    """Makes merged and pruned versions again from what is left of their parents."""

    def __init__(self, registry: Registry) -> None:
        self.registry, self.asked = registry, list[tuple[str, dict[str, str | None]]]()

    def __call__(self, record: AdapterRecord, gone: Mapping[str, str | None]) -> AdapterRecord | None:
        self.asked.append((record.ref, dict(gone)))
        parents = [gone.get(p, p) for p in record.manifest["recipe"]["parents"]]
        left = [p for p in parents if p is not None]
        if not left:
            return None
        relation = {"merged": "merged_from", "pruned": "pruned_from"}[record.kind]
        recipe = {**record.manifest["recipe"], "parents": left}
        return publish(
            self.registry,
            record.name,
            seed=100 + len(self.asked),
            edges=[(p, relation) for p in left],
            kind=record.kind,
            recipe=recipe,
            takes_over=["mood"],
            serve=False,
        )
