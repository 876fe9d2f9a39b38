"""Two tasks, one after another: what one adapter forgets that is trained on and on, beside one adapter for each.

python examples/02_what_is_forgotten.py
"""

import tempfile
from pathlib import Path

from adapterhub_cl import AdapterHub

STREAM = """
defaults: {epochs: 6}
tasks:
  - {name: tickets, data: "demo:tickets.train", eval: "demo:tickets.test"}
  - {name: commands, data: "demo:commands.train", eval: "demo:commands.test"}
"""

with tempfile.TemporaryDirectory() as folder:
    hub = AdapterHub.init(Path(folder) / "hub", base="tiny", quantization="nf4")
    file = Path(folder) / "two-tasks.yaml"
    file.write_text(STREAM)
    for matrix in hub.stream(file, strategies=["sequential", "replay", "isolated"]):
        print(f"{matrix.name:<11} average accuracy {matrix.average_accuracy:.3f}, BWT {matrix.bwt:+.3f}")
        for learned, row in zip(matrix.tasks, matrix.rows, strict=True):
            cells = "".join("       –" if cell is None else f"{cell:8.3f}" for cell in row)
            print(f"   after {learned:<9}{cells}")
