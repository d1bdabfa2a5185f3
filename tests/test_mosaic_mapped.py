# SPDX-License-Identifier: Apache-2.0
"""Shards on disk, read from the cache or not, and more of them than a process may hold open."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from conform_app.errors import FileFaultError
from conform_app.mosaic import Collection, FitUnit, mapped, shards

N, V = 600, 5000  # three shards, three chunk columns
BETAS = np.random.default_rng(0).standard_normal((N, V)).astype(np.float32)
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    collection = Collection.create(tmp_path_factory.mktemp("c") / "c", space="toy", n_vertices=V)
    trials = pd.DataFrame({"stimulus": [f"{i}.png" for i in range(N)], "phase": "train"})
    collection.add_participant("A", "sub-01", trials, [FitUnit("all", BETAS)], normalise=False)
    return collection.root


def forget(root):
    """Drop every file of the collection from the kernel's cache."""
    for path in root.rglob("c/*/*"):
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


@pytest.mark.parametrize("vertices", [None, np.arange(2040, 2060), np.array([4999, 0, 2048])])
@pytest.mark.parametrize("trials", [0, 599, [3, 3, 255, 256, 2], slice(20, 300), None])
def test_what_is_not_in_the_cache_is_asked_for_and_read(made, monkeypatch, trials, vertices):
    asked, questions = [], []
    real, question = mapped.MappedShard.ask_for, mapped.MappedShard.cached

    def note(self, starts, length):
        starts = list(starts)
        asked.extend((start, length) for start in starts)
        real(self, starts, length)

    def once(self, start):
        questions.append((id(self), start))
        return question(self, start)

    monkeypatch.setattr(mapped.MappedShard, "ask_for", note)
    monkeypatch.setattr(mapped.MappedShard, "cached", once)
    forget(made)
    found = Collection.open(made).betas("sub-01_A", trials, vertices)
    rows = np.atleast_1d(np.arange(N)[slice(None) if trials is None else trials])
    expected = BETAS[rows] if vertices is None else BETAS[np.ix_(rows, vertices)]
    np.testing.assert_array_equal(found, expected)
    assert len(set(questions)) == len(questions), "the question may fetch the byte: it is asked once"
    for start, length in asked:
        assert 0 <= start < start + length <= shards.Grain(N, V, "float32").file_size(0)


def test_places_of_a_trial_are_those_that_it_is_read_from(made):
    collection = Collection.open(made)
    collection.betas("sub-01_A", 0)
    reader = collection._readers["sub-01_A"]
    for vertices in (None, np.array([7, 2100])):
        for t in (np.array([40]), np.array([40, 70, 71]), np.arange(100)):
            starts, length = reader._places(t, vertices)
            raw = (made / "participants/sub-01_A/betas/c/0/0").read_bytes()
            asked = np.concatenate([np.frombuffer(raw[s : s + length], "<f4") for s in starts])
            wanted = BETAS[t] if vertices is None else BETAS[np.ix_(t, vertices)]
            assert np.isin(wanted, asked).all()
            if len(t) == 1 and vertices is None:
                assert np.array_equal(asked[:V], wanted[0])  # not a byte more than the trial


def test_a_shard_of_another_size_is_refused_and_its_file_closed(made, tmp_path):
    path = tmp_path / "0"
    path.write_bytes(b"\0" * 64)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with pytest.raises(FileFaultError, match="has 64 bytes instead of 128"):
            mapped.MappedShard(path, np.dtype("<f4"), (16,), 128)
    assert len(os.listdir("/proc/self/fd")) <= before + 2


SCRIPT = """
import numpy as np, sys
from conform_app.mosaic import Collection
collection = Collection.open(sys.argv[1])
first = collection.betas("sub-01_A", 0).copy()
for i in list(range(0, collection.record("sub-01_A")["n_trials"], 256)) * 2:
    collection.betas("sub-01_A", i)
assert np.array_equal(first, collection.betas("sub-01_A", 0))
print("read")
"""


def test_more_shards_than_files_may_be_open(tmp_path):
    n = 256 * 120
    collection = Collection.create(tmp_path / "c", space="toy", n_vertices=3)
    trials = pd.DataFrame({"stimulus": "a.png", "phase": "train"}, index=range(n))
    unit = FitUnit("all", np.random.default_rng(0).standard_normal((n, 3)))
    collection.add_participant("A", "sub-01", trials, [unit], ceilings=False)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "c")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "read\n", done.stderr[-2000:]
