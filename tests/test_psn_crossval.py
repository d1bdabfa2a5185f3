# SPDX-License-Identifier: Apache-2.0
"""The cross-validation curves against brute force and against the releases that had them."""

from dataclasses import replace

import numpy as np
import pytest
from psn_cases import load_case, simulate

from conform_app.psn import crossval, fit_gsn, fit_psn
from conform_app.psn.basis import make_basis, measured_signal
from conform_app.psn.intake import usable_data

LEGACY = {0: "signal", 2: "noise", 3: "pca"}


@pytest.mark.parametrize("swap", [False, True])
def test_curves_equal_brute_force(swap):
    _, data = simulate(9, 14, 4)
    there = np.ones((14, 4), bool)
    there[:3, 3] = False
    there[5, 1:] = False
    data[:, ~there] = np.nan
    axes = np.linalg.qr(np.random.default_rng(0).standard_normal((9, 6)))[0]
    folds = crossval.leave_one_trial_out(there)
    got = crossval.cv_curves(data, folds, lambda fold: axes, per_unit=True, swap=swap)
    plain = crossval.cv_curves(data, folds, lambda fold: axes, swap=swap)
    total, weight = np.zeros((9, 7)), 0
    for fold in folds:
        train = np.stack([np.nanmean(np.where(fold.train[c], data[:, c], np.nan), 1) for c in range(14)], 1)
        scored = np.flatnonzero(fold.test.any(axis=1))
        test = np.full((9, 14), np.nan)
        test[:, scored] = np.nanmean(np.where(fold.test[scored], data[:, scored], np.nan), 2)
        if swap:
            train, test = test, train
        m = np.nanmean(train[:, scored] if swap else train, axis=1, keepdims=True)
        if swap:  # means come from the trials that the axes may use
            m = np.stack([np.nanmean(np.where(fold.train[c], data[:, c], np.nan), 1) for c in range(14)], 1)
            m = m.mean(axis=1, keepdims=True)
        for k in range(7):
            rebuilt = axes[:, :k] @ axes[:, :k].T @ (train - m)
            total[:, k] += ((rebuilt - (test - m))[:, scored] ** 2).sum(axis=1)
        weight += scored.size
    np.testing.assert_allclose(got.units, total / weight, rtol=1e-10)
    np.testing.assert_allclose(got.population, total.mean(axis=0) / weight, rtol=1e-10)
    np.testing.assert_allclose(plain.population, got.population, rtol=1e-10)


def test_folds_leave_each_trial_out_once_and_never_train_on_it():
    there = np.ones((6, 5), bool)
    there[0, 1:] = False
    there[1, 2:] = False
    for limit in (None, 3):
        folds = crossval.leave_one_trial_out(there, limit)
        tested = np.sum([f.test for f in folds], axis=0)
        np.testing.assert_array_equal(tested, there & (there.sum(1, keepdims=True) > 1))
        for f in folds:
            assert not (f.train & f.test).any()
            assert f.train.any(axis=1).all()
    for f in crossval.leave_conditions_out(there, 3):
        assert not (f.basis.any(axis=1) & f.test.any(axis=1)).any()
        assert not (f.train & f.test).any()


def test_legacy_curves_and_cuts():
    arrays, runs = load_case("legacy_cv")
    data = arrays["data"]
    usable, gsn, mean = usable_data(data), fit_gsn(data), data.mean(axis=2)
    for run in runs:
        opt, name = run["opt"], run["run"]
        b = make_basis(LEGACY[run["V"]], gsn.signal_cov, gsn.noise_cov, mean, 3)
        b = b.ordered(np.argsort(measured_signal(b.axes, usable.x, usable.there))[::-1])
        curves = crossval.cv_curves(
            usable.x,
            crossval.leave_one_trial_out(usable.there),
            lambda fold, axes=b.axes: axes,
            per_unit=True,
            means=mean.mean(axis=1),
            centre_test=False,
            swap=opt["cv_mode"] == 1,
        )
        k = np.asarray(opt.get("cv_thresholds", range(31)))
        population, units = curves.population[k], curves.units[:, k]
        if "unit_groups" in opt:
            groups = np.asarray(opt["unit_groups"])
            units = np.stack([units[groups == g].mean(axis=0) for g in groups])
        single = opt["cv_threshold_per"] == "unit"
        cut = k[units.argmin(axis=1)] if single else k[population.argmin()]
        np.testing.assert_array_equal(cut, arrays[f"{name}/best_threshold"])
        # Beyond the signal's rank the axes are arbitrary, and so are the reference's scores there.
        arbitrary = np.flatnonzero(b.signal_var < 1e-6 * b.signal_var.max()) if run["V"] == 0 else []
        lead = k <= min(arbitrary, default=len(data))
        want = -arrays[f"{name}/cv_mean_pop"]
        np.testing.assert_allclose(population[lead], want[lead], rtol=1e-9)
        if f"{name}/cv_mean_unit" in arrays:
            np.testing.assert_allclose(units, -arrays[f"{name}/cv_mean_unit"].T, rtol=1e-9)


def test_shortcut_of_fit_psn_reproduces_the_legacy_cuts():
    arrays, runs = load_case("legacy_cv")
    data = arrays["data"]
    gsn = replace(fit_gsn(data), signal_eig=None)  # plain eigenvectors, as there
    for run in (r for r in runs if r["opt"]["cv_mode"] == 0):
        opt = run["opt"]
        fit = fit_psn(
            data,
            basis=LEGACY[run["V"]],
            ordering="measured",
            cv_basis="all",
            threshold=opt["cv_threshold_per"],
            unit_groups=opt.get("unit_groups"),
            allowable_thresholds=opt.get("cv_thresholds"),
            gsn=gsn,
        )
        np.testing.assert_array_equal(fit.threshold, arrays[f"{run['run']}/best_threshold"])
        assert fit.cv_scheme == "shared"
