# SPDX-License-Identifier: Apache-2.0
import json

import pytest
from bids_skeleton import EVENTS, MNI, Skeleton, put

from conform_app.bids.filters import check_filters, read_filters
from conform_app.bids.inputs import find_fits
from conform_app.errors import DataError, NoInputError, NothingSelectedError, UsageError


@pytest.fixture
def skeleton(tmp_path):
    return Skeleton(tmp_path / "bids").add(run="1").add(run="2").add(more="dir-AP", run="3")


def runs(skeleton, **filters):
    return [run.run for fit in find_fits(bids_dir=skeleton.raw, filters=filters) for run in fit.runs]


def test_values(skeleton):
    assert runs(skeleton, bold={"run": 2}) == ["2"]
    assert runs(skeleton, bold={"run": ["01", 3]}) == ["1", "3"]
    assert runs(skeleton, bold={"direction": None}) == ["1", "2"]
    assert runs(skeleton, bold={"dir": "*"}) == ["3"]
    assert runs(skeleton, bold={"direction": [None, "AP"]}) == ["1", "2", "3"]
    assert runs(skeleton, bold={"datatype": "func", "extension": "nii.gz"}) == ["1", "2", "3"]


def test_a_filter_is_strict_where_labels_are_not(skeleton):
    with pytest.raises(NothingSelectedError, match="run 1, 2, 3"):
        runs(skeleton, bold={"session": "a"})


def test_another_desc(skeleton):
    put(skeleton.prep / f"sub-01/func/sub-01_task-x_run-1_{MNI}_desc-denoised_bold.nii.gz")
    (fit,) = find_fits(bids_dir=skeleton.raw, filters={"bold": {"desc": "denoised"}})
    assert [run.bold[0].name for run in fit.runs] == [f"sub-01_task-x_run-1_{MNI}_desc-denoised_bold.nii.gz"]
    assert "preproc" in find_fits(bids_dir=skeleton.raw)[0].runs[0].bold[0].name


def test_events_mask_and_confounds(skeleton):
    put(skeleton.raw / "task-x_events.tsv", EVENTS)
    func = skeleton.prep / "sub-01/func"
    put(func / f"sub-01_task-x_run-1_{MNI}_label-GM_mask.nii.gz")
    put(func / f"sub-01_task-x_run-1_{MNI}_desc-grey_mask.nii.gz")
    filters = {
        "bold": {"run": 1},
        "events": {"subject": None},
        "mask": {"desc": "grey"},
        "confounds": {"suffix": "regressors"},
    }
    run = find_fits(bids_dir=skeleton.raw, filters=filters)[0].runs[0]
    assert run.events.name == "task-x_events.tsv"
    assert run.mask[0].name.endswith("desc-grey_mask.nii.gz")
    assert run.confounds is None


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"T1w": {}}, "'T1w'"),
        ({"bold": {"acquisiton": "x"}}, "'acquisiton'"),
        ({"bold": "x"}, "'bold'"),
        ({"bold": {"run": []}}, "run"),
        ({"bold": {"run": {"a": 1}}}, "run"),
        ({"bold": {"run": True}}, "True"),
    ],
)
def test_bad_filters_name_the_culprit(content, named):
    with pytest.raises(UsageError) as caught:
        check_filters(content)
    assert named in caught.value.message


def test_file(tmp_path):
    path = tmp_path / "filter.json"
    path.write_text(json.dumps({"bold": {"ses": "ses-02", "run": [1, None]}}))
    checked = read_filters(path)
    assert checked == {"bold": {"session": ("02",), "run": ("1", None)}}
    assert check_filters(checked) == checked
    path.write_text("{")
    with pytest.raises(UsageError, match=r"filter\.json is not valid JSON"):
        read_filters(path)
    with pytest.raises(NoInputError):
        read_filters(tmp_path / "none.json")


def test_echoes_without_their_combination_are_no_runs(tmp_path):
    skeleton = Skeleton(tmp_path / "echoes")
    skeleton.add_raw(run="1")
    for echo in (1, 2, 3):
        skeleton.add_prep(MNI, run="1", more=f"echo-{echo}", confounds=False)
    with pytest.raises(DataError, match=r"echo-1_.* and .*echo-2_.* are echoes of one recording") as caught:
        find_fits(bids_dir=skeleton.raw)
    assert '{"bold": {"echo": 2}}' in caught.value.remedy
    (fit,) = find_fits(bids_dir=skeleton.raw, filters={"bold": {"echo": 2}})
    assert [run.entities["echo"] for run in fit.runs] == ["2"]
