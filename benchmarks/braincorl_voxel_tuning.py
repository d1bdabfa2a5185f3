# SPDX-License-Identifier: Apache-2.0
"""Few images, a new participant: simulated responses from real voxel tuning.

Weights of 7,059 voxels of three BOLD5000 participants (Chang et al.  2019; weights from img2fmri, Bennett
et al.) are the truth.  Image features are drawn (Gaussian, variance 1/k along random or along the weights'
own axes, unit norm), responses are linear in them, and noise is added so that a single beta's noise ceiling
(share of signal variance) is drawn from a Beta distribution of mean 0.3, voxel by voxel; betas are z-scored
per voxel.  Two participants are learned from (1,500 images each, other images than the test participant's),
the third is adapted to from 20 to 1,000 images.  No method is told the noise.  Score: explained variance of
the *noise-free* responses to 1,000 further images, mean over voxels.

    python benchmarks/braincorl_voxel_tuning.py weights.npz --work FOLDER [--transformer]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from conform_app.braincorl import (
    ModelSizes,
    Stage,
    TrainSettings,
    adapt,
    fit_five_fold_ridge,
    fit_prior,
    group_mean,
    start_from_prior,
    train,
    training_bar,
    unit_norm,
)
from conform_app.braincorl.prior import with_ones

ROIS = ("EarlyVis", "LOC", "OPA", "PPA", "RSC")
CONTEXTS = (20, 50, 100, 300, 1000)
SIZES = ModelSizes(512, 160, layers=5, ffn=320, heads=5, block=160)


def read_weights(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Weights (n_voxels, 512) and a label, region and hemisphere, per voxel, of each participant."""
    table = np.load(path)
    out = {}
    for sub in ("sub-01", "sub-02", "sub-03"):
        weights = [table[f"{sub}_{roi}_coef"].astype(np.float64) for roi in ROIS]
        labels = [np.char.add(f"{roi}-", table[f"{sub}_{roi}_hemi"].astype(str)) for roi in ROIS]
        out[sub] = np.concatenate(weights), np.concatenate(labels)
    return out


def draw_features(n: int, axes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    spread = 1 / np.sqrt(np.arange(1, len(axes) + 1))
    return unit_norm((rng.standard_normal((n, len(axes))) * spread) @ axes.T)


def respond(weights: np.ndarray, features: np.ndarray, rng: np.random.Generator, ceiling: str):
    """Noise-free responses and betas (n_voxels, n_images), of unit variance together."""
    signal = weights @ features.T.astype(np.float64)
    signal = (signal - signal.mean(axis=1, keepdims=True)) / signal.std(axis=1, keepdims=True)
    nc = (
        np.full(len(weights), 0.3)
        if ceiling == "same"
        else rng.beta(2, 14 / 3, len(weights)).clip(0.02, 0.95)
    )
    signal *= np.sqrt(nc)[:, None]
    noise = np.sqrt(1 - nc)[:, None] * rng.standard_normal(signal.shape)
    return signal.astype(np.float32), (signal + noise).astype(np.float32)


def explained(weights: np.ndarray, features: np.ndarray, truth: np.ndarray) -> np.ndarray:
    left = truth - weights @ with_ones(features).T
    return 1 - left.var(axis=1) / truth.var(axis=1)


def regional_mean(people: list, labels: np.ndarray) -> np.ndarray:
    """Mean weights of the training participants' voxels of the same region and hemisphere."""
    table = {}
    for label in np.unique(labels):
        means = [w[own == label].mean(axis=0, keepdims=True) for w, own in people]
        table[label] = group_mean(means)[0]
    return np.column_stack([np.stack([table[label] for label in labels]), np.zeros(len(labels))])


def training_settings(steps: int) -> TrainSettings:
    return TrainSettings(
        stages=(
            Stage(True, (100, 100), 50, 64, steps, 1, lr=1.5e-4, weight_decay=0.01),
            Stage(
                True, (15, 350), 50, 64, steps, 15, 2e-4, 0.01, patience=15, schedule="cosine", sizes="log"
            ),
            Stage(
                False, (15, 350), 100, 64, steps, 3, 4e-5, 0.01, patience=3, schedule="cosine", sizes="log"
            ),
        ),
        warmup=30,
        validation_batches=6,
        precision="bfloat16",
    )


def one_participant(left_out: str, truth: dict, args: argparse.Namespace) -> list[dict]:
    rng = np.random.default_rng([args.seed, int(left_out[-1])])
    others = [sub for sub in truth if sub != left_out]
    axes = np.linalg.qr(rng.standard_normal((512, 512)))[0]
    if args.axes == "weights":
        pooled = np.concatenate([truth[sub][0] for sub in others])
        axes = np.linalg.eigh(np.cov(pooled.T))[1][:, ::-1]
    people, unit_weights = {}, []
    for sub in others:
        features = draw_features(1500, axes, rng)
        signal, betas = respond(truth[sub][0], features, rng, args.ceiling)
        people[sub] = features, betas
        scale = signal.std(axis=1) / (truth[sub][0] @ features.T).std(axis=1)
        unit_weights.append((truth[sub][0] * scale[:, None], truth[sub][1]))
    prior = fit_prior(people)
    oracle = fit_prior([np.column_stack([w, np.zeros(len(w))]) for w, _ in unit_weights], features=features)
    model = None
    if args.transformer:
        folder = args.work / f"{left_out}_{args.axes}_{args.ceiling}"
        start = time.perf_counter()
        settings = training_settings(args.steps)
        first = start_from_prior(SIZES, prior, people)
        bar = training_bar(settings)
        model = train(people, SIZES, folder, settings=settings, prior=prior, start=first, progress=bar).model
        print(f"{left_out}: trained in {time.perf_counter() - start:.0f} s", flush=True)
    pick = np.arange(0, len(truth[left_out][0]), args.every)
    weights, labels = (v[pick] for v in truth[left_out])
    features = draw_features(2000, axes, rng)
    signal, betas = respond(weights, features, rng, args.ceiling)
    test, target = features[1000:], signal[:, 1000:]
    mean = regional_mean(unit_weights, labels)
    rows = []
    for n in CONTEXTS:
        x, y = features[:n], betas[:, :n]
        stacked = adapt(x, y, prior=prior, model=model)
        candidates = {
            "ridge": stacked.parts["ridge"],
            "five-fold ridge": fit_five_fold_ridge(x, y)[0],
            "group mean": mean,
            "prior": stacked.parts["prior"],
            "prior from weights": adapt(x, y, method="prior", prior=oracle).weights,
            "stacked": stacked.weights,
        }
        if model is not None:
            candidates["transformer"] = stacked.parts["transformer"]
        scores = {name: float(explained(w, test, target).mean()) for name, w in candidates.items()}
        sd = stacked.predictive_sd(test[:200])
        z = np.abs(target[:, :200] - stacked.predict(test[:200])) / sd
        shares = {name: float(np.nanmean(v)) for name, v in stacked.shares.items()}
        row = {"participant": left_out, "images": n, "n_voxels": len(weights), **scores, "shares": shares}
        rows.append({**row, "within_1_sd": float((z < 1).mean()), "within_2_sd": float((z < 1.96).mean())})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("--work", type=Path, default=Path("braincorl_work"))
    parser.add_argument("--axes", choices=["random", "weights"], default="random")
    parser.add_argument("--ceiling", choices=["varied", "same"], default="varied")
    parser.add_argument("--participants", nargs="+", default=["sub-01", "sub-02", "sub-03"])
    parser.add_argument("--every", type=int, default=1, help="take every n-th voxel of the new participant")
    parser.add_argument("--transformer", action="store_true", help="also train the small network")
    parser.add_argument("--steps", type=int, default=50, help="training steps per epoch")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    truth = read_weights(args.weights)
    rows = [row for sub in args.participants for row in one_participant(sub, truth, args)]
    names = [k for k in rows[0] if isinstance(rows[0][k], float)]
    print("\n| participant | images | " + " | ".join(names) + " |\n|" + "---|" * (len(names) + 2))
    for row in rows:
        print(
            f"| {row['participant']} | {row['images']} | " + " | ".join(f"{row[k]:.3f}" for k in names) + " |"
        )
    (args.work / f"{args.axes}_{args.ceiling}.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
