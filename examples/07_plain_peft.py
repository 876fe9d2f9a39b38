"""In and out: a hub's adapter under plain PEFT, and an adapter of plain PEFT in a hub.

python examples/07_plain_peft.py
"""

import shutil
import tempfile
from pathlib import Path

import torch

from adapterhub_cl import AdapterHub
from adapterhub_cl.bases.sources import resolve

from peft import LoraConfig, PeftModel, get_peft_model  # isort: skip (what peft imports would print warnings)
from transformers import AutoModelForCausalLM, AutoTokenizer  # isort: skip

REGISTRY = Path(__file__).parents[1] / "registry"
TINY = resolve("tiny", None)  # the folder of the embedded base, as transformers opens it

with tempfile.TemporaryDirectory() as folder:
    hub = AdapterHub.open(shutil.copytree(REGISTRY, Path(folder) / "hub"))
    out = hub.export("commands", Path(folder) / "commands")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(TINY), out)
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    with torch.no_grad():
        logits = model(**tokenizer("wake me in ten minutes", return_tensors="pt")).logits
    print(f"exported, opened by plain PEFT on the base in full precision: logits {tuple(logits.shape)}")

    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(TINY), config).save_pretrained(Path(folder) / "elsewhere")
    record = hub.import_adapter(Path(folder) / "elsewhere", "moods", labels=("calm", "angry"))
    print(f"{record.ref} came in ({record.kind}, rank {record.rank})")
    print(f"it answers by name: {hub.predict(['leave me alone'], adapter='moods')[0].prediction}")
