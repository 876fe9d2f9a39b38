"""How many inputs of new tasks `drift` finds, and how many of known tasks it takes for new.

    python examples/benchmarks/drift.py run --base FOLDER --work /tmp/drift
    python examples/benchmarks/drift.py table --work /tmp/drift -o docs/benchmarks

Two of the fifteen tasks of `../shared/data/cl15` are left out; batches hold inputs of known tasks and of the two. Each
known task has 200 samples, as a hub keeps them; the inputs are of the test splits. `run` reads the texts once and keeps
their hidden states; `table` writes what was measured for every base as Markdown and JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from machine import installed, machine

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "cl15"
SAMPLES, INPUTS, BATCHES = 200, 100, 12
# known tasks, inputs of known tasks, inputs of each new task
SETTINGS = ((13, 100, 30), (4, 40, 20), (4, 40, 40), (4, 80, 10), (13, 100, 0))


def texts_of(form: str) -> dict[tuple[str, str], list[str]]:
    """(task, split) → texts, the same ones each time.

    Args:
        form: `bare`, or `whole` with the instruction before the input.
    """
    found = {}
    for folder in sorted(path for path in DATA.iterdir() if path.is_dir()):
        for split, count in (("train", SAMPLES), ("test", INPUTS)):
            rows = [json.loads(line) for line in (folder / f"{split}.jsonl").open(encoding="utf-8")]
            rows = random.Random(f"{folder.name} {split}").sample(rows, min(count, len(rows)))
            whole = form == "whole"
            found[folder.name, split] = [f"{r['instruction']}\n{r['input']}" if whole else r["input"] for r in rows]
    return found


def states_of(base: Any, texts: Mapping[tuple[str, str], list[str]], store: Path) -> dict[tuple[str, str], Any]:
    """(task, split) → pooled hidden states `[n, d]`, read once."""
    from safetensors.torch import load_file, save_file

    from adapterhub_cl.bases.hidden import pooled, shallow_layer

    if not store.exists():
        found = {
            f"{task}.{split}": pooled(base, rows, shallow_layer(base)).contiguous()
            for (task, split), rows in texts.items()
        }
        save_file(found, store)
    return {tuple(name.split(".")): rows for name, rows in load_file(store).items()}  # type: ignore[misc]


def batches(states: Mapping[tuple[str, str], Any], texts: Mapping[tuple[str, str], list[str]]) -> list[dict[str, Any]]:
    """What was found in every batch of every setting."""
    import torch

    from adapterhub_cl.deciding.calibrated import Calibrated, SampleRows
    from adapterhub_cl.deciding.drift import analyse
    from adapterhub_cl.routing import build

    tasks = sorted({task for task, _ in states})
    pairs = list(itertools.combinations(tasks, 2))
    measured = []
    for known_count, known_inputs, new_inputs in SETTINGS:
        for number in range(BATCHES):
            draw = random.Random(f"{known_count} {known_inputs} {new_inputs} {number}")
            new = draw.choice(pairs)
            known = draw.sample([task for task in tasks if task not in new], known_count)
            router = Calibrated(build("analytic", {}))
            for task in known:
                router.add_task(task, states[task, "train"])
            asked = [(t, k) for t in draw.sample(known, min(4, known_count)) for k in range(len(texts[t, "test"]))]
            asked = draw.sample(asked, min(known_inputs, len(asked)))
            novel = [(t, k) for t in new for k in draw.sample(range(len(texts[t, "test"])), new_inputs)]
            rows = [*asked, *novel]
            hidden = torch.stack([states[t, "test"][k] for t, k in rows])
            routed = router.route(SampleRows(hidden))
            samples = {task: states[task, "train"] for task in known}
            found = analyse([texts[t, "test"][k] for t, k in rows], hidden, routed, 0.005, samples)
            flagged = {k for cluster in found.clusters for k in cluster.members}
            alone = {k for k, one in enumerate(routed) if one.out_of_distribution}
            count = len(asked)
            measured.append(
                {
                    "setting": [known_count, known_inputs, new_inputs],
                    "found": sum(k >= count for k in flagged) / len(novel) if novel else None,
                    "alarms": sum(k < count for k in flagged) / count,
                    "found_by_router": sum(k >= count for k in alone) / len(novel) if novel else None,
                    "alarms_by_router": sum(k < count for k in alone) / count,
                    "told": found.more_than_expected,
                    "proposed": any(cluster.new_task for cluster in found.clusters),
                }
            )
    return measured


def run(base: str, work: Path, forms: list[str]) -> None:
    """Measure a base; what was read is kept in `work`."""
    from adapterhub_cl.bases.loading import inspect_base, load_base

    if not DATA.is_dir():
        sys.exit(f"no data at {DATA}: this benchmark reads ../shared/data, which is not part of the project")
    work.mkdir(parents=True, exist_ok=True)
    loaded = load_base(inspect_base(base, "none"))
    name = "-".join(Path(base).resolve().parts[-2:])
    for form in forms:
        texts = texts_of(form)
        states = states_of(loaded, texts, work / f"{name}.{form}.safetensors")
        rows = batches(states, texts)
        about = {
            "base": name,
            "parameters": loaded.info.parameters,
            "form": form,
            "machine": machine(),
            "packages": installed("torch", "transformers", "adapterhub-cl"),
        }
        (work / f"{name}.{form}.json").write_text(json.dumps({**about, "batches": rows}, indent=1), encoding="utf-8")
        print(f"{name}, {form}: done", flush=True)


def table(work: Path, out: Path) -> None:
    """Write what was measured."""
    measured = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(work.glob("*.json"))]
    if not measured:
        sys.exit(f"nothing measured in {work}: run it first")
    lines = [
        "# Drift",
        "",
        "How many inputs of new tasks `drift` finds, and how many of known tasks it takes for new, by the router "
        "alone and with the inputs' neighbours. Two of fifteen tasks are left out; "
        f"{BATCHES} batches a row, each with other tasks. Written by `examples/benchmarks/drift.py`.",
        "",
    ]
    for one in measured:
        packages = ", ".join(f"{name} {version}" for name, version in one["packages"].items())
        kind = "texts with their instruction" if one["form"] == "whole" else "bare texts"
        lines += [
            f"## {one['base']}, {kind}",
            "",
            f"{one['parameters'] / 1e6:.0f} million parameters. {one['machine']}. {packages}.",
            "",
            "| known tasks | inputs of theirs | inputs of each new task | found | false alarms "
            "| found by the router alone | its false alarms | batches told | a new task proposed |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for setting in SETTINGS:
            rows = [row for row in one["batches"] if tuple(row["setting"]) == setting]

            def share(key: str, rows: list[dict[str, Any]] = rows) -> str:
                values = [float(row[key]) for row in rows if row[key] is not None]
                return f"{mean(values):.1%}" if values else "–"

            cells = [share(k) for k in ("found", "alarms", "found_by_router", "alarms_by_router", "told", "proposed")]
            lines.append(f"| {' | '.join([*map(str, setting), *cells])} |")
        lines.append("")
    out.mkdir(parents=True, exist_ok=True)
    (out / "drift.md").write_text("\n".join(lines), encoding="utf-8")
    (out / "drift.json").write_text(json.dumps(measured) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True, dest="verb")
    measuring = verbs.add_parser("run", help="measure a base")
    measuring.add_argument("--base", required=True, help="the folder of a model, or tiny")
    measuring.add_argument("--forms", nargs="+", choices=("bare", "whole"), default=["bare", "whole"])
    writing = verbs.add_parser("table", help="write the page")
    writing.add_argument("-o", "--out", type=Path, default=Path("docs/benchmarks"))
    for one in (measuring, writing):
        one.add_argument("--work", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.verb == "run":
        run(arguments.base, arguments.work, arguments.forms)
    else:
        table(arguments.work, arguments.out)


if __name__ == "__main__":
    main()
