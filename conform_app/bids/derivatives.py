# SPDX-License-Identifier: Apache-2.0
"""The files of one fit: arrays of the steps in, BIDS-derivatives and the fit's record out.

Every file is written under a temporary name and renamed; the record, written last, lists them all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from conform_app.bids.naming import RUN_ENTITIES, build_name, build_names, product, sidecar_name
from conform_app.bids.plan import FitPlan
from conform_app.bids.provenance import bids_uri, sidecar, software_versions, write_json, write_tsv
from conform_app.bids.record import SCHEMA, fingerprint, record_path, withdraw
from conform_app.bids.registered import write_registration
from conform_app.bids.runfacts import run_entry, runs_told
from conform_app.bids.surfaceplan import sidecar_fields
from conform_app.images import open_run, write_maps
from conform_app.images.arrays import load_arrays, load_meta, save_arrays


def wanted_products(glm_types: Sequence[str], residuals: bool) -> tuple[str, ...]:
    """Return the products whose presence depends on what a run asks for."""
    return (*(f"betas_type{name}" for name in glm_types), *(["psn_residual"] if residuals else []))


@dataclass
class FitWriter:
    """Writes files of one fit and remembers them.

    Attributes
    ----------
    plan : FitPlan
    dataset : dict
        ``output_dir``, ``digest``, ``altering`` (settings that change results), ``roots`` (input datasets by
        name), ``wanted`` (products asked for) and ``version``.
    grid : Grid
        Its mask holds the analysed points.
    seed : int
    products : dict of str to list of str
        Files written, relative to the output folder.
    """

    plan: FitPlan
    dataset: dict[str, Any]
    grid: Any
    seed: int
    products: dict[str, list[str]] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        """The output folder."""
        return Path(self.dataset["output_dir"])

    @property
    def fill(self) -> float:
        """Value outside the mask: 0 in volumes, NaN on surfaces and grayordinates."""
        return 0.0 if self.plan.kind == "volume" else float("nan")

    def image(
        self,
        key: str,
        values: np.ndarray,
        *,
        glm_type: str | None = None,
        names: Sequence[str] | None = None,
        labels: Mapping[int, str] | None = None,
        **fields: Any,
    ) -> None:
        """Write a map, or a map a row of a table, with its sidecar.

        Parameters
        ----------
        key : str
            Product.
        values : ndarray of shape (n_voxels,) or (n_voxels, n_maps)
        glm_type : str, optional
            Where the product's name leaves it open.
        names, labels
            See :func:`conform_app.images.write_maps`.
        **fields
            Of the sidecar.
        """
        item = product(key, glm_type)
        paths = build_names(key, self.plan.entities, self.plan.kind, glm_type=glm_type)
        if names is None and values.ndim == 1:  # of both hemispheres
            names = [" ".join(filter(None, (item.stat, item.desc)))]
        write_maps(
            self.grid,
            [self.root / path for path in paths],
            values,
            names=names,
            intent=item.form,
            fill=self.fill,
            labels=labels,
        )
        self._sidecar(key, paths, glm_type=glm_type, fill=self.fill if item.form == "map" else 0, **fields)
        self.products[item.key] = list(paths)

    def table(
        self,
        key: str,
        columns: Mapping[str, Sequence[Any]],
        *,
        run: str | None = None,
        session: str | None = None,
        task: str | None = None,
        further: Mapping[str, str] | None = None,
        **fields: Any,
    ) -> None:
        """Write a table with its sidecar; one of several runs is added to those of the product."""
        labels = {"run": run, "session": session, "task": task, "further": further}
        path = build_name(key, self.plan.entities, self.plan.kind, **labels)
        write_tsv(self.root / path, columns)
        self._sidecar(key, [path], **fields)
        self.products.setdefault(key, []).append(path)

    def store(self, key: str, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
        """Write arrays as HDF5 with a sidecar."""
        path = build_name(key, self.plan.entities, self.plan.kind)
        save_arrays(self.root / path, arrays, meta)
        self._sidecar(key, [path])
        self.products[key] = [path]

    def _sidecar(self, key: str, paths: Sequence[str], **fields: Any) -> None:
        content = sidecar(
            key,
            self.plan.entities,
            grid=self.grid,
            sources=[*self.plan.input_files(), *(self.plan.atlas if key.startswith("psn") else ())],
            roots=self.dataset["roots"],
            output_dir=self.root,
            configuration_hash=self.dataset["digest"],
            RandomSeed=self.seed,
            **{"glm_type": None, "fill": None, **self._way(key), **fields},
        )
        for path in paths:
            write_json(self.root / sidecar_name(path), content | self._mesh(content, path))

    def _mesh(self, content: Mapping[str, Any], path: str) -> dict[str, str]:
        """The participant's surface as what a map on its vertices refers to, in place of a volume."""
        surface = self.plan.surface
        if surface is None or "SpatialReference" not in content:
            return {}
        half = surface.hemispheres["_hemi-R_" in path]
        return {
            "SpatialReference": bids_uri(half.midthickness or half.white, self.dataset["roots"], self.root)
        }

    def _way(self, key: str) -> dict[str, str]:
        """How the values of a map came to its surface."""
        return sidecar_fields(self.plan.surface, self.plan.kind) if product(key, "D").on_grid else {}


def write_fit(
    plan: FitPlan, *, glm_file: Path, reliability_file: Path, psn_file: Path, model: dict[str, Any],
    dataset: dict[str, Any], save_residuals: bool, surface_file: Path | None = None,
) -> Path:  # fmt: skip
    """Write every file of a fit.

    Parameters
    ----------
    plan : FitPlan
    glm_file, reliability_file, psn_file : Path
        Arrays of the steps.
    model : dict
        ModelSettings as a dictionary.
    dataset : dict
        See :class:`FitWriter`.
    save_residuals : bool
        Also write what PSN took out of each trial.
    surface_file : Path, optional
        What the surface step left, for a fit that was carried there.

    Returns
    -------
    Path
        The record.
    """
    meta, psn_meta = load_meta(glm_file), load_meta(psn_file)
    glm = load_arrays(glm_file, "points", "valid", "mean_vol", "hrfs", "hrf_times", "hrf_index", "xval_trend")
    points = glm["points"].copy()
    points[points] = glm["valid"]
    grid = open_run(tuple(map(Path, plan.runs[0].bold))).grid.with_mask(points)
    (Path(dataset["output_dir"]) / f"sub-{plan.subject}").mkdir(parents=True, exist_ok=True)
    withdraw(Path(dataset["output_dir"]), plan, digest=dataset["digest"], roots=dataset["roots"])
    writer = FitWriter(plan, dataset, grid, model["random_seed"])
    _write_tables(writer)
    _write_glm(writer, glm_file, glm, meta)
    _write_reliability(writer, reliability_file, glm["valid"], meta["types"])
    if psn_meta["mode"] != "off":
        _write_psn(writer, psn_file, psn_meta)
        if save_residuals:
            _write_residuals(writer, glm_file, psn_file, psn_meta["glm_type"])
    record = _record(writer, glm, meta, psn_file, psn_meta, model)
    if surface_file is not None:
        found = write_registration(writer, surface_file)
        record["surface"] = found["summary"]
        for name in ("account", "warnings"):
            record[name] = [*found[name], *record[name]]
    return write_json(record_path(writer.root, plan), record)


def _write_tables(writer: FitWriter) -> None:
    """Trials and conditions."""
    plan = writer.plan
    runs = [plan.runs[number] for number in plan.trials["run"]]
    columns: dict[str, Sequence[Any]] = {"index": range(1, plan.n_trials + 1)}
    if len(plan.sessions) > 1:
        columns["session"] = [run.session for run in runs]
    if len(plan.tasks) > 1:
        columns["task"] = [run.task for run in runs]
    columns |= {"run": [run.run for run in runs]}
    for name, short in RUN_ENTITIES.items():
        if any(short in run.further for run in plan.runs):
            columns[name] = [run.further.get(short) for run in runs]
    columns |= {name: plan.trials[name] for name in ("onset", "duration", "trial_type", "stim_id")}
    columns |= {
        "condition": [number + 1 for number in plan.trials["condition"]],
        "repeat": plan.trials["repeat"],
    }
    if "split" in plan.trials:
        columns["split"] = plan.trials["split"]
    writer.table("trials", columns)
    n = len(plan.conditions)
    writer.table(
        "conditions", {"index": range(1, n + 1), "stim_id": plan.conditions, "n_trials": plan.n_repeats}
    )


def _write_glm(
    writer: FitWriter, glm_file: Path, glm: Mapping[str, np.ndarray], meta: Mapping[str, Any]
) -> None:
    """Betas of the types asked for (or of the last there is), R², HRFs, noise pool, ridge fractions."""
    plan, valid, types = writer.plan, glm["valid"], meta["types"]
    writer.image("brainmask", np.ones(valid.sum(), np.uint8))
    writer.image("mean", glm["mean_vol"][valid])
    names = [f"{i} {stim}" for i, stim in enumerate(plan.trials["stim_id"], 1)]
    asked = [name for name in types if f"betas_type{name}" in writer.dataset["wanted"]] or types[-1:]
    for name in types:
        model = {"EstimationMethod": f"GLMsingle type {name}", "RepetitionTime": plan.tr}
        writer.image(
            f"rsquared_type{name}", load_arrays(glm_file, f"r2_{name}")[f"r2_{name}"][valid], **model
        )
        if name in asked:
            betas = load_arrays(glm_file, f"betas_{name}")[f"betas_{name}"][valid]
            durations = sorted(set(plan.trials["duration"]))
            model["StimulusDuration"] = durations[0] if len(durations) == 1 else durations
            writer.image(f"betas_type{name}", betas, names=names, NumberOfTrials=plan.n_trials, **model)
    writer.image("condmean", _condition_means(plan, glm_file, types[-1], valid), names=plan.conditions)
    n_hrfs = glm["hrfs"].shape[1]
    labels = {number: f"HRF {number}" for number in range(1, n_hrfs + 1)}
    writer.image("hrfindex", glm["hrf_index"][valid] + 1, labels=labels)
    writer.table("hrfindex_labels", {"index": list(labels), "name": list(labels.values())})
    more = load_arrays(glm_file, "noise_pool", "frac_value")
    if "noise_pool" in more:
        writer.image("noisepool", more["noise_pool"][valid].astype(np.uint8))
    if "frac_value" in more:
        writer.image("fracridge", more["frac_value"][valid], glm_type="D")
    _write_regressors(writer, glm_file, meta)


def _write_regressors(writer: FitWriter, glm_file: Path, meta: Mapping[str, Any]) -> None:
    """Per run: the design of its trials, and the noise regressors in their order."""
    plan = writer.plan
    for number, run in enumerate(plan.runs):
        design = load_arrays(glm_file, f"design_{number}")[f"design_{number}"]
        labels = {"run": run.run, "session": run.session, "task": run.task, "further": run.further}
        trials = np.flatnonzero(plan.run_of_trial == number) + 1
        columns = {f"trial_{i:04d}": column for i, column in zip(trials, design.T, strict=True)}
        writer.table("design", columns, **labels)
        for key, fit in (("glmdenoise", ""), ("glmdenoise_subcortex", "subcortex_")):
            name = f"{fit}pc_regressors_{number}"
            regressors = load_arrays(glm_file, name).get(name)
            if regressors is not None:
                used = regressors[:, : regressors.shape[1] - 1]  # the last one is never a candidate
                columns = {f"noise_{i:02d}": column for i, column in enumerate(used.T, 1)}
                writer.table(key, columns, **labels, NumberOfComponentsUsed=meta[f"{fit}pcnum"])


def _condition_means(plan: FitPlan, glm_file: Path, name: str, valid: np.ndarray) -> np.ndarray:
    """Plain averages over each condition's trials, shape (n_valid, n_conditions)."""
    betas = load_arrays(glm_file, f"betas_{name}")[f"betas_{name}"][valid]
    estimated = np.isfinite(betas).all(axis=0)  # trials cut off by the end of a run have no beta
    weights = np.zeros((plan.n_trials, len(plan.conditions)), np.float32)
    weights[np.arange(plan.n_trials), plan.condition] = estimated
    with np.errstate(invalid="ignore"):
        return np.where(estimated, betas, 0) @ (weights / weights.sum(axis=0))


def _write_reliability(writer: FitWriter, path: Path, valid: np.ndarray, types: Sequence[str]) -> None:
    """Split-half reliability of each type, ncsnr and noise ceiling of the last."""
    found = load_arrays(path)
    for name in types:
        if f"reliability_{name}" in found:
            writer.image(f"reliability_type{name}", found[f"reliability_{name}"][valid])
    if "ncsnr" in found:
        average = float(writer.plan.n_repeats.mean())
        writer.image("ncsnr", found["ncsnr"][valid], glm_type=types[-1])
        writer.image(
            "noiseceiling", found["noiseceiling"][valid], glm_type=types[-1], NumberOfTrialsAveraged=average
        )


def _write_psn(writer: FitWriter, path: Path, meta: Mapping[str, Any]) -> None:
    """Denoised averages, reliability after PSN, variances and the model."""
    psn = load_arrays(path)
    names = writer.plan.conditions
    method = {"EstimationMethod": f"PSN ({meta['mode']}) of GLMsingle type {meta['glm_type']}"}
    writer.image("psn", psn["denoised"], names=names, **method)
    for name, values in (
        ("psn_reliability", "reliability"),
        ("psn_reliability_before", "reliability_before"),
    ):
        if np.isfinite(psn[values]).any():
            writer.image(name, psn[values], **method)
    writer.image("psn_signalvar", psn["unit_signal_var"], **method)
    writer.image("psn_noisevar", psn["unit_noise_var"], **method)
    writer.image("psn_removedsignal", psn["unit_removed_signal"], **method)
    writer.image("psn_removednoise", psn["unit_removed_noise"], **method)
    model = {name: values for name, values in psn.items() if name.startswith("model_")}
    model |= {name: psn[name] for name in ("parcel", "mean", "sd")}
    # the time it took is no part of the model: equal runs give equal bytes
    writer.store("psn_model", model, {name: value for name, value in meta.items() if name != "seconds"})
    columns: dict[str, list[Any]] = {"block": [], "index": [], "signal_variance": [], "noise_variance": []}
    columns |= {"cv_error": [], "kept": []}
    for block in (n for n in range(meta["n_parcels"]) if f"model_{n}_signal_var" in psn):
        for name, values in _dimensions(psn, block).items():
            columns[name].extend(values)
    writer.table("psn_dimensions", columns)


def _dimensions(psn: Mapping[str, np.ndarray], block: int) -> dict[str, Sequence[Any]]:
    """Rows of the table of dimensions of one block."""
    signal = psn[f"model_{block}_signal_var"]
    threshold = np.atleast_1d(psn[f"model_{block}_threshold"])
    error = np.full(len(signal) + 1, np.nan)
    known = psn.get(f"model_{block}_cv_error", error)[: len(error)]
    error[: len(known)] = known  # the curve may end before the last dimension
    index = np.arange(1, len(signal) + 1)
    return {
        "block": np.full(len(signal), block + 1),
        "index": index,
        "signal_variance": signal,
        "noise_variance": psn[f"model_{block}_noise_var"],
        "cv_error": error[1:],
        # the share of voxels that keep it; a Wiener filter or a weighted mean has no cut
        "kept": np.full(len(signal), np.nan)
        if threshold.dtype.kind == "f"
        else np.clip(threshold[:, None] - index + 1, 0, 1).mean(axis=0),
    }


def _write_residuals(writer: FitWriter, glm_file: Path, psn_file: Path, name: str) -> None:
    """Each trial's beta minus the denoised average of its condition."""
    psn = load_arrays(psn_file, "denoised", "valid")
    betas = load_arrays(glm_file, f"betas_{name}")[f"betas_{name}"][psn["valid"]]
    betas -= psn["denoised"][:, writer.plan.condition]
    names = [f"{i} {stim}" for i, stim in enumerate(writer.plan.trials["stim_id"], 1)]
    writer.image("psn_residual", betas, names=names, NumberOfTrials=writer.plan.n_trials)


def _record(
    writer: FitWriter, glm: Mapping[str, np.ndarray], meta: Mapping[str, Any], psn_file: Path,
    psn_meta: Mapping[str, Any], model: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Gather what the report and the methods text say."""
    plan, dataset = writer.plan, writer.dataset
    repeats = plan.n_repeats
    fit = {
        name: getattr(plan, name)
        for name in ("name", "subject", "sessions", "task", "space", "res", "den", "kind")
    }
    fit |= {
        "tr": plan.tr,
        "n_points": plan.n_points,
        "n_voxels": int(glm["valid"].sum()),
        "n_trials": plan.n_trials,
    }
    fit |= {"n_conditions": len(plan.conditions), "n_repeated_conditions": int((repeats > 1).sum())}
    fit["participant"] = plan.participant
    fit |= {"types": meta["types"], "runs": [run_entry(plan, number) for number in range(len(plan.runs))]}
    choices = {"stim_column": plan.stim_column, "pcnum": meta.get("pcnum"), "fracs": meta.get("fracs", [])}
    choices |= {
        "r2_threshold": meta["r2_threshold"],
        "n_hrfs": glm["hrfs"].shape[1],
        "confounds": model["confounds"],
    }
    choices["noise_pool_size"] = meta.get("noise_pool_size")
    curves: dict[str, Any] = {"hrf_times": glm["hrf_times"], "hrfs": glm["hrfs"].T}
    if "xval_trend" in glm:
        curves["xval_trend"] = glm["xval_trend"]
    if psn_meta["mode"] != "off":
        psn = load_arrays(
            psn_file,
            *(f"model_0_{n}" for n in ("signal_var", "noise_var", "cv_error", "chosen_error", "threshold")),
        )
        names = ("mode", "basis", "level", "criterion", "n_dims", "n_parcels", "parcels", "glm_type")
        choices["psn"] = {name: psn_meta[name] for name in names}
        curves["psn"] = {name.removeprefix("model_0_"): values for name, values in psn.items()}
        choices["psn"]["held_out_error"] = psn_meta["held_out_error"]
    impossible = [key for key in dataset["wanted"] if key not in writer.products]
    return {
        "schema": SCHEMA,
        "fit": fit,
        "study": dataset.get("study", {}),
        "settings": dataset["altering"],
        "digest": dataset["digest"],
        "inputs": fingerprint(plan, dataset["roots"]),
        "products": writer.products,
        "impossible": impossible,
        "choices": choices,
        "account": [*runs_told(plan), *meta["account"], *psn_meta.get("account", [])],
        "warnings": list(dict.fromkeys([*plan.warnings, *meta["warnings"]])),
        "curves": curves,
        "repeats": {str(n): int((repeats == n).sum()) for n in sorted(set(repeats.tolist()))},
        "seconds": {"glmsingle": meta["seconds"], "psn": psn_meta.get("seconds")},
        "software": software_versions(),
        "plan": {name: value for name, value in asdict(plan).items() if name in ("trials",)},
    }
