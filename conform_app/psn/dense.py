# SPDX-License-Identifier: Apache-2.0
"""The heavy linear algebra of PSN, on the CPU or on a GPU.

What costs n^3 goes through `Dense`: NumPy arrays in, NumPy arrays out.  On the CPU LAPACK works in place
where it can; on a GPU an operand is copied there, worked on and copied back, which takes n^2.  Results of the
two agree to rounding, but for the eigenvectors within a degenerate subspace, which are arbitrary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from scipy.linalg import LinAlgError, blas, cho_factor, cho_solve, eigh

from conform_app.devices import torch_device

_BLOCK_VALUES = 1 << 20
_COLUMNS = 512  # of a block, where a product need not be there as a whole


class Dense:
    """Symmetric eigenproblems, products and Cholesky factors.

    Parameters
    ----------
    place : torch.device, optional
        Where to compute; None: NumPy and SciPy.
    """

    def __init__(self, place=None) -> None:
        self.place = place

    def gram(self, f: np.ndarray) -> np.ndarray:
        """``f f'``."""
        if self.place is None:
            return f @ f.T
        there = self._send(f)
        return (there @ there.T).cpu().numpy()

    def product(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """``a b``."""
        if self.place is None:
            return a @ b
        return (self._send(a) @ self._send(b)).cpu().numpy()

    def eigh(self, m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues, descending, and eigenvectors of a symmetric matrix, which is destroyed."""
        np.negative(m, out=m)
        if self.place is None:
            # The transpose of a symmetric matrix is itself, in the order that LAPACK can overwrite.
            w, v = eigh(m.T, driver="evd", overwrite_a=True, check_finite=False)
        else:
            import torch

            w, v = (part.cpu().numpy() for part in torch.linalg.eigh(self._send(m)))
        return -w, v

    def is_positive(self, m: np.ndarray) -> bool:
        """Whether a symmetric matrix has a Cholesky factor."""
        try:
            self.solver(m.copy())
        except LinAlgError:
            return False
        return True

    def solver(self, m: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """``z -> m^-1 z`` of a positive definite matrix, which is destroyed, in its precision.

        Raises
        ------
        LinAlgError
            If the matrix is not positive definite.
        """
        if self.place is None:
            factor = cho_factor(m.T, lower=True, overwrite_a=True, check_finite=False)
            return lambda z: cho_solve(factor, z.astype(m.dtype, copy=False), check_finite=False)
        import torch

        lower, info = torch.linalg.cholesky_ex(self._send(m))
        if int(info) != 0:
            raise LinAlgError("The matrix is not positive definite.")

        def solve(z: np.ndarray) -> np.ndarray:
            columns = self._send(z.reshape(len(z), -1).astype(m.dtype, copy=False))
            return torch.cholesky_solve(columns, lower).cpu().numpy().reshape(z.shape)

        return solve

    def variance_along(self, axes: np.ndarray, cov: np.ndarray) -> np.ndarray:
        """``b' cov b`` of each column of the axes, cov symmetric."""
        out = np.empty(axes.shape[1])
        there = None if self.place is None else self._send(cov)
        for start in range(0, axes.shape[1], _COLUMNS):
            b = axes[:, start : start + _COLUMNS]
            if self.place is None:
                # cov = L + L' - diag: the product with the triangle L alone costs half.
                part = 2 * blas.dtrmm(1.0, cov.T, b, lower=1)
                part -= cov.diagonal()[:, None] * b
                out[start : start + _COLUMNS] = np.einsum("ud,ud->d", b, part)
            else:
                columns = self._send(b)
                out[start : start + _COLUMNS] = (columns * (there @ columns)).sum(dim=0).cpu().numpy()
        return out

    def _send(self, a: np.ndarray):
        import torch

        return torch.from_numpy(np.ascontiguousarray(a)).to(self.place)


CPU = Dense()


def row_blocks(n: int, width: int) -> Iterator[slice]:
    """Slices over n rows that hold a bounded number of values."""
    size = max(1, _BLOCK_VALUES // max(1, width))
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


def add_product(m: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
    """``m += a b'`` without another matrix of the size of m."""
    for rows in row_blocks(*m.shape):
        m[rows] += a[rows] @ b.T


def add_scaled(m: np.ndarray, scale: float, other: np.ndarray) -> None:
    """``m += scale other`` without another matrix."""
    for rows in row_blocks(*m.shape):
        m[rows] += scale * other[rows]


def symmetrise(m: np.ndarray) -> None:
    """``m = (m + m') / 2`` in place."""
    for start in range(0, len(m), _COLUMNS):
        here, rest = slice(start, start + _COLUMNS), slice(start, None)
        mean = (m[here, rest] + m[rest, here].T) / 2
        m[here, rest] = mean
        m[rest, here] = mean.T


def dense_on(device: str) -> Dense:
    """The linear algebra of a device.

    Parameters
    ----------
    device : {"cpu", "cuda", "auto"}
        Or a particular GPU, such as "cuda:1".  "auto": a GPU if there is one.

    Raises
    ------
    UsageError
        If the device is unknown or not there.
    """
    if device == "cpu":
        return CPU
    place = torch_device(device)
    return CPU if place.type == "cpu" else Dense(place)
