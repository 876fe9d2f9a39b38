"""The verbs that need a base, through the command line on a pico one, stopped at writes spread over all that they make:
killed, and with a disk that is full from there on."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from cl_adapter.__main__ import main
from crashes import Case, check, state_of

from adapterhub_cl import AdapterHub
from adapterhub_cl.errors import AdapterHubError
from adapterhub_cl.registry import Registry
from adapterhub_cl.traffic.journal import Journal, KeptAnswer, Said
from adapterhub_cl.types import Example

ROWS = [
    {"text": f"the {w} thing {k}", "label": "bad" if w == "blue" else "good"} for k in range(6) for w in ("red", "blue")
]
TRAINING = ["--epochs", "1", "--rank", "2", "--max-length", "32", "--batch-size", "4", "--checkpoint-every", "1"]


def run(hub: Path, *words: str) -> str:
    """A command line; its error as an error."""
    before, sys.stderr = sys.stderr, (said := type(sys.stdout)())
    try:
        code = main(["--hub", str(hub), "--quiet", *words])
    finally:
        sys.stderr = before
    if code:
        raise AdapterHubError(said.getvalue() if hasattr(said, "getvalue") else "", str(code))
    return ""


def refs(hub: Path) -> Mapping[str, Any]:
    """What is right at any time: the versions, what serves, and aliases. Scores may have been measured by the way."""
    return {key: value for key, value in state_of(hub).items() if key != "scores"}


@pytest.fixture(scope="module")
def begin(pico_path: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], None]:
    """Makes a copy of a hub with two trained tasks on a pico base."""
    import shutil

    folder = tmp_path_factory.mktemp("verbs")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    hub = AdapterHub.init(folder / "hub", str(pico_path("llama")), quantization="none").folder
    for name in ("mood", "tone"):
        rows = [{**row, "text": f"{name} {row['text']}"} for row in ROWS]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        data = str(folder / f"{name}.jsonl")
        held = folder / f"{name}.test.jsonl"
        held.write_text("".join(json.dumps({**row, "text": f"{row['text']} again"}) + "\n" for row in rows))
        assert main(["--hub", str(hub), "--quiet", "add-task", name, data, "--eval", str(held), *TRAINING]) == 0
    AdapterHub.open(hub).export("mood", folder / "lora")

    def copy(to: Path) -> None:
        shutil.copytree(hub, to)
        shutil.copytree(folder / "lora", to.parent / "lora")
        shutil.copy(folder / "rows.jsonl", to.parent / "rows.jsonl")
        traffic = Journal(to)
        for k in range(24):
            label = ("good", "bad")[k % 2]
            asked = Example(f"mood the {('red', 'blue')[k % 2]} question {k}")
            at = f"2026-11-01T00:00:{k:02}.000+00:00"
            traffic.keep([KeptAnswer(f"a-{k}", at, "mood", "mood@v1", asked, "good", 0.5, None, False)])
            traffic.say(Said(f"a-{k}", label == "good", label, "mood"))

    return copy


def resumed(hub: Path, *words: str) -> str:
    """A training verb, as a user repeats it: with --resume where verify says so."""
    name = words[words.index("--as") + 1] if "--as" in words else words[1]
    registry = Registry.open(hub)
    if any(name in problem.problem and "--resume" in problem.fix for problem in registry.verify()):
        short = [words[0], "--as", name] if "--as" in words else list(words[:2])
        return run(hub, *short, "--resume")
    registry.repair()
    if name in {record.name for record in registry.adapters()}:
        return ""
    return run(hub, *words)


def merged(hub: Path) -> str:
    if "both" in {record.name for record in Registry.open(hub).adapters()}:
        return ""
    return run(hub, "merge", "mood", "tone", "--as", "both", "--min-retention", "0")


ACTS: dict[str, tuple[Callable[[Path], str], int]] = {
    "import": (lambda hub: run(hub, "import", str(hub.parent / "lora"), "--as", "guest", "--labels", "bad,good"), 2),
    "prune": (lambda hub: run(hub, "prune", "mood", "--rank", "1", "--min-retention", "0"), 3),
    "merge": (merged, 4),
    "eval": (lambda hub: run(hub, "eval", "mood", "--data", str(hub.parent / "rows.jsonl")), 3),
    "promote": (lambda hub: run(hub, "promote", "mood", "--max-forgetting", "1"), 3),
    "add-task": (lambda hub: resumed(hub, "add-task", "third", str(hub.parent / "rows.jsonl"), *TRAINING), 7),
    "learn": (
        lambda hub: run(hub, "learn", "--canary", "0.2", "--enough", "10", "--max-forgetting", "1", *TRAINING),
        9,
    ),
    "distill": (
        lambda hub: resumed(hub, "distill", "mood", "tone", "--as", "all", "--min-retention", "0", *TRAINING),
        9,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("verb", ACTS)
def test_a_verb_with_a_base_is_mended_by_itself(tmp_path: Path, begin: Callable[[Path], None], verb: str) -> None:
    act, every = ACTS[verb]
    assert check(Case(act, begin, refs, steps=verb in ("add-task", "distill", "learn")), tmp_path, every=every) > 5
