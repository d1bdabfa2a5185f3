# SPDX-License-Identifier: Apache-2.0
"""The sections of the group page: from tables and maps to figures, tables and words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from conform_app.reports import groupfigures as figures
from conform_app.reports.maps import Brain
from conform_app.reports.products import FigureEntry, Section
from conform_app.reports.style import save_figure
from conform_app.reports.wording import joined

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

MOST_ROWS = 200


@dataclass(frozen=True)
class GroupData:
    """What the page is made from.

    Attributes
    ----------
    tables : dict of str to DataFrame
        By key of the table of names: participants, trials, stimuli, near, audit, methodology, missing,
        variance.
    summary : dict
        ``account``, ``warnings``, ``version``, ``store``, ``audit``, ``outcomes`` of the sealing step.
    required : set of str
        Required fields of the methodology.
    ceilings : dict of str to ndarray
        Mean noise ceiling of each dataset, (n_points,), percent.
    brain : Brain or None
        Geometry of the collection's space.
    sizes : list of (name, bytes)
    encoding : EncodingData or None
        See `conform_app.reports.braincorl`.
    """

    tables: Mapping[str, pd.DataFrame]
    summary: Mapping[str, Any]
    required: set[str]
    ceilings: Mapping[str, np.ndarray] = field(default_factory=dict)
    brain: Brain | None = None
    sizes: Sequence[tuple[str, int]] = ()
    encoding: Any = None


@dataclass
class Table:
    """A table of the page."""

    caption: str
    head: Sequence[str]
    rows: list[tuple[str, ...]]
    numeric: frozenset[int] = frozenset()
    more: str = ""


@dataclass
class Part(Section):
    """A section that also has tables."""

    tables: list[Table] = field(default_factory=list)


class Book:
    """Saves the figures of the page."""

    def __init__(self, output_dir: Path) -> None:
        self.output_dir, self.folder = output_dir, output_dir / "group" / "figures"
        self.written: set[Path] = set()

    def add(self, part: Part, what: str, figure: Figure, *, alt: str, caption: str) -> None:
        """Save a figure and put it into a part."""
        path = save_figure(figure, self.folder / f"desc-{what}_group")
        self.written.add(path)
        relative = path.relative_to(self.output_dir).as_posix()
        part.figures.append(FigureEntry(what, relative, alt, caption, round(figure.get_figwidth() * 96)))

    def sweep(self) -> None:
        """Remove figures of an earlier report."""
        for path in (*self.folder.glob("desc-*_group.svg"), *self.folder.glob("desc-*_group.png")):
            if path not in self.written:
                path.unlink(missing_ok=True)


def _palette(data: GroupData) -> dict[str, str]:
    return figures.colours(data.tables["participants"]["dataset"].tolist())


def merged_of(data: GroupData) -> pd.DataFrame:
    """Rows of the participants whose betas are in the collection."""
    people = data.tables["participants"]
    return people[people["merged"].astype(bool)]


def participants(data: GroupData, book: Book) -> Part:
    """Datasets and participants."""
    part = Part("participants", "Datasets and participants")
    people = data.tables["participants"]
    rows = []
    for dataset, own in people.groupby("dataset", sort=False):
        tallies = [str(int((own["status"] == s).sum())) for s in ("compatible", "compliant", "refused")]
        types = ", ".join(sorted(set(own["beta_type"]) - {"n/a", ""})) or "–"
        n_trials = int(own["n_trials"].replace("n/a", 0).astype(float).sum())
        rows.append(
            (
                dataset,
                str(len(own)),
                *tallies,
                str(int(own["merged"].astype(bool).sum())),
                types,
                f"{n_trials:,}",
            )
        )
    head = ("Dataset", "Participants", "Compatible", "Compliant only", "Refused", "Merged", "Betas", "Trials")
    part.tables.append(Table("", head, rows, frozenset({1, 2, 3, 4, 5, 7})))
    told = people[~people["reason"].isin(["n/a", ""])]
    if len(told):
        reasons = [
            (r.participant, r.status, "yes" if r.merged is True else "no", r.reason)
            for r in told.itertuples()
        ]
        part.tables.append(
            _cut(
                Table(
                    "Who is not (quite) like the others, and why",
                    ("Participant", "Status", "Merged", "Why"),
                    reasons,
                )
            )
        )
    part.notes.append(
        "Compatible: made with the same version of CONFORM, preprocessing program and settings of the model. "
        "Compliant: the format and the space agree, but something else differs. Refused: the betas cannot "
        "stand in one array with the others'."
    )
    return part


def in_collection(data: GroupData) -> pd.DataFrame:
    """Trials, those of participants that are not merged without a place in the split.

    Where nobody is merged, only tables are, and everybody's trials count.
    """
    trials, people = data.tables["trials"], data.tables["participants"]
    merged = set(people["participant"][people["merged"].astype(bool)])
    if not merged or not len(trials):
        return trials
    return trials.assign(split=trials["split"].where(trials["participant"].isin(merged), "n/a"))


def split(data: GroupData, book: Book) -> Part:
    """Stimuli and split."""
    part = Part("split", "Stimuli and split")
    trials, stimuli = in_collection(data), data.tables["stimuli"]
    book.add(
        part, "trials", figures.trials_figure(trials),
        alt="Trials of each participant by split",
        caption="Trials by their place in the split. Excluded trials stay in the collection and belong to "
        "neither side: their stimulus is on the other side, or a near-duplicate of one.",
    )  # fmt: skip
    rows = []
    for side in ("train", "test", "artificial", "excluded"):
        n, t = int((stimuli["split"] == side).sum()), int((trials["split"] == side).sum())
        people = trials[trials["split"] == side]["participant"].nunique()
        rows.append((side, f"{n:,}", f"{t:,}", str(people)))
    part.tables.append(
        Table("Sizes", ("Split", "Stimuli", "Trials", "Participants"), rows, frozenset({1, 2, 3}))
    )
    shared = shared_stimuli(stimuli)
    if len(shared) > 1:
        book.add(
            part, "overlap", figures.overlap_figure(shared),
            alt="Number of stimuli that each two datasets share",
            caption="Stimuli that two datasets share, whatever they call them; on the diagonal (grey) those "
            "that each dataset shows.",
        )  # fmt: skip
    reasons = stimuli[stimuli["split"] == "excluded"]["reason"].value_counts()
    if len(reasons):
        rows = [(str(reason), f"{n:,}") for reason, n in reasons.items()]
        part.tables.append(
            _cut(Table("Why stimuli are excluded", ("Reason", "Stimuli"), rows, frozenset({1})))
        )
    return part


def shared_stimuli(stimuli: pd.DataFrame) -> pd.DataFrame:
    """Count the stimuli that each two datasets share."""
    import pandas as pd

    member = stimuli["datasets"].str.get_dummies(sep=", ").astype(int)
    order = list(dict.fromkeys(name for cell in stimuli["datasets"] for name in cell.split(", ")))
    member = member[order]
    return pd.DataFrame(member.T.to_numpy() @ member.to_numpy(), index=order, columns=order)


def similarity(data: GroupData, book: Book) -> Part:
    """Leakage audit."""
    part = Part("audit", "Leakage audit")
    audit = data.summary.get("audit", {})
    figure = figures.similarity_figure(
        data.tables["stimuli"], float(audit.get("threshold") or np.nan), _palette(data)
    )
    if figure is None:
        part.notes.append(
            "No features of the stimuli were given (--features), so that near-duplicates are not looked for: "
            "only stimuli with the same name, alias or content are known to be the same."
        )
        return part
    book.add(
        part, "similarity", figure,
        alt="Histogram of the similarity of train stimuli to their nearest test stimulus",
        caption="How similar each train stimulus is to the nearest test stimulus, after the split. Above the "
        "threshold (dashed) stimuli were dropped from train.",
    )  # fmt: skip
    before, most = audit.get("max_similarity_before"), audit.get("max_similarity")
    if most is not None and before is not None:
        part.notes.append(
            f"The largest similarity between train and test is {most:.4f}"
            + (f" ({' and '.join(audit['pair'])})" if audit.get("pair") else "")
            + f"; before near-duplicates were dropped it was {before:.4f}."
        )
    stimuli = data.tables["stimuli"]
    gone = stimuli[(stimuli["split"] == "excluded") & stimuli["similarity"].notna()]
    gone = gone.sort_values("similarity", ascending=False)
    rows = [(r.names, str(r.nearest_test), f"{r.similarity:.4f}") for r in gone.itertuples()]
    if rows:
        head = ("Dropped from train", "Resembles the test stimulus", "Similarity")
        part.tables.append(_cut(Table("Near-duplicates", head, rows, frozenset({2}))))
    table = data.tables["audit"]
    if len(table):
        rows = [
            (r.train_dataset, r.test_dataset, f"{float(r.max_similarity):.4f}", str(r.train), str(r.test))
            for r in table.itertuples()
        ]
        head = ("Train of", "Test of", "Largest similarity", "Train stimulus", "Test stimulus")
        part.tables.append(_cut(Table("Closest pairs by dataset", head, rows, frozenset({2}))))
    return part


def ceilings(data: GroupData, book: Book) -> Part:
    """Noise ceilings and scale."""
    part = Part("ceilings", "Noise ceilings and scale of the betas")
    outcomes = data.summary.get("outcomes") or {}
    palette = _palette(data)
    maps = dict(data.ceilings)
    if maps and data.brain is not None and data.brain.drawable:
        book.add(
            part, "ceilings", figures.ceiling_maps(data.brain, maps),
            alt=f"Noise ceiling maps of {joined(list(maps))}",
            caption="Mean noise ceiling of single trials over the participants of each dataset, on one "
            "scale: the most variance of z-scored betas that any model of the stimuli could explain. "
            "Of train or test, whichever repeats more stimuli; datasets without repeats have none. "
            f"Shown on {data.brain.geometry.replace('this participant', 'one participant')}.",
        )  # fmt: skip
    elif maps:
        unit = "points" if data.brain is None else data.brain.unit
        book.add(
            part, "ceilings", figures.ceiling_histograms(maps, palette, unit),
            alt=f"Distribution of the noise ceiling of {joined(list(maps))}",
            caption="Mean noise ceiling of single trials over the participants of each dataset. No surface "
            "of this space is at hand to draw maps on.",
        )  # fmt: skip
    labels = {"noise ceiling": "median noise ceiling of single trials (%)"}
    labels["beta scale"] = "median standard deviation of train betas before normalisation"
    for name, label in labels.items():
        values = {k: _float(v) for k, v in (outcomes.get(name) or {}).items()}
        if any(np.isfinite(v) for v in values.values()):
            book.add(
                part, name.replace(" ", ""), figures.strip_figure(values, label, palette),
                alt=f"{label} of each participant by dataset",
                caption=f"{label[0].upper()}{label[1:]}, one dot a participant, the bar their median.",
            )  # fmt: skip
    if not part.figures:
        part.notes.append("There is no collection, or no stimulus is repeated: no noise ceilings.")
    return part


def methodology(data: GroupData, book: Book) -> Part:
    """Methodology."""
    part = Part("methodology", "How it was measured, and what nobody wrote down")
    table, missing = data.tables["methodology"], data.tables["missing"]
    skip = {"participant", "dataset", "status", "session"}
    fields = [c for c in table.columns if c not in skip and not c.startswith(("missing_", "complete_"))]
    if len(table):
        rows = "a row a session"
        if len(table) > figures.MOST_BARS:
            rows = "a row a dataset, the darker the more of its sessions lack a fact"
        book.add(
            part, "missing", figures.missing_figure(table, fields, data.required),
            alt="Which facts of the methodology are known of which session",
            caption=f"Facts that are missing (orange), {rows}. Without the facts in bold, results of two "
            "studies cannot be compared.",
        )  # fmt: skip
    if len(missing):
        rows = [
            (
                r.field,
                "required" if r.required is True else "recommended",
                f"{r.n_missing} of {r.n_rows}",
                r.datasets,
                r.remedy,
            )
            for r in missing.itertuples()
        ]
        head = ("Fact", "", "Sessions without", "Datasets", "Remedy")
        part.tables.append(Table("", head, [tuple(map(str, row)) for row in rows], frozenset({2})))
    else:
        part.notes.append("Nothing is missing.")
    return part


def variance(data: GroupData, book: Book) -> Part:
    """What methodology explains."""
    part = Part("variance", "What differences between participants go with")
    table = data.tables["variance"]
    figure = figures.variance_figure(table) if len(table) else None
    if figure is None:
        part.notes.append("There is nothing to relate: no collection, or no fact that differs.")
        return part
    book.add(
        part, "variance", figure,
        alt="Share of variance in noise ceiling and beta scale by fact of the methodology",
        caption="Grey: share of the variance between participants that goes with a fact. Blue: what is left "
        "when degrees of freedom are counted; no blue dot means that nothing can be tested, because no "
        "degree of freedom is left.",
    )  # fmt: skip
    head = ("Outcome", "Facts", "Share", "Adjusted", "df", "p", "")
    part.tables.append(_cut(Table("", head, _alike(table), frozenset({2, 3, 4, 5}))))
    part.notes.append(
        "These are associations, one fact at a time, and p is not corrected for their number. Facts that are "
        "constant within datasets are tested on the means of datasets, others within datasets. Facts "
        "in one row give the same numbers: the data cannot tell them apart."
    )
    return part


def _alike(table: pd.DataFrame) -> list[tuple[str, ...]]:
    """Rows of the table; facts with the same numbers stand in one."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for r in table.itertuples():
        p = "–" if not np.isfinite(r.p) else f"{r.p:.3g}"
        adjusted = "–" if not np.isfinite(r.adjusted) else f"{r.adjusted:z.2f}"
        note = r.note if isinstance(r.note, str) and r.note != "n/a" else ""
        numbers = (r.outcome, f"{r.share:.3f}", adjusted, f"{r.df_model}, {r.df_residual}", p, note)
        rows.setdefault(numbers, []).append(r.field)
    return [(key[0], ", ".join(names), *key[1:]) for key, names in rows.items()]


def sizes(data: GroupData, book: Book) -> Part:
    """File sizes."""
    part = Part("sizes", "Files")
    rows = [(name, _bytes(size)) for name, size in data.sizes]
    part.tables.append(_cut(Table("", ("File", "Size"), rows, frozenset({1}))))
    return part


MAKERS = (participants, split, similarity, ceilings, methodology, variance, sizes)


def _cut(table: Table) -> Table:
    if len(table.rows) > MOST_ROWS:
        table.more = f"and {len(table.rows) - MOST_ROWS:,} more rows; the table in group/ has all"
        table.rows = table.rows[:MOST_ROWS]
    return table


def _float(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")


def _bytes(size: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
