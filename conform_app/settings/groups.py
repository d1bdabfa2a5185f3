# SPDX-License-Identifier: Apache-2.0
"""The settings themselves, in groups: the sections of the TOML file and of the help text.

Fields marked ``alters`` change results: they make up the configuration hash.
"""

from __future__ import annotations

from dataclasses import dataclass

from conform_app.settings.declare import option
from conform_app.settings.encoding import EncodeSettings
from conform_app.settings.merging import GroupSettings

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
        "condition; of several with commas between, each run takes the first that it has (default: the first "
        "that all runs have of stim_id, stim_file, trial_type)",
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
    onset_shift: float = option(
        0.0,
        "seconds added to every onset, where events are counted from later than the first volume",
        kind="float",
        metavar="SECONDS",
        alters=True,
    )
    task_onset_shift: tuple[str, ...] = option(
        (), "the same for the runs of one task", many=True, metavar="TASK=SECONDS", alters=True
    )
    press_column: str | None = option(
        None,
        "column of the events files that says which button was pressed (0 or n/a: none): presses, at onset + "
        "response_time, are modelled as nuisance, a regressor a button",
        metavar="COLUMN",
        alters=True,
    )
    stim_pattern: str | None = option(
        None,
        "regular expression whose first group (or whole match) is the stimulus's name within its column, for "
        'example "([^/]+)$" for what follows the last slash; a name that does not match stays as it is',
        metavar="REGEX",
        alters=True,
    )
    skip_immediate_repeats: bool = option(
        False,
        "drop a row that shows the stimulus of the row before it again (one-back tasks)",
        kind="bool",
        alters=True,
    )
    test_trials: str | None = option(
        None,
        "the dataset's own test set, as a pandas query on the trial table (session, run, task, trial_type, "
        'stim_id, n_trials: how often the stimulus was shown in the fit), for example "n_trials > 1"; the '
        "other trials are train",
        metavar="QUERY",
        alters=True,
    )
    artificial_trials: str | None = option(
        None, "trials of artificial stimuli, likewise", metavar="QUERY", alters=True
    )


@dataclass(frozen=True)
class ModelSettings:
    """What is estimated."""

    fit_level: tuple[str, ...] = option(
        ("session",),
        "what one fit pools: 'session' (each session by itself), 'subject' (all sessions), or "
        "groups of sessions such as 01,02 03,04, with patterns (0[1-5]) and, if wanted, a name that stands "
        "for the sessions in names of files (shapes=art*)",
        many=True,
        metavar="LEVEL",
        alters=True,
    )
    fit_tasks: str = option(
        "apart",
        "tasks are fitted apart, or runs of all of them (or of those of --task-id) are one fit: one response "
        "to a stimulus that several tasks show, one set of noise regressors and ridge fractions",
        choices=("apart", "together"),
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
        "auto",
        "PSN denoising of the condition averages: cross-validated cut, or the best of cuts and Wiener filter "
        "by cross-validation (auto), or a preset of the method, or off",
        choices=("off", "cv", "auto", "standard", "conservative", "aggressive", "compare", "wiener"),
        alters=True,
    )
    psn_level: str = option(
        "unit",
        "the cross-validated cut is one for all voxels, or one for each",
        choices=("population", "unit"),
        alters=True,
    )
    psn_parcels: tuple[str, ...] = option(
        ("blocks",),
        "voxels that PSN denoises together: compact blocks, the regions of an atlas on the grid of the data "
        "(NIfTI, one .label.gii a hemisphere, or .dlabel.nii), or none: all voxels at once",
        many=True,
        metavar="blocks|none|FILE",
        alters=True,
    )
    psn_type: str = option(
        "B",
        "single-trial betas that PSN is fed (the last type there is, where this one is not)",
        choices=("A", "B", "C", "D"),
        alters=True,
    )
    psn_scale: str = option(
        "z",
        "PSN sees betas z-scored per voxel and session, or as they are in percent signal change",
        choices=("z", "percent"),
        alters=True,
    )
    random_seed: int = option(0, "seed of everything random", kind="int", metavar="N", alters=True)
    sloppy: bool = option(
        False, "TESTING ONLY: 5 ridge fractions and at most 2 noise regressors", kind="bool", alters=True
    )


@dataclass(frozen=True)
class StudySettings:
    """Which study this is."""

    dataset_name: str | None = option(
        None,
        "short name of the dataset in collections, of letters and digits (default: from its folder)",
        metavar="NAME",
    )
    dataset_long_name: str | None = option(None, "its full name", metavar="NAME")
    visual_angle: float | None = option(
        None, "width of the stimuli in degrees of visual angle", kind="float", metavar="DEGREES"
    )
    own_split_rule: str | None = option(
        None,
        "how the group level finds the test set of this study, where single participants cannot tell (see "
        "--split-rule)",
        choices=("stimulus", "run", "farthest", "shared"),
    )
    own_split_list: str | None = option(
        None, "file and column that list its test set; named in messages, never read", metavar="TEXT"
    )
    publication_url: str | None = option(None, "address of its publication", metavar="URL")
    code_url: str | None = option(None, "address of its code", metavar="URL")
    owner_name: str | None = option(None, "whom to ask about the data", metavar="NAME")
    owner_email: str | None = option(None, "and under which address", metavar="ADDRESS")


@dataclass(frozen=True)
class ResourceSettings:
    """What the run may use."""

    nprocs: int | None = option(
        None,
        "processes at once (default: the CPUs that this process may use; on a GPU 4 GiB of it for each)",
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
        "memory to stay within, with K, M, G or T; a plain number is megabytes (default: 80 %% of what is "
        "free)",
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
    verbose: int = option(
        0, "say more (-v: details, -vv: Nipype's own messages, too)", flags=("-v",), kind="count"
    )
    notrack: bool = option(
        False, "no effect: nothing is ever tracked (kept for cluster scripts)", kind="bool"
    )


GROUPS: dict[str, type] = {
    "inputs": InputSettings,
    "events": EventSettings,
    "model": ModelSettings,
    "study": StudySettings,
    "group": GroupSettings,
    "encode": EncodeSettings,
    "resources": ResourceSettings,
    "run": RunSettings,
}
