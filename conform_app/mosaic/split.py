# SPDX-License-Identifier: Apache-2.0
"""One division into train and test for many datasets, without a stimulus on both sides.

Each dataset brings its own phases.  Following MOSAIC (Lahner et al. 2025, bioRxiv 2025.11.28.690060):

1. a stimulus is train, test or both, as its datasets say;
2. a stimulus in both goes where more of its trials are, over all datasets and participants, ties to test;
   the trials of the other side are dropped (*excluded*), not moved;
3. a train stimulus whose embedding is more similar than the threshold to any test stimulus, artificial ones
   included, is dropped from train.

Artificial stimuli are a test set of their own.  The result depends on the table alone, not on chance.
"""

from __future__ import annotations

from collections.abc import Collection as Names
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from conform_app.errors import DataError
from conform_app.mosaic.audit import Audit, audit_split
from conform_app.mosaic.similarity import THRESHOLD, Embeddings, pairs_above

if TYPE_CHECKING:
    import pandas as pd

PHASES = ("train", "test", "artificial")
SIDES = ("train", "test", "artificial", "excluded")


@dataclass(frozen=True, eq=False)
class Split:
    """Which stimulus a model may learn from and which it is judged on.

    Attributes
    ----------
    stimuli : DataFrame, one row per stimulus, in the order of first appearance
        ``stimulus``, ``split`` (train, test, artificial, excluded), ``reason``, ``n_train`` and ``n_test``
        (trials on each side by the datasets' own phases), ``nearest_test`` and ``similarity`` (most similar
        test stimulus; for train and excluded stimuli that have an embedding).
    near : DataFrame
        ``test``, ``train``, ``similarity`` of every pair that cost a train stimulus its place.
    audit : Audit
        What similarity is left between train and test.
    account : list of str
        What was decided, in plain sentences.
    threshold : float
    counts : dict of str to int
        Numbers behind these sentences.
    """

    stimuli: pd.DataFrame
    near: pd.DataFrame
    audit: Audit
    account: list[str]
    threshold: float
    counts: dict[str, int] = field(default_factory=dict)

    def of(self, stimulus: str) -> str:
        """Split of one stimulus.

        Parameters
        ----------
        stimulus : str
            As in ``stimuli``; a name that is not there is a KeyError.

        Returns
        -------
        str
            ``"train"``, ``"test"``, ``"artificial"`` or ``"excluded"``.
        """
        return self._sides()[stimulus]

    def of_trials(self, trials: pd.DataFrame) -> np.ndarray:
        """Split of each trial.

        Parameters
        ----------
        trials : DataFrame
            Columns ``stimulus`` and ``phase`` (the dataset's own).

        Returns
        -------
        ndarray, (n_trials,) str
            ``excluded`` where the stimulus is excluded or ended up on the side that the trial's own dataset
            did not have it on.

        Raises
        ------
        DataError
            If a trial's stimulus is not part of the split.
        """
        return side_of_trials(self._sides(), trials)

    def mosaic_lists(self, presentations: pd.DataFrame) -> dict[str, list[dict[str, list[str]]]]:
        """Write the split in MOSAIC's form: trial names per participant, dataset and stimulus.

        Parameters
        ----------
        presentations : DataFrame
            As for `split_stimuli`; the order of its rows is the order of the lists.

        Returns
        -------
        dict
            ``train_naturalistic``, ``test_naturalistic``, ``test_artificial``: one-key dicts
            ``{"sub-XX_DATASET_stimulus-FILE": [trial names]}``.
        """
        lists: dict[str, list[dict[str, list[str]]]] = {
            "train_naturalistic": [],
            "test_naturalistic": [],
            "test_artificial": [],
        }
        where = {"train": "train_naturalistic", "test": "test_naturalistic", "artificial": "test_artificial"}
        table = _grouped(presentations)
        side = self.of_trials(table)
        rank = {name: i for i, name in enumerate(self.stimuli["stimulus"])}
        rows = zip(side, *(table[column] for column in table.columns), strict=True)
        for its_side, name, dataset, participant, own, count in sorted(rows, key=lambda row: rank[row[1]]):
            if its_side == "excluded" or not count:
                continue
            phase = "train" if own == "train" else "test"
            head = f"{participant}_{dataset}_stimulus-"
            trials = [f"{head}{stem(name)}_phase-{phase}_rep-{r}.npz" for r in range(count)]
            lists[where[its_side]].append({head + name: trials})
        return lists

    def _sides(self) -> dict[str, str]:
        return dict(zip(self.stimuli["stimulus"], self.stimuli["split"], strict=True))


def side_of_trials(sides: Mapping[str, str], trials: pd.DataFrame) -> np.ndarray:
    """Side of each trial, given the side of each stimulus; see `Split.of_trials`."""
    stimulus = trials["stimulus"].to_numpy(dtype=object)
    missing = [name for name in dict.fromkeys(stimulus) if name not in sides]
    if missing:
        raise DataError(
            f"{len(missing)} stimuli have no split, the first {missing[0]!r}.", "Make the split again."
        )
    side = np.array([sides[name] for name in stimulus], dtype=object)
    train = trials["phase"].to_numpy(dtype=object) == "train"
    return np.where(train == (side == "train"), side, "excluded").astype(str)


def stem(name: str) -> str:
    """File name without its last extension."""
    return name.rpartition(".")[0] or name


def split_stimuli(
    presentations: pd.DataFrame,
    *,
    embeddings: Mapping[str, np.ndarray] | Embeddings | None = None,
    threshold: float = THRESHOLD,
    artificial: Names[str] = (),
    device: str = "cpu",
) -> Split:
    """Divide the stimuli of many datasets into train and test without overlap.

    Parameters
    ----------
    presentations : DataFrame
        Columns ``stimulus``, ``dataset``, ``participant``, ``phase`` (train, test or artificial) and, unless
        every row is one trial, ``n_trials``.
    embeddings : mapping from stimulus to vector, optional
        Needed for step 3; stimuli without an embedding stay where they are and are counted in the audit.
    threshold : float, default 0.8196
        Cosine similarity above which a train stimulus is too close to a test stimulus; the default is
        MOSAIC's for DreamSim (see `conform_app.mosaic.similarity`).
    artificial : collection of str
        Stimuli that are artificial although their dataset calls them test.
    device : str, default "cpu"
        Where similarities are computed (``cuda``: one GPU).

    Returns
    -------
    Split

    Raises
    ------
    DataError
        If a column is missing, a phase is unknown, an artificial stimulus is somebody's train stimulus, or
        the threshold is not between -1 and 1.

    Examples
    --------
    >>> import pandas as pd
    >>> table = pd.DataFrame({"stimulus": ["a.jpg", "a.jpg", "b.jpg"], "dataset": ["X", "Y", "X"],
    ...     "participant": "sub-01", "phase": ["train", "test", "train"], "n_trials": [1, 3, 1]})
    >>> split_stimuli(table).stimuli["split"].tolist()
    ['test', 'train']
    """
    import pandas as pd

    if not -1.0 <= threshold <= 1.0:
        raise DataError(f"A cosine similarity of {threshold} does not exist.", "Give a number from -1 to 1.")
    table = _grouped(presentations)
    names = list(dict.fromkeys(table["stimulus"]))
    code = pd.Series(range(len(names)), index=names).loc[table["stimulus"]].to_numpy()
    phase, count = table["phase"].to_numpy(dtype=object), table["n_trials"].to_numpy()
    made = np.isin(table["stimulus"].to_numpy(dtype=object), list(artificial)) | (phase == "artificial")
    is_artificial = np.bincount(code, made, len(names)) > 0
    train = np.bincount(code, np.where(phase == "train", count, 0), len(names)).astype(int)
    test = np.bincount(code, np.where(phase == "train", 0, count), len(names)).astype(int)
    if (is_artificial & (train > 0)).any():
        wrong = names[int((is_artificial & (train > 0)).argmax())]
        raise DataError(
            f"{wrong} is artificial in one place and a train stimulus in another.",
            "Correct the phase or the name; artificial stimuli are a test set of their own.",
        )
    side = np.where(is_artificial, "artificial", np.where(train > test, "train", "test")).astype(object)
    reason = np.full(len(names), "own split", dtype=object)
    both = (train > 0) & (test > 0)
    reason[both] = "in train and test: to the side with more trials"
    side[(train == 0) & (test == 0)], reason[(train == 0) & (test == 0)] = "excluded", "no trials"
    unit = Embeddings.of(embeddings)
    before = side.copy()
    near = _remove_near(names, side, reason, unit, threshold, device)
    audit = audit_split(names, before, side, table, unit, threshold, device=device)
    stimuli = pd.DataFrame(
        {"stimulus": names, "split": side, "reason": reason, "n_train": train, "n_test": test}
    ).astype({"split": str, "reason": str})
    stimuli["nearest_test"], stimuli["similarity"] = audit.nearest_test, audit.similarity
    counts = {
        "conflicts": int(both.sum()),
        "conflicts_to_test": int((both & (test >= train)).sum()),
        "train_trials_lost": int(train[both & (before != "train")].sum()),
        "test_trials_lost": int(test[both & (before == "train")].sum()),
        "near_stimuli": int((before != side).sum()),
        "near_trials": int(train[before != side].sum()),
    }
    return Split(stimuli, near, audit, _account(counts, stimuli, audit), threshold, counts)


def _grouped(presentations: pd.DataFrame) -> pd.DataFrame:
    """Number of trials per stimulus, dataset, participant and phase, in the order of first appearance."""
    need = ["stimulus", "dataset", "participant", "phase"]
    missing = [column for column in need if column not in presentations.columns]
    if missing:
        raise DataError(
            f"The table of presentations lacks the column {missing[0]!r}.",
            f"It needs {', '.join(need)}, and n_trials unless each row is one trial.",
        )
    table = presentations[need].astype(str)
    unknown = sorted(set(table["phase"]) - set(PHASES))
    if unknown:
        raise DataError(
            f"{unknown[0]!r} is no phase of a stimulus.",
            f"Phases are {', '.join(PHASES)}; own_split makes them for a dataset that has none.",
        )
    table["n_trials"] = presentations["n_trials"].astype(int) if "n_trials" in presentations.columns else 1
    if (table["n_trials"] < 0).any():
        raise DataError("A number of trials is negative.", "Correct n_trials.")
    return table.groupby(need, sort=False, as_index=False)["n_trials"].sum()


def _remove_near(
    names: list[str],
    side: np.ndarray,
    reason: np.ndarray,
    unit: Embeddings,
    threshold: float,
    device: str,
) -> Any:
    """Step 3, in place; return the table of pairs."""
    import pandas as pd

    place = {name: i for i, name in enumerate(names)}
    tests, of_test = unit.take(name for name in names if side[place[name]] in ("test", "artificial"))
    trains, of_train = unit.take(name for name in names if side[place[name]] == "train")
    first, second, value = pairs_above(of_test, of_train, threshold, device=device)
    for i, j, similarity in zip(first, second, value, strict=True):
        at = place[trains[j]]
        side[at], reason[at] = "excluded", f"similar to test stimulus {tests[i]} ({similarity:.4f})"
    pairs = {"test": [tests[i] for i in first], "train": [trains[j] for j in second], "similarity": value}
    # A train stimulus near to several test stimuli is lost once, to the first
    return pd.DataFrame(pairs).drop_duplicates("train", ignore_index=True)


def _account(counts: dict[str, int], stimuli: pd.DataFrame, audit: Audit) -> list[str]:
    n = {side: int((stimuli["split"] == side).sum()) for side in SIDES}
    said = [
        f"{len(stimuli)} stimuli: {n['train']} train, {n['test']} test, {n['artificial']} artificial, "
        f"{n['excluded']} excluded."
    ]
    if counts["conflicts"]:
        to_test, to_train = counts["conflicts_to_test"], counts["conflicts"] - counts["conflicts_to_test"]
        said.append(
            f"{counts['conflicts']} stimuli were train in one dataset and test in another: {to_test} went to "
            f"test ({counts['train_trials_lost']} train trials dropped) and {to_train} to train "
            f"({counts['test_trials_lost']} test trials dropped)."
        )
    if counts["near_stimuli"]:
        said.append(
            f"{counts['near_stimuli']} train stimuli ({counts['near_trials']} trials) were dropped because "
            "they resemble a test stimulus."
        )
    return said + audit.account
