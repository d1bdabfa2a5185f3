# SPDX-License-Identifier: Apache-2.0
"""Simulated responses and reference results shared by the tests of GSN and PSN."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

BUNDLED = Path(__file__).parent / "data" / "psn"


def simulate(n_units, n_conditions, n_trials, *, noise=3.0, aligned=0.5, seed=0):
    """Power-law signal and noise spectra whose leading axes partly coincide; returns truth and data."""
    rng = np.random.default_rng(seed)
    u = np.linalg.qr(rng.standard_normal((n_units, n_units)))[0]
    v = np.linalg.qr(rng.standard_normal((n_units, n_units)))[0]
    k = min(10, n_units)
    v[:, :k] = aligned * u[:, :k] + np.sqrt(1 - aligned**2) * v[:, :k]
    v = np.linalg.qr(v)[0]
    rank = np.arange(1, n_units + 1)
    signal = (u / rank) @ rng.standard_normal((n_units, n_conditions))
    trials = rng.standard_normal((n_units, n_conditions, n_trials))
    noise_part = np.einsum("ij,jct->ict", v * np.sqrt(noise * rank**-1.25), trials)
    offset = 5 * rng.standard_normal((n_units, 1))
    return signal + offset, signal[:, :, None] + offset[:, :, None] + noise_part


def simulate_gaps():
    """Data in which units lack trials of their own; the first two are always there."""
    _, data = simulate(40, 30, 4, seed=8)
    gaps = np.random.default_rng(8).random(data.shape) < 0.03
    gaps[:, :, :2] = False
    data[gaps] = np.nan
    return data


def error(estimate, truth):
    """Squared error over squared truth, both centred per unit."""
    estimate = estimate - estimate.mean(axis=1, keepdims=True)
    truth = truth - truth.mean(axis=1, keepdims=True)
    return ((estimate - truth) ** 2).sum() / (truth**2).sum()


def load_case(name, *, bundled=True):
    """A case as (arrays, list of runs); the larger ones come from CONFORM_TEST_DATA."""
    folder = BUNDLED
    if not bundled:
        root = os.environ.get("CONFORM_TEST_DATA")
        if not root:
            pytest.skip("CONFORM_TEST_DATA does not name the folder with the larger test vectors")
        folder = Path(root) / "fixtures" / "psn"
    with np.load(folder / f"case_{name}.npz") as z:
        arrays = {key: z[key] for key in z.files}
    return arrays, json.loads(str(arrays["__meta__"]))["runs"]


def relative(got, want):
    """Norm of the difference over the norm of the reference."""
    got, want = np.squeeze(np.asarray(got, float)), np.squeeze(np.asarray(want, float))
    assert got.shape == want.shape
    return np.linalg.norm(got - want) / max(np.linalg.norm(want), 1e-300)
