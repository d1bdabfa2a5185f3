# SPDX-License-Identifier: Apache-2.0
"""PSN as a scikit-learn estimator: scikit-learn's own checks, pipelines, and both forms of input."""

import numpy as np
import pytest
from psn_cases import simulate
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC
from sklearn.utils.estimator_checks import parametrize_with_checks

from conform_app.errors import DataError
from conform_app.psn import PSN, fit_psn


def expected_failures(estimator):
    """Checks that cannot pass, with the reason; none is left."""
    return {}


@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks(
    [PSN(), PSN(mode="wiener"), PSN(mode="standard", shrink=False)], expected_failed_checks=expected_failures
)
def test_scikit_learn_checks(estimator, check):
    check(estimator)


def trials(data, rng):
    """The same trials as scikit-learn has them, in random order."""
    n_units, n_conditions, n_repeats = data.shape
    order = rng.permutation(n_conditions * n_repeats)
    names = np.array([f"c{c:03d}" for c in range(n_conditions)])
    return data.reshape(n_units, -1).T[order], np.repeat(names, n_repeats)[order]


def test_trials_with_conditions_give_the_same_fit():
    _, data = simulate(20, 30, 4)
    x, y = trials(data, np.random.default_rng(0))
    ours, exact = PSN(mode="wiener").fit(x, y), fit_psn(data, mode="wiener")
    np.testing.assert_allclose(ours.denoised_, exact.denoised, atol=1e-9)
    assert list(ours.classes_[:2]) == ["c000", "c001"]
    np.testing.assert_allclose(ours.transform(x[:5]), exact.apply(x[:5].T, n_trials=1).T, atol=1e-9)
    np.testing.assert_allclose(PSN(mode="wiener").fit_transform(x, y), ours.transform(x))
    keep = np.arange(len(y)) != 3  # uneven repeats
    assert PSN().fit(x[keep], y[keep]).denoised_.shape == (20, 30)


def test_a_fit_forgets_the_form_of_the_one_before():
    _, data = simulate(20, 30, 4)
    x, y = trials(data, np.random.default_rng(0))
    fit = PSN(mode="wiener").fit(x, y).fit(data)
    np.testing.assert_array_equal(fit.transform(data[:, :, 0]), fit.result_.apply(data[:, :, 0]))
    assert not hasattr(fit, "classes_")
    assert np.isfinite(fit.score(data))
    assert fit.fit(x, y).transform(x[:5]).shape == (5, 20)


def test_score_of_trials():
    truth, data = simulate(20, 60, 5, noise=1.0)
    rng = np.random.default_rng(0)
    fit = PSN().fit(*trials(data[:, :, :4], rng))
    x, y = trials(data[:, :, 4:], rng)
    other = PSN().fit(data[:, :, :4])
    assert fit.score(x, y) == pytest.approx(other.score(data[:, :, 4]), abs=0.02)
    assert fit.score(*trials(truth[:, :, None], rng)) > fit.score(x, y)
    with pytest.raises(ValueError, match="not fitted"):
        fit.score(x, np.full(len(y), "other"))


def test_in_a_pipeline_with_cross_validation():
    from sklearn.model_selection import cross_val_score

    _, data = simulate(30, 6, 16, noise=3.0, seed=1)
    x, y = trials(data, np.random.default_rng(0))
    scores = cross_val_score(make_pipeline(PSN(mode="wiener"), LinearSVC()), x, y, cv=4)
    assert scores.mean() > 2 / 6


def test_errors_are_of_both_families():
    for wrong in (np.zeros((3, 4, 2)), np.zeros((3, 4, 1))):
        with pytest.raises(DataError):
            PSN().fit(wrong)
        with pytest.raises(ValueError, match=r"unit|trial"):
            PSN().fit(wrong)
