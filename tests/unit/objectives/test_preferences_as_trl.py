"""The losses of dpo and kto are those of TRL's trainers on the same batch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from toys import PAD, stir

from adapterhub_cl.adapters.fused import base_alone
from adapterhub_cl.data.batches import collate
from adapterhub_cl.data.preference_tokens import PreferenceTokens
from adapterhub_cl.objectives import dpo, kto
from adapterhub_cl.settings import TrainingSettings

pytestmark = pytest.mark.slow  # importing trl takes ten seconds

PAIRS = [
    PreferenceTokens((1, 20, 21), (30, 31, 2), other=(40, 2)),
    PreferenceTokens((1, 22), (32, 2), other=(41, 42, 43, 2)),
    PreferenceTokens((1, 23, 24, 25), (33, 2), other=(44, 2)),
]
JUDGED = [
    PreferenceTokens((1, 20, 21), (30, 31, 2), other=(30, 2), desirable=True),
    PreferenceTokens((1, 22), (32, 2), other=(30, 2), desirable=False),
    PreferenceTokens((1, 23, 24, 25), (33, 34, 35, 2), other=(30, 2), desirable=False),
    PreferenceTokens((1, 26), (36, 2), other=(30, 2), desirable=True),
]
SETTINGS = TrainingSettings(beta=0.4, desirable_weight=1.5, undesirable_weight=0.7)


def trainer_of(kind: str, base: Any, folder: Path, *, parent: bool) -> Any:
    """TRL's trainer for a LoRA that has learned something, of which TRL then keeps a copy as its reference; or for a
    fresh one, whose reference is the base."""
    import trl
    from datasets import Dataset

    lora = LoraConfig(r=2, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    given: dict[str, Any] = {"model": base.model, "peft_config": lora}
    if parent:
        given = {"model": get_peft_model(base.model, lora)}
        stir(given["model"], seed=3)
    rows: list[dict[str, Any]] = [{"prompt": "the red", "chosen": " apple", "rejected": " stone"}] * 4
    weights = {}
    if kind == "KTO":
        rows = [{"prompt": "the red", "completion": " apple", "label": k % 2 == 0} for k in range(4)]
        weights = {"desirable_weight": 1.5, "undesirable_weight": 0.7}
    config = getattr(trl, f"{kind}Config")(
        output_dir=str(folder),
        beta=0.4,
        report_to=[],
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        **weights,
    )
    return getattr(trl, f"{kind}Trainer")(
        args=config, train_dataset=Dataset.from_list(rows), processing_class=base.tokenizer, **given
    )


def batch_of_trl(kind: str, rows: list[PreferenceTokens]) -> Any:
    """The same rows as TRL's collator gives them."""
    from trl.trainer.dpo_trainer import DataCollatorForPreference
    from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

    if kind == "DPO":
        names, collator = ("chosen_ids", "rejected_ids"), DataCollatorForPreference(PAD)
    else:
        names, collator = ("completion_ids", "KL_completion_ids"), DataCollatorForUnpairedPreference(PAD)
    return collator(
        [
            {"prompt_ids": [*row.prompt], names[0]: [*row.answer], names[1]: [*row.other], "label": row.desirable}
            for row in rows
        ]
    )


@pytest.mark.parametrize("parent", [True, False])
@pytest.mark.parametrize("kind", ["DPO", "KTO"])
def test_the_loss_and_its_gradient_are_those_of_trl(
    load_pico: Callable[..., Any], tmp_path: Path, kind: str, parent: bool
) -> None:
    objective = (dpo if kind == "DPO" else kto).Objective(SETTINGS)
    trainer = trainer_of(kind, load_pico(), tmp_path, parent=parent)
    model = trainer.model
    with nullcontext() if parent else base_alone(model):
        rows = objective.referred(model, PAIRS if kind == "DPO" else JUDGED, PAD, 2)
    generator = torch.Generator().manual_seed(5)
    trained = {name: p for name, p in model.named_parameters() if ".default." in name}
    with torch.no_grad():  # as after some steps of training
        for parameter in trained.values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
            parameter.requires_grad_(True)
    model.eval()
    theirs = trainer.compute_loss(model, batch_of_trl(kind, rows))
    ours = objective.losses(model, collate(rows, range(len(rows)), PAD)).sum() / objective.counted(
        rows, range(len(rows))
    )
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-4)
    assert abs(ours.item() - (0.6931 if kind == "DPO" else 0.5 * 1.1)) > 0.005  # it is not that of an untrained adapter
    for one, other in zip(*(torch.autograd.grad(loss, list(trained.values())) for loss in (ours, theirs)), strict=True):
        assert torch.allclose(one, other, atol=1e-4)
