# SPDX-License-Identifier: Apache-2.0
"""Files of one participant's models: a folder that appears whole, its record written last."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from conform_app.bids.encoding import (
    METHOD_DESC,
    encode_names,
    encode_products,
    sidecar_of,
    subject_label,
    write_encode_table,
)
from conform_app.bids.naming import sidecar_name
from conform_app.bids.provenance import write_json
from conform_app.braincorl import category_contrast, text_query
from conform_app.braincorl.scoring import METRICS, images_at
from conform_app.encode.given import file_hash, read_categories, read_queries
from conform_app.encode.job import EncodeJob, EncodePlan, Target, settings_hash
from conform_app.encode.model import Modelled, label
from conform_app.encode.sharing import shared_counts, usable
from conform_app.errors import CannotCreateError
from conform_app.images import write_maps

MOST_MAPPED = 1000
"""Test images whose predictions are mapped, at most."""


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Give a folder to write ``NAME/...`` into; at the end, that takes the place of ``folder``, of this NAME.

    Raises
    ------
    CannotCreateError
        The output cannot be written.
    """
    part = folder.with_name(f".incoming-{folder.name}-{uuid.uuid4().hex[:8]}")
    try:
        part.mkdir(parents=True)
        yield part
        aside = folder.with_name(f".replaced-{folder.name}-{uuid.uuid4().hex[:8]}")
        if folder.exists():
            os.rename(folder, aside)
        os.rename(part / folder.name, folder)
        shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise CannotCreateError(
            f"{folder} cannot be written: {error.strerror or error}.", "Check the folder and the free space."
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


class Writer:
    """Writes products of one participant (or of the group) under the names of the table."""

    def __init__(self, root: Path, participant: str | None, space: str, grid: Any) -> None:
        self.root, self.participant, self.space, self.grid = root, participant, space, grid
        self.products: dict[str, list[str]] = {}

    def maps(
        self, key: str, values: np.ndarray, *, desc: str = "", names: Sequence[str] | None = None,
        labels: dict[int, str] | None = None, **fields: Any,
    ) -> None:  # fmt: skip
        """Write maps with a value (or a row of them) for each point of the grid's mask."""
        row = encode_products()[key]
        files = encode_names(key, self.participant, self.space, self.grid.kind, desc=desc)
        fill = 0.0 if self.grid.kind == "volume" else np.nan
        paths = [self.root / name for name in files]
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
        write_maps(self.grid, paths, values, names=names, intent=row["form"], fill=fill, labels=labels)
        if row.get("rows"):
            (table,) = encode_names(row["rows"], self.participant, self.space)
            fields["MapTable"] = f"bids::{table}"
        for name in files:
            write_json(self.root / sidecar_name(name), sidecar_of(key, self.grid, **fields))
        self._remember(key, desc, list(files))

    def table(self, key: str, columns: dict[str, Sequence[Any]]) -> None:
        """Write a table."""
        name = write_encode_table(self.root, key, self.participant, self.space, columns)
        self._remember(key, "", [name])

    def _remember(self, key: str, desc: str, files: list[str]) -> None:
        # relative to the dataset's root, wherever the folder is being written
        self.products[f"{key}_{desc}" if desc else key] = files


def write_target(
    job: EncodeJob, plan: EncodePlan, target: Target, found: Modelled, space: str, grid: Any
) -> Path:
    """Write everything of one participant.

    Returns
    -------
    Path
        The record.
    """
    folder = job.root / f"sub-{subject_label(target.key)}"
    mask = np.zeros(grid.n_points, bool)
    mask[found.vertices] = True
    with whole_folder(folder) as part:
        writer = Writer(part, target.key, space, grid.with_mask(mask))
        _maps(job, writer, plan, target, found)
        _tables(job, writer, plan, target, found)
        _understanding(job, plan, writer, found, target)
        if found.prior is not None:
            (name,) = encode_names("prior", target.key, space)
            found.prior.save(part / name)
            write_json(part / sidecar_name(name), sidecar_of("prior", Card=found.prior.card))
            writer.products["prior"] = [name]
        (name,) = encode_names("record", target.key, space)
        write_json(part / name, _record(job, plan, target, found, space, writer.products))
    return job.root / name


def _maps(job: EncodeJob, writer: Writer, plan: EncodePlan, target: Target, found: Modelled) -> None:
    method = job.settings.encode
    desc, about = METHOD_DESC[method]
    test = plan.people[target.key].test
    fields = {"Method": about, "ContextSize": len(found.context)}
    width = found.arrays["weights"].shape[1] - 1
    features = [f"feature {i}" for i in range(width)] + ["bias"]
    writer.maps("weights", found.arrays["weights"], desc=desc, names=features, **fields)
    writer.table("weights_maps", {"index": range(width + 1), "name": features})
    shown = slice(0, MOST_MAPPED)
    for key in ("prediction", "predictivesd"):
        extra = {"CalibrationFactor": found.calibration} if key == "predictivesd" else {}
        writer.maps(key, found.arrays[key][:, shown], desc=desc, names=test[shown], **fields, **extra)
    if found.aligner is not None and "aligned" in found.arrays:
        its, text = METHOD_DESC[found.aligner.name]
        size = len(found.context)
        writer.maps(
            "weights", found.arrays["aligned"], desc=its, names=features, Method=text, ContextSize=size
        )
    for (name, metric), values in found.accuracy.items():
        its, text = METHOD_DESC[name]
        size = 0 if name == "group mean" else len(found.context)
        writer.maps(metric, values, desc=its, Method=text, ContextSize=size, NumberOfTestImages=len(test))
    if "shares" in found.arrays:
        writer.maps("shares", found.arrays["shares"], desc=desc, names=found.share_names, **fields)
        writer.table("shares_maps", {"index": range(len(found.share_names)), "name": found.share_names})


def _tables(job: EncodeJob, writer: Writer, plan: EncodePlan, target: Target, found: Modelled) -> None:
    person = plan.people[target.key]
    test = person.test[:MOST_MAPPED]
    writer.table(
        "images",
        {"index": range(len(test)), "stimulus": test, "n_trials": [person.n_trials[name] for name in test]},
    )
    context = [person.train[row] for row in found.context]
    columns: dict[str, Sequence[Any]] = {
        "index": range(len(context)),
        "stimulus": context,
        "n_trials": [person.n_trials[name] for name in context],
    }
    nothing = np.full((2, len(context)), np.nan)
    mean, sd = nothing if found.importance is None else found.importance
    writer.table("context", {**columns, "importance": mean, "importance_sd": sd})
    writer.table("metrics", metrics_columns(target, found))
    writer.table("curve", curve_columns(target, found))
    writer.table("needed", needed_columns(target, found))
    if job.settings.encode_alignment != "none":
        writer.table("alignment", alignment_columns(job, plan, target))


def _pairs(found: Modelled) -> list[tuple[str, int]]:
    """(method, size) of what was measured: methods in the order of `METHOD_DESC`, sizes rising."""
    there = [name.rpartition(" @ ") for name in found.scorer.names()]
    pairs = [(method, int(size)) for method, _, size in there]
    rank = list(METHOD_DESC)
    return sorted(pairs, key=lambda pair: (rank.index(pair[0]), pair[1]))


def metrics_columns(target: Target, found: Modelled) -> dict[str, list[Any]]:
    """Columns of the table of metrics."""
    names = list(encode_products()["metrics"]["columns"])
    out: dict[str, list[Any]] = {name: [] for name in names}
    for method, size in _pairs(found):
        name = label(method, size)
        ridge = label("ridge", size or target.sizes[-1])
        its = found.scorer.intervals(name)
        over = found.scorer.intervals(name, ridge) if method != "ridge" else None
        vertices = found.scorer.n_voxels(name)
        for region, table in its.items():
            for metric in METRICS:
                difference = over[region][metric] if over else (np.nan,) * 3
                row = (target.key, method, size, found.repeats[name], region, metric, *table[metric])
                row += (*difference, vertices[region], found.scorer.n_images)
                for column, value in zip(names, row, strict=True):
                    out[column].append(value)
    return out


def curve_columns(target: Target, found: Modelled) -> dict[str, list[Any]]:
    """Columns of the table of learning curves."""
    names = list(encode_products()["curve"]["columns"])
    out: dict[str, list[Any]] = {name: [] for name in names}
    for method, size in _pairs(found):
        for repeat, row in enumerate(found.scorer.means(label(method, size))["all"]):
            for column, value in zip(names, (target.key, method, size, repeat, *row), strict=True):
                out[column].append(value)
    return out


def needed_columns(target: Target, found: Modelled) -> dict[str, list[Any]]:
    """Columns of the table of images needed."""
    curves: dict[str, dict[int, float]] = {}
    for method, size in _pairs(found):
        mean = found.scorer.intervals(label(method, size))["all"]["r"][0]
        curves.setdefault(method, {})[size] = mean
    best = np.nanmax([value for curve in curves.values() for value in curve.values()])
    last = target.sizes[-1]
    goals = {"90 % of the best": 0.9 * best, f"ridge with {last}": curves["ridge"][last]}
    out: dict[str, list[Any]] = {"participant": [], "method": [], "goal": [], "r": [], "n_images": []}
    for goal, r in goals.items():
        for method, curve in curves.items():
            its = images_at(list(curve), list(curve.values()), r)
            row = (target.key, method, goal, r, its if np.isnan(its) else int(np.ceil(its)))
            for column, value in zip(out, row, strict=True):
                out[column].append(value)
    return out


def alignment_columns(job: EncodeJob, plan: EncodePlan, target: Target) -> dict[str, list[Any]]:
    """Columns of the table of shared images."""
    out: dict[str, list[Any]] = {name: [] for name in encode_products()["alignment"]["columns"]}
    counts = shared_counts(plan, target.key, target.teachers, target.sizes, job.settings.encode_repeats)
    for size, its in counts.items():
        used = usable(its)
        for other, n in its.items():
            row = (target.key, other, size, n, "true" if other in used else "false")
            for column, value in zip(out, row, strict=True):
                out[column].append(value)
    return out


def _alignment(job: EncodeJob, target: Target, found: Modelled) -> dict[str, Any] | None:
    """What the record says of alignment; None where it was not asked for."""
    method = job.settings.encode_alignment
    if method == "none":
        return None
    its = found.aligner
    if its is None:
        return {"method": method, "context_sizes": [], "reason": "too few train images shared with others"}
    there = {size: usable(its.counts[size]) for size in target.aligned}
    return {
        "method": method,
        "estimator": its.name,
        "context_sizes": list(target.aligned),
        "least_shared": min(its.counts[size][name] for size, names in there.items() for name in names),
        "others": list(dict.fromkeys(name for names in there.values() for name in names)),
        "pieces": its.about,
    }


def _understanding(job: EncodeJob, plan: EncodePlan, writer: Writer, found: Modelled, target: Target) -> None:
    """Maps of queries and of contrasts between categories, where they are given."""
    weights = found.arrays["weights"]
    queries = read_queries(job.settings.encode_queries, weights.shape[1] - 1)
    if queries:
        names = list(queries)
        answer = text_query(weights, names, list(queries.values()))
        writer.maps("selectivity", answer.selectivity, names=names)
        writer.maps("margin", answer.margin)
        writer.maps("query", answer.best + 1, labels={i + 1: name for i, name in enumerate(names)})
        writer.table("queries", {"index": range(1, len(names) + 1), "name": names})
    person = plan.people[target.key]
    images = list(dict.fromkeys((*person.train, *person.test)))
    categories = read_categories(job.settings.encode_categories, plan.stimuli)
    images = [name for name in images if name in categories]
    of = [categories[name] for name in images]
    usable = [c for c in dict.fromkeys(of) if of.count(c) >= 2 and len(of) - of.count(c) >= 2]
    if usable:
        features = plan.rows(images)
        contrasts = [category_contrast(weights, features, of, name)[0] for name in usable]
        writer.maps("contrast", np.stack(contrasts, axis=1), names=usable)
        counts = [of.count(name) for name in usable]
        others = [len(of) - n for n in counts]
        table = {"index": range(len(usable)), "name": usable, "n_images": counts, "n_others": others}
        writer.table("categories", table)


def _record(
    job: EncodeJob,
    plan: EncodePlan,
    target: Target,
    found: Modelled,
    space: str,
    products: dict[str, list[str]],
) -> dict[str, Any]:
    person, settings = plan.people[target.key], job.settings
    about = METHOD_DESC[settings.encode][1]
    (prior,) = encode_names("prior", target.key, space)
    return {
        "Description": encode_products()["record"]["description"],
        "Participant": target.key,
        "Space": space,
        "Method": settings.encode,
        "MethodDescription": about,
        "LearnedFrom": list(target.teachers),
        "Prior": found.prior.card | {"file": prior} if found.prior is not None else None,
        "Alignment": _alignment(job, target, found),
        "Network": Path(settings.encode_model).name if settings.encode_model else None,
        "NetworkSHA256": file_hash(settings.encode_model) or None,
        "Features": {"file": Path(job.features).name, "n_features": int(plan.features.shape[1])},
        "Responses": {"mean": "the mean over repeats", "psn": "averages denoised with PSN"}[
            settings.encode_betas
        ],
        "ContextSizes": list(target.sizes),
        "Contexts": {size: found.repeats.get(label("ridge", size), 0) for size in target.sizes},
        "NumberOfTrainImages": len(person.train),
        "NumberOfTestImages": len(person.test),
        "NumberOfVertices": len(found.vertices),
        "NumberWithoutModel": found.n_constant,
        "LeastNoiseCeiling": settings.encode_min_ceiling,
        "CalibrationFactor": found.calibration,
        "RandomSeed": 0,
        "SettingsHash": settings_hash(settings),
        "Digest": target.digest,
        "Products": products,
    }
