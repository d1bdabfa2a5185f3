# SPDX-License-Identifier: Apache-2.0
"""Figures of the encoding models: learning curves, accuracy maps, accuracy against the noise ceiling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from conform_app.reports.maps import Brain
from conform_app.reports.painting import Scale, diverging, draw_brain, draw_scale, paint, picture_aspect
from conform_app.reports.style import INK, LINE, SOFT, new_figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

METHODS: dict[str, tuple[str, str, str]] = {
    "stacked": ("#c2410c", "-", "o"),
    "transformer": ("#8a5fa8", "-", "s"),
    "prior": ("#174a7c", "-", "D"),
    "aligned ridge": ("#b8860b", "-", "^"),
    "aligned procrustes": ("#a8326f", "-", "^"),
    "aligned transport": ("#8c6d46", "-", "^"),
    "ridge": ("#5aa9c9", "-", "o"),
    "five-fold ridge": ("#7b8794", (0, (4, 2)), "o"),
    "group mean": ("#4d8b57", (0, (1, 1.5)), ""),
}
"""Colour, line and marker of each estimator, the same in every figure."""

BANDS = ("stacked", "transformer", "ridge")
"""Estimators whose intervals are drawn; the tables have all."""

MOST_PANELS = 12
FEW = 1500
"""Points that are drawn one by one."""


def learning_curves(metrics: pd.DataFrame, metric: str, label: str) -> Figure:
    """Accuracy over context sizes, a panel a participant (their mean, where they are many).

    Parameters
    ----------
    metrics : DataFrame
        Rows of the table of metrics, of region "all".
    metric, label : str
    """
    table = metrics[(metrics["metric"] == metric) & (metrics["region"] == "all")]
    people = list(dict.fromkeys(table["participant"]))
    if len(people) > MOST_PANELS:
        columns = ["method", "n_context"]
        table = table.groupby(columns, sort=False)[["mean", "low", "high"]].mean().reset_index()
        people = [f"mean of {len(people)} participants"]
        table = table.assign(participant=people[0])
    columns = _columns(len(people), 3)
    rows = -(-len(people) // columns)
    figure = new_figure(2.9 * columns + 1.7, 2.5 * rows + 0.3)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    sizes = sorted({int(n) for n in table["n_context"]} - {0})
    for axes, person in zip(panels.ravel(), people, strict=False):
        own = table[table["participant"] == person]
        _curves(axes, own, sizes)
        axes.set_title(person)
    for axes in panels.ravel()[len(people) :]:
        axes.set_axis_off()
    for axes in panels[:, 0]:
        axes.set_ylabel(label)
    _label_lowest(panels, len(people), "train images")
    handles, names = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right upper")
    return figure


def _columns(n: int, most: int) -> int:
    """Columns for so many panels: few rows, and as few empty places as can be."""
    if n <= most + 1:
        return n
    return min((most, most + 1), key=lambda c: (-(-n // c) * c - n, -c))


def _label_lowest(panels: np.ndarray, n: int, label: str) -> None:
    """Name the x axis under the lowest panel of each column."""
    rows, columns = panels.shape
    for column in range(columns):
        last = panels[max(r for r in range(rows) if r * columns + column < n), column]
        last.set_xlabel(label)
        last.tick_params(labelbottom=True)


def _curves(axes, own: pd.DataFrame, sizes: Sequence[int]) -> None:
    for method, (colour, line, marker) in METHODS.items():
        its = own[own["method"] == method].sort_values("n_context")
        if not len(its):
            continue
        if (its["n_context"] == 0).all():  # no image of this participant: a level
            axes.axhline(its["mean"].iloc[0], color=colour, linestyle=line, linewidth=1.4, label=method)
            axes.axhspan(its["low"].iloc[0], its["high"].iloc[0], color=colour, alpha=0.10, linewidth=0)
            continue
        x = its["n_context"].to_numpy(float)
        style = {"color": colour, "linestyle": line, "marker": marker, "markersize": 3.0}
        if method == "stacked":  # often on top of another: open circles around that one's markers
            style |= {"markersize": 6.5, "markerfacecolor": "none", "linewidth": 1.0, "zorder": 4}
        axes.plot(x, its["mean"], label=method, **style)
        if method in BANDS:
            axes.fill_between(x, its["low"], its["high"], color=colour, alpha=0.12, linewidth=0)
    axes.set_xscale("log")
    axes.minorticks_off()
    low, high = sizes[0] / 1.15, sizes[-1] * 1.15
    ticks = [n for power in range(6) for n in (10**power, 2 * 10**power, 5 * 10**power) if low <= n <= high]
    ticks = ticks if len(ticks) > 1 else list(sizes)
    axes.set_xticks(ticks, [str(n) for n in ticks])
    axes.set_xlim(low, high)
    axes.grid(axis="y", color=LINE, linewidth=0.5)
    axes.set_axisbelow(True)


def accuracy_maps(brain: Brain, maps: Mapping[str, np.ndarray], label: str) -> Figure:
    """Maps side by side on one scale around 0.

    Parameters
    ----------
    brain : Brain
    maps : mapping of title to ndarray (n_points,)
    label : str
        Quantity, for the colour bar.
    """
    scale = diverging([values[brain.mask] for values in maps.values()])
    columns = _columns(len(maps), 3)
    rows = -(-len(maps) // columns)
    most, wanted = (1, 1.0) if brain.kind != "volume" else (6, 1.1)
    width = 9.2 / max(columns, 2)
    tall = float(np.clip(width / picture_aspect(brain, most=most, aspect=wanted), 1.4, 4.5))
    figure = new_figure(width * columns + 0.7, rows * (tall + 0.35))
    grid = figure.add_gridspec(rows, columns + 1, width_ratios=[1.0] * columns + [0.035])
    for position, (name, values) in enumerate(maps.items()):
        picture = figure.add_subplot(grid[position // columns, position % columns])
        draw_brain(picture, brain, paint(brain, values, scale), most=most, aspect=wanted)
        picture.set_title(name, loc="center")
    draw_scale(figure.add_subplot(grid[0, columns]), scale, label)
    return figure


def winner_maps(brain: Brain, maps: Mapping[str, np.ndarray], names: Sequence[str]) -> Figure:
    """Which of several things wins at each point, a panel a participant.

    Parameters
    ----------
    brain : Brain
    maps : mapping of title to ndarray (n_points,)
        Numbers from 1; 0 where there is none.
    names : sequence of str
    """
    import matplotlib
    from matplotlib.patches import Patch

    n = len(names)
    cmap = "Set1" if n <= 9 else "turbo"
    scale = Scale(cmap, 0.5, n + 0.5, 0.5, bins=n)
    columns = _columns(len(maps), 3)
    rows = -(-len(maps) // columns)
    most, wanted = (1, 1.0) if brain.kind != "volume" else (6, 1.1)
    width = 8.4 / max(columns, 2)
    tall = float(np.clip(width / picture_aspect(brain, most=most, aspect=wanted), 1.4, 4.5))
    figure = new_figure(width * columns + 1.6, rows * (tall + 0.35))
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels:
        axes.set_axis_off()
    for axes, (name, values) in zip(panels, maps.items(), strict=False):
        shown = np.where(values > 0, values, np.nan)
        draw_brain(axes, brain, paint(brain, shown, scale), most=most, aspect=wanted)
        axes.set_title(name, loc="center")
    colours = matplotlib.colormaps[cmap]((np.arange(n) + 0.5) / n)
    figure.legend(
        handles=[Patch(color=c, label=t) for c, t in zip(colours, names, strict=True)],
        loc="outside right upper",
    )
    return figure


def accuracy_histograms(maps: Mapping[str, np.ndarray], label: str, unit: str) -> Figure:
    """Distribution of accuracy over points, where there is no geometry to draw on."""
    figure = new_figure(7.2, 2.8)
    axes = figure.subplots()
    known = {name: values[np.isfinite(values)] for name, values in maps.items()}
    both = np.concatenate(list(known.values()))
    edges = np.linspace(*np.percentile(both, [0.2, 99.8]), 51) if both.size else np.linspace(0, 1, 51)
    for name, values in known.items():
        counts, _ = np.histogram(values, bins=edges)
        axes.stairs(counts, edges, color=METHODS.get(name, (INK,))[0], linewidth=1.6, label=name)
    axes.set_xlabel(label)
    axes.set_ylabel(unit)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def against_ceiling(pairs: Mapping[str, tuple[np.ndarray, np.ndarray]], unit: str) -> Figure:
    """Variance explained by the mapped model against what noise allows, each point of each participant.

    Parameters
    ----------
    pairs : mapping of participant to (ceiling, r)
        Percent; Pearson correlation. Both (n_points,).
    unit : str
        What a point is called.
    """
    shown = dict(list(pairs.items())[:MOST_PANELS])
    columns = _columns(len(shown), 3)
    rows = -(-len(shown) // columns)
    figure = new_figure(2.4 * columns + 0.8, 2.5 * rows + 0.2)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    lowest = 0.0
    for axes, (name, (ceiling, r)) in zip(panels.ravel(), shown.items(), strict=False):
        there = np.isfinite(ceiling) & np.isfinite(r)
        x, y = ceiling[there], 100 * np.sign(r[there]) * r[there] ** 2
        lowest = min(lowest, float(np.percentile(y, 1))) if y.size else lowest
        if len(x) <= FEW:
            axes.scatter(x, y, s=7, color=METHODS["prior"][0], alpha=0.4, linewidths=0)
        else:
            axes.hexbin(
                x, y, gridsize=45, extent=(0, 100, -100, 100), bins="log", cmap="Blues", mincnt=1,
                linewidths=0, rasterized=True,
            )  # fmt: skip
        axes.plot([0, 100], [0, 100], color=SOFT, linewidth=0.8)
        axes.axhline(0, color=LINE, linewidth=0.6, zorder=0)
        axes.set_title(name)
        axes.set(xlim=(0, 100), ylim=(max(-60.0, lowest - 4), 102))
        axes.annotate(
            f"{there.sum():,} {unit}",
            (0.03, 0.97),
            xycoords="axes fraction",
            fontsize=7,
            color=SOFT,
            va="top",
        )
    for axes in panels.ravel()[len(shown) :]:
        axes.set_axis_off()
    for axes in panels[:, 0]:
        axes.set_ylabel("variance explained (%)\nsigned squared correlation")
    _label_lowest(panels, len(shown), "noise ceiling (%)")
    return figure


def regions_figure(metrics: pd.DataFrame, metric: str, label: str, method: str) -> Figure:
    """Accuracy by region with the largest context: a dot a participant, a bar their mean."""
    table = metrics[(metrics["metric"] == metric) & (metrics["region"] != "all") & (metrics["n_context"] > 0)]
    last = table.groupby("participant")["n_context"].transform("max")
    table = table[(table["n_context"] == last) & table["method"].isin([method, "ridge"])]
    regions = list(dict.fromkeys(table["region"]))
    figure = new_figure(7.0, 0.9 + 0.3 * len(regions))
    axes = figure.subplots()
    for offset, name in ((-0.14, method), (0.14, "ridge")):
        own = table[table["method"] == name]
        colour = METHODS[name][0]
        for row, region in enumerate(regions):
            values = own[own["region"] == region]["mean"].to_numpy(float)
            values = values[np.isfinite(values)]
            axes.plot(
                values, np.full(len(values), row + offset), "o", color=colour, markersize=3.2, alpha=0.6
            )
            if values.size:
                axes.plot([values.mean()] * 2, [row + offset - 0.12, row + offset + 0.12], color=colour, lw=2)
        axes.plot([], [], "o", color=colour, markersize=4, label=name)
        if method == "ridge":
            break
    axes.set_yticks(range(len(regions)), regions)
    axes.set_ylim(len(regions) - 0.5, -0.5)
    axes.set_xlabel(label)
    axes.grid(axis="x", color=LINE, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure
