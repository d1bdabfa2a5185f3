# SPDX-License-Identifier: Apache-2.0
"""The page of the group level: what is in the collection, what is not and why, and how clean it is."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from conform_app.errors import CannotCreateError
from conform_app.reports.braincorl import encoding_parts
from conform_app.reports.groupsections import MAKERS, Book, GroupData, merged_of
from conform_app.reports.rendering import render
from conform_app.reports.style import figure_style
from conform_app.reports.wording import count, shown_version

__all__ = ["GroupData", "build_group_report"]


def build_group_report(
    output_dir: Path,
    data: GroupData,
    *,
    errors: Sequence[Mapping[str, Any]] = (),
    run_info: Mapping[str, str] | None = None,
) -> Path:
    """Write ``group.html`` and its figures.

    Parameters
    ----------
    output_dir : Path
    data : GroupData
    errors : sequence of dict
        What went wrong: ``fit``, ``message``, ``remedy``.
    run_info : dict, optional
        Facts of the run for the end of the page.

    Returns
    -------
    Path
        Complete or untouched; the same data give byte-identical files.

    Raises
    ------
    CannotCreateError
        The page or a figure cannot be written.
    """
    try:
        with figure_style():
            book = Book(Path(output_dir))
            parts = [make(data, book) for make in MAKERS]
            parts[-1:-1] = encoding_parts(data, book)
            book.sweep()
        page = Path(output_dir) / "group.html"
        html = render(
            "group.html",
            parts=parts,
            lead=_lead(data),
            tiles=_tiles(data),
            account=list(data.summary.get("account", ())),
            warnings=list(data.summary.get("warnings", ())),
            problems=[{"where": error.get("fit"), "detail": "", **error} for error in errors],
            run_info=list((run_info or {}).items()),
            version=shown_version((run_info or {}).get("version", "")),
        )
        temporary = page.with_name(f".{page.name}.{os.getpid()}.tmp")
        temporary.write_text(html, encoding="utf-8")
        os.replace(temporary, page)
    except OSError as error:
        raise CannotCreateError(
            f"Cannot write the group report into {output_dir}: {error.strerror or error}",
            "Check the permissions and the free space of the output folder.",
        ) from error
    return page


def _lead(data: GroupData) -> str:
    merged = merged_of(data)
    if not len(merged):
        return "No betas were pooled; tables of trials, stimuli and methodology were merged."
    return (
        f"{count(len(merged), 'participant')} of {count(merged['dataset'].nunique(), 'dataset')} in one"
        f" collection, version {data.summary.get('version')}."
    )


def _tiles(data: GroupData) -> list[tuple[str, str]]:
    people, merged, stimuli = data.tables["participants"], merged_of(data), data.tables["stimuli"]
    trials = data.tables["trials"]
    tiles = [(f"{people['dataset'].nunique():,}", "datasets")]
    tiles += [(f"{len(merged):,} of {len(people):,}", "participants merged")]
    tiles += [(f"{len(trials):,}", "trials"), (f"{len(stimuli):,}", "stimuli")]
    for side in ("train", "test", "artificial"):
        n = int((stimuli["split"] == side).sum())
        if n or side != "artificial":
            tiles.append((f"{n:,}", f"{side} stimuli"))
    most = data.summary.get("audit", {}).get("max_similarity")
    if most is not None:
        tiles.append((f"{most:.3f}", "largest train–test similarity"))
    return tiles
