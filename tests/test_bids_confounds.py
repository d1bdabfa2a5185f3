# SPDX-License-Identifier: Apache-2.0
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from conform_app.bids.confounds import MOTION, read_confounds, select_confounds, select_of_runs
from conform_app.errors import DataError, FileFaultError, UsageError

N = 12


@pytest.fixture
def table():
    rng = np.random.default_rng(7)
    frame = pd.DataFrame({name: rng.normal(size=N) for name in MOTION})
    for n in (10, 9, 2, 1, 0):
        frame[f"a_comp_cor_{n:02d}"] = rng.normal(size=N) + n
        frame[f"cosine{n:02d}"] = rng.normal(size=N)
    frame["framewise_displacement"] = np.r_[np.nan, rng.normal(size=N - 1) + 5]
    return frame


@pytest.fixture
def write(tmp_path):
    def write(frame):
        path = tmp_path / "sub-01_desc-confounds_timeseries.tsv"
        frame.to_csv(path, sep="\t", index=False, na_rep="n/a")
        return path

    return write


def test_none(write, table):
    assert read_confounds(write(table), "none", N).values.shape == (N, 0)
    assert read_confounds(write(table), (), N).names == ()
    values, told = select_confounds(write(table), ("none",), N)
    assert (values.shape, told) == ((N, 0), [])


def test_motion6_is_centred(write, table):
    found = read_confounds(write(table), "motion6", N)
    assert found.names == MOTION
    expected = table[list(MOTION)] - table[list(MOTION)].mean()
    np.testing.assert_allclose(found.values, expected, atol=1e-12)
    assert found.values.dtype == np.float64


def test_motion24_against_pandas(write, table):
    found = read_confounds(write(table), "motion24", N)
    base = table[list(MOTION)]
    full = pd.concat([base, base.diff(), base**2, base.diff() ** 2], axis=1)
    expected = (full - full.mean()).fillna(0.0)
    assert len(found.names) == 24
    assert len(set(found.names)) == 24
    np.testing.assert_allclose(found.values, expected, atol=1e-12)
    np.testing.assert_allclose(
        read_confounds(write(table), "motion12", N).values, expected.iloc[:, :12], atol=1e-12
    )


def test_derivatives_in_the_file_are_used(write, table):
    table["rot_x_derivative1"] = np.r_[np.nan, np.arange(N - 1.0)]
    found = read_confounds(write(table), ["rot_x_derivative1", "rot_x_derivative1_power2"], N)
    np.testing.assert_allclose(found.values[1:, 0], np.arange(11) - 5)
    squares = np.arange(11.0) ** 2
    np.testing.assert_allclose(found.values[1:, 1], squares - squares.mean())


def test_missing_first_row_is_neutral(write, table):
    values = read_confounds(write(table), "framewise_displacement", N).values[:, 0]
    assert values[0] == 0
    raw = table["framewise_displacement"][1:]
    np.testing.assert_allclose(values[1:], raw - raw.mean())


def test_names_patterns_and_counts(write, table):
    path = write(table)
    assert read_confounds(path, "cosine*", N).names == tuple(f"cosine{n:02d}" for n in (0, 1, 2, 9, 10))
    assert read_confounds(path, "a_comp_cor:3", N).names == tuple(f"a_comp_cor_{n:02d}" for n in (0, 1, 2))
    mixed = read_confounds(path, ["rot_x", "motion6", "rot_?", "cosine:1"], N)
    assert mixed.names == ("rot_x", "trans_x", "trans_y", "trans_z", "rot_y", "rot_z", "cosine00")
    few = read_confounds(path, "a_comp_cor:9", N)
    assert len(few.names) == 5
    assert "there are 5" in few.warnings[0]


@pytest.mark.parametrize(
    "spec", ["csf", "csf*", "csf:2", "a_comp_cor:x", "a_comp_cor:0", "global_signal_derivative1"]
)
def test_unknown_names(write, table, spec):
    with pytest.raises(UsageError, match="--confounds") as caught:
        read_confounds(write(table), spec, N)
    if "comp" not in spec:
        assert "framewise_displacement" in caught.value.remedy


def test_an_unknown_name_lists_no_more_columns_than_a_line_holds(write, table):
    more = pd.DataFrame({f"t_comp_cor_{n:03d}": table["rot_x"] for n in range(300)})
    many = pd.concat([table, more], axis=1)
    with pytest.raises(UsageError) as caught:
        read_confounds(write(many), "csf", N)
    assert caught.value.remedy.count(", ") == 39
    assert caught.value.remedy.endswith(f"and {len(many.columns) - 40} more.")


def test_outliers_need_not_be_in_every_run(tmp_path, table):
    spike = np.eye(N)[4]
    with_one = table.assign(motion_outlier00=spike)
    paths = [tmp_path / f"run-{n}.tsv" for n in (1, 2, 3)]
    for path, run in zip(paths, (table, with_one, table), strict=True):
        run.to_csv(path, sep="\t", index=False, na_rep="n/a")
    values, told = select_of_runs(paths, ["rot_x", "motion_outlier*", "motion_outlier:1"], [N] * 3)
    assert [run.shape for run in values] == [(N, 1), (N, 2), (N, 1)]
    np.testing.assert_allclose(values[1][:, 1], spike - 1 / N)
    assert told[0] == "--confounds motion_outlier*: 2 of 3 runs have no such column."
    for unknown in ("csf", "motion_outlier00", "non_steady_state*"):  # a column by name, or nowhere
        with pytest.raises(UsageError, match="has no"):
            select_of_runs(paths, [unknown], [N] * 3)


def test_constant_columns_are_dropped(write, table):
    table["zero"], table["big"] = 0.0, 1e6 / 3
    table["only_first_differs"] = np.r_[np.nan, np.ones(N - 1)]
    found = read_confounds(write(table), ["zero", "rot_x", "big", "only_first_differs"], N)
    assert found.names == ("rot_x",)
    assert len(found.warnings) == 3
    assert read_confounds(write(table), "zero", N).values.shape == (N, 0)


@pytest.mark.parametrize("bad", ["n/a", "inf", "-inf"])
def test_gaps_after_the_first_row(write, table, bad):
    table = table.astype(object)
    table.loc[4, "rot_y"] = bad
    with pytest.raises(DataError, match="column rot_y, row 5: the value is missing or infinite"):
        read_confounds(write(table), "motion6", N)
    assert read_confounds(write(table), "rot_x", N).names == ("rot_x",)


def test_infinite_first_row(write, table):
    table.loc[0, "rot_y"] = np.inf
    with pytest.raises(DataError, match="row 1"):
        read_confounds(write(table), "rot_y", N)


def test_text_in_a_column(write, table):
    table = table.astype(object)
    table.loc[2, "rot_y"] = "x"
    with pytest.raises(DataError, match="column rot_y, row 3: 'x' is not a number"):
        read_confounds(write(table), "rot_y", N)


def test_wrong_length(write, table):
    with pytest.raises(DataError, match="12 rows for 13 volumes"):
        read_confounds(write(table), "rot_y", 13)


def test_files_that_are_no_table(tmp_path):
    path = tmp_path / "c.tsv"
    with pytest.raises(FileFaultError):
        read_confounds(path, "rot_y", N)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="not a tab-separated table"):
        read_confounds(path, "rot_y", N)


def test_measured_data():
    root = Path(__file__).parent / "data" / "haxby2001-1slice-bids"
    if not root.is_dir():
        root = Path(os.environ.get("CONFORM_TEST_DATA", "/nonexistent")) / "data/real/haxby2001-1slice-bids"
    paths = sorted(root.rglob("*desc-confounds_timeseries.tsv"))
    if not paths:
        pytest.skip("needs CONFORM_TEST_DATA, the folder of measured data")
    for path in paths:
        found = read_confounds(path, ["motion24", "framewise_displacement", "cosine*"], 121)
        assert np.isfinite(found.values).all()
        np.testing.assert_allclose(found.values.mean(axis=0), 0, atol=1e-10)
