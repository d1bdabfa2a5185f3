# SPDX-License-Identifier: Apache-2.0
"""Rooms with ``device="cuda"`` against the CPU: on a simulated device, and on a GPU where there is one.

The simulated device (`simulated_gpu`) computes on the CPU, so it finds misplaced tensors, not the rounding of
a GPU's kernels.  On a machine with a GPU the same checks run there as well.  Networks: test_gpu_networks.py.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from glmsingle_cases import load_input
from gpu_cases import KINDS, device, same
from psn_cases import relative, simulate, simulate_gaps
from scipy import sparse
from simulated_gpu import simulated_gpu
from small_dataset import make_dataset
from small_surfaces import COMMON
from surface_cases import OBLIQUE, SHAPE, fsaverage5, icosphere, rotation, signal, waves

from conform_app.braincorl import unit_norm
from conform_app.cli import main
from conform_app.glmsingle import GLMsingleOptions, RunTrials, fit_glmsingle
from conform_app.glmsingle.problem import Problem
from conform_app.mosaic import resolve_duplicates, split_stimuli
from conform_app.mosaic.similarity import nearest, pairs_above
from conform_app.psn import fit_gsn, fit_parcels, fit_psn, fit_wide
from conform_app.surface import SphereResampler, VolumeToSurface, linear


@pytest.fixture(params=KINDS)
def gpu(request):
    with device(request.param):
        yield request.param


def test_there_is_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device: the simulated one alone is tested")
    assert "cuda" in KINDS


# glmsingle

MINI = load_input("mini")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"wantlss": True},
        {"pcstop": -2, "fracs": (0.5,)},
        {"wantlibrary": False, "wantautoscale": False},
        {"hrfbetween": 1, "wantpercentbold": False},
        {"reference": True},
        {"chunklen": 30, "keep": ("A", "B", "C", "D")},
    ],
    ids=str,
)
def test_glmsingle(gpu, options):
    data, design, stimdur, tr, _ = MINI
    asked = GLMsingleOptions(**options)
    more = {"options": asked, "sessions": [1, 1, 2][: len(data)]}
    here = fit_glmsingle(data, design, stimdur, tr, **more)
    there = fit_glmsingle(data, design, stimdur, tr, device="cuda", **more)
    for letter in "abcd":
        same(getattr(there, f"type_{letter}"), getattr(here, f"type_{letter}"), 1e-3, 1e-3, letter)
    errors = [result.type_d.standard_error[:20] for result in (there, here)]
    same(*errors, 1e-3, 1e-3, "standard errors")
    assert there.warnings == here.warnings


def test_glmsingle_with_regressors_and_odd_voxels(gpu):
    data, design, stimdur, tr, _ = MINI
    data = [run.astype(np.float32).copy() for run in data]
    data[0][3], data[1][5, 2] = 7.0, np.nan
    rng = np.random.default_rng(0)
    extra = [rng.standard_normal((run.shape[1], 2)) for run in data]
    onsets = [np.argwhere(d.T) for d in design]
    trials = [
        RunTrials(where[:, 1] * tr + 0.3, np.full(len(where), stimdur), where[:, 0]) for where in onsets
    ]
    store = {}

    def keep(letter, shape):
        store.setdefault(letter, []).append(np.full(shape, np.nan, np.float32))
        return store[letter][-1]

    fits = [
        fit_glmsingle(data, trials, None, tr, extra_regressors=extra, device=place, store=keep)
        for place in ("cpu", "cuda")
    ]
    assert not fits[1].valid[3]
    assert not fits[1].valid[5]
    for pair in store.values():
        same(pair[1], pair[0], 1e-3, 1e-3)


# psn

ROUNDING = {"simulated": 1e-6, "cuda": 1e-4}  # relative; a GPU's factorisations are other ones


@pytest.mark.parametrize(
    "options",
    [
        *({"mode": m} for m in ("cv", "auto", "standard", "conservative", "aggressive", "compare", "wiener")),
        {"mode": "cv", "threshold": "global"},
        {"mode": "auto", "shrink": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["float64", "float32", "missing", "wide"])
def test_psn(gpu, options, kind):
    _, data = simulate(*((90, 20, 3) if kind == "wide" else (40, 50, 3)), seed=3)
    if kind == "missing":
        data[:, ::7, 2] = np.nan
    data = data.astype(np.float32) if kind == "float32" else data
    here, there = fit_psn(data, **options), fit_psn(data, device="cuda", **options)
    assert relative(there.denoised, here.denoised) < ROUNDING[gpu]
    assert relative(there.kept_noise, here.kept_noise) < 10 * ROUNDING[gpu]
    assert there.criterion == here.criterion


@pytest.mark.parametrize("mode", ["cv", "auto", "wiener"])
def test_psn_with_gaps(gpu, mode):
    data = simulate_gaps()
    here, there = (fit_psn(data, mode=mode, uneven="missing", device=d) for d in ("cpu", "cuda"))
    assert relative(there.denoised, here.denoised) < ROUNDING[gpu]


def test_gsn(gpu):
    _, data = simulate(30, 40, 3, seed=1)
    data.flags.writeable = False
    for options in ({}, {"shrink": False}, {"reference": True}, {"uneven": "missing"}):
        here, there = fit_gsn(data, **options), fit_gsn(data, device="cuda", **options)
        assert relative(there.signal_cov, here.signal_cov) < ROUNDING[gpu] / 100
        assert relative(there.noise_cov, here.noise_cov) < ROUNDING[gpu] / 100


@pytest.mark.parametrize("mode", ["wiener", "standard", "conservative", "aggressive"])
@pytest.mark.parametrize("shape", [(200, 20, 3), (30, 20, 3)])
@pytest.mark.parametrize("shrink", [True, False])
def test_psn_of_all_units_at_once(gpu, mode, shape, shrink):
    _, data = simulate(*shape, seed=4)
    here, there = (fit_wide(data, mode=mode, shrink=shrink, device=d) for d in ("cpu", "cuda"))
    assert relative(there.denoised, here.denoised) < ROUNDING[gpu]
    assert relative(there.kept_signal, here.kept_signal) < ROUNDING[gpu]


@pytest.mark.parametrize("n_jobs", [1, 3])
def test_psn_by_parcels(gpu, n_jobs):
    _, data = simulate(60, 40, 3, seed=2)
    parcel = np.repeat([0, 1, 2], 20)
    for mode in ("cv", "auto"):
        here, there = (
            fit_parcels(data.astype(np.float32), parcel, n_jobs=n_jobs, mode=mode, device=d)
            for d in ("cpu", "cuda")
        )
        assert relative(there.denoised, here.denoised) < 10 * ROUNDING[gpu]
        assert there.account == here.account


# surface


@pytest.mark.parametrize("method", ["ribbon", "trilinear", "cubic"])
def test_volume_to_surface(gpu, method):
    carry = VolumeToSurface(fsaverage5("L", "white"), fsaverage5("L", "pial"), SHAPE, OBLIQUE, method=method)
    series = waves()[..., None] * np.arange(1, 4)
    for dtype, rtol in ((np.float32, 1e-5), (np.float64, 1e-12)):
        for values in (series, series[..., 0], np.asfortranarray(series), series[::-1][::-1]):
            here = carry.apply(values, dtype=dtype)
            same(carry.apply(values, dtype=dtype, device="cuda"), here, rtol, rtol)


@pytest.mark.parametrize("method", ["barycentric", "nearest", "adaptive"])
def test_sphere_to_sphere(gpu, method):
    fine, (x, t) = icosphere(4, 100.0), icosphere(3, 55.0)
    coarse = x @ rotation().T, t
    carry = SphereResampler(fine, coarse, method=method, source_area=fine, target_area=coarse)
    maps = np.stack([signal(fine[0]), np.arange(len(fine[0]))], axis=1)
    for values in (maps, maps[:, 0], maps.astype(np.int32)):
        same(carry.apply(values, device="cuda"), carry.apply(values), 1e-5, 1e-5)
        got = carry.apply(values, device="cuda:0", dtype=np.float64)
        same(got, carry.apply(values, dtype=np.float64), 1e-12, 1e-12)
    masked = carry.masked(np.arange(len(fine[0])) % 3)
    same(masked.apply(maps, device="cuda", fill=-1), masked.apply(maps, fill=-1), 1e-5, 1e-5)


@pytest.mark.parametrize("place", ["cpu", "cpu:0", "cuda"])
def test_a_matrix_in_any_order(place):
    """As scipy's products are, and with a weight in two parts."""
    with device("simulated") if place == "cuda" else nullcontext():
        weights = sparse.csr_matrix(
            (np.array([0.5, 0.25, 0.25, 1.0]), np.array([3, 0, 3, 1]), np.array([0, 3, 3, 4])), (3, 4)
        )
        carry = linear.LinearMap(weights)
        maps = np.arange(8.0).reshape(4, 2)
        want = [[0.75 * 6, 0.75 * 7 + 0.25], [-1, -1], [2, 3]]
        for _ in range(2):
            got = carry(lambda used, a, b: maps[used, a:b], 2, fill=-1, device=place, dtype=np.float64)
            np.testing.assert_allclose(got, want, rtol=1e-12)
        np.testing.assert_array_equal(weights.indices, [3, 0, 3, 1])


# mosaic


def vectors(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 16))
    x[1::7] = x[: len(x[1::7])] + 0.05 * rng.standard_normal((len(x[1::7]), 16))
    return unit_norm(x)


def test_similarity(gpu, monkeypatch):
    monkeypatch.setattr("conform_app.mosaic.similarity._BLOCK", 40)
    a, b = vectors(150), vectors(110, 1)
    for pair in ((a, None), (a, b)):
        same(pairs_above(*pair, 0.4, device="cuda"), pairs_above(*pair, 0.4), 1e-12)
    same(nearest(a, b, device="cuda"), nearest(a, b), 1e-12)
    same(nearest(a, b[:0], device="cuda"), nearest(a, b[:0]), 1e-12)


def test_identity_and_split(gpu):
    names = [f"{i}.png" for i in range(60)]
    embeddings = dict(zip(names, vectors(60), strict=True))
    rows = [
        (name, dataset, f"sub-{n}", "test" if i % 5 == 0 else "train", 2)
        for i, name in enumerate(names)
        for n, dataset in enumerate(("ONE", "TWO"))
        if i % 2 == n or i % 3 == 0
    ]
    shown = pd.DataFrame(rows, columns=["stimulus", "dataset", "participant", "phase", "n_trials"])
    table = shown[["dataset", "stimulus"]].rename(columns={"stimulus": "name"})
    table["sha256"] = [f"{d}{n}" for d, n in table.to_numpy()]
    identities, splits = [], []
    for place in ("cpu", "cuda"):
        more = {"embeddings": embeddings, "threshold": 0.6, "device": place}
        identities.append(resolve_duplicates(table, same_name="same", **more))
        splits.append(split_stimuli(shown, **more))
    for name in ("stimuli", "names", "near"):
        pd.testing.assert_frame_equal(*(getattr(one, name) for one in identities))
    pd.testing.assert_frame_equal(splits[0].stimuli, splits[1].stimuli)
    assert len(splits[0].near)
    pd.testing.assert_frame_equal(splits[0].near, splits[1].near)


# the command line


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("gpu") / "ds", subjects=("01", "02"), n_runs=3)


def images_of(run, dataset, out, device: str, nprocs: int) -> dict:
    """All images that a run writes, by name."""
    argv = [dataset, out, "participant", "-w", f"{out}-work", "--device", device, "--sloppy"]
    argv += ["--skip-bids-validation", "--glm-types", "B", "D", "--nprocs", nprocs]
    assert run(list(map(str, argv))) == 0
    return {path.name: np.asarray(nib.load(path).dataobj) for path in out.rglob("sub-*/**/*.nii.gz")}


def in_a_process(argv: list[str]) -> int:
    """A process of its own: this one has used CUDA, and cannot fork others that do."""
    command = [sys.executable, "-m", "conform_app", *argv]
    return subprocess.run(command, cwd=Path(__file__).parents[1], check=False).returncode


@pytest.fixture(scope="module")
def on_the_cpu(dataset, tmp_path_factory):
    return images_of(in_a_process, dataset, tmp_path_factory.mktemp("cpu") / "out", "cpu", 1)


@pytest.mark.parametrize("nprocs", [1, 2])
@pytest.mark.parametrize("device", ["cuda", "auto"])
@pytest.mark.parametrize("kind", KINDS)
def test_participant_level(kind, device, nprocs, dataset, on_the_cpu, tmp_path, monkeypatch):
    """One process works on both participants, or two do, which are forked."""
    used = tmp_path / "used"
    if kind == "cuda":
        there = images_of(in_a_process, dataset, tmp_path / "out", device, nprocs)
    else:
        with simulated_gpu() as state:
            factors = Problem.factors

            def seen(self, *args):
                used.write_text(self.device.type)
                return factors(self, *args)

            monkeypatch.setattr(Problem, "factors", seen)
            monkeypatch.setattr("conform_app.reports.build_report", lambda *args, **kwargs: None)
            there = images_of(main, dataset, tmp_path / "out", device, nprocs)
            assert used.read_text() == "cuda"
            assert (state.sent > 0) == (nprocs == 1)
    assert there.keys() == on_the_cpu.keys()
    assert len(there) == 50
    for name, values in on_the_cpu.items():
        same(there[name].astype(float), values.astype(float), 1e-3, 1e-3, name)


@pytest.mark.parametrize("of", ["timeseries", "betas"])
@pytest.mark.parametrize("kind", KINDS)
def test_surface_step(kind, of, balls, fslr_home, tmp_path, monkeypatch):
    """Volumes carried to the cortex and on to a template, before the GLM or after it."""
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(fslr_home))
    made, products = {}, []
    make = linear._torch_product
    monkeypatch.setattr(linear, "_torch_product", lambda *args: products.append(args[1]) or make(*args))
    if kind == "simulated":
        monkeypatch.setattr("conform_app.images.templates.online", lambda: False)
        monkeypatch.setattr("conform_app.reports.build_report", lambda *args, **kwargs: None)
    for place in ("cpu", "cuda"):
        argv = [balls, tmp_path / place, "participant", "-w", tmp_path / f"work-{place}", *COMMON]
        argv += ["--output-spaces", "fsLR:den-32k", "--surface-of", of, "--device", place]
        with simulated_gpu() if kind == "simulated" else nullcontext():
            assert (main if kind == "simulated" else in_a_process)(list(map(str, argv))) == 0
        made[place] = {path.name: nib.load(path) for path in (tmp_path / place).rglob("*.gii")}
    assert made["cuda"].keys() == made["cpu"].keys()
    assert len(made["cpu"]) > 10
    for name, image in made["cpu"].items():
        for here, there in zip(image.darrays, made["cuda"][name].darrays, strict=True):
            same(there.data.astype(float), here.data.astype(float), 1e-3, 1e-3, name)
    if kind == "simulated":  # betas are carried by scipy
        assert products == (["cuda"] if of == "timeseries" else [])
