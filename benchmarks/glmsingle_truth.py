# SPDX-License-Identifier: Apache-2.0
"""Are known betas recovered?  Types A to D, exact and rounded onsets, three levels of noise.

Simulated voxels have an HRF of the library each, trial-by-trial betas, drifts, white noise and noise shared
by all voxels (see `simulated`); onsets lie up to half a TR off the volumes.  Printed, as the tables of
docs/glmsingle.md: root mean squared error of the betas of responsive voxels (percent signal change), their
correlation with the truth over trials (median over voxels), the share of true betas within 1.96 standard
errors, and how far the chosen HRF is from the true one.

    python benchmarks/glmsingle_truth.py [--voxels 3000]
"""

from __future__ import annotations

import argparse

import numpy as np
from glmsingle import data_of
from simulated import Simulation, Size

from conform_app.glmsingle import fit_glmsingle

NOISE = {"low": 0.5, "middle": 1.0, "high": 2.0}


def scores(betas, errors, truth: np.ndarray) -> tuple[float, float, float]:
    """RMS error, median correlation over trials, percent within 1.96 standard errors."""
    miss = betas - truth
    a, b = betas - betas.mean(axis=1, keepdims=True), truth - truth.mean(axis=1, keepdims=True)
    r = (a * b).sum(axis=1) / np.sqrt(np.square(a).sum(axis=1) * np.square(b).sum(axis=1))
    return (
        float(np.sqrt(np.mean(miss**2))),
        float(np.median(r)),
        float(100 * np.mean(np.abs(miss) < 1.96 * errors)),
    )


def main() -> None:
    """Simulate, fit, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--voxels", type=int, default=3000)
    args = parser.parse_args()
    size = Size(voxels=args.voxels, jitter=1.0)
    print(
        f"{size.voxels} voxels, {size.runs} x {size.volumes} volumes, {size.conditions} conditions,", end=" "
    )
    print(f"{size.trials} trials, TR {size.tr:g} s\n")
    print("| noise | onsets | type | RMS error, % | correlation | within 1.96 SE, % |")
    print("|---|---|---|---|---|---|")
    hrfs = []
    for label, noise in NOISE.items():
        simulation = Simulation(size, noise=noise, shared=0.7 * noise)
        data = data_of(simulation)
        blocks = range(0, size.voxels, 2000)
        made = [simulation.voxels(lo, min(lo + 2000, size.voxels)) for lo in blocks]
        truth, true_hrf = np.concatenate([m[1] for m in made]), np.concatenate([m[2] for m in made])
        task = np.arange(size.voxels) % 3 == 0
        for onsets, design, stimdur in (
            ("exact", simulation.design, None),
            ("rounded", simulation.arrays, size.stimdur),
        ):
            result = fit_glmsingle(data, design, stimdur, size.tr)
            for letter in "abcd":
                one = getattr(result, f"type_{letter}")
                found = scores(one.betas[task].astype(float), one.standard_error[task], truth[task])
                numbers = f"{found[0]:.3f} | {found[1]:.3f} | {found[2]:.0f}"
                print(f"| {label} | {onsets} | {letter.upper()} | {numbers} |")
            off = np.abs(result.type_b.hrf_index[task] - true_hrf[task])
            hrfs.append(
                f"| {label} | {onsets} | {100 * np.mean(off == 0):.0f} | {100 * np.mean(off <= 1):.0f} |"
            )
    print("\n| noise | onsets | true HRF chosen, % | or its neighbour, % |\n|---|---|---|---|")
    print("\n".join(hrfs))


if __name__ == "__main__":
    main()
