# SPDX-License-Identifier: Apache-2.0
"""What a dry run prints: a line a fit, no two of them alike."""

import pytest
from small_dataset import make_dataset

from conform_app.cli import main


def listed(root, capsys, *options):
    call = [
        str(root),
        str(root.parent / "out"),
        "participant",
        "--dry-run",
        "--skip-bids-validation",
        *options,
    ]
    assert main(call) == 0
    lines = capsys.readouterr().out.splitlines()
    return [line.split("  ") for line in lines[1 : next(n for n, x in enumerate(lines) if "memory is" in x)]]


def test_acquisitions_are_told_apart(tmp_path, capsys):
    root = make_dataset(tmp_path / "data", n_runs=2, sessions=("01", "02"))
    for path in [p for p in root.rglob("*ses-02*") if p.is_file()]:
        path.rename(path.with_name(path.name.replace("task-x", "task-x_acq-mb4")))
    rows = listed(root, capsys, "--fit-level", "subject")
    assert {tuple(filter(None, row))[2].strip() for row in rows} == {"x", "x acq-mb4"}


@pytest.mark.parametrize(("n", "cell"), [(3, "01,02,03"), (9, "9 (01 to 09)")])
def test_many_sessions_do_not_fill_the_line(tmp_path, capsys, n, cell):
    root = make_dataset(tmp_path / "data", n_runs=1, sessions=tuple(f"{k:02d}" for k in range(1, n + 1)))
    (row,) = listed(root, capsys, "--fit-level", "subject")
    assert tuple(filter(None, row))[1].strip() == cell
