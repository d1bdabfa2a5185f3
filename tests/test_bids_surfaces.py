# SPDX-License-Identifier: Apache-2.0
"""Surfaces found by name: sMRIPrep's names old and new, sessions, other meshes beside, FreeSurfer folders."""

from pathlib import Path

import pytest

from conform_app.bids.surfaces import find_surfaces, subjects_dirs
from conform_app.errors import NoInputError


def touch(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


def both(*names: str) -> list[str]:
    return [name.replace("hemi-L", f"hemi-{hemi}") for name in names for hemi in "LR"]


PLAIN = both("sub-01_hemi-L_white.surf.gii", "sub-01_hemi-L_pial.surf.gii")


def test_names_of_smriprep(tmp_path):
    touch(
        tmp_path / "sub-01" / "anat",
        *PLAIN,
        *both(
            "sub-01_hemi-L_midthickness.surf.gii",
            "sub-01_hemi-L_sphere.surf.gii",
            "sub-01_hemi-L_desc-reg_sphere.surf.gii",
            "sub-01_hemi-L_space-fsLR_desc-reg_sphere.surf.gii",
            "sub-01_hemi-L_space-fsLR_desc-msmsulc_sphere.surf.gii",
            "sub-01_hemi-L_desc-cortex_mask.label.gii",
            # the participant's surface on another mesh: no place to sample
            "sub-01_hemi-L_space-fsLR_den-32k_midthickness.surf.gii",
            "sub-01_hemi-L_space-fsLR_den-32k_white.surf.gii",
        ),
    )
    found = find_surfaces("01", (), [tmp_path])
    assert found.left.white.name == "sub-01_hemi-L_white.surf.gii"
    assert found.right.midthickness.name == "sub-01_hemi-R_midthickness.surf.gii"
    assert found.left.sphere.name == "sub-01_hemi-L_sphere.surf.gii"
    assert found.right.cortex.name == "sub-01_hemi-R_desc-cortex_mask.label.gii"
    assert {k: p.name for k, p in found.left.registered.items()} == {
        "fsLR": "sub-01_hemi-L_space-fsLR_desc-msmsulc_sphere.surf.gii",
        "fsaverage": "sub-01_hemi-L_desc-reg_sphere.surf.gii",
    }
    assert (found.desc, found.density) == (None, None)


def test_a_sphere_with_its_space_comes_before_one_without(tmp_path):
    names = both(
        "sub-01_hemi-L_space-fsaverage_desc-reg_sphere.surf.gii", "sub-01_hemi-L_desc-reg_sphere.surf.gii"
    )
    touch(tmp_path / "sub-01" / "anat", *PLAIN, *names)
    found = find_surfaces("01", (), [tmp_path])
    assert (
        found.right.registered["fsaverage"].name == "sub-01_hemi-R_space-fsaverage_desc-reg_sphere.surf.gii"
    )


def test_approximate_surfaces_go_with_the_spheres_of_their_density(tmp_path):
    touch(
        tmp_path / "sub-01" / "anat",
        *both(
            "sub-01_hemi-L_space-T1w_den-32k_desc-approx_white.surf.gii",
            "sub-01_hemi-L_space-T1w_den-32k_desc-approx_pial.surf.gii",
            "sub-01_hemi-L_space-fsLR_den-32k_desc-reg_sphere.surf.gii",
            "sub-01_hemi-L_space-fsLR_den-59k_desc-reg_sphere.surf.gii",
        ),
    )
    found = find_surfaces("01", (), [tmp_path])
    assert (found.desc, found.density) == ("approx", "32k")
    assert found.left.registered["fsLR"].name == "sub-01_hemi-L_space-fsLR_den-32k_desc-reg_sphere.surf.gii"
    # surfaces of one's own are better
    touch(tmp_path / "sub-01" / "anat", *PLAIN)
    assert find_surfaces("01", (), [tmp_path]).desc is None


def test_the_anatomy_of_the_fits_session_is_preferred(tmp_path):
    for session in ("a", "b"):
        names = [name.replace("sub-01", f"sub-01_ses-{session}") for name in PLAIN]
        touch(tmp_path / "sub-01" / f"ses-{session}" / "anat", *names)
    assert "ses-b" in find_surfaces("01", ("b",), [tmp_path]).left.white.name
    assert "ses-a" in find_surfaces("01", ("c",), [tmp_path]).left.white.name


def test_two_reconstructions_of_a_session_are_not_mixed(tmp_path):
    """White of one T1w image with the sphere of another would be of two meshes."""
    names = [*PLAIN, *both("sub-01_hemi-L_space-fsLR_desc-reg_sphere.surf.gii")]
    for number in (1, 2):
        touch(
            tmp_path / "sub-01" / "anat",
            *(name.replace("sub-01", f"sub-01_acq-x_run-{number}") for name in names),
        )
    left = find_surfaces("01", (), [tmp_path]).left
    found = [path.name for path in (left.white, left.pial, left.registered["fsLR"])]
    assert all(name.startswith("sub-01_acq-x_run-1_hemi-L_") for name in found)


def test_freesurfer_folders(tmp_path):
    surf = tmp_path / "fs" / "sub-01" / "surf"
    touch(
        surf,
        *(f"{side}.{name}" for side in ("lh", "rh") for name in ("white", "pial", "sphere", "sphere.reg")),
    )
    touch(tmp_path / "fs" / "sub-01" / "label", "lh.cortex.label", "rh.cortex.label")
    prep = tmp_path / "prep"
    touch(prep / "sub-01" / "anat", "sub-01_from-fsnative_to-T1w_mode-image_xfm.txt", "sub-01_T1w.nii.gz")
    found = find_surfaces("01", (), [prep], [tmp_path / "fs"])
    assert found.left.white == surf / "lh.white"
    assert found.right.registered == {"fsaverage": surf / "rh.sphere.reg"}
    assert found.right.cortex.name == "rh.cortex.label"
    assert found.to_t1w.name == "sub-01_from-fsnative_to-T1w_mode-image_xfm.txt"
    (surf / "rh.pial").rename(surf / "rh.pial.T1")  # FreeSurfer 7, whose link was lost
    found = find_surfaces("01", (), [prep], [tmp_path / "fs"])
    assert (found.left.pial, found.right.pial) == (surf / "lh.pial", surf / "rh.pial.T1")
    (surf / "rh.pial.T1").unlink()
    with pytest.raises(NoInputError, match=r"has no rh\.pial"):
        find_surfaces("01", (), [prep], [tmp_path / "fs"])


def test_where_fmriprep_leaves_freesurfers_folder(tmp_path):
    root = tmp_path / "derivatives" / "fmriprep"
    (root / "sourcedata" / "freesurfer").mkdir(parents=True)
    named = tmp_path / "mine"
    named.mkdir()
    assert subjects_dirs(tmp_path, [root], {"freesurfer": named, "fmriprep": root}) == [
        named,
        root / "sourcedata" / "freesurfer",
    ]


def test_none_at_all_says_where_it_looked(tmp_path):
    with pytest.raises(NoInputError, match=r"no white and pial surfaces in .*prep/sub-01/anat") as caught:
        find_surfaces("01", (), [tmp_path / "prep"], [tmp_path / "fs"])
    assert "-d freesurfer=PATH" in caught.value.remedy
    assert caught.value.exit_code == 66
