"""Make the reference hub in registry/: what `cl-adapter demo` leaves, without what can be made again.

    python examples/make_registry.py [--out DIR]

Four tasks, each with its adapter and replay samples; a merge that the gate refused; a student distilled from the four
and its pruned version. Tests open it to prove that hubs of this format still load, and the examples start from it. The
index is not part of it: it is made from the manifests when the hub is first opened.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from adapterhub_cl import demo

OUT = Path(__file__).parents[1] / "registry"
MADE_AGAIN = ("index.db", "index.db-wal", "index.db-shm", "index.db.lock", "routers", "runs", "report.html")
README = """# The reference hub

Made by `python examples/make_registry.py`: what `cl-adapter demo` leaves. `cl-adapter list` in this checkout shows it.
Its data are the package's own (`demo:tickets.train` and so on), its base is the embedded `tiny`. The index, and what
routers learn, are made when they are first needed. To try something out on it, copy it: `cp -r registry my-copy`.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    folder = parser.parse_args().out
    shutil.rmtree(folder, ignore_errors=True)  # more stands in it than a demo makes, which therefore keeps it
    demo.run(folder, tell=print)
    for name in MADE_AGAIN:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    (folder / "README.md").write_text(README, encoding="utf-8")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"\n{folder}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
