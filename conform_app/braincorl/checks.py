# SPDX-License-Identifier: Apache-2.0
"""What is refused before any fit: features that are not unit vectors, betas of other images, test images.

Everything here raises `DataError` with the first offender by number (or by name, where names are given).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from conform_app.errors import DataError, UsageError

UNIT = 1e-3  # how far a feature vector's length may be from 1 (float16 files are off by some 1e-4)


def check_features(features, n_features: int | None = None, *, what: str = "Features") -> np.ndarray:
    """Features as float32 ``(n_images, E)`` with finite, unit-norm rows.

    Parameters
    ----------
    features : array (n_images, E)
    n_features : int, optional
        The E that is needed.
    what : str
        How messages call them.

    Raises
    ------
    DataError
        Not two axes, another E, values that are not finite, rows that are not unit vectors.
    """
    features = np.asarray(features)
    if features.ndim != 2 or 0 in features.shape or features.dtype.kind not in "fiu":
        raise DataError(
            f"{what} have shape {features.shape} of {features.dtype}, not (images, features) of numbers.",
            "Give one row per image.",
        )
    if n_features is not None and features.shape[1] != n_features:
        raise DataError(
            f"{what} have {features.shape[1]} columns, and {n_features} are needed.",
            "Use the feature extractor that the model or prior was trained with.",
        )
    features = features.astype(np.float32, copy=False)
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if bad.size:
        raise DataError(
            f"{what} of image {bad[0]} are not finite ({bad.size} images).", "Extract them again."
        )
    length = np.linalg.norm(features.astype(np.float64), axis=1)
    bad = np.flatnonzero(np.abs(length - 1) > UNIT)
    if bad.size:
        raise DataError(
            f"{what} of image {bad[0]} have length {length[bad[0]]:.4g}, not 1 ({bad.size} images).",
            "Divide every row by its Euclidean norm (unit_norm does it).",
        )
    return features


def unit_norm(features) -> np.ndarray:
    """Divide rows by their Euclidean norm.

    Parameters
    ----------
    features : array (..., E)

    Returns
    -------
    ndarray (..., E), float32

    Raises
    ------
    DataError
        A row is zero or not finite.
    """
    features = np.asarray(features, np.float64)
    length = np.linalg.norm(features, axis=-1, keepdims=True)
    bad = np.flatnonzero(~(length[..., 0] > 0))
    if bad.size:
        raise DataError(f"Features of image {bad[0]} are zero or not finite.", "Extract them again.")
    return (features / length).astype(np.float32)


def check_betas(betas, n_images: int, *, what: str = "Betas") -> tuple[np.ndarray, np.ndarray]:
    """Betas as float32 ``(n_voxels, n_images)`` and which voxels can be fitted.

    Returns
    -------
    betas : ndarray (n_voxels, n_images)
    valid : ndarray (n_voxels,) of bool
        False where a voxel is constant or not finite.

    Raises
    ------
    DataError
        Another number of images, or no voxel that can be fitted.
    """
    betas = np.asarray(betas)
    if betas.ndim != 2 or betas.dtype.kind not in "fiu":
        raise DataError(f"{what} have shape {betas.shape}, not (voxels, images).", "Give one row per voxel.")
    if betas.shape[1] != n_images:
        hint = " (they look transposed)" if betas.shape[0] == n_images else ""
        raise DataError(
            f"{what} are for {betas.shape[1]} images, features for {n_images}{hint}.",
            "Give betas (voxels, images), one column per row of the features.",
        )
    betas = betas.astype(np.float32, copy=False)
    valid = np.isfinite(betas).all(axis=1) & (np.ptp(betas, axis=1) > 0)
    if not valid.any():
        raise DataError(
            f"{what}: every voxel is constant or not finite.", "Check what the betas were made from."
        )
    return betas, valid


def match_names(feature_names: Sequence[str], beta_names: Sequence[str]) -> np.ndarray:
    """Rows of the features, in the order of the betas' columns.

    Parameters
    ----------
    feature_names, beta_names : sequences of str
        Stimulus of each row of the features, and of each column of the betas (may repeat: trials).

    Returns
    -------
    ndarray (n_beta_columns,) of int

    Raises
    ------
    DataError
        A name given twice to features, or a stimulus without features.
    """
    rows = {str(name): row for row, name in enumerate(feature_names)}
    if len(rows) != len(feature_names):
        twice = sorted(name for name in rows if [str(n) for n in feature_names].count(name) > 1)
        raise DataError(f"Features name {twice[0]!r} more than once.", "Give one row per stimulus.")
    missing = [str(name) for name in beta_names if str(name) not in rows]
    if missing:
        raise DataError(
            f"There are no features for stimulus {missing[0]!r} ({len(set(missing))} stimuli of "
            f"{len({str(n) for n in beta_names})}).",
            "Extract features for all stimuli, with the names that the trial table has.",
        )
    return np.array([rows[str(name)] for name in beta_names], dtype=int)


def check_disjoint(context: Sequence, test: Sequence) -> None:
    """Refuse test images that are in the context: by name or number, or, for 2-D arrays, by equal features.

    Raises
    ------
    DataError
        At least one test image was in the context.
    """

    def keys(items) -> list:
        items = np.asarray(items)
        return [row.tobytes() for row in items] if items.ndim == 2 else items.tolist()

    seen = set(keys(context))
    both = [i for i, key in enumerate(keys(test)) if key in seen]
    if both:
        raise DataError(
            f"{len(both)} test images are in the context (first: test image {both[0]}), so accuracy would be "
            "too high.",
            "Keep context and test images apart.",
        )


def check_context_size(size: int, available: int) -> None:
    """Refuse a context that is larger than the data, or too small to say anything."""
    if size > available:
        raise DataError(
            f"A context of {size} images was asked for, and there are {available}.", "Ask for fewer images."
        )
    if size < 2:
        raise UsageError(f"A context of {size} images is too small.", "Give at least 2 images.")
