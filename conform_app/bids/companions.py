# SPDX-License-Identifier: Apache-2.0
"""The files that go with a run's BOLD: events, brain mask and confounds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from conform_app.bids.candidates import Candidate
from conform_app.bids.filters import Filters, passes_filter
from conform_app.bids.inherit import inheritable, run_entities, run_folder
from conform_app.bids.layout import FETCH, NOT_FETCHED, BidsFile, Dataset
from conform_app.bids.spaces import NATIVE_BOLD
from conform_app.errors import NoInputError

_SHORT = {
    "subject": "sub", "session": "ses", "task": "task", "acquisition": "acq", "direction": "dir",
    "run": "run",
}  # fmt: skip


def describe(entities: Mapping[str, str]) -> str:
    """A run in words: ``sub-01 ses-02 task-x run-1``."""
    return " ".join(f"{short}-{entities[name]}" for name, short in _SHORT.items() if name in entities)


def present(path: Path) -> Path:
    """The path, if its content is there (datalad leaves dangling links)."""
    if not path.exists():
        raise NoInputError(f"{path} {NOT_FETCHED}", FETCH)
    return path


class Companions:
    """Finds the files that go with BOLD of one dataset; `filters` narrow each search."""

    def __init__(
        self,
        home: Dataset,
        preprocessed: Sequence[Dataset],
        raws: Sequence[Dataset],
        filters: Filters,
        warnings: list[str],
    ) -> None:
        self.home = home
        # The BOLD's own dataset first: another pipeline's mask is a second best.
        self.preprocessed = [home, *(d for d in preprocessed if d is not home)]
        self.raws = raws
        self.filters = filters
        self.warnings = warnings

    def _last(
        self, datasets: Iterable[Dataset], target: Mapping[str, str], query: str, suffixes: tuple[str, ...],
        extensions: tuple[str, ...], keep: Callable[[BidsFile], bool] | None = None,
        but: tuple[str, ...] = (),
    ) -> Path | None:  # fmt: skip
        """The most specific file that applies, of the first dataset that has one."""
        for dataset in datasets:
            files = [
                file
                for file in inheritable(dataset, target, suffixes, extensions, but)
                if (keep is None or keep(file)) and passes_filter(file, self.filters.get(query))
            ]
            if files:
                return files[-1].path
        return None

    def events(self, entities: Mapping[str, str]) -> Path | None:
        """Events of a run, from the first raw dataset that has them."""
        return self._last(self.raws, run_entities(entities), "events", ("events",), (".tsv",))

    def expected_events(self, entities: Mapping[str, str]) -> Path:
        """Where the events of a run would be in the first raw dataset."""
        run = run_entities(entities)
        stem = describe(run).replace(" ", "_")
        return run_folder(self.raws[0].root, run) / f"{stem}_events.tsv"

    def mask(self, candidate: Candidate) -> tuple[Path, ...]:
        """Brain mask of the same run on the same grid; empty for surfaces or when there is none."""
        if candidate.key.kind != "volume":
            return ()
        bold = candidate.files[0].entities
        wants_desc = "desc" in (self.filters.get("mask") or {})

        def keep(file: BidsFile) -> bool:
            same_grid = all(file.entities.get(e) == bold.get(e) for e in ("space", "res"))
            return same_grid and (wants_desc or file.entities.get("desc") == "brain")

        extensions = (".nii.gz", ".nii")
        found = self._last(self.preprocessed, bold, "mask", ("mask",), extensions, keep, but=("desc",))
        return () if found is None else (present(found),)

    def transform(self, candidate: Candidate) -> Path | None:
        """Affine between T1w space and the run's own grid, for BOLD on that grid."""
        if candidate.key.space not in NATIVE_BOLD:
            return None
        ends = [{"T1w", native} for native in ("boldref", "scanner", "bold")]
        found = self._last(
            self.preprocessed,
            run_entities(candidate.run),
            "transform",
            ("xfm",),
            (".txt", ".h5"),
            lambda file: {file.entities.get("from"), file.entities.get("to")} in ends,
            but=("from", "to", "mode", "desc"),
        )
        if found is None:
            raise NoInputError(
                f"{candidate.files[0].path} has no transform to T1w space beside it "
                "(*_from-boldref_to-T1w_mode-image_desc-coreg_xfm.txt): it cannot be laid on the surfaces.",
                "Preprocess with --output-spaces T1w, or add the transform.",
            )
        return present(found)

    def confounds(self, entities: Mapping[str, str]) -> Path | None:
        """Confounds table of a run."""
        wants_desc = "desc" in (self.filters.get("confounds") or {})
        found = self._last(
            self.preprocessed,
            run_entities(entities),
            "confounds",
            ("timeseries", "regressors"),
            (".tsv",),
            lambda file: wants_desc or file.entities.get("desc") == "confounds",
            but=("desc",),
        )
        return None if found is None else present(found)
