# SPDX-License-Identifier: Apache-2.0
"""The cross-validated releases: against their own results, and against their rules written out densely."""

import numpy as np
import pytest
from psn_cases import load_case, simulate

from conform_app.psn.compat import perform_gsn
from conform_app.psn.legacy import RANKINGS, psn_crossvalidated


@pytest.mark.parametrize("bundled", [True, False])
def test_results_of_the_releases(bundled):
    arrays, runs = load_case("legacy_cv", bundled=bundled)
    for run in runs:
        name = run["run"]
        out = psn_crossvalidated(arrays["data"], run["V"], run["opt"])
        np.testing.assert_array_equal(out["best_threshold"], arrays[f"{name}/best_threshold"], err_msg=name)
        for key in ("denoiseddata", "unit_means", "mags"):
            if f"{name}/{key}" in arrays:
                got, want = out[key], arrays[f"{name}/{key}"]
                if key == "mags" and run["V"] == 0:  # beyond the signal's rank axes are arbitrary
                    got, want = got[:10], want[:10]
                np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-9, err_msg=name)
        if f"{name}/cv_mean_unit" in arrays and run["V"] != 0:  # else the last axes are arbitrary
            scores = out["cv_scores"].mean(axis=1)
            np.testing.assert_allclose(scores, arrays[f"{name}/cv_mean_unit"], rtol=1e-8, err_msg=name)


def dense(data, V, opt):
    """The rules, axis by axis and projector by projector."""
    n, c, t = data.shape
    mean, m = data.mean(2), data.mean(2).mean(1)
    if V == 4:
        axes, values = np.linalg.qr(np.random.RandomState(42).randn(n, n))[0], np.ones(n)
    else:
        gsn = perform_gsn(data)
        matrix = {
            0: lambda: gsn["cSb"],
            1: lambda: (lambda a: (a + a.T) / 2)(np.linalg.pinv(gsn["cNb"]) @ gsn["cSb"]),
            2: lambda: gsn["cNb"],
            3: lambda: np.cov(mean),
        }[V]()
        w, v = np.linalg.eigh(matrix)
        order = sorted(range(n), key=lambda d: -abs(w[d]))
        axes, values = v[:, order], abs(w[order])
        for d in range(n):
            if axes[:, d].mean() < 0:
                axes[:, d] *= -1
    signal, noise = np.zeros(n), np.zeros(n)
    for d in range(n):
        y = np.einsum("u,uct->ct", axes[:, d], data)
        noise[d] = y.var(axis=1, ddof=1).mean()
        signal[d] = max(y.mean(axis=1).var(ddof=1) - noise[d] / t, 0)
    key = {
        "signal_variance": signal,
        "eigenvalue": values,
        "eigenvalue_asc": -values,
        "snr": np.sqrt(signal / noise),
        "signal_specificity": signal / signal.sum() - noise / noise.sum(),
    }[opt.get("ranking", "signal_variance")]
    stable = opt.get("ranking", "").startswith("eigen")
    order = np.argsort(-key, kind="stable") if stable else np.argsort(key)[::-1]
    size = (values if stable else key)[order]
    skip = opt.get("truncate", 0)
    axes = axes[:, order]
    used = axes[:, skip:]

    def project(k, x):
        return used[:, :k] @ used[:, :k].T @ x

    if opt["cv_mode"] == -1:
        k = next(i for i in range(1, n + 1) if size[:i].sum() >= opt["mag_frac"] * size.sum()) - skip
        cut = np.full(n, k)
    else:
        score = np.zeros((n + 1, n))
        for k in range(n + 1):
            for j in range(t):
                one, rest = data[:, :, j], np.delete(data, j, axis=2).mean(axis=2)
                train, test = (one, rest) if opt["cv_mode"] == 1 else (rest, one)
                score[k] -= ((project(k, train - m[:, None]) - test) ** 2).mean(axis=1) / t
        per_unit = opt.get("cv_threshold_per", "unit") == "unit"
        cut = score.argmax(axis=0) if per_unit else np.full(n, score.mean(axis=1).argmax())
    flat = (data if opt.get("denoisingtype") else mean[:, :, None]).reshape(n, -1) - m[:, None]
    clean = np.stack([project(k, flat)[u] for u, k in enumerate(cut)]) + m[:, None]
    return clean.reshape(n, c, -1).squeeze(), cut


@pytest.mark.parametrize("V", [0, 1, 2, 3, 4])
@pytest.mark.parametrize(
    "opt",
    [
        {"cv_mode": 0},
        {"cv_mode": 1, "cv_threshold_per": "population"},
        {"cv_mode": -1, "mag_frac": 0.8},
        {"cv_mode": 0, "truncate": 2},
        {"cv_mode": 1, "denoisingtype": 1},
    ],
)
def test_rules_written_out(V, opt):
    _, data = simulate(12, 25, 4)
    out = psn_crossvalidated(data, V, opt)
    want, cut = dense(data, V, opt)
    got = out["best_threshold"] if opt["cv_mode"] >= 0 else len(out["best_threshold"])
    np.testing.assert_array_equal(np.broadcast_to(got, 12), cut)
    np.testing.assert_allclose(out["denoiseddata"], want, atol=1e-9)


@pytest.mark.parametrize("ranking", RANKINGS)
def test_rankings_written_out(ranking):
    _, data = simulate(12, 25, 4)
    opt = {"cv_mode": 0, "ranking": ranking}
    np.testing.assert_allclose(
        psn_crossvalidated(data, 2, opt)["denoiseddata"], dense(data, 2, opt)[0], atol=1e-9
    )


def test_own_axes_and_what_is_refused():
    _, data = simulate(12, 25, 4)
    axes = np.linalg.qr(np.random.default_rng(0).standard_normal((12, 5)))[0]
    out = psn_crossvalidated(data, axes, {"cv_thresholds": [1, 3]})
    assert set(np.unique(out["best_threshold"])) <= {1, 3}
    assert out["cv_scores"].shape == (2, 4, 12)
    for V, opt in (
        (7, {}),
        (0, {"cv_mode": 2}),
        (0, {"ranking": "size"}),
        (0, {"truncate": -1}),
        (0, {"mag_frac": 0}),
        (0, {"cv_thresholds": [99]}),
        (0, {"unit_groups": [0]}),
        (0, {"wantfig": True}),
    ):
        with pytest.raises(ValueError):  # noqa: PT011 - built-in types, as published
            psn_crossvalidated(data, V, opt)
    data[0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="missing"):
        psn_crossvalidated(data)
