# SPDX-License-Identifier: Apache-2.0
"""Cross-validated cuts where single units miss single trials."""

import warnings

import numpy as np
import pytest
from psn_cases import error, simulate

from conform_app.psn import fit_gsn, fit_psn, gaps, honest
from conform_app.psn.intake import usable_data
from conform_app.psn.options import check_options
from conform_app.psn.selection import ordered_basis


def choices(data, **given):
    """The choice with and without the code for gaps, on data that have none."""
    named = {"mode": "cv", "threshold": None, "basis": None, "criterion": None, "ordering": "eigenvalues"}
    named |= {"cv_basis": "refit", "max_folds": 12, "variance_threshold": 0.99, "alpha": None}
    named |= {"allowable_thresholds": None, "unit_groups": None, "pooling": None}
    options = check_options(len(data), *(named | given).values())
    usable, gsn = usable_data(data), fit_gsn(data)
    axes = ordered_basis(options, gsn, data.mean(axis=2), usable)
    name = "choose_blend" if options.criterion == "auto" else "choose_cut"
    return [getattr(module, name)(usable, gsn, axes, options, options.groups) for module in (gaps, honest)]


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"threshold": "global"},
        {"mode": "auto"},
        {"basis": "signal"},
        {"cv_basis": "all"},
        {"max_folds": 2},
        {"unit_groups": np.arange(30) // 10},
        {"ordering": "prediction", "basis": "signal"},
        {"mode": "auto", "max_folds": 3},
    ],
)
@pytest.mark.parametrize("n_trials", [2, 4])
def test_without_gaps_the_choice_is_the_ordinary_one(given, n_trials):
    _, data = simulate(30, 40, n_trials)
    ours, ordinary = choices(data, **given)
    assert ours.scheme == ordinary.scheme
    assert ours.population == ordinary.population
    if ordinary.units is not None:
        np.testing.assert_array_equal(ours.units, ordinary.units)
    np.testing.assert_allclose(ours.curve, ordinary.curve, rtol=1e-6)
    np.testing.assert_allclose(ours.weights, ordinary.weights)
    assert ours.errors == pytest.approx(ordinary.errors, rel=1e-6)


def with_gaps(n_units=40, n_conditions=60, n_trials=4, share=0.15, seed=0):
    """Trials missing for single units; condition 0 shown once, condition 1 once to half of the units."""
    truth, data = simulate(n_units, n_conditions, n_trials, seed=seed)
    rng = np.random.default_rng(seed)
    gone = rng.random(data.shape) < share
    gone[:, :, 0] = False
    data[gone] = np.nan
    data[:, 0, 1:] = np.nan
    data[::2, 1, 1:] = np.nan
    return truth, data


@pytest.mark.parametrize("options", [{}, {"threshold": "global"}, {"mode": "auto"}])
def test_gaps_of_single_units_cost_little(options):
    ours, plain, best = [], [], []
    for seed in range(2):
        truth, data = with_gaps(seed=seed)
        fit = fit_psn(data, uneven="missing", **options)
        assert fit.valid.all()
        assert np.isfinite(fit.denoised).all()
        assert fit.cv_scheme == "trials"
        ours.append(error(fit.denoised, truth))
        plain.append(error(np.nanmean(data, axis=2), truth))
        full = simulate(40, 60, 4, seed=seed)[1]
        best.append(error(fit_psn(full, **options).denoised, truth))
        np.testing.assert_allclose(fit.apply(fit.averages), fit.denoised, atol=1e-9)
    assert np.mean(ours) < 0.5 * np.mean(plain)
    assert np.mean(ours) < 1.5 * np.mean(best)


def test_conditions_shown_once_are_denoised_too():
    truth, data = with_gaps()
    fit = fit_psn(data, uneven="missing")
    m = fit.unit_means[:, None]
    for condition in (0, 1):
        plain = fit.averages[:, [condition]] - truth[:, [condition]]
        after = fit.denoised[:, [condition]] - truth[:, [condition]]
        assert (after**2).sum() < 0.7 * (plain**2).sum()
    assert np.isfinite(m).all()


def test_left_out_trials_do_not_touch_what_they_are_tested_on():
    """Changing the j-th trial of one unit changes nothing that its own fold was fitted to."""
    _, data = with_gaps(n_units=12, n_conditions=20)
    there = ~np.isnan(data)
    folds = list(gaps._leave_trials_out(there, 12))
    counts = there.sum(axis=2)
    assert len(folds) == 4
    for fold in folds:
        assert not (fold.train & fold.test).any()
        np.testing.assert_array_equal((fold.train | fold.test), there)
        assert (fold.test.sum(axis=2) <= 1).all()
        assert fold.train.any(axis=2).all()
    tested = sum(fold.test.sum(axis=2) for fold in folds)
    np.testing.assert_array_equal(tested, np.where(counts > 1, counts, 0))


def test_shrinkage_is_chosen_though_no_trial_is_complete():
    _, data = simulate(60, 40, 3)
    whole = fit_gsn(data)
    rng = np.random.default_rng(0)
    data[rng.random(data.shape) < 0.05] = np.nan
    assert np.isnan(data).any(axis=0).sum() > 100
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit = fit_gsn(data, uneven="missing")
    assert whole.shrink_noise - 0.25 <= fit.shrink_noise <= whole.shrink_noise
    assert whole.shrink_data - 0.25 <= fit.shrink_data <= whole.shrink_data + 0.1
    with pytest.warns(RuntimeWarning, match="none is applied"):
        assert fit_gsn(data, uneven="missing", reference=True).shrink_noise == 1


def test_units_do_not_lose_trials_because_others_miss_them():
    """T counts the trials that units have, not those that all units have."""
    rng = np.random.default_rng(0)
    _, data = simulate(30, 40, 4)
    for unit in range(30):  # every trial is missing for some unit
        data[unit, np.arange(40), rng.integers(0, 4, 40)] = np.nan
    assert fit_psn(data, mode="wiener", uneven="missing").n_trials == pytest.approx(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert fit_gsn(data, uneven="missing", reference=True).n_trials == 1


def test_order_of_axes_by_measured_signal():
    """Conditions without any complete trial count as well: their averages are there."""
    _, data = simulate(12, 40, 3, noise=0.5, seed=3)
    gappy = data.copy()
    for trial in range(3):
        gappy[trial, :10, trial] = np.nan
    options = {"mode": "conservative", "basis": np.eye(12), "ordering": "measured", "uneven": "missing"}
    whole, fit = fit_psn(data, **options), fit_psn(gappy, **options)
    order = [f.axes.argmax(axis=0) for f in (whole, fit)]
    signal = whole.gsn.signal_cov.diagonal()[order[1]]
    assert (np.diff(signal[:4]) < 0).all()
    np.testing.assert_array_equal(order[1][:3], order[0][:3])


@pytest.mark.parametrize("fit", [fit_gsn, fit_psn])
def test_what_is_masked_is_missing(fit):
    _, data = simulate(20, 15, 3)
    hidden = np.zeros(data.shape, bool)
    hidden[:, 4, 2] = True
    told, meant = fit(np.ma.array(data, mask=hidden)), fit(np.where(hidden, np.nan, data))
    np.testing.assert_array_equal(
        told.signal_cov if fit is fit_gsn else told.denoised,
        meant.signal_cov if fit is fit_gsn else meant.denoised,
    )
