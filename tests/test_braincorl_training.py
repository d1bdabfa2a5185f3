# SPDX-License-Identifier: Apache-2.0
"""Meta-training: it learns, repeats itself to the bit, goes on after a kill, and spreads over processes."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from conform_app.braincorl import (
    ModelSizes,
    Stage,
    TrainSettings,
    fit_prior,
    leave_one_out,
    load_model,
    train,
    training_bar,
    unit_norm,
)
from conform_app.braincorl.participants import as_participants
from conform_app.braincorl.sampling import RealVoxels, SyntheticVoxels
from conform_app.errors import CannotCreateError, DataError, UsageError

ROOT = Path(__file__).resolve().parents[1]
SIZES = ModelSizes(8, 16, 2, 16, 2, 2)
SHORT = TrainSettings(
    stages=(
        Stage(True, (20, 20), 15, 16, 6, 2, lr=2e-3),
        Stage(True, (8, 30), 15, 16, 6, 2, lr=2e-3),
        Stage(False, (8, 30), 15, 16, 6, 2, lr=1e-3, dropout=0.1),
    ),
    warmup=4,
    validation_batches=2,
)


def participants(n_voxels: int = 120) -> dict:
    rng = np.random.default_rng(0)
    loadings = rng.normal(size=(3, 8))
    out = {}
    for name in ("sub-01", "sub-02"):
        features = unit_norm(rng.normal(size=(80, 8)))
        signal = rng.normal(size=(n_voxels, 3)) @ loadings @ features.T
        signal /= signal.std(axis=1, keepdims=True)
        out[name] = features, (0.8 * signal + 0.6 * rng.normal(size=signal.shape)).astype(np.float32)
    return out


def state_bytes(model) -> bytes:
    return b"".join(v.numpy().tobytes() for _, v in sorted(model.state_dict().items()))


@pytest.fixture(scope="module")
def short_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("short")
    return train(participants(), SIZES, folder, settings=SHORT), folder


def test_two_runs_are_the_same_to_the_bit(short_run, tmp_path: Path) -> None:
    again = train(participants(), SIZES, tmp_path, settings=SHORT)
    assert state_bytes(again.model) == state_bytes(short_run[0].model)
    assert again.history == short_run[0].history


def test_a_killed_run_goes_on_to_the_same_numbers(short_run, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    for epoch in (1, 3, 5):  # within stages and at their borders
        folder = tmp_path / str(epoch)
        seen = []

        def kill(row, seen=seen, epoch=epoch):
            seen.append(row)
            if len(seen) == epoch:
                raise Killed

        with pytest.raises(Killed):
            train(participants(), SIZES, folder, settings=SHORT, progress=kill)
        resumed = train(participants(), SIZES, folder, settings=SHORT)
        assert resumed.history == short_run[0].history
        assert state_bytes(resumed.model) == state_bytes(short_run[0].model)


def test_the_checkpoint_says_what_it_was_trained_on(short_run) -> None:
    trained, folder = short_run
    model = load_model(folder / "best.safetensors")
    assert model.sizes == SIZES
    assert model.card["participants"] == ["sub-01", "sub-02"]
    assert model.card["metrics"]["stage"] == 3
    assert model.card["settings"]["stages"][2]["dropout"] == 0.1
    assert len(model.card["data_digest"]) == 64
    assert 0.9 < model.card["beta_sd"] < 1.1
    assert [row["stage"] for row in trained.history] == [1, 1, 2, 2, 3, 3]


def test_other_data_or_settings_do_not_go_on_in_the_same_folder(short_run) -> None:
    _, folder = short_run
    with pytest.raises(CannotCreateError, match="another folder"):
        train(participants(), SIZES, folder, settings=replace(SHORT, seed=1))
    with pytest.raises(CannotCreateError, match="another folder"):
        train(participants(121), SIZES, folder, settings=SHORT)


def test_the_bar_says_where_the_training_is() -> None:
    stream = io.StringIO()
    show = training_bar(SHORT, stream)
    for stage in (1, 2, 3):
        show({"stage": stage, "epoch": 2, "loss": 0.5, "validation_loss": 0.25})
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith(
        "[########................] stage 1/3, epoch 2/2: loss 0.5000, held out 0.2500"
    )
    assert lines[2].startswith("[########################] stage 3/3, epoch 2/2")
    assert "min left" not in lines[0]
    assert lines[1].endswith("0 min left")

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    show = training_bar(SHORT, terminal)
    for epoch in (1, 2):
        show({"stage": 3, "epoch": epoch, "loss": 0.5, "validation_loss": 0.25})
    assert terminal.getvalue().count("\r") == 2
    assert terminal.getvalue().count("\n") == 1


@pytest.mark.slow
def test_it_learns_to_regress_in_context(tmp_path: Path) -> None:
    """Held-out voxels: far better than their mean, after a minute of training."""
    settings = TrainSettings(
        stages=(
            Stage(True, (20, 60), 15, 32, 60, 3, lr=3e-3),
            Stage(False, (20, 60), 15, 32, 60, 3, lr=2e-3),
        ),
        warmup=20,
    )
    trained = train(participants(300), SIZES, tmp_path, settings=settings)
    assert trained.history[-1]["validation_r"] > 0.5
    assert trained.history[-1]["validation_loss"] < 0.8


def test_training_stops_early(tmp_path: Path) -> None:
    stage = Stage(False, (8, 30), 15, 16, 1, 50, lr=1e-9, patience=2)
    trained = train(participants(), SIZES, tmp_path, settings=TrainSettings(stages=(stage,)))
    assert len(trained.history) < 50


def test_two_processes_train_as_one(short_run, tmp_path: Path) -> None:
    """torchrun with two CPU processes: same batches, so the same network but for rounding."""
    settings = replace(SHORT, stages=tuple(replace(s, dropout=0.0) for s in SHORT.stages))
    one = train(participants(), SIZES, tmp_path / "one", settings=settings)
    script = tmp_path / "run.py"
    script.write_text(
        "import sys\n"
        f"sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]\n"
        "from dataclasses import replace\n"
        "from test_braincorl_training import SHORT, SIZES, participants\n"
        "from conform_app.braincorl import train\n"
        "settings = replace(SHORT, stages=tuple(replace(s, dropout=0.0) for s in SHORT.stages))\n"
        f"train(participants(), SIZES, {str(tmp_path / 'two')!r}, settings=settings)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    two = load_model(tmp_path / "two" / "best.safetensors")
    for (key, a), b in zip(one.model.state_dict().items(), two.state_dict().values(), strict=True):
        if "in_proj_bias" not in key:  # the keys' bias has no gradient but rounding
            torch.testing.assert_close(a, b, atol=2e-3, rtol=1e-2)
    assert two.card["metrics"]["validation_loss"] == pytest.approx(
        one.card["metrics"]["validation_loss"], rel=1e-3
    )


def test_leave_one_out_gives_everyone_once() -> None:
    seen = {name: [p.name for p in others] for name, others, _ in leave_one_out(participants())}
    assert seen == {"sub-01": ["sub-02"], "sub-02": ["sub-01"]}
    with pytest.raises(DataError, match="one participant"):
        list(leave_one_out({"sub-01": participants()["sub-01"]}))


class OnDisk:
    """An array that is read when sliced, and wants its rows in order, as HDF5 does."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.shape, self.most = array, array.shape, 0

    def __getitem__(self, rows):
        if isinstance(rows, np.ndarray):
            assert (np.diff(rows) >= 0).all()
            self.most = max(self.most, len(rows))
        return self.array[rows]


def test_betas_may_stay_on_disk() -> None:
    data = participants()
    plain = as_participants(data)
    lazy_arrays = {name: OnDisk(betas) for name, (_, betas) in data.items()}
    lazy = as_participants({name: (data[name][0], lazy_arrays[name]) for name in data})
    voxels = [np.arange(50), np.arange(60)]
    a, b = (RealVoxels(p, voxels).draw(np.random.default_rng(1), 16, 10, 5) for p in (plain, lazy))
    np.testing.assert_array_equal(a.query_betas, b.query_betas)
    np.testing.assert_array_equal(a.context_features, b.context_features)
    assert max(array.most for array in lazy_arrays.values()) <= 16


def test_context_and_queries_of_a_batch_share_no_image() -> None:
    people = as_participants(participants())
    batch = RealVoxels(people, [np.arange(50)] * 2).draw(np.random.default_rng(0), 32, 30, 40)
    for context, query in zip(batch.context_features, batch.query_features, strict=True):
        assert not {row.tobytes() for row in context} & {row.tobytes() for row in query}


def test_query_betas_of_synthetic_voxels_have_no_noise_and_contexts_have() -> None:
    people = as_participants(participants())
    batch = SyntheticVoxels(people, fit_prior(people, n_components=1)).draw(
        np.random.default_rng(0), 8, 30, 40
    )
    for x, y, noisy in (
        (batch.query_features, batch.query_betas, False),
        (batch.context_features, batch.context_betas, True),
    ):
        for features, betas in zip(x, y, strict=True):
            design = np.column_stack([features, np.ones(len(features))]).astype(np.float64)
            left = betas - design @ np.linalg.lstsq(design, betas, rcond=None)[0]
            assert (left.std() > 0.1) == noisy


def test_bad_training_input_has_its_errors(tmp_path: Path) -> None:
    data = participants()
    with pytest.raises(DataError, match="model reads 9"):
        train(data, ModelSizes(9, 16, 1, 16, 2, 2), tmp_path, settings=SHORT)
    too_many = TrainSettings(stages=(Stage(False, (60, 60), 30, 16, 1, 1),))
    with pytest.raises(DataError, match="90 images"):
        train(data, SIZES, tmp_path, settings=too_many)
    with pytest.raises(UsageError, match="no model preset"):
        train(data, "HUGE", tmp_path, settings=SHORT)
