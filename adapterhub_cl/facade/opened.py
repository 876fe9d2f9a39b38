"""An opened hub: its registry and its base, loaded when first needed."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from adapterhub_cl.context import Hub
from adapterhub_cl.errors import BaseNotFoundError
from adapterhub_cl.launching import divides_base
from adapterhub_cl.progress import Reporter, usual
from adapterhub_cl.registry import Registry
from adapterhub_cl.types import BaseInfo

if TYPE_CHECKING:
    from adapterhub_cl.bases.loading import LoadedBase
    from adapterhub_cl.inference.engine import Engine
    from adapterhub_cl.samples.store import Samples


class OpenedHub:
    """What every verb stands on."""

    def __init__(self, registry: Registry, device: str = "auto", dtype: str = "auto") -> None:
        self.registry, self.device, self.dtype = registry, device, dtype
        self.folder = registry.path
        registry.bring = _bring
        self._loaded: LoadedBase | None = None
        self._engine: Engine | None = None

    @property
    def base(self) -> BaseInfo:
        """The base that this hub is bound to."""
        return self.registry.base

    @property
    def samples(self) -> Samples:
        """The replay samples of all adapters: look at, export and drop them, and set a budget."""
        from adapterhub_cl.samples.store import Samples

        return Samples(self.registry)

    def context(self, reporter: Reporter | None = None) -> Hub:
        """What one call of a verb works with."""
        return Hub(self.registry, partial(self.load_base, reporter), usual(reporter), self.device, self.dtype)

    def load_base(self, reporter: Reporter | None = None, *, dtype: str = "") -> LoadedBase:
        """The base, quantised as the hub says; loaded once and shared by this object's verbs.

        Args:
            dtype: of the matrix products, if it is loaded now; the hub's own where it is empty.

        Raises:
            BaseModelError: it cannot be loaded, or is not where it was.
        """
        if self._loaded is not None and self._loaded.shards and not divides_base():
            self._loaded = None  # the other processes, which hold the rest of it, wait
        if self._loaded is None:
            from adapterhub_cl.bases.loading import load_base

            try:
                self._loaded = load_base(self.base, device=self.device, dtype=dtype or self.dtype)
            except BaseNotFoundError as error:
                error.hint = "if it has moved, say where it lies now: --base-path FOLDER"
                raise
            if self._loaded.note:
                usual(reporter).note(f"note: {self._loaded.note}")
        return self._loaded


def _bring(registry: Registry, ref: str) -> str:
    from adapterhub_cl.sharing.referring import bring  # only here: it imports what signs

    return bring(registry, ref)
