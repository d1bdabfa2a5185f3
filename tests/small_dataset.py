# SPDX-License-Identifier: Apache-2.0
"""A small BIDS dataset with preprocessed BOLD, made in a moment: tests break it in one place at a time."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np

SHAPE = (6, 5, 4)
TR = 2.0
N_VOLUMES = 60
CONDITIONS = ("face", "house", "cat", "shoe")


def response(t):
    """Rise and fall of a response to a short event at t = 0."""
    t = np.clip(t, 0, None)
    return t**5 * np.exp(-t) / 21.0


def make_dataset(
    root: Path, *, subjects=("01",), n_runs=3, sessions=(None,), task="x", space="T1w", repeats=True, seed=0
) -> Path:
    """Write a raw dataset with `derivatives/fmriprep` and return its folder.

    Every run shows the four conditions twice (or, without repeats, conditions of its own); onsets are off the
    TR grid.
    """
    rng = np.random.default_rng(seed)
    root.mkdir(parents=True, exist_ok=True)
    write_json(root / "dataset_description.json", {"Name": "small", "BIDSVersion": "1.9.0", "License": "CC0"})
    (root / "README").write_text("Made by a test.\n")
    (root / ".bidsignore").write_text("derivatives\n")
    prep = root / "derivatives" / "fmriprep"
    write_json(
        prep / "dataset_description.json",
        {
            "Name": "fMRIPrep",
            "BIDSVersion": "1.9.0",
            "DatasetType": "derivative",
            "GeneratedBy": [{"Name": "fMRIPrep", "Version": "25.0.0"}],
        },
    )
    pattern = {c: rng.normal(2.0, 1.0, np.prod(SHAPE)) for c in range(400)}
    gain = rng.uniform(0.2, 1.5, np.prod(SHAPE))
    number = 0
    for subject in subjects:
        for session in sessions:
            folder = f"sub-{subject}" + (f"/ses-{session}" if session else "") + "/func"
            stem = f"sub-{subject}" + (f"_ses-{session}" if session else "") + f"_task-{task}"
            for run in range(1, n_runs + 1):
                onsets = np.arange(8) * 12.0 + 7.5
                labels = rng.permutation(np.repeat(np.arange(4), 2))
                if not repeats:
                    labels = number + np.arange(8)
                    number += 8
                t = np.arange(N_VOLUMES) * TR
                signal = sum(
                    response(t - o)[None] * (pattern[c] * gain)[:, None]
                    for o, c in zip(onsets, labels, strict=True)
                )
                data = 500 * (1 + (signal + rng.normal(0, 0.8, signal.shape)) / 100)
                name = f"{stem}_run-{run}"
                bold = save(
                    root / folder / f"{name}_bold.nii.gz", data.reshape(*SHAPE, -1).astype(np.float32)
                )
                write_json(root / folder / f"{name}_bold.json", {"TaskName": task, "RepetitionTime": TR})
                rows = [
                    f"{o:.3f}\t1.5\t{CONDITIONS[c] if repeats else f'item{c}'}"
                    for o, c in zip(onsets, labels, strict=True)
                ]
                events = "\n".join(["onset\tduration\ttrial_type", *rows]) + "\n"
                (root / folder / f"{name}_events.tsv").write_text(events)
                base = prep / folder / f"{name}_space-{space}_desc-preproc_bold"
                save(Path(f"{base}.nii.gz"), bold)
                write_json(
                    Path(f"{base}.json"), {"RepetitionTime": TR, "SkullStripped": False, "TaskName": task}
                )
                mask = np.ones(SHAPE, np.uint8)
                mask[0] = 0
                save(prep / folder / f"{name}_space-{space}_desc-brain_mask.nii.gz", mask)
                motion = np.cumsum(rng.normal(0, 0.01, (N_VOLUMES, 6)), axis=0)
                names = ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z")
                lines = ["\t".join((*names, "framewise_displacement"))]
                for i, row in enumerate(motion):
                    last = "n/a" if i == 0 else f"{np.abs(row - motion[i - 1]).sum():.5f}"
                    lines.append("\t".join([*(f"{v:.5f}" for v in row), last]))
                (prep / folder / f"{name}_desc-confounds_timeseries.tsv").write_text("\n".join(lines) + "\n")
    return root


def write_json(path: Path, content) -> None:
    """Write JSON, making the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


def save(path: Path, data: np.ndarray) -> np.ndarray:
    """Write a volume with 3 mm voxels and seconds as unit of time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(data, np.diag([3.0, 3.0, 3.0, 1.0]))
    image.header.set_xyzt_units("mm", "sec")
    if data.ndim == 4:
        image.header.set_zooms((3, 3, 3, TR))
    nib.save(image, path)
    return data


def bold_files(root: Path) -> list[Path]:
    """Preprocessed BOLD of a dataset, sorted."""
    return sorted((root / "derivatives").rglob("*_desc-preproc_bold.nii.gz"))


def edit_bold(path: Path, change) -> None:
    """Rewrite a 4-D file after `change(data)`."""
    data = np.asarray(nib.load(path).dataobj).copy()
    out = change(data)
    save(path, data if out is None else out)
