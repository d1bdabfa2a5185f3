# SPDX-License-Identifier: Apache-2.0
"""Names of devices: the same ones in every room, and one line where there is no such device."""

import json
import os
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from simulated_gpu import MEMORY, simulated_gpu
from small_dataset import make_dataset

from conform_app import devices
from conform_app.braincorl import BraInCoRL, ModelSizes, TrainSettings, load_model, open_extractor, train
from conform_app.cli import main
from conform_app.cli.resources import resolve_device
from conform_app.devices import CudaState, ask_cuda, in_bfloat16, torch_device
from conform_app.errors import RunFailed, UsageError
from conform_app.glmsingle import fit_glmsingle
from conform_app.interfaces.reliability import Reliability
from conform_app.mosaic.similarity import nearest
from conform_app.psn import fit_gsn, fit_psn
from conform_app.psn.dense import CPU, dense_on
from conform_app.surface.linear import LinearMap

SIZES = ModelSizes(8, 16, 2, 16, 2, 2)


def glm(device):
    design = np.zeros((40, 2))
    design[[3, 20], 0] = design[[11, 30], 1] = 1
    data = np.random.default_rng(0).normal(100, 1, (5, 40))
    return fit_glmsingle([data, data[::-1]], [design, design], 1.0, 2.0, device=device)


def linear(device):
    from scipy import sparse

    carry = LinearMap(sparse.csr_matrix(np.eye(3)))
    return carry(lambda used, start, stop: np.ones((3, 1)), 1, fill=0, device=device, dtype=np.float32)


def training(device):
    rng = np.random.default_rng(0)
    people = {"a": (rng.normal(size=(60, 8)), rng.normal(size=(9, 60)).astype(np.float32))}
    return train(people, SIZES, "never-made", settings=TrainSettings(stages=()), device=device)


RESPONSES = np.random.default_rng(0).normal(size=(5, 12, 3))
ROOMS = {
    "glmsingle": glm,
    "psn": lambda device: fit_psn(RESPONSES, device=device),
    "gsn": lambda device: fit_gsn(RESPONSES, device=device),
    "surface": linear,
    "mosaic": lambda device: nearest(np.eye(3), np.eye(3), device=device),
    "load_model": lambda device: load_model(BraInCoRL(SIZES).state_dict(), SIZES, device=device),
    "train": training,
    "features": lambda device: open_extractor("timm:resnet18", device=device),
}


@pytest.mark.parametrize("room", ROOMS)
def test_without_a_gpu_every_room_says_the_same(room, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError) as caught:
        ROOMS[room]("cuda")
    assert caught.value.message == "No CUDA device is available."
    assert "cpu" in caught.value.remedy


@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize("name", ["gpu", "mps", "cuda:x", ""])
def test_unknown_names(room, name):
    with pytest.raises(UsageError, match=r"device = .* is not known") as caught:
        ROOMS[room](name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("room", ["glmsingle", "psn", "surface", "mosaic", "load_model"])
def test_auto_without_a_gpu_is_the_cpu(room, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    ROOMS[room]("auto")


def test_names():
    with simulated_gpu():
        assert torch_device("auto") == torch_device("cuda") == torch.device("cuda")
        assert torch_device("cuda:0") == torch_device(torch.device("cuda", 0)) == torch.device("cuda", 0)
        assert torch_device("cpu") == torch.device("cpu")
        assert dense_on("auto").place == torch.device("cuda")
        assert dense_on("cpu") is CPU
        with pytest.raises(UsageError, match="There is no cuda:1"):
            torch_device("cuda:1")


def test_bfloat16_where_a_gpu_multiplies_in_it():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    with simulated_gpu(), pytest.MonkeyPatch.context() as patch:
        for capability, pays in (((7, 5), False), ((8, 0), True), ((12, 0), True)):
            patch.setattr(torch.cuda, "get_device_capability", lambda place, found=capability: found)
            assert in_bfloat16("auto", cuda) == pays
            assert in_bfloat16("bfloat16", cuda)
            assert not in_bfloat16("float32", cuda)
        patch.setattr(torch.cuda, "get_device_capability", lambda place: (6, 1))
        patch.setattr(torch.version, "hip", "6.0")
        assert in_bfloat16("auto", cuda)
    assert in_bfloat16("bfloat16", cpu)
    assert not in_bfloat16("auto", cpu)


def test_asking_leaves_the_process_free_to_fork():
    with simulated_gpu() as state:
        assert resolve_device("auto") == resolve_device("cuda") == ("cuda", MEMORY)
        assert state.asked_in is None
        assert resolve_device("cpu") == ("cpu", None)


def test_a_process_that_has_asked_before_is_asked_again():
    with simulated_gpu():
        assert torch.cuda.is_available()
        assert ask_cuda() == CudaState(None, MEMORY)


@pytest.mark.parametrize("fault", ["none", "kernel", "crash"])
def test_a_gpu_that_does_not_work(fault):
    """No device, one that this build has no kernels for, one whose driver ends the process."""

    def ones(*args, **kwargs):
        if fault == "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        raise RuntimeError("CUDA error: no kernel image is available for execution\nfurther lines")

    with simulated_gpu(), pytest.MonkeyPatch.context() as patch:
        if fault == "none":
            patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.setattr(torch, "ones", ones)
        said = {"none": "finds none", "kernel": "no kernel image", "crash": "sudden end"}[fault]
        assert resolve_device("auto") == ("cpu", None)
        with pytest.raises(UsageError, match=f"no CUDA device is available .*{said}") as caught:
            resolve_device("cuda")
        assert "further" not in str(caught.value)


@pytest.mark.parametrize("level", ["participant", "group"])
def test_the_command_line_says_it_before_it_writes(tmp_path, monkeypatch, capsys, level):
    monkeypatch.setattr(devices, "ask_cuda", lambda: CudaState("PyTorch finds none"))
    root = make_dataset(tmp_path / "ds", n_runs=2)
    argv = [root, tmp_path / "out", level, "--skip-bids-validation", "--device", "cuda"]
    if level == "group":
        features = tmp_path / "features.npz"
        features.touch()
        argv += ["--encode", "stacked", "--features", features]
    assert main(list(map(str, argv))) == UsageError.exit_code == 64
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("conform: error: --device cuda: no CUDA device is available")
    assert not (tmp_path / "out").exists()


def test_a_gpu_without_memory_left_is_said_plainly(tmp_path, monkeypatch):
    def work(self, plan, cwd):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(
        "conform_app.interfaces.base.read_plan", lambda path: SimpleNamespace(name="fit", subject="01")
    )
    monkeypatch.setattr(Reliability, "work", work)
    plan = tmp_path / "plan.json"
    plan.write_text("{}")
    (tmp_path / "glm.h5").write_text("")
    step = Reliability(plan_file=str(plan), glm_file=str(tmp_path / "glm.h5"), log_dir=str(tmp_path / "log"))
    with pytest.raises(RunFailed):
        step.run(cwd=str(tmp_path))
    note = json.loads((tmp_path / "log" / "error-fit.json").read_text())
    assert note["message"] == "The GPU has no memory left."
    assert "--nprocs" in note["remedy"]


@pytest.mark.parametrize(("device", "backend"), [("cpu", "gloo"), ("cuda", "nccl")])
def test_several_processes_take_the_backend_and_gpu_of_their_own(device, backend, monkeypatch):
    from torch import distributed

    from conform_app.braincorl.training import init_processes

    seen = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(distributed, "init_process_group", seen.append)
    with simulated_gpu(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "device_count", lambda: 2)
        patch.setattr(torch.cuda, "set_device", seen.append)
        place, _, _ = init_processes(device)
    there = torch.device("cuda", 1) if device == "cuda" else torch.device("cpu")
    assert place == there
    assert seen == ([there] if device == "cuda" else []) + [backend]
