# SPDX-License-Identifier: Apache-2.0
"""The scale of betas without the sites' share in it."""

import importlib.util

import numpy as np
import pandas as pd
import pytest

from conform_app.collect.seal import harmonised
from conform_app.errors import DataError, NoInputError
from conform_app.mosaic import Collection, FitUnit, harmonise

V = 300
needs_combat = pytest.mark.skipif(
    importlib.util.find_spec("combatlearn") is None, reason="combatlearn is not installed"
)


def scales_of(n=12, shift=0.8, seed=0):
    """Two sites of n participants; the second's betas are exp(shift) as large."""
    rng = np.random.default_rng(seed)
    own = rng.normal(0.0, 0.3, (2 * n, V)) + rng.normal(0.0, 0.2, (2 * n, 1))
    site = np.repeat([0.0, shift], n)[:, None]
    keys = [f"sub-{i:02d}_{'AB'[i // n]}" for i in range(2 * n)]
    return dict(zip(keys, np.exp(own + site), strict=True)), own


def sites_of(scales):
    return {key: key[-1] for key in scales}


@needs_combat
def test_what_a_site_has_in_common_goes_and_what_participants_differ_in_stays():
    scales, own = scales_of()
    found = harmonise.harmonise_scale(scales, sites_of(scales))
    log = np.log(found.scale)
    before = np.log(np.stack([scales[key] for key in found.keys]))
    gap = [abs(x[12:].mean(axis=0) - x[:12].mean(axis=0)).mean() for x in (before, log)]
    assert gap[0] > 0.7
    assert gap[1] < 0.05
    within = [np.corrcoef(log[rows].ravel(), own[rows].ravel())[0, 1] for rows in (slice(12), slice(12, 24))]
    assert min(within) > 0.9
    assert found.table["before"].tolist() == pytest.approx(np.median(np.exp(before), axis=1).tolist())


@needs_combat
def test_vertices_without_a_scale_have_none_and_harm_no_others():
    scales, _ = scales_of()
    whole = harmonise.harmonise_scale({k: s[1:] for k, s in scales.items()}, sites_of(scales))
    scales["sub-03_A"][0] = np.nan
    found = harmonise.harmonise_scale(scales, sites_of(scales))
    assert np.isnan(found.scale[:, 0]).all()
    np.testing.assert_allclose(found.scale[:, 1:], whole.scale, rtol=1e-6)


@needs_combat
def test_what_cannot_be_told_apart_is_said():
    scales, _ = scales_of(4)
    sites = sites_of(scales)
    said = " ".join(harmonise.harmonise_scale(scales, sites, {"A": {"x"}, "B": {"y"}}).account)
    assert "A and B share no stimulus" in said
    assert "A, B: fewer than 10 participants" in said
    said = " ".join(harmonise.harmonise_scale(scales, sites, {"A": {"x"}, "B": {"x"}}).account)
    assert "share no stimulus" not in said


@needs_combat
@pytest.mark.parametrize(
    ("keep", "words"), [("_A", "there is one site"), ("sub-00_A sub-04_B sub-05_B", "A has one participant")]
)
def test_too_few(keep, words):
    scales, _ = scales_of(4)
    scales = {k: s for k, s in scales.items() if k.endswith(keep) or k in keep.split()}
    with pytest.raises(DataError, match=words):
        harmonise.harmonise_scale(scales, sites_of(scales))


def test_without_the_library_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NoInputError, match="combatlearn, which is not installed"):
        harmonise.harmonise_scale({}, {})


def collection_of(path, test_seed=0):
    """Two sites of three; test trials come from a seed of their own.  One more has test trials only."""
    collection = Collection.create(path, space="toy", n_vertices=V)
    shown = pd.DataFrame(
        {"stimulus": [f"{i}.png" for i in range(30)], "phase": ["train"] * 20 + ["test"] * 10}
    )
    for i in range(6):
        rng, test = np.random.default_rng(i), np.random.default_rng([i, test_seed])
        betas = np.concatenate([rng.standard_normal((20, V)), 5 * test.standard_normal((10, V)) + 3])
        betas *= rng.uniform(0.5, 2.0, V) * (1 + i // 3)
        collection.add_participant("AB"[i // 3], f"sub-{i}", shown, [FitUnit("all", betas)], ceilings=False)
    only = FitUnit("test", np.random.default_rng(9).standard_normal((10, V)), own_statistics=True)
    collection.add_participant("A", "sub-9", shown[20:], [only], ceilings=False)
    return collection


def sealed(collection):
    keys = sorted(collection.pending)
    found = harmonised(collection, keys, collection.presentations())
    collection.seal(tables={"harmonised": found.table, "harmonised_scale": found.scale})
    return found


@needs_combat
def test_test_trials_have_no_part_in_it_and_betas_come_back(tmp_path):
    found, other = (sealed(collection_of(tmp_path / str(seed), seed)) for seed in (0, 1))
    np.testing.assert_array_equal(found.scale, other.scale)
    assert "sub-9_A: no train trials, so no harmonised scale." in found.account
    collection = Collection.open(tmp_path / "0")
    assert collection.verify() == []
    scale = collection.harmonised_scale("sub-4_B")
    np.testing.assert_array_equal(scale, found.scale[found.keys.index("sub-4_B")])
    rows, vertices = [3, 25], np.array([7, 2])
    z = collection.betas("sub-4_B", rows, vertices)
    there = collection.betas("sub-4_B", rows, vertices, harmonised=True)
    np.testing.assert_allclose(there / scale[vertices], z, rtol=1e-6)
    assert not np.allclose(there, z)
    with pytest.raises(NoInputError, match="sub-9_A was not harmonised"):
        collection.betas("sub-9_A", harmonised=True)


def test_a_version_without_says_so(tmp_path):
    collection = collection_of(tmp_path / "c")
    collection.seal()
    with pytest.raises(NoInputError, match="no table 'harmonised'"):
        collection.betas("sub-1_A", harmonised=True)
