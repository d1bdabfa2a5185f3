# SPDX-License-Identifier: Apache-2.0
"""Measured fMRI (Haxby et al. 2001, one slice): which of eight categories was seen, from single-trial betas.

Betas are z-scored with the training runs' mean and sd and each test trial is given to the class whose
training mean it correlates with most, one run left out at a time (chance 12.5 %).  The reference code's betas
reach 54 % (B), 69 % (C) and 76 % (D).
"""

import csv
from pathlib import Path

import numpy as np
import pytest

from conform_app.glmsingle import RunTrials, fit_glmsingle

nib = pytest.importorskip("nibabel")
ROOT = Path(__file__).parent / "data" / "haxby2001-1slice-bids"


def read():
    folder = ROOT / "derivatives" / "fmriprep" / "sub-01" / "func"
    mask = np.asarray(nib.load(sorted(folder.glob("*run-01*brain_mask.nii.gz"))[0]).dataobj) > 0
    data = [
        np.asarray(nib.load(p).dataobj, np.float32)[mask] for p in sorted(folder.glob("*preproc_bold.nii.gz"))
    ]
    tables = []
    for path in sorted((ROOT / "sub-01" / "func").glob("*events.tsv")):
        with path.open() as file:
            tables.append(list(csv.DictReader(file, delimiter="\t")))
    labels = sorted({row["trial_type"] for rows in tables for row in rows})
    design = [
        RunTrials(
            [float(row["onset"]) for row in rows],
            [float(row["duration"]) for row in rows],
            [labels.index(row["trial_type"]) for row in rows],
        )
        for rows in tables
    ]
    return data, design


def accuracy(betas, condition, run):
    right = 0
    for r in np.unique(run):
        train = run != r
        mean, sd = betas[:, train].mean(axis=1), betas[:, train].std(axis=1, ddof=1)
        z = ((betas - mean[:, None]) / np.where(sd > 0, sd, 1)[:, None]).astype(float)
        classes = np.stack([z[:, train & (condition == c)].mean(axis=1) for c in np.unique(condition)])
        for t in np.flatnonzero(~train):
            right += int(np.argmax([np.corrcoef(c, z[:, t])[0, 1] for c in classes]) == condition[t])
    return right / condition.size


def test_categories_are_read_better_from_b_to_d():
    data, design = read()
    result = fit_glmsingle(data, design, None, 2.5)
    marks = {
        k: accuracy(
            getattr(result, f"type_{k}").betas[result.valid], result.trial_condition, result.trial_run
        )
        for k in "abcd"
    }
    assert marks["b"] == pytest.approx(0.54, abs=0.025)
    assert marks["c"] == pytest.approx(0.69, abs=0.025)
    assert marks["d"] == pytest.approx(0.76, abs=0.025)
    assert 0.30 < marks["a"] < marks["b"]
