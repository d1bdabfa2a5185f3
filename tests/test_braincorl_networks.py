# SPDX-License-Identifier: Apache-2.0
"""Feature backends load real files and give what the library's own forward pass gives.

The networks are tiny and have random weights; the loading code, the preprocessing and the layer are the real
ones.  Install ``conform-app[features]`` to run these tests.
"""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import braincorl_networks as tiny
import numpy as np
import pytest

from conform_app.braincorl import embed_prompts, extract, open_extractor, text_query, unit_norm
from conform_app.errors import FileFaultError, MissingCommandError, NoInputError, UsageError

PROMPTS = ("a face", "a house by the sea", "food")


def need(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"the Python package {package} is not installed (conform-app[features] brings it)")
    pytest.importorskip(package)


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = ((48, 64, 3), (80, 50, 3), (32, 32, 3))
    coarse = [rng.integers(256, size=(6, 6, 3)) for _ in shapes]
    return [
        np.kron(c, np.ones((14, 14, 1)))[:h, :w].astype(np.uint8)
        for c, (h, w, _) in zip(coarse, shapes, strict=True)
    ]


@pytest.fixture(scope="module")
def files(images, tmp_path_factory) -> list[Path]:
    from PIL import Image

    folder = tmp_path_factory.mktemp("pictures")
    out = []
    for i, image in enumerate(images):
        out.append(folder / f"{i}.png")
        Image.fromarray(image).save(out[-1])
    return out


def check(spec: str, files, expected: np.ndarray, cache: Path, tolerance: float = 2e-6):
    """`extract` gives the expected vectors as unit vectors, and once more from the cache."""
    extractor = open_extractor(spec)
    found = extract(files, extractor, cache=cache, batch=2)
    assert extractor.n_features == expected.shape[1]
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(found, unit_norm(expected), atol=tolerance)
    again = open_extractor(spec)
    assert again.name == extractor.name
    np.testing.assert_array_equal(extract(files, again, cache=cache), found)
    return extractor


def batch_of(images, *args, **options):
    import torch

    return torch.from_numpy(np.stack([tiny.shrink(image, *args, **options) for image in images]))


def test_transformers_clip_is_the_projected_embedding(images, files, tmp_path: Path) -> None:
    need("transformers")
    import torch

    net = tiny.clip(tmp_path / "clip")
    x = batch_of(images, tiny.SIZE, tiny.CLIP_MEAN, tiny.CLIP_SD)
    with torch.no_grad():
        expected = net.vision_model(x).pooler_output @ net.visual_projection.weight.T
    extractor = check(f"transformers:{tmp_path / 'clip'}", files, expected.numpy(), tmp_path / "cache")
    assert extractor.layer == "image embedding"
    # Text: start, bytes with the last of each word marked, end; padded with the end token.
    vocabulary = json.loads((tmp_path / "clip" / "vocab.json").read_text())
    ids = torch.full((len(PROMPTS), 16), 513)
    mask = torch.zeros((len(PROMPTS), 16), dtype=torch.long)
    for i, prompt in enumerate(PROMPTS):
        words = prompt.split()
        tokens = [vocabulary[t] for w in words for t in [*w[:-1], f"{w[-1]}</w>"]]
        row = [512, *tokens[:14], 513]
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    with torch.no_grad():
        text = net.text_model(input_ids=ids, attention_mask=mask).pooler_output @ net.text_projection.weight.T
    np.testing.assert_allclose(extractor.encode_text(PROMPTS), text.numpy(), atol=2e-6)


def test_transformers_siglip_is_its_pooled_output(images, files, tmp_path: Path) -> None:
    need("transformers")
    import torch

    net = tiny.siglip(tmp_path / "siglip")
    x = batch_of(images, tiny.SIZE, (0.5,) * 3, (0.5,) * 3, square=True)
    with torch.no_grad():
        vision = net.vision_model
        hidden = vision.post_layernorm(vision.encoder(inputs_embeds=vision.embeddings(x)).last_hidden_state)
        expected = vision.head(hidden)
    extractor = check(f"transformers:{tmp_path / 'siglip'}", files, expected.numpy(), tmp_path / "cache")
    # Padding is seen, as in training: ids alone, to the full length, and no mask.
    vocabulary = json.loads((tmp_path / "siglip" / "vocab.json").read_text())
    ids = torch.full((1, 16), 513)
    ids[0, :5] = torch.tensor([512, vocabulary["c"], vocabulary["a"], vocabulary["t</w>"], 513])
    with torch.no_grad():
        text = net.text_model(input_ids=ids).pooler_output
        masked = net.text_model(
            input_ids=ids, attention_mask=(torch.arange(16) < 5).long()[None]
        ).pooler_output
    assert (text - masked).abs().max() > 1e-3
    np.testing.assert_allclose(extractor.encode_text(["cat"]), text.numpy(), atol=2e-6)


def test_transformers_dino_is_the_class_token(images, files, tmp_path: Path) -> None:
    need("transformers")
    import torch

    net = tiny.dino(tmp_path / "dino")
    # To 40 on the shorter side, then the central 32: the crop is where it should be.
    x = batch_of(images, 40, tiny.CLIP_MEAN, tiny.CLIP_SD, crop=tiny.SIZE)
    with torch.no_grad():
        hidden = net.encoder(net.embeddings(x)).last_hidden_state
        expected = net.layernorm(hidden)[:, 0]
    extractor = check(f"transformers:{tmp_path / 'dino'}", files, expected.numpy(), tmp_path / "cache")
    assert extractor.layer == "class token"
    assert extractor.encode_text is None
    with pytest.raises(UsageError, match="no text tower"):
        embed_prompts(extractor, PROMPTS)


def test_transformers_without_a_class_token_is_pooled(images, files, tmp_path: Path) -> None:
    need("transformers")
    import torch

    net = tiny.resnet(tmp_path / "resnet")
    x = batch_of(images, tiny.SIZE, tiny.CLIP_MEAN, tiny.CLIP_SD)
    with torch.no_grad():
        expected = net(x).last_hidden_state.mean(dim=(2, 3))
    check(f"transformers:{tmp_path / 'resnet'}", files, expected.numpy(), tmp_path / "cache")


def test_open_clip_from_a_folder_and_from_a_file(images, files, tmp_path: Path) -> None:
    need("open_clip")
    import open_clip
    import torch

    folder = tmp_path / "clip"
    net = tiny.open_clip_folder(folder)
    x = batch_of(images, tiny.SIZE, tiny.CLIP_MEAN, tiny.CLIP_SD, rounded=True)
    with torch.no_grad():
        expected = net.visual(x)
        text = net.encode_text(open_clip.SimpleTokenizer(context_length=16)(list(PROMPTS)))
    extractor = check(f"open_clip:{folder}", files, expected.numpy(), tmp_path / "cache")
    np.testing.assert_allclose(extractor.encode_text(PROMPTS), text.numpy(), atol=2e-6)
    open_clip.add_model_config(folder / "conform-tiny.json")
    file = folder / "open_clip_pytorch_model.bin"
    check(f"open_clip:conform-tiny/{file}", files, expected.numpy(), tmp_path / "cache")
    with pytest.raises(UsageError, match="laion2b"):
        open_extractor("open_clip:ViT-B-32")  # would be random weights
    (folder / "open_clip_pytorch_model.bin").unlink()
    with pytest.raises(FileFaultError, match="clip"):
        open_extractor(f"open_clip:{folder}")


def test_timm_from_a_file_and_from_a_folder(images, files, tmp_path: Path) -> None:
    need("timm")
    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(5)
    net = timm.create_model("test_resnet.r160_in1k", pretrained=False).eval()
    torch.save(net.state_dict(), tmp_path / "weights.pth")
    config = timm.get_pretrained_cfg("test_resnet.r160_in1k")
    size = config.input_size[1]
    shape = {"crop": size, "rounded": True, "method": config.interpolation}
    x = batch_of(images, int(size / config.crop_pct), config.mean, config.std, **shape)
    with torch.no_grad():
        expected = net.forward_features(x).mean(dim=(2, 3))
    spec = f"timm:test_resnet.r160_in1k/{tmp_path / 'weights.pth'}"
    first = check(spec, files, expected.numpy(), tmp_path / "cache", 2e-5)
    folder = tmp_path / "folder"
    folder.mkdir()
    save_file(net.state_dict(), folder / "model.safetensors")
    keep = {"input_size": config.input_size, "mean": config.mean, "std": config.std}
    keep |= {"crop_pct": config.crop_pct, "interpolation": config.interpolation, "num_classes": 1000}
    (folder / "config.json").write_text(
        json.dumps({"architecture": "test_resnet", "num_classes": 1000, "pretrained_cfg": keep})
    )
    check(f"timm:{folder}", files, expected.numpy(), tmp_path / "cache", 2e-5)
    partial = dict(list(net.state_dict().items())[:-8])
    torch.save(partial, tmp_path / "partial.pth")
    with pytest.raises(FileFaultError, match=r"partial\.pth"):
        open_extractor(f"timm:test_resnet.r160_in1k/{tmp_path / 'partial.pth'}")
    with torch.no_grad():
        next(net.parameters()).mul_(2)
    torch.save(net.state_dict(), tmp_path / "weights.pth")
    assert open_extractor(spec).name != first.name  # the cache sees the change


def test_torchvision_takes_what_the_classifier_gets(images, files, tmp_path: Path) -> None:
    need("torchvision")
    import torch
    from torchvision import models

    torch.manual_seed(6)
    net = models.squeezenet1_1().eval()
    torch.save(net.state_dict(), tmp_path / "squeezenet.pth")
    with pytest.raises(UsageError, match="no classifier"):
        open_extractor(f"torchvision:squeezenet1_1/{tmp_path / 'squeezenet.pth'}")
    net = models.resnet18().eval()
    torch.save(net.state_dict(), tmp_path / "resnet18.pth")
    mean, sd = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    x = batch_of(images, 256, mean, sd, crop=224, rounded=True, method="bilinear")
    with torch.no_grad():
        y = net.maxpool(net.relu(net.bn1(net.conv1(x))))
        expected = net.layer4(net.layer3(net.layer2(net.layer1(y)))).mean(dim=(2, 3))
    spec = f"torchvision:resnet18/{tmp_path / 'resnet18.pth'}"
    extractor = check(spec, files, expected.numpy(), tmp_path / "cache", 2e-5)
    assert extractor.n_features == 512
    with pytest.raises(FileFaultError, match="resnet18"):
        open_extractor(f"torchvision:resnet50/{tmp_path / 'resnet18.pth'}")
    (tmp_path / "torn.pth").write_bytes((tmp_path / "resnet18.pth").read_bytes()[:1000])
    with pytest.raises(FileFaultError, match="torn"):
        open_extractor(f"torchvision:resnet18/{tmp_path / 'torn.pth'}")


def test_partial_transformers_weights_are_refused(tmp_path: Path) -> None:
    need("transformers")
    from safetensors.torch import load_file, save_file

    tiny.dino(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("encoder.layer.1.mlp.fc1.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FileFaultError, match=r"lacks 1 weights.*fc1"):
        open_extractor(f"transformers:{tmp_path}")
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(FileFaultError, match=str(tmp_path)):
        open_extractor(f"transformers:{tmp_path}")


@pytest.mark.parametrize(
    ("package", "spec"),
    [
        ("transformers", "transformers:conform-app/none"),
        ("open_clip", "open_clip:ViT-B-32/laion2b_s34b_b79k"),
        ("open_clip", "open_clip:hf-hub:conform-app/none"),
        ("timm", "timm:resnet18"),
        ("timm", "timm:hf-hub:conform-app/none"),
        ("torchvision", "torchvision:resnet18/IMAGENET1K_V1"),
    ],
)
def test_nothing_is_fetched_unless_asked(package: str, spec: str, monkeypatch, tmp_path: Path) -> None:
    need(package)
    import huggingface_hub.constants
    import torch

    tried: list[object] = []

    def refuse(*args: object, **_: object) -> None:
        tried.append(args)
        raise OSError("no network in this test")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises(NoInputError, match=rf"(?s)no weights.*{package}.*allow_download"):
        open_extractor(spec)
    assert not tried
    if package == "torchvision":
        with pytest.raises(NoInputError):
            open_extractor(spec, allow_download=True)
        assert tried


def test_paths_that_are_not_there_are_named(tmp_path: Path) -> None:
    for package, spec in (
        ("transformers", f"transformers:{tmp_path / 'none'}"),
        ("open_clip", f"open_clip:ViT-B-32/{tmp_path / 'none.pt'}"),
        ("timm", f"timm:resnet18/{tmp_path / 'none.pth'}"),
        ("torchvision", f"torchvision:resnet18/{tmp_path / 'none.pth'}"),
    ):
        if importlib.util.find_spec(package):
            with pytest.raises(NoInputError, match="none"):
                open_extractor(spec)
        else:
            with pytest.raises(MissingCommandError, match=package):
                open_extractor(spec)


def test_prompts_are_answered_by_the_text_tower(files, tmp_path: Path) -> None:
    """A voxel that is tuned to a prompt's embedding answers with that prompt."""
    need("transformers")
    tiny.clip(tmp_path)
    extractor = open_extractor(f"transformers:{tmp_path}")
    templates = ("a photo of {}", "{}")
    embeddings = embed_prompts(extractor, PROMPTS, templates=templates)
    assert [e.shape for e in embeddings] == [(2, 24)] * 3
    means = unit_norm(np.stack([unit_norm(e).mean(axis=0) for e in embeddings]))
    tuned = means - means.mean(axis=0)
    weights = np.column_stack([tuned, np.zeros(3)])
    answer = text_query(weights, PROMPTS, embeddings)
    np.testing.assert_array_equal(answer.best, [0, 1, 2])


def test_a_broken_build_of_a_library_is_no_traceback(tmp_path: Path) -> None:
    """A library that is there and cannot be imported: one line that names it."""
    broken = tmp_path / "torchvision"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    code = "import conform_app.braincorl as b; b.open_extractor('torchvision:resnet18/IMAGENET1K_V1')"
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{root}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "MissingCommandError: torchvision cannot be used: operator torchvision::nms" in done.stderr
