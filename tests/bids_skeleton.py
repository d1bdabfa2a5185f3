# SPDX-License-Identifier: Apache-2.0
"""Datasets of empty files, for tests of what is found; only texts have content."""

from __future__ import annotations

import json
from pathlib import Path

EVENTS = "onset\tduration\ttrial_type\n10\t1\tface\n20\t1\thouse\n30\t1\tface\n"
MNI = "space-MNI152NLin2009cAsym_res-2"


def put(path: Path, content: str | dict | None = None) -> Path:
    """Write a file, and its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content) if isinstance(content, dict) else (content or "")
    path.write_text(text, encoding="utf-8")
    return path


def describe(root: Path, kind: str, **more) -> None:
    """Write the description of a raw or derivative dataset."""
    made = {"GeneratedBy": [{"Name": "fMRIPrep"}]} if kind == "derivative" else {}
    put(
        root / "dataset_description.json",
        {"Name": "x", "BIDSVersion": "1.9.0", "DatasetType": kind, **made, **more},
    )


class Skeleton:
    """A raw dataset at `root` and a derivative at `root`/derivatives/fmriprep (or `prep`)."""

    def __init__(self, root: Path, prep: Path | None = None) -> None:
        self.raw = root
        self.prep = prep or root / "derivatives" / "fmriprep"
        describe(self.raw, "raw")
        describe(self.prep, "derivative")
        put(self.raw / "task-x_bold.json", {"RepetitionTime": 2.0, "SliceTiming": [0, 1]})

    @staticmethod
    def stem(sub="01", ses=None, task="x", run=None, more="") -> str:
        parts = [f"sub-{sub}", f"ses-{ses}" * bool(ses), f"task-{task}", more, f"run-{run}" * bool(run)]
        return "_".join(part for part in parts if part)

    @staticmethod
    def folder(root: Path, sub="01", ses=None) -> Path:
        return root / f"sub-{sub}" / (f"ses-{ses}" if ses else "") / "func"

    def add_raw(self, *, events=EVENTS, sub="01", ses=None, **names) -> str:
        stem = self.stem(sub, ses, **names)
        put(self.folder(self.raw, sub, ses) / f"{stem}_bold.nii.gz")
        if events is not None:
            put(self.folder(self.raw, sub, ses) / f"{stem}_events.tsv", events)
        return stem

    def add_prep(self, *versions, sub="01", ses=None, sidecar=None, confounds=True, **names) -> None:
        """Volumes of these spaces (``space-y_res-2``; "" for none), or whole endings when they have a dot."""
        stem, folder = self.stem(sub, ses, **names), self.folder(self.prep, sub, ses)
        if confounds:
            put(folder / f"{stem}_desc-confounds_timeseries.tsv", "csf\n1\n2\n3\n")
        for version in versions:
            if "." in version:
                put(folder / f"{stem}_{version}")
                continue
            name = "_".join(part for part in (stem, version) if part)
            put(folder / f"{name}_desc-preproc_bold.nii.gz")
            put(folder / f"{name}_desc-brain_mask.nii.gz")
            if sidecar is not None:
                put(folder / f"{name}_desc-preproc_bold.json", sidecar)

    def add(self, *versions, events=EVENTS, sidecar=None, confounds=True, **names) -> Skeleton:
        """A run, raw and preprocessed."""
        self.add_raw(events=events, **names)
        self.add_prep(*versions or (MNI,), sidecar=sidecar, confounds=confounds, **names)
        return self


GIFTI = ("hemi-L_space-{}_bold.func.gii", "hemi-R_space-{}_bold.func.gii")
CIFTI = "space-fsLR_den-91k_bold.dtseries.nii"


def gifti(space: str) -> tuple[str, str]:
    """Endings of a pair of surface files."""
    return tuple(name.format(space) for name in GIFTI)
