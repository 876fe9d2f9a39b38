"""What the verbs of a hub work with: its registry, its base, and where they report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from adapterhub_cl.progress import Reporter
from adapterhub_cl.registry import Registry

if TYPE_CHECKING:
    from adapterhub_cl.bases.loading import LoadedBase


@dataclass(frozen=True)
class Hub:
    """An opened hub, as one call of a verb sees it.

    Attributes:
        load: gives the base, which is loaded on the first call; `base` calls it. `dtype=` is the type of the products
            where the user named none.
        reporter: where notes and progress go.
        device: what the base is loaded to, and the type of its products, as the user asked: for a process elsewhere
            that loads it too.
    """

    registry: Registry
    load: Callable[..., LoadedBase]
    reporter: Reporter = field(default_factory=Reporter)
    device: str = "auto"
    dtype: str = "auto"

    @property
    def base(self) -> LoadedBase:
        return self.load()

    def base_in(self, dtype: str) -> LoadedBase:
        """The base, loaded with products of this type where the user named none and it is not loaded yet."""
        return self.load(dtype=dtype) if dtype and self.dtype == "auto" else self.load()
