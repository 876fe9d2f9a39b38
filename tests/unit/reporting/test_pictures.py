"""Pictures: files of the right kind and size, the same each time; what is refused."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from adapterhub_cl.errors import DataError, UsageError
from adapterhub_cl.evaluation.matrix import AccuracyMatrix
from adapterhub_cl.reporting.pictures import curves_picture, matrix_picture


def matrix(name: str, tasks: int = 3, seed: int = 0) -> AccuracyMatrix:
    generator = random.Random(seed)
    rows = tuple(tuple(generator.random() if j <= i else None for j in range(tasks)) for i in range(tasks))
    return AccuracyMatrix(tuple(f"task-{j}" for j in range(tasks)), rows, name=name)


def size(path: Path) -> tuple[int, int]:
    head = path.read_bytes()[:24]
    assert head.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", head[16:24])
    return width, height


@pytest.mark.parametrize("draw", [matrix_picture, curves_picture])
def test_png_and_svg_are_the_same_each_time(draw, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    matrices = [matrix("ewc", seed=1), matrix("ewc", seed=2), matrix("a $price$", seed=3)]
    for suffix in ("png", "svg"):
        first, second = draw(matrices, tmp_path / f"a.{suffix}"), draw(matrices, tmp_path / f"b.{suffix}")
        assert first.read_bytes() == second.read_bytes()
    assert b"<svg" in (tmp_path / "a.svg").read_bytes()
    width, height = size(tmp_path / "a.png")
    assert 400 < height < width < 2000


def test_panels_stand_in_a_grid(tmp_path: Path) -> None:
    one = size(matrix_picture([matrix("a", 2)], tmp_path / "one.png"))
    twelve = size(matrix_picture([matrix(str(k), 2) for k in range(12)], tmp_path / "twelve.PNG"))
    assert 3 <= twelve[0] / one[0] <= 4
    assert 2.8 <= twelve[1] / one[1] <= 3.2


def test_perplexities_and_one_task(tmp_path: Path) -> None:
    wide = AccuracyMatrix(("a", "b"), ((12.5, None), (130.0, 8.0)))
    single = AccuracyMatrix(("a",), ((None,),))
    for draw in (matrix_picture, curves_picture):
        assert draw([wide], tmp_path / "wide.png").stat().st_size > 1000
        assert draw([single], tmp_path / "single.png").stat().st_size > 1000


def test_what_is_refused(tmp_path: Path) -> None:
    for draw in (matrix_picture, curves_picture):
        with pytest.raises(UsageError, match=r"\.png or \.svg"):
            draw([matrix("a")], tmp_path / "a.pdf")
        with pytest.raises(DataError, match="no accuracy matrix"):
            draw([], tmp_path / "a.png")
    with pytest.raises(DataError, match="different tasks"):
        curves_picture([matrix("a"), matrix("b", tasks=2)], tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_importing_it_imports_no_matplotlib() -> None:
    code = (
        "import sys, adapterhub_cl.reporting.pictures; assert not {'matplotlib', 'torch', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
