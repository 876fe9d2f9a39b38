"""AdapterHub-CL: a manager for everything a language model learns after pretraining.

`from adapterhub_cl import AdapterHub` is all that most programs need. Importing this package does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from adapterhub_cl.quiet import quiet_third_parties, wait_politely

if TYPE_CHECKING:
    from adapterhub_cl.errors import AdapterHubError
    from adapterhub_cl.hub import AdapterHub
    from adapterhub_cl.progress import Reporter
    from adapterhub_cl.settings import TrainingSettings
    from adapterhub_cl.types import AdapterRecord, BaseInfo, Edge, Evaluation, Example, Prediction, Problem, Task

__all__ = [
    "AdapterHub",
    "AdapterHubError",
    "AdapterRecord",
    "BaseInfo",
    "Edge",
    "Evaluation",
    "Example",
    "Prediction",
    "Problem",
    "Reporter",
    "Task",
    "TrainingSettings",
    "__version__",
]

_HOMES = {
    "AdapterHub": "adapterhub_cl.hub",
    "AdapterHubError": "adapterhub_cl.errors",
    "Reporter": "adapterhub_cl.progress",
    "TrainingSettings": "adapterhub_cl.settings",
}

try:
    __version__ = version("adapterhub-cl")
except PackageNotFoundError:  # run from a folder without installation
    __version__ = "0+unknown"

quiet_third_parties()
wait_politely()


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module(_HOMES.get(name, "adapterhub_cl.types")), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
