"""From what a client asks to a job that can run: every name, setting and row is checked before the job is written."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from adapterhub_cl.bases.loading import LoadedBase
from adapterhub_cl.errors import DataError, UsageError
from adapterhub_cl.learning.material import prepare
from adapterhub_cl.learning.order import order_of
from adapterhub_cl.learning.request import build
from adapterhub_cl.registry import Registry, check_new
from adapterhub_cl.server.asking import AUTO
from adapterhub_cl.server.failing import Refused, sentence_of
from adapterhub_cl.server.tuning_store import TuningJob, new_id
from adapterhub_cl.server.uploads import Uploads
from adapterhub_cl.settings import TrainingSettings
from adapterhub_cl.types import BASE


def usual_rate(base: LoadedBase) -> float:
    """The learning rate that a multiplier of 1 stands for: the default of `add-task` on this base."""
    return TrainingSettings().peak_rate(base.width, encoder=base.is_encoder)


def job_of(
    registry: Registry,
    uploads: Uploads,
    rate: float,
    model: str,
    files: Mapping[str, str | None],
    numbers: Mapping[str, Any],
    about: Mapping[str, Any],
) -> TuningJob:
    """The job.

    Args:
        rate: see `usual_rate`.
        files: `training_file` and `validation_file`, by id.
        numbers: the hyperparameters that the client chose.
        about: `seed`, `suffix`, `metadata` and `kind`.

    Raises:
        Refused: a file is unknown, a row cannot be used, or the name is taken or does not fit the model.
        UnknownNameError: the model is unknown.
        UsageError: a setting or a name cannot be used.
    """
    job_id = new_id()
    for param, file_id in files.items():
        if file_id is not None:
            uploads.get(file_id, param=param)
    if files["validation_file"] == files["training_file"]:
        said = "a version is scored on rows that it did not learn: the validation file must be another one"
        raise Refused(400, said, "invalid_validation_file", "validation_file")
    verb, name = _named(registry, model, about["suffix"], job_id)
    options: dict[str, Any] = {}
    if "n_epochs" in numbers:
        options["epochs"] = numbers["n_epochs"]
    if "batch_size" in numbers:
        options["batch_size"] = numbers["batch_size"]
    if "learning_rate_multiplier" in numbers:
        options["learning_rate"] = float(f"{rate * numbers['learning_rate_multiplier']:.6g}")
    if about["seed"]:
        options["seed"] = about["seed"]
    if about["kind"]:
        if verb == "update":
            raise Refused(400, f"{name} keeps the kind of its task; leave `kind` out", "invalid_request", "kind")
        options["kind"] = about["kind"]
    shown = _checked(registry, uploads, verb, name, files, options)
    return TuningJob(
        id=job_id,
        created=time.time(),
        verb=verb,
        name=name,
        model=model,
        training_file=str(files["training_file"]),
        validation_file=files["validation_file"],
        options=options,
        shown_hyperparameters={**shown, "learning_rate_multiplier": numbers.get("learning_rate_multiplier", 1.0)},
        seed=about["seed"],
        metadata=about["metadata"],
    )


def _named(registry: Registry, model: str, suffix: str | None, job_id: str) -> tuple[str, str]:
    """The verb and the adapter's name."""
    if model in (AUTO, BASE):
        name = check_new(suffix) if suffix else f"ft-{job_id.removeprefix('ftjob-')[:12]}"
        known = {record.name for record in registry.adapters()} | {task.name for task in registry.tasks()}
        if name in known:
            said = f"the hub has {name!r} already; model={name!r} updates it, and another suffix makes a new task"
            raise Refused(400, said, "name_taken", "suffix")
        if name == AUTO:
            raise Refused(400, f"{AUTO!r} cannot be a task's name", "invalid_request", "suffix")
        return "add-task", name
    record = registry.get(model)
    newest = registry.get(record.name)
    if record.ref != newest.ref:
        said = f"an update continues from {newest.ref}, the newest version, not from {record.ref}"
        raise Refused(400, said, "unsupported", "model")
    if suffix not in (None, record.name):
        said = f"an update of {record.name} is called {record.name} too, not {suffix!r}; leave the suffix out"
        raise Refused(400, said, "invalid_request", "suffix")
    return "update", record.name


def _checked(
    registry: Registry,
    uploads: Uploads,
    verb: str,
    name: str,
    files: Mapping[str, str | None],
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Read every row and every setting as the training will; the hyperparameters with their defaults."""
    training, validation = files["training_file"], files["validation_file"]
    asked = {**options, **({"eval": str(uploads.path(validation))} if validation else {})}
    try:
        request, _ = build(registry, verb, name, uploads.path(str(training)), False, asked)
        prepare(registry, order_of(registry, request))
    except DataError as error:
        which = "validation_file" if validation and validation in error.message else "training_file"
        said = sentence_of(error).replace(f"{uploads.folder}/", "")
        raise Refused(400, said, f"invalid_{which}", which) from error
    except UsageError as error:
        said = sentence_of(error).replace(f"{uploads.folder}/", "")
        raise Refused(400, said, "invalid_request") from error
    settings = request.training()
    return {"n_epochs": settings.epochs or "auto", "batch_size": settings.batch_size or "auto"}
