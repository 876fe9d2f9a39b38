"""Exporting: a version leaves the hub in the form that another tool opens. One file per format."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from adapterhub_cl.errors import AdapterHubError, UsageError
from adapterhub_cl.options import NoOptions, declared, flag, from_mapping, option
from adapterhub_cl.plugins import Room
from adapterhub_cl.types import AdapterRecord, BaseInfo, Task

if TYPE_CHECKING:
    from adapterhub_cl.context import Hub

ROOM = Room("adapterhub_cl.exporting", "export format", "Format")
DEFAULT = "peft"
PROOF = "proof.json"  # how the export did on held-out rows, beside what was written


@dataclass(frozen=True)
class BaseNameOption:
    """The option of formats whose files name the base."""

    base_name: str = option(
        "", "what the export calls its base, for example its id on Hugging Face; default: its id or its folder's name"
    )


@dataclass(frozen=True)
class ProofOptions:
    """The options of formats whose export answers held-out rows before it is finished."""

    min_retention: float | None = option(
        None,
        "share of the adapter's score that the export must keep on held-out rows; default: 0.99, with q8_0 0.97",
    )
    proof_rows: int = option(50, "number of held-out rows that the export answers before it is finished, for each task")

    def __post_init__(self) -> None:
        if self.min_retention is not None and not 0 <= self.min_retention <= 1:
            raise UsageError(f"--min-retention must be between 0 and 1, not {self.min_retention:g}", "0.99 is usual")
        if self.proof_rows < 1:
            raise UsageError(f"--proof-rows must be at least 1, not {self.proof_rows}", "50 is usual")


@dataclass(frozen=True)
class ExportOrder:
    """What is to be exported.

    Attributes:
        record: the version; its files were checked against their hashes.
        target: the directory, empty or missing.
        base: the base of the hub.
        tasks: those that the version answers, as it learned them.
        hub: registry, base and reporter; `hub.base` loads the base when it is first read.
        config: the options, of the format's `Config`.
        release: gives up the base that `hub.base` has loaded, where nobody else uses it; the next use loads it again.
    """

    record: AdapterRecord
    target: Path
    base: BaseInfo
    tasks: Sequence[Task]
    hub: Hub
    config: Any = field(default_factory=NoOptions)
    release: Callable[[], None] = lambda: None


class BaseFormat:
    """An export format. Modules import torch only inside functions, so that names and options are listed without it.

    Attributes:
        purpose: one line for `--help`: what opens the export.
        Config: a frozen dataclass of options, each made by `adapterhub_cl.options.option`; an option that several
            formats have is inherited from one class.
    """

    purpose: ClassVar[str] = ""
    Config: ClassVar[type] = NoOptions

    def check(self, order: ExportOrder) -> None:
        """Raise an `AdapterHubError` if this version cannot be exported in this format; before anything is written."""

    def write(self, order: ExportOrder, made: Path) -> None:
        """Write the export into an empty folder beside its final place.

        What cannot be said in files goes to `order.hub.reporter.note`.
        """
        raise NotImplementedError

    def prove(self, order: ExportOrder, made: Path) -> None:
        """Open what was written and answer held-out rows with it, with the adapter and without.

        Raises:
            ExportRefused: the export changes nothing, or it loses too much; nothing is left in its place.
        """

    def next_steps(self, path: Path, base: BaseInfo) -> list[str]:
        """Lines that tell the user what to do with a finished export.

        Args:
            path: the export.
            base: of the hub.
        """
        return []


def formats() -> dict[str, type[BaseFormat]]:
    """Name → format, without those of other packages that cannot be loaded."""
    found = {}
    for name in ROOM.names():
        with suppress(AdapterHubError):
            found[name] = ROOM.get(name)
    return found


def options() -> tuple[type[Any], ...]:
    """The classes of options of all formats."""
    return tuple(one.Config for one in formats().values())


def configured(name: str, given: Mapping[str, Any]) -> tuple[BaseFormat, Any]:
    """A format and its options.

    Args:
        given: option → value.

    Raises:
        UnknownNameError: no such format.
        UsageError: an option that this format does not have, or a value that cannot be used.
    """
    found: type[BaseFormat] = ROOM.get(name)
    for one in given:
        takers = [other for other, kind in formats().items() if one in declared(kind.Config)]
        if takers and one not in declared(found.Config):
            raise UsageError(
                f"{flag(one)} is not an option of --format {name}", f"it belongs to --format {' or '.join(takers)}"
            )
    return found(), from_mapping(found.Config, given, f"the options of {name}")


def export(order: ExportOrder, format: BaseFormat) -> Path:  # noqa: A002 (the flag's name)
    """Write a version to a directory that is empty or does not exist yet: the whole export, or nothing.

    Raises:
        UsageError: the directory is not empty.
        StorageError: the disk cannot be written; the directory is unchanged.
        ExportRefused: see `BaseFormat.prove`.
    """
    from adapterhub_cl.adapters.outside import filled

    format.check(order)
    with filled(order.target) as made:
        format.write(order, made)
        format.prove(order, made)
    return order.target


def export_all(orders: Sequence[ExportOrder], format: BaseFormat, target: Path) -> Path:  # noqa: A002
    """Write versions of different adapters, each to a folder named as its order's target: all of them, or
    nothing.

    Args:
        target: the directory that gets these folders; empty or missing.

    Raises:
        UsageError: the directory is not empty.
        StorageError, ExportRefused: as `export`.
    """
    from adapterhub_cl.adapters.outside import filled

    for order in orders:
        format.check(order)
    with filled(target) as made:
        for order in orders:
            folder = made / order.target.name
            folder.mkdir()
            format.write(order, folder)
            format.prove(order, folder)
    return target
