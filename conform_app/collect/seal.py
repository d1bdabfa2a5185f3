# SPDX-License-Identifier: Apache-2.0
"""What depends on everybody: identity of stimuli, the split, methodology, and the manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from conform_app.bids.methodology import FIELDS, methodology_table, missing_table
from conform_app.bids.naming import group_name, group_products, sidecar_name
from conform_app.bids.pooling import Member, Pool, method_hash, method_of
from conform_app.bids.provenance import software_versions, write_json, write_tsv
from conform_app.collect.earlier import earlier_methodology, earlier_rows, with_earlier
from conform_app.collect.plans import Gathered
from conform_app.mosaic import resolve_duplicates, split_stimuli
from conform_app.mosaic.explain import explain_variance
from conform_app.mosaic.spelling import spelling_warnings
from conform_app.settings import GroupSettings

if TYPE_CHECKING:
    import pandas as pd

    from conform_app.mosaic import Identity, Split
    from conform_app.mosaic.collection import Collection
    from conform_app.mosaic.harmonise import Harmonised

NOT_FACTS = frozenset(
    {"configuration_hash", "space", "conform_version", "TaskDescription", "Instructions", "age", "pcnum"}
)
"""Fields of the methodology that explain nothing by themselves, or not as they are."""


@dataclass(frozen=True)
class Sealed:
    """Everything that the group level found and decided, for the report.

    Attributes
    ----------
    tables : dict of str to DataFrame
        By key of the table of names.
    split, identity : Split, Identity
    collection : Collection or None
        None when no betas are pooled.
    outcomes : dict of str to dict of str to float
        By outcome and participant.
    """

    tables: dict[str, pd.DataFrame]
    split: Split
    identity: Identity
    collection: Collection | None
    outcomes: dict[str, dict[str, float]]


def seal(
    pool: Pool,
    gathered: Gathered,
    settings: GroupSettings,
    output_dir: Path,
    store: Path | None,
    failed: Mapping[str, str],
) -> Sealed:
    """Make identity, split and tables over everybody, seal the collection, and write the tables.

    Parameters
    ----------
    pool : Pool
    gathered : Gathered
    settings : GroupSettings
    output_dir : Path
    store : Path or None
        Of the collection; None when nothing was merged.
    failed : mapping of participant to message
        Participants whose betas could not be written.

    Returns
    -------
    Sealed

    Raises
    ------
    DataError
        Stimuli that contradict each other, two datasets of one name.
    TemporaryError
        Another process is sealing.
    FileFaultError, CannotCreateError
        A damaged participant; the output cannot be written.
    """
    from conform_app.mosaic.collection import Collection

    collection = None if store is None else Collection.open(store)
    names, shown_of = _everybody(gathered, collection)
    identity = resolve_duplicates(
        names,
        embeddings=gathered.features or None,
        threshold=settings.similarity_threshold,
        same_name=settings.same_name,
    )
    split = _split(identity, shown_of(identity), gathered, settings)
    split = without_shared_frames(split, identity, gathered.movies)
    sides = dict(zip(split.stimuli["stimulus"], split.stimuli["split"], strict=True))
    gathered.warnings += spelling_warnings(identity, sides, gathered.features or None)
    tables, outcomes = _tables(pool, gathered, collection, identity, split, failed)
    if collection is not None:
        more: dict[str, Any] = {name: tables[name] for name in ("methodology", "missing", "variance")}
        if settings.harmonise == "combat":
            everybody = sorted({*collection.keys, *collection.pending})
            found = harmonised(collection, everybody, shown_of(identity))
            gathered.account += found.account
            more |= {"harmonised": found.table, "harmonised_scale": found.scale}
        collection.seal(identity, split, tables={**more, "gathered": tables["participants"]})
        _describe(output_dir, pool, collection)
    _write(output_dir, tables, split, shown_of(identity))
    return Sealed(tables, split, identity, collection, outcomes)


def _tables(
    pool: Pool,
    gathered: Gathered,
    collection: Collection | None,
    identity: Identity,
    split: Split,
    failed: Mapping[str, str],
) -> tuple[dict[str, pd.DataFrame], dict[str, dict[str, float]]]:
    """Tables of everybody, earlier calls' participants too, and the outcomes that one of them explains."""
    there = set() if collection is None else {*collection.keys, *collection.pending}
    methodology = methodology_table(pool.members)
    everybody, rows = gathered, []
    if collection is not None:
        earlier = sorted(there - {member.key for member in pool.members})
        # what could not be replaced is what the tables tell of, too
        kept = sorted(key for key in there if key in failed or key not in gathered.frames)
        everybody = with_earlier(gathered, collection, kept)
        rows = earlier_rows(collection, earlier, everybody.frames)
        methodology = earlier_methodology(collection, earlier, methodology)
    tables = {"participants": _participants(pool, everybody, there, failed, rows), "methodology": methodology}
    tables["missing"] = missing_table(methodology)
    outcomes = {} if collection is None else measure(collection, sorted(there))
    tables["variance"] = _variance(outcomes, methodology)
    tables["trials"] = _trials(everybody, identity, split)
    tables["stimuli"] = _stimuli(identity, split, tables["trials"])
    tables["near"] = identity.near
    tables["audit"] = split.audit.table()
    return tables, outcomes


def _everybody(gathered: Gathered, collection: Collection | None) -> tuple[pd.DataFrame, Any]:
    """Names of all stimuli, and a function that counts their presentations given an identity.

    Where there is a collection, what is in it counts (participants of earlier calls too); where there is
    none, everybody whose trials can be read.
    """
    import pandas as pd

    if collection is not None:
        return collection.names(), collection.presentations
    parts = []
    for key, frame in gathered.frames.items():
        columns = [name for name in ("alias", "sha256") if name in frame]
        part = frame[["stimulus", *columns]].rename(columns={"stimulus": "name"})
        part["artificial"] = frame["phase"] == "artificial"
        parts.append(part.assign(dataset=key.rpartition("_")[2]).drop_duplicates())
    names = pd.concat(parts, ignore_index=True)
    for column in ("alias", "sha256"):
        if column in names:
            names[column] = names[column].fillna("n/a")

    def count(identity: Identity) -> pd.DataFrame:
        rows = []
        for key, frame in gathered.frames.items():
            participant, _, dataset = key.rpartition("_")
            stimulus = identity.of(dataset, frame["stimulus"])
            part = pd.DataFrame({"stimulus": stimulus, "phase": frame["phase"].to_numpy()})
            part = part.groupby(["stimulus", "phase"], sort=False).size().rename("n_trials").reset_index()
            rows.append(part.assign(dataset=dataset, participant=participant))
        return pd.concat(rows, ignore_index=True)

    return names, count


def _split(identity: Identity, shown: pd.DataFrame, gathered: Gathered, settings: GroupSettings) -> Split:
    from conform_app.mosaic.identity import stimulus_embeddings

    vectors = stimulus_embeddings(identity.stimuli["stimulus"], identity.names, gathered.features or None)
    artificial = identity.stimuli.loc[identity.stimuli["artificial"], "stimulus"]
    return split_stimuli(
        shown,
        embeddings=vectors if len(vectors.names) else None,
        threshold=settings.similarity_threshold,
        artificial=set(artificial),
    )


def without_shared_frames(
    split: Split, identity: Identity, movies: Mapping[tuple[str, str], Sequence[str]]
) -> Split:
    """Drop from train the movies that share a frame with a test movie: cuts of one recording.

    Parameters
    ----------
    split : Split
    identity : Identity
    movies : mapping of (dataset, name) to sequence of str
        Frame hashes.

    Returns
    -------
    Split
        The same where no two movies share a frame.
    """
    from conform_app.mosaic import overlapping_movies

    known = {
        (d, n): s
        for d, n, s in zip(*(identity.names[c] for c in ("dataset", "name", "stimulus")), strict=True)
    }
    frames = {known[key]: its for key, its in movies.items() if key in known}
    sides = dict(zip(split.stimuli["stimulus"], split.stimuli["split"], strict=True))
    reasons = {}
    for pair in overlapping_movies(frames):
        for one, other in (pair[:2], pair[1::-1]):
            if sides.get(one) == "train" and sides.get(other) in ("test", "artificial"):
                reasons[one] = f"shares {100 * pair[2]:.0f} % of frames with test movie {other}"
    if not reasons:
        return split
    stimuli = split.stimuli.copy()
    rows = stimuli["stimulus"].isin(list(reasons))
    stimuli.loc[rows, "reason"] = stimuli.loc[rows, "stimulus"].map(reasons)
    stimuli.loc[rows, "split"] = "excluded"
    said = f"{len(reasons)} train movies were dropped because they share frames with a test movie."
    return replace(split, stimuli=stimuli, account=[*split.account, said])


def harmonised(collection: Collection, keys: Sequence[str], shown: pd.DataFrame) -> Harmonised:
    """Scale of everybody's betas without the datasets' share.

    Parameters
    ----------
    collection : Collection
    keys : sequence of str
        Participants; those without train trials are left out, and told.
    shown : DataFrame
        Presentations: ``dataset``, ``stimulus``.
    """
    from conform_app.mosaic.harmonise import harmonise_scale, train_scale

    scales = {key: train_scale(collection, key) for key in keys}
    without = [key for key, scale in scales.items() if scale is None]
    sites = {key: key.rpartition("_")[2] for key in keys}
    stimuli = {name: set(its) for name, its in shown.groupby("dataset")["stimulus"]}
    found = harmonise_scale({k: s for k, s in scales.items() if s is not None}, sites, stimuli)
    if without:
        found.account.append(f"{', '.join(without)}: no train trials, so no harmonised scale.")
    return found


def measure(collection: Collection, keys: Sequence[str]) -> dict[str, dict[str, float]]:
    """Measure each participant: median noise ceiling (percent) and median scale of its betas.

    The ceiling is that of single trials (see :func:`single_trial_ceiling`).  The scale is the standard
    deviation of train betas before normalisation, the median over vertices and then over fits.
    """
    ceilings, scales = {}, {}
    for key in keys:
        values = single_trial_ceiling(collection, key)
        ceilings[key] = float("nan") if values is None else _median(values)
        _, _, sd = collection.statistics(key)
        scales[key] = _median(np.array([_median(row) for row in sd]))
    return {"noise ceiling": ceilings, "beta scale": scales}


def single_trial_ceiling(collection: Collection, key: str) -> np.ndarray | None:
    """Return a participant's noise ceiling for single trials, (n_vertices,), percent.

    Of the phase (train or test) in which more stimuli repeat, since few say little; None without any.
    """
    maps = collection.noise_ceilings(key)
    trials = collection.trials(key)
    counts = trials.groupby(["phase", "name"]).size()
    repeated = (counts > 1).groupby("phase").sum()
    phases = sorted(("test", "train"), key=lambda phase: -int(repeated.get(phase, 0)))
    return next((maps[phase, "1"] for phase in phases if (phase, "1") in maps), None)


def _median(values: np.ndarray) -> float:
    values = values[np.isfinite(values)]
    return float(np.median(values)) if values.size else float("nan")


def _variance(outcomes: Mapping[str, Mapping[str, float]], methodology: pd.DataFrame) -> pd.DataFrame:
    """Explain outcomes by facts of the methodology, one row a participant."""
    if not outcomes:
        return explain_variance({}, {}, [])
    known = set(methodology["participant"])
    keys = [key for key in next(iter(outcomes.values())) if key in known]
    facts: dict[str, list[str]] = {field.name: [] for field in FIELDS if field.name not in NOT_FACTS}
    for key in keys:
        own = methodology[methodology["participant"] == key]
        for name, values in facts.items():
            values.append(_over_sessions(own[name].astype(str).tolist()))
    numbers = {name: [values[key] for key in keys] for name, values in outcomes.items()}
    return explain_variance(numbers, facts, [key.rpartition("_")[2] for key in keys])


def _over_sessions(values: Sequence[str]) -> str:
    """One value for a participant: the mean of numbers, else what is distinct, of sessions that say it."""
    values = [value for value in values if value != "n/a"] or values
    try:
        return f"{np.mean([float(value) for value in values]):.6g}"
    except ValueError:
        return " | ".join(dict.fromkeys(values))


def _participants(
    pool: Pool,
    gathered: Gathered,
    there: set[str],
    failed: Mapping[str, str],
    earlier: Sequence[dict[str, Any]],
) -> pd.DataFrame:
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for member in pool.members:
        fits = member.fits or member.participant.fits
        reasons = [*member.reasons, *([failed[member.key]] if member.key in failed else [])]
        if member.status == "compliant" and not member.merged:
            reasons.append("merged with --pool compliant only")
        rows.append(
            {
                "participant": member.key,
                "dataset": member.participant.site.name,
                "status": member.status,
                "merged": member.key in there,
                "reason": "; ".join(reasons),
                "space": ", ".join(sorted({str(fit.space) for fit in member.participant.fits})),
                "beta_type": member.beta_type,
                "n_fits": len(fits),
                "n_trials": len(gathered.frames.get(member.key, ())),
                "configuration_hash": fits[0].record.get("digest", "") if fits else "",
                "method_hash": _method(member),
            }
        )
    return pd.DataFrame([*rows, *earlier], columns=list(group_products()["participants"]["columns"]))


def _method(member: Member) -> str:
    return method_hash(method_of(member)) if member.fits else ""


def _trials(gathered: Gathered, identity: Identity, split: Split) -> pd.DataFrame:
    """Everybody's trials; of somebody who is not merged those stimuli that are known get their split."""
    import pandas as pd

    sides = dict(zip(split.stimuli["stimulus"], split.stimuli["split"], strict=True))
    known = {
        (d, n): s
        for d, n, s in zip(*(identity.names[c] for c in ("dataset", "name", "stimulus")), strict=True)
    }
    parts = []
    for key, frame in gathered.frames.items():
        dataset = key.rpartition("_")[2]
        table = frame.rename(columns={"stimulus": "name"})
        table.insert(0, "participant", key)
        table.insert(1, "dataset", dataset)
        stimulus = [known.get((dataset, name), name) for name in table["name"]]
        table.insert(2, "stimulus", stimulus)
        own = (table["phase"] == "train").to_numpy()
        side = np.array([sides.get(name, "n/a") for name in stimulus], dtype=object)
        table.insert(5, "split", np.where((own == (side == "train")) | (side == "n/a"), side, "excluded"))
        parts.append(table)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _stimuli(identity: Identity, split: Split, trials: pd.DataFrame) -> pd.DataFrame:
    """One row a stimulus, with all its names."""
    names = identity.names.assign(full=identity.names["dataset"] + "/" + identity.names["name"])
    grouped = names.groupby("stimulus", sort=False)
    table = split.stimuli.merge(identity.stimuli.drop(columns="n_datasets"), on="stimulus", how="left")
    table.insert(1, "names", table["stimulus"].map(grouped["full"].agg(", ".join)))
    table.insert(
        2, "datasets", table["stimulus"].map(grouped["dataset"].agg(lambda d: ", ".join(dict.fromkeys(d))))
    )
    counts = trials["stimulus"].value_counts() if len(trials) else {}
    table.insert(3, "n_trials", [int(counts.get(name, 0)) for name in table["stimulus"]])
    return table


def _describe(output_dir: Path, pool: Pool, collection: Collection) -> None:
    """Write the JSON beside the store."""
    name = group_name("betas", str(pool.space))
    content = {
        "Description": group_products()["betas"]["description"],
        "Space": str(pool.space),
        "Units": "z scores by the train trials of each fit",
        "NumberOfVertices": collection.n_vertices,
        "CollectionVersion": collection.version,
        "Method": {k: v for k, v in pool.reference.items() if k != "hash"},
        "MethodHash": pool.reference.get("hash"),
        "Participants": collection.keys,
        "SoftwareVersions": software_versions(),
    }
    write_json(output_dir / sidecar_name(name), content)


def _write(output_dir: Path, tables: Mapping[str, pd.DataFrame], split: Split, shown: pd.DataFrame) -> None:
    """Write the tables with their sidecars, and the split in MOSAIC's form."""
    products = group_products()
    for key, table in tables.items():
        path = output_dir / group_name(key)
        write_tsv(path, {str(name): table[name].tolist() for name in table.columns})
        columns = dict(products[key].get("columns", {}))
        if key == "methodology":
            columns |= {field.name: field.about or field.name for field in FIELDS}
        sidecar = {"Description": products[key]["description"]}
        sidecar |= {name: {"Description": columns[name]} for name in table.columns if name in columns}
        write_json(output_dir / sidecar_name(group_name(key)), sidecar)
    content = {"Description": products["split"]["description"], "Threshold": split.threshold}
    content |= {"Account": split.account, "Audit": split.audit.as_dict(), **split.mosaic_lists(shown)}
    write_json(output_dir / group_name("split"), content)
