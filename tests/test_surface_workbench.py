# SPDX-License-Identifier: Apache-2.0
"""Equality with Connectome Workbench: saved results always, wb_command itself on measured meshes where it is.

Workbench computes in float32 with pieces of voxels that are in or out: a piece whose centre lies within
rounding of a face may change sides.  So most vertices are equal to rounding and a few (below `FEW`) are not;
the same holds for adaptive resampling, which chooses between two sets of weights.
"""

import os
from pathlib import Path

import numpy as np
import pytest
from surface_cases import (
    OBLIQUE,
    SAVED,
    SHAPE,
    VOLUME_METHODS,
    WB_COMMAND,
    Workbench,
    expected_cases,
    fsaverage5,
    holes_of,
    map_volume,
    middle_of,
    resample,
    rotation,
    signal,
    waves,
)

from conform_app.surface import (
    SphereResampler,
    VolumeToSurface,
    areal_distortion,
    dilate,
    edge_distortion,
    vertex_areas,
)

REAL = Path(os.environ.get("CONFORM_TEST_DATA", "/nonexistent")) / "data" / "real"
SAME = 1e-4  # relative to the mean magnitude of the map
FEW = 1e-3  # share of vertices that may differ by more, where Workbench decides in float32

needs_workbench = pytest.mark.skipif(WB_COMMAND is None, reason="wb_command is not installed")
needs_data = pytest.mark.skipif(
    not REAL.is_dir(), reason="needs CONFORM_TEST_DATA, the folder of measured data"
)


def share_that_differs(got, want) -> float:
    return float((np.abs(got - want) > SAME * np.abs(want).mean()).mean())


def ours() -> dict[str, np.ndarray]:
    """`expected_cases` by our code."""
    white, pial, sphere = (fsaverage5("L", name) for name in ("white", "pial", "sphere"))
    affine = OBLIQUE.astype(np.float32)  # as a NIfTI header holds it
    volume, middle = waves(), middle_of(white, pial)
    out = {}
    for name in VOLUME_METHODS:
        method = "ribbon" if name == "thin" else name
        sample = VolumeToSurface(
            white, pial, SHAPE, affine, method=method, thin_columns=name == "thin", midthickness=middle[0]
        )
        out[name] = sample.apply(volume, fill=0)
    sample = VolumeToSurface(white, pial, SHAPE, affine, mask=volume > 95)
    out["ribbon_mask"] = sample.apply(volume, fill=0)
    turned = (sphere[0] @ rotation().T).astype(np.float32), sphere[1]
    values, mask = signal(sphere[0]), ~holes_of(sphere[0])
    out["barycentric"] = SphereResampler(sphere, turned, method="barycentric").apply(values)
    areas = {"source_area": white, "target_area": pial}
    out["adaptive"] = SphereResampler(sphere, turned, **areas).apply(values)
    out["adaptive_mask"] = SphereResampler(sphere, turned, source_mask=mask, **areas).apply(values, fill=0)
    out["dilate"] = dilate(values, middle, 25, bad=~mask, fill=0)
    return out


@pytest.fixture(scope="module")
def computed():
    return ours()


EXACT = ("trilinear", "cubic", "nearest", "barycentric", "dilate")
CASES = (*VOLUME_METHODS, "ribbon_mask", "barycentric", "adaptive", "adaptive_mask", "dilate")


@pytest.mark.parametrize("name", CASES)
def test_equals_saved_results_of_workbench(computed, name):
    want = np.load(SAVED)[name]
    assert share_that_differs(computed[name], want) <= (0 if name in EXACT else FEW)
    assert np.median(np.abs(computed[name] - want)) < 1e-6 * np.abs(want).mean()


@needs_workbench
def test_saved_results_are_those_of_workbench(tmp_path):
    now = expected_cases(Workbench(tmp_path), quick=True)
    saved = np.load(SAVED)
    assert set(now) == set(saved.files) - {"ribbon", "thin"}
    for name, values in now.items():
        np.testing.assert_allclose(values, saved[name], rtol=1e-5, atol=1e-5, err_msg=name)


def gifti(path: Path) -> tuple[np.ndarray, np.ndarray]:
    import nibabel as nib

    image = nib.load(path)
    return image.agg_data("pointset"), image.agg_data("triangle")


def studyforrest(side: str):
    """White, pial, one measured volume, its brain mask and affine."""
    import nibabel as nib

    root = REAL / "studyforrest-localizer-bids/derivatives/fmriprep/sub-02"
    stem = f"anat/sub-02_hemi-{side}_space-T1w_den-32k_desc-approx_"
    white, pial = (gifti(root / f"{stem}{name}.surf.gii") for name in ("white", "pial"))
    run = "func/sub-02_task-localizer_run-1_space-T1w_"
    image = nib.load(root / f"{run}boldref.nii.gz")
    mask = np.asarray(nib.load(root / f"{run}desc-brain_mask.nii.gz").dataobj)
    return white, pial, np.asarray(image.dataobj, np.float32), mask, image.affine


def pycortex():
    """White and pial carried into the scanner space of the EPI, the EPI, no mask, the EPI's affine."""
    import json

    import nibabel as nib

    root = REAL / "pycortex-S1"
    image = nib.load(root / "transforms/fullhead/reference.nii.gz")
    to_voxels = np.array(json.loads((root / "transforms/fullhead/matrices.xfm").read_text())["coord"])
    move = image.affine @ to_voxels
    surfaces = []
    for name in ("wm_lh", "pia_lh"):
        x, t = gifti(root / f"surfaces/{name}.gii")
        surfaces.append(((x @ move[:3, :3].T + move[:3, 3]).astype(np.float32), t))
    return *surfaces, np.asarray(image.dataobj, np.float32), None, image.affine


MESHES = {
    "studyforrest-L": lambda: studyforrest("L"),
    "studyforrest-R": lambda: studyforrest("R"),
    "S1": pycortex,
}


@needs_workbench
@needs_data
@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "method"),
    [("studyforrest-L", "ribbon mask"), ("studyforrest-R", "ribbon"), ("S1", "ribbon")]
    + [(mesh, method) for mesh in MESHES for method in ("trilinear", "cubic", "nearest")],
)
def test_sampling_on_measured_meshes(tmp_path, mesh, method):
    white, pial, volume, mask, affine = MESHES[mesh]()
    method, _, masked = method.partition(" ")
    mask = (volume > np.median(volume) if mask is None else mask) if masked else None
    affine = affine.astype(np.float32)
    want = map_volume(Workbench(tmp_path), white, pial, volume, affine, method=method, mask=mask)
    middle = middle_of(white, pial)[0]
    sample = VolumeToSurface(white, pial, volume.shape, affine, method=method, mask=mask, midthickness=middle)
    got = sample.apply(volume, fill=0)
    few = {"ribbon": FEW, "nearest": 1e-4}.get(method, 0)  # nearest: vertices on the face between two voxels
    assert share_that_differs(got, want) <= few


def fsaverage_to_fslr(side: str):
    root = REAL / "surfaces/fsaverage-164k_fsLR"
    deformed = f"fs_{side}-to-fs_LR_fsaverage.{side}_LR.spherical_std.164k_fs_{side}.surf.gii"
    return (
        gifti(root / f"fsaverage.{side}.sphere.164k_fs_{side}.surf.gii"),
        gifti(root / deformed),
        gifti(root / f"S1200.{side}.sphere.32k_fs_LR.surf.gii"),
    )


@needs_workbench
@needs_data
def test_fsaverage_to_fslr_and_back(tmp_path):
    wb = Workbench(tmp_path)
    undeformed, source, target = fsaverage_to_fslr("R")
    areas = undeformed, studyforrest("R")[0]
    mask = source[0][:, 2] > -60
    down = SphereResampler(source, target, source_area=areas[0], target_area=areas[1])
    values = signal(source[0])
    want = resample(wb, values, source, target, areas=areas)
    assert share_that_differs(down.apply(values), want) == 0
    want = resample(wb, values, source, target, areas=areas, mask=mask)
    masked = SphereResampler(source, target, source_area=areas[0], target_area=areas[1], source_mask=mask)
    assert share_that_differs(masked.apply(values, fill=0), want) == 0
    want = resample(wb, values, source, target)
    assert share_that_differs(SphereResampler(source, target, method="barycentric").apply(values), want) == 0
    want = resample(wb, values, source, target, flags=["-largest"])
    assert share_that_differs(SphereResampler(source, target, method="nearest").apply(values), want) == 0
    values = signal(target[0])
    want = resample(wb, values, target, source, areas=areas[::-1])
    assert share_that_differs(down.inverse().apply(values), want) == 0


@needs_workbench
@needs_data
@pytest.mark.parametrize("side", ["L", "R"])
def test_fsaverage5_and_fslr(tmp_path, side):
    wb = Workbench(tmp_path)
    _, source, target = fsaverage_to_fslr(side)
    source = source[0][:10242], fsaverage5(side, "sphere")[1]
    areas = fsaverage5(side, "white"), studyforrest(side)[0]
    up = SphereResampler(source, target, source_area=areas[0], target_area=areas[1])
    values = signal(source[0])
    assert share_that_differs(up.apply(values), resample(wb, values, source, target, areas=areas)) == 0
    values = signal(target[0])
    want = resample(wb, values, target, source, areas=areas[::-1])
    assert share_that_differs(up.inverse().apply(values), want) == 0


@needs_workbench
@needs_data
@pytest.mark.parametrize("largest", [False, True])
def test_labels(tmp_path, largest):
    wb = Workbench(tmp_path)
    undeformed, source, target = fsaverage_to_fslr("L")
    labels = (np.floor(source[0] / 9) @ [1, 20, 400]).astype(np.int32)
    labels = np.where(np.random.default_rng(0).random(len(labels)) < 0.2, 0, labels - labels.min() + 1)
    areas = vertex_areas(undeformed), vertex_areas(target)
    then = ["-area-metrics", wb.metric(areas[0], "area1"), wb.metric(areas[1], "area2")]
    then += ["-largest"] if largest else []
    want = wb(
        "-label-resample",
        wb.label(labels, "labels"),
        wb.surface(source, "source"),
        wb.surface(target, "target"),
        "ADAP_BARY_AREA",
        out="out.label.gii",
        then=then,
    )
    carry = SphereResampler(source, target, source_area=areas[0], target_area=areas[1])
    assert (carry.apply_labels(labels, largest=largest) != want).mean() < 1e-4


@needs_workbench
@needs_data
@pytest.mark.parametrize("method", ["weighted", "nearest"])
def test_dilation(tmp_path, method):
    wb = Workbench(tmp_path)
    white, pial, *_ = studyforrest("L")
    middle = middle_of(white, pial)
    rng = np.random.default_rng(3)
    values = (3 + rng.standard_normal(len(middle[0]))).astype(np.float32)
    bad = (np.linalg.norm(middle[0] - middle[0][20000], axis=1) < 25) | (rng.random(len(values)) < 0.05)
    for distance in (10, 30):
        then = ["-bad-vertex-roi", wb.metric(bad, "bad")] + (["-nearest"] if method == "nearest" else [])
        want = wb(
            "-metric-dilate", wb.metric(values, "values"), wb.surface(middle, "middle"), distance, then=then
        )
        got = dilate(np.where(bad, np.nan, values), middle, distance, method=method, fill=0)
        assert share_that_differs(got, want) == 0


@needs_workbench
@needs_data
def test_areas_and_distortion(tmp_path):
    wb = Workbench(tmp_path)
    before, after, _ = fsaverage_to_fslr("L")
    files = wb.surface(before, "before"), wb.surface(after, "after")
    np.testing.assert_allclose(vertex_areas(after), wb("-surface-vertex-areas", files[1]), rtol=1e-4)
    np.testing.assert_allclose(areal_distortion(before, after), wb("-surface-distortion", *files), atol=1e-5)
    want = wb("-surface-distortion", *files, then=["-edge-method"])
    np.testing.assert_allclose(edge_distortion(before, after), want, atol=1e-5)


@needs_workbench
@needs_data
def test_the_way_back_to_the_volume(tmp_path):
    wb = Workbench(tmp_path)
    white, pial, volume, _, affine = studyforrest("L")
    affine = affine.astype(np.float32)
    values = signal(white[0])
    files = [wb.surface(s, n) for s, n in ((white, "white"), (pial, "pial"))]
    then = ["-ribbon-constrained", *files, "-greedy", "-thick-columns"]
    want = wb(
        "-metric-to-volume-mapping",
        wb.metric(values, "values"),
        wb.surface(middle_of(white, pial), "middle"),
        wb.volume(volume, affine, "space"),
        out="out.nii",
        then=then,
    )
    got = VolumeToSurface(white, pial, volume.shape, affine).to_volume(values)
    reached = want != 0
    assert (np.abs(got - want)[reached] > SAME * np.abs(want[reached]).mean()).mean() <= FEW
    assert ((got != 0) != reached).mean() <= FEW
