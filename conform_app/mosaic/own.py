# SPDX-License-Identifier: Apache-2.0
"""A train and a test set for a dataset that came without.

Whatever the rule, no stimulus of a participant ends on both sides of that participant:

``stimulus``  a stimulus is test if the hash of its name falls below the fraction: the same stimulus gets the
              same side in every participant and every dataset, and keeps it when data are added;
``run``       the last runs of each participant are test, as far as their stimuli were not shown in the others
              (HAD: runs 10 to 12 of 12);
``farthest``  per participant (and task, where there are several), the fraction of stimuli with the largest
              median cosine distance to the others is test (MOSAIC's rule for NOD, on DreamSim embeddings);
``shared``    stimuli that more than one participant saw are test (NSD: its shared 1,000).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np

from conform_app.errors import DataError, UsageError
from conform_app.mosaic.similarity import Embeddings, median_distance

if TYPE_CHECKING:
    import pandas as pd


def own_split(
    trials: pd.DataFrame,
    *,
    rule: Literal["stimulus", "run", "farthest", "shared"] = "stimulus",
    fraction: float = 0.2,
    embeddings: Mapping[str, np.ndarray] | Embeddings | None = None,
) -> np.ndarray:
    """Give each trial of one dataset a phase.

    Parameters
    ----------
    trials : DataFrame
        One row per trial, in order of presentation: ``participant``, ``stimulus``; for ``run`` also
        ``run`` and, where there are several, ``session``; for ``farthest`` also ``task``, where there are
        several.
    rule : {"stimulus", "run", "farthest", "shared"}
        See the module's text.
    fraction : float, default 0.2
        Share of stimuli (or runs) to be test, between 0 and 1; has no meaning for ``shared``.
    embeddings : mapping from stimulus to vector, optional
        For ``farthest``: needed for every stimulus.

    Returns
    -------
    ndarray, (n_trials,) str
        ``train`` or ``test``.

    Raises
    ------
    DataError
        If a column or an embedding is missing, or one side stays empty.
    UsageError
        If the rule or the fraction is none.
    """
    if rule not in ("stimulus", "run", "farthest", "shared"):
        raise UsageError(f"{rule!r} is no rule for a split.", "Choose stimulus, run, farthest or shared.")
    if not 0.0 < fraction < 1.0:
        raise UsageError(f"{fraction} is no share of a dataset.", "Give a number between 0 and 1.")
    for column in ("participant", "stimulus", *(["run"] if rule == "run" else [])):
        if column not in trials.columns:
            raise DataError(f"The table of trials lacks the column {column!r}.", "Add it.")
    stimulus = trials["stimulus"].to_numpy(dtype=object)
    participant = trials["participant"].to_numpy(dtype=object)
    test = np.zeros(len(trials), dtype=bool)
    if rule == "stimulus":
        test = np.array([_uniform(name) < fraction for name in stimulus], dtype=bool)
    elif rule == "shared":
        seen_by = trials.groupby("stimulus", sort=False)["participant"].nunique()
        test = (trials["stimulus"].map(seen_by) > 1).to_numpy(dtype=bool)
    else:
        unit = Embeddings.of(embeddings)
        for one in dict.fromkeys(participant):
            rows = np.flatnonzero(participant == one)
            if rule == "run":
                test[rows] = _last_runs(trials.iloc[rows], fraction)
            else:
                tasks = trials["task"].to_numpy(str)[rows] if "task" in trials.columns else None
                test[rows] = _farthest(stimulus[rows], tasks, fraction, unit)
    if len(trials) and (test.all() or not test.any()):
        raise DataError(
            f"The rule {rule!r} leaves no {'train' if test.all() else 'test'} trial.",
            "Choose another fraction or rule; with stimuli that come back in every run, split by stimulus.",
        )
    return np.where(test, "test", "train").astype(str)


def _uniform(name: str) -> float:
    """A number in [0, 1) that depends on the name alone."""
    return int.from_bytes(hashlib.sha256(str(name).encode()).digest()[:8], "big") / 2.0**64


def _last_runs(trials: pd.DataFrame, fraction: float) -> np.ndarray:
    session = trials["session"] if "session" in trials.columns else [""] * len(trials)
    runs = list(zip(map(str, session), map(str, trials["run"]), strict=True))
    order = list(dict.fromkeys(runs))
    last = set(order[len(order) - math.ceil(fraction * len(order)) :])
    stimulus = trials["stimulus"].tolist()
    early = {name for name, run in zip(stimulus, runs, strict=True) if run not in last}
    return np.array([name not in early for name in stimulus], dtype=bool)


def _farthest(
    stimulus: np.ndarray, tasks: np.ndarray | None, fraction: float, unit: Embeddings
) -> np.ndarray:
    """Trials of one participant that are test; a stimulus that is in one task is in all."""
    if tasks is None:
        tasks = np.zeros(len(stimulus), int)
    test = set().union(*(_far_names(set(stimulus[tasks == task]), fraction, unit) for task in set(tasks)))
    return np.array([name in test for name in stimulus], dtype=bool)


def _far_names(stimuli: set[str], fraction: float, unit: Embeddings) -> set[str]:
    names = sorted(stimuli)
    found, vectors = unit.take(names)
    if len(found) < len(names):
        first = sorted(set(names) - set(found))[0]
        raise DataError(
            f"{len(names) - len(found)} stimuli have no embedding, the first {first}.",
            "The rule 'farthest' needs an embedding of every stimulus.",
        )
    far = np.argsort(-median_distance(vectors), kind="stable")  # ties by name
    return {names[i] for i in far[: round(fraction * len(names))]}
