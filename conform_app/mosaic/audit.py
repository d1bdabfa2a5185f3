# SPDX-License-Identifier: Apache-2.0
"""What a model could still learn about the test set from the train set.

After the split, each train stimulus has a most similar test stimulus; the largest of these similarities,
their quantiles, and how many stimuli could not be checked for want of an embedding say how clean the split
is.  The same numbers from before near-duplicates were dropped say what that step did.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from conform_app.mosaic.similarity import Embeddings, nearest

if TYPE_CHECKING:
    import pandas as pd

QUANTILES = (0.5, 0.9, 0.99, 0.999)


@dataclass(frozen=True, eq=False)
class Audit:
    """Similarity between train and test.

    Attributes
    ----------
    max_similarity : float
        Largest cosine similarity of a train and a test stimulus; NaN if none could be compared.
    pair : tuple of str
        That train and that test stimulus; empty if none.
    max_before : float
        The same before near-duplicates were dropped.
    quantiles : dict
        Of the similarity of train stimuli to their nearest test stimulus.
    n_checked, n_unchecked : int
        Stimuli in train or test with and without an embedding.
    threshold : float
    by_dataset : DataFrame
        ``train_dataset``, ``test_dataset``, ``max_similarity``, ``train``, ``test``: the closest pair between
        the train stimuli of one dataset and the test stimuli of another.
    nearest_test, similarity : ndarray, (n_stimuli,)
        Per stimulus of the split; empty and NaN for test stimuli and those without embedding.
    account : list of str
    """

    max_similarity: float
    pair: tuple[str, ...]
    max_before: float
    quantiles: dict[str, float]
    n_checked: int
    n_unchecked: int
    threshold: float
    by_dataset: pd.DataFrame
    nearest_test: np.ndarray
    similarity: np.ndarray
    account: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers as plain types, for a JSON file."""
        number = lambda x: None if np.isnan(x) else round(float(x), 6)  # noqa: E731
        return {
            "max_similarity": number(self.max_similarity),
            "pair": list(self.pair),
            "max_similarity_before": number(self.max_before),
            "quantiles": {key: number(value) for key, value in self.quantiles.items()},
            "n_checked": self.n_checked,
            "n_unchecked": self.n_unchecked,
            "threshold": self.threshold,
            "account": self.account,
        }

    def table(self) -> pd.DataFrame:
        """Closest pairs between datasets, the most similar first."""
        return self.by_dataset


def audit_split(
    names: list[str],
    before: np.ndarray,
    side: np.ndarray,
    table: pd.DataFrame,
    unit: Embeddings,
    threshold: float,
    *,
    device: str = "cpu",
) -> Audit:
    """Compare train with test.

    Parameters
    ----------
    names : list of str
        Stimuli.
    before, side : ndarray, (n_stimuli,)
        Split of each before and after near-duplicates were dropped.
    table : DataFrame
        ``stimulus`` and ``dataset`` of every presentation.
    unit : Embeddings
    threshold : float
    device : str, default "cpu"
        Where similarities are computed .

    Returns
    -------
    Audit
    """
    sides = dict(zip(names, side, strict=True))
    trained = [name for name, was in zip(names, before, strict=True) if was == "train"]
    tested = [name for name in names if sides[name] in ("test", "artificial")]
    trains, of_train = unit.take(trained)
    tests, of_test = unit.take(tested)
    index, value = nearest(of_train, of_test, device=device)
    found = {name: (tests[i] if i >= 0 else "", s) for name, i, s in zip(trains, index, value, strict=True)}
    similarity = np.array([found.get(name, ("", np.nan))[1] for name in names], dtype=np.float64)
    nearest_test = np.array([found.get(name, ("", np.nan))[0] for name in names], dtype=object)
    kept = (side == "train") & np.isfinite(similarity)
    most, pair = float("nan"), ()
    if kept.any():
        at = int(np.where(kept, similarity, -np.inf).argmax())
        most, pair = float(similarity[at]), (names[at], str(nearest_test[at]))
    left = similarity[kept]
    quantiles = {f"{100 * q:g}%": float(np.quantile(left, q)) if left.size else np.nan for q in QUANTILES}
    n_checked = len(trains) + len(tests)
    n_unchecked = len(trained) + len(tested) - n_checked
    before_most = float(np.nanmax(similarity)) if np.isfinite(similarity).any() else float("nan")
    said = _account(most, pair, before_most, n_checked, n_unchecked, threshold)
    by_dataset = _between(sides, table, unit, device)
    return Audit(
        most,
        pair,
        before_most,
        quantiles,
        n_checked,
        n_unchecked,
        threshold,
        by_dataset,
        nearest_test,
        similarity,
        said,
    )


def _account(
    most: float, pair: tuple[str, ...], before: float, n_checked: int, n_unchecked: int, threshold: float
) -> list[str]:
    said = ["No stimulus is both in train and in test."]
    if pair:
        said.append(
            f"The most similar train and test stimuli, {pair[0]} and {pair[1]}, have a cosine similarity of "
            f"{most:.4f} (before near-duplicates above {threshold:g} were dropped: {before:.4f})."
        )
    if n_unchecked:
        said.append(
            f"{n_unchecked} of {n_checked + n_unchecked} stimuli have no embedding: near-duplicates among "
            "them are not found."
        )
    return said


def _between(sides: dict[str, str], table: pd.DataFrame, unit: Embeddings, device: str) -> pd.DataFrame:
    """Closest train and test stimulus for each pair of datasets."""
    import pandas as pd

    train: dict[str, dict[str, None]] = {}
    test: dict[str, dict[str, None]] = {}
    for name, dataset in zip(table["stimulus"], table["dataset"], strict=True):
        if sides[name] != "excluded":
            (train if sides[name] == "train" else test).setdefault(dataset, {})[name] = None
    rows = []
    for one, its_train in train.items():
        trains, of_train = unit.take(its_train)
        for other, its_test in test.items():
            tests, of_test = unit.take(its_test)
            if not trains or not tests:
                continue
            index, value = nearest(of_train, of_test, device=device)
            at = int(value.argmax())
            rows.append((one, other, float(value[at]), trains[at], tests[index[at]]))
    columns = ["train_dataset", "test_dataset", "max_similarity", "train", "test"]
    return pd.DataFrame(sorted(rows, key=lambda row: -row[2]), columns=columns)
