"""Fills a template of this folder with text from a hub: everything is escaped, and nothing invisible is left in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub_cl.evaluation.matrix import mean_and_spread
from adapterhub_cl.reporting import drawing, wording
from adapterhub_cl.reporting.facts import VersionFacts

if TYPE_CHECKING:
    from jinja2 import Environment

# Control characters, and those that change the text direction: a page must not contain any.
_INVISIBLE = {
    **dict.fromkeys(
        [*range(9), *range(11, 32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A)], "\ufffd"
    ),
    **dict.fromkeys(range(0xD800, 0xE000), "\ufffd"),  # halves of characters, which cannot be sent
}


def filled(template: str, filters: Mapping[str, Callable[..., Any]] | None = None, **values: Any) -> str:
    """A page. All text in the values is escaped; control characters are replaced.

    Args:
        template: the name of a file in this folder.
        filters: further ones that the template uses.
    """
    environment = _environment()
    if filters:
        environment = environment.overlay()
        environment.filters = {**environment.filters, **filters}
    page = environment.get_template(template).render(**values).translate(_INVISIBLE)
    return "\n".join(line for line in page.split("\n") if line.strip()) + "\n"


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        score=wording.score,
        change=wording.change,
        percent=wording.percent,
        error=wording.error,
        size=wording.size,
        count=wording.count,
        thousands=lambda number: f"{number:,}",
        moment=wording.moment,
        place=wording.place,
        relation=wording.relation,
        cut=drawing.cut,
        cut_ref=drawing.cut_ref,
        mean_score=mean_score,
    )
    environment.globals["bar"] = drawing.bar
    return environment


def mean_score(of: VersionFacts) -> float | None:
    """The mean of a version's known scores on its tasks."""
    return mean_and_spread([score.value for score in of.scores.values()])[0] if of.scores else None
