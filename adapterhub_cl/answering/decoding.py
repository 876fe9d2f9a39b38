"""The loop that writes rows which join and leave the batch between two tokens.

The prompts of rows that join are read in a pass of their own; their KV cache is then put beside that of the rows that
are being written. All rows end at the same column and are padded on the left, and positions are counted without the
padding, so a row's answer does not depend on its neighbours. Rows that leave are cut out, with the columns that only
they needed. (Orca, Yu et al. 2022, OSDI: scheduling by iterations.)

Only caches that keep one plain pair of keys and values for each token and layer can be cut like this: `can_decode`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from transformers import DynamicCache, LogitsProcessorList, TopKLogitsWarper
from transformers.cache_utils import DynamicLayer
from transformers.generation import GenerationMixin
from transformers.generation.configuration_utils import GenerationMode

from adapterhub_cl.answering.one_token_attention import one_token_attention
from adapterhub_cl.answering.rope_sides import limit_of
from adapterhub_cl.answering.written import WrittenRow, take_tokens
from adapterhub_cl.bases.encoders import bare
from adapterhub_cl.data.batches import to_left_padded

WASTE = 1.5  # prompts are read together where padding makes them no more than this many times longer
STOPS = ("max_time", "stop_strings")  # of a generation_config: what only `generate` heeds


def can_decode(model: Any) -> bool:
    """Whether rows can join and leave while this model writes; found out once for each loaded base.

    It is so where `generate` would do nothing but greedy search over a plain cache: every layer's cache is a
    `DynamicLayer`, the model prepares its inputs as all do, and it reads a row alike whatever is beside it.
    """
    base = bare(model)
    known: bool | None = getattr(base, "_adapterhub_decodes", None)
    if known is None:
        plain = isinstance(base, GenerationMixin) and limit_of(base) is None and _plain(base)
        known = base._adapterhub_decodes = plain
    return known


def _plain(base: Any) -> bool:
    if type(base).prepare_inputs_for_generation is not GenerationMixin.prepare_inputs_for_generation:
        return False
    if not {"past_key_values", "attention_mask"} <= inspect.signature(type(base).forward).parameters.keys():
        return False
    try:
        asked, _ = base._prepare_generation_config(None, do_sample=False)
    except ValueError:  # `generate` says what is wrong
        return False
    if asked.cache_implementation not in (None, "dynamic") or any(getattr(asked, name, None) for name in STOPS):
        return False
    layers = DynamicCache(config=base.config.get_text_config(decoder=True)).layers
    greedy = asked.get_generation_mode() == GenerationMode.GREEDY_SEARCH
    return greedy and bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


def alike(rows: Sequence[WrittenRow]) -> Iterator[list[WrittenRow]]:
    """Rows in groups of similar length, so that little is computed for padding."""
    group: list[WrittenRow] = []
    total = 0
    for row in sorted(rows, key=lambda row: len(row.prompt) + len(row.ids)):
        length = len(row.prompt) + len(row.ids)
        if group and length * (len(group) + 1) > WASTE * (total + length):
            yield group
            group, total = [], 0
        group.append(row)
        total += length
    if group:
        yield group


class Decoder:
    """Rows that are written together. A context manager: leaving it leaves the model.

    Args:
        model: the base's model.
        apply: gives a context in which the model answers row k with the k-th of some mixtures; it may be entered again
            and again.
        ends: ids that end an answer.
        top_k: draw from this many of the likeliest tokens; 0: from all.
        stay: stay in that context from token to token; otherwise others may use the model in between.

    Attributes:
        rows: those that are being written, in the order of the batch.
    """

    def __init__(
        self,
        model: Any,
        apply: Callable[[Sequence[Mapping[str, float]]], AbstractContextManager[Any]],
        pad_id: int,
        ends: Sequence[int],
        *,
        top_k: int = 0,
        stay: bool = False,
    ) -> None:
        self._base, self._apply, self._pad_id, self._stay = bare(model), apply, pad_id, stay
        self._top_k = TopKLogitsWarper(top_k) if top_k else None
        self._takes = inspect.signature(type(self._base).forward).parameters.keys()
        self._asked, _ = self._base._prepare_generation_config(
            None, do_sample=False, eos_token_id=list(ends), pad_token_id=pad_id
        )
        self._base._prepare_special_tokens(self._asked, True, device=self._base.device)
        self._ruled = bool(self._rules([pad_id]))
        self.rows: list[WrittenRow] = []
        self._cache: DynamicCache | None = None
        self._mask = torch.zeros(0, 0, dtype=torch.long)
        self._lengths = torch.zeros(0, dtype=torch.long)
        self._context: AbstractContextManager[Any] | None = None
        self._inside: AbstractContextManager[Any] | None = None
        self._entered = ExitStack()

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    @torch.no_grad()
    def join(self, rows: Sequence[WrittenRow]) -> list[WrittenRow]:
        """Read the prompts of rows, with what is written of them already, and write their next token.

        Where it fails, the rows that were there before are as they were; of the new ones some may have joined.

        Returns:
            those that are done.
        """
        done: list[WrittenRow] = []
        for group in alike(rows):
            self._read(group)
            done += [row for row in group if row.done]
        return done

    @torch.no_grad()
    def step(self) -> list[WrittenRow]:
        """Write a token of every row.

        Where it fails, only `clear` is left to be done.

        Returns:
            those that are done: they have left.
        """
        ids = torch.tensor([[row.ids[-1]] for row in self.rows], device=self._mask.device)
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self.rows), 1)], 1)
        if self._context is None:
            self._context = self._apply([row.mixture for row in self.rows])
        scores = self._pass(self._context, ids, self._mask, self._lengths[:, None], self._cache)
        self._lengths = self._lengths + 1
        self._take(scores, self.rows)
        done = [row for row in self.rows if row.done]
        if done:
            self._keep([k for k, row in enumerate(self.rows) if not row.done])
        return done

    def drop(self, rows: Sequence[WrittenRow]) -> None:
        """Take rows out, done or not."""
        self._keep([k for k, row in enumerate(self.rows) if row not in rows])

    def clear(self) -> list[WrittenRow]:
        """Take all rows out, whatever happened; those that were there."""
        rows, self.rows, self._cache = self.rows, [], None
        self._leave()
        return rows

    # -- inside ----------------------------------------------------------------------------------

    def _read(self, rows: Sequence[WrittenRow]) -> None:
        for row in rows:
            if row.rules is None and self._ruled:
                row.rules = self._rules(row.prompt)
        inputs = to_left_padded([[*row.prompt, *row.ids] for row in rows], self._pad_id)
        ids, mask = (inputs[key].to(self._base.device) for key in ("input_ids", "attention_mask"))
        positions = (mask.cumsum(-1) - 1).clamp_(min=0)
        cache = DynamicCache(config=self._base.config.get_text_config(decoder=True))
        self._leave()
        context = self._apply([row.mixture for row in rows])
        scores = self._pass(context, ids, mask, positions, cache)
        self._take(scores, rows)
        stay = [k for k, row in enumerate(rows) if not row.done]
        if not stay:
            self._leave()
            return
        lengths = mask.sum(-1)
        if len(stay) < len(rows):
            mask, lengths, pairs = _cut(mask, lengths, cache, stay)
            _fill(cache, pairs)
        if self.rows:
            mask, pairs = _joined(self._mask, self._cache, mask, cache)
            lengths = torch.cat([self._lengths, lengths])
            _fill(cache, pairs)
        whole = not self.rows and len(stay) == len(rows)
        self.rows, self._mask, self._lengths, self._cache = [*self.rows, *(rows[k] for k in stay)], mask, lengths, cache
        if whole:
            self._context = context
        else:
            self._leave()

    def _pass(
        self,
        context: AbstractContextManager[Any],
        ids: torch.Tensor,
        mask: torch.Tensor,
        positions: torch.Tensor,
        cache: DynamicCache | None,
    ) -> torch.Tensor:
        """`[rows, vocabulary]`, the logits after the last column."""
        given: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "past_key_values": cache, "use_cache": True}
        if "position_ids" in self._takes:
            given["position_ids"] = positions
        if "logits_to_keep" in self._takes:
            given["logits_to_keep"] = 1
        if self._inside is not context:
            self._out()
            self._entered.enter_context(context)
            self._inside = context
        quick = one_token_attention(self._base) if ids.shape[1] == 1 else nullcontext()
        try:
            with quick:
                scores: torch.Tensor = self._base(**given).logits[:, -1].float()
        finally:
            if not self._stay:
                self._out()
        return scores

    def _take(self, scores: torch.Tensor, rows: Sequence[WrittenRow]) -> None:
        if self._ruled:
            scores = torch.stack([self._ruled_scores(row, one) for row, one in zip(rows, scores, strict=True)])
        if self._top_k is not None:
            scores = self._top_k(None, scores)
        take_tokens(scores, rows)

    def _rules(self, prompt: Sequence[int]) -> LogitsProcessorList:
        ids = torch.tensor([list(prompt)], device=self._base.device)
        found: LogitsProcessorList = self._base._get_logits_processor(
            self._asked, input_ids_seq_length=len(prompt), encoder_input_ids=ids, device=self._base.device
        )
        return found

    def _ruled_scores(self, row: WrittenRow, scores: torch.Tensor) -> torch.Tensor:
        ids = torch.tensor([[*row.prompt, *row.ids]], device=scores.device)
        found: torch.Tensor = (row.rules or LogitsProcessorList())(ids, scores[None])[0]
        return found

    def _keep(self, stay: Sequence[int]) -> None:
        if not stay:
            self.clear()
        elif len(stay) < len(self.rows):
            assert self._cache is not None
            self._mask, self._lengths, pairs = _cut(self._mask, self._lengths, self._cache, stay)
            _fill(self._cache, pairs)
            self.rows = [self.rows[k] for k in stay]
            self._leave()

    def _leave(self) -> None:
        """The rows are other ones from now on, and so is the context."""
        self._out()
        self._context = None

    def _out(self) -> None:
        self._inside = None
        self._entered.close()


def _cut(
    mask: torch.Tensor, lengths: torch.Tensor, cache: DynamicCache, stay: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
    """Some rows of a batch, without the columns that are padding for all of them."""
    index = torch.tensor(stay, device=mask.device)
    lengths = lengths[index]
    empty = mask.shape[1] - int(lengths.max())
    pairs = [tuple(part[:, :, empty:].index_select(0, index) for part in pair) for pair in _pairs(cache)]
    return mask[:, empty:].index_select(0, index), lengths, pairs  # type: ignore[return-value]


def _joined(
    mask: torch.Tensor, cache: DynamicCache | None, other_mask: torch.Tensor, other: DynamicCache
) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
    """Two batches as one, padded on the left to the longer one's width."""
    assert cache is not None
    width = max(mask.shape[1], other_mask.shape[1])

    def both(one: torch.Tensor, two: torch.Tensor, axis: int) -> torch.Tensor:
        shape = list(one.shape)
        shape[0], shape[axis] = one.shape[0] + two.shape[0], width
        found = one.new_zeros(shape)
        found[: one.shape[0]].narrow(axis, width - one.shape[axis], one.shape[axis]).copy_(one)
        found[one.shape[0] :].narrow(axis, width - two.shape[axis], two.shape[axis]).copy_(two)
        return found

    pairs = [
        (both(k1, k2, 2), both(v1, v2, 2)) for (k1, v1), (k2, v2) in zip(_pairs(cache), _pairs(other), strict=True)
    ]
    return both(mask, other_mask, 1), pairs


def _pairs(cache: DynamicCache) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values of each layer, `[rows, heads, columns, width]`."""
    for layer in cache.layers:
        yield layer.keys, layer.values


def _fill(cache: DynamicCache, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
    for layer, (keys, values) in zip(cache.layers, pairs, strict=True):
        layer.keys, layer.values = keys, values
