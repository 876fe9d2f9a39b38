"""What selection policies may ask a trained adapter: losses, embeddings of the base, and samples that it writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy
import torch
from numpy.typing import NDArray

from adapterhub_cl.adapters.fused import base_alone
from adapterhub_cl.answering import evaluating
from adapterhub_cl.answering.writing import Writing, seeds_of, write_rows
from adapterhub_cl.bases.loading import LoadedBase
from adapterhub_cl.data import chat
from adapterhub_cl.data.batches import by_length, to_right_padded
from adapterhub_cl.data.formats import render
from adapterhub_cl.data.tokenise import Tokeniser
from adapterhub_cl.objectives import BaseObjective
from adapterhub_cl.progress import Reporter
from adapterhub_cl.types import Example, Task

BATCH = 32
SHORTEST, LONGEST = 8, 128  # tokens that may be written in place of an input
TOP_P = 0.95
_MARK = "\x02input\x02"


class ModelEvidence:
    """Facts about examples, from the adapter that learned them and the base under it; each is computed once.

    Args:
        model: the base with the adapter active, a PEFT model.
        base: what it stands on; gives tokenizer and type of the matrix products.
        task: how prompts are written; `text` for raw text.
        examples: those that a policy chooses from.
        max_length: longest example in tokens; longer ones are cut.
        reporter: is told how far each piece of work is.
    """

    def __init__(
        self,
        model: Any,
        base: LoadedBase,
        objective: BaseObjective,
        task: Task,
        examples: Sequence[Example],
        max_length: int,
        *,
        reporter: Reporter | None = None,
    ) -> None:
        self.model, self.base, self.objective, self.task = model, base, objective, task
        self.examples, self.max_length = examples, max_length
        self.reporter = reporter or Reporter()
        self._losses: list[float] | None = None
        self._embeddings: NDArray[numpy.float32] | None = None

    def losses(self) -> list[float]:
        """For each example the mean negative log-likelihood (nats) of a token of its answer under the adapter."""
        if self._losses is None:
            tokens = self.objective.tokeniser(self.base.tokenizer, self.task, self.max_length).many(self.examples)
            found: list[tuple[float, int]] = []
            order = [i for batch in by_length([len(t) for t in tokens], 8 * BATCH) for i in batch]
            with self.reporter.piece("losses of the examples", len(tokens)) as advance, self.base.autocast():
                for k in range(0, len(order), 8 * BATCH):
                    part = [tokens[i] for i in order[k : k + 8 * BATCH]]
                    found += self.objective.perplexities(self.model, part, self.base.tokenizer.pad_token_id, BATCH)
                    advance(len(part))
            means = [total / max(1, count) for total, count in found]
            self._losses = [loss for _, loss in sorted(zip(order, means, strict=True))]
        return self._losses

    def embeddings(self) -> NDArray[numpy.float32]:
        """`[n_examples, dim]`: the base's last hidden state (no adapter), mean over the bare input's tokens.

        Special tokens are read by the base and left out of the mean. Of raw text the input is the text.
        """
        if self._embeddings is None:
            self._embeddings = self._embed([e.input or e.instruction or e.answer or "" for e in self.examples])
        return self._embeddings

    @torch.no_grad()
    def _embed(self, texts: Sequence[str]) -> NDArray[numpy.float32]:
        tokenizer, inner = self.base.tokenizer, self.model.get_base_model()
        body = getattr(inner, inner.base_model_prefix)
        begin = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        rows: list[tuple[list[int], list[int]]] = []  # ids, and 1 where they count
        for text in texts:
            read = tokenizer(text, return_special_tokens_mask=True, verbose=False)
            ids = read.input_ids[: self.max_length] or [begin]
            own = [1 - special for special in read.special_tokens_mask[: len(ids)]]
            rows.append((ids, own if any(own) else [1] * len(ids)))
        found = numpy.zeros((len(rows), self.model.config.get_text_config().hidden_size), dtype=numpy.float32)
        bar = self.reporter.piece("embeddings of the examples", len(rows))
        with bar as advance, self.base.autocast(), evaluating(self.model), base_alone(self.model):
            for indices in by_length([len(ids) for ids, _ in rows], BATCH):
                read = to_right_padded([rows[i][0] for i in indices], tokenizer.pad_token_id)
                counted = to_right_padded([rows[i][1] for i in indices], 0)["input_ids"]
                inputs = {name: value.to(self.model.device) for name, value in read.items()}
                states = body(**inputs, **self.base.reading).last_hidden_state.float()
                weights = counted.to(self.model.device)[..., None].float()
                means = (states * weights).sum(1) / weights.sum(1)
                found[indices] = means.cpu().numpy()
                advance(len(indices))
        return found

    def write(self, count: int, seed: int) -> list[tuple[Example, float]]:
        """Examples that the adapter writes: inputs sampled from it (temperature 1, top-p 0.95), then answered by it.

        Of raw text the sampled text is the answer, and its confidence the geometric mean of its token probabilities.

        Args:
            count: how many inputs to sample; those that come out empty are left out.
            seed: same seed, same samples.
        """
        if self.task.kind == "text":
            return [(Example("", text), sure) for text, sure in self._sample("", True, "", count, seed) if text]
        instruction = self._instruction()
        asked = instruction or self.task.instruction
        tokenizer = self.base.tokenizer
        prompt = render(
            self.task.prompt_format,
            Example(_MARK, None, asked),
            lambda said: chat.prompt_of(tokenizer, said),
            talks=self.task.talks,
        )
        head, _, tail = prompt.text.partition(_MARK)
        sampled = self._sample(head, prompt.add_special_tokens, tail.strip(), count, seed)
        inputs = [Example(text, None, instruction) for text, _ in sampled if text]
        with self.reporter.piece("answering what was written", len(inputs)) as advance, self.base.autocast():
            found = self.objective.predict(
                self.model,
                tokenizer,
                self.task,
                inputs,
                max_length=self.max_length,
                batch_size=BATCH,
                progress=advance,
            )
        return [
            (replace(e, answer=said.text), said.confidence) for e, said in zip(inputs, found, strict=True) if said.text
        ]

    def _instruction(self) -> str:
        """What all examples have in common as their instruction; where they differ it is data, and none is used."""
        known = {example.instruction for example in self.examples}
        return next(iter(known)) if len(known) == 1 else ""

    def _sample(self, head: str, special: bool, stop: str, count: int, seed: int) -> list[tuple[str, float]]:
        """Texts that follow `head`, up to `stop`, each with the geometric mean of its token probabilities."""
        tokenizer = self.base.tokenizer
        encode = Tokeniser(tokenizer, self.task, self.max_length)
        ids = encode.start(head) if special or not head else encode.bare(head)
        texts = [e.input or e.answer or "" for e in self.examples]
        finish = _cutter(stop, one_line=not any("\n" in text.strip() for text in texts))
        budget = max(1, min(self._budget(texts), self.max_length - len(ids)))
        rows = [Writing(budget, 1.0, TOP_P, own) for own in seeds_of(seed, count)]
        found: list[tuple[str, float]] = []
        bar = self.reporter.piece("writing samples", count)
        with bar as advance, evaluating(self.model), self.base.autocast():
            for k in range(0, count, BATCH):
                part = rows[k : k + BATCH]
                written = write_rows(self.model, tokenizer, [ids] * len(part), part)
                found += [(finish(one.text), one.confidence) for one in written]
                advance(len(part))
        return found

    def _budget(self, texts: Sequence[str]) -> int:
        """Tokens of an input that 19 of 20 examples stay within, between 8 and 128."""
        lengths = sorted(len(self.base.tokenizer(t, add_special_tokens=False, verbose=False).input_ids) for t in texts)
        usual = lengths[int(0.95 * (len(lengths) - 1))] if lengths else LONGEST
        return max(SHORTEST, min(LONGEST, usual + 1))


def _cutter(stop: str, *, one_line: bool) -> Callable[[str], str]:
    """Ends a written text where the prompt format goes on after the input, and at a line end where inputs have none."""

    def cut(text: str) -> str:
        text = (text.partition(stop)[0] if stop else text).strip()
        text = text.partition("\n")[0].strip() if one_line else text
        return text.replace("�", "").strip()

    return cut
