# SPDX-License-Identifier: Apache-2.0
"""The plan of one fit: everything that is decided before the heavy work starts, as one JSON file.

A plan is made from headers, sidecars and events alone, so `--dry-run` costs little and bad input is refused
before anything is computed.  The steps of the workflow read the plan instead of asking BIDS again.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from conform_app.bids.surfaceplan import SurfacePlan, from_dict
from conform_app.errors import DataError

SHARED = 0.8
"""Share of a run's mask that all runs should have; masks of one brain share nearly all."""


@dataclass(frozen=True)
class RunPlan:
    """One run of a fit: its files, length and time of the first volume.

    Attributes
    ----------
    bold, mask : tuple of str
        Paths: one volume or CIFTI file, or a left and a right GIFTI file; ``mask`` may be empty.
    confounds, events : str or None
        Paths.
    session, task, run : str or None
        BIDS labels.
    n_volumes : int
    start_time : float
        Seconds from the start of the events' clock to volume 0.
    presses : dict of str to tuple of float
        Times of button presses that are modelled, s, by button.
    acquisition : dict
        How the run was measured (see :mod:`conform_app.bids.acquisition`).
    transform : str or None
        From points of T1w space to points of the volumes, where these are in another space.
    subcortex : str or None
        The run's volumes in MNI152NLin6Asym, from which grayordinates take the subcortex.
    further : dict of str to str
        Labels of further entities (``dir`` ...) in which the runs of the fit differ, by short name.
    """

    bold: tuple[str, ...]
    mask: tuple[str, ...]
    confounds: str | None
    events: str | None
    session: str | None
    run: str | None
    n_volumes: int
    start_time: float
    transform: str | None = None
    subcortex: str | None = None
    task: str | None = None
    presses: dict[str, tuple[float, ...]] = field(default_factory=dict)
    acquisition: dict[str, Any] = field(default_factory=dict)
    further: dict[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Short name for messages."""
        parts = [f"ses-{self.session}"] * bool(self.session) + [f"run-{self.run}"] * bool(self.run)
        parts += [f"{name}-{label}" for name, label in self.further.items()]
        return " ".join(parts) or Path(self.bold[0]).name


@dataclass(frozen=True)
class FitPlan:
    """What one fit takes in and how its trials are arranged.

    Attributes
    ----------
    name : str
        For instance ``sub-01_ses-02_task-x_space-T1w``.
    kind : {"volume", "gifti", "cifti"}
    entities : dict of str to str
        Entities of output names, short names.
    tr : float
        Repetition time, s.
    n_points, n_voxels : int
        Points of the image, and those of them in the analysis mask (as far as headers and masks tell).
    trials : dict of str to list
        Columns over trials in run-then-time order: onset, duration (s), run, condition (indices), repeat,
        stim_id, trial_type (labels).
    conditions : tuple of str
        Stimulus of each condition.
    stim_column : str
        The events' column that named the stimuli.
    memory, memory_glm : int
        Estimated peak of all steps, on one thread, and of those before PSN, bytes.
    warnings : tuple of str
    participant : dict of str to str
        Age, sex and the like, as ``participants.tsv`` has them.
    surface : SurfacePlan or None
        How volumes are carried to the surface that the fit is of; None where the files are of `space`.
    atlas : tuple of str
        Files of the atlas whose regions PSN denoises.
    """

    name: str
    subject: str
    sessions: tuple[str, ...]
    task: str
    space: str
    res: str | None
    den: str | None
    kind: str
    entities: dict[str, str]
    tr: float
    runs: tuple[RunPlan, ...]
    n_points: int
    n_voxels: int
    trials: dict[str, list[Any]]
    conditions: tuple[str, ...]
    stim_column: str
    memory: int
    warnings: tuple[str, ...]
    surface: SurfacePlan | None = None
    participant: dict[str, str] = field(default_factory=dict)
    atlas: tuple[str, ...] = ()
    memory_glm: int = 0

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks of the runs, in their order."""
        return tuple(dict.fromkeys(run.task for run in self.runs if run.task is not None))

    @property
    def n_trials(self) -> int:
        """Number of trials."""
        return len(self.trials["onset"])

    @property
    def condition(self) -> np.ndarray:
        """Condition of each trial, shape (n_trials,)."""
        return np.asarray(self.trials["condition"], dtype=int)

    @property
    def run_of_trial(self) -> np.ndarray:
        """Run of each trial, shape (n_trials,)."""
        return np.asarray(self.trials["run"], dtype=int)

    @property
    def run_sessions(self) -> list[int]:
        """Number (from 1) of the session of each run: the groups in which betas are z-scored."""
        order = list(dict.fromkeys(run.session for run in self.runs))
        return [order.index(run.session) + 1 for run in self.runs]

    @property
    def n_repeats(self) -> np.ndarray:
        """Trials of each condition, shape (n_conditions,)."""
        return np.bincount(self.condition, minlength=len(self.conditions))

    @property
    def repeats_across_runs(self) -> bool:
        """Whether any condition is in more than one run."""
        pairs = np.unique(np.stack([self.condition, self.run_of_trial]), axis=1)
        return bool((np.bincount(pairs[0]) > 1).any())

    def trials_by_run(self) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Return (onset s, duration s, condition) of each run."""
        onset, duration = np.asarray(self.trials["onset"], float), np.asarray(self.trials["duration"], float)
        masks = [self.run_of_trial == r for r in range(len(self.runs))]
        return [(onset[m], duration[m], self.condition[m]) for m in masks]

    def bold_files(self) -> list[str]:
        """Every BOLD file."""
        return [path for run in self.runs for path in run.bold]

    def side_files(self) -> list[str]:
        """Every mask, confounds and events file."""
        paths = [p for run in self.runs for p in (*run.mask, run.confounds, run.events) if p]
        return list(dict.fromkeys(paths))

    def in_volume(self) -> FitPlan:
        """The same fit in the volumes that it is carried from."""
        return replace(self, kind="volume", surface=None)

    def input_files(self) -> list[str]:
        """Every file that the fit comes from; those carried to a surface stand for what they became."""
        if self.surface is None:
            return [*self.bold_files(), *self.side_files()]
        tables = [path for run in self.runs for path in (run.confounds, run.events) if path]
        return list(dict.fromkeys([*self.surface.files(), *tables]))


def write_plan(plan: FitPlan, path: Path) -> Path:
    """Write a plan as JSON, complete or not at all; an equal file is left as it is."""
    text = json.dumps(asdict(plan), indent=1) + "\n"
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    return path


def read_plan(path: Path) -> FitPlan:
    """Read a plan written by :func:`write_plan`."""
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    runs = tuple(
        RunPlan(**{**r, "bold": tuple(r["bold"]), "mask": tuple(r["mask"])}) for r in content.pop("runs")
    )
    for key in ("sessions", "conditions", "warnings"):
        content[key] = tuple(content[key])
    content["surface"] = from_dict(content.get("surface"))
    content["atlas"] = tuple(content.get("atlas", ()))
    return FitPlan(runs=runs, **content)


@dataclass(frozen=True)
class LoadedRuns:
    """Arrays of one fit.

    Attributes
    ----------
    bold : list of ndarray of shape (n_voxels, n_volumes), float32
        Or of :class:`conform_app.images.ondisk.RowsOnDisk`, which slice likewise.
    confounds : list of ndarray of shape (n_volumes, n_confounds), or None
    points : ndarray of shape (n_points,), bool
        The analysis mask: points inside every run's mask.
    warnings : list of str
    """

    bold: list[Any]
    confounds: list[np.ndarray] | None
    points: np.ndarray
    warnings: list[str]


def analysis_points(plan: FitPlan) -> tuple[np.ndarray, list[str]]:
    """Return the points that every run's mask holds (all points where there is no mask), and warnings.

    Raises
    ------
    DataError
        The masks have no point in common.
    """
    from conform_app.images import open_run, read_mask

    grid = open_run(tuple(map(Path, plan.runs[0].bold))).grid
    points = np.ones(grid.n_points, dtype=bool)
    sizes: dict[str, int] = {}
    without = [run.label for run in plan.runs if not run.mask]
    for mask, label in {run.mask: run.label for run in reversed(plan.runs) if run.mask}.items():
        own = read_mask(tuple(map(Path, mask)), grid)
        sizes[label] = int(own.sum())
        points &= own
    if not points.any():
        raise DataError(
            f"{plan.name}: the brain masks of the runs have no voxel in common.",
            "Check that the runs are in one space.",
        )
    warnings = _small_overlap(int(points.sum()), sizes)
    if without and plan.kind == "volume":
        used = "those of the other runs are used" if len(without) < len(plan.runs) else ""
        used = used or "every voxel that varies is fitted"
        warnings.append(f"No brain mask for {', '.join(without)}: {used}.")
    return points, warnings


def _small_overlap(n_common: int, sizes: dict[str, int]) -> list[str]:
    """Say so when one run's mask (a failed one, say) takes many voxels from all runs."""
    usual = float(np.median(list(sizes.values()))) if sizes else 0.0
    if n_common >= SHARED * usual:
        return []
    label = min(sizes, key=lambda name: sizes[name])
    return [
        f"The brain masks of the runs have {n_common} voxels in common, {100 * n_common / usual:.0f} % of "
        f"the usual {usual:.0f}; the smallest, of {label}, has {sizes[label]}."
    ]


def point_coordinates(plan: FitPlan, points: np.ndarray) -> np.ndarray:
    """Return the place of each analysed point: its voxel indices, or its number where there are no axes.

    Parameters
    ----------
    plan : FitPlan
    points : ndarray of shape (n_points,), bool

    Returns
    -------
    ndarray of shape (n_voxels, 3 or 1), int
    """
    from conform_app.images import open_run

    grid = open_run(tuple(map(Path, plan.runs[0].bold))).grid
    if grid.kind == "volume":
        return np.argwhere(points.reshape(grid.shape))
    return np.flatnonzero(points)[:, None]


def load_runs(plan: FitPlan, confounds: tuple[str, ...], scratch: Path | None = None) -> LoadedRuns:
    """Read the BOLD values inside the analysis mask, and the confounds asked for.

    Parameters
    ----------
    plan : FitPlan
    confounds : tuple of str
        What to take from the confounds files; ``("none",)`` for nothing.
    scratch : Path, optional
        Leave the BOLD values on disk, in this folder where their format cannot be read voxel by voxel.

    Raises
    ------
    DataError, FileFaultError
        See :mod:`conform_app.images` and :mod:`conform_app.bids.confounds`.
    """
    from conform_app.images import open_run

    points, warnings = analysis_points(plan)
    runs = [open_run(tuple(map(Path, run.bold))) for run in plan.runs]
    if scratch is None:
        bold: list[Any] = [run.load(points) for run in runs]
    else:
        bold = [run.leave_on_disk(points, scratch / f"bold-{n}.f4") for n, run in enumerate(runs)]
    regressors, told = load_confounds(plan, confounds)
    return LoadedRuns(bold, regressors, points, [*warnings, *told])


def load_confounds(plan: FitPlan, confounds: tuple[str, ...]) -> tuple[list[np.ndarray] | None, list[str]]:
    """Read the confounds of each run, and warnings; None when nothing is asked for.

    Raises
    ------
    DataError, UsageError, FileFaultError
        A run has no table, or not the columns (see :mod:`conform_app.bids.confounds`).
    """
    from conform_app.bids.confounds import select_of_runs

    if confounds in ((), ("none",)):
        return None, []
    for run in plan.runs:
        if run.confounds is None:
            raise DataError(
                f"{plan.name}, {run.label}: no confounds file, but --confounds {' '.join(confounds)} is set.",
                "Leave --confounds out or add the run's desc-confounds_timeseries.tsv.",
            )
    paths = [Path(run.confounds) for run in plan.runs if run.confounds is not None]
    return select_of_runs(paths, confounds, [run.n_volumes for run in plan.runs])
