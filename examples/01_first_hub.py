"""A hub on the embedded base learns one task, answers, and is opened by plain PEFT.

python examples/01_first_hub.py
"""

import tempfile
from pathlib import Path

from adapterhub_cl import AdapterHub

with tempfile.TemporaryDirectory() as folder:
    hub = AdapterHub.init(Path(folder) / "my-hub", base="tiny", quantization="nf4")
    tickets = hub.add_task("tickets", "demo:tickets.train", eval="demo:tickets.test", epochs=8)
    print(f"{tickets.ref}: accuracy {tickets.metrics['accuracy']:.3f} on unseen texts, {tickets.bytes / 1e6:.1f} MB")

    for found in hub.predict(["I forgot my password", "my parcel never arrived"], task="tickets"):
        print(f"  {found.text!r} -> {found.prediction} ({found.confidence:.2f})")

    model, tokenizer = hub.load("tickets")  # a plain transformers + PEFT model
    files = sorted(path.name for path in hub.path("tickets").iterdir())
    print(f"{type(model).__name__}, from {files}")
