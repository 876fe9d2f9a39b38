"""Hubs to report on, made of small fake files; and a reader of the page that checks it while it reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from adapterhub_cl.evaluation.gate import Decision, Effect
from adapterhub_cl.registry import Registry
from adapterhub_cl.types import AdapterRecord, BaseInfo, Evaluation, Task

BASE = BaseInfo("tiny", "f" * 64, "nf4", None, "LlamaForCausalLM", 5_868_800)
SHA256 = "1" * 64
Learn = Callable[..., AdapterRecord]
VOID = {"meta", "br", "img", "input", "link", "hr", "col"}


@pytest.fixture
def hub(tmp_path: Path) -> Registry:
    return Registry.create(tmp_path / "shop", BASE, {"max_forgetting": 0.02})


@pytest.fixture
def learn(hub: Registry) -> Learn:
    def run(name: str, scores: Mapping[str, float] | None = None, **options: Any) -> AdapterRecord:
        return learn_into(hub, name, scores, **options)

    return run


def learn_into(
    registry: Registry,
    name: str,
    scores: Mapping[str, float] | None = None,
    *,
    kind: str = "trained",
    task: str | None = None,
    labels: Sequence[str] = ("a", "b"),
    metric: str = "accuracy",
    edges: Sequence[tuple[str, str]] = (),
    recipe_text: str | None = None,
    samples: int = 2,
    n: int = 100,
    bytes: int = 300,  # noqa: A002
    details: Mapping[str, Any] | None = None,
    serve: bool = True,
    **manifest: Any,
) -> AdapterRecord:
    """Publish a version that scores these on its own task (named as the adapter) and on those that it takes over."""
    own = name if task is None else task
    spec = Task(own, "choice", labels=tuple(labels), metric=metric) if own else None
    found = [
        Evaluation(of, metric, value, n, f"{of}.test.jsonl", {"interval": [0.25, 0.95], **(details or {})})
        for of, value in (scores or {}).items()
    ]
    with registry.new_draft(name) as draft:
        (draft.path / "adapter_model.safetensors").write_bytes(b"w" * bytes)
        rows = "".join(json.dumps({"input": f"text {k}", "output": "a"}) + "\n" for k in range(samples))
        (draft.path / "replay.jsonl").write_text(rows)
        if recipe_text is not None:
            (draft.path / "recipe.json").write_text(recipe_text)
        given = {
            "kind": kind,
            "rank": 8,
            "strategy": "isolated",
            "takes_over": [of for of in scores or {} if of != own],
            "replay": {"policy": "balanced", "size": samples, "samples": samples},
            "training": {
                "eval": {"source": f"{own}.test.jsonl", "sha256": SHA256},
                "data": {"columns": {}},
                "settings": {"seed": 0},
                "seconds": 1.5,
            },
            **manifest,
        }
        return registry.publish(
            draft, given, edges=edges, evaluations=found, task=spec, serve=serve, verb=manifest.get("verb", "add-task")
        )


def decision(limit: float, **drops: tuple[float, float]) -> dict[str, Any]:
    """What stands under `gate` in a manifest: task → (before, after), on 100 examples."""
    effects = tuple(
        Effect(task, "accuracy", before, after, 100, "x", "old@v1") for task, (before, after) in drops.items()
    )
    return Decision(limit, effects).to_json()


class Page(HTMLParser):
    """A page, read: text of each section, and what would be fetched. Raises where tags do not balance."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.fetched: list[str] = []
        self.handlers: list[str] = []
        self.texts: dict[str, list[str]] = {"": []}
        self.cells: list[list[str]] = []
        self.section = ""
        self.feed(html)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = dict(attrs)
        assert len(given) == len(attrs), f"an attribute twice in <{tag}>"
        if tag not in VOID and not self._closes_itself():
            self.open.append(tag)
        if tag == "section":
            self.section = given["id"] or ""
            self.texts[self.section] = []
        if "id" in given:
            self.ids.append(given["id"] or "")
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")
        for name, value in attrs:
            if name in ("src", "srcset", "data", "action", "poster", "xlink:href") or (name == "href" and value):
                self.fetched += [value or ""] if not (value or "").startswith("#") else []
            if name.startswith("on"):
                self.handlers.append(name)
            if name == "style":
                assert "url(" not in (value or "")

    def _closes_itself(self) -> bool:
        return (self.get_starttag_text() or "").endswith("/>")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1] == tag, f"</{tag}> where <{self.open[-1]}> is open"
        self.open.pop()
        if tag == "section":
            self.section = ""

    def handle_data(self, data: str) -> None:
        self.texts[self.section].append(data)
        if "td" in self.open or "th" in self.open:
            self.cells[-1][-1] += data

    def text(self, section: str) -> str:
        return " ".join(" ".join(self.texts[section]).split())

    def row(self, first: str) -> list[str]:
        """The first row of a table whose first cell begins so."""
        return next(row for row in self.cells if row and row[0].strip().startswith(first))
