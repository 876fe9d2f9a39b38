"""`predict`, `generate` and `chat`: use what was learned."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from cl_adapter import display
from cl_adapter.app import USE, verb
from cl_adapter.completion import routers, tasks, versions
from cl_adapter.session import Session

from adapterhub_cl.adapters.serving import ServingTable, open_tasks, refuse_router
from adapterhub_cl.errors import DataError, UsageError
from adapterhub_cl.objectives import refuse_writing
from adapterhub_cl.options import parse_set
from adapterhub_cl.routing import DEFAULT
from adapterhub_cl.types import BASE

if TYPE_CHECKING:
    from adapterhub_cl.hub import AdapterHub
    from adapterhub_cl.types import Example, Prediction

File = Annotated[
    str | None, typer.Option(help="JSONL, CSV, …; - for JSON lines on stdin; or .txt with one text a line")
]
Task = Annotated[
    str | None,
    typer.Option(help="answer with the adapter that serves this task, without a router", autocompletion=tasks),
]
Adapter = Annotated[
    str | None, typer.Option(help="answer with this version; base is the base alone", autocompletion=versions)
]
Router = Annotated[
    str | None,
    typer.Option(help="the router that finds each text's task; default: analytic; see below", autocompletion=routers),
]
TopK = Annotated[int, typer.Option(min=1, help="mix the adapters of up to this many tasks by the router's weights")]
Set = Annotated[list[str] | None, typer.Option("--set", help="ROUTER.OPTION=VALUE; may be repeated")]
MaxNewTokens = Annotated[
    int | None,
    typer.Option(min=1, help="longest answer in tokens", show_default="what the task's answers need, else 64"),
]
Temperature = Annotated[float, typer.Option(min=0.0, help="0 always takes the most likely token")]
TopP = Annotated[float, typer.Option(help="sample from the most likely tokens that add up to this probability")]
Stop = Annotated[list[str] | None, typer.Option(help="stop before this text; may be repeated")]
DrawSeed = Annotated[int, typer.Option(min=0, help="seed for sampling")]


@verb(
    USE,
    'cl-adapter predict "Fed raises rates" "worst blender ever"\n'
    'cl-adapter predict --task news "Fed raises rates"\n'
    "cl-adapter predict --file inputs.jsonl --router centroid --top-k 2 --json",
)
def predict(
    ctx: typer.Context,
    texts: Annotated[list[str] | None, typer.Argument(help="default: stdin, one text a line")] = None,
    file: File = None,
    task: Task = None,
    adapter: Adapter = None,
    router: Router = None,
    top_k: TopK = 1,
    set_: Set = None,
    fallback: Annotated[
        bool, typer.Option("--fallback/--no-fallback", help="let the base answer inputs that are out of distribution")
    ] = True,
    columns: Annotated[str | None, typer.Option(help="which column of the file is the text: input=a")] = None,
    max_new_tokens: MaxNewTokens = None,
    batch_size: Annotated[int, typer.Option(min=1, help="inputs in one batch")] = 32,
) -> None:
    """Answer texts with a task's adapter, or with the adapters that a router chooses if no task is named."""
    session = Session.of(ctx)
    hub = session.hub()
    found = hub.predict(
        inputs_of(session, hub, texts, file, columns, "predict", task, adapter),
        task=task,
        adapter=adapter,
        router=router,
        top_k=top_k,
        options=router_options(set_),
        fallback=fallback,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        reporter=session.reporter(),
    )
    if session.json:
        session.give([prediction.to_json() for prediction in found])
        return
    if any(p.routing is not None for p in found):
        display.table(
            ("prediction", "confidence", "task", "routing", "adapter", "text"),
            [(p.prediction, f"{p.confidence:.3f}", p.task, _sure(p), answered_by(p), p.text) for p in found],
            right=("confidence", "routing"),
        )
    else:
        display.table(
            ("prediction", "confidence", "adapter", "text"),
            [(p.prediction, f"{p.confidence:.3f}", p.adapter, p.text) for p in found],
            right=("confidence",),
        )
    if strange := sum(p.out_of_distribution and p.adapter == BASE for p in found):
        silent = any(p.out_of_distribution and not p.prediction for p in found)  # an encoder has no answer of its own
        session.note(
            f"note: {strange} of {len(found)} inputs are unlike anything this hub knows, so "
            f"{'they got no label' if silent else 'the base answered'}; "
            "route --explain shows why, --no-fallback lets the nearest task answer"
        )
    if cut := sum(p.truncated and p.finished for p in found):
        session.note(f"note: {cut} {'input was' if cut == 1 else 'inputs were'} longer than the task's limit and cut")
    if open_ended := sum(not p.finished for p in found):
        session.note(
            f"note: {open_ended} {'answer was' if open_ended == 1 else 'answers were'} ended by the limit of new "
            "tokens; --max-new-tokens N allows longer ones"
        )


def _sure(found: Prediction) -> str | None:
    """The router's confidence in the task, if it found one."""
    return None if found.routing is None or not found.task else f"{found.routing:.3f}"


def answered_by(prediction: Prediction) -> str:
    """`news@v1`, `news@v1 0.70 + reviews@v1 0.30`, or the base and why."""
    if prediction.out_of_distribution and prediction.adapter == BASE:
        return f"{BASE if prediction.prediction else 'none'} (out of distribution)"
    if len(prediction.adapters) > 1:
        return " + ".join(f"{ref} {weight:.2f}" for ref, weight in prediction.adapters.items() if weight >= 0.005)
    return prediction.adapter


def router_options(given: Sequence[str] | None) -> dict[str, str]:
    """What `--set` says of the router."""
    return parse_set(given or ())


def inputs_of(
    session: Session,
    hub: AdapterHub,
    texts: Sequence[str] | None,
    file: str | None,
    columns: str | None,
    word: str,
    task: str | None = None,
    adapter: str | None = None,
) -> Sequence[str | Example]:
    """The inputs that a command line names: arguments, a file, or standard input."""
    if file is not None:
        if texts:
            raise UsageError("both texts and --file", "give one of them")
        from adapterhub_cl.data.layouts import parse_columns

        chosen = parse_columns(columns) if columns else None
        return hub.read_inputs(file, columns=chosen, task=task, adapter=adapter)
    if columns is not None:
        raise UsageError("--columns without --file", "name the file whose columns are meant: --file FILE")
    for text in texts or ():
        if _is_file(text):
            raise UsageError(f"{text} is a file, not a text", f"cl-adapter {word} --file {text}")
    if texts:
        return texts
    lines = [line.strip() for line in _stdin(f'cl-adapter {word} "TEXT"', "one text a line").split("\n")]
    found = [line for line in lines if line]
    if all(map(_is_object, found)):  # a file of rows, perhaps with the right answers in it
        session.note(f"note: each line is answered as it is, as text; if these are rows: cl-adapter {word} --file -")
    return found


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _is_file(text: str) -> bool:
    with suppress(OSError, ValueError):  # too long for a name, or no name at all
        return "\n" not in text and Path(text).is_file()
    return False


def _stdin(example: str, what: str) -> str:
    """All of standard input, which has something in it."""
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError("no text given", f"{example}, or send {what} to standard input")
    text = _read(sys.stdin.read)
    if not text.strip():
        raise DataError("no text on standard input", f"{example}, or send {what}")
    return text


@verb(
    USE, 'cl-adapter generate "Once upon a time" --adapter base --raw\ncl-adapter generate "Write a haiku" --stop "."'
)
def generate(
    ctx: typer.Context,
    text: Annotated[str | None, typer.Argument(help="default: all of stdin")] = None,
    task: Task = None,
    adapter: Adapter = None,
    router: Router = None,
    top_k: TopK = 1,
    set_: Set = None,
    raw: Annotated[bool, typer.Option("--raw", help="continue the text itself, without the prompt format")] = False,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    stop: Stop = None,
    seed: DrawSeed = 0,
) -> None:
    """Continue a text with a task's adapter, or with the one that a router chooses."""
    session = Session.of(ctx)
    hub = session.hub()
    if text is None:
        text = _stdin('cl-adapter generate "TEXT"', "the text").strip("\r\n")
    streams = sys.stdout.isatty() and not session.json
    found = hub.write(
        text,
        task=task,
        adapter=adapter,
        router=router,
        top_k=top_k,
        options=router_options(set_),
        raw=raw,
        emit=_show if streams else None,
        reporter=session.reporter(),
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        stop=tuple(stop or ()),
        seed=seed,
    )
    if session.json:
        session.give(_written(found))
    else:
        print("" if streams else found.prediction)
        _tell(session, found)


def _written(found: Prediction) -> dict[str, Any]:
    row = found.to_json()
    return {
        **{key: row[key] for key in ("text", "adapter")},
        "task": found.task or None,
        "generated": found.prediction,
        **{key: row[key] for key in ("adapters", "routing", "out_of_distribution", "truncated", "finished")},
    }


def _show(piece: str) -> bool:
    print(display.as_written(piece), end="", flush=True)
    return True


def _tell(session: Session, found: Prediction) -> None:
    """Notes on the adapter that answered and on inputs that were cut."""
    if found.truncated and found.finished:
        session.note("note: the input was longer than the task's limit and was cut")
    if not found.finished:
        session.note("note: the answer was ended by the limit of new tokens; --max-new-tokens N allows a longer one")
    if found.routing is not None:
        what = f"task {found.task}, routing confidence {found.routing:.3f}" if found.task else "no known task"
        session.note(f"answered by {answered_by(found)}: {what}")


@verb(USE, 'cl-adapter chat\nprintf "hello\\nand now?\\n" | cl-adapter chat --adapter base --json')
def chat(
    ctx: typer.Context,
    task: Task = None,
    adapter: Adapter = None,
    router: Router = None,
    set_: Set = None,
    system: Annotated[str | None, typer.Option(help="a first message with the role system")] = None,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    stop: Stop = None,
    seed: DrawSeed = 0,
) -> None:
    """Chat: the adapter of the task, or the one that a router chooses, answers each message.

    /new starts a new conversation, /quit ends it. Every task sees the whole conversation: as turns if its prompt format
    is chat, otherwise as lines. With --json each answer is one line.
    """
    session = Session.of(ctx)
    hub = session.hub()
    options = router_options(set_)
    if router is not None or options:
        among = open_tasks(ServingTable(hub.registry), task, adapter, free=True)
        refuse_router(among, task, router, options=options)
    refuse_writing(hub.base, "a conversation")
    terminal = sys.stdin is not None and sys.stdin.isatty()
    opening = [{"role": "system", "content": system}] if system else []
    messages = list(opening)
    with hub.engine(router or DEFAULT, options=options, reporter=session.reporter()):
        if terminal:
            session.note("/new starts a new conversation, /quit or Ctrl-D ends it")
        while (said := _turn(terminal)) is not None:
            if said == "/quit":
                break
            if said == "/new":
                messages = list(opening)
                continue
            if not said:
                continue
            if terminal and said.startswith("/"):
                session.note(f"unknown command {said.split()[0]}; /new starts a new conversation, /quit ends")
                continue
            messages.append({"role": "user", "content": said})
            try:
                streams = sys.stdout.isatty() and not session.json
                found = hub.write(
                    messages,
                    task=task,
                    adapter=adapter,
                    router=router,
                    emit=_show if streams else None,
                    max_new_tokens=max_new_tokens,
                    temperature=temperature,
                    top_p=top_p,
                    stop=tuple(stop or ()),
                    seed=seed,
                )
            except DataError as error:
                if not terminal:
                    raise
                session.note(f"error: {error.message}; /new starts a new conversation")
                messages.pop()
                continue
            messages.append({"role": "assistant", "content": found.prediction})
            if session.json:
                print(display.as_json(_written(found)), flush=True)
            else:
                print("" if streams else found.prediction, flush=True)
                _tell(session, found)


def _turn(terminal: bool) -> str | None:
    """The next message; None at the end."""
    if terminal:
        print("> ", end="", file=sys.stderr, flush=True)
    line = _read(sys.stdin.readline) if sys.stdin is not None else ""
    return line.strip() if line else None


def _read(read: Callable[[], str]) -> str:
    """Text of standard input.

    Raises:
        DataError: it is not text of the terminal's encoding.
    """
    try:
        return read()
    except UnicodeDecodeError as error:
        raise DataError(
            f"standard input is not {error.encoding}: {error.reason} at byte {error.start + 1}", "send it as UTF-8"
        ) from error
