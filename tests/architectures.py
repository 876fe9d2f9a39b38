"""All steps of the life of an adapter on one family of models, and what came of each: for the table of architectures.

`python tests/architectures.py --write` runs all families and writes docs/benchmarks/architectures.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
from families import CAUSAL, COMPOSED, ENCODERS, REFUSED, build

STEPS = ("init", "train", "load = PEFT", "served = PEFT", "mixed = alone", "merge", "route", "generate", "export")
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks" / "architectures.md"
LABELS = {"one": ["red is bad", "red is good", "stone is bad"], "two": ["the blue one", "the red one", "neither"]}
THINGS = ["apple", "stone", "blue bird on a wall", "red house at the end of the long road"]
TEXTS = [f"a {thing} that nobody has seen before in this part of the town, {k}" for k, thing in enumerate(THINGS * 3)]
CLOSE = 2e-3


def rows(task: str) -> list[dict[str, str]]:
    labels = LABELS[task]
    return [{"text": text, "label": labels[k % len(labels)]} for k, text in enumerate(TEXTS)]


class Trial:
    """One family: its base and its hub, and a method for each step that raises where the step fails."""

    def __init__(self, family: str, folder: Path, quantization: str = "none") -> None:
        self.quantization = quantization
        self.family, self.folder, self.encoder = family, folder, family in ENCODERS
        self.base = build(family, folder / "base")
        self.notes: list[str] = []

    def init(self) -> None:
        from adapterhub_cl import AdapterHub

        self.hub = AdapterHub.init(self.folder / "hub", str(self.base), quantization=self.quantization, dtype="fp32")

    def train(self) -> None:
        from adapterhub_cl.progress import Reporter

        class Told(Reporter):
            def note(_, text: str) -> None:  # noqa: N805
                self.notes.append(text)

        for task in LABELS:
            data = self.folder / f"{task}.jsonl"
            data.write_text("\n".join(json.dumps(row) for row in rows(task)), encoding="utf-8")
            self.hub.add_task(
                task, str(data), epochs=2, rank=3, batch_size=4, learning_rate=8e-3, kind="choice", reporter=Told()
            )
        weights = self.tensors("one")
        moved = [key for key, value in weights.items() if "lora_B" in key and bool(value.abs().max() > 0)]
        still = [key for key in weights if "lora_B" in key and key not in moved]
        # In Longformer's last layer only the first token is read, and it attends with weights of its own.
        assert not still or self.family == "longformer", (
            f"{len(still)} of {len(still) + len(moved)} layers learned nothing, such as {still[0]}"
        )

    def tensors(self, ref: str) -> dict[str, torch.Tensor]:
        from safetensors.torch import load_file

        return load_file(self.hub.path(ref) / "adapter_model.safetensors")

    def plain(self, ref: str) -> Any:
        """The adapter as plain PEFT opens it on a base that this project never saw."""
        import transformers
        from peft import PeftModel

        if self.encoder:
            count = len(next(iter(layout(self.hub.path(ref)).values())))
            base = transformers.AutoModelForSequenceClassification.from_pretrained(
                self.base, num_labels=count, dtype=torch.float32
            )
        else:
            kind = "ImageTextToText" if self.family == "mistral3" else "CausalLM"
            base = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(self.base, dtype=torch.float32)
        return PeftModel.from_pretrained(base, self.hub.path(ref)).eval()

    @torch.no_grad()
    def load(self) -> None:
        model, tokenizer = self.hub.load("one")
        ids = tokenizer(TEXTS[3], return_tensors="pt").input_ids
        same(model.eval()(input_ids=ids).logits, self.plain("one")(input_ids=ids).logits)
        if not self.encoder:
            with model.disable_adapter():
                base = model(input_ids=ids).logits
            assert (base - model(input_ids=ids).logits).abs().max() > 1e-3, "the adapter changes nothing"

    @torch.no_grad()
    def served(self) -> None:
        """The engine's scores of labels are those of plain PEFT, each label read for itself."""
        model, tokenizer = self.plain("one"), self.hub.load_base().tokenizer
        texts = [TEXTS[0], " ".join(TEXTS[:2])]
        with self.hub.engine() as engine:
            found = engine.predict(texts, task="one")
        for text, one in zip(texts, found, strict=True):
            if self.encoder:
                logits = model(**tokenizer(text, return_tensors="pt", truncation=True)).logits[0]
                rows_of = layout(self.hub.path("one"))["one"]
                right = {label: float(logits.softmax(-1)[row]) for label, row in rows_of.items()}
            else:
                prompt = tokenizer(text + "\nAnswer:").input_ids
                logs = []
                for label in LABELS["one"]:
                    answer = tokenizer(" " + label, add_special_tokens=False).input_ids
                    told = model(input_ids=torch.tensor([prompt + answer]), use_cache=False).logits[0].log_softmax(-1)
                    logs.append(sum(float(told[len(prompt) - 1 + k, t]) for k, t in enumerate(answer)))
                right = dict(zip(LABELS["one"], torch.tensor(logs).softmax(0).tolist(), strict=True))
            same([one.scores[label] for label in LABELS["one"]], [right[label] for label in LABELS["one"]])

    def mixed(self) -> None:
        """A batch whose rows need two adapters and the base gives what each adapter gives alone."""
        texts = TEXTS[:5]
        alone = {task: self.hub.predict(texts, task=task) for task in LABELS}
        with self.hub.engine(wait_ms=200) as engine:
            asked = [engine.submit(text, task=task) for text in texts for task in LABELS]
            found = [one.result() for one in asked]
        wanted = [alone[task][k] for k in range(len(texts)) for task in LABELS]
        for one, other in zip(found, wanted, strict=True):
            labels = sorted(other.scores)
            same([one.scores[label] for label in labels], [other.scores[label] for label in labels])

    def merge(self) -> None:
        self.hub.merge(["one", "two"], name="both", method="linear", evaluate=False)
        merged, one = self.tensors("both"), self.tensors("one")
        missing = [key for key in one if "lora_" in key and key not in merged]
        assert not missing, f"the merged adapter lacks {missing[0]}"
        model, _ = self.hub.load("both")
        assert len([1 for key, _ in model.named_parameters() if ".lora_A." in key]) == sum("lora_A" in k for k in one)
        self.hub.predict(TEXTS[:2], adapter="both", task="two")

    def route(self) -> None:
        for router in ("analytic", "arrow"):
            assert len(self.hub.route(TEXTS[:3], router=router)) == 3

    def generate(self) -> None:
        if self.encoder:
            raise NotHere
        alone = self.hub.write(TEXTS[0], task="one", max_new_tokens=6).prediction
        with self.hub.engine() as engine:
            asked = [engine.generate(TEXTS[0], task=task, max_new_tokens=6).prediction for task in ("one", "two")]
        assert asked[0] == alone, f"{asked[0]!r} by the engine, {alone!r} alone"

    def export(self) -> None:
        self.hub.export("one", self.folder / "out")
        self.hub.import_adapter(self.folder / "out", "back")
        assert self.hub.predict(TEXTS[:2], adapter="back")[0].scores.keys() == set(LABELS["one"])


def layout(folder: Path) -> Any:
    from adapterhub_cl.adapters.head_files import read_layout

    return read_layout(folder)


class NotHere(Exception):
    """A step that this kind of base does not have."""


def same(one: Any, other: Any) -> None:
    one, other = torch.as_tensor(one).float(), torch.as_tensor(other).float()
    apart = float((one - other).abs().max())
    assert apart <= CLOSE * max(1.0, float(other.abs().max())), f"{apart:.3g} apart"


def outcomes(family: str, folder: Path, quantization: str = "none") -> tuple[dict[str, str], list[str]]:
    """Step → ok, – (not for this kind) or what went wrong, up to a step that the next ones need; and the notes."""
    from adapterhub_cl.errors import AdapterHubError

    trial = Trial(family, folder, quantization)
    methods: dict[str, Callable[[], None]] = {
        "init": trial.init,
        "train": trial.train,
        "load = PEFT": trial.load,
        "served = PEFT": trial.served,
        "mixed = alone": trial.mixed,
        "merge": trial.merge,
        "route": trial.route,
        "generate": trial.generate,
        "export": trial.export,
    }
    if quantization != "none":  # plain PEFT opens another kernel there: docs/decisions/002
        del methods["load = PEFT"], methods["served = PEFT"]
    found: dict[str, str] = {}
    for step, method in methods.items():
        try:
            method()
            found[step] = "ok"
        except NotHere:
            found[step] = "–"
        except AdapterHubError as error:
            found[step] = f"refused: {error.message.replace(str(folder), '…')} ({error.hint})"
            if step in STEPS[:2]:
                break
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            found[step] = f"failed: {type(error).__name__}: {lines[0][:160]}"
            if step in STEPS[:2]:
                break
    return found, [note for note in trial.notes if "LoRA is added to" in note]


def main() -> None:
    from adapterhub_cl.quiet import quiet_third_parties

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", help="default: all of them")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    parser.add_argument(
        "--quantization", default="none", help="of the bases; what plain PEFT gives is compared at none"
    )
    asked = parser.parse_args()
    quiet_third_parties()
    torch.set_num_threads(1)
    table: dict[str, tuple[dict[str, str], list[str], float]] = {}
    for family in asked.families or [*CAUSAL, *COMPOSED, *ENCODERS, *REFUSED]:
        folder, started = Path(tempfile.mkdtemp(prefix="family-")), time.perf_counter()
        try:
            found, notes = outcomes(family, folder, asked.quantization)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        table[family] = (found, notes, time.perf_counter() - started)
        wrong = {step: told for step, told in found.items() if told not in ("ok", "–")}
        print(f"{family:20} {table[family][2]:5.1f} s  {wrong or 'ok'}", flush=True)
    if asked.write:
        PAGE.write_text(page(table), encoding="utf-8")


HEAD = """# Architectures

Each family of transformers as a tiny model with random weights ({versions}), through the whole life of an
adapter: a hub is made, two choice tasks are learned, the version is opened by plain PEFT (`load = PEFT`: the same
logits), its labels are scored in the engine and by plain PEFT one by one (`served = PEFT`), a batch whose rows need two
adapters is answered as each adapter answers alone (`mixed = alone`), both are merged, texts are routed, an answer is
written alone and in the engine, and an export is imported again. Bases in fp32, on one CPU core. Written by
`python tests/architectures.py --write`; `pytest -m slow tests/integration/test_architectures.py` runs the same.

{passed} of {tried} families pass every step; {refused} more are refused by `init`, in a line. `–`: there is no such
step (an encoder writes nothing).

| family | {steps} | s |
|---|{rule}---|
{rows}

## What stays as in the base

`--target-modules all-linear` puts LoRA on every linear layer that all tokens of a text pass; a line says what is left
out ([decision 026](../decisions/026-a-lora-is-judged-by-its-tensors.md)).

| family | LoRA on | not on |
|---|---|---|
{left}

## Refused

| family | what `init` says |
|---|---|
{said}
"""


def page(table: dict[str, tuple[dict[str, str], list[str], float]]) -> str:
    from importlib.metadata import version

    tried = {family: row for family, row in table.items() if family not in REFUSED}
    passed = sum(all(told in ("ok", "–") for told in found.values()) for found, _, _ in tried.values())
    rows = [
        f"| {family} | {' | '.join(found.get(step, '') for step in STEPS)} | {seconds:.1f} |"
        for family, (found, _, seconds) in tried.items()
    ]
    left = []
    for family, (_, notes, _) in tried.items():
        if notes:
            on, _, off = notes[0].removeprefix("note: LoRA is added to ").partition("; ")
            left.append(f"| {family} | {on} | {off.partition(' stay')[0]} |")
    said = [
        f"| {family} | {found['init'].removeprefix('refused: ')} |"
        for family, (found, _, _) in table.items()
        if family in REFUSED
    ]
    return HEAD.format(
        versions=", ".join(f"{name} {version(name)}" for name in ("transformers", "peft", "torch")),
        passed=passed,
        tried=len(tried),
        refused=len(said),
        steps=" | ".join(STEPS),
        rule="---|" * len(STEPS),
        rows="\n".join(rows),
        left="\n".join(left),
        said="\n".join(said),
    )


if __name__ == "__main__":
    main()
