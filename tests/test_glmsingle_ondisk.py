# SPDX-License-Identifier: Apache-2.0
"""Data that stay on disk, betas that go there as they are made, and the memory that this takes."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from glmsingle_cases import load_input

from conform_app.glmsingle import GLMsingleOptions, fit_fir, fit_glmsingle


@pytest.fixture(scope="module")
def case():
    data, design, stimdur, tr, file = load_input("mini")
    cube = [file[f"data_{r}"] for r in range(3)]
    return data, cube, design, stimdur, tr


@pytest.fixture(scope="module")
def whole(case):
    data, _, design, stimdur, tr = case
    return fit_glmsingle(data, design, stimdur, tr)


def same(one, two):
    assert one.type_c.pcnum == two.type_c.pcnum
    np.testing.assert_array_equal(one.type_b.hrf_index, two.type_b.hrf_index)
    np.testing.assert_array_equal(one.type_d.frac_value, two.type_d.frac_value)
    for letter in "abcd":
        a, b = getattr(one, f"type_{letter}"), getattr(two, f"type_{letter}")
        np.testing.assert_allclose(np.asarray(a.betas), np.asarray(b.betas), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(a.r2, b.r2, rtol=1e-4, atol=1e-4)


class Rows:
    """The least that is asked of data: a shape, and slices of the first axis."""

    def __init__(self, values):
        self._values, self.shape, self.read = values, values.shape, []

    def __getitem__(self, rows):
        assert isinstance(rows, slice)
        self.read.append(rows)
        return self._values[rows].tolist()


@pytest.mark.parametrize("form", ["rows", "slabs"])
def test_anything_that_slices_is_read_block_by_block(case, whole, form):
    data, cube, design, stimdur, tr = case
    lazy = [Rows(y) for y in (data if form == "rows" else cube)]
    options = GLMsingleOptions(chunklen=25)
    result = fit_glmsingle(lazy, design, stimdur, tr, options=options, n_threads=2)
    same(result, whole)
    longest = {s.stop - s.start for run in lazy for s in run.read}
    assert max(longest) <= (25 if form == "rows" else 3)  # slabs of 20 voxels
    fir = fit_fir(lazy, design, tr, options=options)
    np.testing.assert_allclose(fir.r2, fit_fir(data, design, tr).r2, rtol=1e-4, atol=1e-4)


def test_hdf5_datasets_and_image_proxies(case, whole, tmp_path):
    h5py, nibabel = pytest.importorskip("h5py"), pytest.importorskip("nibabel")
    _, cube, design, stimdur, tr = case
    options = GLMsingleOptions(chunklen=25)
    with h5py.File(tmp_path / "data.h5", "w") as file:
        sets = [file.create_dataset(f"{r}", data=y) for r, y in enumerate(cube)]
        same(fit_glmsingle(sets, design, stimdur, tr, options=options, n_threads=2), whole)
    for name in ("run.nii", "run.nii.gz"):
        proxies = []
        for r, y in enumerate(cube):
            nibabel.save(nibabel.Nifti1Image(y, np.eye(4)), tmp_path / f"{r}{name}")
            proxies.append(nibabel.load(tmp_path / f"{r}{name}").dataobj)
        same(fit_glmsingle(proxies, design, stimdur, tr, options=options), whole)


@pytest.mark.parametrize("keep", ["ABCD", "BD"])
def test_betas_go_to_the_store_block_by_block(case, whole, tmp_path, keep):
    h5py = pytest.importorskip("h5py")
    data, _, design, stimdur, tr = case
    with h5py.File(tmp_path / "betas.h5", "w") as file:
        result = fit_glmsingle(
            data,
            design,
            stimdur,
            tr,
            options=GLMsingleOptions(chunklen=25, keep=keep),
            n_threads=2,
            store=lambda letter, shape: file.create_dataset(letter, shape, "f4", fillvalue=-99),
        )
        assert sorted(file) == sorted(keep)
        for letter in keep.lower():
            one = getattr(result, f"type_{letter}")
            assert isinstance(one.betas, h5py.Dataset)
            expected = getattr(whole, f"type_{letter}").betas
            np.testing.assert_allclose(one.betas[()], expected, rtol=1e-4, atol=1e-4)
        from_file, from_memory = result.conditions(), whole.conditions("d")
        np.testing.assert_allclose(from_file.mean, from_memory.mean, rtol=1e-4, atol=1e-4)


def test_numbers_do_not_depend_on_threads(case):
    """Any number of threads: the same bytes, also where there are several blocks."""
    data, _, design, stimdur, tr = case
    many = [np.tile(y, (12, 1)) for y in data]
    fits = [fit_glmsingle(many, design, stimdur, tr, n_threads=n) for n in (1, 2, 3)]
    for letter in "abcd":
        assert len({getattr(fit, f"type_{letter}").betas.tobytes() for fit in fits}) == 1


def test_threads_of_torch_are_as_before(case):
    import torch

    data, _, design, stimdur, tr = case
    before = torch.get_num_threads()
    fit_glmsingle(data, design, stimdur, tr, n_threads=2)
    assert torch.get_num_threads() == before


def test_an_error_while_writing_ends_the_fit(case):
    data, _, design, stimdur, tr = case

    class Full:
        def __setitem__(self, rows, values):
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        fit_glmsingle(data, design, stimdur, tr, n_threads=2, store=lambda letter, shape: Full())


SCRIPT = """
import resource, sys, threading, time
import numpy as np
from conform_app.glmsingle import fit_glmsingle
n, limit = int(sys.argv[1]), float(sys.argv[2])
rng = np.random.default_rng(0)
design = []
for r in range(4):
    x = np.zeros((150, 30), int)
    x[np.arange(30) * 4 + 5, rng.permutation(30)] = 1
    design.append(x)

class Made:
    shape = (n, 150)
    def __init__(self, seed):
        self.seed = seed
    def __getitem__(self, rows):
        rng = np.random.default_rng([self.seed, rows.start])
        return rng.normal(1000, 10, (rows.stop - rows.start, 150)).astype(np.float32)

class Nowhere:
    def __setitem__(self, rows, values):
        assert values.shape[1] == 120

def fit(n):
    Made.shape = (n, 150)
    fit_glmsingle([Made(r) for r in range(4)], design, 1.0, 2.0, max_memory=limit, n_threads=2,
                  store=lambda letter, shape: Nowhere())

def now():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

fit(1000)
start, most, done = now(), 0, False
def watch():
    global most
    while not done:
        most = max(most, now())
        time.sleep(0.002)
thread = threading.Thread(target=watch)
thread.start()
fit(n)
done = True
thread.join()
print(most - start)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the resident size from /proc")
@pytest.mark.parametrize("limit", [100e6, 300e6])
def test_memory_stays_within_the_limit(limit):
    """20,000 voxels, whose betas (38 MB a type) and data (48 MB) are never in memory together."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, "20000", str(limit)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < limit
