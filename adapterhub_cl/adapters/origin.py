"""Where an imported adapter comes from: the base it was made for, its prompts, and the names of its layers."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from adapterhub_cl.adapters.lora_config import CONFIG, WEIGHTS, asked_plainly, check_config
from adapterhub_cl.adapters.lora_files import ask_plainly, read_weights
from adapterhub_cl.adapters.task_file import TASK
from adapterhub_cl.bases.encoders import bare
from adapterhub_cl.bases.loading import LoadedBase
from adapterhub_cl.data.formats import check_format
from adapterhub_cl.data.tasks import METRICS
from adapterhub_cl.errors import AdapterError, UnknownNameError, UsageError
from adapterhub_cl.registry.manifests import FILE_NAME as MANIFEST
from adapterhub_cl.types import TASK_KINDS, BaseInfo, Layout, Task

PREFIX = "base_model.model."
# What other tools leave in tensor names: torch.compile, DDP and FSDP, PEFT's adapter name.
_LEFT = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
_ADAPTER = re.compile(r"\.(lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector)\.(?!weight$)[^.]+")
# Module paths of a text model on its own and inside a model with images.
_MOVED = (
    ("", ""),
    ("model.language_model.", "model."),
    ("language_model.model.", "model."),
    ("language_model.", ""),
    ("model.", "model.language_model."),
    ("model.", "language_model.model."),
    ("", "model."),
    ("model.", ""),
)


@dataclass(frozen=True)
class ImportOrigin:
    """What this project wrote beside an adapter.

    Attributes:
        fingerprint: of the base that it was made for; empty if unknown.
        base: that base's name.
        tasks: task → its description as stored there, unchecked.
    """

    fingerprint: str = ""
    base: str = ""
    tasks: Mapping[str, Mapping[str, Any]] | None = None


def read_origin(folder: Path) -> ImportOrigin:
    """The origin from a version's manifest or an export's task.json; empty if there is neither."""
    manifest, exported = _json(folder / MANIFEST), _json(folder / TASK)
    base = manifest.get("base") or exported.get("base")
    base = base if isinstance(base, dict) else {}
    tasks: dict[str, Mapping[str, Any]] = {}
    spec = manifest.get("task_spec")
    if isinstance(spec, dict):
        tasks[str(spec.get("name"))] = spec
    elif isinstance(told := exported.get("tasks"), dict):
        tasks = {
            str(name): one["spec"]
            for name, one in told.items()
            if isinstance(one, dict) and isinstance(one.get("spec"), dict)
        }
        if not tasks:
            raise AdapterError(f"{folder / TASK} describes no task", "restore it, or remove it from the folder")
    elif exported:
        raise AdapterError(f"{folder / TASK} describes no task", "restore it, or remove it from the folder")
    name = base.get("source") or base.get("name") or ""
    return ImportOrigin(str(base.get("fingerprint") or ""), str(name), tasks)


def check_origin(origin: ImportOrigin, base: BaseInfo, folder: Path, any_base: bool) -> None:
    """Raise if an adapter was made for another base.

    Raises:
        AdapterError: its fingerprint is different.
    """
    if origin.fingerprint and origin.fingerprint != base.fingerprint and not any_base:
        raise AdapterError(
            f"the adapter in {folder} was made for another base: {origin.base or 'unnamed'}, fingerprint "
            f"{origin.fingerprint[:12]}; this hub's is {base.fingerprint[:12]}",
            "import it into a hub of its own base; --any-base imports it anyway, but its scores are then meaningless",
        )


def described_task(name: str, described: Mapping[str, Any], origin: ImportOrigin) -> Task:
    """The task of an imported adapter: the user's description, completed by the files beside it. If the user says that
    it is of another kind than these, its labels, metric and longest answer are not taken from them.

    Raises:
        UsageError: the description is not a valid task, or there were several tasks.
    """
    tasks = list((origin.tasks or {}).values())
    if not tasks or (len(tasks) > 1 and (described.get("labels") or described.get("kind"))):
        return describe(name, described)
    if len(tasks) > 1:
        raise UsageError(
            f"the adapter answers for several tasks: {', '.join(map(str, origin.tasks or ()))}",
            "import it for a task of this hub: --task NAME; or describe one: --labels a,b,c or --kind generation",
        )
    spec = dict(tasks[0])
    told = {key: spec.get(key) for key in ("kind", "labels", "metric", "prompt_format", "instruction")}
    if described.get("labels") and "kind" not in described:
        told["kind"] = "choice"
    told |= described
    if other := told.get("kind") != spec.get("kind"):
        told |= {"labels": described.get("labels"), "metric": described.get("metric")}
    labels = told.get("labels") or ()
    if not isinstance(labels, list | tuple) or not all(isinstance(label, str) for label in labels):
        raise UsageError("the labels beside the adapter are not a list of texts", "list them: --labels a,b,c")
    if told.get("metric") not in METRICS.get(str(told.get("kind")), ()):
        told["metric"] = None
    for key in ("kind", "prompt_format", "instruction"):
        if told.get(key) is not None and not isinstance(told[key], str):
            raise UsageError(f"the {key.replace('_', ' ')} beside the adapter is not a text", "restore the file")
    found = describe(name, told)
    plain = Task(name)
    more: dict[str, Any] = {
        field.name: spec[field.name]
        for field in fields(Task)
        if field.name in spec
        and field.name not in (*told, "name", *(["answer_tokens"] if other else []))
        and type(spec[field.name]) is type(getattr(plain, field.name))
        and isinstance(spec[field.name], bool | int | float | str)
    }
    if isinstance(spec.get("layout"), dict):
        with suppress(TypeError):  # without a layout the columns are recognised when data is read
            more["layout"] = Layout.from_json(spec["layout"])
    return replace(found, **more)


def describe(name: str, described: Mapping[str, Any]) -> Task:
    """A task from the user's description.

    Raises:
        UsageError: the description is not a valid task.
    """
    labels = tuple(described.get("labels") or ())
    kind = described.get("kind") or ("choice" if labels else "generation")
    if kind not in TASK_KINDS:
        raise UnknownNameError("kind of task", kind, TASK_KINDS)
    if (kind == "choice") != bool(labels) or len(set(labels)) != len(labels) or len(labels) == 1:
        raise UsageError(
            f"a {kind} task with {len(labels)} labels",
            "a choice task needs at least two different labels: --labels a,b; other kinds have none",
        )
    metric = described.get("metric") or METRICS[kind][0]
    if metric not in METRICS[kind]:
        raise UnknownNameError(f"metric of a {kind} task", metric, METRICS[kind])
    prompt_format = check_format(described.get("prompt_format") or "instruction")
    return Task(name, kind, prompt_format, described.get("instruction") or "", labels, metric)


@contextmanager
def plainly(folder: Path, base: LoadedBase) -> Iterator[Path]:
    """The adapter in a folder in this project's format: layers selected by a list of names, named as in the base. The
    folder itself if nothing has to change, otherwise a copy that exists inside the block.

    Raises:
        AdapterError: a layer that the base does not have.
    """
    config, weights = check_config(folder), read_weights(folder)
    names = _own_names(folder, list(weights), base)
    renamed = {old: new for old, new in names.items() if old != new}
    if not renamed and asked_plainly(config):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="cl-adapter-") as made:
        plain = Path(made)
        shutil.copyfile(folder / CONFIG, plain / CONFIG)
        tensors = {names[key]: value.contiguous() for key, value in weights.items()}
        save_file(tensors, plain / WEIGHTS, metadata={"format": "pt"})
        if renamed:  # full names have changed
            (plain / CONFIG).write_text(json.dumps({**config, "target_modules": None}), encoding="utf-8")
        ask_plainly(plain)
        yield plain


def _own_names(folder: Path, keys: list[str], base: LoadedBase) -> dict[str, str]:
    """Each tensor's name as PEFT writes it for this base."""
    there = {name for name, _ in bare(base.model).named_modules()}
    cleaned = {key: _cleaned(key) for key in keys}
    layers = {new.removeprefix(PREFIX).rpartition(".lora_")[0] for new in cleaned.values() if ".lora_" in new}
    for old, new in _MOVED:
        moved = {layer: new + layer.removeprefix(old) for layer in layers if layer.startswith(old)}
        if len(moved) == len(layers) and set(moved.values()) <= there:
            break
    else:
        missing = sorted(layers - there)
        raise AdapterError(
            f"{len(missing)} of {len(layers)} layers of the adapter in {folder} do not exist in this base, such as "
            f"{missing[0]}",
            _about_missing(missing[0]),
        )
    found = {}
    for key, new in cleaned.items():
        layer, mark, part = new.removeprefix(PREFIX).rpartition(".lora_")
        found[key] = f"{PREFIX}{moved[layer]}{mark}{part}" if mark else new
    if len(set(found.values())) != len(found):
        raise AdapterError(f"the adapter in {folder} has several tensors for one layer", "export it with PEFT")
    return found


def _cleaned(key: str) -> str:
    for left in _LEFT:
        key = key.replace(left, "")
    key = _ADAPTER.sub(r".\1", key)
    if ".lora_" in key and not key.startswith(PREFIX):
        key = PREFIX + key.removeprefix("module.").removeprefix("base_model.").removeprefix("model.base_model.model.")
    return key


def _about_missing(layer: str) -> str:
    if ".experts." in layer:
        return "this version of transformers stores all experts in one tensor: LoRA on single experts is not possible"
    return "it must have been trained on this same base"


def _json(path: Path) -> dict[str, Any]:
    """The content of a JSON file beside the adapter; empty if it does not exist.

    Raises:
        AdapterError: it exists and cannot be read.
    """
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(f"{path} cannot be read: {error}", "restore it, or remove it from the folder") from error
    if not isinstance(found, dict):
        raise AdapterError(f"{path} is not a JSON object", "restore it, or remove it from the folder")
    return found
