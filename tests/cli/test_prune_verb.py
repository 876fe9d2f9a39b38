"""`prune` and `gc` as a user types them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_support import Cl

from adapterhub_cl.registry import Registry
from adapterhub_cl.types import AdapterRecord


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ([], "exactly one of NAME, --redundant and --unused"),
        (["mood", "--unused"], "exactly one of"),
        (["--redundant", "--unused"], "exactly one of"),
        (["--unused", "--rank", "3"], "--rank can only be used with the NAME"),
        (["--redundant", "--global", "--min-retention", "0.9"], "--min-retention, --global can only be used"),
        (["mood", "--days", "3"], "--days belongs to --unused"),
        (["--unused", "--threshold", "0.5"], "--threshold belongs to --redundant"),
        (["mood", "--rank", "some"], "not a whole number"),
        (["mood", "--rank", "3", "--energy", "0.9"], "each say how many ranks"),
        (["mood", "--rank", "auto"], "needs a bound"),
    ],
)
def test_usage(line: list[str], message: str, cl: Cl, registry: Registry, publish: Callable[..., Any]) -> None:
    publish()
    said = cl("prune", *line, "--hub", registry.path)
    assert said.code == 2
    assert message in said.err
    assert said.out == ""


@pytest.fixture
def three(registry: Registry, publish: Callable[..., AdapterRecord]) -> list[AdapterRecord]:
    """Three versions of one adapter; the last serves."""
    return [publish() for _ in range(3)]


def test_unused_lists_asks_and_removes(cl: Cl, registry: Registry, three: list[AdapterRecord]) -> None:
    hub = ("--hub", registry.path)
    young = cl("prune", "--unused", "--dry-run", *hub)
    assert (young.code, young.out.splitlines()[-1]) == (0, "0 of 3 versions are unused, 0 B")
    line = ("prune", "--unused", "--days", "0", *hub)
    dry = cl(*line, "--dry-run")
    assert dry.code == 0
    assert "2 of 3 versions are unused" in dry.out
    assert "serves mood" in dry.out
    alone = cl(*line)
    assert alone.code == 2
    assert "--yes" in alone.err
    assert cl(*line, stdin="n\n", terminal=True).code == 1
    assert len(registry.adapters(all_versions=True)) == 3
    yes = cl(*line, stdin="y\n", terminal=True)
    assert yes.code == 0
    assert "removed mood@v1, mood@v2" in yes.err
    assert "gc frees the space" in yes.err
    assert [record.ref for record in registry.adapters(all_versions=True)] == ["mood@v3"]
    assert all(record.path.is_dir() for record in three)  # soft
    freed = cl("gc", "--yes", "--json", *hub).json
    assert [Path(item["path"]).name for item in freed["found"]] == ["v1", "v2"]
    assert [record.path.is_dir() for record in three] == [False, False, True]
    assert cl("verify", *hub).out == "ok\n"


def test_unused_as_json(cl: Cl, registry: Registry, three: list[AdapterRecord]) -> None:
    line = ("prune", "--unused", "--days", "0", "--json", "--hub", registry.path)
    looked = cl(*line, "--dry-run").json
    assert (looked["removed"], looked["dry_run"]) == ([], True)
    done = cl(*line, "--yes").json
    assert done["removed"] == ["mood@v1", "mood@v2"]
    verdicts = {row["ref"]: row["proposed"] for row in done["versions"]}
    assert verdicts == {"mood@v1": True, "mood@v2": True, "mood@v3": False}


def test_redundant_in_a_hub_of_one(cl: Cl, registry: Registry) -> None:
    hub = ("--hub", registry.path)
    assert cl("prune", "--redundant", *hub).out == "no two of 0 adapters are similar to 0.9\n"
    assert cl("prune", "--redundant", "--json", *hub).json["pairs"] == []


@pytest.mark.integration
def test_prune_a_trained_adapter(cl: Cl, trained: Path) -> None:
    hub = ("--hub", trained)
    before = sorted(path for path in trained.rglob("*"))
    dry = cl("prune", "mood", "--rank", "2", "--store", "int8", "--dry-run", *hub)
    assert dry.code == 0, dry.err
    assert "nothing was written" in dry.out
    assert "fp32 → int8" in dry.out
    assert sorted(path for path in trained.rglob("*")) == before
    assert cl("prune", "mood", "--rank", "2", "--dry-run", "--json", *hub).json["rank"] == 2

    said = cl("prune", "mood", "--rank", "2", "--store", "int8", "--json", *hub)
    assert said.code == 0, said.err
    made = said.json
    assert (made["ref"], made["status"], made["kind"], made["rank"]) == ("mood@v2", "active", "pruned", 2)
    assert made["metrics"]
    assert made["gate"]["passed"]
    assert set(made["retention"]) == {"mood"}
    assert made["storage"]["format"] == "int8"
    assert made["truncation_error"] > 0
    shown = cl("prune", "mood@v1", "--as", "small", *hub)
    assert shown.code == 0
    assert shown.out.startswith("small@v1  pruned from mood@v1")
    assert "promote small@v1" in shown.err

    assert cl("export", "mood@v2", "-o", "out", *hub).code == 0
    there = {path.name for path in Path("out").iterdir()}
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors", "recipe.json", "task.json"} <= there
    assert "adapter_model.packed.safetensors" not in there
    twins = cl("prune", "--redundant", "--no-eval", "--threshold", "0.4", *hub)
    assert twins.code == 0
    assert "small@v1" in twins.out
    assert cl("predict", "good thing", "--adapter", "mood@v2", *hub).code == 0


@pytest.mark.integration
def test_the_gate_refuses_with_3_and_keeps_it_rejected(cl: Cl, trained: Path) -> None:
    from adapterhub_cl.evaluation.gate import Effect
    from adapterhub_cl.evaluation.measuring import Yardstick

    def measure(self: Yardstick, base: Any, folder: Path) -> Any:
        return [
            Effect(task, "accuracy", 0.8, 0.2, 20, probe.data, "mood@v1") for task, probe in self.probes.items()
        ], []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Yardstick, "measure", measure)
        said = cl("prune", "mood", "--rank", "1", "--min-retention", "0.95", "--json", "--hub", trained)
    assert said.code == 3
    assert (said.json["ref"], said.json["status"], said.json["code"]) == ("mood@v2", "rejected", "gate")
    listed = cl("list", "--json", "--hub", trained).json
    assert [row["ref"] for row in listed] == ["mood@v1"]
    manifest = json.loads((trained / "adapters" / "mood" / "v2" / "manifest.json").read_text())
    assert manifest["status"] == "rejected"
