"""Rows that a running vLLM computes. Prompts, labels, stop strings and the text of an answer are made here, by the same
code as for the base of this process; the vLLM gets token ids, and gives token ids with their log-probabilities."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Collection, Coroutine, Iterable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

import torch

from adapterhub_cl.adapters.vllm_folder import why_not_vllm
from adapterhub_cl.answering import Answer
from adapterhub_cl.answering.answerer import AskedRow, Mixture
from adapterhub_cl.answering.asked_rows import Ready
from adapterhub_cl.answering.choices import LabelTree, likeliest
from adapterhub_cl.answering.row_prompts import RowPrompts
from adapterhub_cl.answering.written import COLD, WrittenRow
from adapterhub_cl.bank.bank import LoraBank
from adapterhub_cl.bases.loading import LoadedBase
from adapterhub_cl.data.chat import end_ids
from adapterhub_cl.errors import AdapterError, AdapterHubError, EngineError, UsageError
from adapterhub_cl.registry import Registry
from adapterhub_cl.remote.vllm_client import MOST_TOKENS, NotLoadedError, VllmClient
from adapterhub_cl.remote.vllm_exports import VllmExports
from adapterhub_cl.remote.vllm_proof import EngineProbe, check_base, check_effect
from adapterhub_cl.remote.vllm_residents import Residents

KEY = "CL_ADAPTER_ENGINE_KEY"  # the environment variable with the API key of the vLLM
STEP_S = 0.005  # how long a step waits for an answer
LOOK_S = 0.25  # how often a row looks whether anybody still waits for its answer
CLOSE_S = 10.0  # for unloading everything at the end
# What a generation_config.json may ask for and vLLM does not do, or does in another way.
_RULES = ("no_repeat_ngram_size", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "sequence_bias",
          "min_length", "min_new_tokens", "exponential_decay_length_penalty", "encoder_repetition_penalty")  # fmt: skip


@dataclass(eq=False)
class _Job:
    """A row that the vLLM answers.

    Attributes:
        give: see `AnswersRows.answer`.
        asked: a request was sent.
    """

    ready: Ready
    give: Callable[[int, Answer | Exception], None]
    asked: bool = False


class VllmRows:
    """A running vLLM answers. An `AnswersRows`; its requests run in a thread of its own.

    The base is in this process too: routers read it, and it proves that the vLLM's base and adapters are the hub's.

    Args:
        where: the address of the vLLM.
        most: adapters that it keeps loaded.
        halt: whether all answers are to be ended.

    Raises:
        UsageError: the base is an encoder, or asks for something that vLLM does not do.
        EngineError: the vLLM cannot be asked, or its base is another one.
    """

    def __init__(
        self,
        registry: Registry,
        base: LoadedBase,
        bank: LoraBank,
        where: str,
        *,
        most: int,
        timeout_s: float,
        max_length: int | None,
        halt: Callable[[], bool],
    ) -> None:
        _refuse_base(base)
        self._registry, self._base, self._bank, self._halt = registry, base, bank, halt
        self._exports = VllmExports(registry)
        self._jobs: set[_Job] = set()
        self._done: SimpleQueue[tuple[_Job, Answer | Exception]] = SimpleQueue()
        self._effects: dict[str, list[float]] = {}  # reference → what it adds to the log-probabilities of the probe
        self._ends = end_ids(base.tokenizer, base.model)
        self._client: Any = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm-rows", daemon=True)
        self._thread.start()
        try:
            self._client = self._run(_made(lambda: VllmClient(where, os.environ.get(KEY, ""), timeout_s)))
            self._residents: Residents = self._run(_made(lambda: Residents(most, self._load, self._unload)))
            self._probe = EngineProbe.of(base, bank)
            own = self._probe.here(base, bank, {})
            self._model, root, context, self._theirs = self._run(self._base_of_it())
            check_base(own, self._theirs, base.info, root, self._client.address)
        except BaseException:
            self._stop()
            raise
        self._own, self._noise = own, [a - b for a, b in zip(own, self._theirs, strict=True)]
        self.max_length = min(max_length or base.context, base.context, context or base.context)
        self._prompts = RowPrompts(base.tokenizer, self.max_length)

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def waiting(self) -> int:
        return sum(not job.asked for job in self._jobs.copy())

    def reachable(self) -> bool:
        return bool(self._run(self._client.alive()))

    @property
    def writing(self) -> int:
        return sum(job.asked for job in self._jobs.copy())

    @property
    def refs(self) -> list[str]:
        return self._residents.refs

    def expect(self, refs: Iterable[str]) -> None:
        """Nothing: what is asked for is loaded at once."""

    def answer(self, rows: Sequence[AskedRow], give: Callable[[int, Answer | Exception], None]) -> None:
        for index, row in enumerate(rows):
            try:
                job = _Job(self._prompts.ready(index, row), give)
                self._look_at(row.mixture)
            except Exception as error:
                give(index, error)
                continue
            self._jobs.add(job)
            asyncio.run_coroutine_threadsafe(self._answered(job), self._loop)

    def step(self) -> None:
        ends = time.monotonic() + STEP_S
        while self._jobs:
            try:
                job, answer = self._done.get(timeout=max(0.0, ends - time.monotonic()))
            except Empty:
                return
            self._jobs.discard(job)
            job.give(job.ready.index, job.ready.checked(answer, True))

    def keep(self, refs: Collection[str]) -> None:
        gone = set(self._effects) - set(refs)
        for ref in gone:
            del self._effects[ref]
        if gone:
            self._loop.call_soon_threadsafe(self._residents.keep, frozenset(refs))

    def close(self) -> None:
        """Unload what was loaded, and let the vLLM go."""
        try:
            self._run(asyncio.wait_for(self._residents.close(), CLOSE_S))
        except (TimeoutError, AdapterHubError):
            pass
        finally:
            self._stop()

    # -- the base and the adapters ---------------------------------------------------------------

    async def _base_of_it(self) -> tuple[str, str, int, list[float]]:
        """The vLLM's name for its base, what it was started with, its context in tokens (0: it does not say), and what
        it says of the probe."""
        own = [one for one in await self._client.models() if not one.get("parent")]
        if not own:
            raise EngineError(f"the vLLM at {self._client.address} serves no base", "start it with the hub's base")
        name = own[0]["id"]
        logs = await self._there(name)
        return name, str(own[0].get("root") or name), int(own[0].get("max_model_len") or 0), logs

    async def _there(self, model: str) -> list[float]:
        """What the vLLM says of the probe."""
        asked = zip(self._probe.prompts, self._probe.wanted, strict=True)
        told = [(await self._client.next_logs(model, [prompt], tokens))[0] for prompt, tokens in asked]
        return [row[token] for row, tokens in zip(told, self._probe.wanted, strict=True) for token in tokens]

    def _look_at(self, mixture: Mixture) -> None:
        """See what a version does here, when it is asked for the first time.

        Raises:
            UsageError: several adapters at once.
            AdapterError, IntegrityError: it cannot be read, or is of a kind that vLLM cannot serve.
        """
        if len(mixture) > 1:
            raise UsageError("a vLLM answers with one adapter at a time, and not with a mixture", "top_k=1")
        for ref in mixture:
            if ref not in self._effects:
                why_not_vllm(self._registry.get(ref).path)
                logs = self._probe.here(self._base, self._bank, {ref: 1.0})
                self._effects[ref] = [a - b for a, b in zip(logs, self._own, strict=True)]

    async def _load(self, ref: str) -> str:
        """Load a version, and prove that it does there what it does here."""
        own = self._effects.get(ref)
        if own is None:
            raise AdapterError(f"{ref} was removed meanwhile", "ask again")
        name, folder = await asyncio.to_thread(lambda: self._exports.folder(self._registry.get(ref)))
        try:
            await self._client.load(name, folder)
        except EngineError:
            there = {one["id"]: str(one.get("root", "")) for one in await self._client.models()}
            if there.get(name) != str(folder):
                raise
        theirs = await self._there(name)
        effect = [a - b for a, b in zip(theirs, self._theirs, strict=True)]
        try:
            check_effect(own, effect, self._noise, ref, self._client.address)
        except EngineError:
            await self._client.unload(name)
            raise
        return name

    async def _unload(self, ref: str) -> None:
        name, _ = self._exports.known[ref]
        with suppress(EngineError):  # where it is gone, so is whatever was loaded
            await self._client.unload(name)
        if ref not in self._effects:
            await asyncio.to_thread(self._exports.drop, ref)

    # -- rows ------------------------------------------------------------------------------------

    async def _answered(self, job: _Job) -> None:
        asking = asyncio.ensure_future(self._asked(job))
        answer: Answer | Exception
        try:
            while not asking.done():
                await asyncio.wait({asking}, timeout=LOOK_S)
                if self._halt():
                    raise AdapterHubError("the engine was closed before it answered", "ask again: hub.engine()")
                if not asking.done() and not job.ready.row.wanted():
                    raise AdapterHubError("nobody waits for this answer any more", "ask again")
            answer = asking.result()
        except Exception as error:
            answer = error
        finally:
            asking.cancel()  # so that the vLLM ends it too
            await asyncio.wait({asking})
        self._done.put((job, answer))

    async def _asked(self, job: _Job) -> Answer:
        for left in (True, False):
            try:
                return await self._tried(job)
            except NotLoadedError:
                given = job.ready.stream is not None and job.ready.stream.given
                if not left or given:
                    raise
                for ref in job.ready.row.mixture:  # it was started again, or somebody unloaded it there
                    self._residents.lost(ref)
        raise AssertionError

    async def _tried(self, job: _Job) -> Answer:
        ref = next(iter(job.ready.row.mixture), None)
        ask = self._choose if job.ready.row.chooses else self._write
        if ref is None:
            return await ask(self._model, job)
        async with self._residents.using(ref) as name:
            return await ask(name, job)

    async def _choose(self, model: str, job: _Job) -> Answer:
        """The likeliest label: each label's log-likelihood is the sum over its tokens, as `score_rows` adds it up."""
        job.asked = True
        tree = self._prompts.tree(job.ready.row.task)
        logs = await asyncio.gather(*(self._node(model, job, tree, node) for node in range(-1, len(tree.tokens))))
        scores = [sum(logs[node + 1][token] for node, token in label) for label in tree.steps]
        return likeliest(tree.labels, torch.tensor(scores))

    async def _node(self, model: str, job: _Job, tree: LabelTree, node: int) -> dict[int, float]:
        """The log-probabilities of the tokens that follow a node of the tree; -1 is the prompt's end."""
        wanted = sorted({token for label in tree.steps for at, token in label if at == node})
        path: list[int] = []
        while node >= 0:
            path.insert(0, tree.tokens[node])
            node = tree.parents[node]
        prompt = [*job.ready.prompt, *path]
        found: dict[int, float] = {}
        for k in range(0, len(wanted), MOST_TOKENS):
            found |= (await self._client.next_logs(model, [prompt], wanted[k : k + MOST_TOKENS]))[0]
        return found

    async def _write(self, model: str, job: _Job) -> Answer:
        ready = job.ready
        frame = self._prompts.frame(ready.row)
        stream = ready.stream.again() if ready.stream else None
        row = WrittenRow(
            self._base.tokenizer, set(self._ends), ready.prompt, ready.writing, frame, stream, ready.row.mixture
        )
        asked = ready.writing
        how = {
            "max_tokens": row.limit,
            "temperature": asked.temperature if asked.temperature > COLD else 0.0,
            "top_p": asked.top_p,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": getattr(self._base.model.generation_config, "repetition_penalty", None) or 1.0,
            "seed": asked.seed,
            "ignore_eos": True,
            "stop_token_ids": self._ends,
        }
        job.asked = True
        async with aclosing(self._client.write(model, ready.prompt, how)) as pieces:
            async for piece in pieces:
                for token, log in piece.tokens:
                    row.take(token, log)
                if row.done:
                    break
        return row.finish()

    # -- the thread ------------------------------------------------------------------------------

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _stop(self) -> None:
        """End the thread, and whatever is still going on in it."""
        self._run(self._ended())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _ended(self) -> None:
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await self._loop.shutdown_asyncgens()
        if self._client is not None:
            await self._client.close()


async def _made(make: Callable[[], Any]) -> Any:
    """Something that must be made in its event loop."""
    return make()


def _refuse_base(base: LoadedBase) -> None:
    """Raise for a base that a vLLM would answer with in another way.

    Raises:
        UsageError: it would.
    """
    if not base.writes:
        raise UsageError("--engine URL is for causal language models, and this base is an encoder", "leave it out")
    config = base.model.generation_config
    rules = [name for name in _RULES if getattr(config, name, None)]
    if rules:
        raise UsageError(
            f"the base's generation_config.json asks for {', '.join(rules)}, which vLLM does not apply",
            "leave out --engine, or take it out of that file",
        )
