# SPDX-License-Identifier: Apache-2.0
"""Sections on what was taken out: noise components, ridge shrinkage, PSN."""

from __future__ import annotations

from typing import Any

import numpy as np

from conform_app.reports.charts import STANDARDISED, block_figure, pc_curve, psn_figure, unit_cuts
from conform_app.reports.facts import setting
from conform_app.reports.mapfigures import before_after, compare_maps, value_map
from conform_app.reports.maps import Brain
from conform_app.reports.painting import diverging
from conform_app.reports.parcels import together
from conform_app.reports.products import FigureBook, Products, Section
from conform_app.reports.sections import fraction_scale, how_drawn, noise_pool_figure
from conform_app.reports.wording import number, psn_kept, spread, why_no_reliability, why_not_cross_validated


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
            alt=f"Reduction of cross-validated error by noise components; {chosen} chosen",
            caption="Cross-validated error, how far a single-trial response is from those to the same"
            f" condition in other runs (median over task-driven {brain.unit}), and its reduction by removing"
            f" noise components. Chosen: {chosen}, the fewest that come within the stop rule's margin of the"
            " best.",
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
    fracs = products.choices.get("fracs") or []
    if len(fracs) == 1:
        section.notes.append(
            f"One fraction of the ordinary solution's length, {number(fracs[0])}, was used everywhere, "
            "without cross-validation."
        )
        return section
    if not products.has("fracridge"):
        section.notes.append("The map of ridge fractions was not written.")
        return section
    values = products.values("fracridge")
    inside = values[brain.mask & np.isfinite(values)]
    full = 100 * np.mean(inside >= 1.0) if inside.size else 0.0
    book.add(
        section,
        "fracridge",
        value_map(brain, values, fraction_scale(), "ridge fraction"),
        alt=f"Map of the ridge fraction: {spread(values, brain, '')}",
        caption="Length of each ridge solution over that of the ordinary one, chosen by cross-validation: 1"
        f" means no shrinkage ({full:.0f} % of {brain.unit}), small values mean noisy responses that are"
        f" shrunk hard. {spread(values, brain, '')}. {how_drawn(brain)}",
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
    kept, total = psn_kept(choice, curves)
    blocks = _blocks(products)
    if len(blocks) > 1:
        _many_blocks(products, book, section, blocks, kept)
        _gain(products, book, brain, section)
        _removed(products, book, brain, section)
        return section
    where = together([choice], [1], brain.unit)
    if where:
        section.notes.append(f"PSN was applied to {where}.")
    signal, noise = _numbers(curves.get("signal_var")), _numbers(curves.get("noise_var"))
    error, cuts = _numbers(curves.get("cv_error")), _numbers(curves.get("threshold"))
    total = total or (signal.size or None)
    if cuts.size > 1:  # every unit has its own cut
        cuts = cuts[np.isfinite(cuts)]
        book.add(
            section,
            "psncuts",
            unit_cuts(cuts, f"dimensions kept (of {number(total)})", brain.unit),
            alt=f"Histogram of the number of dimensions kept, median {number(np.median(cuts))}",
            caption=f"Dimensions kept, chosen for each of {cuts.size:,} {brain.unit} by itself: median"
            f" {number(np.median(cuts))} of {number(total)}.",
        )
    soft = choice.get("criterion") in ("wiener", "blend")  # no cut, though effective dimensions are known
    cut = None if cuts.size > 1 or soft else kept[0] if kept else float(cuts[0]) if cuts.size else None
    both = bool(signal.size and noise.size == signal.size)
    validated = error.size > 1 and bool(np.isfinite(error).any())
    if both or validated:
        nothing = np.zeros(0)
        book.add(
            section,
            "psncut",
            psn_figure(
                signal if both else nothing,
                noise,
                error if validated else nothing,
                cut,
                curves.get("chosen_error") if soft else None,
                _seen(products),
            ),
            alt="PSN: signal and noise variance by dimension, cross-validation curve"
            + (f"; kept {number(cut)}" if cut is not None else ""),
            caption=_psn_caption(both, validated, cut, total, choice, "chosen_error" in curves),
        )
    else:
        section.notes.append("The record holds no spectrum of signal and noise.")
    _gain(products, book, brain, section)
    _removed(products, book, brain, section)
    return section


def _psn_caption(
    spectrum: bool,
    validated: bool,
    cut: float | None,
    total: float | None,
    choice: dict[str, Any],
    preferred: bool,
) -> str:
    words = []
    if spectrum:
        words.append(
            "Variance of signal (blue) and of single-trial noise (grey) along each dimension of the"
            f" {choice.get('basis') or 'chosen'} basis; dimensions without signal fall below the axis."
        )
    if validated:
        words.append(
            "Cross-validation: mean squared error of predicting held-out trials from the denoised average of"
            " the others, against the number of dimensions kept."
        )
    if choice.get("criterion") in ("wiener", "blend"):
        line = " (dotted line)" if validated and preferred else ""
        words.append(f"Chosen instead of a cut{line}: {_SOFT[choice['criterion']]}.")
    if cut is not None:
        of = f" of {number(total)}" if total else ""
        how = "cross-validated choice" if validated else f"preset {choice.get('mode')}"
        words.append(f"Kept (dashed): {number(cut)}{of} dimensions, {how}.")
    return " ".join(words)


_SOFT = {
    "wiener": "the Wiener filter, which weighs all dimensions by their signal and noise",
    "blend": "a weighted mean of cuts and the Wiener filter, which predicts held-out trials better",
}


def _seen(products: Products) -> str:
    """What PSN was fed, as the axis of its variances names it."""
    percent = setting(products.record, "psn_scale") == "percent"
    return "responses in percent signal change" if percent else STANDARDISED


def _blocks(products: Products) -> list[tuple[np.ndarray, np.ndarray]]:
    """Signal and noise variance by dimension of each block of the table of dimensions."""
    rows = products.table("psn_dimensions")
    if not rows or "block" not in rows[0]:
        return []
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        pair = tuple(float(row.get(n) or "nan") if row.get(n) != "n/a" else np.nan for n in _VARIANCES)
        found.setdefault(row["block"], []).append(pair)
    return [tuple(np.array(pairs).T) for pairs in found.values()]


_VARIANCES = ("signal_variance", "noise_variance")


def _many_blocks(
    products: Products,
    book: FigureBook,
    section: Section,
    blocks: list[tuple[np.ndarray, np.ndarray]],
    kept: list[float],
) -> None:
    """Spectra of all blocks of voxels, and how many dimensions were kept in each."""
    mode = (products.choices.get("psn") or {}).get("mode")
    how = "by cross-validation" if mode in ("cv", "auto") else f"by the preset {mode}"
    where = together([products.choices["psn"]], [len(blocks)], "points")
    middle = (
        f"median {number(np.median(kept))} dimensions per block, chosen {how}" if kept else f"chosen {how}"
    )
    book.add(
        section,
        "psncut",
        block_figure(blocks, np.array(kept), _seen(products)),
        alt=f"Signal and noise variance by dimension in {len(blocks)} blocks, and dimensions kept: {middle}",
        caption=f"PSN was applied to {where}. Left: variance of signal (blue) and of single-trial noise"
        " (grey) along the dimensions of each block"
        f" (lines: blocks; bold: their median). Right: dimensions kept, {middle}.",
    )


def _gain(products: Products, book: FigureBook, brain: Brain, section: Section) -> None:
    """Reliability before and after PSN, on repeats that it has not seen."""
    glm_type = (products.choices.get("psn") or {}).get("glm_type") or "?"
    # records of earlier versions have the split-half map of the type instead, which is nearly the same
    known = ("psn_reliability_before", f"reliability_type{glm_type}")
    raw = next((key for key in known if products.has(key)), None)
    if raw is None or not products.has("psn_reliability"):
        section.notes.append("Reliability before and after PSN cannot be compared: a map is missing.")
        return
    before, after = products.values(raw), products.values("psn_reliability")
    both = brain.mask & np.isfinite(before)
    after = np.where(both, np.nan_to_num(after, nan=0.0), np.nan)  # what PSN left flat agrees with nothing
    if not both.any():
        section.notes.append("Reliability before and after PSN cannot be compared: no point has both.")
        return
    change = (
        f"Median {np.median(before[both]):.3f} before, {np.median(after[both]):.3f} after; higher in"
        f" {100 * np.mean(after[both] > before[both]):.0f} % of {int(both.sum()):,} {brain.unit}."
    )
    warning = (
        "Both: averages of one half of the repeats, raw or denoised, against the raw averages of the other"
        " half. The denoiser was fitted to the first half alone: no trial counts twice, and the noise left in"
        " the other half still lowers the value. What PSN leaves flat counts as 0."
    )
    book.add(
        section,
        "psnreliability",
        compare_maps(
            brain, {glm_type: before, "PSN": after}, diverging([before[both], after[both]]), "reliability r"
        ),
        alt=f"Maps of split-half reliability before and after PSN. {change}",
        caption=f"Split-half reliability before (type {glm_type}) and after PSN, on one scale. {change}"
        f" {warning} {how_drawn(brain)}",
    )
    book.add(
        section,
        "psngain",
        before_after(before[both], after[both], (f"type {glm_type}", "PSN"), "reliability r"),
        alt=f"Scatter plot of reliability after against before PSN. {change}",
        caption=f"The same, {brain.unit[:-1]} by {brain.unit[:-1]}: those above the line gained.",
    )


def _removed(products: Products, book: FigureBook, brain: Brain, section: Section) -> None:
    """Where PSN took noise out: the share of the averages' noise variance that is gone."""
    if not (products.has("psn_removednoise") and products.has("psn_noisevar")):
        return
    gone, left = products.values("psn_removednoise"), products.values("psn_noisevar")
    total = gone + left
    share = np.divide(gone, total, out=np.full(total.shape, np.nan), where=total > 0)
    inside = brain.mask & np.isfinite(share)
    if not inside.any():
        return
    text = f"median {100 * np.median(share[inside]):.0f} %"
    book.add(
        section,
        "psnremoved",
        value_map(brain, share, fraction_scale(), "share of noise variance removed"),
        alt=f"Map of the share of noise variance that PSN removed, {text}",
        caption="Share of the noise variance of the condition averages that PSN took out, as estimated by the"
        f" model of signal and noise: {text}. {how_drawn(brain)}",
    )


def _why_no_psn(products: Products) -> str:
    reason = why_no_reliability(products)
    if reason == "no map was written":
        return "PSN was switched off."
    return f"PSN was not run: {reason}, which it needs to tell signal from noise."


def _numbers(values: Any) -> np.ndarray:
    """1-D float array; None entries become NaN."""
    if values is None:
        return np.zeros(0)
    flat = values if isinstance(values, list | tuple) else [values]
    return np.array([np.nan if v is None or isinstance(v, list) else float(v) for v in flat])
