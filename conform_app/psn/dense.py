# SPDX-License-Identifier: Apache-2.0
"""The heavy linear algebra of PSN, on the CPU or on a GPU.

What costs n^3 goes through `Dense`: NumPy arrays in, NumPy arrays out.  On the CPU LAPACK works in place
where it can; on a GPU an operand is copied there, worked on and copied back, which takes n^2.  Results of the
two agree to rounding, but for the eigenvectors within a degenerate subspace, which are arbitrary.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from scipy.linalg import LinAlgError, blas, cho_solve, eigh, lapack

from conform_app.devices import torch_device

_BLOCK_VALUES = 1 << 19
_COLUMNS = 256  # of a block, where a product need not be there as a whole


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
        """Whether a symmetric matrix has a Cholesky factor.

        On the CPU the upper triangle gives room to the factor, and is made again from the lower one.
        """
        if self.place is not None:
            try:
                self.solver(m)
            except LinAlgError:
                return False
            return True
        with lent_triangle(m):
            return lower_factor(m)[1] == 0

    def solver(self, m: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """``z -> m^-1 z`` of a positive definite matrix, which is destroyed, in its precision.

        Raises
        ------
        LinAlgError
            If the matrix is not positive definite.
        """
        if self.place is None:
            factor, failed = lower_factor(m)
            if failed:
                raise LinAlgError("The matrix is not positive definite.")
            return lambda z: cho_solve((factor, True), z.astype(m.dtype, copy=False), check_finite=False)
        import torch

        lower, info = torch.linalg.cholesky_ex(self._send(m))
        if int(info) != 0:
            raise LinAlgError("The matrix is not positive definite.")

        def solve(z: np.ndarray) -> np.ndarray:
            columns = self._send(z.reshape(len(z), -1).astype(m.dtype, copy=False))
            return torch.cholesky_solve(columns, lower).cpu().numpy().reshape(z.shape)

        return solve

    def parts(self, n: int) -> list[slice]:
        """Slices over n columns, or rows, of what need not be there as a whole; on a GPU it may."""
        step = _COLUMNS if self.place is None else n
        return [slice(start, min(start + step, n)) for start in range(0, n, step)]

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


def lower_factor(m: np.ndarray) -> tuple[np.ndarray, int]:
    """Cholesky factor of the transpose of m, in place of m's upper triangle, and whether that failed."""
    (potrf,) = lapack.get_lapack_funcs(("potrf",), (m,))
    return potrf(m.T, lower=True, clean=False, overwrite_a=True)


@contextmanager
def lent_triangle(m: np.ndarray) -> Iterator[None]:
    """Let the upper triangle and the diagonal of a symmetric matrix be overwritten meanwhile."""
    diagonal = m.diagonal().copy()
    try:
        yield
    finally:
        for start in range(0, len(m), _COLUMNS):
            here, beyond = slice(start, start + _COLUMNS), slice(start + _COLUMNS, None)
            m[here, beyond] = m[beyond, here].T
            block = m[here, here]
            block[:] = np.tril(block) + np.tril(block, -1).T
        np.fill_diagonal(m, diagonal)


def release() -> None:
    """Give freed memory back to the system.

    Between the n x n arrays of one step and those of the next, glibc keeps holes of up to 32 MB each; at
    2,000 units they come to two such arrays.  Takes about a millisecond; other C libraries are left alone.
    """
    _malloc_trim()(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int]:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return lambda pad: 0


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
