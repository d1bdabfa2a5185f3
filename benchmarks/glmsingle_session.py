# SPDX-License-Identifier: Apache-2.0
"""A whole session from disk to disk: 91,282 grayordinates, 12 runs of 300 volumes, 750 trials.

The series are made on disk (one .npy per run), fitted from there block by block, and the betas of types A to
D are written to an HDF5 file as they are made.  Everything lies in a temporary folder that is removed at the
end (about 2.5 GB).  Prints wall and CPU time and the highest resident size of the fitting process, libraries
included.

    python benchmarks/glmsingle_session.py --threads 2 --max-memory 1e9
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from pathlib import Path

import numpy as np
from glmsingle import Peak, measure
from simulated import Simulation, Size

SESSION = Size(voxels=91_282, runs=12, volumes=300, conditions=250, trials=750, tr=1.6, stimdur=3.0)
STEP = 1000


def make(part: tuple[str, Size, int, int]) -> None:
    """Write voxels lo to hi of every run."""
    folder, size, lo, hi = part
    simulation = Simulation(size)
    for first in range(lo, hi, STEP):
        last = min(first + STEP, hi)
        for r, y in enumerate(simulation.voxels(first, last)[0]):
            file = np.load(Path(folder) / f"run-{r}.npy", mmap_mode="r+")
            file[first:last] = y


def fit(folder: str, size: Size, n_threads: int, device: str, max_memory: float | None, queue) -> None:
    """Fit from disk to disk."""
    import h5py

    from conform_app.glmsingle import fit_glmsingle

    peak = Peak()
    peak.start()
    data = [OnDisk(Path(folder) / f"run-{r}.npy") for r in range(size.runs)]
    with h5py.File(Path(folder) / "betas.h5", "w") as file:
        found = measure(
            lambda: fit_glmsingle(
                data,
                Simulation(size).arrays,
                size.stimdur,
                size.tr,
                n_threads=n_threads,
                device=device,
                max_memory=max_memory,
                store=lambda letter, shape: file.create_dataset(f"betas_{letter}", shape, "f4"),
            )
        )
    found["resident_GB"] = peak.end() / 1e9
    queue.put(found)


class OnDisk:
    """Rows of a .npy file, read when asked for."""

    def __init__(self, path: Path) -> None:
        mapped = np.load(path, mmap_mode="r")
        self.path, self.shape, self.offset = path, mapped.shape, mapped.offset

    def __getitem__(self, rows: slice) -> np.ndarray:
        lo, hi, _ = rows.indices(self.shape[0])
        n = self.shape[1]
        values = np.fromfile(self.path, np.float32, (hi - lo) * n, offset=self.offset + 4 * lo * n)
        return values.reshape(hi - lo, n)


def main() -> None:
    """Make, fit, print, remove."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("voxels", "runs", "volumes", "conditions", "trials"):
        parser.add_argument(f"--{name}", type=int, default=getattr(SESSION, name))
    parser.add_argument("--threads", type=int, nargs="+", default=[2])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--max-memory", type=float, default=None, help="bytes, see fit_glmsingle")
    parser.add_argument("--folder", help="where the temporary folder is made")
    args = parser.parse_args()
    size = Size(
        args.voxels, args.runs, args.volumes, args.conditions, args.trials, SESSION.tr, SESSION.stimdur
    )
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for r in range(size.runs):
            shape = (size.voxels, size.volumes)
            np.lib.format.open_memmap(Path(folder) / f"run-{r}.npy", "w+", np.float32, shape)
        parts = [
            (folder, size, lo, min(lo + 10 * STEP, size.voxels)) for lo in range(0, size.voxels, 10 * STEP)
        ]
        with context.Pool() as pool:
            pool.map(make, parts, chunksize=1)
        print("data made", flush=True)
        for n in args.threads:
            queue = context.Queue()
            child = context.Process(target=fit, args=(folder, size, n, args.device, args.max_memory, queue))
            child.start()
            found = queue.get()
            child.join()
            print(
                f"{size.voxels} voxels, {size.runs} runs x {size.volumes} volumes, {size.trials} trials, "
                f"{args.device}, {n} thread{'s' * (n > 1)}: {found['wall_s']:.0f} s wall, "
                f"{found['cpu_s']:.0f} s CPU, {found['resident_GB']:.2f} GB resident at most",
                flush=True,
            )


if __name__ == "__main__":
    main()
