# SPDX-License-Identifier: Apache-2.0
"""The sections of one fit: which figures, with which words.

Each function takes the products and the figure book and returns a section.  What was not made is said in a
note with its reason; an empty figure is never drawn.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from conform_app.reports.charts import MOST_BARS, design_times, trial_counts
from conform_app.reports.mapfigures import compare_maps, hrf_figure, pool_map, value_map
from conform_app.reports.maps import Brain
from conform_app.reports.painting import Scale, diverging, sequential
from conform_app.reports.products import FigureBook, Products, Section
from conform_app.reports.wording import (
    count,
    number,
    range_of,
    spread,
    why_no_reliability,
    why_not_cross_validated,
)

ORIENTATION = "Radiological convention: the right side of the brain is on the left, as marked."


_COLOURS = (
    " In this and the following maps colours fade out towards the low end of the scale, with no threshold,"
    " and the scale ends at the 99th percentile."
)


def how_drawn(brain: Brain) -> str:
    """Sentence on what a picture of `brain` shows."""
    if brain.kind == "volume":
        mask = brain.mask.reshape(brain.shape)
        n_slices = int(mask.any(axis=(0, 1)).sum())
        what = "The one slice that was measured" if n_slices == 1 else "Slices through the analysis mask"
        over = ", laid over the mean image" if brain.underlay is not None else ""
        return f"{what}{over}. {ORIENTATION}"
    if brain.meshes:
        own = "participant" in brain.geometry
        return f"Shown on {brain.geometry}{'' if own else ', which is a template, not this brain'}."
    return "No surface to draw on was at hand, so the distribution in each hemisphere is shown."


def trials(products: Products, book: FigureBook) -> Section:
    """Trials a condition, repeats, and the design in time."""
    section = Section("trials", "Trials and repeats")
    rows = products.table("conditions")
    trial_rows = products.table("trials")
    if rows:
        labels = [row.get("stim_id", row.get("index", "")) for row in rows]
        counts = np.array([int(float(row.get("n_trials") or 0)) for row in rows])
    else:
        tally = Counter(row.get("stim_id", "") for row in trial_rows)
        labels, counts = list(tally), np.array(list(tally.values()), dtype=int)
    if not labels:
        repeats = {int(k): int(v) for k, v in (products.record.get("repeats") or {}).items()}
        counts = np.repeat(list(repeats.keys()), list(repeats.values())).astype(int)
        labels = [""] * counts.size
        if not counts.size:
            section.notes.append("No trial table was found.")
            return section
        section.notes.append(
            "The tables of trials and conditions were not found; the counts are the record's."
        )
    once = int((counts < 2).sum())
    summary = (
        f"{count(len(labels), 'condition')} with {range_of(counts)}"
        f" {'trial' if counts.max() == 1 else 'trials'} each"
    )
    tail = f"; {count(once, 'condition')} shown only once." if once else "."
    many = len(labels) > MOST_BARS or not any(labels)
    figure = trial_counts(labels if not many else [""] * (MOST_BARS + 1), counts)
    shown = (
        "How many conditions have how many trials"
        if many
        else "Trials of each condition, and how many conditions have how many trials"
    )
    book.add(
        section,
        "trialcounts",
        figure,
        alt=f"Bar chart of trial counts: {summary}",
        caption=f"{shown}. {summary}{tail}",
    )
    if trial_rows:
        _design(products, book, section, trial_rows)
    return section


def _design(products: Products, book: FigureBook, section: Section, rows: list[dict[str, str]]) -> None:
    runs = products.fit.get("runs") or []
    per_run = [int(run.get("n_trials") or 0) for run in runs]
    if sum(per_run) != len(rows):
        section.notes.append("The trial table does not match the run list, so the design is not drawn.")
        return
    names = sorted({row.get("stim_id", "") for row in rows})
    place = {name: position for position, name in enumerate(names)}
    figure = design_times(
        np.array([float(row["onset"]) for row in rows]),
        np.array([float(row["duration"]) for row in rows]),
        np.repeat(np.arange(len(runs)), per_run),
        np.array([place[row.get("stim_id", "")] for row in rows]),
        names,
        [run_name(run, position) for position, run in enumerate(runs)],
        np.array([float(run.get("duration_s") or 0) for run in runs]),
    )
    colour = "one colour a condition" if len(names) <= 12 else "too many conditions to colour them"
    book.add(
        section,
        "design",
        figure,
        alt=f"Time line of {len(rows)} trials in {len(runs)} runs",
        caption="When trials happened: one row a run, one bar from onset to offset of each trial"
        f" ({colour}).",
    )


def run_name(run: dict, position: int) -> str:
    """Short name of a run, such as ``ses-01 run-02``."""
    entities = (("ses", "session"), ("task", "task"), ("rec", "rec"), ("dir", "dir"))
    entities += (("run", "run"), ("echo", "echo"))
    parts = [f"{key}-{run[entity]}" for key, entity in entities if run.get(entity)]
    return " ".join(parts) or f"run {position + 1}"


def variance_explained(products: Products, book: FigureBook, brain: Brain) -> Section:
    """R² of the on/off model and of the last single-trial model."""
    section = Section("rsquared", "Variance explained")
    threshold = products.choices.get("r2_threshold")
    if products.has("rsquared_typeA"):
        values = products.values("rsquared_typeA")
        scale = sequential(values[brain.mask], cmap="inferno")
        marks = [(float(threshold), f"threshold {number(threshold)} %")] if threshold is not None else []
        tail = (
            f" Dashed: {number(threshold)} %, the threshold that separates {brain.unit} driven by the task"
            " from the candidates for the noise pool."
            if threshold is not None
            else ""
        )
        book.add(
            section,
            "rsquaredA",
            value_map(brain, values, scale, "on/off R² (%)", marks),
            alt=f"Map of on/off R squared: {spread(values, brain, '%')}",
            caption="<b>Type A.</b> Variance explained by one regressor for all trials with an assumed HRF:"
            f" where the task drives the signal at all. {spread(values, brain, '%')}.{tail}"
            f" {how_drawn(brain)}{_COLOURS if brain.drawable else ''}",
        )
    else:
        section.notes.append("The on/off R² map was not written.")
    best = next((t for t in "DCB" if products.has(f"rsquared_type{t}")), None)
    if best is None:
        section.notes.append("No R² map of a single-trial model was written.")
        return section
    values = products.values(f"rsquared_type{best}")
    low = float(np.percentile(values[brain.mask & np.isfinite(values)], 1)) if brain.mask.any() else 0.0
    scale = sequential(values[brain.mask], cmap="inferno", low=max(0.0, low))
    book.add(
        section,
        f"rsquared{best}",
        value_map(brain, values, scale, f"type {best} R² (%)"),
        alt=f"Map of type {best} R squared: {spread(values, brain, '%')}",
        caption=f"<b>Type {best}.</b> Variance explained by the single-trial model."
        f" {spread(values, brain, '%')}. {_R2_WORDS[best]}",
    )
    if best == "B" and not {"C", "D"} & set(products.fit.get("types") or []):
        section.notes.append(f"Types C and D were not estimated: {why_not_cross_validated(products)}.")
    return section


_R2_WORDS = {
    "B": "With one regressor per trial it also fits noise, so its values are higher than on/off R²"
    " everywhere: compare them within this map only.",
    "D": "Regularisation makes the fit weaker where responses are noisy, so this map also shows where they"
    " were kept.",
}
_R2_WORDS["C"] = _R2_WORDS["B"]


def hrf_choice(products: Products, book: FigureBook, brain: Brain) -> Section:
    """Which HRF each point got."""
    section = Section("hrf", "Haemodynamic response")
    if not products.has("hrfindex"):
        section.notes.append("The HRF index map was not written.")
        return section
    index = products.values("hrfindex")
    hrfs = np.asarray(products.curves.get("hrfs") or np.zeros((0, 0)), dtype=np.float64).T
    times = np.asarray(products.curves.get("hrf_times") or [], dtype=np.float64)
    chosen = index[brain.mask & (index > 0)]
    n_hrfs = (
        hrfs.shape[1]
        if hrfs.size
        else int(products.choices.get("n_hrfs") or (chosen.max() if chosen.size else 1))
    )
    at_ends = 100 * np.mean((chosen == 1) | (chosen == n_hrfs)) if chosen.size else 0.0
    common = int(np.bincount(chosen.astype(int)).argmax()) if chosen.size else 0
    curves = " The curves are the library, convolved with the stimulus duration." if hrfs.size else ""
    book.add(
        section,
        "hrfindex",
        hrf_figure(brain, index, times, hrfs),
        alt=f"Map and histogram of the HRF chosen in each of {chosen.size} {brain.unit}; most often HRF"
        f" {common}",
        caption=f"For each of {chosen.size:,} {brain.unit}, the HRF of the library ({n_hrfs}, from fast to"
        f" slow) with which the single-trial model explains most variance. Most frequent: {common};"
        f" {at_ends:.0f} % chose the fastest or the slowest one, where noise also ends up.{curves}"
        f" {how_drawn(brain)}",
    )
    return section


def noise_ceiling(products: Products, book: FigureBook, brain: Brain) -> Section:
    """Noise-ceiling signal-to-noise ratio, and the ceiling it implies."""
    section = Section("ceiling", "Signal-to-noise and noise ceiling")
    if products.has("ncsnr"):
        values = products.values("ncsnr")
        book.add(
            section,
            "ncsnr",
            value_map(brain, values, sequential(values[brain.mask], cmap="viridis"), "ncsnr"),
            alt=f"Map of the noise-ceiling signal-to-noise ratio: {spread(values, brain, '')}",
            caption="Noise-ceiling SNR: standard deviation of the signal between conditions over that of"
            f" the noise between trials of one condition. {spread(values, brain, '')}. 0 where repeats of a"
            f" condition agree no better than chance. {how_drawn(brain)}",
        )
    if products.has("noiseceiling"):
        values = products.values("noiseceiling")
        scale = sequential(values[brain.mask], cmap="viridis")
        book.add(
            section,
            "noiseceiling",
            value_map(brain, values, scale, "noise ceiling (%)"),
            alt=f"Map of the noise ceiling: {spread(values, brain, '%')}",
            caption="Noise ceiling: the most variance of the measured responses that any model of the"
            f" stimuli could explain{_averaged(products)}. {spread(values, brain, '%')}.",
        )
    if not section.figures:
        section.notes.append(f"There are no maps of ncsnr and noise ceiling: {why_no_reliability(products)}.")
    return section


def _averaged(products: Products) -> str:
    """For how many trials averaged the noise ceiling holds, as its sidecar says."""
    n_trials = products.sidecar("noiseceiling").get("NumberOfTrialsAveraged")
    if not isinstance(n_trials, int | float):
        return ""
    return ", for single trials" if n_trials == 1 else f", for averages of {number(n_trials)} trials"


def reliability(products: Products, book: FigureBook, brain: Brain) -> Section:
    """Split-half reliability of the types side by side."""
    section = Section("reliability", "Reliability of the single-trial responses")
    maps = {
        t: products.values(f"reliability_type{t}") for t in "ABCD" if products.has(f"reliability_type{t}")
    }
    if not maps:
        section.notes.append(f"Reliability was not computed: {why_no_reliability(products)}.")
        return section
    scale = diverging([values[brain.mask] for values in maps.values()])
    medians = ", ".join(f"{t} {np.nanmedian(v[brain.mask]):.3f}" for t, v in maps.items())
    book.add(
        section,
        "reliability",
        compare_maps(brain, maps, scale, "split-half r"),
        alt=f"Maps and distributions of split-half reliability for types {', '.join(maps)}; medians"
        f" {medians}",
        caption="Split-half reliability: correlation over conditions between the mean responses of odd and"
        f" even repeats, for {_types_in_words(list(maps))}. All maps share one scale. Medians: {medians}."
        f" Boxes span the quartiles, whiskers the 5th to 95th percentile. {how_drawn(brain)}",
    )
    absent = [t for t in "CD" if t not in maps]
    if absent and not set(absent) & set(products.fit.get("types") or []):
        verb = "were" if len(absent) > 1 else "was"
        names = " and ".join(absent)
        section.notes.append(
            f"Type{'s' if len(absent) > 1 else ''} {names} {verb} not estimated:"
            f" {why_not_cross_validated(products)}."
        )
    return section


_TYPE_WORDS = {
    "A": "A (assumed HRF)",
    "B": "B (HRF fitted)",
    "C": "C (and noise components removed)",
    "D": "D (and ridge regression)",
}


def _types_in_words(types: list[str]) -> str:
    words = [_TYPE_WORDS[t] for t in types]
    joined = words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]
    return f"type{'s' if len(words) > 1 else ''} {joined}"


def pool_share(brain: Brain, member: np.ndarray) -> str:
    """How much of the mask belongs to the pool, in words."""
    n_pool = int((member[brain.mask] > 0).sum())
    return (
        f"{n_pool:,} of {int(brain.mask.sum()):,} {brain.unit} ({100 * n_pool / max(1, brain.mask.sum()):.0f}"
        " %)"
    )


def fraction_scale() -> Scale:
    """Ridge fractions run from 0 (all shrunk) to 1 (none)."""
    return Scale("cividis", 0.0, 1.0, 0.0)


def noise_pool_figure(products: Products, book: FigureBook, brain: Brain, section: Section) -> None:
    """Add the map of the noise pool to `section`."""
    member = products.values("noisepool")
    threshold = products.choices.get("r2_threshold")
    below = f", those with an on/off R² below {number(threshold)} %" if threshold is not None else ""
    book.add(
        section,
        "noisepool",
        pool_map(brain, member),
        alt=f"Map of the noise pool, {pool_share(brain, member)}",
        caption=f"Noise pool (blue): {pool_share(brain, member)}{below} and bright enough to be tissue. The"
        f" noise components are the principal components of their time courses. {how_drawn(brain)}",
    )
