# SPDX-License-Identifier: Apache-2.0
"""Does each stage help on measured data?  Which of eight categories was seen, from single-trial betas.

The Haxby slice has twelve runs, each with one block of each of eight categories.  One run at a time is left
out: betas are z-scored per voxel with the mean and sd of the training runs, the mean pattern of each
category is made from the training runs, and each left-out trial goes to the category whose mean pattern it
correlates with best.  Chance is 12.5 %.  PSN is fitted on the training runs alone and applied to class
means and left-out trials.  (GLMsingle itself sees all runs, as in published uses; it never sees which
trials are left out.)

    python benchmarks/haxby_decoding.py [--data DIR] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from conform_app.bids.inputs import find_fits
from conform_app.bids.plan import load_runs
from conform_app.bids.planning import make_plan
from conform_app.glmsingle import RunTrials, fit_glmsingle
from conform_app.psn import fit_psn
from conform_app.reliability import arrange_repeats
from conform_app.settings import EventSettings, ModelSettings

DATA = Path(__file__).parents[1] / "tests" / "data" / "haxby2001-1slice-bids"
PSN_MODES = ("cv", "auto", "standard", "conservative", "aggressive", "wiener")


def z_score_by_training(betas: np.ndarray, training: np.ndarray) -> np.ndarray:
    """Standardise each voxel with the mean and sd of the training trials; constant voxels become 0."""
    mean = betas[:, training].mean(axis=1, keepdims=True)
    sd = betas[:, training].std(axis=1, ddof=1, keepdims=True)
    return (betas - mean) / np.where(sd > 0, sd, np.inf)


def nearest_mean(patterns: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Return, for each column of patterns, the column of means that it correlates with best."""
    return np.corrcoef(patterns.T, means.T)[: patterns.shape[1], patterns.shape[1] :].argmax(axis=1)


def accuracy(betas: np.ndarray, condition: np.ndarray, run: np.ndarray, psn: str | None = None) -> float:
    """Return the share of left-out trials that are classified right, in percent.

    Parameters
    ----------
    betas : ndarray of shape (n_voxels, n_trials)
    condition, run : ndarray of shape (n_trials,), int
    psn : str, optional
        Mode of PSN, fitted on the training runs of each fold; none: raw betas.
    """
    betas = betas[np.isfinite(betas).all(axis=1)].astype(np.float64)
    right = 0
    for fold in np.unique(run):
        training, test = run != fold, run == fold
        z = z_score_by_training(betas, training)
        means = np.stack(
            [z[:, training & (condition == c)].mean(axis=1) for c in np.unique(condition)], axis=1
        )
        patterns = z[:, test]
        if psn is not None:
            denoiser = fit_psn(arrange_repeats(z[:, training], condition[training]), mode=psn)
            means, patterns = denoiser.denoised, denoiser.apply(patterns)
        right += int((nearest_mean(patterns, means) == condition[test]).sum())
    return 100.0 * right / len(run)


def main() -> None:
    """Fit the slice and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DATA, help="BIDS dataset")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    found = find_fits(bids_dir=args.data)
    plan = make_plan(found[0], EventSettings(), ModelSettings(), roots=found.datasets)
    trials = [RunTrials(*columns) for columns in plan.trials_by_run()]
    result = fit_glmsingle(load_runs(plan, ("none",)).bold, trials, None, plan.tr)
    condition, run = plan.condition, plan.run_of_trial
    table = {}
    for name, part in zip("ABCD", (result.type_a, result.type_b, result.type_c, result.type_d), strict=True):
        row = {"none": accuracy(part.betas, condition, run)}
        row |= {mode: accuracy(part.betas, condition, run, mode) for mode in PSN_MODES}
        table[name] = row
    print(f"{plan.n_voxels} voxels, {len(plan.runs)} runs, {plan.n_trials} trials; chance 12.5 %")
    print("type  " + "".join(f"{name:>14}" for name in ("no PSN", *PSN_MODES)))
    for name, row in table.items():
        print(f"{name:<6}" + "".join(f"{value:>12.1f} %" for value in row.values()))
    if args.json:
        args.json.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
