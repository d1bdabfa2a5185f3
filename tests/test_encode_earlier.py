# SPDX-License-Identifier: Apache-2.0
"""A call for one participant beside models of others that earlier calls made."""

from __future__ import annotations

from dataclasses import replace

import pytest
from encode_cases import make_collection, make_job, take_steps

from conform_app.encode.job import plan_encoding
from conform_app.mosaic import Collection

pytest.importorskip("zarr")
KEY = "sub-01_TWO"


def notes_of(job) -> list[str]:
    return [note for note in plan_encoding(job).notes if "models of an earlier call" in note]


def test_models_that_this_call_would_make_otherwise_are_told(tmp_path) -> None:
    make_collection(tmp_path)
    job = make_job(tmp_path, encode_context=(10,), encode_repeats=1)
    take_steps(job, tmp_path)
    one = replace(job, settings=replace(job.settings, encode_target=(KEY,)))
    assert notes_of(one) == []
    other = replace(one, settings=replace(one.settings, encode_context=(20,)))
    (note,) = notes_of(other)
    assert note.startswith("sub-01_ONE, sub-02_ONE: models of an earlier call")
    collection = Collection.open(job.store)
    collection.remove("sub-02_ONE")
    collection.seal()
    (note,) = notes_of(one)
    assert note.startswith("sub-01_ONE: models of an earlier call")
