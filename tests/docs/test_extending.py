"""The page on one's own methods names everything that their classes may declare."""

from __future__ import annotations

import pytest
from docs_blocks import ROOT

from adapterhub_cl import augmentation, merging, replay, routing, strategies

BASES = (
    strategies.BaseStrategy,
    replay.BasePolicy,
    augmentation.BaseAugmentation,
    merging.BaseMethod,
    routing.BaseRouter,
)


DECLARED = [
    (base.__name__, name) for base in BASES for name, kind in base.__annotations__.items() if "ClassVar" in kind
]


@pytest.mark.parametrize(("base", "name"), DECLARED)
def test_a_declaration_is_on_the_page(base: str, name: str) -> None:
    page = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
    assert f"`{name}" in page or f"    {name} = " in page, f"{base}.{name}: in no example, and not in the table"


@pytest.mark.parametrize("page", ["docs/extending.md", "CONTRIBUTING.md"])
def test_the_command_that_writes_the_reference_is_named(page: str) -> None:
    assert "python docs/make_reference.py" in (ROOT / page).read_text(encoding="utf-8")
