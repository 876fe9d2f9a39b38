"""`/v1/fine_tuning/jobs`: train an adapter from an uploaded file, and watch or cancel that."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ConfigDict, Field

from adapterhub_cl.registry import Registry
from adapterhub_cl.server.failing import Refused
from adapterhub_cl.server.openai_routes import refuse_unknown
from adapterhub_cl.server.paging import page_after
from adapterhub_cl.server.tuning_order import job_of
from adapterhub_cl.server.tuning_runner import TuningRunner
from adapterhub_cl.server.tuning_store import CANCELLED, ENDED, QUEUED, TuningJob, TuningStore
from adapterhub_cl.server.uploads import Uploads
from adapterhub_cl.server.wire import Body

LIMIT = Query(20, ge=1, le=100)
CANCEL_S = 15.0  # a cancelled job is waited for so long


class TuningHyperparameters(BaseModel):
    model_config = ConfigDict(extra="forbid")
    n_epochs: Literal["auto"] | Annotated[int, Field(ge=1, le=1000)] | None = None
    batch_size: Literal["auto"] | Annotated[int, Field(ge=1, le=4096)] | None = None
    learning_rate_multiplier: Literal["auto"] | Annotated[float, Field(gt=0, le=1000)] | None = None

    def named(self) -> dict[str, Any]:
        """Those that were given and are not `auto`."""
        return {key: value for key, value in self.model_dump().items() if value not in (None, "auto")}


class SupervisedMethod(BaseModel):
    model_config = ConfigDict(extra="forbid")
    hyperparameters: TuningHyperparameters = Field(default_factory=TuningHyperparameters)


class TuningMethod(BaseModel):
    model_config = ConfigDict(extra="allow")
    type: str
    supervised: SupervisedMethod = Field(default_factory=SupervisedMethod)


class TuningAsked(Body):
    """`POST /v1/fine_tuning/jobs`."""

    model: str
    training_file: str
    validation_file: str | None = None
    hyperparameters: TuningHyperparameters | None = None
    method: TuningMethod | None = None
    seed: int | None = Field(None, ge=0, lt=2**32)
    suffix: str | None = Field(None, min_length=1, max_length=64)
    metadata: dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]] | None = Field(
        None, max_length=16
    )
    integrations: list[dict[str, Any]] | None = None
    kind: Literal["choice", "generation"] | None = None  # not OpenAI's: their client sends it as `extra_body`

    def numbers(self) -> dict[str, Any]:
        """The hyperparameters; those of `method` win.

        Raises:
            Refused: another method than supervised training is asked for, or an integration.
        """
        if self.integrations:
            raise Refused(400, "integrations are not served", "unsupported", "integrations")
        if self.method is not None and self.method.type != "supervised":
            said = f"the method {self.method.type[:40]!r} is not served, only 'supervised'"
            raise Refused(400, said, "unsupported", "method")
        old = self.hyperparameters.named() if self.hyperparameters else {}
        return old | (self.method.supervised.hyperparameters.named() if self.method else {})


def routes(registry: Registry, store: TuningStore, uploads: Uploads, runner: TuningRunner, rate: float) -> APIRouter:
    """The routes of fine-tuning.

    Args:
        rate: the learning rate that a multiplier of 1 stands for.
    """
    found = APIRouter(prefix="/v1/fine_tuning/jobs")

    @found.post("")
    async def create(asked: TuningAsked) -> dict[str, Any]:
        refuse_unknown(asked)
        numbers = asked.numbers()
        files = {"training_file": asked.training_file, "validation_file": asked.validation_file}
        about = {"seed": asked.seed or 0, "suffix": asked.suffix, "metadata": asked.metadata, "kind": asked.kind}

        def written() -> TuningJob:
            job = job_of(registry, uploads, rate, asked.model, files, numbers, about)
            with uploads.locked():  # no file is deleted between this look and the job that needs it
                for param, file_id in files.items():
                    if file_id is not None:
                        uploads.get(file_id, param=param)
                store.add(job)
            return job

        job = await run_in_threadpool(written)
        runner.wake()
        return job.shown()

    @found.get("")
    async def listed(http: Request, limit: int = LIMIT, after: str | None = None) -> dict[str, Any]:
        wanted = _metadata_of(http)
        jobs = [job.shown() for job in await run_in_threadpool(store.all)]
        if wanted is not None:
            jobs = [job for job in jobs if _has(job["metadata"], wanted)]
        return page_after(jobs, limit, after)

    @found.get("/{job_id}")
    async def one(job_id: str) -> dict[str, Any]:
        return (await run_in_threadpool(store.get, job_id)).shown()

    @found.get("/{job_id}/events")
    async def events(job_id: str, limit: int = LIMIT, after: str | None = None) -> dict[str, Any]:
        await run_in_threadpool(store.get, job_id)
        return page_after(await run_in_threadpool(store.events, job_id), limit, after)

    @found.get("/{job_id}/checkpoints")
    async def checkpoints(job_id: str, limit: int = LIMIT, after: str | None = None) -> dict[str, Any]:
        await run_in_threadpool(store.get, job_id)
        return page_after([], limit, after)  # a run keeps one checkpoint, for itself; none can be asked

    @found.post("/{job_id}/cancel")
    async def cancel(job_id: str) -> dict[str, Any]:
        job = await run_in_threadpool(store.get, job_id)
        if job.status in ENDED:
            raise Refused(400, f"{job_id} has ended already: {job.status}", "invalid_request")
        job = await run_in_threadpool(store.change, job_id, _cancelled)
        await run_in_threadpool(store.tell, job_id, "the client cancels the job")
        runner.wake()
        until = time.monotonic() + CANCEL_S
        while job.status not in ENDED and time.monotonic() < until:
            await asyncio.sleep(0.1)
            job = await run_in_threadpool(store.get, job_id)
        return job.shown()

    return found


def _cancelled(job: TuningJob) -> TuningJob:
    if job.status == QUEUED and not job.started:
        return replace(job, status=CANCELLED, finished=time.time())
    return replace(job, cancelling=True)


def _metadata_of(http: Request) -> Mapping[str, str] | None:
    """What `metadata[key]=value` asks for in a query; empty for `metadata=null`, None where it is not asked."""
    asked = {key[9:-1]: value for key, value in http.query_params.items() if key.startswith("metadata[")}
    if http.query_params.get("metadata") == "null":
        return {}
    return asked or None


def _has(metadata: Mapping[str, str] | None, wanted: Mapping[str, str]) -> bool:
    if not wanted:
        return not metadata
    return all((metadata or {}).get(key) == value for key, value in wanted.items())
