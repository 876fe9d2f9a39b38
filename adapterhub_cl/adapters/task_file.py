"""What every export carries: task.json, which names the base and says how each task is asked, and the tokenizer."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub_cl.bases.sources import TOKENIZER_FILES, public_name, resolve
from adapterhub_cl.errors import BaseModelError
from adapterhub_cl.registry import samples
from adapterhub_cl.types import AdapterRecord, BaseInfo, Example, Task

if TYPE_CHECKING:
    from adapterhub_cl.data.tokenise import Tokeniser

TASK = "task.json"
PREDICT_SCRIPT = Path(__file__).with_name("predict_script.py")
FORMAT = 1
_INPUT, _INSTRUCTION = "Xq7input7qX", "Xq7told7qX"  # placeholders for the text and the instruction in a prompt
_SAID = "The text to be answered."


def base_folder(base: BaseInfo) -> Path | None:
    """Where the base lies; None if it cannot be found on this machine."""
    try:
        return resolve(base.source, base.revision)
    except BaseModelError:
        return None


def copy_tokenizer(base: Path, target: Path) -> None:
    """Copy the tokenizer and the chat template of a base's folder."""
    for file in sorted(base.iterdir()):
        if file.name in TOKENIZER_FILES and file.is_file():
            shutil.copyfile(file, target / file.name)


def write_task_file(about: Mapping[str, Any], target: Path) -> None:
    """Write task.json.

    Args:
        about: what `about_export` made, completed by `tell_prompts`.
    """
    text = json.dumps(about, indent=1, ensure_ascii=False) + "\n"
    (target / TASK).write_text(text, encoding="utf-8")


def about_export(record: AdapterRecord, base: BaseInfo, tasks: Sequence[Task]) -> dict[str, Any]:
    """The content of task.json: the version, its base, and its tasks, without their prompts."""
    from adapterhub_cl.adapters.head_files import read_layout
    from adapterhub_cl.bases.kinds import auto_class, is_encoder

    layout = read_layout(record.path)
    classifies = is_encoder(base.architecture) and layout
    return {
        "format": FORMAT,
        "adapter": record.ref,
        "base": {
            "name": public_name(base.source),
            "revision": base.revision,
            "fingerprint": base.fingerprint,
            "architecture": base.architecture,
            "quantization": base.quantization,
            "class": "AutoModelForSequenceClassification" if classifies else auto_class(base.architecture),
        },
        "rows": sum(len(own) for own in layout.values()),
        "tasks": {
            task.name: {"kind": task.kind, "spec": task.to_json(), "rows": dict(layout.get(task.name, {}))}
            for task in tasks
        },
    }


def tell_prompts(
    about: dict[str, Any], record: AdapterRecord, base: BaseInfo, folder: Path, tasks: Sequence[Task]
) -> bool:
    """Add how each task is prompted; returns whether all prompts could be described, so that others can use them."""
    from transformers import AutoTokenizer

    from adapterhub_cl import objectives
    from adapterhub_cl.answering.choices import LabelTree

    tokenizer = AutoTokenizer.from_pretrained(folder)
    objective = objectives.of(base)
    if not tasks or not all(task.kind in objective.answers_with for task in tasks):
        return False
    length = int(record.training.get("settings", {}).get("max_length") or 512)
    for task in tasks:
        own = about["tasks"][task.name]
        asked = replace(task, instruction="", kind="generation" if task.kind == "text" else task.kind)
        encode = objective.tokeniser(tokenizer, asked, length)
        prompt = _template(encode, tokenizer)
        if prompt is None:
            return False
        label_ids: dict[str, list[int]] = {}
        if task.kind == "choice" and objective.writes:
            label_ids = LabelTree({label: encode.answer(label) for label in task.labels}).ids()
        instruction = task.instruction or _usual_instruction(record)
        own |= {
            "instruction": instruction,
            "prompt": prompt,
            "label_ids": label_ids,
            "answer_prefix": encode.frame.before.strip() if objective.writes else "",
            "answer_suffix": encode.frame.behind if objective.writes else "",
            "most_tokens": encode.budget() if objective.writes else 0,
            "longest_answer": encode.longest_answer if objective.writes else 0,
            "max_length": encode.max_length,
            "ends": _ends(tokenizer, folder, encode) if objective.writes else [],
            "example": {"input": _SAID, "instruction": instruction, "prompt": _filled(prompt, _SAID, instruction)},
        }
    return True


def _template(encode: Tokeniser, tokenizer: Any) -> dict[str, Any] | None:
    """The prompt as a text with {input} and {instruction}, found by tokenising two placeholder words; None if the ids
    of the prompt do not come from such a text."""
    told: dict[str, tuple[int, ...]] = {
        "bare": encode.prompt(Example(_INPUT)).prompt,
        "instructed": encode.prompt(Example(_INPUT, None, _INSTRUCTION)).prompt,
    }
    for special in (False, True):
        found: dict[str, Any] = {"add_special_tokens": special}
        for name, ids in told.items():
            text = tokenizer.decode(ids, skip_special_tokens=special, clean_up_tokenization_spaces=False)
            again = tuple(tokenizer(text, add_special_tokens=special, verbose=False).input_ids)
            if again == tuple(ids) and text.count(_INPUT) == 1:
                text = text.replace(_INPUT, "{input}").replace(_INSTRUCTION, "{instruction}")
                found[name] = text
        if {"bare", "instructed"} <= found.keys():
            return found
    return None


def _filled(prompt: Mapping[str, Any], text: str, instruction: str) -> str:
    values = {"input": text, "instruction": instruction}
    template = str(prompt["instructed" if instruction else "bare"])
    return re.sub(r"\{(input|instruction)\}", lambda found: values[found[1]], template)


def _usual_instruction(record: AdapterRecord) -> str:
    """The instruction of most of its replay samples, if each row has its own."""
    rows = [json.loads(line) for line in samples.read(record)]
    often = Counter(str(row.get("instruction") or "") for row in rows if row.get("input")).most_common(1)
    return often[0][0] if often else ""


def _ends(tokenizer: Any, folder: Path, encode: Tokeniser) -> list[int]:
    """Ids that end an answer."""
    found = [encode.answer("x")[-1], tokenizer.eos_token_id]
    try:
        told = json.loads((folder / "generation_config.json").read_text(encoding="utf-8")).get("eos_token_id")
    except (OSError, ValueError, AttributeError):
        told = None
    found += told if isinstance(told, list) else [told]
    return list(dict.fromkeys(int(one) for one in found if isinstance(one, int)))


def remove_folders(record: AdapterRecord, base: BaseInfo, target: Path) -> None:
    """Remove this machine's folders from the copied files: they are useless elsewhere, and reveal too much."""
    training = record.training
    named = [base.source, *(str((training.get(key) or {}).get("source") or "") for key in ("data", "eval"))]
    named += [str(row.get("parent") or "") for row in record.manifest.get("lineage", ())]
    named += [str(row.get("data") or "") for row in record.manifest.get("evaluations", ())]
    paths = sorted({one for one in named if one and public_name(one) != one}, key=len, reverse=True)
    for name in ("adapter_config.json", "README.md", "training.json", "recipe.json"):
        file = target / name
        if file.is_file():
            text = file.read_text(encoding="utf-8")
            for path in paths:
                for written in {path, json.dumps(path)[1:-1], json.dumps(path, ensure_ascii=False)[1:-1]}:
                    text = text.replace(written, public_name(path))
            if name == "README.md" and base.source in paths:
                text = text.replace("\nbase = ", "\n# set this to the folder of the base\nbase = ")
            file.write_text(text, encoding="utf-8")
    config = json.loads((target / "adapter_config.json").read_text(encoding="utf-8"))
    if isinstance(source := config.get("base_model_name_or_path"), str):
        config["base_model_name_or_path"] = public_name(source)
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        (target / "adapter_config.json").write_text(text, encoding="utf-8")
