# SPDX-License-Identifier: Apache-2.0
"""A step whose process is killed is a step that failed; a run that is stopped leaves nothing behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_dataset import make_dataset

from conform_app.cli import main
from conform_app.interfaces.glm import GLMsingle

pytestmark = pytest.mark.end_to_end

SLOW = """
import sys, time
from conform_app.cli import main
from conform_app.interfaces.glm import GLMsingle

def work(self, plan, cwd):
    print("working", plan.subject, flush=True)
    time.sleep(300)

GLMsingle.work = work
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def data(tmp_path):
    return make_dataset(tmp_path / "data", subjects=("01", "02"), n_runs=2)


def words(data, tmp_path, nprocs):
    options = ["--skip-bids-validation", "--sloppy", "--psn", "off", "--nprocs", str(nprocs)]
    return [str(data), str(tmp_path / "out"), "participant", "-w", str(tmp_path / "work"), *options]


def states(out):
    found = {path.parts[-4]: json.loads(path.read_text()) for path in out.rglob("status.json")}
    return {name: status["state"] for name, status in found.items()}


def test_a_killed_process_fails_its_fit_alone(data, tmp_path, monkeypatch, capsys):
    whole = GLMsingle.work

    def work(self, plan, cwd):
        if plan.subject == "02":  # as the kernel does where memory runs out
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(self, plan, cwd)

    monkeypatch.setattr(GLMsingle, "work", work)
    started = time.monotonic()
    assert main(words(data, tmp_path, 2)) == 1
    assert time.monotonic() - started < 60
    last = capsys.readouterr().err.splitlines()[-1]
    assert "sub-02_task-x_space-T1w: Its process was killed (SIGKILL), most often because memory" in last
    assert states(tmp_path / "out") == {"sub-01": "complete", "sub-02": "failed"}
    monkeypatch.undo()
    assert main(words(data, tmp_path, 2)) == 0


@pytest.mark.parametrize(
    ("name", "nprocs"), [("SIGINT", 1), ("SIGINT", 2), ("SIGTERM", 2), ("SIGHUP", 1)], ids=str
)
def test_a_stopped_run_ends_at_once_and_leaves_no_process(data, tmp_path, name, nprocs):
    script = tmp_path / "slow.py"
    script.write_text(SLOW)
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    run = subprocess.Popen(
        [sys.executable, str(script), *words(data, tmp_path, nprocs)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        # who runs the tests may ignore it (nohup, a background job), and what is ignored stays so
        preexec_fn=lambda: signal.signal(getattr(signal, name), signal.SIG_DFL),
    )
    try:
        for _ in range(nprocs):
            assert run.stdout.readline().startswith("working")
        run.send_signal(getattr(signal, name))
        out, err = run.communicate(timeout=60)
        assert run.returncode == 75
        assert "working" not in out  # no other fit was begun
        assert err.splitlines()[-1] == "conform: interrupted; finished fits are kept (exit code 75)"
        assert "Traceback" not in err
        with pytest.raises(ProcessLookupError):
            os.killpg(run.pid, 0)
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
    assert states(tmp_path / "out") == {"sub-01": "interrupted", "sub-02": "interrupted"}
    # nobody holds the lock any more
    assert main(words(data, tmp_path, 2)) == 0


def test_the_state_of_a_stopped_run_is_written_before_its_reports(data, tmp_path, monkeypatch):
    from conform_app.cli import run as cli

    seen = []

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "execute", stop)
    monkeypatch.setattr(cli, "report", lambda session, subjects: seen.append(states(tmp_path / "out")))
    assert main(words(data, tmp_path, 1)) == 75
    assert seen == [{"sub-01": "interrupted", "sub-02": "interrupted"}]


def test_finished_steps_are_taken_from_the_work_folder_but_not_those_of_another_version(
    data, tmp_path, monkeypatch
):
    from conform_app.cli import run as cli

    whole, done = GLMsingle.work, []

    def work(self, plan, cwd):
        done.append(plan.subject)
        return whole(self, plan, cwd)

    monkeypatch.setattr(GLMsingle, "work", work)
    for version, n_done, more in (
        ("1.0", 1, ()),
        ("1.0", 1, ()),
        ("1.1", 2, ()),
        ("1.1", 3, ("--overwrite",)),
    ):
        monkeypatch.setattr(cli, "__version__", version)
        for record in (tmp_path / "out").rglob("log/fits/*.json"):
            record.unlink()  # as if the run had been cut off before its files were written
        assert main([*words(data, tmp_path, 1), "--participant-label", "01", *more]) == 0
        assert len(done) == n_done
    # the temporary folder was cleared of old files
    for arrays in (tmp_path / "work").rglob("glmsingle.h5"):
        arrays.unlink()
    next((tmp_path / "out").rglob("log/fits/*.json")).unlink()
    assert main([*words(data, tmp_path, 1), "--participant-label", "01"]) == 0
    assert len(done) == 4
