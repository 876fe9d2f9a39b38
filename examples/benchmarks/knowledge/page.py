"""knowledge.md and knowledge.json of what was measured."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from machine import machine, versions
from methods import FEW, FITS, METHODS, PLAIN_EPOCHS

MEASURES = ("efficacy", "paraphrase", "locality", "locality_general", "locality_near", "portability", "first")
TITLES = ("efficacy", "paraphrase", "locality", "of general questions", "of near questions", "two hops", "first batch")


def table(arguments: argparse.Namespace) -> None:
    out, parts = Path(arguments.output), []
    for work in map(Path, arguments.work.split(",")):
        rows = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((work / "rows").glob("*.json"))]
        parts.append({"setup": json.loads((work / "setup.json").read_text(encoding="utf-8")), "rows": rows})
    text = page(parts, arguments.note)
    (out / "knowledge.md").write_text(text, encoding="utf-8")
    (out / "knowledge.json").write_text(json.dumps(parts, indent=1) + "\n", encoding="utf-8")
    print(text)


def page(parts: Sequence[Mapping[str, Any]], note: str = "") -> str:
    """The page as Markdown: a section for each part, with its `setup` and `rows`; a method without rows is left out."""
    names = {row["method"] for part in parts for row in part["rows"]}
    bases = " and ".join(dict.fromkeys(part["setup"]["base"] for part in parts))
    lines = [
        "# Knowledge",
        "",
        "What is answered right after batches of invented facts were learned one after another, and what else changed. "
        f"Base {bases} in 16 bits. {machine()}. "
        f"{versions('torch', 'transformers', 'peft')}. Written by `examples/benchmarks/knowledge`.",
        "",
        *([note, ""] if note else []),
        "An answer is right if it holds the right one as whole words; it has 16 tokens at most. *Efficacy* is the "
        "share of the batch's facts that are answered right as they were taught, *paraphrase* the share in three other "
        "wordings of each, written by hand, which nothing trains with. *Locality* is the share of unrelated "
        "questions with the same answer as before, word for word: questions of general knowledge, and the taught "
        "questions about others that no fact is about. *Two hops* are questions that need two facts of the batch. "
        "*First batch* is the share of the first batch's facts still right after the last batch. All figures but that "
        "one are means over the batches (and seeds), each asked right after it was learned. Unrelated "
        "questions are asked one at a time, because other rows of a batch change how products in 16 bits are rounded. "
        "*Time* is the training of one batch (of all facts for the last method), on cores that others used too.",
        "",
        "The methods:",
        "",
        *(f"- **{method.name}**: {method.says}." for method in METHODS if method.name in names),
        "",
        f"The methods with one wording train {PLAIN_EPOCHS} epochs and hold nothing out. In the context stand the "
        f"newest facts that fit into {FITS:,} characters; that method is asked 20 questions of each kind, and "
        f"of more than {FEW} batches after the first and the last one only. The two facts of two hops are in the same "
        "batch, so an isolated adapter has learned both.",
    ]
    for part in parts:
        lines += section(part["rows"], part["setup"])
    lines += ["", "## Again", "", "<!-- not run: takes hours, and a real model -->", "```console"]
    works = [f"knowledge-work-{number}" for number in range(1, len(parts) + 1)]
    for work, part in zip(works, parts, strict=True):
        lines.append(
            f"$ python examples/benchmarks/knowledge run --base MODEL --work {work} --batches "
            f"{part['setup']['batches']} --size {part['setup']['size']} --seeds {_seeds(part['rows'])}"
        )
    lines += [f"$ python examples/benchmarks/knowledge table --work {','.join(works)} -o docs/benchmarks", "```"]
    return "\n".join(lines) + "\n"


def _seeds(rows: Sequence[Mapping[str, Any]]) -> int:
    return len({row["seed"] for row in rows})


def section(rows: Sequence[dict[str, Any]], setup: Mapping[str, Any]) -> list[str]:
    """The tables of one setup."""
    seeds, last = _seeds(rows), max((row["batch"] for row in rows), default=0)
    known = [method for method in METHODS if any(row["method"] == method.name for row in rows)]
    lines = [
        "",
        f"## {setup['batches']} batches of {setup['size']} facts, {seeds} seed{'s' if seeds > 1 else ''}",
        "",
        f"| method | {' | '.join(TITLES)} | routed right | time |",
        "|---|" + "---|" * (len(TITLES) + 2),
    ]
    for method in known:
        mine = [row for row in rows if row["method"] == method.name]
        final = [row for row in mine if row["batch"] == last]
        cells = [_mean([row.get(name) for row in (final if name == "first" else mine)]) for name in MEASURES]
        time = _time([row["scores"]["training_seconds"] for row in mine if row.get("scores")])
        lines.append(f"| {method.name} | {' | '.join(cells)} | {_mean([row.get('routed') for row in mine])} | {time} |")
    lines += [
        "",
        f"The first batch's facts after each batch (of {last}):",
        "",
        "| method | " + " | ".join(str(number + 1) for number in range(last)) + " |",
        "|---|" + "---|" * last,
    ]
    for method in known:
        mine = {
            number: [row.get("first") for row in rows if (row["method"], row["batch"]) == (method.name, number + 1)]
            for number in range(last)
        }
        lines.append(f"| {method.name} | " + " | ".join(_mean(mine[number]) for number in range(last)) + " |")
    own = [row for row in rows if "efficacy" in (row.get("scores") or {})]
    if own:
        lines += [
            "",
            "What `--facts` itself reports after each batch (exact match; paraphrases by the library's held-out rules, "
            "locality with the adapter named, retention of the replay samples):",
            "",
            "| method | efficacy | paraphrase | locality | retention |",
            "|---|---|---|---|---|",
        ]
        for method in known:
            mine = [row["scores"] for row in own if row["method"] == method.name]
            if mine:
                cells = [_mean([r.get(n) for r in mine]) for n in ("efficacy", "paraphrase", "locality", "retention")]
                lines.append(f"| {method.name} | {' | '.join(cells)} |")
    return lines


def _mean(values: Sequence[float | None]) -> str:
    """Mean ± standard deviation in percent; a dash where nothing was measured."""
    found = [100 * value for value in values if value is not None]
    if not found:
        return "–"
    spread = f" ± {statistics.stdev(found):.1f}" if len(found) > 1 else ""
    return f"{statistics.fmean(found):.1f}{spread}"


def _time(seconds: Sequence[float | None]) -> str:
    found = [value for value in seconds if value is not None]
    return f"{statistics.median(found) / 60:.1f} min" if found else "–"
