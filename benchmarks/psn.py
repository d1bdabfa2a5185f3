# SPDX-License-Identifier: Apache-2.0
"""CPU time and memory of PSN, up to the whole cortex.

    python benchmarks/psn.py speed [--units 2000 5000] [--conditions 1000] [--trials 3] [--cases "cv unit"]
    python benchmarks/psn.py cortex [--units 91282] [--jobs 2] [--mode cv|auto|standard|...|sample-space]

Each measurement runs in a process of its own with one thread for the linear algebra; "beyond data" is peak
memory less what was in use once the data were there, also in matrices of units x units in double precision.
Stages are the functions that take most CPU time, each with what it calls.

When the published packages can be imported, ratios to them are measured on the same data.  Otherwise the
published preset is "composed": the operations that it consists of at this size (102 Cholesky factors with
their triangular solves, covariance sums without BLAS, eigendecompositions, products) are timed one by one, in
the same run, and added up; its bookkeeping and diagnostics count nothing.
"""

from __future__ import annotations

import argparse
import cProfile
import importlib.util
import json
import os
import pstats
import resource
import subprocess
import sys
import time
from pathlib import Path

# This script has the name of the published package, which its own folder must not hide.
sys.path[:] = [path for path in sys.path if Path(path).resolve() != Path(__file__).resolve().parent]

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import numpy as np  # noqa: E402

STAGES = {
    "usable_data": "check",
    "_noise_level": "level N",
    "_data_level": "level D",
    "gram": "grams",
    "eigh": "eigh",
    "biconvex": "alternation",
    "choose_cut": "cross-validation",
    "choose_blend": "cross-validation",
    "ordered_basis": "axes",
    "kept_variance": "account",
}
LEVELS = 51
CASES = ("gsn", "standard", "wiener", "cv global", "cv unit", "auto")


def simulate(n_units: int, n_conditions: int, n_trials: int, seed: int = 0) -> np.ndarray:
    """Responses with 60 axes of signal, 40 of shared noise and noise of each unit; float32."""
    rng = np.random.default_rng(seed)
    signal_axes = rng.standard_normal((n_units, 60)).astype(np.float32)
    noise_axes = rng.standard_normal((n_units, 40)).astype(np.float32)
    strength = 1 / np.sqrt(np.arange(1, 61, dtype=np.float32))
    signal = (signal_axes * strength) @ rng.standard_normal((60, n_conditions), dtype=np.float32)
    out = np.empty((n_units, n_conditions, n_trials), np.float32)
    for trial in range(n_trials):
        out[:, :, trial] = signal
        out[:, :, trial] += noise_axes @ rng.standard_normal((40, n_conditions), dtype=np.float32)
        for start in range(0, n_units, 5000):
            rows = out[start : start + 5000, :, trial]
            rows += 3 * rng.standard_normal(rows.shape, dtype=np.float32)
    return out


def peak_gb() -> float:
    """Peak resident memory of this process in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def run_case(name: str, data: np.ndarray) -> None:
    """Do it once."""
    from conform_app.psn import fit_gsn, fit_psn

    if name == "gsn":
        fit_gsn(data)
    elif name.startswith("cv"):
        fit_psn(data, threshold=name.split()[1])
    elif name == "published":
        from psn import psn

        psn(
            data.astype(np.float64),
            "standard",
            {"skip_split_half": True, "wantfig": False, "wantverbose": False},
        )
    else:
        fit_psn(data, mode=name)


def measure(name: str, n_units: int, n_conditions: int, n_trials: int) -> None:
    """Print CPU seconds and memory of one case."""
    data = simulate(n_units, n_conditions, n_trials).astype(np.float64)
    run_case(name, data[:50, :60])  # imports and first calls are no part of it
    profile = cProfile.Profile(time.process_time)
    before, start = peak_gb(), time.process_time()
    profile.runcall(run_case, name, data)
    stages: dict[str, float] = {}
    cpu, memory = time.process_time() - start, peak_gb() - before
    for (file, _, function), (*_, spent, _) in pstats.Stats(profile).stats.items():
        if function in STAGES and f"{os.sep}psn{os.sep}" in file:
            stages[STAGES[function]] = stages.get(STAGES[function], 0.0) + spent
    print(json.dumps([cpu, memory, stages]))


def composed(n_units: int, n_conditions: int, n_trials: int) -> dict[str, float]:
    """CPU seconds of the operations that the published preset "standard" consists of, one by one."""
    from scipy.linalg import solve_triangular

    n, v = n_units, round(n_conditions / 5)
    rng = np.random.default_rng(0)
    factor = rng.standard_normal((n, n_conditions))
    cov = factor @ factor.T / n_conditions + np.diag(rng.random(n))
    seconds = {}

    def timed(name: str, times: float, work) -> None:
        start = time.process_time()
        work()
        seconds[name] = times * (time.process_time() - start)

    lower = np.linalg.cholesky(cov)
    timed(f"{2 * LEVELS} Cholesky factors", 2 * LEVELS, lambda: np.linalg.cholesky(cov))
    points = rng.standard_normal((n, v))
    timed(
        "their triangular solves",
        LEVELS * (1 + n_trials),  # averages, and single trials, of the conditions held out
        lambda: solve_triangular(lower, points, lower=True, check_finite=False),
    )
    few = min(n_conditions, 20)
    part = rng.standard_normal((n, few, n_trials))
    timed(  # over the training conditions, and over all
        "covariance sums without BLAS",
        (n_conditions - v + n_conditions) / few,
        lambda: np.einsum("ict,jct->ij", part, part),
    )
    timed("3 eigendecompositions", 3, lambda: np.linalg.eigh(cov))  # two rounds of clipping, and the axes
    timed("5 products n x n", 5, lambda: cov @ lower)  # to rebuild, and variances along axes
    return seconds


def speed(args: argparse.Namespace) -> None:
    """Measure every case in a process of its own."""
    published = importlib.util.find_spec("psn") is not None
    for n_units in args.units:
        print(f"{n_units} units x {args.conditions} conditions x {args.trials} trials")
        shape = [str(n_units), str(args.conditions), str(args.trials)]
        base = None
        if not published:
            parts = json.loads(in_process("composed", *shape))
            base = sum(parts.values())
            print(f"  composed   {base:8.1f} CPU s   {stages_of(parts)}", flush=True)
        for name in (*(("published",) if published else ()), *args.cases):
            cpu, memory, stages = json.loads(in_process("one", name, *shape))
            base = cpu if name == "published" else base
            print(
                f"  {name:<10} {cpu:8.1f} CPU s   {memory:6.2f} GB beyond data"
                f" ({memory * 1e9 / 8 / n_units**2:.1f} n x n)   {base / cpu:.1f} x faster than"
                f" {'published' if published else 'composed'}   {stages_of(stages)}",
                flush=True,
            )


def in_process(*arguments: str) -> str:
    """What this script prints in a process of its own."""
    command = [sys.executable, __file__, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def stages_of(seconds: dict[str, float]) -> str:
    """The longest first."""
    ordered = sorted(seconds.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {value:.1f}" for name, value in ordered)


def cortex(args: argparse.Namespace) -> None:
    """A whole cortex in parcels, or in the span of the trials."""
    from conform_app.psn import fit_parcels, fit_sample_space, fit_wide
    from conform_app.psn.parcels import bisect

    data = simulate(args.units, args.conditions, args.trials)
    print(f"data: {data.nbytes / 1e9:.2f} GB", flush=True)
    start, cpu = time.monotonic(), time.process_time()
    if args.mode == "sample-space":
        fit_sample_space(data)
        what = "span of the trials (Wiener, no shrinkage)"
    elif args.mode == "wide":
        what = fit_wide(data).estimator
    else:
        place = np.random.default_rng(0).random((args.units, 3))
        parcel = bisect(place)
        fit_parcels(data, parcel, n_jobs=args.jobs, mode=args.mode)
        what = f"{parcel.max() + 1} parcels, {args.jobs} at once, mode {args.mode}"
    print(
        f"{args.units} x {args.conditions} x {args.trials}, {what}: {time.monotonic() - start:.0f} s,"
        f" {time.process_time() - cpu:.0f} CPU s, peak {peak_gb():.2f} GB in all"
    )


def main() -> None:
    """Read the command line."""
    if sys.argv[1:2] == ["one"]:
        measure(sys.argv[2], *map(int, sys.argv[3:6]))
        return
    if sys.argv[1:2] == ["composed"]:
        print(json.dumps(composed(*map(int, sys.argv[2:5]))))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("speed", "cortex"))
    parser.add_argument("--units", type=int, nargs="+")
    parser.add_argument("--conditions", type=int, default=1000)
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--mode", default="cv")
    parser.add_argument("--cases", nargs="+", default=CASES, choices=CASES)
    args = parser.parse_args()
    if args.what == "speed":
        args.units = args.units or [2000]
        speed(args)
    else:
        args.units = (args.units or [91282])[0]
        cortex(args)


if __name__ == "__main__":
    main()
