"""`predict` and `generate`: use what was learned."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from cl_adapter import display
from cl_adapter.app import USE, verb
from cl_adapter.session import Session

from adapterhub_cl.errors import DataError, UsageError

if TYPE_CHECKING:
    from adapterhub_cl.hub import AdapterHub
    from adapterhub_cl.types import Example

Task = Annotated[str | None, typer.Option(help="the adapter that serves this task answers")]
Adapter = Annotated[str | None, typer.Option(help="this version answers, or base for the base alone")]
_MANY = 64  # inputs from which a progress line is worth its place


@verb(USE, 'cl-adapter predict --task news "Fed raises rates"\ncl-adapter predict --file inputs.jsonl --json')
def predict(
    ctx: typer.Context,
    texts: Annotated[list[str] | None, typer.Argument(help="default: stdin, one text a line")] = None,
    file: Annotated[str | None, typer.Option(help="JSONL, CSV, …; or .txt with one text a line")] = None,
    task: Task = None,
    adapter: Adapter = None,
    columns: Annotated[str | None, typer.Option(help="which column of the file is the text: input=a")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="longest free answer")] = 64,
    batch_size: Annotated[int, typer.Option(min=1, help="inputs at once")] = 32,
) -> None:
    """Answer texts with an adapter."""
    session = Session.of(ctx)
    hub = session.hub()
    inputs = _inputs(texts, file, columns)
    reporter = session.reporter()
    shown = len(inputs) >= _MANY
    if shown:
        reporter.start("predicting", len(inputs))
    try:
        found = hub.predict(
            inputs,
            task=task,
            adapter=adapter,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            progress=reporter.advance if shown else None,
        )
    finally:
        if shown:
            reporter.finish()
    if session.json:
        session.give([prediction.to_json() for prediction in found])
        return
    display.table(
        ("prediction", "confidence", "adapter", "text"),
        [(p.prediction, f"{p.confidence:.3f}", p.adapter, p.text) for p in found],
        right=("confidence",),
    )


def _inputs(texts: Sequence[str] | None, file: str | None, columns: str | None) -> Sequence[str | Example]:
    if file is not None:
        if texts:
            raise UsageError("both texts and --file", "give one of them")
        from adapterhub_cl.data.columns import parse_columns, read_inputs

        return read_inputs(file, parse_columns(columns) if columns else None)
    if columns is not None:
        raise UsageError("--columns without --file", "name the file whose columns are meant: --file FILE")
    for text in texts or ():
        if len(text) < 256 and "\n" not in text and Path(text).is_file():
            raise UsageError(f"{text} is a file, not a text", f"cl-adapter predict --file {text}")
    return texts or _from_stdin('cl-adapter predict "TEXT"')


def _from_stdin(example: str) -> list[str]:
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError("no text given", f"{example}, or send one text a line to standard input")
    lines = [line.strip() for line in sys.stdin if line.strip()]
    if not lines:
        raise DataError("no text on standard input", f"{example}, or send one text a line")
    return lines


@verb(USE, 'cl-adapter generate "Once upon a time" --adapter base --raw')
def generate(
    ctx: typer.Context,
    text: Annotated[str | None, typer.Argument(help="default: all of stdin")] = None,
    task: Task = None,
    adapter: Adapter = None,
    raw: Annotated[bool, typer.Option("--raw", help="go on from the text as it is, without the prompt format")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="longest answer")] = 64,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token each time")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="seed of the draws")] = 0,
) -> None:
    """Write on from a text with an adapter."""
    session = Session.of(ctx)
    hub = session.hub()
    if text is None:
        text = "\n".join(_from_stdin('cl-adapter generate "TEXT"'))
    streams = sys.stdout.isatty() and not session.json
    answer = hub.generate(
        text,
        task=task,
        adapter=adapter,
        raw=raw,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        streamer=_streamer(hub) if streams else None,
    )
    if session.json:
        session.give({"text": text, "adapter": _who(hub, task, adapter), "task": task, "generated": answer})
    elif not streams:
        print(answer)


def _streamer(hub: AdapterHub) -> Any:
    from transformers import TextStreamer

    return TextStreamer(hub.load_base().tokenizer, skip_prompt=True, skip_special_tokens=True)


def _who(hub: AdapterHub, task: str | None, adapter: str | None) -> str:
    if adapter is not None:
        return adapter if adapter == "base" else hub.get(adapter).ref
    serving = hub.registry.serving()
    return serving[task] if task is not None else next(iter(serving.values()))
