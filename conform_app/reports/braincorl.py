# SPDX-License-Identifier: Apache-2.0
"""The encoding models on the group page: what was learned from whom, how good it is, and where."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from conform_app.reports import braincorlfigures as figures
from conform_app.reports.boilerplate import template_dir
from conform_app.reports.citations import cited_keys, format_reference, read_bibliography
from conform_app.reports.groupsections import Book, GroupData, Part, Table
from conform_app.reports.maps import Brain
from conform_app.reports.wording import joined

if TYPE_CHECKING:
    import pandas as pd

PANELS = 6


@dataclass(frozen=True)
class EncodingData:
    """What the sections are made from.

    Attributes
    ----------
    summary : dict
        Written by the last step of the encoding models.
    metrics, needed : DataFrame
        The group's tables.
    means : dict of str to ndarray (n_points,)
        Mean correlation over participants, by estimator, in the order of the brain's points.
    own : dict of str to ndarray (n_points,)
        Correlation of the mapped model, by participant, likewise.
    against : dict of str to (ndarray, ndarray)
        Noise ceiling of the test phase (percent) and correlation, by participant.
    queries : tuple of str
    winners : dict of str to ndarray (n_points,)
        Number of the query with the largest response, from 1, by participant; 0 where there is no model.
    """

    summary: Mapping[str, Any]
    metrics: pd.DataFrame
    needed: pd.DataFrame
    means: Mapping[str, np.ndarray] = field(default_factory=dict)
    own: Mapping[str, np.ndarray] = field(default_factory=dict)
    against: Mapping[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    queries: tuple[str, ...] = ()
    winners: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def method(self) -> str:
        """The mapped model."""
        return str(self.summary["Method"])


def encoding_parts(data: GroupData, book: Book) -> list[Part]:
    """Sections of the page; none without encoding models."""
    encoding = data.encoding
    if encoding is None or not encoding.summary.get("Participants"):
        return []
    parts = [_overview(encoding), _accuracy(encoding, data.brain, book), _needed(encoding)]
    if any(record.get("Alignment") for record in encoding.summary["Records"].values()):
        parts.append(_aligned(encoding))
    if encoding.queries:
        parts.append(_queries(encoding, data.brain, book))
    return [*parts, _methods(encoding)]


def _overview(data: EncodingData) -> Part:
    """What the data are and which model was used."""
    part = Part("encoding", "Encoding models")
    part.notes += statement(data.summary)
    part.notes += list(data.summary.get("Notes", ()))
    if data.summary.get("Failed"):
        part.notes.append(f"In the last call this failed: {', '.join(data.summary['Failed'])}.")
    rows = []
    for key, record in data.summary["Records"].items():
        own = data.metrics[(data.metrics["participant"] == key) & (data.metrics["metric"] == "r")]
        own = own[own["region"] == "all"]
        row = own[(own["method"] == record["Method"]) & (own["n_context"] == own["n_context"].max())].iloc[0]
        ridge = own[(own["method"] == "ridge") & (own["n_context"] == row["n_context"])].iloc[0]
        over = "–" if np.isnan(row["over_ridge"]) else _interval(row, "over_ridge")
        rows.append(
            (
                key,
                f"{len(record['LearnedFrom'])} others" if record["LearnedFrom"] else "nobody",
                f"{record['NumberOfTrainImages']:,}",
                f"{record['NumberOfTestImages']:,}",
                f"{int(row['n_context']):,}",
                f"{int(row['n_vertices']):,}",
                _interval(row, ""),
                f"{ridge['mean']:.2f}",
                over,
            )
        )
    head = ("Participant", "Learned from", "Train images", "Test images", "Context of the maps", "Points")
    head += (f"r, {data.method}", "r, ridge", "Difference")
    part.tables.append(
        Table(
            "Mean correlation with the responses to test images over points with a model, and its 95 % "
            "interval over test images",
            head,
            rows,
            frozenset(range(2, 9)),
        )
    )
    return part


def _interval(row: Any, prefix: str) -> str:
    """``0.61 (0.43 to 0.68)`` that is not broken; differences with their sign."""
    low, high = (row[f"{prefix}_{end}" if prefix else end] for end in ("low", "high"))
    sign = "+" if prefix else ""
    middle, low, high = (f"{value:{sign}z.2f}" for value in (row[prefix or "mean"], low, high))
    return f"{middle} ({low} to {high})".replace(" ", "\N{NO-BREAK SPACE}")


def statement(summary: Mapping[str, Any]) -> list[str]:
    """Sentences: what the data are, what was learned, and which model is mapped."""
    records = list(summary["Records"].values())
    first = records[0]
    n = first["Features"]["n_features"]
    texts = [
        f"Responses: single-trial betas in {summary['Space'].replace('_', ' ')}, z-scored by the train "
        f"trials of each fit; models learn from {first['Responses']}, and are measured against the mean over "
        f"the repeats of each test image. Features: {first['Features']['file']}, {n:,} numbers an image."
    ]
    mapped = {
        "stacked": "The mapped model is stacked: at each point a convex combination of the estimators below, "
        "chosen by cross-validation within the context images.",
        "prior": "The mapped model is the posterior mean under a prior learned from other participants.",
        "transformer": "The mapped model is that of a BraInCoRL network.",
        "ridge": "The mapped model is ridge regression on the participant alone.",
    }[str(summary["Method"])]
    taught = [record for record in records if record["LearnedFrom"]]
    if taught:
        mapped += " Each participant's model was learned with the train images of the others only."
    if first["Network"]:
        mapped += f" The network is {first['Network']}."
    else:
        mapped += " No network (--encode-model) was given."
    texts.append(mapped)
    texts.append(
        "Train and test images are those of the collection's split: nobody's test images were learned from, "
        "by anybody."
    )
    return texts


def _accuracy(data: EncodingData, brain: Brain | None, book: Book) -> Part:
    part = Part("encoding-accuracy", "How well test images are predicted")
    label = "correlation (r)"
    book.add(
        part, "learningcurve", figures.learning_curves(data.metrics, "r", f"mean {label}"),
        alt="Learning curves of each participant: accuracy of each estimator over the number of train images",
        caption="Mean correlation of predicted and measured responses to test images over all points with a "
        "model, by the number of train images that an estimator had of this participant; mean over contexts "
        "that share no image. Bands: 95 % intervals over test images. The group mean has seen none of this "
        "participant's images.",
    )  # fmt: skip
    unit = "points" if brain is None else brain.unit
    if data.means and brain is not None and brain.drawable:
        book.add(
            part, "encodingmean", figures.accuracy_maps(brain, data.means, label),
            alt=f"Maps of mean accuracy of {joined(list(data.means))}",
            caption="Correlation with the responses to test images, mean over participants, with the largest "
            "context of each. One scale for all.",
        )  # fmt: skip
    elif data.means:
        book.add(
            part, "encodingmean", figures.accuracy_histograms(data.means, label, unit),
            alt=f"Distribution of accuracy of {joined(list(data.means))}",
            caption="Correlation with the responses to test images, mean over participants. No surface of "
            "this space is at hand to draw maps on.",
        )  # fmt: skip
    own = dict(list(data.own.items())[:PANELS])
    if own and brain is not None and brain.drawable:
        more = f" The first {PANELS} of {len(data.own)} participants." if len(data.own) > PANELS else ""
        book.add(
            part, "encodingown", figures.accuracy_maps(brain, own, label),
            alt="Accuracy maps of each participant",
            caption=f"Correlation of the {data.method} model of each participant.{more}",
        )  # fmt: skip
    if data.against:
        book.add(
            part, "encodingceiling", figures.against_ceiling(data.against, unit),
            alt="Variance explained against the noise ceiling, by participant",
            caption=f"What the {data.method} model explains against what noise allows (both of the averages "
            "over repeats of test images). On the line a model could not be better; above it is chance.",
        )  # fmt: skip
    else:
        part.notes.append("No test image is repeated: there is no noise ceiling to compare accuracy with.")
    if (data.metrics["region"] != "all").any():
        shares = data.metrics[data.metrics["metric"] == "ceiling_share"]["mean"].notna().any()
        metric, text = ("ceiling_share", "share of the noise ceiling") if shares else ("r", label)
        caption = f"The {text} by region, with the largest context; a dot a participant, the bar the mean."
        if shares:
            caption += (
                " A region's share is the mean over its points of r² (with the sign of r) over their "
                "ceilings, where these are 1 % or more: points with low ceilings carry it above 1 or below 0."
            )
        book.add(
            part, "encodingregions", figures.regions_figure(data.metrics, metric, text, data.method),
            alt="Accuracy by region",
            caption=caption,
        )  # fmt: skip
    return part


def _needed(data: EncodingData) -> Part:
    part = Part("encoding-images", "How many images are needed")
    for goal, caption in (
        ("90", "Train images until 90 % of the best correlation on any curve of this participant"),
        ("ridge", "Train images until the correlation that ridge has with its largest context"),
    ):
        table = data.needed[data.needed["goal"].str.startswith(goal)]
        methods = [m for m in figures.METHODS if m in set(table["method"])]
        rows = []
        for person, its in table.groupby("participant", sort=False):
            of = dict(zip(its["method"], its["n_images"], strict=True))
            texts = ["–" if np.isnan(of.get(m, np.nan)) else f"{of[m]:,.0f}" for m in methods]
            rows.append((str(person), f"{its['r'].iloc[0]:.3f}", *texts))
        part.tables.append(
            Table(
                caption, ("Participant", "r", *methods), rows, frozenset(range(1, len(methods) + 2))
            )
        )  # fmt: skip
    part.notes.append(
        "Interpolated over the logarithm of the number of images. A value equal to the smallest context "
        "means that so many were enough, perhaps fewer; 0, that the mean of other participants is. A dash: "
        "not reached."
    )
    return part


def _aligned(data: EncodingData) -> Part:
    """Who was aligned to whom, and what it gave."""
    part = Part("encoding-alignment", "Functional alignment")
    rows = []
    for key, record in data.summary["Records"].items():
        its = record.get("Alignment") or {"context_sizes": [], "reason": "made without alignment"}
        if not its["context_sizes"]:
            rows.append((key, its["reason"], "–", "–", "–", "–"))
            continue
        own = data.metrics[(data.metrics["participant"] == key) & (data.metrics["metric"] == "r")]
        own = own[(own["region"] == "all") & (own["method"] == its["estimator"])]
        whom = joined(its["others"]) if len(its["others"]) < 4 else f"{len(its['others'])} others"
        for _, row in own.iterrows():
            n = f"{int(row['n_context']):,}", f"{int(row['n_vertices']):,}"
            rows.append((key, whom, *n, _interval(row, ""), _interval(row, "over_ridge")))
    part.tables.append(
        Table(
            "Weights of others carried through an alignment: mean correlation with the responses to test "
            "images, and its difference to ridge with the same images",
            ("Participant", "Weights from", "Context", "Points", "r", "Difference to ridge"),
            rows,
            frozenset(range(2, 6)),
        )
    )
    about = sorted({r["Alignment"]["pieces"] for r in _with_alignment(data.summary)})
    if about:
        part.notes.append(
            "Maps between participants were fitted on the train images of each context that another had seen "
            f"too (the estimator is not part of stacked), within pieces of the cortex: {'; '.join(about)}. "
            "The table of shared images: group/encoding, suffix alignment."
        )
    return part


def _with_alignment(summary: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Records of those who have a model through alignment."""
    records = summary["Records"].values()
    return [r for r in records if (r.get("Alignment") or {}).get("context_sizes")]


def _queries(data: EncodingData, brain: Brain | None, book: Book) -> Part:
    """Which query wins where."""
    part = Part("encoding-queries", "What points respond to most")
    winners = dict(list(data.winners.items())[:PANELS])
    if brain is not None and brain.drawable:
        book.add(
            part, "encodingqueries", figures.winner_maps(brain, winners, data.queries),
            alt=f"Which of the queries {joined(list(data.queries))} has the largest response, where",
            caption=f"Query with the largest predicted response of the {data.method} model, by participant. "
            "Points that are predicted badly have a winner too: see the maps of accuracy.",
        )  # fmt: skip
    shares = {}
    for person, values in data.winners.items():
        n = max(int((values > 0).sum()), 1)
        shares[person] = tuple(
            f"{100 * (values == i).sum() / n:.0f} %" for i in range(1, len(data.queries) + 1)
        )
    rows = [(person, *its) for person, its in shares.items()]
    part.tables.append(
        Table(
            "Share of points that each query wins",
            ("Participant", *data.queries),
            rows,
            frozenset(range(1, len(data.queries) + 1)),
        )
    )
    part.notes.append(
        "Queries are compared with each other only: text and images lie apart in such spaces, so that the "
        "level of a response to a text, and its difference to that to an image, mean nothing."
    )
    return part


def _methods(data: EncodingData) -> Part:
    """Methods text and its references."""
    part = Part("encoding-methods", "Methods text of the encoding models")
    text = methods_text(data.summary)
    known = read_bibliography((template_dir() / "references.bib").read_text(encoding="utf-8"))
    keys = cited_keys(text)
    paragraphs = [p for p in text.split("\n\n") if p.strip() and not p.startswith("#")]
    for key in keys:
        paragraphs = [p.replace(f"[@{key}]", f"({known[key].short})") for p in paragraphs]
    part.notes += [" ".join(p.replace("`", "").split()) for p in paragraphs]
    plain = [_untagged(format_reference(known[key])) for key in sorted(keys)]
    part.tables.append(Table("References", ("",), [(line,) for line in plain]))
    part.notes.append("The same with BibTeX: group/encoding/logs/CITATION.md and CITATION.bib.")
    return part


def _untagged(text: str) -> str:
    import re

    return html.unescape(re.sub(r"<[^>]+>", "", text))


def methods_text(summary: Mapping[str, Any]) -> str:
    """Methods text as Markdown with pandoc citations."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(  # noqa: S701 - Markdown, not HTML; the page escapes it
        loader=FileSystemLoader(template_dir() / "group"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    records = list(summary["Records"].values())
    first = records[0]
    sizes = sorted({int(n) for record in records for n in record["ContextSizes"]})
    tests = sorted({int(record["NumberOfTestImages"]) for record in records})
    method = str(summary["Method"])
    mapped = {
        "stacked": "The mapped model combines all estimators: at each point a convex combination, by "
        "cross-validation within the context images.",
        "prior": "The mapped model is the mean of this posterior.",
        "transformer": "The mapped model is the network's.",
        "ridge": "The mapped model is ridge regression.",
    }[method]
    taught = any(record["LearnedFrom"] for record in records)
    several = len(records) > 1
    given = first["Prior"] is not None and not taught
    aligned = _with_alignment(summary)
    facts = {
        "point": "vertex" if "den-" in summary["Space"] or "fs" in summary["Space"] else "voxel",
        "n_participants": f"{len(records)} participants" if several else "one participant",
        "features": f"`{first['Features']['file']}`",
        "n_features": first["Features"]["n_features"],
        "responses": first["Responses"],
        "prior": "the other participants" if taught else ("other data" if given else ""),
        "network": f"`{first['Network']}`" if first["Network"] else "",
        "mapped": mapped,
        "alignment": aligned[0]["Alignment"]["method"] if aligned else "",
        "pieces": aligned[0]["Alignment"]["pieces"] if aligned else "",
        "prior_mean": taught,
        "sizes": joined([str(n) for n in sizes]),
        "repeats": max(int(n) for record in records for n in record["Contexts"].values()),
        "n_test": f"{tests[0]}" if len(tests) == 1 else f"{tests[0]} to {tests[-1]}",
    }
    text = environment.get_template("encoding.md.j2").render(**facts)
    return "\n".join(" ".join(line.split()) for line in text.splitlines()).strip() + "\n"


def write_methods(folder: Path, summary: Mapping[str, Any]) -> None:
    """Write ``CITATION.md`` and ``CITATION.bib`` into a folder."""
    text = methods_text(summary)
    known = read_bibliography((template_dir() / "references.bib").read_text(encoding="utf-8"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "CITATION.md").write_text(text, encoding="utf-8")
    bib = "\n".join(known[key].text for key in cited_keys(text))
    (folder / "CITATION.bib").write_text(bib, encoding="utf-8")
