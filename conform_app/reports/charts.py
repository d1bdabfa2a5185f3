# SPDX-License-Identifier: Apache-2.0
"""Figures that are not maps: trials, the design in time, cross-validation curves, PSN spectra."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from conform_app.reports.style import INK, LINE, SOFT, TYPE_COLOURS, WARM, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_BARS = 60
STANDARDISED = "standardised responses"


def trial_counts(labels: list[str], counts: np.ndarray) -> Figure:
    """Trials of each condition (up to 60 conditions) and how many conditions have how many trials.

    Parameters
    ----------
    labels : list of str
        Condition names.
    counts : (n_conditions,) int array
        Trials of each condition.
    """
    numbers, conditions = np.unique(counts, return_counts=True)
    if len(labels) > MOST_BARS:
        figure = new_figure(7.2, 2.6)
        _repeat_bars(figure.subplots(), numbers, conditions)
        return figure
    figure = new_figure(9.2, float(np.clip(1.1 + 0.21 * len(labels), 2.6, 9.0)))
    bars, repeats = figure.subplots(1, 2, width_ratios=[1.6, 1.0])
    rows = np.arange(len(labels))
    bars.barh(rows, counts, color=TYPE_COLOURS["C"], height=0.72)
    bars.set_yticks(rows, [_short(label) for label in labels])
    bars.invert_yaxis()
    bars.margins(y=0.02)
    bars.set_xlabel("trials")
    bars.set_title("Trials per condition")
    bars.xaxis.get_major_locator().set_params(integer=True)
    _repeat_bars(repeats, numbers, conditions)
    repeats.set_title("Conditions by number of trials")
    return figure


def _short(label: str, most: int = 32) -> str:
    # A dollar sign would open matplotlib's mathematics mode.
    label = label.replace("$", r"\$")
    return label if len(label) <= most else f"{label[: most // 2 - 1]}…{label[-(most // 2) :]}"


def _repeat_bars(axes: Axes, numbers: np.ndarray, conditions: np.ndarray) -> None:
    if numbers.size and numbers.max() - numbers.min() > 60:
        edges = np.linspace(numbers.min() - 0.5, numbers.max() + 0.5, 31)
        axes.stairs(np.histogram(numbers, bins=edges, weights=conditions)[0], edges, fill=True, color=SOFT)
    else:
        drawn = axes.bar(numbers, conditions, color=SOFT, width=0.8)
        if numbers.size <= 12:
            axes.bar_label(drawn, fontsize=8, padding=2)
        axes.set_xlim(
            min(0, numbers.min()) if numbers.size else 0, (numbers.max() if numbers.size else 1) + 1
        )
    axes.margins(y=0.15)
    axes.set_xlabel("trials of a condition")
    axes.set_ylabel("conditions")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.yaxis.get_major_locator().set_params(integer=True)


def design_times(
    onset: np.ndarray,
    duration: np.ndarray,
    run: np.ndarray,
    condition: np.ndarray,
    names: list[str],
    run_names: list[str],
    run_seconds: np.ndarray,
) -> Figure:
    """Every trial as a bar in its run, one row a run, coloured by condition when there are at most twelve.

    Parameters
    ----------
    onset, duration : (n_trials,) float arrays
        Seconds.
    run, condition : (n_trials,) int arrays
        Indices into `run_names` and `names`.
    names, run_names : list of str
    run_seconds : (n_runs,) float array
        Length of each run, seconds.
    """
    import matplotlib
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Patch, Rectangle

    n_runs = len(run_names)
    figure = new_figure(9.2, float(np.clip(1.3 + 0.2 * n_runs, 1.7, 8.0)))
    axes = figure.subplots()
    palette = matplotlib.colormaps["tab20" if len(names) > 10 else "tab10"]
    coloured = len(names) <= 12
    colours = [palette(i % palette.N) for i in range(len(names))] if coloured else [TYPE_COLOURS["C"]]
    least = 0.002 * float(run_seconds.max())  # a bar that can be seen
    boxes = [
        Rectangle((o, r - 0.36), max(d, least), 0.72) for o, d, r in zip(onset, duration, run, strict=True)
    ]
    face = [colours[c] if coloured else colours[0] for c in condition]
    axes.barh(np.arange(n_runs), run_seconds, height=0.86, color="#f1f4f7", edgecolor=LINE, linewidth=0.5)
    axes.add_collection(PatchCollection(boxes, facecolors=face, linewidths=0, rasterized=len(boxes) > 2000))
    step = max(1, n_runs // 30)
    axes.set_yticks(np.arange(0, n_runs, step), run_names[::step])
    axes.set_ylim(n_runs - 0.4, -0.6)
    axes.set_xlim(0, float(run_seconds.max()) * 1.005)
    axes.set_xlabel("time from the start of the run (s)")
    if coloured:
        axes.legend(
            handles=[Patch(color=c, label=_short(n, 24)) for c, n in zip(colours, names, strict=True)],
            loc="center left",
            bbox_to_anchor=(1.0, 0.5),
            handlelength=1.0,
        )
    return figure


def pc_curve(trend: np.ndarray, chosen: int) -> Figure:
    """Cross-validation of the number of noise components, relative to none.

    Parameters
    ----------
    trend : (n_pcs + 1,) float array
        Median cross-validated error with 0, 1, ... components, or minus that error.
    chosen : int
        Number taken.
    """
    figure = new_figure(5.6, 2.9)
    axes = figure.subplots()
    error = np.abs(trend)
    gain = 100 * (1 - error / error[0]) if error[0] > 0 else error[0] - error
    axes.axhline(0, color=LINE, linewidth=0.8)
    axes.plot(np.arange(gain.size), gain, color=TYPE_COLOURS["C"], marker="o", markersize=4)
    if 0 <= chosen < gain.size:
        axes.plot([chosen], [gain[chosen]], marker="o", markersize=9, color=WARM, zorder=3)
        axes.axvline(chosen, color=WARM, linewidth=1.0, linestyle=(0, (4, 2)), zorder=0)
        axes.annotate(
            f"chosen: {chosen}",
            (chosen, 0.03),
            xycoords=("data", "axes fraction"),
            xytext=(5, 0),
            textcoords="offset points",
            color=WARM,
            weight="bold",
            fontsize=8.5,
        )
    axes.margins(y=0.2)
    axes.set_xlabel("number of noise components")
    axes.set_ylabel("cross-validated error:\nreduction (%)")
    axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


def psn_figure(
    signal: np.ndarray,
    noise: np.ndarray,
    error: np.ndarray,
    cut: float | None,
    chosen: float | None = None,
    seen: str = STANDARDISED,
) -> Figure:
    """Signal and noise variance of each dimension, and the cross-validation error of keeping the first k.

    Parameters
    ----------
    signal, noise : (n_dimensions,) float arrays
        Variance of each dimension in the order in which they are kept; may be empty.
    error : (n_dimensions + 1,) float array
        Held-out squared error with 0, 1, ... dimensions; may be empty.
    cut : float or None
        Number of dimensions kept.
    chosen : float or None
        Held-out squared error of what was chosen instead of a cut.
    seen : str
        What PSN saw, whose variances these are.
    """
    panels = int(signal.size > 0) + int(error.size > 0)
    figure = new_figure(4.7 * panels, 3.0)
    axes = list(np.atleast_1d(figure.subplots(1, panels)))
    if signal.size:
        spectrum = axes.pop(0)
        number = np.arange(1, signal.size + 1)
        spectrum.plot(number, _positive(noise), color=SOFT, label="noise")
        spectrum.plot(number, _positive(signal), color=TYPE_COLOURS["D"], label="signal")
        spectrum.set_xscale("log")
        spectrum.set_yscale("log")
        if np.any(signal > 0):
            spectrum.set_ylim(bottom=max(float(signal.max()) * 1e-4, _lowest(signal, noise)))
        spectrum.set_xlabel("dimension")
        spectrum.set_ylabel(f"variance (of {seen})")
        spectrum.set_title("Signal and noise by dimension")
        _plain_log_ticks(spectrum)
        spectrum.margins(x=0.02)
        _mark_cut(spectrum, cut)
        spectrum.legend()
    if error.size:
        curve = axes.pop(0)
        curve.plot(np.arange(error.size), error, color=INK)
        if cut is not None and float(cut).is_integer() and 0 <= cut < error.size:
            curve.plot([cut], [error[int(cut)]], marker="o", markersize=8, color=WARM)
        curve.set_xlabel("dimensions kept")
        curve.set_ylabel("error on held-out trials")
        curve.set_title("Cross-validated choice")
        _mark_cut(curve, cut)
        if chosen is not None:
            curve.axhline(chosen, color=WARM, linestyle=":", linewidth=1.6, label="chosen instead of a cut")
            curve.legend()
    return figure


def _positive(values: np.ndarray) -> np.ndarray:
    return np.where(values > 0, values, np.nan)


def _lowest(*sets: np.ndarray) -> float:
    values = np.concatenate([s[np.isfinite(s) & (s > 0)] for s in sets])
    return float(values.min()) * 0.5 if values.size else 1e-12


def _plain_log_ticks(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for axis in (axes.xaxis, axes.yaxis):
        low, high = axis.get_view_interval()
        wide = high > 1000 * max(low, 1e-300)
        axis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0), numticks=12))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def _mark_cut(axes: Axes, cut: float | None) -> None:
    if cut is None:
        return
    axes.axvline(
        max(cut, 0.5) if axes.get_xscale() == "log" else cut, color=WARM, linewidth=1.0, linestyle=(0, (4, 2))
    )
    axes.annotate(
        f"kept: {cut:g}",
        (max(cut, 0.5), 0.98),
        xycoords=("data", "axes fraction"),
        xytext=(4, 0),
        textcoords="offset points",
        color=WARM,
        fontsize=8,
        va="top",
    )


def unit_cuts(cuts: np.ndarray, label: str, unit: str) -> Figure:
    """How many dimensions were kept, where every point has its own number."""
    figure = new_figure(5.2, 2.6)
    _cut_histogram(figure.subplots(), cuts, label, unit)
    return figure


def _cut_histogram(axes: Axes, cuts: np.ndarray, label: str, unit: str) -> None:
    high = max(float(np.max(cuts)), 1.0)
    edges = np.arange(-0.5, np.ceil(high) + 1.5) if high <= 60 else np.linspace(-0.5, high + 0.5, 41)
    axes.stairs(np.histogram(cuts, bins=edges)[0], edges, fill=True, color=TYPE_COLOURS["C"])
    axes.set_xlabel(label)
    axes.set_ylabel(unit)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.yaxis.get_major_locator().set_params(integer=True)


def block_figure(
    blocks: list[tuple[np.ndarray, np.ndarray]], kept: np.ndarray, seen: str = STANDARDISED
) -> Figure:
    """Spectra of many blocks of voxels in one panel, dimensions kept in each in another.

    Parameters
    ----------
    blocks : list of (signal, noise)
        Variances by dimension, one pair of arrays a block.
    kept : (n_blocks,) float array
        Dimensions kept; may be empty.
    seen : str
        What PSN saw, whose variances these are.
    """
    figure = new_figure(9.2, 3.1)
    spectrum, cuts = figure.subplots(1, 2, width_ratios=[1.2, 1.0])
    longest = max(signal.size for signal, _ in blocks)
    for part, colour, name in ((1, SOFT, "noise"), (0, TYPE_COLOURS["D"], "signal")):
        rows = np.full((len(blocks), longest), np.nan)
        for row, block in zip(rows, blocks, strict=True):
            row[: block[part].size] = _positive(block[part])
        number = np.arange(1, longest + 1)
        step = max(1, len(rows) // 100)
        spectrum.plot(number, rows[::step].T, color=colour, alpha=0.25, linewidth=0.5, rasterized=True)
        known = np.isfinite(rows).sum(axis=0) > len(rows) / 2
        middle = np.full(longest, np.nan)
        middle[known] = np.nanmedian(rows[:, known], axis=0)
        spectrum.plot(number, middle, color=colour, linewidth=2.0, label=name)
    spectrum.set_xscale("log")
    spectrum.set_yscale("log")
    most = max((float(s.max()) for s, _ in blocks if s.size and s.max() > 0), default=1.0)
    spectrum.set_ylim(bottom=most * 1e-4)
    spectrum.set_xlabel("dimension")
    spectrum.set_ylabel(f"variance (of {seen})")
    _plain_log_ticks(spectrum)
    spectrum.legend()
    if kept.size:
        _cut_histogram(cuts, kept, "dimensions kept", "blocks")
    else:
        cuts.set_axis_off()
    return figure
