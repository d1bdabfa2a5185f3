# SPDX-License-Identifier: Apache-2.0
"""GSN against reference numbers, direct formulas and its own symmetries."""

import warnings

import numpy as np
import pytest
from psn_cases import load_case, relative, simulate

from conform_app.errors import DataError, UsageError
from conform_app.psn import fit_gsn
from conform_app.psn.alternation import nearest_psd
from conform_app.psn.shrinkage import DEFAULT_LEVELS, nll_of_levels, split_order

BUNDLED = ("one_unit", "missing", "two_trials", "options", "uneven")
LARGER = ("std", "wide", "pure_noise", "float32", "scaled")


def check_gsn_runs(arrays, runs):
    data = arrays["data"]
    loose = 1e4 if data.dtype == np.float32 else 1
    for run in (r for r in runs if r["kind"] == "gsn"):
        opt, name = run["opt"], run["run"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            fit = fit_gsn(
                data,
                shrink=opt.get("wantshrinkage", True),
                shrink_levels=opt.get("shrinklevels"),
                uneven=opt.get("uneven", "fast"),
                reference=True,
            )
        assert fit.shrink_noise == pytest.approx(float(arrays[f"{name}/shrinklevelN"]), abs=1e-12)
        assert fit.shrink_data == pytest.approx(float(arrays[f"{name}/shrinklevelD"]), abs=1e-12)
        assert fit.n_iter == int(arrays[f"{name}/numiters"])
        assert relative(fit.ncsnr, arrays[f"{name}/ncsnr"]) < 1e-9 * loose
        assert relative(fit.signal_mean, arrays[f"{name}/mnS"]) < 1e-10 * loose
        for key, got in (
            ("cN", fit.noise_cov_raw),
            ("cS", fit.signal_cov_raw),
            ("cNb", fit.noise_cov),
            ("cSb", fit.signal_cov),
        ):
            if f"{name}/{key}" in arrays:
                assert relative(got, arrays[f"{name}/{key}"]) < 1e-10 * loose, (name, key)


@pytest.mark.parametrize("case", BUNDLED)
def test_equals_reference(case):
    check_gsn_runs(*load_case(case))


@pytest.mark.parametrize("case", LARGER)
def test_equals_reference_on_larger_cases(case):
    check_gsn_runs(*load_case(case, bundled=False))


@pytest.mark.parametrize(("n", "r"), [(8, 30), (30, 12), (12, 12)])
def test_likelihood_of_levels_equals_cholesky(n, r):
    rng = np.random.default_rng(n)
    factor = rng.standard_normal((n, 3)) @ rng.standard_normal((3, r)) + rng.standard_normal((n, r))
    points = rng.standard_normal((n, 9))
    levels = DEFAULT_LEVELS[:-1]
    got = nll_of_levels(factor, points, 9, levels)
    c = factor @ factor.T
    for level, value in zip(levels, got, strict=True):
        s = level * c + (1 - level) * np.diag(np.diag(c))
        chol = np.linalg.cholesky(s)
        z = np.linalg.solve(chol, points)
        want = 0.5 * (z**2).sum(0).mean() + np.log(np.diag(chol)).sum() + 0.5 * n * np.log(2 * np.pi)
        assert value == pytest.approx(want, rel=1e-10)


def test_full_level_of_a_rank_deficient_covariance_is_no_candidate():
    rng = np.random.default_rng(0)
    got = nll_of_levels(rng.standard_normal((20, 5)), rng.standard_normal((20, 4)), 4, DEFAULT_LEVELS)
    assert np.isnan(got[-1])
    assert np.isfinite(got[:-1]).all()


def test_fixed_split_leaves_the_global_random_state_alone():
    before = np.random.get_state()[1].copy()  # noqa: NPY002 - the global state is what this is about
    assert sorted(split_order(7)) == list(range(7))
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_permuting_units_permutes_the_result():
    _, data = simulate(20, 40, 3)
    order = np.random.default_rng(1).permutation(20)
    a, b = fit_gsn(data), fit_gsn(data[order])
    assert relative(b.signal_cov, a.signal_cov[np.ix_(order, order)]) < 1e-10
    assert relative(b.noise_cov, a.noise_cov[np.ix_(order, order)]) < 1e-10
    assert (a.shrink_noise, a.shrink_data, a.n_iter) == (b.shrink_noise, b.shrink_data, b.n_iter)


def test_padding_with_missing_trials_changes_nothing():
    _, data = simulate(15, 40, 3)
    padded = np.full((15, 40, 5), np.nan)
    padded[:, :, [0, 2, 3]] = data
    a, b = fit_gsn(data), fit_gsn(padded)
    assert relative(b.signal_cov, a.signal_cov) < 1e-12
    assert b.n_trials == 3
    c = fit_gsn(padded, uneven="missing")
    assert relative(c.noise_cov, a.noise_cov) < 1e-10


def test_units_that_cannot_be_modelled_change_no_other_unit():
    _, data = simulate(12, 40, 3)
    odd = np.concatenate(
        [np.full((1, 40, 3), 4.2), np.full((1, 40, 3), np.nan), data, data[:1, :, :1].repeat(3, 2)]
    )
    odd = np.concatenate([odd, data[:1]])
    odd[-1, 3, 1] = np.inf
    fit, alone = fit_gsn(odd), fit_gsn(data)
    np.testing.assert_array_equal(fit.valid, [False, False, *[True] * 12, False, False])
    np.testing.assert_array_equal(fit.signal_cov[2:14, 2:14], alone.signal_cov)
    assert not fit.signal_cov[0].any()
    assert np.isnan(fit.ncsnr[[0, 1, 14, 15]]).all()


def test_covariances_are_positive_semidefinite_and_near_the_truth():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((6, 6)) + 3 * np.eye(6), rng.standard_normal((6, 6))
    signal = a @ rng.standard_normal((6, 3000))  # of full rank
    data = signal[:, :, None] + np.einsum("ij,jct->ict", b, rng.standard_normal((6, 3000, 3)))
    fit = fit_gsn(data)
    assert relative(fit.signal_cov, a @ a.T) < 0.1
    assert relative(fit.noise_cov, b @ b.T) < 0.05
    # A signal covariance that is positive already is final: nothing iterates.
    assert fit.n_iter == 0
    np.testing.assert_allclose(fit.noise_cov, fit.noise_cov_raw, rtol=1e-9, atol=1e-9)
    _, few = simulate(30, 20, 2)
    fit = fit_gsn(few)
    for c in (fit.signal_cov, fit.noise_cov):
        assert np.linalg.eigvalsh(c).min() > -1e-10 * np.abs(c).max()


def test_nearest_positive_matrix():
    rng = np.random.default_rng(2)
    for shift in (0.5, -0.5):  # mostly positive, mostly negative eigenvalues
        m = rng.standard_normal((9, 9))
        m = (m + m.T) / 2 + shift * np.eye(9)
        w, v = np.linalg.eigh(m)
        got, pairs = nearest_psd(m)
        np.testing.assert_allclose(got, (v * np.maximum(w, 0)) @ v.T, atol=1e-12)
        np.testing.assert_allclose(pairs[0], w[::-1])


def test_errors_are_of_the_family():
    _, data = simulate(5, 12, 3)
    for bad in (data[0], data[:, :, :1], data[:, :1], np.zeros((3, 4, 2)), data[:0], data.astype(str)):
        with pytest.raises(DataError):
            fit_gsn(bad)
    empty = data.copy()
    empty[:, 2] = np.nan
    with pytest.raises(DataError, match="Condition 2"):
        fit_gsn(empty)
    with pytest.raises(UsageError):
        fit_gsn(data, uneven="slow")
    with pytest.raises(UsageError):
        fit_gsn(data, shrink_levels=[0.5, 1.5])
