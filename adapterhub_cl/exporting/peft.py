"""peft: the adapter in PEFT's own format, its prompts, and a script that answers with it.

None of its files names a folder of this machine. If the base cannot be found here, the tokenizer, the rendered prompts
and the script are left out. A packed version is unpacked.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from adapterhub_cl.adapters.lora_config import PACKED
from adapterhub_cl.exporting import BaseFormat, ExportOrder
from adapterhub_cl.types import BaseInfo

SCRIPT = "predict.py"
FILES = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "heads.json",
    "README.md",
    "training.json",
    "recipe.json",
)


class Format(BaseFormat):
    purpose = "opens with PeftModel.from_pretrained"

    def write(self, order: ExportOrder, made: Path) -> None:
        from adapterhub_cl.adapters import task_file

        record, base = order.record, order.base
        for name in FILES:
            if (record.path / name).is_file():  # an imported adapter has no training.json
                shutil.copyfile(record.path / name, made / name)
        if (record.path / PACKED).is_file():
            from adapterhub_cl.adapters.lora_files import unpack

            unpack(record.path, made)
        task_file.remove_folders(record, base, made)
        about = task_file.about_export(record, base, order.tasks)
        folder = task_file.base_folder(base)
        if folder is not None:
            task_file.copy_tokenizer(folder, made)
            if task_file.tell_prompts(about, record, base, folder, order.tasks):
                shutil.copyfile(task_file.PREDICT_SCRIPT, made / SCRIPT)
        task_file.write_task_file(about, made)

    def next_steps(self, path: Path, base: BaseInfo) -> list[str]:
        if (path / SCRIPT).is_file():
            local = f"--base {base.source} " if Path(base.source).is_absolute() else ""
            return [f'next: python {path / SCRIPT} {local}"TEXT" answers; task.json says how it is asked']
        return [
            "note: the base is not here, or its prompts cannot be rendered, so predict.py was left out",
            f'next, in Python: PeftModel.from_pretrained(base, "{path}")',
        ]
