"""The teachers' outputs, row by row, stored in one safetensors file so that each row is computed once, even after a
restart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from adapterhub_cl.data.batches import IGNORED, Batch
from adapterhub_cl.data.tokenise import Tokens
from adapterhub_cl.distillation.logits import Soft
from adapterhub_cl.registry import seals

Key = tuple[tuple[int, ...], int]


def key_of(tokens: Tokens) -> Key:
    """What identifies a row: its ids, and how many of them are the answer."""
    return _with_task(tokens.ids, tokens.task), len(tokens.answer)


def _with_task(ids: tuple[int, ...], task: str) -> tuple[int, ...]:
    """Ids and task: two tasks of an encoder may have the same text but different teachers."""
    return (*ids, -1, *task.encode()) if task else ids


def keys_of(batch: Batch) -> list[Key]:
    lengths = batch.attention_mask.sum(1).tolist()
    answers = (batch.labels != IGNORED).sum(1).tolist()
    rows = batch.input_ids.tolist()
    tasks = batch.tasks or ("",) * len(rows)
    return [
        (_with_task(tuple(row[:length]), task), count)
        for row, length, count, task in zip(rows, lengths, answers, tasks, strict=True)
    ]


class TeachersAnswers:
    """Softened distributions and hidden states at the answer positions of every row."""

    def __init__(self) -> None:
        self._places: dict[Key, tuple[int, int]] = {}
        self._parts: dict[str, list[torch.Tensor]] = {}
        self._tensors: dict[str, torch.Tensor] = {}
        self._length = 0

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, row: Tokens) -> bool:
        return key_of(row) in self._places

    def add(self, keys: Sequence[Key], soft: Soft, features: Mapping[int, torch.Tensor]) -> None:
        """Add a teacher's output for the rows of a batch, positions in row order."""
        for key in keys:
            self._places[key] = (self._length, self._length + key[1])
            self._length += key[1]
        found = {"logs": soft.logs, "tokens": soft.tokens, "rest": soft.rest}
        found |= {f"layer.{layer}": value.to(torch.bfloat16) for layer, value in features.items()}
        for name, value in found.items():
            self._parts.setdefault(name, []).append(value.detach().cpu())

    def close(self) -> None:
        """Finish adding: from now on rows can be looked up."""
        self._tensors = {name: torch.cat(parts) for name, parts in self._parts.items()}
        self._parts = {}

    def look_up(self, batch: Batch) -> tuple[Soft, dict[int, torch.Tensor]]:
        """The teachers' output for the rows of a batch, positions in row order.

        Raises:
            KeyError: no teacher's output was added for a row.
        """
        places = [self._places[key] for key in keys_of(batch)]
        index = torch.cat([torch.arange(start, end) for start, end in places])
        device = batch.input_ids.device
        picked = {name: value[index].to(device) for name, value in self._tensors.items()}
        layers = {int(n.removeprefix("layer.")): value for n, value in picked.items() if n.startswith("layer.")}
        return Soft(picked["logs"], picked["tokens"], picked["rest"]), layers

    def save(self, path: Path) -> None:
        """Write everything; an old file is replaced atomically."""
        places = [[list(ids), count, *at] for (ids, count), at in self._places.items()]
        digest = _digest(self._places)
        temporary = path.with_name(f".{path.name}.tmp")
        about = {"places": json.dumps(places), "digest": digest, seals.KEY: seals.BLANK}
        save_file(self._tensors, temporary, metadata=about)
        seals.seal(temporary)
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path, rows: Sequence[Tokens]) -> TeachersAnswers | None:
        """The stored outputs, if the file is intact and for exactly these rows; otherwise None."""
        if not path.is_file():
            return None
        found = cls()
        try:
            if seals.is_broken(path):
                return None
            with safe_open(path, framework="pt") as file:
                about = file.metadata() or {}
                found._tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            found._places = {
                (tuple(ids), count): (start, end) for ids, count, start, end in json.loads(about.get("places", "[]"))
            }
        except (OSError, SafetensorError, ValueError):
            return None
        wanted = {key_of(row) for row in rows}
        return found if wanted == set(found._places) and about.get("digest") == _digest(found._places) else None


def _digest(places: Mapping[Key, tuple[int, int]]) -> str:
    return hashlib.sha256(json.dumps([[list(k[0]), k[1], *v] for k, v in places.items()]).encode()).hexdigest()
