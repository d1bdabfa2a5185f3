# SPDX-License-Identifier: Apache-2.0
"""The memory that a plan counts for PSN, against what the step takes."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from conform_app.bids.plan import FitPlan, RunPlan, write_plan
from conform_app.bids.psncost import BLOCK, psn_memory
from conform_app.images.arrays import save_arrays
from conform_app.psn import parcels, wide
from conform_app.settings import ModelSettings

NAMES = Path(__file__).parents[1] / "conform_app" / "data" / "names.json"
# Of this program alone, from when the modules are there; a first small fit loads what is loaded on demand.
PEAK = """
import json, re, sys
from pathlib import Path
import numpy as np
from conform_app.bids.plan import read_plan
from conform_app.interfaces.psn import PSNDenoise
from conform_app.psn import fit_psn
folder, jobs = Path(sys.argv[1]), int(sys.argv[2])
model = json.loads((folder / "model.json").read_text())
peak = lambda: 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
fit_psn(np.random.default_rng(0).standard_normal((20, 30, 3)), mode=model["psn"])
plan = read_plan(folder / "plan.json")
step = PSNDenoise(
    plan_file=str(folder / "plan.json"), glm_file=str(folder / "glm.h5"), model=model, log_dir=str(folder),
    n_threads=jobs,
)
before = peak()
step.work(plan, folder)
print(peak() - before)
"""


def make_step(folder, n_voxels, n_conditions, n_repeats, model):
    """Plan, model and betas of a fit of so many voxels."""
    side = int(np.ceil(n_voxels ** (1 / 3)))
    nib.save(nib.Nifti1Image(np.zeros((side, side, side, 1), np.float32), np.eye(4)), folder / "bold.nii")
    points = np.arange(side**3) < n_voxels
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((n_voxels, 8)).astype(np.float32)
    signal = mixing @ rng.standard_normal((8, n_conditions), dtype=np.float32)
    betas = np.tile(signal, n_repeats)
    betas += 2 * rng.standard_normal(betas.shape, dtype=np.float32)
    bold = (str(folder / "bold.nii"),)
    runs = tuple(RunPlan(bold, (), None, None, None, str(r + 1), 1, 0.0) for r in range(n_repeats))
    n_trials = n_conditions * n_repeats
    run = np.repeat(np.arange(n_repeats), n_conditions).tolist()
    condition = np.tile(np.arange(n_conditions), n_repeats).tolist()
    trials = {"onset": n_trials * [0.0], "run": run, "condition": condition, "repeat": run}
    what = {"name": "a", "subject": "01", "sessions": (), "task": "x", "space": "T1w", "res": None}
    what |= {"den": None, "kind": "volume", "entities": {}, "tr": 2.0, "n_points": side**3}
    what |= {"conditions": tuple(map(str, range(n_conditions))), "stim_column": "", "memory": 0}
    plan = FitPlan(runs=runs, trials=trials, n_voxels=n_voxels, warnings=(), **what)
    write_plan(plan, folder / "plan.json")
    save_arrays(
        folder / "glm.h5",
        {"betas_B": betas, "valid": points[:n_voxels] > 0, "points": points},
        {"types": ["B"]},
    )
    (folder / "model.json").write_text(json.dumps(asdict(model)))
    return plan


def test_the_noise_axes_that_are_kept_are_counted_where_outputs_are_described():
    described = json.loads(NAMES.read_text(encoding="utf-8"))["products"]["psn_model"]["description"]
    assert f"the {parcels.NOISE_AXES} axes of largest noise variance" in described
    assert wide.NOISE_AXES == parcels.NOISE_AXES


@pytest.mark.parametrize(
    ("mode", "parcels", "shape", "jobs"),
    [
        ("auto", "blocks", (2200, 60, 3), 1),
        ("auto", "blocks", (2200, 60, 3), 2),
        ("cv", "blocks", (2200, 120, 3), 2),
        ("auto", "none", (1300, 60, 3), 1),
        ("wiener", "none", (6000, 300, 4), 1),
    ],
)
def test_the_plan_counts_the_memory_of_psn(tmp_path, mode, parcels, shape, jobs):
    model = replace(ModelSettings(), psn=mode, psn_parcels=(parcels,))
    plan = make_step(tmp_path, *shape, model)
    command = [sys.executable, "-c", PEAK, str(tmp_path), str(jobs)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    measured, estimate = int(done.stdout), psn_memory(plan, model, 0, jobs)
    assert 0.35 < measured / estimate < 1.0, (measured, estimate)


def test_what_the_estimate_follows(tmp_path):
    model = replace(ModelSettings(), psn="auto", psn_parcels=("blocks",))
    plan = make_step(tmp_path, 100, 10, 2, model)
    assert BLOCK == parcels.MAX_UNITS
    large = replace(plan, n_voxels=90_000)
    one = psn_memory(large, model, 7)
    assert psn_memory(large, model, 7, 4) - one == pytest.approx(3 * (8 * 8 * BLOCK**2 + 3e7), rel=0.02)
    assert psn_memory(plan, model, 7, 4) == psn_memory(plan, model, 7)  # there is one block
    atlas = replace(model, psn_parcels=("a.dlabel.nii",))
    assert psn_memory(large, atlas, 7) == one  # regions are cut up likewise
    whole = replace(model, psn_parcels=("none",))
    assert psn_memory(replace(plan, n_voxels=4000), whole, 7) > 8 * 8 * 4000**2
    # in the span of the trials, voxels x voxels matrices are not made
    assert psn_memory(large, replace(whole, psn="wiener"), 7) < 3e8
    assert psn_memory(large, replace(model, psn="off"), 7) == 7
    once = replace(plan, trials={**plan.trials, "condition": list(range(plan.n_trials))})
    assert psn_memory(once, model, 7) == 7  # without repeats PSN does not run
