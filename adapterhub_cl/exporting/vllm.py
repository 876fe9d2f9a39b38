"""vllm: the adapter as a stock vLLM loads it, by `--lora-modules`, over HTTP or from the folder of its resolver.

All layers get one rank that vLLM allows: smaller ones are padded with zeros, and every scaling (alpha, rsLoRA,
patterns) is multiplied into B, so that alpha equals the rank. `task.json` says how the task is asked. vLLM reads
tokenizer and chat template from the base, so they are left out.
"""

from __future__ import annotations

from pathlib import Path

from adapterhub_cl.errors import ExportRefused, UsageError
from adapterhub_cl.exporting import BaseFormat, BaseNameOption, ExportOrder
from adapterhub_cl.types import BaseInfo

SAME = 1e-5  # relative to the largest number of a layer's factors


class Format(BaseFormat):
    purpose = "a stock vLLM loads it"
    Config = BaseNameOption

    def check(self, order: ExportOrder) -> None:
        from adapterhub_cl.adapters.vllm_folder import why_not_vllm

        base_name(order)
        why_not_vllm(order.record.path)

    def write(self, order: ExportOrder, made: Path) -> None:
        from adapterhub_cl.adapters import task_file
        from adapterhub_cl.adapters.vllm_folder import write_vllm_folder

        write_vllm_folder(order.record.path, made, base_name(order))
        about = task_file.about_export(order.record, order.base, order.tasks)
        folder = task_file.base_folder(order.base)
        if folder is not None:
            task_file.tell_prompts(about, order.record, order.base, folder, order.tasks)
        task_file.write_task_file(about, made)

    def prove(self, order: ExportOrder, made: Path) -> None:
        """Every layer's change, read back from what was written, is that of the version. (No vLLM is asked
        here: `serve --engine URL` checks each adapter in the running one.)"""
        from adapterhub_cl.adapters.vllm_folder import largest_difference

        apart, changes = largest_difference(order.record.path, made)
        if not changes:
            raise ExportRefused(
                f"{order.record.ref} changes nothing: its factors are zero", "train it longer, or serve the base"
            )
        if not apart <= SAME:
            raise ExportRefused(
                f"what was written for {order.record.ref} is not what the hub has: a layer differs by {apart:.1g}",
                "check the disk: cl-adapter verify",
            )

    def next_steps(self, path: Path, base: BaseInfo) -> list[str]:
        import json

        config = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
        name = config["base_model_name_or_path"]
        return [
            f"next: vllm serve {name} --enable-lora --max-lora-rank {config['r']} --lora-modules {path.name}={path}",
            "task.json says how it is asked",
        ]


def base_name(order: ExportOrder) -> str:
    """What the export calls its base.

    Raises:
        UsageError: the base is a folder of this machine, and nobody said how vLLM will be told of it.
    """
    from adapterhub_cl.bases.sources import public_name

    if order.config.base_name:
        return str(order.config.base_name)
    if public_name(order.base.source) != order.base.source or order.base.source == "tiny":
        raise UsageError(
            "the base of this hub has no public name, and vLLM's resolvers compare names",
            "--base-name says what vLLM is started with: an id on Hugging Face, or a folder",
        )
    return order.base.source
