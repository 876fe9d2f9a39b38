"""The task that a request to learn and its rows describe."""

from __future__ import annotations

from dataclasses import replace

from adapterhub_cl.bases.kinds import is_encoder
from adapterhub_cl.bases.sources import has_chat_template
from adapterhub_cl.data.columns import Examples
from adapterhub_cl.data.guessing import could_be_label, named_kind
from adapterhub_cl.data.learned_layouts import carried
from adapterhub_cl.data.tasks import infer_task
from adapterhub_cl.errors import UsageError
from adapterhub_cl.learning.request import TrainRequest
from adapterhub_cl.types import REWARD, BaseInfo, Layout, Task


def described_task(request: TrainRequest, data: Examples, base: BaseInfo) -> Task:
    """The task that a request and its data describe. It is asked through the base's chat template, where the base has
    one and nobody says otherwise: an instruct model knows no other form so well. What a rebase learns again reads
    the columns that its task reads in the old hub."""
    template = request.prompt_format is None and has_chat_template(base)
    metric = request.metric or (REWARD if data.read.prefers else None)
    task = infer_task(
        request.name,
        data,
        kind=_asked_kind(request, data, base),
        labels=list(request.labels) or None,
        prompt_format="chat" if template else request.prompt_format,
        metric=metric,
        instruction=request.instruction,
    )
    before = (request.rebased_from.get("reads") or {}).get("layout")
    return replace(task, layout=carried(Layout.from_json(before), data.read)) if before and task.layout else task


def _asked_kind(request: TrainRequest, data: Examples, base: BaseInfo) -> str:
    """The kind that the user named, or the only one that can be: facts are free answers, and an encoder has none."""
    if data.read.prefers and request.kind not in ("auto", "generation"):
        raise UsageError(
            f"--kind {request.kind}: preferences are between free answers", "leave --kind out, or say --kind generation"
        )
    if request.kind != "auto":
        return named_kind(request.kind, data.source, data.layout)
    if data.read.prefers:
        return "generation"
    if request.facts:
        return "generation"
    answers = {example.answer for example in data if example.answer is not None}
    repeat = is_encoder(base.architecture) and 0 < 2 * len(answers) <= len(data)
    return "choice" if repeat and all(map(could_be_label, answers)) else "auto"
