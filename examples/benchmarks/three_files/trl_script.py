"""A LoRA by TRL's SFTTrainer as an engineer writes it by hand for one model; runs in TRL's own environment.

    python trl_script.py asked.json said.json

`asked.json` names the base, the files of conversations to train on and to answer, and the settings; `said.json` gets
the answers and what the training took. It imports nothing of this project.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

# SmolLM2's own template with marks around what the assistant says, which the loss is limited to.
MARKED = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def rows(path: str) -> list[Any]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").split("\n") if line]


def trained(asked: dict[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """Model, tokenizer, and the seconds of the optimiser's steps."""
    tokenizer = AutoTokenizer.from_pretrained(asked["base"])
    if same(tokenizer):
        tokenizer.chat_template = MARKED
    config = SFTConfig(
        output_dir=asked["folder"],
        num_train_epochs=asked["epochs"],
        per_device_train_batch_size=asked["batch_size"],
        learning_rate=asked["rate"],
        lr_scheduler_type="cosine",
        warmup_steps=0.05,
        max_length=512,
        assistant_only_loss=True,
        bf16=asked["bf16"],
        gradient_checkpointing=False,
        seed=asked["seed"],
        use_cpu=True,
        save_strategy="no",
        train_sampling_strategy="group_by_length",
        logging_steps=10,
        report_to=[],
        dataloader_pin_memory=False,
    )
    trainer = SFTTrainer(
        # On this project's machine eager attention is a third faster than sdpa, the default.
        AutoModelForCausalLM.from_pretrained(
            asked["base"], dtype=torch.bfloat16 if asked["bf16"] else torch.float32, attn_implementation="eager"
        ),
        config,
        train_dataset=Dataset.from_list([{"messages": row["messages"]} for row in rows(asked["train"])]),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    wall, cpu = time.perf_counter(), time.process_time()
    done = trainer.train()
    took = {"train_seconds": time.perf_counter() - wall, "train_cpu_seconds": time.process_time() - cpu}
    return trainer.model, tokenizer, {**took, "steps": done.global_step, "loss": done.training_loss}


def same(tokenizer: Any) -> bool:
    """Whether the marked template writes what the model's own one writes; for another model TRL has to know it."""
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    marked = tokenizer.apply_chat_template(talk, tokenize=False, chat_template=MARKED)
    return bool(marked == tokenizer.apply_chat_template(talk, tokenize=False))


@torch.no_grad()
def answers(model: Any, tokenizer: Any, asked: dict[str, Any]) -> list[str]:
    """Greedy answers, in batches of rows of about the same length."""
    model.eval()
    tokenizer.padding_side = "left"
    texts = [
        tokenizer.apply_chat_template(row["messages"], tokenize=False, add_generation_prompt=True)
        for row in rows(asked["ask"])
    ]
    found = [""] * len(texts)
    order = sorted(range(len(texts)), key=lambda k: len(texts[k]))
    for start in range(0, len(order), 16):
        part = order[start : start + 16]
        batch = tokenizer([texts[k] for k in part], return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.autocast("cpu", torch.bfloat16, enabled=asked["bf16"]):
            made = model.generate(
                **batch, do_sample=False, max_new_tokens=asked["max_new_tokens"], pad_token_id=tokenizer.pad_token_id
            )
        for k, text in zip(part, tokenizer.batch_decode(made[:, batch["input_ids"].shape[1] :], True), strict=True):
            found[k] = text.strip()
    return found


def main() -> None:
    asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    model, tokenizer, took = trained(asked)
    said = {"answers": answers(model, tokenizer, asked), **took}
    said["versions"] = {name: version(name) for name in ("torch", "transformers", "peft", "trl", "datasets")}
    Path(sys.argv[2]).write_text(json.dumps(said), encoding="utf-8")


if __name__ == "__main__":
    main()
