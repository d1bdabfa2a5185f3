# SPDX-License-Identifier: Apache-2.0
import pytest

from conform_app.bids.spaces import SpaceKey, SpaceSpec, match_space, parse_space, preference, space_of_file
from conform_app.errors import UsageError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("T1w", SpaceSpec("T1w")),
        ("anat", SpaceSpec("T1w")),
        ("MNI152NLin2009cAsym:res-2", SpaceSpec("MNI152NLin2009cAsym", res="2")),
        ("fsLR:den-91k", SpaceSpec("fsLR", den="91k")),
        ("fsaverage5", SpaceSpec("fsaverage", den="10k")),
        ("fsaverage6", SpaceSpec("fsaverage", den="41k")),
        ("fsaverage6:den-41k", SpaceSpec("fsaverage", den="41k")),
        ("fsaverage:den-10k", SpaceSpec("fsaverage", den="10k")),
        ("MNIInfant:cohort-3:res-1", SpaceSpec("MNIInfant+3", res="1")),
    ],
)
def test_grammar(text, expected):
    assert parse_space(text) == expected


@pytest.mark.parametrize(
    "text", ["", "T1w:", "T1w:2", "T1w:size-2", "T1w:res-2:res-3", "a b", "fsaverage5:den-41k", "x:res-"]
)
def test_bad_grammar(text):
    with pytest.raises(UsageError, match="output space"):
        parse_space(text)


def test_a_spec_prints_as_it_is_read():
    for text in ("fsaverage:den-10k", "MNI152NLin2009cAsym:res-2", "T1w"):
        assert str(parse_space(text)) == text


def test_two_names_of_one_surface_are_one_space():
    assert space_of_file("gifti", "fsaverage5", None, None) == space_of_file(
        "gifti", "fsaverage", None, "10k"
    )
    assert space_of_file("gifti", "fsaverage", None, None).den == "164k"
    assert space_of_file("volume", None, None, None).space == "boldref"


def test_fslr_asks_for_cifti_unless_the_density_says_otherwise():
    keys = [SpaceKey("gifti", "fsLR", None, "32k"), SpaceKey("cifti", "fsLR", None, "91k")]
    assert match_space(parse_space("fsLR"), keys).kind == "cifti"
    assert match_space(parse_space("fsLR:den-91k"), keys).kind == "cifti"
    assert match_space(parse_space("fsLR:den-32k"), keys).kind == "gifti"
    assert match_space(parse_space("fsLR:den-170k"), keys) is None


def test_resolution():
    two, three = SpaceKey("volume", "M", "02"), SpaceKey("volume", "M", "3")
    plain = SpaceKey("volume", "M")
    assert match_space(parse_space("M:res-2"), [two, three]) == two
    assert match_space(parse_space("M"), [two]) == two
    assert match_space(parse_space("M"), [two, plain, three]) == plain
    assert match_space(parse_space("M:res-native"), [two, plain]) == plain
    with pytest.raises(UsageError, match="could be any of"):
        match_space(parse_space("M"), [two, three])


def test_native_bold_has_many_names():
    key = space_of_file("volume", "func", None, None)
    assert all(match_space(parse_space(name), [key]) == key for name in ("func", "bold", "boldref", "run"))


def test_plain_fsaverage_is_the_dense_one():
    keys = [SpaceKey("gifti", "fsaverage", None, den) for den in ("10k", "164k")]
    assert match_space(parse_space("fsaverage"), keys).den == "164k"
    assert match_space(parse_space("fsaverage"), keys[:1]).den == "10k"


def test_order_of_preference():
    ordered = [
        SpaceKey("cifti", "fsLR", None, "91k"),
        SpaceKey("cifti", "fsLR", None, "170k"),
        SpaceKey("gifti", "fsaverage", None, "41k"),
        SpaceKey("gifti", "fsaverage", None, "10k"),
        SpaceKey("volume", "T1w"),
        SpaceKey("volume", "MNI152NLin2009cAsym"),
        SpaceKey("volume", "MNI152NLin2009cAsym", "2"),
        SpaceKey("volume", "MNI152NLin6Asym", "2"),
        SpaceKey("volume", "SPMnormalized"),
        SpaceKey("volume", "func"),
    ]
    assert sorted(set(ordered), key=preference) == ordered


def test_cohorts_of_a_template(tmp_path):
    from bids_skeleton import Skeleton

    from conform_app.bids.inputs import find_fits

    skeleton = Skeleton(tmp_path).add("space-MNIPediatricAsym_cohort-5_res-2")
    skeleton.add_prep("space-MNIPediatricAsym_cohort-6_res-2")
    for asked, found in (("cohort-5:res-2", "5"), ("res-2:cohort-6", "6"), ("cohort-6", "6")):
        fit = find_fits(bids_dir=skeleton.raw, output_spaces=[f"MNIPediatricAsym:{asked}"])[0]
        assert fit.space == f"MNIPediatricAsym+{found}"
        assert f"cohort-{found}" in fit.runs[0].bold[0].name
    with pytest.raises(UsageError, match="could be any of"):
        find_fits(bids_dir=skeleton.raw, output_spaces=["MNIPediatricAsym:res-2"])
    for path in skeleton.prep.rglob("*cohort-6*"):
        path.unlink()
    assert find_fits(bids_dir=skeleton.raw, output_spaces=["MNIPediatricAsym"])[0].space.endswith("+5")
