# SPDX-License-Identifier: Apache-2.0
"""Small sealed collections with encoding models to find, made without a GLM."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from conform_app.braincorl import unit_norm
from conform_app.encode.job import EncodeJob, plan_encoding, write_job
from conform_app.encode.seal import describe_dataset, prepare_step, target_step
from conform_app.images import Grid, write_maps
from conform_app.mosaic import Collection
from conform_app.mosaic.normalise import FitUnit
from conform_app.mosaic.writer import Averages
from conform_app.settings import EncodeSettings

E, HALF = 12, 40
V = 2 * HALF
N_TEST, N_TRAIN = 24, 60


def make_collection(
    root: Path,
    people=("01_ONE", "02_ONE", "01_TWO"),
    *,
    noise: float = 1.0,
    constant: int = 0,
    averages: bool = False,
    shared: int = 0,
    seed: int = 0,
) -> Collection:
    """Participants with train images of their own and common test images, each shown twice.

    The first ``shared`` train images of all participants but the last are the first one's.

    Vertex v of all participants prefers similar directions of a three-dimensional part of the features.
    Vertex 0 has no value (a medial wall); of the next ``constant`` all trials are alike.
    """
    rng = np.random.default_rng(seed)
    collection = Collection.create(root / "group" / "store.zarr", space="fsaverage_den-10k", n_vertices=V)
    loadings, common = rng.normal(size=(3, E)), rng.normal(size=(V, 3))
    vectors = unit_norm(rng.normal(size=(N_TEST + N_TRAIN * len(people), E)))
    names = [f"image{i:03d}.png" for i in range(len(vectors))]
    for number, person in enumerate(people):
        label, _, dataset = person.partition("_")
        shown = np.concatenate([np.arange(N_TEST), N_TEST + N_TRAIN * number + np.arange(N_TRAIN)])
        if number < len(people) - 1:
            shown[N_TEST : N_TEST + shared] = N_TEST + np.arange(shared)
        order = rng.permutation(np.repeat(shown, 2))
        weights = (common + 0.7 * rng.normal(size=(V, 3))) @ loadings
        signal = vectors[order] @ weights.T
        betas = signal + noise * signal.std(axis=0) * rng.normal(size=signal.shape)
        betas[:, 0] = np.nan
        betas[:, 1 : 1 + constant] = 3.0
        phase = np.where(order < N_TEST, "test", "train")
        trials = pd.DataFrame({"stimulus": [names[i] for i in order], "phase": phase})
        pooled = None
        if averages:  # half as far from the mean as the plain averages
            middle = betas[order >= N_TEST].mean(axis=0)
            plain = np.stack([betas[order == i].mean(axis=0) for i in shown])
            values = (middle + 0.5 * (plain - middle)).astype(np.float32)
            pooled = Averages([names[i] for i in shown], values, method="PSN")
        collection.add_participant(
            dataset, f"sub-{label}", trials, [FitUnit("ses-01", betas.astype(np.float32))], averages=pooled
        )
    collection.seal()
    np.savez(root / "features.npz", names=np.array(names), values=vectors)
    return collection


def geometry(root: Path) -> tuple[str, str]:
    """A mask on the collection's surface, as the participant level leaves it."""
    grid = Grid("gifti", (HALF, HALF), structures=("CortexLeft", "CortexRight"))
    paths = [root / f"hemi-{h}_mask.label.gii" for h in "LR"]
    write_maps(grid, paths, np.ones(V), intent="mask")
    return tuple(map(str, paths))


def make_job(root: Path, **changes) -> EncodeJob:
    """A job on `make_collection`."""
    chosen = {"encode": "stacked", "encode_context": (20, 40), "encode_repeats": 2} | changes
    return EncodeJob(
        output_dir=str(root),
        store=str(root / "group" / "store.zarr"),
        features=str(root / "features.npz"),
        scratch=str(root / "scratch"),
        settings=EncodeSettings(**chosen),
        geometry=(geometry(root),),
    )


def edit_features(root: Path, change) -> None:
    """Rewrite the file of features."""
    with np.load(root / "features.npz") as archive:
        names, values = archive["names"], archive["values"].copy()
    names, values = change(names, values)
    np.savez(root / "features.npz", names=names, values=values)


def take_steps(job, root: Path):
    """All steps but the last, as the workflow takes them; the plan, and the file that the last one reads."""
    plan = plan_encoding(job)
    describe_dataset(job, {"a": 1}, "abcd", overwrite=False)
    job_file = write_job(job, plan, root / "work")
    for key in plan.people:
        prepare_step(job_file, key)
    for target in plan.targets:
        target_step(job_file, target.key, root / "work" / target.key)
    return plan, job_file
