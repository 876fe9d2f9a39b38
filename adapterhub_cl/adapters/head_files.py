"""The head of an encoder's adapter on disk: its tensors in the adapter's file, and the meaning of its rows beside it.

`heads.json` names the layer whose rows are labels, and the meaning of the rows: task → label → row. The tensors have
the names that plain PEFT gives to `modules_to_save`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from adapterhub_cl.errors import AdapterError, IntegrityError
from adapterhub_cl.types import HeadRows, Task

LAYOUT = "heads.json"
HEAD = "head.safetensors"  # for a packed adapter: the head is not packed, and has its own file
PREFIX = "base_model.model."
SPREAD = 0.02  # standard deviation of a new row


def is_head(key: str) -> bool:
    """Whether a tensor of a stored adapter belongs to its head."""
    return ".lora_" not in key


@dataclass(frozen=True)
class StoredHead:
    """A head in memory, without a model.

    Attributes:
        layout: task → label → row.
        tensors: parameter → value, by the model's own names.
        final: name of the layer whose rows are labels.
    """

    layout: HeadRows
    tensors: Mapping[str, torch.Tensor]
    final: str

    @property
    def weight(self) -> torch.Tensor:
        return self.tensors[f"{self.final}.weight"]

    @property
    def bias(self) -> torch.Tensor:
        return self.tensors[f"{self.final}.bias"]

    @property
    def neck(self) -> dict[str, torch.Tensor]:
        """The parameters outside the label layer."""
        return {key: value for key, value in self.tensors.items() if key.rpartition(".")[0] != self.final}

    def part(self, task: str) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
        """Weight `[labels, hidden]`, bias `[labels]` and labels of one task."""
        rows = list(self.layout[task].values())
        return self.weight[rows], self.bias[rows], list(self.layout[task])

    def only(self, tasks: Collection[str]) -> StoredHead:
        """A copy with only the rows of these tasks."""
        return joined([(self, task) for task in self.layout if task in tasks])


def joined(parts: Sequence[tuple[StoredHead, str]]) -> StoredHead:
    """One head with the rows of several tasks, each copied from its own head; if a task occurs twice, the second head
    adds the labels that the first does not have.

    Raises:
        AdapterError: the heads have different necks.
    """
    first = parts[0][0]
    layout: dict[str, dict[str, int]] = {}
    weights: list[torch.Tensor] = []
    biases: list[torch.Tensor] = []
    at = 0
    for head, task in parts:
        if head.final != first.final or not same_neck(head.neck, first.neck):
            raise AdapterError(
                "the adapters' heads have different layers between encoder and labels",
                "such adapters cannot share a head: distill them, or leave one out",
            )
        weight, bias, labels = head.part(task)
        known = layout.setdefault(task, {})
        new = [k for k, label in enumerate(labels) if label not in known]
        known |= {labels[k]: at + place for place, k in enumerate(new)}
        at += len(new)
        weights, biases = [*weights, weight[new].float()], [*biases, bias[new].float()]
    tensors = {**first.neck, f"{first.final}.weight": torch.cat(weights), f"{first.final}.bias": torch.cat(biases)}
    return StoredHead(layout, tensors, first.final)


def same_neck(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    """Whether two necks are equal to the precision of the coarser data type."""
    return one.keys() == other.keys() and all(
        torch.allclose(value.float(), other[key].float(), atol=1e-2, rtol=1e-2) for key, value in one.items()
    )


def grown(head: StoredHead, tasks: Sequence[Task], seed: int) -> StoredHead:
    """A head with rows for every label of these tasks: existing rows are kept, new ones are appended.

    Args:
        seed: for the initial values of the new rows.
    """
    layout = {task: dict(rows) for task, rows in head.layout.items()}
    count = len(head.weight) if layout else 0
    first = count
    for task in tasks:
        rows = layout.setdefault(task.name, {})
        for label in task.labels:
            if label not in rows:
                rows[label] = count
                count += 1
        layout[task.name] = {label: rows[label] for label in (*task.labels, *rows) if label in rows}
    generator = torch.Generator().manual_seed(seed)
    width = head.weight.shape[1]
    new = torch.randn(count - first, width, generator=generator) * SPREAD
    weight = torch.cat([head.weight[:first].float(), new])
    bias = torch.cat([head.bias[:first].float(), torch.zeros(count - first)])
    return StoredHead(layout, {**head.tensors, f"{head.final}.weight": weight, f"{head.final}.bias": bias}, head.final)


def head_of_tensors(folder: Path, tensors: Mapping[str, torch.Tensor], final: str = "") -> StoredHead:
    """A stored head from the tensors of its adapter.

    Args:
        tensors: all tensors of the adapter, as PEFT names them.
        final: name of the layer whose rows are labels; by default the one in `heads.json`.

    Raises:
        IntegrityError: `heads.json` does not match them.
        AdapterError: the label layer is not among them.
    """
    found = {key.removeprefix(PREFIX): value for key, value in tensors.items() if is_head(key)}
    told, layout = _read(folder)
    final = final or told
    weight = found.get(f"{final}.weight")
    if weight is None or weight.dim() != 2:
        raise AdapterError(
            f"the adapter in {folder} does not fit this base: its head has no {final}.weight",
            "it must have been trained on this same base",
        )
    found.setdefault(f"{final}.bias", torch.zeros(len(weight)))
    rows = [row for labels in layout.values() for row in labels.values()]
    if len(set(rows)) != len(rows) or any(not 0 <= row < len(weight) for row in rows):
        raise IntegrityError(
            f"{folder / LAYOUT} does not match the adapter's head of {len(weight)} rows", "run cl-adapter verify"
        )
    return StoredHead(layout, found, final)


def read_layout(folder: Path) -> dict[str, dict[str, int]]:
    """The meaning of the rows of an adapter's head; empty if it was not recorded (plain PEFT does not).

    Raises:
        IntegrityError: `heads.json` cannot be read.
    """
    return _read(folder)[1]


def _read(folder: Path) -> tuple[str, dict[str, dict[str, int]]]:
    path = folder / LAYOUT
    if not path.is_file():
        return "", {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        rows = {str(task): {str(label): row for label, row in own.items()} for task, own in found["rows"].items()}
        layer = str(found["layer"])
        whole = all(type(row) is int for own in rows.values() for row in own.values())
    except (OSError, ValueError, RecursionError) as error:
        raise IntegrityError(f"{path} cannot be read: {error}", "run cl-adapter verify") from error
    except (KeyError, AttributeError, TypeError) as error:
        raise IntegrityError(f"{path} does not say which row is which label", "run cl-adapter verify") from error
    if not whole:
        raise IntegrityError(f"{path} has a row that is not a whole number", "run cl-adapter verify")
    return layer, rows


def write_layout(folder: Path, layout: HeadRows, final: str) -> None:
    about = {"layer": final, "rows": {task: dict(rows) for task, rows in layout.items()}}
    text = json.dumps(about, ensure_ascii=False, indent=1)
    (folder / LAYOUT).write_text(text + "\n", encoding="utf-8")


def read_apart(folder: Path) -> dict[str, torch.Tensor]:
    """The head of a packed adapter, with PEFT's names; empty if it has none.

    Raises:
        IntegrityError: it cannot be read.
    """
    if not (folder / HEAD).is_file():
        return {}
    try:
        found: dict[str, torch.Tensor] = load_file(folder / HEAD)
    except (OSError, SafetensorError) as error:
        raise IntegrityError(f"{folder / HEAD} cannot be read: {error}", "run cl-adapter verify") from error
    return found


def write_apart(folder: Path, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Write the head of an adapter that is about to be packed to its own file; returns what remains to be packed."""
    head = {key: value.float().contiguous() for key, value in weights.items() if is_head(key)}
    if head:
        save_file(head, folder / HEAD, metadata={"format": "pt"})
    return {key: value for key, value in weights.items() if key not in head}
