# SPDX-License-Identifier: Apache-2.0
"""The table of output names against pybids, the BIDS validator and its own rules."""

import json
import re
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nibabel.cifti2 import BrainModelAxis

from conform_app.bids.dataset import write_dataset
from conform_app.bids.naming import (
    bidsignore,
    build_name,
    build_names,
    descriptions,
    figure_name,
    glm_type_label,
    parse_name,
    product,
    product_keys,
    sidecar_name,
)
from conform_app.bids.provenance import sidecar, write_json, write_text, write_tsv
from conform_app.errors import UsageError
from conform_app.images import Grid, write_maps

# The keys of the record of a fit, which reports and group level look up
RECORD_KEYS = (
    *(f"{base}_type{t}" for base in ("betas", "rsquared", "reliability") for t in "ABCD"),
    *("hrfindex", "noisepool", "brainmask", "fracridge", "mean", "ncsnr", "noiseceiling", "condmean"),
    *("psn", "psn_reliability", "psn_signalvar", "psn_noisevar", "psn_residual", "psn_model"),
    *("psn_reliability_before", "psn_removedsignal", "psn_removednoise"),
    *("psn_dimensions", "trials", "conditions", "glmdenoise", "design"),
)

FITS = {
    "native": ({"sub": "01", "task": "a", "space": "T1w"}, "volume"),
    "resolution": ({"sub": "01", "task": "a", "space": "MNI152NLin2009cAsym", "res": "2"}, "volume"),
    "session": ({"sub": "01", "ses": "01", "task": "a", "space": "boldref"}, "volume"),
    "group of sessions": ({"sub": "01", "ses": "01+02", "task": "a", "acq": "x", "space": "func"}, "volume"),
    "custom": ({"subject": "02", "task": "a", "space": "SPMnormalized"}, "volume"),
    "deprecated": ({"sub": "01", "task": "a", "space": "fsaverage5"}, "gifti"),
    "own surface": ({"sub": "01", "task": "a", "space": "fsnative"}, "gifti"),
    "cifti": ({"sub": "01", "ses": "02", "task": "a", "space": "fsLR", "den": "91k"}, "cifti"),
}


def names_of(entities, kind, key):
    """Every name of a product: for each hemisphere, or for each of two runs."""
    runs = ("1", "2") if product(key).per_run else (None,)
    return [name for run in runs for name in build_names(key, entities, kind, run=run)]


ALL = [(*fit, key) for fit in FITS.values() for key in product_keys()]


def test_every_product_of_the_record_has_names():
    assert set(RECORD_KEYS) <= set(product_keys())
    for key in product_keys():
        item = product(key)
        assert item.key == key
        assert item.description
        assert item.description.endswith(".")
        assert (item.desc == "") == (key in ("trials", "conditions"))
        if item.form in ("map", "label", "mask"):
            assert item.units
    assert "{" not in "".join(product(k).description + product(k).long_description for k in product_keys())


@pytest.mark.parametrize(
    ("key", "fit", "want"),
    [
        (
            "betas_typeD",
            "native",
            "sub-01/func/sub-01_task-a_space-T1w_stat-effect_desc-typeD_statmap.nii.gz",
        ),
        (
            "betas_typeB",
            "deprecated",
            "sub-01/func/sub-01_task-a_hemi-L_space-fsaverage_den-10k_stat-effect_desc-typeB_statmap.func.gii",
        ),
        (
            "ncsnr",
            "cifti",
            "sub-01/ses-02/func/sub-01_ses-02_task-a_space-fsLR_den-91k_stat-ncsnr_desc-typeD_statmap.dscalar.nii",
        ),
        ("trials", "session", "sub-01/ses-01/func/sub-01_ses-01_task-a_trials.tsv"),
        (
            "hrfindex",
            "resolution",
            "sub-01/func/sub-01_task-a_space-MNI152NLin2009cAsym_res-2_desc-hrfindex_dseg.nii.gz",
        ),
        (
            "glmdenoise",
            "custom",
            "sub-02/func/sub-02_task-a_run-1_space-SPMnormalized_desc-glmdenoise_timeseries.tsv",
        ),
        (
            "brainmask",
            "own surface",
            "sub-01/func/sub-01_task-a_hemi-L_space-fsnative_desc-brain_mask.label.gii",
        ),
        (
            "psn_model",
            "group of sessions",
            "sub-01/ses-01+02/func/sub-01_ses-01+02_task-a_acq-x_space-func_desc-psn_model.h5",
        ),
    ],
)
def test_names(key, fit, want):
    assert names_of(*FITS[fit], key)[0] == want


def test_names_are_unique_and_read_back():
    seen = {}
    for entities, kind, key in ALL:
        for name in names_of(entities, kind, key):
            shared = product(key).form == "table" and "space" in product(key).drop
            assert shared or name not in seen, (name, key, seen.get(name))
            seen[name] = key
            found = parse_name(name)
            assert found["suffix"] == product(key).suffix
            assert found.get("stat", "") == product(key).stat
            assert found.get("desc", "") == product(key).desc
            order = [e for e in found if e not in ("suffix", "extension")]
            table = ["sub", "ses", "task", "acq", "dir", "run", "hemi", "space", "res", "den", "stat", "desc"]
            assert order == sorted(order, key=table.index)
            assert re.fullmatch(
                r"(sub-\w+)(/ses-[\w+]+)?/func/\1(_[a-z]+-[A-Za-z0-9+]+)*_[a-z]+(\.\w+)+", name
            )


def test_pybids_reads_the_names(tmp_path):
    from bids import BIDSLayout

    write_json(
        tmp_path / "dataset_description.json",
        {
            "Name": "x",
            "BIDSVersion": "1.11.1",
            "DatasetType": "derivative",
            "GeneratedBy": [{"Name": "CONFORM"}],
        },
    )
    names = {name: key for entities, kind, key in ALL for name in names_of(entities, kind, key)}
    for name in names:
        write_text(tmp_path / name, "")
    config = ["bids", "derivatives", str(files("conform_app").joinpath("data/bids_config.json"))]
    layout = BIDSLayout(tmp_path, validate=False, is_derivative=True, config=config)
    long = {"sub": "subject", "ses": "session", "acq": "acquisition", "dir": "direction"}
    indexed = {f.relpath.replace("\\", "/"): f for f in layout.get()}
    for name in names:
        want = {long.get(entity, entity): value for entity, value in parse_name(name).items()}
        got = {entity: str(value) for entity, value in indexed[name].get_entities().items()}
        assert got.pop("datatype", "func") == "func"
        assert got == want
    effects = layout.get(stat="effect", desc="typeD", suffix="statmap", space="T1w")
    assert [f.filename for f in effects] == ["sub-01_task-a_space-T1w_stat-effect_desc-typeD_statmap.nii.gz"]
    # the patterns of the configuration build the same names
    built = layout.build_path(effects[0].get_entities(), validate=False, absolute_paths=False)
    assert built == effects[0].relpath


def test_labels_are_cleaned_and_entities_dropped():
    entities = {
        "subject": "sub-01",
        "task": "my_task-2",
        "space": "T1w",
        "run": "03",
        "ses": None,
        "part": "mag",
    }
    assert (
        build_name("mean", entities, "volume")
        == "sub-01/func/sub-01_task-mytask2_space-T1w_desc-mean_boldref.nii.gz"
    )
    assert "_run-03_" in build_name("design", entities)
    assert "/ses-4/" in build_name("design", entities, run="run-1", session="ses-4")
    with_den = build_name("mean", {"sub": "1", "space": "fsaverage6", "den": "41k"}, "gifti", hemi="R")
    assert "hemi-R_space-fsaverage_den-41k" in with_den


def test_types():
    assert build_name("betas", {"sub": "1"}, "volume", glm_type="b") == build_name(
        "betas_typeB", {"sub": "1"}, "volume"
    )
    assert "desc-typeB_" in build_name("ncsnr", {"sub": "1"}, "volume", glm_type="typeB")
    assert glm_type_label("typea") == "typeA"
    assert "z-score" in product("betas_typeD").long_description
    assert "z-score" not in product("betas_typeC").long_description
    for bad in ("E", "xD", ""):
        with pytest.raises(UsageError, match="GLM type"):
            product("betas", bad)


def test_misuse():
    with pytest.raises(UsageError, match="Unknown product 'beta'"):
        build_name("beta", {"sub": "1"}, "volume")
    with pytest.raises(UsageError, match="needs a GLM type"):
        build_name("betas", {"sub": "1"}, "volume")
    with pytest.raises(UsageError, match="needs a hemisphere"):
        build_name("mean", {"sub": "1"}, "gifti")
    with pytest.raises(UsageError, match="of kind None"):
        build_name("mean", {"sub": "1"})
    with pytest.raises(UsageError, match="needs a subject"):
        build_name("trials", {"task": "x"})


def test_sidecars_and_figures():
    assert sidecar_name("sub-1/func/a_statmap.dscalar.nii") == "sub-1/func/a_statmap.json"
    assert sidecar_name("a_mask.nii.gz") == "a_mask.json"
    figure = figure_name("rsquared", FITS["session"][0])
    assert figure == "sub-01/figures/sub-01_ses-01_task-a_space-boldref_desc-rsquared_bold.svg"


def test_every_desc_is_described():
    ids = [row[0] for row in descriptions()]
    assert len(set(ids)) == len(ids)
    assert all(text for _, text in descriptions())
    used = {product(key).desc for key in product_keys()} - {""}
    assert used == {i.removeprefix("desc-") for i in ids}


def test_ignored_folders_have_no_slash():
    assert not any(line.endswith("/") for line in bidsignore())
    assert len(set(bidsignore())) == len(bidsignore())


def validator():
    beside = Path(sys.executable).parent / "bids-validator-deno"
    return shutil.which("bids-validator-deno") or (str(beside) if beside.exists() else None)


def grids():
    header = nibabel.Nifti1Image(np.zeros((3, 4, 2)), np.eye(4)).header
    header.set_xyzt_units("mm", "sec")
    return {
        "volume": Grid("volume", (3, 4, 2), affine=np.eye(4), header=header),
        "gifti": Grid("gifti", (6, 7), structures=("CortexLeft", "CortexRight")),
        "cifti": Grid(
            "cifti", (9,), brain_models=BrainModelAxis.from_mask(np.ones(9, bool), name="CortexLeft")
        ),
    }


@pytest.mark.skipif(validator() is None, reason="bids-validator-deno is not installed")
def test_the_validator_accepts_everything(tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "derivatives/conform"
    write_json(raw / "dataset_description.json", {"Name": "raw", "BIDSVersion": "1.9.0", "License": "CC0"})
    inputs = {"raw": raw, "templateflow": "https://github.com/templateflow/templateflow"}
    write_dataset(out, version="0.1.0", configuration={"a": 1}, configuration_hash="ab12", inputs=inputs)
    for entities, kind in FITS.values():
        for key in product_keys():
            write_product(out, key, entities, kind, raw)
    for name in (figure_name("rsquared", FITS["session"][0]), "sub-01.html", "logs/CITATION.md"):
        write_text(out / name, "x")
    write_json(out / "sub-01/log/fits/x.json", {})
    done = subprocess.run([validator(), "--json", str(out)], capture_output=True, text=True, check=False)
    issues = json.loads(done.stdout)["issues"]["issues"]
    errors = [(i["code"], i.get("subCode"), i["location"]) for i in issues if i["severity"] == "error"]
    assert errors == []
    codes = {i["code"] for i in issues}
    assert codes <= {"SIDECAR_KEY_RECOMMENDED", "TOO_FEW_AUTHORS"}  # no GZIP_HEADER_*, nothing about links
    # what the table calls valid is judged: without our sidecars the validator complains about it
    for path in out.glob("sub-01/func/*_res-2_*_mask.json"):
        path.unlink()
    done = subprocess.run([validator(), "--json", str(out)], capture_output=True, text=True, check=False)
    found = {
        i.get("subCode") for i in json.loads(done.stdout)["issues"]["issues"] if i["severity"] == "error"
    }
    assert "Resolution" in found


def write_product(out, key, entities, kind, raw):
    item, grid = product(key), grids()[kind]
    names = names_of(entities, kind, key)
    if item.form in ("map", "label", "mask"):
        values = np.ones((grid.n_points, 3) if item.rows else grid.n_points)
        write_maps(grid, [out / n for n in names], values, intent=item.form)
    for name in names:
        if item.form in ("table", "lookup"):
            write_tsv(out / name, {column: [1, 2] for column in item.columns or ("index", "name")})
        elif item.form == "store":
            write_text(out / name, "x")
        source = raw / "sub-01/func/sub-01_task-a_bold.nii.gz"
        content = sidecar(key, entities, grid=grid, sources=[source], roots={"raw": raw}, fill=0.0,
                          configuration_hash="ab12", RepetitionTime=2.0)  # fmt: skip
        write_json(out / sidecar_name(name), content)
