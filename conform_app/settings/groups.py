# SPDX-License-Identifier: Apache-2.0
"""The settings themselves, in groups: the sections of the TOML file and of the help text.

Fields marked ``alters`` change results: they make up the configuration hash.
"""

from __future__ import annotations

from dataclasses import dataclass

from conform_app.settings.declare import option

ENTITY_LABELS = {
    "participant_label": "sub-",
    "session_label": "ses-",
    "task_label": "task-",
    "run_label": "run-",
}


@dataclass(frozen=True)
class InputSettings:
    """What to read."""

    participant_label: tuple[str, ...] = option(
        (),
        "participants, with or without 'sub-', or a text file with one label a line (default: all)",
        flags=("--participant_label", "--subject-label"),
        kind="label",
        many=True,
        metavar="LABEL",
    )
    session_label: tuple[str, ...] = option(
        (), "sessions (a file without the ses entity is kept)", kind="label", many=True, metavar="LABEL"
    )
    task_label: tuple[str, ...] = option(
        (), "tasks", flags=("-t", "--task-id"), kind="label", many=True, metavar="LABEL"
    )
    run_label: tuple[str, ...] = option((), "runs", kind="label", many=True, metavar="LABEL")
    bids_filter_file: str | None = option(
        None,
        "JSON file that narrows the search: {'bold': {'acquisition': 'x'}, 'events': {...}}; null means "
        "the entity must be absent, '*' that it must be there",
        kind="path",
        metavar="FILE",
    )
    derivatives: tuple[tuple[str, str], ...] = option(
        (),
        "folders with preprocessed data, as NAME=PATH or PATH (default: those in BIDS_DIR/derivatives)",
        flags=("-d",),
        kind="derivative",
        many=True,
        metavar="NAME=PATH",
    )
    output_spaces: tuple[str, ...] = option(
        (),
        "spaces to work in, as SPACE[:res-x][:den-y], for example MNI152NLin2009cAsym:res-2, T1w, "
        "fsaverage:den-10k, fsLR:den-91k (default: the best one that the preprocessed data come in)",
        many=True,
        metavar="SPACE",
    )
    bids_database_dir: str | None = option(
        None, "folder of a pybids database to use or to make", kind="path", metavar="DIR"
    )
    skip_bids_validation: bool = option(
        False,
        "do not run the BIDS validator on BIDS_DIR (it is run when it is installed)",
        flags=("--skip_bids_validation", "--skip_bids_validator"),
        kind="bool",
    )


@dataclass(frozen=True)
class EventSettings:
    """How events become trials."""

    stim_column: str | None = option(
        None,
        "column of the events files that names the stimulus; trials with one name are repeats of one "
        "condition (default: the first present of stim_id, stim_file, trial_type)",
        metavar="COLUMN",
        alters=True,
    )
    block_column: str | None = option(
        None,
        "column that numbers blocks: rows of one run with the same value become one trial, from the first "
        "onset to the last offset",
        metavar="COLUMN",
        alters=True,
    )
    ignore_trials: str | None = option(
        None,
        "rows of the events files to drop, as a pandas query, for example \"trial_type == 'blank'\"",
        metavar="QUERY",
        alters=True,
    )
    stim_duration: float | None = option(
        None,
        "duration of every trial in seconds (default: the duration column, trial by trial)",
        kind="float",
        metavar="SECONDS",
        alters=True,
    )


@dataclass(frozen=True)
class ModelSettings:
    """What is estimated."""

    fit_level: tuple[str, ...] = option(
        ("session",),
        "what one fit pools: 'session' (each session by itself), 'subject' (all sessions), or "
        "groups of sessions such as 01,02 03,04",
        many=True,
        metavar="LEVEL",
        alters=True,
    )
    confounds: tuple[str, ...] = option(
        ("none",),
        "confounds to model: none, motion6, motion12, motion24, names or patterns of columns "
        "(cosine*), or a_comp_cor:5 for the first five",
        many=True,
        metavar="COLUMN",
        alters=True,
    )
    hrf_model: str = option(
        "library",
        "haemodynamic response: chosen per voxel from the library of 20, or the canonical one",
        choices=("library", "canonical"),
        alters=True,
    )
    surface_of: str = option(
        "timeseries",
        "what is carried to a surface space that the preprocessed data do not come in: the time series, "
        "which are then fitted there, or the betas fitted in the volume",
        choices=("timeseries", "betas"),
        alters=True,
    )
    glm_types: tuple[str, ...] = option(
        ("D",),
        "single-trial betas to write: A (canonical HRF), B (fitted HRF), C (plus noise regressors), "
        "D (plus ridge). All are estimated and compared in the report",
        choices=("A", "B", "C", "D"),
        many=True,
    )
    no_repeats: str = option(
        "typeB",
        "when no condition repeats across runs: stop at type B, or use a fixed number of noise "
        "regressors and one fixed ridge fraction (see --fixed-pcs, --fixed-fraction)",
        choices=("typeB", "fixed", "error"),
        alters=True,
    )
    fixed_pcs: int = option(
        3, "noise regressors under --no-repeats fixed", kind="int", metavar="N", alters=True
    )
    fixed_fraction: float = option(
        0.5, "ridge fraction under --no-repeats fixed", kind="float", metavar="F", alters=True
    )
    n_pcs: int = option(10, "largest number of noise regressors tried", kind="int", metavar="N", alters=True)
    pcstop: float = option(
        1.05,
        "stop adding noise regressors when the gain is within this factor of the best",
        kind="float",
        metavar="X",
        alters=True,
    )
    fracs: tuple[float, ...] = option(
        (),
        "ridge fractions tried (default: 0.05 to 1 in steps of 0.05)",
        kind="float",
        many=True,
        metavar="F",
        alters=True,
    )
    psn: str = option(
        "cv",
        "PSN denoising of the condition averages: cross-validated cut, or a preset of the method, or off",
        choices=("off", "cv", "standard", "conservative", "aggressive", "compare", "wiener"),
        alters=True,
    )
    psn_level: str = option(
        "population",
        "the cross-validated cut is one for all voxels, or one for each",
        choices=("population", "unit"),
        alters=True,
    )
    random_seed: int = option(0, "seed of everything random", kind="int", metavar="N", alters=True)
    sloppy: bool = option(
        False, "TESTING ONLY: 5 ridge fractions and at most 2 noise regressors", kind="bool", alters=True
    )


@dataclass(frozen=True)
class ResourceSettings:
    """What the run may use."""

    nprocs: int | None = option(
        None,
        "processes at once (default: the CPUs that this process may use)",
        flags=("--nthreads", "--n-cpus", "--n_cpus"),
        kind="int",
        metavar="N",
    )
    omp_nthreads: int | None = option(
        None,
        "threads of one process (default: all CPUs when there is one fit, else 1)",
        kind="int",
        metavar="N",
    )
    mem: int | None = option(
        None,
        "memory to stay within, with K, M, G or T (default: 80 %% of what is free)",
        flags=("--mem-mb", "--mem_mb"),
        kind="memory",
        metavar="SIZE",
    )
    device: str = option(
        "auto", "where arrays are computed: cuda if there is one, else cpu", choices=("auto", "cpu", "cuda")
    )
    work_dir: str | None = option(
        None,
        "folder for intermediate results, kept for the next run (default: in the system's temporary folder)",
        flags=("-w",),
        kind="path",
        metavar="DIR",
    )
    use_plugin: str | None = option(
        None,
        "YAML file with the Nipype plugin to run with ({plugin: SLURM, plugin_args: {...}})",
        flags=("--nipype-plugin-file",),
        kind="path",
        metavar="FILE",
    )
    stop_on_first_crash: bool = option(False, "stop at the first fit that fails", kind="bool")


@dataclass(frozen=True)
class RunSettings:
    """What this call does."""

    dry_run: bool = option(
        False, "list the fits (sessions, runs, trials, conditions, repeats, memory) and stop", kind="bool"
    )
    reports_only: bool = option(
        False, "make the reports and the methods text anew, compute nothing", kind="bool"
    )
    overwrite: bool = option(
        False,
        "write over results of other settings in OUTPUT_DIR, and compute finished fits again",
        kind="bool",
    )
    save_residuals: bool = option(False, "also write the noise that PSN took out of each trial", kind="bool")
    verbose: int = option(0, "say more (-v: steps, -vv: details of Nipype)", flags=("-v",), kind="count")
    notrack: bool = option(
        False, "no effect: nothing is ever tracked (kept for cluster scripts)", kind="bool"
    )


GROUPS: dict[str, type] = {
    "inputs": InputSettings,
    "events": EventSettings,
    "model": ModelSettings,
    "resources": ResourceSettings,
    "run": RunSettings,
}
