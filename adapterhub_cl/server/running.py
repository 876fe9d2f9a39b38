"""Runs the server: one engine, one listening socket, an orderly end."""

from __future__ import annotations

import errno
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn

from adapterhub_cl.errors import AdapterHubError, UsageError
from adapterhub_cl.hub import AdapterHub
from adapterhub_cl.progress import Reporter
from adapterhub_cl.server.application import Guard, application
from adapterhub_cl.server.serve_options import ServeOptions
from adapterhub_cl.server.tuning_runner import training_command


def serve(hub: AdapterHub, options: ServeOptions, *, reporter: Reporter, ready: Callable[[str], None]) -> None:
    """Answer over HTTP until SIGTERM or Ctrl-C; running requests are finished first.

    Args:
        ready: called with the server's address once it can be reached.

    Raises:
        UsageError: the port is in use, the address is not this machine's, or an option cannot be used.
        DataError: the keys cannot be read.
        EngineError: the vLLM cannot be asked, or its base is another one.
    """
    guard, listening = Guard.of(options), _listen(options)  # before the base is loaded: mistakes are found at once
    settings = {
        "options": dict(options.options),
        "batch_size": options.batch_size,
        "capacity": options.capacity,
        "engine": options.engine,
        "resident": options.resident,
        "timeout_s": options.deadline,
    }
    with listening, hub.engine(options.router, reporter=reporter, **settings) as engine:
        if options.engine == "built-in" and engine.base.device.type != "cpu":
            reporter.note(
                "note: the built-in engine does not serve a crowd on a GPU; start vLLM with the hub's base and add "
                "--engine http://HOST:PORT (docs/serving.md)"
            )
        train = training_command(hub.registry, hub.device, hub.dtype)
        app = application(hub.registry, engine, options, guard, train)
        if hub.registry.serving():
            try:
                engine.prepare()
            except AdapterHubError as error:  # named tasks and versions can be asked all the same
                reporter.note(f"warning: `auto` will not be answered: {error.message}")
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=options.drain,
            timeout_keep_alive=30,
            server_header=False,
        )
        host, port = listening.getsockname()[:2]
        ready(f"http://{f'[{host}]' if ':' in host else host}:{port}")
        with _signals_end_there():
            uvicorn.Server(config).run([listening])


@contextmanager
def _signals_end_there() -> Iterator[None]:
    """uvicorn raises the signal that stopped it once more when it is done, which would kill the process before the
    engine has written its counters."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _listen(options: ServeOptions) -> socket.socket:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((options.host, options.port))
        listening.listen(2048)
    except (OSError, OverflowError) as error:
        listening.close()
        taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        reason = "is in use" if taken else f"cannot be listened on: {error}"
        raise UsageError(
            f"{options.host} port {options.port} {reason}", "choose another --port; 0 takes a free one"
        ) from error
    return listening
