# SPDX-License-Identifier: Apache-2.0
"""Parcels, sample space, mode auto, and the scikit-learn face: equal to the exact fit where both run."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from psn_cases import BUNDLED, error, load_case, relative, simulate

from conform_app.errors import DataError, UsageError
from conform_app.psn import PSN, fit_gsn, fit_parcels, fit_psn, fit_sample_space
from conform_app.psn.heldout import HeldOut, held_out
from conform_app.psn.parcels import bisect, from_labels


@pytest.mark.parametrize("options", [{}, {"threshold": "global"}, {"mode": "wiener"}, {"mode": "auto"}])
def test_each_parcel_is_the_exact_fit(options):
    _, data = simulate(30, 40, 3)
    parcel = np.arange(30) % 2
    joined = fit_parcels(data, parcel, n_jobs=2, **options)
    for number in (0, 1):
        here = parcel == number
        fit = fit_psn(data[here], **options)
        np.testing.assert_allclose(joined.denoised[here], fit.denoised, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(joined.removed_noise[here], fit.removed_noise, rtol=1e-5)
        model = joined.models[number]
        top = model.noise_axes.astype(float)
        np.testing.assert_allclose(
            np.einsum("uq,uv,vq->q", top, fit.gsn.noise_cov, top), model.noise_axis_var, rtol=1e-4
        )
    np.testing.assert_allclose(
        joined.apply(data[:, :, 0])[parcel == 1], fit.apply(data[parcel == 1][:, :, 0]), atol=1e-4
    )


def test_models_need_not_be_kept():
    _, data = simulate(30, 40, 3)
    parcel = np.arange(30) % 2
    kept, bare = (fit_parcels(data, parcel, mode="auto", keep_models=keep) for keep in (True, False))
    np.testing.assert_array_equal(bare.denoised, kept.denoised)
    np.testing.assert_array_equal(bare.removed_noise, kept.removed_noise)
    assert bare.account == kept.account
    assert bare.models == ()
    with pytest.raises(UsageError):
        bare.apply(data[:, :, 0])


@pytest.mark.parametrize("mode", ["cv", "wiener"])
def test_responses_of_any_form(mode):
    """Single trials at once, with as many conditions as a parcel has units, or one response."""
    _, data = simulate(20, 10, 3)
    fit = fit_parcels(data, np.arange(20) // 10, mode=mode)
    every = fit.apply(data)
    for trial in range(3):
        np.testing.assert_allclose(every[:, :, trial], fit.apply(data[:, :, trial]), atol=1e-9)
    np.testing.assert_allclose(fit.apply(data[:, 4, 1]), every[:, 4, 1], atol=1e-9)
    with pytest.raises(DataError, match="20 units"):
        fit.apply(data[:10, :, 0])


@pytest.mark.parametrize("parcel", [np.arange(20) / 10, np.arange(20) - 1, np.full(20, np.nan)])
def test_parcels_that_are_no_numbers(parcel):
    _, data = simulate(20, 10, 3)
    with pytest.raises(DataError, match="whole numbers"):
        fit_parcels(data, parcel)


def test_a_parcel_without_usable_units_is_left_alone():
    _, data = simulate(20, 30, 3)
    data[:5] = 7.0
    joined = fit_parcels(data, np.repeat([0, 1], [5, 15]))
    np.testing.assert_array_equal(joined.denoised[:5], 7.0)
    assert not joined.valid[:5].any()
    assert joined.models[0] is None
    assert any("Parcel 1 was left" in sentence for sentence in joined.account)
    with pytest.raises(DataError):
        fit_parcels(data[:5], np.zeros(5, int))
    with pytest.raises(DataError):
        fit_parcels(data, np.zeros(3, int))


def test_voxels_without_a_label_may_be_nan():
    labels = np.array([2.0, np.nan, 2.0, 1.0, np.nan])
    np.testing.assert_array_equal(from_labels(labels), [1, 2, 1, 0, 2])


def test_parcels_from_labels_are_compact_and_bounded():
    labels = np.repeat([0, 7, 3], [50, 10, 25])
    parcel = from_labels(labels, np.arange(85)[:, None], max_units=20)
    assert np.bincount(parcel).max() <= 20
    for number in np.unique(parcel):
        assert len(set(labels[parcel == number])) == 1
    assert set(np.unique(parcel)) == set(range(parcel.max() + 1))
    assert bisect(np.zeros((5, 3)), 2).max() == 2


@pytest.mark.parametrize("shape", [(12, 30, 3), (150, 12, 3)])
@pytest.mark.parametrize("mode", ["wiener", "aggressive"])
def test_sample_space_equals_the_fit_without_shrinkage(shape, mode):
    _, data = simulate(*shape)
    exact = fit_psn(data, mode=mode, shrink=False)
    dual = fit_sample_space(data, mode=mode)
    assert relative(dual.denoised, exact.denoised) < 1e-5
    if mode == "wiener" or shape[0] < shape[1]:  # else rounding adds dimensions of no size
        assert dual.inner.n_dims == pytest.approx(exact.n_dims, rel=1e-3)


def test_sample_space_with_missing_trials_and_wrong_options():
    _, data = simulate(60, 15, 4)
    data[:, :5, 3] = np.nan
    exact, dual = fit_psn(data, mode="wiener", shrink=False), fit_sample_space(data.astype(np.float32))
    assert relative(dual.denoised, exact.denoised) < 1e-4
    for wrong in ({"threshold": "unit"}, {"shrink": True}, {"mode": "auto"}):
        with pytest.raises(UsageError):
            fit_sample_space(data, **wrong)
    data[3, 10, 2] = np.nan  # left out, and as it was
    exact, dual = fit_psn(data, mode="wiener", shrink=False), fit_sample_space(data)
    np.testing.assert_array_equal(dual.valid, exact.valid)
    assert relative(dual.denoised, exact.denoised) < 1e-5
    with pytest.raises(DataError):
        fit_sample_space(np.full((5, 4, 3), 7.0))


@pytest.mark.parametrize(
    "row", [(100, 200, 3, 3.0), (100, 200, 3, 10.0), (50, 200, 5, 1.0), (60, 100, 2, 3.0)]
)
def test_auto_is_as_good_as_the_best_candidate(row):
    auto, best = [], []
    for seed in range(3):
        truth, data = simulate(*row[:3], noise=row[3], seed=seed)
        gsn = fit_gsn(data)
        options = ({"threshold": "global"}, {"threshold": "unit"}, {"mode": "wiener"})
        auto.append(error(fit_psn(data, mode="auto", gsn=gsn).denoised, truth))
        best.append([error(fit_psn(data, gsn=gsn, **o).denoised, truth) for o in options])
    assert np.mean(auto) <= 1.03 * np.mean(best, axis=0).min()


def test_auto_says_what_it_chose_and_applies_it():
    _, data = simulate(40, 80, 3)
    fit = fit_psn(data, mode="auto")
    assert fit.candidate_errors.keys() == {"population", "unit", "wiener", "blend"}
    assert any("Cross-validation" in sentence for sentence in fit.account)
    np.testing.assert_allclose(fit.apply(fit.averages), fit.denoised, atol=1e-9)
    np.testing.assert_allclose(
        fit.operator() @ (fit.averages - fit.unit_means[:, None]),
        fit.denoised - fit.unit_means[:, None],
        atol=1e-9,
    )
    with pytest.raises(UsageError):
        fit_psn(data, mode="auto", basis="signal")


def test_auto_does_not_call_a_filter_chosen_that_is_kept_for_want_of_better():
    rng = np.random.default_rng(10)
    for _ in range(40):
        signal = rng.standard_normal((40, 1)) @ rng.standard_normal((1, 8))
        fit = fit_psn(signal[:, :, None] + 3 * rng.standard_normal((40, 8, 10)), mode="auto")
        errors = fit.candidate_errors
        if fit.criterion == "wiener" and errors["population"] < errors["wiener"]:
            break
    said = " ".join(fit.account)
    assert errors["population"] < errors["wiener"]
    assert "nothing clearly better than the Wiener filter" in said
    assert "chose" not in said


def test_few_conditions_are_said():
    rng = np.random.default_rng(0)
    data = rng.standard_normal((80, 6, 1)) + rng.standard_normal((80, 6, 8))
    assert any("6 conditions for 80 units" in sentence for sentence in fit_psn(data).account)


def test_held_out_reliability_survives_a_voxel_without_trials():
    _, data = simulate(40, 60, 4, noise=10.0)
    whole = held_out(data, np.zeros(40, int), {})
    assert whole.error_after < whole.error_before
    assert np.nanmedian(whole.reliability) > np.nanmedian(whole.before)
    data[0] = np.nan
    data[1, :, 2:] = np.nan
    holed = held_out(data, np.zeros(40, int), {})
    assert np.isnan(holed.reliability[0])
    assert abs(holed.error_before / whole.error_before - 1) < 0.1
    none = held_out(data[:, :, :2], np.zeros(40, int), {})
    assert np.isnan(none.error_before)
    assert "too few repeats" in none.account()[0]


def test_voxels_left_flat_count_as_uncorrelated():
    _, data = simulate(40, 60, 4, noise=10.0)
    parcel = np.zeros(40, int)

    class Flat:
        def __init__(self, data):
            self.averages = np.nanmean(data, axis=2)
            self.denoised = self.averages.copy()
            self.denoised[:10] = 0.0

    whole = held_out(data, parcel, lambda data, parcel: Flat(data))
    assert np.isnan(whole.reliability[:10]).all()
    np.testing.assert_allclose(whole.reliability[10:], whole.before[10:])
    said = whole.account()[0]
    assert "25 % of the voxels were left flat" in said
    counted = np.where(np.arange(40) < 10, 0.0, whole.before)
    assert f"went from {np.median(whole.before):.2f} to {np.median(counted):.2f}" in said


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (1.004, "rose by less than 1 %"),
        (0.997, "fell by less than 1 %"),
        (1.2, "rose by 20 %"),
        (1.0, "did not"),
    ],
)
def test_a_small_change_is_not_called_zero(after, words):
    nothing = np.full(3, np.nan, np.float32)
    assert words in HeldOut(nothing, nothing, 1.0, after).account()[0]


def test_estimator_follows_scikit_learn():
    from sklearn.base import clone
    from sklearn.exceptions import NotFittedError

    _, data = simulate(30, 60, 4)
    estimator = PSN(mode="wiener")
    with pytest.raises(NotFittedError):
        estimator.transform(data[:, :, 0])
    assert clone(estimator).get_params() == estimator.get_params()
    before = estimator.get_params()
    assert estimator.fit(data[:, :, :3]) is estimator
    assert estimator.get_params() == before
    np.testing.assert_allclose(
        estimator.transform(data[:, :, :3].mean(axis=2)), estimator.denoised_, atol=1e-9
    )
    np.testing.assert_allclose(PSN(mode="wiener").fit_transform(data[:, :, :3]), estimator.denoised_)
    plain = data[:, :, :3].mean(axis=2)
    test = data[:, :, 3]
    spread = ((test - test.mean(axis=1, keepdims=True)) ** 2).sum()
    assert estimator.score(test) > 1 - ((plain - test) ** 2).sum() / spread
    assert estimator.score(test[:, :, None]) == pytest.approx(estimator.score(test))
    with pytest.raises(DataError):
        estimator.score(data[:5, :, 0])
    assert estimator.set_params(mode="cv", threshold="global").fit(data).result_.level == "global"


CHECK = """
import sys, json, numpy as np
sys.path.insert(0, {tests!r})
from psn_cases import load_case
from conform_app.psn.compat import perform_gsn
worst = 0
for name in {names!r}:
    arrays, runs = load_case(name)
    got = perform_gsn(arrays["data"], {{}})
    for k in ("cN", "cS", "cSb", "cNb"):
        worst = max(worst, np.abs(got[k] - arrays["gsn_default/" + k]).max())
print(worst)
"""


def test_published_order_of_arithmetic_gives_equal_bits():
    """With the kernels that made the reference results, covariances agree to the last bit."""
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    if "avx512f" not in flags:
        pytest.skip("the reference results were made with kernels that this processor does not have")
    names = [n for n in ("two_trials", "pure_noise") if (BUNDLED / f"case_{n}.npz").exists()]
    if not names:
        pytest.skip("none of the bundled cases has covariances of its own")
    code = CHECK.format(tests=str(Path(__file__).parent), names=names)
    env = os.environ | {"OPENBLAS_CORETYPE": "SkylakeX", "OMP_NUM_THREADS": "1"}
    env["PYTHONPATH"] = str(Path(__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1e-13
    load_case(names[0])
