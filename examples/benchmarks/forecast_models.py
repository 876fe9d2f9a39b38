"""Would another model foretell better from the same signs? Each is fitted to the other streams alone.

    python examples/benchmarks/forecast_models.py docs/benchmarks/forecast.json -o docs/benchmarks

It reads what `forecast.py` measured, trains no adapter and takes a minute. It also says what rank correlation a perfect
forecast would reach, because the drops themselves are measured on few rows.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from forecast_fit import group_of, room_of
from machine import machine, versions
from scipy.stats import spearmanr
from sklearn.ensemble import ExtraTreesRegressor, GradientBoostingRegressor, RandomForestRegressor
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, WhiteKernel
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVR

from adapterhub_cl.registry.files import atomic_write_text

Model = Callable[[], Any]
MODELS: dict[str, Model] = {
    "ridge regression, all signs": lambda: make_pipeline(StandardScaler(), Ridge(10.0)),
    "support vectors": lambda: make_pipeline(StandardScaler(), SVR(C=0.1, epsilon=0.02, gamma=0.03)),
    "Gaussian process": lambda: make_pipeline(
        StandardScaler(), GaussianProcessRegressor(1.0 * RBF([3.0] * 13) + WhiteKernel(0.1), normalize_y=True)
    ),
    "random forest": lambda: RandomForestRegressor(300, min_samples_leaf=3, random_state=0),
    "extremely random trees": lambda: ExtraTreesRegressor(300, min_samples_leaf=2, random_state=0),
    "gradient boosting": lambda: GradientBoostingRegressor(
        n_estimators=80, max_depth=2, learning_rate=0.06, subsample=0.7, random_state=0
    ),
}


def signs(row: Mapping[str, Any]) -> list[float]:
    """The signs of a step, [13]."""
    seen = row["signs"]
    names = (
        "loss_rise",
        "likelihood_drop",
        "halved",
        "nearness",
        "overlap",
        "unlearned",
        "reviewed",
        "chance",
        "lost",
        "held_drop",
    )
    moved, path = max(0.0, seen["divergence"]) ** 0.5, float(np.log10(max(seen["path"], 1e-6)))
    return [room_of(row), moved, path, *(seen[name] for name in names)]


def left_out(make: Model, rows: Sequence[Mapping[str, Any]], groups: Sequence[str]) -> np.ndarray:
    """The forecast of each step by a model that saw no stream of its group, [n_steps]."""
    seen, drops = np.array([signs(row) for row in rows]), np.array([row["drop"] for row in rows])
    found = np.zeros(len(rows))
    for group in sorted(set(groups)):
        mine = np.array([one == group for one in groups])
        found[mine] = make().fit(seen[~mine], drops[~mine]).predict(seen[mine])
    return np.minimum(found, [row["before"] for row in rows])


def ceiling(rows: Sequence[Mapping[str, Any]]) -> float:
    """The rank correlation of true drops with what would be measured of them, by simulation.

    The spread of the true drops is the measured one less the noise. The noise of a drop on n rows is that of a paired
    difference in which |drop| + 0.12 of the rows change.
    """
    drops, n = np.array([row["drop"] for row in rows]), np.array([row["n"] for row in rows])
    noise = np.sqrt(np.clip(np.abs(drops) + 0.12, 0.05, 1.0) / n)
    share = max(0.0, 1 - float((noise**2).mean() / drops.var()))
    true, draw = drops.mean() + (drops - drops.mean()) * share**0.5, np.random.default_rng(0)
    return float(np.mean([spearmanr(true, true + draw.normal(0.0, noise)).statistic for _ in range(200)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measured", help="forecast.json")
    parser.add_argument("-o", "--output", required=True, help="folder for forecast_models.md and forecast_models.json")
    arguments = parser.parse_args()
    rows = json.loads(Path(arguments.measured).read_text(encoding="utf-8"))["steps"]
    groups = [group_of(row) for row in rows]
    drops = [row["drop"] for row in rows]
    found = {"the one in use": np.array([row["foretold"] for row in rows])}
    found |= {name: left_out(make, rows, groups) for name, make in MODELS.items()}
    figures = {
        name: (float(spearmanr(told, drops).statistic), float(np.abs(told - drops).mean()))
        for name, told in found.items()
    }
    most = ceiling(rows)
    lines = [
        "# Other models for the forecast",
        "",
        f"{machine()}. {versions('scikit-learn', 'scipy')}.",
        "",
        f"The {len(rows)} steps of [the forecasts](forecast.md), foretold by other models from all signs. "
        "The one in use looks at three of them. Each is fitted to the other streams alone, and nothing of it was "
        "searched. A forecast that knew the true drops would have a rank correlation of about "
        f"{most:.2f} with what is measured of them on few rows (a simulation).",
        "",
        "| model | rank correlation | mean error |",
        "|---|---|---|",
        *(f"| {name} | {rho:.2f} | {error:.3f} |" for name, (rho, error) in figures.items()),
        "",
        "<!-- not run: rewrites this page -->",
        "```console",
        "$ python examples/benchmarks/forecast_models.py docs/benchmarks/forecast.json -o docs/benchmarks",
        "```",
    ]
    out = Path(arguments.output)
    atomic_write_text(out / "forecast_models.md", "\n".join(lines) + "\n")
    atomic_write_text(out / "forecast_models.json", json.dumps({"ceiling": most, "figures": figures}) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
