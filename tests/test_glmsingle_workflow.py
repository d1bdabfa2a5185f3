# SPDX-License-Identifier: Apache-2.0
"""The GLMsingle step of the workflow: a fit that does not fit its share of memory runs from disk to disk."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("nipype")
from conform_app.bids.inputs import find_fits
from conform_app.bids.plan import write_plan
from conform_app.bids.planning import make_plan
from conform_app.images.arrays import ArrayStore, load_arrays, load_meta
from conform_app.interfaces.glm import GLMsingle
from conform_app.settings import EventSettings, ModelSettings

DATA = Path(__file__).parent / "data" / "haxby2001-1slice-bids"
MODEL = replace(ModelSettings(), sloppy=True)


@pytest.fixture(scope="module")
def plan():
    found = find_fits(bids_dir=DATA)
    return make_plan(found[0], EventSettings(), MODEL, roots=found.datasets)


def step(plan, folder, **more):
    folder.mkdir()
    plan_file = write_plan(plan, folder / "plan.json")
    node = GLMsingle(
        plan_file=str(plan_file),
        bold_files=plan.bold_files(),
        model=asdict(MODEL),
        log_dir=str(folder),
        **more,
    )
    return Path(node.run(cwd=str(folder)).outputs.out_file)


def test_from_disk_to_disk_equals_in_memory(plan, tmp_path):
    whole = step(plan, tmp_path / "memory")
    limit = 0.9 * plan.memory
    bounded = step(plan, tmp_path / "disk", max_memory=limit, n_threads=2)
    one, two = load_arrays(whole), load_arrays(bounded)
    assert one.keys() == two.keys()
    for name, values in one.items():
        assert values.dtype == two[name].dtype
        if values.dtype.kind == "f":
            np.testing.assert_allclose(two[name], values, rtol=1e-4, atol=1e-4, err_msg=name)
        else:
            np.testing.assert_array_equal(two[name], values, err_msg=name)
    first, second = load_meta(whole), load_meta(bounded)
    assert first.pop("seconds") > 0
    assert second.pop("seconds") > 0
    assert first["account"] == second["account"]
    left = {path.name for path in (tmp_path / "disk").iterdir()}
    assert left == {path.name for path in (tmp_path / "memory").iterdir()}  # no scratch files


def test_designs_are_handed_on(plan, tmp_path):
    arrays = load_arrays(step(plan, tmp_path / "node"))
    for number, run in enumerate(plan.runs):
        n_trials = int((plan.run_of_trial == number).sum())
        assert arrays[f"design_{number}"].shape == (run.n_volumes, n_trials)


def test_an_unfinished_store_leaves_nothing(tmp_path):
    with ArrayStore(tmp_path / "arrays.h5") as store:
        store.empty("betas", (3, 2))[:] = 1
    assert list(tmp_path.iterdir()) == []
    with ArrayStore(tmp_path / "arrays.h5") as store:
        store.empty("betas", (3, 2))[:] = 1
        store.finish({"betas": None, "valid": np.ones(3, bool)}, {"a": 1})
    assert load_arrays(tmp_path / "arrays.h5").keys() == {"betas", "valid"}
