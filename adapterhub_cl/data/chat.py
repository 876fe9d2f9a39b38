"""A tokenizer's chat template: writing prompts with it, finding the answers in its output, and how an answer ends."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from adapterhub_cl.data.formats import Frame
from adapterhub_cl.data.template_probes import (
    ASKED,
    MARK,
    OPENINGS,
    EndlessTemplateError,
    alternate,
    called_as_read,
    is_in,
    keeps_turns,
    left_out,
    once,
    rendered,
    takes_calls,
    takes_results,
    takes_system,
    takes_tools,
    why_broken,
)
from adapterhub_cl.errors import DataError, UsageError
from adapterhub_cl.examples import SYSTEM, calls_text, is_learned


class BrokenTemplateError(DataError):
    """The base's chat template fails whatever it is given."""


def apply(tokenizer: Any, messages: Sequence[Mapping[str, Any]], tools: str = "", *, prompt: bool = True) -> str:
    """The text that the tokenizer's chat template writes.

    What the template has no place for is put where it has one: a system message at the head of the user's first one,
    tools into the system message, calls into the assistant's message, and their results into one of the user.

    Args:
        tools: a JSON list, or empty.
        prompt: whether to end where the assistant begins to answer; otherwise after the last message.

    Raises:
        UsageError: there is no chat template.
        DataError: the template fails, rejects the conversation, or leaves out earlier turns.
    """
    if not tokenizer.chat_template:
        raise UsageError(
            "the prompt format 'chat' needs a base whose tokenizer has a chat template",
            "choose another one: --prompt-format instruction",
        )
    if why := why_broken(tokenizer):
        raise _broken(why)
    if sum(message["role"] == "user" for message in messages) > 1 and not keeps_turns(tokenizer):
        raise DataError(
            "the base's chat template leaves out the earlier turns of a conversation",
            "choose another prompt format: --prompt-format instruction",
        )
    messages, tools = _placed(tokenizer, messages, tools)
    try:
        text = rendered(tokenizer, messages, tools, prompt)
    except EndlessTemplateError as error:
        raise _broken(str(error)) from None
    except Exception as error:  # a template is a program: it can fail in any way
        why = str(error).strip().partition("\n")[0] or type(error).__name__
        other = "choose another prompt format, such as --prompt-format instruction"
        raise DataError(
            f"the base's chat template rejects the conversation: {why}",
            other
            if alternate(messages)
            else f"let user and assistant alternate, using only roles that the template supports, or {other}",
        ) from error
    if prompt and (lost := left_out(messages, text)):
        raise DataError(
            f"the base's chat template leaves out part of the conversation: {lost}",
            "choose another prompt format: --prompt-format instruction",
        )
    return text


def _broken(why: str) -> BrokenTemplateError:
    return BrokenTemplateError(
        f"the base's chat template does not work: {why}",
        "correct chat_template.jinja in the base's folder, or choose another prompt format: "
        "--prompt-format instruction",
    )


def _placed(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], tools: str
) -> tuple[Sequence[Mapping[str, Any]], str]:
    """The conversation and its tools in a form that the template has a place for."""
    if tools and not takes_tools(tokenizer):
        messages, tools = _offered(messages, tools), ""
    if any(message.get("tool_calls") for message in messages):
        messages = called_as_read(tokenizer, messages) if takes_calls(tokenizer) else [_spelled(m) for m in messages]
    if any(message["role"] == "tool" for message in messages) and not takes_results(tokenizer):
        messages = [{**m, "role": "user"} if m["role"] == "tool" else m for m in messages]
    if messages and messages[0]["role"] in SYSTEM and not takes_system(tokenizer):
        messages = _folded(messages)
    return messages, tools


def _offered(messages: Sequence[Mapping[str, Any]], tools: str) -> list[Mapping[str, Any]]:
    """The conversation with its tools in the system message."""
    told = f"Tools: {tools}"
    if messages and messages[0]["role"] in SYSTEM:
        return [{**messages[0], "content": f"{messages[0]['content']}\n{told}"}, *messages[1:]]
    return [{"role": "system", "content": told}, *messages]


def _spelled(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """A message with the tools that it calls in its text."""
    if not message.get("tool_calls"):
        return message
    text = calls_text(json.dumps(message["tool_calls"], ensure_ascii=False))
    rest = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**rest, "content": "\n".join(part for part in (message["content"], text) if part)}


def _folded(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The conversation with its system message at the head of the first user's message, where a template has no place
    for one, as those templates' authors advise."""
    system, *rest = messages
    if not rest or rest[0]["role"] != "user":
        return [{**system, "role": "user"}, *rest]
    return [{**rest[0], "content": f"{system['content']}\n\n{rest[0]['content']}"}, *rest[1:]]


def reply(tokenizer: Any, text: str) -> str:
    """An answer as the template writes it after the prompt, without the end of the turn: with the space that some add
    there, or the empty thought of one that writes thoughts. The text itself if the template rewrites it."""
    opening = once(tokenizer, "opening", _opening)
    if opening is None:
        return text
    messages, asked = opening
    try:
        whole = apply(tokenizer, [*messages, {"role": "assistant", "content": text}], prompt=False)
    except DataError:
        return text
    found, end = whole[len(asked) :], turn_end(tokenizer)
    if end is not None:
        found, ended, _ = found.rpartition(tokenizer.convert_ids_to_tokens(end))
        if not ended:
            return text
    return (found if end is not None else found.rstrip()) if whole.startswith(asked) and text.strip() in found else text


def reply_frame(tokenizer: Any) -> Frame:
    """What `reply` puts around an answer; behind it also an end of the turn that is decoded as text."""
    found: Frame = once(tokenizer, "frame", _reply_frame)
    return found


def _reply_frame(tokenizer: Any) -> Frame:
    before, mark, behind = reply(tokenizer, MARK).partition(MARK)
    end = turn_end(tokenizer)
    if end is not None and end not in special_ids(tokenizer):
        behind += str(tokenizer.convert_ids_to_tokens(end))
    return Frame(before, behind.strip()) if mark else Frame()


def _opening(tokenizer: Any) -> tuple[list[dict[str, str]], str] | None:
    """A conversation that the template accepts, up to where the assistant begins, and its prompt."""
    for before in OPENINGS:
        messages = [*before, *ASKED]
        try:
            return messages, prompt_of(tokenizer, messages)
        except (DataError, UsageError):
            continue
    return None


def prompt_of(tokenizer: Any, messages: Sequence[Mapping[str, Any]], tools: str = "") -> str:
    """The prompt up to where the assistant's answer begins.

    Some templates have no generation prompt; for these it is what they write before an answer.
    """
    asked = apply(tokenizer, messages, tools)
    if _prompts(tokenizer):
        return asked
    try:
        answered = apply(tokenizer, [*messages, {"role": "assistant", "content": MARK}], tools, prompt=False)
    except DataError:
        return asked
    before, mark, _ = answered.partition(MARK)
    if not mark or not before.startswith(asked) or before.rstrip() == asked.rstrip():  # a space belongs to the answer
        return asked
    return before


def turn_end(tokenizer: Any) -> int | None:
    """The token with which the template ends the assistant's turn; None if it ends in plain text, or not at all."""
    found: int | None = once(tokenizer, "turn_end", _turn_end)
    return found


def _prompts(tokenizer: Any) -> bool:
    """Whether the template writes something where the assistant begins."""
    return bool(once(tokenizer, "prompts", _writes_prompts))


def _writes_prompts(tokenizer: Any) -> bool:
    for opening in OPENINGS:
        messages = [*opening, *ASKED]
        try:
            return apply(tokenizer, messages) != apply(tokenizer, messages, prompt=False)
        except DataError:
            continue
    return True


def _turn_end(tokenizer: Any) -> int | None:
    if not tokenizer.chat_template:
        return None
    for opening in OPENINGS:
        messages = [*opening, *ASKED, {"role": "assistant", "content": MARK}]
        try:
            text = apply(tokenizer, messages, prompt=False)
        except DataError:
            continue
        at = text.casefold().rfind(MARK)  # some templates write answers in another case
        if at < 0:
            return None
        tail = text[at + len(MARK) :]
        ids = tokenizer(tail, add_special_tokens=False, verbose=False).input_ids
        special, added = special_ids(tokenizer), added_ids(tokenizer)
        return next((token for known in (special, added) for token in ids if token in known), None)
    return None


def end_ids(tokenizer: Any, model: Any) -> list[int]:
    """Every id at which a generated answer ends, sorted: the tokenizer's end of text, those in the model's
    generation_config.json, and the end of the assistant's turn in the chat template."""
    config = getattr(model, "generation_config", None)
    named = getattr(config, "eos_token_id", None)
    named = [named] if isinstance(named, int) else list(named or ())
    found = {tokenizer.eos_token_id, turn_end(tokenizer), *named}
    return sorted(int(one) for one in found if one is not None)


def special_ids(tokenizer: Any) -> set[int]:
    """Ids of the tokens that are not text: the tokenizer's own special ones and added special tokens."""
    added = getattr(tokenizer, "added_tokens_decoder", {}) or {}
    return {*tokenizer.all_special_ids, *(number for number, token in added.items() if token.special)}


def added_ids(tokenizer: Any) -> set[int]:
    """Ids of the tokens that were added to the tokenizer's vocabulary, special or not, without those of space alone."""
    added = getattr(tokenizer, "added_tokens_decoder", {}) or {}
    return {number for number, token in added.items() if token.content.strip()}


def answered_spans(tokenizer: Any, messages: Sequence[Mapping[str, Any]], tools: str, prompt: str) -> list[range]:
    """Where in a prompt the assistant's earlier answers are, in characters, each including the token that ends it.

    A turn that the template rewrites once more turns follow (for example without its reasoning) is left out, and so
    is one whose weight is 0.
    """
    spans = []
    for k, message in enumerate(messages):
        if not is_learned(message):
            continue
        try:
            before = prompt_of(tokenizer, messages[:k], tools)
            behind = apply(tokenizer, messages[: k + 1], tools, prompt=False)
        except DataError:
            continue
        behind = _through_turn(tokenizer, behind)  # some write the end of the text behind the last turn
        whole = bool(message.get("tool_calls")) or is_in(str(message["content"]), behind[len(before) :])
        if prompt.startswith(before) and prompt.startswith(behind) and whole and len(behind) > len(before):
            spans.append(range(len(before), len(behind)))
    return spans


def _through_turn(tokenizer: Any, text: str) -> str:
    """A conversation up to the end of its last turn."""
    end = turn_end(tokenizer)
    head, mark, _ = text.rpartition(tokenizer.convert_ids_to_tokens(end)) if end is not None else ("", "", "")
    return head + mark if mark else text.rstrip()


def called(tokenizer: Any, messages: Sequence[Mapping[str, Any]], tools: str, content: str, calls: str) -> str | None:
    """An answer that calls tools, as the template writes it, without the end of the turn; None if it cannot."""
    asked = json.loads(calls)
    answer = {"role": "assistant", "content": content, "tool_calls": asked}
    prompt = prompt_of(tokenizer, messages, tools)
    try:
        whole = apply(tokenizer, [*messages, answer], tools, prompt=False)
    except DataError:
        return None
    name = str((asked[0].get("function") or asked[0]).get("name") or "") if isinstance(asked[0], Mapping) else ""
    if not whole.startswith(prompt) or not name or name not in whole[len(prompt) :]:
        return None
    text = whole[len(prompt) :]
    end = turn_end(tokenizer)
    if end is not None:
        text = text.partition(tokenizer.convert_ids_to_tokens(end))[0]
    return text.strip().removesuffix(reply_frame(tokenizer).behind).strip()
