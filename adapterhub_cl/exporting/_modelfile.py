"""A Modelfile, by which Ollama takes in a GGUF file: its template, its stop words, and greedy answers.

Ollama's templates are written in Go's template language. Every fixed text is a quoted string of that language, on one
line: so nothing that stands in a chat template or in an instruction can end the template or begin a new command.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

_CONTENTS = {"system": "Xq7systemqX", "user": "Xq7userqX", "assistant": "Xq7assistantqX"}
_SECOND = "Xq7againqX"


def quoted(text: str) -> str:
    """An action of Go's templates that writes a text."""
    if not text:
        return ""
    told = json.dumps(text, ensure_ascii=False).replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return "{{ " + told.replace("\x7f", "\\x7f") + " }}"


def chat_pieces(tokenizer: Any) -> dict[str, tuple[str, str]] | None:
    """Role → what stands before and after its content in the base's chat template; `ask`: what begins the answer;
    `usual`: what stands before the first turn where there is no system text.

    None if the template is not made of such pieces.
    """
    bos = tokenizer.bos_token or ""

    def render(*turns: tuple[str, str], ask: bool = False) -> str:
        rows = [{"role": role, "content": content} for role, content in turns]
        return str(tokenizer.apply_chat_template(rows, tokenize=False, add_generation_prompt=ask))

    said = _CONTENTS
    try:
        system = render(("system", said["system"]))
        alone = render(("user", said["user"]))
        both = render(("system", said["system"]), ("user", said["user"]))
        asked = render(("system", said["system"]), ("user", said["user"]), ask=True)
        turns = [
            ("system", said["system"]),
            ("user", said["user"]),
            ("assistant", said["assistant"]),
            ("user", _SECOND),
        ]
        whole = render(*turns, ask=True)
    except Exception:  # a template may refuse a system text, or what stands alone
        return None
    if not both.startswith(system) or not asked.startswith(both) or system.count(said["system"]) != 1:
        return None
    user = both[len(system) :]
    if user.count(said["user"]) != 1 or not alone.endswith(user):
        return None
    ask = asked[len(both) :]
    rest = whole[len(both) :]
    if not whole.startswith(both) or rest.count(said["assistant"]) != 1 or rest.count(_SECOND) != 1:
        return None
    before_user, after_user = user.split(said["user"])
    middle = rest[: rest.index(_SECOND)]
    if not middle.endswith(before_user) or rest != f"{middle}{_SECOND}{after_user}{ask}":
        return None
    before, after = middle[: len(middle) - len(before_user)].split(said["assistant"])
    begin, end = system.split(said["system"])
    usual = alone[: len(alone) - len(user)]
    if (
        bos
        and begin.startswith(bos)
        and usual.startswith(bos)
        and tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]
    ):
        begin, usual = begin.removeprefix(bos), usual.removeprefix(bos)  # llama.cpp puts it there itself
    return {
        "system": (begin, end),
        "user": (before_user, after_user),
        "assistant": (before, after),
        "ask": (ask, ""),
        "usual": (usual, ""),
    }


def chat_template(pieces: Mapping[str, tuple[str, str]]) -> str:
    """Ollama's template of a chat."""
    roles: list[str] = []
    for role in ("system", "user", "assistant"):
        before, after = pieces[role]
        word = "if" if not roles else "else if"
        roles.append(f'{{{{ {word} eq .Role "{role}" }}}}{quoted(before)}{{{{ .Content }}}}{quoted(after)}')
    usual = quoted(pieces["usual"][0])
    first = f"{{{{ if not .System }}}}{usual}{{{{ end }}}}" if usual else ""
    turns = f"{{{{ range .Messages }}}}{''.join(roles)}{{{{ end }}}}{{{{ end }}}}"
    return first + turns + quoted(pieces["ask"][0])


def prompt_template(prompt: str, instruction: str) -> str:
    """Ollama's template of one task's prompt.

    Args:
        prompt: a text with `{input}` and perhaps `{instruction}`.
        instruction: the task's own; a system text takes its place.
    """
    parts = re.split(r"\{(input|instruction)\}", prompt)
    own = f"{{{{ if .System }}}}{{{{ .System }}}}{{{{ else }}}}{quoted(instruction)}{{{{ end }}}}"
    actions = {"input": "{{ .Prompt }}", "instruction": own}
    return "".join(quoted(part) if k % 2 == 0 else actions[part] for k, part in enumerate(parts))


def modelfile(source: str, template: str, stops: Sequence[str], adapter: str = "", remarks: Sequence[str] = ()) -> str:
    """The content of a Modelfile.

    Args:
        source: the file of the model, as a relative path; `adapter` that of a LoRA.
        template: Ollama's template; empty for the one that Ollama finds in the file.
        stops: texts that end an answer.
        remarks: lines of comment.
    """
    lines = [*(f"# {' '.join(remark.split())}" for remark in remarks), f"FROM {source}"]
    if adapter:
        lines.append(f"ADAPTER {adapter}")
    if template:
        lines.append(f'TEMPLATE """{template}"""')
    for stop in dict.fromkeys(stops):
        if stop and stop.isprintable() and '"' not in stop:  # Modelfiles know no escapes
            lines.append(f'PARAMETER stop "{stop}"')
    lines.append("PARAMETER temperature 0")
    return "\n".join(lines) + "\n"


def for_tasks(tokenizer: Any, about: Mapping[str, Any], source: str, adapter: str = "") -> str:
    """The Modelfile of an export.

    Args:
        tokenizer: of the base.
        about: the content of task.json.
        source, adapter: see `modelfile`.
    """
    told = [one for one in about["tasks"].values() if one.get("prompt")]
    formats = {one["spec"].get("prompt_format") for one in about["tasks"].values()}
    stops = [str(tokenizer.convert_ids_to_tokens(number)) for one in told for number in one["ends"]]
    remarks = [f"{about['adapter']} on {about['base']['name']}; task.json says how each task is asked."]
    if adapter:
        remarks.append(f"{source} must be {about['base']['name']} as GGUF.")
    template = ""
    pieces = chat_pieces(tokenizer) if formats == {"chat"} and tokenizer.chat_template else None
    if pieces is not None:
        template = chat_template(pieces)
    elif told and formats != {"chat"}:
        one = told[0]
        prompt = one["prompt"]["instructed" if one["instruction"] else "bare"]
        if not one["prompt"]["add_special_tokens"] and tokenizer.bos_token:
            prompt = prompt.removeprefix(tokenizer.bos_token)
        template = prompt_template(prompt, one["instruction"])
    if len(told) > 1 and template and pieces is None:
        remarks.append(f"The template is that of the task {next(iter(about['tasks']))}.")
    return modelfile(source, template, stops, adapter, remarks)
