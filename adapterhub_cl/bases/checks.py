"""Whether a hub's base is still the one that it was made for."""

from __future__ import annotations

from adapterhub_cl.bases.fingerprint import fingerprint
from adapterhub_cl.bases.sources import resolve
from adapterhub_cl.errors import BaseModelError
from adapterhub_cl.types import BaseInfo, Problem


def check_base(base: BaseInfo) -> list[Problem]:
    """Nothing, or what is wrong with the base."""
    try:
        now = fingerprint(resolve(base.source, base.revision))
    except BaseModelError as error:
        return [Problem(base.source, error.message, error.hint)]
    if now == base.fingerprint:
        return []
    fix = "restore the base's old files, or make a new hub for the new base with cl-adapter init"
    return [Problem(base.source, "the base has changed since this hub was made", fix)]
