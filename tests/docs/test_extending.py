"""The page on one's own methods: its package is found everywhere, and it names everything that classes may declare."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from docs_blocks import ROOT, blocks

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


OFFERED = (  # what the shell asks, and what it is offered
    ("add-task a b --strategy ca", "careful"),
    ("add-task a b --replay sh", "shortest:200"),
    ("add-task a b --augment po", "polite:1"),
    ("merge --method ev", "evened"),
    ("route --router ne", "nearest"),
)
ASK = """
import os, sys
sys.path.insert(0, "docs")
from cl_adapter.__main__ import main
for verb in ("add-task", "merge", "route"):
    main([verb, "--help"])
os.environ["_CL_ADAPTER_COMPLETE"] = "complete_bash"
for line in sys.argv[1:]:
    os.environ |= {"COMP_WORDS": f"cl-adapter {line}", "COMP_CWORD": str(len(line.split()))}
    print("offered", end=" ", flush=True)
    main([])
assert "torch" not in sys.modules
import make_reference
print(make_reference.cli())
"""


def test_the_package_of_the_page_is_in_help_completion_and_reference(tmp_path: Path) -> None:
    """As pip installs it: modules, and the entry points in the metadata. Nothing of the project is edited."""
    for block in blocks("docs/extending.md"):
        if block.file:
            place = tmp_path / block.file
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(block.text, encoding="utf-8")
    package = tmp_path / "my-methods"
    announced = tomllib.loads((package / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]
    info = package / "my_methods-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-methods\nVersion: 1.0\n")
    lines = [
        f"[{group}]\n" + "".join(f"{n} = {place}\n" for n, place in own.items()) for group, own in announced.items()
    ]
    (info / "entry_points.txt").write_text("\n".join(lines))
    done = subprocess.run(
        [sys.executable, "-c", ASK, *(line for line, _ in OFFERED)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(package), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    before, after = done.stdout.split("offered", 1)
    for _, offer in OFFERED:
        name = offer.partition(":")[0]
        assert re.search(rf"\b{name}(:|  )", before), f"{name} is not in the help"
        assert f"offered {offer}\n" in done.stdout, f"{name} is not offered by the shell"
        assert f"\n| `{name}` | " in after, f"{name} is not in the reference"
