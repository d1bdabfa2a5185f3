# SPDX-License-Identifier: Apache-2.0
"""Values -> colours -> pictures of brains.

Each point gets one colour: its value through a colour map, laid over the grey of the mean image.  Weak
values are let through (opacity rises from 0 at the lower end of the scale to 1 at the end of the fade),
which shows the anatomy without hiding anything: nothing is cut at a threshold.  The colour bar is drawn
through the same rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from conform_app.reports.maps import Brain, Mesh
from conform_app.reports.style import INK, SOFT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BAR_GREY = 0.62


@dataclass(frozen=True)
class Scale:
    """How values become colours.

    Attributes
    ----------
    cmap : str
        Name of a matplotlib colour map.
    low, high : float
        Ends of the scale, in the unit of the map.
    fade : float
        Value (of the magnitude, for a scale around 0) from which colours are opaque; `low` for no fading.
    bins : int
        Number of discrete colours; 0 for a continuous scale.
    """

    cmap: str
    low: float
    high: float
    fade: float
    bins: int = 0

    @property
    def around_zero(self) -> bool:
        """Diverging scale: opacity follows the magnitude."""
        return self.low < 0 and np.isclose(self.low, -self.high)

    def colours(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """RGB (n, 3) and opacity (n,) of `values`; non-finite values are fully transparent."""
        import matplotlib

        values = np.asarray(values, dtype=np.float64)
        safe = np.where(np.isfinite(values), values, self.low)
        unit = np.clip((safe - self.low) / (self.high - self.low or 1.0), 0.0, 1.0)
        if self.bins:
            unit = (np.minimum(np.floor(unit * self.bins), self.bins - 1) + 0.5) / self.bins
        rgb = matplotlib.colormaps[self.cmap](unit)[:, :3]
        if self.around_zero:
            opacity = np.abs(safe) / self.fade if self.fade > 0 else np.ones_like(safe)
        elif self.fade > self.low:
            opacity = (safe - self.low) / (self.fade - self.low)
        else:
            opacity = np.ones_like(safe)
        return rgb, np.where(np.isfinite(values), np.clip(opacity, 0.0, 1.0), 0.0)

    def over_grey(self, values: np.ndarray) -> np.ndarray:
        """RGB (n, 3) of `values` over an even grey: what the colour bar and the histogram show."""
        rgb, opacity = self.colours(values)
        return opacity[:, None] * rgb + (1.0 - opacity)[:, None] * _BAR_GREY


def sequential(values: np.ndarray, *, cmap: str, low: float = 0.0, high: float | None = None) -> Scale:
    """Scale from `low` to the 99th percentile of `values`, opaque from a fifth of the way up."""
    finite = values[np.isfinite(values)]
    if high is None:
        high = float(np.percentile(finite, 99)) if finite.size else 1.0
    if not high > low:
        high = low + 1.0
    return Scale(cmap, low, high, low + 0.2 * (high - low))


def diverging(sets: list[np.ndarray], *, limit: float | None = None) -> Scale:
    """One scale around 0 for several maps, as wide as the 99th percentile of the magnitudes."""
    finite = np.concatenate([np.abs(v[np.isfinite(v)]) for v in sets]) if sets else np.zeros(0)
    if limit is None:
        limit = float(np.percentile(finite, 99)) if finite.size else 1.0
    limit = limit if limit > 0 else 1.0
    return Scale("RdBu_r", -limit, limit, 0.2 * limit)


def paint(brain: Brain, values: np.ndarray, scale: Scale) -> np.ndarray:
    """Colour of every point, (n_points, 4): `values` over the underlay in the mask, else transparent."""
    grey = np.full(brain.mask.size, 0.8)
    alpha = brain.mask.astype(np.float64)
    if brain.underlay is not None:
        shown = np.isfinite(brain.underlay) & (brain.underlay != 0)
        inside = brain.underlay[brain.mask & shown]
        if inside.size:
            bottom, top = np.percentile(inside, [1, 99])
            unit = (np.where(shown, brain.underlay, bottom) - bottom) / ((top - bottom) or 1.0)
            dark, light = brain.greys
            grey = np.where(shown, dark + (light - dark) * np.clip(unit, 0.0, 1.0), grey)
            if brain.kind == "volume":  # anatomy around the mask
                alpha = np.maximum(alpha, shown)
    rgb, opacity = scale.colours(values)
    opacity = opacity * brain.mask
    colour = opacity[:, None] * rgb + (1.0 - opacity)[:, None] * grey[:, None]
    return np.column_stack([colour, alpha])


def draw_brain(axes: Axes, brain: Brain, rgba: np.ndarray, *, most: int = 18, aspect: float = 1.6) -> None:
    """Draw the points coloured `rgba` into `axes`: slices of a volume, or the surfaces from both sides."""
    axes.set_axis_off()
    axes.set_aspect("equal")
    if brain.kind == "volume":
        _draw_slices(axes, brain, rgba, most, aspect)
    else:
        _draw_surfaces(axes, brain.meshes, rgba)


def picture_aspect(brain: Brain, *, most: int = 18, aspect: float = 1.6) -> float:
    """Width over height of what `draw_brain` draws."""
    if brain.kind != "volume":
        return 1.45
    layout = _Layout.of(brain, most, aspect)
    return layout.width / layout.height


@dataclass(frozen=True)
class _Layout:
    """Which slices are shown and where: columns x rows of cells of (cell_w, cell_h) mm."""

    axis: int
    across: int
    up: int
    slices: tuple[int, ...]
    box: tuple[slice, slice]
    columns: int
    rows: int
    cell_w: float
    cell_h: float
    gap: float

    @property
    def width(self) -> float:
        return self.columns * (self.cell_w + self.gap) - self.gap

    @property
    def step(self) -> float:
        """From one row to the next: slice, name of the slice, gap."""
        return self.cell_h + self.name_height + 0.5 * self.gap

    @property
    def name_height(self) -> float:
        return 0.028 * self.width

    @property
    def height(self) -> float:
        return self.rows * self.step + self.name_height

    @classmethod
    def of(cls, brain: Brain, most: int, aspect: float) -> _Layout:
        mask = brain.mask.reshape(brain.shape)
        if not mask.any():
            mask = np.ones(brain.shape, bool)
        extent = [np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
        sizes = [e[-1] - e[0] + 1 for e in extent]
        axis = 2 if sizes[2] == 1 or min(sizes) > 1 else int(np.argmin(sizes))
        across, up = [(1, 2), (0, 2), (0, 1)][axis]
        box = tuple(
            slice(max(extent[a][0] - 1, 0), min(extent[a][-1] + 2, brain.shape[a])) for a in (across, up)
        )
        filled = mask.sum(axis=(across, up))
        usable = np.flatnonzero(filled >= max(1, 0.1 * filled.max()))
        cell_w = (box[0].stop - box[0].start) * brain.zooms[across]
        cell_h = (box[1].stop - box[1].start) * brain.zooms[up]
        n_most = min(most, usable.size)

        def misfit(grid: tuple[int, int]) -> float:
            columns, rows = grid
            return abs(np.log(columns * cell_w / (rows * cell_h) / aspect)) + 0.8 * np.log(
                n_most / (columns * rows)
            )

        grids = [(c, r) for c in range(1, n_most + 1) for r in range(1, n_most // c + 1)]
        columns, rows = min(grids, key=misfit)  # full grids only: no empty cells
        n_shown = columns * rows
        chosen = usable[np.floor((np.arange(n_shown) + 0.5) * usable.size / n_shown).astype(int)]
        slices = tuple(int(s) for s in chosen)
        gap = 0.05 * max(cell_w, cell_h)
        return cls(axis, across, up, slices, box, columns, rows, cell_w, cell_h, gap)


def _draw_slices(axes: Axes, brain: Brain, rgba: np.ndarray, most: int, aspect: float) -> None:
    layout = _Layout.of(brain, most, aspect)
    volume = rgba.reshape(*brain.shape, 4)
    flip = layout.across == 0  # radiological: the subject's right is on the left of the picture
    for position, index in enumerate(layout.slices):
        left = (position % layout.columns) * (layout.cell_w + layout.gap)
        bottom = (
            layout.height - layout.name_height - (position // layout.columns) * layout.step - layout.cell_h
        )
        plane = np.take(volume, index, axis=layout.axis)[layout.box[0], layout.box[1]]
        if flip:
            plane = plane[::-1]
        axes.imshow(
            np.round(plane.swapaxes(0, 1) * 255).astype(np.uint8),
            extent=(left, left + layout.cell_w, bottom, bottom + layout.cell_h),
            origin="lower",
            interpolation="none",
        )
        if len(layout.slices) > 1 or brain.affine is not None:
            middle = left + layout.cell_w / 2
            name = _slice_name(brain, layout, index)
            axes.text(middle, bottom, name, fontsize=6, color=SOFT, ha="center", va="top")
    first, last = ("R", "L") if flip else ("P", "A")
    top = layout.height - layout.name_height
    axes.text(0, top, first, fontsize=7.5, color=INK, va="bottom", ha="left", weight="bold")
    axes.text(layout.cell_w, top, last, fontsize=7.5, color=INK, va="bottom", ha="right", weight="bold")
    axes.set_xlim(0, layout.width)
    axes.set_ylim(0, layout.height)


def _slice_name(brain: Brain, layout: _Layout, index: int) -> str:
    if brain.affine is None:
        return f"slice {index + 1}"
    centre = [(s - 1) / 2 for s in brain.shape]
    centre[layout.axis] = index
    position = brain.affine[layout.axis, :3] @ centre + brain.affine[layout.axis, 3]
    return f"{'xyz'[layout.axis]} = {position:.0f} mm"


def _draw_surfaces(axes: Axes, meshes: tuple[Mesh, ...], rgba: np.ndarray) -> None:
    """Hemispheres from outside (top) and inside (bottom), left brain left, lit from the viewer."""
    from matplotlib.collections import PolyCollection

    spread = max(float(np.ptp(mesh.vertices[:, 1])) for mesh in meshes)
    tall = max(float(np.ptp(mesh.vertices[:, 2])) for mesh in meshes)
    for mesh in meshes:
        column = 0 if mesh.side == "left" else 1
        relief = mesh.relief if mesh.relief is not None else np.zeros(len(mesh.vertices))
        base = np.repeat(np.where(relief > 0, 0.55, 0.78)[:, None], 3, axis=1)
        has = mesh.point >= 0
        colour = rgba[np.where(has, mesh.point, 0)]
        shown = has & (colour[:, 3] > 0)
        base[shown] = colour[shown, :3]
        for row, view in enumerate(("lateral", "medial")):
            triangles, face_rgb = _project(mesh, base, view)
            triangles = triangles + np.array([column * spread * 1.06, -row * tall * 1.08])
            drawn = PolyCollection(
                triangles, facecolors=face_rgb, edgecolors=face_rgb, linewidths=0.2, rasterized=True
            )
            drawn.set_in_layout(False)  # the axes' limits already hold it
            axes.add_collection(drawn)
            middle = triangles.reshape(-1, 2)
            axes.text(
                middle[:, 0].mean(),
                middle[:, 1].min(),
                f"{mesh.side}, {view}",
                fontsize=7,
                color=SOFT,
                ha="center",
                va="top",
            )
    axes.autoscale_view()
    axes.margins(0.02)


def _project(mesh: Mesh, rgb: np.ndarray, view: str) -> tuple[np.ndarray, np.ndarray]:
    """Visible triangles (m, 3, 2) seen along the x axis, far ones first, and their shaded colours (m, 3)."""
    outward = -1.0 if mesh.side == "left" else 1.0
    looking = outward if view == "lateral" else -outward  # sign of x on the viewer's side
    centred = mesh.vertices - (mesh.vertices.min(axis=0) + mesh.vertices.max(axis=0)) / 2
    corners = centred[mesh.faces]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    length = np.linalg.norm(normal, axis=1)
    facing = looking * normal[:, 0] / np.where(length > 0, length, 1.0)
    if np.einsum("ij,ij->", normal, corners.mean(axis=1)) < 0:  # faces listed the other way round
        facing = -facing
    depth = looking * corners[:, :, 0].mean(axis=1)
    order = np.argsort(depth, kind="stable")
    order = order[facing[order] > 0]
    flat = np.stack([looking * corners[order][:, :, 1], corners[order][:, :, 2]], axis=-1)
    shade = 0.62 + 0.38 * np.clip(facing[order], 0.0, 1.0)
    return flat, np.clip(rgb[mesh.faces[order, 0]] * shade[:, None], 0.0, 1.0)


def draw_scale(axes: Axes, scale: Scale, label: str) -> None:
    """Vertical colour bar through the same fading as the map, with the unit as its label."""
    ramp = np.linspace(scale.low, scale.high, 256)
    axes.imshow(
        scale.over_grey(ramp)[:, None, :],
        extent=(0, 1, scale.low, scale.high),
        origin="lower",
        aspect="auto",
        interpolation="none",
    )
    axes.set_xticks([])
    axes.set_ylabel(label)
    axes.spines[:].set_visible(False)
