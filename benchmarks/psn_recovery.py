# SPDX-License-Identifier: Apache-2.0
"""How close does each way of denoising come to a known signal?

Signal and noise have power-law spectra over axes of which the leading ten partly coincide.  Error: sum of
squared (estimate - truth) over sum of squared truth, both centred per unit; r: median over units of the
correlation with the truth over conditions.  Means over seeds.

    python benchmarks/psn_recovery.py [--quick | --wide] [--seeds 2] [--jobs 1] [--markdown FILE]

--wide: more units than trials, where the Wiener filter of all units at once works in the span of the trials;
half of the units have no signal there, and units differ in noise.
"""

from __future__ import annotations

import argparse
import itertools
import os
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import numpy as np  # noqa: E402

from conform_app.psn import fit_gsn, fit_psn, fit_wide  # noqa: E402

TRUNCATING = ("standard", "conservative", "aggressive", "compare")
METHODS = ("average", "PCA 95 %", *TRUNCATING, "wiener", "cv population", "cv unit", "auto")
ROWS = list(itertools.product((50, 100, 200, 400), (100, 400), (2, 3, 5), (1, 3, 10)))
WIDE = [(400, 100, 2, 3), (400, 100, 3, 10), (800, 50, 3, 1), (800, 100, 3, 3), (800, 30, 5, 3)]
WIDE += [(800, 20, 10, 10), (1500, 60, 3, 3)]
QUICK = [(50, 200, 5, 3), (100, 200, 3, 1), (100, 200, 3, 3), (100, 200, 3, 10), (100, 100, 2, 3)]


def simulate(n_units: int, n_conditions: int, n_trials: int, noise: float, seed: int) -> tuple:
    """True signal (n_units, n_conditions) and data (n_units, n_conditions, n_trials)."""
    rng = np.random.default_rng([seed, n_units, n_conditions, n_trials])
    signal_axes = np.linalg.qr(rng.standard_normal((n_units, n_units)))[0]
    noise_axes = np.linalg.qr(rng.standard_normal((n_units, n_units)))[0]
    noise_axes[:, :10] = 0.5 * signal_axes[:, :10] + np.sqrt(0.75) * noise_axes[:, :10]
    noise_axes = np.linalg.qr(noise_axes)[0]
    rank = np.arange(1, n_units + 1)
    signal = (signal_axes / rank) @ rng.standard_normal((n_units, n_conditions))
    strength = noise_axes * np.sqrt(noise * rank**-1.25)
    trials = np.einsum("ij,jct->ict", strength, rng.standard_normal((n_units, n_conditions, n_trials)))
    return signal, signal[:, :, None] + trials


def score(estimate: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Relative squared error and median correlation."""
    a, b = (x - x.mean(axis=1, keepdims=True) for x in (estimate, truth))
    with np.errstate(invalid="ignore", divide="ignore"):
        r = (a * b).sum(axis=1) / np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    return float(((a - b) ** 2).sum() / (b**2).sum()), float(np.median(np.nan_to_num(r)))


def pca(average: np.ndarray, share: float = 0.95) -> np.ndarray:
    """Averages rebuilt from the leading principal components that hold a share of their variance."""
    mean = average.mean(axis=1, keepdims=True)
    u, s, _ = np.linalg.svd(average - mean, full_matrices=False)
    k = int(np.searchsorted(np.cumsum(s**2) / (s**2).sum(), share)) + 1
    return u[:, :k] @ (u[:, :k].T @ (average - mean)) + mean


def one(task: tuple) -> np.ndarray:
    """Scores of all methods for one row and seed, (n_methods, 2)."""
    (n_units, n_conditions, n_trials, noise), seed = task
    warnings.simplefilter("ignore")
    truth, data = simulate(n_units, n_conditions, n_trials, noise, seed)
    average, gsn = data.mean(axis=2), fit_gsn(data)
    options = [{"mode": name} for name in (*TRUNCATING, "wiener")]
    options += [{"threshold": "global"}, {"threshold": "unit"}, {"mode": "auto"}]
    estimates = [average, pca(average), *(fit_psn(data, gsn=gsn, **o).denoised for o in options)]
    return np.array([score(estimate, truth) for estimate in estimates])


def one_wide(task: tuple) -> np.ndarray:
    """Average and both Wiener filters: error, r of units with signal, noise left in the others, (3, 3)."""
    (n_units, n_conditions, n_trials, noise), seed = task
    warnings.simplefilter("ignore")
    truth, data = simulate(n_units, n_conditions, n_trials, noise, seed)
    size = np.exp(0.5 * np.random.default_rng(seed).standard_normal(n_units))[:, None, None]
    silent = np.arange(n_units) % 2 == 0
    noise_part = (data - truth[:, :, None]) * size
    truth[silent] = 0.0
    data = truth[:, :, None] + noise_part
    average, span = data.mean(axis=2), fit_wide(data)
    estimates = (average, fit_psn(data, mode="wiener").denoised, span.denoised)
    left = [((e - e.mean(axis=1, keepdims=True))[silent] ** 2).sum() for e in estimates]
    rows = zip(estimates, left, strict=True)
    return np.array(
        [(score(e, truth)[0], score(e[~silent], truth[~silent])[1], part / left[0]) for e, part in rows]
    )


def wide(seeds: int, jobs: int) -> list[str]:
    """The table of more units than trials."""
    names = ("average", "Wiener, n x n", "Wiener, span of the trials")
    lines = [f"| units x conditions x trials @ noise | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    with ProcessPoolExecutor(jobs) as pool:
        results = pool.map(one_wide, [(row, seed) for row in WIDE for seed in range(seeds)])
        for row in WIDE:
            table = np.mean([next(results) for _ in range(seeds)], axis=0)
            cells = " | ".join(f"{e:.3f} ({r:.2f}; {s:.2f})" for e, r, s in table)
            lines.append("| {}x{}x{} @{} | ".format(*row) + cells + " |")
    return lines


def main() -> None:
    """Print the table and how the defaults stand."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="five rows only")
    parser.add_argument("--wide", action="store_true", help="more units than trials")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--markdown", type=Path, help="also write the table here")
    args = parser.parse_args()
    if args.wide:
        print("\n".join(wide(args.seeds, args.jobs)))
        return
    rows = QUICK if args.quick else ROWS
    lines = [
        f"| units x conditions x trials @ noise | {' | '.join(METHODS)} |",
        "|---|" + "---|" * len(METHODS),
    ]
    print("\n".join(lines), flush=True)
    at = {name: i for i, name in enumerate(METHODS)}
    worst = {"default over truncating presets": [], "default over average": [], "auto over best": []}
    with ProcessPoolExecutor(args.jobs) as pool:
        results = pool.map(one, [(row, seed) for row in rows for seed in range(args.seeds)])
        for row in rows:
            table = np.mean([next(results) for _ in range(args.seeds)], axis=0)
            e = table[:, 0]
            line = (
                "| {}x{}x{} @{} | ".format(*row) + " | ".join(f"{a:.3f} ({r:.2f})" for a, r in table) + " |"
            )
            lines.append(line)
            print(line, flush=True)
            presets = [e[at[name]] for name in TRUNCATING]
            worst["default over truncating presets"].append(e[at["cv unit"]] / min(presets))
            worst["default over average"].append(e[at["cv unit"]] / e[0])
            worst["auto over best"].append(e[at["auto"]] / e[: at["auto"]].min())
    for name, ratios in worst.items():
        lines.append(f"\nError of {name}: at most {max(ratios):.3f}, median {np.median(ratios):.3f}.")
        print(lines[-1])
    if args.markdown:
        args.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
