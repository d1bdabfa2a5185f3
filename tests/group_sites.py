# SPDX-License-Identifier: Apache-2.0
"""The three simulated studies for tests of the group level, small, and what tests do with them."""

import json
import shutil
import sys
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from simulated_sites import make_sites, run_participants

from conform_app.cli import main

NAMES = ("Alpha", "Beta", "Gamma")


def prepare(root: Path) -> Path:
    """Make the studies and run their participants: all in fsLR, Gamma in fsaverage too."""
    folders = make_sites(root, n_vertices=60, n_images=6)
    run_participants(root, {n: folders[n] for n in NAMES[:2]}, "--nprocs", "2", spaces=("fsLR:den-91k",))
    run_participants(root, {"Gamma": folders["Gamma"]}, "--nprocs", "2")
    shutil.rmtree(root / "work")
    return root


def copy_of(root: Path, target: Path, *names: str) -> Path:
    """Copy results, to break them."""
    for name in names or NAMES:
        shutil.copytree(root / "results" / name, target / "results" / name)
    return target


def group(root: Path, results: Path, out: Path, *more, names=NAMES, features=True, stimuli=True) -> int:
    """Run the group level over results of these studies; the raw data have moved away."""
    argv = [root / "moved-away", out, "group", "-w", out.parent / f"work-{out.name}", "--nprocs", "1"]
    argv += ["-d", *(f"conform_{name}={results / 'results' / name}" for name in names)]
    if stimuli:
        argv += ["--stimuli", *(f"{name}={root / 'bids' / name / 'stimuli'}" for name in names)]
    if features:
        argv += ["--features", root / "features.npz"]
    return main([*map(str, argv), *map(str, more)])


def table(out: Path, name: str) -> pd.DataFrame:
    """One of the group's tables, as text."""
    return pd.read_csv(out / "group" / f"desc-mosaic_{name}.tsv", sep="\t", dtype=str, keep_default_na=False)


def state(out: Path) -> dict[str, tuple[str, str, str]]:
    """Status, merged and reason of each participant."""
    rows = table(out, "participants")
    return {r.participant: (r.status, r.merged, r.reason) for r in rows.itertuples()}


def store(out: Path) -> Path:
    """Folder of the collection."""
    return out / "group" / "space-fsLR_den-91k_desc-mosaic_betas.zarr"


def edit_record(results: Path, site: str, subject: str, change) -> None:
    """Rewrite the records of a participant."""
    for path in (results / "results" / site / f"sub-{subject}" / "log" / "fits").glob("*.json"):
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))


def files_of(folder):
    """Every file below a folder, with its time and content."""
    return {
        p.relative_to(folder): (p.stat().st_mtime_ns, p.read_bytes())
        for p in folder.rglob("*")
        if p.is_file()
    }
