# SPDX-License-Identifier: Apache-2.0
"""Encoding models on the group page: the words fit what was done, the figures hold any number of people."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from conform_app.reports.boilerplate import template_dir
from conform_app.reports.braincorl import (
    EncodingData,
    _interval,
    encoding_parts,
    methods_text,
    statement,
    write_methods,
)
from conform_app.reports.braincorlfigures import METHODS
from conform_app.reports.citations import cited_keys, read_bibliography
from conform_app.reports.groupsections import Book, GroupData
from conform_app.reports.maps import Brain
from conform_app.reports.style import figure_style

SIZES = (20, 50)


def record(taught=True, method="stacked", **changes):
    return {
        "Method": method,
        "LearnedFrom": ["sub-09_A", "sub-08_A"] if taught else [],
        "Prior": {"source": "betas"} if taught else None,
        "Network": None,
        "Features": {"file": "clip.npz", "n_features": 512},
        "Responses": "the mean over repeats",
        "ContextSizes": list(SIZES),
        "Contexts": {"20": 2, "50": 1},
        "NumberOfTrainImages": 60,
        "NumberOfTestImages": 30,
        **changes,
    }


def summary(n=3, method="stacked", space="fsaverage_den-10k", **changes):
    people = [f"sub-{i:02d}_A" for i in range(1, n + 1)]
    records = {key: record(method=method, **changes) for key in people}
    about = {"Method": method, "Space": space, "Participants": people, "Records": records}
    return {**about, "Notes": [], "Failed": []}


def data(n=3, regions=(), ceiling=True, **changes) -> EncodingData:
    its = summary(n, **changes)
    rng = np.random.default_rng(0)
    methods = ["stacked", "ridge", "five-fold ridge"] + (["prior", "group mean"] if n > 1 else [])
    methods += [changes["Alignment"]["estimator"]] if "Alignment" in changes else []
    rows, needed = [], []
    for person in its["Participants"]:
        for method in methods:
            for size in (0,) if method == "group mean" else SIZES:
                for region in ("all", *regions):
                    for metric in ("r", "explained_variance", "ceiling_share"):
                        mean = rng.uniform(0.2, 0.5) if ceiling or metric != "ceiling_share" else np.nan
                        over = (np.nan,) * 3 if method == "ridge" else (0.1, 0.05, 0.2)
                        rows.append(
                            (
                                person,
                                method,
                                size,
                                1,
                                region,
                                metric,
                                mean,
                                mean - 0.1,
                                mean + 0.1,
                                *over,
                                50,
                                30,
                            )
                        )
            needed += [(person, method, goal, 0.4, 30.0) for goal in ("90 % of the best", "ridge with 50")]
    columns = ["participant", "method", "n_context", "n_repeats", "region", "metric", "mean", "low", "high"]
    columns += ["over_ridge", "over_ridge_low", "over_ridge_high", "n_vertices", "n_images"]
    against = {p: (rng.uniform(0, 100, 50), rng.uniform(-1, 1, 50)) for p in its["Participants"]}
    maps = {m: rng.uniform(-0.2, 0.8, 64) for m in methods if m != "five-fold ridge"}
    return EncodingData(
        its,
        pd.DataFrame(rows, columns=columns),
        pd.DataFrame(needed, columns=["participant", "method", "goal", "r", "n_images"]),
        maps,
        {p: rng.uniform(-0.2, 0.8, 64) for p in its["Participants"]},
        against if ceiling else {},
    )


def parts_of(given: EncodingData, folder, brain=None):
    group = GroupData({}, {}, set(), brain=brain, encoding=given)
    with figure_style():
        return {part.key: part for part in encoding_parts(group, Book(folder))}


@pytest.mark.parametrize("n", [1, 2, 5, 7, 14])
def test_any_number_of_participants(n, tmp_path) -> None:
    given = data(n, **({"taught": False} if n == 1 else {}))
    parts = parts_of(given, tmp_path)
    assert len(parts["encoding"].tables[0].rows) == n
    assert [figure.name for figure in parts["encoding-accuracy"].figures] == [
        "learningcurve", "encodingmean", "encodingceiling",
    ]  # fmt: skip
    for figure in parts["encoding-accuracy"].figures:
        assert (tmp_path / figure.file).stat().st_size > 2000
    assert len(parts["encoding-images"].tables[0].rows) == n


def test_volumes_are_drawn_and_regions_listed(tmp_path) -> None:
    brain = Brain("volume", (4, 4, 4), affine=np.eye(4), mask=np.ones(64, bool))
    parts = parts_of(data(8, regions=("V1", "V2")), tmp_path, brain)
    figures = {figure.name: figure for figure in parts["encoding-accuracy"].figures}
    assert set(figures) == {
        "learningcurve",
        "encodingmean",
        "encodingown",
        "encodingceiling",
        "encodingregions",
    }
    assert "The first 6 of 8 participants" in figures["encodingown"].caption
    assert "share of the noise ceiling" in figures["encodingregions"].caption
    assert "low ceilings carry it above 1 or below 0" in figures["encodingregions"].caption


def test_without_repeats_there_is_no_ceiling_and_it_is_said(tmp_path) -> None:
    parts = parts_of(data(2, regions=("V1",), ceiling=False), tmp_path)["encoding-accuracy"]
    assert "no noise ceiling" in parts.notes[0]
    assert "encodingceiling" not in {figure.name for figure in parts.figures}
    assert "correlation" in parts.figures[-1].caption
    assert "ceilings" not in parts.figures[-1].caption


def test_queries_are_drawn_and_counted(tmp_path) -> None:
    from dataclasses import replace

    brain = Brain("volume", (4, 4, 4), affine=np.eye(4), mask=np.ones(64, bool))
    winner = np.r_[np.zeros(24), np.full(30, 1), np.full(10, 2)]
    given = replace(data(1, taught=False), queries=("a face", "a place"), winners={"sub-01_A": winner})
    part = parts_of(given, tmp_path, brain)["encoding-queries"]
    assert part.tables[0].rows == [("sub-01_A", "75 %", "25 %")]
    assert [figure.name for figure in part.figures] == ["encodingqueries"]
    assert "encoding-queries" not in parts_of(data(1, taught=False), tmp_path)


def alignment(method="ridge", name="aligned ridge"):
    """What a record says of it."""
    its = {"method": method, "estimator": name, "context_sizes": [20, 50], "least_shared": 8}
    return its | {"others": ["sub-09_A"], "pieces": "compact blocks of at most 512 points"}


def test_alignment_has_its_row_everywhere_and_who_has_none_is_named(tmp_path) -> None:
    given = data(3, Alignment=alignment())
    gone = {"method": "ridge", "context_sizes": [], "reason": "too few train images shared with others"}
    given.summary["Records"]["sub-03_A"]["Alignment"] = gone
    parts = parts_of(given, tmp_path)
    rows = parts["encoding-alignment"].tables[0].rows
    why = "too few train images shared with others"
    assert [row[1:3] for row in rows] == [("sub-09_A", "20"), ("sub-09_A", "50")] * 2 + [(why, "–")]
    assert rows[0][5].startswith("+0.10")
    assert rows[4][2:] == ("–",) * 4
    assert "compact blocks of at most 512 points" in parts["encoding-alignment"].notes[0]
    figures = {figure.name: figure for figure in parts["encoding-accuracy"].figures}
    assert "aligned ridge" in (tmp_path / figures["learningcurve"].file).read_text()
    assert "aligned ridge" in parts["encoding-images"].tables[0].head
    assert "encoding-alignment" not in parts_of(data(2), tmp_path)


@pytest.mark.parametrize(
    ("method", "word", "key"),
    [
        ("ridge", "by ridge regression", "alignment"),
        ("procrustes", "Procrustes", "hyperalignment"),
        ("optimal_transport", "entropic optimal transport", "transport"),
    ],
)
def test_alignment_is_described_and_cited(method, word, key) -> None:
    text = methods_text(summary(Alignment=alignment(method)))
    assert word in text
    assert {"alignment", key} <= set(cited_keys(text))
    known = read_bibliography((template_dir() / "references.bib").read_text(encoding="utf-8"))
    assert set(cited_keys(text)) <= set(known)
    assert known["alignment"].short == "Bazeille et al., 2021"
    for left in ("{{", "{%", "None", "  ", " ,", " ."):
        assert left not in text
    assert "alignment" not in methods_text(summary())


def test_no_models_no_sections(tmp_path) -> None:
    assert encoding_parts(GroupData({}, {}, set()), Book(tmp_path)) == []


@pytest.mark.parametrize(
    ("case", "there", "absent"),
    [
        ({}, ("learned from the train images of the other participants", "stacked"), ("BraInCoRL network",)),
        (
            {"n": 1, "taught": False},
            ("no other participant to learn from", "one participant"),
            ("group mean",),
        ),
        ({"Network": "clip.ckpt", "method": "transformer"}, ("clip.ckpt", "BraInCoRL"), ()),
        ({"method": "ridge"}, ("mapped model is ridge regression",), ()),
        (
            {"method": "prior", "taught": False, "Prior": {"source": "betas"}},
            ("train images of other data",),
            (),
        ),
        ({"space": "MNI152NLin2009cAsym_res-2"}, ("each voxel",), ("vertex",)),
    ],
)
def test_words_fit_what_was_done(case, there, absent, tmp_path) -> None:
    its = summary(**case)
    text = methods_text(its)
    told = text + " ".join(statement(its))
    for word in there:
        assert word in told
    for word in absent:
        assert word not in told
    for left in ("{{", "{%", "None", "nan", "  ", " ,", " .", ".."):
        assert left not in text, left
    for paragraph in text.split("\n\n"):
        assert paragraph.startswith("#") or (paragraph[0].isupper() and paragraph.rstrip().endswith("."))
        for sentence in re.split(r"(?<=[a-z\])`])\. ", paragraph):
            assert sentence[0] in "#`" or sentence[0].isupper() or sentence[0].isdigit()
    known = read_bibliography((template_dir() / "references.bib").read_text(encoding="utf-8"))
    assert {"braincorl", "himalaya"} <= set(cited_keys(text)) <= set(known)
    write_methods(tmp_path, its)
    assert (tmp_path / "CITATION.md").read_text() == text
    assert known["braincorl"].short == "Yu et al., 2025"


def test_every_estimator_has_a_colour_and_a_name_in_files() -> None:
    from conform_app.bids.encoding import METHOD_DESC

    assert list(METHODS) == list(METHOD_DESC)
    assert len({colour for colour, _, _ in METHODS.values()}) == len(METHODS)


def test_a_difference_that_rounds_to_zero_has_no_minus():
    row = {"over_ridge": -0.001, "over_ridge_low": -0.04, "over_ridge_high": 0.004}
    assert _interval(row, "over_ridge").split() == ["+0.00", "(-0.04", "to", "+0.00)"]
