"""Frozen records that all rooms share. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from adapterhub_cl.examples import Example as Example
from adapterhub_cl.examples import Layout as Layout
from adapterhub_cl.examples import Turn as Turn

RELATIONS = ("trained_on_top_of", "updated_from", "merged_from", "distilled_from", "pruned_from", "imported_from")
KINDS = ("trained", "updated", "imported", "merged", "distilled", "pruned")
# How many parents must be left for a derived version to be made again; what took training is not.
REPEATED_FROM = {"merge": 2, "prune": 1}
DERIVED = ("merged", "distilled", "pruned")  # made from other versions, not from data
STATUSES = ("active", "rejected", "deleted")
TASK_KINDS = ("choice", "generation", "text")
LATER_FIELDS = ("layout", "max_length", "answer_tokens")  # of a task: hubs made before have none, and stay as they are
BASE = "base"  # what `--adapter` calls the base without any adapter
PRODUCTION, LATEST = "production", "latest"  # the aliases that serve


@dataclass(frozen=True)
class Task:
    """A named skill: how its prompts are written, which answers it knows, how it is scored.

    Attributes:
        name: the task's name, `[a-z0-9][a-z0-9._-]*`.
        kind: `choice` (one of the labels), `generation` (free answer) or `text` (raw text, scored by perplexity).
        prompt_format: the name of a prompt format, or a template with `{instruction}` and `{input}`.
        instruction: used for inputs that come without one.
        labels: the answers of a choice task, in a fixed order; empty otherwise.
        metric: the name of the metric that stands for the task.
        layout: which columns its training data had; None where that is not known.
        max_length: tokens of prompt and answer together; longer prompts are cut. 0: the base's context.
        answer_tokens: tokens of the longest answer that it was trained on, its end included; 0: not known.
    """

    name: str
    kind: str = "generation"
    prompt_format: str = "instruction"
    instruction: str = ""
    labels: tuple[str, ...] = ()
    metric: str = "exact_match"
    layout: Layout | None = None
    max_length: int = 0
    answer_tokens: int = 0

    @property
    def talks(self) -> bool:
        """Whether it was trained on conversations."""
        return self.layout is not None and self.layout.chat is not None

    def to_json(self) -> dict[str, Any]:
        row = {**asdict(self), "labels": list(self.labels), "layout": self.layout.to_json() if self.layout else None}
        return {key: value for key, value in row.items() if value or key not in LATER_FIELDS}

    def limited(self, record: AdapterRecord) -> Task:
        """The task with the limit of tokens that a version was trained with, where it does not say one itself."""
        known = (record.training.get("settings") or {}).get("max_length")
        return replace(self, max_length=int(known)) if known and not self.max_length else self

    def as_text(self) -> Task:
        """Raw text under this task's name, scored by perplexity."""
        return Task(self.name, kind="text", metric="perplexity", max_length=self.max_length)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Task:
        known = {k: row[k] for k in cls.__dataclass_fields__ if k in row}
        layout = Layout.from_json(known["layout"]) if known.get("layout") else None
        return cls(**{**known, "labels": tuple(known.get("labels", ())), "layout": layout})


@dataclass(frozen=True)
class Evaluation:
    """One measured score of one adapter on one task.

    Attributes:
        value: the metric's value; a share between 0 and 1 but for `perplexity`.
        n: number of examples it was measured on.
        data: where the examples came from (a path, or `replay`).
        details: per-class report, intervals, other metrics of the same pass.
    """

    task: str
    metric: str
    value: float
    n: int
    data: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Edge:
    """A typed edge of the lineage: `child` came from `parent` (both `name@vN`, or a path or URL for imports)."""

    child: str
    parent: str
    relation: str


@dataclass(frozen=True)
class AdapterRecord:
    """One version of an adapter, as the index knows it.

    Attributes:
        rank: the largest rank in the adapter.
        bytes: size of all its files.
        created_at: UTC, ISO 8601.
        path: its version directory.
        manifest: the whole manifest, as written.
    """

    name: str
    version: int
    kind: str
    task: str
    rank: int
    bytes: int
    created_at: str
    status: str
    path: Path
    aliases: tuple[str, ...] = ()
    manifest: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def ref(self) -> str:
        return f"{self.name}@v{self.version}"

    @property
    def tasks(self) -> list[str]:
        """The tasks that it answers for, or would: its own first, if it has one."""
        return list(dict.fromkeys(t for t in (self.task, *self.manifest.get("takes_over", ())) if t))

    @property
    def training(self) -> Mapping[str, Any]:
        """What stands in its `training.json`; empty for a version that was not trained."""
        return self.manifest.get("training") or {}

    @property
    def retention(self) -> dict[str, float]:
        """Task → share of its parent's score that a merged, distilled or pruned version keeps; empty for others."""
        return dict(self.manifest.get("retention") or {})

    @property
    def metrics(self) -> dict[str, float]:
        """What was measured when the version was made: metric name → value."""
        found: dict[str, float] = {}
        for row in self.manifest.get("evaluations", ()):
            if row["task"] == self.task:
                found.setdefault(row["metric"], row["value"])
        return found

    def to_json(self) -> dict[str, Any]:
        return {
            "ref": self.ref,
            "name": self.name,
            "version": self.version,
            "kind": self.kind,
            "aliases": list(self.aliases),
            "task": self.task,
            "rank": self.rank,
            "bytes": self.bytes,
            "created_at": self.created_at,
            "status": self.status,
            "metrics": self.metrics,
        }


@dataclass(frozen=True)
class BaseInfo:
    """The base that a hub is bound to.

    Attributes:
        source: `tiny`, a local path, or a hub id.
        fingerprint: SHA-256 over weights, config, tokenizer and chat template.
        quantization: `nf4`, `fp4`, `int8` or `none`.
    """

    source: str
    fingerprint: str
    quantization: str = "nf4"
    revision: str | None = None
    architecture: str = ""
    parameters: int = 0


@dataclass(frozen=True)
class Problem:
    """Something that `verify` found. `fix` is the command or step that mends it."""

    path: str
    problem: str
    fix: str

    def to_json(self) -> dict[str, str]:
        return asdict(self)


@dataclass(frozen=True)
class Prediction:
    """The answer to one input.

    Attributes:
        adapter: the version that answered (of several that were mixed, the weightiest), or `base`.
        confidence: probability of the chosen label among the task's labels; for free answers the geometric
            mean of the token probabilities.
        task: whose prompt and labels were used; empty where there was none.
        adapters: version → weight, where a router chose.
        routing: the router's confidence in the task, where it chose; None where the request named it.
        out_of_distribution: the router knows nothing like this input, so that the base answered.
        truncated: the input was longer than the task's limit and was cut, or the answer was ended by its limit.
        finished: the answer ended by itself, not at the limit of new tokens; always true of a choice.
    """

    text: str
    adapter: str
    prediction: str
    confidence: float
    scores: Mapping[str, float] = field(default_factory=dict)
    task: str = ""
    adapters: Mapping[str, float] = field(default_factory=dict)
    routing: float | None = None
    out_of_distribution: bool = False
    truncated: bool = False
    finished: bool = True

    def to_json(self) -> dict[str, Any]:
        weights = [{"ref": ref, "weight": weight} for ref, weight in self.adapters.items()]
        return {**asdict(self), "adapters": weights}


@dataclass(frozen=True)
class Route:
    """Where a router sends an input.

    Attributes:
        adapters: version → weight; empty where the base answers.
        tasks: task → weight, the weightiest first.
        confidence: calibrated probability of the first task.
        familiarity: how like the known samples the input is; below `threshold` it is out of distribution.
        scores: task → raw score, where an explanation was asked for.
        nearest: (task, sample, cosine) of the nearest replay samples, where asked for.
    """

    text: str
    adapters: Mapping[str, float]
    tasks: Mapping[str, float]
    confidence: float
    out_of_distribution: bool
    familiarity: float | None = None
    threshold: float | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    nearest: tuple[tuple[str, str, float], ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "adapters": [{"ref": ref, "weight": weight} for ref, weight in self.adapters.items()],
            "tasks": [{"task": task, "weight": weight} for task, weight in self.tasks.items()],
            "nearest": [{"task": task, "text": text, "cosine": cosine} for task, text, cosine in self.nearest],
        }
