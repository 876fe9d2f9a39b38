"""Pretrain the embedded base `tiny`: a 5.9-million-parameter Llama with its own tokenizer.

Three steps, each restartable; none needs a GPU (it is used where there is one):

    python examples/pretrain_tiny.py prepare --data ../shared/data --work /tmp/tiny
    python examples/pretrain_tiny.py train   --work /tmp/tiny --steps 20000
    python examples/pretrain_tiny.py export  --work /tmp/tiny --to adapterhub_cl/bases/tiny --decay-steps 1500

`train` holds the learning rate constant after its warm-up and saves every `--save-every`
steps; stop it whenever you like and start it again with the same command. `export` takes
the newest checkpoint, runs the learning rate down to zero over `--decay-steps` steps
(the "warmup-stable-decay" schedule, arXiv:2405.18392) and writes the model, so a weaker
base can be exported early while `train` goes on.

What it learns from: unlabelled passages; the same passages turned into "what is the title
of this text?" (the title is in the passage, so this needs no labels); and, for a small
share, the labelled training rows of three sentiment tasks (yelp, imdb, sst2). No label of
the other twelve tasks is seen, and no dev or test row of any.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

BEGIN, END, PAD = "<|begin|>", "<|end|>", "<|pad|>"
VOCABULARY = 4096
LABELLED_TASKS = ("yelp", "imdb", "sst2")
SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "rope_theta": 10000.0,
}


def passages(path: Path) -> Iterator[str]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["text"]


def as_prompt(instruction: str, text: str, answer: str) -> str:
    """The library's own `instruction` prompt format, written out."""
    return f"{instruction}\n{text}\nAnswer: {answer}"


def titled(text: str, generator: np.random.Generator) -> str:
    """Half of the passages that carry a title become the question for it."""
    if text.startswith("Title: ") and "\nText: " in text and generator.random() < 0.5:
        title, body = text[len("Title: ") :].split("\nText: ", 1)
        if title.strip() and len(body) > 40:
            return as_prompt("What is the title of the following paragraph?", f"Text: {body.strip()}", title.strip())
    return text


def prepare(data: Path, work: Path) -> None:
    """Train the tokenizer and write the token streams `*.bin` (uint16)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    work.mkdir(parents=True, exist_ok=True)
    rows = []
    for task in LABELLED_TASKS:
        with open(data / "cl15" / task / "train.jsonl", encoding="utf-8") as lines:
            rows += [json.loads(line) for line in lines]
    labelled = [as_prompt(row["instruction"], row["input"], row["output"]) for row in rows]
    generator = np.random.default_rng(0)
    train = list(passages(data / "text" / "train.jsonl.gz"))
    valid = list(passages(data / "text" / "valid.jsonl.gz"))

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BEGIN, END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(train + labelled, trainer)
    begin, end = tokenizer.token_to_id(BEGIN), tokenizer.token_to_id(END)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A $B", special_tokens=[(BEGIN, begin)]
    )
    tokenizer.save(str(work / "tokenizer.json"))

    def write(name: str, texts: list[str]) -> None:
        stream: list[int] = []
        for encoding in tokenizer.encode_batch(texts):
            stream += [*encoding.ids, end]
        np.asarray(stream, dtype=np.uint16).tofile(work / f"{name}.bin")
        print(f"{name}: {len(texts):,} texts, {len(stream):,} tokens")

    # Four renderings, so that a passage is met both as it is and as a question for its title.
    write("train", [titled(text, generator) for _ in range(4) for text in generator.permutation(train).tolist()])
    generator.shuffle(labelled)
    write("labelled", labelled)
    write("valid", valid)


def build(tokenizer_file: Path) -> nn.Module:
    from tokenizers import Tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    shape = dict(SHAPE)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.token_to_id(BEGIN),
        eos_token_id=tokenizer.token_to_id(END),
        pad_token_id=tokenizer.token_to_id(PAD),
        attn_implementation="eager" if not torch.cuda.is_available() else "sdpa",
        **shape,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config)


def batch(streams: dict[str, np.ndarray], step: int, size: int, length: int, share: float) -> torch.Tensor:
    """Windows `[size, length + 1]` at random places; the step alone decides which, so a resumed run repeats them."""
    generator = np.random.default_rng([7, step])
    windows = []
    for _ in range(size):
        stream = streams["labelled" if generator.random() < share else "train"]
        start = int(generator.integers(0, len(stream) - length - 1))
        windows.append(stream[start : start + length + 1])
    return torch.from_numpy(np.stack(windows).astype(np.int64))


@torch.no_grad()
def validation_loss(model: nn.Module, stream: np.ndarray, length: int, device: str) -> float:
    model.eval()
    losses, windows = [], (len(stream) - 1) // length
    for first in range(0, windows, 16):
        rows = [stream[i * length : i * length + length + 1] for i in range(first, min(first + 16, windows))]
        tokens = torch.from_numpy(np.stack(rows).astype(np.int64)).to(device)
        with torch.autocast(device, torch.bfloat16):
            logits = model(input_ids=tokens[:, :-1]).logits
        loss = nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
        losses.append(loss.cpu())
    model.train()
    return float(torch.cat(losses).mean())


class Trainer:
    """Muon for the matrices inside the layers, AdamW for the rest; state in safetensors."""

    def __init__(self, work: Path, arguments: argparse.Namespace) -> None:
        self.work, self.arguments = work, arguments
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = build(work / "tokenizer.json").to(self.device)
        matrices = [p for n, p in self.model.named_parameters() if p.ndim == 2 and "embed" not in n]
        others = [p for n, p in self.model.named_parameters() if p.ndim != 2 or "embed" in n]
        self.optimizers = [
            torch.optim.Muon(matrices, lr=1.0, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=1.0, weight_decay=0.0, betas=(0.9, 0.98)),
        ]
        self.step = 0
        self.tokens = 0
        self.streams = {
            name: np.memmap(work / f"{name}.bin", dtype=np.uint16, mode="r") for name in ("train", "labelled", "valid")
        }
        self.forward = torch.compile(self.loss) if arguments.compile else self.loss

    def loss(self, tokens: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self.device, torch.bfloat16):
            logits = self.model(input_ids=tokens[:, :-1]).logits
        return nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())

    def one_step(self, rate: float) -> float:
        arguments = self.arguments
        tokens = batch(self.streams, self.step, arguments.batch_size, arguments.length, arguments.labelled_share)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        loss = self.forward(tokens.to(self.device))
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.tokens += tokens.numel() - len(tokens)
        return float(loss.detach())

    def save(self) -> None:
        tensors = {f"model.{n}": p.detach().contiguous() for n, p in self.model.named_parameters()}
        for k, optimizer in enumerate(self.optimizers):
            for index, state in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{k}.{index}.{key}": value.contiguous() for key, value in state.items()}
        save_file(tensors, self.work / "new.safetensors", {"step": str(self.step), "tokens": str(self.tokens)})
        (self.work / "new.safetensors").replace(self.work / "checkpoint.safetensors")

    def restore(self) -> None:
        path = self.work / "checkpoint.safetensors"
        if not path.exists():
            return
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            about = file.metadata()
        self.step, self.tokens = int(about["step"]), int(about["tokens"])
        tensors = load_file(path, device=self.device)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(tensors[f"model.{name}"])
        for k, optimizer in enumerate(self.optimizers):
            states: dict[int, dict[str, torch.Tensor]] = {}
            for key, value in tensors.items():
                if key.startswith(f"optimizer.{k}."):
                    _, _, index, field = key.split(".", 3)
                    states.setdefault(int(index), {})[field] = value
            optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
        print(f"resumed at step {self.step:,} ({self.tokens:,} tokens)", flush=True)


def train(arguments: argparse.Namespace) -> None:
    trainer = Trainer(arguments.work, arguments)
    trainer.restore()
    started, seen, running = time.perf_counter(), trainer.tokens, []
    while trainer.step < arguments.steps:
        rate = arguments.learning_rate * min(1.0, (trainer.step + 1) / arguments.warmup)
        running.append(trainer.one_step(rate))
        if trainer.step % 50 == 0:
            speed = (trainer.tokens - seen) / (time.perf_counter() - started)
            print(
                f"step {trainer.step:,} tokens {trainer.tokens:,} loss {np.mean(running):.4f} {speed:,.0f} tokens/s",
                flush=True,
            )
            running = []
        if trainer.step % arguments.save_every == 0:
            trainer.save()
            loss = validation_loss(trainer.model, trainer.streams["valid"], arguments.length, trainer.device)
            print(f"step {trainer.step:,} validation loss {loss:.4f}", flush=True)
    trainer.save()


def export(arguments: argparse.Namespace) -> None:
    from transformers import PreTrainedTokenizerFast

    trainer = Trainer(arguments.work, arguments)
    trainer.restore()
    for k in range(arguments.decay_steps):
        loss = trainer.one_step(arguments.learning_rate * (1 - math.sqrt(k / arguments.decay_steps)))
        if (k + 1) % 50 == 0:
            print(f"decay {k + 1} of {arguments.decay_steps}: loss {loss:.4f}", flush=True)
    loss = validation_loss(trainer.model, trainer.streams["valid"], arguments.length, trainer.device)
    target: Path = arguments.to
    shutil.rmtree(target, ignore_errors=True)
    model = trainer.model.to(torch.bfloat16)
    model.config.dtype = torch.bfloat16
    model.generation_config.pad_token_id = model.config.pad_token_id
    model.save_pretrained(target)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(arguments.work / "tokenizer.json"),
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        model_max_length=SHAPE["max_position_embeddings"],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.save_pretrained(target)
    about = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens_seen": trainer.tokens,
        "steps": trainer.step,
        "validation_loss": round(loss, 4),
        "window": arguments.length,
        "device": trainer.device,
    }
    (target / "pretraining.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(about))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    first = commands.add_parser("prepare", help="train the tokenizer, write the token streams")
    first.add_argument("--data", type=Path, default=Path("../shared/data"))
    first.add_argument("--work", type=Path, required=True)
    for name in ("train", "export"):
        command = commands.add_parser(name)
        command.add_argument("--work", type=Path, required=True)
        command.add_argument("--batch-size", type=int, default=24)
        command.add_argument("--length", type=int, default=192, help="tokens in a window")
        command.add_argument("--learning-rate", type=float, default=4e-3)
        command.add_argument("--warmup", type=int, default=200, help="steps")
        command.add_argument("--labelled-share", type=float, default=0.05)
        command.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
        if name == "train":
            command.add_argument("--steps", type=int, required=True, help="stop at this step")
            command.add_argument("--save-every", type=int, default=500)
        else:
            command.add_argument("--to", type=Path, required=True)
            command.add_argument("--decay-steps", type=int, default=1500)
    arguments = parser.parse_args()
    if arguments.command == "prepare":
        prepare(arguments.data, arguments.work)
    else:
        {"train": train, "export": export}[arguments.command](arguments)


if __name__ == "__main__":
    main()
