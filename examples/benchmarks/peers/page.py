"""The tables on the screen, and the page that several calls make together."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from adapterhub_cl.registry.files import atomic_write_text

HEAD = """# Training against the peers

Written by `python examples/benchmarks/peers`: the same rows, token ids, rank, alpha, layers, epochs, batch size,
learning rate, schedule and seed for every way; each in a process of its own, one after the other; the same code scores
them. A ratio is taken within one call of the script, against the first row; `in CPU time` is the same of the CPU
seconds, which other work on the machine disturbs less. `peak` is the most that the whole process took, libraries and
base among it, `in training` what that is above the memory before training. Seconds of ours have the tokenising and the
choice of attention in them (the choice not where one thing is changed at a time: those runs are short), the others'
begin at the tokens. `of best` is 4 operations for each weight and token (a frozen base: forward pass, and gradients of
the activations), as a share of the best matrix product that the same process measured after its training, in fp32 or
bf16; padding and what is computed twice do not count as work. Where a call made several rounds, all ways in turn, each
with the next seed, the table has the median of each and the mean accuracy, and below it are their ranges.
"""
Key = tuple[str, str, str, str]
TITLES = (
    *("way", "examples/s", "ratio", "in CPU time", "tokens/s", "of best"),
    *("accuracy", "peak MB", "in training MB", "notes"),
)


def rows_of(section: dict[str, Any]) -> list[tuple[str, ...]]:
    """The table's cells; a way that failed or was left out has its reason."""
    first, found = section["rows"][0], []
    failed = "why" in first  # then there is nothing to compare with
    for row in section["rows"]:
        if "why" in row:
            found.append((row["told"], *["–"] * (len(TITLES) - 2), row["why"]))
            continue
        found.append(
            (
                row["told"],
                f"{row['examples_per_second']:.1f}",
                "–" if failed else f"{row['examples_per_second'] / first['examples_per_second']:.2f}×",
                "–" if failed else f"{first['cpu_seconds'] / row['cpu_seconds']:.2f}×",
                f"{row['tokens_per_second']:,.0f}" if "tokens_per_second" in row else "–",
                share_of_best(row),
                f"{row['accuracy']:.1%}",
                f"{row['peak_mb']:,.0f}",
                f"{row['training_mb']:,.0f}",
                notes(row),
            )
        )
    return found


def share_of_best(row: dict[str, Any]) -> str:
    if "operations_per_second" not in row:
        return "–"
    return f"{row['operations_per_second'] / row['best_operations_per_second']:.0%}"


def notes(row: dict[str, Any]) -> str:
    said = [f"{row['attention']} attention"] if "attention" in row else []
    if not row.get("padding", True):
        said.append("no padding")
    if "compile_seconds" in row:
        said.append(f"{row['compile_seconds']:.0f} s of compiling not counted")
    return ", ".join(said)


def show(section: dict[str, Any]) -> None:
    """Print the table."""
    cells = [TITLES, *rows_of(section)]
    widths = [max(len(row[k]) for row in cells) for k in range(len(TITLES))]
    for row in cells:
        middle = [cell.rjust(width) for cell, width in zip(row[1:-1], widths[1:-1], strict=True)]
        print("  ".join([row[0].ljust(widths[0]), *middle, row[-1]]).rstrip())


def read(folder: Path) -> dict[Key, dict[str, Any]]:
    """The sections of the page that is there.

    Raises:
        SystemExit: the folder cannot be one, or what it holds is no page of this script.
    """
    path = folder / "peers.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sections = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        kept = {key(one): one for one in sections}
        _ = [text(one) for one in sections]
    except OSError as error:
        raise SystemExit(f"peers: {error.filename}: {error.strerror}; give -o a folder") from error
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise SystemExit(f"peers: {path} is broken; move it away, or give -o another folder") from error
    return kept


def write(section: dict[str, Any], folder: Path) -> None:
    """Put a section into `peers.json`, in the place of the one of the same base, task, table and processor if there
    is one, and write the page of all of them.

    Raises:
        SystemExit: the section that is there has ways that this one has not.
    """
    kept = read(folder)
    old = kept.get(key(section), {"rows": []})
    lost = [row["told"] for row in old["rows"] if row["way"] not in {own["way"] for own in section["rows"]}]
    if lost:
        raise SystemExit(
            f"peers: not written: the section in {folder} has {', '.join(lost)} besides; run all ways, or give -o "
            "another folder"
        )
    kept[key(section)] = section
    sections = [kept[name] for name in sorted(kept)]
    for name, content in (
        ("peers.json", json.dumps(sections, indent=1) + "\n"),
        ("peers.md", "\n".join([HEAD, *map(text, sections)])),
    ):
        atomic_write_text(folder / name, content)


def key(section: dict[str, Any]) -> Key:
    return section["base_told"], section["task_told"], section["table"], processor_of(section)


def processor_of(section: dict[str, Any]) -> str:
    """The name of the processor, without how many there are."""
    return str(section["machine"]).split(", ")[0]


def unsure(section: dict[str, Any]) -> str:
    """How much chance is in the accuracies: two standard errors of the best."""
    found = [row["accuracy"] for row in section["rows"] if "accuracy" in row]
    count = int(section["settings"]["test rows"])
    if not found:
        return ""
    half = 2 * math.sqrt(max(max(found) * (1 - max(found)), 1 / count) / count)
    return f"An accuracy of {count} rows is known to ±{100 * half:.0f} points."


def text(section: dict[str, Any]) -> str:
    """One section of the page."""
    versions = ", ".join(f"{name} {version}" for name, version in section["versions"].items())
    settings = ", ".join(f"{name} {value}" for name, value in section["settings"].items())
    what = "one thing changed at a time" if section["table"] == "ablation" else "the ways"
    lines = [
        f"## {section['base_told']}, {section['task_told']}: {what}, on {processor_of(section)}",
        "",
        f"`{section['command']}`",
        "",
        f"{section['machine']}; {settings}. {versions}. {unsure(section)}",
        "",
        f"| {' | '.join(TITLES)} |",
        "|---|" + "---:|" * (len(TITLES) - 2) + "---|",
        *(f"| {' | '.join(row)} |" for row in rows_of(section)),
        "",
    ]
    ranges = [
        f"{row['told']} {min(row['rounds']):.1f}–{max(row['rounds']):.1f}"
        for row in section["rows"]
        if len(row.get("rounds", ())) > 1
    ]
    scores = [
        f"{row['told']} {', '.join(f'{one:.1%}' for one in row['accuracies'])}"
        for row in section["rows"]
        if len(row.get("accuracies", ())) > 1
    ]
    if ranges:
        lines += [f"Range of examples/s: {'; '.join(ranges)}.", ""]
    if scores:
        lines += [f"Accuracy of each seed: {'; '.join(scores)}.", ""]
    return "\n".join(lines)
