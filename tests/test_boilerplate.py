# SPDX-License-Identifier: Apache-2.0
"""Methods text: true, complete and well-formed for every kind of run; every citation resolves."""

import copy
import itertools
import re

import pytest

from conform_app.errors import CannotCreateError
from conform_app.reports import write_boilerplate
from conform_app.reports.boilerplate import STAGES, methods_text, template_dir
from conform_app.reports.citations import (
    cited_keys,
    format_reference,
    markdown_to_html,
    read_bibliography,
)

FMRIPREP = [{"GeneratedBy": [{"Name": "fMRIPrep", "Version": "24.1.0"}]}]


def make_record(subject="01", task="x", **changes):
    """A fit with everything; `changes` go into its fit, choices or settings by name."""
    fit = {"name": f"sub-{subject}_task-{task}", "subject": subject, "sessions": [], "task": task}
    fit |= {"space": "T1w", "res": None, "den": None, "kind": "volume", "n_voxels": 500, "n_trials": 40}
    fit |= {"n_conditions": 10, "n_repeated_conditions": 10, "tr": 2.0, "types": list("ABCD")}
    fit["runs"] = [{"run": str(i), "n_volumes": 100} for i in (1, 2, 3, 4)]
    choices = {"stim_column": "stim_id", "pcnum": 4, "noise_pool_size": 200, "r2_threshold": 5.0}
    choices |= {"fracs": [1.0, 0.5, 0.1], "n_hrfs": 20}
    choices["psn"] = {"mode": "cv", "basis": "difference", "level": "global", "n_dims": [6.0], "n_parcels": 1}
    model = {
        "confounds": ["none"],
        "random_seed": 7,
        "no_repeats": "typeB",
        "psn": "cv",
        "hrf_model": "library",
    }
    events = {"stim_column": None, "block_column": None, "ignore_trials": None, "stim_duration": None}
    for key, value in changes.items():
        for part in (fit, choices, model, events):
            if key in part and not (key == "psn" and part is model):
                part[key] = value
                break
        else:
            raise KeyError(key)
    return {
        "schema": 1,
        "fit": fit,
        "choices": choices,
        "settings": {"model": model, "events": events},
        "products": {f"reliability_type{t}": ["x"] for t in fit["types"]},
        "curves": {"xval_trend": [-1.0] * 11, "psn": {"signal_var": [1.0] * 90}},
        "repeats": {"4": 10},
        "software": {"CONFORM": "1", "numpy": "2.1", "torch": "2.4", "scikit-learn": "1.5"},
    }


def plain(subject="01", task="x", **changes):
    """A fit in which no condition repeats across runs."""
    facts = {"types": ["A", "B"], "n_repeated_conditions": 0, "pcnum": None, "fracs": [], "psn": None}
    record = make_record(subject, task, **(facts | {"noise_pool_size": None} | changes))
    return record | {"products": {}, "repeats": {"1": 10}, "curves": {"xval_trend": None, "psn": {}}}


def wiener():
    return {"mode": "wiener", "basis": "wiener", "level": "global", "n_dims": [3.27], "n_parcels": 1}


def auto(criterion="wiener", level="global"):
    found = {"basis": "difference", "criterion": criterion, "level": level, "n_dims": [40.5], "n_parcels": 1}
    return {"mode": "auto"} | found


def blocks(mode="cv"):
    return {"mode": mode, "basis": "signal", "level": "unit", "n_dims": [5.0, 9.0, 7.0], "n_parcels": 3}


CASES = {
    "one": [make_record()],
    "many": [make_record(f"{i:02d}", n_trials=40 + i, pcnum=i) for i in range(1, 4)],
    "tasks": [make_record(), make_record(task="y", tr=1.5)],
    "fallback": [plain()],
    "single run": [plain(runs=[{"run": None, "n_volumes": 50}])],
    "mixed": [make_record(), plain("02")],
    "fixed": [make_record(no_repeats="fixed", fracs=[0.5], pcnum=3, psn=None)],
    "psn off": [make_record(psn=None)],
    "wiener": [make_record(psn=wiener())],
    "auto": [make_record(psn=auto())],
    "autos": [
        make_record(psn=auto()),
        make_record("02", psn=auto("cv", "unit")),
        make_record("03", psn=auto("blend", "unit")),
        make_record("04", psn=auto("cv")),
        make_record("05", psn=auto()),
    ],
    "auto in blocks": [make_record(psn=blocks("auto"))],
    "blocks": [make_record(psn=blocks(), kind="cifti", space="fsLR", den="91k")],
    "preset": [make_record(psn=blocks("conservative"))],
    "surface": [make_record(kind="gifti", space="fsaverage", den="10k")],
    "kinds": [make_record(), make_record("02", kind="gifti", space="fsaverage")],
    "sessions": [make_record(sessions=["01"]), make_record("02", sessions=["02"])],
    "pooled": [make_record(sessions=["01", "02", "03"])],
    "confounds": [make_record(confounds=["motion24", "a_comp_cor:5"])],
    "events": [make_record(block_column="block", ignore_trials="trial_type == 'blank'", stim_duration=3.0)],
    "canonical": [make_record(hrf_model="canonical", n_hrfs=1)],
    "no space": [make_record(space=None)],
    "set pcs": [make_record(fracs=[0.4]) | {"curves": {"xval_trend": None}}],
}


@pytest.fixture(params=CASES, ids=str)
def text(request):
    return methods_text(copy.deepcopy(CASES[request.param]), version="1.0", inputs=FMRIPREP)


def test_every_citation_resolves(text):
    known = read_bibliography((template_dir() / "references.bib").read_text(encoding="utf-8"))
    assert set(cited_keys(text)) <= set(known)
    assert {"glmsingle", "bids", "nipype", "fmriprep"} <= set(cited_keys(text))


def test_text_has_no_leftovers_and_reads_as_sentences(text):
    for leftover in ("{{", "}}", "{%", "None", "nan", "  ", " ,", " .", "..", "()", "[]", "unknown number"):
        assert leftover not in text, leftover
    for paragraph in text.strip().split("\n\n"):
        assert paragraph.strip()
        if not paragraph.startswith("#"):
            assert paragraph[0].isupper(), paragraph
            assert paragraph.rstrip().endswith("."), paragraph
            for sentence in re.split(r"(?<=[a-z\])`])\. ", paragraph):
                assert sentence[0].isupper() or sentence[0].isdigit(), sentence


def test_text_has_all_stages(text):
    for heading in ("# Methods", "## Data", "## Single-trial responses", "## Reliability", "## Software"):
        assert heading in text
    assert "## Denoising across" in text


def case(name, inputs=None):
    return methods_text(
        copy.deepcopy(CASES[name]), version="1.0", inputs=FMRIPREP if inputs is None else inputs
    )


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        (
            "one",
            ["one participant (sub-01)", "4 runs at a repetition time of 2 s", "40 trials of 10 conditions"],
        ),
        ("one", ["each shown 4 times, in 500 voxels", "the column `stim_id`", "a library of 20 functions"]),
        ("one", ["Of up to 10", "was 4 (type C)", "among 3 between 0.1 and 1", "left out one of the 4 runs"]),
        ("one", ["of the difference basis", "6 of 90 dimensions were kept", "with the seed 7"]),
        (
            "one",
            ["preprocessed with fMRIPrep 24.1.0 [@fmriprep]", "NumPy 2.1 [@numpy]", "PyTorch 2.4 [@pytorch]"],
        ),
        (
            "many",
            [
                "3 participants were",
                "Each of the 3 fits covers 4 runs",
                "41 to 43 trials",
                "was 1 to 3 (type C)",
            ],
        ),
        ("tasks", ["For the task `x`", "For the task `y`", "a repetition time of 1.5 s"]),
        ("fallback", ["no condition was repeated across runs", "those of type B", "each shown once"]),
        ("single run", ["there was only one run", "cover 1 run at"]),
        (
            "mixed",
            ["In 1 fit of 2, noise components", "In 1 fit of 2, no condition was repeated across runs"],
        ),
        ("mixed", ["PSN was not applied in 1 fit without repeated conditions"]),
        (
            "fixed",
            ["3 components of noise [@glmdenoise] and a ridge fraction of 0.5 [@fracridge] were set"],
        ),
        ("psn off", ["PSN was not applied"]),
        ("wiener", ["Wiener filter", "3.27 of 90 effective dimensions were kept"]),
        ("auto", ["cross-validation over repeats: here the Wiener filter. 40.5 of 90 effective"]),
        (
            "autos",
            [
                "here the Wiener filter (2 fits), a cut for each voxel (1 fit), a weighted mean (1 fit) and"
                " one cut for all (1 fit)."
            ],
        ),
        ("auto in blocks", ["cross-validation over repeats, in each block by itself."]),
        (
            "blocks",
            [
                "applied to 3 blocks of neighbouring grayordinates",
                "5 to 9 dimensions were kept by the median grayordinate of a block",
            ],
        ),
        ("blocks", ["`fsLR` (den-91k)", "TemplateFlow [@templateflow]", "separately for each grayordinate"]),
        ("preset", ["holds 99 % of the estimated signal variance (preset `conservative`)"]),
        ("surface", ["500 vertices", "For each vertex"]),
        ("kinds", ["For each point", "the spaces `T1w` and `fsaverage`"]),
        ("sessions", ["each session was fitted by itself"]),
        ("pooled", ["the runs of 3 sessions were fitted together"]),
        (
            "confounds",
            ["six motion parameters, their derivatives, and the squares of both and `a_comp_cor:5`"],
        ),
        ("events", ["the column `block` made one trial", "`trial_type == 'blank'` were left out", "of 3 s"]),
        ("canonical", ["One canonical HRF was used in every voxel"]),
        ("no space", ["analysed in the space of acquisition"]),
        ("set pcs", ["Their number was 4 (type C)", "with a fraction of 0.4 (type D)"]),
    ],
)
def test_text_says_what_was_run(name, facts):
    text = case(name)
    for fact in facts:
        assert fact in text, fact


def test_what_was_not_run_is_not_claimed():
    for name in ("fallback", "single run"):
        words = case(name)
        for key in ("glmdenoise", "fracridge", "psn", "gsn"):
            assert f"@{key}" not in words
        assert "left out one of" not in words
        assert "shrunk" not in words
    assert "@psn" not in case("psn off")
    assert "library of 20" not in case("canonical")
    assert "@templateflow" not in case("one")


def test_preprocessing_is_never_credited_to_fmriprep_by_guess():
    other = case("one", [{"GeneratedBy": [{"Name": "my_script", "Version": "3"}]}])
    assert "`my_script` version 3" in other
    assert "fMRIPrep is not among" in other
    assert "@fmriprep" not in other
    silent = case("one", [{"Name": "raw"}])
    assert "does not say with which program" in silent
    assert "@fmriprep" not in silent


def test_files_hold_the_text_and_only_the_references_cited(tmp_path):
    text, references = write_boilerplate(tmp_path, CASES["one"], version="1.0", inputs=FMRIPREP)
    assert text == tmp_path / "logs" / "CITATION.md"
    keys = cited_keys(text.read_text(encoding="utf-8"))
    assert list(read_bibliography(references.read_text(encoding="utf-8"))) == keys
    first = text.read_bytes(), references.read_bytes()
    write_boilerplate(tmp_path, CASES["one"], version="1.0", inputs=FMRIPREP)
    assert (text.read_bytes(), references.read_bytes()) == first
    assert sorted(p.name for p in (tmp_path / "logs").iterdir()) == ["CITATION.bib", "CITATION.md"]


def test_inputs_come_from_the_output_description(tmp_path):
    (tmp_path / "dataset_description.json").write_text(
        '{"GeneratedBy": [{"Name": "CONFORM"}, {"Name": "fMRIPrep", "Version": "23.2.1"}]}'
    )
    text, _ = write_boilerplate(tmp_path, CASES["one"], version="1.0")
    assert "fMRIPrep 23.2.1 [@fmriprep]" in text.read_text(encoding="utf-8")


def test_an_unwritable_folder_is_a_plain_error(tmp_path):
    (tmp_path / "logs").write_text("in the way")
    with pytest.raises(CannotCreateError, match="Cannot write the methods text"):
        write_boilerplate(tmp_path, CASES["one"], version="1.0")


def test_without_a_complete_fit_nothing_is_claimed():
    assert methods_text([], version="1.0") == (
        "# Methods\n\nNo fit is complete, so there is nothing to describe yet.\n"
    )


def test_a_development_version_is_called_so():
    assert "CONFORM (development version)," in methods_text(CASES["one"], version="0+unknown")


def test_templates_and_references_are_whole():
    folder = template_dir()
    assert {f"{stage}.md.j2" for stage in STAGES} == {p.name for p in folder.glob("*.j2")}
    source = (folder / "references.bib").read_text(encoding="utf-8")
    known = read_bibliography(source)
    assert len(known) == len(re.findall(r"^@\w+\{", source, re.MULTILINE))
    for entry in known.values():
        assert entry.fields["title"]
        assert entry.surnames
        assert entry.text.count("{") == entry.text.count("}")
        assert "nan" not in format_reference(entry).split()
    dois = [e.fields["doi"] for e in known.values() if "doi" in e.fields]
    assert len(set(dois)) == len(dois)
    assert all(re.fullmatch(r"10\.\d{4,}/\S+", doi) for doi in dois)
    used = {key for p in folder.glob("*.j2") for key in cited_keys(p.read_text(encoding="utf-8"))}
    assert used <= set(known)


@pytest.mark.parametrize(
    ("key", "short"), [("glmsingle", "Prince et al., 2022"), ("fracridge", "Rokem & Kay, 2020")]
)
def test_short_citations(key, short):
    known = read_bibliography((template_dir() / "references.bib").read_text(encoding="utf-8"))
    assert known[key].short == short


def test_markdown_becomes_html_with_links():
    known = read_bibliography((template_dir() / "references.bib").read_text(encoding="utf-8"))
    html = markdown_to_html("# A\n\nText & `code` [@glmsingle; @fracridge], then [@nowhere].", known)
    assert "<h3>A</h3>" in html
    assert "Text &amp; <code>code</code>" in html
    first, second = "Prince et al., 2022</a>", "Rokem &amp; Kay, 2020</a>"
    assert f'(<a href="#ref-glmsingle">{first}; <a href="#ref-fracridge">{second})' in html
    assert "(nowhere)" in html
    assert html.count("<li") == 2


def test_order_of_records_does_not_change_the_numbers():
    texts = {methods_text(list(order), version="1.0") for order in itertools.permutations(CASES["many"])}
    assert len(texts) == 1
