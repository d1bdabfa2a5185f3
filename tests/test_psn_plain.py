# SPDX-License-Identifier: Apache-2.0
"""The plain writing that the benchmark measures against: does it give what the published code gives?"""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from psn_cases import load_case, relative, simulate

from conform_app.psn import fit_gsn, fit_psn
from conform_app.psn.compat import psn

FILE = Path(__file__).parents[1] / "benchmarks" / "psn_plain.py"
SPEC = importlib.util.spec_from_file_location("psn_plain", FILE)
plain = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(plain)


@pytest.mark.parametrize(
    ("case", "bundled"),
    [("options", True), ("two_trials", True), ("std", False), ("wide", False), ("pure_noise", False)],
)
def test_plain_writing_equals_the_reference(case, bundled):
    arrays, _ = load_case(case, bundled=bundled)
    gsn = plain.plain_gsn(arrays["data"])
    for name in ("cN", "cS", "cNb", "cSb"):
        if f"gsn_default/{name}" in arrays:
            assert relative(gsn[name], arrays[f"gsn_default/{name}"]) < 1e-10, name
    assert relative(gsn["ncsnr"], arrays["gsn_default/ncsnr"]) < 1e-9
    for name in ("shrinklevelN", "shrinklevelD", "numiters"):
        assert gsn[name] == arrays[f"gsn_default/{name}"]
    # On "options" the published presets ran with given covariances, which are those of the run above.
    run = "grid_signal_max-tradeoff_global" if case == "options" else "psn_standard"
    out = plain.plain_psn(arrays["data"])
    assert out["best_threshold"] == arrays[f"{run}/best_threshold"]
    ours = fit_psn(arrays["data"], mode="standard")
    assert out["best_threshold"] == ours.threshold
    assert relative(out["denoiseddata"], ours.denoised) < 1e-8
    assert relative(out["denoiseddata"], arrays[f"{run}/denoiseddata"]) < 1e-8
    lead = out["signalvar"] > 1e-6 * out["signalvar"].max()
    for name in ("signalvar", "noisevar"):
        want = arrays[f"{run}/{name}"]
        np.testing.assert_allclose(out[name][lead], want[lead], rtol=0, atol=1e-8 * want.max())
    if f"{run}/svnv_after" in arrays:
        assert relative(out["svnv_after"], arrays[f"{run}/svnv_after"]) < 1e-8


def test_plain_split_half_curve_equals_the_reference():
    arrays, _ = load_case("std", bundled=False)
    out, kept = plain.plain_psn(arrays["data"]), "psn_standard/rt/"
    curve, k = out["recovery_tradeoff"], out["best_threshold"]
    lead = np.concatenate([[True], out["signalvar"] > 1e-6 * out["signalvar"].max()])
    for name in ("sv_frac", "split_half_r", "analytic_sv_frac", "analytic_recovery"):
        want = arrays[f"{kept}signal_basis/{name}"]  # a size for each dimension in a population this small
        np.testing.assert_allclose(curve[name][lead], want[lead], atol=1e-8 * np.nanmax(np.abs(want)))
    assert curve["split_half_r"][k] == pytest.approx(float(arrays[f"{kept}chosen/split_half_r"]), rel=1e-8)
    assert curve["analytic_recovery"][k] == pytest.approx(float(arrays[f"{kept}chosen/recovery"]), rel=1e-8)
    assert curve["trial_average"] == pytest.approx(
        float(arrays[f"{kept}trial_average/split_half_r"]), rel=1e-10
    )
    assert curve["wiener"] == pytest.approx(float(arrays[f"{kept}wiener/split_half_r"]), rel=1e-7)


def test_plain_writing_agrees_where_ours_takes_shortcuts():
    # 420 units: beyond `alternation.LARGE`, where most eigendecompositions are spared
    _, data = simulate(420, 150, 3, seed=4)
    theirs, ours = plain.plain_psn(data), fit_psn(data, mode="standard")
    gsn = fit_gsn(data)
    assert theirs["best_threshold"] == ours.threshold
    assert relative(ours.denoised, theirs["denoiseddata"]) < 1e-8
    for got, name in ((gsn.signal_cov, "cSb"), (gsn.noise_cov, "cNb")):
        want = theirs["gsn_result"][name]
        ridge = 1e-10 * np.sqrt(len(data)) / np.linalg.norm(want)  # added there to what is singular
        assert relative(got, want) < 1.5 * ridge
    # in the signal's own axes the published variances of units are exact for the signal; its noise they
    # take along the axes, which is right for the sum over units alone
    np.testing.assert_allclose(ours.kept_signal, theirs["svnv_after"][:, 0], rtol=1e-7)
    assert ours.kept_noise.sum() == pytest.approx(theirs["svnv_after"][:, 1].sum(), rel=1e-7)
    np.testing.assert_allclose(ours.kept_signal + ours.removed_signal, theirs["svnv_before"][:, 0], rtol=1e-7)
    published = psn(data, "standard", gsn_result=theirs["gsn_result"])
    for key in ("svnv_before", "svnv_after"):
        np.testing.assert_allclose(published[key], theirs[key], rtol=1e-7)
