# SPDX-License-Identifier: Apache-2.0
"""Functional alignment against closed forms, scipy, scikit-learn and fmralign."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from conform_app.braincorl import (
    Alignment,
    align,
    align_group,
    unit_norm,
)
from conform_app.braincorl.alignment import METHODS, PENALTIES, procrustes_map, ridge_map, transport_map
from conform_app.errors import DataError, FileFaultError, MissingCommandError, NoInputError, UsageError


def standard(values: np.ndarray) -> np.ndarray:
    values = values - values.mean(axis=1, keepdims=True)
    return values / values.std(axis=1, keepdims=True)


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    """Profiles of 8 source and 6 target voxels over 40 images, partly of common causes."""
    rng = np.random.default_rng(0)
    causes = rng.standard_normal((5, 40))
    x = rng.standard_normal((8, 5)) @ causes + rng.standard_normal((8, 40))
    y = rng.standard_normal((6, 5)) @ causes + rng.standard_normal((6, 40))
    return standard(x), standard(y)


def test_procrustes_is_scipys_with_the_least_squares_scale(pair) -> None:
    from scipy.linalg import orthogonal_procrustes

    x = pair[0]
    y = standard(np.random.default_rng(1).standard_normal((8, 8)) @ x + 0.5)
    rotation, total = orthogonal_procrustes(x.T, y.T)
    np.testing.assert_allclose(procrustes_map(x, y), rotation.T * total / (x**2).sum(), atol=1e-10)


def test_procrustes_recovers_a_rotation_and_stays_on_the_images_span() -> None:
    rng = np.random.default_rng(2)
    rotation = np.linalg.qr(rng.standard_normal((30, 30)))[0]
    x = rng.standard_normal((30, 100))
    np.testing.assert_allclose(procrustes_map(x, 3 * rotation @ x), 3 * rotation, atol=1e-10)
    few = x[:, :10]  # more voxels than images
    found = procrustes_map(few, 3 * rotation @ few)
    np.testing.assert_allclose(found @ few, 3 * rotation @ few, atol=1e-9)
    on_span = found.T @ found / 9
    np.testing.assert_allclose(on_span @ on_span, on_span, atol=1e-9)
    assert round(np.trace(on_span)) == 10


@pytest.mark.parametrize("n_source", [8, 70])
def test_ridge_is_the_closed_form_with_the_penalty_of_the_folds(pair, n_source: int) -> None:
    from sklearn.linear_model import Ridge

    from conform_app.braincorl.ridge import folds_of

    x, y = pair
    x = np.random.default_rng(14).standard_normal((n_source, 8)) @ x  # fewer voxels than images, and more
    for penalty in (0.1, 30.0):
        expected = Ridge(alpha=penalty, fit_intercept=False).fit(x.T, y.T).coef_
        np.testing.assert_allclose(ridge_map(x, y, penalties=[penalty]), expected, atol=1e-9)
    error = np.zeros((len(PENALTIES), len(y)))
    for test in folds_of(40, 5, 3):
        keep = np.setdiff1d(np.arange(40), test)
        for i, penalty in enumerate(PENALTIES):
            m = Ridge(alpha=penalty, fit_intercept=False).fit(x[:, keep].T, y[:, keep].T).coef_
            error[i] += ((y[:, test] - m @ x[:, test]) ** 2).sum(axis=1)
    chosen = PENALTIES[(error + 10 * error.mean(axis=1, keepdims=True)).argmin(axis=0)]
    found = ridge_map(x, y, seed=3)
    for v, penalty in enumerate(chosen):
        expected = Ridge(alpha=penalty, fit_intercept=False).fit(x.T, y[v]).coef_
        np.testing.assert_allclose(found[v], expected, atol=1e-9)


def test_transport_has_its_marginals_and_is_the_optimum(pair) -> None:
    """A plan ``u_s exp(-C / e) v_t`` with the right marginals is the one minimum of a convex problem."""
    x, y = pair
    for entropy in (0.01, 0.1):
        plan = transport_map(x, y, entropy, iterations=20000).T / len(y)
        np.testing.assert_allclose(plan.sum(axis=0), 1 / len(y), rtol=1e-5)
        np.testing.assert_allclose(plan.sum(axis=1), 1 / len(x), rtol=1e-5)
        cost = ((x[:, None] - y[None]) ** 2).sum(axis=2)
        potentials = np.log(plan) + cost / cost.max() / entropy
        left = (
            potentials - potentials.mean(axis=0) - potentials.mean(axis=1, keepdims=True) + potentials.mean()
        )
        np.testing.assert_allclose(left, 0, atol=1e-8)


def test_transport_of_shuffled_voxels_is_the_shuffle() -> None:
    from scipy.optimize import linear_sum_assignment

    rng = np.random.default_rng(4)
    x = standard(rng.standard_normal((12, 60)))
    order = rng.permutation(12)
    y = standard(x[order] + 0.2 * rng.standard_normal(x.shape))
    cost = ((x[:, None] - y[None]) ** 2).sum(axis=2)
    _, best = linear_sum_assignment(cost)
    np.testing.assert_array_equal(np.argsort(order), best)
    found = transport_map(x, y, 0.01)
    np.testing.assert_array_equal(found.argmax(axis=1), order)
    assert found.max(axis=1).min() > 0.99


@pytest.mark.parametrize("method", METHODS)
def test_fmralign_gives_the_same(method: str, pair, monkeypatch) -> None:
    if importlib.util.find_spec("fmralign") is None:
        pytest.skip("the Python package fmralign is not installed (conform-app[alignment] brings it)")
    import conform_app.braincorl.alignment as room

    x, y = pair
    if method == "procrustes":
        y = standard(np.random.default_rng(5).standard_normal((8, 8)) @ x)
    monkeypatch.setattr(room, "PENALTIES", np.array([10.0]))
    monkeypatch.setitem(room.ridge_map.__kwdefaults__, "penalties", np.array([10.0]))
    options = {"entropy": 0.05} if method == "optimal_transport" else {}
    ours = align(x, y, method=method, **options)
    theirs = align(x, y, method=method, engine="fmralign", **options)
    assert theirs.engine == "fmralign"
    np.testing.assert_allclose(theirs.transform(x), ours.transform(x), atol=2e-4)
    if method == "optimal_transport":
        chosen = align(x, y, method=method, engine="fmralign")
        assert chosen.entropy == align(x, y, method=method).entropy


@pytest.mark.parametrize(("n_source", "n_target"), [(20, 6), (6, 20), (20, 16), (6, 8)])
def test_fmralign_rotates_between_any_numbers_of_voxels(n_source: int, n_target: int) -> None:
    if importlib.util.find_spec("fmralign") is None:
        pytest.skip("the Python package fmralign is not installed (conform-app[alignment] brings it)")
    rng = np.random.default_rng(13)
    x, y = rng.standard_normal((n_source, 12)), rng.standard_normal((n_target, 12))
    ours = align(x, y, method="procrustes")
    theirs = align(x, y, method="procrustes", engine="fmralign")
    np.testing.assert_allclose(theirs.transform(x), ours.transform(x), atol=1e-4)


def test_fmralign_that_is_not_there_has_its_error(pair) -> None:
    if importlib.util.find_spec("fmralign"):
        pytest.skip("fmralign is installed")
    with pytest.raises(MissingCommandError, match=r"fmralign.*conform-app\[alignment\]"):
        align(*pair, engine="fmralign")


@pytest.mark.parametrize("method", METHODS)
def test_units_and_offsets_of_voxels_do_not_matter(method: str, pair) -> None:
    rng = np.random.default_rng(6)
    x, y = pair
    scale_x, scale_y = rng.uniform(0.1, 50, (8, 1)), rng.uniform(0.1, 50, (6, 1))
    plain = align(x, y, method=method)
    scaled = align(scale_x * x + 7, scale_y * y - 3, method=method)
    new = rng.standard_normal((8, 5))
    expected = plain.transform(new) * scale_y - 3
    np.testing.assert_allclose(scaled.transform(scale_x * new + 7), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_weights_are_carried_as_responses_are(method: str, pair) -> None:
    """Predictions of the carried model are the transformed predictions of the source's model."""
    rng = np.random.default_rng(7)
    x, y = pair
    weights, features = rng.standard_normal((8, 6)), unit_norm(rng.standard_normal((30, 5)))
    alignment = align(2 * x + 5, 3 * y + 1, method=method)
    carried = alignment.carry(weights)
    assert carried.shape == (6, 6)
    predicted = weights[:, :-1] @ features.T + weights[:, -1:]
    np.testing.assert_allclose(
        carried[:, :-1] @ features.T + carried[:, -1:], alignment.transform(predicted), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("method", METHODS)
def test_pieces_are_aligned_by_themselves(method: str, pair) -> None:
    x, y = pair
    of_x, of_y = np.array(list("aaabbbcc")), np.array(list("bbacca"))
    options = {"entropy": 0.1} if method == "optimal_transport" else {}
    whole = align(x, y, method=method, parcels=(of_x, of_y), **options)
    for label in "abc":
        alone = align(x[of_x == label], y[of_y == label], method=method, **options)
        np.testing.assert_allclose(
            whole.transform(x)[of_y == label], alone.transform(x[of_x == label]), atol=1e-5
        )
    with pytest.raises(DataError, match="Parcel c has voxels in the source only"):
        align(x, y, parcels=(of_x, np.array(list("bbaaaa"))))
    with pytest.raises(DataError, match="Parcel z has voxels in the target only"):
        align(x, y, parcels=(of_x, np.array(list("bbaccz"))))
    with pytest.raises(DataError, match=r"Parcels of the target have shape \(5,\)"):
        align(x, y, parcels=(of_x, of_y[:5]))


def test_images_are_matched_by_name_and_repeats_averaged(pair) -> None:
    x, y = pair
    names = [f"image {i}" for i in range(40)]
    order = np.random.default_rng(8).permutation(40)
    expected = align(x[:, :25], y[:, :25])
    # The target saw other images too, in another order, and one of the shared ones three times.
    noise = np.random.default_rng(9).standard_normal(6)
    y_seen = np.column_stack([y[:, order], y[:, 3] + noise, y[:, 3] - noise])
    seen = [*(names[i] for i in order), "image 3", "image 3"]
    found = align(x[:, :25], y_seen, source_names=names[:25], target_names=seen, test_names=names[30:])
    assert found.n_shared == 25
    np.testing.assert_allclose(found.transform(x), expected.transform(x), atol=1e-5)


def test_voxels_without_signal_are_left_out(pair) -> None:
    x, y = (v.copy() for v in pair)
    expected = align(np.delete(x, 2, axis=0), y[1:])
    x[2], y[0] = 4.0, np.nan
    found = align(x, y)
    answer = found.transform(x)
    assert np.isnan(answer[0]).all()
    np.testing.assert_allclose(answer[1:], expected.transform(np.delete(x, 2, axis=0)), atol=1e-5)
    x[3, 0] = np.nan
    with pytest.raises(DataError, match="Source voxel 3"):
        found.transform(x)


def test_an_alignment_is_kept_on_disk(pair, tmp_path: Path) -> None:
    x, y = pair
    for method in METHODS:
        made = align(x, y, method=method, parcels=(np.arange(8) % 2, np.arange(6) % 2))
        read = Alignment.load(made.save(tmp_path / "a.safetensors"))
        np.testing.assert_allclose(read.transform(x), made.transform(x), atol=1e-6)
        assert (read.method, read.engine, read.n_shared) == (method, "conform", 40)
        np.testing.assert_equal(read.entropy, made.entropy)
    with pytest.raises(NoInputError):
        Alignment.load(tmp_path / "none")
    (tmp_path / "torn").write_bytes((tmp_path / "a.safetensors").read_bytes()[:50])
    with pytest.raises(FileFaultError, match="torn"):
        Alignment.load(tmp_path / "torn")


def test_bad_input_is_refused(pair) -> None:
    x, y = pair
    names = list(range(40))
    with pytest.raises(DataError, match="share no images"):
        align(x, y, source_names=names, target_names=[n + 100 for n in names])
    with pytest.raises(DataError, match="share 4 images"):
        align(x, y, source_names=names, target_names=[n + 36 for n in names])
    with pytest.raises(DataError, match="share 3 images"):
        align(x[:, :3], y[:, :3])
    with pytest.raises(DataError, match=r"2 shared images are test images \(first: 38\)"):
        align(x, y, source_names=names, target_names=names, test_names=[38, 39, 400])
    with pytest.raises(DataError, match="40 images"):
        align(x, y[:, :30])
    with pytest.raises(DataError, match="39 names"):
        align(x, y, source_names=names[:-1], target_names=names)
    with pytest.raises(DataError, match=r"Target betas have shape \(40,\)"):
        align(x, y[0])
    with pytest.raises(DataError, match=r"\(3 GiB\).*Give parcels"):
        align(*(np.random.default_rng(0).standard_normal((30000, 6), np.float32) for _ in range(2)))
    for options in ({"method": "magic"}, {"engine": "magic"}, {"entropy": 0.0}, {"entropy": float("nan")}):
        with pytest.raises(UsageError):
            align(x, y, **options)
    with pytest.raises(UsageError, match="Names"):
        align(x, y, source_names=names)
    with pytest.raises(UsageError, match="Test images"):
        align(x, y, test_names=[1])
    with pytest.raises(DataError, match="8 voxels"):
        align(x, y).transform(y)


def test_a_template_brings_participants_together() -> None:
    """Rotated copies of one response pattern with noise: aligned betas of *new* images agree."""
    rng = np.random.default_rng(10)
    common = rng.standard_normal((10, 160))
    people = {}
    for name, n in (("a", 10), ("b", 14), ("c", 10)):
        mix = np.linalg.qr(rng.standard_normal((n, 10)))[0]
        people[name] = mix @ common + 0.3 * rng.standard_normal((n, 160))
    train = {name: v[:, :100] for name, v in people.items()}
    group = align_group(train, method="procrustes")
    assert group.template.shape == (10, 100)
    new = {name: group.alignments[name].transform(people[name][:, 100:]) for name in people}
    for one, other in (("a", "b"), ("a", "c"), ("b", "c")):
        r = np.mean([np.corrcoef(p, q)[0, 1] for p, q in zip(new[one], new[other], strict=True)])
        assert r > 0.75
    before = np.mean([np.corrcoef(p, q)[0, 1] for p, q in zip(people["a"], people["c"], strict=True)])
    assert abs(before) < 0.4
    with pytest.raises(UsageError):
        align_group({"a": train["a"]})
    with pytest.raises(UsageError, match="other participants"):
        align_group(train, reference="d")
