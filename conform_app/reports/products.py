# SPDX-License-Identifier: Apache-2.0
"""What a fit left behind: its products by key, its tables, and the figures made from them."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from conform_app.errors import FileFaultError
from conform_app.reports.maps import Brain, open_brain, read_values
from conform_app.reports.style import save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class FigureEntry:
    """One figure of the page: `file` is relative to the page; `width` in CSS pixels."""

    name: str
    file: str
    alt: str
    caption: str
    width: int


@dataclass
class Section:
    """One part of the page.  A note says why something that a reader would expect is not there."""

    key: str
    title: str
    intro: str = ""
    figures: list[FigureEntry] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Products:
    """Products of one fit record.

    Parameters
    ----------
    output_dir : Path
        Root of the derivatives, to which the record's paths are relative.
    record : dict
        Fit record.
    """

    def __init__(self, output_dir: Path, record: dict[str, Any]) -> None:
        self.output_dir = output_dir
        self.record = record
        self.fit: dict[str, Any] = record.get("fit") or {}
        self.choices: dict[str, Any] = record.get("choices") or {}
        self.curves: dict[str, Any] = record.get("curves") or {}
        self._listed: dict[str, list[str]] = record.get("products") or {}
        self._cache: dict[str, np.ndarray] = {}
        self._brain: Brain | None = None

    def paths(self, key: str) -> list[Path]:
        """Files of the product `key`; empty when it was not made or a file is gone."""
        files = [self.output_dir / name for name in self._listed.get(key) or []]
        return files if all(path.is_file() for path in files) else []

    def gone(self) -> list[str]:
        """Listed files that no longer exist."""
        names = [name for files in self._listed.values() for name in files or []]
        return sorted(name for name in names if not (self.output_dir / name).is_file())

    def has(self, key: str) -> bool:
        """Whether the product can be read."""
        return bool(self.paths(key))

    def values(self, key: str) -> np.ndarray:
        """First map of the product, (n_points,) float64.

        Raises
        ------
        FileFaultError
            The file cannot be read or lies on another grid than the rest of the fit.
        """
        if key not in self._cache:
            values = read_values(self.paths(key))
            n_points = self._brain.mask.size if self._brain is not None else values.size
            if values.size != n_points:
                raise FileFaultError(
                    f"The map {self.paths(key)[0]} has {values.size} points, the mask of its fit {n_points}.",
                    "Run the fit again with --overwrite.",
                )
            self._cache[key] = values
        return self._cache[key]

    def brain(self) -> Brain | None:
        """Geometry of the fit, from its mask or else from any of its maps; None without any map."""
        if self._brain is None:
            keys = ["brainmask", "mean", "rsquared_typeA", "rsquared_typeB", "rsquared_typeD", "hrfindex"]
            key = next((k for k in keys if self.has(k)), None)
            if key is None:
                return None
            mask = read_values(self.paths(key))
            underlay = self.values("mean") if self.has("mean") else None
            self._brain = open_brain(
                self.paths(key),
                space=self.fit.get("space"),
                mask=np.isfinite(mask) & (mask != 0),
                underlay=underlay,
                own=self.paths("midthickness"),
            )
        return self._brain

    def sidecar(self, key: str) -> dict[str, Any]:
        """JSON beside the first file of a product; empty when there is none."""
        paths = self.paths(key)
        if not paths:
            return {}
        beside = paths[0].with_name(paths[0].name.split(".")[0] + ".json")
        try:
            return json.loads(beside.read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            return {}

    def table(self, key: str) -> list[dict[str, str]]:
        """Rows of a tab-separated product; empty when there is none."""
        paths = self.paths(key)
        if not paths:
            return []
        with paths[0].open(encoding="utf-8", newline="") as stream:
            return list(csv.DictReader(stream, delimiter="\t"))


class FigureBook:
    """Saves the figures of one fit under its name and remembers what was written.

    Parameters
    ----------
    output_dir : Path
        Folder of the page.
    subject, fit_name : str
        ``sub-<subject>/figures/<fit_name>_desc-<what>_bold.svg`` is the name of a figure.
    """

    def __init__(self, output_dir: Path, subject: str, fit_name: str) -> None:
        self.output_dir = output_dir
        self.folder = output_dir / f"sub-{subject}" / "figures"
        self.fit_name = fit_name
        self.written: set[Path] = set()

    def add(self, section: Section, what: str, figure: Figure, *, alt: str, caption: str) -> None:
        """Save `figure` and put it into `section`."""
        path = save_figure(figure, self.folder / f"{self.fit_name}_desc-{what}_bold")
        self.written.add(path)
        width = round(figure.get_figwidth() * 96)
        relative = path.relative_to(self.output_dir).as_posix()
        section.figures.append(FigureEntry(what, relative, alt, caption, width))

    def sweep(self) -> None:
        """Remove figures that an earlier report left for this fit and this one no longer shows."""
        for pattern in (f"{self.fit_name}_desc-*_bold.svg", f"{self.fit_name}_desc-*_bold.png"):
            for path in self.folder.glob(pattern):
                if path not in self.written:
                    path.unlink(missing_ok=True)
