# SPDX-License-Identifier: Apache-2.0
"""PSN of any number of units at once, in the span of the trials (`conform_app.psn.span`).

GSN and PSN run on the r coordinates of the trials, and their denoised averages Z go back to units by

    m + Q Z = m + X (V L^-1/2 Z).

O(n q^2) time for n units and q trials, q x q memory beside the data.  Equal to `fit_psn` where

* the units are no more than the trials (then `fit_psn` itself runs), or
* nothing is shrunk: then cN and cD live in the span.

With shrinkage, what the diagonals of cN and cD say of directions outside the span is left out.  The averages
have no part there, and in simulations the error of this Wiener filter was 1 to 4 % below that of the whole
n x n matrices.  Cuts for each unit do not commute with rotations: there is the Wiener filter, or one cut for
all.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from conform_app.errors import DataError, UsageError
from conform_app.psn.covariance import level_grid
from conform_app.psn.crossval import averages
from conform_app.psn.dense import CPU, dense_on, symmetrise
from conform_app.psn.estimator import fit_psn
from conform_app.psn.intake import as_responses, select_units
from conform_app.psn.result import PSNResult, as_responses_of
from conform_app.psn.span import Progress, Span, blocks, centred_trials, measure

WIDE_MODES = ("wiener", "standard", "conservative", "aggressive")
NOISE_AXES = 20
_SMALL = 1e-10  # share of the largest variance below which a direction is not followed


@dataclass(frozen=True, eq=False)
class WideFit:
    """PSN of all units at once.

    Attributes
    ----------
    denoised, averages : ndarray, (n_units, n_conditions) float32
        Units left out hold their trial averages.
    unit_means : ndarray, (n_units,) float64
    kept_signal, removed_signal, kept_noise, removed_noise : ndarray, (n_units,) float32
        As in :class:`conform_app.psn.PSNResult`; NaN for units left out.  In the span the signal kept is the
        variance of the denoised averages less that of their noise, and nothing removed is below 0.
    valid : ndarray, (n_units,) bool
    inner : PSNResult
        The fit of the coordinates of the span, or of the valid units where they are no more than the trials.
    weights : ndarray, (q, n_conditions), or None
        Denoised minus means is the q centred trials times these.
    noise_axes, noise_axis_var : ndarray, (n_valid, k) float32 and (k,) float64
        Leading eigenvectors and -values of the covariance of single-trial noise.
    estimator : str
        What this is, in words.
    account : tuple of str
    data : ndarray
    span : Span or None
    """

    denoised: np.ndarray
    averages: np.ndarray
    unit_means: np.ndarray
    kept_signal: np.ndarray
    removed_signal: np.ndarray
    kept_noise: np.ndarray
    removed_noise: np.ndarray
    valid: np.ndarray
    inner: PSNResult
    weights: np.ndarray | None
    noise_axes: np.ndarray
    noise_axis_var: np.ndarray
    estimator: str
    account: tuple[str, ...]
    data: np.ndarray = field(repr=False)
    span: Span | None = field(repr=False)

    @property
    def parcel(self) -> np.ndarray:
        """One parcel holds all units, (n_units,)."""
        return np.zeros(self.valid.size, dtype=int)

    @property
    def models(self) -> tuple[WideFit]:
        """The model of that parcel."""
        return (self,)

    @property
    def n_dims(self) -> np.ndarray:
        """Dimensions kept, effective for the Wiener filter, (n_units,); NaN for units left out."""
        return np.where(self.valid, float(self.inner.n_dims), np.nan)

    @property
    def basis(self) -> str:
        """Name of the basis."""
        return self.inner.basis_name

    @property
    def criterion(self) -> str:
        """How the cut was chosen."""
        return self.inner.criterion

    @property
    def level(self) -> str:
        """The cut, if any, is one for all."""
        return self.inner.level

    def noise(self) -> np.ndarray:
        """Estimate of the noise of every trial: data minus the denoised response of its condition."""
        dtype = self.data.dtype if np.issubdtype(self.data.dtype, np.floating) else np.float64
        return np.subtract(self.data, self.denoised[:, :, None].astype(dtype), dtype=dtype)

    def apply(self, responses: np.ndarray, *, n_trials: float | None = None) -> np.ndarray:
        """Denoise other responses of the same units; their part outside the span is taken for noise.

        Parameters
        ----------
        responses : array_like, (n_units,) or (n_units, ...)
        n_trials : float, optional
            Trials that each is the average of (default: T of the training data).

        Returns
        -------
        ndarray, as ``responses``, float64

        Raises
        ------
        DataError
            If the number of units differs.
        """
        responses = as_responses_of(self.valid.size, responses)
        out = responses.reshape(len(responses), -1).copy()
        units, m = np.flatnonzero(self.valid), self.unit_means[self.valid]
        if self.span is None:
            out[units] = self.inner.apply(out[units], n_trials=n_trials)
            return out.reshape(responses.shape)
        there, q = self.span.there, self.span.vectors.shape[0]
        sums = np.zeros((q, out.shape[1]))
        for rows in blocks(units.size, q):
            x = centred_trials(self.data, units[rows], there, m[rows])
            sums += x.T @ (out[units[rows]] - m[rows, None])
        back = self.span.vectors / self.span.root
        weights = back @ self.inner.apply(back.T @ sums, n_trials=n_trials)
        for rows in blocks(units.size, q):
            x = centred_trials(self.data, units[rows], there, m[rows])
            out[units[rows]] = x @ weights + m[rows, None]
        return out.reshape(responses.shape)

    def arrays(self) -> dict[str, np.ndarray]:
        """What is kept of the model in a file, by name."""
        names = ("weights", "noise_axes", "noise_axis_var", "unit_means", "valid")
        out = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        out |= {"signal_var": self.inner.signal_var, "noise_var": self.inner.noise_var}
        return out | {"threshold": np.asarray(self.inner.threshold)}


def fit_wide(
    data: np.ndarray,
    *,
    mode: str = "wiener",
    shrink: bool = True,
    shrink_levels: np.ndarray | None = None,
    progress: Progress | None = None,
    device: str = "cpu",
    **options,
) -> WideFit:
    """Denoise any number of units at once.

    Parameters
    ----------
    data : array_like, (n_units, n_conditions, n_trials)
        NaN marks a missing trial; units that miss what the others have are left out, as in
        :func:`conform_app.psn.fit_psn`.  float32 is kept as it is.
    mode : {"wiener", "standard", "conservative", "aggressive"}, default "wiener"
        Without shrinkage also "cv" with one cut for all, and "compare".
    shrink, shrink_levels
        As in :func:`conform_app.psn.fit_gsn`.
    progress : callable, optional
        Called with ("PSN", units done, units in all).
    device : {"cpu", "cuda", "auto"}, default "cpu"
        Where covariances are decomposed; the pass over the units runs on the CPU.
    **options
        Others of :func:`conform_app.psn.fit_psn`, but for the level, groups, a basis and `uneven`.

    Returns
    -------
    WideFit

    Raises
    ------
    DataError
        If data are not 3-D, have no repeats or no usable unit.
    UsageError
        If an option does not commute with rotations of the units.
    """
    data = as_responses(data)
    levels, dense = level_grid(shrink, shrink_levels), dense_on(device)
    options["device"] = device
    _refuse(mode, shrink, options)
    there, valid = select_units(data, keep_partial=False)
    if (there.sum(axis=1) == 0).any():
        raise DataError("A condition has no valid trial.", "Leave out conditions never shown.")
    if there.sum(axis=1).max() < 2 or len(there) < 2:
        raise DataError(
            "No condition is repeated, or there is only one.", "Signal and noise can only be told apart so."
        )
    units = np.flatnonzero(valid)
    if not (mode == "wiener" or options.get("criterion") == "wiener"):
        options["threshold"] = "global"
    if shrink and units.size < there.sum():
        exact = {"shrink": shrink, "shrink_levels": shrink_levels}
        return _whole(data, units, valid, fit_psn(data[units], mode=mode, **exact, **options))
    span = measure(data, units, there, shrink=shrink, choose=levels.size > 1, progress=progress)
    gsn = span.gsn(levels, dense)
    span = replace(span, noise_product=None, data_product=None, noise_held=None, data_held=None)
    inner = fit_psn(span.coordinates(), mode=mode, gsn=gsn, shrink=shrink, **options)
    return _from_span(data, units, valid, span, inner, shrink)


def fit_sample_space(data: np.ndarray, *, mode: str = "wiener", **options) -> WideFit:
    """Denoise any number of units at once without shrinkage: `fit_wide` with ``shrink=False``.

    Equal to ``fit_psn(shrink=False)``.  Another estimator than the default, which shrinks: noise along axes
    that the trials do not span counts as absent.

    Parameters
    ----------
    data : array_like, (n_units, n_conditions, n_trials)
        NaN marks a missing trial.
    mode, **options
        As `fit_wide`, but for the shrinkage.

    Returns
    -------
    WideFit

    Raises
    ------
    UsageError
        Shrinkage is asked for.
    DataError
        As `fit_wide`.
    """
    if {"shrink", "shrink_levels"} & set(options):
        raise UsageError("The sample space knows no shrinkage.", "Use fit_wide.")
    return fit_wide(data, mode=mode, shrink=False, **options)


def _refuse(mode: str, shrink: bool, options: dict) -> None:
    wrong = {"threshold", "unit_groups", "gsn", "pooling"} & set(options)
    if options.get("uneven", "fast") != "fast":
        wrong.add("uneven")
    if wrong or mode == "auto" or not isinstance(options.get("basis", ""), str):
        raise UsageError(
            f"In the span of the trials there is no {', '.join(sorted(wrong)) or mode}.",
            "Use fit_psn or fit_parcels.",
        )
    chosen = options.get("criterion", mode)
    if shrink and (chosen == "cv" or "compare" in (mode, options.get("basis"))):
        raise UsageError(
            f"All units at once can be denoised by {', '.join(WIDE_MODES)}, not {chosen}.",
            "Choose one of them, or use fit_parcels.",
        )


def _whole(data: np.ndarray, units: np.ndarray, valid: np.ndarray, fit: PSNResult) -> WideFit:
    """No more units than trials: the exact fit."""
    noise_var, noise_axes = _leading(fit.gsn.noise_cov)
    out = _plain(data, valid)
    out["denoised"][units], out["averages"][units] = fit.denoised, fit.averages
    for name in ("kept_signal", "removed_signal", "kept_noise", "removed_noise"):
        out[name][units] = getattr(fit, name)
    out["unit_means"][units] = fit.unit_means
    return WideFit(
        **out, valid=valid, inner=fit, weights=None, noise_axes=noise_axes.astype(np.float32),
        noise_axis_var=noise_var, estimator="PSN of all units at once, exact", account=fit.account,
        data=data, span=None,
    )  # fmt: skip


def _from_span(
    data: np.ndarray, units: np.ndarray, valid: np.ndarray, span: Span, inner: PSNResult, shrink: bool
) -> WideFit:
    """Back from coordinates to units, in one pass."""
    back = span.vectors / span.root
    operator = inner.operator()
    kept_noise = _root(operator @ inner.gsn.noise_cov @ operator.T)
    del operator
    noise_var, noise_axes = _leading(inner.gsn.noise_cov)
    weights = back @ (inner.denoised - inner.unit_means[:, None])
    maps = np.concatenate([back @ noise_axes, back @ kept_noise], axis=1).astype(np.float32)
    out = _plain(data, valid)
    axes = np.empty((units.size, noise_axes.shape[1]), np.float32)
    t, n_kept = inner.n_trials, noise_axes.shape[1]
    for rows in blocks(units.size, span.there.size):
        here, m = units[rows], span.unit_means[rows]
        x = data[here].astype(np.float64)
        out["averages"][here] = averages(x, span.there)
        x = x[:, span.there] - m[:, None]
        z = x @ weights
        out["denoised"][here] = z + m[:, None]
        mapped = x.astype(np.float32) @ maps  # variances and axes are float32 anyway
        axes[rows], through = mapped[:, :n_kept], mapped[:, n_kept:]
        noise = np.einsum("uk,uk->u", through, through, dtype=np.float64)
        var_n = span.noise_var[rows]
        var_s = span.data_var[rows] - var_n / inner.gsn.n_trials_data
        # The averages lie in the span as a whole; of shrunk covariances only a part does.
        signal = np.maximum(z.var(axis=1, ddof=1) - noise / t, 0.0)
        out["kept_signal"][here], out["kept_noise"][here] = signal, noise / t
        out["removed_signal"][here] = np.maximum(var_s - signal, 0.0)
        out["removed_noise"][here] = np.maximum(var_n - noise, 0.0) / t
    out["unit_means"][units] = span.unit_means
    n_trials = len(weights)
    how = "covariances shrunk towards their diagonals" if shrink else "without shrinkage"
    name = "Wiener filter" if inner.criterion == "wiener" else f"PSN ({inner.criterion}, one cut for all)"
    estimator = f"{name} in the span of the {n_trials} trials of {units.size} units, {how}"
    left = int((~valid).sum())
    account = (
        *(
            [f"{left} of {valid.size} units were constant, not finite or incomplete and left as is."]
            if left
            else []
        ),
        f"PSN ran on all units at once: {estimator}.",
        # what the inner fit calls units are directions
        *(said.replace(f"{span.root.size} units", f"{units.size} units") for said in inner.account),
    )
    return WideFit(
        **out, valid=valid, inner=inner, weights=weights, noise_axes=axes, noise_axis_var=noise_var,
        estimator=estimator, account=account, data=data, span=span,
    )  # fmt: skip


def _plain(data: np.ndarray, valid: np.ndarray) -> dict[str, np.ndarray]:
    """Results before anything is fitted: averages of units left out, NaN elsewhere."""
    out = {name: np.full(data.shape[:2], np.nan, np.float32) for name in ("denoised", "averages")}
    names = ("kept_signal", "removed_signal", "kept_noise", "removed_noise")
    out |= {name: np.full(len(data), np.nan, np.float32) for name in names}
    out["unit_means"] = np.full(len(data), np.nan)
    for unit in np.flatnonzero(~valid):
        x = data[unit].astype(np.float64)
        there = np.isfinite(x)
        count = there.sum(axis=1)
        mean = np.divide(
            np.where(there, x, 0.0).sum(axis=1), count, out=np.full(count.shape, np.nan), where=count > 0
        )
        out["averages"][unit] = out["denoised"][unit] = mean
        out["unit_means"][unit] = mean.mean()
    return out


def _root(cov: np.ndarray) -> np.ndarray:
    """F with FF' the covariance, which is destroyed, without directions of no size."""
    symmetrise(cov)
    w, v = CPU.eigh(cov)
    keep = w > _SMALL * max(w[0], 0.0)
    return v[:, keep] * np.sqrt(w[keep])


def _leading(cov: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The largest eigenvalues, descending, and their eigenvectors."""
    from scipy.linalg import eigh

    n = len(cov)
    values, vectors = eigh(cov, subset_by_index=(max(0, n - NOISE_AXES), n - 1), driver="evr")
    return values[::-1].copy(), vectors[:, ::-1]
