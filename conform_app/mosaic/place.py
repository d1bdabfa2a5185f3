# SPDX-License-Identifier: Apache-2.0
"""Files of a collection, on this machine or in an object store (by fsspec)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conform_app.errors import FileFaultError, NoInputError


@dataclass(frozen=True)
class Place:
    """Root of a collection.

    Attributes
    ----------
    root : Path or str
        A local folder, or a path within ``fs``.
    fs : fsspec filesystem or None
        None: local.
    """

    root: Path | str
    fs: Any = None

    @classmethod
    def of(cls, address: str | Path) -> Place:
        """Take a path or a URL such as ``s3://bucket/collection``."""
        text = str(address)
        if "://" not in text:
            return cls(Path(address))
        import fsspec

        try:
            fs, root = fsspec.core.url_to_fs(text)
        except (ImportError, ValueError) as error:
            raise NoInputError(
                f"{text} cannot be opened: {error}.", "Install the package that its kind of address needs."
            ) from error
        if getattr(fs, "protocol", "") in ("file", ("file", "local")):
            return cls(Path(root))
        return cls(root.rstrip("/"), fs)

    def read(self, name: str) -> bytes:
        """Content of a file.

        Raises
        ------
        NoInputError
            If it does not exist.
        FileFaultError
            If it cannot be read.
        """
        try:
            if self.fs is None:
                return (Path(self.root) / name).read_bytes()
            return self.fs.cat_file(f"{self.root}/{name}")
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NoInputError(
                f"{self.root} has no {name}.", "Is this the folder of a collection?"
            ) from error
        except OSError as error:
            raise FileFaultError(f"{self.root}/{name} cannot be read: {error}.", "Try again.") from error

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        if self.fs is None:
            return (Path(self.root) / name).exists()
        return bool(self.fs.exists(f"{self.root}/{name}"))

    def folder(self, name: str) -> Any:
        """Folder as `ShardReader` takes it."""
        return Path(self.root) / name if self.fs is None else (self.fs, f"{self.root}/{name}")

    def array(self, name: str) -> Any:
        """Open a Zarr array for reading."""
        import zarr

        try:
            if self.fs is None:
                return zarr.open_array(Path(self.root) / name, mode="r", zarr_format=3)
            store = zarr.storage.FsspecStore(self._asynchronous(), read_only=True, path=f"{self.root}/{name}")
            return zarr.open_array(store, mode="r", zarr_format=3)
        except FileNotFoundError as error:
            raise NoInputError(f"{self.root} has no array {name}.", "It was not written.") from error

    def _asynchronous(self) -> Any:
        if getattr(self.fs, "async_impl", False):
            return type(self.fs)(*self.fs.storage_args, **{**self.fs.storage_options, "asynchronous": True})
        from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper

        return AsyncFileSystemWrapper(self.fs, asynchronous=True)
