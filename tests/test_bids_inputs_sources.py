# SPDX-License-Identifier: Apache-2.0
"""Where data are looked for: raw with derivatives, derivatives alone."""

import pytest
from bids_skeleton import CIFTI, EVENTS, MNI, Skeleton, describe, put

from conform_app.bids.inputs import find_fits
from conform_app.errors import DataError, NoInputError


@pytest.fixture
def apart(tmp_path):
    """Raw and preprocessed data in folders that know nothing of each other."""
    return Skeleton(tmp_path / "raw data", tmp_path / "out" / "prep").add()


def test_found_below_derivatives_with_fmriprep_first(tmp_path):
    skeleton = Skeleton(tmp_path).add()
    other = Skeleton(tmp_path, tmp_path / "derivatives" / "aaa")
    other.add_prep("space-T1w")
    put(tmp_path / "derivatives" / "notes" / "readme.txt", "x")
    found = find_fits(bids_dir=tmp_path)
    assert found[0].runs[0].bold[0].is_relative_to(skeleton.prep)
    assert any("found and took fmriprep=" in text for text in found.warnings)
    assert list(found.datasets) == ["fmriprep", "aaa", "raw"]


def test_results_of_an_earlier_run_are_no_input(tmp_path):
    Skeleton(tmp_path).add()
    own = Skeleton(tmp_path, tmp_path / "derivatives" / "aaa")
    own.add_prep("space-T1w")
    describe(own.prep, "derivative", GeneratedBy=[{"Name": "CONFORM"}, {"Name": "fMRIPrep"}])
    assert list(find_fits(bids_dir=tmp_path).datasets) == ["fmriprep", "raw"]


def test_participants_of_a_second_dataset_are_not_left_out_in_silence(tmp_path):
    Skeleton(tmp_path / "raw").add().add(sub="02")
    one, two = tmp_path / "raw" / "derivatives" / "fmriprep", tmp_path / "two"
    describe(two, "derivative")
    (one / "sub-02").rename(two / "sub-02")
    both = [("one", one), ("two", two)]
    found = find_fits(bids_dir=tmp_path / "raw", derivatives=both)
    assert [fit.subject for fit in found] == ["01"]
    assert any("in two alone, while one is read: 02." in text for text in found.warnings)
    with pytest.raises(NoInputError, match="sub-02 has no preprocessed BOLD where that of others is read"):
        find_fits(bids_dir=tmp_path / "raw", derivatives=both, subjects=["01", "02"])
    alone = find_fits(bids_dir=tmp_path / "raw", derivatives=both, subjects=["02"])
    assert [fit.subject for fit in alone] == ["02"]
    assert not [text for text in alone.warnings if "Left out" in text]


def test_named_derivatives_in_the_users_order(tmp_path):
    Skeleton(tmp_path).add()
    Skeleton(tmp_path, tmp_path / "other").add_prep("space-T1w")
    pairs = [("other", tmp_path / "other"), ("fmriprep", tmp_path / "derivatives" / "fmriprep")]
    assert find_fits(bids_dir=tmp_path, derivatives=pairs)[0].space == "T1w"
    assert find_fits(bids_dir=tmp_path, derivatives=dict(reversed(pairs)))[0].space == "MNI152NLin2009cAsym"


def test_named_outside(apart):
    found = find_fits(bids_dir=apart.raw, derivatives={"fmriprep": apart.prep})
    assert len(found) == 1
    assert found.datasets == {"fmriprep": apart.prep, "raw": apart.raw}


def test_no_derivatives(apart):
    with pytest.raises(NoInputError, match="no preprocessed data") as caught:
        find_fits(bids_dir=apart.raw)
    assert str(apart.raw / "derivatives") in caught.value.message
    assert "-d fmriprep=PATH" in caught.value.remedy


def test_derivative_without_bold(apart):
    for path in (apart.prep / "sub-01" / "func").iterdir():
        path.unlink()
    with pytest.raises(NoInputError, match="no preprocessed BOLD in"):
        find_fits(bids_dir=apart.raw, derivatives={"fmriprep": apart.prep})


def test_folders_that_are_not_there(apart, tmp_path):
    with pytest.raises(NoInputError, match="is not a folder"):
        find_fits(bids_dir=tmp_path / "nowhere")
    with pytest.raises(NoInputError, match=r"fmriprep=.*nowhere is not a folder"):
        find_fits(bids_dir=apart.raw, derivatives={"fmriprep": tmp_path / "nowhere"})


def test_derivative_alone_with_events_inside(tmp_path):
    skeleton = Skeleton(tmp_path / "raw", tmp_path / "prep")
    skeleton.add_prep(MNI)
    events = put(tmp_path / "prep/sub-01/func/sub-01_task-x_events.tsv", EVENTS)
    found = find_fits(bids_dir=tmp_path / "prep")
    assert found[0].runs[0].events == events
    assert found.datasets == {"fmriprep": tmp_path / "prep"}


@pytest.mark.parametrize(
    "link",
    [
        lambda raw: {"DatasetLinks": {"raw": str(raw), "templateflow": "https://x.org"}},
        lambda raw: {"DatasetLinks": {"raw": raw.as_uri()}},
        lambda raw: {"SourceDatasets": [{"DOI": "10.1/x"}, {"URL": raw.as_uri()}]},
        lambda raw: {"SourceDatasets": [{"URL": "../../raw data"}]},
    ],
)
def test_derivative_alone_with_a_link_to_raw(apart, link):
    describe(apart.prep, "derivative", **link(apart.raw))
    found = find_fits(bids_dir=apart.prep)
    run = found[0].runs[0]
    assert run.events.resolve() == (apart.raw / "sub-01/func/sub-01_task-x_events.tsv").resolve()
    assert run.metadata["RepetitionTime"] == 2.0
    assert any("is a derivative: events are sought" in text for text in found.warnings)


def test_derivative_alone_inside_its_raw_dataset(tmp_path):
    skeleton = Skeleton(tmp_path).add()
    assert find_fits(bids_dir=skeleton.prep)[0].runs[0].events.is_relative_to(tmp_path / "sub-01")


def test_derivative_alone_with_raw_named(apart):
    assert find_fits(bids_dir=apart.prep, derivatives={"raw": apart.raw})[0].runs[0].events is not None


def test_derivative_alone_without_events(apart):
    with pytest.raises(NoInputError, match=r"has no events: expected .*sub-01_task-x_events\.tsv"):
        find_fits(bids_dir=apart.prep)


def test_old_and_bare_descriptions(apart):
    put(apart.prep / "dataset_description.json", {"Name": "x", "PipelineDescription": {"Name": "fMRIPrep"}})
    assert len(find_fits(bids_dir=apart.prep, derivatives={"raw": apart.raw})) == 1
    (apart.prep / "dataset_description.json").unlink()
    (apart.raw / "dataset_description.json").unlink()
    found = find_fits(bids_dir=apart.raw, derivatives={"fmriprep": apart.prep})
    assert len(found) == 1
    assert any("taken for a raw dataset" in text for text in found.warnings)


def test_broken_description(apart):
    put(apart.raw / "dataset_description.json", "[1]")
    with pytest.raises(DataError, match=r"dataset_description\.json does not hold"):
        find_fits(bids_dir=apart.raw, derivatives={"fmriprep": apart.prep})


def test_masks_of_another_pipeline_are_a_second_best(tmp_path):
    skeleton = Skeleton(tmp_path).add("space-T1w")
    own = skeleton.prep / "sub-01/func/sub-01_task-x_space-T1w_desc-brain_mask.nii.gz"
    other = Skeleton(tmp_path, tmp_path / "derivatives" / "zzz")
    other.add_prep("space-T1w")
    assert find_fits(bids_dir=tmp_path)[0].runs[0].mask == (own,)
    own.unlink()
    assert find_fits(bids_dir=tmp_path)[0].runs[0].mask[0].is_relative_to(other.prep)


def test_freesurfer_is_not_searched(tmp_path):
    skeleton = Skeleton(tmp_path).add(CIFTI)
    describe(tmp_path / "fs", "derivative")
    found = find_fits(
        bids_dir=tmp_path, derivatives={"freesurfer": tmp_path / "fs", "fmriprep": skeleton.prep}
    )
    assert list(found.datasets) == ["fmriprep", "raw"]


def test_participant_without_the_space_chosen(tmp_path):
    skeleton = Skeleton(tmp_path).add("space-T1w", sub="01").add(MNI, sub="02").add("space-T1w", sub="03")
    found = find_fits(bids_dir=skeleton.raw, output_spaces=["T1w"])
    assert [fit.subject for fit in found] == ["01", "03"]
    assert any("sub-02" in text for text in found.warnings)
    with pytest.raises(NoInputError, match="sub-02 has no BOLD in the space chosen"):
        find_fits(bids_dir=skeleton.raw, output_spaces=["T1w"], subjects=["01", "02"])
