# SPDX-License-Identifier: Apache-2.0
"""Networks with ``device="cuda"`` against the CPU (see test_gpu.py), and copies between the devices."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from encode_cases import E, make_collection, make_job
from gpu_cases import KINDS, device, same
from simulated_gpu import simulated_gpu

from conform_app.braincorl import (
    ModelSizes,
    Stage,
    TrainSettings,
    adapt,
    image_importance,
    load_model,
    open_extractor,
    save_model,
    train,
    transformer_weights,
    unit_norm,
)
from conform_app.braincorl.model import BraInCoRL
from conform_app.braincorl.networks import _extractor, resize
from conform_app.cli.resources import resolve_device
from conform_app.encode.job import plan_encoding, write_job
from conform_app.encode.model import model_target
from conform_app.encode.prepare import open_prepared, prepare, prepared_folder
from conform_app.encode.seal import describe_dataset
from conform_app.workflows.encode import init_encode_wf
from conform_app.workflows.execute import read_plugin, run_workflow

SIZES = ModelSizes(8, 16, 2, 16, 2, 2)


class Killed(Exception):
    """Ends a training."""


@pytest.fixture(params=KINDS)
def gpu(request):
    with device(request.param):
        yield request.param


# braincorl


def participants(n_voxels: int = 60) -> dict:
    rng = np.random.default_rng(0)
    loadings = rng.normal(size=(3, 8))
    out = {}
    for name in ("sub-01", "sub-02"):
        features = unit_norm(rng.normal(size=(80, 8)))
        measured = rng.normal(size=(n_voxels, 3)) @ loadings @ features.T
        out[name] = features, (measured + rng.normal(size=measured.shape)).astype(np.float32)
    return out


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    torch.manual_seed(0)
    return save_model(BraInCoRL(SIZES), tmp_path_factory.mktemp("network") / "net.safetensors")


def test_network_over_voxels(gpu, network, tmp_path):
    x, y = participants()["sub-01"]
    y = y[:, :40].copy()
    y[3], y[4, 2] = 1.0, np.nan
    x = x[:40]
    here, there = (load_model(network, device=d) for d in ("cpu", "cuda"))
    assert {p.device.type for p in there.parameters()} == {"cuda"}
    want = transformer_weights(here, x, y)
    same(transformer_weights(there, x, y, precision="float32", block=7), want, 1e-4, 1e-5)
    kept = tmp_path / "weights.npy"
    for _ in range(2):  # the second time from the file
        got = transformer_weights(there, x, y, precision="float32", keep_at=kept)
        same(got, want, 1e-4, 1e-5)
    half = transformer_weights(there, x, y, precision="bfloat16")
    assert not np.array_equal(half, want, equal_nan=True)
    if gpu == "simulated":
        same(transformer_weights(there, x, y), half, 0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.cuda, "get_device_capability", lambda place: (7, 5))
            same(transformer_weights(there, x, y), want, 1e-4, 1e-5)
    assert np.nanmax(np.abs(half - want)) < 0.1 * np.nanstd(want)
    for layer in (None, 1):
        same(
            image_importance(there, x, y, layer=layer), image_importance(here, x, y, layer=layer), 1e-4, 1e-6
        )


def test_adapting(gpu, network):
    x, y = participants()["sub-01"]
    fits = [
        adapt(x[:40], y[:, :40], model=load_model(network, device=d), precision="float32")
        for d in ("cpu", "cuda")
    ]
    same(fits[1].weights, fits[0].weights, 1e-3, 1e-4)


def test_training(gpu, tmp_path):
    stages = (
        Stage(True, (20, 20), 15, 16, 4, 2, lr=2e-3),
        Stage(False, (8, 30), 15, 16, 4, 2, lr=1e-3, schedule="cosine", sizes="log"),
    )
    settings = TrainSettings(stages=stages, warmup=4, validation_batches=2, precision="float32")
    runs = [train(participants(), SIZES, tmp_path / d, settings=settings, device=d) for d in ("cpu", "cuda")]
    for here, there in zip(runs[0].history, runs[1].history, strict=True):
        assert here.keys() == there.keys()
        np.testing.assert_allclose(list(there.values()), list(here.values()), rtol=1e-3)
    assert next(runs[1].model.parameters()).device.type == "cuda"
    for name, value in runs[0].model.state_dict().items():
        same(runs[1].model.state_dict()[name].cpu().numpy(), value.numpy(), 1e-2, 1e-3, name)


def test_training_goes_on(gpu, tmp_path):
    """Dropout and bfloat16 as on a GPU; a run that was cut off gives the numbers of one that was not."""
    stages = (
        Stage(True, (20, 20), 15, 16, 3, 2, lr=2e-3),
        Stage(False, (8, 30), 15, 16, 3, 2, lr=1e-3, dropout=0.2),
    )
    settings = TrainSettings(stages=stages, warmup=2, validation_batches=2)
    whole = train(participants(), SIZES, tmp_path / "whole", settings=settings, device="cuda")
    assert all(np.isfinite(list(row.values())).all() for row in whole.history)

    def kill(row):
        if row["stage"] == 2:
            raise Killed

    with pytest.raises(Killed):
        train(participants(), SIZES, tmp_path / "cut", settings=settings, device="cuda", progress=kill)
    again = train(participants(), SIZES, tmp_path / "cut", settings=settings, device="cuda")
    for one, other in zip(again.history, whole.history, strict=True):
        np.testing.assert_allclose(list(one.values()), list(other.values()), rtol=1e-3)


def networks() -> list:
    specs = {f"transformers:{name}": ("transformers",) for name in ("clip", "siglip", "dino", "resnet")}
    specs |= {
        "open_clip:open_clip_folder": ("open_clip", "torchvision"),
        "timm:resnet18": ("timm", "torchvision"),
    }
    missing = {spec: [name for name in names if find_spec(name) is None] for spec, names in specs.items()}
    return [
        pytest.param(spec, marks=pytest.mark.skipif(bool(names), reason=f"not installed: {names}"))
        for spec, names in missing.items()
    ]


@pytest.mark.parametrize("spec", networks())
def test_features(gpu, spec, tmp_path):
    import braincorl_networks

    backend, _, name = spec.partition(":")
    if backend == "timm":
        import timm
        from safetensors.torch import save_file

        torch.manual_seed(0)
        net = timm.create_model(name)
        path = tmp_path / "net.safetensors"
        save_file(net.state_dict(), path)
        opened = f"timm:{name}/{path}"
    else:
        getattr(braincorl_networks, name)(tmp_path / "net")
        opened = f"{backend}:{tmp_path / 'net'}"
    images = [np.random.default_rng(i).integers(0, 255, (40, 50, 3), np.uint8) for i in range(3)]
    here, there = open_extractor(opened), open_extractor(opened, device="cuda")
    assert there.name == here.name
    same(there(images), here(images), 1e-4, 1e-5)
    if here.encode_text is not None:
        prompts = ["a face", "a house by the sea"]
        same(there.encode_text(prompts), here.encode_text(prompts), 1e-4, 1e-5)


# encode


def test_features_of_a_convolution(gpu):
    """In full float32, where cuDNN would round to TF32."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 4, 2), torch.nn.BatchNorm2d(5), torch.nn.ReLU())
    net.append(torch.nn.AdaptiveAvgPool2d(1))
    rounded, features = [], []
    images = [np.random.default_rng(i).integers(0, 255, (40, 50, 3), np.uint8) for i in range(3)]
    for place in ("cpu", "cuda"):
        own = deepcopy(net)

        def forward(x, own=own):
            rounded.append(torch.backends.cudnn.allow_tf32)
            return own(x)

        extractor = _extractor("tiny", "pooled", own, "none", lambda one: resize(one, 32), forward, place)
        features.append(extractor(images))
    same(features[1], features[0], 1e-4, 1e-5)
    assert not any(rounded)
    assert torch.backends.cudnn.allow_tf32


def test_encoding_models(gpu, tmp_path):
    """A network beside the other estimators, in bfloat16 on the GPU."""
    torch.manual_seed(0)
    model = BraInCoRL(ModelSizes(E, 20, layers=1, ffn=16, registers=2, heads=2, block=16))
    path = save_model(model, tmp_path / "network.safetensors")
    weights = []
    for place in ("cpu", "cuda"):
        root = tmp_path / place
        make_collection(root)
        options = {"encode": "transformer", "encode_model": str(path), "encode_context": (20,)}
        job = replace(make_job(root, **options, encode_target=("sub-01_TWO",)), device=place)
        plan = plan_encoding(job)
        people = {}
        for key in plan.people:
            prepare(job, plan, key)
            people[key] = open_prepared(prepared_folder(job, plan, key), key)
        made = model_target(job, plan, plan.targets[0], people, root)
        weights.append(np.array(made.arrays["weights"]))
        assert made.importance is not None
    spread = np.nanstd(weights[0])
    same(weights[1], weights[0], 0, 0.1 * spread)
    assert np.isfinite(weights[1]).sum() > 0


def test_encoding_models_in_two_processes(tmp_path):
    """Forked from one that made the job: nothing in it may have asked for CUDA."""
    torch.manual_seed(0)
    model = BraInCoRL(ModelSizes(E, 20, layers=1, ffn=16, registers=2, heads=2, block=16))
    path = save_model(model, tmp_path / "network.safetensors")
    make_collection(tmp_path)
    options = {"encode": "transformer", "encode_model": str(path), "encode_context": (20,)}
    with simulated_gpu() as state:
        job = make_job(tmp_path, **options, encode_target=("sub-01_TWO",))
        job = replace(job, device=resolve_device("auto")[0])
        plan = plan_encoding(job)
        describe_dataset(job, {"a": 1}, "abcd", overwrite=False)
        workflow = init_encode_wf(
            people=list(plan.people),
            targets=[target.key for target in plan.targets],
            job_file=write_job(job, plan, tmp_path / "work"),
            work_dir=tmp_path / "work",
            log_dir=tmp_path / "log",
        )
        plugin = read_plugin(None, 2, 2 << 30)
        assert run_workflow(workflow, plugin=plugin, log_dirs=[tmp_path / "log"]) == []
        assert state.asked_in is None
    outcomes = [json.loads(file.read_text()) for file in (tmp_path / "work").rglob("outcome.json")]
    assert {outcome["state"] for outcome in outcomes} == {"done"}
    assert list(job.root.rglob("sub-TWO01*transformer*"))


# copies between the devices


def test_training_reads_nothing_back_at_each_step(tmp_path):
    """A value that is read makes the CPU wait for the GPU: the loss of an epoch is read once."""
    read = []
    for steps in (4, 12):
        stages = (Stage(False, (8, 30), 15, 16, steps, 2, lr=1e-3),)
        settings = TrainSettings(stages=stages, warmup=2, validation_batches=2)
        with simulated_gpu() as state:
            train(participants(), SIZES, tmp_path / str(steps), settings=settings, device="cuda")
            read.append(state.fetched)
    assert read[0] == read[1]


def test_training_that_goes_on_reads_nothing_more(tmp_path):
    settings = TrainSettings(
        stages=(Stage(False, (8, 30), 15, 16, 6, 4, lr=1e-3),), warmup=2, validation_batches=2
    )
    read = []
    for name, epochs in (("whole", 4), ("cut", 2)):

        def kill(row, epochs=epochs):
            if row["epoch"] == epochs and epochs < 4:
                raise Killed

        with simulated_gpu() as state:
            options = {"settings": settings, "device": "cuda"}
            try:
                train(participants(), SIZES, tmp_path / name, progress=kill, **options)
            except Killed:
                state.fetched = 0
                train(participants(), SIZES, tmp_path / name, **options)
            read.append(state.fetched)
    assert read[1] < read[0]
