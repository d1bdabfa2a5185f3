# SPDX-License-Identifier: Apache-2.0
"""Figures of maps: the picture, its scale, and beside it the distribution that shares the scale's axis."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from conform_app.reports.maps import Brain
from conform_app.reports.painting import Scale, draw_brain, draw_scale, paint, picture_aspect
from conform_app.reports.style import INK, LINE, SOFT, TYPE_COLOURS, WARM, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_GROUP_COLOURS = {"left": "#2f7ebc", "right": "#c2410c", "subcortex": "#7b8794"}


def _inside(brain: Brain, values: np.ndarray) -> np.ndarray:
    """Finite values of the analysed points."""
    return values[brain.mask & np.isfinite(values)]


def value_map(
    brain: Brain, values: np.ndarray, scale: Scale, label: str, marks: list[tuple[float, str]] | None = None
) -> Figure:
    """One map with its colour bar and histogram.

    Parameters
    ----------
    brain : Brain
    values : (n_points,) float array
    scale : Scale
    label : str
        Quantity and unit, for the colour bar.
    marks : list of (value, text), optional
        Values to mark in the histogram, such as a threshold.

    Returns
    -------
    matplotlib.figure.Figure
    """
    if not brain.drawable:
        return _distributions_by_group(brain, values, label, marks or [])
    figure = new_figure(9.6, _height(brain, 7.0))
    picture, bar, side = figure.subplots(1, 3, width_ratios=[7.0, 0.16, 1.7])
    draw_brain(picture, brain, paint(brain, values, scale))
    draw_scale(bar, scale, label)
    _side_histogram(side, _inside(brain, values), scale, brain.unit, marks or [])
    return figure


def _height(brain: Brain, width: float) -> float:
    return float(np.clip(width / picture_aspect(brain), 2.4, 7.5))


def _side_histogram(
    axes: Axes, values: np.ndarray, scale: Scale, unit: str, marks: list[tuple[float, str]]
) -> None:
    edges = np.linspace(scale.low, scale.high, 41)
    counts, _ = np.histogram(np.clip(values, scale.low, scale.high), bins=edges)
    middle = (edges[:-1] + edges[1:]) / 2
    colours = scale.over_grey(middle)
    axes.barh(middle, counts, height=np.diff(edges), color=colours, edgecolor=SOFT, linewidth=0.25)
    ordered = np.sort(counts)
    if ordered[-1] > 3 * ordered[-2] > 0:  # one bin, often 0, would flatten all others: cut it and say so
        end = 1.6 * ordered[-2]
        axes.set_xlim(0, end)
        where = (end, middle[int(np.argmax(counts))])
        text = f"{ordered[-1]:,} \N{BLACK RIGHT-POINTING SMALL TRIANGLE}"
        lift = {"xytext": (-2, 5), "textcoords": "offset points", "ha": "right", "va": "bottom"}
        axes.annotate(text, where, fontsize=7, color=INK, **lift)
    else:
        axes.margins(x=0.12)
    axes.set_ylim(scale.low, scale.high)
    axes.tick_params(labelleft=False)
    axes.set_xlabel(unit)
    axes.xaxis.get_major_locator().set_params(nbins=3, integer=True)
    for value, text in marks:
        if scale.low <= value <= scale.high:
            axes.axhline(value, color=WARM, linewidth=1.1, linestyle=(0, (4, 2)))
            axes.annotate(
                text,
                (1.0, value),
                xycoords=("axes fraction", "data"),
                xytext=(0, 2),
                textcoords="offset points",
                ha="right",
                va="bottom",
                fontsize=7,
                color=WARM,
            )


def _distributions_by_group(
    brain: Brain, values: np.ndarray, label: str, marks: list[tuple[float, str]]
) -> Figure:
    """Histograms by hemisphere and subcortex, where no geometry is at hand to draw a map."""
    figure = new_figure(7.2, 2.8)
    axes = figure.subplots()
    everything = _inside(brain, values)
    low, high = np.percentile(everything, [0.5, 99.5]) if everything.size else (0.0, 1.0)
    edges = np.linspace(low, high if high > low else low + 1.0, 61)
    for name, span in brain.groups.items():
        part = values[span][brain.mask[span] & np.isfinite(values[span])]
        if part.size:
            counts, _ = np.histogram(np.clip(part, edges[0], edges[-1]), bins=edges)
            axes.stairs(
                counts,
                edges,
                color=_GROUP_COLOURS.get(name, INK),
                linewidth=1.4,
                label=f"{name} ({part.size:,})",
            )
    for value, text in marks:
        axes.axvline(value, color=WARM, linewidth=1.1, linestyle=(0, (4, 2)))
        axes.annotate(
            text,
            (value, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(3, 0),
            textcoords="offset points",
            fontsize=7,
            color=WARM,
            va="bottom",
        )
    axes.set_xlabel(label)
    axes.set_ylabel(brain.unit)
    axes.legend()
    return figure


def hrf_figure(brain: Brain, index: np.ndarray, times: np.ndarray, hrfs: np.ndarray) -> Figure:
    """HRF chosen in each point: map, how often each was chosen, and the curves in the same colours.

    Parameters
    ----------
    brain : Brain
    index : (n_points,) float array
        1-based index of the HRF; NaN or 0 where none was chosen.
    times : (n_samples,) float array
        Seconds after onset.
    hrfs : (n_samples, n_hrfs) float array
        Response of each HRF, peak 1; may be empty.
    """
    import matplotlib

    chosen = np.where(index > 0, index, np.nan)
    n_hrfs = hrfs.shape[1] if hrfs.size else int(np.nanmax(np.append(_inside(brain, chosen), 1)))
    scale = Scale("plasma", 0.5, n_hrfs + 0.5, 0.5, bins=n_hrfs)
    colours = matplotlib.colormaps["plasma"]((np.arange(n_hrfs) + 0.5) / n_hrfs)
    counts = np.bincount(_inside(brain, chosen).astype(int), minlength=n_hrfs + 1)[1 : n_hrfs + 1]
    if brain.drawable:
        figure = new_figure(9.6, max(_height(brain, 6.0), 3.6))
        grid = figure.add_gridspec(2, 3, width_ratios=[6.0, 0.16, 3.2])
        draw_brain(figure.add_subplot(grid[:, 0]), brain, paint(brain, chosen, scale))
        bar = figure.add_subplot(grid[:, 1])
        draw_scale(bar, scale, "HRF index")
        bar.set_yticks(_few_indices(n_hrfs))
        count_axes, curve_axes = figure.add_subplot(grid[0, 2]), figure.add_subplot(grid[1, 2])
    else:
        figure = new_figure(9.6, 2.8)
        count_axes, curve_axes = figure.subplots(1, 2)
    count_axes.bar(np.arange(1, n_hrfs + 1), counts, color=colours, edgecolor=SOFT, linewidth=0.3, width=0.9)
    count_axes.set_xticks(_few_indices(n_hrfs))
    count_axes.set_xlabel("HRF index")
    count_axes.set_ylabel(brain.unit)
    if hrfs.size:
        for number in range(n_hrfs):
            curve_axes.plot(times, hrfs[:, number], color=colours[number], linewidth=1.1)
        curve_axes.axhline(0, color=SOFT, linewidth=0.5)
        curve_axes.set_xlabel("time after onset (s)")
        curve_axes.set_ylabel("response (peak = 1)")
        curve_axes.set_xlim(float(times[0]), float(min(times[-1], times[0] + 40)))
    else:
        curve_axes.set_axis_off()
    return figure


def _few_indices(n_hrfs: int) -> list[int]:
    return [1, *range(5, n_hrfs + 1, 5)] if n_hrfs > 6 else list(range(1, n_hrfs + 1))


def pool_map(brain: Brain, pool: np.ndarray) -> Figure:
    """Noise pool over the mean image; without a geometry, the share of each hemisphere."""
    member = (pool > 0) & brain.mask
    if brain.drawable:
        figure = new_figure(7.2, _height(brain, 7.0))
        picture = figure.subplots()
        scale = Scale("winter", 0.0, 1.0, 0.0)
        rgba = paint(brain, np.where(member, 0.35, np.nan), scale)
        if brain.underlay is not None:  # let the anatomy through
            grey = paint(brain, np.full(member.size, np.nan), scale)
            rgba = np.where(member[:, None], 0.6 * rgba + 0.4 * grey, rgba)
        draw_brain(picture, brain, rgba)
        return figure
    figure = new_figure(5.5, 2.2)
    axes = figure.subplots()
    names = [n for n, span in brain.groups.items() if brain.mask[span].any()]
    share = [100 * member[brain.groups[n]].sum() / brain.mask[brain.groups[n]].sum() for n in names]
    axes.barh(names, share, color=[_GROUP_COLOURS.get(n, INK) for n in names])
    axes.set_xlim(0, 100)
    axes.set_xlabel(f"{brain.unit} in the noise pool (%)")
    return figure


def compare_maps(brain: Brain, maps: dict[str, np.ndarray], scale: Scale, label: str) -> Figure:
    """Small maps side by side on one scale, over the distributions of all of them.

    Parameters
    ----------
    brain : Brain
    maps : dict of str -> (n_points,) float array
        Keyed by what the map belongs to: ``A`` to ``D`` or ``PSN``.
    scale : Scale
        Common to all.
    label : str
        Quantity, for the axes.
    """
    names = list(maps)
    if not brain.drawable:
        figure = new_figure(7.2, 3.0)
        _distributions(figure.subplots(), brain, maps, label)
        return figure
    width = 9.2 / max(len(names), 2)
    most, wanted = (1, 1.0) if brain.kind != "volume" else (6, 0.9)
    tall = float(np.clip(width / picture_aspect(brain, most=most, aspect=wanted), 1.2, 4.5))
    figure = new_figure(9.8, tall + 2.9)
    grid = figure.add_gridspec(
        2, len(names) + 1, width_ratios=[1.0] * len(names) + [0.035], height_ratios=[tall + 0.3, 2.4]
    )
    for position, name in enumerate(names):
        picture = figure.add_subplot(grid[0, position])
        draw_brain(picture, brain, paint(brain, maps[name], scale), most=most, aspect=wanted)
        picture.set_title(_type_name(name), loc="center")
    draw_scale(figure.add_subplot(grid[0, len(names)]), scale, label)
    lower = grid[1, :].subgridspec(1, 2, width_ratios=[3, 2])
    _distributions(figure.add_subplot(lower[0]), brain, maps, label)
    _boxes(figure.add_subplot(lower[1]), brain, maps, label)
    return figure


def _type_name(name: str) -> str:
    return f"type {name}" if len(name) == 1 else name


def _distributions(axes: Axes, brain: Brain, maps: dict[str, np.ndarray], label: str) -> None:
    parts = {name: _inside(brain, values) for name, values in maps.items()}
    everything = np.concatenate(list(parts.values()))
    low, high = np.percentile(everything, [0.2, 99.8]) if everything.size else (-1.0, 1.0)
    edges = np.linspace(low, high if high > low else low + 1.0, 51)
    for name, part in parts.items():
        counts, _ = np.histogram(np.clip(part, edges[0], edges[-1]), bins=edges)
        axes.stairs(counts, edges, color=TYPE_COLOURS.get(name, INK), linewidth=1.6, label=_type_name(name))
    axes.axvline(0, color=SOFT, linewidth=0.6)
    axes.set_xlabel(label)
    axes.set_ylabel(brain.unit)
    axes.legend(loc="best")


def _boxes(axes: Axes, brain: Brain, maps: dict[str, np.ndarray], label: str) -> None:
    names = list(maps)
    parts = [_inside(brain, maps[name]) for name in names]
    drawn = axes.boxplot(
        [p if p.size else [np.nan] for p in parts],
        whis=(5, 95),
        showfliers=False,
        patch_artist=True,
        widths=0.6,
        medianprops={"color": "white", "linewidth": 1.6},
        whiskerprops={"color": SOFT},
        capprops={"color": SOFT},
    )
    for patch, name in zip(drawn["boxes"], names, strict=True):
        patch.set(facecolor=TYPE_COLOURS.get(name, INK), edgecolor="none")
    axes.axhline(0, color=SOFT, linewidth=0.6)
    axes.set_xticks(range(1, len(names) + 1), [_type_name(n) for n in names])
    axes.set_ylabel(label)


def before_after(before: np.ndarray, after: np.ndarray, names: tuple[str, str], label: str) -> Figure:
    """Each point's value after denoising against its value before.

    Parameters
    ----------
    before, after : (n,) float arrays
        Same points, both finite.
    names : (str, str)
        Axis names.
    label : str
        Quantity.
    """
    figure = new_figure(4.2, 3.9)
    axes = figure.subplots()
    both = np.concatenate([before, after])
    low, high = (float(np.min(both)), float(np.max(both))) if both.size else (0.0, 1.0)
    pad = 0.04 * ((high - low) or 1.0)
    ends = (low - pad, high + pad)
    axes.plot(ends, ends, color=SOFT, linewidth=0.8)
    axes.axhline(0, color=LINE, linewidth=0.6, zorder=0)
    axes.axvline(0, color=LINE, linewidth=0.6, zorder=0)
    if before.size > 3000:
        axes.hexbin(
            before, after, gridsize=60, bins="log", cmap="Blues", mincnt=1, linewidths=0, rasterized=True
        )
    else:
        axes.scatter(before, after, s=9, color=TYPE_COLOURS["D"], alpha=0.45, linewidths=0)
    axes.set(xlim=ends, ylim=ends, aspect="equal")
    axes.set_xlabel(f"{label}, {names[0]}")
    axes.set_ylabel(f"{label}, {names[1]}")
    return figure
