"""Names → classes, lazily. Each method is one file, named as users type it; there is no central list.

A room (a package such as `adapterhub_cl.strategies`) has one module per method: `ewc.py` defines the method `ewc`,
`dare_ties.py` the method `dare_ties`. Third parties add methods as entry points in the group `adapterhub_cl.<room>`.
Listing names only reads file names and entry-point metadata: it imports no module and so no torch.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Collection
from functools import lru_cache
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from typing import Any

from adapterhub_cl.errors import AdapterHubError, UnknownNameError


class Room:
    """The methods of one kind.

    Args:
        package: the package whose modules are the methods, e.g. `adapterhub_cl.strategies`.
        what: the word for one of them in messages, e.g. `strategy`.
        attribute: the name of the object that each module must define, e.g. `Strategy`.
        besides: modules of the package that are not methods; names that begin with `_` never are.
    """

    def __init__(self, package: str, what: str, attribute: str, besides: Collection[str] = ()) -> None:
        self.package, self.what, self.attribute, self.besides = package, what, attribute, besides

    def own(self) -> list[str]:
        """The names of this project's methods; does not import them."""
        paths = importlib.import_module(self.package).__path__
        named = [m.name for m in pkgutil.iter_modules(paths) if not m.ispkg and not m.name.startswith("_")]
        return [name for name in named if name not in self.besides]

    def _foreign(self) -> dict[str, EntryPoint]:
        return {entry.name: entry for entry in _installed(self.package, tuple(sys.path))}

    def names(self) -> list[str]:
        """All known names, sorted; does not import the methods."""
        return sorted({*self.own(), *self._foreign()})

    def canonical(self, name: str) -> str:
        """The name as it is listed: `k-center` is `k_center`; an unknown name is returned unchanged."""
        known, plain = self.names(), name.replace("-", "_")
        return plain if name not in known and plain in known else name

    def get(self, name: str) -> Any:
        """The class of a method; hyphens and underscores are equivalent.

        Raises:
            UnknownNameError: no such method; has the closest names and the list.
            AdapterHubError: a third party's method cannot be imported, or a module of the room has no such class.
        """
        name = self.canonical(name)
        if name in self.own():
            module = importlib.import_module(f"{self.package}.{name}")
            if not hasattr(module, self.attribute):
                raise AdapterHubError(
                    f"{module.__name__} defines no class {self.attribute}",
                    f"name the class of the {self.what} {self.attribute}, or begin the file's name with _",
                )
            return getattr(module, self.attribute)
        foreign = self._foreign()
        if name not in foreign:
            raise UnknownNameError(self.what, name, self.names())
        try:
            return foreign[name].load()
        except Exception as error:  # importing a third party's module can raise anything
            raise AdapterHubError(
                f"the {self.what} {name!r} of {foreign[name].value!r} cannot be loaded: {error}",
                "update or uninstall the package that provides it",
            ) from error


@lru_cache(maxsize=64)
def _installed(group: str, path: tuple[str, ...]) -> EntryPoints:
    """What the packages on `path` add to a room; reading it takes 8 ms, and names are looked up at every turn."""
    return entry_points(group=group)
