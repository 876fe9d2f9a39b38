"""Runs command lines in this process, on hubs whose adapters are small fake files; one trained hub for the rest."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cl_adapter.__main__ import main

from adapterhub_cl.bases import fingerprint, resolve
from adapterhub_cl.registry import Registry
from adapterhub_cl.types import AdapterRecord, BaseInfo, Evaluation, Task

LABELS = ("negative", "positive")
TRAINING = ["--epochs", "1", "--rank", "4", "--max-length", "64"]


@dataclass(frozen=True)
class Said:
    """What a command line answered."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Stdin(io.StringIO):
    """Standard input that is, or is not, a terminal."""

    def __init__(self, text: str = "", terminal: bool = False) -> None:
        super().__init__(text)
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


Cl = Callable[..., Said]


@pytest.fixture
def cl(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cl:
    """`cl("list", "--json")`: run it in an empty folder, see `Said`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CL_ADAPTER_HUB", raising=False)

    def run(*argv: object, stdin: str = "", terminal: bool = False) -> Said:
        monkeypatch.setattr("sys.stdin", Stdin(stdin, terminal))
        capsys.readouterr()
        code = main([str(word) for word in argv])
        out, err = capsys.readouterr()
        return Said(code, out, err)

    return run


def write_rows(path: Path, rows: Sequence[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def mood_rows(count: int, start: int = 0) -> list[dict[str, str]]:
    words = ("good", "bad", "great", "awful")
    return [
        {"text": f"{words[i % 4]} thing {i}", "label": "negative" if i % 2 else "positive"}
        for i in range(start, start + count)
    ]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "train.jsonl", mood_rows(60))


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """An empty hub of the embedded base at `hub`."""
    base = BaseInfo("tiny", fingerprint(resolve("tiny")), "nf4", None, "LlamaForCausalLM", 5_868_800)
    return Registry.create(tmp_path / "hub", base)


@pytest.fixture
def publish(registry: Registry) -> Callable[..., AdapterRecord]:
    """Publishes a fake version into `registry`."""

    def run(name: str = "mood", *, edges: Sequence[tuple[str, str]] = (), **manifest: Any) -> AdapterRecord:
        spec = Task(name, "choice", instruction="How is it?", labels=LABELS, metric="accuracy")
        classes = {label: {"precision": 0.9, "recall": 0.8, "f1": 0.85, "support": 5} for label in LABELS}
        details = {"interval": [0.7, 0.97], "classes": classes}
        scores = [
            Evaluation(name, "accuracy", 0.9, 10, "test.jsonl", details),
            Evaluation(name, "macro_f1", 0.85, 10, "test.jsonl"),
        ]
        with registry.new_draft(name) as draft:
            (draft.path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
            (draft.path / "adapter_model.safetensors").write_bytes(b"weights" * 50)
            (draft.path / "README.md").write_text(f"# {name}\n")
            given = {
                "kind": "trained",
                "rank": 8,
                "alpha": 16.0,
                "strategy": "isolated",
                "replay": {"policy": "balanced", "samples": 12},
                "base": {"source": "tiny", "fingerprint": registry.base.fingerprint},
                "training": {
                    "settings": {"epochs": 3, "rank": 8, "layers": ""},
                    "data": {"source": "train.jsonl", "sha256": "0" * 64, "examples": 60, "columns": {}},
                    "eval": {"source": "test.jsonl", "sha256": "1" * 64, "examples": 10},
                },
                **manifest,
            }
            return registry.publish(draft, given, edges=edges, evaluations=scores, task=spec, verb="add-task")

    return run


@pytest.fixture(scope="session")
def training_run(_torch: object, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Said]:
    """A hub with one adapter, trained by the command itself, and what the command said."""
    from contextlib import redirect_stderr, redirect_stdout

    folder = tmp_path_factory.mktemp("trained")
    train = write_rows(folder / "train.jsonl", mood_rows(60))
    test = write_rows(folder / "test.jsonl", mood_rows(20, 100))
    hub = folder / "hub"
    assert main(["--hub", str(hub), "init", "--base", "tiny", "--quiet", "--json"]) == 0
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(["add-task", "mood", str(train), "--eval", str(test), *TRAINING, "--hub", str(hub), "--json"])
    return hub, Said(code, out.getvalue(), err.getvalue())


@pytest.fixture
def trained(training_run: tuple[Path, Said], tmp_path: Path) -> Path:
    """A copy of the trained hub that a test may change."""
    return Path(shutil.copytree(training_run[0], tmp_path / "trained"))
