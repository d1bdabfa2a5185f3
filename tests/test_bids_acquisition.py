# SPDX-License-Identifier: Apache-2.0
"""What a fit carries of how it was measured."""

import nibabel as nib
import numpy as np
from bids_skeleton import Skeleton, put

from conform_app.bids.acquisition import common_values, describe_participant, describe_run, slice_timing
from conform_app.bids.inputs import find_fits


def test_slice_times_are_summed_up():
    assert slice_timing([0, 0.5, 1.0]) == {"SliceTiming": "ascending", "NumberOfSlices": 3, "SlicesAtOnce": 1}
    assert slice_timing([0, 0.8, 0.4, 1.2] * 3) == {
        "SliceTiming": "interleaved", "NumberOfSlices": 12, "SlicesAtOnce": 3,
    }  # fmt: skip
    assert slice_timing([1.0, 0.5, 0])["SliceTiming"] == "descending"
    assert slice_timing(None) == slice_timing(["a"]) == {}


def test_raw_sidecars_events_sidecar_header_and_participant(tmp_path):
    skeleton = Skeleton(tmp_path / "ds").add(
        run="1", sidecar={"StartTime": 0.9, "SliceTimingCorrected": True}
    )
    skeleton.add(run="2")
    put(skeleton.raw / "task-x_bold.json", {"RepetitionTime": 2.0, "EchoTime": 0.03, "PatientName": "x"})
    put(skeleton.raw / "task-x_events.json", {"StimulusPresentation": {"VisualAngle": [8, 8]}})
    put(skeleton.raw / "sub-01" / "func" / "sub-01_task-x_run-2_events.json", {"Instructions": "Look."})
    put(skeleton.raw / "participants.tsv", "participant_id\tage\tsex\nsub-02\t9\tM\nsub-01\t31\tn/a\n")
    path = skeleton.raw / "sub-01" / "func" / "sub-01_task-x_run-1_bold.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((3, 4, 2, 5), np.int16), np.diag([2.5, 2.5, 3, 1])), path)
    fit = find_fits(bids_dir=skeleton.raw)[0]
    first, second = (describe_run(run) for run in fit.runs)
    assert (first["EchoTime"], first["StartTime"]) == (0.03, 0.9)
    assert first["VoxelSize"] == [2.5, 2.5, 3.0]
    assert first["StimulusPresentation"] == {"VisualAngle": [8, 8]}
    assert "Instructions" not in first
    assert second["Instructions"] == "Look."
    assert "PatientName" not in first
    assert "VoxelSize" not in second, "an empty file has no header"
    assert describe_participant(fit) == {"age": "31"}


def test_values_that_differ_between_runs_stay_apart():
    assert common_values([{"a": 1, "b": 2}, {"a": 1, "b": 3}, {}]) == {"a": 1, "b": {"values": [2, 3]}}
