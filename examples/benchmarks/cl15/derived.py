"""What is made of the hub that `ours` leaves, in a copy of it: one merged or distilled adapter, the bound of training
on everything at once; and what the base says before it has learned anything."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import learning
from jobs import Job
from orders import BUDGETS, COLUMNS, Budget, count_of, tested


def copied(job: Job) -> Any:
    """A copy of a hub that `ours` taught all tasks."""
    from adapterhub_cl import AdapterHub

    if not job.ready:
        raise SystemExit(f"{job.source}: teach `ours` first")
    if not job.place.exists():
        draft = job.place.with_name(f"{job.place.name}.part")
        shutil.rmtree(draft, ignore_errors=True)
        shutil.copytree(job.source, draft)
        draft.rename(job.place)
    return AdapterHub.open(job.place)


def merged(job: Job, settings: Mapping[str, Any]) -> dict[str, Any]:
    """One adapter, merged of all on their factors."""
    return _made(job, "merge", {"seed": settings["seed"]}, settings)


def distilled(job: Job, settings: Mapping[str, Any]) -> dict[str, Any]:
    """One adapter, taught by all on the samples that they keep."""
    return _made(job, "distill", {**settings, "reporter": learning.reporter("distilled")}, settings)


def _made(job: Job, verb: str, given: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a verb of the hub makes of all adapters; one that is there already is only measured."""
    hub, name = copied(job), job.method.slug
    started = time.monotonic()
    if name not in {record.name for record in hub.list()}:
        getattr(hub, verb)(list(job.tasks), name=name, evaluate=False, **{**given, **job.method.options})
    return consolidated(hub, name, job, settings, time.monotonic() - started)


def consolidated(hub: Any, name: str, job: Job, settings: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """What one adapter for all tasks answers: the task told (`given`), and chosen by the hub's router (`scores`)."""
    given, found = [], []
    record = hub.get(name)
    with hub.engine(fallback=False, max_length=settings["max_length"]) as engine:
        for task in job.tasks:
            rows = tested(job.data, task)
            examples = learning.asked(rows, whole=True)
            for kind, told in ((given, task), (found, None)):
                answers = engine.predict(examples, task=told, adapter=record.ref)
                kind.append(learning.mean(a.prediction == r["output"] for a, r in zip(answers, rows, strict=True)))
    return {
        "tasks": list(job.tasks),
        "scores": found,
        "average_accuracy": learning.mean(found),
        "given": given,
        "given_accuracy": learning.mean(given),
        "seconds": round(seconds, 1),
        "parameters": learning.trained(record),
        "stored_mb": learning.stored([record]),
    }


def multitask(job: Job, settings: Mapping[str, Any]) -> dict[str, Any]:
    """One adapter trained on the data of all tasks together, as many rows of each as the other methods pass: the bound
    that the papers compare with. It does not depend on the order, so it is trained for the last stage only."""
    hub, last, budget = copied(job), job.tasks[-1], BUDGETS[job.budget]
    if len(hub.get(last).manifest["takes_over"]) == 0:
        hub.add_task(
            last,
            job.data / f"{last}.train.jsonl",
            eval=job.data / f"{last}.test.jsonl",
            columns=COLUMNS,
            strategy="multitask",
            replay="none",
            max_forgetting=1.0,
            reporter=learning.reporter("multitask"),
            epochs=min(budget.epochs(count_of(job.data, task)) for task in job.tasks),  # small tasks' rows are repeated
            options=dict(job.method.options),
            **settings,
        )
    # The earlier tasks are still served by their own adapters here, so nothing would be routed to this one.
    found = consolidated(hub, last, job, settings, hub.get(last).training["seconds"])
    return {**found, "scores": found["given"], "average_accuracy": found["given_accuracy"]}


# What each method of the hub that `ours` leaves is made with.
MAKES = {
    "merged": merged,
    "merged ctm": merged,
    "distilled": distilled,
    "multitask": multitask,
    "multitask slow": multitask,
}


def zero_shot(base: str, quantization: str, data: Path, tasks: Sequence[str], budget: Budget) -> dict[str, Any]:
    """The base before any training. A causal base scores the labels; an encoder, which has no head, takes the label
    whose name lies nearest to the text: cosine of the mean hidden states, as its makers trained MiniLM to be used."""
    from adapterhub_cl.bases.loading import inspect_base, load_base

    loaded = load_base(inspect_base(base, quantization))
    choose, length = nearest if loaded.is_encoder else likeliest, min(budget.max_length, loaded.context)
    scores = []
    for task in tasks:
        rows = tested(data, task)
        answers = choose(loaded, task, rows, length)
        scores.append(learning.mean(a == row["output"] for a, row in zip(answers, rows, strict=True)))
    return {"tasks": list(tasks), "scores": scores, "average_accuracy": learning.mean(scores)}


def likeliest(base: Any, task: str, rows: Sequence[Mapping[str, str]], max_length: int) -> list[str]:
    from adapterhub_cl import objectives
    from adapterhub_cl.types import Task

    spec = Task(task, "choice", labels=labels_of(rows), instruction=rows[0]["instruction"])
    objective = objectives.of(base.info)
    found = objective.predict(
        base.model, base.tokenizer, spec, learning.asked(rows, whole=True), max_length=max_length, batch_size=32
    )
    return [answer[0] for answer in found]


def nearest(base: Any, task: str, rows: Sequence[Mapping[str, str]], max_length: int) -> list[str]:
    labels = labels_of(rows)
    texts, names = embedded(base, [row["input"] for row in rows], max_length), embedded(base, labels, max_length)
    return [labels[k] for k in (texts @ names.T).argmax(1).tolist()]


def embedded(base: Any, texts: Sequence[str], max_length: int) -> Any:
    """Mean of the last hidden states over the tokens, of length 1: `[texts, hidden]`."""
    import torch

    body, found = base.model.base_model, []
    with torch.no_grad():
        for k in range(0, len(texts), 32):
            batch = base.tokenizer(
                list(texts[k : k + 32]), padding=True, truncation=True, max_length=max_length, return_tensors="pt"
            ).to(base.device)
            states = body(**batch).last_hidden_state.float()
            mask = batch["attention_mask"][..., None]
            found.append((states * mask).sum(1) / mask.sum(1))
    return torch.nn.functional.normalize(torch.cat(found), dim=1)


def labels_of(rows: Sequence[Mapping[str, str]]) -> tuple[str, ...]:
    """The labels that the instruction names would do as well; those of the test rows are all of them."""
    return tuple(sorted({row["output"] for row in rows}))
