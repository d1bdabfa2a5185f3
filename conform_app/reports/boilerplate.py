# SPDX-License-Identifier: Apache-2.0
"""Methods text of a run: what was done to which data, with its numbers, and the references it cites.

The words are templates (``boilerplate/*.md.j2``, one for each stage); this module works out from the fit
records what they must say.  Fits are grouped by what was done to them, so that the text stays true when some
tasks or participants could be cross-validated and others could not.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from conform_app.errors import CannotCreateError, FileFaultError
from conform_app.images.files import out_of_space
from conform_app.reports.carried import surface_sentences
from conform_app.reports.citations import cited_keys, read_bibliography
from conform_app.reports.facts import (
    confounds_sentence,
    fallback_facts,
    fixed_facts,
    full_facts,
    preprocessing_sentence,
    psn_sentences,
    reliability_clause,
    setting,
    software_sentence,
    task_facts,
    template_spaces,
    unit_names,
)
from conform_app.reports.rendering import replace_text
from conform_app.reports.wording import joined, number, shown_version

STAGES = ("overview", "inputs", "glmsingle", "reliability", "psn", "software")


def template_dir() -> Path:
    """Folder of the templates: inside the installed package, or at the root of a checkout.

    Raises
    ------
    CannotCreateError
        The templates are in neither place.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "boilerplate", package.parent / "boilerplate"):
        if (folder / "overview.md.j2").is_file():
            return folder
    raise CannotCreateError("The templates of the methods text are missing.", "Install CONFORM again.")


def write_boilerplate(
    output_dir: Path,
    records: list[dict[str, Any]],
    *,
    version: str,
    inputs: list[dict[str, Any]] | None = None,
) -> tuple[Path, Path]:
    """Write ``logs/CITATION.md`` and ``logs/CITATION.bib``.

    Parameters
    ----------
    output_dir : Path
        Root of the derivatives.
    records : list of dict
        Fit records of all participants that the text is to cover.
    version : str
        Version of CONFORM.
    inputs : list of dict, optional
        ``dataset_description.json`` of each input dataset; by default what the output's own description says
        of the programs that made its inputs.

    Returns
    -------
    text, references : Path
        Markdown with pandoc citations, and the BibTeX entries that it cites. Each file appears complete or
        not at all; the same records give the same bytes.

    Raises
    ------
    CannotCreateError
        The files cannot be written.
    """
    output_dir = Path(output_dir)
    if inputs is None:
        inputs = _inputs_of(output_dir)
    text = methods_text(records, version=version, inputs=inputs)
    known = read_bibliography((template_dir() / "references.bib").read_text(encoding="utf-8"))
    entries = "\n".join(known[key].text for key in cited_keys(text))
    targets = output_dir / "logs" / "CITATION.md", output_dir / "logs" / "CITATION.bib"
    try:
        targets[0].parent.mkdir(parents=True, exist_ok=True)
        for target, content in zip(targets, (text, entries), strict=True):
            replace_text(target, content)
    except OSError as error:
        kind = FileFaultError if out_of_space(error) else CannotCreateError
        raise kind(
            f"Cannot write the methods text into {targets[0].parent}: {error.strerror or error}.",
            "Check the permissions and the free space of the output folder.",
        ) from error
    return targets


def methods_text(
    records: list[dict[str, Any]], *, version: str, inputs: list[dict[str, Any]] | None = None
) -> str:
    """Methods text of `records` as Markdown (see `write_boilerplate`)."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    if not records:
        return "# Methods\n\nNo fit is complete, so there is nothing to describe yet.\n"

    environment = Environment(  # noqa: S701 - Markdown, not HTML; the page escapes it
        loader=FileSystemLoader(template_dir()),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    facts = _facts(records, version, inputs or [])
    parts = [environment.get_template(f"{stage}.md.j2").render(**facts) for stage in STAGES]
    return _tidy("\n\n".join(parts))


def _facts(records: list[dict[str, Any]], version: str, inputs: list[dict[str, Any]]) -> dict[str, Any]:
    """Everything that the templates name."""
    one, many = unit_names(records)
    crossed = [r for r in records if _has_c_or_d(r) and not _is_fixed(r)]
    fixed = [r for r in records if _has_c_or_d(r) and _is_fixed(r)]
    plain = [r for r in records if not _has_c_or_d(r)]
    n_hrfs = max((int((r.get("choices") or {}).get("n_hrfs") or 1) for r in records), default=1)
    library = n_hrfs > 1 and all(setting(r, "hrf_model") != "canonical" for r in records)
    duration = setting(records[0], "stim_duration")
    how, kept, without, reason = psn_sentences(records, many, one)
    everything = len(records)
    return {
        "version": shown_version(version),
        "point": one,
        "points": many,
        "preprocessing": preprocessing_sentence(inputs),
        "tasks": task_facts(records),
        "surfaces": surface_sentences(records),
        "templates": len(template_spaces(records)),
        "duration": number(duration) if duration else "",
        "confounds": confounds_sentence(records),
        "library": library,
        "n_hrfs": n_hrfs,
        "full": full_facts(crossed, everything, one, many) if crossed else None,
        "fixed": fixed_facts(fixed, everything) if fixed else None,
        "fallback": fallback_facts(plain, everything) if plain else None,
        "reliability": reliability_clause(records, one),
        "psn_fits": bool(how),
        "psn_how": how,
        "psn_fed": _psn_fed(records),
        "psn_kept": kept,
        "psn_without": without,
        "psn_reason": reason,
        "software": software_sentence(records),
        "seed": _seed_sentence(records),
    }


def _psn_fed(records: list[dict[str, Any]]) -> str:
    """The responses that PSN saw."""
    chosen = [(record.get("choices") or {}).get("psn") or {} for record in records]
    types = sorted({str(choice["glm_type"]) for choice in chosen if choice.get("glm_type")})
    which = f" of type {joined(types, 'or')}" if types else ""
    percent = all(setting(record, "psn_scale") == "percent" for record in records)
    return f"{which}, {'in percent signal change' if percent else 'standardised within sessions'},"


def _has_c_or_d(record: dict[str, Any]) -> bool:
    return bool({"C", "D"} & set((record.get("fit") or {}).get("types") or []))


def _is_fixed(record: dict[str, Any]) -> bool:
    """Types C and D were made with values set in advance, because nothing could be cross-validated."""
    fracs = (record.get("choices") or {}).get("fracs") or []
    return setting(record, "no_repeats") == "fixed" and len(fracs) == 1


def _seed_sentence(records: Iterable[dict[str, Any]]) -> str:
    seeds = {setting(record, "random_seed") for record in records} - {None}
    return f"Random numbers were drawn with the seed {sorted(seeds)[0]}." if len(seeds) == 1 else ""


def _inputs_of(output_dir: Path) -> list[dict[str, Any]]:
    """What the output's own description says of its inputs' programs."""
    try:
        content = json.loads((output_dir / "dataset_description.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return []
    others = [g for g in content.get("GeneratedBy") or [] if str(g.get("Name", "")).lower() != "conform"]
    return [{"GeneratedBy": others}]


def _tidy(text: str) -> str:
    """One blank line between paragraphs, no trailing blanks, single spaces within a line."""
    lines = [" ".join(line.split()) for line in text.splitlines()]
    tidy: list[str] = []
    for line in lines:
        if line or (tidy and tidy[-1]):
            tidy.append(line)
    return "\n".join(tidy).strip() + "\n"
