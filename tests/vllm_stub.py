"""A small server with vLLM's routes that computes with transformers on a pico base, and what may go wrong with one."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from adapterhub_cl.adapters.lora_files import LoraFile


@dataclass
class StubVllm:
    """What it serves, and its faults.

    Attributes:
        model: a causal language model of transformers.
        loaded: LoRA name → the folder it came from; `factors`: the same → layer → (A, B).
        most: adapters that were loaded at the same time, at most.
        running: LoRA name → requests that are being answered now.
        well: what it says of its health.
        deaf: adapters are taken and do nothing.
        dies_after: tokens after which a stream breaks off.
        slow: seconds before each token.
        bodies: of the requests for completions.
    """

    model: Any
    loaded: dict[str, Path] = field(default_factory=dict)
    factors: dict[str, Any] = field(default_factory=dict)
    most: int = 0
    running: dict[str, int] = field(default_factory=dict)
    unloaded_in_use: list[str] = field(default_factory=list)
    well: bool = True
    deaf: bool = False
    dies_after: int | None = None
    slow: float = 0.0
    runtime_loading: bool = True
    old: bool = False
    key: str = ""
    root: str = "somewhere"
    bodies: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def forget(self) -> None:
        """As after a restart: no adapters."""
        self.loaded.clear()
        self.factors.clear()

    # -- computing -------------------------------------------------------------------------------

    @torch.no_grad()
    def logs(self, name: str, ids: list[int]) -> torch.Tensor:
        """Log-probabilities after each token, `[tokens, vocabulary]`."""
        with self.lock, ExitStack() as stack:
            for layer, (a, b) in {} if self.deaf else self.factors.get(name, {}).items():
                stack.enter_context(hooked(self.model.get_submodule(layer), a, b))
            found: torch.Tensor = self.model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
        return found

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.middleware("http")
        async def guarded(request: Request, go_on: Any) -> Response:
            if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
                return JSONResponse({"error": "Unauthorized"}, 401)
            return await go_on(request)  # type: ignore[no-any-return]

        @app.get("/health")
        def health() -> Response:
            return Response(status_code=200 if self.well else 503)

        @app.get("/v1/models")
        def models() -> dict[str, Any]:
            base = {"id": "the-base", "root": self.root, "parent": None, "max_model_len": 512}
            return {"data": [base, *({"id": n, "root": str(p), "parent": "the-base"} for n, p in self.loaded.items())]}

        @app.post("/v1/load_lora_adapter")
        def load(asked: dict[str, Any]) -> Response:
            name, folder = asked["lora_name"], Path(asked["lora_path"])
            if not self.runtime_loading:
                return JSONResponse({"detail": "Not Found"}, 404)
            if name in self.loaded:
                return JSONResponse({"error": {"message": f"The lora adapter '{name}' has already been loaded."}}, 400)
            config = json.loads((folder / "adapter_config.json").read_text())
            assert config["r"] in (8, 16, 32, 64)
            assert config["lora_alpha"] == config["r"]
            if config["r"] > 16:
                told = f"LoRA rank {config['r']} is greater than max_lora_rank 16."
                return JSONResponse({"error": {"message": told}}, 500)
            with LoraFile(folder) as file:
                self.factors[name] = {m: tuple(reversed(file.factors(m))) for m in file.modules}
            self.loaded[name] = folder
            self.most = max(self.most, len(self.loaded))
            return Response("Success")

        @app.post("/v1/unload_lora_adapter")
        def unload(asked: dict[str, Any]) -> Response:
            name = asked["lora_name"]
            if name not in self.loaded:
                return JSONResponse({"error": {"message": "cannot be found"}}, 404)
            if self.running.get(name):
                self.unloaded_in_use.append(name)
            del self.loaded[name], self.factors[name]
            return Response("Success")

        @app.post("/v1/completions")
        def complete(asked: dict[str, Any]) -> Response:
            self.bodies.append(asked)
            name = asked["model"]
            if name != "the-base" and name not in self.loaded:
                told = {"error": {"message": f"The model `{name}` does not exist.", "type": "NotFoundError"}}
                return JSONResponse(told, 404)
            if asked.get("stream"):
                return StreamingResponse(self.stream(asked), media_type="text/event-stream")
            if (asked.get("logprobs") or 0) > 20:
                told = {"error": {"message": "Requested sample logprobs is greater than max allowed: 20"}}
                return JSONResponse(told, 400)
            prompts = asked["prompt"] if isinstance(asked["prompt"][0], list) else [asked["prompt"]]
            return JSONResponse({"choices": [self.choice(asked, k, ids) for k, ids in enumerate(prompts)]})

        return app

    def choice(self, asked: dict[str, Any], index: int, ids: list[int]) -> dict[str, Any]:
        logs = self.logs(asked["model"], ids)
        found: dict[str, Any] = {"index": index, "finish_reason": "length"}
        if "logprob_token_ids" in asked:
            best = int(logs[-1].argmax())
            wanted = [best] if self.old else [best, *asked["logprob_token_ids"]]
            top = {f"token_id:{token}": float(logs[-1, token]) for token in wanted}
            found["logprobs"] = {"top_logprobs": [top]}
        return found

    async def stream(self, asked: dict[str, Any]) -> AsyncIterator[str]:
        name, ids = asked["model"], list(asked["prompt"])
        with self.lock:
            self.running[name] = self.running.get(name, 0) + 1
        ended = False
        try:
            for count in range(asked["max_tokens"]):
                await asyncio.sleep(self.slow)
                if count == self.dies_after:
                    raise RuntimeError("the engine core died")
                logs = self.logs(name, ids)[-1]
                token = int(logs.argmax())
                ids.append(token)
                stops = token in asked["stop_token_ids"]
                reason = "stop" if stops else "length" if count + 1 == asked["max_tokens"] else None
                choice = {
                    "index": 0,
                    "token_ids": [token],
                    "logprobs": {"token_logprobs": [float(logs[token])]},
                    "finish_reason": reason,
                }
                if reason:  # before it is told: whoever hears it may unload at once
                    ended = True
                    self.left(name)
                yield f"data: {json.dumps({'choices': [choice]})}\n\n"
                if stops:
                    break
            yield "data: [DONE]\n\n"
        finally:
            if not ended:
                self.left(name)

    def left(self, name: str) -> None:
        with self.lock:
            self.running[name] -= 1


@contextmanager
def hooked(layer: Any, a: torch.Tensor, b: torch.Tensor) -> Iterator[None]:
    """A layer that adds B·A·x to what it gives."""
    handle = layer.register_forward_hook(lambda _, given, out: out + given[0] @ a.T @ b.T)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def listening(stub: StubVllm, port: int = 0) -> Iterator[StubVllm]:
    """The stub behind a real socket."""
    with socket.socket() as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(("127.0.0.1", port))
        bound.listen(64)
        server = uvicorn.Server(uvicorn.Config(stub.app(), log_config=None, access_log=False))
        server.config.timeout_graceful_shutdown = 1
        thread = threading.Thread(target=server.run, args=([bound],), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        stub.url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        try:
            yield stub
        finally:
            server.should_exit = True
            thread.join(10)
