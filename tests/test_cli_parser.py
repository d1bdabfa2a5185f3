# SPDX-License-Identifier: Apache-2.0
"""The command line: layers of settings, labels, mistakes and their exit codes, and what --help costs."""

import subprocess
import sys

import pytest

from conform_app.cli import main
from conform_app.cli.parser import parse
from conform_app.errors import UnknownLevelError, UsageError

CALL = ["/data", "/out", "participant"]


def test_defaults_come_from_the_dataclasses():
    settings = parse(CALL)
    assert settings.model.glm_types == ("D",)
    assert settings.inputs.participant_label == ()
    assert str(settings.bids_dir) == "/data"


@pytest.mark.parametrize("flag", ["--participant-label", "--participant_label", "--subject-label"])
def test_labels_with_or_without_prefix(flag):
    assert parse([*CALL, flag, "01", "sub-02", "01"]).inputs.participant_label == ("01", "02")


def test_labels_from_a_text_file(tmp_path):
    path = tmp_path / "subjects.txt"
    path.write_text("sub-01\n\n# left out: 02\n03\n", encoding="utf-8")
    assert parse([*CALL, "--participant-label", str(path)]).inputs.participant_label == ("01", "03")


@pytest.mark.parametrize("flag", ["-t", "--task-id", "--task-label"])
def test_task_flags(flag):
    assert parse([*CALL, flag, "task-a", "b"]).inputs.task_label == ("a", "b")


def test_command_line_goes_over_toml_and_toml_over_defaults(tmp_path):
    config = tmp_path / "c.toml"
    config.write_text(
        '[model]\npsn = "off"\nn_pcs = 4\n[inputs]\nparticipant_label = ["sub-07"]\n', encoding="utf-8"
    )
    settings = parse([*CALL, "--config-file", str(config), "--n-pcs", "6"])
    assert (settings.model.psn, settings.model.n_pcs) == ("off", 6)
    assert settings.inputs.participant_label == ("07",)


def test_derivatives_keep_order_and_names(tmp_path):
    first, second = tmp_path / "with blank", tmp_path / "b"
    first.mkdir(), second.mkdir()
    settings = parse([*CALL, "-d", f"z={first}", "-d", str(second)])
    assert settings.inputs.derivatives == (("z", str(first)), ("b", str(second)))


def test_files_are_named_from_the_folder_of_the_call(tmp_path, monkeypatch):
    # A node of the workflow works in a folder of its own: what the user wrote means another file there.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b").mkdir()
    config = '[inputs]\nderivatives = {a = "b"}\n[group]\naliases = "names.tsv"\n[encode]\n'
    (tmp_path / "c.toml").write_text(config + 'encode_regions = ["l.gii", "r.gii"]\n', encoding="utf-8")
    words = ["--config-file", "c.toml", "--features", "f.npz", "--encode-model", "m.pth", "--split", "s.tsv"]
    settings = parse([*CALL, *words])
    assert settings.inputs.derivatives == (("a", str(tmp_path / "b")),)
    assert settings.group.aliases == str(tmp_path / "names.tsv")
    assert settings.encode.encode_regions == (str(tmp_path / "l.gii"), str(tmp_path / "r.gii"))
    assert settings.group.features == str(tmp_path / "f.npz")
    assert settings.encode.encode_model == str(tmp_path / "m.pth")
    assert settings.group.split == str(tmp_path / "s.tsv")
    assert parse([*CALL, "--split", "auto"]).group.split == "auto"


def test_two_derivatives_of_one_name_are_refused(tmp_path):
    with pytest.raises(UsageError, match="two folders are named 'x'"):
        parse([*CALL, "-d", f"x={tmp_path}", f"x={tmp_path}"])
    with pytest.raises(UsageError, match="not a folder"):
        parse([*CALL, "-d", "x=/nowhere"])


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["/data", "/out", "dataset"], 17),
        (["/data", "/out"], 64),
        ([*CALL, "--no-such-flag"], 64),
        ([*CALL, "--n-pcs", "x"], 64),
        ([*CALL, "--psn", "x"], 64),
        ([*CALL, "--mem", "x"], 64),
    ],
)
def test_mistakes_end_with_their_code_on_one_line(argv, code, capsys):
    assert main(argv) == code
    said = capsys.readouterr().err.strip()
    assert "\n" not in said
    assert said.endswith(f"(exit code {code})")


def test_choices_are_named_as_they_must_be_given():
    with pytest.raises(
        UsageError, match=r"^Argument --glm-types: invalid choice: 'd' .*A.*B.*C.*D"
    ) as caught:
        parse([*CALL, "--glm-types", "d"])
    assert "'a'" not in str(caught.value)
    with pytest.raises(UsageError, match="--no-Such-Flag"):
        parse([*CALL, "--no-Such-Flag"])


def test_unknown_level_is_its_own_error():
    with pytest.raises(UnknownLevelError, match="dataset"):
        parse(["/data", "/out", "dataset"])


def test_help_and_version_import_nothing_heavy():
    code = (
        "import sys\nfrom conform_app.cli import main\n"
        "try: main([sys.argv[1]])\nexcept SystemExit as e: assert e.code == 0\n"
        "heavy = {'torch','nipype','bids','nilearn','pandas','scipy','numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    for flag in ("--help", "--version"):
        done = subprocess.run([sys.executable, "-c", code, flag], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "conform" in done.stdout.lower()
