# SPDX-License-Identifier: Apache-2.0
"""The published interface against what GSN 1.2 and PSN 0.2 return.

Within the null space of the signal covariance eigenvectors are arbitrary (another BLAS gives others), so
quantities along the axes are compared on the leading dimensions, and per-unit cuts whose rule looks at the
last dimension only approximately.
"""

import json
import warnings

import numpy as np
import pytest
from psn_cases import BUNDLED, load_case, relative

from conform_app.psn.compat import perform_gsn, psn

CASES = ("one_unit", "missing", "two_trials", "options", "uneven")
LARGER = ("std", "wide", "pure_noise", "float32")


def resolve(opt, arrays):
    """Options of a run with the arrays they name."""
    out = {}
    for key, value in opt.items():
        if key == "gsn_result":
            value = {k: arrays[f"gsn_default/{k}"] for k in ("cSb", "cNb")}
        elif isinstance(value, str) and value.startswith("@"):
            value = arrays[value[1:]]
        out[key] = value
    return out


def arbitrary(run, arrays):
    """Runs in which the reference's own result turns on the null space of a covariance."""
    opt = run["opt"]
    n_units, n_conditions, _ = arrays["data"].shape
    hybrid = opt.get("threshold_method") == "hybrid" and np.size(opt.get("allowable_thresholds", [0, 1])) > 1
    criterion = opt.get("criterion", "max-tradeoff")
    looks_at_end = criterion == "max-tradeoff" or opt.get("alpha") is not None
    no_shrinkage = "noshrink" in run["run"] or (opt.get("basis") == "pca" and n_units >= n_conditions)
    return (hybrid and looks_at_end and opt.get("basis", "signal") in ("signal", "compare")) or no_shrinkage


def check_case(arrays, runs):
    data = arrays["data"]
    loose = 1e4 if data.dtype == np.float32 else 1
    for run in (r for r in runs if r["kind"] == "psn"):
        name, opt = run["run"], resolve(run["opt"], arrays)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            out = psn(data, run.get("mode"), opt)
        is_wiener = run.get("mode") == "wiener" or opt.get("criterion") == "wiener"
        factor = loose * (100 if is_wiener else 1)
        want_k = arrays[f"{name}/best_threshold"]
        if arbitrary(run, arrays):
            assert np.mean(np.asarray(out["best_threshold"]) == want_k) >= 0.65, name
            continue
        if is_wiener:
            assert out["best_threshold"] == pytest.approx(float(want_k), rel=1e-6)
        else:
            np.testing.assert_array_equal(out["best_threshold"], want_k, err_msg=name)
        for key in ("denoiseddata", "denoiser", "svnv_after"):
            if f"{name}/{key}" in arrays and np.max(want_k) < len(data):
                assert relative(out[key], arrays[f"{name}/{key}"]) < 1e-7 * factor, (name, key)
        lead = out["signalvar"] > 1e-6 * max(out["signalvar"].max(), 1e-300)
        for key in ("signalvar", "noisevar"):
            if f"{name}/{key}" in arrays:
                want = arrays[f"{name}/{key}"]
                error = np.abs(out[key] - want)[lead].max(initial=0) / max(want.max(), 1e-300)
                assert error < 1e-8 * factor, (name, key)
        if f"{name}/objective" in arrays and lead.all() and not is_wiener:
            assert relative(out["objective"], arrays[f"{name}/objective"]) < 1e-8 * factor
        if f"{name}/alpha_info" in arrays:
            info = out["alpha_info"]
            np.testing.assert_array_equal([info["k_pred"], info["k_var"]], arrays[f"{name}/alpha_info"])


@pytest.mark.parametrize("case", CASES)
def test_equals_reference(case):
    check_case(*load_case(case))


@pytest.mark.parametrize("case", LARGER)
def test_equals_reference_on_larger_cases(case):
    check_case(*load_case(case, bundled=False))


CALLS = json.loads((BUNDLED / "errors.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", CALLS)
def test_wrong_calls_raise_what_the_reference_raises(name):
    rng = np.random.RandomState(0)
    data = rng.randn(20, 30, 3) + rng.randn(20, 30, 1)
    scope = {"np": np, "X": data, "psn": psn, "perform_gsn": perform_gsn, "g": perform_gsn(data)}
    call = CALLS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        if call.get("ok"):
            exec(call["code"], scope)  # noqa: S102 - the calls of a test vector
            return
        with pytest.raises(Exception) as caught:  # noqa: PT011 - the type is checked below
            exec(call["code"], scope)  # noqa: S102
    assert type(caught.value).__name__ == call["type"]
    assert str(caught.value) == call["message"]


def test_dictionary_is_consistent():
    arrays, _ = load_case("two_trials")
    data = arrays["data"]
    kept = data.copy()
    out = psn(data, "Standard", wantverbose=False)
    assert out["input_data"] is data
    np.testing.assert_array_equal(data, kept)
    centred = data.mean(axis=2) - out["unit_means"][:, None]
    rebuilt = out["signalsubspace"] @ out["dimreduce"] + out["unit_means"][:, None]
    np.testing.assert_allclose(out["denoiseddata"], rebuilt, atol=1e-10)
    np.testing.assert_allclose(out["denoiser"].T @ centred + out["unit_means"][:, None], rebuilt, atol=1e-10)
    np.testing.assert_allclose(out["residuals"], data - rebuilt[:, :, None], atol=1e-10)
    again = psn(data, "standard", gsn_result=out["gsn_result"])
    np.testing.assert_allclose(again["denoiseddata"], out["denoiseddata"], atol=1e-9)
    compared = psn(data, "compare")
    assert compared["threshold_selection"]["basis"] in ("signal", "difference")
    assert [c["basis"] for c in compared["diagnostics"]["candidates"]] == ["signal", "difference"]


def test_eigenvectors_on_request():
    arrays, _ = load_case("options")
    fit = perform_gsn(
        arrays["data"], {"returns": ["cSb", "eigvecs_signal", "eigvals_signal", "eigvals_difference"]}
    )
    rebuilt = (fit["eigvecs_signal"] * fit["eigvals_signal"]) @ fit["eigvecs_signal"].T
    np.testing.assert_allclose(rebuilt, fit["cSb"], atol=1e-12)
    assert "cN" not in fit
    assert (np.diff(fit["eigvals_difference"]) <= 0).all()
    del fit["eigvals_difference"]
    cached = psn(arrays["data"], gsn_result={**fit, "cNb": arrays["gsn_default/cNb"]})
    assert relative(cached["denoiseddata"], psn(arrays["data"])["denoiseddata"]) < 1e-9
