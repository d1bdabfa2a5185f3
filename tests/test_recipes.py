# SPDX-License-Identifier: Apache-2.0
"""Each recipe on a BIDS skeleton with its dataset's own event columns, and recipes that are wrong."""

import re
from pathlib import Path

import pytest
from bids_skeleton import Skeleton, put

from conform_app.bids.inputs import find_fits
from conform_app.bids.trials import build_trials
from conform_app.cli.parser import parse
from conform_app.errors import UsageError
from conform_app.settings import Settings, find_recipe, recipe_names, with_recipe

CIFTI = "space-fsLR_den-91k_bold.dtseries.nii"


def tsv(*rows):
    return "\n".join("\t".join(map(str, row)) for row in rows) + "\n"


# Columns as the datasets have them (published event files, or the scripts that read them).
THINGS = tsv(
    (
        "onset",
        "duration",
        "trial_type",
        "category_nr",
        "exemplar_nr",
        "test_image_nr",
        "response_time",
        "file_path",
    ),
    (3.0, 0.5, "exp", 54, 6, "n/a", "n/a", "bird/bird_06s.jpg"),
    (25.5, 0.5, "catch", 721, 57, "n/a", 0.659, "catch057.jpg"),
    (43.5, 0.5, "test", 344, 13, 60.0, "n/a", "key/key_17s.jpg"),
    (255.0, 0.5, "test", 155, 13, 27.0, "n/a", "coat/coat_rack_13s.jpg"),
)
BOLD5000 = tsv(
    (
        "onset",
        "duration",
        "Subj",
        "Sess",
        "Run",
        "Trial",
        "ImgName",
        "ImgType",
        "Response",
        "RT",
        "stim_file",
    ),
    (6.03, 0.97, 1, 1, 9, 1, "n03255030_1114.JPEG", "imagenet", 1, 1.9, "n03255030_1114.JPEG"),
    (
        16.0,
        1.0,
        1,
        1,
        9,
        2,
        "COCO_train2014_000000084529.jpg",
        "coco",
        3,
        2.1,
        "COCO_train2014_000000084529.jpg",
    ),
    (26.0, 1.0, 1, 1, 9, 3, "boardwalk4.jpg", "rep_scenes", 2, 1.7, "boardwalk4.jpg"),
)
DEEPRECON = tsv(
    ("onset", "duration", "event_type", "stimulus_id", "response_time"),
    (0, 32, -1, "n/a", 0),
    (32, 8, 1, "3954393.010038", 0.0),
    (40, 8, 1, "2437971.005013", 0.0),
    (48, 8, 2, "2437971.005013", 49.04),
    (56, 8, 1, "1677366.018182", 0.0),
    (64, 6, -2, "n/a", 0),
)
LETTERS = tsv(
    ("onset", "duration", "event_type", "stimulus_id", "response_time"),
    (0, 32, -1, "n/a", 0),
    (32, 12, 1, 10, 0.0),
    (44, 12, -3, "n/a", 0),
    (56, 12, 2, 10, 57.2),
    (68, 12, -3, "n/a", 0),
    (80, 12, 1, 8, 0.0),
)
GOD_TRAIN = tsv(
    ("onset", "duration", "trial_no", "event_type", "stim_id", "category_index", "response_time"),
    (0, 33, 1, "rest", "n/a", "n/a", "n/a"),
    (33, 9, 2, "stimulus", "1518878.005958", 1, "n/a"),
    (42, 9, 3, "stimulus", "1518878.005958", 1, 43.1),
    (51, 9, 4, "stimulus", "3345837.012501", 2, "n/a"),
)
GOD_TEST = tsv(
    ("onset", "duration", "trial_no", "event_type", "stim_id", "category_index", "response_time"),
    (33, 9, 2, "stimulus", "3626115.019498", 35, "n/a"),
    (42, 9, 3, "stimulus", "2190790.015121", 11, "n/a"),
    (51, 9, 4, "stimulus", "3626115.019498", 35, "n/a"),
    (60, 9, 5, "stimulus", "2190790.015121", 11, "n/a"),
)
HAD = tsv(
    ("onset", "duration", "trial_type", "stim_file", "response", "response_time"),
    (0, 2, 1, "Archery/v_Archery_id_1.mp4", 1, 0.8),
    (4, 2, 2, "Ballet/v_Ballet_id_2.mp4", -1, 0.9),
)
NOD = tsv(
    ("onset", "duration", "trial_type", "stim_file", "response", "response_time"),
    (16, 1, "animate", "n01440764/n01440764_10026.JPEG", 1, 0.6),
    (20, 1, "n/a", "n/a", 0, 0),
    (24, 1, "inanimate", "n02979186/n02979186_100.JPEG", -1, 0.7),
)
COCO = tsv(
    ("onset", "duration", "condition"),
    (0, 0.5, "000000001111.jpg"),
    (3, 0.5, "n/a"),
    (6, 0.5, "000000002222.jpg"),
    (9, 0.5, "000000001111.jpg"),
)
NSD = tsv(
    ("onset", "duration", "trial_type", "73k_id"),
    (4, 3, "nsd", 46003),
    (8, 3, "nsd", 61883),
    (12, 3, "nsd", 46003),
)
SYNTHETIC = tsv(
    ("onset", "duration", "stim_idx", "trial_type"),
    (4, 2, 284, "synthetic"),
    (8, 2, 284, "synthetic"),
    (12, 2, 1, "synthetic"),
)
BMD_TEST = tsv(
    ("onset", "duration", "stim_file"), (4, 3, "test/1001.mp4"), (8, 3, "n/a"), (12, 3, "test/1002.mp4")
)
BMD_TRAIN = tsv(("onset", "duration", "stim_file"), (4, 3, "train/0001.mp4"), (8, 3, "train/0002.mp4"))

# recipe -> runs (session, task, run, events), then per fit: session label, names, split, onsets, duration
CASES = {
    "NSD": (
        [("nsd01", "nsdcore", "01", NSD), ("nsd02", "nsdcore", "01", NSD), ("nsd01", "rest", "01", None)],
        {
            "nsd01": (["46003", "61883", "46003"], ["n/a"] * 3, [4, 8, 12], 3),
            "nsd02": (["46003", "61883", "46003"], ["n/a"] * 3, [4, 8, 12], 3),
        },
    ),
    "NSDsynthetic": (
        [
            ("nsdsynthetic", "fixation", "01", SYNTHETIC),
            ("nsdsynthetic", "memory", "02", SYNTHETIC),
            ("nsd01", "nsdcore", "01", NSD),
        ],
        {"nsdsynthetic": (["284", "1"] * 2, ["artificial"] * 4, [4, 12] * 2, 2)},
    ),
    "BMD": (
        [("02", "test", "1", BMD_TEST), ("02", "train", "1", BMD_TRAIN), ("01", "localizer", "1", BMD_TEST)],
        {
            "02": (
                ["1001.mp4", "1002.mp4", "0001.mp4", "0002.mp4"],
                ["test"] * 2 + ["train"] * 2,
                [4, 12, 4, 8],
                3,
            ),
        },
    ),
    "BOLD5000": (
        [(f"{s:02d}", "5000scenes", "01", BOLD5000) for s in range(1, 16)],
        {
            f"{first:02d}+{first + 1:02d}+{first + 2:02d}+{first + 3:02d}+{first + 4:02d}": (
                ["n03255030_1114.JPEG", "000000084529.jpg", "boardwalk4.jpg"] * 5,
                ["train", "train", "test"] * 5,
                [6.03, 16, 26] * 5,
                1,
            )
            for first in (1, 6, 11)
        },
    ),
    "THINGS": (
        [(f"things{s:02d}", "things", "01", THINGS) for s in range(1, 13)],
        {
            "+".join(f"things{s:02d}" for s in sessions): (
                ["bird_06s.jpg", "key_17s.jpg", "coat_rack_13s.jpg"] * 6,
                ["train", "test", "test"] * 6,
                [3, 43.5, 255] * 6,
                0.5,
            )
            for sessions in (range(1, 7), range(7, 13))
        },
    ),
    "GOD": (
        [
            ("perceptionTest01", "perception", "01", GOD_TEST),
            ("perceptionTraining01", "perception", "01", GOD_TRAIN),
            ("imageryTest01", "imagery", "01", GOD_TEST),
        ],
        {
            None: (
                ["3626115.019498", "2190790.015121"] * 2 + ["1518878.005958", "3345837.012501"],
                ["test"] * 4 + ["train"] * 2,
                [33, 42, 51, 60, 33, 51],
                9,
            )
        },
    ),
    "Deeprecon": (
        [
            ("perceptionNaturalImageTest01", "perception", "01", DEEPRECON),
            *((f"perceptionNaturalImageTraining{n:02d}", "perception", "01", DEEPRECON) for n in (1, 2)),
            ("perceptionLetterImage01", "perception", "01", LETTERS),
            ("imagery01", "imagery", "01", DEEPRECON),
        ],
        {
            "naturalTest": (
                ["3954393.010038", "2437971.005013", "1677366.018182"], ["test"] * 3, [32, 40, 56], 8,
            ),
            "naturalTraining": (
                ["3954393.010038", "2437971.005013", "1677366.018182"] * 2,
                ["train"] * 6,
                [32, 40, 56] * 2,
                8,
            ),
            "letters": (["10", "8"], ["artificial"] * 2, [32, 80], 12),
        },
    ),
    "HAD": (
        [("action01", "action", "09", HAD), ("action01", "action", "10", HAD)],
        {
            "action01": (
                ["v_Archery_id_1.mp4", "v_Ballet_id_2.mp4"] * 2,
                ["train"] * 2 + ["test"] * 2,
                [12, 16, 12, 16],
                2,
            )
        },
    ),
    "NOD": (
        [("imagenet01", "imagenet", "01", NOD), ("coco", "coco", "01", COCO)],
        {None: (["n01440764_10026.JPEG", "n02979186_100.JPEG"], ["n/a"] * 2, [16, 24], 0.5)},
    ),
    "NODcoco": (
        [
            *((f"imagenet{n:02d}", "imagenet", "01", NOD) for n in (1, 5)),
            ("coco", "coco", "01", COCO),
        ],
        {
            None: (
                [
                    *("000000001111.jpg", "000000002222.jpg", "000000001111.jpg"),
                    *("n01440764_10026.JPEG", "n02979186_100.JPEG"),
                ],
                ["n/a"] * 5,
                [16, 22, 25, 16, 24],
                0.5,
            )
        },
    ),
}  # fmt: skip


def test_every_recipe_is_tested():
    assert set(CASES) == set(recipe_names())
    assert {"NSD", "NOD", "BMD", "BOLD5000", "HAD", "Deeprecon", "GOD", "THINGS"} <= set(recipe_names())


@pytest.mark.parametrize("name", sorted(CASES))
def test_recipe_reads_its_dataset(name, tmp_path):
    runs, expected = CASES[name]
    skeleton = Skeleton(tmp_path / "ds")
    for session, task, run, events in runs:
        skeleton.add(CIFTI, ses=session, task=task, run=run, events=events, sidecar=None)
        put(skeleton.raw / f"task-{task}_bold.json", {"RepetitionTime": 2.0})
    settings = parse([str(skeleton.raw), str(tmp_path / "out"), "participant", "--recipe", name.lower()])
    found = find_fits(
        bids_dir=skeleton.raw,
        tasks=settings.inputs.task_label,
        sessions=settings.inputs.session_label,
        fit_level=settings.model.fit_level,
        tasks_together=settings.model.fit_tasks == "together",
    )
    several = len({fit.task for fit in found}) > 1
    tables = {
        " ".join(filter(None, [fit.session_label, fit.task * several])) or None: build_trials(
            fit, settings.events
        )
        for fit in found
    }
    assert set(tables) == set(expected)
    for key, (names, split, onsets, duration) in expected.items():
        table = tables[key]
        assert list(table.stim_id) == names
        assert list(table.split) == split
        assert table.onset.tolist() == pytest.approx(onsets)
        assert set(table.duration) == {duration}


@pytest.mark.parametrize("name", recipe_names())
def test_recipe_names_its_study_and_is_documented(name):
    content = find_recipe(name)
    assert content["study"]["dataset_name"] == name
    assert content["study"]["visual_angle"] > 0
    assert f"`{name}`" in (Path(__file__).parents[1] / "docs" / "recipes.md").read_text()


def test_facts_of_the_eight_datasets():
    """GLM type, nuisance and visual angle as published."""
    facts = {name: find_recipe(name) for name in recipe_names()}
    assert {n for n, c in facts.items() if c["model"]["glm_types"] == ["B"]} == {"HAD", "NOD"}
    assert {n for n, c in facts.items() if c["model"]["confounds"] == ["motion6"]} == {"HAD", "NOD"}
    angles = {n: c["study"]["visual_angle"] for n, c in facts.items()}
    assert (angles["NSD"], angles["BOLD5000"], angles["THINGS"], angles["NOD"]) == (8.4, 4.6, 10, 16)


def test_recipe_lies_below_config_file_and_command_line(tmp_path):
    config = tmp_path / "my.toml"
    config.write_text("[events]\nstim_duration = 4.0\n[study]\nvisual_angle = 1.5\n")
    argv = [
        str(tmp_path),
        str(tmp_path / "out"),
        "participant",
        "--recipe",
        "HAD",
        "--config-file",
        str(config),
    ]
    settings = parse([*argv, "--stim-duration", "5"])
    assert (settings.events.stim_duration, settings.events.onset_shift) == (5.0, 12.0)
    assert (settings.study.visual_angle, settings.study.dataset_name) == (1.5, "HAD")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[events]\nstim_colum = 'a'\n", "unknown setting 'stim_colum'"),
        ("[run]\noverwrite = true\n", "unknown section [run]"),
        ("[inputs]\nparticipant_label = ['01']\n", "no part of a recipe"),
        ("[study]\ndataset_name = 'my study'\n", "letters and digits"),
        ("[events]\nonset_shift = 'late'\n", "onset_shift"),
        ("[events\n", "not valid TOML"),
    ],
)
def test_wrong_recipes_are_refused(tmp_path, text, words):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=re.escape(words)):
        with_recipe(Settings(tmp_path, tmp_path / "out"), str(path))


def test_unknown_recipe_lists_those_there_are(tmp_path):
    with pytest.raises(UsageError, match="BOLD5000"):
        with_recipe(Settings(tmp_path, tmp_path / "out"), "BOLD500")
