# SPDX-License-Identifier: Apache-2.0
"""Maps as pictures: which point lands where, in which colour."""

import nibabel as nib
import numpy as np
import pytest

from conform_app.reports.mapfigures import value_map
from conform_app.reports.maps import Brain, open_brain, read_values
from conform_app.reports.painting import Scale, _Layout, diverging, draw_brain, paint, sequential
from conform_app.reports.style import figure_style, new_figure, save_figure


def save_volume(path, data, affine):
    nib.save(nib.Nifti1Image(np.asarray(data, np.float32), affine), path)
    return path


def test_volumes_of_any_axis_order_give_the_same_points(tmp_path):
    data = np.arange(24, dtype=float).reshape(2, 3, 4)
    ras = save_volume(tmp_path / "ras.nii.gz", data, np.eye(4))
    flipped = np.diag([-1.0, -1, 1, 1])
    flipped[:2, 3] = [1, 2]
    lps = save_volume(tmp_path / "lps.nii.gz", data[::-1, ::-1], flipped)
    swapped = np.eye(4)[[2, 0, 1, 3]]  # file axes run along y, z, x
    yzx = save_volume(tmp_path / "yzx.nii.gz", data.transpose(1, 2, 0), swapped)
    for path in (lps, yzx):
        np.testing.assert_array_equal(read_values([path]), read_values([ras]))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_right_is_drawn_on_the_left_whatever_the_file_order(tmp_path, sign):
    data = np.ones((6, 5, 1))
    right = slice(3, 6) if sign > 0 else slice(0, 3)
    data[right] = 10.0
    affine = np.diag([sign * 2, 2.0, 2, 1])
    path = save_volume(tmp_path / "m.nii.gz", data, affine)
    brain = open_brain([path], space=None)
    with figure_style():
        axes = new_figure(3, 3).subplots()
        draw_brain(axes, brain, paint(brain, read_values([path]), Scale("gray", 0.0, 10.0, 0.0)))
    picture = axes.images[0].get_array()
    assert picture[0, 0, 0] > picture[0, -1, 0]
    assert [t.get_text() for t in axes.texts if t.get_text() in "RL"] == ["R", "L"]


def brain_of(mask, zooms=(2.0, 2.0, 2.0)):
    return Brain("volume", mask.shape, zooms, np.diag([*zooms, 1.0]), mask=mask.ravel())


def test_one_slice_is_drawn_alone_and_cropped_to_the_mask():
    mask = np.zeros((40, 20, 1), bool)
    mask[5:30, 4:12] = True
    layout = _Layout.of(brain_of(mask), 18, 1.6)
    assert layout.slices == (0,)
    assert (layout.columns, layout.rows) == (1, 1)
    assert layout.box == (slice(4, 31), slice(3, 13))


def test_a_coronal_slab_is_cut_coronally():
    mask = np.zeros((10, 6, 12), bool)
    mask[2:8, 3, 1:11] = True
    layout = _Layout.of(brain_of(mask), 18, 1.6)
    assert (layout.axis, layout.slices) == (1, (3,))


@pytest.mark.parametrize("n_slices", [2, 7, 13, 35, 80])
def test_mosaics_have_no_empty_cell_and_stay_in_the_mask(n_slices):
    mask = np.zeros((20, 24, n_slices + 4), bool)
    mask[3:17, 2:22, 2 : n_slices + 2] = True
    layout = _Layout.of(brain_of(mask), 18, 1.6)
    assert layout.columns * layout.rows == len(layout.slices) <= min(18, n_slices)
    assert min(layout.slices) >= 2
    assert max(layout.slices) < n_slices + 2
    assert len(set(layout.slices)) == len(layout.slices)


def test_colours_follow_the_map_and_fade_towards_the_low_end():
    import matplotlib

    scale = Scale("viridis", 0.0, 10.0, 2.0)
    rgb, opacity = scale.colours(np.array([0.0, 1.0, 2.0, 10.0, 50.0, np.nan]))
    np.testing.assert_allclose(opacity, [0, 0.5, 1, 1, 1, 0])
    np.testing.assert_allclose(rgb[3], matplotlib.colormaps["viridis"](1.0)[:3])
    np.testing.assert_array_equal(rgb[3], rgb[4])


def test_diverging_scales_are_symmetric_and_shared():
    scale = diverging([np.array([-0.2, 0.1]), np.array([0.4, np.nan])], limit=None)
    assert scale.low == -scale.high
    assert scale.around_zero
    _, opacity = scale.colours(np.array([-scale.high, 0.0, scale.high]))
    np.testing.assert_allclose(opacity, [1, 0, 1])


def test_discrete_scales_give_one_colour_a_label():
    scale = Scale("plasma", 0.5, 20.5, 0.5, bins=20)
    rgb, opacity = scale.colours(np.arange(1, 21))
    assert len(np.unique(rgb.round(6), axis=0)) == 20
    assert (opacity == 1).all()


def test_constant_and_empty_maps_have_a_scale():
    for values in (np.zeros(5), np.full(5, np.nan), np.zeros(0)):
        scale = sequential(values, cmap="viridis")
        assert scale.high > scale.low


def test_points_outside_the_mask_stay_transparent():
    mask = np.zeros((4, 4, 2), bool)
    mask[1:3, 1:3] = True
    rgba = paint(brain_of(mask), np.ones(mask.size), Scale("viridis", 0.0, 1.0, 0.0))
    np.testing.assert_array_equal(rgba[:, 3] > 0, mask.ravel())


def save_gifti(path, values, intent="NIFTI_INTENT_NONE"):
    array = nib.gifti.GiftiDataArray(
        np.asarray(values, np.float32), intent=intent, datatype="NIFTI_TYPE_FLOAT32"
    )
    nib.save(nib.gifti.GiftiImage(darrays=[array]), path)
    return path


@pytest.mark.parametrize("n_vertices", [10_242, 40_962])
def test_fsaverage_pairs_are_drawn_on_the_surface(tmp_path, n_vertices):
    rng = np.random.default_rng(0)
    paths = [
        save_gifti(tmp_path / f"sub-01_hemi-{h}_space-fsaverage_x.func.gii", rng.uniform(1, 2, n_vertices))
        for h in "LR"
    ]
    brain = open_brain(paths, space="fsaverage")
    assert brain.groups == {"left": slice(0, n_vertices), "right": slice(n_vertices, 2 * n_vertices)}
    assert [mesh.side for mesh in brain.meshes] == ["left", "right"]
    assert brain.meshes[1].point.min() == n_vertices
    assert ("10,242 vertices" in brain.geometry) == (n_vertices > 10_242)


def test_the_colour_of_a_vertex_is_seen_where_the_vertex_is(tmp_path):
    """Occipital vertices, at low y, lie on the right of the left hemisphere's outer face."""
    n = 10_242
    paths = [save_gifti(tmp_path / f"s_hemi-{h}_x.func.gii", np.ones(n)) for h in "LR"]
    brain = open_brain(paths, space="fsaverage")
    y = np.concatenate([mesh.vertices[:, 1] for mesh in brain.meshes])
    values = (y < np.percentile(y, 20)).astype(float)
    with figure_style():
        axes = new_figure(4, 3).subplots()
        draw_brain(axes, brain, paint(brain, values, Scale("Reds", 0.0, 1.0, 0.5)))
    lateral, medial = axes.collections[:2]
    for view, back in ((lateral, 1), (medial, -1)):
        middle = np.array([path.vertices[:3].mean(axis=0) for path in view.get_paths()])
        colour = view.get_facecolors()
        red = colour[:, 0] - colour[:, 1] > 0.3
        assert red.any()
        assert back * (middle[red, 0].mean() - middle[~red, 0].mean()) > 0


def test_surfaces_without_a_geometry_give_distributions(tmp_path):
    paths = [save_gifti(tmp_path / f"s_hemi-{h}_x.func.gii", np.arange(1, 101)) for h in "LR"]
    brain = open_brain(paths, space="custom")
    assert not brain.drawable
    with figure_style():
        figure = value_map(brain, read_values(paths), Scale("viridis", 0, 100, 0), "x (%)", [(50.0, "half")])
        out = save_figure(figure, tmp_path / "figures" / "x")
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["left (100)", "right (100)"]
    assert out.read_bytes().startswith(b"<?xml")


def cifti(tmp_path, n_side=32_492):
    side = np.zeros(n_side, bool)
    side[: n_side // 3] = True
    box = np.zeros((4, 4, 4), bool)
    box[1:3, 1:3, 1:3] = True
    axis = nib.cifti2.BrainModelAxis.from_mask(side, name="CortexLeft")
    axis += nib.cifti2.BrainModelAxis.from_mask(side[::-1], name="CortexRight")
    axis += nib.cifti2.BrainModelAxis.from_mask(box, name="thalamus_left", affine=np.eye(4))
    values = np.arange(1, axis.size + 1, dtype=np.float32)
    header = nib.cifti2.Cifti2Header.from_axes((nib.cifti2.ScalarAxis(["x"]), axis))
    path = tmp_path / "x.dscalar.nii"
    nib.save(nib.Cifti2Image(values[None], header), path)
    return path, values


def test_cifti_groups_and_values(tmp_path, monkeypatch):
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path / "none"))
    path, values = cifti(tmp_path)
    brain = open_brain([path], space="fsLR")
    third = 32_492 // 3
    assert brain.groups["left"] == slice(0, third)
    assert brain.groups["right"] == slice(third, 2 * third)
    assert brain.groups["subcortex"] == slice(2 * third, 2 * third + 8)
    np.testing.assert_array_equal(read_values([path]), values)
    assert not brain.drawable


def test_cifti_is_drawn_when_templateflow_holds_the_surface(tmp_path, monkeypatch):
    rng = np.random.default_rng(3)
    folder = tmp_path / "templateflow" / "tpl-fsLR"
    folder.mkdir(parents=True)
    point = rng.normal(size=(32_492, 3)).astype(np.float32)
    for h in "LR":
        arrays = [
            nib.gifti.GiftiDataArray(point, intent="NIFTI_INTENT_POINTSET", datatype="NIFTI_TYPE_FLOAT32"),
            nib.gifti.GiftiDataArray(
                rng.integers(0, 32_492, (50, 3)).astype(np.int32),
                intent="NIFTI_INTENT_TRIANGLE",
                datatype="NIFTI_TYPE_INT32",
            ),
        ]
        nib.save(
            nib.gifti.GiftiImage(darrays=arrays), folder / f"tpl-fsLR_den-32k_hemi-{h}_midthickness.surf.gii"
        )
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(folder.parent))
    path, _ = cifti(tmp_path)
    brain = open_brain([path], space="fsLR")
    assert brain.drawable
    left, right = brain.meshes
    assert (left.point >= 0).sum() == (right.point >= 0).sum() == 32_492 // 3
    assert left.point[0] == 0
    assert right.point[-1] == 2 * (32_492 // 3) - 1
    # a participant's own mesh may have as many vertices, and is not the template
    assert not open_brain([path], space="fsnative").drawable


def test_a_heavy_figure_becomes_a_png(tmp_path, monkeypatch):
    monkeypatch.setattr("conform_app.reports.style.MAX_SVG_BYTES", 100)
    with figure_style():
        figure = new_figure(2, 2)
        figure.subplots().plot([0, 1])
        path = save_figure(figure, tmp_path / "x")
    assert path.name == "x.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in tmp_path.iterdir()] == ["x.png"]
