# SPDX-License-Identifier: Apache-2.0
"""Figures of the group report: trials by split, shared stimuli, ceilings, similarity, missing facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from conform_app.reports.maps import Brain
from conform_app.reports.painting import draw_brain, draw_scale, paint, picture_aspect, sequential
from conform_app.reports.style import INK, LINE, SOFT, WARM, new_figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

SIDES = {"train": "#2f7ebc", "test": "#c2410c", "artificial": "#8a5fa8", "excluded": "#cbd2d9"}
SHADES = (
    "#174a7c",
    "#c2410c",
    "#4d8b57",
    "#8a5fa8",
    "#b08900",
    "#2f7ebc",
    "#7b8794",
    "#9b2c5a",
    "#3a8f8f",
    "#555555",
)
MOST_BARS = 60


def colours(datasets: Sequence[str]) -> dict[str, str]:
    """A colour for each dataset, the same in every figure."""
    return {name: SHADES[i % len(SHADES)] for i, name in enumerate(dict.fromkeys(datasets))}


def trials_figure(trials: pd.DataFrame) -> Figure:
    """Trials of each participant (of each dataset, where there are many), by split."""
    by = "participant" if trials["participant"].nunique() <= MOST_BARS else "dataset"
    counts = trials.groupby([by, "split"], sort=False).size().unstack(fill_value=0)
    figure = new_figure(9.0, 0.9 + 0.24 * len(counts))
    axes = figure.subplots()
    left = np.zeros(len(counts))
    others = [name for name in counts.columns if name not in SIDES]
    for side, colour in {**SIDES, **dict.fromkeys(others, "#eef1f4")}.items():
        if side in counts and counts[side].any():
            values = counts[side].to_numpy()
            label = side if side in SIDES else "not in the collection"
            axes.barh(np.arange(len(counts)), values, left=left, color=colour, label=label, height=0.72)
            left += values
    axes.set_yticks(np.arange(len(counts)), counts.index)
    axes.invert_yaxis()
    axes.set_xlabel("trials")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def overlap_figure(shared: pd.DataFrame) -> Figure:
    """Stimuli that two datasets share; on the diagonal those a dataset shows."""
    n = len(shared)
    figure = new_figure(1.9 + 0.75 * n, 1.1 + 0.6 * n)
    axes = figure.subplots()
    values = shared.to_numpy(dtype=float)
    off = values.copy()
    np.fill_diagonal(off, 0)
    axes.imshow(off, cmap="Blues", vmin=0, vmax=max(off.max() * 2.5, 1), aspect="auto")
    for i in range(n):
        for j in range(n):
            weight = "bold" if i != j and values[i, j] else "normal"
            colour = INK if i != j else SOFT
            axes.text(j, i, f"{int(values[i, j]):,}", ha="center", va="center", color=colour, weight=weight)
    axes.set_xticks(range(n), shared.columns)
    axes.set_yticks(range(n), shared.index)
    axes.tick_params(length=0)
    return figure


def similarity_figure(stimuli: pd.DataFrame, threshold: float, palette: Mapping[str, str]) -> Figure | None:
    """How similar train stimuli are to their nearest test stimulus; None without features."""
    table = stimuli[stimuli["similarity"].notna()]
    if not len(table):
        return None
    figure = new_figure(8.2, 2.9)
    axes = figure.subplots()
    low = min(0.0, float(table["similarity"].min()))
    edges = np.linspace(low, 1.0, 51)
    stacks, names, shades = [], [], []
    for dataset, colour in palette.items():
        own = table[table["datasets"].str.split(", ").str[0] == dataset]
        kept = own[own["split"] == "train"]["similarity"]
        if len(kept):
            stacks.append(kept.to_numpy())
            names.append(f"train, {dataset}")
            shades.append(colour)
    dropped = table[table["split"] != "train"]["similarity"].to_numpy()
    if dropped.size:
        stacks.append(dropped)
        names.append("dropped from train")
        shades.append(LINE)
    axes.hist(stacks, bins=edges, stacked=True, color=shades, label=names)
    axes.axvline(threshold, color=WARM, linewidth=1.2, linestyle=(0, (4, 2)))
    axes.annotate(
        f"threshold {threshold:g}", (threshold, 1.0), xycoords=("data", "axes fraction"), color=WARM,
        xytext=(-3, -3), textcoords="offset points", ha="right", va="top", fontsize=8,
    )  # fmt: skip
    axes.set_xlabel("cosine similarity to the nearest test stimulus")
    axes.set_ylabel("stimuli")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def ceiling_maps(brain: Brain, maps: Mapping[str, np.ndarray]) -> Figure:
    """Mean noise ceiling of each dataset on one scale."""
    scale = sequential(np.concatenate([values[brain.mask] for values in maps.values()]), cmap="viridis")
    width = 9.2 / max(len(maps), 2)
    tall = float(np.clip(width / picture_aspect(brain, most=1, aspect=1.0), 1.2, 4.5))
    columns = min(len(maps), 4)
    rows = -(-len(maps) // columns)
    figure = new_figure(9.8, rows * (tall + 0.35))
    grid = figure.add_gridspec(rows, columns + 1, width_ratios=[1.0] * columns + [0.035])
    for position, (name, values) in enumerate(maps.items()):
        picture = figure.add_subplot(grid[position // columns, position % columns])
        draw_brain(picture, brain, paint(brain, values, scale), most=1, aspect=1.0)
        picture.set_title(name, loc="center")
    draw_scale(figure.add_subplot(grid[0, columns]), scale, "noise ceiling (%)")
    return figure


def ceiling_histograms(maps: Mapping[str, np.ndarray], palette: Mapping[str, str], unit: str) -> Figure:
    """Distribution of the mean noise ceiling of each dataset over points."""
    figure = new_figure(7.2, 2.8)
    axes = figure.subplots()
    for name, values in maps.items():
        known = values[np.isfinite(values)]
        counts, edges = np.histogram(known, bins=np.linspace(0, 100, 51))
        axes.stairs(counts, edges, color=palette.get(name, INK), linewidth=1.6, label=name)
    axes.set_xlabel("noise ceiling (%)")
    axes.set_ylabel(unit)
    axes.legend(loc="upper right")
    return figure


def strip_figure(values: Mapping[str, float], label: str, palette: Mapping[str, str]) -> Figure:
    """One number a participant, by dataset."""
    figure = new_figure(6.8, 0.8 + 0.42 * len(palette))
    axes = figure.subplots()
    for row, (dataset, colour) in enumerate(palette.items()):
        own = sorted(v for k, v in values.items() if k.rpartition("_")[2] == dataset and np.isfinite(v))
        if own:
            axes.plot(own, np.full(len(own), row), "o", color=colour, alpha=0.85, markersize=6)
            axes.plot([np.median(own)] * 2, [row - 0.28, row + 0.28], color=INK, linewidth=1.4)
        else:
            axes.annotate("none", (0.02, row), xycoords=("axes fraction", "data"), color=SOFT, va="center")
    axes.set_yticks(range(len(palette)), list(palette))
    axes.set_ylim(len(palette) - 0.5, -0.5)
    axes.set_xlabel(label)
    axes.grid(axis="x", color=LINE, linewidth=0.5)
    axes.set_axisbelow(True)
    return figure


def missing_figure(methodology: pd.DataFrame, fields: Sequence[str], required: set[str]) -> Figure:
    """Which facts are known of which session; at most `MOST_BARS` rows, then by dataset."""
    by = "row" if len(methodology) <= MOST_BARS else "dataset"
    table = methodology.assign(
        row=methodology["participant"] + " " + methodology["session"].replace("n/a", "")
    )
    known = (table[list(fields)] != "n/a").astype(float)
    known = known.groupby(table[by], sort=False).mean()
    figure = new_figure(max(6.0, 1.8 + 0.19 * len(fields)), 1.9 + 0.2 * len(known))
    axes = figure.subplots()
    axes.pcolormesh(
        1 - known.to_numpy(), cmap="Oranges", vmin=0, vmax=1.25, edgecolors="white", linewidth=1.0
    )
    axes.set_xticks(np.arange(len(fields)) + 0.5, fields, rotation=90, fontsize=7)
    for tick, name in zip(axes.get_xticklabels(), fields, strict=True):
        tick.set_fontweight("bold" if name in required else "normal")
    axes.set_yticks(np.arange(len(known)) + 0.5, [str(name).strip() for name in known.index], fontsize=7)
    axes.invert_yaxis()
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure


def variance_figure(table: pd.DataFrame) -> Figure | None:
    """Share of variance by fact, and what is left of it when degrees of freedom are counted."""
    outcomes = list(dict.fromkeys(table["outcome"]))
    if not outcomes:
        return None
    most = max((table["outcome"] == name).sum() for name in outcomes)
    figure = new_figure(9.6, 0.9 + 0.2 * most)
    every = np.atleast_1d(figure.subplots(1, len(outcomes), squeeze=False)[0])
    for axes, outcome in zip(every, outcomes, strict=True):
        own = table[table["outcome"] == outcome]
        rows = np.arange(len(own))
        axes.hlines(rows, 0, own["share"], color=LINE, linewidth=1.0)
        axes.plot(own["share"], rows, "o", color="#a3adb8", markersize=4.5, label="share (R²)")
        adjusted = own["adjusted"].to_numpy(dtype=float)
        axes.plot(np.clip(adjusted, 0, 1), rows, "o", color="#174a7c", markersize=4.5, label="adjusted")
        axes.set_yticks(rows, own["field"], fontsize=7)
        axes.invert_yaxis()
        axes.set_xlim(-0.03, 1.03)
        axes.set_title(outcome)
        axes.set_xlabel("share of the variance between participants")
    every[-1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure
