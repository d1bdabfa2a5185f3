# SPDX-License-Identifier: Apache-2.0
"""The page of a subject: built from records and maps alone, whole, honest about what is missing."""

import hashlib
import json
from html.parser import HTMLParser
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from conform_app.errors import CannotCreateError
from conform_app.reports import build_report

SHAPE = (8, 7, 4)
NAME = "sub-01_task-x_space-T1w"
VOID = {"meta", "img", "br", "link", "hr", "input"}


class Page(HTMLParser):
    """Checks nesting while reading; collects images, links, anchors and the visible text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open, self.images, self.links, self.ids, self.text = [], [], [], [], []
        self.captions = 0
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if "id" in attrs:
            self.ids.append(attrs["id"])
        if tag == "img":
            self.images.append(attrs)
        if tag == "a" and "href" in attrs:
            self.links.append(attrs["href"])
        self.captions += tag == "figcaption"

    def handle_endtag(self, tag):
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


@pytest.fixture
def mask():
    mask = np.zeros(SHAPE, bool)
    mask[1:7, 1:6, 1:4] = True
    return mask


@pytest.fixture
def record(tmp_path, mask):
    """A fit with everything: two runs, three conditions of four trials."""
    rng = np.random.default_rng(1)
    func = tmp_path / "sub-01" / "func"
    func.mkdir(parents=True)
    products = {}

    def save(key, name, values, dtype=np.float32):
        full = np.zeros(SHAPE, dtype)
        full[mask] = values
        nib.save(nib.Nifti1Image(full, np.diag([2.0, 2, 3, 1])), func / f"{NAME}_{name}.nii.gz")
        products[key] = [f"sub-01/func/{NAME}_{name}.nii.gz"]

    n = int(mask.sum())
    save("brainmask", "desc-brain_mask", np.ones(n), np.uint8)
    save("mean", "desc-mean_boldref", rng.uniform(500, 900, n))
    for label in "ABCD":
        save(f"rsquared_type{label}", f"stat-rsquared_desc-type{label}_statmap", rng.uniform(0, 30, n))
        save(f"reliability_type{label}", f"stat-reliability_desc-type{label}_statmap", rng.uniform(-1, 1, n))
    save("hrfindex", "desc-hrfindex_dseg", rng.integers(1, 5, n), np.int16)
    save("noisepool", "desc-noisepool_mask", rng.integers(0, 2, n), np.uint8)
    save("fracridge", "stat-fracridge_desc-typeD_statmap", rng.choice([0.05, 0.5, 1.0], n))
    save("ncsnr", "stat-ncsnr_desc-typeD_statmap", rng.uniform(0, 1, n))
    save("noiseceiling", "stat-noiseceiling_desc-typeD_statmap", rng.uniform(0, 60, n))
    save("psn_reliability", "stat-reliability_desc-psn_statmap", rng.uniform(0, 1, n))
    conditions = ["cat", "price $5 & <tag>", "dog"]
    lines = ["index\trun\tonset\tduration\ttrial_type\tstim_id\trepeat\tsplit"]
    for number in range(12):
        stim = conditions[number % 3]
        lines.append(f"{number + 1}\t{number // 6 + 1}\t{10.5 * (number % 6)}\t2.0\tn/a\t{stim}\t1\tn/a")
    (func / f"{NAME}_trials.tsv").write_text("\n".join(lines) + "\n")
    rows = ["index\tstim_id\tn_trials\tsplit", *(f"{i + 1}\t{c}\t4\tn/a" for i, c in enumerate(conditions))]
    (func / f"{NAME}_conditions.tsv").write_text("\n".join(rows) + "\n")
    products["trials"] = [f"sub-01/func/{NAME}_trials.tsv"]
    products["conditions"] = [f"sub-01/func/{NAME}_conditions.tsv"]
    run = {"session": None, "bold": "x.nii.gz", "n_volumes": 40, "duration_s": 80.0, "n_trials": 6}
    fit = {"name": NAME, "subject": "01", "sessions": [], "task": "x", "space": "T1w", "res": None}
    fit |= {"den": None, "kind": "volume", "n_voxels": n, "n_points": mask.size, "n_trials": 12}
    fit |= {"n_conditions": 3, "n_repeated_conditions": 3, "tr": 2.0, "types": list("ABCD")}
    fit["runs"] = [run | {"run": "1"}, run | {"run": "2"}]
    choices = {"stim_column": "stim_id", "pcnum": 1, "noise_pool_size": 40, "r2_threshold": 3.0, "n_hrfs": 4}
    choices |= {"fracs": [1.0, 0.5, 0.05], "psn": {"mode": "cv", "basis": "signal", "level": "global"}}
    choices["psn"] |= {"criterion": "cv", "n_dims": [2.0], "n_parcels": 1, "glm_type": "D"}
    times = np.arange(0, 20, 2.0)
    curves = {"xval_trend": [-10.0, -8.0, -9.0], "hrf_times": times.tolist()}
    curves["hrfs"] = [np.exp(-((times - p) ** 2) / 8).tolist() for p in (4, 5, 6, 7)]
    curves["psn"] = {"signal_var": [3.0, 1.0, 0.0], "noise_var": [1.0, 1.0, 1.0]}
    curves["psn"] |= {"cv_error": [2.0, 1.0, 0.5, 0.7], "threshold": 2}
    return {
        "schema": 1,
        "fit": fit,
        "settings": {"model": {"psn": "cv", "random_seed": 0}},
        "digest": "abcdef012345",
        "inputs": {},
        "products": products,
        "choices": choices,
        "account": ["All voxels were fitted & counted."],
        "warnings": ["fMRIPrep was never run on these data."],
        "curves": curves,
        "repeats": {"4": 3},
        "seconds": {"glmsingle": 65.0, "psn": None},
        "software": {"CONFORM": "1.2.3", "numpy": "2.0"},
    }


def without(record, *keys):
    copy = json.loads(json.dumps(record))
    for key in keys:
        copy["products"].pop(key, None)
    return copy


def fallback(record):
    """The same fit as if no condition had repeated across runs."""
    gone = ["noisepool", "fracridge", "ncsnr", "noiseceiling", "psn_reliability"]
    gone += [f"{kind}_type{t}" for kind in ("rsquared", "reliability") for t in "CD"]
    gone += ["reliability_typeA", "reliability_typeB"]
    plain = without(record, *gone)
    plain["fit"] |= {"types": ["A", "B"], "n_repeated_conditions": 0, "n_conditions": 12}
    plain["choices"] |= {"pcnum": None, "fracs": [], "psn": None, "noise_pool_size": None}
    plain["curves"] |= {"xval_trend": None, "psn": {}}
    plain["repeats"] = {"1": 12}
    return plain


def test_page_holds_every_section_with_figures_that_exist(tmp_path, record):
    path = build_report(tmp_path, "sub-01", records=[record])
    assert path == tmp_path / "sub-01.html"
    page = Page(path)
    drawn = {image["src"].split("_desc-")[1].split("_")[0] for image in page.images}
    expected = {"trialcounts", "design", "rsquaredA", "rsquaredD", "hrfindex", "noisepool", "pccv"}
    expected |= {"fracridge", "reliability", "ncsnr", "noiseceiling", "psncut", "psnreliability", "psngain"}
    assert drawn == expected
    for image in page.images:
        assert (tmp_path / image["src"]).stat().st_size < 1_000_000
        assert len(image["alt"]) > 20
        assert "nan" not in image["alt"].split()
    assert page.captions == len(page.images)
    assert len(set(page.ids)) == len(page.ids)
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    for fact in (
        "90 voxels, 2 runs, 12 trials of 3 conditions, each shown 4 times",
        "All voxels were fitted",
    ):
        assert fact in page.words
    assert "fMRIPrep was never run on these data." in page.words
    assert "1 min 20 s" in page.words
    assert "1.2.3" in page.words


@pytest.mark.parametrize(
    ("kind", "of", "word"),
    [
        ("gifti", "timeseries", "vertices"),
        ("cifti", "timeseries", "grayordinates"),
        ("gifti", "betas", "voxels"),
    ],
)
def test_points_have_their_name_in_what_was_done(tmp_path, record, kind, of, word):
    told = record | {"products": {}, "surface": {"of": of}, "fit": record["fit"] | {"kind": kind}}
    words = Page(build_report(tmp_path, "sub-01", records=[told])).words
    assert f"All {word} were fitted" in words


def test_nothing_is_left_beside_the_page_and_its_figures(tmp_path, record):
    build_report(tmp_path, "01", records=[record])
    names = [p.name for p in tmp_path.rglob("*") if p.is_file()]
    assert not [name for name in names if name.startswith(".") or name.endswith(".tmp")]


def test_two_builds_are_byte_identical(tmp_path, record):
    def digest():
        files = [tmp_path / "sub-01.html", *sorted((tmp_path / "sub-01" / "figures").iterdir())]
        return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}

    build_report(tmp_path, "01", records=[record])
    first = digest()
    build_report(tmp_path, "01", records=[record])
    assert digest() == first


def test_global_matplotlib_state_is_untouched(tmp_path, record):
    import matplotlib

    before = dict(matplotlib.rcParams)
    build_report(tmp_path, "01", records=[record])
    assert dict(matplotlib.rcParams) == before


def test_types_that_were_not_estimated_are_named_with_the_reason(tmp_path, record):
    page = Page(build_report(tmp_path, "01", records=[fallback(record)]))
    drawn = {image["src"].split("_desc-")[1].split("_")[0] for image in page.images}
    assert drawn == {"trialcounts", "design", "rsquaredA", "rsquaredB", "hrfindex"}
    assert "Types C and D were not estimated: no condition repeats across runs" in page.words
    assert "No noise components were removed: no condition repeats across runs" in page.words
    assert "No ridge regression was done" in page.words
    assert "PSN was not run: no condition was shown more than once" in page.words
    assert "There are no maps of ncsnr and noise ceiling: no condition was shown more than once" in page.words


def test_a_single_run_is_given_as_the_reason(tmp_path, record):
    plain = fallback(record)
    plain["fit"]["runs"] = plain["fit"]["runs"][:1]
    words = Page(build_report(tmp_path, "01", records=[plain])).words
    assert "Types C and D were not estimated: there is only one run" in words


def test_a_ridge_fraction_set_in_advance_is_not_called_chosen(tmp_path, record):
    plain = without(record)
    plain["choices"]["fracs"] = [0.5]
    page = Page(build_report(tmp_path, "01", records=[plain]))
    assert "length, 0.5, was used everywhere, without cross-validation" in page.words
    assert not [image for image in page.images if "desc-fracridge" in image["src"]]


def test_figures_of_an_earlier_report_are_removed(tmp_path, record):
    build_report(tmp_path, "01", records=[record])
    other = tmp_path / "sub-01" / "figures" / "sub-01_task-y_space-T1w_desc-ncsnr_bold.svg"
    other.write_text("<svg/>")
    build_report(tmp_path, "01", records=[without(record, "ncsnr")])
    left = [p.name for p in (tmp_path / "sub-01" / "figures").iterdir()]
    assert f"{NAME}_desc-ncsnr_bold.svg" not in left
    assert other.name in left


def test_a_lost_file_is_reported_and_its_figure_left_out(tmp_path, record):
    (tmp_path / record["products"]["ncsnr"][0]).unlink()
    page = Page(build_report(tmp_path, "01", records=[record]))
    assert "1 file of this fit no longer exists" in page.words
    assert not [image for image in page.images if "desc-ncsnr" in image["src"]]


def test_a_damaged_map_costs_its_own_section_only(tmp_path, record):
    (tmp_path / record["products"]["fracridge"][0]).write_bytes(b"not an image")
    page = Page(build_report(tmp_path, "01", records=[record]))
    assert "Cannot read the map" in page.words
    assert "An error occurred" in page.words
    assert [image for image in page.images if "desc-ncsnr" in image["src"]]


def test_a_map_of_another_grid_is_refused(tmp_path, record):
    path = tmp_path / record["products"]["ncsnr"][0]
    nib.save(nib.Nifti1Image(np.zeros((2, 2, 2), np.float32), np.eye(4)), path)
    assert "has 8 points" in Page(build_report(tmp_path, "01", records=[record])).words


def test_errors_are_shown_and_text_is_escaped(tmp_path, record):
    errors = [
        {
            "fit": "sub-01_task-z",
            "message": "mask <b> covers nothing",
            "remedy": "Check it.",
            "traceback": "T",
        }
    ]
    page = Page(build_report(tmp_path, "01", records=[record], errors=errors, run_info={"command": "a & b"}))
    assert "mask <b> covers nothing Check it." in page.words
    assert "a & b" in page.words
    assert "1 fit complete, 1 error" in page.words


def test_a_subject_without_any_fit_gets_a_page(tmp_path):
    page = Page(build_report(tmp_path, "01", records=[], errors=[{"message": "No events."}]))
    assert "No fit of this subject is complete" in page.words
    assert page.images == []


def test_methods_text_is_shown_with_its_references(tmp_path, record):
    from conform_app.reports import write_boilerplate

    write_boilerplate(tmp_path, [record], version="1.2.3")
    page = Page(build_report(tmp_path, "01", records=[record]))
    assert "(Prince et al., 2022)" in page.words.replace("( ", "(").replace(" )", ")")
    assert "#ref-glmsingle" in page.links
    assert "ref-glmsingle" in page.ids


def test_many_conditions_give_a_histogram_instead_of_bars(tmp_path, record):
    rows = ["index\tstim_id\tn_trials\tsplit", *(f"{i}\timage{i}\t{1 + i % 3}\tn/a" for i in range(90))]
    (tmp_path / record["products"]["conditions"][0]).write_text("\n".join(rows) + "\n")
    page = Page(build_report(tmp_path, "01", records=[record]))
    assert "90 conditions with 1 to 3 trials each; 30 conditions shown only once." in page.words


def test_an_unwritable_folder_is_a_plain_error(tmp_path, record):
    (tmp_path / "sub-01" / "figures").write_text("in the way")
    with pytest.raises(CannotCreateError, match="Cannot write the report of sub-01"):
        build_report(tmp_path, "01", records=[record])


@pytest.mark.parametrize(
    ("scale", "axis"), [("z", "standardised responses"), ("percent", "responses in percent signal change")]
)
def test_axis_of_psn_names_what_it_saw(tmp_path, record, scale, axis):
    record["settings"]["model"]["psn_scale"] = scale
    build_report(tmp_path, "01", records=[record])
    (figure,) = (tmp_path / "sub-01" / "figures").glob("*psncut*.svg")
    assert f"variance (of {axis})" in figure.read_text()


def test_psn_in_blocks_and_by_unit(tmp_path, record):
    record["choices"]["psn"] |= {"n_dims": [2.0, 3.0], "n_parcels": 2}
    table = ["block\tindex\tsignal_variance\tnoise_variance\tcv_error\tkept"]
    table += [f"{b}\t{i}\t{4 / i if i < 4 else 0}\t1\tn/a\t1" for b in (1, 2) for i in range(1, 6)]
    path = tmp_path / "sub-01" / "func" / f"{NAME}_desc-psn_dimensions.tsv"
    path.write_text("\n".join(table) + "\n")
    record["products"]["psn_dimensions"] = [f"sub-01/func/{path.name}"]
    words = Page(build_report(tmp_path, "01", records=[record])).words
    assert "PSN was applied to 2 blocks" in words
    record["products"].pop("psn_dimensions")
    record["choices"]["psn"] |= {"n_dims": [2.0], "n_parcels": 1, "level": "unit"}
    record["curves"]["psn"]["threshold"] = [1, 2, 3, 2]
    words = Page(build_report(tmp_path, "01", records=[record])).words
    assert "Dimensions kept, chosen for each of 4 voxels by itself: median 2 of 3" in words
