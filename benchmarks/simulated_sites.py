# SPDX-License-Identifier: Apache-2.0
"""Three small studies, from BIDS and BOLD to one collection, through the command line.

    python benchmarks/simulated_sites.py FOLDER [--vertices 400] [--nprocs 2] [--encode]

Each study measures in its own way:

Alpha   TR 1.6 s, 2 participants x 2 sessions, every image 3 times, a test set named in trial_type
Beta    TR 2.0 s, 2 participants, train images once, test images 4 times
Gamma   TR 2.5 s, 2 participants, every image twice, no split of its own; its sidecars say next to nothing

Responses are z(stimulus) . w(vertex): a stimulus is a vector of features, so that near-duplicates look alike
in the features and in the brain.  Alpha and Beta share images by name; Gamma shows two of Alpha's images as
images of its own (equal files); one train image of Beta is a near-duplicate of a test image of Alpha.  BOLD
comes as fsLR CIFTI and as fsaverage GIFTI.

With ``--encode`` participants have something in common to learn: a share of each vertex's w is that of the
same vertex in everybody, and w falls with the number of the feature; encoding models are made from these.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np

N_FEATURES = 12
SOA = 4.0
REST = 12.0


@dataclass(frozen=True)
class Study:
    """One study.

    ``images`` are (name, feature key, kind, repeats per participant); ``common`` its BOLD sidecar; ``shared``
    the share of the variance of weights that all participants have in common.
    """

    name: str
    tr: float
    sessions: tuple[str | None, ...]
    n_runs: int
    images: tuple[tuple[str, str, str, int], ...]
    common: dict
    shown: dict
    subjects: tuple[str, ...] = ("01", "02")
    noise: float = 1.0
    shared: float = 0.0


def studies(n_images: int = 12, n_test: int = 4, common: float = 0.0) -> list[Study]:
    """Return the three studies, with so many images of their own and test images each."""
    shared = [f"shared{i:02d}.png" for i in range(n_test)]
    alpha = [(name, name, "test", 3) for name in shared]
    alpha += [(f"alpha{i:02d}.png", f"alpha{i:02d}.png", "train", 3) for i in range(n_images)]
    beta = [(f"beta-test{i:02d}.png", f"beta-test{i:02d}.png", "test", 4) for i in range(n_test)]
    # two images that Alpha tests are train here, and so is a near-duplicate of a third
    beta += [(name, name, "train", 1) for name in shared[:2]]
    beta += [("beta-near.png", f"{shared[2]}~0.97", "train", 1)]
    beta += [(f"beta{i:02d}.png", f"beta{i:02d}.png", "train", 1) for i in range(2 * n_images)]
    gamma = [("g1.png", "alpha00.png", "none", 2), ("g2.png", shared[3], "none", 2)]
    gamma += [(f"gamma{i:02d}.png", f"gamma{i:02d}.png", "none", 2) for i in range(n_images)]
    full = {
        "Manufacturer": "Siemens", "ManufacturersModelName": "Magnetom 7T", "MagneticFieldStrength": 7.0,
        "EchoTime": 0.022, "FlipAngle": 62.0, "PhaseEncodingDirection": "j-", "TotalReadoutTime": 0.04,
        "InstitutionName": "Site A", "MultibandAccelerationFactor": 3, "PartialFourier": 0.875,
        "ReceiveCoilName": "NM32", "TaskDescription": "Was the image shown before?", "Instructions": "Press.",
        "SliceTiming": [0.0, 0.8, 0.4, 1.2, 0.0, 0.8, 0.4, 1.2],
    }  # fmt: skip
    some = {
        "Manufacturer": "GE", "ManufacturersModelName": "MR750", "MagneticFieldStrength": 3.0,
        "FlipAngle": 75.0, "EchoTime": 0.03, "PhaseEncodingDirection": "j", "InstitutionName": "Site B",
        "TaskDescription": "Valence.",
    }  # fmt: skip
    angle = {"StimulusPresentation": {"SoftwareName": "Psychtoolbox", "VisualAngle": [8.4, 8.4]}}
    every = [
        Study("Alpha", 1.6, ("a", "b"), 3, tuple(alpha), full, angle, noise=0.8),
        Study("Beta", 2.0, (None,), 4, tuple(beta), some, {}, noise=1.0),
        Study("Gamma", 2.5, (None,), 3, tuple(gamma), {"MagneticFieldStrength": 3.0}, {}, noise=1.5),
    ]
    return [replace(study, shared=common) for study in every]


def features(keys: list[str]) -> dict[str, np.ndarray]:
    """Unit vectors by key; ``NAME~c`` is one at cosine c from NAME."""
    found = {}
    for key in keys:
        base, _, cosine = key.partition("~")
        vector = _direction(base)
        if cosine:
            other = _direction(key)
            other -= (other @ vector) * vector
            other /= np.linalg.norm(other)
            vector = float(cosine) * vector + np.sqrt(1 - float(cosine) ** 2) * other
        found[key] = vector
    return found


def _direction(name: str) -> np.ndarray:
    seed = int.from_bytes(name.encode().ljust(8, b"\0")[-8:], "little")
    vector = np.random.default_rng(seed).normal(size=N_FEATURES)
    return vector / np.linalg.norm(vector)


def hrf(t: np.ndarray) -> np.ndarray:
    """Rise and fall of a response to a short event at t = 0."""
    t = np.clip(t, 0, None)
    return t**5 * np.exp(-t) / 21.0


def make_study(root: Path, study: Study, n_vertices: int, seed: int = 0) -> Path:
    """Write one study as BIDS with preprocessed BOLD, its stimulus files, and return its folder."""
    folder = root / study.name
    describe(folder, {"Name": study.name, "BIDSVersion": "1.9.0", "License": "CC0"})
    prep = folder / "derivatives" / "fmriprep"
    maker = {"Name": "fMRIPrep", "Version": "23.2.0" if study.name != "Gamma" else "23.2.3"}
    describe(
        prep,
        {"Name": "fMRIPrep", "BIDSVersion": "1.9.0", "DatasetType": "derivative", "GeneratedBy": [maker]},
    )
    (folder / "README").write_text("Simulated.\n")
    (folder / ".bidsignore").write_text("derivatives\nstimuli\n")
    put(folder / "task-x_events.json", study.shown)
    vectors = features([key for _, key, _, _ in study.images])
    for name, key, _, _ in study.images:
        save_stimulus(folder / "stimuli" / name, key)
    people = ["participant_id\tage\tsex"]
    rng = np.random.default_rng([seed, len(study.name), ord(study.name[0])])
    for subject in study.subjects:
        people.append(f"sub-{subject}\t{rng.integers(20, 40)}\t{'F' if subject == '01' else 'M'}")
        order = deal(study, rng)
        for (session, run), trials in order.items():
            write_run(folder, prep, study, subject, session, run, trials, vectors, n_vertices, rng)
    (folder / "participants.tsv").write_text("\n".join(people) + "\n")
    return folder


def deal(study: Study, rng: np.random.Generator) -> dict:
    """Spread all showings over the runs, so that repeats fall into different runs where they can."""
    runs = [(session, run) for session in study.sessions for run in range(1, study.n_runs + 1)]
    table: dict = {place: [] for place in runs}
    start = 0
    for image in study.images:
        for repeat in range(image[3]):
            table[runs[(start + repeat) % len(runs)]].append(image)
        start += image[3]
    return {place: [trials[i] for i in rng.permutation(len(trials))] for place, trials in table.items()}


def write_run(folder, prep, study, subject, session, run, trials, vectors, n_vertices, rng) -> None:
    """One run: events, raw image and sidecar, CIFTI and GIFTI."""
    stem = f"sub-{subject}" + (f"_ses-{session}" if session else "") + f"_task-x_run-{run}"
    place = Path(f"sub-{subject}") / (f"ses-{session}" if session else "") / "func"
    onsets = REST / 2 + np.arange(len(trials)) * SOA + rng.uniform(0, 0.5, len(trials))
    rows = ["onset\tduration\ttrial_type\tstim_file"]
    rows += [f"{o:.3f}\t2\t{kind}\t{name}" for o, (name, _, kind, _) in zip(onsets, trials, strict=True)]
    put(folder / place / f"{stem}_events.tsv", "\n".join(rows) + "\n")
    sidecar = {"TaskName": "x", "RepetitionTime": study.tr, **study.common}
    put(folder / place / f"{stem}_bold.json", sidecar)
    n_volumes = int(np.ceil((onsets[-1] + 2 * REST) / study.tr))
    raw = nib.Nifti1Image(np.zeros((4, 4, 2, n_volumes), np.int16), np.diag([study.tr + 0.2] * 3 + [1]))
    raw.header.set_zooms((*raw.header.get_zooms()[:3], study.tr))
    raw.header.set_xyzt_units("mm", "sec")
    nib.save(raw, folder / place / f"{stem}_bold.nii.gz")
    time = np.arange(n_volumes) * study.tr
    (prep / place).mkdir(parents=True, exist_ok=True)
    for kind in ("cifti", "gifti"):
        weights = tuning(study, kind, subject, 2 * n_vertices)
        gain = np.linspace(0, 2.0, 2 * n_vertices)[:, None]
        signal = sum(
            hrf(time - o)[None] * ((weights @ vectors[key])[:, None] * gain)
            for o, (_, key, _, _) in zip(onsets, trials, strict=True)
        )
        noise = rng.normal(0, study.noise, signal.shape)
        series = (1000 * (1 + (signal + noise) / 100)).astype(np.float32)
        base = prep / place / stem
        write_cifti(base, series, study.tr) if kind == "cifti" else write_gifti(base, series, study.tr)


def tuning(study: Study, kind: str, subject: str, n_vertices: int) -> np.ndarray:
    """Weights of a participant's vertices, (n_vertices, N_FEATURES)."""
    size = (n_vertices, N_FEATURES)
    own = np.random.default_rng([ord(kind[0]), int(subject), ord(study.name[0])]).normal(size=size)
    if not study.shared:
        return own
    everybody = np.random.default_rng(ord(kind[0])).normal(size=size)
    fall = 1.0 / np.arange(1, N_FEATURES + 1)
    fall *= np.sqrt(N_FEATURES / (fall**2).sum())
    return (np.sqrt(study.shared) * everybody + np.sqrt(1 - study.shared) * own) * fall


def write_cifti(base: Path, series: np.ndarray, tr: float) -> None:
    """The first vertices of each hemisphere of fsLR 32k; label den-91k as fMRIPrep writes it."""
    half = len(series) // 2
    axis = nib.cifti2.BrainModelAxis.from_surface(np.arange(half), 32492, "CortexLeft")
    axis += nib.cifti2.BrainModelAxis.from_surface(np.arange(half), 32492, "CortexRight")
    image = nib.Cifti2Image(series.T, header=(nib.cifti2.SeriesAxis(0, tr, series.shape[1]), axis))
    nib.save(image, f"{base}_space-fsLR_den-91k_bold.dtseries.nii")
    put(
        Path(f"{base}_space-fsLR_den-91k_bold.json"),
        {"RepetitionTime": tr, "StartTime": 0.0, "SliceTimingCorrected": True},
    )


def write_gifti(base: Path, series: np.ndarray, tr: float) -> None:
    """A left and a right file."""
    half = len(series) // 2
    for hemi, part in (("L", series[:half]), ("R", series[half:])):
        arrays = [nib.gifti.GiftiDataArray(v, intent="NIFTI_INTENT_TIME_SERIES") for v in part.T]
        image = nib.gifti.GiftiImage(darrays=arrays)
        image.meta["AnatomicalStructurePrimary"] = {"L": "CortexLeft", "R": "CortexRight"}[hemi]
        name = f"{base}_hemi-{hemi}_space-fsaverage5_bold"
        nib.save(image, f"{name}.func.gii")
        put(Path(f"{name}.json"), {"RepetitionTime": tr, "StartTime": 0.0, "SliceTimingCorrected": True})


def save_stimulus(path: Path, key: str) -> None:
    """A picture made from its key: equal keys give equal files."""
    pixels = np.random.default_rng(list(key.encode())).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"P6 8 8 255\n" + pixels.tobytes())


def describe(folder: Path, content: dict) -> None:
    """Write a dataset's description."""
    put(folder / "dataset_description.json", content)


def put(path: Path, content: dict | str) -> None:
    """Write JSON or text, making the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content, indent=1) + "\n")


OPTIONS = {
    "Alpha": ["--test-trials", "trial_type == 'test'", "--fit-level", "session"],
    "Beta": ["--test-trials", "n_trials > 1"],
    "Gamma": [],
}
"""How each study is run at the participant level."""


def make_sites(
    root: Path, n_vertices: int = 400, n_images: int = 12, n_test: int = 4, common: float = 0.0
) -> dict[str, Path]:
    """Write the three studies and ``features.npz``; return their folders."""
    every = studies(n_images, n_test, common)
    pairs = {f"{study.name}/{name}": key for study in every for name, key, _, _ in study.images}
    vectors = features(list(pairs.values()))
    root.mkdir(parents=True, exist_ok=True)
    names = np.array(list(pairs))
    values = np.stack([vectors[key] for key in pairs.values()]).astype(np.float32)
    np.savez(root / "features.npz", names=names, values=values)
    return {study.name: make_study(root / "bids", study, n_vertices) for study in every}


SPACES = ("fsLR:den-91k", "fsaverage:den-10k")


def run_participants(
    root: Path, folders: dict[str, Path], *more: str, spaces: tuple[str, ...] = SPACES
) -> dict[str, Path]:
    """Run the participant level of each study; return the output folders."""
    from conform_app.cli import main

    outputs = {}
    for name, folder in folders.items():
        out = outputs[name] = root / "results" / name
        argv = [folder, out, "participant", "--skip-bids-validation", "--sloppy", "-w", root / "work" / name]
        argv += ["--output-spaces", *spaces, "--stim-column", "stim_file"]
        code = main([*map(str, argv), *OPTIONS[name], *more])
        if code:
            raise SystemExit(f"the participant level of {name} ended with exit code {code}")
    return outputs


def group_arguments(root: Path, outputs: dict[str, Path], folders: dict[str, Path]) -> list[str]:
    """Arguments of the group level over the three studies."""
    argv = [root / "no-raw-data", root / "collection", "group", "-w", root / "work" / "group"]
    argv += ["-d", *(f"conform_{name}={path}" for name, path in outputs.items())]
    argv += ["--stimuli", *(f"{name}={folder / 'stimuli'}" for name, folder in folders.items())]
    return [*map(str, argv), "--features", str(root / "features.npz")]


def cli(argv: list[str] | None = None) -> int:
    """Make, run and merge."""
    from conform_app.cli import main

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--vertices", type=int, default=400, help="of each hemisphere")
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--nprocs", default="2")
    parser.add_argument("--encode", action="store_true", help="and make encoding models")
    args = parser.parse_args(argv)
    root = args.folder.absolute()
    more = ["--encode", "stacked"] if args.encode else []
    folders = make_sites(root, args.vertices, args.images, *((12, 0.5) if args.encode else ()))
    outputs = run_participants(root, folders, "--nprocs", args.nprocs)
    return main([*group_arguments(root, outputs, folders), "--nprocs", args.nprocs, "--export-hdf5", *more])


if __name__ == "__main__":
    raise SystemExit(cli())
