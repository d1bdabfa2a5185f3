# SPDX-License-Identifier: Apache-2.0
"""Populations too large for one n x n covariance: PSN parcel by parcel, exact within each, in parallel.

PSN costs n^3 time and n^2 memory in the number of units.  Parcels come from an atlas (`from_labels`) or from
halving the population along its longest axis again and again (`bisect`), so that they are compact.  A fit
keeps of each parcel what is needed to apply it to other responses, and its axes of noise.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh

from conform_app.errors import DataError, UsageError
from conform_app.psn.estimator import fit_psn
from conform_app.psn.intake import as_responses
from conform_app.psn.result import PSNResult, as_responses_of, truncate

MAX_UNITS = 1500
"""Units of a block: about a second of eigendecomposition and 18 MB a covariance."""
NOISE_AXES = 20
"""Axes of largest noise variance that are kept of a parcel."""
_UNIT_FIELDS = ("kept_signal", "removed_signal", "kept_noise", "removed_noise")


@dataclass(frozen=True, eq=False)
class ParcelModel:
    """What is kept of the fit of one parcel of n units.

    Attributes
    ----------
    axes : ndarray, (n_valid, D) float32
    signal_var, noise_var : ndarray, (D,) float64
        Along the axes.
    threshold : ndarray, () or (n,)
        Dimensions kept, see :class:`conform_app.psn.PSNResult`.
    operator : ndarray, (n_valid, n_valid) float32, or None
        Where the denoiser is no truncation (Wiener filter, weighted mean).
    unit_means : ndarray, (n,)
    cv_error : ndarray or None
    chosen_error : ndarray, () or None
        Cross-validated error of the Wiener filter or weighted mean that mode "auto" preferred to a cut.
    noise_axes, noise_axis_var : ndarray, (n_valid, q) float32 and (q,)
        Leading eigenvectors and -values of the covariance of single-trial noise.
    valid : ndarray, (n,) bool
    """

    axes: np.ndarray
    signal_var: np.ndarray
    noise_var: np.ndarray
    threshold: np.ndarray
    operator: np.ndarray | None
    unit_means: np.ndarray
    cv_error: np.ndarray | None
    chosen_error: np.ndarray | None
    noise_axes: np.ndarray
    noise_axis_var: np.ndarray
    valid: np.ndarray

    def arrays(self) -> dict[str, np.ndarray]:
        """What is there, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def apply(self, responses: np.ndarray) -> np.ndarray:
        """Denoise responses (n, m) of the parcel's units; units left out stay as they are."""
        out = np.array(responses, dtype=np.float64)
        m = self.unit_means[self.valid, None]
        z = out[self.valid] - m
        if self.operator is not None:
            out[self.valid] = self.operator @ z + m
        else:
            k = self.threshold[self.valid] if self.threshold.ndim else int(self.threshold)
            out[self.valid] = truncate(self.axes, k, z) + m
        return out


@dataclass(frozen=True, eq=False)
class ParcelFit:
    """PSN of a population in parcels.

    Attributes
    ----------
    denoised, averages : ndarray, (n_units, n_conditions) float32
    kept_signal, removed_signal, kept_noise, removed_noise : ndarray, (n_units,) float32
        As in :class:`conform_app.psn.PSNResult`.
    n_dims : ndarray, (n_units,) float32
        Dimensions that each unit keeps (of its parcel, effective for Wiener).
    valid : ndarray, (n_units,) bool
    parcel : ndarray, (n_units,) int
    models : tuple of ParcelModel
        None for parcels without any usable unit, which are left as they are; empty where they are not kept.
    basis, criterion, level : str
        Of the first parcel.
    account : tuple of str
    """

    denoised: np.ndarray
    averages: np.ndarray
    kept_signal: np.ndarray
    removed_signal: np.ndarray
    kept_noise: np.ndarray
    removed_noise: np.ndarray
    n_dims: np.ndarray
    valid: np.ndarray
    parcel: np.ndarray
    models: tuple[ParcelModel | None, ...]
    basis: str
    criterion: str
    level: str
    account: tuple[str, ...]

    def apply(self, responses: np.ndarray) -> np.ndarray:
        """Denoise other responses of the same units.

        Parameters
        ----------
        responses : array_like, (n_units, m)

        Returns
        -------
        ndarray, (n_units, m) float64

        Raises
        ------
        DataError
            If the number of units differs.
        UsageError
            If the models were not kept.
        """
        if not self.models:
            raise UsageError("The models of the parcels were not kept.", "Fit with keep_models=True.")
        responses = as_responses_of(self.valid.size, responses)
        out = responses.reshape(len(responses), -1).copy()
        for number, model in enumerate(self.models):
            here = self.parcel == number
            if model is not None:
                out[here] = model.apply(out[here])
        return out.reshape(responses.shape)


def fit_parcels(
    data: np.ndarray,
    parcel: np.ndarray,
    *,
    n_jobs: int = 1,
    keep_models: bool = True,
    progress: Callable[[str, int, int], None] | None = None,
    **options,
) -> ParcelFit:
    """Denoise each parcel by itself and join them.

    Parameters
    ----------
    data : array_like, (n_units, n_conditions, n_trials)
        As in :func:`conform_app.psn.fit_psn`; float32 is kept until a parcel is worked on.
    parcel : ndarray, (n_units,) int
        Parcel of each unit, 0 to the number of parcels minus one.
    n_jobs : int
        Parcels at once (threads; give the linear algebra one thread each).
    keep_models : bool, default True
        Keep what applies the fit to other responses.
    progress : callable, optional
        Called with ("PSN", parcels done, parcels in all).
    **options
        Of :func:`conform_app.psn.fit_psn`.

    Returns
    -------
    ParcelFit
        Peak memory beside the data: the results; for each job eight n x n arrays and three copies of the data
        of one parcel of n units, in double precision; the models, n x n in single precision for each parcel,
        twice that for a Wiener filter or a weighted mean.

    Raises
    ------
    DataError
        If labels do not go with the units, or no parcel has a usable unit.
    """
    data, parcel = as_responses(data), np.asarray(parcel)
    if parcel.shape != (len(data),):
        raise DataError(
            f"Parcels of shape {parcel.shape} do not go with {len(data)} units.",
            "Give one parcel per unit, numbered from 0.",
        )
    if not np.issubdtype(parcel.dtype, np.integer) or parcel.min(initial=0) < 0:
        raise DataError(
            "Parcels are not whole numbers from 0.", "Make them with from_labels, which takes any labels."
        )
    n_parcels = int(parcel.max(initial=0)) + 1
    out = {name: np.full(data.shape[:2], np.nan, np.float32) for name in ("denoised", "averages")}
    out |= {name: np.full(len(data), np.nan, np.float32) for name in (*_UNIT_FIELDS, "n_dims")}
    out["valid"] = np.zeros(len(data), dtype=bool)

    def work(number: int) -> tuple[ParcelModel | None, tuple, int, float] | str:
        here = np.flatnonzero(parcel == number)
        if not here.size:
            return f"Parcel {number + 1} has no unit."
        try:
            fit = fit_psn(data[here], **options)
        except DataError as error:
            out["averages"][here] = out["denoised"][here] = _plain_averages(data[here])
            return f"Parcel {number + 1} was left as it is: {error.message}"
        for name in ("denoised", "averages", "valid", *_UNIT_FIELDS):
            out[name][here] = getattr(fit, name)
        out["n_dims"][here] = np.where(fit.valid, fit.threshold, np.nan)
        said = fit.basis_name, fit.criterion, fit.level, fit.account
        return _model(fit) if keep_models else None, said, len(here), float(fit.n_dims)

    done = []
    with ThreadPoolExecutor(max(1, n_jobs)) as pool:
        for number, result in enumerate(pool.map(work, range(n_parcels)), 1):
            done.append(result)
            if progress is not None:
                progress("PSN", number, n_parcels)
    fitted = [result for result in done if not isinstance(result, str)]
    if not fitted:
        raise DataError("No parcel has a usable unit.", "Check the mask and that conditions are repeated.")
    models = tuple(None if isinstance(result, str) else result[0] for result in done if keep_models)
    basis, criterion, level, _ = fitted[0][1]
    account = (*_account(fitted), *(result for result in done if isinstance(result, str)))
    return ParcelFit(
        **out, parcel=parcel, models=models, basis=basis, criterion=criterion, level=level, account=account
    )


def _model(fit: PSNResult) -> ParcelModel:
    n = len(fit.axes)
    first = max(0, n - NOISE_AXES)
    values, vectors = eigh(
        fit.gsn.noise_cov, subset_by_index=(first, n - 1), driver="evr", check_finite=False
    )
    preferred = fit.candidate_errors.get(fit.criterion)  # of "wiener" and "blend"
    return ParcelModel(
        axes=fit.axes.astype(np.float32),
        signal_var=fit.signal_var,
        noise_var=fit.noise_var,
        threshold=np.asarray(fit.threshold),
        operator=fit.operator(np.float32) if fit.criterion in ("wiener", "blend") else None,
        unit_means=fit.unit_means,
        cv_error=fit.cv_error,
        chosen_error=None if preferred is None else np.asarray(preferred),
        noise_axes=np.ascontiguousarray(vectors[:, ::-1], dtype=np.float32),
        noise_axis_var=values[::-1].copy(),
        valid=fit.valid,
    )


def _plain_averages(data: np.ndarray) -> np.ndarray:
    there = np.isfinite(data)
    count = there.sum(axis=2)
    total = np.where(there, data, 0.0).sum(axis=2)
    return np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)


def _account(fitted: list) -> tuple[str, ...]:
    if len(fitted) == 1:
        return tuple(fitted[0][1][3])
    sizes, dims = [f[2] for f in fitted], [f[3] for f in fitted]
    few = [f[1][3] for f in fitted if any(s.startswith("Axes were estimated") for s in f[1][3])]
    warned = [next(s for s in few[0] if s.startswith("Axes were estimated"))] if few else []
    where = [f"This holds for {len(few)} of {len(fitted)} blocks (figures of the first)."] if few else []
    return (
        f"PSN was applied to {len(fitted)} blocks of {min(sizes)} to {max(sizes)} voxels, each by itself; it"
        f" kept {min(dims):.4g} to {max(dims):.4g} dimensions (median {np.median(dims):.4g}) of a block.",
        *warned,
        *where,
        fitted[0][1][3][-1].replace("PSN kept", "In the first block, PSN kept"),
    )


def bisect(coordinates: np.ndarray, max_units: int = MAX_UNITS) -> np.ndarray:
    """Label units by compact blocks.

    Parameters
    ----------
    coordinates : ndarray of shape (n_units, n_axes)
        Place of each unit, in any unit of length.
    max_units : int
        Largest block.

    Returns
    -------
    ndarray of shape (n_units,), int
        Block of each unit, from 0.  Blocks differ in size by one at most per halving.
    """
    coordinates = np.asarray(coordinates, dtype=float)
    labels = np.zeros(len(coordinates), dtype=int)
    todo, done = [np.arange(len(coordinates))], []
    while todo:
        units = todo.pop()
        if len(units) <= max_units:
            done.append(units)
            continue
        axis = np.ptp(coordinates[units], axis=0).argmax()
        order = units[np.argsort(coordinates[units, axis], kind="stable")]
        todo += [order[len(order) // 2 :], order[: len(order) // 2]]
    for number, units in enumerate(done):
        labels[units] = number
    return labels


def from_labels(
    labels: np.ndarray, coordinates: np.ndarray | None = None, max_units: int = MAX_UNITS
) -> np.ndarray:
    """Parcels from atlas labels (Schaefer, MMP1, ...); what is too large is halved, unlabelled units too.

    Parameters
    ----------
    labels : ndarray of shape (n_units,)
        Any labels; equal ones belong together.
    coordinates : ndarray of shape (n_units, n_axes), optional
        Place of each unit, to halve compactly; by default the order of units.
    max_units : int

    Returns
    -------
    ndarray of shape (n_units,), int
        Parcel of each unit, from 0, in the order of the labels.
    """
    labels = np.asarray(labels)
    if coordinates is None:
        coordinates = np.arange(labels.size)[:, None]
    out, first = np.empty(labels.size, dtype=int), 0
    kinds, kind = np.unique(labels, return_inverse=True)  # NaN is a label like others
    for number in range(len(kinds)):
        here = np.flatnonzero(kind == number)
        parts = bisect(np.asarray(coordinates)[here], max_units)
        out[here] = first + parts
        first += int(parts.max()) + 1
    return out
