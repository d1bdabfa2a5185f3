# SPDX-License-Identifier: Apache-2.0
"""Fits that were carried to a surface: maps on the inflated cortex, what the volume covers, distortion.

The cortex is inflated here by smoothing: every vertex moves towards the mean of its neighbours, and the whole
keeps its length, height and width.  It is for looking only.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from conform_app.images.surfaces import read_surface
from conform_app.reports.maps import Brain, Mesh
from conform_app.reports.painting import Scale, diverging, draw_scale, sequential
from conform_app.reports.products import FigureBook, Products, Section
from conform_app.reports.style import SOFT, new_figure
from conform_app.reports.wording import number, spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VIEWS = ("lateral", "medial", "ventral")
STEPS = 60  # of smoothing, for a mesh of 32,000 vertices
_WEIGHT = 0.6


def inflate(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Inflate a folded surface.

    Parameters
    ----------
    vertices : (n, 3) float array
        mm.
    faces : (m, 3) int array

    Returns
    -------
    inflated : (n, 3) float array
    relief : (n,) float array
        Depth below the smoothed surface, mm: positive in sulci.
    """
    from scipy import sparse

    ends = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    ends = np.concatenate([ends, ends[:, ::-1]])
    shape = (len(vertices), len(vertices))
    beside = sparse.csr_matrix((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape)
    beside.data[:] = 1.0
    mean = sparse.diags(1.0 / np.maximum(np.asarray(beside.sum(axis=1)).ravel(), 1.0)) @ beside
    extent, middle = np.ptp(vertices, axis=0), vertices.mean(axis=0)
    smooth = np.asarray(vertices, dtype=np.float64)
    steps = max(10, round(STEPS * len(vertices) / 32_492))
    relief = np.zeros(len(vertices))
    for step in range(steps):
        smooth = (1 - _WEIGHT) * smooth + _WEIGHT * (mean @ smooth)
        if step == steps // 3:
            relief = np.linalg.norm(smooth - middle, axis=1) - np.linalg.norm(vertices - middle, axis=1)
    centred = smooth - smooth.mean(axis=0)
    return centred * (extent / np.maximum(np.ptp(centred, axis=0), 1e-6)), relief


def own_meshes(paths: list[Path], groups: dict[str, np.ndarray]) -> tuple[Mesh, ...]:
    """Build meshes from a participant's middle surfaces.

    Parameters
    ----------
    paths : list of Path
        Left, right.
    groups : dict of str to int array
        For ``left`` and ``right`` the point of each vertex, -1 where there is none.
    """
    meshes = []
    for path, (side, point) in zip(paths, groups.items(), strict=False):
        vertices, faces = read_surface(path)
        if len(vertices) != len(point):
            return ()
        inflated, relief = inflate(vertices, faces)
        meshes.append(Mesh(side, inflated, faces, relief, point))
    return tuple(meshes)


def views_map(brain: Brain, values: np.ndarray, scale: Scale, label: str) -> Figure:
    """Draw a map on both hemispheres from three sides with nilearn.

    Parameters
    ----------
    brain : Brain
        With meshes.
    values : (n_points,) float array
    scale : Scale
        Its colours without fading.
    label : str
        Quantity and unit.
    """
    figure = new_figure(9.6, 4.4)
    grid = figure.add_gridspec(2, len(VIEWS) + 1, width_ratios=[1.0] * len(VIEWS) + [0.03])
    pictures = {}
    for row, mesh in enumerate(brain.meshes):
        shown = np.where(mesh.point >= 0, values[np.maximum(mesh.point, 0)], np.nan)
        shown = np.clip(shown, scale.low, scale.high)
        for column, view in enumerate(VIEWS):
            pictures[row, column] = _picture(mesh, shown, scale, view)
    inked = np.any([(picture < 250).any(axis=-1) for picture in pictures.values()], axis=0)
    box = tuple(slice(*np.flatnonzero(inked.any(axis=axis))[[0, -1]] + [0, 1]) for axis in (1, 0))
    for (row, column), picture in pictures.items():
        axes = figure.add_subplot(grid[row, column])
        axes.set_axis_off()
        axes.imshow(picture[box], interpolation="antialiased")
        name = f"{brain.meshes[row].side}, {VIEWS[column]}"
        axes.set_title(name, fontsize=7.5, color=SOFT, loc="center")
    draw_scale(figure.add_subplot(grid[:, len(VIEWS)]), scale, label)
    return figure


def _picture(mesh: Mesh, values: np.ndarray, scale: Scale, view: str) -> np.ndarray:
    """Draw one view once, as pixels: layout and saving would draw tens of thousands of triangles again."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from nilearn.plotting import plot_surf_stat_map

    figure = Figure(figsize=(3.0, 2.25), dpi=160)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1), projection="3d")
    relief = mesh.relief if mesh.relief is not None else np.zeros(len(mesh.vertices))
    plot_surf_stat_map(
        [mesh.vertices, _seen(mesh, view)],
        values,
        bg_map=np.where(relief > 0, 0.75, 0.45),  # sulci dark
        hemi=mesh.side,
        view=view,
        engine="matplotlib",
        cmap=scale.cmap,
        vmin=scale.low,
        vmax=scale.high,
        symmetric_cbar=False,
        colorbar=False,
        axes=axes,
        figure=figure,
    )
    axes.set_box_aspect(None, zoom=1.3)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _seen(mesh: Mesh, view: str) -> np.ndarray:
    """Triangles that face the viewer, or nearly: the others lie behind them."""
    outward = -1.0 if mesh.side == "left" else 1.0
    toward = {"lateral": (outward, 0, 0), "medial": (-outward, 0, 0), "ventral": (0, 0, -1.0)}[view]
    centred = mesh.vertices - mesh.vertices.mean(axis=0)
    a, b, c = (centred[mesh.faces[:, k]] for k in range(3))
    normal = np.cross(b - a, c - a)
    if np.einsum("ij,ij->", normal, a) < 0:  # faces listed the other way round
        normal = -normal
    length = np.linalg.norm(normal, axis=1)
    return mesh.faces[normal @ np.array(toward) > -0.2 * length]


def _plain(scale: Scale) -> Scale:
    """Return the scale without fading, as nilearn draws it."""
    return Scale(scale.cmap, scale.low, scale.high, 0.0 if scale.around_zero else scale.low)


def cortex(products: Products, book: FigureBook, brain: Brain) -> Section:
    """The cortex: maps, coverage and registration."""
    facts = products.record.get("surface") or {}
    section = Section("surface", "On the cortex")
    section.intro = _intro(facts)
    if facts.get("approximate"):
        section.notes.append(
            "The surfaces are approximate: a group average warped to this person's image, not this person's "
            "cortex. Where on the cortex a response lies is known to within a gyrus at best."
        )
    if facts.get("group_average"):
        section.notes.append(
            "Group-average registration: the surfaces are averages over other people, so folds of this "
            "person are not followed. BOLD in T1w space with surfaces can be registered to this cortex."
        )
    if not brain.meshes:
        section.notes.append("No surface to draw on was at hand.")
        return section
    whole = _whole(brain)
    shown = f"Shown on {brain.geometry}, from three sides."
    for key, what, label, cmap in (
        (
            "rsquared_typeA",
            "On/off R²: variance explained by one regressor for all trials",
            "on/off R² (%)",
            "inferno",
        ),
        ("ncsnr", "Noise-ceiling signal-to-noise ratio", "ncsnr", "viridis"),
    ):
        if products.has(key):
            values = np.where(brain.mask, products.values(key), np.nan)
            scale = _plain(sequential(values[brain.mask], cmap=cmap))
            unit = "%" if "%" in label else ""
            name = "surfrsquared" if key.startswith("rsq") else "surfncsnr"
            caption = f"{what}. {spread(values, brain, unit)}. {shown} Grey: no data, or the medial wall."
            book.add(section, name, views_map(brain, values, scale, label), alt=what, caption=caption)
    _coverage(products, book, whole, facts, section)
    _distortion(products, book, whole, facts, section)
    return section


def _whole(brain: Brain) -> Brain:
    """Return the same brain with every point in its mask: coverage is of what was left out, too."""
    from dataclasses import replace

    return replace(brain, mask=np.ones(brain.mask.size, dtype=bool))


def _intro(facts: dict) -> str:
    what = "The single-trial responses" if facts.get("of") == "betas" else "The time series"
    told = f"{what} come from {facts.get('volume')} volumes, sampled between white and pial surface."
    if facts.get("registration"):
        told += f" Registration: {facts['registration']}."
    return told


def _coverage(products: Products, book: FigureBook, brain: Brain, facts: dict, section: Section) -> None:
    if not products.has("coverage"):
        return
    percent = f"{number(facts.get('covered_percent'))} %"
    book.add(
        section,
        "surfcoverage",
        views_map(brain, products.values("coverage"), Scale("cividis", 0.0, 1.0, 0.0), "share covered"),
        alt=f"Map of how much of the cortex the volume covers: {percent} of the vertices have data",
        caption="Coverage: share of the cortex at each vertex, between white and pial surface, that lies in "
        f"voxels with data. {percent} of the vertices outside the medial wall have data; the others hold "
        "NaN in every map.",
    )


def _distortion(products: Products, book: FigureBook, brain: Brain, facts: dict, section: Section) -> None:
    if not products.has("arealdistortion"):
        section.notes.append("No registration was needed: the data stay on the participant's own mesh.")
        return
    sphere = facts.get("reference") == "sphere"
    against = (
        "the sphere before registration"
        if sphere
        else "the folded middle surface, as the sphere before registration was not found: the unfolding of "
        "the cortex is part of what is shown"
    )
    kinds = (
        ("arealdistortion", "area", "log2"),
        ("edgedistortion", "edge lengths", "mean magnitude of log2"),
    )
    for key, what, measure in kinds:
        values = products.values(key)
        numbers = facts.get(key) or {}
        finite = values[np.isfinite(values)]
        scale = diverging([finite]) if key == "arealdistortion" else sequential(finite, cmap="viridis")
        caption = (
            f"Distortion of {what} by the registration: {measure} of the registered sphere over {against}; "
            "1 is a doubling, overall scale taken out. Median magnitude "
            f"{number(numbers.get('median'))}, 95th percentile {number(numbers.get('p95'))}."
        )
        if facts.get("approximate") or facts.get("group_average"):
            caption += " The mesh is the group average's: this says nothing of this person's registration."
        label = f"log2 of {what}"
        name = "surf" + key
        book.add(
            section,
            name,
            views_map(brain, values, _plain(scale), label),
            alt=caption.split(":")[0],
            caption=caption,
        )
