"""The option that says where trainings are carried out. No torch, no Ray."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from adapterhub_cl.errors import UsageError
from adapterhub_cl.options import option

LOCAL, RAY = "local", "ray"


@dataclass(frozen=True, kw_only=True)
class SpreadOptions:
    """Where independent trainings are carried out."""

    on: str = option(
        LOCAL,
        "where the trainings run: local, one after another, or ray, side by side on the cluster that RAY_ADDRESS names",
        choices=(LOCAL, RAY),
        check="adapterhub_cl.spreading.spread_options:check_place",
    )


def check_place(on: str) -> None:
    """Raise where Ray is asked for and not installed.

    Raises:
        UsageError: the package ray is missing.
    """
    if on == RAY and find_spec("ray") is None:
        raise UsageError("--on ray needs the package ray", "pip install 'adapterhub-cl[ray]'")
