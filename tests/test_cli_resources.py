# SPDX-License-Identifier: Apache-2.0
"""Resources: CPUs and memory of the process, folders that can be written."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from conform_app.cli import resources
from conform_app.errors import CannotCreateError, UsageError
from conform_app.settings import ResourceSettings

REPO = Path(__file__).parents[1]


def test_one_fit_gets_all_threads_and_many_fits_share_them(monkeypatch):
    monkeypatch.setattr(resources, "available_cpus", lambda: 8)
    one = resources.resolve_resources(ResourceSettings(), 1)
    assert (one.nprocs, one.n_threads) == (1, 8)
    many = resources.resolve_resources(ResourceSettings(), 20)
    assert (many.nprocs, many.n_threads) == (8, 1)
    some = resources.resolve_resources(ResourceSettings(nprocs=6), 3)
    assert (some.nprocs, some.n_threads) == (3, 2)
    given = resources.resolve_resources(ResourceSettings(nprocs=2, omp_nthreads=3, mem=1 << 30), 5)
    assert (given.nprocs, given.n_threads, given.memory) == (2, 3, 1 << 30)


def test_fits_at_once_share_a_gpu(monkeypatch):
    monkeypatch.setattr(resources, "available_cpus", lambda: 8)
    for free, at_once in ((24 << 30, 6), (80 << 30, 8), (2 << 30, 1)):
        found = resources.resolve_resources(ResourceSettings(), 20, free)
        assert (found.nprocs, found.n_threads) == (at_once, 8 // at_once)
    assert resources.resolve_resources(ResourceSettings(nprocs=8), 20, 2 << 30).nprocs == 8


@pytest.mark.parametrize("name", ["nprocs", "omp_nthreads"])
def test_less_than_one_is_refused(name):
    with pytest.raises(UsageError, match="Give 1 or more"):
        resources.resolve_resources(ResourceSettings(**{name: 0}), 1)


def test_limits_of_the_control_group_count(monkeypatch, tmp_path):
    monkeypatch.setattr(resources, "CGROUP", tmp_path)
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    (tmp_path / "memory.max").write_text(f"{3 << 30}\n")
    (tmp_path / "memory.current").write_text(f"{1 << 30}\n")
    assert resources.available_cpus() == 1
    assert resources.available_memory() <= 2 << 30
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert resources.available_cpus() == len(os.sched_getaffinity(0))


def test_home_that_cannot_be_written_is_replaced_and_templates_in_it_are_kept(tmp_path):
    home = tmp_path / "home"
    (home / ".cache" / "templateflow").mkdir(parents=True)
    code = (
        "import os\nfrom unittest import mock\nfrom conform_app.cli.resources import prepare_environment\n"
        "with mock.patch('os.access', return_value=False): prepare_environment()\n"
        "print(os.environ['TEMPLATEFLOW_HOME'], os.environ['NIPYPE_CONFIG_DIR'], os.environ['HOME'])"
    )
    env = {"HOME": str(home), "PYTHONPATH": str(REPO), "PATH": os.environ["PATH"], "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    templates, nipype, new_home = done.stdout.split()
    assert templates == str(home / ".cache" / "templateflow")
    assert nipype.startswith(str(tmp_path))
    assert new_home != str(home)


def test_no_temporary_folder_is_an_error_with_a_remedy(monkeypatch):
    def nowhere():
        raise FileNotFoundError("no usable temporary directory")

    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    with pytest.raises(CannotCreateError, match="TMPDIR"):
        resources.default_work_dir(Path("/out"))
