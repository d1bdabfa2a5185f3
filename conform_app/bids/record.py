# SPDX-License-Identifier: Apache-2.0
"""The record of a finished fit: written last, so that a record means that every file it lists is complete.

It holds the plan's numbers, the choices made, the curves that the report draws and the files written, and the
size and time of each input.  A fit whose record agrees with the settings and the inputs is not computed
again, whatever became of the work folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from conform_app.bids.naming import sidecar_name
from conform_app.bids.plan import FitPlan

SCHEMA = 1


def record_path(output_dir: Path, plan: FitPlan) -> Path:
    """Return where the record of a fit is kept."""
    return output_dir / f"sub-{plan.subject}" / "log" / "fits" / f"{plan.name}.json"


def fingerprint(plan: FitPlan, roots: Mapping[str, str]) -> dict[str, list[int]]:
    """Return size and time of each input file, by its path below the dataset it belongs to.

    Parameters
    ----------
    plan : FitPlan
    roots : mapping of name to folder
        The input datasets; paths are kept relative to them, so that a container's mount points do not count.
    """
    out = {}
    for path in (*plan.input_files(), *plan.atlas):
        stat = os.stat(path)
        out[short_path(path, roots)] = [stat.st_size, int(stat.st_mtime)]
    return out


def short_path(path: str, roots: Mapping[str, str]) -> str:
    """Return ``name:relative/path`` for a file of a known dataset (of the innermost, if they are nested)."""
    inside = [(name, root) for name, root in roots.items() if Path(path).is_relative_to(root)]
    if not inside:
        return str(path)
    name, root = max(inside, key=lambda pair: len(str(pair[1])))
    return f"{name}:{Path(path).relative_to(root).as_posix()}"


def recorded_subjects(output_dir: Path) -> list[str]:
    """Return the labels of participants with finished fits, sorted."""
    return sorted({path.parents[2].name[4:] for path in output_dir.glob("sub-*/log/fits/*.json")})


def read_records(output_dir: Path, subject: str) -> list[dict[str, Any]]:
    """Return the records of a participant's finished fits, by name; other files are passed over."""
    records = []
    for path in sorted((output_dir / f"sub-{subject}" / "log" / "fits").glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            continue
        if content.get("schema") == SCHEMA:
            records.append(content)
    return records


def withdraw(output_dir: Path, plan: FitPlan, *, digest: str, roots: Mapping[str, str]) -> None:
    """Remove the record of a fit whose files are about to be written anew.

    What it lists goes with it where it is of other settings or inputs: files that the new fit does not make
    (the maps of a method that is off now, a run that was left out) would pass for its own.

    Parameters
    ----------
    output_dir : Path
    plan : FitPlan
    digest, roots
        See :func:`is_complete`.
    """
    path = record_path(output_dir, plan)
    records = read_records(output_dir, plan.subject)
    former = next((record for record in records if record["fit"]["name"] == plan.name), None)
    path.unlink(missing_ok=True)
    if former is None or _is_of(former, plan, digest, roots):
        return
    kept = {
        f
        for record in records
        if record is not former
        for files in record["products"].values()
        for f in files
    }
    for file in {f for files in former["products"].values() for f in files} - kept:
        for name in (file, sidecar_name(file)):
            (output_dir / name).unlink(missing_ok=True)


def _is_of(record: Mapping[str, Any], plan: FitPlan, digest: str, roots: Mapping[str, str]) -> bool:
    """Whether a record is of these settings, inputs and trials."""
    return (
        record.get("digest") == digest
        and record.get("inputs") == fingerprint(plan, roots)
        and record.get("plan") == {"trials": plan.trials}
    )


def is_complete(
    output_dir: Path, plan: FitPlan, *, digest: str, wanted: Sequence[str], roots: Mapping[str, str]
) -> bool:
    """Whether a fit was finished with these settings, from these inputs, and all its files are still there.

    Parameters
    ----------
    output_dir : Path
    plan : FitPlan
    digest : str
        Configuration hash.
    wanted : sequence of str
        Product keys that this run asks for where the fit can give them.
    roots : mapping of name to folder
        See :func:`fingerprint`.
    """
    path = record_path(output_dir, plan)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return False
    products = record.get("products", {})
    return (
        record.get("schema") == SCHEMA
        and _is_of(record, plan, digest, roots)
        and set(wanted) <= set(products) | set(record.get("impossible", ()))
        and all((output_dir / file).is_file() for files in products.values() for file in files)
    )
