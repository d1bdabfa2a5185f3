# SPDX-License-Identifier: Apache-2.0
"""The page of one subject: fit records -> figures and words -> ``sub-<label>.html``."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conform_app.errors import CannotCreateError, FileFaultError
from conform_app.images.files import out_of_space
from conform_app.reports import denoising, sections
from conform_app.reports.citations import markdown_to_html, read_bibliography
from conform_app.reports.cortex import cortex
from conform_app.reports.facts import unit_names
from conform_app.reports.products import FigureBook, Products, Section
from conform_app.reports.rendering import render, replace_text
from conform_app.reports.style import figure_style
from conform_app.reports.wording import clock, count, joined, number, psn_kept, range_of, shown_version


@dataclass(frozen=True)
class FitView:
    """What the template shows of one fit."""

    anchor: str
    name: str
    title: str
    summary: str
    tiles: list[tuple[str, str]]
    account: list[str]
    warnings: list[str]
    runs: list[tuple[str, str, str, str, str]]
    totals: tuple[str, str, str]
    sections: list[Section]
    settings: str
    digest: str
    software: list[tuple[str, str]]
    seconds: list[tuple[str, str]]


def build_report(
    output_dir: Path,
    subject: str,
    *,
    records: list[dict[str, Any]],
    errors: list[dict[str, Any]] | None = None,
    run_info: dict[str, Any] | None = None,
) -> Path:
    """Write the report of one subject.

    Parameters
    ----------
    output_dir : Path
        Root of the derivatives.
    subject : str
        Label, with or without ``sub-``.
    records : list of dict
        Fit records of this subject, in the order of the page. Only they and the maps and tables named in
        their ``products`` are read, never the input data.
    errors : list of dict, optional
        What went wrong: ``fit`` (or ``where``), ``message``, ``remedy`` and ``traceback`` are shown if given.
    run_info : dict, optional
        Facts of the run for the end of the page, such as ``version`` and ``command``; shown as they are.

    Returns
    -------
    Path
        ``<output_dir>/sub-<subject>.html``, complete or untouched. Figures go to ``sub-<subject>/figures/``.
        The same records and maps give byte-identical files.

    Raises
    ------
    CannotCreateError, FileFaultError
        The page or a figure cannot be written.
    """
    output_dir, subject = Path(output_dir), subject.removeprefix("sub-")
    problems = [_problem(error) for error in errors or []]
    views = []
    try:
        with figure_style():
            for position, record in enumerate(records):
                views.append(_view(output_dir, subject, position, record, problems))
        html = render(
            "participant.html",
            subject=subject,
            fits=views,
            problems=problems,
            run_info=_rows(run_info or {}),
            methods=_methods(output_dir),
            version=shown_version(_version(records, run_info)),
        )
        page = output_dir / f"sub-{subject}.html"
        replace_text(page, html)
    except OSError as error:
        kind = FileFaultError if out_of_space(error) else CannotCreateError
        raise kind(
            f"Cannot write the report of sub-{subject} into {output_dir}: {error.strerror or error}.",
            "Check the permissions and the free space of the output folder.",
        ) from error
    return page


def _view(
    output_dir: Path, subject: str, position: int, record: dict[str, Any], problems: list[dict[str, str]]
) -> FitView:
    products = Products(output_dir, record)
    name = products.fit.get("name") or f"sub-{subject}_fit-{position + 1}"
    book = FigureBook(output_dir, subject, name)
    warnings = [str(w) for w in record.get("warnings") or []]
    gone = products.gone()
    if gone:
        warnings.append(
            f"{count(len(gone), 'file')} of this fit no longer exist{'s' * (len(gone) == 1)}:"
            f" {joined(gone[:3])}{' and others' if len(gone) > 3 else ''}. The figures made from them are"
            " left out."
        )
    shown = _sections(products, book, name, problems)
    book.sweep()
    runs = products.fit.get("runs") or []
    return FitView(
        anchor=f"fit-{position + 1}",
        name=name,
        title=_title(products.fit),
        summary=_summary(products),
        tiles=_tiles(products),
        account=_account(record),
        warnings=warnings,
        runs=[
            (
                str(run.get("session") or "–"),
                " ".join(str(run[n]) for n in ("task", "rec", "dir", "run", "echo") if run.get(n)) or "–",
                f"{int(run.get('n_volumes') or 0):,}",
                clock(run.get("duration_s")),
                f"{int(run.get('n_trials') or 0):,}",
            )
            for run in runs
        ],
        totals=(
            f"{sum(int(r.get('n_volumes') or 0) for r in runs):,}",
            clock(sum(float(r.get("duration_s") or 0) for r in runs)),
            f"{sum(int(r.get('n_trials') or 0) for r in runs):,}",
        ),
        sections=shown,
        settings=json.dumps(record.get("settings") or {}, indent=2, sort_keys=True, ensure_ascii=False),
        digest=str(record.get("digest") or ""),
        software=_rows(record.get("software") or {}),
        seconds=[(k, clock(v)) for k, v in sorted((record.get("seconds") or {}).items()) if v is not None],
    )


def _sections(
    products: Products, book: FigureBook, name: str, problems: list[dict[str, str]]
) -> list[Section]:
    """All sections; a map that cannot be read costs its own section only, and is reported."""
    shown = [sections.trials(products, book)]
    try:
        brain = products.brain()
    except FileFaultError as error:
        problems.append(_problem({"fit": name, "message": error.message, "remedy": error.remedy}))
        brain = None
    if brain is None or not brain.mask.any():
        note = "No map of this fit could be read, so there is nothing to draw."
        return [*shown, Section("maps", "Maps", notes=[note])]
    carried = (cortex,) if products.record.get("surface") else ()
    makers = (
        *carried,
        sections.variance_explained,
        sections.hrf_choice,
        denoising.noise_components,
        denoising.ridge,
        sections.reliability,
        sections.noise_ceiling,
        denoising.psn,
    )
    for make in makers:
        try:
            shown.append(make(products, book, brain))
        except FileFaultError as error:
            problems.append(_problem({"fit": name, "message": error.message, "remedy": error.remedy}))
            title = (make.__doc__ or "").strip().splitlines()[0].rstrip(".")
            shown.append(Section(make.__name__, title, notes=[f"Not shown: {error.message}"]))
    return shown


def _title(fit: dict[str, Any]) -> str:
    parts = [f"task {fit['task']}"] if fit.get("task") else []
    sessions = fit.get("sessions") or []
    if sessions:
        parts.append(f"session{'s' if len(sessions) > 1 else ''} {joined([str(s) for s in sessions])}")
    if fit.get("space"):
        parts.append(f"space {fit['space']}")
    parts += [f"{key}-{fit[key]}" for key in ("res", "den") if fit.get(key)]
    return ", ".join(parts) or str(fit.get("name", "fit"))


def _unit(fit: dict[str, Any]) -> str:
    return unit_names([{"fit": fit}])[1]


def _account(record: dict[str, Any]) -> list[str]:
    """What was done.  Methods call every point a voxel; here it has its name, unless volumes were fitted."""
    told = [str(sentence) for sentence in record.get("account") or []]
    if (record.get("surface") or {}).get("of") == "betas":
        return told
    one, many = unit_names([{"fit": record.get("fit") or {}}])
    return [re.sub(r"\bvoxel(s?)\b", lambda found: many if found[1] else one, s) for s in told]


def _summary(products: Products) -> str:
    fit = products.fit
    repeats = sorted(int(k) for k in products.record.get("repeats") or {})
    often = ""
    if repeats:
        often = (
            "once"
            if repeats[-1] == 1
            else f"{repeats[0]} times"
            if len(repeats) == 1
            else f"{repeats[0]} to {repeats[-1]} times"
        )
        often = f", each shown {often}"
    n_runs = len(fit.get("runs") or [])
    types = [str(t) for t in fit.get("types") or []]
    chosen = f" Response types estimated: {joined(types)}." if types else ""
    return (
        f"{int(fit.get('n_voxels') or 0):,} {_unit(fit)}, {count(n_runs, 'run')},"
        f" {count(int(fit.get('n_trials') or 0), 'trial')} of"
        f" {count(int(fit.get('n_conditions') or 0), 'condition')}{often}; repetition time"
        f" {number(fit.get('tr'))} s.{chosen}"
    )


def _tiles(products: Products) -> list[tuple[str, str]]:
    fit, choices = products.fit, products.choices
    tiles = [
        (f"{int(fit.get('n_voxels') or 0):,}", _unit(fit)),
        (f"{len(fit.get('runs') or []):,}", "runs"),
        (f"{int(fit.get('n_trials') or 0):,}", "trials"),
        (f"{int(fit.get('n_conditions') or 0):,}", "conditions"),
    ]
    repeats = sorted(int(k) for k in products.record.get("repeats") or {})
    if repeats:
        span = str(repeats[0]) if len(repeats) == 1 else f"{repeats[0]}–{repeats[-1]}"
        tiles.append((span, "trials per condition"))
    tiles.append((f"{number(fit.get('tr'))} s", "repetition time"))
    if choices.get("pcnum") is not None:
        tiles.append((str(choices["pcnum"]), "noise components"))
    kept, total = psn_kept(choices.get("psn") or {}, products.curves.get("psn"))
    if kept:
        label = "PSN dimensions" + (
            f" of {number(total)}" if total else " per block" if len(kept) > 1 else ""
        )
        tiles.append((range_of(kept).replace(" to ", "–"), label))
    return tiles


def _problem(error: dict[str, Any]) -> dict[str, str]:
    where = error.get("fit") or error.get("where") or error.get("node") or ""
    message = error.get("message") or error.get("error") or "unknown error"
    return {
        "where": str(where),
        "message": str(message),
        "remedy": str(error.get("remedy") or ""),
        "detail": str(error.get("traceback") or error.get("detail") or ""),
    }


def _rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for key, value in facts.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
        rows.append((str(key).replace("_", " "), text))
    return rows


def _version(records: list[dict[str, Any]], run_info: dict[str, Any] | None) -> str:
    if run_info and run_info.get("version"):
        return str(run_info["version"])
    for record in records:
        software = {k.lower(): v for k, v in (record.get("software") or {}).items()}
        if software.get("conform"):
            return str(software["conform"])
    return ""


def _methods(output_dir: Path) -> str:
    """Methods text of the run, from ``logs/CITATION.md``; empty when it was not written."""
    text, references = output_dir / "logs" / "CITATION.md", output_dir / "logs" / "CITATION.bib"
    if not text.is_file():
        return ""
    known = read_bibliography(references.read_text(encoding="utf-8")) if references.is_file() else {}
    return markdown_to_html(text.read_text(encoding="utf-8"), known)
