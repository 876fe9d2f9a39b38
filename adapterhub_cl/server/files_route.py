"""`/v1/files`: upload training files, look at them, delete them."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse
from starlette.datastructures import UploadFile

from adapterhub_cl.server.failing import Refused
from adapterhub_cl.server.paging import page_after
from adapterhub_cl.server.tuning_store import TuningStore
from adapterhub_cl.server.uploads import PURPOSE, Upload, Uploads


def routes(uploads: Uploads, store: TuningStore) -> APIRouter:
    """The routes of files."""
    found = APIRouter(prefix="/v1/files")

    @found.post("")
    async def upload(http: Request) -> dict[str, Any]:
        async with http.form(max_files=1, max_fields=8, max_part_size=10_000) as form:
            fields = {key for key, _ in form.multi_items()}
            if unknown := sorted(fields - {"file", "purpose"}):
                raise Refused(400, f"this server does not know the field {unknown[0]!r}", "unsupported", unknown[0])
            file, purpose = form.get("file"), form.get("purpose")
            if not isinstance(file, UploadFile):
                raise Refused(400, "send the file as the field `file` of a multipart form", "invalid_request", "file")
            if purpose != PURPOSE:
                raise Refused(400, f"purpose must be {PURPOSE!r}, not {purpose!r}", "invalid_request", "purpose")
            kept: Upload = await run_in_threadpool(uploads.add, file.file, file.filename or "")
        return kept.shown()

    @found.get("")
    async def listed(
        limit: int = Query(10_000, ge=1, le=10_000),
        after: str | None = None,
        order: Literal["asc", "desc"] = "desc",
        purpose: str = PURPOSE,
    ) -> dict[str, Any]:
        rows = [one.shown() for one in await run_in_threadpool(uploads.all)] if purpose == PURPOSE else []
        return page_after(rows[::-1] if order == "asc" else rows, limit, after)

    @found.get("/{file_id}")
    async def one(file_id: str) -> dict[str, Any]:
        return (await run_in_threadpool(uploads.get, file_id)).shown()

    @found.get("/{file_id}/content")
    async def content(file_id: str) -> FileResponse:
        await run_in_threadpool(uploads.get, file_id)
        return FileResponse(uploads.path(file_id), media_type="application/jsonl", filename=f"{file_id}.jsonl")

    @found.delete("/{file_id}")
    async def delete(file_id: str) -> dict[str, Any]:
        await run_in_threadpool(_remove, uploads, store, file_id)
        return {"id": file_id, "object": "file", "deleted": True}

    return found


def _remove(uploads: Uploads, store: TuningStore, file_id: str) -> None:
    uploads.get(file_id)
    with uploads.locked():
        for job in store.unfinished():
            if file_id in (job.training_file, job.validation_file):
                raise Refused(409, f"{job.id} needs {file_id}; cancel it first, or wait", "file_in_use")
        uploads.remove(file_id)
