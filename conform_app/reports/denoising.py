# SPDX-License-Identifier: Apache-2.0
"""Sections on what was taken out: noise components, ridge shrinkage, PSN."""

from __future__ import annotations

import numpy as np

from conform_app.reports.charts import pc_curve, psn_figure, unit_cuts
from conform_app.reports.mapfigures import before_after, compare_maps, value_map
from conform_app.reports.maps import Brain
from conform_app.reports.painting import diverging
from conform_app.reports.products import FigureBook, Products, Section
from conform_app.reports.sections import fraction_scale, how_drawn, noise_pool_figure
from conform_app.reports.wording import number, spread, why_not_cross_validated


def noise_components(products: Products, book: FigureBook, brain: Brain) -> Section:
    """Noise pool and the number of components (GLMdenoise, type C)."""
    section = Section("noise", "Noise components")
    if not {"C", "D"} & set(products.fit.get("types") or []):
        section.notes.append(f"No noise components were removed: {why_not_cross_validated(products)}.")
    if products.has("noisepool"):
        noise_pool_figure(products, book, brain, section)
    trend = _numbers(products.curves.get("xval_trend"))
    chosen = products.choices.get("pcnum")
    if trend.size > 1 and chosen is not None and np.isfinite(trend).all():
        book.add(
            section,
            "pccv",
            pc_curve(trend, int(chosen)),
            alt=f"Cross-validation score against the number of noise components; {chosen} chosen",
            caption="How well single-trial responses predict those of other runs to the same condition,"
            " against the"
            f" number of noise components removed (median over task-driven {brain.unit}). Chosen:"
            f" {chosen}, the"
            " fewest that come within the stop rule's margin of the best.",
        )
    elif chosen is not None:
        section.notes.append(f"The number of components was set to {chosen} without cross-validation.")
    return section


def ridge(products: Products, book: FigureBook, brain: Brain) -> Section:
    """Ridge fraction (type D)."""
    section = Section("ridge", "Ridge regression")
    if "D" not in (products.fit.get("types") or []):
        section.notes.append(f"No ridge regression was done: {why_not_cross_validated(products)}.")
        return section
    if not products.has("fracridge"):
        fracs = products.choices.get("fracs") or []
        text = f"One fraction, {number(fracs[0])}, was used everywhere." if len(fracs) == 1 else ""
        section.notes.append(text or "The map of ridge fractions was not written.")
        return section
    values = products.values("fracridge")
    inside = values[brain.mask & np.isfinite(values)]
    full = 100 * np.mean(inside >= 1.0) if inside.size else 0.0
    book.add(
        section,
        "fracridge",
        value_map(brain, values, fraction_scale(), "ridge fraction"),
        alt=f"Map of the ridge fraction: {spread(values, brain, '')}",
        caption="Length of each ridge solution over that of the ordinary one, chosen by cross-validation:"
        " 1 means no"
        f" shrinkage ({full:.0f} % of {brain.unit}), small values mean noisy responses that are shrunk hard."
        f" {spread(values, brain, '')}. {how_drawn(brain)}",
    )
    return section


def psn(products: Products, book: FigureBook, brain: Brain) -> Section:
    """PSN: spectrum, cut, reliability before and after."""
    section = Section("psn", "PSN denoising")
    choice = products.choices.get("psn")
    if not choice or choice.get("mode") in (None, "off", "none"):
        section.notes.append(_why_no_psn(products))
        return section
    curves = products.curves.get("psn") or {}
    signal, noise = _numbers(curves.get("signal_var")), _numbers(curves.get("noise_var"))
    error = _numbers(curves.get("cv_error"))
    cut = curves.get("threshold", choice.get("threshold"))
    shape = np.size(cut) if cut is not None else 0
    n_dims = choice.get("n_dims") or (signal.size or None)
    if shape > 1:
        cuts = _numbers(cut)
        book.add(
            section,
            "psncuts",
            unit_cuts(cuts[np.isfinite(cuts)], int(n_dims or np.nanmax(cuts))),
            alt=f"Histogram of the number of dimensions kept, median {number(np.nanmedian(cuts))}",
            caption=f"Dimensions kept, chosen for every {brain.unit[:-1]} or parcel on its own:"
            f" median {number(np.nanmedian(cuts))} of {n_dims}.",
        )
        kept = None
    else:
        kept = float(np.ravel(cut)[0]) if shape else None
    if (signal.size and noise.size == signal.size) or error.size > 1:
        both = signal.size and noise.size == signal.size
        parts = _psn_caption(bool(both), error.size > 1, kept, n_dims, choice)
        book.add(
            section,
            "psncut",
            psn_figure(signal if both else signal[:0], noise, error if error.size > 1 else error[:0], kept),
            alt="PSN: signal and noise variance by dimension and cross-validation curve; kept"
            f" {number(kept)}",
            caption=parts,
        )
    else:
        section.notes.append("The record holds no spectrum of signal and noise.")
    _gain(products, book, brain, section)
    return section


def _psn_caption(
    spectrum: bool, validated: bool, kept: float | None, n_dims: int | None, choice: dict
) -> str:
    words = []
    if spectrum:
        words.append(
            f"Variance of signal (blue) and of single-trial noise (grey) along each dimension of the"
            f" {choice.get('basis') or 'chosen'} basis; dimensions without signal fall below the axis."
        )
    if validated:
        words.append("Squared error of predicting held-out trials from the denoised average of the others.")
    if kept is not None:
        words.append(
            f"Kept (dashed): {number(kept)}" + (f" of {n_dims} dimensions." if n_dims else " dimensions.")
        )
    return " ".join(words)


def _gain(products: Products, book: FigureBook, brain: Brain, section: Section) -> None:
    """Reliability before and after PSN."""
    before_type = next((t for t in "DCBA" if products.has(f"reliability_type{t}")), None)
    if before_type is None or not products.has("psn_reliability"):
        section.notes.append("Reliability before and after PSN cannot be compared: a map is missing.")
        return
    before, after = products.values(f"reliability_type{before_type}"), products.values("psn_reliability")
    both = brain.mask & np.isfinite(before) & np.isfinite(after)
    if not both.any():
        section.notes.append("Reliability before and after PSN cannot be compared: no point has both.")
        return
    change = (
        f"Median {np.median(before[both]):.3f} before, {np.median(after[both]):.3f} after;"
        f" higher in {100 * np.mean(after[both] > before[both]):.0f} % of {int(both.sum()):,} {brain.unit}."
    )
    warning = (
        "The denoiser was fitted to all trials, so this gain is optimistic: it shows that noise shared"
        " between"
        " points was removed, and is no held-out test."
    )
    maps = {before_type: before, "PSN": after}
    book.add(
        section,
        "psnreliability",
        compare_maps(brain, maps, diverging([before[both], after[both]]), "split-half r"),
        alt=f"Maps of split-half reliability before and after PSN. {change}",
        caption=f"Split-half reliability before (type {before_type}) and after PSN, on one scale. {change}"
        f" {warning}"
        f" {how_drawn(brain)}",
    )
    book.add(
        section,
        "psngain",
        before_after(before[both], after[both], (f"type {before_type}", "PSN"), "split-half r"),
        alt=f"Scatter plot of reliability after against before PSN. {change}",
        caption=f"The same, {brain.unit[:-1]} by {brain.unit[:-1]}: points above the line gained.",
    )


def _why_no_psn(products: Products) -> str:
    repeats = [int(k) for k in products.record.get("repeats") or {}]
    if repeats and max(repeats) < 2:
        return "PSN was not run: it needs repeated conditions, and no condition was shown more than once."
    return "PSN was not run."


def _numbers(values: object) -> np.ndarray:
    """1-D float array; None entries become NaN."""
    if values is None:
        return np.zeros(0)
    return np.array([np.nan if v is None else float(v) for v in np.ravel(np.array(values, dtype=object))])
