# SPDX-License-Identifier: Apache-2.0
"""Meshes, masks, affines: FreeSurfer's coordinates, nested fsaverage, ITK; series; templates by name."""

import nibabel as nib
import numpy as np
import pytest
from nibabel import freesurfer as fs
from small_surfaces import ball, make_templates

from conform_app.errors import DataError, NoInputError
from conform_app.images import templates
from conform_app.images.grid import Grid
from conform_app.images.runs import open_run
from conform_app.images.series import grayordinate_grid, surface_grid, voxels_of, write_series
from conform_app.images.surfaces import (
    first_vertices,
    read_surface,
    read_vertices,
    write_surface,
)
from conform_app.images.transforms import read_points

CRAS = np.array([3.0, -14.5, 22.25])


def read_affine(path, **ends):
    return read_points(path, **ends).matrix


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr(templates, "online", lambda: False)
    monkeypatch.setattr("conform_app.images.packaged.home", lambda: None)
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path / "templates"))
    return tmp_path / "templates"


def test_freesurfer_coordinates_become_scanner_coordinates(tmp_path):
    points, triangles = ball(50)
    info = {"head": np.array([2, 0, 20], np.int32), "valid": "1  # volume info valid", "filename": "x.mgz"}
    info |= {"volume": np.array([256, 256, 256]), "voxelsize": np.ones(3), "cras": CRAS}
    info |= {"xras": np.array([-1.0, 0, 0]), "yras": np.array([0, 0, -1.0]), "zras": np.array([0, 1.0, 0])}
    for name in ("lh.white", "lh.sphere.reg"):
        fs.write_geometry(tmp_path / name, points * 40, triangles, volume_info=info)
    found, faces = read_surface(tmp_path / "lh.white")
    np.testing.assert_allclose(found, points * 40 + CRAS, atol=1e-4)
    np.testing.assert_array_equal(faces, triangles)
    # a sphere has its own coordinates
    np.testing.assert_allclose(read_surface(tmp_path / "lh.sphere.reg")[0], points * 40, atol=1e-4)
    # oblique volume: p = M T^-1 (p_tk) + c, as vox2ras @ inv(vox2ras_tkr) has it
    turn = np.array([[0.8, 0.6, 0], [-0.6, 0.8, 0], [0, 0, 1]])
    for name in ("xras", "yras", "zras"):
        info[name] = turn @ info[name]
    fs.write_geometry(tmp_path / "rh.white", points * 40, triangles, volume_info=info)
    header = nib.freesurfer.MGHImage(np.zeros((256, 256, 256), np.uint8), None).header
    header["Mdc"] = np.stack([info["xras"], info["yras"], info["zras"]])
    header["Pxyz_c"], header["delta"], header["goodRASFlag"] = CRAS, 1, 1
    matrix = header.get_vox2ras() @ np.linalg.inv(header.get_vox2ras_tkr())
    expected = points * 40 @ matrix[:3, :3].T + matrix[:3, 3]
    np.testing.assert_allclose(read_surface(tmp_path / "rh.white")[0], expected, atol=1e-3)


GEOMETRY = {
    "head": np.array([2, 0, 20], np.int32),
    "valid": "1  # volume info valid",
    "filename": "../mri/filled-pretess255.mgz",
    "volume": np.array([256, 256, 256]),
    "voxelsize": np.ones(3),
    "xras": np.array([-1.0, 0, 0]),
    "yras": np.array([0, 0, -1.0]),
    "zras": np.array([0, 1.0, 0]),
    "cras": CRAS,
}


def freesurfer_subject(folder, **changes):
    """A subject's folder: lh.white with a footer, mri/orig.mgz on the same grid; its points in tkRAS."""
    points, triangles = ball(50)
    (folder / "surf").mkdir(parents=True)
    (folder / "mri").mkdir()
    footer = {**GEOMETRY, **changes} if changes.get("valid") != "none" else None
    fs.write_geometry(folder / "surf" / "lh.white", points * 40, triangles, volume_info=footer)
    affine = np.eye(4)
    affine[:3, :3] = np.column_stack([GEOMETRY[f"{axis}ras"] for axis in "xyz"])
    affine[:3, 3] = CRAS - affine[:3, :3] @ np.full(3, 4.0)
    nib.save(fs.MGHImage(np.zeros((8, 8, 8), np.uint8), affine), folder / "mri" / "orig.mgz")
    return folder / "surf" / "lh.white", points * 40


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("valid", ["1  # volume info valid", "0  # volume info invalid", "none"])
def test_a_surface_without_volume_geometry_takes_that_of_orig(tmp_path, valid):
    """A footer that is invalid or missing says nothing: without it the surface would lie 27 mm off."""
    white, points = freesurfer_subject(
        tmp_path / "sub-01", valid=valid, **({"cras": CRAS * 0} if valid.startswith("0") else {})
    )
    np.testing.assert_allclose(read_surface(white)[0], points + CRAS, atol=1e-3)
    (tmp_path / "sub-01" / "mri" / "orig.mgz").unlink()
    if valid.startswith("1"):
        np.testing.assert_allclose(read_surface(white)[0], points + CRAS, atol=1e-3)
    else:
        with pytest.raises(
            DataError, match=r"lh\.white does not say where in the scanner it lies.*orig\.mgz"
        ):
            read_surface(white)


def test_a_freesurfer_surface_is_its_gifti_in_scanner_coordinates(tmp_path):
    """White by mris_convert (centre kept in the header, or added) and by FreeSurfer: one surface."""
    white, points = freesurfer_subject(tmp_path / "sub-01")
    own, triangles = read_surface(white)
    meta = {f"VolGeomC_{axis}": repr(float(c)) for axis, c in zip("RAS", CRAS, strict=True)}
    for name, data, space in (("kept", points, 0), ("added", points + CRAS, 1)):
        parts = [
            nib.gifti.GiftiDataArray(
                data.astype(np.float32),
                "NIFTI_INTENT_POINTSET",
                coordsys=nib.gifti.GiftiCoordSystem(space, space),
                meta=nib.gifti.GiftiMetaData(meta),
            ),
            nib.gifti.GiftiDataArray(triangles, "NIFTI_INTENT_TRIANGLE"),
        ]
        nib.save(nib.gifti.GiftiImage(darrays=parts), tmp_path / f"hemi-L_{name}_white.surf.gii")
        found = read_surface(tmp_path / f"hemi-L_{name}_white.surf.gii")
        np.testing.assert_allclose(found[0], own, atol=1e-4)


@pytest.mark.parametrize("name", ["hemi-L_desc-reg_sphere.surf.gii", "lh.reg.surf.gii"])
def test_the_centre_of_the_volume_is_not_added_to_a_sphere(tmp_path, name):
    """mris_convert writes it into spheres as well, whose coordinates have nothing to do with it."""
    points, triangles = ball(50)
    meta = {f"VolGeomC_{axis}": repr(float(c)) for axis, c in zip("RAS", CRAS, strict=True)}
    meta |= {} if "sphere" in name else {"GeometricType": "Sphere"}
    parts = [
        nib.gifti.GiftiDataArray(
            (points * 100).astype(np.float32), "NIFTI_INTENT_POINTSET", meta=nib.gifti.GiftiMetaData(meta)
        ),
        nib.gifti.GiftiDataArray(triangles, "NIFTI_INTENT_TRIANGLE"),
    ]
    parts[0].coordsys = nib.gifti.GiftiCoordSystem(0, 0)
    nib.save(nib.gifti.GiftiImage(darrays=parts), tmp_path / name)
    np.testing.assert_allclose(read_surface(tmp_path / name)[0], points * 100, atol=1e-4)


def test_a_mesh_comes_back_as_it_went_and_with_the_same_bytes(tmp_path):
    surface = ball(60)
    first = write_surface(tmp_path / "a_hemi-R.surf.gii", surface, "R", "midthickness")
    second = write_surface(tmp_path / "b_hemi-R.surf.gii", surface, "R", "midthickness")
    assert first.read_bytes() == second.read_bytes()
    points, triangles = read_surface(first)
    np.testing.assert_allclose(points, surface[0], atol=1e-6)
    np.testing.assert_array_equal(triangles, surface[1])
    assert nib.load(first).meta["AnatomicalStructurePrimary"] == "CortexRight"


def test_a_coarser_fsaverage_is_inside_a_finer_one():
    surface = read_surface(templates._packaged("sphere", "L"))
    points, triangles = first_vertices(surface, 2562)
    assert triangles.shape == (5120, 3)
    np.testing.assert_array_equal(points, surface[0][:2562])
    a, b, c = (points[triangles[:, k]] for k in range(3))
    normal = np.cross(b - a, c - a)
    outward = np.einsum("ij,ij->i", normal, a) > 0
    assert outward.all() or not outward.any()
    assert len(np.unique(np.sort(triangles, axis=1), axis=0)) == 5120
    # closed: every edge has two triangles, and edges are twice as long as the finer mesh's
    edges = np.sort(
        np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]]), axis=1
    )
    assert (np.unique(edges, axis=0, return_counts=True)[1] == 2).all()
    with pytest.raises(DataError, match="does not hold one of 1000"):
        first_vertices(surface, 1000)
    with pytest.raises(DataError):
        first_vertices(ball(400), 102)


def test_masks_of_vertices(tmp_path):
    label = tmp_path / "lh.cortex.label"
    rows = "\n".join(f"{v} 0 0 0 0" for v in (1, 3, 4))
    label.write_text(f"#!ascii label\n3\n{rows}\n")
    np.testing.assert_array_equal(read_vertices(label, 6), [False, True, False, True, True, False])
    with pytest.raises(DataError, match="5 vertices, the surface 4"):
        read_vertices(label, 4)
    mask = nib.gifti.GiftiImage(darrays=[nib.gifti.GiftiDataArray(np.array([0, 1, 1], np.int32))])
    nib.save(mask, tmp_path / "m.label.gii")
    np.testing.assert_array_equal(read_vertices(tmp_path / "m.label.gii", 3), [False, True, True])
    with pytest.raises(DataError, match="3 vertices, the surface 4"):
        read_vertices(tmp_path / "m.label.gii", 4)


def test_itk_affines_lead_where_antspy_leads(tmp_path):
    """ITK: y = A (x - c) + c + t in LPS, from the fixed (to) image's points to the moving (from) one's."""
    rng = np.random.default_rng(0)
    a, t, c = np.eye(3) + rng.normal(0, 0.1, (3, 3)), rng.normal(0, 5, 3), rng.normal(0, 9, 3)
    numbers = " ".join(repr(float(v)) for v in (*a.ravel(), *t))
    text = "#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_double_3_3\n"
    text += f"Parameters: {numbers}\n"
    path = tmp_path / "sub-01_from-boldref_to-T1w_mode-image_desc-coreg_xfm.txt"
    path.write_text(text + f"FixedParameters: {' '.join(map(repr, map(float, c)))}\n")
    matrix = read_affine(path, source="T1w", target="boldref")
    lps = np.array([-1, -1, 1])
    for point in rng.normal(0, 50, (5, 3)):
        expected = (a @ (point * lps - c) + c + t) * lps
        np.testing.assert_allclose(matrix[:3, :3] @ point + matrix[:3, 3], expected, atol=1e-9)
    back = read_affine(path, source="boldref", target="T1w")
    np.testing.assert_allclose(back @ matrix, np.eye(4), atol=1e-9)
    with pytest.raises(DataError, match="does not lead from scanner"):
        read_affine(path, source="scanner", target="T1w")
    plain = tmp_path / "sub-01_from-T1w_to-boldref_mode-points_desc-ras_xfm.txt"
    np.savetxt(plain, matrix)
    np.testing.assert_allclose(read_affine(plain, source="T1w", target="boldref"), matrix)
    plain.write_text("1 2 3\n")
    with pytest.raises(DataError, match="no single affine"):
        read_affine(plain, source="T1w", target="boldref")


def test_templates_on_disk_come_first_and_empty_ones_do_not_count(offline):
    make_templates(offline)
    found = templates.target_sphere("fsLR", "91k", "fsLR", "L")
    assert found.path.endswith("tpl-fsLR_hemi-L_den-32k_sphere.surf.gii")
    assert (found.n_vertices, found.through) == (32492, ())
    across = templates.target_sphere("fsLR", "32k", "fsaverage", "R")
    assert across.path.endswith("tpl-fsLR_space-fsaverage_hemi-R_den-32k_sphere.surf.gii")
    # fsaverage in fsLR's coordinates: nilearn's sphere, through the fsLR mesh known in both
    bridged = templates.target_sphere("fsaverage", "10k", "fsLR", "L")
    assert bridged.path == templates._packaged("sphere", "L")
    assert [p.rpartition("/")[2] for p in bridged.through] == [
        "tpl-fsLR_space-fsaverage_hemi-L_den-32k_sphere.surf.gii",
        "tpl-fsLR_hemi-L_den-32k_sphere.surf.gii",
    ]
    (offline / "tpl-fsLR" / "tpl-fsLR_hemi-L_den-32k_sphere.surf.gii").write_bytes(b"")
    with pytest.raises(NoInputError, match="fsLR:den-32k") as caught:
        templates.target_sphere("fsLR", "32k", "fsLR", "L")
    assert "python -m conform_app.images.fetching" in caught.value.remedy


def test_without_network_only_fsaverage5_is_there(offline):
    for density in ("3k", "10k"):
        assert templates.target_sphere("fsaverage", density, "fsaverage", "R").n_vertices in (2562, 10242)
    assert set(templates.group_surfaces("L", "10k")) == {"white", "pial", "sphere"}
    assert templates.medial_wall("fsaverage", "L") is None
    for space, density in (("fsaverage", "41k"), ("fsaverage", "164k"), ("fsLR", "32k")):
        with pytest.raises(NoInputError):
            templates.target_sphere(space, density, space, "L")


def test_the_command_of_the_remedy_names_files_that_exist():
    """What the remedies ask TemplateFlow for is in its archive (its skeleton lists it)."""
    from importlib.resources import files
    from zipfile import ZipFile

    with ZipFile(files("templateflow") / "conf" / "templateflow-skel.zip") as archive:
        there = {name.rpartition("/")[2] for name in archive.namelist()}
    for hemi in "LR":
        assert f"tpl-fsLR_hemi-{hemi}_den-32k_sphere.surf.gii" in there
        assert f"tpl-fsLR_space-fsaverage_hemi-{hemi}_den-32k_sphere.surf.gii" in there
        assert f"tpl-fsLR_hemi-{hemi}_den-32k_desc-nomedialwall_dparc.label.gii" in there
        for density in ("3k", "10k", "41k", "164k"):
            for name in ("sphere", "white", "pial"):
                assert f"tpl-fsaverage_hemi-{hemi}_den-{density}_{name}.surf.gii" in there
    assert "tpl-MNI152NLin6Asym_res-02_atlas-HCP_dseg.nii.gz" in there


def test_a_series_is_read_back_as_it_was(tmp_path):
    rng = np.random.default_rng(1)
    grid = surface_grid((30, 40))
    values = rng.normal(size=(70, 5)).astype(np.float32)
    values[3] = np.nan
    paths = [tmp_path / f"x_hemi-{hemi}_bold.func.gii" for hemi in "LR"]
    write_series(grid, paths, values, 1.35)
    run = open_run(tuple(paths))
    assert (run.n_volumes, run.tr_header, run.grid.shape) == (5, 1.35, (30, 40))
    np.testing.assert_array_equal(run.load(), values)
    walls = np.arange(30) > 3, np.arange(40) > 5
    grid = grayordinate_grid(walls, None)
    path = tmp_path / "x_bold.dtseries.nii"
    write_series(grid, [path], values[:60], 1.35)
    run = open_run(path)
    assert (run.n_volumes, run.tr_header, run.grid.n_points) == (5, 1.35, 60)
    np.testing.assert_array_equal(run.load(), values[:60])


def test_grayordinates_need_voxels_where_theirs_are(tmp_path):
    labels = np.zeros((4, 5, 6), np.int16)
    labels[1, 2, 3] = 10
    affine = np.array([[2.0, 0, 0, -90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(labels, affine), tmp_path / "dseg.nii.gz")
    grid = grayordinate_grid((np.ones(3, bool), np.ones(3, bool)), tmp_path / "dseg.nii.gz")
    assert grid.brain_models.affine[0, 0] == -2  # as in the HCP's files
    volume = Grid("volume", (4, 5, 6), affine=affine)
    np.testing.assert_array_equal(voxels_of(grid, volume), [np.ravel_multi_index((1, 2, 3), (4, 5, 6))])
    shifted = affine.copy()
    shifted[:3, 3] += 1
    with pytest.raises(DataError, match="does not hold the voxels"):
        voxels_of(grid, Grid("volume", (4, 5, 6), affine=shifted))
