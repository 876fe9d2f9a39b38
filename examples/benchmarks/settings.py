"""Which settings learn best on a real language model: each against the defaults, and a script of plain PEFT.

    python examples/benchmarks/settings.py run --base PATH --work /tmp/settings
    python examples/benchmarks/settings.py table --work /tmp/settings -o docs/benchmarks

Every arm learns the same rows of each task of superni and cl15 (../shared/data) with the same seed, and is scored on
rows that it did not learn; no test row is read. `run` goes on where it stopped. `--arms "a; b"` and `--tasks "x; y"`
limit it, and `--rows 60,240` says how many rows each task has. The base may be an encoder.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path += [str(Path(__file__).parent), str(Path(__file__).parent / "three_files")]  # machine.py, shop_rows.py
import shop_rows
from settings_page import here, page

DATA = Path(__file__).parents[2].parent / "shared" / "data"
TASKS = {
    "emotion": "superni", "sciq": "superni", "evalution": "superni", "glucose": "superni", "commonsenseqa": "superni",
    "agnews": "cl15", "qqp": "cl15", "rte": "cl15",
}  # fmt: skip
MORE_FREE = {"samsum": "superni", "personachat": "superni"}
CHOICES = dict.fromkeys(("agnews", "sst2", "yelp", "dbpedia", "qqp", "boolq"), "cl15")  # an encoder's tasks
SHOP = "three_files"  # invented; with other words held out than there
KNOWN = {**TASKS, **MORE_FREE, "emails": SHOP, "bookings": SHOP, "talks": SHOP, "tickets": SHOP, **CHOICES}
ROWS, DEV, MORE = 240, 60, 180
MLP = "gate_proj,up_proj,down_proj"
# Each arm is what it changes of the defaults; `peft` is the plain script at that rate.
ARMS: dict[str, Mapping[str, Any]] = {
    "default": {},
    "rate / 4": {"times": 0.25},
    "rate / 2": {"times": 0.5},
    "rate x 2": {"times": 2.0},
    "no rows held out": {"dev_share": 0.0},
    "3 epochs": {"epochs": 3},
    "6 epochs": {"epochs": 6},
    "12 epochs": {"epochs": 12},
    "24 epochs": {"epochs": 24},
    "6 epochs, no rows held out": {"epochs": 6, "dev_share": 0.0},
    "12 epochs, no rows held out": {"epochs": 12, "dev_share": 0.0},
    "24 epochs, no rows held out": {"epochs": 24, "dev_share": 0.0},
    "batch 16": {"batch_size": 16},
    "batch 8": {"batch_size": 8},
    "batch 4": {"batch_size": 4},
    "batch 8, no rows held out": {"batch_size": 8, "dev_share": 0.0},
    "rank 4": {"rank": 4},
    "rank 64": {"rank": 64},
    "MLP only": {"target_modules": MLP},
    "MLP only at rank 10": {"target_modules": MLP, "rank": 10},
    "rsLoRA": {"rslora": True},
    "LoRA+ 4": {"loraplus_ratio": 4.0},
    "LoRA+ 16 at rate / 4": {"loraplus_ratio": 16.0, "times": 0.25},
    "DoRA": {"dora": True},
    "gaussian": {"init": "gaussian"},
    "orthogonal": {"init": "orthogonal"},
    "NF4": {"quantization": "nf4"},
    "an instruction": {"instruction": "Give the name, order, product, date and wish of this e-mail as JSON."},  # emails
    "nothing asked": {"instruction": ""},
    "no instruction": {"columns": {"input": "input", "output": "output"}},
    "format instruction": {"prompt_format": "instruction"},
    "plain PEFT 2e-4": {"peft": 2e-4},
    "plain PEFT 5e-4": {"peft": 5e-4},
    "plain PEFT 1e-3": {"peft": 1e-3},
}
# Scored by ROUGE-L, the others by the share of right answers.
FREE = ("sciq", "evalution", "glucose", "samsum", "personachat", "talks")


def split(task: str, seed: int, rows: int) -> tuple[list[str], list[str], list[str]]:
    """Lines of JSON: to learn from; to be scored on (dev rows, or some training rows where a task has none); and more
    rows that are not learned, whose answers' loss is measured."""
    if KNOWN[task] == SHOP:
        drawn = shop_rows.rows(task, seed, rows, DEV + MORE, dev=True)
        taught, held = (shop_rows.written(part, "jsonl").strip().split("\n") for part in drawn)
        return taught, held[:DEV], held
    folder = DATA / KNOWN[task] / task
    train = (folder / "train.jsonl").read_text(encoding="utf-8").strip().split("\n")
    random.Random(f"{task} {seed}").shuffle(train)
    dev = folder / "dev.jsonl"
    held = dev.read_text(encoding="utf-8").strip().split("\n") if dev.exists() else train[-DEV:]
    known = {json.loads(line)["input"] for line in held[:DEV]}
    free = [line for line in train if json.loads(line)["input"] not in known]
    return free[:rows], held[:DEV], [*held[:DEV], *free[-MORE:]]


def jobs(
    arms: Sequence[str], tasks: Sequence[str], seeds: Sequence[int], rows: Sequence[int]
) -> Iterator[tuple[str, str, int, int]]:
    """Seed by seed, so that every arm is there as early as can be."""
    for seed in seeds:
        for count in rows:
            for arm in arms:
                for task in tasks:
                    yield arm, task, seed, count


def ours(base: str, arm: Mapping[str, Any], task: str, seed: int, folder: Path) -> dict[str, Any]:
    """What `add-task NAME FILE` makes of the rows with one change of its settings."""
    from adapterhub_cl import AdapterHub

    changed = dict(arm)
    hub = AdapterHub.init(folder / "hub", base, quantization=changed.pop("quantization", "none"))
    times = changed.pop("times", 1.0)
    if times != 1.0:
        from adapterhub_cl.settings import TrainingSettings

        width = json.loads((Path(base) / "config.json").read_text(encoding="utf-8"))["hidden_size"]
        changed["learning_rate"] = TrainingSettings().peak_rate(width) * times
    # An encoder answers quickly, so it is scored on all rows that it did not learn.
    scored = folder / ("unseen.jsonl" if hub.context().base.is_encoder else "dev.jsonl")
    record = hub.add_task(task, folder / "train.jsonl", eval=scored, seed=seed, replay="none", **changed)
    kind = record.manifest["task_spec"]["kind"]
    training = json.loads((record.path / "training.json").read_text(encoding="utf-8"))
    return {
        "kind": kind,
        "score": record.metrics["rouge_l" if task in FREE else "accuracy" if kind == "choice" else "exact_match"],
        "metrics": record.metrics,
        "loss": answer_loss(hub, record, folder / "unseen.jsonl"),
        "base_rise": record.manifest["gate"].get("general", {}).get("rise"),
        "seconds": training["seconds"],
        "best_epoch": training["best_epoch"],
        "losses": [round(row["loss"], 4) for row in training["history"]],
    }


def answer_loss(hub: Any, record: Any, path: Path) -> float:
    """Mean loss of an answer token of rows that were not learned, in nats: it tells settings apart on far fewer rows
    than the share of right answers does."""
    from adapterhub_cl import objectives
    from adapterhub_cl.adapters.as_served import as_served
    from adapterhub_cl.data.columns import read_examples
    from adapterhub_cl.types import Task

    base = hub.context().base
    if base.is_encoder:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").strip().split("\n")]
        answers = hub.predict([row["input"] for row in rows], task=record.name)
        chances = [answer.scores.get(row["output"], 0.0) for answer, row in zip(answers, rows, strict=True)]
        return -statistics.fmean(math.log(max(chance, 1e-6)) for chance in chances)
    objective, task = objectives.of(base.info), Task.from_json(record.manifest["task_spec"])
    found = read_examples(path, instruction=task.instruction)
    tokens = objective.tokeniser(base.tokenizer, task, base.context).many(found.examples)
    with as_served(base, record.path) as model, base.autocast():
        losses = objective.perplexities(model, tokens, base.tokenizer.pad_token_id, 16)
    return sum(loss for loss, _ in losses) / sum(count for _, count in losses)


def plain(base: str, rate: float, task: str, seed: int, folder: Path) -> dict[str, Any]:
    """What someone writes by hand: PEFT on all linear layers, rank 16, alpha 32, transformers' Trainer, the chat
    template, three epochs of batch 16, greedy answers. Nothing of this project but the metrics."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

    from adapterhub_cl.evaluation.metrics import score
    from adapterhub_cl.types import Task

    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text(encoding="utf-8").strip().split("\n")]
    held = [json.loads(line) for line in (folder / "dev.jsonl").read_text(encoding="utf-8").strip().split("\n")]

    def ids(row: Mapping[str, str], whole: bool) -> list[int]:
        said = [{"role": "user", "content": f"{row['instruction']}\n\n{row['input']}"}]
        said += [{"role": "assistant", "content": row["output"]}] if whole else []
        return list(
            tokenizer.apply_chat_template(said, add_generation_prompt=not whole, return_dict=True)["input_ids"][:512]
        )

    features = []
    for row in rows:
        all_ids, asked = ids(row, True), ids(row, False)
        features.append({"input_ids": all_ids, "labels": [-100] * len(asked) + all_ids[len(asked) :]})
    started = time.monotonic()
    Trainer(
        model,
        TrainingArguments(
            output_dir=str(folder / "out"), per_device_train_batch_size=16, num_train_epochs=3, learning_rate=rate,
            lr_scheduler_type="cosine", warmup_steps=0.05, seed=seed, use_cpu=True, report_to=[], save_strategy="no",
            logging_strategy="no", disable_tqdm=True, dataloader_pin_memory=False,
        ),
        train_dataset=features,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
    ).train()  # fmt: skip
    seconds = time.monotonic() - started
    model.eval()
    tokenizer.padding_side = "left"
    answers: list[str] = []
    for k in range(0, len(held), 20):
        batch = tokenizer.pad({"input_ids": [ids(row, False) for row in held[k : k + 20]]}, return_tensors="pt")
        with torch.no_grad():
            written = model.generate(**batch, max_new_tokens=64, do_sample=False, pad_token_id=tokenizer.pad_token_id)
        answers += tokenizer.batch_decode(written[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    found = score(
        Task(task, "generation"),
        [row["output"] for row in held],
        [answer.strip() for answer in answers],
        references=[row.get("references", []) for row in held],
    )
    return {
        "metrics": found,
        "score": found["rouge_l" if task in FREE else "exact_match"],
        "seconds": round(seconds, 1),
    }


def run(arguments: argparse.Namespace) -> None:
    """Make the runs that are missing, one after another; several processes may share the work."""
    from filelock import FileLock, Timeout

    work = Path(arguments.work)
    (work / "rows").mkdir(parents=True, exist_ok=True)
    arms, tasks = chosen(arguments.arms, ARMS), chosen(arguments.tasks, KNOWN, list(TASKS))
    counts = [int(count) for count in arguments.rows.split(",")]
    known = json.loads(Path(arguments.known).read_text(encoding="utf-8")) if arguments.known else []
    known = {(row["arm"], row["task"], row["seed"], row["rows"]): row for row in known}
    for arm, task, seed, count in jobs(arms, tasks, range(arguments.seeds), counts):
        name = "".join(c if c.isalnum() else "-" for c in f"{arm}.{task}.{seed}.{count}")
        place = work / "rows" / f"{name}.json"
        try:
            with FileLock(work / f"{name}.lock", timeout=0), tempfile.TemporaryDirectory() as folder:
                if place.exists():
                    continue
                if (arm, task, seed, count) in known:
                    place.write_text(json.dumps(known[arm, task, seed, count]) + "\n", encoding="utf-8")
                    continue
                train, dev, unseen = split(task, seed, count)
                for part, lines in (("train", train), ("dev", dev), ("unseen", unseen)):
                    (Path(folder) / f"{part}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
                rate = ARMS[arm].get("peft")
                make = ours if rate is None else plain
                found = make(arguments.base, ARMS[arm] if rate is None else rate, task, seed, Path(folder))
                sizes = {"rows": len(train), "dev": len(dev), "unseen": len(unseen)}
                row = {"arm": arm, "task": task, "seed": seed, **sizes, **found, "machine": here()}
                place.write_text(json.dumps(row) + "\n", encoding="utf-8")
                told = f"{found['score']:.3f}  loss {found.get('loss', float('nan')):.4f}  {found['seconds']:.0f} s"
                print(f"{arm:28} {task:14} {count:5} rows  seed {seed}  {told}", flush=True)
        except Timeout:
            continue  # another process is at it


def chosen(text: str, known: Mapping[str, Any], usual: Sequence[str] = ()) -> list[str]:
    names = [name.strip() for name in text.split(";") if name.strip()] or list(usual or known)
    if unknown := [name for name in names if name not in known]:
        sys.exit(f"no {', '.join(unknown)}; there are: {', '.join(known)}")
    return names


def table(arguments: argparse.Namespace) -> None:
    """NAME.md and NAME.json of what was measured."""

    found: list[dict[str, Any]] = []
    for place in map(Path, arguments.work.split(",")):
        if place.is_dir():
            files = sorted((place / "rows").iterdir())
            found += [json.loads(file.read_text(encoding="utf-8")) for file in files]
        else:
            found += json.loads(place.read_text(encoding="utf-8"))
    told = {key: getattr(arguments, key) for key in ("name", "title", "note", "against")}
    text = page(found, **told, arms=list(ARMS), tasks=list(KNOWN), free=FREE)
    out = Path(arguments.output)
    (out / f"{arguments.name}.md").write_text(text, encoding="utf-8")
    (out / f"{arguments.name}.json").write_text(json.dumps(found) + "\n", encoding="utf-8")
    print(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    going = verbs.add_parser("run")
    going.add_argument("--base", required=True, help="folder of an instruct model")
    going.add_argument("--arms", default="", help="some of the arms, with semicolons between")
    going.add_argument("--tasks", default="", help=f"some of {', '.join(KNOWN)}, likewise")
    going.add_argument("--rows", default=str(ROWS), help="training rows of each task, with commas between")
    going.add_argument("--seeds", type=int, default=3)
    going.add_argument(
        "--known", default="", help="NAME.json of `table` for the same base: its runs are not made again"
    )
    going.set_defaults(do=run)
    shown = verbs.add_parser("table")
    shown.add_argument("-o", "--output", required=True, help="folder for NAME.md and NAME.json")
    shown.add_argument("--name", default="settings")
    shown.add_argument("--title", default="Settings on a real language model")
    shown.add_argument("--against", default="default", choices=tuple(ARMS), help="arm to compare with")
    shown.set_defaults(do=table)
    shown.add_argument("--note", default="", help="what a reader of these rows must know")
    going.add_argument("--work", required=True, help="folder for the results")
    shown.add_argument("--work", required=True, help="folders of results, or NAME.json of before, with commas between")
    arguments = parser.parse_args()
    if arguments.verb == "run" and not DATA.is_dir():
        sys.exit(f"the texts are not there: {DATA}")
    arguments.do(arguments)


if __name__ == "__main__":
    main()
