# SPDX-License-Identifier: Apache-2.0
"""Whole fits against the reference's numbers on the same simulated data.

All choices (HRF, fraction, number of noise regressors, masks) must be the same in every voxel: no flips
occur in these cases.  Numbers agree to rtol 1e-4 and atol 3e-4.
"""

import numpy as np
import pytest
from glmsingle_cases import ATOL, RTOL, fit_case, fixture, load_input, pairs

from conform_app.glmsingle import GLMsingleOptions, fit_fir, fit_glmsingle

PLAIN = [
    ("mini", "mini"),
    ("default", "base"),
    ("unequal", "unequal"),
    ("session", "session"),
    ("norepeat", "norepeat"),
    ("assumehrf", "base"),
    ("hrftoassume", "base"),
    ("hrflibrary", "base"),
    ("fracs_noauto", "base"),
    ("xvalscheme", "base"),
    ("session_ignored", "session"),
    ("norepeat_forced", "norepeat"),
    ("within", "within"),
    ("brainr2", "mini"),
    ("pcmask", "mini"),
    ("rronly", "mini"),
    ("denoiseonly", "mini"),
    ("chunked", "mini"),
    ("default_2d", "mini"),
    ("upsampled", "upsampled"),
    ("upsampled_noauto", "upsampled"),
]
QUIRKS = [
    ("extraregressors", "base"),
    ("extraregressors_nopc", "mini"),
    ("nopercent", "mini"),
    ("lss", "mini"),
]


def agree(result, output, rows=slice(None)):
    seen = 0
    for key, ours, theirs in pairs(result, output):
        if ours.ndim and len(ours) == result.valid.size:
            ours, theirs = ours[rows], theirs[rows]
        if theirs.dtype.kind in "ib":
            np.testing.assert_array_equal(ours, theirs, err_msg=key)
        elif key == "typed_FRACvalue":
            np.testing.assert_allclose(ours, theirs, atol=1e-6, err_msg=key)
        else:
            np.testing.assert_allclose(ours, theirs, rtol=RTOL, atol=ATOL, err_msg=key)
        seen += 1
    assert seen > 3


@pytest.mark.parametrize(("case", "name"), PLAIN, ids=[c for c, _ in PLAIN])
def test_equals_reference(case, name):
    result, output = fit_case(case, name)
    agree(result, output)
    assert (result.type_c is None) == (case in ("norepeat", "within", "rronly"))
    assert (result.type_d is None) == (case in ("norepeat", "within", "denoiseonly"))
    if result.type_c is not None and np.isfinite(result.r2_threshold) and "info_brainR2" in output.files:
        assert result.r2_threshold == pytest.approx(float(output["info_brainR2"]), rel=1e-4)


@pytest.mark.parametrize(("case", "name"), QUIRKS, ids=[c for c, _ in QUIRKS])
def test_quirks_equal_reference_when_asked_for(case, name):
    result, output = fit_case(case, name, reference=True)
    agree(result, output)


def test_pc_regressors_span_the_reference_s():
    result, output = fit_case("mini", "mini")
    for r, ours in enumerate(result.type_c.pc_regressors):
        theirs = output[f"typec_pcregressors_{r}"]
        cosines = (
            np.abs(np.sum(ours * theirs, axis=0))
            / np.linalg.norm(ours, axis=0)
            / np.linalg.norm(theirs, axis=0)
        )
        np.testing.assert_allclose(cosines, 1, atol=1e-4)
        np.testing.assert_allclose(ours.std(axis=0, ddof=1), 1, rtol=1e-5)


def test_crowded_trials_are_solved_more_exactly_than_by_the_reference():
    """Onsets every second at TR 1 s: float64 least squares is the judge of type B."""
    data, design, stimdur, tr, _ = load_input("rapid")
    output = fixture("out_rapid")
    result = fit_glmsingle(data, design, stimdur, tr)
    reference = output["typeb_betasmd"].reshape(result.type_b.betas.shape)
    from conform_app.glmsingle.design import plan_trials, polynomials
    from conform_app.glmsingle.hrf import TableResponses, library_table

    np.testing.assert_array_equal(result.type_b.hrf_index, output["typeb_HRFindex"].ravel())
    plan = plan_trials(design, [y.shape[1] for y in data], stimdur, tr, 0.0)
    responses = TableResponses(library_table(), tr, whole_seconds=True)
    ours = theirs = 0.0
    for r, trials in enumerate(plan.slices()):
        x = plan.regressors(r, responses).astype(float)
        drifts = polynomials(len(x), result.poly_degrees[r])
        for v in range(0, len(data[r]), 10):
            model = np.hstack([x[:, :, result.type_b.hrf_index[v]], drifts])
            exact = np.linalg.lstsq(model, data[r][v].astype(float), rcond=None)[0][: x.shape[1]]
            exact *= 100 / abs(result.mean_vol[v])
            ours = max(ours, np.abs(result.type_b.betas[v, trials] - exact).max())
            theirs = max(theirs, np.abs(reference[v, trials] - exact).max())
    assert ours < 0.2 * theirs
    assert np.mean(result.type_d.frac_value != output["typed_FRACvalue"].ravel().astype(np.float32)) < 0.02


def test_odd_voxels():
    """Voxels that are zero, constant, near zero, huge, negative: regular ones agree."""
    result, output = fit_case("edge", "edge", reference=True)
    x, y, _ = (a.ravel() for a in np.meshgrid(np.arange(10), np.arange(6), np.arange(4), indexing="ij"))
    odd = (y == 0) | (x == 7)
    for key, ours, theirs in pairs(result, output):
        if key.startswith(("typea_", "typeb_")) and ours.dtype.kind == "f":
            np.testing.assert_allclose(ours[~odd], theirs[~odd], rtol=RTOL, atol=ATOL, err_msg=key)

    result, _ = fit_case("edge", "edge")
    gone = np.any([np.ptp(run, axis=1) == 0 for run in load_input("edge")[0]], axis=0)
    assert gone.sum() == 16
    np.testing.assert_array_equal(~result.valid, gone)
    for one in (result.type_a, result.type_b, result.type_c, result.type_d):
        assert np.isnan(one.betas[gone]).all()
        assert np.isfinite(one.betas[~gone]).all()
    assert any("left out" in s for s in result.account)


def test_voxels_that_are_not_finite_are_set_aside():
    data, design, stimdur, tr, _ = load_input("nan")
    bad = np.any([~np.isfinite(y).all(axis=1) for y in data], axis=0)
    assert bad.any()
    result = fit_glmsingle(data, design, stimdur, tr)
    np.testing.assert_array_equal(result.valid, ~bad)
    assert np.isfinite(result.type_d.betas[~bad]).all()
    assert np.isnan(result.type_d.betas[bad]).all()
    assert (result.type_b.hrf_index[bad] == -1).all()
    without = fit_glmsingle([y[~bad] for y in data], design, stimdur, tr)
    np.testing.assert_allclose(result.type_d.betas[~bad], without.type_d.betas, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", [list, np.array])
def test_folds_as_lists_or_arrays(form):
    """The reference fails on lists and on arrays of one run; here they mean the same."""
    data, design, stimdur, tr, _ = load_input("mini")
    plain = fit_glmsingle(data, design, stimdur, tr)
    folds = GLMsingleOptions(xvalscheme=[form([r]) for r in range(3)])
    result = fit_glmsingle(data, design, stimdur, tr, options=folds)
    np.testing.assert_array_equal(result.type_d.betas, plain.type_d.betas)


def test_excluded_voxels_stay_out_of_the_noise_pool():
    data, design, stimdur, tr, _ = load_input("mini")
    plain = fit_glmsingle(data, design, stimdur, tr)
    exclude = np.zeros(120, int)
    exclude[np.flatnonzero(plain.type_c.noise_pool)[:5]] = 1
    result = fit_glmsingle(data, design, stimdur, tr, options=GLMsingleOptions(brainexclude=exclude))
    np.testing.assert_array_equal(result.type_c.noise_pool, plain.type_c.noise_pool & (exclude == 0))


def test_recovers_the_simulated_betas_better_from_b_to_d():
    data, design, stimdur, tr, file = load_input("mini")
    result = fit_glmsingle(data, design, stimdur, tr)
    truth, task = file["truth_beta"].astype(float), file["truth_class"] == 0
    error = [np.mean((getattr(result, f"type_{k}").betas[task] - truth[task]) ** 2) for k in "bcd"]
    assert error[2] < error[1] < error[0]


def test_finite_impulse_responses_equal_the_reference_s():
    data, design, _, tr, _ = load_input("base")
    output = fixture("out_default")
    fir = fit_fir(data, design, tr)
    np.testing.assert_allclose(fir.r2.T, output["fir_firR2"].reshape(4, -1), rtol=RTOL, atol=ATOL)
    np.testing.assert_allclose(fir.run_average, output["fir_firavg"], rtol=RTOL, atol=ATOL)
    np.testing.assert_allclose(fir.average, output["fir_firgrandavg"], rtol=RTOL, atol=ATOL)
