# SPDX-License-Identifier: Apache-2.0
"""Functional alignment beside BraInCoRL's closed form and ridge: simulated responses from real voxel tuning.

Truth, features and noise are those of braincorl_voxel_tuning.py: weights of three BOLD5000 participants'
voxels, drawn features, betas whose noise ceiling has mean 0.3.  Here participants also *share* images: two
training participants see 1,500 images each, of which the first 1,000 are those that contexts of the third are
drawn from.  At 20 to 1,000 shared images the third gets an encoding model

- through alignment of each training participant within region and hemisphere (ridge, Procrustes, optimal
  transport; also over all voxels as one piece with --whole),
- from the group mean of the region, from ridge, from the closed-form prior, from the stacked estimator.

Score: explained variance and Pearson r of the noise-free responses to 1,000 further images that nobody has
seen, mean over every n-th voxel of the third.  No method is told the noise.

    python benchmarks/functional_alignment.py weights.npz [--every 3] [--engine fmralign]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from braincorl_voxel_tuning import draw_features, explained, read_weights, regional_mean, respond

from conform_app.braincorl import adapt, evaluate, fit_aligned, fit_prior

METHODS = ("ridge", "procrustes", "optimal_transport")
SIZES = (20, 50, 100, 300, 1000)


def one_participant(left_out: str, truth: dict, args: argparse.Namespace) -> list[dict]:
    rng = np.random.default_rng([args.seed, int(left_out[-1])])
    axes = np.linalg.qr(rng.standard_normal((512, 512)))[0]
    shared = draw_features(1000, axes, rng)
    test = draw_features(1000, axes, rng)
    people, labels, carried = {}, {}, []
    for sub in (s for s in truth if s != left_out):
        weights, labels[sub] = truth[sub]
        features = np.concatenate([shared, draw_features(500, axes, rng)])
        signal, betas = respond(weights, features, rng, "varied")
        people[sub] = features, betas
        scale = signal.std(axis=1) / (weights @ features.T).std(axis=1)
        carried.append((weights * scale[:, None], labels[sub]))
    weights, own = (v[:: args.every] for v in truth[left_out])
    signal, betas = respond(weights, np.concatenate([shared, test]), rng, "varied")
    target = signal[:, 1000:]
    prior = fit_prior(people)
    pieces = {"": labels} | ({" whole": None} if args.whole else {})
    models = fit_aligned(people, prior=prior).weights  # once, for all
    averages = {
        (method, name): fit_aligned(
            people, weights=models, parcels=parcels, method=method, engine=args.engine
        )
        for method in METHODS
        for name, parcels in pieces.items()
    }
    rows = []
    for n in args.sizes:
        x, y = shared[:n], betas[:, :n]
        stacked = adapt(x, y, prior=prior)
        found = {"ridge": stacked.parts["ridge"], "prior": stacked.parts["prior"], "stacked": stacked.weights}
        found["group mean"] = regional_mean(carried, own)
        row = {"participant": left_out, "images": n, "n_voxels": len(weights)}
        for (method, name), average in averages.items():
            start = time.process_time()
            fitted = average.adapt(x, y, parcels=own if name == "" else None)
            row[f"{method}{name} cpu_s"] = round(time.process_time() - start, 1)
            accuracy = evaluate(fitted, test, target, n_bootstrap=0)
            assert np.isclose(  # noqa: S101
                accuracy.explained_variance.mean(), explained(fitted.weights, test, target).mean(), atol=1e-4
            )
            found[f"aligned {method}{name}"] = fitted.weights
        for name, w in found.items():
            row[name] = float(explained(w, test, target).mean())
            predicted = w[:, :-1] @ test.T
            a, b = (v - v.mean(axis=1, keepdims=True) for v in (predicted, target))
            r = (a * b).sum(axis=1) / np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1)).clip(1e-12)
            row[f"r {name}"] = float(r.mean())
        print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("--every", type=int, default=3, help="take every n-th voxel of the new participant")
    parser.add_argument("--participants", nargs="+", default=["sub-01", "sub-02", "sub-03"])
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES)
    parser.add_argument("--whole", action="store_true", help="also align all voxels as one piece")
    parser.add_argument("--engine", choices=["conform", "fmralign"], default="conform")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    truth = read_weights(args.weights)
    rows = [row for sub in args.participants for row in one_participant(sub, truth, args)]
    skip = ("participant", "images", "n_voxels")
    for prefix in ("", "r "):
        names = [
            k for k in rows[0] if k not in skip and "cpu_s" not in k and k.startswith("r ") == (prefix != "")
        ]
        print(f"\n{'Pearson r' if prefix else 'explained variance'}, mean over voxels")
        print("| participant | images | " + " | ".join(n.removeprefix("r ") for n in names) + " |")
        print("|" + "---|" * (len(names) + 2))
        for row in rows:
            values = " | ".join(f"{row[k]:.3f}" for k in names)
            print(f"| {row['participant']} | {row['images']} | {values} |")


if __name__ == "__main__":
    main()
