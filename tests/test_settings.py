# SPDX-License-Identifier: Apache-2.0
"""Settings: one source for command line and TOML, checked, hashed by what changes results."""

from dataclasses import fields, replace
from pathlib import Path

import pytest

from conform_app.errors import ConformError, UsageError, all_errors
from conform_app.settings import (
    GROUPS,
    ModelSettings,
    RunSettings,
    Settings,
    from_toml,
    merged,
    parse_memory,
    to_toml,
)


@pytest.fixture
def base():
    return Settings(bids_dir=Path("/a"), output_dir=Path("/b"))


def test_every_setting_says_what_it_is_for_and_names_are_unique():
    names = [spec.name for cls in GROUPS.values() for spec in fields(cls)]
    assert len(names) == len(set(names))
    for cls in GROUPS.values():
        for spec in fields(cls):
            assert spec.metadata["text"], spec.name


def test_toml_round_trip_keeps_every_value(base, tmp_path):
    changed = merged(
        base,
        {
            "inputs": {"participant_label": ["01", "02"], "derivatives": {"fmriprep": "/x y", "raw": "/z"}},
            "events": {"ignore_trials": "trial_type == 'blank'", "stim_duration": 2},
            "model": {"fracs": [0.5, 1], "psn": "wiener"},
            "resources": {"mem": "8G"},
        },
        "test",
    )
    path = tmp_path / "conform.toml"
    path.write_text(to_toml(changed), encoding="utf-8")
    assert from_toml(path, base) == changed


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"models": {}}, "unknown section"),
        ({"model": {"glm_type": ["B"]}}, "unknown setting 'glm_type'"),
        ({"model": {"glm_types": ["E"]}}, "none of A, B, C, D"),
        ({"model": {"n_pcs": "many"}}, "not of the kind 'int'"),
        ({"model": {"n_pcs": True}}, "not of the kind 'int'"),
        ({"model": 3}, "not a section"),
    ],
)
def test_wrong_settings_are_named(base, changes, said):
    with pytest.raises(UsageError, match=said):
        merged(base, changes, "file.toml")


def test_broken_toml_is_a_usage_error_that_names_the_file(base, tmp_path):
    path = tmp_path / "c.toml"
    path.write_text("[model\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"c\.toml"):
        from_toml(path, base)
    with pytest.raises(UsageError, match=r"absent\.toml"):
        from_toml(tmp_path / "absent.toml", base)


def test_digest_follows_what_changes_results_and_nothing_else(base):
    def digest(**groups):
        return replace(base, **groups).digest()

    assert digest(model=ModelSettings(psn="wiener")) != base.digest()
    assert digest(model=ModelSettings(glm_types=("B", "D"))) == base.digest()
    assert digest(run=RunSettings(verbose=2, overwrite=True)) == base.digest()
    assert replace(base, output_dir=Path("/elsewhere")).digest() == base.digest()


@pytest.mark.parametrize(
    ("text", "size"),
    [("8G", 8 << 30), ("1.5g", 3 << 29), ("500M", 500 << 20), ("16000", 16000 << 20), ("2TiB", 2 << 40)],
)
def test_memory_with_units(text, size):
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1G", "much"])
def test_memory_that_is_none(text):
    with pytest.raises(UsageError, match="--mem"):
        parse_memory(text)


def test_errors_have_codes_below_128_and_never_2():
    codes = [cls.exit_code for cls in all_errors()]
    assert set(codes) == {1, 16, 17, 18, 64, 65, 66, 73, 74, 75, 127}
    error = ConformError("one\n two", "Do this.")
    assert str(error) == "one two Do this."


def test_the_docs_pages_are_made_from_the_code():
    from conform_app.cli.document import PAGES

    for name, page in PAGES.items():
        written = (Path(__file__).parents[1] / "docs" / name).read_text(encoding="utf-8")
        assert written == page(), f"run: python -m conform_app.cli.document docs ({name})"
