# SPDX-License-Identifier: Apache-2.0
"""A transform that is one sparse matrix: ``y = W x``, built once in float64, applied to any number of maps.

Rows of W sum to 1, or are empty where nothing is known.  Only columns that W uses are ever read, so values
that are not finite elsewhere (outside the brain, on the medial wall) reach nothing.
"""

from __future__ import annotations

import warnings

import numpy as np
from scipy import sparse

from conform_app.devices import torch_device
from conform_app.errors import DataError, UsageError

_BLOCK_BYTES = 256 * 2**20  # of gathered input per step


def normalised_rows(matrix: sparse.csr_matrix) -> tuple[sparse.csr_matrix, np.ndarray]:
    """The matrix with rows of sum 1 (rows of sum 0 emptied), and the sums before, (n_rows,)."""
    sums = np.asarray(matrix.sum(axis=1)).ravel()
    scale = np.divide(1.0, sums, out=np.zeros_like(sums), where=sums > 0)
    scaled = (sparse.diags(scale) @ matrix).tocsr()
    scaled.eliminate_zeros()
    scaled.sort_indices()
    return scaled, sums


class LinearMap:
    """Applies a sparse matrix on the CPU (scipy) or another device (torch).

    Parameters
    ----------
    matrix : csr_matrix, (n_out, n_in) float64
        Rows of sum 1, or empty.

    Attributes
    ----------
    matrix : csr_matrix
        As given.
    used : ndarray, (n_used,) int64
        Columns with a weight, ascending.
    valid : ndarray, (n_out,) bool
        Rows with a weight.
    """

    def __init__(self, matrix: sparse.csr_matrix):
        self.matrix = matrix
        self.used = np.unique(matrix.indices).astype(np.int64)
        self.valid = np.diff(matrix.indptr) > 0
        narrow = np.searchsorted(self.used, matrix.indices)
        self._narrow = sparse.csr_matrix(
            (matrix.data, narrow, matrix.indptr), (matrix.shape[0], len(self.used))
        )
        self._ready: dict = {}

    def __call__(self, gather, n_maps: int, *, fill: float, device: str, dtype) -> np.ndarray:
        """Values (n_out, n_maps).

        Parameters
        ----------
        gather : callable
            ``gather(columns, start, stop)`` gives maps start to stop of the columns, (n_used, stop - start).
        n_maps : int
            Number of maps.
        fill : float
            Value of rows without weights.
        device : str
            "cpu" (scipy), "cuda", or "auto": a GPU if there is one.
        dtype : dtype
            float32 or float64: of the arithmetic and of the result.

        Raises
        ------
        UsageError
            A dtype that is not float32 or float64, a device that is unknown or not there.
        """
        dtype = np.dtype(dtype)
        if dtype not in (np.float32, np.float64):
            raise UsageError(f"Surface transforms do not compute in {dtype}.", "Use float32 or float64.")
        product = self._product(device, dtype)
        out = np.empty((self.matrix.shape[0], n_maps), dtype)
        step = max(1, _BLOCK_BYTES // max(1, len(self.used) * dtype.itemsize))
        for start in range(0, n_maps, step):
            stop = min(start + step, n_maps)
            block = np.ascontiguousarray(gather(self.used, start, stop), dtype=dtype)
            out[:, start:stop] = product(block)
        out[~self.valid] = fill
        return out

    def _product(self, device: str, dtype: np.dtype):
        """A function block (n_used, n_maps) -> (n_out, n_maps); the matrix stays on the device."""
        name = "cpu" if str(device) == "cpu" else str(torch_device(device))
        key = (name, dtype)
        if key not in self._ready:
            if name == "cpu":
                narrow = self._narrow.astype(dtype)
                self._ready[key] = lambda block: narrow @ block
            else:
                self._ready[key] = _torch_product(self._narrow, name, dtype)
        return self._ready[key]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_ready": {}}


def _torch_product(matrix: sparse.csr_matrix, device: str, dtype: np.dtype):
    import torch

    where = torch.device(device)
    matrix = matrix.copy()
    matrix.sum_duplicates()  # sorts as well; torch takes nothing else, scipy's products are in any order
    kind = torch.float32 if dtype == np.float32 else torch.float64
    with warnings.catch_warnings():
        # torch says once that CSR tensors are in beta; products of one with a dense matrix are all we use.
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support", category=UserWarning)
        weights = torch.sparse_csr_tensor(
            torch.as_tensor(matrix.indptr.astype(np.int64)),
            torch.as_tensor(matrix.indices.astype(np.int64)),
            torch.as_tensor(matrix.data.astype(dtype)),
            size=matrix.shape,
            dtype=kind,
            device=where,
            check_invariants=True,
        )
    return lambda block: (weights @ torch.as_tensor(block, device=where)).cpu().numpy()


def as_maps(values, n: int, what: str) -> tuple[np.ndarray, bool]:
    """Values as (n, n_maps), and whether they came as one map (n,).

    Raises
    ------
    DataError
        Another number of values, or not numbers.
    """
    values = np.asarray(values)
    if values.ndim not in (1, 2) or len(values) != n:
        raise DataError(
            f"Values of shape {values.shape} were given for {what} of {n} vertices.",
            "Use the surface that the values were made on: same subject, hemisphere and density.",
        )
    if values.dtype.kind not in "bifu":
        raise DataError(f"Values for {what} are {values.dtype}, not real numbers.", "Convert them first.")
    return (values[:, None], True) if values.ndim == 1 else (values, False)


def pack(matrix: sparse.csr_matrix) -> dict[str, np.ndarray]:
    """A sparse matrix as plain arrays."""
    return {
        "weights": matrix.data,
        "columns": matrix.indices.astype(np.int32),
        "row_starts": matrix.indptr.astype(np.int64),
        "shape": np.array(matrix.shape, np.int64),
    }


def unpack(arrays) -> sparse.csr_matrix:
    """The sparse matrix that `pack` took apart.

    Raises
    ------
    DataError
        Entries are missing or contradict each other.
    """
    try:
        data, columns, starts, shape = (
            np.asarray(arrays[k]) for k in ("weights", "columns", "row_starts", "shape")
        )
        rows, n_in = (int(n) for n in shape)
        fits = len(starts) == rows + 1 and int(starts[-1]) == len(data) == len(columns)
        fits = fits and (len(columns) == 0 or (columns.min() >= 0 and columns.max() < n_in))
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise DataError(f"The stored transform is not complete: {error}.", "Make it again.") from error
    if not fits:
        raise DataError("The stored transform contradicts itself.", "Make it again.")
    return sparse.csr_matrix((data.astype(np.float64), columns.astype(np.int32), starts), shape=(rows, n_in))
