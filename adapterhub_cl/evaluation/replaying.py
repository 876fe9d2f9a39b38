"""Held-out rows asked of a running server, and its answers compared with the recorded score of the version.

The server is anything that speaks OpenAI's completions: this project's, vLLM, llama.cpp's. It is sent the exact prompt
that the adapter learned, so what is compared is the model that runs there, not how a client asks it.
"""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from adapterhub_cl.adapters.serving import tasks_of
from adapterhub_cl.bases.kinds import is_encoder
from adapterhub_cl.bases.sources import resolve
from adapterhub_cl.context import Hub
from adapterhub_cl.data.tokenise import Tokeniser
from adapterhub_cl.errors import AdapterHubError, DataError, ServerError, UsageError
from adapterhub_cl.evaluation.compared import Answers, TaskProof, compare, lost_too_much, scored
from adapterhub_cl.evaluation.probes import Probe, asked_as, by_answers, probe_of, score_version
from adapterhub_cl.types import AdapterRecord, Task

KEY = "CL_ADAPTER_API_KEY"  # the server's key, if it wants one
LEAST = 0.97
SECONDS, LIST_SECONDS = 120.0, 15.0  # how long an answer, and the list of models, may take
MOST_BYTES = 10 * 2**20  # of an answer


@dataclass(frozen=True)
class Replayed:
    """What a server retains of one version.

    Attributes:
        model: the name by which the server was asked.
        tasks: task → its figures.
        least: the smallest share of the score to keep.
    """

    ref: str
    model: str
    tasks: Mapping[str, TaskProof]
    least: float

    @property
    def lost(self) -> list[str]:
        """The tasks of which too much is lost."""
        return [task for task, proof in self.tasks.items() if lost_too_much(proof, self.least)]


def replay(
    hub: Hub, url: str, refs: Sequence[str], model: str | None, rows: int | None, least: float = LEAST
) -> list[Replayed]:
    """Ask a server the held-out rows of versions.

    Args:
        url: of the server, with or without `/v1`.
        refs: the versions; empty for every one that serves a task.
        model: the server's name of the one version; None: the version's own reference, its name or its task, whichever
            the server lists, or its only model.
        rows: how many rows of each task; None: all. The score of fewer rows than were recorded is measured in the hub.
        least: the smallest share of the score to keep.

    Raises:
        ServerError: the server cannot be reached, or refuses.
        UsageError: it has no such model, or the versions cannot be asked in text.
        DataError: no held-out row is left.
    """
    if is_encoder(hub.registry.base.architecture):
        raise UsageError("an encoder is not asked by completions", "verify --against is for bases that write")
    records = [hub.registry.get(ref) for ref in refs or sorted(set(hub.registry.serving().values()))]
    if model is not None and len(records) != 1:
        raise UsageError("--model names one model of the server", "name one version with --adapter")
    server = CompletionServer(url)
    there = server.models()
    found = []
    for record in records:
        name = model or _name_of(record, there, len(records) == 1)
        proofs = {task.name: _asked(hub, server, name, record, task, rows) for task in tasks_of(hub.registry, record)}
        told = {task: proof for task, proof in proofs.items() if proof is not None}
        if not told:
            raise DataError(
                f"no row of {record.ref} is left to ask", "only versions with held-out data or samples can be asked"
            )
        found.append(Replayed(record.ref, name, told, least))
    return found


class CompletionServer:
    """A server that speaks OpenAI's completions.

    Args:
        url: with or without `/v1`.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise UsageError(f"{url!r} is not the URL of a server", "for example http://127.0.0.1:8000")
        self.url = url.rstrip("/").removesuffix("/v1")

    def models(self) -> list[str]:
        """The names of its models."""
        told = self._call("/v1/models", seconds=LIST_SECONDS)
        try:
            return [str(row["id"]) for row in told["data"]]
        except (KeyError, TypeError) as error:
            raise ServerError(f"{self.url}/v1/models is not a list of models", "check the URL") from error

    def complete(self, model: str, prompt: str, most: int) -> str:
        """What a model writes after a prompt, without chance.

        Args:
            most: tokens to write.
        """
        told = self._call("/v1/completions", {"model": model, "prompt": prompt, "max_tokens": most, "temperature": 0.0})
        try:
            text = told["choices"][0]["text"]
        except (LookupError, TypeError) as error:
            raise self._strange("gives no text") from error
        if not isinstance(text, str):
            raise self._strange("gives no text")
        return text

    def _strange(self, what: str) -> ServerError:
        return ServerError(f"{self.url}/v1/completions {what}", "check that it is a server of OpenAI's interface")

    def _call(self, path: str, body: Mapping[str, Any] | None = None, *, seconds: float = SECONDS) -> Any:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers)  # of http or https: see __init__
        try:
            with _OPENER.open(request, timeout=seconds) as answer:
                text = answer.read(MOST_BYTES + 1)
        except urllib.error.HTTPError as error:
            with error:
                said = _said(error)
            raise ServerError(f"{self.url}{path} answers {error.code}: {said}", _hint(error.code)) from error
        except (OSError, HTTPException) as error:
            why = getattr(error, "reason", error)
            raise ServerError(f"{self.url}{path} cannot be asked: {why}", "check that the server runs there") from error
        try:
            if len(text) > MOST_BYTES:
                raise ValueError
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ServerError(
                f"{self.url}{path} does not answer in JSON", "check that it is a server of OpenAI's interface"
            ) from error


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: the key would go along to whoever it leads to."""

    def redirect_request(self, *_: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_Stay)


def _said(error: urllib.error.HTTPError) -> str:
    """The message of a refusal, in one line."""
    try:
        text = error.read(2000).decode("utf-8", "replace")
    except OSError:
        return str(error.reason)
    try:
        found = json.loads(text)
        told = found.get("error", found.get("message", text))
        return " ".join(str(told.get("message", told) if isinstance(told, dict) else told).split())[:300]
    except (ValueError, AttributeError):
        return " ".join(text.split())[:300] or str(error.reason)


def _hint(code: int) -> str:
    if 300 <= code < 400:
        return "give the address that it leads to: redirects are not followed"
    return f"set {KEY} to a key of the server" if code in (401, 403) else "check the server's log"


def _name_of(record: AdapterRecord, there: Sequence[str], alone: bool) -> str:
    for name in (record.ref, record.name, record.task):
        if name and name in there:
            return name
    if alone and len(there) == 1:  # llama.cpp names the one model that it serves after its file
        return there[0]
    shown = ", ".join(there[:8]) + (", …" if len(there) > 8 else "")
    hint = f"it has {shown}: name one with --model" if there else "it lists no model at all"
    raise UsageError(f"the server has no model {record.ref} or {record.name}", hint)


def _asked(
    hub: Hub, server: CompletionServer, model: str, record: AdapterRecord, task: Task, rows: int | None
) -> TaskProof | None:
    """The figures of one task; None if nothing is left to ask, or it is raw text."""
    probe = None if task.kind == "text" else probe_of(hub.registry, task.name)
    probe = probe and by_answers(probe)
    if probe is None:
        hub.reporter.note(f"note: {task.name} of {record.ref} has no rows that can be asked; skipped")
        return None
    probe = asked_as(probe, replace(task, metric=probe.task.metric))
    if rows is not None:
        probe = probe.few(rows)
    recorded = score_version(hub, record, probe)
    said = _answers(hub, server, model, record, probe)
    return compare(probe, Answers((), 0.0), Answers((), recorded.value), said)


def _answers(hub: Hub, server: CompletionServer, model: str, record: AdapterRecord, probe: Probe) -> Answers:
    from transformers import AutoTokenizer

    base = hub.registry.base
    tokenizer = AutoTokenizer.from_pretrained(resolve(base.source, base.revision))
    encode = Tokeniser(tokenizer, probe.task, probe.max_length)
    gold = [encode.gold(example) for example in probe.examples]
    wanted = [*gold, *(text for example in probe.examples for text in example.references)]
    most = max((len(encode.answer(label)) for label in probe.task.labels), default=0) or encode.budget(wanted)
    said = []
    with hub.reporter.piece(f"asking {model} at {server.url} for {probe.task.name}", len(gold)) as advance:
        for example in probe.examples:
            prompt = tokenizer.decode(encode.prompt(example).prompt, clean_up_tokenization_spaces=False)
            if tokenizer.bos_token and tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]:
                prompt = prompt.removeprefix(tokenizer.bos_token)  # the server puts it there itself
            said.append(encode.written(server.complete(model, prompt, most)))
            advance(1)
    return scored(probe, gold, said)


def refused(found: Sequence[Replayed]) -> AdapterHubError | None:
    """The error that says what was lost; None if nothing was."""
    from adapterhub_cl.errors import ExportRefused

    told = [one.tasks[task].drop(task) for one in found for task in one.lost]
    if not told:
        return None
    return ExportRefused(
        f"the server retains less than {found[0].least:g} of {'; '.join(told)}",
        "check that it serves this version, and that the base there is the hub's",
    )
