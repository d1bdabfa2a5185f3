# SPDX-License-Identifier: Apache-2.0
"""What the participant level left behind, read back from its records: nothing raw is needed.

A *site* is one output folder; its participants' fits are known by their records, which were written last and
list every file.  What is wrong with a participant is said in words and kept with the participant, so that
one bad participant does not hide the others.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conform_app.bids.description import NAME
from conform_app.bids.layout import natural
from conform_app.bids.naming import RUN_ENTITIES
from conform_app.bids.record import SCHEMA
from conform_app.bids.spaces import SpaceKey
from conform_app.errors import ConformError, FileFaultError, UsageError

if TYPE_CHECKING:
    import pandas as pd

PREFIX = "conform_"


@dataclass(frozen=True)
class Site:
    """One output folder of CONFORM.

    Attributes
    ----------
    name : str
        Of the dataset, letters and digits.
    root : Path
    description : dict
        Its ``dataset_description.json``; empty when it cannot be read.
    """

    name: str
    root: Path
    description: dict[str, Any] = field(repr=False)

    @property
    def makers(self) -> tuple[tuple[str, str], ...]:
        """(name, version) of each program that made it, CONFORM first."""
        chain = self.description.get("GeneratedBy") or []
        return tuple(
            (str(e.get("Name", "?")), str(e.get("Version", ""))) for e in chain if isinstance(e, dict)
        )

    @property
    def preprocessing(self) -> tuple[str, str]:
        """Name and version of the program that made CONFORM's input; empty texts when nothing says so."""
        return next((maker for maker in self.makers if maker[0] != NAME), ("", ""))


@dataclass(frozen=True)
class FitOutput:
    """A finished fit.

    Attributes
    ----------
    site : Site
    record : dict
    """

    site: Site
    record: dict[str, Any] = field(repr=False)

    @property
    def fit(self) -> dict[str, Any]:
        """The record's facts of the fit."""
        return self.record["fit"]

    @property
    def name(self) -> str:
        """``sub-01_ses-01_task-x_space-y``."""
        return self.fit["name"]

    @property
    def space(self) -> SpaceKey:
        """Space and kind of its images."""
        return SpaceKey(self.fit["kind"], self.fit["space"], self.fit.get("res"), self.fit.get("den"))

    @property
    def version(self) -> str:
        """Version of CONFORM."""
        return str(self.record.get("software", {}).get("CONFORM", ""))

    @property
    def beta_types(self) -> tuple[str, ...]:
        """GLM types whose single-trial betas were written."""
        keys = self.record.get("products", {})
        return tuple(letter for letter in "ABCD" if f"betas_type{letter}" in keys)

    def files(self, key: str) -> list[Path]:
        """Files of a product; empty when it was not made."""
        return [self.site.root / name for name in self.record.get("products", {}).get(key) or []]

    def trials(self) -> pd.DataFrame:
        """The trial table, all columns as text; runs are named by all that tells them apart (``dir-AP_1``).

        Raises
        ------
        FileFaultError
            There is none, or it cannot be read.
        """
        import pandas as pd

        files = self.files("trials")
        if not files or not files[0].is_file():
            where = files[0] if files else self.name
            raise FileFaultError(f"{where}: the trial table is missing.", "Run the participant level again.")
        try:
            table = pd.read_csv(files[0], sep="\t", dtype=str, keep_default_na=False)
        except (OSError, ValueError) as error:
            raise FileFaultError(
                f"{files[0]} cannot be read: {error}.", "Run the participant again."
            ) from error
        missing = [name for name in ("stim_id", "run", "onset") if name not in table]
        if missing:
            raise FileFaultError(
                f"{files[0]} has no column {missing[0]!r}.", "Run the participant level again."
            )
        for name, short in RUN_ENTITIES.items():
            if name in table:
                table["run"] = [
                    run
                    if label == "n/a"
                    else f"{short}-{label}"
                    if run == "n/a"
                    else f"{short}-{label}_{run}"
                    for label, run in zip(table[name], table["run"], strict=True)
                ]
        return table


@dataclass(frozen=True)
class Participant:
    """A participant of a site, with what could not be read.

    Attributes
    ----------
    site : Site
    label : str
        Without ``sub-``.
    fits : tuple of FitOutput
        Finished fits in natural order.
    problems : tuple of str
        What is wrong with the records themselves.
    """

    site: Site
    label: str
    fits: tuple[FitOutput, ...] = field(repr=False)
    problems: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """``sub-01_DATASET``, its name in a collection."""
        return f"sub-{self.label}_{self.site.name}"


def open_sites(
    output_dir: Path, derivatives: Iterable[tuple[str, str]], dataset_name: str | None = None
) -> list[Site]:
    """Return the sites: the output folder itself, if it holds participants, and those named ``conform_NAME``.

    Parameters
    ----------
    output_dir : Path
    derivatives : pairs of name and path
        Those whose name does not begin with ``conform_`` are taken if CONFORM made them, else left out.
    dataset_name : str, optional
        Of the dataset in `output_dir`.

    Raises
    ------
    UsageError
        Two datasets of one name, or a name without letters and digits.
    """
    sites = []
    if any(output_dir.glob("sub-*/log/fits/*.json")) or any(output_dir.glob("sub-*/")):
        description = _description(output_dir)
        sites.append(
            Site(_clean(dataset_name or _own_name(output_dir, description)), output_dir, description)
        )
    for name, path in derivatives:
        root, description = Path(path), _description(Path(path))
        site = Site(_clean(name.removeprefix(PREFIX)), root, description)
        if name.startswith(PREFIX) or any(maker == NAME for maker, _ in site.makers):
            sites.append(site)
    for n, site in enumerate(sites):
        for other in sites[:n]:
            if other.root.resolve() == site.root.resolve():
                raise UsageError(f"{site.root} is named twice.", "Name each folder once.")
            if other.name.lower() == site.name.lower():
                raise UsageError(
                    f"Two datasets are named {site.name}: {other.root} and {site.root}.",
                    "Give each a name of its own: -d conform_NAME=PATH, and --dataset-name for OUTPUT_DIR.",
                )
    return sites


def _description(root: Path) -> dict[str, Any]:
    try:
        content = json.loads((root / "dataset_description.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _own_name(root: Path, description: dict[str, Any]) -> str:
    """The name its records give, else that of the raw dataset's folder, else its own folder's."""
    for path in sorted(root.glob("sub-*/log/fits/*.json")):
        try:
            name = json.loads(path.read_text(encoding="utf-8")).get("study", {}).get("dataset_name")
        except (OSError, ValueError, AttributeError):
            continue
        if name:
            return str(name)
    link = str((description.get("DatasetLinks") or {}).get("raw", "")).rstrip("/.")
    return link.rpartition("/")[2] or root.name


def _clean(name: str) -> str:
    text = re.sub(r"[^A-Za-z0-9]", "", name)
    if not text:
        raise UsageError(f"The dataset name {name!r} has no letter or digit.", "Give --dataset-name.")
    return text


def read_participants(site: Site) -> list[Participant]:
    """Return the participants of a site, those without a finished fit included."""
    found = []
    for folder in sorted(site.root.glob("sub-*/"), key=lambda p: natural(p.name)):
        fits, problems = [], []
        for path in sorted((folder / "log" / "fits").glob("*.json"), key=lambda p: natural(p.name)):
            try:
                record = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                problems.append(f"the record {path.name} cannot be read")
                continue
            if not isinstance(record, dict) or record.get("schema") != SCHEMA:
                problems.append(f"the record {path.name} is of another version of CONFORM")
                continue
            fits.append(FitOutput(site, record))
        if not fits and not problems:
            problems.append("it has no finished fit")
        found.append(Participant(site, folder.name.removeprefix("sub-"), tuple(fits), tuple(problems)))
    return found


def check_fit(fit: FitOutput, beta_type: str) -> list[str]:
    """Say what keeps a fit's betas from being merged: nothing when they can be.

    Headers are read, values are not.
    """
    from conform_app.images import MapRows

    files = fit.files(f"betas_type{beta_type}")
    if not files:
        return [f"{fit.name}: no betas of type {beta_type} were written"]
    gone = [path.name for path in files if not path.is_file()]
    if gone:
        return [f"{fit.name}: {gone[0]} is missing"]
    try:
        n_trials = len(fit.trials())
        betas = MapRows(files)
    except ConformError as error:
        return [f"{fit.name}: {error.message.rstrip('.')}"]
    if len(betas) != n_trials:
        return [f"{fit.name}: {len(betas)} maps of betas but {n_trials} rows in the trial table"]
    return []
