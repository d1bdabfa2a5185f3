# SPDX-License-Identifier: Apache-2.0
"""Variance explained by methodology, against closed forms and scipy."""

import numpy as np
import pytest
from scipy import stats

from conform_app.mosaic.explain import explain_variance

DATASETS = ["A", "A", "B", "B", "C", "C"]


def rows(outcomes, facts, datasets=DATASETS):
    return explain_variance(outcomes, facts, datasets).set_index(["outcome", "field"])


def test_dataset_is_a_one_way_layout():
    y = [1.0, 2.0, 4.0, 5.5, 9.0, 8.0]
    row = rows({"y": y}, {}).loc[("y", "dataset")]
    f, p = stats.f_oneway(y[:2], y[2:4], y[4:])
    assert row["p"] == pytest.approx(p)
    assert row["share"] == pytest.approx(f * 2 / (f * 2 + 3))
    assert (row["df_model"], row["df_residual"]) == (2, 3)


def test_what_is_constant_within_datasets_is_tested_on_their_means():
    rng = np.random.default_rng(0)
    datasets = np.repeat([f"D{i}" for i in range(8)], 3)
    tesla = np.repeat([3, 3, 3, 7, 7, 7, 3, 7], 3)
    y = tesla * 0.5 + rng.normal(size=24)
    row = rows({"y": y}, {"tesla": tesla.tolist()}, datasets.tolist()).loc[("y", "tesla")]
    means, x = y.reshape(8, 3).mean(axis=1), tesla[::3]
    fit = stats.linregress(x, means)
    assert row["level"] == "dataset"
    assert row["p"] == pytest.approx(fit.pvalue)
    assert (row["df_model"], row["df_residual"]) == (1, 6)
    assert row["share"] == pytest.approx(np.corrcoef(tesla, y)[0, 1] ** 2)
    assert row["adjusted"] <= row["share"]


def test_what_varies_within_datasets_is_tested_within_them():
    rng = np.random.default_rng(1)
    datasets = np.repeat(["A", "B"], 10)
    age = rng.uniform(20, 40, 20)
    y = age * 0.1 + (datasets == "B") * 100 + rng.normal(size=20)
    row = rows({"y": y}, {"age": age.tolist()}, datasets.tolist()).loc[("y", "age")]
    design = np.column_stack([datasets == "A", datasets == "B", age]).astype(float)
    full = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    small = y - design[:, :2] @ np.linalg.lstsq(design[:, :2], y, rcond=None)[0]
    f = (small @ small - full @ full) / (full @ full / 17)
    assert row["level"] == "participant"
    assert row["df_residual"] == 17
    assert row["p"] == pytest.approx(stats.f.sf(f, 1, 17))


def test_nothing_is_tested_without_degrees_of_freedom():
    facts = {"maker": ["x", "x", "y", "y", "z", "z"], "tr": [1, 1, 2, 2, 3, 3]}
    table = rows({"y": [1.0, 1.1, 5.0, 5.1, 2.0, 2.2]}, facts)
    maker = table.loc[("y", "maker")]
    assert maker["share"] > 0.99
    assert np.isnan(maker["p"])
    assert np.isnan(maker["adjusted"])
    assert "cannot be told from the datasets" in maker["note"]
    assert maker["aliases"] == "tr"


def test_missing_and_constant_facts_are_left_out():
    facts = {"same": ["a"] * 6, "half": ["n/a", None, "u", "u", "v", "w"]}
    table = rows({"y": [1.0, np.nan, 2.0, 3.0, 4.0, 6.0]}, facts)
    assert ("y", "same") not in table.index
    assert table.loc[("y", "half"), "n"] == 4


def test_noise_is_not_explained():
    """Facts of the dataset have nothing to do with y: p is uniform, though shares are large."""
    rng = np.random.default_rng(2)
    datasets = np.repeat([f"D{i}" for i in range(6)], 4)
    p = []
    for _ in range(400):
        x = np.repeat(rng.normal(size=6), 4)
        y = np.repeat(rng.normal(size=6), 4) + 0.1 * rng.normal(size=24)
        p.append(rows({"y": y}, {"x": x.tolist()}, datasets.tolist()).loc[("y", "x"), "p"])
    assert np.mean(np.array(p) < 0.05) == pytest.approx(0.05, abs=0.03)
    assert stats.kstest(p, "uniform").pvalue > 0.01
