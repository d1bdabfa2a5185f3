# SPDX-License-Identifier: Apache-2.0
"""CPU time and memory of PSN, up to the whole cortex.

    python benchmarks/psn.py speed [--units 2000 5000] [--conditions 1000] [--trials 3]
    python benchmarks/psn.py cortex [--units 91282] [--jobs 2] [--mode cv|auto|standard|...|sample-space]

Each measurement runs in a process of its own with one thread for the linear algebra; "beyond data" is peak
memory less what was in use once the data were there.  When the published packages can be imported, ratios to
them are measured on the same data; otherwise they are taken from what was measured on another machine
(81 to 96 CPU seconds for 2,000 units, 1,000 conditions, 3 trials), which makes them a rough guide only.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import resource
import subprocess
import sys
import time

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import numpy as np  # noqa: E402

QUOTED = {2000: (81.0, 96.0)}
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
    before, start = peak_gb(), time.process_time()
    run_case(name, data)
    print(f"{time.process_time() - start} {peak_gb() - before}")


def speed(args: argparse.Namespace) -> None:
    """Measure every case in a process of its own."""
    published = importlib.util.find_spec("psn") is not None
    for n_units in args.units:
        print(f"{n_units} units x {args.conditions} conditions x {args.trials} trials")
        shape = [str(n_units), str(args.conditions), str(args.trials)]
        base = None
        for name in (*(("published",) if published else ()), *CASES):
            command = [sys.executable, __file__, "one", name, *shape]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            cpu, memory = map(float, done.stdout.split())
            base = cpu if name == "published" else base
            line = f"  {name:<10} {cpu:8.1f} CPU s   {memory:6.2f} GB beyond data"
            line += f" ({memory * 1e9 / 8 / n_units**2:.1f} n x n)"
            if base:
                line += f"   {base / cpu:.1f} x faster than published"
            elif n_units in QUOTED and args.conditions == 1000:
                low, high = (q / cpu for q in QUOTED[n_units])
                line += f"   {low:.0f} to {high:.0f} x (quoted, another machine)"
            print(line, flush=True)


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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("speed", "cortex"))
    parser.add_argument("--units", type=int, nargs="+")
    parser.add_argument("--conditions", type=int, default=1000)
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--mode", default="cv")
    args = parser.parse_args()
    if args.what == "speed":
        args.units = args.units or [2000]
        speed(args)
    else:
        args.units = (args.units or [91282])[0]
        cortex(args)


if __name__ == "__main__":
    main()
