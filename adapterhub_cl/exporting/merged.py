"""merged: the adapter added into the base's 16-bit weights, as one model that plain transformers opens.

Tokenizer, chat template, generation config, `task.json` and a model card stand beside it. An encoder leaves with its
head and the names of its labels. The sum W + ΔW is computed in fp32 and rounded once to the base's own data type.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from adapterhub_cl.exporting import BaseFormat, BaseNameOption, ExportOrder, ProofOptions, _proof
from adapterhub_cl.types import BaseInfo

OPENED_BY = "transformers"


@dataclass(frozen=True)
class Config(ProofOptions, BaseNameOption):
    """Options of merged."""


class Format(BaseFormat):
    purpose = "one model with the adapter in its weights, opens with AutoModel…from_pretrained"
    Config = Config

    def check(self, order: ExportOrder) -> None:
        from adapterhub_cl.exporting import _whole_model

        _whole_model.check_tasks(order)
        _whole_model.original_folder(order.base)

    def write(self, order: ExportOrder, made: Path) -> None:
        from adapterhub_cl.adapters import task_file
        from adapterhub_cl.exporting import _whole_model

        self.whole = whole = _whole_model.Whole(order)
        _whole_model.save(whole.model(), whole.folder, made, order.config.base_name)
        about = task_file.about_export(order.record, order.base, order.tasks)
        task_file.tell_prompts(about, order.record, order.base, whole.folder, order.tasks)
        task_file.write_task_file({**about, "merged_into": whole.chosen}, made)

    def prove(self, order: ExportOrder, made: Path) -> None:
        import transformers

        from adapterhub_cl.quiet import no_loading_bars

        whole = self.whole
        with no_loading_bars():
            model = getattr(transformers, class_of(order.base)).from_pretrained(made, dtype=whole.dtype)
        more = {"merged_into": whole.chosen, "tried": whole.tried}
        _proof.judge(
            order,
            made,
            whole.references,
            lambda one: whole.answers(model, one, "asking the export"),
            least=_proof.PLAIN,
            opened_by=f"{OPENED_BY} {transformers.__version__}",
            card={"library": "transformers", "relation": "finetune", "lines": _lines(order)},
            more=more,
        )

    def next_steps(self, path: Path, base: BaseInfo) -> list[str]:
        return [f'next, in Python: {class_of(base)}.from_pretrained("{path}"); task.json says how it is asked']


def class_of(base: BaseInfo) -> str:
    """The transformers class that opens a model merged into this base."""
    from adapterhub_cl.bases.kinds import auto_class, is_encoder

    return "AutoModelForSequenceClassification" if is_encoder(base.architecture) else auto_class(base.architecture)


def _lines(order: ExportOrder) -> list[str]:
    """How the card says that it is opened."""
    kind = class_of(order.base)
    return [
        "```python",
        f"from transformers import AutoTokenizer, {kind}",
        "",
        f'model = {kind}.from_pretrained(".")',
        'tokenizer = AutoTokenizer.from_pretrained(".")',
        "```",
    ]
