# SPDX-License-Identifier: Apache-2.0
"""A collection of the published size in miniature: how fast it is written and read, and what it takes.

93 participants with the trial counts of the eight MOSAIC datasets divided by ``--divide``, 91,282 vertices.
Everything is compared with something measured in the same run: writing with plain sequential writing of as
many bytes (both synchronised to disk), reading with the published layout of one HDF5 dataset per trial.
Betas come from memory, so that no other disk is timed.

    python benchmarks/mosaic.py --divide 40
    python benchmarks/mosaic.py --long 30000                # one trial of as many as published
    python benchmarks/mosaic.py --divide 40 --one 30000     # and a participant of 30,000 trials alone
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import zarr  # noqa: F401  (so that its import is not timed with the first participant of each process)

from conform_app.mosaic import Collection, FitUnit

# dataset -> trials of each participant (before any are excluded from the split), share of test, repeats
STUDIES = {
    "NSD": ([30664, 30664, 24664, 23164, 30664, 24664, 30664, 23164], 0.10, 3),
    "BMD": ([4020] * 10, 0.25, 4),
    "BOLD5000": ([5254, 5254, 5254, 3108], 0.08, 1.2),
    "GOD": ([2950] * 5, 0.6, 2.3),
    "deeprecon": ([8120] * 3, 0.2, 6),
    "HAD": ([720] * 30, 0.25, 1),
    "NOD": ([2292] * 30, 0.2, 1.2),
    "THINGS": ([9840] * 3, 0.12, 1.1),
}
PUBLISHED_TRIALS = 430_007
ROI = 200


class Noise:
    """Betas that cost nothing to read: rows of one block of noise, over and over."""

    def __init__(self, n_trials: int, n_vertices: int, block: np.ndarray) -> None:
        self.shape, self.block = (n_trials, n_vertices), block

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Contiguous rows."""
        n = rows.stop - rows.start
        start = rows.start % (len(self.block) - n + 1)
        return self.block[start : start + n]


def trials_of(dataset: str, n: int, test: float, repeats: float) -> pd.DataFrame:
    """Trials in a fixed random order."""
    rng = np.random.default_rng(n)
    n_stimuli = max(2, int(n / repeats))
    shown = rng.permutation(np.arange(n) % n_stimuli)
    phase = np.where(shown < test * n_stimuli, "test", "train")
    return pd.DataFrame({"stimulus": [f"{dataset}_{s:06d}.jpg" for s in shown], "phase": phase})


def add(path: Path, dataset: str, subject: str, n: int, block: np.ndarray, whole: bool) -> float:
    """Write a participant; return the seconds it took."""
    collection = Collection.open(path)
    _, test, repeats = STUDIES[dataset]
    trials = trials_of(dataset, n, test, repeats)
    unit = FitUnit("all", Noise(n, collection.n_vertices, block))
    start = time.perf_counter()
    collection.add_participant(dataset, subject, trials, [unit], normalise=whole, ceilings=whole)
    return time.perf_counter() - start


def plain(folder: Path, n_bytes: int, block: np.ndarray) -> float:
    """Bytes per second of writing one file after another of a shard's size, synchronised."""
    data = memoryview(block).cast("B")
    piece, per_file = len(data) // 2, 94_000_000
    start, left, number = time.perf_counter(), n_bytes, 0
    while left > 0:
        with (folder / f"plain-{number}").open("wb", buffering=0) as file:
            size = min(left, per_file)
            while file.tell() < size:
                file.write(data[:piece])
            os.fsync(file.fileno())
        left, number = left - size, number + 1
    seconds = time.perf_counter() - start
    for path in folder.glob("plain-*"):
        path.unlink()
    return n_bytes / seconds


def forget(folder: Path) -> None:
    """Ask the kernel to drop a file, or everything below a folder, from its cache."""
    for path in [folder] if folder.is_file() else [p for p in folder.rglob("*") if p.is_file()]:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def median_ms(call: Callable[[int], object], times: int) -> float:
    """Median time of a call, in milliseconds."""
    took = []
    for i in range(times):
        start = time.perf_counter()
        call(i)
        took.append(time.perf_counter() - start)
    return 1000 * statistics.median(took)


def child(function: Callable, *arguments: object) -> tuple[float, float]:
    """Run in a process of its own; return its result and its highest resident size in GB."""
    receive, send = multiprocessing.Pipe(False)

    def work() -> None:
        result = function(*arguments)
        send.send((result, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6))

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    result = receive.recv()
    process.join()
    return result


def write(root: Path, options: argparse.Namespace, block: np.ndarray) -> Path:
    """Write the miniature; print throughput, memory and projection."""
    path = root / "collection"
    Collection.create(path, space="fsLR_den-91k", n_vertices=options.vertices, dtype=options.dtype)
    seconds = peak = 0.0
    n_trials = 0
    for dataset, (counts, _, _) in STUDIES.items():
        for i, count in enumerate(counts, 1):
            n = max(8, round(count / options.divide))
            took, memory = child(add, path, dataset, f"sub-{i:02d}", n, block, True)
            seconds, peak, n_trials = seconds + took, max(peak, memory), n_trials + n
    on_disk = sum(p.stat().st_size for p in path.rglob("c/*/*") if "betas" in p.parts)
    per_trial = options.vertices * np.dtype(options.dtype).itemsize
    n_bytes = n_trials * per_trial
    start = time.perf_counter()
    collection = Collection.open(path)
    collection.seal()
    sealed = time.perf_counter() - start
    print(
        f"miniature: {len(collection.keys)} participants, {n_trials} trials, {n_bytes / 1e9:.2f} GB of "
        f"betas, {on_disk / 1e9:.2f} GB of files (the last chunk of each participant is filled up)"
    )
    print(
        f"written, scaled, with noise ceilings: {n_bytes / seconds / 1e6:.0f} MB/s; sealed in {sealed:.1f} s"
    )
    print(f"highest resident size of a writer: {peak:.2f} GB")
    size = PUBLISHED_TRIALS * per_trial
    print(
        f"projected at {PUBLISHED_TRIALS} trials: {size / 1e9:.0f} GB, "
        f"{size / (n_bytes / seconds) / 60:.0f} min one participant after the other"
    )
    return path


def throughput(root: Path, options: argparse.Namespace, block: np.ndarray) -> None:
    """Writing of betas as given against plain writing, taking turns."""
    n = int(options.gigabytes * 1e9 / (options.vertices * 4))
    ratios, speeds = [], []
    for turn in range(options.turns):
        path = root / f"turn-{turn}"
        Collection.create(path, space="fsLR_den-91k", n_vertices=options.vertices)
        size = n * options.vertices * 4
        reference = plain(root, size, block)
        speed = size / add(path, "NSD", "sub-01", n, block, False)
        shutil.rmtree(path)
        reference = (reference + plain(root, size, block)) / 2
        ratios.append(speed / reference)
        speeds.append((speed / 1e6, reference / 1e6))
    print(
        f"writing {options.gigabytes:g} GB as given: "
        + ", ".join(f"{speed:.0f} of {plain_speed:.0f} MB/s" for speed, plain_speed in speeds)
        + f"; median {100 * statistics.median(ratios):.0f} % of plain sequential writing"
    )


def reading(root: Path, path: Path) -> None:
    """One trial, and one region over all trials, against one HDF5 dataset per trial."""
    collection = Collection.open(path)
    key = max(collection.keys, key=lambda k: collection.record(k)["n_trials"])
    (file,) = collection.export_hdf5(root / "hdf5", participants=[key])
    n = collection.record(key)["n_trials"]
    folder = path / "participants" / key / "betas"
    rng = np.random.default_rng(0)
    near = np.arange(40_000, 40_000 + ROI)
    far = np.sort(rng.choice(collection.n_vertices, ROI, replace=False))
    some = rng.integers(0, n, 400)
    with h5py.File(file) as hdf5:
        names = list(hdf5["betas"])
        group = hdf5["betas"]
        trial = median_ms(lambda i: group[names[some[i]]][()], 400)
        region = [median_ms(lambda _: np.stack([group[k][40_000 : 40_000 + ROI] for k in names]), 3)]
        region.append(median_ms(lambda _: np.stack([group[k][()][far] for k in names]), 3))
    ours = median_ms(lambda i: collection.betas(key, int(some[i])), 400)
    ours_region = [median_ms(lambda _, v=v: collection.betas(key, None, v), 5) for v in (near, far)]
    print(f"reading {key}, {n} trials, from the page cache:")
    print(f"  one trial: {ours:.3f} ms; HDF5 {trial:.3f} ms, {trial / ours:.1f} times")
    for what, mine, theirs in zip(("neighbours", "scattered"), ours_region, region, strict=True):
        print(f"  {ROI} {what}, all trials: {mine:.2f} ms; HDF5 {theirs:.1f} ms, {theirs / mine:.0f} times")
    collection._forget()  # what is mapped stays in the cache
    cold(path, key, n, file, folder, near, far)


def cold(path: Path, key: str, n: int, file: Path, folder: Path, near: np.ndarray, far: np.ndarray) -> None:
    """The same with nothing in the cache, files opened anew each time."""

    def mine(trials: object, vertices: object) -> object:
        fresh = Collection.open(path)
        return fresh.betas(key, trials, vertices)

    def theirs(which: str) -> object:
        with h5py.File(file) as hdf5:
            names = list(hdf5["betas"])  # as the published reader does on opening
            group = hdf5["betas"]
            if which == "trial":
                return group[names[len(names) // 2]][()]
            if which == "near":
                return np.stack([group[k][40_000 : 40_000 + ROI] for k in names])
            return np.stack([group[k][()][far] for k in names])

    print("  from disk, opened anew (collection and file):")
    for which, trials, vertices in (("trial", n // 2, None), ("near", None, near), ("far", None, far)):
        took = []
        for call, place in (
            (lambda t=trials, v=vertices: mine(t, v), folder),
            (lambda w=which: theirs(w), file),
        ):
            times = []
            for _ in range(5):
                forget(place)
                start = time.perf_counter()
                call()
                times.append(time.perf_counter() - start)
            took.append(1000 * statistics.median(times))
        print(f"    {which}: {took[0]:.1f} ms; HDF5 {took[1]:.1f} ms, {took[1] / took[0]:.1f} times")


def long(root: Path, options: argparse.Namespace) -> None:
    """One trial of a participant with as many trials as published, of a tenth of the vertices, from disk."""
    vertices = options.vertices // 10
    block = np.random.default_rng(0).standard_normal((97, vertices), dtype=np.float32)
    path = root / "long"
    Collection.create(path, space="simulated", n_vertices=vertices, dtype=options.dtype)
    add(path, "NSD", "sub-01", options.long, block, False)
    collection = Collection.open(path)
    collection.seal()
    (key,) = collection.keys
    (file,) = collection.export_hdf5(root / "hdf5long")
    with h5py.File(file) as hdf5:
        middle = list(hdf5["betas"])[options.long // 2]

    def listed() -> object:
        with h5py.File(file) as hdf5:
            return hdf5["betas"][list(hdf5["betas"])[options.long // 2]][()]

    def known() -> object:
        with h5py.File(file) as hdf5:
            return hdf5["betas"][middle][()]

    print(f"one of {options.long} trials of {vertices} vertices, from disk, opened anew:")
    for name, call, place in (
        ("collection", lambda: Collection.open(path).betas(key, options.long // 2), path),
        ("HDF5, names listed as the published reader does", listed, file),
        ("HDF5, the trial's name known", known, file),
    ):
        times = []
        for _ in range(9):
            forget(place)
            start = time.perf_counter()
            call()
            times.append(1000 * (time.perf_counter() - start))
        print(f"  {name}: {statistics.median(times):.2f} ms (best {min(times):.2f})")


def together(root: Path, options: argparse.Namespace, block: np.ndarray) -> None:
    """Two participants one after the other and at the same time."""
    n = int(options.gigabytes * 1e9 / (options.vertices * 4) / 2)
    path = root / "together"
    Collection.create(path, space="fsLR_den-91k", n_vertices=options.vertices)
    start = time.perf_counter()
    for i in (1, 2):
        child(add, path, "NSD", f"sub-{i:02d}", n, block, True)
    one_by_one = time.perf_counter() - start
    context = multiprocessing.get_context("fork")
    jobs = [context.Process(target=add, args=(path, "NSD", f"sub-{i:02d}", n, block, True)) for i in (3, 4)]
    start = time.perf_counter()
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    at_once = time.perf_counter() - start
    manifest = Collection.open(path).seal()
    print(
        f"two participants of {n} trials: {one_by_one:.1f} s one by one, {at_once:.1f} s at once; "
        f"{len(manifest['participants'])} in the manifest, {len(Collection.open(path).verify())} differ"
    )
    shutil.rmtree(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--divide", type=float, default=40, help="trial counts are divided by this")
    parser.add_argument("--vertices", type=int, default=91_282)
    parser.add_argument("--dtype", choices=["float32", "float16"], default="float32")
    parser.add_argument("--gigabytes", type=float, default=2.0, help="size of the writing comparison")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--one", type=int, default=0, help="write one participant of so many trials as well")
    parser.add_argument(
        "--folder", type=Path, default=None, help="where to write (default: temporary folder)"
    )
    parser.add_argument("--long", type=int, default=0, help="read one of so many trials, and nothing else")
    options = parser.parse_args()
    block = np.random.default_rng(0).standard_normal((97, options.vertices), dtype=np.float32)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        root = Path(name)
        if options.long:
            long(root, options)
            return
        throughput(root, options, block)
        path = write(root, options, block)
        reading(root, path)
        together(root, options, block)
        if options.one:
            shutil.rmtree(path)
            one = root / "one"
            Collection.create(one, space="fsLR_den-91k", n_vertices=options.vertices, dtype=options.dtype)
            took, memory = child(add, one, "NSD", "sub-01", options.one, block, True)
            size = options.one * options.vertices * np.dtype(options.dtype).itemsize
            print(
                f"one participant of {options.one} trials, scaled, with ceilings: {size / 1e9:.1f} GB in "
                f"{took:.0f} s ({size / took / 1e6:.0f} MB/s), {memory:.2f} GB resident"
            )


if __name__ == "__main__":
    main()
