"""Asks a running vLLM over HTTP. What goes wrong there is an error of ours that says what to do next."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import httpx2

from adapterhub_cl.errors import EngineDownError, EngineError
from adapterhub_cl.remote.vllm_address import read_address

CONNECT_S = 5.0
ALIVE_S = 2.0
MOST_TOKENS = 20  # ids whose log-probabilities vLLM gives in one request, unless started with more --max-logprobs
CONNECTIONS = 512
BACK = "start it; whatever is asked after that is answered again"


class NotLoadedError(EngineError):
    """The vLLM has no model of this name: it was started again, or somebody unloaded it."""


class VllmPiece(NamedTuple):
    """What a vLLM wrote since the last piece: token ids with their log-probabilities; `reason`: why it ended, or ''."""

    tokens: tuple[tuple[int, float], ...]
    reason: str


class _Again(httpx2.AsyncHTTPTransport):
    """Sends a request again, once, if the connection ended before anything of the answer came: a server may close a
    kept connection at the moment it is used again. All that is asked of a vLLM may be asked twice."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        try:
            return await super().handle_async_request(request)
        except (httpx2.RemoteProtocolError, httpx2.ReadError, httpx2.WriteError):
            return await super().handle_async_request(request)


class VllmClient:
    """One vLLM. Use it in one event loop.

    Args:
        key: its API key (vLLM's --api-key); empty: it has none.
        timeout_s: how long it may take for the next token.
    """

    def __init__(self, address: str, key: str, timeout_s: float) -> None:
        self.address, self._timeout_s = read_address(address), timeout_s
        self._http = httpx2.AsyncClient(
            base_url=self.address,
            headers={"authorization": f"Bearer {key}"} if key else {},
            timeout=httpx2.Timeout(timeout_s, connect=CONNECT_S, pool=None),
            transport=_Again(
                limits=httpx2.Limits(max_connections=CONNECTIONS, max_keepalive_connections=64), trust_env=False
            ),
            trust_env=False,
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def alive(self) -> bool:
        """Whether it says that it is well."""
        try:
            return (await self._http.get("/health", timeout=ALIVE_S)).status_code == 200
        except httpx2.HTTPError:
            return False

    async def models(self) -> list[dict[str, Any]]:
        """What it serves: the base (whose `parent` is None) and the adapters that are loaded."""
        with self._told():
            found = (await self._get("/v1/models"))["data"]
            return [{**one, "id": str(one["id"])} for one in found]

    async def load(self, name: str, folder: Path) -> None:
        """Load an adapter from a folder that the vLLM can read.

        Raises:
            EngineError: it refuses.
        """
        await self._post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)}, what=f"loading {name}")

    async def unload(self, name: str) -> None:
        """Unload an adapter; one that is not loaded is none the less gone."""
        with suppress(NotLoadedError):
            await self._post("/v1/unload_lora_adapter", {"lora_name": name}, what=f"unloading {name}")

    async def next_logs(
        self, model: str, prompts: Sequence[Sequence[int]], tokens: Sequence[int]
    ) -> list[dict[int, float]]:
        """The log-probabilities of some tokens as the next one after each prompt.

        Args:
            tokens: at most `MOST_TOKENS`.

        Raises:
            EngineError: this vLLM is too old to give the log-probabilities of chosen tokens.
        """
        asked = {
            "model": model,
            "prompt": [list(prompt) for prompt in prompts],
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": len(tokens),
            "logprob_token_ids": list(tokens),
            "return_tokens_as_token_ids": True,
        }
        with self._told():
            choices = sorted((await self._post("/v1/completions", asked))["choices"], key=lambda one: one["index"])
            told = [_by_id(one["logprobs"]["top_logprobs"][0]) for one in choices]
        if len(told) != len(prompts) or any(set(tokens) - one.keys() for one in told):
            raise EngineError(
                f"the vLLM at {self.address} does not give the log-probabilities of chosen tokens",
                "its field logprob_token_ids is needed: use vLLM 0.32 or newer",
            )
        return told

    async def write(self, model: str, prompt: Sequence[int], how: Mapping[str, Any]) -> AsyncGenerator[VllmPiece, None]:
        """What it writes after a prompt, piece by piece.

        Args:
            how: vLLM's own fields: `max_tokens`, `temperature`, `stop_token_ids`, …
        """
        asked = {
            "model": model, "prompt": list(prompt), "stream": True, "logprobs": 0,
            "return_tokens_as_token_ids": True, "return_token_ids": True, **how,
        }  # fmt: skip
        with self._told():
            async with self._http.stream("POST", "/v1/completions", json=asked) as response:
                if response.status_code != 200:
                    self._refuse(response.status_code, (await response.aread()).decode("utf-8", "replace"), model)
                ended = False
                async for line in response.aiter_lines():
                    text = line.removeprefix("data:").strip()
                    if not line.startswith("data:") or text == "[DONE]":
                        continue
                    event = json.loads(text)
                    if "error" in event:
                        raise EngineDownError(f"the vLLM at {self.address} failed: {_message(event)}", BACK)
                    for choice in event["choices"]:
                        logs = (choice.get("logprobs") or {}).get("token_logprobs") or ()
                        reason = str(choice.get("finish_reason") or "")
                        ended = ended or bool(reason)
                        yield VllmPiece(tuple(zip(choice.get("token_ids") or (), logs, strict=True)), reason)
                if not ended:
                    raise EngineDownError(f"the vLLM at {self.address} broke off in the middle of an answer", BACK)

    # -- inside ----------------------------------------------------------------------------------

    async def _get(self, path: str) -> Any:
        response = await self._http.get(path)
        if response.status_code != 200:
            self._refuse(response.status_code, response.text, path)
        return response.json()

    async def _post(self, path: str, body: Mapping[str, Any], *, what: str = "") -> Any:
        with self._told():
            response = await self._http.post(path, json=dict(body))
            if response.status_code != 200:
                self._refuse(response.status_code, response.text, what or str(body.get("model", path)))
            return response.json() if "json" in response.headers.get("content-type", "") else {}

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Failures of the connection, and answers that nobody can read, as errors of ours."""
        try:
            yield
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise EngineDownError(f"no vLLM answers at {self.address}", BACK) from error
        except httpx2.TimeoutException as error:
            raise EngineDownError(
                f"the vLLM at {self.address} gave nothing for {self._timeout_s:g} seconds", "ask again, or restart it"
            ) from error
        except httpx2.HTTPError as error:
            raise EngineDownError(f"the vLLM at {self.address} broke off in the middle of an answer", BACK) from error
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise EngineError(
                f"what the server at {self.address} answers is not what a vLLM answers",
                "--engine needs the address of a vLLM's OpenAI server",
            ) from error

    def _refuse(self, status: int, text: str, what: str) -> None:
        """Raise for an answer that is an error."""
        try:
            told = _message(json.loads(text))
        except ValueError:
            told = text.strip()[:200]
        told = told.strip().splitlines()[0] if told.strip() else f"status {status}"
        if status == 401:
            raise EngineError(
                f"the vLLM at {self.address} wants an API key", "put it into the environment: CL_ADAPTER_ENGINE_KEY"
            )
        if status == 404 and what.startswith("loading") and "No adapter found" not in told:
            raise EngineError(
                f"the vLLM at {self.address} loads no adapters while it runs",
                "start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and --enable-lora",
            )
        if status == 404 and not what.startswith("loading"):
            raise NotLoadedError(f"the vLLM at {self.address} has no model {what}: {told}", "ask again")
        kind = EngineDownError if status in (502, 503, 504) else EngineError
        hint = "its own log says more"
        if "No adapter found" in told:
            hint = "it must be able to read the hub's folder server/engine"
        if "max_lora_rank" in told:
            hint = "start it with a larger --max-lora-rank"
        raise kind(f"the vLLM at {self.address} refuses {what}: {told}", hint)


def _by_id(row: Mapping[str, Any]) -> dict[int, float]:
    """`token_id:25` → log-probability, by number."""
    return {int(name.removeprefix("token_id:")): float(log) for name, log in row.items()}


def _message(body: Any) -> str:
    found = body.get("error", body) if isinstance(body, dict) else body
    return str(found.get("message") or found.get("detail") or found) if isinstance(found, dict) else str(found)
