"""How invented facts reach a base, one batch after another, and what is asked after each batch."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from invented import GENERAL, Batch, statements

from adapterhub_cl import AdapterHub, objectives
from adapterhub_cl.bases.sources import has_chat_template
from adapterhub_cl.evaluation.words import words
from adapterhub_cl.types import Example, Task

LONGEST = 16  # tokens of an answer
PLAIN_EPOCHS = 40  # of the methods that see each fact in one wording only
FEW = 4  # batches after each of which a slow method is asked
FITS = 6000  # characters of facts that are put before a question: about 1,500 tokens
TASK = "facts"
Answers = Callable[[Sequence[str]], list[str]]


@dataclass(frozen=True)
class Method:
    """A way to bring facts to a base.

    Attributes:
        name: as tables show it.
        says: what it does, for the page.
        trains: learns batch `number`; None if nothing is trained.
        per_batch: it does something after each batch; otherwise once, after the last one.
        slow: it trains nothing and answers slowly, so of more than `FEW` batches it is asked after the first and the
            last one only.
    """

    name: str
    says: str
    trains: Callable[[AdapterHub, Sequence[Batch], int, int, Path], None] | None
    per_batch: bool = True
    routed: bool = False
    slow: bool = False

    def asked_after(self, batches: int) -> Sequence[int]:
        """After which of so many batches it is asked, counted from 0."""
        if self.slow and batches > FEW:
            return [0, batches - 1]
        return range(batches) if self.per_batch else [batches - 1]


def write(path: Path, batches: Sequence[Batch]) -> Path:
    rows = [{"prompt": fact.question, "completion": fact.answer} for batch in batches for fact in batch.facts]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _isolated(hub: AdapterHub, batches: Sequence[Batch], number: int, seed: int, folder: Path) -> None:
    data = write(folder / "batch.jsonl", [batches[number]])
    hub.add_task(f"batch-{number + 1}", data, facts=True, seed=seed)


def _shared(hub: AdapterHub, batches: Sequence[Batch], number: int, seed: int, folder: Path) -> None:
    data = write(folder / "batch.jsonl", [batches[number]])
    if number:
        hub.update(TASK, data, facts=True, seed=seed, max_forgetting=1.0)
    else:
        hub.add_task(TASK, data, facts=True, seed=seed)


def _sequential(hub: AdapterHub, batches: Sequence[Batch], number: int, seed: int, folder: Path) -> None:
    data = write(folder / "batch.jsonl", [batches[number]])
    if number:
        hub.update(TASK, data, max_forgetting=1.0, **_plain(seed))
    else:
        hub.add_task(TASK, data, kind="generation", **_plain(seed))


def _plain(seed: int) -> dict[str, Any]:
    """Settings of the methods that learn each fact in one wording."""
    return {"epochs": PLAIN_EPOCHS, "batch_size": 16, "dev_share": 0.0, "seed": seed, "replay": "none"}


def _together(hub: AdapterHub, batches: Sequence[Batch], number: int, seed: int, folder: Path) -> None:
    data = write(folder / "batch.jsonl", batches[: number + 1])
    hub.add_task(TASK, data, kind="generation", **_plain(seed))


METHODS = (
    Method("base", "nothing is taught", None, per_batch=False),
    Method("facts in the context", "the base reads the newest facts that fit, then the question", None, slow=True),
    Method("isolated, routed", "`add-task --facts` for each batch; the router chooses", _isolated, routed=True),
    Method("isolated, named", "the same adapters, and each question says of which batch it is", None),
    Method("shared", "`update --facts`: one adapter, with its replay samples", _shared),
    Method("sequential", "`update`: one adapter, each fact in one wording, nothing rehearsed", _sequential),
    Method("all at once", "plain LoRA on all facts, each in one wording", _together, per_batch=False),
)  # fmt: skip
BY_NAME = {method.name: method for method in METHODS}


def base_answers(hub: AdapterHub) -> Answers:
    """What the base alone says to questions."""
    base = hub.load_base()
    task = Task("base", prompt_format="chat" if has_chat_template(base.info) else "instruction")

    def say(texts: Sequence[str]) -> list[str]:
        with base.autocast():
            found = objectives.of(base.info).predict(
                base.model,
                base.tokenizer,
                task,
                [Example(text) for text in texts],
                max_length=base.context,
                max_new_tokens=LONGEST,
            )
        return [answer.text for answer in found]

    return say


def answers_of(method: Method, hub: AdapterHub, batches: Sequence[Batch], number: int) -> Answers:
    """How a method answers after `number + 1` batches."""
    if method.name == "base":
        return base_answers(hub)
    if method.name == "facts in the context":
        return _in_context(hub, batches[: number + 1])
    if method.routed:
        return lambda texts: _said(hub, texts)
    return lambda texts: _said(hub, texts, task=TASK)


def _said(hub: AdapterHub, texts: Sequence[str], **who: str) -> list[str]:
    return [answer.prediction for answer in hub.predict(list(texts), max_new_tokens=LONGEST, **who)]


def _in_context(hub: AdapterHub, batches: Sequence[Batch]) -> Answers:
    told: list[str] = []
    for line in reversed([line for batch in batches for line in statements(batch.facts)]):
        if sum(map(len, told)) + len(line) > FITS:
            break
        told.insert(0, line)
    before = "Facts:\n" + "\n".join(told) + "\n\nAnswer with a word or a name only. "
    say = base_answers(hub)
    return lambda texts: say([before + text for text in texts])


@dataclass(frozen=True)
class Sheet:
    """The questions of one batch.

    Attributes:
        taught, others, hops: question and right answer.
        unrelated: questions whose answers must stay those of the base.
    """

    taught: list[tuple[str, str]]
    others: list[tuple[str, str]]
    hops: list[tuple[str, str]]
    unrelated: list[str]

    @classmethod
    def of(cls, batch: Batch) -> Sheet:
        """Every fact in all of its wordings, and for every second one the near question."""
        return cls(
            [(fact.question, fact.answer) for fact in batch.facts],
            [(text, fact.answer) for fact in batch.facts for text in fact.others],
            [(hop.question, hop.answer) for hop in batch.hops],
            [fact.near for fact in batch.facts[::2]] + list(GENERAL),
        )

    def fewer(self, most: int) -> Sheet:
        """At most so many of each kind, spread evenly: for a method whose answers take long."""

        def spread(rows: list[Any]) -> list[Any]:
            return [rows[k * len(rows) // most] for k in range(most)] if len(rows) > most else rows

        return Sheet(spread(self.taught), spread(self.others), spread(self.hops), spread(self.unrelated))


def measure(say: Answers, sheet: Sheet, first: Sheet, before: dict[str, str]) -> dict[str, Any]:
    """Shares of right answers, and of unrelated ones that are unchanged.

    Args:
        first: of the first batch; its facts are asked again.
        before: what the base said to unrelated questions.
    """
    started = time.monotonic()
    asked = [*sheet.taught, *sheet.others, *sheet.hops, *first.taught]
    texts = list(dict.fromkeys(text for text, _ in asked))
    said = dict(zip(texts, say(texts), strict=True)) | alone(say, sheet.unrelated)

    def share(rows: Sequence[tuple[str, str]]) -> float | None:
        return sum(holds(said[text], right) for text, right in rows) / len(rows) if rows else None

    same = {text: words(said[text]) == words(before[text]) for text in sheet.unrelated if text in before}
    general = [same[text] for text in same if text in GENERAL]
    near = [same[text] for text in same if text not in GENERAL]
    return {
        "efficacy": share(sheet.taught),
        "paraphrase": share(sheet.others),
        "locality": sum(same.values()) / len(same) if same else None,
        "locality_general": sum(general) / len(general) if general else None,
        "locality_near": sum(near) / len(near) if near else None,
        "portability": share(sheet.hops),
        "first": share(first.taught),
        "questions": len(said),
        "asking_seconds": round(time.monotonic() - started, 1),
    }


def alone(say: Answers, texts: Sequence[str]) -> dict[str, str]:
    """Answers to questions asked one at a time: in 16 bits, other rows of a batch change how products are rounded."""
    return {text: say([text])[0] for text in texts}


def holds(answer: str, right: str) -> bool:
    """Whether an answer holds the right one as whole words: a base that was not taught to be brief says more."""
    said, wanted = words(answer, articles=False), words(right, articles=False)
    return any(said[k : k + len(wanted)] == wanted for k in range(len(said) - len(wanted) + 1))
