"""What the global flags say: which hub, which device, and how to talk."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from cl_adapter import display

from adapterhub_cl.errors import HubError, UsageError

if TYPE_CHECKING:
    from adapterhub_cl.hub import AdapterHub
    from adapterhub_cl.progress import Reporter
    from adapterhub_cl.registry import Registry

HUB_VARIABLE = "CL_ADAPTER_HUB"
DEFAULT_HUB = Path("registry")


@dataclass(frozen=True)
class Session:
    """One call of the command. Data goes to stdout, notes and progress to stderr."""

    hub_path: Path | None = None
    json: bool = False
    quiet: bool = False
    debug: bool = False
    device: str = "auto"
    dtype: str = "auto"
    base_path: str | None = None

    @classmethod
    def of(cls, ctx: typer.Context) -> Session:
        found = ctx.find_object(cls)
        return found if found is not None else cls()

    def where(self) -> Path | None:
        """The hub's path: `--hub`, else `$CL_ADAPTER_HUB`, else `./registry` if that is a hub."""
        named = self.named()
        if named is not None:
            return named
        return DEFAULT_HUB if (DEFAULT_HUB / "hub.toml").is_file() else None

    def named(self) -> Path | None:
        """The path that the user gave, by flag or by the environment."""
        if self.hub_path is not None:
            return self.hub_path
        said = os.environ.get(HUB_VARIABLE)
        return Path(said).expanduser() if said else None

    def hub(self, *, write: bool = False) -> AdapterHub:
        """Open the hub.

        Args:
            write: the verb changes the hub, so the user must have named it: `./registry` alone is only read.

        Raises:
            HubError: there is none.
            UsageError: nobody named the hub that the verb would change.
        """
        from adapterhub_cl.hub import AdapterHub

        if write:
            self.refuse_default()
        found = AdapterHub.open(self.existing(), device=self.device, dtype=self.dtype, base_path=self.base_path)
        found.registry.bring = self._bring
        return found

    def _bring(self, registry: Registry, ref: str) -> str:
        """Pull what a reference to a store names, with progress, into a hub that may be changed."""
        from adapterhub_cl.sharing.referring import bring

        self.refuse_default()
        return bring(registry, ref, self.reporter())

    def refuse_default(self) -> None:
        """Raise where a verb would change `./registry`, which nobody named: in a checkout of this project that is the
        reference hub, which is under version control.

        Raises:
            UsageError: says how to name it, or to make another one.
        """
        if self.named() is None and self.where() is not None:
            raise UsageError(
                f"this would change ./{DEFAULT_HUB}, which is only read unless you name it",
                f"--hub {DEFAULT_HUB} to change it, cp -r {DEFAULT_HUB} my-hub to copy it, or cl-adapter init my-hub "
                "--base tiny for a new hub",
            )

    def existing(self) -> Path:
        """The hub's path.

        Raises:
            HubError: nobody named one, and there is none here.
        """
        path = self.where()
        if path is None:
            raise HubError(
                f"no hub: neither --hub nor ${HUB_VARIABLE} is set, and ./{DEFAULT_HUB} is not a hub",
                "make one: cl-adapter init --base tiny",
            )
        return path

    def command(self, rest: str) -> str:
        """A command to be shown, with `--hub` where it is needed to find this hub again."""
        return f"cl-adapter --hub {self.hub_path} {rest}" if self.hub_path else f"cl-adapter {rest}"

    def note(self, text: str) -> None:
        """A line for the user beside the data."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def reporter(self) -> Reporter:
        """Where a long piece of work tells how far it is."""
        from adapterhub_cl.progress import Reporter, console_reporter

        return Reporter() if self.quiet else console_reporter()

    def bars(self) -> Reporter:
        """Bars on a terminal, without notes; elsewhere nothing: for a verb that tells by itself what it does."""
        from adapterhub_cl.progress import BarReporter, Reporter

        return BarReporter(notes=False) if sys.stderr.isatty() and not self.quiet else Reporter()

    def give(self, data: Any) -> None:
        """The answer, as JSON."""
        print_json(data)


def print_json(data: Any) -> None:
    ascii_only = (sys.stdout.encoding or "utf-8").lower().replace("-", "") != "utf8"
    # Flushed, because `serve` prints its address and goes on: a program that reads a pipe would wait for it.
    print(display.as_json(data, indent=2, ascii_only=ascii_only), flush=True)


def ask(question: str, removes: str, hint: str) -> None:
    """Go on only if the user says yes; else the command ends with nothing removed.

    Args:
        removes: what is at stake, for the message where there is nobody to ask.
        hint: which flag answers instead.

    Raises:
        UsageError: there is no terminal to ask on.
    """
    if sys.stdin is None or not sys.stdin.isatty():
        raise UsageError(f"this removes {removes} and there is no terminal to ask on", hint)
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        print("nothing was removed", file=sys.stderr)
        raise typer.Exit(1)
