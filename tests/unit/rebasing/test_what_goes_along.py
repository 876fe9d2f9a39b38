"""What `rebase` takes along beside the adapters: samples of facts, columns, settings, augmentation, what serves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from encoder_hubs import Notes, new_hub, write

from adapterhub_cl import AdapterHub
from adapterhub_cl.learning import fact_lessons

OWN: dict[str, Any] = {"epochs": 1, "rank": 4, "learning_rate": 0.01, "dev_share": 0.0, "max_length": 64}
BRIEF: dict[str, Any] = {"epochs": 1, "min_retention": 0.0}


@pytest.fixture
def qwen(pico_path: Callable[[str], Path]) -> str:
    return str(pico_path("qwen2"))


def test_facts_keep_their_samples(
    pico_path: Callable[[str], Path], qwen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fact_lessons, "NEAR", 4)
    monkeypatch.setattr(fact_lessons, "NEAR_HELD_OUT", 2)
    hub = new_hub(tmp_path / "old", pico_path("llama"))
    makers = {"apple": "Ann", "stone": "Bob", "house": "Cy", "river": "Dan", "cloud": "Eve", "table": "Fay"}
    rows = [{"question": f"Who made the {what}?", "answer": who} for what, who in makers.items()]
    own = {**OWN, "max_length": 200, "augment": "paraphrase:2"}
    hub.add_task("makers", write(tmp_path / "makers.jsonl", rows), facts=True, **own)
    notes = Notes()
    hub.rebase(qwen, to=str(tmp_path / "new"), reporter=notes, **BRIEF)
    assert not [note for note in notes.said if "also in the training data" in note or "no replay samples" in note]
    new = AdapterHub.open(tmp_path / "new")
    made, was = new.get("makers"), hub.get("makers")
    assert len((made.path / "replay.jsonl").read_text().splitlines()) == len(makers)
    assert made.manifest["replay"] == was.manifest["replay"]
    for one in (hub, new):
        assert one.route(["Who made the apple?"])[0].adapters == {"makers@v1": 1.0}
    more = write(tmp_path / "more.jsonl", [{"question": "Who made the lamp?", "answer": "Zoe"}])
    new.update("makers", more, facts=True, reporter=notes, epochs=1, max_forgetting=1.0)
    assert "6 replay samples of makers@v1 are mixed in" in notes.said
    assert json.loads((new.get("makers").path / "training.json").read_text())["eval"] is None
