# SPDX-License-Identifier: Apache-2.0
"""Which stimuli of different datasets are one and the same.

Evidence, strongest first:

1. the content hash of the file: equal bytes are one stimulus, whatever the names;
2. the name: MOSAIC identifies stimuli by the original file name alone (an NSD crop and a BOLD5000 crop of one
   COCO photograph are one stimulus).  If hashes are known and differ, one name may also stand for different
   pictures (``001.jpg``), and names alone do not decide: embeddings do, or the caller.  Where a file is not
   known but features of both datasets' stimulus are, and are not alike, the caller decides;
3. an alias (the name used in the experiment) leads to the name of its own dataset only.

Stimuli that merely resemble each other (embeddings above the threshold) stay apart and are listed as `near`;
`split_stimuli` keeps such pairs from lying on both sides.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from conform_app.errors import DataError, UsageError
from conform_app.mosaic.similarity import THRESHOLD, Embeddings, pairs_above

if TYPE_CHECKING:
    import pandas as pd

_OPTIONAL = ("alias", "source", "sha256")
_MISSING = ("", "n/a", "nan", "None")


@dataclass(frozen=True, eq=False)
class Identity:
    """The stimuli of a collection and the names they go by.

    Attributes
    ----------
    stimuli : DataFrame, one row per stimulus
        ``stimulus`` (its name in the collection), ``source``, ``artificial``, ``sha256``, ``n_datasets``.
    names : DataFrame, one row per dataset and name
        ``dataset``, ``name``, ``alias``, ``sha256``, ``stimulus``.
    near : DataFrame
        ``stimulus_a``, ``stimulus_b``, ``similarity`` of different stimuli more alike than the threshold.
    account : list of str
        What was merged and kept apart, in plain sentences.
    """

    stimuli: pd.DataFrame
    names: pd.DataFrame
    near: pd.DataFrame
    account: list[str]

    def of(self, dataset: str, names: Iterable[str]) -> np.ndarray:
        """Stimulus of each name or alias of a dataset.

        Parameters
        ----------
        dataset : str
        names : iterable of str
            Names or aliases that the dataset gives its stimuli.

        Returns
        -------
        ndarray of str

        Raises
        ------
        DataError
            If a name is not known.
        """
        return lookup(self.names, dataset, names)


def lookup(table: pd.DataFrame, dataset: str, names: Iterable[str]) -> np.ndarray:
    """Stimulus of each name or alias of a dataset; see `Identity.of`."""
    its = table[table["dataset"] == dataset]
    known = {a: s for a, s in zip(its["alias"], its["stimulus"], strict=True) if a not in _MISSING}
    known |= dict(zip(its["name"], its["stimulus"], strict=True))
    names = [str(name) for name in names]
    missing = [name for name in dict.fromkeys(names) if name not in known]
    if missing:
        raise DataError(
            f"{dataset} has {len(missing)} stimuli that the table of names lacks, the first {missing[0]!r}.",
            "Add them to the table of names.",
        )
    return np.array([known[name] for name in names], dtype=str)


def resolve_duplicates(
    names: pd.DataFrame,
    *,
    embeddings: Mapping[str, np.ndarray] | Embeddings | None = None,
    threshold: float = THRESHOLD,
    same_name: Literal["check", "same", "separate"] = "check",
    device: str = "cpu",
) -> Identity:
    """Find the stimuli that several datasets share.

    Parameters
    ----------
    names : DataFrame
        One row per dataset and stimulus name (repeated rows are fine): ``dataset``, ``name`` (of the
        original file, with extension); optional ``alias``, ``source``, ``sha256`` (see `content_hash`),
        ``artificial``.
    embeddings : mapping, optional
        Vector of each stimulus, keyed by name or, where datasets hold different files of one name, by
        ``DATASET/name``.
    threshold : float, default 0.8196
        Cosine similarity above which two contents of one name count as versions of one stimulus, and above
        which different stimuli are listed as near; the default is MOSAIC's for DreamSim.
    same_name : {"check", "same", "separate"}
        What to do with one name whose hashes differ between datasets: decide by embeddings and raise where
        there are none; take it for one stimulus (MOSAIC); keep the datasets' versions apart.  ``check`` also
        raises where hashes are not known and embeddings (by ``DATASET/name``) are not alike.
    device : str, default "cpu"
        Where similarities are computed (``cuda``: one GPU).

    Returns
    -------
    Identity

    Raises
    ------
    DataError
        If a column is missing, a dataset uses one name for two contents or one alias for two names, or
        ``check`` meets a name it cannot decide.
    UsageError
        If ``same_name`` is something else.
    """
    import pandas as pd

    if same_name not in ("check", "same", "separate"):
        raise UsageError(f"same_name = {same_name!r} is no choice.", "Choose check, same or separate.")
    rows = _rows(names)
    unit = Embeddings.of(embeddings)
    said: list[str] = []
    groups = _Groups(len(rows))
    _join_equal_content(rows, groups, said)
    _join_equal_names(rows, groups, unit, threshold, same_name, said)
    rows["stimulus"] = _canonical(rows, groups)
    stimuli = pd.DataFrame(
        {
            "stimulus": rows["stimulus"],
            "source": rows["source"],
            "artificial": rows["artificial"],
            "sha256": rows["sha256"],
        }
    )
    first = stimuli.groupby("stimulus", sort=False)
    merged = first.agg(
        source=("source", _first_known), artificial=("artificial", "any"), sha256=("sha256", _first_known)
    )
    merged["n_datasets"] = rows.groupby("stimulus", sort=False)["dataset"].nunique()
    merged = merged.reset_index()
    shared = merged[merged["n_datasets"] > 1]
    said.insert(
        0,
        f"{len(rows)} names of {rows['dataset'].nunique()} datasets are {len(merged)} stimuli; {len(shared)} "
        "are shared by two or more datasets.",
    )
    near = _near(merged["stimulus"].tolist(), rows, unit, threshold, device)
    if len(near):
        said.append(
            f"{len(near)} pairs of different stimuli are more alike than {threshold:g}; they stay apart, "
            "but not on both sides of the split."
        )
    return Identity(merged, rows[["dataset", "name", "alias", "sha256", "stimulus"]], near, said)


class _Groups:
    """Disjoint sets of rows; the root of a set is its first row."""

    def __init__(self, n: int) -> None:
        self.parent = list(range(n))

    def root(self, i: int) -> int:
        while self.parent[i] != i:
            self.parent[i] = i = self.parent[self.parent[i]]
        return i

    def join(self, i: int, j: int) -> None:
        i, j = self.root(i), self.root(j)
        self.parent[max(i, j)] = min(i, j)


def _rows(names: pd.DataFrame) -> pd.DataFrame:
    """One row per dataset and name, checked."""
    for column in ("dataset", "name"):
        if column not in names.columns:
            raise DataError(f"The table of names lacks the column {column!r}.", "It needs dataset and name.")
    rows = names[["dataset", "name"]].astype(str).reset_index(drop=True)
    for column in _OPTIONAL:
        given = names[column].astype(str).to_numpy() if column in names.columns else ""
        rows[column] = given
        rows.loc[rows[column].isin(_MISSING), column] = "n/a"
    rows["artificial"] = names["artificial"].to_numpy(bool) if "artificial" in names.columns else False
    rows = rows.drop_duplicates(ignore_index=True)
    twice = rows.duplicated(["dataset", "name"], keep=False)
    if twice.any():
        rows = _fold(rows, twice.to_numpy())
    aliased = rows[rows["alias"] != "n/a"]
    clash = aliased.duplicated(["dataset", "alias"])
    if clash.any():
        row = aliased[clash].iloc[0]
        raise DataError(
            f"{row['dataset']} uses the alias {row['alias']!r} for two stimuli.", "Make its aliases unique."
        )
    return rows


def _fold(rows: pd.DataFrame, twice: np.ndarray) -> pd.DataFrame:
    """Fold the rows of one dataset and name into one; refuse those that contradict each other."""
    for (dataset, name), its in rows[twice].groupby(["dataset", "name"], sort=False):
        for column in ("sha256", "source", "artificial"):
            values = [v for v in its[column].unique() if v != "n/a"]
            if len(values) > 1:
                what = "contents" if column == "sha256" else f"values of {column}"
                raise DataError(
                    f"{dataset} has the stimulus {name!r} with {len(values)} different {what} "
                    f"({str(values[0])[:12]}, {str(values[1])[:12]}).",
                    "Two datasets of one name? Rename one of them. Otherwise rename the stimulus.",
                )
            rows.loc[its.index, column] = values[0] if values else "n/a"
    return rows.drop_duplicates(ignore_index=True)


def _join_equal_content(rows: pd.DataFrame, groups: _Groups, said: list[str]) -> None:
    first: dict[str, int] = {}
    renamed = 0
    for i, digest in enumerate(rows["sha256"]):
        if digest == "n/a":
            continue
        if digest in first:
            groups.join(first[digest], i)
            renamed += rows["name"].iat[i] != rows["name"].iat[first[digest]]
        first.setdefault(digest, i)
    if renamed:
        said.append(
            f"{renamed} names were merged with another name because the files are equal byte for byte."
        )


def _join_equal_names(
    rows: pd.DataFrame, groups: _Groups, unit: Embeddings, threshold: float, same_name: str, said: list[str]
) -> None:
    """Join rows of one name, unless their contents are known to differ and nothing says they are versions."""
    joiner = _EqualNames(rows, groups, unit, threshold, same_name)
    for its in rows.groupby(rows["name"].map(_spelled), sort=False).groups.values():
        if len(its) > 1:
            joiner.join(list(its))
    if joiner.by_name:
        said.append(
            f"{joiner.by_name} names have different files in different datasets and count as one stimulus."
        )
    if joiner.versions:
        said.append(
            f"{joiner.versions} names have different files whose embeddings say that they are versions of "
            "one."
        )
    if joiner.separate:
        said.append(f"{joiner.separate} names have different files in different datasets and are kept apart.")


def _spelled(name: str) -> str:
    """One form of what Unicode writes in several (an umlaut as one sign or as two)."""
    return unicodedata.normalize("NFC", name)


class _EqualNames:
    """Joins rows of one name, first those whose content is known, and counts what was decided."""

    def __init__(
        self, rows: pd.DataFrame, groups: _Groups, unit: Embeddings, threshold: float, same_name: str
    ) -> None:
        self.rows, self.groups, self.unit = rows, groups, unit
        self.threshold, self.same_name = threshold, same_name
        self.digests: list[str] = rows["sha256"].tolist()
        self.by_name = self.versions = self.separate = 0

    def join(self, its: list[int]) -> None:
        known = [i for i in its if self.digests[i] != "n/a"]
        for n, j in enumerate(known[1:], 1):
            self._known(j, known[:n])
        placed = list(known)
        for j in (i for i in its if self.digests[i] == "n/a"):
            if placed:
                self._unknown(j, placed)
            placed.append(j)

    def _known(self, j: int, options: list[int]) -> None:
        """A row with a hash, against those before it that have one."""
        equal = [i for i in options if self.digests[i] == self.digests[j]]
        if equal or self.same_name == "same":
            self.groups.join((equal or options)[0], j)
            self.by_name += not equal
            return
        if self.same_name == "separate":
            self.separate += 1
            return
        alike = _version_of(self.rows, options, j, self.unit, self.threshold)
        if alike is None:
            name, dataset = self.rows["name"][j], self.rows["dataset"]
            raise DataError(
                f"{name!r} has different content in {dataset[options[0]]} and in {dataset[j]}.",
                "Give embeddings of both (DATASET/name), or choose same_name 'same' (versions of one "
                "picture, as crops are) or 'separate'.",
            )
        if alike >= 0:
            self.groups.join(alike, j)
            self.versions += 1
        else:
            self.separate += 1

    def _unknown(self, j: int, options: list[int]) -> None:
        """A row without a hash: its name says which it is, unless that is several or features disagree."""
        alike = _version_of(self.rows, options, j, self.unit, self.threshold)
        several = len({self.groups.root(i) for i in options}) > 1
        if self.same_name == "same" or (alike is None and not several):
            self.groups.join(options[0], j)
        elif alike is not None and alike >= 0:
            self.groups.join(alike, j)
        elif self.same_name == "separate":
            self.separate += 1
        else:
            name, dataset = self.rows["name"][j], self.rows["dataset"]
            what = f"{name!r} has unlike features in {dataset[options[0]]} and in {dataset[j]}."
            if alike is None:
                what = f"Which {name!r} that of {dataset[j]} is cannot be told: others have different files."
            raise DataError(
                what,
                "Give the files (--stimuli), or choose same_name 'same' (versions of one picture, as crops "
                "are) or 'separate'.",
            )


def _version_of(
    rows: pd.DataFrame, options: list[int], j: int, unit: Embeddings, threshold: float
) -> int | None:
    """Earlier row that row j is a version of, -1 if of none, None if that cannot be said."""
    keys = [f"{rows['dataset'][i]}/{rows['name'][i]}" for i in [*options, j]]
    found, vectors = unit.take(keys)
    if len(found) < len(keys):
        return None
    similarity = vectors[:-1].astype(np.float64) @ vectors[-1].astype(np.float64)
    best = int(similarity.argmax())
    return options[best] if similarity[best] > threshold else -1


def _canonical(rows: pd.DataFrame, groups: _Groups) -> list[str]:
    """Name of each row's stimulus: the first of its group, with the dataset where two groups share it."""
    roots = [groups.root(i) for i in range(len(rows))]
    taken: dict[str, int] = {}
    called: dict[int, str] = {}
    for root in dict.fromkeys(roots):
        name = rows["name"].iat[root]
        if name in taken:
            name = f"{rows['dataset'].iat[root]}/{name}"
        taken[name] = root
        called[root] = name
    return [called[root] for root in roots]


def _first_known(values: pd.Series) -> str:
    return next((value for value in values if value != "n/a"), "n/a")


def _near(
    stimuli: list[str], rows: pd.DataFrame, unit: Embeddings, threshold: float, device: str
) -> pd.DataFrame:
    import pandas as pd

    vectors = stimulus_embeddings(stimuli, rows, unit)
    first, second, value = pairs_above(vectors.vectors, None, threshold, device=device)
    names = np.array(vectors.names, dtype=object)
    return pd.DataFrame(
        {
            "stimulus_a": names[first] if len(names) else [],
            "stimulus_b": names[second] if len(names) else [],
            "similarity": value,
        }
    )


def stimulus_embeddings(
    stimuli: Iterable[str], rows: pd.DataFrame, given: Mapping[str, np.ndarray] | Embeddings | None
) -> Embeddings:
    """Embeddings keyed by stimulus, from embeddings keyed by stimulus, by ``DATASET/name`` or by name.

    Parameters
    ----------
    stimuli : iterable of str
    rows : DataFrame
        ``dataset``, ``name``, ``stimulus`` (`Identity.names`).
    given : mapping or Embeddings

    Returns
    -------
    Embeddings
        Of those stimuli that have one.
    """
    unit = Embeddings.of(given)
    place = {name: i for i, name in enumerate(unit.names)}
    keys: dict[str, list[str]] = {stimulus: [stimulus] for stimulus in stimuli}
    for dataset, name, stimulus in zip(rows["dataset"], rows["name"], rows["stimulus"], strict=True):
        if stimulus in keys:
            keys[stimulus] += [f"{dataset}/{name}", name]
    # A bare name that two stimuli share (kept apart) says nothing about which of them it embeds.
    owners: dict[str, set[str]] = {}
    for name, stimulus in zip(rows["name"], rows["stimulus"], strict=True):
        owners.setdefault(name, set()).add(stimulus)
    found: dict[str, int] = {}
    for stimulus, options in keys.items():
        for key in options:
            if key in place and len(owners.get(key, ())) <= 1:
                found[stimulus] = place[key]
                break
    return Embeddings(tuple(found), unit.vectors[list(found.values())])
