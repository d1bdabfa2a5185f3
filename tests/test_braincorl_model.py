# SPDX-License-Identifier: Apache-2.0
"""The network against outputs of the published code, and the spellings of its checkpoints."""

from __future__ import annotations

import argparse
import json
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from conform_app.braincorl import PRESETS, BraInCoRL, ModelSizes, load_model, save_model
from conform_app.errors import DataError, FileFaultError, NoInputError, UsageError

HERE = Path(__file__).parent / "data" / "braincorl"
SMALL = {
    "small_a": ModelSizes(16, 24, 2, 32, 4, 4, 48),
    "small_b": ModelSizes(20, 20, 3, 40, 2, 5, 30, 2),
}
CONTEXTS = {"small_a": (10, 40, 100), "small_b": (7, 33)}


def big_fixtures() -> Path:
    root = os.environ.get("CONFORM_TEST_DATA")
    if not root:
        pytest.skip("CONFORM_TEST_DATA, the folder with the large fixtures, is not set")
    return Path(root) / "fixtures" / "braincorl"


def recipe_weights(shapes: dict[str, tuple[int, ...]], seed: int, width: int) -> dict[str, torch.Tensor]:
    """The fixtures' rule for making weights, key by key, whatever their order."""
    state = {}
    for key, shape in shapes.items():
        z = np.random.default_rng(zlib.crc32(key.encode()) + seed).standard_normal(shape)
        if key == "cls_token":
            z = z / np.sqrt(width + 1)
        elif len(shape) == 1:
            z = 0.1 * z + key.endswith("weight")
        else:
            z = z / np.sqrt(shape[1])
        state[key] = torch.from_numpy(z.astype(np.float32))
    return state


def small(name: str) -> tuple[BraInCoRL, dict[str, np.ndarray]]:
    state = {k: torch.from_numpy(v) for k, v in np.load(HERE / f"{name}_state_dict.npz").items()}
    return load_model(state, SMALL[name]), dict(np.load(HERE / f"{name}.npz"))


def tensors(data, context: int, n_voxels: int | None = None):
    return (
        torch.from_numpy(data["ic_img"][:context]),
        torch.from_numpy(data["ic_nrn"][:n_voxels, :context]),
        torch.from_numpy(data["uk_img"]),
    )


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize(("name", "context"), [(n, c) for n in SMALL for c in CONTEXTS[n]])
def test_small_models_equal_the_published_code(name: str, context: int, plain: bool) -> None:
    model, data = small(name)
    predictions, weights = model(*tensors(data, context), plain=plain)
    np.testing.assert_allclose(predictions, data[f"pred_ctx{context}"], atol=2e-5, rtol=1e-4)
    np.testing.assert_allclose(weights, data[f"weights_ctx{context}"], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_attention_equals_the_published_code(name: str) -> None:
    model, data = small(name)
    for context in CONTEXTS[name]:
        features, betas, _ = tensors(data, context)
        _, attention = model.weights(features, betas, plain=True)
        np.testing.assert_allclose(attention[-1][:, 0], data[f"attn_last_cls_ctx{context}"], atol=1e-5)
    features, betas, _ = tensors(data, CONTEXTS[name][0])
    _, attention = model.weights(features, betas, plain=True)
    every = torch.stack(attention, dim=1)
    np.testing.assert_allclose(every, data[f"attn_all_ctx{CONTEXTS[name][0]}"], atol=1e-5)


def test_features_per_voxel_and_shared_features_are_the_same_model() -> None:
    model, data = small("small_a")
    features, betas, queries = tensors(data, 40)
    shared = model(features, betas, queries)
    own = model(features.repeat(6, 1, 1), betas, queries.repeat(6, 1, 1))
    for a, b in zip(shared, own, strict=True):
        torch.testing.assert_close(a, b, atol=2e-6, rtol=1e-5)


def test_the_order_of_the_context_does_not_matter() -> None:
    model, data = small("small_a")
    features, betas, queries = tensors(data, 40)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        model(features[order], betas[:, order], queries)[1],
        model(features, betas, queries)[1],
        atol=1e-5,
        rtol=1e-4,
    )


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_have_the_published_keys_in_order(preset: str) -> None:
    keys = json.loads((HERE / f"keys_{preset}.json").read_text())
    with torch.device("meta"):
        state = BraInCoRL(preset).state_dict()
    assert {key: list(value.shape) for key, value in state.items()} == keys
    assert list(state) == list(keys)


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_presets_equal_the_published_code_at_full_size(preset: str) -> None:
    data = dict(np.load(big_fixtures() / f"full_{preset}.npz"))
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in BraInCoRL(preset).state_dict().items()}
    model = load_model(recipe_weights(shapes, 0, PRESETS[preset].width))
    assert model.sizes == PRESETS[preset]
    predictions, weights = model(*tensors(data, 30))
    np.testing.assert_allclose(predictions, data["pred"], atol=2e-4, rtol=1e-4)
    np.testing.assert_allclose(weights, data["weights"], atol=2e-4, rtol=1e-4)
    _, attention = model.weights(*tensors(data, 30)[:2], plain=True)
    np.testing.assert_allclose(attention[0][:, 0], data["attn_layer0_cls"], atol=1e-5)
    np.testing.assert_allclose(attention[-1][:, 0], data["attn_last_cls"], atol=1e-5)
    if preset == "CLIP":
        sample = np.load(big_fixtures() / "full_CLIP_shipped_sample.npz")
        ones = torch.ones(100, 512), torch.ones(10, 100), torch.ones(20, 512)
        predictions, weights = model(*ones)
        np.testing.assert_allclose(predictions, sample["pred"], atol=5e-4, rtol=2e-4)
        np.testing.assert_allclose(weights, sample["weights"], atol=2e-4, rtol=2e-4)


def test_training_steps_equal_the_published_code() -> None:
    data = dict(np.load(HERE / "train_small_a.npz"))
    model, _ = small("small_a")
    model.requires_grad_(True).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    features, betas, queries = tensors(data, 40)
    target = torch.from_numpy(data["uk_nrn"])
    losses = []
    for _ in range(5):
        optimiser.zero_grad()
        loss = torch.nn.functional.mse_loss(model(features, betas, queries)[0], target)
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    np.testing.assert_allclose(losses, data["losses"], rtol=1e-4)
    for key, value in model.state_dict().items():
        expected = data[f"after5/{key}"]
        if key.endswith("in_proj_bias"):
            # Softmax does not see the bias of the keys: its gradient is rounding, which Adam scales up.
            value, expected = (np.delete(np.asarray(x), np.s_[24:48]) for x in (value, expected))
        np.testing.assert_allclose(value, expected, atol=1e-4, err_msg=key)


@pytest.mark.parametrize("spelling", ["bare", "lightning", "lightning_prefixed", "module", "safetensors"])
def test_every_spelling_of_a_checkpoint_is_read(spelling: str, tmp_path: Path) -> None:
    model, data = small("small_a")
    state = model.state_dict()
    path = tmp_path / "x.pth"
    if spelling == "bare":
        torch.save(state, path)
    elif spelling == "module":
        torch.save({f"module.{k}": v for k, v in state.items()}, path)
    elif spelling == "safetensors":
        path = tmp_path / "x.safetensors"
        save_model(model, path, {"participants": ["sub-01"]})
    else:
        prefix = "model." if spelling == "lightning_prefixed" else ""
        path = tmp_path / "x.ckpt"
        kept = {"args": argparse.Namespace(lr=1e-4, work_base=Path("somewhere"))}
        named = {prefix + k: v for k, v in state.items()}
        torch.save({"epoch": 3, "hyper_parameters": kept, "state_dict": named}, path)
    again = load_model(path, None if spelling == "safetensors" else SMALL["small_a"])
    assert again.sizes == SMALL["small_a"]
    assert not again.training
    torch.testing.assert_close(again(*tensors(data, 10)), model(*tensors(data, 10)), atol=0, rtol=0)
    if spelling == "safetensors":
        assert again.card["participants"] == ["sub-01"]


class NotJustTensors:
    """Something that a weights-only reader must not make."""


def test_bad_checkpoints_have_their_errors(tmp_path: Path) -> None:
    model, _ = small("small_a")
    state = model.state_dict()
    with pytest.raises(NoInputError, match=r"nowhere\.pth"):
        load_model(tmp_path / "nowhere.pth")
    with pytest.raises(UsageError, match="heads"):
        load_model(state)
    with pytest.raises(UsageError, match="preset 'BIG'"):
        load_model(state, "BIG")
    with pytest.raises(DataError, match="tensors missing"):
        load_model(state, "vis")
    with pytest.raises(DataError, match="cls_token has shape"):
        load_model(state, ModelSizes(16, 28, 2, 32, 4, 4, 48))
    with pytest.raises(DataError, match=r"extra\.weight is unknown"):
        load_model({**state, "extra.weight": torch.zeros(1)}, SMALL["small_a"])
    with pytest.raises(DataError, match="not a BraInCoRL network"):
        load_model({"weight": torch.zeros(2, 2)})
    with pytest.raises(DataError, match="not finite"):
        load_model({**state, "cls_token": state["cls_token"] * np.nan}, SMALL["small_a"])
    torch.save({"state_dict": state, "more": NotJustTensors()}, tmp_path / "pickle.ckpt")
    with pytest.raises(FileFaultError, match="can run code"):
        load_model(tmp_path / "pickle.ckpt", SMALL["small_a"])
    torch.save(state, tmp_path / "whole.pth")
    (tmp_path / "half.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:20_000])
    with pytest.raises(FileFaultError, match=r"half\.pth"):
        load_model(tmp_path / "half.pth", SMALL["small_a"])
    save_model(model, tmp_path / "whole.safetensors")
    (tmp_path / "half.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:20_000])
    with pytest.raises(FileFaultError, match=r"half\.safetensors"):
        load_model(tmp_path / "half.safetensors")


def test_shapes_that_do_not_fit_have_their_errors() -> None:
    model, data = small("small_a")
    features, betas, queries = tensors(data, 40)
    with pytest.raises(DataError, match="reads 16 features"):
        model(features[:, :10], betas, queries)
    with pytest.raises(DataError, match="40 context images"):
        model(features, betas[:, :30], queries)
    with pytest.raises(DataError, match="for 3 voxels"):
        model(features.repeat(3, 1, 1), betas, queries)
    with pytest.raises(DataError, match="10 columns"):
        model(features, betas, queries[:, :10])
    with pytest.raises(UsageError, match="heads"):
        ModelSizes(16, 25, heads=4)
