# SPDX-License-Identifier: Apache-2.0
"""Settings of the group level: who is merged, how stimuli are identified and split."""

from __future__ import annotations

from dataclasses import dataclass

from conform_app.settings.declare import option


@dataclass(frozen=True)
class GroupSettings:
    """What the group level makes of participants' results."""

    pool_space: str | None = option(
        None,
        "space of the collection, as SPACE[:den-y] (default: the surface space that most participants have)",
        metavar="SPACE",
    )
    beta_type: str = option(
        "best",
        "single-trial betas to merge: a GLM type, or of each participant the last type written (D before C; "
        "B where stimuli do not repeat)",
        choices=("best", "A", "B", "C", "D"),
    )
    pool: str = option(
        "compatible",
        "whom to merge: compatible participants (same CONFORM version, preprocessing program and settings of "
        "the model), or all that are compliant (the format and the space agree)",
        choices=("compatible", "compliant"),
    )
    split: str = option(
        "auto",
        "table (TSV with the columns dataset, stim_id and split) that says which stimuli are train, test or "
        "artificial; auto: each dataset's own, and for a dataset that has none one by --split-rule",
        kind="path",
        metavar="FILE",
    )
    split_rule: str = option(
        "auto",
        "split of a dataset that has none of its own: whole stimuli, whole runs, the fifth of a "
        "participant's stimuli that are farthest from the others (needs --features), or shared: those that "
        "several participants saw are test; auto: as the dataset's recipe says, else whole stimuli",
        choices=("auto", "stimulus", "run", "farthest", "shared"),
    )
    features: str | None = option(
        None,
        "features of the stimuli (.npz with an array a stimulus, or names and values; .npy with a .txt of "
        "names beside it), from which near-duplicates are found",
        kind="path",
        metavar="FILE",
    )
    similarity_threshold: float = option(
        0.8196,
        "cosine similarity above which two stimuli are near-duplicates; the default was published for "
        "DreamSim features (the similarity of two nearby frames of one clip) and means nothing for others",
        kind="float",
        metavar="X",
    )
    same_name: str = option(
        "check",
        "one name with different content in two datasets: look at --features and refuse where they cannot "
        "tell, take it for one stimulus (crops of one picture), or keep the datasets' versions apart",
        choices=("check", "same", "separate"),
    )
    aliases: str | None = option(
        None,
        "table (TSV with the columns dataset, stim_id and name) that gives stimuli the names by which they "
        "are known across datasets",
        kind="path",
        metavar="FILE",
    )
    stimuli: tuple[tuple[str, str], ...] = option(
        (),
        "folders with the stimulus files of datasets, as DATASET=PATH: equal files are one stimulus",
        kind="derivative",
        many=True,
        metavar="DATASET=PATH",
    )
    average_scale: str = option(
        "z",
        "denoised averages (PSN) beside the betas: on the scale of the betas (the mean and sd of the train "
        "trials of their fit), or as they are in percent signal change",
        choices=("z", "percent"),
    )
    harmonise: str = option(
        "none",
        "keep, beside the betas, their scale with the datasets' share in it taken out by ComBat, from train "
        "trials alone (needs the library combatlearn); the betas themselves stay as they are",
        choices=("none", "combat"),
    )
    beta_dtype: str = option(
        "float32", "numbers in which the collection keeps betas", choices=("float32", "float16")
    )
    export_hdf5: bool = option(False, "also write one MOSAIC-compliant HDF5 file a participant", kind="bool")
    remove_participant: tuple[str, ...] = option(
        (), "participants to take out of the collection, as sub-01_DATASET", many=True, metavar="NAME"
    )
    merge_step: str = option(
        "all",
        "part of the group level to run: participants (jobs of a cluster, with --participant-label, several "
        "at once), seal (once, after them), or all",
        choices=("all", "participants", "seal"),
    )
