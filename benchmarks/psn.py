# SPDX-License-Identifier: Apache-2.0
"""CPU time and memory of PSN, up to the whole cortex.

    python benchmarks/psn.py speed [--units 2000 5000] [--conditions 1000] [--trials 3] [--cases "cv unit"]
    python benchmarks/psn.py cortex [--units 91282] [--jobs 2] [--mode cv|auto|standard|...|sample-space]

Each measurement runs in a process of its own with one thread for the linear algebra, on the same data;
"beyond data" is peak memory less what was in use once the data were there, also in matrices of units x units
in double precision.  Stages are the functions that take most CPU time, each with what it calls.

"plain" is `psn_plain.py`: the steps of the published preset "standard" with skip_split_half, written by us
without shortcuts and held to the published results by a test.  It is not the published code, which is
measured as well ("published") where it can be imported.  "x less": CPU time and memory of these over ours.
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
HERE = Path(__file__).resolve().parent
sys.path[:] = [path for path in sys.path if Path(path).resolve() != HERE]

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
    "_kept_by_units": "account",
}
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
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def resident_gb() -> float:
    """Resident memory of this process now, in GB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e9


def plain_psn(data: np.ndarray) -> dict:
    """The plain writing of the published preset."""
    spec = importlib.util.spec_from_file_location("psn_plain", HERE / "psn_plain.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.plain_psn(data)


def run_case(name: str, data: np.ndarray) -> dict[str, float]:
    """Do it once; the plain writing tells CPU seconds of its stages."""
    from conform_app.psn import fit_gsn, fit_psn

    if name == "plain":
        return plain_psn(data)["seconds"]
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
    return {}


def measure(name: str, n_units: int, n_conditions: int, n_trials: int) -> None:
    """Print CPU seconds and memory of one case."""
    data = simulate(n_units, n_conditions, n_trials).astype(np.float64)
    run_case(name, data[:50, :60])  # imports and first calls are no part of it
    profile = cProfile.Profile(time.process_time)
    before, start = resident_gb(), time.process_time()
    stages = profile.runcall(run_case, name, data)
    cpu, memory = time.process_time() - start, peak_gb() - before
    for (file, _, function), (*_, spent, _) in pstats.Stats(profile).stats.items():
        if function in STAGES and f"{os.sep}psn{os.sep}" in file:
            stages[STAGES[function]] = stages.get(STAGES[function], 0.0) + spent
    print(json.dumps([cpu, memory, stages]))


def speed(args: argparse.Namespace) -> None:
    """Measure every case in a process of its own."""
    yardsticks = ("plain", *(("published",) if importlib.util.find_spec("psn") is not None else ()))
    for n_units in args.units:
        print(f"{n_units} units x {args.conditions} conditions x {args.trials} trials")
        shape = [str(n_units), str(args.conditions), str(args.trials)]
        base: dict[str, tuple[float, float]] = {}
        for name in (*yardsticks, *args.cases):
            cpu, memory, stages = json.loads(in_process("one", name, *shape))
            if name in yardsticks:
                base[name] = cpu, memory
            ratios = "".join(
                f"   {base[other][0] / cpu:.1f} x and {base[other][1] / memory:.2f} x less than {other}"
                for other in base
                if other != name
            )
            print(
                f"  {name:<10} {cpu:8.2f} CPU s   {memory:6.3f} GB beyond data"
                f" ({memory * 1e9 / 8 / n_units**2:.1f} n x n){ratios}   {stages_of(stages)}",
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
