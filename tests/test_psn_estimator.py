# SPDX-License-Identifier: Apache-2.0
"""fit_psn: recovery of a known signal, symmetries, missing trials, noise as data, errors."""

import warnings

import numpy as np
import pytest
from psn_cases import error, relative, simulate

from conform_app.errors import DataError, UsageError
from conform_app.psn import fit_gsn, fit_psn
from conform_app.psn.compat import psn

PRESETS = ("standard", "conservative", "aggressive", "compare", "wiener")


@pytest.mark.parametrize("shape", [(50, 200, 5), (100, 100, 3), (100, 100, 2)])
@pytest.mark.parametrize("noise", [1.0, 3.0, 10.0])
@pytest.mark.parametrize("aligned", [0.0, 0.5])
def test_default_recovers_better_than_the_average_and_every_truncating_preset(shape, noise, aligned):
    truth, data = simulate(*shape, noise=noise, aligned=aligned, seed=11)
    gsn = fit_gsn(data)
    fit = fit_psn(data, gsn=gsn)
    got = error(fit.denoised, truth)
    assert got <= error(data.mean(axis=2), truth)
    for mode in ("standard", "conservative", "aggressive", "compare"):
        assert got <= error(fit_psn(data, mode=mode, gsn=gsn).denoised, truth) + 1e-9, mode
    assert fit.cv_scheme == ("trials" if shape[2] > 2 else "conditions")
    population = fit_psn(data, threshold="global", gsn=gsn)
    assert population.cv_error.argmin() == population.threshold
    got = error(population.denoised, truth)
    presets = [error(fit_psn(data, mode=m, gsn=gsn).denoised, truth) for m in ("standard", "aggressive")]
    assert got <= min(presets)


def test_few_conditions():
    """Eight conditions teach little about axes: better than the average, and than presets in noise."""
    for noise in (1.0, 10.0):
        rows = []
        for seed in range(4):
            truth, data = simulate(60, 8, 12, noise=noise, seed=seed)
            rows.append([error(data.mean(axis=2), truth), error(fit_psn(data).denoised, truth)])
            rows[-1] += [error(fit_psn(data, mode=m).denoised, truth) for m in ("standard", "aggressive")]
        average, cv, standard, aggressive = np.mean(rows, axis=0)
        assert cv < average
        assert cv < (1.15 if noise == 1.0 else 0.9) * min(standard, aggressive)


def test_pure_noise_is_removed():
    data = np.random.default_rng(0).standard_normal((30, 60, 4)) + 3
    fit = fit_psn(data)
    assert np.median(fit.threshold) <= 2
    assert fit_psn(data, threshold="global").threshold <= 2
    np.testing.assert_allclose(fit.denoised.mean(axis=1), data.mean(axis=(1, 2)), rtol=1e-12)


@pytest.mark.parametrize("level", ["global", "unit"])
def test_permuting_units_permutes_the_result(level):
    _, data = simulate(25, 40, 3)
    order = np.random.default_rng(1).permutation(25)
    a, b = fit_psn(data, threshold=level), fit_psn(data[order], threshold=level)
    np.testing.assert_allclose(b.denoised, a.denoised[order], atol=1e-8)
    np.testing.assert_allclose(b.cv_error, a.cv_error, rtol=1e-8)


@pytest.mark.parametrize("mode", ["cv", "standard", "wiener"])
def test_units_that_cannot_be_modelled_change_nothing_and_come_back(mode):
    _, data = simulate(20, 30, 3)
    odd = np.concatenate([np.full((1, 30, 3), 7.0), data, np.full((1, 30, 3), np.nan)])
    a, b = fit_psn(data, mode=mode), fit_psn(odd, mode=mode)
    np.testing.assert_allclose(b.denoised[1:-1], a.denoised, atol=1e-10)
    np.testing.assert_array_equal(b.valid, [False, *[True] * 20, False])
    np.testing.assert_array_equal(b.denoised[0], 7.0)
    assert np.isnan(b.denoised[-1]).all()
    assert np.isnan(b.removed_noise[[0, -1]]).all()
    assert any("2 of 22 units" in sentence for sentence in b.account)
    single = odd[:, :, 0]
    np.testing.assert_array_equal(b.apply(single)[0], single[0])
    np.testing.assert_allclose(b.apply(single)[1:-1], a.apply(data[:, :, 0]), atol=1e-10)


@pytest.mark.parametrize("mode", ["cv", "aggressive", "wiener"])
def test_padding_with_missing_trials_changes_nothing(mode):
    _, data = simulate(20, 30, 3)
    padded = np.full((20, 30, 4), np.nan)
    padded[:, :, [0, 1, 3]] = data
    a, b = fit_psn(data, mode=mode), fit_psn(padded, mode=mode)
    np.testing.assert_allclose(b.denoised, a.denoised, atol=1e-9)


@pytest.mark.parametrize("level", ["global", "unit"])
@pytest.mark.parametrize("mode", ["cv", "auto", *PRESETS])
@pytest.mark.parametrize("scale", [1e-13, 1e6])
@pytest.mark.parametrize("n_units", [1, 30])
def test_the_unit_of_measurement_does_not_matter(mode, level, scale, n_units):
    """Tesla or femtotesla, percent or counts."""
    _, data = simulate(30, 40, 3, noise=1.0, aligned=0.0, seed=1)
    data = data[-n_units:]
    options = {"mode": mode} if mode == "wiener" else {"mode": mode, "threshold": level}
    one, other = fit_psn(data, **options), fit_psn(data * scale, **options)
    np.testing.assert_allclose(other.denoised / scale, one.denoised, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(other.threshold, one.threshold, rtol=1e-6)
    np.testing.assert_allclose(other.kept_noise / scale**2, one.kept_noise, rtol=1e-5, atol=1e-7)


def test_one_repeated_condition_leaves_no_choice_between_bases():
    """Without two halves of two conditions there is no score, and no warning of the arithmetic."""
    _, data = simulate(20, 30, 4)
    data[:, 1:, 1:] = np.nan
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="invalid value")
        assert fit_psn(data, mode="compare").basis_name == "signal"


def test_uneven_repeats_are_denoised_including_conditions_shown_once():
    truth, data = simulate(40, 80, 4, seed=3)
    data[:, :25, 2:] = np.nan
    data[:, 25:35, 1:] = np.nan
    fit = fit_psn(data)
    average = np.nanmean(data, axis=2)
    assert fit.cv_scheme == "trials"
    assert error(fit.denoised, truth) < 0.5 * error(average, truth)
    once = slice(25, 35)
    assert error(fit.denoised[:, once], truth[:, once]) < error(average[:, once], truth[:, once])
    noise = fit.noise()
    assert np.isnan(noise[:, 25:35, 1:]).all()
    np.testing.assert_allclose(noise[:, 40], data[:, 40] - fit.denoised[:, 40, None])


def test_auto_filters_each_condition_for_its_own_number_of_trials():
    truth, data = simulate(60, 120, 12, noise=1.0)
    once = np.arange(120) % 3 == 0
    data[:, once, 1:] = np.nan
    fit, preset = fit_psn(data, mode="auto"), fit_psn(data, mode="wiener")
    assert fit.criterion == "wiener"
    for n_trials, here in ((1, once), (12, ~once)):
        own = fit.apply(fit.averages[:, here], n_trials=n_trials)
        np.testing.assert_allclose(fit.denoised[:, here], own, atol=1e-9)
    # the preset has one filter for all
    np.testing.assert_allclose(preset.denoised, preset.apply(preset.averages), atol=1e-9)
    assert error(fit.denoised[:, once], truth[:, once]) < 0.8 * error(
        preset.denoised[:, once], truth[:, once]
    )
    assert error(fit.denoised, truth) < error(preset.denoised, truth)


@pytest.mark.parametrize("mode", PRESETS)
def test_presets_equal_the_published_interface(mode):
    _, data = simulate(24, 60, 3)
    fit, published = fit_psn(data, mode=mode), psn(data, mode)
    assert relative(fit.denoised, published["denoiseddata"]) < 1e-7
    assert fit.n_dims == pytest.approx(published["best_threshold"], rel=1e-6)


@pytest.mark.parametrize("options", [{}, {"threshold": "unit"}, {"mode": "wiener"}, {"mode": "standard"}])
def test_apply_repeats_the_fit_and_is_linear(options):
    _, data = simulate(20, 30, 3)
    fit = fit_psn(data, **options)
    np.testing.assert_allclose(fit.apply(fit.averages), fit.denoised, atol=1e-10)
    np.testing.assert_allclose(fit.apply(data).mean(axis=2), fit.denoised, atol=1e-9)
    assert fit.apply(data).shape == data.shape
    np.testing.assert_allclose(fit.apply(fit.unit_means), fit.unit_means, atol=1e-10)


@pytest.mark.parametrize("options", [{}, {"threshold": "unit"}, {"mode": "wiener"}])
def test_noise_and_variances_add_up(options):
    _, data = simulate(20, 60, 3)
    fit = fit_psn(data, **options)
    np.testing.assert_allclose(fit.noise() + fit.denoised[:, :, None], data, atol=1e-12)
    if fit.criterion != "wiener":
        total = (fit.kept_signal + fit.removed_signal).sum()
        assert total == pytest.approx(np.trace(fit.gsn.signal_cov), rel=1e-9)
    joined = np.concatenate([fit.signal_subspace, fit.noise_subspace], axis=1)
    np.testing.assert_allclose(joined.T @ joined, np.eye(joined.shape[1]), atol=1e-9)
    assert (fit.removed_noise > 0).all()
    assert fit.noise_subspace.shape[0] == 20


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "standard"},
        {"mode": "standard", "threshold": "unit"},
        {"mode": "aggressive"},
        {"mode": "aggressive", "ordering": "signalvariance"},
        {"mode": "cv"},
        {"mode": "cv", "threshold": "global"},
        {"mode": "cv", "basis": "pca", "unit_groups": np.arange(30) // 3},
        {"mode": "standard", "basis": np.eye(30)[:, :7]},
        {"allowable_thresholds": [0]},
        {"mode": "wiener"},
        {"mode": "auto"},
    ],
    ids=str,
)
def test_variances_of_units_are_those_that_the_denoiser_leaves(options):
    """Unequal units, so that what two axes share of a unit does not cancel."""
    _, data = simulate(30, 40, 3, seed=2)
    data = data * np.exp(np.random.default_rng(2).standard_normal((30, 1, 1)))
    fit = fit_psn(data, **options)
    d = fit.operator()
    for name, cov in (("signal", fit.gsn.signal_cov), ("noise", fit.gsn.noise_cov / fit.n_trials)):
        kept, removed = getattr(fit, f"kept_{name}"), getattr(fit, f"removed_{name}")
        np.testing.assert_allclose(kept, np.einsum("ui,ij,uj->u", d, cov, d), rtol=1e-7, atol=1e-12)
        np.testing.assert_allclose(kept + removed, cov.diagonal(), rtol=1e-7)


def test_left_out_trials_do_not_reach_the_axes():
    """Axes that have seen the left-out trial promise too much."""
    truth, data = simulate(60, 40, 3, noise=10.0, seed=5)
    shortcut, honest = fit_psn(data, cv_basis="all"), fit_psn(data, pooling=0)
    assert shortcut.cv_error.min() < honest.cv_error.min()
    assert error(honest.denoised, truth) <= error(shortcut.denoised, truth)


def test_forced_and_allowed_cuts():
    _, data = simulate(20, 30, 3)
    assert fit_psn(data, allowable_thresholds=4).threshold == 4
    assert fit_psn(data, allowable_thresholds=[3, 9, 20], threshold="global").threshold in (3, 9, 20)
    none = fit_psn(data, allowable_thresholds=0)
    np.testing.assert_allclose(none.denoised, np.broadcast_to(none.unit_means[:, None], (20, 30)))
    everything = fit_psn(data, allowable_thresholds=20)
    np.testing.assert_allclose(everything.denoised, data.mean(axis=2), atol=1e-9)
    groups = np.arange(20) // 5
    by_group = fit_psn(data, threshold="unit", unit_groups=groups).threshold
    assert all(len(set(by_group[groups == g])) == 1 for g in range(4))


def test_float32_and_integers():
    _, data = simulate(20, 30, 3)
    single = fit_psn(data.astype(np.float32))
    assert relative(single.denoised, fit_psn(data).denoised) < 1e-4
    assert single.noise().dtype == np.float32
    assert fit_psn(np.round(data * 100).astype(int)).noise().dtype == np.float64


def test_input_is_left_alone_and_repeats_are_identical():
    _, data = simulate(20, 30, 3)
    before = data.copy()
    a, b = fit_psn(data), fit_psn(data)
    np.testing.assert_array_equal(data, before)
    np.testing.assert_array_equal(a.denoised, b.denoised)


def test_partly_missing_units():
    _, data = simulate(20, 40, 4)
    data[3, 5, 1] = np.nan
    fit = fit_psn(data)
    assert not fit.valid[3]
    np.testing.assert_allclose(fit.denoised[3], np.nanmean(data[3], axis=1))
    kept = fit_psn(data, mode="wiener", uneven="missing")
    assert kept.valid.all()
    chosen = fit_psn(data, uneven="missing")
    assert chosen.valid.all()
    assert chosen.cv_scheme == "trials"
    with pytest.raises(UsageError, match="uneven"):
        fit_psn(data, uneven="slow")


def test_gaps_of_all_units_are_named():
    _, data = simulate(20, 30, 3)
    data[np.random.default_rng(0).random(data.shape) < 0.1] = np.nan
    with pytest.raises(DataError, match=r"lack trials that others have.*missing"):
        fit_psn(data)


def test_a_trial_that_few_units_have_does_not_cost_the_others():
    _, data = simulate(20, 40, 4)
    whole = fit_psn(data[:, :, :3])
    data[2:, :, 3] = np.nan
    fit = fit_psn(data)
    assert fit.valid.all()
    np.testing.assert_allclose(fit.denoised, whole.denoised, atol=1e-9)


def test_two_trials_and_very_few_conditions_warn():
    _, data = simulate(10, 3, 2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit = fit_psn(data)
    assert fit.cv_scheme == "shared"
    assert any("Too few repeats" in str(w.message) for w in caught)


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "best"},
        {"threshold": "voxel"},
        {"basis": "fourier"},
        {"basis": np.eye(4)},
        {"criterion": "elbow"},
        {"cv_basis": "some"},
        {"max_folds": 1},
        {"alpha": 2},
        {"alpha": 0.5},  # the default is cross-validated
        {"alpha": 0.5, "mode": "auto"},
        {"mode": "standard", "unit_groups": np.arange(10) // 2},  # one cut for all
        {"mode": "wiener", "unit_groups": np.arange(10) // 2},
        {"variance_threshold": -1},
        {"allowable_thresholds": [99]},
        {"allowable_thresholds": [1.5]},
        {"unit_groups": [0, 1]},
        {"mode": "wiener", "threshold": "unit"},
        {"criterion": "variance_eigenvalues", "threshold": "unit"},
        {"basis": "compare"},
        {"uneven": "slow"},
        {"shrink_levels": []},
    ],
)
def test_wrong_options(options):
    _, data = simulate(10, 20, 3)
    with pytest.raises(UsageError) as caught:
        fit_psn(data, **options)
    assert "\n" not in str(caught.value)
    assert caught.value.remedy


def test_wrong_data():
    _, data = simulate(10, 20, 3)
    for bad in (data[0], data[:, :, :1], data[:, :1], np.ones((3, 4, 2)), np.full((3, 4, 2), np.nan)):
        with pytest.raises(DataError):
            fit_psn(bad)
    with pytest.raises(DataError):
        fit_psn(data).apply(data[:-1])
    with pytest.raises(UsageError):
        fit_psn(data, gsn=fit_gsn(data[:-1]))
