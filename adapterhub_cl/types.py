"""Frozen records that all packages share. Does not import torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from adapterhub_cl import plotting, showing, training_file
from adapterhub_cl.errors import DataError
from adapterhub_cl.examples import Example as Example
from adapterhub_cl.examples import Layout as Layout
from adapterhub_cl.examples import Turn as Turn

RELATIONS = ("trained_on_top_of", "updated_from", "started_from", "merged_from", "distilled_from",
             "pruned_from", "imported_from")  # fmt: skip
KINDS = ("trained", "updated", "imported", "merged", "distilled", "pruned")
# How many parents must be left to make a derived version again; versions that need training are not made again.
REPEATED_FROM = {"merge": 2, "prune": 1}
DERIVED = ("merged", "distilled", "pruned")  # made from other versions, not from data
STATUSES = ("active", "rejected", "deleted")
TASK_KINDS = ("choice", "generation", "text")
# task kind → its metrics; the first one is the default
METRICS: Mapping[str, tuple[str, ...]] = {
    "choice": ("accuracy", "macro_f1"),
    "generation": ("exact_match", "token_f1", "rouge_l", "strict_match", "reward_accuracy"),
    "text": ("perplexity",),
}
REWARD = "reward_accuracy"  # the metric of a task that was taught by preferences
LATER_FIELDS = ("layout", "max_length", "answer_tokens")  # of a task: older hubs do not have them, and need not
BASE = "base"  # the name that `--adapter` accepts for the base without an adapter
PRODUCTION, LATEST = "production", "latest"  # the aliases that decide what serves
CANARY = "canary"  # the alias of a version that answers a share of its task's requests


# For an encoder's head: task → label → the row of the head that scores it.
HeadRows = Mapping[str, Mapping[str, int]]


@dataclass(frozen=True)
class Task:
    """A named skill: how its prompts are written, its possible answers, and how it is scored.

    Attributes:
        name: the task's name, `[a-z0-9][a-z0-9._-]*`.
        kind: `choice` (one of the labels), `generation` (free answer) or `text` (raw text, scored by perplexity).
        prompt_format: the name of a prompt format, or a template with `{instruction}` and `{input}`.
        instruction: used for inputs without one.
        labels: the answers of a choice task, in a fixed order; empty otherwise.
        metric: the name of the task's main metric.
        layout: the columns of its training data; None if unknown.
        max_length: maximum tokens of prompt and answer together; longer prompts are cut. 0: the base's context.
        answer_tokens: tokens of the longest answer that it was trained on, including its end; 0: unknown.
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
        """The task with the token limit that a version was trained with, if it has none itself."""
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
        value: the metric's value; a share between 0 and 1, except for `perplexity`.
        n: number of examples it was measured on.
        data: where the examples came from (a path, or `replay`).
        details: per-class report, intervals, other metrics of the same pass, `cut_inputs` where inputs were longer than
            the task's limit, `row_scores` of the single examples.
    """

    task: str
    metric: str
    value: float
    n: int
    data: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def _cells(self) -> dict[str, Any]:
        low, high = self.details.get("interval") or (None, None)
        spread = None if low is None else f"{low:.3f} to {high:.3f}"
        return {"task": self.task, "metric": self.metric, "value": float(self.value), "95 %": spread, "n": self.n}

    def _repr_html_(self) -> str:
        return showing.Listing([self])._repr_html_()


@dataclass(frozen=True)
class Edge:
    """A typed edge of the lineage: `child` came from `parent` (both `name@vN`, or a path or URL for imports)."""

    child: str
    parent: str
    relation: str


@dataclass(frozen=True)
class AdapterRecord:
    """One version of an adapter, as recorded in the index.

    Attributes:
        rank: the largest rank in the adapter.
        bytes: size of all its files.
        created_at: UTC, ISO 8601.
        path: its version directory.
        manifest: the whole manifest.
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
    def place(self) -> Path:
        """Where its directory is, or will be once `path` was used: in a hub with a shared store, that fetches it."""
        return self.path

    @property
    def tasks(self) -> list[str]:
        """The tasks that it serves, or would serve: its own first, if it has one."""
        return list(dict.fromkeys(t for t in (self.task, *self.manifest.get("takes_over", ())) if t))

    @property
    def training(self) -> Mapping[str, Any]:
        """The training facts in its manifest; empty for a version that was not trained."""
        return self.manifest.get("training") or {}

    @property
    def retention(self) -> dict[str, float]:
        """Task → share of its parent's score that a merged, distilled or pruned version retains; empty for others."""
        return dict(self.manifest.get("retention") or {})

    @property
    def metrics(self) -> dict[str, float]:
        """The scores measured when the version was made: metric name → value. The one that stands for the task is
        first, even if the version was scored on other data by another one too."""
        found: dict[str, float] = {}
        for row in self.manifest.get("evaluations", ()):
            if row["task"] == self.task:
                found.setdefault(row["metric"], row["value"])
        main = (self.manifest.get("task_spec") or {}).get("metric")
        return {main: found.pop(main), **found} if main in found else found

    @property
    def history(self) -> list[dict[str, Any]]:
        """A row for each epoch of its training: `epoch`, `loss`, `dev_loss` and `dev_accuracy` on the held-out rows,
        `seconds`; empty for a version that was not trained here.

        Raises:
            IntegrityError: its `training.json` cannot be read.
        """
        return training_file.history(self.path)

    def plot(self, ax: Any = None) -> Any:
        """Draw its training curve: loss and accuracy of each epoch; returns matplotlib's axes.

        Args:
            ax: axes to draw on; by default those of a new figure.

        Raises:
            DataError: it was not trained, so there is no curve.
        """
        if not self.history:
            raise DataError(
                f"{self.ref} has no training curve: it is {self.kind}", "versions that add-task or update made have one"
            )
        return plotting.training_curve(
            plotting.axes(ax, (5.0, 3.2)), self.history, self.training.get("best_epoch"), f"training of {self.ref}"
        )

    def state(self, served: int) -> str:
        """Its state: whether it serves (some of) its tasks, is `ready`, or was rejected.

        Args:
            served: how many tasks it serves.
        """
        if self.status != "active":
            return self.status
        if len(self.tasks) > 1 and served:
            return f"serves {served} of {len(self.tasks)}"
        return "serves" if served else "ready"

    def _cells(self) -> dict[str, Any]:
        metric, value = next(iter(self.metrics.items()), (None, None))
        return {
            "ref": self.ref,
            "task": ", ".join(self.tasks[:3]) + (", …" if len(self.tasks) > 3 else ""),
            "kind": self.kind,
            "metric": metric,
            "value": None if value is None else float(value),
            "rank": self.rank,
            "size": showing.size(self.bytes),
            "made": self.created_at[:16].replace("T", " "),
            "aliases": ", ".join(alias for alias in self.aliases if alias != LATEST),
        }

    def _repr_html_(self) -> str:
        facts = {key: told for key, told in self._cells().items() if key not in ("ref", "metric", "value")}
        scores = {metric: showing.number(value) for metric, value in self.metrics.items()}
        labels = ", ".join(str(label) for label in (self.manifest.get("task_spec") or {}).get("labels") or ())
        more = {"status": self.status, **facts, "labels": labels, **scores, "path": str(self.place)}
        return showing.card(self.ref, more)

    def to_json(self) -> dict[str, Any]:
        first = {"ref": self.ref, "name": self.name, "version": self.version, "kind": self.kind}
        facts = ("task", "rank", "bytes", "created_at", "status", "metrics")
        return {**first, "aliases": list(self.aliases), **{key: getattr(self, key) for key in facts}}


class Versions(showing.Listing[AdapterRecord]):
    """A list of versions; a notebook displays it as a table with the state of each."""

    def __init__(self, found: Iterable[AdapterRecord], serving: Mapping[str, str]) -> None:
        super().__init__(found)
        self._served = Counter(serving.values())

    def _cells(self, item: AdapterRecord) -> Mapping[str, Any]:
        return {**item._cells(), "state": item.state(self._served[item.ref])}


@dataclass(frozen=True)
class BaseInfo:
    """The base of a hub.

    Attributes:
        source: `tiny`, a local path, or a Hub id.
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
    """A problem that `verify` found. `fix` is the command or step that fixes it."""

    path: str
    problem: str
    fix: str

    def to_json(self) -> dict[str, str]:
        return asdict(self)


@dataclass(frozen=True)
class Prediction:
    """The answer to one input.

    Attributes:
        adapter: the version that answered (if several were mixed, the one with the most weight), or `base`.
        confidence: probability of the chosen label among the task's labels; for free answers the geometric
            mean of the token probabilities.
        task: the task whose prompt and labels were used; empty if there was none.
        adapters: version → weight, if a router chose.
        routing: the router's confidence in the task, if it chose; None if the request named the task.
        out_of_distribution: whether the router found the input unlike anything it knows, so that the base answered.
        truncated: whether the input was cut to the task's limit, or the answer ended at the task's limit.
        finished: whether the answer ended by itself, not at the limit of new tokens; always true for a choice.
        prompt_tokens: how many tokens the prompt has.
        tokens: of a written answer each token's id and log-probability.
        stopped_at: the stop string that ended a written answer; neither it nor the two before are part of `to_json`.
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
    prompt_tokens: int = field(default=0, repr=False, compare=False)
    tokens: tuple[tuple[int, float], ...] = field(default=(), repr=False, compare=False)
    stopped_at: str = field(default="", repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        row = asdict(self) | {"adapters": [{"ref": ref, "weight": weight} for ref, weight in self.adapters.items()]}
        return {key: value for key, value in row.items() if key not in ("prompt_tokens", "tokens", "stopped_at")}

    def _cells(self) -> dict[str, Any]:
        found = {"text": self.text, "prediction": self.prediction, "confidence": float(self.confidence)}
        found |= {"task": self.task, "routing": self.routing, "adapter": self.adapter}
        ood = self.out_of_distribution
        notes = {"out of distribution": ood, "cut": self.truncated, "unfinished": not self.finished}
        return {**found, "note": ", ".join(note for note, holds in notes.items() if holds)}

    def _repr_html_(self) -> str:
        likely = sorted(self.scores.items(), key=lambda pair: -pair[1])[:8]
        scores = ", ".join(f"{label} {showing.number(score)}" for label, score in likely)
        return showing.card(self.prediction, {**self._cells(), "scores": scores})


@dataclass(frozen=True)
class Route:
    """Where a router sends an input.

    Attributes:
        adapters: version → weight; empty if the base answers.
        tasks: task → weight, in descending order.
        confidence: calibrated probability of the first task.
        familiarity: how similar the input is to the known samples; below `threshold` it is out of distribution.
        scores: task → raw score, if an explanation was requested.
        nearest: (task, sample, cosine) of the most similar replay samples, if requested.
        why: where the scopes of facts decided: the subject that is named, or that none is.
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
    why: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "adapters": [{"ref": ref, "weight": weight} for ref, weight in self.adapters.items()],
            "tasks": [{"task": task, "weight": weight} for task, weight in self.tasks.items()],
            "nearest": [{"task": task, "text": text, "cosine": cosine} for task, text, cosine in self.nearest],
        }

    def _cells(self) -> dict[str, Any]:
        return {
            "text": self.text,
            "task": next(iter(self.tasks), ""),
            "confidence": float(self.confidence),
            "adapters": ", ".join(f"{ref} {weight:.2f}" for ref, weight in self.adapters.items()),
            "note": ", ".join(filter(None, ("out of distribution" * self.out_of_distribution, self.why))),
        }

    def _repr_html_(self) -> str:
        return showing.Listing([self])._repr_html_()
