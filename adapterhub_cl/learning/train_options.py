"""The options of `add-task`, `update` and online updates. The command reads them at its start, so nothing heavy is
imported here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adapterhub_cl import replay
from adapterhub_cl.evaluation.general_options import GeneralOptions
from adapterhub_cl.options import option
from adapterhub_cl.types import METRICS, TASK_KINDS

# What `--facts` changes of the training settings and of the samples kept, where the user says nothing else: facts need
# many passes, and a fact that is not rehearsed is forgotten.
FACT_SETTINGS: Mapping[str, Any] = {"epochs": 3, "dev_share": 0.0}
FACT_REPLAY = "balanced:1000"
METRIC_NAMES = tuple(dict.fromkeys(name for names in METRICS.values() for name in names))


@dataclass(frozen=True, kw_only=True)
class OnlineOptions(GeneralOptions):
    """The options of `update --online`, which the other training verbs have too."""

    eval: str = option(
        "", "held-out data to score the finished adapter on; no training sees or chooses by them", stream=False,
        parse="adapterhub_cl.data.reading:absolute",
    )  # fmt: skip
    strategy: str = option(
        "isolated", "how training treats the past; several with + between", stream=False, names="strategies"
    )
    options: Mapping[str, Any] = option(
        dict, "STRATEGY.OPTION=VALUE, an option of the strategy; may be repeated", flag="--set", stream=False,
        parse="adapterhub_cl.options:parse_set",
    )  # fmt: skip
    replay: str = option(
        replay.DEFAULT, "which examples to keep: POLICY:SIZE, or none", check="adapterhub_cl.replay:parse",
        names="policies",
    )  # fmt: skip
    max_forgetting: float | None = option(
        None, "how much an earlier task that it answers for may lose, 0 to 1; default: the hub's", stream=False
    )
    columns: Mapping[str, str] = option(
        dict,
        "which column is which: input=a,output=b[,instruction=c][,rejected=d or desirable=d]; several outputs are "
        "learned as one JSON object",
        parse="adapterhub_cl.data.layouts:read_columns",
    )
    instruction: str | None = option(
        None,
        "what to do with inputs that come without an instruction; default: nothing, or to give the keys of answers "
        "that are JSON objects",
    )


@dataclass(frozen=True, kw_only=True)
class UpdateOptions(OnlineOptions):
    """The options of `update`."""

    augment: str = option(
        "", "augmented copies to add to the training rows: NAME:COPIES, e.g. swap:2", joins=True,
        check="adapterhub_cl.augmentation:parse_all", names="augmentations",
    )  # fmt: skip
    facts: bool = option(
        False, "the data are facts, questions with answers: also trains with rewordings and with questions whose "
        "answers must not change, and scores efficacy, paraphrase, locality and retention",
    )  # fmt: skip
    forecast: bool = option(
        False, "say after 30 % of the steps how much each earlier task that the new version answers for is expected "
        "to lose, and stop a training that would be refused for it",
    )  # fmt: skip
    serve: bool = option(
        True, "the new version answers as soon as it is accepted", flag="--no-serve",
        off="keep the new version from answering until it is promoted", config=False, stream=False,
    )  # fmt: skip
    log_with: str = option("", "also log to a tracker that Accelerate knows, e.g. tensorboard", stream=False)


@dataclass(frozen=True, kw_only=True)
class AddTaskOptions(UpdateOptions):
    """The options of `add-task`. A new one is one line here."""

    on_top_of: str = option("", "a version that stays active and frozen beneath the new adapter", stream=False)
    kind: str = option(
        "auto",
        "the kind of task: choice, generation or text; auto reads it off the data",
        word="kind of task",
        choices=("auto", *TASK_KINDS),
    )
    labels: Sequence[str] = option(
        tuple, "the answers of a choice task: a,b,c or a JSON list; default: those in the data",
        parse="adapterhub_cl.data.tasks:read_labels",
    )  # fmt: skip
    prompt_format: str | None = option(
        None, "how a prompt is written: a name, or a template with {instruction} and {input}; default: chat if the "
        "base has a chat template, else instruction",
        check="adapterhub_cl.data.formats:check_format",
    )  # fmt: skip
    metric: str | None = option(None, "the score that stands for the task", choices=METRIC_NAMES)
