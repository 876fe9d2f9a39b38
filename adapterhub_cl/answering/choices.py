"""Scores all labels of a choice task with the prompt computed once.

The labels' tokens form a tree (labels that begin alike share nodes). One forward pass reads the prompt and, behind
it, every inner node of the tree; a node attends to the prompt and to its own ancestors only, at the position it
would have in the text. The result is each label's exact log-likelihood, as L separate passes would give it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from adapterhub_cl.answering import Answer
from adapterhub_cl.answering.free_mask import LABELS as PROBE_LABELS
from adapterhub_cl.answering.free_mask import agree, by_architecture, window
from adapterhub_cl.answering.projection import at_positions
from adapterhub_cl.answering.rope_sides import sides
from adapterhub_cl.bases.encoders import bare
from adapterhub_cl.bases.this_machine import IDENTITY, UserCache
from adapterhub_cl.errors import DataError


class LabelTree:
    """The labels' token sequences as a tree.

    Args:
        labels: label → its token ids as they follow the prompt, ending with the end-of-text id.

    Attributes:
        labels: in the order given.
        tokens: id of each inner node.
        parents: index of each inner node's parent, -1 for the prompt.
        steps: for each label its (inner node or -1, next token id) pairs, whose log-likelihoods add up to its score.
        depth: tokens of the longest label.
        largest: the largest token id.
    """

    def __init__(self, labels: Mapping[str, Sequence[int]]) -> None:
        self.labels = list(labels)
        sequences = [list(ids) for ids in labels.values()]
        bare = [ids[:-1] for ids in sequences]
        # The end-of-text id counts only where one label is the beginning of another.
        if not any(a != b and b[: len(a)] == a for a in bare for b in bare):
            sequences = bare
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.depths: list[int] = []
        self.steps: list[list[tuple[int, int]]] = []
        self.depth = max(len(ids) for ids in sequences)
        self.largest = max((token for ids in sequences for token in ids), default=0)
        nodes: dict[tuple[int, ...], int] = {}
        for ids in sequences:
            node, steps = -1, []
            for k, token in enumerate(ids):
                steps.append((node, token))
                if k + 1 < len(ids):
                    key = tuple(ids[: k + 1])
                    if key not in nodes:
                        nodes[key] = len(self.tokens)
                        self.tokens.append(token)
                        self.parents.append(node)
                        self.depths.append(k)
                    node = nodes[key]
            self.steps.append(steps)

    def ids(self) -> dict[str, list[int]]:
        """Label → the token ids whose log-likelihoods add up to its score."""
        return {label: [token for _, token in steps] for label, steps in zip(self.labels, self.steps, strict=True)}

    def check_known(self, model: Any) -> None:
        """Raise for a label with a token that the base has no embedding of.

        Raises:
            DataError: names the label.
        """
        count = bare(model).get_input_embeddings().num_embeddings
        if self.largest < count:
            return
        label = next(one for one, ids in self.ids().items() if self.largest in ids)
        raise DataError(
            f"the label {label!r} has a token with the id {self.largest}, but the base has only {count} embeddings",
            "the token was added to the tokenizer and not to the model: name the label otherwise",
        )

    def ancestry(self) -> torch.Tensor:
        """`[n_nodes, n_nodes]`, true where the column is the row itself or an ancestor of it."""
        seen = torch.eye(len(self.tokens), dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                seen[node] |= seen[parent]
        return seen


def likeliest(labels: Sequence[str], scores: torch.Tensor) -> Answer:
    """The label with the largest of the scores (logits or log-likelihoods, `[n_labels]`)."""
    shares = scores.softmax(-1).tolist()
    best = max(range(len(shares)), key=shares.__getitem__)
    sure = shares[best] if bool(scores.isfinite().all()) else math.nan
    return Answer(labels[best], sure, dict(zip(labels, shares, strict=True)))


def score_rows(
    model: Any, trees: Sequence[LabelTree], prompts: Sequence[Sequence[int]], pad_id: int
) -> list[torch.Tensor]:
    """Log-likelihood (nats) of each of a row's own labels after its prompt, `[n_labels]`, fp32, for each row.

    Bases that cannot attend by a free mask (recurrent ones, ALiBi, …) are read label by label instead: see `settle`. So
    are prompts longer than a model's sliding window, which a free mask would override.
    """
    for tree in trees:
        tree.check_known(model)
    lengths = [len(prompt) + tree.depth for prompt, tree in zip(prompts, trees, strict=True)]
    parts = sides(model, lengths)
    if len(parts) > 1:
        found: dict[int, torch.Tensor] = {}
        for part in parts:
            scores = score_rows(model, [trees[k] for k in part], [prompts[k] for k in part], pad_id)
            found |= dict(zip(part, scores, strict=True))
        return [found[k] for k in range(len(prompts))]
    if any(tree.tokens for tree in trees):
        seen = window(bare(model))
        if (seen and max(lengths) > seen) or not settle(model, pad_id):
            return _plain_scores(model, trees, prompts, pad_id)
    return _tree_scores(model, trees, prompts, pad_id)


def settle(model: Any, pad_id: int) -> bool:
    """Whether a base can attend by a free mask: decided once for each loaded base, the same whatever is asked first.

    For a base with an `IDENTITY` the answer is kept in the user's cache.
    """
    base = bare(model)
    if not hasattr(base, "_adapterhub_tree_scoring"):
        identity = getattr(base, IDENTITY, "")
        kept, key = UserCache("reading.json"), f"{identity}|{base.config._attn_implementation}"
        found = {"free": True, "by label": False}.get(kept.get(key) or "") if identity else None
        if found is None:
            found = _compared(model, pad_id)
            if found is None:  # an adapter that has diverged must not decide for the others
                return False
            if identity:
                kept.put(key, "free" if found else "by label")
        base._adapterhub_tree_scoring = found
    return bool(base._adapterhub_tree_scoring)


def _compared(model: Any, pad_id: int) -> bool | None:
    base = bare(model)
    if not by_architecture(base):
        return False
    tree = LabelTree({str(k): [*ids, pad_id] for k, ids in enumerate(PROBE_LABELS)})
    kind = torch.get_autocast_dtype(base.device.type)
    kind = kind if torch.is_autocast_enabled(base.device.type) else base.dtype
    return agree(model, _plain_scores, _tree_scores, tree, pad_id, kind)


def _tree_scores(
    model: Any, trees: Sequence[LabelTree], prompts: Sequence[Sequence[int]], pad_id: int
) -> list[torch.Tensor]:
    device, n = model.device, max(len(tree.tokens) for tree in trees)
    rows, longest = len(prompts), max(len(p) for p in prompts)
    lengths = torch.tensor([len(p) for p in prompts])
    input_ids = torch.full((rows, longest + n), pad_id)
    for row, prompt in enumerate(prompts):
        input_ids[row, : len(prompt)] = torch.tensor(list(prompt))
    alike: dict[int, list[int]] = {}
    for row, tree in enumerate(trees):
        alike.setdefault(id(tree), []).append(row)
    real = torch.arange(longest) < lengths[:, None]
    inputs: dict[str, Any] = {"attention_mask": real.long().to(device)}
    if n:
        # Rows with fewer nodes than others: what pads them looks at its prompt, and nobody looks at it.
        positions = torch.cat([torch.arange(longest), torch.zeros(n, dtype=torch.long)]).repeat(rows, 1)
        allowed = torch.zeros(rows, longest + n, longest + n, dtype=torch.bool)
        allowed[:, :longest, :longest] = torch.ones(longest, longest, dtype=torch.bool).tril()
        allowed[:, longest:, :longest] = real[:, None, :]
        for where in alike.values():
            tree, count = trees[where[0]], len(trees[where[0]].tokens)
            input_ids[where, longest : longest + count] = torch.tensor(tree.tokens, dtype=torch.long)
            positions[where, longest : longest + count] = lengths[where, None] + torch.tensor(tree.depths).long()
            allowed[where, longest : longest + count, longest : longest + count] = tree.ancestry()
        kind = model.dtype
        mask = torch.zeros(rows, 1, longest + n, longest + n, dtype=kind)
        mask.masked_fill_(~allowed[:, None], torch.finfo(kind).min)
        inputs = {"position_ids": positions.to(device), "attention_mask": mask.to(device)}
    # Position 0 of each row is the end of its prompt, position 1 + k the node k.
    columns = torch.cat([lengths[:, None] - 1, longest + torch.arange(n).repeat(rows, 1)], 1)
    at = torch.arange(rows)[:, None].expand_as(columns)
    with at_positions(model, at.flatten().to(device), columns.flatten().to(device)):
        logits = model(input_ids=input_ids.to(device), use_cache=False, **inputs).logits
    logs = logits[0].float().log_softmax(-1).view(rows, n + 1, -1)
    found: list[torch.Tensor] = [torch.empty(0)] * rows
    for where in alike.values():
        mine = logs[where]
        steps = trees[where[0]].steps
        scores = torch.stack([sum(mine[:, node + 1, token] for node, token in label) for label in steps], 1).cpu()
        for row, one in zip(where, scores, strict=True):
            found[row] = one
    return found


def _plain_scores(
    model: Any, trees: Sequence[LabelTree], prompts: Sequence[Sequence[int]], pad_id: int
) -> list[torch.Tensor]:
    device, columns = model.device, []
    for k in range(max(len(tree.steps) for tree in trees)):
        # A row with fewer labels than others repeats its last one.
        answers = [[token for _, token in tree.steps[min(k, len(tree.steps) - 1)]] for tree in trees]
        width = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
        input_ids = torch.full((len(prompts), width), pad_id)
        mask = torch.zeros((len(prompts), width), dtype=torch.long)
        where: list[int] = []
        at: list[int] = []
        wanted: list[int] = []
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            whole = [*prompt, *answer]
            input_ids[row, : len(whole)] = torch.tensor(whole)
            mask[row, : len(whole)] = 1
            where += [row] * len(answer)
            at += range(len(prompt) - 1, len(whole) - 1)
            wanted += answer
        with at_positions(model, torch.tensor(where, device=device), torch.tensor(at, device=device)):
            logits = model(input_ids=input_ids.to(device), attention_mask=mask.to(device), use_cache=False).logits
        logs = logits[0].float().log_softmax(-1)[torch.arange(len(wanted)), torch.tensor(wanted)].cpu()
        columns.append(torch.stack([part.sum() for part in logs.split([len(a) for a in answers])]))
    scores = torch.stack(columns, 1)
    return [scores[row, : len(tree.steps)] for row, tree in enumerate(trees)]
