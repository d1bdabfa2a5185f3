# SPDX-License-Identifier: Apache-2.0
"""Shortcuts of the alternation against plain rounds, and one path for CPU and GPU."""

import importlib.util
import tracemalloc

import numpy as np
import pytest
from psn_cases import relative, simulate, simulate_gaps

from conform_app.errors import UsageError
from conform_app.psn import alternation, estimator, fit_gsn, fit_psn, honest
from conform_app.psn.dense import CPU, Dense, add_product, dense_on, release, symmetrise
from conform_app.psn.shrinkage import DEFAULT_LEVELS, nll_of_levels

needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")


def torch_dense():
    import torch

    return Dense(torch.device("cpu"))


def positive_part(m):
    w, v = np.linalg.eigh(m)
    return (v * np.maximum(w, 0)) @ v.T


@pytest.mark.parametrize("name", ["numpy", pytest.param("torch", marks=needs_torch)])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_operations(name, dtype):
    dense = CPU if name == "numpy" else torch_dense()
    rng = np.random.default_rng(0)
    f = rng.standard_normal((30, 50)).astype(dtype)
    cov = (f @ f.T).astype(np.float64)
    exact = {"rtol": 1e-3 if dtype == np.float32 else 1e-9, "atol": 1e-3 if dtype == np.float32 else 1e-9}
    np.testing.assert_allclose(dense.gram(f), cov, **exact)
    np.testing.assert_allclose(dense.product(f.T, f), f.T @ f, **exact)
    w, v = dense.eigh(cov.astype(dtype))
    assert w.dtype == v.dtype == dtype
    assert (np.diff(w) <= 0).all()
    np.testing.assert_allclose((v * w) @ v.T, cov, **exact)
    before = cov.copy()
    assert dense.is_positive(cov)
    assert not dense.is_positive(cov - 2 * w[-1] * np.eye(30))
    np.testing.assert_array_equal(cov, before)
    z = rng.standard_normal((30, 4))
    solve = dense.solver(cov.copy())
    np.testing.assert_allclose(solve(z), np.linalg.solve(cov, z), rtol=1e-8)
    np.testing.assert_allclose(solve(z[:, 0]), np.linalg.solve(cov, z[:, 0]), rtol=1e-8)
    axes = rng.standard_normal((30, 7))
    np.testing.assert_allclose(dense.variance_along(axes, cov), np.diag(axes.T @ cov @ axes), rtol=1e-10)


@pytest.mark.parametrize("n", [1, 255, 256, 257, 600])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_factor_in_the_place_of_a_matrix_leaves_no_trace(n, dtype):
    rng = np.random.default_rng(n)
    f = rng.standard_normal((n, n + 5)).astype(dtype)
    positive = f @ f.T
    other = positive - 2 * positive.diagonal().max() * np.eye(n, dtype=dtype)
    for m, expected in ((positive, True), (other, False)):
        symmetrise(m)
        before = m.copy()
        assert CPU.is_positive(m) == expected
        np.testing.assert_array_equal(m, before)
    assert release() is None


def test_operations_in_place():
    rng = np.random.default_rng(1)
    m, a, b = rng.standard_normal((700, 700)), rng.standard_normal((700, 3)), rng.standard_normal((700, 3))
    want = m + a @ b.T
    add_product(m, a, b)
    np.testing.assert_allclose(m, want, atol=1e-12)
    symmetrise(m)
    np.testing.assert_allclose(m, (want + want.T) / 2, atol=1e-12)


def test_few_negative_eigenvalues_are_found_alone():
    rng = np.random.default_rng(2)
    q = np.linalg.qr(rng.standard_normal((120, 120)))[0]
    for lowest in ([-3.0], [-3.0, -3.0, -1e-3], list(-np.linspace(0.1, 2, 12))):
        w = np.concatenate([lowest, np.geomspace(1e-3, 1e3, 120 - len(lowest))])
        m = (q * w) @ q.T
        m = (m + m.T) / 2
        before = m.copy()
        values, vectors = alternation.negative_pairs(m)
        np.testing.assert_allclose(m, before, rtol=0, atol=1e-12)  # it worked in the place of m
        np.testing.assert_allclose(np.sort(values), np.sort(lowest), atol=1e-10)
        np.testing.assert_allclose((vectors * values) @ vectors.T, m - positive_part(m), atol=1e-9)
        got, pairs = alternation.to_psd(m.copy(), few=True)
        np.testing.assert_allclose(got, positive_part(m), atol=1e-9)
        assert pairs[0].size == len(lowest)
    assert alternation.negative_pairs(np.diag(np.arange(1.0, 60))) is None


def test_many_negative_eigenvalues_are_found_by_decomposition():
    rng = np.random.default_rng(3)
    m = rng.standard_normal((200, 200))
    m = m + m.T
    assert alternation.negative_pairs(m) is None
    for few in (False, True):
        got, (w, v) = alternation.to_psd(m.copy(), few=few)
        np.testing.assert_allclose(got, positive_part(m), atol=1e-10)
        np.testing.assert_allclose(m @ v, v * w, atol=1e-9)
        assert (w < 0).all() == few


@pytest.mark.parametrize("k", [1, 3, 6])
def test_change_of_the_positive_part(k):
    rng = np.random.default_rng(k)
    w, u = 10 * rng.standard_normal(300) ** 3, 0.3 * rng.standard_normal((300, k))
    x, core = alternation.positive_part_change(w, u)
    got = np.diag(np.maximum(w, 0)) + x @ core @ x.T
    want = positive_part(np.diag(w) - u @ u.T)
    assert np.abs(got - want).max() < 1e-11 * np.abs(w).max()
    assert x.shape[1] <= k * (alternation._RANK_PER_VECTOR + 40)


@pytest.mark.parametrize("shape", [(150, 60, 2, 3.0), (300, 40, 3, 1.0), (100, 300, 4, 3.0)])
@pytest.mark.parametrize("keep_eig", [True, False])
@pytest.mark.parametrize("uneven", [False, True])
def test_shortcuts_equal_plain_rounds(shape, keep_eig, uneven, monkeypatch):
    """Over data whose noise has none or few eigenvalues to clip, and over uneven repeats."""
    _, data = simulate(*shape[:3], noise=shape[3], seed=4)
    clipped = []
    pairs_of = alternation.negative_pairs
    monkeypatch.setattr(alternation, "negative_pairs", lambda m: clipped.append(pairs_of(m)) or clipped[-1])
    if uneven:
        data[:, ::3, -1] = np.nan
    plain = fit_gsn(data)
    monkeypatch.setattr(alternation, "LARGE", 0)
    biconvex = alternation.biconvex
    monkeypatch.setattr(
        "conform_app.psn.covariance.biconvex", lambda *a, **k: biconvex(*a, **(k | {"keep_eig": keep_eig}))
    )
    fast = fit_gsn(data)
    assert fast.n_iter == plain.n_iter
    for name in ("signal_cov", "noise_cov", "signal_cov_raw", "noise_cov_raw", "ncsnr"):
        assert relative(getattr(fast, name), getattr(plain, name)) < 1e-10, name
    np.testing.assert_allclose(fast.signal_cov, fast.signal_cov.T, atol=1e-13)
    if keep_eig and fast.signal_eig is not None:
        w, v = fast.signal_eig
        np.testing.assert_allclose((v * np.maximum(w, 0)) @ v.T, fast.signal_cov, atol=1e-10)
    elif not keep_eig:
        assert fast.signal_eig is None
    if shape[0] > shape[1] and not uneven:  # few conditions: some of the noise's are clipped
        assert any(pairs is not None for pairs in clipped)


@needs_torch
@pytest.mark.parametrize("mode", ["cv", "auto", "standard", "aggressive", "wiener"])
@pytest.mark.parametrize("large", [0, 400])
def test_the_path_of_a_gpu_gives_the_same(mode, large, monkeypatch):
    """The same operations on torch tensors; only the place differs from a GPU."""
    _, data = simulate(60, 80, 3, seed=5)
    here = fit_psn(data, mode=mode)
    monkeypatch.setattr(estimator, "dense_on", lambda device: torch_dense())
    monkeypatch.setattr(alternation, "LARGE", large)
    there = fit_psn(data, mode=mode, device="cuda")
    assert relative(there.denoised, here.denoised) < 1e-7
    np.testing.assert_array_equal(np.round(there.threshold, 6), np.round(here.threshold, 6))
    assert relative(there.kept_noise, here.kept_noise) < 1e-7


@pytest.mark.parametrize("n_trials", [2, 3])
def test_folds_in_single_precision_choose_the_same(n_trials, monkeypatch):
    _, data = simulate(80, 60, n_trials, noise=2.0, seed=9)
    monkeypatch.setattr(alternation, "LARGE", 0)
    exact = fit_psn(data, mode="auto")
    monkeypatch.setattr(honest, "_SINGLE", 10)
    single = fit_psn(data, mode="auto")
    assert single.account[-1] == exact.account[-1]
    assert single.criterion == exact.criterion
    np.testing.assert_allclose(single.denoised, exact.denoised, rtol=1e-10, atol=1e-10)
    errors = [list(fit.candidate_errors.values()) for fit in (single, exact)]
    np.testing.assert_allclose(*errors, rtol=1e-5)
    assert errors[0] != errors[1]  # or nothing was tested


def test_quiet_units_are_refitted_in_double_precision(monkeypatch):
    _, data = simulate(60, 50, 3, seed=10)
    data[:5] *= 1e-3
    monkeypatch.setattr(alternation, "LARGE", 0)
    exact, refit, types = fit_psn(data, mode="auto"), honest._refit, []
    monkeypatch.setattr(honest, "_SINGLE", 10)
    monkeypatch.setattr(
        honest, "_refit", lambda *a, **k: types.append(k.get("dtype", np.float64)) or refit(*a, **k)
    )
    fit = fit_psn(data, mode="auto")
    assert types == 3 * [np.float32, np.float64]
    np.testing.assert_allclose(fit.denoised, exact.denoised, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(fit.candidate_errors["wiener"], exact.candidate_errors["wiener"], rtol=1e-6)


@pytest.mark.parametrize("n_trials", [3, 8])
def test_memory_of_auto(n_trials):
    """Nine matrices of units x units and a block of 8 MB beyond the data, whatever the number of folds."""
    _, data = simulate(600, 60, n_trials, noise=2.0, seed=11)
    tracemalloc.start()
    fit = fit_psn(data, mode="auto")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert fit.candidate_errors
    assert peak < 9 * 8 * 600**2 + 2**23


@pytest.mark.parametrize("mode", ["gsn", "standard", "wiener", "cv", "auto"])
def test_memory_of_every_mode(mode):
    """Seven matrices of units x units beyond the data, the work space of LAPACK included."""
    n_units = 1200
    _, data = simulate(n_units, 60, 4, noise=2.0, seed=11)
    tracemalloc.start()
    fit = fit_gsn(data) if mode == "gsn" else fit_psn(data, mode=mode)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (fit if mode == "gsn" else fit.gsn).n_iter == 1  # two rounds, so that the noise was clipped
    assert peak < 7.02 * 8 * n_units**2


def test_raw_covariances_are_kept_by_gsn_alone():
    _, data = simulate(30, 40, 3, seed=1)
    gsn = fit_gsn(data)
    np.testing.assert_array_equal(gsn.noise_var, gsn.noise_cov_raw.diagonal())
    fit = fit_psn(data)
    assert fit.gsn.signal_cov_raw is None
    assert fit.gsn.noise_cov_raw is None
    np.testing.assert_array_equal(fit.gsn.noise_var, gsn.noise_var)
    given = fit_psn(data, gsn=gsn)
    assert given.gsn is gsn
    data[3] = 7.0
    left_out = fit_gsn(data)
    assert left_out.noise_var[3] == 0
    assert relative(fit_psn(data, gsn=left_out).denoised, fit_psn(data).denoised) < 1e-12


@needs_torch
@pytest.mark.parametrize("mode", ["cv", "auto", "wiener"])
def test_missing_trials_take_the_path_of_a_gpu(mode, monkeypatch):
    data = simulate_gaps()
    here, there, used = fit_psn(data, mode=mode, uneven="missing"), torch_dense(), []
    product = Dense.product
    monkeypatch.setattr(Dense, "product", lambda self, a, b: used.append(self) or product(self, a, b))
    monkeypatch.setattr(estimator, "dense_on", lambda device: there)
    there_fit = fit_psn(data, mode=mode, uneven="missing", device="cuda")
    assert used
    assert all(place is there for place in used)
    assert relative(there_fit.denoised, here.denoised) < 1e-7
    assert relative(there_fit.gsn.noise_cov, here.gsn.noise_cov) < 1e-7


@needs_torch
def test_levels_on_torch():
    rng = np.random.default_rng(6)
    for r in (20, 60):
        factor, points = rng.standard_normal((40, r)), rng.standard_normal((40, 9))
        ours = nll_of_levels(factor, points, 9, DEFAULT_LEVELS, torch_dense())
        np.testing.assert_allclose(ours, nll_of_levels(factor, points, 9, DEFAULT_LEVELS), rtol=1e-9)


@needs_torch
def test_on_a_gpu():
    import torch

    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    _, data = simulate(600, 100, 3, seed=7)
    for mode in ("cv", "standard", "wiener"):
        here, there = fit_psn(data, mode=mode), fit_psn(data, mode=mode, device="cuda")
        assert relative(there.denoised, here.denoised) < 1e-4


@needs_torch
def test_devices():
    import torch

    assert dense_on("cpu") is CPU
    for device in ("gpu", "mps", "cuda:x", 3):
        with pytest.raises(UsageError, match="device"):
            dense_on(device)
    if not torch.cuda.is_available():
        assert dense_on("auto") is CPU
        _, data = simulate(5, 12, 3)
        for fit in (fit_psn, fit_gsn):
            with pytest.raises(UsageError, match="No CUDA device") as caught:
                fit(data, device="cuda")
            assert caught.value.remedy
