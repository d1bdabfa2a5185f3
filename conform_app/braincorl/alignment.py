# SPDX-License-Identifier: Apache-2.0
r"""Functional alignment: one participant's voxels in terms of another's, from images that both have seen.

Betas of shared images, every voxel at mean 0 and variance 1 over them: source ``X (n_s, n)``, target
``Y (n_t, n)``.  Within each parcel (or the whole), a map ``M (n_t, n_s)`` is sought:

- *procrustes*: ``min ||Y - c M X||``, M orthogonal (on the space that the images span), c a scale; from the
  singular vectors of ``Y X'``.  (Haxby et al. 2011; Schönemann 1966.)
- *ridge*: ``min ||y_v - m_v X||^2 + a_v ||m_v||^2`` for every target voxel v; its penalty is the best for
  held-out fifths of the images, with ten voxels' worth of evidence from all voxels of the parcel together.
- *optimal_transport*: the entropic plan P with equal mass for all voxels that minimises
  ``sum P_st C_st - e H(P)``, C the squared distance of response profiles over its largest; ``M = n_t P'``:
  a target voxel is a weighted mean of source voxels (Bazeille et al. 2019; Cuturi 2013).

M is then taken back to the units of the betas.  A linear map of responses is one of encoding weights, too:
`Alignment.carry` brings a model fitted to the source's voxels to the target's.
``engine="fmralign"`` solves the same problems with fmralign's classes (Bazeille et al. 2021; its ridge has
one penalty for all voxels); the default needs no further package, and the tests hold the two together.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from conform_app.braincorl.checks import check_betas
from conform_app.braincorl.ridge import folds_of
from conform_app.errors import DataError, FileFaultError, MissingCommandError, NoInputError, UsageError

METHODS = ("procrustes", "ridge", "optimal_transport")
ENGINES = ("conform", "fmralign")
LEAST_SHARED = 5  # images: the folds that choose a penalty
PENALTIES = np.logspace(0, 7, 15)
ENTROPIES = (0.01, 0.03, 0.1, 0.3)
POOLED = 10  # voxels' worth of evidence on a penalty from all voxels together
LARGEST_MAP = 2**29  # entries: 2 GiB
LEAST_ENTROPY = 0.002  # exp(-1 / e) must be a number


@dataclass(frozen=True)
class Alignment:
    """A map from one participant's voxels to another's.

    Attributes
    ----------
    method, engine : str
    n_shared : int
        Images it was fitted to.
    source_mean, target_mean : ndarray (n_source,), (n_target,)
        Over those images; NaN for voxels that were left out (constant or not finite).
    pieces : tuple of (source, target, map)
        Per parcel: voxel numbers ``(k_s,)`` and ``(k_t,)``, and the map ``(k_t, k_s)`` in units of betas.
    entropy : float
        Of optimal transport, given or chosen; NaN otherwise.
    """

    method: str
    engine: str
    n_shared: int
    source_mean: np.ndarray = field(repr=False)
    target_mean: np.ndarray = field(repr=False)
    pieces: tuple[tuple[np.ndarray, np.ndarray, np.ndarray], ...] = field(repr=False)
    entropy: float = float("nan")

    def transform(self, betas) -> np.ndarray:
        """Betas of the source as the target's.

        Parameters
        ----------
        betas : array (n_source, n_images)

        Returns
        -------
        ndarray (n_target, n_images), float32
            NaN for target voxels that no voxel is mapped to.

        Raises
        ------
        DataError
            Another number of voxels than the source's, or values used that are not finite.
        """
        betas = self._of_source(betas, "Betas")
        return self._apply(betas - self.source_mean[:, None], self.target_mean[:, None])

    def carry(self, weights) -> np.ndarray:
        """Encoding weights of the source, bias last, as the target's.

        Parameters
        ----------
        weights : array (n_source, E + 1)

        Returns
        -------
        ndarray (n_target, E + 1), float32
        """
        weights = self._of_source(weights, "Weights").copy()
        weights[:, -1] -= self.source_mean
        offset = np.zeros((len(self.target_mean), weights.shape[1]))
        offset[:, -1] = self.target_mean
        return self._apply(weights, offset)

    def _of_source(self, values, what: str) -> np.ndarray:
        values = np.asarray(values, np.float64)
        if values.ndim != 2 or len(values) != len(self.source_mean):
            raise DataError(
                f"{what} have shape {values.shape}; the alignment is from {len(self.source_mean)} voxels.",
                "Give the voxels that it was fitted to.",
            )
        return values

    def _apply(self, values: np.ndarray, offset: np.ndarray) -> np.ndarray:
        out = np.full((len(self.target_mean), values.shape[1]), np.nan, np.float32)
        for source, target, linear in self.pieces:
            used = values[source]
            bad = np.flatnonzero(~np.isfinite(used).all(axis=1))
            if bad.size:
                raise DataError(
                    f"Source voxel {source[bad[0]]}, which is used, is not finite ({bad.size} voxels).",
                    "Fit the alignment without these voxels (betas of NaN leave them out).",
                )
            out[target] = linear @ used + offset[target]
        return out

    def save(self, path: Path | str) -> Path:
        """Write as safetensors, float32.

        Parameters
        ----------
        path : path

        Returns
        -------
        Path
        """
        from safetensors.numpy import save_file

        path = Path(path)
        arrays = {"source_mean": self.source_mean, "target_mean": self.target_mean}
        arrays = {key: np.asarray(value, np.float32) for key, value in arrays.items()}
        for i, (source, target, linear) in enumerate(self.pieces):
            arrays |= {f"{i}.source": source.astype(np.int64), f"{i}.target": target.astype(np.int64)}
            arrays[f"{i}.map"] = np.ascontiguousarray(linear, np.float32)
        card = {"model": "Alignment", "method": self.method, "engine": self.engine}
        card |= {"n_shared": self.n_shared, "n_pieces": len(self.pieces), "entropy": self.entropy}
        part = path.with_name(f".{path.name}.part")
        save_file(arrays, part, metadata={"card": json.dumps(card, sort_keys=True)})
        part.replace(path)
        return path

    @classmethod
    def load(cls, path: Path | str) -> Alignment:
        """Read what `save` wrote.

        Parameters
        ----------
        path : path

        Returns
        -------
        Alignment

        Raises
        ------
        NoInputError, FileFaultError
            There is no such file; it is no alignment.
        """
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise NoInputError(f"There is no alignment {path}.", "Give a file that Alignment.save wrote.")
        try:
            with safe_open(path, framework="np") as file:
                card = json.loads(file.metadata()["card"])
                keys = ("source", "target", "map")
                pieces = tuple(
                    tuple(file.get_tensor(f"{i}.{key}") for key in keys) for i in range(card["n_pieces"])
                )
                means = [file.get_tensor(key).astype(np.float64) for key in ("source_mean", "target_mean")]
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise FileFaultError(f"{path} is not an alignment: {error}", "Fit it again.") from error
        return cls(card["method"], card["engine"], card["n_shared"], *means, pieces, card["entropy"])


def align(
    source,
    target,
    *,
    method: str = "ridge",
    parcels=None,
    source_names: Sequence[Hashable] | None = None,
    target_names: Sequence[Hashable] | None = None,
    test_names: Sequence[Hashable] = (),
    engine: str = "conform",
    entropy: float | None = None,
    seed: int = 0,
) -> Alignment:
    """Fit a map from the source's voxels to the target's.

    Parameters
    ----------
    source, target : array (n_source, n_images), (n_target, n_images)
        Betas; column for column the same images, or with names.  Training images only.
    method : {"procrustes", "ridge", "optimal_transport"}
    parcels : (array (n_source,), array (n_target,)), or one array for both, optional
        A label per voxel: voxels are only mapped within their parcel.  Default: one piece.
    source_names, target_names : sequences, optional
        Image of each column: those in both are used, repeats averaged.
    test_names : sequence, optional
        Images that must not be among those used.
    engine : {"conform", "fmralign"}
        "fmralign" needs the extra ``conform-app[alignment]``.
    entropy : float, optional
        Of optimal transport, 0.002 or more (fmralign's default is 0.01); by default one of 0.01, 0.03, 0.1
        and 0.3, by five folds of the shared images.
    seed : int
        Folds.

    Returns
    -------
    Alignment

    Raises
    ------
    DataError
        No or too few shared images, a test image among them, betas of other sizes, different parcels.
    UsageError
        Unknown method or engine.
    MissingCommandError
        fmralign is asked for and not installed.
    """
    if method not in METHODS or engine not in ENGINES:
        raise UsageError(
            f"There is no alignment {method!r} by {engine!r}.",
            f"Methods are {', '.join(METHODS)}; engines {', '.join(ENGINES)}.",
        )
    if entropy is not None and not entropy >= LEAST_ENTROPY:
        raise UsageError(f"An entropy of {entropy} was asked for.", f"Give at least {LEAST_ENTROPY}.")
    x, y = np.asarray(source), np.asarray(target)
    if (source_names is None) != (target_names is None):
        raise UsageError("Names are given for the source or for the target only.", "Give both, or none.")
    if len(test_names) and source_names is None:
        raise UsageError("Test images are named, the columns are not.", "Give source_names and target_names.")
    if source_names is not None:
        shared = shared_images(source_names, target_names, test_names=test_names)
        x, y = average_of(x, source_names, shared), average_of(y, target_names, shared)
    if y.ndim != 2:
        raise DataError(
            f"Target betas have shape {y.shape}, not (voxels, images).", "Give one row per voxel."
        )
    x, valid_x = check_betas(x, y.shape[1], what="Source betas")
    y, valid_y = check_betas(y, x.shape[1], what="Target betas")
    _enough(x.shape[1])
    x, x_mean, x_sd = _standardised(x, valid_x)
    y, y_mean, y_sd = _standardised(y, valid_y)
    places = _places(parcels, valid_x, valid_y)
    largest = max(s.size * t.size for s, t in places)
    if largest > LARGEST_MAP:
        raise DataError(
            f"A map between so many voxels has {largest} entries ({4 * largest / 2**30:.0f} GiB).",
            "Give parcels (regions of an atlas), and voxels are mapped within them.",
        )
    if method == "optimal_transport" and entropy is None:
        entropy = _best_entropy(x, y, places, engine, seed)
    solve = _solver(method, engine, entropy, seed)
    pieces = []
    for s, t in places:
        linear = solve(x[s], y[t]) * (y_sd[t][:, None] / x_sd[s])
        pieces.append((s, t, linear.astype(np.float32)))
    return Alignment(method, engine, x.shape[1], x_mean, y_mean, tuple(pieces), entropy or float("nan"))


def shared_images(
    source_names: Sequence[Hashable], target_names: Sequence[Hashable], *, test_names: Sequence[Hashable] = ()
) -> list[Hashable]:
    """Images that both participants have seen, in the source's order; refuses test images among them."""
    theirs = set(target_names)
    shared = [name for name in dict.fromkeys(source_names) if name in theirs]
    tests = [name for name in shared if name in set(test_names)]
    if tests:
        raise DataError(
            f"{len(tests)} shared images are test images (first: {tests[0]!r}): accuracy would be too high.",
            "Align on training images only.",
        )
    _enough(len(shared))
    return shared


def average_of(betas: np.ndarray, names: Sequence[Hashable], wanted: Sequence[Hashable]) -> np.ndarray:
    """Mean betas (n_voxels, n_wanted) over the columns of each image."""
    if betas.ndim != 2 or betas.shape[1] != len(names):
        raise DataError(f"Betas have shape {betas.shape}, and {len(names)} names.", "One name per column.")
    place = {name: i for i, name in enumerate(wanted)}
    columns = [i for i, name in enumerate(names) if name in place]
    of = np.array([place[names[i]] for i in columns])
    total = np.zeros((len(wanted), len(betas)))
    np.add.at(total, of, np.asarray(betas[:, columns], np.float64).T)
    return (total / np.bincount(of, minlength=len(wanted))[:, None]).T


def _enough(n_shared: int) -> None:
    if n_shared < LEAST_SHARED:
        raise DataError(
            f"The participants share {n_shared or 'no'} images, and alignment needs {LEAST_SHARED} or more.",
            "Without shared images use anatomical registration or adapt(), which need none.",
        )


def _standardised(betas: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    betas = np.where(valid[:, None], betas, np.nan).astype(np.float64)
    mean, sd = betas.mean(axis=1), betas.std(axis=1)
    return (betas - mean[:, None]) / sd[:, None], mean, sd


def _places(parcels, valid_x: np.ndarray, valid_y: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Voxel numbers of source and target in each parcel."""
    if parcels is None:
        return [(np.flatnonzero(valid_x), np.flatnonzero(valid_y))]
    pair = parcels if isinstance(parcels, tuple) else (parcels, parcels)
    of_x, of_y = (np.asarray(labels) for labels in pair)
    for labels, valid, whose in ((of_x, valid_x, "source"), (of_y, valid_y, "target")):
        if labels.shape != valid.shape:
            raise DataError(
                f"Parcels of the {whose} have shape {labels.shape}, not ({len(valid)},).", "One per voxel."
            )
    alone = set(np.unique(of_x)) ^ set(np.unique(of_y))
    if alone:
        first = min(alone, key=str)
        whose = "source" if first in of_x else "target"
        raise DataError(
            f"Parcel {first!s} has voxels in the {whose} only ({len(alone)} parcels of one participant).",
            "Use one atlas for both, and leave out parcels that one of them lacks.",
        )
    out = []
    for label in np.unique(of_y):
        s, t = (np.flatnonzero((of == label) & ok) for of, ok in ((of_x, valid_x), (of_y, valid_y)))
        if t.size and not s.size:
            raise DataError(f"No source voxel of parcel {label!s} varies.", "Leave this parcel out.")
        if t.size:
            out.append((s, t))
    return out


def _solver(
    method: str, engine: str, entropy: float | None, seed: int
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Function of standardised X (n_s, n) and Y (n_t, n) that gives M (n_t, n_s)."""
    if engine == "fmralign":
        return _fmralign(method, entropy)
    if method == "procrustes":
        return procrustes_map
    if method == "ridge":
        return lambda x, y: ridge_map(x, y, seed=seed)
    return lambda x, y: transport_map(x, y, entropy)


def procrustes_map(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """``c M`` with ``||Y - c M X||`` least, M orthogonal between the spaces that X's and Y's rows span."""
    qx, rx = np.linalg.qr(x)
    qy, ry = np.linalg.qr(y)
    u, s, vt = np.linalg.svd(ry @ rx.T, full_matrices=False)
    rank = int((s > s[0] * 1e-10).sum())  # beyond it directions are arbitrary
    scale = s.sum() / (x**2).sum()
    return scale * (qy @ u[:, :rank]) @ (vt[:rank] @ qx.T)


def ridge_map(x: np.ndarray, y: np.ndarray, *, penalties=PENALTIES, seed: int = 0) -> np.ndarray:
    """Ridge regression of y's rows on x's, a penalty per row of y; nothing is centred."""
    penalties = np.asarray(penalties, np.float64)
    error = np.zeros((len(penalties), len(y)))
    for test in folds_of(x.shape[1], 5, seed) if len(penalties) > 1 else []:
        keep = np.setdiff1d(np.arange(x.shape[1]), test)
        left, s, right = _spectrum(x[:, keep])
        of_y, of_test = y[:, keep] @ left, right @ x[:, test]
        for i, penalty in enumerate(penalties):
            error[i] += ((y[:, test] - (of_y / (s + penalty)) @ of_test) ** 2).sum(axis=1)
    best = (error + POOLED * error.mean(axis=1, keepdims=True)).argmin(axis=0)
    left, s, right = _spectrum(x)
    return ((y @ left) / (s + penalties[best][:, None])) @ right


def _spectrum(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Factors of ridge at any penalty a: ``X' (X X' + a)^-1 = left diag(1 / (s + a)) right``."""
    if len(x) < x.shape[1]:
        s, q = np.linalg.eigh(x @ x.T)
        return x.T @ q, s, q.T
    s, u = np.linalg.eigh(x.T @ x)
    return u, s, u.T @ x.T


def transport_map(
    x: np.ndarray, y: np.ndarray, entropy: float, *, iterations: int = 1000, tolerance: float = 1e-7
) -> np.ndarray:
    """``n_t P'`` of the entropic transport between response profiles (Sinkhorn's iterations)."""
    cost = (x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1) - 2 * x @ y.T
    kernel = np.exp(-cost / cost.max() / entropy)
    mass_x, mass_y = 1 / len(x), 1 / len(y)
    v = np.ones(len(y))
    for _ in range(iterations):
        u = mass_x / (kernel @ v)
        sums = kernel.T @ u
        if np.abs(v * sums - mass_y).max() < tolerance * mass_y:
            break
        v = mass_y / sums
    return (u[:, None] * kernel * (v * len(y))).T


def _best_entropy(x: np.ndarray, y: np.ndarray, places, engine: str, seed: int) -> float:
    """The entropy whose maps agree best with held-out shared images: mean correlation over target voxels."""
    score = np.zeros(len(ENTROPIES))
    for test in folds_of(x.shape[1], 5, seed):
        keep = np.setdiff1d(np.arange(x.shape[1]), test)
        for i, entropy in enumerate(ENTROPIES):
            solve = _solver("optimal_transport", engine, entropy, seed)
            for s, t in places:
                predicted = solve(x[s][:, keep], y[t][:, keep]) @ x[s][:, test]
                spread = np.sqrt((predicted**2).sum(axis=1) * (y[t][:, test] ** 2).sum(axis=1))
                score[i] += ((predicted * y[t][:, test]).sum(axis=1) / np.maximum(spread, 1e-12)).sum()
    return ENTROPIES[int(score.argmax())]


def _fmralign(method: str, entropy: float | None) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    try:
        from fmralign.methods import OptimalTransport, RidgeAlignment
        from fmralign.methods.procrustes import scaled_procrustes
    except ModuleNotFoundError as error:
        raise MissingCommandError(
            f"Alignment by fmralign needs the Python package {error.name!r}, which is not installed.",
            "Install conform-app[alignment], or use engine='conform'.",
        ) from error

    def solve(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        if method == "procrustes":
            # Its class looks at the source's size alone for the form to solve, and fails for a small target.
            rotation, scale = scaled_procrustes(
                x.T, y.T, scaling=True, primal=x.shape[1] >= min(len(x), len(y))
            )
            return scale * rotation.T
        if method == "ridge":
            return np.atleast_2d(RidgeAlignment(alphas=PENALTIES, cv=5).fit(x.T, y.T).R.coef_)
        return (OptimalTransport(reg=entropy).fit(x.T, y.T).R * len(y)).T

    return solve
