# SPDX-License-Identifier: Apache-2.0
"""Pages of the docs that are made from the code: ``python -m conform_app.cli.document docs``."""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path

from conform_app.errors import all_errors
from conform_app.settings import GROUPS

HEAD = """\
# Settings

Made from `conform_app/settings` by `python -m conform_app.cli.document docs`; do not edit.

A setting comes from the command line, else from the TOML file of `--config-file` (each group below is a
section of it), else from its default. Settings marked ● change results: they make up the configuration hash
that every output carries, and two values of them do not go into one output folder.
"""


def settings_page() -> str:
    """Return the page as Markdown."""
    lines = [HEAD]
    for name, cls in GROUPS.items():
        lines += [
            f"## [{name}]: {cls.__doc__.rstrip('.').lower()}",
            "",
            "| option | default | meaning |",
            "|---|---|---|",
        ]
        for spec in fields(cls):
            meta = spec.metadata
            flags = ", ".join(f"`{flag}`" for flag in ("--" + spec.name.replace("_", "-"), *meta["flags"]))
            default = " ".join(map(str, spec.default)) if meta["many"] else spec.default
            shown = "" if default in (None, "", False) else f"`{default}`"
            text = meta["text"].replace("%%", "%").replace("|", "\\|")
            text = text.replace("[^", "\\[^")  # no footnote
            choices = f" Choices: {', '.join(meta['choices'])}." if meta["choices"] else ""
            mark = " ●" if meta["alters"] else ""
            lines.append(f"| {flags}{mark} | {shown} | {text[0].upper()}{text[1:]}.{choices} |")
        lines.append("")
    lines += [
        "## Exit codes",
        "",
        "| code | meaning |",
        "|---|---|",
        "| 0 | All requested fits and reports are done. |",
    ]
    lines += [f"| {cls.exit_code} | {cls.__doc__.splitlines()[0]} |" for cls in all_errors()]
    return "\n".join(lines) + "\n"


OUTPUTS_HEAD = """\
# Outputs

Made from `conform_app/data/names.json` by `python -m conform_app.cli.document docs`; do not edit.

The output folder is a BIDS-derivatives dataset. BIDS has no rule yet for most of these names, so `.bidsignore`
lists them and the validator passes; they follow what FitLins, nilearn and published single-trial releases write.
Names are those of a fit of `sub-01`, `ses-02`, `task-x` in a volume; without `ses` when the data have none or the
fit pools sessions. On surfaces there is one `.func.gii` (`.label.gii`) a hemisphere with `hemi-L` and `hemi-R`, on
grayordinates a `.dscalar.nii` (`.dlabel.nii`) with named maps. Each file has a JSON sidecar with its description,
units, sources, software versions and configuration hash.

Outside the analysed voxels maps hold 0 in volumes and NaN on surfaces and grayordinates.

| product | file | units | what it is |
|---|---|---|---|
"""

OUTPUTS_TAIL = """
Also written: `dataset_description.json`, `.bidsignore`, `descriptions.tsv` and `.json`, `README.md` at the top;
`sub-*.html` (the report) and `sub-*/figures/`; `logs/CITATION.md` and `.bib` (the methods text; `.html` and `.tex` where
pandoc is installed); `logs/configuration-<hash>.json` (the settings that change results); of volumes carried to the
cortex the matrices and middle surfaces ([surfaces](surface.md));
`sub-*/log/<run>/` (settings, status and crash files of each call); `sub-*/log/fits/<fit>.json`, the record of a
finished fit: its numbers, choices and curves, its inputs with their sizes, and the files it wrote. The record is
written last, so a fit that has one is complete.

Reading them: volume *i* of the betas is row *i* of `*_trials.tsv`, volume *i* of the averages is row *i* of
`*_conditions.tsv`. Betas of type D are shrunk by an amount that differs from voxel to voxel; z-score each voxel
within session before comparing voxels or sessions.
"""


GROUP_HEAD = """
## Group level

`conform BIDS_DIR OUTPUT_DIR group` writes `group.html` (the report), `group/figures`, and:

| what | file | what it is |
|---|---|---|
"""


ENCODE_HEAD = """
## Encoding models

`conform BIDS_DIR OUTPUT_DIR group --encode MODEL` writes `group/encoding`, a BIDS-derivatives dataset of its own in
which `sub-01` of the dataset NSD is `sub-NSD01`; `desc-` is the estimator (stacked, transformer, prior,
alignedridge, alignedprocrustes, alignedtransport, ridge, fivefoldridge, groupmean). Maps are in the form of the betas.
Accuracy maps and the tables of metrics, learning curves, images needed and shared images are there for the group too
(means over participants; everybody's rows). Weights are those of the mapped model, and of the aligned one.

| what | file | what it is |
|---|---|---|
"""


def outputs_page() -> str:
    """Return the page of outputs as Markdown."""
    from conform_app.bids.naming import build_name, product, product_keys

    entities = {"sub": "01", "ses": "02", "task": "x", "space": "T1w"}
    lines = []
    for key in product_keys():
        item = product(key)
        name = build_name(key, entities, "volume", run="1" if item.per_run else None).rpartition("/")[2]
        about = " ".join(filter(None, (item.description, item.long_description)))
        lines.append(f"| `{key}` | `{name}` | {item.units} | {about} |\n")
    group = [f"| `{key}` | `{name}` | {text} |\n" for key, name, text in _group_rows()]
    models = [f"| `{key}` | `{name}` | {text} |\n" for key, name, text in _encode_rows()]
    return (
        OUTPUTS_HEAD
        + "".join(lines)
        + OUTPUTS_TAIL
        + GROUP_HEAD
        + "".join(group)
        + ENCODE_HEAD
        + "".join(models)
    )


def _group_rows() -> list[tuple[str, str, str]]:
    from conform_app.bids.naming import group_name, group_products

    return [
        (key, group_name(key, "fsLR:den-91k"), row["description"]) for key, row in group_products().items()
    ]


def _encode_rows() -> list[tuple[str, str, str]]:
    from conform_app.bids.encoding import encode_names, encode_products

    rows = []
    for key, row in encode_products().items():
        free = row["form"] == "map" and not row.get("desc")
        names = encode_names(key, "sub-01_NSD", "fsLR_den-91k", "cifti", desc="stacked" if free else "")
        units = f" Units: {row['units']}." if row.get("units") else ""
        rows.append((key, names[0].rpartition("/")[2], row["description"] + units))
    return rows


PAGES = {"settings.md": settings_page, "outputs.md": outputs_page}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (Path(sys.argv[1]) / name).write_text(page(), encoding="utf-8")
