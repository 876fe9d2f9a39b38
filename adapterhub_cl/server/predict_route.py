"""`POST /v1/predict`: a batch of texts, and for each its label or answer, how sure it is, and who answered."""

from __future__ import annotations

import uuid
from typing import Any

from fastapi import APIRouter, Request

from adapterhub_cl.data.values import whole_characters
from adapterhub_cl.server.asking import Asker
from adapterhub_cl.server.openai_routes import choice_id, refuse_unknown
from adapterhub_cl.server.wire import PredictAsked
from adapterhub_cl.types import Example


def route(asker: Asker) -> APIRouter:
    """The one route."""
    found = APIRouter()

    @found.post("/v1/predict")
    async def predict(http: Request, asked: PredictAsked) -> dict[str, Any]:
        refuse_unknown(asked)
        named = await asker.named(asked.model)
        writing = asker.writing(asked.max_tokens, 0.0, 1.0, 0, (), "max_tokens")
        examples = [Example(whole_characters(text), instruction=asked.instruction) for text in asked.inputs]
        whole = f"pred-{uuid.uuid4().hex}"
        requests = [
            asker.request(http, example, named, writing, choice_id(whole, index))
            for index, example in enumerate(examples)
        ]
        answers = await asker.answers(http, requests)
        keys = ("prediction", "confidence", "scores", "task", "adapter", "routing", "out_of_distribution", "truncated")
        rows: list[dict[str, Any]] = [
            {
                "id": request.id,
                **{key: answer.to_json()[key] for key in keys},
                "adapter_sha256": request.answered_by.sha256 if request.answered_by else "",
            }
            for request, answer in zip(requests, answers, strict=True)
        ]
        return {"id": whole, "object": "list", "data": rows}

    return found
