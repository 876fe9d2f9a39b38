"""What a router may compute from some inputs, on demand: see `adapterhub_cl.routing.Seen`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property

import torch
from torch.nn import functional

from adapterhub_cl.adapters.targets import length_first
from adapterhub_cl.answering.projection import at_positions
from adapterhub_cl.bank.bank import LoraBank
from adapterhub_cl.bases.hidden import by_row, padded, pooled, read_tokens
from adapterhub_cl.bases.loading import LoadedBase
from adapterhub_cl.data.batches import by_length
from adapterhub_cl.objectives import refuse_writing
from adapterhub_cl.types import Example

ROWS = 64
PASSAGE, MOST_PASSAGES = 40, 100  # words in a passage of raw text; passages in one sample


def routing_text(example: Example, whole: bool = False) -> str:
    """The text used to route an input: the bare input, or with `whole` its instruction followed by the input.

    An input that is only an instruction, and raw text (which is stored as an answer), are used as they are.
    """
    bare = example.input or example.answer or ""
    if not bare.strip():
        return example.instruction
    return f"{example.instruction}\n{bare}" if whole and example.instruction else bare


def passages(example: Example) -> list[Example]:
    """A sample as the router learns it: raw text in passages of the maximum input length, anything else unchanged."""
    if example.asks:
        return [example]
    found: list[str] = []
    for line in (example.answer or "").splitlines():
        words = line.split()
        found += [" ".join(words[k : k + PASSAGE]) for k in range(0, len(words), PASSAGE)]
    return [replace(example, answer=text) for text in found[:MOST_PASSAGES]] or [example]


class SeenTexts:
    """Texts on a base.

    Args:
        layer: the layer whose output `hidden` pools, counted from 0.
        serving: task → version, for `losses`.
    """

    def __init__(
        self, base: LoadedBase, bank: LoraBank, texts: Sequence[str], layer: int, serving: Mapping[str, str]
    ) -> None:
        self.base, self.bank, self.layer, self.serving = base, bank, layer, serving
        self._texts = list(texts)

    @property
    def texts(self) -> Sequence[str]:
        return self._texts

    @cached_property
    def hidden(self) -> torch.Tensor:
        """`[n, 2·hidden]`, fp32."""
        return pooled(self.base, self._texts, self.layer)

    @cached_property
    def _rows(self) -> list[list[int]]:
        return read_tokens(self.base, self._texts)

    @torch.no_grad()
    def activity(self, directions: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Mean over its tokens and the layers of |v·x|/‖x‖, `[n, n_directions]`, fp32; x is the layer's input."""
        count = next(iter(directions.values())).shape[0] if directions else 0
        found = torch.zeros(len(self._rows), count)
        turned = length_first(self.base)
        vectors = {name: v.to(self.base.device, torch.float32) for name, v in directions.items()}
        for indices in by_length([len(row) for row in self._rows], ROWS):
            ids, mask = padded(self.base, [self._rows[i] for i in indices])
            sums = torch.zeros(len(indices), count, device=self.base.device)

            def look(name: str, sums: torch.Tensor = sums, mask: torch.Tensor = mask) -> object:
                def hook(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
                    with torch.autocast(self.base.device.type, enabled=False):
                        x = functional.normalize(inputs[0].float(), dim=-1)
                        rows = by_row(x, mask, name in turned)
                        if rows is None:  # after an encoder's stack, or at Longformer's global token: one for a text
                            rows = x.reshape(len(mask), 1, -1).expand(-1, mask.shape[1], -1)
                        sums.add_(((rows @ vectors[name].T).abs() * mask[..., None]).sum(1))

                return hook

            with self.base.lock, self.base.autocast():
                hooks = [self.base.model.get_submodule(name).register_forward_pre_hook(look(name)) for name in vectors]
                try:
                    nowhere = torch.zeros(1, dtype=torch.long, device=self.base.device)
                    unread = at_positions(self.base.model, nowhere, nowhere) if self.base.writes else nullcontext()
                    with unread:
                        self.base.model(input_ids=ids, attention_mask=mask, **self.base.reading)
                finally:
                    for one in hooks:
                        one.remove()
            found[indices] = (sums / (mask.sum(1, keepdim=True) * max(1, len(vectors)))).cpu()
        return found

    @torch.no_grad()
    def losses(self, tasks: Sequence[str]) -> torch.Tensor:
        """Mean loss (nats) of each text's tokens under the version that serves each task, `[n, n_tasks]`, fp32.

        Raises:
            UsageError: the base is an encoder, which does not predict next tokens.
        """
        refuse_writing(self.base.info, "the router perplexity")
        refs = [self.serving[task] for task in tasks]
        distinct = list(dict.fromkeys(refs))
        found = torch.zeros(len(self._rows), len(distinct))
        pairs = [(text, column) for column in range(len(distinct)) for text in range(len(self._rows))]
        lengths = [len(self._rows[text]) for text, _ in pairs]
        wide = min(ROWS, self.bank.capacity)
        for indices in by_length(lengths, wide):
            part = [pairs[k] for k in indices]
            # The first token has nothing before it to be predicted from, so a text of one token is doubled.
            rows = [self._rows[text] if len(self._rows[text]) > 1 else self._rows[text] * 2 for text, _ in part]
            ids, mask = padded(self.base, rows)
            where, at = mask[:, 1:].nonzero(as_tuple=True)
            mixtures = [{distinct[column]: 1.0} for _, column in part]
            with self.bank.rows(mixtures) as model, self.base.autocast(), at_positions(model, where, at):
                logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[0]
            losses = functional.cross_entropy(logits.float(), ids[where, at + 1], reduction="none")
            sums = torch.zeros(len(part), device=losses.device).index_add_(0, where, losses)
            means = (sums / (mask.sum(1) - 1)).cpu()
            for (text, column), mean in zip(part, means, strict=True):
                found[text, column] = mean
        return found[:, [distinct.index(ref) for ref in refs]]
